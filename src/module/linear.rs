//! [`Linear`]: `y = activation(x W^T + b)` on packed weights.
//!
//! ```text
//! x [rows, inputs] ──> groups of 6 rows ──┐
//!                                          ├─> scores of rows against "keys" ──> + bias ──> activation ──> y [rows, outputs]
//! W [outputs, inputs] ──> panels of 64 ───┘        (kernel/score.rs)
//! ```
//!
//! A row of `W` is to an input what a key is to a query, so weights lie in [`KeyPanels`], packed once when the layer is
//! made, and the score kernel is the matrix product. A panel stays in L2 while groups of rows pass; with one row, the
//! weights stream from wherever they are.
//!
//! The order of operations: one chain of multiply-adds over ascending inputs from +0, then the bias is added. So an
//! output's bits depend on its row, its weights and the level (those that fuse agree), not on other rows or threads.

mod product;

use super::activation::Activation;
use super::forward::zeros;
use crate::element::{DType, Element};
use crate::error::{AttentionError, check_size};
use crate::isa::Level;
use crate::panels::{KeyPanels, PANEL};
use crate::parallel::{self, Spread};
use crate::tile;
use crate::view::View;
use half::{bf16, f16};
use product::{ColumnParts, FewRows, LinearKernel, Part, PartRows};
use std::ops::Range;

/// Choices of a [`Linear`] that are not weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearOptions {
    /// The instruction set; [`Level::detect`] if not given.
    pub level: Option<Level>,
    /// The most tasks that run side by side; the size of the pool if not given.
    pub max_threads: Option<usize>,
    /// As [`PlanOptions::spread_from_microseconds`](crate::PlanOptions::spread_from_microseconds), for a product.
    pub spread_from_microseconds: Option<u64>,
    /// What weights are stored as (rounded to, once). Biases and sums are `f32`.
    pub dtype: DType,
    /// What outputs go through.
    pub activation: Activation,
}

impl Default for LinearOptions {
    fn default() -> Self {
        Self {
            level: None,
            max_threads: None,
            spread_from_microseconds: None,
            dtype: DType::F32,
            activation: Activation::Linear,
        }
    }
}

/// A dense layer, `y = activation(x W^T + b)`, its weights packed for the kernels.
///
/// An output is off the exact one, before the activation, by at most `(inputs + 1) 2^-24 (sum_d |x_d w_d| + |b|)` or so,
/// beside the rounding of the weights.
///
/// ```
/// use lucid_attention::module::{Linear, LinearOptions};
///
/// let weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // 2 outputs of 3 inputs
/// let layer = Linear::new(&weight, Some(&[0.5, 0.0]), [2, 3], &LinearOptions::default())?;
/// let mut y = [0.0; 2];
/// layer.run(&[1.0, 1.0, 1.0], &mut y)?;
/// assert_eq!(y, [6.5, 15.0]);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct Linear {
    panels: Weights,
    /// One for each column there is room for; 0 where there is none.
    bias: Vec<f32>,
    outputs: usize,
    inputs: usize,
    level: Level,
    spread: Spread,
    activation: Activation,
}

/// Weights as stored.
#[derive(Debug)]
enum Weights {
    F32(KeyPanels<f32>),
    F16(KeyPanels<f16>),
    Bf16(KeyPanels<bf16>),
}

/// Runs `$body` with `$panels` bound to the typed panels.
macro_rules! with_panels {
    ($any:expr, $panels:ident => $body:expr) => {
        match $any {
            Weights::F32($panels) => $body,
            Weights::F16($panels) => $body,
            Weights::Bf16($panels) => $body,
        }
    };
}

/// Weights `[outputs, inputs]` and biases of a layer, or of one of several that share their input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) outputs: usize,
}

/// Columns that a section of stacked layers starts at a multiple of: the kernels' granularity.
pub(crate) const SECTION: usize = 16;

