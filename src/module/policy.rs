//! What becomes of inputs that are not as they should be: refused, unless the module was told to repair them; and whatever
//! is repaired is counted.

use super::linear::Linear;
use super::tensor::Tensor;
use super::weights::InputDims;
use super::workspace::reserve;
use crate::error::{AttentionError, check_size};
use crate::isa::{Isa, Kernel, Level};
use crate::kernel::load_padded;
use crate::scratch::AlignedBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What becomes of an input with NaN or an infinite number in it: in all of it, tokens that a mask removes or that pad a
/// batch included, so that neighbours in a batch share its fate. [`NotFinite::ZeroToken`] and [`NotFinite::Propagate`] leave
/// them alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum NotFinite {
    /// The call is refused; the error says where the first one is.
    #[default]
    Reject,
    /// All of that input counts as zeros.
    ZeroTensor,
    /// The token's vector counts as zeros.
    ZeroToken,
    /// Nobody looks. What a row attends to shows in it; what a mask removes does not.
    Propagate,
}

/// What becomes of an input whose vectors have another size than the weights ask for.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum WrongDim {
    /// The call is refused.
    #[default]
    Reject,
    /// Vectors are filled up with zeros at their end, or cut there.
    PadTruncate,
    /// Vectors go through a layer that makes of them what the weights ask for, if there is one for them; others are refused.
    Project(InputLayers),
}

/// Layers for vectors of another size: for each input its own, or none.
#[derive(Clone, Debug, Default)]
pub struct InputLayers {
    /// Its inputs are the query's vectors, its outputs what the weights ask for.
    pub query: Option<Arc<Linear>>,
    /// The same for keys.
    pub key: Option<Arc<Linear>>,
    /// The same for values.
    pub value: Option<Arc<Linear>>,
}

impl InputLayers {
    /// One layer for all three.
    pub fn all(layer: Linear) -> Self {
        let layer = Some(Arc::new(layer));
        Self { query: layer.clone(), key: layer.clone(), value: layer }
    }

    fn of(&self, operand: Operand) -> Option<&Arc<Linear>> {
        match operand {
            Operand::Query => self.query.as_ref(),
            Operand::Key => self.key.as_ref(),
            Operand::Value => self.value.as_ref(),
        }
    }
}

/// Which of the three inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Query,
    Key,
    Value,
}

impl Operand {
    fn name(self) -> &'static str {
        match self {
            Operand::Query => "query",
            Operand::Key => "key",
            Operand::Value => "value",
        }
    }
}

impl WrongDim {
    /// The layer for vectors of `got` numbers.
    fn layer(&self, operand: Operand, got: usize) -> Option<&Arc<Linear>> {
        let WrongDim::Project(layers) = self else { return None };
        layers.of(operand).filter(|layer| layer.inputs() == got)
    }

    /// Checks that each layer makes vectors of the size that the weights ask for.
    pub(crate) fn check_layers(&self, dims: InputDims) -> Result<(), AttentionError> {
        let WrongDim::Project(layers) = self else { return Ok(()) };
        let InputDims { query, key, value } = dims;
        let all = [("query layer", &layers.query, query), ("key layer", &layers.key, key)];
        all.into_iter().chain([("value layer", &layers.value, value)]).try_for_each(
            |(operand, layer, expected)| {
                layer
                    .as_ref()
                    .map_or(Ok(()), |layer| check_size(operand, "outputs", expected, layer.outputs()))
            },
        )
    }

    /// Checks that vectors of `got` numbers are `expected` ones, or can be made so.
    pub(crate) fn check(&self, operand: Operand, expected: usize, got: usize) -> Result<(), AttentionError> {
        if matches!(self, WrongDim::PadTruncate) || self.layer(operand, got).is_some() {
            return Ok(());
        }
        check_size(operand.name(), "dim", expected, got)
    }

