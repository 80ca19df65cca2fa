"""Times this crate's attention beside that of other CPU libraries. See README.md, or --help."""
import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path

import limits
import machine
import memory
import peers
import plot
import report
from cases import AWAKE, multiplies_in_bf16, select
from measure import Bench
from results import best_peer, ratio_text, seconds_text, wrong_results_of_ours
from verdict import verdict


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    peers.add_arguments(parser)
    parser.add_argument("--case", nargs="+", default=[], metavar="SUBSTRING", help="cases with one of these in their id")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=0.2, help="seconds per turn")
    parser.add_argument("--patience", type=float, default=20.0,
                        help="leave out a peer where its last case foretells a call of more seconds")
    parser.add_argument("--no-fold", dest="fold", action="store_false",
                        help="do not also ask peers with the query heads of a KV head folded into more queries")
    parser.add_argument("--quick", action="store_true", help="few cases, two short rounds: does everything run?")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--bars", action="store_true", help="print the verdict against the bars")
    parser.add_argument("--roofline", type=Path, metavar="JSON",
                        help="with --bars: how much of the limits that the bench roofline found they ask for")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON",
                        help="measure nothing: write the report of these results again")
    parser.add_argument("--out", type=Path, default=peers.ROOT / "target/peers", help="folder for the results")
    args = parser.parse_args()
    if args.roofline and not args.bars:
        parser.error("--roofline goes with --bars")
    if args.quick:
        args.rounds, args.secs = min(args.rounds, 2), min(args.secs, 0.05)
    return args


def main():
    args = arguments()
    if args.list:
        print("\n".join(case.id for case in select(args.case, args.quick)))
        return
    run = json.loads(args.source.read_text()) if args.source else measure(args)
    write(run, args.out)
    if args.bars:
        print("\n".join(verdict(run["cases"], args.roofline and limits.read(args.roofline))))
    wrong = wrong_results_of_ours(run["cases"])
    if wrong:
        sys.exit("ours was wrong:\n" + "\n".join(wrong))


def measure(args):
    threads = [int(count) for count in args.threads.split(",")]
    commands = peers.commands(args)
    _, introductions, skipped = found = peers.find(commands, threads[0])
    announce(introductions, skipped)
    run = {
        "date": datetime.date.today().isoformat(), "machine": machine.describe(),
        "versions": machine.versions(introductions), "rounds": args.rounds, "secs": args.secs,
        "ours": AWAKE,
        "skipped": skipped, "empty": {}, "cases": [], "memory": [],
    }
    close(found[0])
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            run["memory"] = memory.measure(args, commands, introductions, max(threads), Path(folder))
        else:
            for count in threads:
                measure_threads(args, commands, count, Path(folder), run)
    return run


def measure_threads(args, commands, threads, folder, run):
    """All cases with one number of threads."""
    workers, introductions, _ = peers.find(commands, threads)
    ours = peers.our_workers(args.ours, threads)
    if "avx512_bf16" not in run["machine"]["features"]:
        ours = {variant: worker for variant, worker in ours.items() if not multiplies_in_bf16(variant)}
        run["skipped"]["ours, bf16-dot"] = "this CPU has no AVX512-BF16"
    routes = {name: answer["routes"] for name, answer in introductions.items()}
    bench = Bench(ours, workers, routes, threads, folder, args)
    cases = select(args.case, args.quick)
    if any(case.group == "small" for case in cases):
        run["empty"][str(threads)] = bench.empty_calls()
    for case in cases:
        line = bench.run(case)
        run["cases"].append(line)
        save(run, args.out)
        print(summary(line), flush=True)
    close(workers)
    close(ours)


def close(workers):
    for worker in workers.values():
        worker.close()


def announce(introductions, skipped):
    for name, answer in introductions.items():
        print(f"{name} {answer['version']}: {', '.join(answer['routes'])}")
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}")


def summary(line):
    ours = ", ".join(f"{name} {seconds_text(own['seconds'])}" for name, own in line["ours"].items())
    best = {variant: best_peer(line, variant) for variant in line["ours"]}
    ratios = ", ".join(f"{variant} {ratio_text(b[1])} {b[0]}" for variant, b in best.items() if b) or "no peer"
    return f"{line['case']} t{line['threads']}: {ours}; {ratios}"


def stem(run, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder / (run["date"] + ("-memory" if run["memory"] else ""))


def save(run, folder):
    """After every case: a run takes long, and `--from` can make the report of half of one."""
    stem(run, folder).with_suffix(".json").write_text(json.dumps(run, indent=1))


def write(run, folder):
    save(run, folder)
    path = stem(run, folder)
    path.with_suffix(".md").write_text(report.markdown(run))
    if run["cases"]:
        path.with_suffix(".svg").write_text(plot.svg(run))
    print(f"written: {path}.json, .md" + (", .svg" if run["cases"] else ""))


if __name__ == "__main__":
    main()