impl Linear {
    /// A layer of `weight` (`[outputs, inputs]`, contiguous, as PyTorch has it) and `bias` (`[outputs]`).
    ///
    /// # Errors
    /// Slices of other sizes, a size of 0, no thread, a level that is not there, or memory cannot be had.
    pub fn new(
        weight: &[f32],
        bias: Option<&[f32]>,
        [outputs, inputs]: [usize; 2],
        options: &LinearOptions,
    ) -> Result<Self, AttentionError> {
        Self::stacked([Dense { weight, bias, outputs }], inputs, options).map(|(layer, _)| layer)
    }

    /// Several layers of one input as one, and the columns that are each one's. Between them may be columns of 0.
    pub(crate) fn stacked<const N: usize>(
        layers: [Dense<'_>; N],
        inputs: usize,
        options: &LinearOptions,
    ) -> Result<(Self, [Range<usize>; N]), AttentionError> {
        let sizes = layers.iter().map(|layer| ("outputs", layer.outputs)).chain([("inputs", inputs)]);
        if let Some((operand, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() });
        }
        let level = Level::chosen(options.level)?;
        parallel::check_max_threads(options.max_threads)?;
        let overflow = AttentionError::SizeOverflow { operand: "weight" };
        let mut sections = [const { 0..0 }; N];
        let mut end = 0usize;
        for (section, layer) in sections.iter_mut().zip(&layers) {
            let start = end.checked_next_multiple_of(SECTION);
            let range = start.and_then(|start| Some(start..start.checked_add(layer.outputs)?));
            *section = range.ok_or_else(|| overflow.clone())?;
            end = section.end;
            let size = layer.outputs.checked_mul(inputs).ok_or_else(|| overflow.clone())?;
            check_size("weight", "elements", size, layer.weight.len())?;
            if let Some(bias) = layer.bias {
                check_size("bias", "elements", layer.outputs, bias.len())?;
            }
        }
        let layers = (&layers[..], &sections[..]);
        let panels = match options.dtype {
            DType::F32 => Weights::F32(pack(layers, end, inputs)?),
            DType::F16 => Weights::F16(pack(layers, end, inputs)?),
            DType::Bf16 => Weights::Bf16(pack(layers, end, inputs)?),
        };
        let mut bias = zeros("bias", &[with_panels!(&panels, panels => panels.capacity())])?;
        for (layer, section) in layers.0.iter().zip(&sections) {
            if let Some(values) = layer.bias {
                bias[section.clone()].copy_from_slice(values);
            }
        }
        let spread = Spread::new(options.max_threads, options.spread_from_microseconds);
        let activation = options.activation;
        Ok((Self { panels, bias, outputs: end, inputs, level, spread, activation }, sections))
    }

    /// `x` `[rows, inputs]` to `out` `[rows, outputs]`, any number of rows.
    ///
    /// Runs on the current rayon pool, or on the calling thread alone when that is little work
    /// ([`LinearOptions::spread_from_microseconds`]). Does not allocate.
    ///
    /// # Errors
    /// `x` is no whole number of rows, or `out` has not as many; nothing is written then.
    pub fn run(&self, x: &[f32], out: &mut [f32]) -> Result<(), AttentionError> {
        let rows = x.len() / self.inputs;
        check_size("x", "elements", rows * self.inputs, x.len())?;
        let expected = rows.checked_mul(self.outputs);
        let expected = expected.ok_or(AttentionError::SizeOverflow { operand: "out" })?;
        check_size("out", "elements", expected, out.len())?;
        self.run_columns(x, 0..self.outputs, out, self.spread);
        Ok(())
    }

    /// [`Linear::run`] of some columns, from a multiple of [`SECTION`] on; `out` is `[rows, columns]`.
    pub(crate) fn run_columns(&self, x: &[f32], columns: Range<usize>, out: &mut [f32], spread: Spread) {
        let rows = x.len() / self.inputs;
        debug_assert!(columns.start.is_multiple_of(SECTION) && columns.end <= self.outputs);
        debug_assert_eq!(out.len(), rows * columns.len());
        if out.is_empty() {
            return;
        }
        let deal = self.deal(rows, &columns, spread);
        with_panels!(&self.panels, panels => self.run_stored(panels, x, columns, out, deal));
    }

