//! What the benches share: cases and operands, command lines, rounds.
#![allow(dead_code, reason = "each bench uses its own part")]

pub(crate) mod options;
pub(crate) mod pages;
pub(crate) mod rounds;

use lucid_attention::Element;
use std::fmt;

/// A shape to time.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) batch: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) q_len: usize,
    pub(crate) kv_len: usize,
    pub(crate) dim: usize,
    pub(crate) causal: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, q_heads, kv_heads, q_len, kv_len, dim, causal } = self;
        write!(f, "b{batch}_h{q_heads}_kv{kv_heads}_q{q_len}_k{kv_len}_d{dim}")?;
        f.write_str(if *causal { "_causal" } else { "" })
    }
}

impl Case {
    pub(crate) fn q_shape(&self) -> [usize; 4] {
        [self.batch, self.q_heads, self.q_len, self.dim]
    }

    pub(crate) fn kv_shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.kv_len, self.dim]
    }

    /// Floating-point operations: two products of two operations per pair and dimension, half of them if causal.
    pub(crate) fn operations(&self) -> u64 {
        let pairs = self.batch * self.q_heads * self.q_len * self.kv_len;
        (4 * pairs * self.dim / if self.causal && self.q_len > 1 { 2 } else { 1 }) as u64
    }

    /// Bytes of keys and values.
    pub(crate) fn kv_bytes(&self, element: usize) -> u64 {
        (2 * self.kv_shape().iter().product::<usize>() * element) as u64
    }
}

/// q, k and v of a case, contiguous.
pub(crate) struct Tensors<T> {
    pub(crate) q: Vec<T>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
}

/// Uniform values in ±1.7 (variance 1), the same for every storage type but for rounding.
pub(crate) struct Uniform(u64);

impl Uniform {
    pub(crate) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// The next values.
    pub(crate) fn values<T: Element>(&mut self, count: usize) -> Vec<T> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            T::from_f32(((self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.732)
        };
        (0..count).map(|_| next()).collect()
    }
}

impl<T: Element> Tensors<T> {
    /// [`Uniform`] values.
    pub(crate) fn new(case: &Case) -> Self {
        let mut uniform = Uniform::new();
        let [q, k, v] = [case.q_shape(), case.kv_shape(), case.kv_shape()]
            .map(|shape| uniform.values(shape.iter().product()));
        Self { q, k, v }
    }

    /// The same with keys and values on huge pages.
    pub(crate) fn on_huge_pages(case: &Case) -> Self {
        let mut tensors = Self::new(case);
        for tensor in [&mut tensors.k, &mut tensors.v] {
            let mut pages = pages::filled(tensor.len());
            pages.copy_from_slice(tensor);
            *tensor = pages;
        }
        tensors
    }
}
