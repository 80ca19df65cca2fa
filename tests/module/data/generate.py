"""Writes keras.safetensors, torch.safetensors and bert.safetensors, the reference vectors of tests/module.

    pip install keras tensorflow    && python tests/module/data/generate.py keras
    pip install torch               && python tests/module/data/generate.py torch
    pip install torch transformers  && python tests/module/data/generate.py bert

Each file holds cases of one library, run in f32 on a CPU with weights and inputs drawn at random. Tensors of case `i`:

    i.<the library's own name>    weights, as the library names and stores them
    i.in.{query,key,value}        inputs (key and value only where they are not the query)
    i.out, i.scores               what the library computed; probabilities by head

and the file's metadata has `cases`, a JSON list of {"name", "config", "mask"}: `config` is an AttentionConfig, `mask` is
null or {"kv_lens": [...]}. The versions of the libraries are in the metadata too.
"""

import json
import pathlib
import struct
import sys

import numpy as np


class File:
    """Cases in the making."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.tensors = {}
        self.cases = []

    def normal(self, *shape, scale=1.0):
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def case(self, name, config, inputs, weights, out, scores=None, mask=None):
        if scores is not None and scores.size > 2000:
            scores = None  # the files stay small
        prefix = f"{len(self.cases)}."
        self.cases.append({"name": name, "config": config, "mask": mask})
        query, key, value = inputs
        named = {"in.query": query, "out": out, **weights}
        if key is not query:
            named["in.key"] = key
        if value is not key:
            named["in.value"] = value
        if scores is not None:
            named["scores"] = scores
        self.tensors.update((prefix + tensor, data) for tensor, data in named.items())

    def write(self, library, **versions):
        header = {"__metadata__": {"cases": json.dumps(self.cases), **versions}}
        offset, blobs = 0, []
        for name, data in self.tensors.items():
            blob = np.ascontiguousarray(data, dtype="<f4").tobytes()
            header[name] = {"dtype": "F32", "shape": list(data.shape), "data_offsets": [offset, offset + len(blob)]}
            offset += len(blob)
            blobs.append(blob)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path = pathlib.Path(__file__).with_name(f"{library}.safetensors")
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
        print(path.name, path.stat().st_size, "bytes,", len(self.cases), "cases")


def keras_file():
    import keras
    import tensorflow as tf

    file = File(1)

    def case(name, shapes, mask=None, rank=3, **config):
        """`shapes`: query, and key and value where they differ from what comes before."""
        tensors = [file.normal(*shape) for shape in shapes]
        query = tensors[0]
        key = tensors[1] if len(tensors) > 1 else query
        value = tensors[2] if len(tensors) > 2 else key
        heads, key_dim = config.get("num_heads", 4), config.get("key_dim", 32)
        output_dim = config.get("output_dim", query.shape[-1])
        common = dict(dropout=0.0, use_bias=config.get("use_bias", True))
        if "kv_heads" in config:
            layer = keras.layers.GroupQueryAttention(key_dim, heads, config["kv_heads"], **common)
        else:
            layer = keras.layers.MultiHeadAttention(
                heads, key_dim, config.get("value_dim"), output_shape=config.get("output_dim"), **common
            )
        arguments = dict(return_attention_scores=True, use_causal_mask=config.get("causal", False))
        if mask:
            allowed = np.arange(key.shape[1])[None, :] < np.array(mask["kv_lens"])[:, None]
            arguments["attention_mask"] = np.broadcast_to(allowed[:, None], (len(allowed), query.shape[1], key.shape[1]))
        layer(query, value, key, **arguments)  # builds it
        for weight in layer.weights:
            scale = 0.5 if weight.path.endswith("bias") else 1.5 / np.sqrt(query.shape[-1])
            weight.assign(file.normal(*weight.shape, scale=scale))
        weights = {weight.path.split("/", 1)[1]: weight.numpy() for weight in layer.weights}
        out, scores = layer(query, value, key, **arguments)
        if activation := config.get("activation"):
            gelu_tanh = lambda x: keras.activations.gelu(x, approximate=True)
            out = gelu_tanh(out) if activation == "gelu_tanh" else keras.activations.get(activation)(out)
        if config.get("use_residual", True):
            out = out + query
        if config.get("use_layer_norm", True):
            norm = keras.layers.LayerNormalization(epsilon=config.get("layer_norm_epsilon", 1e-6))
            norm.build(out.shape)
            norm.gamma.assign(1 + file.normal(output_dim, scale=0.2))
            norm.beta.assign(file.normal(output_dim, scale=0.2))
            out = norm(out)
            weights["layer_normalization/gamma"] = norm.gamma.numpy()
            weights["layer_normalization/beta"] = norm.beta.numpy()
        file.case(name, config, (query, key, value), weights, out.numpy(), scores.numpy(), mask)

    bare = dict(use_layer_norm=False, use_residual=False)
    small = dict(num_heads=3, key_dim=6)
    case("self", [(2, 5, 18)], **small)
    case("cross, one query", [(1, 1, 24), (1, 10, 24)], num_heads=4, key_dim=6)
    case("sizes all different", [(2, 3, 20), (2, 7, 28), (2, 7, 12)], num_heads=2, key_dim=8, value_dim=6)
    case("output_dim", [(1, 4, 18), (1, 6, 16)], output_dim=30, use_residual=False, **small)
    case("causal", [(2, 9, 18)], causal=True, **small)
    case("key lengths", [(2, 4, 18), (2, 6, 18)], mask={"kv_lens": [6, 3]}, **small)
    case("no bias", [(1, 6, 18)], use_bias=False, **bare, **small)
    case("grouped heads", [(2, 5, 24)], num_heads=4, key_dim=6, kv_heads=2)
    case("odd sizes", [(3, 7, 13), (3, 11, 17)], num_heads=5, key_dim=3, value_dim=7)
    case("many tokens", [(1, 50, 18)], num_heads=4, key_dim=5, causal=True)
    for activation in ["linear", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]:
        case(activation, [(1, 4, 16)], num_heads=2, key_dim=8, activation=activation, use_layer_norm=False)
    file.write("keras", keras=keras.__version__, tensorflow=tf.__version__)


def torch_file():
    import torch

    file = File(2)

    def case(name, shapes, heads, mask=None, norm=None, causal=False, **options):
        tensors = [file.normal(*shape) for shape in shapes]
        query = tensors[0]
        key = tensors[1] if len(tensors) > 1 else query
        value = tensors[2] if len(tensors) > 2 else key
        dim = query.shape[-1]
        layer = torch.nn.MultiheadAttention(
            dim, heads, kdim=key.shape[-1], vdim=value.shape[-1], batch_first=True, **options
        )
        module = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(dim)}) if norm else torch.nn.ModuleDict()
        with torch.no_grad():
            for weight in layer.parameters():
                scale = 0.5 if weight.ndim == 1 else 1.5 / np.sqrt(dim)
                weight.copy_(torch.from_numpy(file.normal(*weight.shape, scale=scale)))
            for weight in module.parameters():
                weight.copy_(torch.from_numpy(file.normal(*weight.shape)))
            q, k, v = map(torch.from_numpy, (query, key, value))
            arguments = {}
            if mask:
                arguments["key_padding_mask"] = torch.arange(k.shape[-2])[None] >= torch.tensor(mask["kv_lens"])[:, None]
            if causal:
                arguments["attn_mask"] = torch.ones(q.shape[-2], k.shape[-2]).triu(1).bool()
            out, scores = layer(q, k, v, average_attn_weights=False, **arguments)
            if norm:
                out = module["norm"](out + q)
        weights = {name: weight.numpy() for name, weight in {**layer.state_dict(), **module.state_dict()}.items()}
        config = dict(num_heads=heads, key_dim=dim // heads, use_bias=options.get("bias", True), causal=causal)
        config.update(use_layer_norm=bool(norm), use_residual=bool(norm), layer_norm_epsilon=1e-5)
        file.case(name, config, (query, key, value), weights, out.numpy(), scores.numpy(), mask)

    case("self", [(2, 5, 18)], 3)
    case("self, norm", [(2, 5, 18)], 3, norm=True)
    case("cross", [(2, 3, 18), (2, 8, 18)], 2)
    case("kdim and vdim", [(2, 3, 18), (2, 8, 14), (2, 8, 12)], 2, norm=True)
    case("no bias", [(1, 6, 18)], 2, bias=False)
    case("causal", [(2, 9, 18)], 3, causal=True)
    case("key lengths", [(2, 4, 18), (2, 6, 18)], 3, mask={"kv_lens": [6, 2]})
    case("one query", [(1, 1, 24), (1, 10, 24)], 4, norm=True)
    case("no batch axis", [(7, 16)], 2)
    case("many tokens", [(1, 50, 18)], 2, norm=True)
    file.write("torch", torch=torch.__version__)


def bert_file():
    import torch
    import transformers

    file = File(3)

    def case(name, shape, heads, mask=None, **options):
        dim = shape[-1]
        config = transformers.BertConfig(
            hidden_size=dim, num_attention_heads=heads, attn_implementation="eager", intermediate_size=8, **options
        )
        layer = transformers.models.bert.modeling_bert.BertLayer(config).eval()
        hidden = file.normal(*shape)
        with torch.no_grad():
            for weight in layer.attention.parameters():
                scale = 0.5 if weight.ndim == 1 else 1.5 / np.sqrt(dim)
                weight.copy_(torch.from_numpy(file.normal(*weight.shape, scale=scale)))
            added = None
            if mask:
                removed = torch.arange(shape[1])[None] >= torch.tensor(mask["kv_lens"])[:, None]
                added = torch.zeros(removed.shape).masked_fill(removed, torch.finfo(torch.float32).min)[:, None, None]
            out = layer.attention(torch.from_numpy(hidden), added)[0]
        names = {name: weight.numpy() for name, weight in layer.state_dict().items() if name.startswith("attention.")}
        ours = dict(num_heads=heads, key_dim=dim // heads, layer_norm_epsilon=config.layer_norm_eps)
        file.case(name, ours, (hidden, hidden, hidden), names, out.numpy(), mask=mask)

    case("self", (2, 6, 18), 3)
    case("one token", (1, 1, 16), 4)
    case("key lengths", (3, 9, 20), 4, mask={"kv_lens": [9, 4, 1]})
    case("many tokens", (1, 40, 24), 6)
    file.write("bert", torch=torch.__version__, transformers=transformers.__version__)


if __name__ == "__main__":
    {"keras": keras_file, "torch": torch_file, "bert": bert_file}[sys.argv[1]]()
