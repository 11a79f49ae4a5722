"""TensorBoard events of a sweep: a folder for each trial, with its figures and, for the HPARAMS tab, its values."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from kdray.sweeps.results import Trial
from kdray.sweeps.shown import swept_keys, value_text
from kdray.sweeps.tables import FIGURES
from kdray.utils.files import shown


def write_events(folder: Path, trials: Sequence[Trial], metric: str) -> None:
    """Replace `folder` by the events of these trials.

    FOLDER/TRIAL has the means over the seeds of the metric and of the usual figures, at x = queries asked, rounded; and
    the values of the swept keys, which the HPARAMS tab shows beside the figures after the last round.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    figures = tuple(dict.fromkeys((metric, *FIGURES)))
    values = _values(trials)
    # `SummaryWriter.add_hparams` would write what the tab's columns are once a trial, and an extra scalar a figure. The
    # first trial's columns would count, with those figures alone that it measured. So they are written once, of all.
    columns, _, _ = hparams(values[0] if trials else {}, dict.fromkeys(figures, 0.0))
    with SummaryWriter(str(fresh)) as writer:
        writer.file_writer.add_summary(columns)
    for trial, row in zip(trials, values, strict=True):
        with SummaryWriter(str(fresh / trial.name)) as writer:
            _, start, end = hparams(row, {})
            writer.file_writer.add_summary(start)
            for figure in figures:
                for after in trial.measured(figure):
                    writer.add_scalar(figure, after.mean, round(after.asked))
            if trial.state in ("finished", "stopped"):
                writer.file_writer.add_summary(end)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _values(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The values of each trial in the types that the tab knows: one type a key, else text."""
    rows: list[dict[str, Any]] = [{} for _ in trials]
    for key in swept_keys(trials):
        column = [trial.values.get(key) for trial in trials]
        kinds = {type(value) for value in column}
        usable = kinds == {bool} or kinds <= {int, float} or kinds == {str}
        for row, value in zip(rows, column, strict=True):
            row[key] = (shown(value) if isinstance(value, str) else value) if usable else value_text(value)
    return rows
