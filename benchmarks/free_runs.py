"""The runs without images that data_free.py compares: MNIST, LeNet-5 to LeNet-5, hard labels, one thread."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import ROOT

from kdray.config.load import load_config
from kdray.config.root import Config
from kdray.images.base import ImageSet, read_images
from kdray.models.checkpoint import load_student
from kdray.models.predict import accuracy, predict
from kdray.pools.boundary import BoundaryPool
from kdray.pools.images import ImagePool
from kdray.pools.mixture import MixturePool
from kdray.pools.procedural.base import ProceduralPool
from kdray.runs.directory import RunDirectory
from kdray.runs.learning import learn
from kdray.runs.result import Result
from kdray.runs.run import run
from kdray.utils.seeds import numpy_generator

PHOTOGRAPHS = {"kind": "crops", "images": {"source": "parquet", "path": "../shared/data/natural.parquet"}}
LARGE = {"kind": "leaves", "radii": [0.1, 1]}
TEXTURED = LARGE | {"textures": ["plain", "gradient", "stripes", "grain"]}
STROKES = {"kind": "lines", "colours": "light-on-dark"}
BRIGHT = {"kind": "fractals", "colours": "light-on-dark"}
CURVES = {"kind": "contours", "colours": "light-on-dark"}
FEW = {"kind": "leaves", "radii": [0.1, 0.5], "leaves": [1, 6]}
LIGHT = FEW | {"colours": "light-on-dark"}
CUT = LIGHT | {"leaves": [4, 20], "colours": "light-and-dark"}
OUTLINES = LIGHT | {"leaves": [1, 4], "radii": [0.12, 0.5], "sigma": 1, "outlines": 1}
CORNERS = LIGHT | {"leaves": [2, 10], "shapes": ["rectangle", "triangle", "quadrilateral"]}


def mixed(*of: Any, shares: list[float] | None = None) -> dict[str, Any]:
    """A mixture."""
    return {"kind": "mixture", "of": list(of), "shares": shares}


POOLS: dict[str, Any] = {
    "noise": "noise",
    "spectrum": "spectrum",
    "contours": "contours",
    "contours, light on dark": CURVES,
    "leaves": "leaves",
    "leaves, large": LARGE,
    "leaves, few": FEW,
    "leaves, few, light on dark": LIGHT,
    "leaves with corners, light on dark": CORNERS,
    "leaves, textured": TEXTURED,
    "outlines, light on dark": OUTLINES,
    "fractals": "fractals",
    "fractals, light on dark": BRIGHT,
    "shaders": "shaders",
    "photographs": PHOTOGRAPHS,
    "leaves + spectrum": mixed(LARGE, "spectrum"),
    "leaves + shaders": mixed(LARGE, "shaders"),
    "leaves + shaders + spectrum": mixed(LARGE, "shaders", "spectrum"),
    "generic": mixed(BRIGHT, "fractals", LIGHT | {"leaves": [1, 8]}, LARGE, "shaders", "spectrum"),
    "generic, light on dark": mixed(BRIGHT, CORNERS),
    "generic, light and dark": mixed(BRIGHT, CUT),
    "fractals + contours, light on dark": mixed(BRIGHT, CURVES),
    "four kinds, light on dark": mixed(BRIGHT, CURVES, CORNERS, OUTLINES),
    "lines": "lines",
    "lines, light on dark": STROKES,
    "lines + leaves": mixed("lines", LARGE),
    "lines + shaders": mixed("lines", "shaders"),
    "lines + contours, light on dark": mixed(STROKES, CURVES),
    "all": mixed("lines", STROKES, LARGE, "shaders", "spectrum"),
    "all, light on dark": mixed(STROKES, BRIGHT, CORNERS),
}
MOVED = {
    f"{of}; {how}": {"kind": "boundary", "of": POOLS[of], **fields}
    for of in ("photographs", "leaves, large")
    for how, fields in {
        "boundary pairs": {},
        "half boundary pairs": {"share": 0.5},
        "boundary pairs, teacher's gradients": {"gradients": "teacher"},
    }.items()
}
STUDENT = {"model": "lenet5", "early": 0.1, "precision": "float32", "augment": "none"}
UNPAID = {"students": 2, "model": "small-cnn"}
HALF = {"kind": "affine", "degrees": 6.0, "scale": 0.06, "shear": 0.075, "shift": 0.04}
"""Half of what `affine` does."""
TRAININGS = ("none", "equal", "replicate")
"""Values of student.balance."""
BATCH = 250
"""IDEAL's B."""
IDEAL: dict[str, Any] = {
    "model": "lenet5", "start": "last", "replay": "none", "steps": 100, "batch_size": 250, "lr": 0.01,
    "weight_decay": 0, "schedule": "constant", "augment": "none", "precision": "float32",
}  # fmt: skip
"""IDEAL's student: SGD, momentum 0.9, rate 0.01 (section 4.1.3). How many steps a round has is not said there: there
are variants with fewer and more."""
REPLAY: dict[str, Any] = {"replay": "all"}
ANEW: dict[str, Any] = REPLAY | {
    "start": "new", "steps": "auto", "batch_size": 128, "lr": None, "weight_decay": None, "schedule": "one-cycle",
    "early": 0.1,
}  # fmt: skip
GENERATORS: dict[str, dict[str, Any]] = {
    "IDEAL": {},
    "replay all": {"student": REPLAY},
    "replay all, student anew": {"student": ANEW},
    "replay all, ask_below 0.7": {"student": REPLAY, "pool": {"ask_below": 0.7}},
    "replay all, warm start by lines": {"student": REPLAY, "warm": True},
    "replay all, no information loss": {"student": REPLAY, "pool": {"weight": None}},
    "replay all, no cross-entropy": {"student": REPLAY, "pool": {"cross_entropy": False}},
    "replay all, no restart": {"student": REPLAY, "pool": {"restart": False}},
    "replay all, noise alone": {"student": REPLAY, "pool": {"conditional": False}},
    **{f"replay all, E_G {steps}": {"student": REPLAY, "pool": {"steps": steps}} for steps in (3, 10, 30, 50)},
    "requery": {"pool": {"requery": True}},
    "lines, student anew": {"student": ANEW, "pool": {"kind": "lines"}, "warm": True},
    **{f"IDEAL, {steps} steps": {"student": {"steps": steps}} for steps in (1, 10, 30, 300)},
    **{f"replay all, {steps} steps": {"student": REPLAY | {"steps": steps}} for steps in (10, 30, 300)},
    "IDEAL, 30 steps, ask_below 0.7": {"student": {"steps": 30}, "pool": {"ask_below": 0.7}},
    "IDEAL, 30 steps, warm start by lines": {"student": {"steps": 30}, "warm": True},
    **{f"IDEAL, 30 steps, E_G {n}": {"student": {"steps": 30}, "pool": {"steps": n}} for n in (3, 10, 30, 50)},
    "requery, 30 steps": {"pool": {"requery": True}, "student": {"steps": 30}},
}