    /// Whether the same becomes of a tensor as either input, if both ask for the same size.
    pub(crate) fn alike(&self, a: Operand, b: Operand) -> bool {
        let WrongDim::Project(layers) = self else { return true };
        layers.of(a).map(Arc::as_ptr) == layers.of(b).map(Arc::as_ptr)
    }
}

/// What becomes of inputs that are not as they should be.
#[derive(Debug, Default)]
pub struct InputPolicies {
    /// NaN and infinities.
    pub not_finite: NotFinite,
    /// Vectors of another size.
    pub wrong_dim: WrongDim,
}

/// How often inputs were repaired. Query, key and value count one each; a tensor that is several of them counts once, unless
/// [`WrongDim::Project`] has several layers for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Repairs {
    /// Inputs that counted as zeros ([`NotFinite::ZeroTensor`]).
    pub zeroed_tensors: u64,
    /// Tokens that did ([`NotFinite::ZeroToken`]).
    pub zeroed_tokens: u64,
    /// Inputs whose vectors were filled up ([`WrongDim::PadTruncate`]).
    pub padded_tensors: u64,
    /// Inputs whose vectors were cut.
    pub truncated_tensors: u64,
    /// Inputs that went through a layer of [`WrongDim::Project`].
    pub projected_tensors: u64,
}

/// [`Repairs`] of all calls, which may run side by side.
#[derive(Debug, Default)]
pub(crate) struct RepairCounts([AtomicU64; 5]);

impl RepairCounts {
    pub(crate) fn add(&self, repairs: Repairs) {
        if repairs == Repairs::default() {
            return;
        }
        let Repairs { zeroed_tensors, zeroed_tokens, padded_tensors, truncated_tensors, projected_tensors } =
            repairs;
        let added = [zeroed_tensors, zeroed_tokens, padded_tensors, truncated_tensors, projected_tensors];
        for (count, added) in self.0.iter().zip(added) {
            count.fetch_add(added, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> Repairs {
        let [zeroed_tensors, zeroed_tokens, padded_tensors, truncated_tensors, projected_tensors] =
            std::array::from_fn(|index| self.0[index].load(Ordering::Relaxed));
        Repairs { zeroed_tensors, zeroed_tokens, padded_tensors, truncated_tensors, projected_tensors }
    }

    pub(crate) fn reset(&self) {
        self.0.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }
}

impl InputPolicies {
    /// `tensor`, whose vectors should have `dim` numbers, or what it is repaired to in `buffers`.
    pub(crate) fn admit<'t>(
        &self,
        level: Level,
        (operand, dim): (Operand, usize),
        tensor: Tensor<'t>,
        [finite, fitted]: &'t mut [AlignedBuf<f32>; 2],
        repairs: &mut Repairs,
    ) -> Result<Tensor<'t>, AttentionError> {
        let tensor = self.admit_numbers(level, operand.name(), tensor, finite, repairs)?;
        self.admit_dim((operand, dim), tensor, fitted, repairs)
    }

    fn admit_numbers<'t>(
        &self,
        level: Level,
        operand: &'static str,
        tensor: Tensor<'t>,
        buffer: &'t mut AlignedBuf<f32>,
        repairs: &mut Repairs,
    ) -> Result<Tensor<'t>, AttentionError> {
        let data = tensor.data();
        if self.not_finite == NotFinite::Propagate || all_finite(level, data) {
            return Ok(tensor);
        }
        let [_, tokens, dim] = tensor.shape();
        let zeroed = match self.not_finite {
            NotFinite::Propagate => return Ok(tensor),
            NotFinite::Reject => {
                let index = data.iter().position(|x| !x.is_finite()).unwrap_or(0);
                let (row, got) = (index / dim, data[index].to_string());
                let (batch, token, dim) = (row / tokens, row % tokens, index % dim);
                return Err(AttentionError::NotFinite { operand, batch, token, dim, got });
            }
            NotFinite::ZeroTensor => {
                let zeroed = reserve(buffer, data.len())?;
                zeroed.fill(0.0);
                repairs.zeroed_tensors += 1;
                zeroed
            }
            NotFinite::ZeroToken => {
                let zeroed = reserve(buffer, data.len())?;
                zeroed.copy_from_slice(data);
                for vector in zeroed.chunks_exact_mut(dim) {
                    if !all_finite(level, vector) {
                        vector.fill(0.0);
                        repairs.zeroed_tokens += 1;
                    }
                }
                zeroed
            }
        };
        Ok(tensor.with_vectors(zeroed, dim))
    }

    fn admit_dim<'t>(
        &self,
        (operand, expected): (Operand, usize),
        tensor: Tensor<'t>,
        buffer: &'t mut AlignedBuf<f32>,
        repairs: &mut Repairs,
    ) -> Result<Tensor<'t>, AttentionError> {
        let [batch, tokens, got] = tensor.shape();
        if got == expected {
            return Ok(tensor);
        }
        let size = || {
            let size = batch.checked_mul(tokens).and_then(|rows| rows.checked_mul(expected));
            size.ok_or(AttentionError::SizeOverflow { operand: operand.name() })
        };
        match (&self.wrong_dim, self.wrong_dim.layer(operand, got)) {
            (WrongDim::PadTruncate, _) => {
                let fitted = reserve(buffer, size()?)?;
                let kept = got.min(expected);
                for (row, fitted) in fitted.chunks_exact_mut(expected).enumerate() {
                    fitted[..kept].copy_from_slice(&tensor.data()[row * got..][..kept]);
                    fitted[kept..].fill(0.0);
                }
                let count =
                    if got < expected { &mut repairs.padded_tensors } else { &mut repairs.truncated_tensors };
                *count += 1;
                Ok(tensor.with_vectors(fitted, expected))
            }
            (WrongDim::Project(_), Some(layer)) => {
                let fitted = reserve(buffer, size()?)?;
                layer.run(tensor.data(), fitted)?;
                repairs.projected_tensors += 1;
                Ok(tensor.with_vectors(fitted, expected))
            }
            (WrongDim::Reject | WrongDim::Project(_), _) => {
                Err(AttentionError::Shape { operand: operand.name(), axis: "dim", expected, got })
            }
        }
    }
}

