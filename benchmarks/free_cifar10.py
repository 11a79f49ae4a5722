"""A CIFAR-10 teacher without its images: parts of 1,000 photographs, drawn images, boundary pairs, IDEAL's generator,
and 1,000 of its own images beside them.

    python benchmarks/free_cifar10.py --queries 5000      # and 20000

Soft answers; small-cnn learns from benchmarks.networks:cnn, a network of 114,000 weights that has 81 % of the test
set. Round 0 asks about a fifth of the budget, drawn from the pool itself, or about the 1,000 images. Accuracy is that
on the 10,000 test images, `unseen` that on 5,000 training images, by which kdray's defaults are decided.

Each finished run is kept, and one that is started again goes on with those that are missing. Needs ../shared/data, the
teacher (kdray teacher train benchmarks/cifar10-small.yaml), and `kdray[fractals,leaves,gl]`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from data_free import summary
from free_runs import BATCH, BRIGHT, IDEAL, PHOTOGRAPHS, STROKES, TEXTURED, figures_of, mixed, rounds_of
from machine import ROOT, all_runs, keep

from kdray.config.load import load_config
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run

DRAWN = mixed("shaders", TEXTURED, "fractals", "lines", "spectrum", shares=[4, 2, 2, 1, 1])
POOLS: dict[str, Any] = {
    "1,000 of its images": "mixup",
    "photographs": PHOTOGRAPHS,
    "drawn": DRAWN,
    "photographs + drawn": mixed(PHOTOGRAPHS, DRAWN, shares=[3, 1]),
    "shaders": "shaders",
    "leaves, textured": TEXTURED,
    "light on dark": mixed(BRIGHT, STROKES),
    "photographs; boundary pairs": {"kind": "boundary", "of": PHOTOGRAPHS},
    "photographs; half boundary pairs": {"kind": "boundary", "of": PHOTOGRAPHS, "share": 0.5},
    "photographs; boundary pairs, teacher's gradients": {"kind": "boundary", "of": PHOTOGRAPHS, "gradients": "teacher"},
}
DRAWN_IMAGES = {"source": "drawn", "size": 32, "colour": "rgb"}
GENERATORS: dict[str, dict[str, Any]] = {
    "IDEAL": {},
    "IDEAL, replay all": {"student": {"replay": "all"}},
    "IDEAL, ask_below 0.7": {"pool": {"ask_below": 0.7}},
    "IDEAL, requery": {"pool": {"requery": True}},
}
STRATEGIES = ("random", "cluster-margin", "margin", "cluster-margin 8", "random, equal", "random, unpaid")
"""A number is that of select.balance, what comes after a comma a part of the recipe."""
RECIPES: dict[str, dict[str, Any]] = {"": {}, "equal": {"balance": "equal"}, "unpaid": {"unpaid": {"students": 2}}}
STUDENT = {
    "model": "small-cnn", "early": 0.1, "precision": "float32", "augment": {"kind": "crop", "shift": 4, "flip": True},
    "steps_factor": 1,
}  # fmt: skip
"""A quarter of the steps that colour images have by default, which gain a point more: all runs are made alike."""


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these pools alone; keeps no table")
    options = parser.parse_args()
    rows = [(name, how) for name, pool in POOLS.items() for how in (STRATEGIES[:1] if moved(pool) else STRATEGIES)]
    rows += [(name, "random") for name in GENERATORS]
    rows = [row for row in rows if not options.only or row[0] in options.only]
    tasks = [(*row, options.queries, seed) for seed in range(options.seeds) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("free_cifar10_runs", one, tasks, options.at_once, folder)
    figures = {"; ".join(row): summary([found[task] for task in tasks if task[:2] == row]) for row in rows}
    if options.only:
        print(json.dumps(figures, indent=2))
    else:
        keep(f"free_cifar10_{options.queries}", {"runs_each": options.seeds, "pools": figures})


def one(name: str, strategy: str, queries: int, seed: int, folder: str) -> dict[str, float]:
    """A run on a pool with a strategy, or with a generator."""
    sections = of_generator(name, queries) if name in GENERATORS else of_pool(name, strategy, queries)
    sections["budget"] = {"queries": queries, "evaluation": 0}
    changes = [f"{section}={json.dumps(value)}" for section, value in sections.items()]
    if "images" not in sections:
        changes.append("images.count=1000")
    config = load_config(
        ROOT / "benchmarks/cifar10-small.yaml", [*changes, f"seed={seed}", "resources.trainer.threads=1"]
    )
    place = Path(folder) / f"{list(POOLS | GENERATORS).index(name)}-{strategy}-{queries}-{seed}"
    return figures_of(run(config, RunDirectory(place), local=True), "45000:50000")


def of_pool(name: str, strategy: str, queries: int) -> dict[str, Any]:
    """The sections of a run on a pool. Its first images are drawn from the pool itself, or from the one whose images it
    moves, or they are the teacher's own."""
    pool, (chosen, _, recipe) = POOLS[name], strategy.partition(", ")
    kind, _, times = chosen.partition(" ")
    select = {"strategy": kind, "rounds": 1 if kind == "random" and not moved(pool) else 2}
    select |= {"balance": int(times)} if times else {}
    sections = {"pool": pool, "select": select, "student": STUDENT | RECIPES[recipe]}
    if pool != "mixup":
        sections["images"] = DRAWN_IMAGES | {"pool": pool["of"] if moved(pool) else pool, "count": queries // 5}
    return sections


def moved(pool: Any) -> bool:
    """Whether a pool's candidates are moved across a boundary: each round makes as many as it asks about."""
    return isinstance(pool, dict) and pool["kind"] == "boundary"


def of_generator(name: str, queries: int) -> dict[str, Any]:
    """The sections of a run of IDEAL: rounds of its B, 30 steps of the student in each."""
    pool = {"kind": "generator"} | GENERATORS[name].get("pool", {})
    return {
        "pool": pool,
        "images": DRAWN_IMAGES | {"pool": "lines", "count": 200},  # for their shape: round 0 asks nothing
        "select": {"strategy": "random", "first": 0, "rounds": rounds_of(queries, pool), "per_round": BATCH},
        "student": IDEAL | GENERATORS[name].get("student", {}) | {"model": "small-cnn", "steps": 30},
    }


if __name__ == "__main__":
    main()
