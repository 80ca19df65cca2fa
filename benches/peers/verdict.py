"""The bars: by how much ours is to be ahead of the best peer of each case."""
from dataclasses import dataclass
from typing import Callable

from limits import least_seconds
from results import best_peer, ratio_text

AHEAD = 1.0
# Equal, to within what a shared machine repeats.
NOT_BEHIND = 0.97
# Of a limit that knows of no softmax: who is here can hardly be passed.
NEAR = 0.9


@dataclass
class Bar:
    name: str
    variant: str
    least: float
    holds_for: Callable  # of (group, dtype, queries, keys, dimension, group size, causal, threads)


def prefill(low, high, causal, dtypes=("f32",)):
    return lambda c: (c.group == "prefill" and low <= c.q_len <= high and c.causal == causal and c.dtype in dtypes)


def decode(group, dtypes):
    return lambda c: c.group == group and c.dtype in dtypes


def several(c):
    return c.group == "few" and c.group_size * c.q_len >= 8


HALVES = ("f16", "bf16")
ANY = 10 ** 9
BARS = [
    Bar("prefill f32, N >= 1024, full", "rows", 1.15, prefill(1024, ANY, False)),
    Bar("prefill f32, N >= 1024, causal", "rows", 1.7, prefill(1024, ANY, True)),
    Bar("prefill f32, N = 512, full", "rows", 1.1, prefill(512, 512, False)),
    Bar("prefill f32, N = 512, causal", "rows", 1.4, prefill(512, 512, True)),
    Bar("prefill f32, N = 128, D = 32, 1 thread", "rows", AHEAD,
        lambda c: prefill(128, 128, c.causal)(c) and c.dim == 32 and c.threads == 1),
    Bar("prefill f32, N = 128, D = 32, 2 threads", "rows", NOT_BEHIND,
        lambda c: prefill(128, 128, c.causal)(c) and c.dim == 32 and c.threads == 2),
    Bar("bf16-dot tier, N >= 512, full", "bf16-dot", 1.3, prefill(512, ANY, False, HALVES)),
    Bar("bf16-dot tier, N >= 512, causal", "bf16-dot", 2.5, prefill(512, ANY, True, HALVES)),
    Bar("f16 storage, f32 math, N >= 2048", "rows", 1.4,
        lambda c: prefill(2048, ANY, c.causal, ("f16",))(c)),
    Bar("f16 storage, f32 math, N = 512", "rows", 1.2,
        lambda c: prefill(512, 512, c.causal, ("f16",))(c)),
    Bar("decode f32, panels", "panels", 1.2, decode("decode", ("f32",))),
    Bar("decode f16 and bf16, panels", "panels", AHEAD, decode("decode", HALVES)),
    Bar("decode, rows", "rows", NOT_BEHIND, decode("decode", ("f32",) + HALVES)),
    Bar("GQA-4 decode f32, panels", "panels", 1.7, decode("gqa-4", ("f32",))),
    Bar("GQA-4 decode f16 and bf16, panels", "panels", 3.0, decode("gqa-4", HALVES)),
    Bar("the same in bf16, bf16-dot tier", "bf16-dot-panels", 3.0, decode("gqa-4", ("bf16",))),
    Bar("few queries, group * queries >= 8, panels", "panels", 3.0, several),
    Bar("the same, bf16-dot tier", "bf16-dot-panels", 3.0, several),
    Bar("small calls, queries * keys <= 1024, rows", "rows", 3.0,
        lambda c: c.group in ("small", "prefill") and c.q_len * c.kv_len <= 1024),
]


@dataclass
class Facts:
    group: str
    dtype: str
    q_len: int
    kv_len: int
    dim: int
    group_size: int
    causal: bool
    threads: int


def facts(line):
    _, q_heads, kv_heads, q_len, kv_len, dim, causal = line["shape"]
    return Facts(line["group"], line["dtype"], q_len, kv_len, dim, q_heads // kv_heads, bool(causal), line["threads"])


def judge(bar, lines):
    """(ratio, peer, line) of all cases of the bar, lowest first."""
    found = []
    for line in lines:
        if bar.holds_for(facts(line)):
            best = best_peer(line, bar.variant)
            if best:
                found.append((best[1], best[0], line))
    return sorted(found, key=lambda entry: entry[0])


def share_asked(bar, ratio, line, peaks):
    """The shares of the machine's limit that a bar asks for in a case, and that ours reaches."""
    reached = least_seconds(line, bar.variant, peaks) / line["ours"][bar.variant]["seconds"]
    return bar.least / ratio * reached, reached


def verdict(lines, peaks=None):
    """Lines of text; with `peaks`, how much of the machine's limit each case that is missed was to take."""
    text = []
    for bar in BARS:
        found = judge(bar, lines)
        missed = [entry for entry in found if entry[0] < bar.least]
        word = "no data" if not found else "MISS" if missed else "pass"
        lowest = f"lowest {ratio_text(found[0][0])} of {len(found)}" if found else ""
        text.append(f"{word:<8}{bar.name:<46}>= {bar.least:<6}{lowest}")
        for ratio, peer, line in missed:
            share = ""
            if peaks:
                asked, reached = share_asked(bar, ratio, line, peaks)
                share = f": asks for {asked:.0%} of the limit, {reached:.0%} reached"
            text.append(f"            {ratio_text(ratio)} {line['case']}, {line['threads']} threads, {peer}{share}")
        if missed and peaks:
            shares = [share_asked(bar, ratio, line, peaks)[0] for ratio, _, line in missed]
            near, beyond = (sum(share > least for share in shares) for least in (NEAR, 1.0))
            text.append(
                f"        of {len(missed)} missed {near} ask for more than {NEAR:.0%} of the limit, {beyond} for more than it")
    return text
