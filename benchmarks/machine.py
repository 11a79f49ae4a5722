"""What a figure was measured on, where it is kept, and how many runs are made at a time."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import ray
import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, str | int]:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    command = ["git", "describe", "--always", "--dirty"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)  # wherever it was started from
    result = {"command": " ".join(["python", str(script), *sys.argv[1:]]), "machine": describe(), "figures": figures}
    text = json.dumps(result, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def in_parallel(function: Callable[..., Any], tasks: Sequence[tuple], at_once: int = 2) -> Iterator[Any]:
    """`function` of each task, in their order, `at_once` at a time: each process has one thread, and begins in the
    repository's root."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=spawn, initializer=_alone) as executor:
        for future in [executor.submit(function, *task) for task in tasks]:
            yield future.result()


def _alone() -> None:
    os.chdir(ROOT)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    torch.set_num_threads(1)
