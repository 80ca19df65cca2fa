"""Who takes part, and as which command."""
import os
import sys
from pathlib import Path

from cases import AWAKE, VARIANTS
from process import Worker

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = ["torch", "onnxruntime", "openvino", "jax", "tensorflow"]
RUST = ["candle", "rten"]
ALL = PYTHON + ["ggml"] + RUST


def add_arguments(parser):
    parser.add_argument("--ours", type=Path, default=ROOT / "target/release/examples/bench_worker",
                        help="the built example bench_worker")
    parser.add_argument("--peers", default=",".join(ALL), help="names, of " + ",".join(ALL))
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH",
                        help="the interpreter that has this peer, if it is not the one that runs this script")
    parser.add_argument("--ggml", default=os.environ.get("PEERS_GGML"), metavar="PATH",
                        help="the built ggml_worker.cpp (or PEERS_GGML)")
    default = HERE / "rust/target/release/lucid-peers"
    parser.add_argument("--rust", default=os.environ.get("PEERS_RUST", default), metavar="PATH",
                        help="the built worker for candle and rten (or PEERS_RUST)")


def commands(args):
    """By name: the command, or the reason why there is none."""
    names = [name for name in args.peers.split(",") if name]
    unknown = set(names) - set(ALL)
    if unknown:
        sys.exit(f"no such peers: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    pythons = dict(entry.split("=", 1) for entry in args.python)
    return {name: command(name, args, pythons) for name in names}


def command(name, args, pythons):
    if name in PYTHON:
        return [pythons.get(name, sys.executable), str(HERE / "python_worker.py"), name]
    if name == "ggml":
        if not args.ggml:
            return "not built: give --ggml PATH (see README.md)"
        return [args.ggml]
    if not Path(args.rust).exists():
        return "not built: cargo build --release in benches/peers/rust, or give --rust PATH"
    return [str(args.rust), name]


def our_workers(path, threads, **options):
    if not path.exists():
        sys.exit(f"{path} is not there; build it with: cargo build --release --example bench_worker")
    return {name: Worker([str(path)], threads, AWAKE | env, **options) for name, env in VARIANTS.items()}


def find(found_commands, threads):
    """Workers by name, with what they said of themselves; and why others are left out."""
    workers, introductions, skipped = {}, {}, {}
    for name, own_command in found_commands.items():
        if isinstance(own_command, str):
            skipped[name] = own_command
            continue
        worker = Worker(own_command, threads)
        answer = worker.ask({"hello": True})
        if "error" in answer:
            skipped[name] = answer["error"]
        else:
            workers[name], introductions[name] = worker, answer
    return workers, introductions, skipped
