"""Finding a Ray cluster, and sizing the workers from what it has.

Ray hides two failures behind a wait of 20 to 80 seconds: nobody listens at the address, and the token is missing. Both
are looked for first, so that each gives one sentence at once.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from kdray.errors import ClusterError, KdrayError

NAMESPACE = "kdray"
_PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster a run works on.

    Attributes:
        address: of its head, or "local" where this process started it.
        cpus, gpus: free now, over all nodes.
    """

    address: str
    cpus: float
    gpus: float


@contextmanager
def connect(environ: Mapping[str, str] = os.environ) -> Iterator[Cluster]:
    """A cluster to work on: the one this process is connected to, the one RAY_ADDRESS names, or a new local one.

    Only what was opened here is closed at the end, and only a cluster started here is shut down.

    Raises:
        ClusterError: the address is malformed, nobody listens there, or the cluster refuses this client.
    """
    if ray.is_initialized():  # a notebook, a Tune trial
        yield _describe("connected")
        return
    address = environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        _start_local(environ)
    else:
        _join(address, environ)
    try:
        yield _describe(address or "local")
    finally:
        ray.shutdown()


def count_workers(wanted: int | str, cpus: float) -> int:
    """Scoring workers: what the config wants, or one a free CPU, at least one."""
    return wanted if isinstance(wanted, int) else max(1, int(cpus))


def unwrap(error: ray.exceptions.RayTaskError) -> BaseException:
    """The error a worker raised on purpose, without Ray's account of where; a fault in the code stays as it is."""
    return error.cause if isinstance(error.cause, KdrayError) else error


def _describe(address: str) -> Cluster:
    free = ray.available_resources()
    return Cluster(address=address, cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0))


def _start_local(environ: Mapping[str, str]) -> None:
    # An empty RAY_ADDRESS counts as set for Ray, so the local cluster is asked for by name.
    _init(address="local", include_dashboard=False)


def _join(address: str, environ: Mapping[str, str]) -> None:
    if "://" in address and not address.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS={address} is an address for 'ray job submit'; "
            "to join the cluster set RAY_ADDRESS to auto or to HOST:PORT"
        )
    if address != "auto":
        host, port = _host_and_port(address)
        try:
            socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S).close()
        except OSError as error:
            raise ClusterError(
                f"RAY_ADDRESS={address}: nobody answers there ({error.strerror or error}); is the head running? "
                "Unset RAY_ADDRESS to use a local Ray, or give --local to use none"
            ) from None
    try:
        with _silent_backend():
            _init(address=address)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(
            f"RAY_ADDRESS={address}: cannot join the cluster ({reason}). If it runs with token authentication, set "
            "RAY_AUTH_MODE=token and put its token in ~/.ray/auth_token or RAY_AUTH_TOKEN; "
            "unset RAY_ADDRESS to use a local Ray, or give --local to use none"
        ) from None


def _init(**options) -> None:
    """Start or join, and leave SIGTERM to whoever handled it before: Ray would take it and end without a word."""
    before = signal.getsignal(signal.SIGTERM)
    ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _silent_backend() -> Iterator[None]:
    """Drop what is written to standard error below Python: while it cannot join, Ray's backend adds a warning a second
    there, at every log level, which would bury the one sentence that says why."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ClusterError(
            f"RAY_ADDRESS={address} is not an address; set it to auto or to HOST:PORT, for example 10.0.0.1:6379"
        )
    return host.strip("[]"), int(port)
