"""The terminal."""

import importlib.util
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def make_console(stream: TextIO | None = None, width: int | None = None) -> "Console":
    """A console that shows text as it is: names of runs, functions and folders may hold [brackets] and :colons:.

    Args:
        stream: where it writes; default: standard output.
        width: columns; default: the terminal's.
    """
    from rich.console import Console

    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook that can show widgets, which a display that changes needs."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell" and importlib.util.find_spec("ipywidgets") is not None
