"""The least that a case can take: its multiply-adds, or reading its keys and values, at the machine's peak."""
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cases import multiplies_in_bf16

LEVELS = ["portable", "avx2", "avx512"]
ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass
class Peaks:
    """By number of threads, in operations (a multiply-add is two) and bytes a second."""
    fma: dict
    bf16_dot: dict
    memory: dict
    # Bytes of keys and values that may stay there from call to call.
    cache: int


def read(path):
    """What `cargo bench --bench roofline -- --json` found, on the machine that this runs on, which the results should be of."""
    lines = [json.loads(text) for text in Path(path).read_text().splitlines() if text.startswith("{")]
    # Multiply-adds are as fast as the level's vectors are wide.
    best = max((level(line["id"]) for line in lines), key=LEVELS.index, default=None)
    measured = defaultdict(list)
    for line in lines:
        if level(line["id"]) == best:
            measured[kind(line["id"]), line["threads"]].append(line["limit"] * 1e9)
    peaks = defaultdict(dict)
    for (name, threads), limits in measured.items():
        peaks[name][threads] = median(limits)
    complete = {threads for _, threads in measured}
    for name in ("fma", "bf16_dot", "memory"):
        if set(peaks[name]) != complete:
            sys.exit(f"{path}: no {name} limit with each of {sorted(complete)} threads; run all of the bench")
    return Peaks(peaks["fma"], peaks["bf16_dot"], peaks["memory"], largest_cache())


def level(id):
    group, *rest = id.split("/")
    return rest[0] if group == "projection" else rest[1]


def kind(id):
    """What limits a case of the bench."""
    group, entry = id.split("/")[:2]
    if group == "prefill":
        return "bf16_dot" if multiplies_in_bf16(entry.replace("_", "-")) else "fma"
    return "memory" if group == "decode" else "other"


def largest_cache():
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(size.read_text().strip().rstrip("K")) * 1024 for size in sizes), default=0)


def least_seconds(line, variant, peaks):
    """The least that a case can take, of a variant's kind of products: it has no softmax, and what fits the largest cache
    costs nothing to read. Peaks drift, so it is known to some percent only."""
    batch, q_heads, kv_heads, q_len, kv_len, dim, causal = line["shape"]
    pairs = q_len * (q_len + 1) // 2 if causal and q_len == kv_len else q_len * kv_len
    products = 2 * 2 * batch * q_heads * pairs * dim
    stored = 2 * batch * kv_heads * kv_len * dim * ELEMENT_BYTES[line["dtype"]]
    peak = peaks.bf16_dot if multiplies_in_bf16(variant) else peaks.fma
    reading = max(0, stored - peaks.cache)
    return max(products / peak[line["threads"]], reading / peaks.memory[line["threads"]])
