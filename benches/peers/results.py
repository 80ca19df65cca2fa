"""Questions that the report, the plot and the verdict ask of a line of results."""
from cases import multiplies_in_bf16


def comparable(line, variant):
    """The peers a variant is held to. With f16 storage, what computes in bf16 is held against our tier that does too,
    where we have one."""
    tiered = line["dtype"] == "f16" and any(map(multiplies_in_bf16, line["ours"]))
    found = {}
    for name, peer in line["peers"].items():
        if "seconds" not in peer:
            continue
        if tiered and not multiplies_in_bf16(variant) and peer["math"] == "bf16":
            continue
        found[name] = peer
    return found


def best_peer(line, variant):
    """Name and its time / ours, or `None` without a peer."""
    peers = comparable(line, variant)
    if not peers or variant not in line["ours"]:
        return None
    name = min(peers, key=lambda name: peers[name]["ratios"][variant])
    return name, peers[name]["ratios"][variant]


def wrong_results_of_ours(lines):
    return [
        f"{line['case']} from {variant}, {line['threads']} threads: off by {ours['max_error']:.2g}"
        for line in lines for variant, ours in line["ours"].items() if ours["max_error"] > ours["tolerance"]
    ]


def seconds_text(seconds):
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            break
    value = seconds / size
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def ratio_text(ratio):
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
