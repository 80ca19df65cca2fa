"""ONNX models of one node, as bytes: the few fields of the protobuf format that takes, so that no peer needs `onnx`."""

TYPES = {"f32": 1, "f16": 10, "bf16": 16, "i32": 6}


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
    kind_int = 2
    return _field(1, name) + _field(3, value) + _field(20, kind_int)


def _value(name, dtype, shape):
    dims = b"".join(_field(1, _field(1, dim)) for dim in shape)
    tensor = _field(1, TYPES[dtype]) + _field(2, dims)
    return _field(1, name) + _field(2, _field(1, tensor))


def model(op, inputs, outputs, attributes={}, domain="", node_inputs=None, node_outputs=None, opset=23):
    """`inputs` and `outputs` are of the graph, as (name, dtype, shape); the node has the same ones, unless it is told
    other names ("" for one that is left out). Attributes are integers."""
    node = b"".join(_field(1, name) for name in node_inputs or [name for name, _, _ in inputs])
    node += b"".join(_field(2, name) for name in node_outputs or [name for name, _, _ in outputs])
    node += _field(4, op) + b"".join(_field(5, _attribute(*item)) for item in attributes.items())
    node += _field(7, domain)
    graph = _field(1, node) + _field(2, "graph")
    graph += b"".join(_field(11, _value(*item)) for item in inputs)
    graph += b"".join(_field(12, _value(*item)) for item in outputs)
    opsets = _field(8, _field(1, "") + _field(2, opset))
    if domain:
        opsets += _field(8, _field(1, domain) + _field(2, 1))
    ir_version = 10
    return _field(1, ir_version) + _field(7, graph) + opsets


def attention(shape, dtype):
    """The standard's `Attention`, of a case."""
    batch, q_heads, kv_heads, q_len, kv_len, dim, causal = shape
    q, kv = [batch, q_heads, q_len, dim], [batch, kv_heads, kv_len, dim]
    inputs = [("Q", dtype, q), ("K", dtype, kv), ("V", dtype, kv)]
    return model("Attention", inputs, [("Y", dtype, q)], {"is_causal": causal})


def trivial():
    """A graph that does next to nothing."""
    return model("Neg", [("X", "f32", [1])], [("Y", "f32", [1])])