    fn run_stored<T: Element>(
        &self,
        panels: &KeyPanels<T>,
        x: &[f32],
        columns: Range<usize>,
        out: &mut [f32],
        Deal { work, workers, panels: panel_count, part_rows, part_panels }: Deal,
    ) {
        let (rows, width) = (x.len() / self.inputs, columns.len());
        let run = |part: Part<'_, '_>| {
            let weights = panels.from(0, 0);
            let Self { bias, inputs, activation, .. } = self;
            self.level.dispatch(LinearKernel {
                weights,
                from_memory: tile::from_memory(work),
                bias,
                inputs: *inputs,
                activation: *activation,
                x,
                part,
            });
        };
        if part_panels < panel_count {
            let parts = ColumnParts::new(out, rows, columns, part_panels * PANEL);
            parallel::for_each_part(parts, workers, &|(columns, mut few): (_, FewRows<'_>)| {
                run(Part { first_row: 0, columns, out: PartRows::Few(&mut few) });
            });
        } else {
            let parts = out.chunks_mut(part_rows * width).enumerate();
            parallel::for_each_part(parts, workers, &|(index, out)| {
                run(Part {
                    first_row: index * part_rows,
                    columns: columns.clone(),
                    out: PartRows::Whole(out),
                });
            });
        }
    }

    /// How a product of so many rows, for some columns, is dealt out.
    pub(crate) fn deal(&self, rows: usize, columns: &Range<usize>, spread: Spread) -> Deal {
        let weights = self.inputs as f64 * columns.len() as f64;
        let work = [rows as f64 * weights, weights * self.dtype().bytes() as f64];
        let workers = spread.workers(tile::nanoseconds(work));
        // Panels that columns lie in, the first and last perhaps in part.
        let panels = columns.end.div_ceil(PANEL) - columns.start / PANEL;
        let [part_rows, part_panels] = tile::product_part([rows, panels], workers);
        let parts = rows.div_ceil(part_rows.max(1)) * panels.div_ceil(part_panels.max(1));
        let workers = workers.min(parts).max(1);
        Deal { work, workers, panels, part_rows, part_panels }
    }

    /// When and how far a product is spread.
    pub(crate) fn spread(&self) -> Spread {
        self.spread
    }

    /// Numbers of a row of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Numbers of a row of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// What the weights are stored as.
    pub fn dtype(&self) -> DType {
        match self.panels {
            Weights::F32(_) => DType::F32,
            Weights::F16(_) => DType::F16,
            Weights::Bf16(_) => DType::Bf16,
        }
    }
}

