"""The command line. Errors a user can make end with exit code 2 and one message."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kdray.cli_bench import bench_app
from kdray.cli_parts import ConfigArgument, Overrides, told
from kdray.cli_teacher import teacher_app

# Modules that bring torch or Ray are imported inside the commands: `kdray --help` answers at once.

app = typer.Typer(
    help="Distil a black-box image classifier into a model you own, with as few paid queries as possible.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(teacher_app, name="teacher")
app.add_typer(bench_app, name="bench")

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
    with told():
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
    with told():
        from kdray.artefacts import RunDirectory
        from kdray.display import make_display
        from kdray.run import resume

        directory = RunDirectory(run)
        with _stoppable(directory.path):
            _show(resume(directory, local=local, observer=make_display()))


@app.command("plan")
def plan_command(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Say what a run would do and cost: pool, queries, price, time, memory. Asks and spends nothing."""
    with told():
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
    with told():
        from kdray.artefacts import RunDirectory
        from kdray.report.page import write_report

        print(write_report([RunDirectory(run) for run in runs]))


@app.command("ledger")
def ledger_command(
    where: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run directory, or a ledger file.")],
    export: Annotated[Path | None, typer.Option(help="Write all answers to this parquet file.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Set the cap of a shared ledger file.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a query; default: the run's.")] = None,
) -> None:
    """The receipt: what was bought, for what, of whom, what it cost, what it saved, and what is left."""
    with told():
        from rich.console import Console

        from kdray.ledger_view import change_budget, find_book, show, write_parquet

        book = find_book(where, price)
        if budget is not None:
            change_budget(book, budget)
        show(book, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
        if export is not None:
            print(f"wrote {write_parquet(book, export):,} answers to {export}")


def main() -> None:
    """Entry point of `kdray` and `python -m kdray`."""
    # Also sent by 'ray job stop' and by schedulers: stop as cleanly as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


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
    lost = [f"{receipt.uncertain:,} sent and never answered"] if receipt.uncertain else []
    lost += [f"{receipt.rejected:,} with answers that make no sense"] if receipt.rejected else []
    spent += f" ({', '.join(lost)})" if lost else ""
    spent += "" if receipt.cost is None else f" for {receipt.cost:,.2f} {receipt.currency}"
    if receipt.estimate_queries:
        spent += f"; {receipt.estimate_queries:,} of the same budget to estimate m"
        spent += f" for {receipt.estimate_cost:,.2f}" if receipt.estimate_cost else ""
    spent += f"; apart from them {receipt.evaluation_queries:,} evaluation queries"
    spent += f" for {receipt.evaluation_cost:,.2f}" if receipt.evaluation_cost else ""
    report = write_report([RunDirectory(result.directory)])
    for name, value in (("spent", spent), ("run", result.directory), ("report", report)):
        console.print(f"{name:<7}{value}", soft_wrap=True, markup=False)
