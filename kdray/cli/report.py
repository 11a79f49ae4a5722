"""`kdray report`."""

from pathlib import Path
from typing import Annotated

import typer

from kdray.cli.common import exit_on_error


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path | None, typer.Option(help="The page's file; default: RUN/report.html.")] = None,
) -> None:
    """Write RUN/report.html, one self-contained page; of several runs the first one's page compares them all."""
    with exit_on_error():
        from kdray.report.page import write_report
        from kdray.runs.directory import RunDirectory
        from kdray.utils.files import expand, shown

        print(shown(write_report([RunDirectory(run) for run in runs], out and expand(out))))
