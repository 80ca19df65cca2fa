"""The results as markdown."""
from collections import defaultdict

from cases import GROUPS, multiplies_in_bf16
from memory import HEADS, DIM, MIB, text
from results import best_peer, ratio_text, seconds_text, wrong_results_of_ours
from verdict import verdict


def markdown(run):
    lines = run["cases"]
    parts = [heading(run)] + [how_to_read(run)] * bool(lines)
    for group, title in GROUPS.items():
        for dtype in ("f32", "f16", "bf16"):
            chosen = [line for line in lines if (line["group"], line["dtype"]) == (group, dtype)]
            if chosen:
                parts.append(f"## {title}, {dtype}\n\n" + table_of(chosen, run["empty"] if group == "small" else {}))
    if run["memory"]:
        parts.append(memory_table(run["memory"]))
    if lines:
        parts += [errors(lines), left_out(run), "## Bars\n\n```text\n" + "\n".join(verdict(lines)) + "\n```"]
    return "\n\n".join(parts) + "\n"


def heading(run):
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        f"# Attention on CPUs, {run['date']}\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, {' '.join(machine['features'])}.\n"
        f"{versions}.")


def how_to_read(run):
    return (
        f"Medians of {run['rounds']} rounds of {run['secs']} s, ours and each peer in turn. "
        "`b` batch, `h` query heads, `kv` KV heads, `q` queries, `k` keys, `d` head dimension. Ratios are the best peer's "
        "time over ours, medians over rounds of neighbouring turns: above 1 ours is faster; **bold** is a loss. Ours from "
        "borrowed `rows`, with keys held in `panels`, and in the opt-in `bf16-dot` tier, from rows and from panels. A peer's time with `*` was "
        "computed in bf16 though f16 is stored: with f16 it is left out of the ratios of `rows` and `panels` where there "
        "is one of `bf16-dot`. " + how_ours_is_run(run) + "`°` is the figure of a single round, of a peer far behind the fastest one.")


def how_ours_is_run(run):
    if "ours" not in run:
        return ""
    settings = ", ".join(f"`{name}={value}`" for name, value in run["ours"].items())
    return f"Ours is run with {settings}. "


def table(header, rows):
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule] + rows)


def table_of(lines, empty):
    variants = list(lines[0]["ours"])
    peers = [peer for peer in lines[0]["peers"] if any("seconds" in line["peers"].get(peer, {}) for line in lines)]
    header = ["case", "threads"] + variants + ["best peer"] + [f"/ {variant}" for variant in variants] + peers
    rows = []
    for line in sorted(lines, key=lambda line: (cases_in_order(lines).index(line["case"]), line["threads"])):
        cells = [line["label"], str(line["threads"])]
        cells += [seconds_text(line["ours"][variant]["seconds"]) for variant in variants]
        cells += [best_name(line, variants)] + [ratio_cell(line, variant) for variant in variants]
        rows.append(cells + [peer_cell(line["peers"].get(peer, {})) for peer in peers])
    for threads, calls in empty.items():
        blank = [""] * (2 * len(variants) + 1)
        own = [seconds_text(calls[peer]) if peer in calls else "" for peer in peers]
        rows.append(["an empty call through the same API", str(threads)] + blank + own)
    return table(header, rows)


def cases_in_order(lines):
    return list(dict.fromkeys(line["case"] for line in lines))


def best_name(line, variants):
    names = [best_peer(line, variant) for variant in variants]
    return ", ".join(dict.fromkeys(best[0] for best in names if best)) or "none"


def ratio_cell(line, variant):
    best = best_peer(line, variant)
    if not best:
        return ""
    return ratio_text(best[1]) if best[1] >= 1 else f"**{ratio_text(best[1])}**"


def peer_cell(peer):
    if "seconds" not in peer:
        return ""
    marks = ("*" if peer["substitute"] else "") + ("°" if peer["rounds"] == 1 else "")
    return seconds_text(peer["seconds"]) + marks


def memory_table(lines):
    by_tokens = defaultdict(list)
    for line in lines:
        by_tokens[line["tokens"]].append(line)
    rows = [[f"{line['library']}, {line['route']}", str(tokens), text(line), f"{line['operands'] / MIB:.0f} MiB",
             seconds_text(line["seconds"]) if "seconds" in line else ""]
            for tokens, chosen in by_tokens.items()
            for line in sorted(chosen, key=lambda line: line.get("grown", float("inf")))]
    return (
        f"## Memory: growth of the resident set in one full f32 prefill, {HEADS} heads, D = {DIM}\n\n"
        "From after a short call to the peak of the long one (`VmHWM`), each in a fresh process. It includes the operands "
        "and the output (their size is given) and reading them from a file. What asked for more than nine tenths of the "
        "memory there was ends with an error.\n\n"
        + table(["library", "tokens", "growth", "operands", "time of the call"], rows))


def errors(lines):
    """Largest per library and dtype."""
    found = defaultdict(lambda: defaultdict(float))
    for line in lines:
        for variant, ours in line["ours"].items():
            key = f"ours, {'bf16-dot' if multiplies_in_bf16(variant) else 'exact tier'}"
            found[key][line["dtype"]] = max(found[key][line["dtype"]], ours["max_error"])
        for name, peer in line["peers"].items():
            if "seconds" in peer:
                found[name][line["dtype"]] = max(found[name][line["dtype"]], peer["max_error"])
    rows = [[name] + [f"{by_dtype[dtype]:.1e}" if dtype in by_dtype else "" for dtype in ("f32", "f16", "bf16")]
            for name, by_dtype in found.items()]
    wrong = wrong_results_of_ours(lines)
    note = "Every answer was checked; one beyond its tolerance is not counted as a result." if not wrong else (
        "**Ours was wrong:** " + "; ".join(wrong))
    return f"## Largest error against float64\n\n{note}\n\n" + table(["library", "f32", "f16", "bf16"], rows)


def left_out(run):
    text = [f"- {name}: {reason}" for name, reason in run["skipped"].items()]
    reasons = defaultdict(set)
    for line in run["cases"]:
        for name, peer in line["peers"].items():
            for failure in peer.get("failures", []):
                reasons[f"{name}, {failure}"].add(line["case"])
    for reason, cases in sorted(reasons.items()):
        shown = ", ".join(sorted(cases)[:3])
        text.append(f"- {reason} ({shown}{f' and {len(cases) - 3} more' if len(cases) > 3 else ''})")
    return "## Left out\n\n" + ("\n".join(text) or "Nothing.")
