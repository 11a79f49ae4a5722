"""results.csv, results.parquet and rounds.csv of a sweep."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kdray.sweeps.results import Mode, Trial, best_trial
from kdray.sweeps.shown import swept_keys, value_text
from kdray.utils.files import shown, write_bytes

FIGURES = ("student_accuracy", "success_rate", "agreement", "loss")
"""The figures of a round that all tables have, beside the sweep's metric."""


def write_tables(folder: Path, trials: Sequence[Trial], metric: str, mode: Mode) -> None:
    """Write the tables of a sweep.

    results.csv and results.parquet have one row a trial: its values, its figures after its last round, and its queries.
    rounds.csv has one row for each round that all seeds of a trial have finished. Figures are means over the seeds; a
    name that ends in _error is of the mean's standard error. A cell is empty where nothing was measured. A column of
    values of different types, or of lists, is text as a config would have it.
    """
    results = _results(trials, metric, mode)
    write_bytes(folder / "results.csv", _csv(results))
    buffer = io.BytesIO()
    pq.write_table(results, buffer)
    write_bytes(folder / "results.parquet", buffer.getvalue())
    write_bytes(folder / "rounds.csv", _csv(_rounds(trials, metric)))


def _results(trials: Sequence[Trial], metric: str, mode: Mode) -> pa.Table:
    best, lasts = best_trial(trials, metric, mode), [trial.last(metric) for trial in trials]
    columns = {
        "name": pa.array([shown(trial.name) for trial in trials], pa.string()),
        "state": pa.array([trial.state for trial in trials], pa.string()),
        "best": pa.array([trial is best for trial in trials], pa.bool_()),
        "cause": pa.array([shown(trial.cause) or None for trial in trials], pa.string()),
    }
    columns |= {key: _column([trial.values.get(key) for trial in trials]) for key in swept_keys(trials)}
    columns |= {
        "seeds": pa.array([" ".join(map(str, trial.seeds)) for trial in trials], pa.string()),
        "rounds": pa.array([trial.rounds for trial in trials], pa.int64()),
        metric: pa.array([last and last.mean for last in lasts], pa.float64()),
        f"{metric}_error": pa.array([last and last.error for last in lasts], pa.float64()),
    }
    for figure in FIGURES:
        if figure != metric:
            columns[figure] = pa.array([_mean(trial, figure) for trial in trials], pa.float64())
    for count in ("asked", "bought", "saved"):
        columns[count] = pa.array([getattr(trial, count) for trial in trials], pa.int64())
    return pa.table(columns)


def _mean(trial: Trial, figure: str) -> float | None:
    last = trial.last(figure)
    return None if last is None else last.mean


def _rounds(trials: Sequence[Trial], metric: str) -> pa.Table:
    figures = dict.fromkeys((metric, *FIGURES))
    rows = []
    for trial in trials:
        measured = {figure: {after.round: after for after in trial.measured(figure)} for figure in figures}
        for number in range(trial.rounds):
            name = trial.histories[0][number].round
            row: dict[str, Any] = {"name": shown(trial.name), "round": name, "asked": trial.asked_after(number)}
            for figure in figures:
                after = measured[figure].get(name)
                row |= {figure: after and after.mean, f"{figure}_error": after and after.error}
            rows.append(row)
    fields = [("name", pa.string()), ("round", pa.int64()), ("asked", pa.float64())]
    fields += [(name, pa.float64()) for figure in figures for name in (figure, f"{figure}_error")]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _column(values: list[Any]) -> pa.Array:
    """Values as whole numbers, numbers, booleans or text: the first of these that all of them are, else as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return pa.array(values, pa.int64())
    if float in kinds and kinds <= {int, float} and all(abs(v) <= 2**53 for v in values if type(v) is int):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if kinds <= {str}:
        return pa.array([None if value is None else shown(value) for value in values], pa.string())
    return pa.array([None if value is None else value_text(value) for value in values], pa.string())


def _csv(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()
