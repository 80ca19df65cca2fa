"""Times the example `minilm`'s encoder, all-MiniLM-L6-v2, beside onnxruntime and PyTorch on the same weights.

    cargo run --release --example minilm -- "fetches the model on first use"
    python benches/peers/minilm.py

A round is: ours, a peer, ours, the next peer. A ratio is a peer's time over ours of the turn before it; what is printed
are medians over the rounds. Every turn's embeddings are compared with ours. Not timed: tokenizing, reading, building.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from minilm_model import CALLS, NAME, Peer, word_ids
from peers import ROOT
from process import Worker

CASES = ["1x14", "1x128", "1x256", "8x128"]
TOLERANCE = 1e-4
# A peer's threads may spin for a moment after a call; the next one should not pay for that.
PAUSE = 0.05


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, default=ROOT / "target/release/examples/minilm",
                        help="the built example minilm")
    parser.add_argument("--model", type=Path, default=ROOT / "target/models" / NAME,
                        help="the folder of model.safetensors and tokenizer.json")
    parser.add_argument("--case", nargs="+", default=CASES, metavar="SENTENCESxTOKENS")
    parser.add_argument("--peers", default="onnxruntime,torch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=0.5, help="seconds per turn of a peer")
    parser.add_argument("--worker", metavar="PEER", help=argparse.SUPPRESS)
    return parser.parse_args()


class Failed(Exception):
    pass


def ours(args, case):
    """Seconds and embeddings of a turn, in a process of its own."""
    command = [str(args.ours), "--bench", "--json", "--model", str(args.model), "--threads", str(args.threads), case]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{args.ours}: {done.stderr.strip()}")
    timing = json.loads(done.stdout)["cases"][0]
    return timing["median_seconds"], np.array(timing["embeddings"])


def turn(worker, case, route, secs):
    answer = worker.ask(dict(case=case, route=route, secs=secs))
    if "error" in answer:
        raise Failed(answer["error"])
    time.sleep(PAUSE)
    return statistics.median(answer["times"]), np.array(answer["embeddings"])


def measure(args, case, workers):
    """Times of ours; by peer its route, times, ratios and largest difference from ours."""
    our_times, found = [], {}
    routes = {name: worker.ask(dict(routes=True)) for name, worker in workers.items()}
    for name, answer in routes.items():
        if "error" in answer:
            print(f"{case}: {name} left out: {answer['error']}", file=sys.stderr)
            continue
        # The fastest of its routes goes on.
        times = {}
        for route in answer["routes"]:
            try:
                times[route] = turn(workers[name], case, route, args.secs)[0]
            except Failed as error:
                print(f"{case}: {name} by {route} left out: {error}", file=sys.stderr)
        if not times:
            continue
        found[name] = dict(route=min(times, key=times.get), times=[], ratios=[], difference=0.0)
    for _ in range(args.rounds):
        for name, line in found.items():
            seconds, expected = ours(args, case)
            our_times.append(seconds)
            peer_seconds, got = turn(workers[name], case, line["route"], args.secs)
            line["times"].append(peer_seconds)
            line["ratios"].append(peer_seconds / seconds)
            line["difference"] = max(line["difference"], float(np.abs(got - expected).max()))
        if not found:
            our_times.append(ours(args, case)[0])
    return our_times, found


def main():
    args = arguments()
    if args.worker:
        return serve(args)
    for path in [args.ours, args.model / "model.safetensors"]:
        if not path.exists():
            sys.exit(f"{path} is not there; see the head of this file")
    own = [sys.executable, __file__, "--model", str(args.model), "--worker"]
    workers = {name: Worker(own + [name], args.threads) for name in args.peers.split(",") if name}
    print(f"| sentences x tokens, {args.threads} threads | ours, ms |", *(f"{name}, ms | ratio |" for name in workers))
    print("|---|---|" + "---|---|" * len(workers))
    wrong = []
    for case in args.case:
        our_times, found = measure(args, case, workers)
        cells = [case, f"{statistics.median(our_times) * 1e3:.2f}"]
        for name in workers:
            if name not in found:
                cells += ["", ""]
                continue
            line = found[name]
            cells += [f"{statistics.median(line['times']) * 1e3:.2f} ({line['route']})",
                      f"{statistics.median(line['ratios']):.2f}"]
            if not line["difference"] <= TOLERANCE:
                wrong.append(f"{case}: {name} differs by {line['difference']:.1e}")
        print("| " + " | ".join(cells) + " |", flush=True)
    for worker in workers.values():
        worker.close()
    if wrong:
        sys.exit("embeddings differ:\n" + "\n".join(wrong))


def serve(args):
    """A peer's side: a question and an answer a line."""
    peer = None
    for line in sys.stdin:
        try:
            question = json.loads(line)
            peer = peer or Peer(args.worker, args.model)
            answer = dict(routes=peer.routes) if "routes" in question else answer_case(peer, question)
        except Exception as error:
            answer = dict(error=f"{type(error).__name__}: {error}"[:200])
        print("@" + json.dumps(answer), flush=True)


def answer_case(peer, question):
    sentences, tokens = map(int, question["case"].split("x"))
    run = peer.prepare(question["route"], word_ids(sentences, tokens))
    embeddings = run()
    run()
    times, start = [], time.perf_counter()
    while len(times) < CALLS or time.perf_counter() - start < question["secs"]:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return dict(times=times, embeddings=np.asarray(embeddings).tolist())


if __name__ == "__main__":
    main()
