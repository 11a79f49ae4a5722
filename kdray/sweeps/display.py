"""What a sweep shows while it runs: one live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kdray.sweeps.results import Measured, Trial
from kdray.sweeps.shown import figure_text, short_text, swept_keys, trial_words
from kdray.utils.console import make_console
from kdray.utils.text import counted, printable

_ROWS = 30  # of a live table; a longer one does not fit a terminal


class SweepDisplay:
    """Shows nothing."""

    def begin(self, title: str, trials: int, metric: str) -> None:
        """The sweep starts or goes on."""

    def update(self, trial: Trial, trials: Sequence[Trial]) -> None:
        """A trial has changed; all trials that have begun."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def close(self) -> None:
        """The sweep ended."""


class PlainSweepDisplay(SweepDisplay):
    """Prints a line for each round of a trial, and for its end; for logs, pipes and Ray jobs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._metric, self._total = "", 0

    def begin(self, title: str, trials: int, metric: str) -> None:
        self._metric, self._total = metric, trials
        self.note(f"sweep {title}: {counted(trials, 'trial')}")

    def update(self, trial: Trial, trials: Sequence[Trial]) -> None:
        measured = trial.measured(self._metric)
        about = f"round {measured[-1].round}, {self._metric} {_figure(measured[-1], self._metric)}" if measured else ""
        ended = sum(other.state in ("finished", "stopped", "failed") for other in trials)
        state = "" if trial.state == "running" else f" {trial.state} ({ended} of {self._total} ended)"
        told = ": ".join(part for part in (f"{trial_words(trial.values)}{state}", trial.cause or about) if part)
        self.note(told)

    def note(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)


class LiveSweepDisplay(SweepDisplay):
    """One table of the trials, which changes in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._metric, self._total = "", 0
        self._began = time.monotonic()

    def begin(self, title: str, trials: int, metric: str) -> None:
        self._metric, self._total = metric, trials
        self._console.print(f"sweep {title}: {counted(trials, 'trial')}")
        self._live.start()

    def update(self, trial: Trial, trials: Sequence[Trial]) -> None:
        # Those under way first, then those that ended last.
        order = {"running": 0, "failed": 1, "finished": 2, "stopped": 3, "waiting": 4}
        shown = sorted(trials, key=lambda trial: order[trial.state])[:_ROWS]
        table = trial_table(shown, self._metric)
        ended = sum(other.state in ("finished", "stopped", "failed") for other in trials)
        more = f", {len(trials) - len(shown)} more not shown" if len(trials) > len(shown) else ""
        table.caption = (
            f"{ended} of {counted(self._total, 'trial')} ended, {time.monotonic() - self._began:,.0f} s{more}"
        )
        self._live.update(table, refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(printable(text))

    def close(self) -> None:
        self._live.stop()


def make_sweep_display(stream: TextIO | None = None) -> SweepDisplay:
    """A live table if `stream` (default: standard error) is a terminal, else plain lines."""
    stream = stream or sys.stderr
    return LiveSweepDisplay(make_console(stream)) if stream.isatty() else PlainSweepDisplay(stream)


def trial_table(trials: Sequence[Trial], metric: str) -> Table:
    """A row for each trial: its values, how far it is, its figure, and what it asked, bought and saved."""
    table = Table(box=None, pad_edge=False, caption_justify="left")
    keys = swept_keys(trials)
    for name in (*keys, "state"):
        table.add_column(Text(name))
    for name in ("round", metric, "asked", "bought", "saved"):
        table.add_column(name, justify="right")
    for trial in trials:
        measured = trial.measured(metric)
        last = measured[-1] if measured else None
        table.add_row(
            *(Text(short_text(trial.values[key]) if key in trial.values else "") for key in keys),
            trial.state,
            "" if last is None else str(last.round),
            "" if last is None else _figure(last, metric),
            *(f"{count:,}" for count in (trial.asked, trial.bought, trial.saved)),
        )
    return table


def _figure(measured: Measured, metric: str) -> str:
    return figure_text(metric, measured.mean, measured.error)
