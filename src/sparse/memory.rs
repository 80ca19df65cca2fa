//! Lists that grow, or say that there is no memory for it.

use crate::error::AttentionError;

/// Room for so many, unless there is no such memory.
pub(super) fn reserved<T>(len: usize) -> Result<Vec<T>, AttentionError> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| no_memory::<T>(len))?;
    Ok(values)
}

/// So many of one value.
pub(super) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>, AttentionError> {
    let mut values = reserved(len)?;
    values.resize(len, value);
    Ok(values)
}

/// All of an iterator, which knows its length.
pub(super) fn collected<T>(values: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>, AttentionError> {
    let mut list = reserved(values.len())?;
    list.extend(values);
    Ok(list)
}

/// Adds one more.
pub(super) fn push<T>(values: &mut Vec<T>, value: T) -> Result<(), AttentionError> {
    values.try_reserve(1).map_err(|_| no_memory::<T>(values.len() + 1))?;
    values.push(value);
    Ok(())
}

/// Adds some more.
pub(super) fn append<T: Copy>(values: &mut Vec<T>, more: &[T]) -> Result<(), AttentionError> {
    let len = values.len().saturating_add(more.len());
    values.try_reserve(more.len()).map_err(|_| no_memory::<T>(len))?;
    values.extend_from_slice(more);
    Ok(())
}

pub(super) fn no_memory<T>(len: usize) -> AttentionError {
    AttentionError::OutOfMemory { what: "block layout", bytes: len.saturating_mul(size_of::<T>()) }
}
