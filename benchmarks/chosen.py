"""What strategies choose of candidates that are drawn, and what the teacher makes of them.

    python benchmarks/chosen.py                        # MNIST, LeNet-5, hard labels, four pools, four strategies
    python benchmarks/chosen.py --sheets FOLDER        # and a contact sheet of each run

The runs are those of `data_free.py choice`, which measures how good their students are; here the last one is trained
for a tenth of the steps. Of the candidates that a run chose after round 0:

- sure: the mean of the teacher's highest probability.
- stable: the share of copies to which the teacher gives the label of the image; four of each, moved as `affine` does.
- far: the distance to the nearest of 5,000 images of its training set in the teacher's features, mean over that of
  5,000 other ones: 1 is as near as digits are to one another.
- apart: the same distance to the nearest other chosen one, over that of random candidates of the pool.
- entropy: the relative entropy of the labels.

Each finished run is kept, and one that is started again goes on with those that are missing. Needs ../shared/data, the
teacher (kdray teacher train examples/mnist.yaml), and `kdray[fractals,leaves,gl]`.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from free_runs import STUDENT, config_of, digits
from machine import all_runs, in_parallel, keep
from torch import Tensor, nn

from kdray.models.features import penultimate
from kdray.models.predict import predict
from kdray.report.preview import preview_run, write_preview
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.run import run
from kdray.select.balance import relative_entropy
from kdray.training.augment.affine import Affine
from kdray.training.augment.base import Draw
from kdray.utils.seeds import torch_generator

POOLS = ("lines, light on dark", "generic, light on dark", "leaves + shaders", "leaves, large")
STRATEGIES = ("random", "cluster-margin", "margin", "rad")
_COPIES = 4
_STEP = 512


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=POOLS, help="these pools alone; keeps no table")
    parser.add_argument("--sheets", type=Path, help="a folder for contact sheets")
    options = parser.parse_args()
    rows = [(name, how) for name in options.only for how in STRATEGIES]
    tasks = [(*row, options.queries, seed) for seed in range(options.seeds) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("chosen_runs", one, tasks, options.at_once, folder, options.sheets)
    figures = {"; ".join(row): means([found[task] for task in tasks if task[:2] == row]) for row in rows}
    if options.only != POOLS:
        print(json.dumps(figures, indent=2))
    else:
        (of_real,) = in_parallel(of_digits, [()])
        keep(f"chosen_{options.queries}", {"runs_each": options.seeds, "digits": of_real, "choices": figures})


def means(results: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over the runs of a row."""
    return {name: round(statistics.mean(result[name] for result in results), 4) for name in results[0]}


def one(name: str, how: str, queries: int, seed: int, folder: str, sheets: Path | None) -> dict[str, float]:
    """A run, and what it chose. Its last student, which chooses nothing, is trained no longer than the others."""
    student = STUDENT | {"augment": "affine", "early": 1, "steps_factor": STUDENT["early"]}
    config = config_of(name, {"strategy": how, "rounds": 2}, student, queries, seed)
    directory = RunDirectory(Path(folder) / f"{name}-{how}-{seed}")
    done = run(config, directory, local=True)
    teacher = read_inputs(done.config).teacher.network
    bought = [directory.read_labelled(number, 10) for number in range(3)]
    images = torch.cat([part.images for part in bought[1:]])
    if sheets is not None:
        sheets.mkdir(exist_ok=True, parents=True)
        write_preview(preview_run(directory, done.config, 64, only=2), sheets / f"{name}-{how}-{seed}.png", 8)
    real, others = (features(teacher, digits(done.config, rows).images) for rows in ("0:5000", "5000:10000"))
    own, drawn = features(teacher, images), features(teacher, bought[0].images)
    return {
        **opinion(teacher, images, seed),
        "far": round(float(nearest(own, real).mean() / nearest(others, real).mean()), 3),
        "apart": round(float(nearest(own[: len(drawn)]).mean() / nearest(drawn).mean()), 3),
        "entropy": round(relative_entropy(predict(teacher, images).argmax(dim=1), 10), 4),
    }


def of_digits() -> dict[str, float]:
    """What the teacher makes of digits that it was not trained on."""
    inputs = read_inputs(config_of(POOLS[0], {"strategy": "random"}, STUDENT, 500, 0))
    return opinion(inputs.teacher.network, inputs.test.images, 0)


def opinion(teacher: nn.Module, images: Tensor, seed: int) -> dict[str, float]:
    """How sure the teacher is of images, and how stable its labels are."""
    probs = predict(teacher, images)
    labels = probs.argmax(dim=1)
    copies = [_moved(images, seed, number) for number in range(_COPIES)]
    same = [predict(teacher, copy).argmax(dim=1) == labels for copy in copies]
    return {
        "sure": round(float(probs.amax(dim=1).mean()), 4),
        "stable": round(float(torch.stack(same).float().mean()), 4),
    }


def _moved(images: Tensor, seed: int, number: int) -> Tensor:
    draw = Draw.whole(torch_generator(seed, "copies", number), len(images))
    return Affine()(images, draw).round().to(torch.uint8)


def features(network: nn.Module, images: Tensor) -> Tensor:
    """The teacher's features, float32 [N, D]."""
    with torch.inference_mode():
        return torch.cat([penultimate(network, part) for part in images.split(_STEP)])


def nearest(points: Tensor, others: Tensor | None = None) -> Tensor:
    """Distance of each of the points [N, D] to the nearest of others, or to the nearest one of themselves."""
    distances = torch.cdist(points, points if others is None else others)
    if others is None:
        distances.fill_diagonal_(float("inf"))
    return distances.amin(dim=1)


if __name__ == "__main__":
    main()