/// Weights of layers in panels, each at its own columns.
fn pack<T: Element>(
    (layers, sections): (&[Dense<'_>], &[Range<usize>]),
    columns: usize,
    inputs: usize,
) -> Result<KeyPanels<T>, AttentionError> {
    let mut panels = KeyPanels::with_capacity(1, 1, inputs, columns)?;
    let mut weights: Vec<T> = Vec::with_capacity(PANEL * inputs);
    for (layer, section) in layers.iter().zip(sections) {
        let gap = section.start - panels.len();
        panels.append(View::new(&vec![T::default(); gap * inputs], [1, 1, gap, inputs])?)?;
        // In pieces: weights may be most of the memory there is.
        for rows in layer.weight.chunks(PANEL * inputs) {
            weights.clear();
            weights.extend(rows.iter().map(|&x| T::from_f32(x)));
            if let Some(at) = weights.iter().position(|x| !x.to_f32().is_finite()) {
                let (expected, got) = ("finite numbers, as they are stored", format!("{}", rows[at]));
                return Err(AttentionError::Value { operand: "weight", expected, got });
            }
            panels.append(View::new(&weights, [1, 1, rows.len() / inputs, inputs])?)?;
        }
    }
    Ok(panels)
}

/// See [`Linear::deal`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deal {
    /// Multiply-adds, and bytes of weights.
    work: [f64; 2],
    pub(crate) workers: usize,
    /// Of all columns.
    pub(crate) panels: usize,
    /// Of a part.
    part_rows: usize,
    pub(crate) part_panels: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        (0..count as u64)
            .map(|i| {
                let bits = (i + seed * 1000003).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                bits as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// The order of operations, once more.
    fn model(x: &[f32], w: &[f32], b: &[f32], [outputs, inputs]: [usize; 2]) -> Vec<f32> {
        let row = |x: &[f32]| -> Vec<f32> {
            (0..outputs)
                .map(|j| {
                    let chain = |sum: f32, d: usize| x[d].mul_add(w[j * inputs + d], sum);
                    (0..inputs).fold(0.0f32, chain) + b[j]
                })
                .collect()
        };
        x.chunks_exact(inputs).flat_map(row).collect()
    }

    /// The bits of every size around the edges, of every level that fuses, in any company, on any number of threads.
    #[test]
    fn bits() {
        for (inputs, outputs) in [(1, 1), (3, 15), (8, 16), (17, 65), (64, 200), (5, 130)] {
            let (w, b) = (numbers(outputs * inputs, 1), numbers(outputs, 2));
            for rows in [1, 2, 5, 6, 7, 8, 13, 40] {
                let x = numbers(rows * inputs, 3);
                let expected = model(&x, &w, &b, [outputs, inputs]);
                for level in Level::available().filter(|level| level.is_fused()) {
                    let options = LinearOptions { level: Some(level), ..LinearOptions::default() };
                    let layer = Linear::new(&w, Some(&b), [outputs, inputs], &options).unwrap();
                    let mut out = vec![f32::NAN; rows * outputs];
                    layer.run(&x, &mut out).unwrap();
                    assert_eq!(out, expected, "{level}, {rows} x {inputs} x {outputs}");
                }
            }
        }
    }

    /// Parts of rows and parts of columns, on a pool of several threads: the bits of one thread.
    #[cfg(feature = "rayon")]
    #[test]
    fn threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let (inputs, outputs) = (256, 777);
        let (w, b) = (numbers(outputs * inputs, 1), numbers(outputs, 2));
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let layer = |max_threads, spread_from_microseconds| {
                let options = LinearOptions {
                    max_threads,
                    spread_from_microseconds,
                    dtype,
                    ..LinearOptions::default()
                };
                Linear::new(&w, Some(&b), [outputs, inputs], &options).unwrap()
            };
            let (alone, shared) = (layer(Some(1), None), layer(None, Some(0)));
            for rows in [1, 9, 32, 33, 100, 700] {
                let deal = pool.install(|| shared.deal(rows, &(0..outputs), shared.spread()));
                assert!(deal.workers > 1, "{rows} rows");
                let x = numbers(rows * inputs, 3);
                let [mut expected, mut got] = [0.0, f32::NAN].map(|fill| vec![fill; rows * outputs]);
                alone.run(&x, &mut expected).unwrap();
                pool.install(|| shared.run(&x, &mut got)).unwrap();
                assert_eq!(got, expected, "{rows} rows, {dtype}");
            }
        }
    }

    /// Stacked layers are the layers, at whatever columns they start.
    #[test]
    fn stacked_layers() {
        let inputs = 20;
        let [a, b, c] = [7, 70, 33].map(|outputs| (numbers(outputs * inputs, 1), outputs));
        let dense = [&a, &b, &c].map(|(weight, outputs)| Dense { weight, bias: None, outputs: *outputs });
        let (layer, sections) = Linear::stacked(dense, inputs, &LinearOptions::default()).unwrap();
        assert_eq!(sections, [0..7, 16..86, 96..129]);
        let x = numbers(9 * inputs, 3);
        for (dense, section) in dense.iter().zip(sections) {
            let outputs = dense.outputs;
            let alone =
                Linear::new(dense.weight, None, [outputs, inputs], &LinearOptions::default()).unwrap();
            let [mut expected, mut got] = [0.0, f32::NAN].map(|fill| vec![fill; 9 * outputs]);
            alone.run(&x, &mut expected).unwrap();
            layer.run_columns(&x, section.clone(), &mut got, layer.spread());
            assert_eq!(got, expected, "columns {section:?}");
        }
    }
}
