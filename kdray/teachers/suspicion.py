"""What numbers are that should be probabilities and are not: a wrong guess would lead the user to wrong numbers."""

from collections.abc import Mapping

import numpy as np

_ENOUGH = 4  # of rows times the numbers of a row that are free, to take logits for probabilities
_SLACK = 0.02  # of sums, where a server rounds
_WORDS = {
    "percent": "they look like percentages",
    "bytes": "they look like probabilities as whole numbers of 0..255",
    "int8": "they look like probabilities as whole numbers of -128..127",
    "logs": "they look like logarithms of probabilities",
    "logits": "does it give logits?",
    "rounded": "are they rounded?",
    "short": "does it leave classes out?",
    "several": (
        "each lies in 0..1, so they look like scores of several labels at once (sigmoid), which no student can be "
        "trained on; kdray takes probabilities of one class among all, their logits, or one label an image"
    ),
}


def suspect(row: np.ndarray, tolerance: float, partial: bool = False) -> str:
    """What the numbers of one image, float64 [K], seem to be, if not probabilities: percent, bytes, int8, logs, logits,
    rounded, short (classes are left out) or several (labels at once). Numbers that are not finite are "logits".

    Args:
        partial: the likeliest classes alone are given.
    """
    if not np.isfinite(row).all():
        return "logits"
    total, low, high, count = float(row.sum()), float(row.min()), float(row.max()), len(row)
    if low >= -tolerance and high <= 1 + tolerance:
        rounded = abs(total - 1) <= min(0.1, 0.005 * count)  # two decimals
        return "rounded" if rounded else "several" if total > 1 else "short"
    whole = bool((row == np.round(row)).all())
    fitting = {
        "logs": high <= tolerance and abs(float(np.exp(np.minimum(row, 0)).sum()) - 1) <= _SLACK,
        "percent": low >= 0 and (abs(total - 100) <= 100 * _SLACK or (partial and total <= 100)),
        "bytes": whole and low >= 0 and high <= 255 and abs(total - 255.5) <= 255 * _SLACK,
        "int8": whole and -128 <= low <= -64 and high <= 127 and abs(total + 128 * count - 256) <= 256 * _SLACK,
    }
    return next((kind for kind, fits in fitting.items() if fits), "logits")


def explain(row: np.ndarray, tolerance: float, remedies: Mapping[str, str] | None = None, partial: bool = False) -> str:
    """Why float64 [K] are no probabilities, and what to do.

    Args:
        remedies: what `suspect` finds -> what the user can do about it.
        partial: see `suspect`.
    """
    if not np.isfinite(row).all():
        return "the teacher's probabilities hold NaN or infinity"
    low, kind = float(row.min()), suspect(row, tolerance, partial)
    seen = f"'s probabilities sum to {float(row.sum()):g}, not 1"
    if low < -tolerance:
        seen = f" answered a negative probability ({low:g})"
    message, remedy = f"the teacher{seen}; {_WORDS[kind]}", (remedies or {}).get(kind)
    return f"{message}{' ' if message.endswith('?') else ': '}{remedy}" if remedy else message


def no_logits(values: np.ndarray) -> str | None:
    """What float64 [B, K] are for certain, said to be logits: "probabilities" or "percentages"; else None.

    A softmax of probabilities is nearly uniform: it looks like an answer and is none. No logits sum to 1 (or to 100) in
    every row, with none of them negative, by chance.
    """
    if len(values) == 0 or values.shape[1] < 2 or not np.isfinite(values).all() or values.min() < 0:
        return None
    totals = values.sum(axis=1)
    if values.max() <= 1 and np.abs(totals - 1).max() <= 1e-3:
        return "probabilities"
    return "percentages" if np.abs(totals - 100).max() <= 0.5 else None


class LogitsCheck:
    """`no_logits` over the replies of a teacher. Few numbers may sum to 1 by chance: of two classes two logits in ten
    thousand do. So a reply is refused once enough rows look so, and none after a row that cannot be probabilities."""

    def __init__(self) -> None:
        self._rows, self._sure = 0, False

    def look(self, values: np.ndarray) -> str | None:
        """What the teacher's numbers are for certain, if no logits; see `no_logits`.

        Args:
            values: float64 [B, K], of one reply.
        """
        values = values[np.isfinite(values).all(axis=1)]
        if self._sure or len(values) == 0:
            return None
        if (found := no_logits(values)) is None:
            self._sure = True
            return None
        self._rows += len(values)
        return found if self._rows * (values.shape[1] - 1) >= _ENOUGH else None
