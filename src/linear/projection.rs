//! [`Projection`]: the random directions of a feature map.

use crate::error::{AttentionError, check_size};
use crate::random::Normals;

/// How long the rows of an orthogonal [`Projection`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norms {
    /// As long as those of a Gaussian matrix, chi-distributed with `head_dim` degrees of freedom: the estimate of the
    /// softmax kernel is unbiased.
    Chi,
    /// All `sqrt(head_dim)`, "regularised" (SMREG): less variance, and a kernel that is by up to `2 head_dim^(-1/3)` less
    /// than that of the softmax (Performers, Theorem 1).
    Regularized,
}

/// Where a projection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Orthogonal(Norms),
    Gaussian,
    Imported,
}

/// Directions `ω_f`, `[features, head_dim]`.
///
/// Drawn ones depend on their seed and size only, whatever the system. The orthogonal ones are blocks of `head_dim`
/// orthonormal rows, the last of them cut, each times a length of its own. A block is the orthogonal factor of a Gaussian
/// matrix whose triangular factor has a positive diagonal, hence uniformly distributed (Mezzadri, "How to generate random
/// matrices from the classical compact groups", 2007). Without that sign rule, as `qr` functions come and as the reference
/// codes of Performers use them, directions are not symmetric and the kernel's estimate is biased, by 15 % at
/// `head_dim` 16.
///
/// ```
/// use lucid_attention::linear::{Norms, Projection};
/// let projection = Projection::orthogonal(100, 64, Norms::Chi, 1)?;
/// let (a, b) = (&projection.rows()[..64], &projection.rows()[64..128]);
/// assert!(a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>().abs() < 1e-4);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    rows: Vec<f32>,
    head_dim: usize,
    source: Source,
}

impl Projection {
    /// Orthogonal blocks.
    ///
    /// # Errors
    /// A size is 0, or memory cannot be had.
    pub fn orthogonal(
        features: usize,
        head_dim: usize,
        norms: Norms,
        seed: u64,
    ) -> Result<Self, AttentionError> {
        Self::drawn(features, head_dim, Source::Orthogonal(norms), seed)
    }

    /// Independent normal numbers: what orthogonal blocks are measured against.
    ///
    /// # Errors
    /// As [`Projection::orthogonal`].
    pub fn gaussian(features: usize, head_dim: usize, seed: u64) -> Result<Self, AttentionError> {
        Self::drawn(features, head_dim, Source::Gaussian, seed)
    }

    /// Directions made elsewhere: `[features, head_dim]`, contiguous.
    ///
    /// # Errors
    /// A size is 0, `rows` has another length, a number is not finite, or memory cannot be had.
    pub fn from_rows(rows: &[f32], [features, head_dim]: [usize; 2]) -> Result<Self, AttentionError> {
        let mut own = room(features, head_dim)?;
        check_size("projection", "elements", features * head_dim, rows.len())?;
        if let Some(got) = rows.iter().find(|x| !x.is_finite()) {
            let (operand, expected) = ("projection", "finite numbers");
            return Err(AttentionError::Value { operand, expected, got: got.to_string() });
        }
        own.extend_from_slice(rows);
        Ok(Self { rows: own, head_dim, source: Source::Imported })
    }

    /// Others of the same kind and size.
    ///
    /// # Errors
    /// It was imported, so there is no kind to draw from; it is then as before.
    pub fn redraw(&mut self, seed: u64) -> Result<(), AttentionError> {
        if self.source == Source::Imported {
            let (operand, expected) = ("projection", "one that was drawn");
            return Err(AttentionError::Value { operand, expected, got: "an imported one".to_owned() });
        }
        *self = Self::drawn(self.features(), self.head_dim, self.source, seed)?;
        Ok(())
    }

    fn drawn(features: usize, head_dim: usize, source: Source, seed: u64) -> Result<Self, AttentionError> {
        let mut rows = room(features, head_dim)?;
        match source {
            Source::Orthogonal(norms) => {
                let (mut directions, mut lengths) = (Normals::new(seed, 0), Normals::new(seed, 1));
                while rows.len() < features * head_dim {
                    let count = head_dim.min(features - rows.len() / head_dim);
                    for row in orthonormal(&mut directions, count, head_dim)?.chunks_exact(head_dim) {
                        let squares = (&mut lengths).take(head_dim).map(|x| x * x);
                        let length = match norms {
                            Norms::Chi => squares.sum::<f64>().sqrt(),
                            Norms::Regularized => (head_dim as f64).sqrt(),
                        };
                        rows.extend(row.iter().map(|x| (x * length) as f32));
                    }
                }
            }
            _ => rows.extend(Normals::new(seed, 0).take(features * head_dim).map(|x| x as f32)),
        }
        Ok(Self { rows, head_dim, source })
    }

