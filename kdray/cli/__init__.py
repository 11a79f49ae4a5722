"""The command line: one module a command. Modules that bring torch or Ray are imported inside the commands."""

from kdray.cli.app import main

__all__ = ["main"]