def from_pool(name: str, how: str, queries: int, seed: int, folder: str) -> dict[str, float]:
    """A run on a pool. `how` is a strategy, and perhaps "in N rounds", then the kind of an augmentation or "half
    affine", and "unpaid" if students label candidates that nobody pays for."""
    choice, augment, unpaid = (*how.split(", "), "", "")[:3]
    strategy, _, rounds = choice.partition(" in ")
    select = {"strategy": strategy} | ({"rounds": int(rounds.split()[0])} if rounds else {})
    student = STUDENT | ({"unpaid": UNPAID} if unpaid else {})
    if augment:
        student["augment"] = HALF if augment == "half affine" else augment
    place = Path(folder) / f"{list(POOLS | MOVED).index(name)}-{how}-{seed}"
    with _rendering() as spent:
        found = figures_of(run(config_of(name, select, student, queries, seed), RunDirectory(place), local=True))
    return found | {"rendering_s": round(sum(spent), 1)}


def balanced(name: str, choice: str, queries: int, student: str, seed: int, folder: str) -> dict[str, Any]:
    """Students with each student.balance on the answers that one run has bought. `choice` is a strategy, and perhaps
    its select.balance; `student` has further fields of each student, as JSON."""
    strategy, _, times = choice.partition(" ")
    select = {"strategy": strategy} | ({"balance": int(times)} if times else {})
    directory = RunDirectory(Path(folder) / f"{list(POOLS).index(name)}-{choice}-{seed}")
    done = run(config_of(name, select, STUDENT | json.loads(student), queries, seed), directory, local=True)
    found: dict[str, Any] = {"entropy": round(done.history[-1].relative_entropy, 4)}
    students = {"none": (done.history[-1].student_accuracy, directory.student)}
    for how in TRAININGS[1:]:
        recipe = done.config.student.model_copy(update={"balance": how})
        config = done.config.model_copy(update={"student": recipe})
        point = learn(directory, config, out=directory.path / how).points[-1]
        students[how] = (point.scores.student, point.student)
    for how, (tested, file) in students.items():
        found[how] = {"accuracy": tested, "unseen": unseen(done.config, file)}
    return found


