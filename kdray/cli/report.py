"""`kdray report`."""

from pathlib import Path
from typing import Annotated

import typer

from kdray.cli.common import exit_on_error
from kdray.errors import ConfigError
from kdray.utils.files import expand, shown


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or a sweep.")],
    out: Annotated[Path | None, typer.Option(help="The page's file; default: RUN/report.html.")] = None,
) -> None:
    """Write RUN/report.html, one self-contained page; of several runs the first one's page compares them all. Of a
    sweep, write its page and tables again, from what its trials have measured so far."""
    with exit_on_error():
        from kdray.sweeps.folder import SweepFolder

        sweep = SweepFolder(runs[0])
        if sweep.is_sweep():
            if len(runs) > 1 or out is not None:
                raise ConfigError(f"{sweep.path} is a sweep; its page stays beside it: give it alone, without --out")
            from kdray.sweeps.outcome import write_results

            write_results(sweep.read_config(), sweep)
            print(shown(sweep.path / "report.html"))
            return
        from kdray.report.page import write_report
        from kdray.runs.directory import RunDirectory

        print(shown(write_report([RunDirectory(run) for run in runs], out and expand(out))))
