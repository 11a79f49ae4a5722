"""The command line: its commands, and where it starts. Errors a user can make end with exit code 2 and one message."""

import platform
import signal
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from kdray import __version__
from kdray.cli.bench import bench_app
from kdray.cli.common import OnceCommand, speak_any_encoding
from kdray.cli.evaluate import evaluate_command
from kdray.cli.export import export_command
from kdray.cli.init import init_command
from kdray.cli.ledger import ledger_command
from kdray.cli.plan import plan_command
from kdray.cli.preview import preview_command
from kdray.cli.report import report_command
from kdray.cli.run import demo_command, resume_command, run_command
from kdray.cli.serve import serve_command
from kdray.cli.status import status_command
from kdray.cli.sweep import sweep_command
from kdray.cli.teacher import teacher_app
from kdray.cli.train import train_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    init_command,
    run_command,
    demo_command,
    resume_command,
    sweep_command,
    train_command,
    plan_command,
    preview_command,
    evaluate_command,
    export_command,
    serve_command,
    status_command,
    report_command,
    ledger_command,
)
for command in COMMANDS:
    app.command(command.__name__.removesuffix("_command"), cls=OnceCommand)(command)
app.add_typer(teacher_app, name="teacher")
app.add_typer(bench_app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        others = ", ".join(f"{name} {_installed(name)}" for name in ("torch", "ray"))
        print(f"kdray {__version__}, Python {platform.python_version()}, {others}")
        raise typer.Exit


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@app.callback()
def every_command(
    show: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the versions that matter, and exit."
        ),
    ] = False,
) -> None:
    """Distil a black-box image classifier into a model you own, with as few paid queries as possible."""


def main() -> None:
    """Entry point of `kdray` and `python -m kdray`."""
    speak_any_encoding()
    # Also sent by 'ray job stop' and by schedulers: stop as cleanly as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
