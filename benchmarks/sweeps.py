"""The sweeps that come with kdray, on MNIST: what they say about budgets, λ ranges and RAD's w; and what Tune costs.

    python benchmarks/sweeps.py budgets|lambda_range|rad_w|overhead [--seeds 5] [--epochs 120]

LeNet-5 to LeNet-5, 200 images, 1,000 queries where the budget is not what is swept. Trials run two at a time, with one
thread each. Needs ../shared/data. The folders of the sweeps, with their pages, are in runs/sweeps; started again, it
goes on with them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import ROOT, keep

from kdray.config.files import read_yaml
from kdray.config.load import parse_config
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.sweeps.api import sweep
from kdray.sweeps.outcome import SweepResult

METRIC = "student_accuracy"
BASE = {"images.count": 200, "budget.queries": 1000, "budget.evaluation": 0, "student.augment.shift": 2}
SPACES: dict[str, dict[str, Any]] = {
    "budgets": {"budget.queries": {"grid": [250, 500, 1000, 2000]}},
    "lambda_range": {},
    "rad_w": {},
}


def main() -> None:
    """One part; its figures go to results/sweep_PART.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*SPACES, "overhead"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=120)
    options = parser.parse_args()
    if options.part == "overhead":
        keep("sweep_overhead", overhead())
        return
    came_with = read_yaml(ROOT / "tune_configs" / f"{options.part}.yaml")
    change = dict(came_with.get("change", {}))
    if options.part == "budgets":
        change["select"] = {"schedule": [250, 500, 1000, 2000], "rounds": None}
    space = SPACES[options.part] or came_with["space"]
    result = sweep(
        base=base(options.epochs, change),
        space=space,
        seeds=options.seeds,
        out=ROOT / "runs" / "sweeps" / options.part,
        resume=True,
    )
    keep(f"sweep_{options.part}", figures(result) | {"epochs": options.epochs})


def base(epochs: int, change: dict[str, Any]) -> dict[str, Any]:
    """examples/mnist.yaml in small."""
    data: dict[str, Any] = read_yaml(ROOT / "examples" / "mnist.yaml")
    for key, value in (BASE | {"student.epochs": epochs, "select": {"strategy": "cluster-margin"}} | change).items():
        *path, last = key.split(".")
        section = data
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return data


def figures(result: SweepResult) -> dict[str, Any]:
    """The mean of each trial with its standard error, and what was bought."""
    rows = []
    for trial in result.trials:
        last = trial.last(METRIC)
        rows.append(
            dict(trial.values)
            | {"accuracy": last and round(last.mean, 5), "standard_error": last and last.error and round(last.error, 5)}
            | {"asked": trial.asked, "bought": trial.bought, "state": trial.state}
        )
    return {
        "seeds": max(len(trial.seeds) for trial in result.trials),
        "trials": rows,
        "bought": result.bought,
        "asked": sum(trial.asked for trial in result.trials),
        "best": dict(result.best.values) if result.best else None,
    }


def overhead(count: int = 8, repeats: int = 3) -> dict[str, Any]:
    """A sweep of 8 trials, one at a time, beside the same 8 runs one after another in this process."""
    data = base(epochs=10, change={})
    space = {"student.lr": {"grid": [round(0.005 + 0.001 * k, 4) for k in range(count)]}}
    seconds: dict[str, list[float]] = {"sweep": [], "runs": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="kd") as folder:
            begin = time.monotonic()
            sweep(base=data, space=space, resources={"trials": 1}, out=Path(folder) / "sweep", progress=False)
            seconds["sweep"].append(time.monotonic() - begin)
            begin = time.monotonic()
            for k, rate in enumerate(space["student.lr"]["grid"]):
                _run_alone(data, rate, Path(folder) / f"run-{k}")
            seconds["runs"].append(time.monotonic() - begin)
    return {
        "trials": count,
        "repeats": repeats,
        "sweep_s": [round(value, 1) for value in seconds["sweep"]],
        "runs_s": [round(value, 1) for value in seconds["runs"]],
        "ratio": round(statistics.median(seconds["sweep"]) / statistics.median(seconds["runs"]), 2),
        "overhead_s_a_trial": round(
            (statistics.median(seconds["sweep"]) - statistics.median(seconds["runs"])) / count, 1
        ),
    }


def _run_alone(data: dict[str, Any], rate: float, out: Path) -> None:
    config = parse_config(data | {"student": data["student"] | {"lr": rate}})
    run(config, RunDirectory(out), local=True)


if __name__ == "__main__":
    main()
