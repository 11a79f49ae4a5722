"""`kdray run`, `kdray demo` and `kdray resume`."""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import ConfigArgument, Local, Overrides, Track, exit_on_error, output_width, stoppable
from kdray.errors import ConfigError
from kdray.utils.files import is_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kdray.config.money import LedgerSection
    from kdray.observers import Observer
    from kdray.runs.directory import RunDirectory
    from kdray.runs.result import Receipt, Result


def run_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|ADDRESS",
            help="Run directory, here or at an address such as s3://BUCKET/RUN; default: runs/NAME, or the next free.",
        ),
    ] = None,
    local: Local = False,
    track: Track = None,
) -> None:
    """Distil: query, train, choose, query again. Started again with the same config it goes on where it stopped."""
    with exit_on_error():
        from kdray.config.load import load_config

        parsed = load_config(config, overrides or [])  # before the next imports, which bring torch
        if out is None:
            from kdray.runs.run import choose_directory

            out = str(choose_directory(parsed, config.stem).path)
        with _opened(out, parsed.ledger, _names(track)) as (directory, observer):
            from kdray.runs.run import run

            _show(run(parsed, directory, local=local, observer=observer, finish=_write_report), directory)


def demo_command(
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Run directory; default: runs/demo-DATE-TIME.")
    ] = None,
    local: Local = False,
) -> None:
    """Distil a teacher of handwritten digits with 1,000 queries: examples/digits.yaml, in about a minute."""
    if out is None:
        from kdray.runs.directory import runs_folder

        out = str(runs_folder() / f"demo-{time.strftime('%Y%m%d-%H%M%S')}")
    run_command(Path("examples/digits.yaml"), None, out, local, None)


def resume_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or the address of one.")],
    local: Local = False,
    track: Track = None,
) -> None:
    """Go on with a run that was stopped, killed or cut off."""
    with exit_on_error(), _opened(run, track=_names(track)) as (directory, observer):
        from kdray.runs.run import resume

        _show(resume(directory, local=local, observer=observer, finish=_write_report), directory)


def _names(track: str | None) -> list[str]:
    """The names of --track."""
    return [] if track is None else [name.strip() for name in track.split(",")]


@contextlib.contextmanager
def _opened(
    where: str, ledger: "LedgerSection | None" = None, track: "Sequence[str]" = ()
) -> "Iterator[tuple[RunDirectory, Observer]]":
    """The run directory that a user named, and who is told of the run. One at an address is brought here and back."""
    from kdray.observers import Observers
    from kdray.observers.display import make_display
    from kdray.runs.directory import RunDirectory
    from kdray.runs.tracked import make_trackers, trackings

    make_trackers(track)
    if not is_address(where):
        directory = RunDirectory(where)
        display = make_display()
        told = trackings(track, directory, display)
        with stoppable(directory.name):
            yield directory, Observers([display, *told])
        return
    from kdray.runs.remote import check_ledger, mirrored

    if ledger is not None:
        check_ledger(ledger, where)
    with (
        stoppable(where),
        contextlib.closing(make_display()) as display,
        mirrored(where, display) as (directory, mirror),
    ):
        yield directory, Observers([display, mirror, *trackings(track, directory, display)])


def _write_report(directory: "RunDirectory") -> None:
    """RUN/report.html, unless the run is read-only: a finished run may lie where nothing can be written."""
    from kdray.report.page import write_report

    with contextlib.suppress(ConfigError):
        write_report([directory])


def _show(result: "Result", directory: "RunDirectory") -> None:
    """The closing table, the receipt, and where everything is."""
    from kdray.observers.display import result_table
    from kdray.utils.console import make_console
    from kdray.utils.files import shown, why_unwritable

    console = make_console(width=output_width(140))
    console.print(result_table(result.history, result.receipt.budget))
    report = shown(directory.report)
    if why_unwritable(directory.report) is not None:
        report = f"not written, the run is read-only: kdray report {shown(directory.path)} --out FILE"
    for name, value in (("spent", _spent(result.receipt)), ("run", shown(directory.name)), ("report", report)):
        console.print(f"{name:<7}{value}", soft_wrap=True)


def _spent(receipt: "Receipt") -> str:
    text = f"{receipt.queries:,} of {receipt.budget:,} training queries"
    lost = [f"{receipt.uncertain:,} sent and never answered"] if receipt.uncertain else []
    lost += [f"{receipt.rejected:,} with answers that make no sense"] if receipt.rejected else []
    text += f" ({', '.join(lost)})" if lost else ""
    text += "" if receipt.cost is None else f" for {receipt.cost:,.2f} {receipt.currency}"
    if receipt.estimate_queries:
        text += f"; {receipt.estimate_queries:,} of the same budget to estimate m"
        text += f" for {receipt.estimate_cost:,.2f}" if receipt.estimate_cost else ""
    text += f"; apart from them {receipt.evaluation_queries:,} evaluation queries"
    return text + (f" for {receipt.evaluation_cost:,.2f}" if receipt.evaluation_cost else "")
