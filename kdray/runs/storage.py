"""Files at an address of a pyarrow file system: s3://, gs://, file:// and others."""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from kdray.errors import ConfigError, RunDirectoryError

_PART = ".part"  # end of the name of a file that is not whole yet
_BLOCK = 2**20
_TRIES_S = 60
_READINGS = 10


class Storage:
    """The files below an address. Paths are relative to it, with slashes.

    Args:
        address: as `pyarrow.fs.FileSystem.from_uri` takes it.

    Raises:
        ConfigError: it is none, or holds credentials.
        RunDirectoryError: the file system cannot be reached.
    """

    def __init__(self, address: str) -> None:
        from pyarrow import ArrowInvalid, fs

        self.address = address
        self._fs_module = fs
        try:
            secret = urlsplit(address).password is not None
        except ValueError:
            secret = False  # which the next lines refuse
        if secret:
            raise ConfigError(
                f"{address.partition('://')[0]}://...: credentials in an address end in logs; leave them out and set "
                "the variables of the storage, for example AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        try:
            self._fs, base = fs.FileSystem.from_uri(_impatient(address))
        except (ArrowInvalid, NotImplementedError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{address} is no address that pyarrow knows ({error}); use a local path, s3://BUCKET/RUN or "
                "gs://BUCKET/RUN"
            ) from None
        except OSError as error:
            raise RunDirectoryError(f"{address} cannot be reached: {error}") from None
        self._base = base.rstrip("/")
        if self._base.count("/") < 1 and self._fs.type_name in ("s3", "gcs", "abfs"):
            raise ConfigError(f"{address} names a whole bucket; add the name of a folder: {address.rstrip('/')}/NAME")

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """
        Raises:
            RunDirectoryError: in place of what the file system raises.
        """
        from pyarrow import ArrowException

        try:
            yield
        except (OSError, ArrowException) as error:
            raise RunDirectoryError(f"{self.address}: cannot {what}: {error}") from None

    def list(self) -> dict[str, int]:
        """Sizes in bytes of all whole files.

        Raises:
            RunDirectoryError: it cannot be read.
        """
        with self._explained("list the files"):
            found = self._fs.get_file_info(
                self._fs_module.FileSelector(self._base, recursive=True, allow_not_found=True)
            )
        length = len(self._base) + 1
        files = {info.path[length:]: info.size for info in found if info.type == self._fs_module.FileType.File}
        return {path: size for path, size in files.items() if not path.endswith(_PART)}

    def read(self, path: str) -> bytes | None:
        """Content of a small file; None if it is not there.

        Raises:
            RunDirectoryError: it cannot be read.
        """
        data = io.BytesIO()

        @contextmanager
        def emptied() -> Iterator[IO[bytes]]:
            data.seek(0)
            data.truncate()
            yield data

        return data.getvalue() if self._read_whole(path, emptied) else None

    def get(self, path: str, target: Path) -> None:
        """Copy a file to this machine, whole or not at all.

        Raises:
            RunDirectoryError: it cannot be read, or is not there.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + _PART)
        if not self._read_whole(path, lambda: part.open("wb")):
            raise RunDirectoryError(f"{self.address}: cannot read {path}: it is not there")
        part.replace(target)

    def _read_whole(self, path: str, opened: Callable[[], AbstractContextManager[IO[bytes]]]) -> bool:
        """Copy a file into what is opened, empty each time; False if it is not there.

        A stream of an object store asks for the size first and for the bytes afterwards, so of a file that is replaced
        in between it gives a part, or parts of two. Such a file is read again.

        Raises:
            RunDirectoryError: it cannot be read.
        """
        with self._explained(f"read {path}"):
            before = self._fs.get_file_info(self._at(path))
            for _ in range(_READINGS):
                if before.type != self._fs_module.FileType.File:
                    return False
                size, failed = -1, None
                try:
                    with opened() as target, self._fs.open_input_stream(self._at(path)) as source:
                        shutil.copyfileobj(source, target, _BLOCK)
                        size = target.tell()
                except OSError as error:
                    failed = error
                after = self._fs.get_file_info(self._at(path))
                if (before.size, before.mtime_ns) == (after.size, after.mtime_ns):
                    if failed is not None:
                        raise failed
                    if size == after.size:
                        return True
                before = after
            raise OSError("it is replaced all the time")

    def put(self, path: str, source: Path | bytes) -> None:
        """Copy a file or these bytes there, whole or not at all.

        Raises:
            RunDirectoryError: it cannot be written.
        """
        with self._explained(f"write {path}"):
            whole = self._at(path)
            part = whole + _PART
            if self._fs.type_name not in ("s3", "gcs"):  # which have no folders
                self._fs.create_dir(whole.rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(part) as target:
                size = _copy(source, target)
            written = self._fs.get_file_info(part).size
            if written != size:  # a stream that breaks is closed like one that is done
                raise OSError(f"{written} of {size} bytes arrived")
            self._fs.move(part, whole)

    def delete(self, path: str) -> None:
        """Delete a file.

        Raises:
            RunDirectoryError: it cannot be deleted.
        """
        with self._explained(f"delete {path}"):
            self._fs.delete_file(self._at(path))


def _impatient(address: str) -> str:
    """The address, with a limit on how long Google's client tries again; its own limit is 15 minutes."""
    if not address.startswith(("gs:", "gcs:")) or "retry_limit_seconds" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}retry_limit_seconds={_TRIES_S}"


def _copy(source: Path | bytes, target: Any) -> int:
    """Copy all of it; how many bytes these were."""
    if isinstance(source, bytes):
        target.write(source)
        return len(source)
    size = 0
    with source.open("rb") as file:
        while block := file.read(_BLOCK):
            target.write(block)
            size += len(block)
    return size
