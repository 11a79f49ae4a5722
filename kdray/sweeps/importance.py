"""How much each swept key matters for the metric: the permutation importance of a random forest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdray.sweeps.results import Trial
from kdray.sweeps.shown import is_numeric, value_text, varied_keys
from kdray.utils.text import counted

_FEWEST = 5  # trials


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much one key matters.

    Attributes:
        key: with dots.
        mean: by how much the forest's R² falls when the key's values are shuffled among the trials, the mean over the
            shuffles.
        deviation: standard deviation over the shuffles.
    """

    key: str
    mean: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Importances:
    """The importance of all keys.

    Attributes:
        keys: the most important first; empty where it cannot be told.
        trials: number of finished trials that the forest was fitted to.
        fit: the forest's R² on trials that a tree has not seen (out of bag): near 1, the forest predicts the metric; at
            0 or below, it has learned nothing, and the importances mean nothing. NaN where there is no forest.
        why_not: a sentence that says why there are none; else empty.
    """

    keys: tuple[Importance, ...] = ()
    trials: int = 0
    fit: float = float("nan")
    why_not: str = ""


def importances(
    trials: Sequence[Trial], metric: str, *, seed: int = 0, trees: int = 100, repeats: int = 10
) -> Importances:
    """The permutation importance (Breiman, 2001) of each swept key, in a random forest over the finished trials.

    Numbers are used as they are; all other values, and those of a key that is not a number in every trial, are
    categories. Keys with one value are left out. Stopped trials are left out too: they ended after fewer rounds.

    Args:
        seed: of the forest and of the shuffles.
        trees: size of the forest.
        repeats: shuffles of each key.
    """
    measured = [(trial, last) for trial in trials if trial.state == "finished" and (last := trial.last(metric))]
    finished, figures = [trial for trial, _ in measured], np.array([last.mean for _, last in measured])
    keys = varied_keys(finished)
    if len(finished) < _FEWEST:
        return Importances(
            why_not=f"The importance of the keys needs at least {_FEWEST} finished trials that have measured {metric}; "
            f"{len(finished)} of {counted(len(trials), 'trial')} did."
        )
    if len(keys) < 2:
        which = f"Only {keys[0]}" if keys else "No key"
        return Importances(why_not=f"{which} has more than one value in the finished trials; importance compares keys.")
    if np.ptp(figures) == 0:
        return Importances(why_not=f"All finished trials have the same {metric}, so no key made a difference.")

    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    inputs = np.column_stack([_coded(finished, key) for key in keys])
    categories = [column for column, key in enumerate(keys) if not is_numeric(finished, key)]
    # The trees see a column for each category, and the shuffling a column for each key.
    coder = make_column_transformer((OneHotEncoder(sparse_output=False), categories), remainder="passthrough")
    forest = RandomForestRegressor(trees, oob_score=True, random_state=seed, n_jobs=1)
    model = make_pipeline(coder, forest).fit(inputs, figures)
    shuffled = permutation_importance(model, inputs, figures, n_repeats=repeats, random_state=seed, n_jobs=1)
    found = [
        Importance(key=key, mean=float(mean), deviation=float(deviation))
        for key, mean, deviation in zip(keys, shuffled.importances_mean, shuffled.importances_std, strict=True)
    ]
    return Importances(
        keys=tuple(sorted(found, key=lambda item: -item.mean)), trials=len(finished), fit=float(forest.oob_score_)
    )


def _coded(trials: Sequence[Trial], key: str) -> np.ndarray:
    """Values of a key, float64 [trials]: numbers, or the numbers of categories."""
    values = [trial.values.get(key) for trial in trials]
    if is_numeric(trials, key):
        return np.array(values, dtype=float)
    texts = [value_text(value) for value in values]
    codes = {text: code for code, text in enumerate(sorted(set(texts)))}
    return np.array([codes[text] for text in texts], dtype=float)
