"""ONNX models as bytes: the few fields of the protobuf format that takes, so that no peer needs `onnx`."""
import struct

TYPES = {"f32": 1, "f16": 10, "bf16": 16, "i32": 6, "i64": 7}
NUMPY_TYPES = {"float32": "f32", "int64": "i64"}


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _attribute(name, value):
    kind_float, kind_int = 1, 2
    if isinstance(value, float):
        wire_32_bits = 5
        return _field(1, name) + _varint(2 << 3 | wire_32_bits) + struct.pack("<f", value) + _field(20, kind_float)
    return _field(1, name) + _field(3, value) + _field(20, kind_int)


def _value(name, dtype, shape):
    dims = b"".join(_field(1, _field(1, dim)) for dim in shape)
    tensor = _field(1, TYPES[dtype]) + _field(2, dims)
    return _field(1, name) + _field(2, _field(1, tensor))


def _constant(name, array):
    dims = b"".join(_field(1, dim) for dim in array.shape)
    kind = TYPES[NUMPY_TYPES[array.dtype.name]]
    return dims + _field(2, kind) + _field(8, name) + _field(9, array.tobytes())


def node(op, inputs, outputs, attributes={}, domain=""):
    """By the names of its inputs ("" for one that is left out) and outputs. Attributes are int or float."""
    fields = b"".join(_field(1, name) for name in inputs) + b"".join(_field(2, name) for name in outputs)
    fields += _field(4, op) + b"".join(_field(5, _attribute(*item)) for item in attributes.items())
    return fields + _field(7, domain)


def graph(nodes, inputs, outputs, constants={}, domains=(), opset=23):
    """A model. `inputs` and `outputs` are (name, dtype, shape); `constants` are arrays by name."""
    body = b"".join(_field(1, one) for one in nodes) + _field(2, "graph")
    body += b"".join(_field(5, _constant(*item)) for item in constants.items())
    body += b"".join(_field(11, _value(*item)) for item in inputs)
    body += b"".join(_field(12, _value(*item)) for item in outputs)
    opsets = _field(8, _field(1, "") + _field(2, opset))
    opsets += b"".join(_field(8, _field(1, domain) + _field(2, 1)) for domain in domains)
    ir_version = 10
    return _field(1, ir_version) + _field(7, body) + opsets


def model(op, inputs, outputs, attributes={}, domain="", node_inputs=None, node_outputs=None):
    """A model of one node, which has the inputs and outputs of the graph, unless it is told other names."""
    names = [node_inputs or [name for name, _, _ in inputs], node_outputs or [name for name, _, _ in outputs]]
    return graph([node(op, *names, attributes, domain)], inputs, outputs, domains=[domain] if domain else [])


def attention(shape, dtype):
    """The standard's `Attention`, of a case."""
    batch, q_heads, kv_heads, q_len, kv_len, dim, causal = shape
    q, kv = [batch, q_heads, q_len, dim], [batch, kv_heads, kv_len, dim]
    inputs = [("Q", dtype, q), ("K", dtype, kv), ("V", dtype, kv)]
    return model("Attention", inputs, [("Y", dtype, q)], {"is_causal": causal})


def trivial():
    """A graph that does next to nothing."""
    return model("Neg", [("X", "f32", [1])], [("Y", "f32", [1])])
