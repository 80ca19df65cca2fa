"""A worker in a process of its own, and what it is told."""
import json
import os
import resource
import subprocess
from pathlib import Path


class Worker:
    """Started when first asked, and again after it died. Each question and each answer is one line of JSON."""

    def __init__(self, command, threads, env={}, memory_limit=None):
        # Every pool a peer may have; Python peers read the first.
        names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "RTEN_NUM_THREADS"]
        own = {name: str(threads) for name in names} | {"TF_CPP_MIN_LOG_LEVEL": "3"} | env
        # NumPy asks for huge pages for its arrays, which the Python peers read: so malloc does for everybody else.
        own["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        self.command, self.memory_limit, self.process = command, memory_limit, None
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("LUCID_")} | own

    def _limit_memory(self):
        if self.memory_limit:
            resource.setrlimit(resource.RLIMIT_DATA, (self.memory_limit, self.memory_limit))

    def _start(self):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.process = subprocess.Popen(
            self.command, env=self.env, preexec_fn=self._limit_memory, **pipes)

    def ask(self, question):
        """The answer; {"error": ...} whatever went wrong."""
        try:
            if self.process is None or self.process.poll() is not None:
                self._start()
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith("@"):
                    return json.loads(line[1:])
        except OSError as error:
            return {"error": str(error)}
        return {"error": f"its process ended with status {self.process.wait()}"}

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()

    def reset_peak(self):
        """From here on the peak is that of what follows."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak(self):
        """Bytes of the largest resident set so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmHWM: --memory needs Linux")
