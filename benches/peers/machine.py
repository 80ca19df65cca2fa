"""Where and on what the figures were taken."""
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np

from peers import ROOT


def describe():
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"flags\s*:\s*(.+)", text)
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
    return {
        "cpu": name.group(1) if name else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "features": [flag for flag in wanted if flags and flag in flags.group(1).split()],
        "system": f"{platform.system()} {platform.machine()}",
    }


def our_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return f"{version} ({git.stdout.strip()})" if git.returncode == 0 else version


def versions(introductions):
    own = {"lucid-attention": our_version(), "python": platform.python_version(), "numpy": np.__version__}
    return own | {name: answer["version"] for name, answer in introductions.items()}
