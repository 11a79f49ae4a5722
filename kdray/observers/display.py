"""Displays of a run's progress: a live display on a terminal, plain lines elsewhere."""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from kdray.observers.base import Observer, RoundMetrics
from kdray.utils.console import in_notebook, make_console
from kdray.utils.text import counted, printable

_PHASES = {
    "estimate": "estimating m",
    "compare": "comparing kinds",
    "make": "making candidates",
    "choose": "choosing",
    "query": "asking",
    "train": "training",
    "evaluate": "evaluating",
}
_UNITS = {
    "estimate": "images",
    "compare": "epochs",
    "make": "steps",
    "choose": "candidates",
    "query": "images",
    "train": "epochs",
    "evaluate": "images",
}
_QUIET_S = 10.0  # least time between two plain lines within one phase


def make_display(stream: TextIO | None = None) -> Observer:
    """A live display in a notebook, or if `stream` (default: standard error) is a terminal, else plain lines."""
    if stream is None and in_notebook():
        return LiveDisplay(make_console())
    stream = stream or sys.stderr
    return LiveDisplay(make_console(stream)) if stream.isatty() else PlainDisplay(stream)


class _State(Observer):
    """The state that both displays show: round, phase, queries charged, and accuracy (or agreement) so far."""

    def __init__(self) -> None:
        self._rounds = self._budget = self._spent = self._round = 0
        self._in_rounds = False  # what has no rounds: `kdray train`, `kdray teacher train`
        self._phase = "prepare"
        self._measured = ""
        self._first: tuple[float, int] | None = None

    def begin(self, *, rounds: int, budget: int, spent: int, title: str) -> None:
        self._rounds, self._budget, self._spent, self._in_rounds = rounds, budget, spent, True

    def phase(self, round: int, name: str) -> None:
        self._round, self._phase, self._first = round, name, None

    def round_done(self, metrics: RoundMetrics) -> None:
        self._spent, self._measured = metrics.paid, metrics.measured()

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        self._spent = self._spent if spent is None else spent
        self._first = self._first or (time.monotonic(), done)

    def _rate(self, done: int) -> float:
        """Units a second since the first report: what came before it (a cold teacher, answers already known) would
        mislead. 0 until there is a second one."""
        began, first = self._first or (0.0, done)
        return (done - first) / max(time.monotonic() - began, 1e-9)

    def _head(self) -> str:
        name = _PHASES.get(self._phase, "preparing")
        return f"round {self._round}/{self._rounds} {name}" if self._in_rounds and self._phase in _PHASES else name

    def _status(self) -> str:
        parts = [f"queries {self._spent:,}/{self._budget:,}"] if self._budget else []
        return "  ".join([*parts, self._measured] if self._measured else parts)


class PlainDisplay(_State):
    """Prints one line per phase, and one every ten seconds within a long phase; for logs, pipes and Ray jobs."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._spoke = time.monotonic()

    def _say(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)
        self._spoke = time.monotonic()

    def begin(self, *, rounds: int, budget: int, spent: int, title: str) -> None:
        super().begin(rounds=rounds, budget=budget, spent=spent, title=title)
        self._say(
            f"run directory {title}: {counted(rounds, 'round')} after round 0, {spent:,} of {budget:,} queries spent"
        )

    def phase(self, round: int, name: str) -> None:
        super().phase(round, name)
        self._say(self._head())

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        super().progress(done, total, spent=spent)
        if time.monotonic() - self._spoke >= _QUIET_S:
            unit, rate = _UNITS.get(self._phase, "epochs"), self._rate(done)
            pace = f", {_pace(rate)}" if rate else ""
            left = f", {_duration((total - done) / rate)} left" if rate and total > done else ""
            self._say(f"{self._head()}: {done:,}/{total:,} {unit}{pace}{left}  {self._status()}".rstrip())

    def round_done(self, metrics: RoundMetrics) -> None:
        super().round_done(metrics)
        self._say(
            f"round {metrics.round}/{self._rounds} done in {sum(metrics.seconds.values()):.1f} s: {self._status()}"
        )

    def note(self, text: str) -> None:
        self._say(text)


def _pace(rate: float, unit: str = "") -> str:
    """The rate in units per second, or in seconds per unit if the rate is below one."""
    return f"{1 / rate:,.0f} s each" if 0 < rate < 0.95 else f"{rate:,.0f}{unit}/s"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"


class LiveDisplay(_State):
    """Shows a progress bar for the current phase, with rate, queries charged and accuracy."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", style="bold"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("preparing", total=None, rate="", status="")
        self._progress.start()

    def phase(self, round: int, name: str) -> None:
        super().phase(round, name)
        self._progress.reset(self._task, total=None, description=self._head(), rate="", status=self._status())

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        super().progress(done, total, spent=spent)
        pace = self._rate(done)
        rate = _pace(pace, f" {_UNITS.get(self._phase, 'epochs')}") if pace else ""
        self._progress.update(
            self._task, completed=done, total=total, description=self._head(), rate=rate, status=self._status()
        )

    def round_done(self, metrics: RoundMetrics) -> None:
        super().round_done(metrics)
        self._progress.console.print(
            f"round {metrics.round}/{self._rounds} done in {sum(metrics.seconds.values()):.1f} s: {self._status()}"
        )

    def note(self, text: str) -> None:
        self._progress.console.print(printable(text))

    def close(self) -> None:
        self._progress.stop()


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def result_table(history: list[RoundMetrics], budget: int) -> Table:
    """The table at the end of a run, with one row per round."""
    table = Table(title="kdray: student against teacher", title_justify="left")
    for name in (
        "round",
        "images",
        "queries",
        "student",
        "teacher",
        "success",
        "agreement",
        "choose s",
        "query s",
        "train s",
        "evaluate s",
    ):
        table.add_column(name, justify="right")
    for m in history:
        shares = [_share(share) for share in (m.student_accuracy, m.teacher_accuracy, m.success_rate, m.agreement)]
        if m.student_accuracy is None:  # the agreement is all there is
            shares[-1] += m.interval()
        table.add_row(
            str(m.round),
            f"{m.images:,}",
            f"{m.paid:,}/{budget:,}",
            *shares,
            *(f"{m.seconds[phase]:.1f}" for phase in ("choose", "query", "train", "evaluate")),
        )
    return table
