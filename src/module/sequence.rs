//! One query over keys and values given as lists of vectors.

use super::call::{ModuleInputs, ModuleOutputs};
use super::forward::{MultiHeadAttention, zeros};
use super::policy::{Repairs, WrongDim};
use super::tensor::Tensor;
use super::workspace::{Buffer, ModuleWorkspace, reserve};
use crate::error::{AttentionError, check_size};
use crate::inputs::QueryStart;
use crate::outputs::{ScoreStage, Scores};
use crate::view::ViewMut;

impl MultiHeadAttention {
    /// The output `[output_dim]` of one query `[query_dim]` over as many keys as values.
    ///
    /// Vectors are copied next to one another. A history that lies so already needs no copy: [`ModuleInputs::new`] takes it
    /// as a tensor, and [`ModuleInputs::cached`] even projected. Without keys, what is left is what masked rows have.
    ///
    /// ```
    /// use lucid_attention::module::{AttentionConfig, InputDims, ModuleWeights, MultiHeadAttention};
    ///
    /// let config = AttentionConfig::default();
    /// let weights = ModuleWeights::glorot(&config, InputDims::all(128), 1)?;
    /// let module = MultiHeadAttention::new(config, &weights)?;
    /// let (keys, values) = (vec![vec![0.5; 128]; 3], vec![vec![0.25; 128]; 3]);
    /// assert_eq!(module.process_sequence(&[1.0; 128], &keys, &values)?.len(), 128);
    /// # Ok::<(), lucid_attention::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// As [`MultiHeadAttention::process_sequence_into`], or memory cannot be had.
    pub fn process_sequence<K: AsRef<[f32]>, V: AsRef<[f32]>>(
        &self,
        query: &[f32],
        keys: &[K],
        values: &[V],
    ) -> Result<Vec<f32>, AttentionError> {
        let mut out = zeros("out", &[self.output_dim()])?;
        let outputs = ModuleOutputs::new(&mut out);
        self.process_sequence_into(query, keys, values, outputs, &mut ModuleWorkspace::new())?;
        Ok(out)
    }

    /// The same, and the probabilities `[num_heads, keys]`.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::process_sequence`].
    pub fn process_sequence_with_scores<K: AsRef<[f32]>, V: AsRef<[f32]>>(
        &self,
        query: &[f32],
        keys: &[K],
        values: &[V],
    ) -> Result<(Vec<f32>, Vec<f32>), AttentionError> {
        let mut out = zeros("out", &[self.output_dim()])?;
        let shape = [1, self.config().num_heads, 1, keys.len()];
        let mut scores = zeros("scores", &shape)?;
        let outputs = ModuleOutputs::new(&mut out);
        let outputs = outputs.scores(Scores::new(ScoreStage::Softmax, ViewMut::new(&mut scores, shape)?));
        self.process_sequence_into(query, keys, values, outputs, &mut ModuleWorkspace::new())?;
        Ok((out, scores))
    }

    /// The same into the caller's memory, scores as `[1, heads, 1, keys]`. Does not allocate once `workspace` has served a
    /// call as large.
    ///
    /// # Errors
    /// There are not as many keys as values, or vectors of a list differ in size (which [`WrongDim::PadTruncate`] allows);
    /// otherwise as [`MultiHeadAttention::forward_into`].
    pub fn process_sequence_into<K: AsRef<[f32]>, V: AsRef<[f32]>>(
        &self,
        query: &[f32],
        keys: &[K],
        values: &[V],
        outputs: ModuleOutputs<'_>,
        workspace: &mut ModuleWorkspace,
    ) -> Result<(), AttentionError> {
        let ModuleWorkspace { core, lists: [for_keys, for_values] } = workspace;
        check_size("value", "kv_len", keys.len(), values.len())?;
        let dims = self.input_dims();
        let mut repairs = Repairs::default();
        let key = self.gather(("key", dims.key), keys, for_keys, &mut repairs)?;
        let value = self.gather(("value", dims.value), values, for_values, &mut repairs)?;
        let query = Tensor::new(query, &[query.len()])?;
        // The query comes after the sequence, wherever masks by position are configured.
        let inputs = ModuleInputs::new(query, key, value).q_start(QueryStart::BottomRight);
        self.run(&inputs, outputs, core, repairs)
    }

    /// Vectors one after another. Where they may differ in size, the shorter are filled up with zeros to the longest, which
    /// the policy then fits to the module.
    fn gather<'b, T: AsRef<[f32]>>(
        &self,
        (operand, expected): (&'static str, usize),
        list: &[T],
        buffer: &'b mut Buffer,
        repairs: &mut Repairs,
    ) -> Result<Tensor<'b>, AttentionError> {
        let sizes = || list.iter().map(|vector| vector.as_ref().len());
        let dim = sizes().max().unwrap_or(expected);
        // Where sizes may not differ, one of two that do is not what the module (or the rest of the list) has.
        if !matches!(self.policies().wrong_dim, WrongDim::PadTruncate)
            && sizes().any(|got| got != dim)
            && let Some(got) = sizes().find(|&got| got != expected)
        {
            return Err(AttentionError::Shape { operand, axis: "dim", expected, got });
        }
        // If the longest is short too, the policy will count it.
        if dim >= expected && sizes().any(|got| got < expected) {
            repairs.padded_tensors += 1;
        }
        let size = list.len().checked_mul(dim).ok_or(AttentionError::SizeOverflow { operand })?;
        let gathered = reserve(buffer, size)?;
        for (index, vector) in list.iter().enumerate() {
            let (vector, into) = (vector.as_ref(), &mut gathered[index * dim..][..dim]);
            into[..vector.len()].copy_from_slice(vector);
            into[vector.len()..].fill(0.0);
        }
        Tensor::new(gathered, &[list.len(), dim])
    }
}
