"""Observers that tell experiment trackers of a run."""

import hashlib
from collections.abc import Sequence

from kdray.config.files import read_yaml
from kdray.errors import ConfigError
from kdray.observers import Observer
from kdray.observers.tracking import Tracked, Tracker, Tracking, make_tracker
from kdray.runs.directory import RunDirectory


def make_trackers(names: Sequence[str]) -> list[Tracker]:
    """The trackers of these names; to be called before anything is begun or paid.

    Raises:
        ConfigError: there is no such tracker, one is named twice, or its packages are missing.
    """
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise ConfigError(f"--track: {twice[0]} is given twice; keep one of the two")
    return [make_tracker(name) for name in names]


def trackings(names: Sequence[str], directory: RunDirectory, observer: Observer) -> list[Observer]:
    """An observer for each of the trackers.

    Args:
        names: see `kdray.observers.tracking.tracker_names`.
        observer: told if one is given up.

    Raises:
        ConfigError: see `make_trackers`.
    """
    trackers = make_trackers(names)

    def known() -> Tracked:
        return Tracked(
            key=hashlib.blake2b(directory.owner().encode(), digest_size=8).hexdigest(),  # any folder name
            name=directory.path.name,
            folder=directory.path,
            report=directory.report,
            config=read_yaml(directory.config),
        )

    return [Tracking(tracker, known, observer.note) for tracker in trackers]
