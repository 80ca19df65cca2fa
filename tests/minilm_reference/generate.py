"""Writes examples/minilm/reference.json: what PyTorch makes of some sentences, computed in float64.

    python3 -m venv v && v/bin/pip install torch numpy
    v/bin/python tests/minilm_reference/generate.py target/models/all-MiniLM-L6-v2 examples/minilm/reference.json

Shares nothing with the example but the model's files: tokenization is BERT's, written out from its definition, and
the encoder is plain PyTorch. float32 is run too, to show how far PyTorch itself is from the numbers that are stored.
"""

import json
import math
import struct
import sys
import unicodedata
from pathlib import Path

import numpy
import torch

LAYERS, HEADS, HIDDEN, MAX_TOKENS = 6, 12, 384, 256

LONG = " ".join(
    f"In year {year} the observatory at station {year * 7919 % 97} recorded {year % 13} storms, "
    "an unusually mild winter and two short-lived aurorae."
    for year in range(1871, 1886)
)
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    LONG,
    "",
    "机器学习正在改变世界。 تعلم الآلة يغير العالم 🤖🌍✨ Машинное обучение naïve café",
    "  odd\t\twhitespace,\n\nnon\u00a0breaking\u3000spaces   and a\u200bzero-width one  \r\n",
    "Attention maps a query and a set of key-value pairs to an output: softmax(QK^T/sqrt(d))V, don't you think?",
]


def read_safetensors(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            numbers = numpy.frombuffer(data[start:end], dtype="<f4").reshape(entry["shape"])
            tensors[name] = torch.from_numpy(numbers.copy())
    return tensors


def is_chinese(c):
    ranges = [
        (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
    ]  # fmt: skip
    return any(first <= ord(c) <= last for first, last in ranges)


def is_punctuation(c):
    ascii_symbol = 33 <= ord(c) <= 47 or 58 <= ord(c) <= 64 or 91 <= ord(c) <= 96 or 123 <= ord(c) <= 126
    return ascii_symbol or unicodedata.category(c).startswith("P")


def words(text):
    cleaned = []
    for c in text:
        if c in "\t\n\r" or unicodedata.category(c) == "Zs":
            cleaned.append(" ")
        elif ord(c) in (0, 0xFFFD) or unicodedata.category(c).startswith("C"):
            continue
        else:
            cleaned.append(f" {c} " if is_chinese(c) else c)
    text = unicodedata.normalize("NFD", "".join(cleaned).lower())
    text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if is_punctuation(c) else c for c in text).split()


def tokenize(text, vocabulary):
    ids = []
    for word in words(text):
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in vocabulary:
                    break
            else:
                pieces = None
            if pieces is None or len(word) > 100:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[piece])
            start = end
        ids += pieces
    return [vocabulary["[CLS]"], *ids[: MAX_TOKENS - 2], vocabulary["[SEP]"]]


def encode(ids, tensors):
    """One sentence: embedding [HIDDEN] and entropies [LAYERS][HEADS], in the type of the tensors."""

    def linear(x, name):
        return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x, name):
        return torch.nn.functional.layer_norm(
            x, (HIDDEN,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-12
        )

    def heads(x):
        return x.view(len(ids), HEADS, HIDDEN // HEADS).transpose(0, 1)

    x = tensors["embeddings.word_embeddings.weight"][torch.tensor(ids)]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    entropies = []
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = (heads(linear(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
        p = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(HIDDEN // HEADS), dim=-1)
        entropies.append(torch.special.entr(p).sum(-1).mean(-1))
        context = (p @ v).transpose(0, 1).reshape(len(ids), HIDDEN)
        x = norm(x + linear(context, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = torch.nn.functional.gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return torch.nn.functional.normalize(x.mean(0), dim=0), torch.stack(entropies)


def rounded(tensor):
    if tensor.dim() > 0:
        return [rounded(row) for row in tensor]
    return float(f"{tensor.item():.9g}")


def main(model, output):
    tensors = read_safetensors(model / "model.safetensors")
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    sentences = []
    for text in SENTENCES:
        ids = tokenize(text, vocabulary)
        embedding, entropy = encode(ids, exact)
        single, single_entropy = encode(ids, tensors)
        off = (single - embedding).abs().max(), (single_entropy - entropy).abs().max()
        print(f"{len(ids):3} tokens, float32 differs by {off[0]:.1e}, entropy by {off[1]:.1e}")
        sentences.append(
            {"text": text, "tokens": len(ids), "embedding": rounded(embedding), "entropy": rounded(entropy)}
        )
    lines = ",\n".join(json.dumps(sentence, ensure_ascii=True) for sentence in sentences)
    output.write_text('{"sentences": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
