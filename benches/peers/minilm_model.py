"""all-MiniLM-L6-v2 from its safetensors file, for onnxruntime (a graph of its fused operators) and PyTorch."""
import importlib
import json
import os
import struct

import numpy as np

NAME = "all-MiniLM-L6-v2"
LAYERS, HEADS, HIDDEN, EPSILON = 6, 12, 384, 1e-12
VOCABULARY = 30522
# Calls of a turn, at least.
CALLS = 5


def word_ids(sentences, tokens):
    """Those of the example's `--bench`: `[CLS]`, words spread over the vocabulary, `[SEP]`."""
    first = 1000
    t, s = np.arange(tokens)[None], np.arange(sentences)[:, None]
    ids = first + (t * 7919 + s * 104729) % (VOCABULARY - first)
    ids[:, 0], ids[:, -1] = 101, 102
    return ids.astype(np.int32)


def read_safetensors(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[start:end], "<f4").reshape(entry["shape"])
    return tensors


def positions(tensors):
    """Every token has type 0, whose embedding joins the positions'."""
    types = tensors["embeddings.token_type_embeddings.weight"][0]
    return tensors["embeddings.position_embeddings.weight"] + types


def stacked(tensors, layer, part):
    name = f"encoder.layer.{layer}.attention.self."
    return np.concatenate([tensors[f"{name}{which}.{part}"] for which in ("query", "key", "value")])


class Peer:
    """A library and the model's tensors."""

    def __init__(self, library, folder):
        self.tensors = read_safetensors(folder / "model.safetensors")
        self.builders = {"onnxruntime": {"fused": onnx_fused}, "torch": {"sdpa": torch_sdpa, "encoder": torch_encoder}}[
            library]
        importlib.import_module(library)
        self.routes, self.key, self.run = list(self.builders), None, None

    def prepare(self, route, ids):
        """What runs the encoder on these ids; kept, as long as the same is asked for."""
        if (route, ids.shape) != self.key:
            self.key, self.run = None, None
            self.run = self.builders[route](self.tensors, ids)
            self.key = (route, ids.shape)
        return self.run


def onnx_graph_of(tensors, shape):
    """onnxruntime's own operators for BERT, as its optimizer would choose them."""
    import onnx_graph
    own = "com.microsoft"
    constants, nodes = {}, []

    def constant(name, array):
        constants[name] = np.ascontiguousarray(array)
        return name

    def tensor(name):
        return constant(name, tensors[name])

    def kernel(name):
        return constant(name, tensors[name].T)

    def add(op, inputs, output, attributes={}, domain=own, unused=[]):
        nodes.append(onnx_graph.node(op, inputs, [output] + unused, attributes, domain))
        return output

    def skip_norm(x, skip, norm, bias, output):
        inputs = [x, skip, tensor(f"{norm}.weight"), tensor(f"{norm}.bias"), bias]
        return add("SkipLayerNormalization", inputs, output, {"epsilon": EPSILON})

    norm = "embeddings.LayerNorm"
    x = add("EmbedLayerNormalization",
            ["ids", "", tensor("embeddings.word_embeddings.weight"), constant("positions", positions(tensors)), "",
             tensor(f"{norm}.weight"), tensor(f"{norm}.bias")], "x", {"epsilon": EPSILON},
            unused=["mask_index"])
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        qkv = constant(f"{name}.qkv", stacked(tensors, layer, "weight").T)
        qkv_bias = constant(f"{name}.qkv_bias", stacked(tensors, layer, "bias"))
        heads = add("Attention", [x, qkv, qkv_bias], f"{name}.heads", {"num_heads": HEADS})
        output = f"{name}.attention.output"
        projected = add("MatMul", [heads, kernel(f"{output}.dense.weight")], f"{name}.projected", domain="")
        attended = skip_norm(projected, x, f"{output}.LayerNorm", tensor(f"{output}.dense.bias"), f"{name}.attended")
        wide = add("MatMul", [attended, kernel(f"{name}.intermediate.dense.weight")], f"{name}.wide", domain="")
        inner = add("BiasGelu", [wide, tensor(f"{name}.intermediate.dense.bias")], f"{name}.inner")
        narrow = add("MatMul", [inner, kernel(f"{name}.output.dense.weight")], f"{name}.narrow", domain="")
        x = skip_norm(narrow, attended, f"{name}.output.LayerNorm", tensor(f"{name}.output.dense.bias"), f"{name}.out")
    axes = constant("axes", np.array([1], np.int64))
    mean = add("ReduceMean", [x, axes], "mean", {"keepdims": 0}, domain="")
    add("LpNormalization", [mean], "embeddings", {"axis": 1, "p": 2}, domain="")
    inputs, outputs = [("ids", "i32", shape)], [("embeddings", "f32", [shape[0], HIDDEN])]
    return onnx_graph.graph(nodes, inputs, outputs, constants, domains=[own])


def onnx_fused(tensors, ids):
    from python_peers.onnxruntime import bind, to_value
    model = onnx_graph_of(tensors, list(ids.shape))
    out = to_value(np.zeros((ids.shape[0], HIDDEN), np.float32))
    run = bind(model, {"ids": to_value(ids)}, {"embeddings": out})
    return lambda: run().numpy()


def torch_parts(tensors, ids):
    import torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    weights = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    places = torch.from_numpy(positions(tensors))[:ids.shape[1]]
    return torch, weights, places, torch.from_numpy(ids.astype(np.int64))


def torch_finish(torch, weights, places, ids, layers):
    norm = [weights[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")]
    words = weights["embeddings.word_embeddings.weight"]
    functional = torch.nn.functional

    @torch.inference_mode()
    def run():
        x = functional.layer_norm(functional.embedding(ids, words) + places, (HIDDEN,), *norm, EPSILON)
        return functional.normalize(layers(x).mean(1), dim=-1).numpy()

    return run


def torch_sdpa(tensors, ids):
    """Written out: one product for queries, keys and values, and the fused attention."""
    torch, weights, places, ids = torch_parts(tensors, ids)
    functional = torch.nn.functional
    batch, tokens = ids.shape
    qkv = [[torch.from_numpy(stacked(tensors, layer, part)) for part in ("weight", "bias")] for layer in range(LAYERS)]

    def linear(x, name):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)

    def layers(x):
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}"
            heads = functional.linear(x, *qkv[layer]).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2)
            output = f"{name}.attention.output"
            x = norm(x + linear(attended, f"{output}.dense"), f"{output}.LayerNorm")
            inner = functional.gelu(linear(x, f"{name}.intermediate.dense"))
            x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        return x

    return torch_finish(torch, weights, places, ids, layers)


def torch_encoder(tensors, ids):
    """`nn.TransformerEncoder`, which has a fused path for inference."""
    torch, weights, places, ids = torch_parts(tensors, ids)
    layer = torch.nn.TransformerEncoderLayer(
        HIDDEN, HEADS, 4 * HIDDEN, activation="gelu", layer_norm_eps=EPSILON, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
    names = {
        "self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense", "linear2": "output.dense", "norm2": "output.LayerNorm",
    }
    state = {}
    for index in range(LAYERS):
        for part in ("weight", "bias"):
            state[f"layers.{index}.self_attn.in_proj_{part}"] = torch.from_numpy(stacked(tensors, index, part))
            for theirs, bert in names.items():
                state[f"layers.{index}.{theirs}.{part}"] = weights[f"encoder.layer.{index}.{bert}.{part}"]
    encoder.load_state_dict(state)
    return torch_finish(torch, weights, places, ids, encoder)
