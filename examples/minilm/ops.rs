//! What an encoder needs besides attention: linear layers, layer norm and GELU, on the threads of the rayon pool.

use crate::Result;
use lucid_attention::Level;
use rayon::prelude::*;
use std::f32::consts::FRAC_1_SQRT_2;

/// `y = x W^T + b`.
pub(crate) struct Linear {
    /// `[outputs, inputs]`, as PyTorch stores it.
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl Linear {
    /// `[rows, inputs]` to `[rows, outputs]`.
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let outputs = self.bias.len();
        let inputs = self.weight.len() / outputs;
        let rows = x.len() / inputs;
        let mut y = self.bias.repeat(rows);
        let rows_per_thread = rows.div_ceil(rayon::current_num_threads()).max(1);
        y.par_chunks_mut(rows_per_thread * outputs).zip(x.par_chunks(rows_per_thread * inputs)).for_each(
            |(y, x)| {
                let rows = y.len() / outputs;
                assert!(x.len() == rows * inputs && self.weight.len() == outputs * inputs);
                let [row, column] = [inputs as isize, 1];
                // SAFETY: the assertion above says that x is [rows, inputs], W [outputs, inputs] (read transposed)
                // and y [rows, outputs], all contiguous; y is borrowed mutably, so it overlaps neither.
                unsafe {
                    matrixmultiply::sgemm(
                        rows,
                        inputs,
                        outputs,
                        1.0,
                        x.as_ptr(),
                        row,
                        column,
                        self.weight.as_ptr(),
                        column,
                        row,
                        1.0,
                        y.as_mut_ptr(),
                        outputs as isize,
                        1,
                    );
                }
            },
        );
        y
    }
}

pub(crate) struct LayerNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl LayerNorm {
    const EPSILON: f32 = 1e-12;

    /// Brings each row to mean 0 and variance 1, then scales and shifts it.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        x.par_chunks_exact_mut(self.weight.len()).for_each(|row| {
            let size = row.len() as f32;
            let mean = row.iter().sum::<f32>() / size;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / size;
            let scale = 1.0 / (variance + Self::EPSILON).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
                *x = (*x - mean) * scale * weight + bias;
            }
        });
    }
}

/// `x * (1 + erf(x / sqrt(2))) / 2`, the exact GELU, not the one by tanh.
pub(crate) fn gelu(x: &mut [f32]) -> Result<()> {
    let level = Level::detect()?;
    x.par_chunks_mut(4096).try_for_each(|chunk| {
        let mut erf: Vec<f32> = chunk.iter().map(|x| x * FRAC_1_SQRT_2).collect();
        lucid_attention::math::erf(level, &mut erf)?;
        for (x, erf) in chunk.iter_mut().zip(&erf) {
            *x *= 0.5 * (1.0 + erf);
        }
        Ok(())
    })
}

/// `x += y`: a residual connection.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Scales `x` to Euclidean length 1.
pub(crate) fn normalize(x: &mut [f32]) {
    let length = x.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    x.iter_mut().for_each(|x| *x /= length);
}
