"""One case: ours and each peer in turn, round after round, every answer checked."""
import statistics
import sys
import time
from dataclasses import dataclass, field

import onnx_graph
import reference
from cases import TOLERANCE, multiplies_in_bf16

# A peer's threads may spin for a moment after a call; the next one should not pay for that.
PAUSE = 0.05
# After the first round a peer this much slower than the fastest one is left with what it has.
HOPELESS = 4.0


@dataclass
class Form:
    """One way of asking one peer: a route through its API, with the case as it is or folded."""
    peer: str
    route: str
    shape: list
    times: list = field(default_factory=list)
    # For each of our variants, peer's time / our time of the same turn.
    ratios: dict = field(default_factory=dict)
    error: float = 0.0
    math: str | None = None
    failure: str | None = None

    @property
    def seconds(self):
        return statistics.median(self.times)


class Bench:
    def __init__(self, ours, peers, routes, threads, folder, args):
        self.ours, self.peers, self.routes = ours, peers, routes
        self.threads, self.folder, self.args = threads, folder, args
        # Operations per second of a form's last case, to foresee hopelessly long calls.
        self.rates = {}

    def empty_calls(self):
        """Seconds of the least that goes through the API each peer is called by."""
        path = self.folder / "trivial.onnx"
        path.write_bytes(onnx_graph.trivial())
        question = {"empty": {"secs": self.args.secs, "model": str(path)}}
        answers = {name: worker.ask(question) for name, worker in self.peers.items()}
        return {name: statistics.median(a["times"]) for name, a in answers.items() if "times" in a}

    def run(self, case):
        self.hand_over(case)
        ours = {variant: dict(times=[], error=0.0) for variant in case.variants if variant in self.ours}
        forms = self.forms(case)
        live = [form for form in forms if not form.failure]
        for round_number in range(self.args.rounds):
            for form in live:
                turn = self.turn_of_ours(case, ours)
                self.turn_of_peer(case, form, turn)
            if not live:
                self.turn_of_ours(case, ours)
            live = [form for form in live if not form.failure]
            if round_number == 0:
                live = promising(live)
        return self.summary(case, ours, forms)

    def hand_over(self, case):
        operands = reference.operands(case)
        with open(self.folder / "data.f32", "wb") as file:
            for x in operands:
                x.tofile(file)
        self.expected = reference.attention(*operands, case.causal)

    def forms(self, case):
        shapes = [case.shape] + [shape for shape in [case.folded] if shape and self.args.fold]
        forms = [Form(peer, route, shape)
                 for peer in self.peers for route in self.routes[peer] for shape in shapes]
        for form in forms:
            rate = self.rates.get((form.peer, form.route, case.dtype))
            if rate and case.operations / rate > self.args.patience:
                form.failure = f"left out: about {case.operations / rate:.0f} s a call"
        return forms

    def ask(self, worker, case, shape, route=None):
        out, model = self.folder / "out.f32", self.folder / "model.onnx"
        out.unlink(missing_ok=True)
        model.write_bytes(onnx_graph.attention(shape, case.dtype))
        answer = worker.ask(dict(
            case=shape, dtype=case.dtype, route=route, secs=self.args.secs, threads=self.threads,
            data=str(self.folder / "data.f32"), out=str(out), model=str(model)))
        if "times" in answer:
            answer["max_error"] = reference.error_of(out, self.expected)
            answer["seconds"] = statistics.median(answer["times"])
        return answer

    def turn_of_ours(self, case, ours):
        """Seconds by variant."""
        seconds = {}
        for variant, line in ours.items():
            answer = self.ask(self.ours[variant], case, case.shape)
            if answer.get("error"):
                sys.exit(f"{case.id}, ours from {variant}: {answer['error']}")
            line["times"].append(answer["seconds"])
            line["error"] = max(line["error"], answer["max_error"])
            seconds[variant] = answer["seconds"]
        return seconds

    def turn_of_peer(self, case, form, ours):
        answer = self.ask(self.peers[form.peer], case, form.shape, form.route)
        if answer.get("error"):
            form.failure = answer["error"]
            return
        form.math = answer.get("math") or case.dtype
        form.error = max(form.error, answer["max_error"])
        # What computes in bf16 may err like it.
        if form.error > TOLERANCE[form.math]:
            form.failure = f"wrong: off by {form.error:.2g}"
            return
        form.times.append(answer["seconds"])
        for variant, seconds in ours.items():
            form.ratios.setdefault(variant, []).append(answer["seconds"] / seconds)
        self.rates[form.peer, form.route, case.dtype] = case.operations / answer["seconds"]
        time.sleep(PAUSE)

    def summary(self, case, ours, forms):
        """As it goes into the JSON file."""
        return {
            "case": case.id, "group": case.group, "dtype": case.dtype, "label": case.label,
            "shape": case.shape, "threads": self.threads,
            "ours": {
                variant: {"seconds": statistics.median(line["times"]), "max_error": line["error"],
                          "tolerance": TOLERANCE["bf16" if multiplies_in_bf16(variant) else case.dtype]}
                for variant, line in ours.items()
            },
            "peers": {peer: best_form(case, [form for form in forms if form.peer == peer]) for peer in self.peers},
        }


def promising(forms):
    """The fastest form of each peer, of peers that are not far behind the fastest one that computes in the same type."""
    best, fastest = {}, {}
    for form in sorted(forms, key=lambda form: form.seconds):
        best.setdefault(form.peer, form)
        fastest.setdefault(form.math, form.seconds)
    return [form for form in best.values() if form.seconds <= HOPELESS * fastest[form.math]]


def best_form(case, forms):
    measured = [form for form in forms if form.times and not form.failure]
    if not measured:
        return {"failures": sorted({f"{form.route}: {form.failure}" for form in forms})}
    form = min(measured, key=lambda form: (-len(form.times), form.seconds))
    return {
        "route": form.route + (", folded" if form.shape != case.shape else ""),
        "seconds": form.seconds, "rounds": len(form.times), "max_error": form.error,
        "math": form.math, "substitute": form.math != case.dtype,
        "ratios": {variant: statistics.median(ratios) for variant, ratios in form.ratios.items()},
    }
