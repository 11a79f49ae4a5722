"""Atomic writes: a file is written under a temporary name, flushed to disk, and then renamed."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kdray.errors import ConfigError, RunDirectoryError


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that can be printed and stored anywhere: bytes of it that are not UTF-8 become \\xNN.

    Python keeps such bytes as lone surrogates, which UTF-8 cannot encode.
    """
    text = os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def openable(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name for the file at `path` that libraries take which want UTF-8: its own where it is, else the opened file's.

    Raises:
        OSError: the file cannot be opened.
    """
    text = os.fspath(path)
    if shown(text) == text:
        yield text
    else:
        with open(path, "rb") as file:
            yield f"/proc/self/fd/{file.fileno()}"


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The end of each path, from its last part on as many as tell it apart from the other paths."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    names = []
    for mine in parts:
        others = {other for other in parts if other != mine}
        lengths = range(1, len(mine) + 1)
        length = next((n for n in lengths if all(mine[-n:] != other[-n:] for other in others)), len(mine))
        names.append(os.path.join(*mine[-length:]))
    return names


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` atomically: after a crash or power cut, the old file or the whole new file is there."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write what `path` will hold, atomically as `write_bytes`; an error leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def expand(path: str | os.PathLike[str]) -> Path:
    """A path that a user wrote: `~` is the home folder. The shell does not see one in `--out=~/runs` or in a file.

    Raises:
        ConfigError: there is no such user, or it is an address.
    """
    text = os.fspath(path)
    if is_address(text):
        whole = re.sub(":/+", "://", text, count=1)
        raise ConfigError(
            f"{whole} is an address; only 'kdray run --out', 'kdray resume' and 'kdray status' take one; "
            "give a local path"
        )
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise ConfigError(f"{text}: there is no such home folder; a file of this name needs its whole path")
    return Path(found)


def is_address(text: str) -> bool:
    """Whether this is an address such as s3://bucket/run, also where `Path` has taken a slash away."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) is not None


def why_unwritable(path: Path) -> str | None:
    """Why no file can be written at `path`, or None. Missing folders would be made; nothing is left behind."""
    if path.is_dir():
        return f"{path} is a folder"
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} is read-only"
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        return f"{folder} is not a folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"the folder {folder} is read-only"


def check_writable(path: Path, field: str) -> None:
    """Find out, without a trace, that no file can be written at `path`.

    Raises:
        ConfigError: so it is.
    """
    if (reason := why_unwritable(path)) is not None:
        raise ConfigError(f"{field}: cannot write {path}: {reason}; give another path")


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read the JSON file at `path`.

    Raises:
        RunDirectoryError: the file cannot be read or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error}); delete it and resume the run") from None


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
