"""SWEEP/report.html, a self-contained page: the best trial, what the sweep cost, figures, and all trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdray.pages.html import money, render
from kdray.sweeps.figures import importance_figure, key_figures, queries_figure
from kdray.sweeps.importance import importances
from kdray.sweeps.parallel import parallel_figure
from kdray.sweeps.results import STATES, Mode, Trial, best_trial, lead, scope
from kdray.sweeps.shown import figure_text, short_text, swept_keys, value_text
from kdray.utils.files import write_bytes
from kdray.utils.text import counted


@dataclass(frozen=True, kw_only=True)
class SweepFacts:
    """What the page tells of a sweep, beside its trials.

    Attributes:
        title: name of the sweep.
        metric: the figure that decides.
        mode: whether its highest or its lowest value is best.
        cap: queries that all trials together may be charged, or None.
        bought: queries that they were charged, by the ledger; without those on test images.
        price: of a query, or None.
        currency: of the price.
        config: the sweep file, as YAML.
        command: `kdray run` with the best trial's values; empty where there is no best trial.
    """

    title: str
    metric: str
    mode: Mode
    cap: int | None
    bought: int
    price: float | None
    currency: str
    config: str
    command: str


def write_page(folder: Path, facts: SweepFacts, trials: Sequence[Trial]) -> Path:
    """Write FOLDER/report.html and return its path."""
    metric, mode = facts.metric, facts.mode
    best = best_trial(trials, metric, mode)
    keys, saved = swept_keys(trials), sum(trial.saved for trial in trials)
    found = importances(trials, metric)
    page = render(
        Path(__file__).with_name("page.html"),
        facts=facts,
        trials=_sorted(trials, metric, mode, best),
        best=best,
        last=best and best.last(metric),
        keys=keys,
        scope=scope(trials, metric, mode),
        lead=lead(trials, metric, mode),
        states=_states(trials),
        unfinished=sum(trial.state in ("waiting", "running") for trial in trials),
        saved=saved,
        asked=facts.bought + saved,
        cost=lambda queries: money(None if facts.price is None else queries * facts.price, facts.currency),
        figure=lambda trial: figure_text(metric, *_mean_and_error(trial, metric)),
        value=lambda trial, key: value_text(trial.values[key]) if key in trial.values else "–",
        short=lambda trial, key: short_text(trial.values[key]) if key in trial.values else "–",
        counted=counted,
        seeds=max((len(trial.seeds) for trial in trials), default=1),
        queries=queries_figure(trials, metric, mode),
        parallel=parallel_figure(trials, metric, mode),
        importances=found,
        importance=importance_figure(found),
        about_keys=key_figures(trials, metric, mode),
    )
    path = folder / "report.html"
    write_bytes(path, page)
    return path


def _mean_and_error(trial: Trial, metric: str) -> tuple[float | None, float | None]:
    last = trial.last(metric)
    return (None, None) if last is None else (last.mean, last.error)


def _sorted(trials: Sequence[Trial], metric: str, mode: Mode, best: Trial | None) -> list[Trial]:
    """The best trial, the other finished ones by their figure, then the rest by theirs, of whatever round it is."""
    sign = -1.0 if mode == "max" else 1.0

    def rank(trial: Trial) -> tuple[bool, bool, bool, float, float, str]:
        last = trial.last(metric)
        figure, asked = (0.0, 0.0) if last is None else (sign * last.mean, last.asked)
        return trial is not best, trial.state != "finished", last is None, figure, asked, trial.name

    return sorted(trials, key=rank)


def _states(trials: Sequence[Trial]) -> str:
    """How many trials are in which state, as in "5 finished, 1 failed"."""
    states = [trial.state for trial in trials]
    return ", ".join(f"{states.count(state)} {state}" for state in STATES[::-1] if state in states) or "no trial"
