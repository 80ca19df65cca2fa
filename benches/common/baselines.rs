//! Attention as one writes it first: what the kernels have to beat.

use super::common::{Case, Tensors};

/// Whether query `i` may attend key `j`, the last query standing at the last key.
fn allows(case: &Case, i: usize, j: usize) -> bool {
    !case.causal || j + case.q_len <= i + case.kv_len
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
                *score = if allows(case, i, j) { scale * dot } else { f32::NEG_INFINITY };
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
                if !allows(case, i, j) {
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
