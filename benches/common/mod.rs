//! Cases, operands and baselines.

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

    /// Whether query `i` may attend key `j`, the last query standing at the last key.
    fn allows(&self, i: usize, j: usize) -> bool {
        !self.causal || j + self.q_len <= i + self.kv_len
    }
}

/// q, k and v of a case, contiguous.
pub(crate) struct Tensors<T> {
    pub(crate) q: Vec<T>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
}

impl<T: Element> Tensors<T> {
    /// Uniform values in ±1.7 (variance 1), the same for every storage type but for rounding.
    pub(crate) fn new(case: &Case) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut fill = |shape: [usize; 4]| {
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                T::from_f32(((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.732)
            };
            (0..shape.iter().product()).map(|_| next()).collect()
        };
        Self { q: fill(case.q_shape()), k: fill(case.kv_shape()), v: fill(case.kv_shape()) }
    }
}

/// The operands of one query head.
struct Head<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// Calls `attend(head, its output)` for every batch entry and query head.
fn for_each_head(
    case: &Case,
    tensors: &Tensors<f32>,
    out: &mut [f32],
    mut attend: impl FnMut(Head<'_>, &mut [f32]),
) {
    let (q_size, kv_size) = (case.q_len * case.dim, case.kv_len * case.dim);
    for (index, out) in out.chunks_exact_mut(q_size).enumerate() {
        let (batch, head) = (index / case.q_heads, index % case.q_heads);
        let kv = batch * case.kv_heads + head / (case.q_heads / case.kv_heads);
        let (k, v) = (&tensors.k[kv * kv_size..][..kv_size], &tensors.v[kv * kv_size..][..kv_size]);
        attend(Head { q: &tensors.q[index * q_size..][..q_size], k, v }, out);
    }
}

/// Scores to probabilities, row by row; removed keys are -inf.
fn softmax(scores: &mut [f32], kv_len: usize) {
    for row in scores.chunks_exact_mut(kv_len) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|score| *score = (*score - max).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
}

/// The formula in plain loops, one thread.
pub(crate) fn naive(case: &Case, tensors: &Tensors<f32>, out: &mut [f32]) {
    let (kv_len, dim) = (case.kv_len, case.dim);
    let scale = (dim as f32).sqrt().recip();
    let mut scores = vec![0.0; case.q_len * kv_len];
    for_each_head(case, tensors, out, |Head { q, k, v }, out| {
        for (i, (q, scores)) in q.chunks_exact(dim).zip(scores.chunks_exact_mut(kv_len)).enumerate() {
            for (j, (k, score)) in k.chunks_exact(dim).zip(scores).enumerate() {
                let dot: f32 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                *score = if case.allows(i, j) { scale * dot } else { f32::NEG_INFINITY };
            }
        }
        softmax(&mut scores, kv_len);
        out.fill(0.0);
        for (out, weights) in out.chunks_exact_mut(dim).zip(scores.chunks_exact(kv_len)) {
            for (v, weight) in v.chunks_exact(dim).zip(weights) {
                out.iter_mut().zip(v).for_each(|(out, v)| *out += weight * v);
            }
        }
    });
}

/// Two matrix products by `matrixmultiply` with a softmax between, one thread.
pub(crate) fn unfused(case: &Case, tensors: &Tensors<f32>, out: &mut [f32]) {
    let (q_len, kv_len, dim) = (case.q_len, case.kv_len, case.dim);
    let scale = (dim as f32).sqrt().recip();
    let mut scores = vec![0.0; q_len * kv_len];
    for_each_head(case, tensors, out, |Head { q, k, v }, out| {
        product([q_len, dim, kv_len], scale, q, [dim, 1], k, [1, dim], &mut scores);
        for (i, scores) in scores.chunks_exact_mut(kv_len).enumerate() {
            for (j, score) in scores.iter_mut().enumerate() {
                if !case.allows(i, j) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        softmax(&mut scores, kv_len);
        product([q_len, kv_len, dim], 1.0, &scores, [kv_len, 1], v, [dim, 1], out);
    });
}

/// `c = alpha * a * b` for `[m, k]` by `[k, n]` with (row, column) strides; `c` is contiguous.
fn product(
    [m, k, n]: [usize; 3],
    alpha: f32,
    a: &[f32],
    [row_a, column_a]: [usize; 2],
    b: &[f32],
    [row_b, column_b]: [usize; 2],
    c: &mut [f32],
) {
    assert!(a.len() >= m * k && b.len() >= k * n && c.len() >= m * n, "operands hold their matrices");
    let [row_a, column_a, row_b, column_b, row_c] = [row_a, column_a, row_b, column_b, n].map(|s| s as isize);
    // SAFETY: contiguous matrices of the sizes just checked, in one order of axes or the other.
    unsafe {
        let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        matrixmultiply::sgemm(m, k, n, alpha, a, row_a, column_a, b, row_b, column_b, 0.0, c, row_c, 1);
    }
}
