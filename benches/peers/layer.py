"""Times whole attention layers, `norm(x + attention(x))` with all four projections, beside other libraries' layers.

    cargo build --release --example bench_worker
    python benches/peers/layer.py --python keras=PATH

A round is: ours, a peer, ours, the next peer. A ratio is a peer's time over ours of the turn before it; what is printed
are medians over the rounds. Every answer is compared with NumPy in float64.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from layer_peers import Layer, Peer
from peers import ROOT
from process import Worker

# batch, queries, tokens of the memory (the queries' own where they are as many), dim, heads, size of a head
CASES = [
    (1, 1, 10, 128, 4, 32), (1, 1, 50, 128, 4, 32), (1, 1, 50, 384, 12, 32), (1, 16, 16, 384, 12, 32),
    (1, 128, 128, 384, 12, 32), (8, 128, 128, 384, 12, 32), (1, 512, 512, 768, 12, 64), (1, 2048, 2048, 768, 12, 64),
]
OURS = {"tokens": {}, "projected once": {"LUCID_PANELS": "1"}}
TOLERANCE = 1e-5
# A peer's threads may spin for a moment after a call; the next one should not pay for that.
PAUSE = 0.05


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, default=ROOT / "target/release/examples/bench_worker",
                        help="the built example bench_worker")
    parser.add_argument("--case", nargs="+", type=lambda text: tuple(map(int, text.split(","))), default=CASES,
                        metavar="BATCH,QUERIES,TOKENS,DIM,HEADS,KEY_DIM")
    parser.add_argument("--peers", default="onnxruntime,torch,keras")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH",
                        help="the interpreter that has this peer, if it is not the one that runs this script")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=0.2, help="seconds per turn")
    parser.add_argument("--worker", metavar="PEER", help=argparse.SUPPRESS)
    return parser.parse_args()


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        pythons = dict(entry.split("=", 1) for entry in args.python)
        own = lambda name: [pythons.get(name, sys.executable), __file__, "--worker", name]
        self.peers = {name: Worker(own(name), args.threads) for name in args.peers.split(",") if name}
        self.ours = {name: Worker([str(args.ours)], args.threads, env) for name, env in OURS.items()}

    def question(self, case):
        own = dict(dtype="f32", threads=self.args.threads, data=str(self.folder / "data"), out=str(self.folder / "out"))
        return dict(case=case, secs=self.args.secs, **own)

    def turn(self, worker, question):
        """Times of a turn, and whether its answer is right."""
        answer = worker.ask(question)
        if "error" in answer and answer["error"]:
            raise RuntimeError(answer["error"])
        got = np.fromfile(question["out"], "<f4")
        error = np.abs(got - self.expected.ravel()).max() if got.size == self.expected.size else np.inf
        if not error <= TOLERANCE:
            raise RuntimeError(f"off by {error:.1e}")
        return answer["times"]

    def turn_of_ours(self, case, times):
        """Medians by how keys and values come."""
        for name, worker in self.ours.items():
            try:
                times[name] += [self.turn(worker, self.question(case))]
            except RuntimeError as error:
                sys.exit(f"{case}, ours, {name}: {error}")
        return {name: statistics.median(turns[-1]) for name, turns in times.items()}

    def run(self, case):
        """Cells of the table."""
        layer = Layer(case)
        layer.write(self.folder / "data")
        self.expected = layer.expected()
        ours, cells = {name: [] for name in OURS}, {}
        for name, worker in self.peers.items():
            try:
                cells[name] = self.beside(case, worker, ours)
            except RuntimeError as error:
                cells[name] = [f"left out: {error}", ""]
        if not any(ours.values()):
            self.turn_of_ours(case, ours)
        flat = {name: sorted(time for turn in turns for time in turn) for name, turns in ours.items()}
        medians = [f"{statistics.median(times) * 1e6:.1f}" for times in flat.values()]
        tail = statistics.median(np.quantile(turn, 0.99) / np.median(turn) for turn in ours["tokens"])
        return [*medians, f"{tail:.2f}"] + [cell for cells in cells.values() for cell in cells]

    def beside(self, case, worker, ours):
        question = self.question(case)
        answer = worker.ask(dict(routes=True))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        first = {}
        for route in answer["routes"]:
            try:
                first[route] = statistics.median(self.turn(worker, question | dict(route=route)))
            except RuntimeError as error:
                print(f"{case}: {route} left out: {error}", file=sys.stderr)
        if not first:
            raise RuntimeError("no route")
        route, times, ratios = min(first, key=first.get), [], []
        for _ in range(self.args.rounds):
            own = self.turn_of_ours(case, ours)["tokens"]
            times.append(statistics.median(self.turn(worker, question | dict(route=route))))
            ratios.append(times[-1] / own)
            time.sleep(PAUSE)
        return [f"{statistics.median(times) * 1e6:.1f} ({route})", f"{statistics.median(ratios):.2f}"]

    def close(self):
        for worker in [*self.peers.values(), *self.ours.values()]:
            worker.close()


def main():
    args = arguments()
    if args.worker:
        return serve(args.worker)
    if not args.ours.exists():
        sys.exit(f"{args.ours} is not there; build it with: cargo build --release --example bench_worker")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        head = [f"layer, {args.threads} thread(s)", *(f"ours, {name}, us" for name in OURS), "p99 / median"]
        head += [cell for name in bench.peers for cell in (f"{name}, us", "ratio")]
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
        for case in args.case:
            print("| " + " | ".join([" ".join(map(str, case))] + bench.run(case)) + " |", flush=True)
        bench.close()


def serve(name):
    """A peer's side: a question and an answer a line."""
    peer = None
    for line in sys.stdin:
        try:
            question = json.loads(line)
            peer = peer or Peer(name)
            answer = dict(routes=peer.routes) if "routes" in question else answer_case(peer, question)
        except Exception as error:
            answer = dict(error=f"{type(error).__name__}: {error}"[:200])
        print("@" + json.dumps(answer), flush=True)


def answer_case(peer, question):
    run = peer.prepare(question["route"], tuple(question["case"]))
    np.ascontiguousarray(run(), "<f4").tofile(question["out"])
    times, start = [], time.perf_counter()
    while len(times) < 2 or time.perf_counter() - start < question["secs"]:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return dict(times=times)


if __name__ == "__main__":
    main()
