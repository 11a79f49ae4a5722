"""What the commands share: arguments, and how an error a user can make is told."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kdray.errors import KdrayError

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see examples/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]...", help="Config fields to change.")]


@contextmanager
def told() -> Iterator[None]:
    """Turns an error made for users into its message and exit code 2."""
    try:
        yield
    except KdrayError as error:
        print(f"kdray: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except BrokenPipeError:  # the reader of our output has left: nothing to say, nobody to say it to
        raise typer.Exit(1) from None
