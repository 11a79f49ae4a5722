"""Experiment trackers: services that collect the figures of many runs. They get figures, the config and the report, and
neither answers nor weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kdray.errors import ConfigError
from kdray.observers.base import Observer, RoundMetrics
from kdray.sections.registry import Catalogue
from kdray.utils.packages import why_missing

PROJECT = "kdray"
"""Project, or experiment, of all runs, unless the tracker's own settings name another."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A run, as trackers know it.

    Attributes:
        key: names the run for good; one that is resumed or moved keeps it. Letters and digits.
        name: for people.
        folder: of the run.
        report: its page, which need not be there.
        config: as resolved.
    """

    key: str
    name: str
    folder: Path
    report: Path
    config: Mapping[str, Any]


class Tracker(ABC):
    """A connection to a service, for one run. Any method may fail: `Tracking` sees to that.

    Attributes:
        name: on the command line; also the extra of kdray that brings its packages.
        needs: these packages, as they are imported.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    @classmethod
    def check_installed(cls) -> None:
        """Refuse a tracker whose packages are missing.

        Raises:
            ConfigError: with the command that installs them.
        """
        if why := why_missing(f"--track {cls.name}", cls.needs, cls.name):
            raise ConfigError(why)

    @abstractmethod
    def start(self, run: Tracked) -> None:
        """Begin a run, or go on with the one of this key."""

    @abstractmethod
    def log(self, figures: Mapping[str, float], queries: int) -> None:
        """Figures of a round, after so many queries."""

    @abstractmethod
    def attach(self, page: Path) -> None:
        """Keep the report with the run."""

    @abstractmethod
    def end(self) -> None:
        """The run ended, or was interrupted."""


class Tracking(Observer):
    """Tells a tracker of a run. A tracker that fails is given up with a note: it must not end the run.

    Args:
        tracker: of the run.
        run: what is known of it, asked when it begins.
        note: told why a tracker was given up.
    """

    def __init__(self, tracker: Tracker, run: Callable[[], Tracked], note: Callable[[str], None]) -> None:
        self._tracker, self._run, self._note = tracker, run, note
        self._of: Tracked | None = None

    def begin(self, *, rounds: int, budget: int, spent: int, title: str) -> None:
        """See `Observer`."""
        found = self._run()
        if self._try(lambda: self._tracker.start(found)):
            self._of = found

    def round_done(self, metrics: RoundMetrics) -> None:
        """See `Observer`."""
        if self._of is not None:
            self._try(lambda: self._tracker.log(metrics.figures(), metrics.paid))

    def close(self) -> None:
        """See `Observer`."""
        if self._of is None:
            return
        page = self._of.report
        if page.exists():
            self._try(lambda: self._tracker.attach(page))
        if self._of is not None:
            self._try(self._tracker.end)
        self._of = None

    def _try(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # whatever a service, a network or a version may raise
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            self._of = None
            self._note(f"{self._tracker.name} is not told of this run any more: {why}")
            return False
        return True


_TRACKERS: dict[str, type[Tracker]] = {}
_CATALOGUE = Catalogue("kdray.observers.trackers")


def register_tracker(kind: type[Tracker]) -> type[Tracker]:
    """Class decorator: a tracker by its name."""
    if kind.name in _TRACKERS:
        raise ValueError(f"two trackers are named {kind.name!r}")
    _TRACKERS[kind.name] = kind
    return kind


def tracker_names() -> list[str]:
    """Names of all trackers, sorted."""
    _CATALOGUE.load()
    return sorted(_TRACKERS)


def make_tracker(name: str) -> Tracker:
    """The tracker of that name, with its packages there.

    Raises:
        ConfigError: there is none, or a package is missing.
    """
    if name not in (names := tracker_names()):
        raise ConfigError(f"--track: {name!r} is not one of {', '.join(names)}")
    _TRACKERS[name].check_installed()
    return _TRACKERS[name]()
