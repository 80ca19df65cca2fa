"""Operands and the float64 answer."""
import numpy as np


def round_to(dtype, x):
    """f32 values that `dtype` holds exactly, to nearest even."""
    if dtype == "f16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return x


def operands(case):
    """q, k, v, each `[batch, heads, tokens, dim]`."""
    random = np.random.default_rng(0)
    q_shape = (case.batch, case.q_heads, case.q_len, case.dim)
    kv_shape = (case.batch, case.kv_heads, case.kv_len, case.dim)
    shapes = (q_shape, kv_shape, kv_shape)
    return [round_to(case.dtype, random.standard_normal(shape, np.float32)) for shape in shapes]


def attention(q, k, v, causal, rows=512):
    """In float64, some rows at a time: scores of long sequences do not fit in memory."""
    out = np.empty(q.shape)
    group = q.shape[1] // k.shape[1]
    for batch, head in np.ndindex(*q.shape[:2]):
        keys, values = (x[batch, head // group].astype(np.float64) for x in (k, v))
        for start in range(0, q.shape[2], rows):
            queries = q[batch, head, start:start + rows].astype(np.float64)
            seen = min(start + rows, len(keys)) if causal else len(keys)
            scores = queries @ keys[:seen].T / np.sqrt(q.shape[-1])
            if causal:
                allowed = np.arange(seen) <= start + np.arange(len(queries))[:, None]
                scores = np.where(allowed, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[batch, head, start:start + rows] = weights @ values[:seen]
    return out


def error_of(path, expected):
    """Largest difference of the f32 output in a file; infinite if it is no such output or not finite."""
    got = np.fromfile(path, "<f4")
    if got.size != expected.size or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - expected.ravel()).max())
