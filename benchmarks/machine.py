"""What a figure was measured on, and where it is kept."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy
import ray
import torch

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, str | int]:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    commit = git.stdout.strip()
    return {
        "processor": ", ".join(sorted(names)),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "numpy": numpy.__version__,
        "commit": commit,
    }


def keep(name: str, figures: object) -> None:
    """Print the figures and write them, with command and machine, to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    result = {"command": " ".join(["python", *sys.argv]), "machine": describe(), "figures": figures}
    text = json.dumps(result, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
