"""Writes onnx_attention.json, the cases of tests/onnx.

    pip install onnx==1.23.2 numpy ml_dtypes
    python tests/data/generate_onnx.py            # rewrites the file beside this one, the same bytes every time

Two sets of cases of the standard's `Attention`, opsets 23 to 25:

- `package`: every backend test case of the package with one `Attention` node, unchanged: attributes, inputs and
  expected outputs ("expanded" twins, which run the same numbers through the operator's function body, left out).
  f16 and bf16 cases get `wide` outputs besides: the package's reference run in float64 on the same inputs, which
  tells the error of an implementation from that of a reference that rounds every step to 16 bits.
- `text`: cases that the package lacks, one per rule of the operator's text and a set of random mixtures. Their
  expected outputs come from the operator's *function body* (the schema's own definition in primitive operators).
  The package's NumPy reference is run beside it; where the two disagree or the reference fails, the case says so in
  `reference`, and the list below has to name it, so that nothing slips in unnoticed.

Layout: tensors are stored once each, as base64 of little-endian bytes, and named by index:

    {"onnx": "1.23.2",
     "tensors": [{"dtype": "f32", "shape": [2, 3], "base64": "..."}, ...],
     "cases": [{"set", "name", "opset", "attributes", "inputs", "outputs", "wide"?, "reference"?}, ...]}
"""

import base64
import itertools
import json
import pathlib
import warnings
import zlib

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_attention import _compute_attention

warnings.simplefilter("ignore")  # other operators' cases, built while the loader runs, overflow on purpose

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "bool": "bool", "int64": "i64"}
PROTO = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bool": TensorProto.BOOL, "int64": TensorProto.INT64}
INPUTS = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
OUTPUTS = ["Y", "present_key", "present_value", "qk_matmul_output"]

# Where onnx 1.23.2's NumPy reference departs from the operator's text and function body.
RAW_IS_CAPPED = "mode 0 with a softcap returns the capped scores, not the raw ones"
ROWS_OF_MASK = "is_causal takes the number of queries from the mask, wrong if that axis is 1"
RANK_1 = "is_causal fails on a mask of rank 1"
PADDED_AT_23 = "a mask whose last axis is 1 is padded at opset 23 too, whose text only knows broadcasting"


class Tensors:
    """Each distinct tensor once."""

    def __init__(self):
        self.list, self.index = [], {}

    def add(self, array):
        array = np.ascontiguousarray(array)
        entry = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "base64": base64.b64encode(array.tobytes()).decode(),
        }
        key = json.dumps(entry)
        if key not in self.index:
            self.index[key] = len(self.list)
            self.list.append(entry)
        return self.index[key]


def package_cases(tensors):
    for case in load_model_tests(kind="node"):
        if case.model is None or "expanded" in case.name:
            continue
        graph = case.model.graph
        if [node.op_type for node in graph.node] != ["Attention"]:
            continue
        (node,), ((inputs, outputs),) = graph.node, case.data_sets
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = dict(zip([name for name in node.input if name], inputs, strict=True))
        outputs = dict(zip([name for name in node.output if name], outputs, strict=True))
        entry = {
            "set": "package",
            "name": case.name,
            "opset": case.model.opset_import[0].version,
            "attributes": attributes,
            "inputs": {name: tensors.add(value) for name, value in inputs.items()},
            "outputs": {name: tensors.add(value) for name, value in outputs.items()},
        }
        if inputs["Q"].dtype.name != "float32":
            entry["wide"] = wide(tensors, attributes, inputs, outputs)
        yield entry


def wide(tensors, attributes, inputs, outputs):
    """The reference in float64 on the same inputs, rounded once to float32."""
    keep = ("bool", "int64")
    inputs = {n: v if v.dtype.name in keep else v.astype(np.float64) for n, v in inputs.items()}
    attributes = {name: value for name, value in attributes.items() if name != "softmax_precision"}
    results = dict(zip(OUTPUTS, _compute_attention(**inputs, **attributes), strict=True))
    return {n: tensors.add(results[n].astype(np.float32)) for n in outputs if not n.startswith("present")}


