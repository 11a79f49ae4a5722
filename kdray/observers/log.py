"""RUN/log.txt: every line that a run prints where there is no terminal, with its time, over all its resumes."""

import io
import time
from pathlib import Path

from kdray.observers.display import PlainDisplay


class LogFile(PlainDisplay):
    """Writes the lines of `PlainDisplay` to a file, each after the time (UTC). It keeps them until `open` is called: a
    run directory is made only when all that could be refused has been checked.

    A log that cannot be written does not end the run.
    """

    def __init__(self) -> None:
        self._said = io.StringIO()
        super().__init__(self._said)
        self._path: Path | None = None
        self._kept = ""

    def open(self, path: Path) -> None:
        """Append to the file at `path` from now on."""
        self._path = path
        self._write()

    def _say(self, text: str) -> None:
        super()._say(text)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for line in self._said.getvalue().splitlines():
            self._kept += f"{now} {line}\n"
        self._said.seek(0)
        self._said.truncate()
        self._write()

    def _write(self) -> None:
        if self._path is None or not self._kept:
            return
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(self._kept)
        except OSError:
            return  # tried again with the next line
        self._kept = ""
