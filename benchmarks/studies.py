"""Every study of students, on one machine with a GPU and many cores: all their runs from one queue.

    python benchmarks/studies.py --at-once 16                        # all of them
    python benchmarks/studies.py --at-once 16 choose-mnist kinds     # these alone

Runs are kept as each benchmark keeps its own (see `make_runs` in benchmarks/machine.py), so this may be stopped at any
moment and started again. Afterwards each benchmark finds its runs and makes its table: see the docstrings of choose.py,
student.py, mixkd.py and steps.py. Teachers come first. Without a GPU this takes days. Needs ../shared/data.
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import choose
import mixkd
import steps
import student
from machine import ROOT, in_parallel, make_runs

from kdray.config.load import load_config
from kdray.observers.base import Observer
from kdray.runs.teachers import train_by_recipe

Run = tuple[str, Callable[..., Any], tuple, tuple]
CONFIGS = ("examples/mnist.yaml", "examples/digits.yaml", "benchmarks/cifar10-small.yaml")


def main() -> None:
    """Make all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help="all, unless some are named")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 5), metavar=("FIRST", "END"))
    options = parser.parse_args()
    for _ in in_parallel(teacher, [(number,) for number in range(len(CONFIGS) + 2)], options.at_once):
        pass
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: make(range(*options.seeds), folder) for name, make in STUDIES.items()}
        wanted = options.studies or list(runs)
        make_runs([run for name in wanted for run in runs[name]], options.at_once)


def teacher(number: int) -> None:
    """Train one of the teachers, unless it is there."""
    if number < len(CONFIGS):
        config = load_config(ROOT / CONFIGS[number])
        if not (ROOT / config.teacher.weights).exists():
            train_by_recipe(config, force=False, observer=Observer())
    else:
        data = ("mnist", "cifar10")[number - len(CONFIGS)]
        mixkd.train_teacher(data, mixkd.teacher_file(data), None)


def choices(data: str, pool: str) -> Callable[[range, str], list[Run]]:
    """Every strategy on one pool."""

    def make(seeds: range, folder: str) -> list[Run]:
        tasks = choose.all_tasks(data, pool, choose.names_of(pool), seeds)
        return [("choose_runs", choose.one_run, task, (folder,)) for task in tasks]

    return make


def students(what: str) -> Callable[[range, str], list[Run]]:
    """One of the studies of benchmarks/student.py."""

    def make(seeds: range, folder: str) -> list[Run]:
        tasks = student.all_tasks(seeds, student.cells(what))
        return [("student_runs", student.one_run, task, (folder,)) for task in tasks]

    return make


def robustness(data: str) -> Callable[[range, str], list[Run]]:
    """One of the data sets of benchmarks/mixkd.py."""

    def make(seeds: range, folder: str) -> list[Run]:
        more = (mixkd.teacher_file(data),)
        return [("mixkd_runs", mixkd.one_student, task, more) for task in mixkd.all_tasks(data, "soft", seeds)]

    return make


def lengths(data: str) -> Callable[[range, str], list[Run]]:
    """One of the data sets of benchmarks/steps.py."""

    def make(seeds: range, folder: str) -> list[Run]:
        return [("steps_runs", steps.one, task, ()) for task in steps.all_tasks(data, seeds)]

    return make


STUDIES: dict[str, Callable[[range, str], list[Run]]] = {
    "choose-mnist-mixup": choices("mnist", "mixup"),
    "choose-mnist-pairs": choices("mnist", "pairs"),
    "cifar10": students("cifar10"),
    "kinds": students("kinds"),
    "table1": students("table1"),
    "labels": students("labels"),
    "choose-cifar10-pairs": choices("cifar10", "pairs"),
    "answers": students("answers"),
    "parts": students("parts"),
    "augment": students("augment"),
    "mixkd-mnist": robustness("mnist"),
    "mixkd-cifar10": robustness("cifar10"),
    "steps-mnist": lengths("mnist"),
    "steps-cifar10": lengths("cifar10"),
    "budgets": students("budgets"),
    "early": students("early"),
    "losses": students("losses"),
}


if __name__ == "__main__":
    main()
