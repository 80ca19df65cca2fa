"""Serves one Python library: `python_worker.py NAME`. See README.md for the protocol."""
import gc
import importlib
import json
import sys
import time

import numpy as np

from python_peers import Case, Unsupported

# Seconds after which a first call counts as the measurement: it need not be warmed up.
SLOW = 2.0


def operands(case, path):
    """q, k and v."""
    data = np.fromfile(path, "<f4")
    kv_shape = (case.batch, case.kv_heads, case.kv_len, case.dim)
    kv_size = np.prod(kv_shape)
    q, k, v = np.split(data, [data.size - 2 * kv_size, data.size - kv_size])
    return q.reshape(case.batch, case.q_heads, case.q_len, case.dim), k.reshape(kv_shape), v.reshape(kv_shape)


def prepare(library, question):
    *sizes, causal = question["case"]
    case = Case(*sizes, bool(causal), question["dtype"])
    return library.ROUTES[question["route"]](case, *operands(case, question["data"]))


def seconds(run):
    before = time.perf_counter()
    out = run()
    return time.perf_counter() - before, out


def times(call, secs):
    call.run()
    found, start = [], time.perf_counter()
    while len(found) < 2 or time.perf_counter() - start < secs:
        if call.renew and len(found) % call.renew_every == 0:
            call.renew()
        found.append(seconds(call.run)[0])
    return found


class Server:
    def __init__(self, peer):
        self.peer, self.key, self.call = peer, None, None

    def answer(self, question):
        if "hello" in question:
            return {"version": self.peer.version(), "routes": list(self.peer.ROUTES)}
        if "empty" in question:
            return {"times": times(self.peer.empty(), question["empty"]["secs"])}
        self.prepare(question)
        if self.call.renew:
            self.call.renew()
        first, out = seconds(self.call.run)
        self.call.back(out).astype("<f4").tofile(question["out"])
        return {"times": [first] if first > SLOW else times(self.call, question["secs"]), "math": self.call.math}

    def prepare(self, question):
        """Unless the last question was the same: compilation takes time."""
        key = (question["case"], question["dtype"], question["route"])
        if key != self.key:
            self.key, self.call = None, None
            gc.collect()
            self.call = prepare(self.peer, question)
            self.key = key


def main():
    server = None
    for line in sys.stdin:
        try:
            server = server or Server(importlib.import_module("python_peers." + sys.argv[1]))
            answer = server.answer(json.loads(line))
        except (ImportError, Unsupported) as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        print("@" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