def function_body(opset, attributes, inputs):
    """Runs the schema's function body, whose nodes depend on attributes and input types."""
    given = [name if name in inputs else "" for name in INPUTS]
    outputs = OUTPUTS if "past_key" in inputs else ["Y", "", "", "qk_matmul_output"]
    node = helper.make_node("Attention", given, outputs, **attributes)
    infos = {n: helper.make_tensor_value_info(n, PROTO[v.dtype.name], v.shape) for n, v in inputs.items()}
    types = [infos[name].type.SerializeToString() if name else onnx.TypeProto().SerializeToString() for name in given]
    schema = onnx.defs.get_schema("Attention", opset, "")
    body = onnx.FunctionProto()
    body.ParseFromString(
        schema.get_context_dependent_function_with_opset_version(opset, node.SerializeToString(), types)
    )
    assert not any(a.ref_attr_name for n in body.node for a in n.attribute), "attributes are values already"
    named = [name for name in outputs if name]
    results = [helper.make_tensor_value_info(name, PROTO[inputs["Q"].dtype.name], None) for name in named]
    graph = helper.make_graph(body.node, "body", [infos[name] for name in given if name], results)
    model = helper.make_model(graph, opset_imports=body.opset_import)
    return dict(zip(named, ReferenceEvaluator(model).run(None, inputs), strict=True))


def text_case(tensors, name, opset, attributes, inputs, known=None):
    expected = function_body(opset, attributes, inputs)
    try:
        got = dict(zip(OUTPUTS, _compute_attention(**inputs, **attributes), strict=True))
        tolerance = 2e-3 if inputs["Q"].dtype == np.float16 else 1e-5
        agrees = all(np.allclose(got[n], expected[n], rtol=tolerance, atol=tolerance) for n in expected)
    except ValueError:
        agrees = False
    assert agrees == (known is None), f"{name}: reference agrees: {agrees}, listed: {known}"
    entry = {
        "set": "text",
        "name": name,
        "opset": opset,
        "attributes": attributes,
        "inputs": {n: tensors.add(v) for n, v in inputs.items()},
        "outputs": {n: tensors.add(v) for n, v in expected.items()},
    }
    if known is not None:
        entry["reference"] = known
    return entry


class Shapes:
    """Operands small enough to keep the file small, with every size different from its neighbours."""

    batch, q_heads, kv_heads, q_len, kv_len, past, dim, v_dim = 2, 4, 2, 3, 5, 2, 4, 3

    def __init__(self, dtype=np.float32):
        rng = np.random.default_rng(23)
        normal = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
        b, h = self.batch, self.kv_heads
        self.q = normal(b, self.q_heads, self.q_len, self.dim)
        self.k = normal(b, h, self.kv_len, self.dim)
        self.v = normal(b, h, self.kv_len, self.v_dim)
        self.past_cache = dict(past_key=normal(b, h, self.past, self.dim), past_value=normal(b, h, self.past, self.v_dim))

    def inputs(self, rank=4, past=False, nonpad=None, mask=None):
        flat = lambda x: x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)  # noqa: E731
        inputs = dict(zip("QKV", (x if rank == 4 else flat(x) for x in (self.q, self.k, self.v))))
        if mask is not None:
            inputs["attn_mask"] = mask
        if past:
            inputs.update(self.past_cache)
        if nonpad is not None:
            inputs["nonpad_kv_seqlen"] = np.array(nonpad, dtype=np.int64)
        return inputs

    def attributes(self, rank=4, **attributes):
        heads = dict(q_num_heads=self.q_heads, kv_num_heads=self.kv_heads) if rank == 3 else {}
        return {**heads, **attributes}


