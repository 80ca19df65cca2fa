//! Weights out of a seed, the same on every platform.
//!
//! The generator is SplitMix64 in its counter form, `mix(seed + (i + 1) * 0x9e3779b97f4a7c15)`: the `i`-th number of a
//! tensor depends on the seed, the tensor and `i` only. Of each 64 bits the upper 24 make a number in [0, 1), exactly, and
//! all arithmetic from there on is correctly rounded. (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
//! OOPSLA 2014; the constants are those of Vigna's `splitmix64.c`.)

use super::config::AttentionConfig;
use super::forward::zeros;
use super::weights::{Columns, DenseWeights, InputDims, ModuleWeights, NormWeights};
use crate::error::AttentionError;

impl ModuleWeights {
    /// Glorot-uniform weights: each uniform in ±`sqrt(6 / (inputs + outputs))` of its projection, all heads counted
    /// together; biases 0; the layer norm's scale 1 and shift 0.
    ///
    /// The same numbers for the same seed everywhere. For tests, and to start training from; they are not the numbers that
    /// Keras or PyTorch would draw.
    ///
    /// # Errors
    /// `config` is not valid, an input has no dimension, or sizes overflow.
    pub fn glorot(config: &AttentionConfig, dims: InputDims, seed: u64) -> Result<Self, AttentionError> {
        config.validate()?;
        let columns = Columns::new(config, dims.query);
        let dense = |stream: u64, operand, outputs: usize, inputs: usize| {
            let sizes = outputs.checked_mul(inputs).zip(outputs.checked_add(inputs));
            let (size, both) = sizes.ok_or(AttentionError::SizeOverflow { operand })?;
            // Streams of one seed are streams of seeds far apart.
            let seed = mix(seed ^ mix(stream));
            let limit = (6.0 / both as f64).sqrt() as f32;
            let mut weight = zeros(operand, &[size])?;
            for (i, weight) in (0..).zip(&mut weight) {
                *weight = (2.0 * uniform(seed, i) - 1.0) * limit;
            }
            let bias = config.use_bias.then(|| zeros(operand, &[outputs])).transpose()?;
            Ok(DenseWeights { weight, bias, outputs, inputs })
        };
        let norm = || {
            let numbers = || zeros("layer norm", &[columns.output]);
            let (mut gamma, beta) = (numbers()?, numbers()?);
            gamma.fill(1.0);
            Ok(NormWeights { gamma, beta })
        };
        let weights = Self {
            query: dense(0, "query weight", columns.query, dims.query)?,
            key: dense(1, "key weight", columns.key, dims.key)?,
            value: dense(2, "value weight", columns.value, dims.value)?,
            output: dense(3, "output weight", columns.output, columns.context)?,
            layer_norm: config.use_layer_norm.then(norm).transpose()?,
        };
        weights.check(config)?;
        Ok(weights)
    }
}

/// The `i`-th number of a stream, in [0, 1), a multiple of 2^-24.
fn uniform(seed: u64, i: u64) -> f32 {
    let bits = mix(seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 40) as f32 / (1 << 24) as f32
}

/// SplitMix64's output function.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of `splitmix64.c` for the seed 1234567.
    #[test]
    fn known_answers() {
        let counter = |i: u64| mix(1234567u64.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        assert_eq!(counter(0), 6457827717110365317);
        assert_eq!(counter(1), 3203168211198807973);
        assert_eq!(counter(2), 9817491932198370423);
    }
}
