"""The refusal of outputs of a student that are not finite, in all stages of a search: its training has diverged."""

from collections.abc import Callable

import numpy as np

from kdray.errors import DivergedError


def sound_logits(logits: np.ndarray) -> np.ndarray:
    """Which rows of logits [B, K] have a softmax: bool [B]. A class may have minus infinity, but not all of them."""
    sound: np.ndarray = np.isfinite(logits.max(axis=1))  # of a row with NaN it is NaN
    return sound


def refuse_unsound(sound: np.ndarray, name: Callable[[int], str]) -> None:
    """Refuse outputs of a student that are not finite.

    Args:
        sound: bool [B].
        name: a row to the words for its candidate or image.

    Raises:
        DivergedError: a row is not sound.
    """
    if not sound.all():
        raise DivergedError(
            f"the student's output for {name(int(np.argmin(sound)))} is not a number: its training has diverged; lower "
            "student.lr"
        )


def refuse_nan(table: np.ndarray, groups: np.ndarray, group_size: int) -> None:
    """Refuse scores float32 [G, L] of groups int64 [G] of which one is NaN."""
    sound = ~np.isnan(table).reshape(-1)
    refuse_unsound(sound, lambda row: f"candidate {int(groups[row // group_size]) * group_size + row % group_size}")
