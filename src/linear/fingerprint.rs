//! What tells the features of one map from those of another: sums of the one are nothing to the queries of the other.

use super::features::FeatureMap;
use super::state::StateShape;

/// Numbers that a fingerprint takes among saved ones.
pub(crate) const SAVED: usize = 4;

/// 64 bits of a map, its directions, its scale and the sizes of a state: the same wherever these are (FNV-1a, over the bits of
/// all numbers).
pub(crate) fn fingerprint(map: &FeatureMap, scale: f32, shape: &StateShape) -> u64 {
    let StateShape { features, head_dim, v_dim, window, .. } = *shape;
    let sizes = [features, head_dim, v_dim, usize::from(window)].map(|size| size as u64);
    let (kind, rows, factor, own) = match map {
        FeatureMap::Positive(projection) => (0, projection.rows(), 0.0, 0),
        FeatureMap::Hyperbolic(projection) => (1, projection.rows(), 0.0, 0),
        FeatureMap::Optimal { projection, a } => (2, projection.rows(), *a, 0),
        FeatureMap::Elu => (3, &[][..], 0.0, 0),
        FeatureMap::Relu { projection, epsilon } => {
            (4, projection.as_ref().map_or(&[][..], |projection| projection.rows()), *epsilon, 0)
        }
        FeatureMap::Taylor => (5, &[][..], 0.0, 0),
        FeatureMap::Identity => (6, &[][..], 0.0, 0),
        FeatureMap::Custom(map) => (7, &[][..], 0.0, map.fingerprint()),
    };
    let words = [kind, factor.to_bits(), scale.to_bits()];
    let wide = sizes.into_iter().chain([own]).flat_map(|wide| [wide as u32, (wide >> 32) as u32]);
    let words = words.into_iter().chain(wide).chain(rows.iter().map(|x| x.to_bits()));
    let bytes = words.flat_map(u32::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A fingerprint as numbers that any storage of `f32` keeps: 16 bits each, the lowest first.
pub(crate) fn numbers(fingerprint: u64) -> [f32; SAVED] {
    std::array::from_fn(|index| f32::from((fingerprint >> (16 * index)) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{Norms, Projection};

    #[test]
    fn everything_tells() {
        let directions = |seed| Projection::orthogonal(4, 8, Norms::Chi, seed).unwrap();
        let maps = [
            FeatureMap::Positive(directions(1)),
            FeatureMap::Positive(directions(2)),
            FeatureMap::Hyperbolic(directions(1)),
            FeatureMap::Optimal { projection: directions(1), a: 0.0 },
            FeatureMap::Optimal { projection: directions(1), a: -0.1 },
            FeatureMap::Relu { projection: Some(directions(1)), epsilon: 0.0 },
            FeatureMap::Relu { projection: None, epsilon: 0.0 },
            FeatureMap::Relu { projection: None, epsilon: 1e-3 },
            FeatureMap::Elu,
            FeatureMap::Taylor,
            FeatureMap::Identity,
        ];
        let shape = |features, head_dim, v_dim| StateShape {
            features,
            head_dim,
            v_dim,
            v_stride: 16,
            gauged: false,
            window: false,
        };
        let of = |map: &FeatureMap, scale| fingerprint(map, scale, &shape(4, 8, 5));
        let prints = maps.iter().flat_map(|map| [0.5, 1.0].map(|scale| of(map, scale)));
        let mut prints: Vec<u64> = prints.collect();
        assert_eq!(prints[0], of(&FeatureMap::Positive(directions(1)), 0.5));
        // States of as many numbers, and of other sizes.
        let others = [shape(6, 6, 7), shape(8, 8, 5), StateShape { window: true, ..shape(8, 8, 5) }];
        prints.extend(others.iter().map(|shape| fingerprint(&FeatureMap::Elu, 1.0, shape)));
        assert_eq!(numbers(0xffff_0001_0000_8000), [32768.0, 0.0, 1.0, 65535.0]);
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), 25);
    }
}
