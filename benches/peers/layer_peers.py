"""A whole attention layer, with residual and layer norm, in onnxruntime, PyTorch and Keras: y = norm(x + attention(x))."""
import importlib
import os

import numpy as np

EPSILON = 1e-6


class Layer:
    """A case's operands: tokens `x`, the memory they attend to (`x` itself where it has as many), weights `y = x W + b`."""

    def __init__(self, case):
        self.batch, self.q_len, self.kv_len, self.dim, self.heads, self.key_dim = case
        self.inner = self.heads * self.key_dim
        random = np.random.default_rng(0)
        normal = lambda *shape: random.standard_normal(shape, np.float32)
        self.x = normal(self.batch, self.q_len, self.dim)
        self.is_self = self.q_len == self.kv_len
        self.memory = self.x if self.is_self else normal(self.batch, self.kv_len, self.dim)
        self.weights = {n: normal(self.dim, self.inner) / np.float32(np.sqrt(self.dim)) for n in "qkv"}
        self.weights["o"] = normal(self.inner, self.dim) / np.float32(np.sqrt(self.inner))
        self.biases = {n: normal(w.shape[1]) * np.float32(0.1) for n, w in self.weights.items()}

    def write(self, path):
        """As `bench_worker` reads it."""
        tensors = [self.x] + [self.memory] * (not self.is_self)
        tensors += [self.weights[n] for n in "qkvo"] + [self.biases[n] for n in "qkvo"]
        with open(path, "wb") as file:
            for tensor in tensors:
                np.ascontiguousarray(tensor, "<f4").tofile(file)

    def expected(self):
        """In float64."""
        x, memory = self.x.astype(np.float64), self.memory.astype(np.float64)
        heads = lambda t, n: (t @ self.weights[n] + self.biases[n]).reshape(
            self.batch, -1, self.heads, self.key_dim).transpose(0, 2, 1, 3)
        q, k, v = heads(x, "q"), heads(memory, "k"), heads(memory, "v")
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(self.key_dim)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = scores / scores.sum(-1, keepdims=True) @ v
        y = x + context.transpose(0, 2, 1, 3).reshape(*x.shape[:2], self.inner) @ self.weights["o"] + self.biases["o"]
        return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + EPSILON)


class Peer:
    """A library."""

    def __init__(self, library):
        self.builders = {
            "onnxruntime": {"Attention": onnx_attention, "MultiHeadAttention": onnx_multi_head},
            "torch": {"sdpa": torch_sdpa, "nn.MultiheadAttention": torch_module},
            "keras": {"MultiHeadAttention": keras_module},
        }[library]
        if library == "keras":
            os.environ["KERAS_BACKEND"] = "tensorflow"
        importlib.import_module(library)
        self.routes, self.key, self.run = list(self.builders), None, None

    def prepare(self, route, case):
        """What runs a case and gives its output; kept, as long as the same is asked for."""
        if (route, case) != self.key:
            self.key, self.run = None, None
            self.run = self.builders[route](Layer(case))
            self.key = (route, case)
        return self.run


def onnx_layer(layer, attention):
    """`attention` adds the nodes that make `context` of projected `q`, `k` and `v`."""
    import onnx_graph
    from python_peers.onnxruntime import bind, to_value
    nodes, constants = [], {"scale": np.ones(layer.dim, np.float32), "shift": np.zeros(layer.dim, np.float32)}

    def add(op, inputs, output, attributes={}, domain=""):
        nodes.append(onnx_graph.node(op, inputs, [output], attributes, domain))

    sources = {"q": "x", "k": "m", "v": "m"} if not layer.is_self else dict.fromkeys("qkv", "x")
    for n in "qkvo":
        constants[f"w_{n}"], constants[f"b_{n}"] = layer.weights[n], layer.biases[n]
    for n, source in sources.items():
        add("MatMul", [source, f"w_{n}"], f"{n}_product")
        add("Add", [f"{n}_product", f"b_{n}"], n)
    attention(add)
    add("MatMul", ["context", "w_o"], "projected")
    add("Add", ["projected", "b_o"], "biased")
    add("Add", ["biased", "x"], "sum")
    add("LayerNormalization", ["sum", "scale", "shift"], "y", {"epsilon": EPSILON})
    inputs = [("x", "f32", layer.x.shape)] + [("m", "f32", layer.memory.shape)] * (not layer.is_self)
    domains = ["com.microsoft"]
    model = onnx_graph.graph(nodes, inputs, [("y", "f32", layer.x.shape)], constants, domains=domains)
    values = {"x": to_value(layer.x)} | ({} if layer.is_self else {"m": to_value(layer.memory)})
    run = bind(model, values, {"y": to_value(np.zeros_like(layer.x))})
    return lambda: run().numpy()


