"""The operator on plain operands, and on a cache held as the plugin's state, which is how its language models decode."""
import numpy as np
import openvino
from openvino import opset13 as ops
from openvino import opset6

from . import THREADS, Call, Unsupported, bits_of_bf16

TYPES = {"f32": openvino.Type.f32, "f16": openvino.Type.f16, "bf16": openvino.Type.bf16}


def version():
    return openvino.__version__.split("-")[0]


def compiled(model, dtype):
    precision = {"INFERENCE_PRECISION_HINT": dtype, "KV_CACHE_PRECISION": dtype}
    threads = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    return openvino.Core().compile_model(model, "CPU", precision | threads)


def math_of(model):
    """What the plugin settled on, which need not be what it was asked for."""
    return model.get_property("INFERENCE_PRECISION_HINT").get_type_name()


def tensor(x, dtype):
    """One that owns its memory."""
    out = openvino.Tensor(TYPES[dtype], openvino.Shape(list(x.shape)))
    if dtype == "bf16":
        out.data.view(np.uint16)[...] = bits_of_bf16(x)
    else:
        out.data[...] = x
    return out


def array(tensor):
    data = tensor.data
    if tensor.element_type == TYPES["bf16"]:
        bits = data.view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(list(tensor.shape))
    return data


def runner(request, inputs):
    for index, value in enumerate(inputs):
        request.set_input_tensor(index, value)

    def run():
        request.infer()
        return request.get_output_tensor(0)

    return run


def plain(case, q, k, v):
    """It knows no groups: keys and values are repeated beforehand."""
    k, v = (np.repeat(x, case.group, 1) for x in (k, v))
    parameters = [ops.parameter(list(x.shape), TYPES[case.dtype]) for x in (q, k, v)]
    result = ops.scaled_dot_product_attention(*parameters, causal=case.causal)
    model = compiled(openvino.Model([result], parameters), case.dtype)
    run = runner(model.create_infer_request(), [tensor(x, case.dtype) for x in (q, k, v)])
    return Call(run, array, math_of(model))


def state(name, new, beams, case):
    """The variable with the new tokens behind it, and its assignment."""
    shape = openvino.PartialShape([-1, case.kv_heads, -1, case.dim])
    info = openvino.op.util.VariableInfo()
    info.data_shape, info.data_type, info.variable_id = shape, openvino.Type.f32, name
    variable = openvino.op.util.Variable(info)
    start = ops.constant(np.zeros((case.batch, case.kv_heads, 0, case.dim), np.float32))
    past = ops.gather(opset6.read_value(start, variable), beams, ops.constant(np.int64(0)))
    whole = ops.concat([past, new], 2)
    return whole, opset6.assign(whole, variable)


def stateful(case, q, k, v):
    """The last `q_len` tokens are appended by the call. The state grows meanwhile, and is set back every so often."""
    if case.causal or case.group > 1 or case.q_len * 8 > case.kv_len:
        raise Unsupported("decode only, as many KV heads as query heads")
    dynamic = [-1, case.kv_heads, -1, case.dim]
    parameters = [ops.parameter(dynamic, openvino.Type.f32) for _ in "qkv"]
    beams = ops.parameter([-1], openvino.Type.i32)
    keys, keep_keys = state("k", parameters[1], beams, case)
    values, keep_values = state("v", parameters[2], beams, case)
    result = ops.scaled_dot_product_attention(parameters[0], keys, values, causal=False)
    graph = openvino.Model([ops.result(result)], [keep_keys, keep_values], parameters + [beams])
    model = compiled(graph, case.dtype)
    request = model.create_infer_request()
    past = {name: tensor(x[:, :, :-case.q_len], "f32") for name, x in (("k", k), ("v", v))}

    def renew():
        for variable in request.query_state():
            variable.state = past[variable.name]

    renew()
    new = [tensor(x[:, :, -case.q_len:], "f32") for x in (q, k, v)]
    run = runner(request, new + [openvino.Tensor(np.arange(case.batch, dtype=np.int32))])
    return Call(run, array, math_of(model), renew, max(1, case.kv_len // (32 * case.q_len)))


def empty():
    parameter = ops.parameter([1], openvino.Type.f32)
    model = compiled(openvino.Model([ops.negative(parameter)], [parameter]), "f32")
    return Call(runner(model.create_infer_request(), [openvino.Tensor(np.zeros(1, np.float32))]))


ROUTES = {"ScaledDotProductAttention": plain, "stateful cache": stateful}
