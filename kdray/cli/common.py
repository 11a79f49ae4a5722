"""What the commands share: arguments, how an error a user can make is shown, and a clean stop."""

import errno
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from kdray.errors import KdrayError
from kdray.utils.files import shown
from kdray.utils.text import printable

_OF_ROOM = (errno.EDQUOT, errno.ENOSPC)
_OF_PLACES = (
    errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM, errno.EROFS, *_OF_ROOM,
)  # fmt: skip
"""Numbers of the system's errors that are of a place that a user has named, and not of kdray."""


class OnceCommand(TyperCommand):
    """Refuses an option that is given twice. Click would take the last of the two."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are no options."""
        options = args[: args.index("--")] if "--" in args else args
        counts = Counter(text.partition("=")[0] for text in options if text.startswith("--"))
        for name, times in counts.items():
            if times > 1:
                raise typer.BadParameter(f"{name} is given twice; keep one of the two", ctx)
        return super().parse_args(ctx, args)


ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see examples/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]...", help="Config fields to change.")]
Local = Annotated[bool, typer.Option("--local", help="Everything in this process: no Ray, the same selection.")]

Track = Annotated[
    str | None,
    typer.Option(metavar="TRACKER,...", help="Tell wandb or mlflow, or both, of the figures of each round."),
]


def speak_any_encoding() -> None:
    """A character that the terminal or pipe cannot show, such as a currency sign, is shown as its code: printing the
    result of a run must not fail after the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turns an error made for users into its message and exit code 2."""
    try:
        yield
    except KdrayError as error:
        print(f"kdray: {printable(shown(str(error)))}", file=sys.stderr)
        raise typer.Exit(2) from None
    except BrokenPipeError:  # the reader of our output has left
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno not in _OF_PLACES:
            raise
        where = f"{shown(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
        advice = "make room, or choose another place" if error.errno in _OF_ROOM else "choose another place"
        print(f"kdray: {printable(where)}{error.strerror}; {advice}", file=sys.stderr)
        raise typer.Exit(2) from None


@contextmanager
def stoppable(run: str) -> Iterator[None]:
    """Turns Ctrl-C into exit code 130 and a message that says how to go on with the run of this name."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nkdray: stopped; nothing is lost. Go on with: kdray resume {shown(run)}", file=sys.stderr)
        raise typer.Exit(130) from None


def output_width(wide: int = 160) -> int | None:
    """Columns of printed tables: the terminal's (None), or `wide` where the output goes to a file or a pipe."""
    return None if sys.stdout.isatty() else wide
