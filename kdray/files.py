"""Files that are whole or not there: written under a temporary name, flushed to disk, then renamed."""

import json
import os
from pathlib import Path
from typing import Any

from kdray.errors import RunDirectoryError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash or power cut leaves the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """The JSON at `path`.

    Raises:
        RunDirectoryError: it cannot be read or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error}); delete it and resume: it is made again") from None


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
