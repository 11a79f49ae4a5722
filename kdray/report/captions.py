"""What is said of one queried image, in words: what it is made of, and what the teacher answered."""

from collections.abc import Mapping
from typing import Any

from kdray.config.root import Config
from kdray.pools.sources.drawn import DrawnImages
from kdray.runs.kinds import TRIAL
from kdray.runs.tables import Candidates
from kdray.teachers.answers import Answers


def what_asked(candidates: Candidates, config: Config, number: int) -> str:
    """What a round asked about."""
    if number == 0:
        return "drawn images" if isinstance(config.images, DrawnImages) else "real images"
    if "copy_of" in candidates.columns:
        return "augmented copies"
    if number == TRIAL and len(config.pool.kinds) > 1:
        return "all kinds, at random"
    if config.pool.exact:
        return "all that was made"
    return config.select.strategy


def made_of(columns: Mapping[str, Any]) -> tuple[str, str]:
    """What a candidate is made of, as in ("#12 + #40", "λ 0.54"): the images by their numbers, and how much of it is
    the first one's. Either may be empty.

    Args:
        columns: of the candidate, as its pool describes it.
    """
    if {"i", "j"} <= columns.keys():
        pair = f"#{columns['i']} + #{columns['j']}"
        if "lambda" in columns:
            return pair, f"λ {round(columns['lambda'], 4):g}"
        return pair, f"share {columns['share']:.2f}" if "share" in columns else ""
    if "copy_of" in columns:
        return f"copy of row {columns['copy_of']} of labelled", ""
    return f"#{columns['image']}" if "image" in columns else str(columns.get("kind", "")), ""


def likeliest(answers: Answers, row: int, most: int) -> list[tuple[int, float | None]]:
    """The `most` likeliest classes of an answer with their probabilities, in descending order.

    Of equal classes the teacher's label comes first, then the lower number. A class of probability 0 is left out: the
    number was rounded, or not shown. Where no number is left, it is the label, with None for its probability.
    """
    label = int(answers.labels[row])
    if answers.probs is None:
        return [(label, None)]
    probs: list[float] = answers.probs[row].tolist()
    order = sorted(range(len(probs)), key=lambda k: (-probs[k], k != label, k))
    return [(k, probs[k]) for k in order[:most] if probs[k] > 0] or [(label, None)]
