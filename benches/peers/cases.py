"""What is compared: one table, and the ways this crate runs each line of it."""
from dataclasses import dataclass

# group, batch, query heads, KV heads, queries, keys, head dimension, masks, dtypes
TABLE = [
    ("prefill", 1, 8, 8, 16, 16, 64, "full causal", "f32"),
    ("prefill", 1, 8, 8, 32, 32, 64, "full causal", "f32"),
    ("prefill", 1, 8, 8, 64, 64, 64, "full causal", "f32"),
    ("prefill", 1, 12, 12, 128, 128, 32, "full causal", "f32 f16 bf16"),
    ("prefill", 8, 12, 12, 128, 128, 32, "full causal", "f32 f16 bf16"),
    ("prefill", 1, 8, 8, 128, 128, 64, "full causal", "f32"),
    ("prefill", 1, 12, 12, 197, 197, 64, "full causal", "f32"),
    ("prefill", 1, 8, 8, 512, 512, 32, "full causal", "f32"),
    ("prefill", 1, 8, 8, 512, 512, 64, "full causal", "f32 f16 bf16"),
    ("prefill", 1, 8, 8, 512, 512, 128, "full causal", "f32"),
    ("prefill", 1, 8, 8, 1024, 1024, 64, "full causal", "f32 f16 bf16"),
    ("prefill", 1, 32, 8, 1024, 1024, 128, "full causal", "f32 bf16"),
    ("prefill", 1, 8, 8, 2048, 2048, 32, "full causal", "f32"),
    ("prefill", 1, 8, 8, 2048, 2048, 64, "full causal", "f32 f16 bf16"),
    ("prefill", 1, 8, 8, 2048, 2048, 128, "full causal", "f32 f16 bf16"),
    ("prefill", 1, 4, 4, 8192, 8192, 64, "full causal", "f32 f16 bf16"),
    ("decode", 1, 32, 32, 1, 1024, 128, "full", "f32 f16 bf16"),
    ("decode", 1, 32, 32, 1, 4096, 128, "full", "f32 f16 bf16"),
    ("decode", 1, 8, 8, 1, 16384, 128, "full", "f32 f16 bf16"),
    ("decode", 1, 32, 32, 1, 32768, 64, "full", "f32 f16 bf16"),
    ("decode", 8, 32, 32, 1, 1024, 64, "full", "f32"),
    ("gqa-4", 1, 32, 8, 1, 4096, 128, "full", "f32 f16 bf16"),
    ("gqa-4", 1, 32, 8, 1, 16384, 128, "full", "f32 f16 bf16"),
    ("gqa-8", 1, 32, 4, 1, 4096, 128, "full", "f32 f16 bf16"),
    ("gqa-8", 1, 32, 4, 1, 32768, 128, "full", "f32 f16 bf16"),
    ("few", 1, 32, 8, 2, 4096, 128, "full", "f32 f16 bf16"),
    ("few", 1, 32, 8, 4, 4096, 128, "full", "f32 f16 bf16"),
    ("few", 1, 32, 8, 8, 4096, 128, "full", "f32 f16 bf16"),
    ("few", 1, 32, 8, 16, 4096, 128, "full", "f32 f16 bf16"),
    ("few", 1, 32, 32, 4, 4096, 128, "full", "f32"),
    ("few", 1, 32, 32, 16, 4096, 128, "full", "f32"),
    ("small", 1, 4, 4, 1, 10, 32, "full", "f32 f16"),
    ("small", 1, 4, 4, 1, 50, 32, "full", "f32"),
    ("small", 1, 12, 12, 1, 64, 64, "full", "f32"),
    ("small", 1, 4, 4, 1, 200, 32, "full", "f32"),
    ("small", 1, 8, 8, 1, 1024, 64, "full", "f32"),
    ("small", 1, 12, 12, 8, 8, 32, "full causal", "f32"),
    ("small", 1, 12, 12, 16, 16, 64, "full causal", "f32"),
    ("small", 1, 12, 12, 32, 32, 32, "full causal", "f32 f16"),
    ("small", 1, 8, 8, 4, 256, 64, "full", "f32"),
]

