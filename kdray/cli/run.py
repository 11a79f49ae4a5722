"""`kdray run` and `kdray resume`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import ConfigArgument, Local, Overrides, exit_on_error, output_width, stoppable
from kdray.errors import ConfigError

if TYPE_CHECKING:
    from kdray.runs.directory import RunDirectory
    from kdray.runs.result import Receipt, Result


def run_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/NAME, or the next free one.")] = None,
    local: Local = False,
) -> None:
    """Distil: query, train, choose, query again. Started again with the same config it goes on where it stopped."""
    with exit_on_error():
        from kdray.config.load import load_config

        parsed = load_config(config, overrides or [])  # before the next imports, which bring torch

        from kdray.observers.display import make_display
        from kdray.runs.directory import RunDirectory
        from kdray.runs.run import choose_directory, run

        directory = RunDirectory(out) if out else choose_directory(parsed, config.stem)
        with stoppable(directory.path):
            _show(run(parsed, directory, local=local, observer=make_display(), finish=_write_report))


def resume_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")], local: Local = False
) -> None:
    """Go on with a run that was stopped, killed or cut off."""
    with exit_on_error():
        from kdray.observers.display import make_display
        from kdray.runs.directory import RunDirectory
        from kdray.runs.run import resume

        directory = RunDirectory(run)
        with stoppable(directory.path):
            _show(resume(directory, local=local, observer=make_display(), finish=_write_report))


def _write_report(directory: "RunDirectory") -> None:
    """RUN/report.html, unless the run is read-only: a finished run may lie where nothing can be written."""
    from kdray.report.page import write_report

    with contextlib.suppress(ConfigError):
        write_report([directory])


def _show(result: "Result") -> None:
    """The closing table, the receipt, and where everything is."""
    from kdray.observers.display import result_table
    from kdray.runs.directory import RunDirectory
    from kdray.utils.console import make_console
    from kdray.utils.files import shown, why_unwritable

    console = make_console(width=output_width(140))
    console.print(result_table(result.history, result.receipt.budget))
    directory = RunDirectory(result.directory)
    report = shown(directory.report)
    if why_unwritable(directory.report) is not None:
        report = f"not written, the run is read-only: kdray report {shown(directory.path)} --out FILE"
    for name, value in (("spent", _spent(result.receipt)), ("run", shown(result.directory)), ("report", report)):
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