    /// The directions, `[features, head_dim]`.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// How many there are.
    pub fn features(&self) -> usize {
        self.rows.len() / self.head_dim
    }

    /// How long a query and a key are.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
}

/// An empty list with room for `features * head_dim` numbers.
fn room(features: usize, head_dim: usize) -> Result<Vec<f32>, AttentionError> {
    for (operand, size) in [("features", features), ("head_dim", head_dim)] {
        if size == 0 {
            return Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() });
        }
    }
    let overflow = AttentionError::SizeOverflow { operand: "projection" };
    let size = features.checked_mul(head_dim).ok_or(overflow)?;
    reserved(size)
}

fn reserved<T>(size: usize) -> Result<Vec<T>, AttentionError> {
    let mut list = Vec::new();
    let bytes = size.saturating_mul(size_of::<T>());
    list.try_reserve_exact(size).map_err(|_| AttentionError::OutOfMemory { what: "projection", bytes })?;
    Ok(list)
}

/// The first `count` rows of a uniformly distributed orthogonal matrix, by the Gram-Schmidt process: its triangular factor
/// has a positive diagonal by itself. Each row is freed of those before it twice, which is enough (Kahan).
fn orthonormal(normals: &mut Normals, count: usize, dim: usize) -> Result<Vec<f64>, AttentionError> {
    let size = count.checked_mul(dim).ok_or(AttentionError::SizeOverflow { operand: "projection" })?;
    let mut rows: Vec<f64> = reserved(size)?;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for index in 0..count {
        rows.extend(normals.by_ref().take(dim));
        let (before, row) = rows.split_at_mut(index * dim);
        for other in before.chunks_exact(dim).chain(before.chunks_exact(dim)) {
            let along = dot(row, other);
            row.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
        }
        let length = dot(row, row).sqrt();
        row.iter_mut().for_each(|x| *x /= length);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }

    /// Whole blocks, a cut one, fewer rows than a block, one dimension.
    #[test]
    fn blocks_are_orthogonal() {
        for (features, dim) in [(8, 8), (20, 8), (3, 8), (64, 64), (5, 1)] {
            for norms in [Norms::Chi, Norms::Regularized] {
                let projection = Projection::orthogonal(features, dim, norms, 5).unwrap();
                assert_eq!(projection.features(), features);
                for block in projection.rows().chunks(dim * dim) {
                    let rows: Vec<&[f32]> = block.chunks_exact(dim).collect();
                    for (index, a) in rows.iter().enumerate() {
                        assert!(rows[..index].iter().all(|b| dot(a, b).abs() < 1e-5), "{features} x {dim}");
                        let off = (dot(a, a) - dim as f64).abs();
                        assert!(norms == Norms::Chi || off < 1e-4 * dim as f64, "{features} x {dim}");
                    }
                }
            }
        }
    }

    #[test]
    fn redrawn_ones_are_those_of_the_seed() {
        let mut projection = Projection::orthogonal(20, 8, Norms::Chi, 1).unwrap();
        let first = projection.clone();
        projection.redraw(2).unwrap();
        assert_ne!(projection, first);
        projection.redraw(1).unwrap();
        assert_eq!(projection, first);

        let mut imported = Projection::from_rows(first.rows(), [20, 8]).unwrap();
        assert_eq!(imported.rows(), first.rows());
        assert!(matches!(imported.redraw(1), Err(AttentionError::Value { operand: "projection", .. })));
    }

    #[test]
    fn refused() {
        assert!(matches!(Projection::gaussian(0, 8, 1), Err(AttentionError::Value { .. })));
        assert!(matches!(Projection::gaussian(8, 0, 1), Err(AttentionError::Value { .. })));
        assert!(matches!(Projection::from_rows(&[0.0; 7], [2, 4]), Err(AttentionError::Shape { .. })));
        assert!(matches!(Projection::from_rows(&[f32::NAN], [1, 1]), Err(AttentionError::Value { .. })));
        let size = usize::MAX / 2;
        assert!(matches!(Projection::gaussian(size, 3, 1), Err(AttentionError::SizeOverflow { .. })));
        assert!(matches!(Projection::gaussian(1 << 60, 1, 1), Err(AttentionError::OutOfMemory { .. })));
    }
}
