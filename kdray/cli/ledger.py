"""`kdray ledger`: a receipt for people, on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import exit_on_error, output_width
from kdray.errors import ConfigError, LedgerError
from kdray.utils.files import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdray.ledger.receipt import Account, Line
    from kdray.ledger.store import Ledger

_COUNTS = ("requests", "answered", "rejected", "uncertain", "charged", "returned", "retries", "hits")


def ledger_command(
    where: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|FILE...", help="A run directory, a sweep, or a ledger file; runs to merge."),
    ],
    export: Annotated[Path | None, typer.Option(help="Write all answers to this parquet file.")] = None,
    merge: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the answers of several runs as one labelled set.")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Set the cap of a shared ledger file.")] = None,
    forget_declined: Annotated[
        bool, typer.Option("--forget-declined", help="Ask about images again that their teacher declined.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of a query; default: that of the run or the sweep.")
    ] = None,
) -> None:
    """The receipt: what was bought, for what, from whom, what it cost, what it saved, and what is left."""
    with exit_on_error():
        from kdray.utils.console import make_console
        from kdray.utils.files import expand
        from kdray.utils.text import counted

        if merge is not None:
            if export is not None or budget is not None or forget_declined or price is not None:
                raise ConfigError("--merge writes a labelled set and does nothing else; give the other options apart")
            _merge([expand(path) for path in where], expand(merge))
            return
        if len(where) > 1:
            raise ConfigError(f"{len(where)} paths, but a receipt is of one; --merge DIR takes the answers of several")
        if export is not None:
            export = expand(export)
        book = find_book(expand(where[0]), price)
        if budget is not None:
            change_budget(book, budget)
        if forget_declined:
            with opened(book, to_write=True) as ledger:
                print(f"forgot {counted(ledger.forget_declined(), 'declined image')} of {book.path}")
        show(book, make_console(width=output_width()))
        if export is not None:
            print(f"wrote {write_parquet(book, export):,} answers to {shown(export)}")


def _merge(runs: list[Path], out: Path) -> None:
    from kdray.runs.directory import RunDirectory
    from kdray.runs.labelled_set import merge
    from kdray.utils.text import counted

    merged = merge([RunDirectory(run) for run in runs], out)
    twice = (
        f"; {merged.twice:,} more answers were to the same images, which have their first one" if merged.twice else ""
    )
    print(f"{counted(merged.images, 'image')} of {counted(len(runs), 'run')} in {shown(merged.folder)}{twice}")
    print(f"a student of them: kdray train {shown(merged.folder)} student.model=MODEL")


@dataclass(frozen=True, kw_only=True)
class Book:
    """A ledger and what to show of it.

    Attributes:
        path: of the file.
        owner: show this run's part; None shows everybody's.
        price: of a query, or None.
        currency: of the price.
    """

    path: Path
    owner: str | None
    price: float | None
    currency: str


def find_book(path: Path, price: float | None) -> Book:
    """The ledger of a run directory or of a sweep, or the file itself.

    Raises:
        LedgerError: neither is there.
    """
    from kdray.config.money import read_money, read_price_of_sweep
    from kdray.runs.directory import RunDirectory

    if path.is_file():
        if path.stat().st_size == 0:  # SQLite would make a ledger of it
            raise LedgerError(f"{path} is empty; it is no ledger")
        return Book(path=path, owner=None, price=price, currency="")
    run = RunDirectory(path)
    if (path / "sweep.yaml").is_file() and run.ledger.is_file():
        known, currency = read_price_of_sweep(path / "sweep.yaml")
        return Book(path=run.ledger, owner=None, price=known if price is None else price, currency=currency)
    if not run.is_run():
        raise LedgerError(f"{path} is neither a run directory nor a ledger file")
    budget, ledger = read_money(run.config)
    file = run.ledger_of(ledger)
    if not file.is_file():
        raise LedgerError(f"{path} has no ledger yet: {file} is not there")
    price = budget.price_per_query if price is None else price
    return Book(path=file, owner=run.owner(), price=price, currency=budget.currency)


@contextmanager
def opened(book: Book, *, to_write: bool = False) -> "Iterator[Ledger]":
    """The ledger of a book, for a moment."""
    from kdray.ledger.store import Ledger

    ledger = Ledger(book.path, read_only=not to_write)
    try:
        yield ledger
    finally:
        ledger.close()


def change_budget(book: Book, cap: int) -> None:
    """Set the cap of the whole file.

    Raises:
        ConfigError: the file is a run's own, whose cap its config holds.
    """
    if book.owner is not None:
        raise ConfigError(
            f"--budget changes the cap of a shared ledger; give its file ({book.path}). A run's own budget is part of "
            "its config: start a new run with another budget.queries and the same ledger.path"
        )
    with opened(book, to_write=True) as ledger:
        ledger.change_budget(cap)


def show(book: Book, console: "Console") -> None:
    """Print the receipt."""
    from rich.text import Text

    from kdray.ledger.receipt import accounts, lines, reasons, total

    with opened(book) as ledger:
        found = lines(ledger, book.owner)
        held = accounts(ledger, book.owner)
        why = reasons(ledger, book.owner)
    console.print(Text("ledger", "bold"), shown(book.path), soft_wrap=True)
    console.print(_table(book, found))
    for teacher in dict.fromkeys(line.teacher for line in found):
        of = total([line for line in found if line.teacher == teacher])
        console.print(f"teacher {teacher}: {of.charged:,} charged, {of.hits:,} free", soft_wrap=True)
    for account in held:
        if account.cap is not None:
            console.print(_balance(book, account), soft_wrap=True)
    for state, reason, queries in why:
        console.print(f"{queries:,} {state}: {reason}", soft_wrap=True)


def write_parquet(book: Book, path: Path) -> int:
    """Export all answers of the file; how many there were."""
    from kdray.ledger.receipt import export

    with opened(book) as ledger:
        return export(ledger, path)


def _table(book: Book, found: "list[Line]") -> "Table":
    from rich.table import Table

    from kdray.ledger.receipt import total
    from kdray.ledger.records import AFTER

    table = Table(box=None, pad_edge=False)
    everybody = book.owner is None
    for name in (*(["run"] if everybody else []), "purpose", "round"):
        table.add_column(name)
    for name in _COUNTS:
        table.add_column(name, justify="right")
    for name in ("cost", "saved") if book.price is not None else ():
        table.add_column(name, justify="right")
    for line in found:
        when = "after" if line.round == AFTER else str(line.round)
        _add(table, book, line, ([line.owner or "(unnamed)"] if everybody else []) + [line.purpose, when])
    table.add_section()
    for purpose in dict.fromkeys(line.purpose for line in found):
        some = total([line for line in found if line.purpose == purpose])
        _add(table, book, some, ([""] if everybody else []) + [purpose, "all"], style="bold")
    return table


def _add(table: "Table", book: Book, line: "Line", head: list[str], style: str | None = None) -> None:
    cells = head + [f"{getattr(line, name):,}" for name in _COUNTS]
    if book.price is not None:
        cells += [_money(book, line.charged), _money(book, line.hits)]
    table.add_row(*cells, style=style)


def _balance(book: Book, account: "Account") -> str:
    whose = f"run {account.owner}" if account.owner else "whole file"
    text = (
        f"{account.purpose} budget of the {whose}: {account.charged:,} of {account.cap:,} spent, {account.left:,} left"
    )
    text += f", {account.open:,} on their way" if account.open else ""
    return text if book.price is None else f"{text} ({_money(book, account.left)})"


def _money(book: Book, queries: int | None) -> str:
    """The price of so many queries; empty where it is not known."""
    if queries is None or book.price is None:
        return ""
    return f"{queries * book.price:,.2f} {book.currency}".rstrip()