/// Whether no number is NaN or infinite.
pub(crate) fn all_finite(level: Level, numbers: &[f32]) -> bool {
    level.dispatch(AllFinite { numbers })
}

/// A finite number times 0 is 0, any other NaN, which a sum keeps.
struct AllFinite<'a> {
    numbers: &'a [f32],
}

impl Kernel for AllFinite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> bool {
        let zero = isa.splat(0.0);
        let mut sums = [zero; 4];
        let mut blocks = self.numbers.chunks_exact(4 * I::LANES);
        for block in &mut blocks {
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = isa.mul_add(isa.load(&block[vector * I::LANES..]), zero, *sum);
            }
        }
        let rest = blocks.remainder();
        let mut at = 0;
        while at < rest.len() {
            sums[0] = isa.mul_add(load_padded(isa, rest, at), zero, sums[0]);
            at += I::LANES;
        }
        let sum = isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3]));
        !isa.reduce_add(sum).is_nan()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_looked_at() {
        for level in Level::available() {
            for len in [0, 1, 7, 16, 63, 64, 65, 130] {
                let mut numbers = vec![f32::MAX; len];
                numbers.iter_mut().step_by(2).for_each(|x| *x = f32::MIN);
                assert!(all_finite(level, &numbers), "{level}: {len} large numbers");
                for at in 0..len {
                    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let kept = std::mem::replace(&mut numbers[at], bad);
                        assert!(!all_finite(level, &numbers), "{level}: {bad} at {at} of {len}");
                        numbers[at] = kept;
                    }
                }
            }
        }
    }
}
