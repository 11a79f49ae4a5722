"""What the commands share: arguments, how an error a user can make is shown, and a clean stop."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kdray.errors import KdrayError
from kdray.utils.files import shown

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see examples/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]...", help="Config fields to change.")]
Local = Annotated[bool, typer.Option("--local", help="Everything in this process: no Ray, the same selection.")]


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turns an error made for users into its message and exit code 2."""
    try:
        yield
    except KdrayError as error:
        print(f"kdray: {shown(str(error))}", file=sys.stderr)
        raise typer.Exit(2) from None
    except BrokenPipeError:  # the reader of our output has left
        raise typer.Exit(1) from None


@contextmanager
def stoppable(directory: Path) -> Iterator[None]:
    """Turns Ctrl-C into exit code 130 and a message that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nkdray: stopped; nothing is lost. Go on with: kdray resume {shown(directory)}", file=sys.stderr)
        raise typer.Exit(130) from None


def output_width(wide: int = 160) -> int | None:
    """Columns of printed tables: the terminal's (None), or `wide` where the output goes to a file or a pipe."""
    return None if sys.stdout.isatty() else wide