def dense(name, kind, shape, dtype=np.float32):
    """A mask that depends on the case's name only."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.random(shape) > 0.4 if kind == "bool" else rng.standard_normal(shape).astype(dtype)


def text_cases(tensors):
    shapes = Shapes()
    make = lambda *args, **more: text_case(tensors, *args, **more)  # noqa: E731

    # Masks of every rank and broadcast; shorter ones, which opset 23's function body does not pad, at 24.
    full = [(5,), (3, 5), (1, 5), (4, 3, 5), (1, 3, 5), (4, 1, 5), (2, 1, 3, 5), (1, 4, 3, 5), (2, 4, 1, 5), (2, 4, 3, 5)]
    short = [(3,), (1,), (3, 3), (4, 3, 3), (2, 1, 3, 4), (2, 1, 1, 4), (2, 4, 3, 1)]
    for shape, kind, causal in itertools.product(full + short, ("bool", "float"), (0, 1)):
        name = f"mask_{'x'.join(map(str, shape))}_{kind}{'_causal' * causal}"
        rows = shape[-2] if len(shape) > 1 else None
        known = {None: RANK_1, 1: ROWS_OF_MASK}.get(rows) if causal else None
        inputs = shapes.inputs(mask=dense(name, kind, shape))
        attributes = shapes.attributes(is_causal=causal, qk_matmul_output_mode=2)
        yield make(name, 23 if shape in full else 24, attributes, inputs, known=known)

    for shape, kind in itertools.product([(1,), (2, 4, 3, 1)], ("bool", "float")):
        name = f"mask_{'x'.join(map(str, shape))}_{kind}_opset_23"
        yield make(name, 23, shapes.attributes(qk_matmul_output_mode=2), shapes.inputs(mask=dense(name, kind, shape)), known=PADDED_AT_23)

    # What the optional output holds: mode, softcap (0 is off), a row without keys, padding, a shorter mask.
    for mode, softcap in itertools.product(range(4), (0.0, 0.75)):
        name, attributes = f"mode_{mode}_softcap_{softcap}", dict(qk_matmul_output_mode=mode, softcap=softcap)
        known = RAW_IS_CAPPED if mode == 0 and softcap > 0 else None
        yield make(name, 24, shapes.attributes(**attributes), shapes.inputs(mask=dense(name, "float", (3, 5))), known=known)
        mask = dense(name, "bool", (2, 1, 3, 5))
        mask[1, 0, 1] = False
        inputs = shapes.inputs(mask=mask)
        yield make(name + "_empty_row", 24, shapes.attributes(is_causal=1, **attributes), inputs, known=known)
        inputs = shapes.inputs(nonpad=[4, 1])
        yield make(name + "_nonpad", 24, shapes.attributes(is_causal=1, **attributes), inputs, known=known)
        inputs = shapes.inputs(nonpad=[4, 2], mask=dense(name, "float", (3, 4)))
        yield make(name + "_nonpad_short_mask", 24, shapes.attributes(**attributes), inputs, known=known)

    # Windows against every rule for the position of the first query.
    caches = {"plain": {}, "past": dict(past=True), "nonpad": dict(nonpad=[5, 2])}
    for (cache, given), left, right, causal in itertools.product(caches.items(), (-1, 0, 1), (-1, 0, 2), (0, 1)):
        name = f"window_{left}_{right}_{cache}{'_causal' * causal}"
        attributes = dict(left_window_size=left, right_window_size=right, is_causal=causal, qk_matmul_output_mode=3)
        yield make(name, 25, shapes.attributes(**attributes), shapes.inputs(**given))

    # 16-bit operands with a softmax of its own precision.
    half = Shapes(np.float16)
    for precision in (TensorProto.FLOAT, TensorProto.FLOAT16):
        name = f"f16_softmax_precision_{precision}"
        attributes = half.attributes(softmax_precision=precision, qk_matmul_output_mode=3, is_causal=1)
        yield make(name, 24, attributes, half.inputs(mask=dense(name, "float", (3, 5), np.float16)))

    # Mixtures.
    rng = np.random.default_rng(25)
    for index in range(60):
        name, rank = f"mixture_{index:02}", int(rng.choice([3, 4]))
        given = caches[rng.choice(list(caches))]
        keys = shapes.kv_len + (shapes.past if "past" in given else 0)
        attributes = dict(
            is_causal=int(rng.integers(2)),
            softcap=float(rng.choice([0.0, 1.5])),
            qk_matmul_output_mode=int(rng.integers(4)),
            left_window_size=int(rng.integers(-1, 3)),
            right_window_size=int(rng.integers(-1, 3)),
        )
        if rng.integers(2):
            attributes["scale"] = float(np.float32(rng.choice([0.3, 1.7])))
        mask = None
        if rng.integers(3):
            shape = [(2, 4, 3, keys), (4, 3, keys), (2, 1, 3, keys), (3, keys), (3, keys - 1), (2, 1, 3, keys - 1)]
            if "nonpad" in given:  # not shorter than the longest sequence
                shape = shape[:4]
            mask = dense(name, str(rng.choice(["bool", "float"])), shape[rng.integers(len(shape))])
        known = RAW_IS_CAPPED if attributes["qk_matmul_output_mode"] == 0 and attributes["softcap"] > 0 else None
        inputs = shapes.inputs(rank=rank, mask=mask, **given)
        yield make(name, 25, shapes.attributes(rank=rank, **attributes), inputs, known=known)


def main():
    tensors = Tensors()
    cases = [*package_cases(tensors), *text_cases(tensors)]
    line = lambda value: json.dumps(value, separators=(",", ":"))  # noqa: E731
    rows = lambda values: ",\n".join(map(line, values))  # noqa: E731
    text = f'{{"onnx":"{onnx.__version__}",\n"tensors":[\n{rows(tensors.list)}\n],\n"cases":[\n{rows(cases)}\n]}}\n'
    path = pathlib.Path(__file__).with_name("onnx_attention.json")
    path.write_text(text)
    print(f"{path}: {len(cases)} cases, {len(tensors.list)} tensors, {len(text)} bytes")


if __name__ == "__main__":
    main()
