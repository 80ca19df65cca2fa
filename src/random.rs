//! Normal numbers out of a counter: the same on every system, since nothing here calls its mathematical library.

use crate::dropout::philox;
use crate::math::log2_f64;
use std::f64::consts::LN_2;

/// Standard normal numbers of a seed and a stream, by Marsaglia's polar method on Philox4x32-10.
#[derive(Clone, Debug)]
pub(crate) struct Normals {
    key: [u32; 2],
    stream: u32,
    counter: u64,
    /// The second of a pair.
    spare: Option<f64>,
}

impl Normals {
    /// The numbers of a seed, from the first. Streams of one seed are independent.
    pub(crate) fn new(seed: u64, stream: u32) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream, counter: 0, spare: None }
    }

    /// Two numbers, uniform in (-1, 1), on a grid of 2^-52 that leaves 0 out.
    fn uniforms(&mut self) -> [f64; 2] {
        let counter = [self.counter as u32, (self.counter >> 32) as u32, self.stream, 0];
        self.counter += 1;
        let [a, b, c, d] = philox(counter, self.key);
        [(a, b), (c, d)].map(|(high, low)| {
            let bits = u64::from(high) << 32 | u64::from(low);
            ((bits >> 12) as f64 + 0.5) * 2f64.powi(-51) - 1.0
        })
    }
}

impl Iterator for Normals {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        if let Some(spare) = self.spare.take() {
            return Some(spare);
        }
        loop {
            let [u, v] = self.uniforms();
            let square = u * u + v * v;
            if square < 1.0 {
                let factor = (-2.0 * LN_2 * log2_f64(square) / square).sqrt();
                self.spare = Some(v * factor);
                return Some(u * factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments, of some million numbers: five standard errors.
    #[test]
    fn moments() {
        let count = 1 << 20;
        let numbers: Vec<f64> = Normals::new(3, 1).take(count).collect();
        let moment = |power: i32| numbers.iter().map(|x| x.powi(power)).sum::<f64>() / count as f64;
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = (moment(power) - expected).abs();
            let bound = 5.0 * f64::sqrt(variance / count as f64);
            assert!(error <= bound, "moment {power}: off by {error}, more than {bound}");
        }
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = |seed, stream| Normals::new(seed, stream).next();
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(2, 2));
        assert_ne!(first(1, 2), first(1, 3));
        assert_ne!(first(1, 2), first(1 + (1 << 32), 2));
    }
}
