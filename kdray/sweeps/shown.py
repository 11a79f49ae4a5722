"""How the keys, values and figures of a sweep are written, in tables, figures and pages alike."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import yaml

from kdray.sweeps.results import Trial
from kdray.utils.files import shown

SHARES = ("student_accuracy", "teacher_accuracy", "success_rate", "agreement", "agreement_low", "agreement_high")
"""Figures that are shares, which people read as per cent."""


_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def swept_keys(trials: Iterable[Trial]) -> list[str]:
    """The keys that some trial sets, in the order in which they first appear."""
    return list(dict.fromkeys(key for trial in trials for key in trial.values))


def varied_keys(trials: Sequence[Trial]) -> list[str]:
    """The keys that have different values in these trials."""
    return [key for key in swept_keys(trials) if len({value_text(trial.values.get(key)) for trial in trials}) > 1]


def value_text(value: Any) -> str:
    """A value on one line, as a config or an override would have it: the text 1 is '1', the number is 1."""
    return _scalar_text(value) if isinstance(value, str | int | float | None) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        value = shown(value)
    try:
        text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False)
    except yaml.YAMLError:  # no plain value
        text = shown(str(value))
    text = text.removesuffix("...\n").rstrip("\n")
    if "\n" not in text and not _NOT_YAML.search(text):
        return text
    # YAML reads JSON, but for a few characters that JSON leaves as they are, and that YAML writes on two lines.
    plain = json.dumps(value, ensure_ascii=False, default=str)
    return _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)


_scalar_text = lru_cache(maxsize=4096, typed=True)(_text)  # the YAML library takes a fifth of a millisecond


def short_text(value: Any, most: int = 32) -> str:
    """A value as `value_text` has it, but a number with four significant digits, and of at most `most` letters: the
    first ones, or the last ones of a path."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    text = value_text(value)
    if len(text) <= most:
        return text
    return "…" + text[1 - most :] if text.startswith("/") else text[: most - 1] + "…"


def trial_words(values: Mapping[str, Any]) -> str:
    """A trial in words: its values, by the last part of their keys."""
    return ", ".join(f"{key.rpartition('.')[2]}={short_text(value)}" for key, value in values.items())


def is_number(value: Any) -> bool:
    """Whether a value is a number that has a place on an axis."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def is_numeric(trials: Iterable[Trial], key: str) -> bool:
    """Whether a key is a number in all of these trials."""
    return all(is_number(trial.values.get(key)) for trial in trials)


def ordered(values: Iterable[Any]) -> list[Any]:
    """Different values in the order of an axis: numbers by size, then all others by their text."""
    different = {value_text(value): value for value in values}
    return sorted(
        different.values(),
        key=lambda value: (0, float(value), "") if is_number(value) else (1, 0.0, value_text(value)),
    )


def figure_words(metric: str) -> str:
    """The name of a figure, with its unit."""
    return metric.replace("_", " ") + (", %" if metric in SHARES else "")


def figure_scale(metric: str) -> float:
    """What a figure is multiplied with where people read it."""
    return 100.0 if metric in SHARES else 1.0


def figure_text(metric: str, mean: float | None, error: float | None = None) -> str:
    """A figure with its standard error, as in "93.42 ± 0.21 %"; a dash where it was not measured."""
    if mean is None:
        return "–"
    if metric in SHARES:
        between = "" if error is None else f" ± {100 * error:.2f}"
        return f"{100 * mean:.2f}{between} %"
    if abs(mean) >= 1000:
        return f"{mean:,.0f}" + ("" if error is None else f" ± {error:,.0f}")
    return f"{mean:.4g}" + ("" if error is None else f" ± {error:.2g}")
