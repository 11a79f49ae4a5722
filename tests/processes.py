"""Processes of their own that need not import torch first: they are forked from one that has done nothing else.

The process they come from (Python's fork server) imports what is listed here, and runs nothing: it has no threads, and
no Ray, which would read the environment too early.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from pathlib import Path

Changes = Mapping[str, str | None] | None

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        *("torch", "hypothesis.extra.numpy", "pytest"),
        *("kdray.cli.app", "kdray.cli.ledger", "kdray.ledger.receipt", "kdray.observers.display", "kdray.report.page"),
        *("kdray.runs.bench", "kdray.runs.plan", "kdray.runs.run", "kdray.runs.teachers", "kdray.teachers.server"),
    ]
)


def _main(
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    first: Callable[[], None] | None,
    out: connection.Connection,
    err: connection.Connection,
):
    """What the new process does: `python -m kdray ARGUMENTS`."""
    import torch

    if first is not None:
        first()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    sys.stdout = os.fdopen(1, "w", encoding=env.get("PYTHONIOENCODING", "utf-8"), closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    sys.argv = ["kdray", *arguments]
    sys.path.insert(0, cwd)
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))  # it would have read this at its import
    from kdray.cli.app import main

    main()


class Program:
    """A command of kdray's under way in a process of its own; used like a `subprocess.Popen` with pipes.

    Args:
        arguments: of the command line.
        cwd: where it works; default: here.
        env: changes to the environment; None takes a variable away.
        first: called in the new process, before anything else.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        env: Changes = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        self.args = ["kdray", *map(str, arguments)]
        changed = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"} | (env or {})
        environment = {name: value for name, value in changed.items() if value is not None}
        (out, out_end), (err, err_end) = processes.Pipe(duplex=False), processes.Pipe(duplex=False)
        self._process = processes.Process(
            target=_main, args=(self.args[1:], str(cwd or Path.cwd()), environment, first, out_end, err_end)
        )
        self._process.start()
        out_end.close()
        err_end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno()), encoding="utf-8") for pipe in (out, err))
        out.close()
        err.close()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it prints until its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended; it is killed.
        """
        with ThreadPoolExecutor(2) as threads:
            texts = [threads.submit(pipe.read) for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return texts[0].result(), texts[1].result()

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """As `kill` does it."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """As `kill -9` does it."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()


def kdray(
    *arguments: object, cwd: Path, env: Changes = None, timeout: float = 240, first: Callable[[], None] | None = None
) -> subprocess.CompletedProcess:
    """Run a command as a user does: in a process of its own, with one thread."""
    with Program(*arguments, cwd=cwd, env=env, first=first) as program:
        out, err = program.communicate(timeout)
        return subprocess.CompletedProcess(program.args, program.wait(), out, err)
