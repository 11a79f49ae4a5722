"""What a figure was measured on, where it is kept, and how many runs are made at a time."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
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
    """`function` of each task and of `more`, `at_once` at a time; see `make_runs`."""
    make_runs([(name, function, task, more) for task in tasks], at_once)
    kept = _kept(name)
    return {task: kept[json.dumps(task)] for task in tasks}


def make_runs(runs: Sequence[tuple[str, Callable[..., Any], tuple, tuple]], at_once: int) -> None:
    """A function of a task and of more, for each (name, function, task, more), `at_once` at a time.

    Each result is kept in results/NAME.json when it is there, or in NAME_gpu.json if torch sees a GPU, and a benchmark
    that is started again makes those that are missing.

    Raises:
        RuntimeError: some failed, once all the others are kept.
    """
    missing = [run for run in runs if json.dumps(run[2]) not in _kept(run[0])]
    failed = 0
    with _processes(at_once) as executor:
        made = {executor.submit(function, *task, *more): (name, task) for name, function, task, more in missing}
        for future in as_completed(made):
            name, task = made[future]
            try:
                result = future.result()
            except Exception:
                traceback.print_exc()
                failed += 1
                continue
            print(name, *task, result, flush=True)
            figures = _kept(name) | {json.dumps(task): result}
            _runs_file(name).write_text(json.dumps(_with_origin(figures), indent=1) + "\n")
    if failed:
        raise RuntimeError(f"{failed} of {len(missing)} runs failed, as shown above")


def _runs_file(name: str) -> Path:
    return RESULTS / f"{name}{'_gpu' if torch.cuda.is_available() else ''}.json"


def _kept(name: str) -> dict[str, Any]:
    file = _runs_file(name)
    figures: dict[str, Any] = json.loads(file.read_text())["figures"] if file.exists() else {}
    return figures


def in_parallel(function: Callable[..., Any], tasks: Sequence[tuple], at_once: int = 2) -> Iterator[Any]:
    """`function` of each task, in their order, `at_once` at a time."""
    with _processes(at_once) as executor:
        for future in [executor.submit(function, *task) for task in tasks]:
            yield future.result()


def _processes(at_once: int) -> Executor:
    """Each process has one thread, and begins in the repository's root."""
    return ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn"), initializer=_alone)


def _alone() -> None:
    os.chdir(ROOT)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    torch.set_num_threads(1)
