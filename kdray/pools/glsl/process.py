"""A canvas in a process of its own. What hangs or crashes in a driver takes that process with it, and no other.

Run as a module, it is that process. It ends with the one that started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from kdray.errors import ConfigError
from kdray.pools.glsl.canvas import Canvas
from kdray.pools.glsl.forms import Program


class CanvasEnded(ConfigError):
    """The process of a canvas has ended: a program hangs, or the driver crashed."""

    repeats = True


class CanvasProcess:
    """Draws images of one size, see `Canvas`. Threads may share it: they draw in turn.

    Args:
        programs: what draws them.
        size: (H, W).

    Attributes:
        compiled: numbers of the programs that it has drawn with.

    Raises:
        ConfigError: see `Canvas`.
    """

    def __init__(self, programs: Sequence[Program], size: tuple[int, int]) -> None:
        self.compiled: set[int] = set()
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._connection, theirs = Pipe()
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
        # 0: Mesa's software renderer draws in one thread, as workers share the cores.
        env = {"LP_NUM_THREADS": "0"} | os.environ | {"PYTHONPATH": paths}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C is for the process that draws with it
        )
        theirs.close()
        weakref.finalize(self, _end, self._process, self._connection, self._pid)
        self._call((tuple(programs), size))

    @property
    def mine(self) -> bool:
        """Whether this process started it, and not one that this process was forked from."""
        return self._pid == os.getpid()

    def draw(self, numbers: np.ndarray, parameters: np.ndarray, limit_s: float) -> np.ndarray:
        """Draw images uint8 [B, H, W, 3], see `Canvas.draw`.

        Args:
            limit_s: seconds that this may take.

        Raises:
            CanvasEnded: it took longer, or the driver crashed.
            ConfigError: see `Canvas.draw`.
        """
        drawn = self._call((numbers, parameters, limit_s), limit_s)
        self.compiled.update(numbers.tolist())
        return drawn

    def _call(self, request: object, limit_s: float = 0) -> np.ndarray:
        with self._lock:
            try:
                self._connection.send(request)
                reply: np.ndarray | str = self._connection.recv()
            except (EOFError, OSError):
                code = self._process.wait()
                if code == -signal.SIGALRM:
                    raise CanvasEnded(f"it takes more than {limit_s:g} s") from None
                raise CanvasEnded(f"the driver crashes (exit code {code})") from None
        if isinstance(reply, str):
            raise ConfigError(reply)
        return reply


def _end(process: subprocess.Popen[bytes], connection: Connection, pid: int) -> None:
    connection.close()
    if pid == os.getpid():
        process.kill()
        process.wait()


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    programs, size = connection.recv()
    try:
        canvas = Canvas(programs, size)
    except ConfigError as error:
        connection.send(str(error))
        return
    reply: np.ndarray | str = np.empty(0, np.uint8)
    while True:
        connection.send(reply)
        numbers, parameters, limit_s = connection.recv()
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # the kernel ends this process even while it is in the driver
        try:
            reply = canvas.draw(numbers, parameters)
        except ConfigError as error:
            reply = str(error)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the process that started this one has ended
        _serve(Connection(int(sys.argv[1])))