def onnx_attention(layer):
    """The standard's operator."""
    attributes = {"q_num_heads": layer.heads, "kv_num_heads": layer.heads}
    return onnx_layer(layer, lambda add: add("Attention", ["q", "k", "v"], "context", attributes))


def onnx_multi_head(layer):
    """onnxruntime's own."""
    attributes, domain = {"num_heads": layer.heads}, "com.microsoft"
    return onnx_layer(layer, lambda add: add("MultiHeadAttention", ["q", "k", "v"], "context", attributes, domain))


def torch_tensors(layer):
    import torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    weights = {n: torch.from_numpy(np.ascontiguousarray(w.T)) for n, w in layer.weights.items()}
    biases = {n: torch.from_numpy(b) for n, b in layer.biases.items()}
    x = torch.from_numpy(layer.x)
    return torch, weights, biases, x, x if layer.is_self else torch.from_numpy(layer.memory)


def torch_sdpa(layer):
    """Written out: products that share their input in one, and the fused attention."""
    torch, weights, biases, x, memory = torch_tensors(layer)
    functional = torch.nn.functional
    stack = lambda names: [torch.cat([part[n] for n in names]) for part in (weights, biases)]
    names = "qkv" if layer.is_self else "kv"
    stacked = stack(names)
    heads = lambda t, count: t.view(*t.shape[:2], count, layer.heads, layer.key_dim).permute(2, 0, 3, 1, 4)

    @torch.inference_mode()
    def run():
        parts = list(heads(functional.linear(memory, *stacked), len(names)).unbind(0))
        if not layer.is_self:
            parts = [*heads(functional.linear(x, weights["q"], biases["q"]), 1).unbind(0)] + parts
        context = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        y = x + functional.linear(context, weights["o"], biases["o"])
        return functional.layer_norm(y, (layer.dim,), eps=EPSILON).numpy()

    return run


def torch_module(layer):
    torch, weights, biases, x, memory = torch_tensors(layer)
    attention = torch.nn.MultiheadAttention(layer.dim, layer.heads, batch_first=True).eval()
    state = {"in_proj_weight": torch.cat([weights[n] for n in "qkv"]), "in_proj_bias": torch.cat([biases[n] for n in "qkv"]),
             "out_proj.weight": weights["o"], "out_proj.bias": biases["o"]}
    attention.load_state_dict(state)

    @torch.inference_mode()
    def run():
        y = x + attention(x, memory, memory, need_weights=False)[0]
        return torch.nn.functional.layer_norm(y, (layer.dim,), eps=EPSILON).numpy()

    return run


def keras_module(layer):
    import keras
    import tensorflow as tf
    threads = int(os.environ["OMP_NUM_THREADS"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    x, memory = tf.constant(layer.x), tf.constant(layer.memory)
    attention = keras.layers.MultiHeadAttention(layer.heads, layer.key_dim)
    norm = keras.layers.LayerNormalization(epsilon=EPSILON)
    attention(x, memory)
    shape = (layer.heads, layer.key_dim)
    weights = [array for n in "qkv"
               for array in (layer.weights[n].reshape(layer.dim, *shape), layer.biases[n].reshape(shape))]
    attention.set_weights(weights + [layer.weights["o"].reshape(*shape, layer.dim), layer.biases["o"]])

    @tf.function
    def layers(x, memory):
        return norm(x + attention(x, memory))

    return lambda: layers(x, memory).numpy()
