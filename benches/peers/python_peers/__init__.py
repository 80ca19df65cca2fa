"""One module per Python library. Each has

    version() -> str
    ROUTES     {name: function of (case, q, k, v) that returns a Call, or raises Unsupported}
    empty()    -> Call of the least there is through the same API

Operands come as f32 arrays `[batch, heads, tokens, dim]` whose values the dtype holds exactly.
"""
import os
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

THREADS = int(os.environ["OMP_NUM_THREADS"])
NUMPY = {"f32": np.float32, "f16": np.float16}


class Unsupported(Exception):
    pass


@dataclass
class Call:
    run: Callable[[], Any]
    # From what `run` returns to an array `[batch, heads, tokens, dim]`.
    back: Callable[[Any], np.ndarray] = lambda out: out
    # What it computes in, where that is not its dtype.
    math: str | None = None
    # Every so many calls `renew` is called, untimed.
    renew: Callable[[], None] | None = None
    renew_every: int = 0


@dataclass
class Case:
    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    dim: int
    causal: bool
    dtype: str

    @property
    def group(self):
        return self.q_heads // self.kv_heads


def token_major(x):
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3))


def bits_of_bf16(x):
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)


def own_cpus():
    """For libraries whose pools have no setting that holds: as many CPUs as threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-THREADS:])
