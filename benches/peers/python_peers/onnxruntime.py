"""The standard's operator and the two of onnxruntime's own. Inputs and outputs are bound once, as a service would."""
import numpy as np
import onnxruntime

import onnx_graph

from . import NUMPY, THREADS, Call, Unsupported, token_major

MICROSOFT = "com.microsoft"
to_value = onnxruntime.OrtValue.ortvalue_from_numpy


def version():
    return onnxruntime.__version__


def bind(model, inputs, outputs):
    """Runs and returns the first output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    first = next(iter(outputs.values()))

    def run():
        session.run_with_iobinding(binding)
        return first

    return run


def numpy_type(case):
    if case.dtype not in NUMPY:
        raise Unsupported(f"no kernels in {case.dtype}")
    return NUMPY[case.dtype]


def packed(x, dtype):
    """`[batch, tokens, heads * dim]`."""
    return token_major(x).reshape(x.shape[0], x.shape[2], -1).astype(dtype)


def unpack(case):
    shape = (case.batch, case.q_len, case.q_heads, case.dim)
    return lambda out: out.numpy().reshape(shape).transpose(0, 2, 1, 3)


def standard(case, q, k, v):
    dtype = numpy_type(case)
    shape = [case.batch, case.q_heads, case.kv_heads, case.q_len, case.kv_len, case.dim, int(case.causal)]
    inputs = {name: to_value(x.astype(dtype)) for name, x in zip("QKV", (q, k, v))}
    model = onnx_graph.attention(shape, case.dtype)
    return Call(bind(model, inputs, {"Y": to_value(np.zeros(q.shape, dtype))}), lambda out: out.numpy())


def multi_head(case, q, k, v):
    """Keys and values head-major, as a cache holds them, if there are fewer queries."""
    if case.group > 1:
        raise Unsupported("as many KV heads as query heads")
    dtype = numpy_type(case)
    keep = case.q_len < case.kv_len
    arrays = [packed(q, dtype)] + [x.astype(dtype) if keep else packed(x, dtype) for x in (k, v)]
    out = np.zeros(arrays[0].shape, dtype)
    model = onnx_graph.model(
        "MultiHeadAttention",
        [(name, case.dtype, x.shape) for name, x in zip("QKV", arrays)],
        [("Y", case.dtype, out.shape)],
        {"num_heads": case.q_heads, "unidirectional": int(case.causal)},
        domain=MICROSOFT)
    inputs = {name: to_value(x) for name, x in zip("QKV", arrays)}
    return Call(bind(model, inputs, {"Y": to_value(out)}), unpack(case))


def group_query(case, q, k, v):
    """Always causal, and always with a cache: decode appends the last token where it already is, in place."""
    dtype = numpy_type(case)
    if case.q_len == 1:
        past, new = case.kv_len, 1
    elif case.causal and case.q_len == case.kv_len:
        past, new = 0, case.q_len
    else:
        raise Unsupported("causal only")
    tokens = [packed(x[:, :, -new:], dtype) for x in (q, k, v)]
    lengths = np.full([case.batch], case.kv_len - 1, np.int32)
    inputs = {name: to_value(x) for name, x in zip("QKV", tokens)}
    inputs |= {"lengths": to_value(lengths), "total": to_value(np.array(case.kv_len, np.int32))}
    declared = [(name, case.dtype, x.shape) for name, x in zip("QKV", tokens)]
    out = np.zeros(tokens[0].shape, dtype)
    outputs, results = {"Y": to_value(out)}, [("Y", case.dtype, out.shape)]
    if past:
        caches = {"K": to_value(k.astype(dtype)), "V": to_value(v.astype(dtype))}
        for name, cache in caches.items():
            inputs["past" + name] = outputs["present" + name] = cache
            declared.append(("past" + name, case.dtype, k.shape))
            results.append(("present" + name, case.dtype, k.shape))
    declared += [("lengths", "i32", [case.batch]), ("total", "i32", [])]
    model = onnx_graph.model(
        "GroupQueryAttention", declared, results,
        {"num_heads": case.q_heads, "kv_num_heads": case.kv_heads},
        domain=MICROSOFT,
        node_inputs=["Q", "K", "V"] + (["pastK", "pastV"] if past else ["", ""]) + ["lengths", "total"],
        node_outputs=["Y", "presentK", "presentV"])
    return Call(bind(model, inputs, outputs), unpack(case))


def empty():
    x, y = (to_value(np.zeros(1, np.float32)) for _ in range(2))
    return Call(bind(onnx_graph.trivial(), {"X": x}, {"Y": y}))


ROUTES = {"MultiHeadAttention": multi_head, "GroupQueryAttention": group_query, "Attention": standard}
