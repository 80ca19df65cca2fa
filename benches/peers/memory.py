"""How much the resident set grows in one long prefill, in a fresh process each."""
import re
import statistics
from pathlib import Path

import onnx_graph
import reference
from cases import TOLERANCE, Case
from peers import our_workers
from process import Worker

LENGTHS = [8192, 32768]
HEADS, DIM = 2, 64
MIB = 1 << 20


def case_of(tokens):
    return Case("memory", "f32", 1, HEADS, HEADS, tokens, tokens, DIM, False)


def available():
    text = Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)) * 1024


def measure(args, commands, introductions, threads, folder):
    """Lines for the report: one per length, library and route."""
    lines = []
    for tokens in LENGTHS:
        case = case_of(tokens)
        write(case, folder / "data.f32")
        write(case_of(64), folder / "warm.f32")
        expected = reference.attention(*reference.operands(case), case.causal)
        # Scores of all pairs may ask for more than there is: they should fail alone.
        limit = available() * 9 // 10
        ours = our_workers(args.ours, threads, memory_limit=limit)
        workers = [("ours", variant, ours[variant]) for variant in ("rows", "panels")]
        for name, introduction in introductions.items():
            workers += [(name, route, Worker(commands[name], threads, memory_limit=limit))
                        for route in introduction["routes"]]
        for name, route, worker in workers:
            line = grow(worker, route, case, threads, folder, expected)
            line |= {"library": name, "route": route, "tokens": tokens, "limit": limit, "operands": operand_bytes(case)}
            lines.append(line)
            worker.close()
            print(f"{tokens:>6} {name} {route}: {text(line)}", flush=True)
    return lines


def write(case, path):
    with open(path, "wb") as file:
        for x in reference.operands(case):
            x.tofile(file)


def grow(worker, route, case, threads, folder, expected):
    """A short call first: starting a runtime is no part of a call's memory."""
    warm = ask(worker, route, case_of(64), threads, folder, "warm.f32")
    if "times" not in warm:
        return {"failure": warm["error"]}
    worker.reset_peak()
    before = worker.peak()
    answer = ask(worker, route, case, threads, folder, "data.f32")
    if "times" not in answer:
        return {"failure": answer["error"]}
    error = reference.error_of(folder / "out.f32", expected)
    if error > TOLERANCE["f32"]:
        return {"failure": f"wrong: off by {error:.2g}"}
    return {"grown": worker.peak() - before, "seconds": statistics.median(answer["times"]), "max_error": error}


def ask(worker, route, case, threads, folder, data):
    model = folder / "model.onnx"
    model.write_bytes(onnx_graph.attention(case.shape, case.dtype))
    return worker.ask(dict(
        case=case.shape, dtype=case.dtype, route=route, secs=0.0, threads=threads,
        data=str(folder / data), out=str(folder / "out.f32"), model=str(model)))


def operand_bytes(case):
    """q, k, v and the output."""
    return 4 * 4 * case.batch * case.q_heads * case.kv_len * case.dim


def text(line):
    return f"{line['grown'] / MIB:.0f} MiB" if "grown" in line else line["failure"]
