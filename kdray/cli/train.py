"""`kdray train`: students from answers that are bought already."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import exit_on_error, output_width
from kdray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from kdray.runs.students import LearningCurve

_CHANGEABLE = ("student", "seed", "test")
"""Sections of a run's config that change what its answers teach, or how that is measured."""


def train_command(
    labelled: Annotated[
        Path, typer.Argument(metavar="LABELLED", help="A run directory, or a folder of labelled images.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key.sub=value]...", help="Fields of student, seed or test to change."),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="A student on the first N images, for each N; default: one on all."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another network: the same as student.model=NAME.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUN/students, or the next free one.")] = None,
) -> None:
    """Train students on images that are bought already, by a run or by several: a learning curve without a query."""
    with exit_on_error():
        from kdray.utils.files import expand, shown

        counts = None if first is None else _counts(first)
        changes = [*(overrides or []), *([] if model is None else [f"student.model={model}"])]
        _check_overrides(changes)
        train = _trainer(expand(labelled), changes)

        from kdray.observers.display import make_display
        from kdray.utils.console import make_console

        display = make_display()
        try:
            curve = train(first=counts, out=expand(out) if out else None, observer=display)
        except KeyboardInterrupt:
            print("\nkdray: stopped; the students that were finished are kept", file=sys.stderr)
            raise typer.Exit(130) from None
        finally:
            display.close()
        console = make_console(width=output_width(140))
        console.print(_table(curve))
        for name, value in (("students", curve.directory), ("table", curve.table)):
            console.print(f"{name:<10}{shown(value)}", soft_wrap=True)


def _trainer(where: Path, changes: list[str]) -> "Callable[..., LearningCurve]":
    """What trains students on the answers of the run at `where`, or on the labelled images there."""
    from kdray.runs.directory import find_run

    if (run := find_run(where)) is None:
        from kdray.runs.labelled_set import learn_set

        return partial(learn_set, where, changes)
    from kdray.config.load import load_config

    config = load_config(run.config, changes)  # before the next import, which brings torch
    from kdray.runs.learning import learn

    return partial(learn, run, config)


def _counts(text: str) -> list[int]:
    """The numbers of --first."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit()):
            raise ConfigError(f"--first: {part!r} is not a number of images; give one or more, as in --first 1000,2000")
    counts = [int(part) for part in parts]
    if twice := [count for count in counts if counts.count(count) > 1]:
        raise ConfigError(f"--first: {twice[0]} is given twice; keep one of the two")
    return counts


def _check_overrides(overrides: list[str]) -> None:
    for text in overrides:
        field, equals, _ = text.partition("=")
        if equals and field.partition(".")[0] not in _CHANGEABLE:
            raise ConfigError(
                f"override {text!r}: nothing is chosen or asked here, so {field} would change nothing; "
                f"{', '.join(_CHANGEABLE[:-1])} and {_CHANGEABLE[-1]} can be changed"
            )


def _table(curve: "LearningCurve") -> "Table":
    from rich.table import Table

    table = Table(title="kdray: students of bought answers", title_justify="left")
    for name in ("first", "images", "round", "student", "teacher", "success", "agreement", "loss", "train s"):
        table.add_column(name, justify="right")
    for point in curve.points:
        scores = point.scores
        shares = (scores.student, scores.teacher, scores.success, scores.agreement)
        table.add_row(
            f"{point.first:,}",
            f"{point.images:,}",
            str(point.round),
            *("-" if share is None else f"{share:.2%}" for share in shares),
            f"{point.loss:.4f}",
            f"{point.seconds:.1f}",
        )
    return table
