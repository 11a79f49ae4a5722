"""Which figure of held-out answers tells best how images should be augmented: `augment: auto` by several rules.

    python benchmarks/rank.py mnist      # LeNet-5, 200 images, 1,000 answers
    python benchmarks/rank.py digits     # LeNet-5, 100 images, 1,000 answers
    python benchmarks/rank.py cifar10    # small-cnn, 1,000 images, 3,000 answers

For each kind that `auto` tries, three students are trained for 0.3 of the steps, each with another third of the answers
held out, and one student on all answers for all steps. Each rule takes a kind by the held-out answers alone; "lost" is
how far that kind's student is behind the best kind's, in accuracy on labelled images that are neither test images nor
the student's. Each seed draws its own images. Each finished kind of a seed is kept. Needs ../shared/data and
the config's teacher.
"""

import argparse
from typing import Any

import torch
from machine import all_runs, keep
from steps import SETTINGS, accuracy_on_unseen, answered, summary, trained

from kdray.training.augment.auto import Auto
from kdray.training.choice import FOLDS, SHARE, networks
from kdray.training.length import compared
from kdray.training.losses import kd_divergence, soft_cross_entropy
from kdray.training.recipe import StudentSection
from kdray.utils.seeds import torch_generator, torch_seed

DATA: dict[str, tuple[dict[str, Any], int]] = {  # what is answered, and how many
    "mnist": (SETTINGS["mnist"], 1000),
    "digits": (
        SETTINGS["mnist"] | {"config": "examples/digits.yaml", "rows": "1000:1400", "unseen": "0:1000", "images": 100},
        1000,
    ),
    "cifar10": (SETTINGS["cifar10"], 3000),
}
RULES = {
    "disagreement": lambda logits, targets: (logits.argmax(1) != targets.argmax(1)).float().mean(),
    "cross_entropy": soft_cross_entropy,
    "kl_4": lambda logits, targets: kd_divergence(logits, targets, 4.0),
}
"""Figures of held-out answers; each is taken of all of them, and of those to the student's own images alone."""


def main() -> None:
    """Run the study of one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=tuple(DATA))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    names = list(Auto().candidates((1, 28, 28)))
    tasks = [(options.data, seed, name) for seed in range(options.seeds) for name in names]
    found = all_runs("rank_runs", one, tasks, options.at_once)
    seeds = [{name: found[options.data, seed, name] for name in names} for seed in range(options.seeds)]
    figures: dict[str, Any] = {
        "runs_each": options.seeds,
        "accuracy": {name: summary([kinds[name]["accuracy"] for kinds in seeds]) for name in names},
    }
    for halving in (True, False):
        for rule in [*RULES, *(f"own {rule}" for rule in RULES)]:
            taken = [chosen(kinds, rule, halving) for kinds in seeds]
            best = [max(one["accuracy"] for one in kinds.values()) for kinds in seeds]
            lost = [top - kinds[name]["accuracy"] for top, kinds, name in zip(best, seeds, taken, strict=True)]
            told = summary(lost)
            figures[f"{rule}{', halving' if halving else ''}"] = {
                "lost": told["accuracy"],
                "standard_error": told["standard_error"],
                "taken": taken,
            }
    keep(f"rank_{options.data}", figures)


def chosen(kinds: dict[str, dict[str, Any]], rule: str, halving: bool) -> str:
    """The kind that `kdray.training.choice.choose` would take by this figure."""
    running = list(kinds)
    for fold, (number, _) in enumerate(networks(len(kinds), 1000, halving=halving)):
        running = sorted(running, key=lambda name: sum(kinds[name][rule][:fold]))[:number]
    return min(running, key=lambda name: sum(kinds[name][rule]))


def one(data: str, seed: int, name: str) -> dict[str, Any]:
    """Figures of the held-out answers of each fold, and the accuracy of the student of all answers."""
    setting, count = DATA[data]
    images, targets, own = answered(setting, count, seed)
    image_shape = own.shape[1], own.shape[2], own.shape[3]
    kind = Auto().candidates(image_shape)[name]
    recipe = StudentSection.model_validate(setting["student"] | {"precision": "float32", "augment": kind})
    figures: dict[str, Any] = {}
    part = torch.randperm(count, generator=torch_generator(seed, "cross-validation", 0)) % FOLDS
    for fold in range(FOLDS):
        short, held = compared(recipe, count, SHARE), part == fold
        fold_seed = torch_seed(seed, f"cross-validation {fold}")
        model = trained(short, images[~held], targets[~held], own, fold_seed)
        with torch.inference_mode():
            logits = torch.cat([model(some) for some in images[held].split(512)])
        given = held.nonzero().flatten() < len(own)
        for rule, figure in RULES.items():
            figures.setdefault(rule, []).append(float(figure(logits, targets[held])))
            figures.setdefault(f"own {rule}", []).append(float(figure(logits[given], targets[held][given])))
    return figures | {"accuracy": accuracy_on_unseen(setting, trained(recipe, images, targets, own, seed))}


if __name__ == "__main__":
    main()
