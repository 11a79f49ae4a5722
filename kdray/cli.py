"""The command line. Errors a user can make end with exit code 2 and one message."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kdray.errors import KdrayError

# Modules that bring torch or Ray are imported inside the commands: `kdray --help` answers at once.

app = typer.Typer(
    help="Distil a black-box image classifier into a model you own, with as few paid queries as possible.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
teacher_app = typer.Typer(help="Local teachers to try kdray with.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see examples/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]...", help="Config fields to change.")]
Local = Annotated[bool, typer.Option("--local", help="Everything in this process: no Ray, the same selection.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command("run")
def run_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/NAME, or the next free one.")] = None,
    local: Local = False,
) -> None:
    """Distil: query, train, choose, query again. Started again with the same config it goes on where it stopped."""
    with _told():
        from kdray.artefacts import RunDirectory
        from kdray.config_file import load_config
        from kdray.display import make_display
        from kdray.run import choose_directory, run

        parsed = load_config(config, overrides or [])
        directory = RunDirectory(out) if out else choose_directory(parsed, config.stem)
        with _stoppable(directory.path):
            _show(run(parsed, directory, local=local, observer=make_display()))


@app.command("resume")
def resume_command(run: Run, local: Local = False) -> None:
    """Go on with a run that was stopped, killed or cut off."""
    with _told():
        from kdray.artefacts import RunDirectory
        from kdray.display import make_display
        from kdray.run import resume

        directory = RunDirectory(run)
        with _stoppable(directory.path):
            _show(resume(directory, local=local, observer=make_display()))


@app.command("plan")
def plan_command(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Say what a run would do and cost: pool, queries, price, time, memory. Asks and spends nothing."""
    with _told():
        from rich.console import Console
        from rich.table import Table

        from kdray.config_file import load_config
        from kdray.plan import make_plan, plan_lines

        table = Table(show_header=False, box=None)
        for name, value in plan_lines(make_plan(load_config(config, overrides or []))):
            table.add_row(f"[bold]{name}[/bold]", value)
        Console(highlight=False).print(table)


@app.command("report")
def report_command(runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")]) -> None:
    """Write RUN/report.html, one self-contained page; of several runs the first one's page compares them all."""
    with _told():
        from kdray.artefacts import RunDirectory
        from kdray.report.page import write_report

        print(write_report([RunDirectory(run) for run in runs]))


@teacher_app.command("train")
def teacher_train_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Train again and overwrite the weights.")] = False,
) -> None:
    """Train the local teacher of a config by its recipe (teacher.train) and write teacher.weights."""
    with _told():
        from kdray.config_file import load_config
        from kdray.display import make_display
        from kdray.errors import TeacherError
        from kdray.inputs import resolve
        from kdray.teachers.build import measure_teacher, train_teacher

        parsed = resolve(load_config(config, overrides or []))
        teacher = parsed.teacher
        if teacher.kind != "local":
            raise TeacherError(f"teacher.kind is {teacher.kind!r}: only a local teacher can be trained here")
        if Path(teacher.weights).exists() and not force:
            raise TeacherError(f"teacher.weights: {teacher.weights} is there already; give --force to train it again")
        display = make_display()
        try:
            train_teacher(teacher, lambda done, loss: display.progress(done, teacher.train.epochs))
        finally:
            display.close()
        print(f"wrote {teacher.weights}")
        if parsed.test is not None:
            print(f"accuracy on the test set: {measure_teacher(teacher, parsed.test):.2%}")


def main() -> None:
    """Entry point of `kdray` and `python -m kdray`."""
    # Also sent by 'ray job stop' and by schedulers: stop as cleanly as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


@contextmanager
def _told() -> Iterator[None]:
    """Turns an error made for users into its message and exit code 2."""
    try:
        yield
    except KdrayError as error:
        print(f"kdray: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except BrokenPipeError:  # the reader of our output has left: nothing to say, nobody to say it to
        raise typer.Exit(1) from None


@contextmanager
def _stoppable(directory: Path) -> Iterator[None]:
    """Turns Ctrl-C into a clean stop that says how to go on, and an error half-way into the same advice."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nkdray: stopped; nothing is lost. Go on with: kdray resume {directory}", file=sys.stderr)
        raise typer.Exit(130) from None


def _show(result) -> None:
    """The closing table, the receipt and where everything is."""
    from rich.console import Console

    from kdray.artefacts import RunDirectory
    from kdray.display import result_table
    from kdray.report.page import write_report

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    receipt = result.receipt
    console.print(result_table(result.history, receipt.budget))
    spent = f"{receipt.queries:,} of {receipt.budget:,} training queries"
    spent += f" ({receipt.uncertain:,} sent and never answered)" if receipt.uncertain else ""
    spent += "" if receipt.cost is None else f" for {receipt.cost:,.2f} {receipt.currency}"
    spent += f"; apart from them {receipt.evaluation_queries:,} evaluation queries"
    spent += f" for {receipt.evaluation_cost:,.2f}" if receipt.evaluation_cost else ""
    report = write_report([RunDirectory(result.directory)])
    for name, value in (("spent", spent), ("run", result.directory), ("report", report)):
        console.print(f"{name:<7}{value}", soft_wrap=True, markup=False)
