"""Who works at an address: one process, which gives signs. Another one waits and looks whether they go on."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from kdray.errors import KdrayError, RunDirectoryError
from kdray.runs.storage import Storage

OWNER = "owner.json"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds.

    Attributes:
        push: between two copies of the ledger while the teacher is asked.
        beat: between two signs of the process that works there.
        patience: without a sign, after which another process may go on; several beats.
    """

    push: float = 30.0
    beat: float = 15.0
    patience: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that works at an address.

    Attributes:
        token: of the process.
        host, pid: of it.
        beat: grows with each sign.
        time: of the sign, seconds since 1970 by that machine's clock.
    """

    token: str
    host: str
    pid: int
    beat: int
    time: float


def read_owner(storage: Storage) -> Owner | None:
    """Who works there, or has died there; None if nobody does.

    Raises:
        RunDirectoryError: it cannot be read.
    """
    data = storage.read(OWNER)
    if not data:
        return None
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        raise RunDirectoryError(f"{storage.address}/{OWNER} is damaged; delete it if nobody works there") from None


class Ownership:
    """The right of this process to work at an address.

    Args:
        storage: the address.
        pace: of the signs.
        note: told what it waits for.
    """

    def __init__(self, storage: Storage, pace: Pace, note: Callable[[str], None]) -> None:
        self._storage, self._pace, self._note = storage, pace, note
        self._me = Owner(token=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), beat=0, time=time.time())
        self._other: Owner | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Work there, and give signs.

        Raises:
            RunDirectoryError: another process works there.
        """
        self._wait()
        self._beat(0)
        self.look()
        self.check()
        stop = threading.Event()
        thread = threading.Thread(target=self._keep_beating, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if not self.lost:
                with contextlib.suppress(KdrayError):
                    self._storage.delete(OWNER)

    @property
    def lost(self) -> bool:
        """Whether another process was seen to have begun to work there."""
        return self._other is not None

    def look(self) -> None:
        """Look for another process.

        Raises:
            RunDirectoryError: the address cannot be read.
        """
        owner = read_owner(self._storage)
        if owner is not None and owner.token != self._me.token:
            self._other = owner

    def check(self) -> None:
        """
        Raises:
            RunDirectoryError: the right is lost.
        """
        if self._other is not None:
            raise RunDirectoryError(
                f"process {self._other.pid} on {self._other.host} has begun to work on {self._storage.address}; this "
                "one stops, and copies nothing more there"
            )

    def _wait(self) -> None:
        """Return when nobody works there: who was there has died on this host, or gives no sign for `patience` seconds.
        The clocks of two machines are not compared."""
        first = read_owner(self._storage)
        if first is None or (first.host == self._me.host and not _is_alive(first.pid)):
            return
        self._note(
            f"process {first.pid} on {first.host} has worked on {self._storage.address}; looking for "
            f"{self._pace.patience:.0f} s whether it still does"
        )
        deadline = time.monotonic() + self._pace.patience
        while time.monotonic() < deadline:
            time.sleep(min(self._pace.beat, self._pace.patience) / 5)
            now = read_owner(self._storage)
            if now is None:
                return
            if now != first:
                raise RunDirectoryError(
                    f"process {now.pid} on {now.host} is working on {self._storage.address}; wait for it, or choose "
                    "another --out"
                )

    def _beat(self, number: int) -> None:
        mine = replace(self._me, beat=number, time=time.time())
        self._storage.put(OWNER, json.dumps(asdict(mine)).encode())

    def _keep_beating(self, stop: threading.Event) -> None:
        number = 0
        while not stop.wait(self._pace.beat) and not self.lost:
            number += 1
            with contextlib.suppress(KdrayError):  # a sign that is missed is followed by another
                self.look()
                if not self.lost:
                    self._beat(number)


def _is_alive(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
