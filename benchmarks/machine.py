"""What a figure was measured on, where it is kept, and how many runs are made at a time."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy
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
        "ray": _version("ray"),
        "numpy": numpy.__version__,
        "commit": commit,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def keep(name: str, figures: object) -> None:
    """Print the figures and write them, with command and machine, to results/NAME.json."""
    text = json.dumps(_with_origin(figures), indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def _with_origin(figures: object) -> dict[str, object]:
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)  # wherever it was started from
    command = " ".join(["python", str(script), *sys.argv[1:]])
    return {"command": command, "machine": describe(), "figures": figures}


def all_runs(
    name: str, function: Callable[..., Any], tasks: Sequence[tuple], at_once: int, *more: object
) -> dict[tuple, Any]:
    """`function` of each task and of `more`, `at_once` at a time. Each result is kept in results/NAME.json when it is
    there, and a benchmark that is started again makes those that are missing."""
    file = RESULTS / f"{name}.json"

    def kept() -> dict[str, Any]:
        figures: dict[str, Any] = json.loads(file.read_text())["figures"] if file.exists() else {}
        return figures

    missing = [task for task in tasks if json.dumps(task) not in kept()]
    made = in_parallel(function, [(*task, *more) for task in missing], at_once)
    for task, result in zip(missing, made, strict=True):
        print(*task, result, flush=True)
        file.write_text(json.dumps(_with_origin(kept() | {json.dumps(task): result}), indent=1) + "\n")
    return {task: kept()[json.dumps(task)] for task in tasks}


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