GROUPS = {
    "prefill": "Prefill: as many queries as keys",
    "decode": "Decode: one query, one query head per KV head",
    "gqa-4": "Decode: one query, 4 query heads per KV head",
    "gqa-8": "Decode: one query, 8 query heads per KV head",
    "few": "Few queries against many keys",
    "small": "Small calls: at most 1024 query-key pairs per head",
}

# How ours is run, as the environment of `bench_worker`. Calls follow one another, so threads are awake for small ones too, as
# the peers' are.
AWAKE = {"LUCID_SPREAD_FROM": "4"}
VARIANTS = {
    "rows": {},
    "panels": {"LUCID_PANELS": "1"},
    "bf16-dot": {"LUCID_BF16_DOT": "1"},
    "bf16-dot-panels": {"LUCID_BF16_DOT": "1", "LUCID_PANELS": "1"},
}


def multiplies_in_bf16(variant):
    return variant.startswith("bf16-dot")


# Largest difference from the float64 reference that still counts as a result. Operands are standard normals, rounded to
# the dtype before anything sees them, so this is what a library's own arithmetic may cost. f16 leaves room for weights
# and sums held in f16 (ggml), bf16 for weights rounded to bf16 and for a store of values near 4.
TOLERANCE = {"f32": 2e-5, "f16": 6e-3, "bf16": 3e-2}


@dataclass(frozen=True)
class Case:
    group: str
    dtype: str
    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    dim: int
    causal: bool

    @property
    def id(self):
        return f"{self.group}/{self.dtype}/{self.label}"

    @property
    def label(self):
        mask = "_causal" if self.causal else ""
        heads = f"h{self.q_heads}_kv{self.kv_heads}"
        return f"b{self.batch}_{heads}_q{self.q_len}_k{self.kv_len}_d{self.dim}{mask}"

    @property
    def shape(self):
        """As the workers' protocol has it."""
        return [self.batch, self.q_heads, self.kv_heads, self.q_len, self.kv_len, self.dim, int(self.causal)]

    @property
    def folded(self):
        """The same call to a library that has no use for groups: the query heads of a KV head become more queries of
        one head, which leaves every byte where it is. `None` where that is no gain or, under a causal mask, wrong."""
        group = self.q_heads // self.kv_heads
        if group == 1 or self.causal:
            return None
        return [self.batch, self.kv_heads, self.kv_heads, self.q_len * group, self.kv_len, self.dim, 0]

    @property
    def operations(self):
        pairs = self.batch * self.q_heads * self.q_len * self.kv_len
        return 4 * pairs * self.dim / (2 if self.causal else 1)

    @property
    def variants(self):
        """The bf16-dot tier is a gain with several queries, or where query heads share keys that are stored in bf16."""
        dot = {"prefill": ["bf16-dot"], "few": ["bf16-dot", "bf16-dot-panels"]} if self.dtype != "f32" else {}
        if self.dtype == "bf16":
            dot |= dict.fromkeys(["gqa-4", "gqa-8"], ["bf16-dot", "bf16-dot-panels"])
        return ["rows", "panels"] + dot.get(self.group, [])


def all_cases():
    return [
        Case(group, dtype, *shape, mask == "causal")
        for group, *shape, masks, dtypes in TABLE
        for dtype in dtypes.split()
        for mask in masks.split()
    ]


def select(parts, quick):
    """The cases one of whose parts is in the id; with `quick` the first of each group, dtype and mask."""
    cases = [case for case in all_cases() if not parts or any(part in case.id for part in parts)]
    if quick:
        first = {}
        for case in cases:
            first.setdefault((case.group, case.dtype, case.causal), case)
        cases = list(first.values())
    return cases