def generated(name: str, queries: int, seed: int, folder: str) -> dict[str, float]:
    """A run of IDEAL: B = 250, and E as the budget has it."""
    changes = GENERATORS[name]
    first = queries // 5 if changes.get("warm") else 0
    rounds = rounds_of(queries - first, changes.get("pool", {}))
    config = _written(
        {"kind": "generator"} | changes.get("pool", {}),
        {"source": "drawn", "pool": "lines", "count": max(first, 200), "size": 28, "colour": "grey"},
        {"strategy": "random", "first": first, "rounds": rounds, "per_round": BATCH},
        IDEAL | changes.get("student", {}),
        queries,
        seed,
    )
    return figures_of(run(config, RunDirectory(Path(folder) / f"{list(GENERATORS).index(name)}-{seed}"), local=True))


def rounds_of(queries: int, pool: dict[str, Any]) -> int:
    """IDEAL's E: rounds of B that so many queries pay for."""
    if pool.get("requery"):
        return max(rounds for rounds in range(1, queries) if with_requeries(rounds) <= queries)
    return max(1, queries // BATCH)


def with_requeries(rounds: int) -> int:
    """Queries of IDEAL's released code: in each of E rounds about all images so far, B E (E + 1) / 2."""
    return BATCH * rounds * (rounds + 1) // 2


def config_of(name: str, select: dict[str, Any], student: dict[str, Any], queries: int, seed: int) -> Config:
    """Round 0 asks about a fifth of the budget, drawn from the pool itself, or from the one whose images it moves."""
    pool = (POOLS | MOVED)[name]
    drawn = pool["of"] if name in MOVED else pool
    rounds = 1 if select == {"strategy": "random"} and name in POOLS else 2
    images = {"source": "drawn", "pool": drawn, "count": queries // 5, "size": 28, "colour": "grey"}
    return _written(pool, images, {"rounds": rounds} | select, student, queries, seed)


def _written(pool: Any, images: Any, select: Any, student: Any, queries: int, seed: int) -> Config:
    sections = {"images": images, "pool": pool, "select": select, "student": student}
    return load_config(
        ROOT / "examples/mnist.yaml",
        [
            *(f"{name}={json.dumps(section)}" for name, section in sections.items()),
            "teacher.answers=hard",
            f"budget={{queries: {queries}, evaluation: 0}}",
            f"seed={seed}",
            "resources.trainer.threads=1",
        ],
    )


@contextmanager
def _rendering() -> Iterator[list[float]]:
    """Seconds of each call that has a pool render; those by which a mixture has its parts render count once."""
    spent: list[float] = []
    inside = False
    kinds = (ProceduralPool, ImagePool, MixturePool, BoundaryPool)
    plain = {kind: kind.render for kind in kinds}

    def timed(kind: Any) -> Any:
        def render(pool: Any, ids: Any) -> Any:
            nonlocal inside
            if inside:
                return plain[kind](pool, ids)
            inside, begin = True, time.perf_counter()
            try:
                return plain[kind](pool, ids)
            finally:
                inside = False
                spent.append(time.perf_counter() - begin)

        return render

    for kind in kinds:
        kind.render = timed(kind)
    try:
        yield spent
    finally:
        for kind in kinds:
            kind.render = plain[kind]


def figures_of(done: Result, rows: str = "50000:60000") -> dict[str, float]:
    """What a finished run has measured; `unseen` on these rows of the teacher's training images."""
    last = done.history[-1]
    pairs = {name: sum(one.boundaries.get(name, 0) for one in done.history) for name in last.boundaries}
    return {
        "accuracy": last.student_accuracy,
        "unseen": unseen(done.config, done.directory / "student.safetensors", rows),
        "entropy": round(last.relative_entropy, 4),
        "training_s": round(sum(metrics.seconds["train"] for metrics in done.history), 1),
        "choosing_s": round(sum(metrics.seconds["choose"] for metrics in done.history), 1),
        "rounds_s": round(sum(sum(metrics.seconds.values()) for metrics in done.history), 1),
        **pairs,
    }


def unseen(config: Config, student: Path, rows: str = "50000:60000") -> float:
    """Accuracy on training images by which kdray's defaults are decided, so that none is by test images."""
    images = digits(config, rows)
    return round(accuracy(predict(load_student(student), images.images).argmax(dim=1), images.true_labels), 5)


def digits(config: Config, rows: str) -> ImageSet:
    """Rows of the teacher's training set, with their labels."""
    return read_images(
        config.test.model_copy(update={"path": config.teacher.train.images.path, "rows": rows, "digest": None}),
        generator=numpy_generator(0, "unseen"),
        with_labels=True,
    )
