"""Whether a boundary of the network that made a pair is one of the teacher's, too."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

_OPPOSITE = {"pairs": ("before", "after"), "deeper": ("deeper before", "deeper after")}


def confirmed(columns: Mapping[str, list[Any]], rows: np.ndarray, labels: Tensor) -> dict[str, int]:
    """In how many boundary pairs the teacher calls the two sides by different classes.

    Args:
        columns: of the candidates of a round, see `kdray.pools.boundary.BoundaryPool.made`.
        rows: which of them were answered, int64 [N].
        labels: the answers, int64 [N].

    Returns:
        `pairs`, whose two sides were both answered; `pairs_confirmed`, those with two classes; `deeper` and
        `deeper_confirmed`, the same of the deeper copies. Empty for candidates of another kind.
    """
    if not {"pair", "side"} <= columns.keys():
        return {}
    answers = {
        (columns["pair"][row], columns["side"][row]): label
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True)
    }
    counts: dict[str, int] = {}
    for name, sides in _OPPOSITE.items():
        both = [
            (label, answers[pair, sides[1]])
            for (pair, side), label in answers.items()
            if side == sides[0] and (pair, sides[1]) in answers
        ]
        counts |= {name: len(both), f"{name}_confirmed": sum(one != other for one, other in both)}
    return counts


def confirmed_note(counts: Mapping[str, int]) -> str:
    """The counts in words."""
    told = f"the teacher has a boundary in {counts['pairs_confirmed']:,} of {counts['pairs']:,} pairs"
    if counts["deeper"]:
        told += f", and in {counts['deeper_confirmed']:,} of {counts['deeper']:,} pairs of their deeper copies"
    return told
