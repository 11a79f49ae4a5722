"""Connecting to a Ray cluster, and the number of scoring workers for its free CPUs.

Ray reports two failures only after 20 to 80 seconds: no process listens at the address, or the token is missing. kdray
looks for both first, so that it can report each at once and in one sentence.
"""

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from kdray.errors import ClusterError, KdrayError

NAMESPACE = "kdray"
LONG_WAIT_S = 10.0
"""A wait for a worker that is worth telling."""
_PROBE_TIMEOUT_S = 5.0
_STARTS = 2  # of a local Ray, which gives up after 30 s


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster that a run uses.

    Attributes:
        address: RAY_ADDRESS, "local" if this process started the cluster, or "connected" if the process was connected
            to it before.
        cpus, gpus: free CPUs and GPUs over all nodes.
    """

    address: str
    cpus: float
    gpus: float


@contextmanager
def connect(environ: Mapping[str, str] = os.environ) -> Iterator[Cluster]:
    """Use the cluster that this process is connected to, the one that RAY_ADDRESS names, or a new local one.

    At the end, a connection opened here is closed, and a cluster started here is shut down.

    Raises:
        ClusterError: the address is malformed, no process listens there, or the cluster refuses this client.
    """
    if ray.is_initialized():  # a notebook, a Tune trial
        yield _describe("connected")
        return
    address = environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        start_local()
    else:
        _join(address, environ)
    try:
        yield _describe(address or "local")
    finally:
        ray.shutdown()


def count_workers(wanted: int | str, free: Cluster, gpus: float = 0.0) -> int:
    """Number of scoring workers: the number in the config, or as many as are free to start now and at least one.

    Args:
        gpus: GPUs of each worker, which takes one CPU as well.
    """
    if isinstance(wanted, int):
        return wanted
    room = min(free.cpus, free.gpus / gpus) if gpus else free.cpus
    return max(1, int(room))


def check_fits(bundles: Sequence[Mapping[str, float]], field: str, *, wait: bool = False) -> None:
    """Refuse a placement group that does not fit into the cluster, even if nothing else ran there.

    Args:
        bundles: of the group; a bundle lies on one node.
        field: the config field that says their size, for the message.
        wait: the cluster may grow: refuse nothing.

    Raises:
        ClusterError: it does not fit.
    """
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    free = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda bundle: sorted(bundle.items()), reverse=True):
        place = next((node for node in free if all(node.get(name, 0) >= need for name, need in bundle.items())), None)
        if place is None:
            if wait:
                return
            total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
            needed = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in ("CPU", "GPU")}
            size = ", ".join(f"{count:g} {name}s" for name, count in needed.items() if count)
            raise ClusterError(
                f"{field}: a trial needs {size} in {len(bundles)} parts, which do not fit into the cluster: it has "
                f"{total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(nodes)} nodes; lower {field}, or set "
                f"{field}.wait to true if the cluster will grow"
            )
        for name, need in bundle.items():
            place[name] -= need


def unwrap(error: ray.exceptions.RayTaskError) -> BaseException:
    """The `KdrayError` that a worker raised, without Ray's traceback. Any other error is returned unchanged."""
    return error.cause if isinstance(error.cause, KdrayError) else error


def _describe(address: str) -> Cluster:
    free = ray.available_resources()
    return Cluster(address=address, cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0))


def start_local(**options: Any) -> None:
    """Start a Ray of this process, with more `options` of `ray.init`; once more where it does not start in time.

    Raises:
        ClusterError: nor does that one.
    """
    # Ray would start a Python for each CPU, which actors do not wait for: each gets a process of its own.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    for _ in range(_STARTS):
        try:
            # Ray treats an empty RAY_ADDRESS as set, so the local cluster is named explicitly.
            _init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # what it has started ends with this process
            if "timed out during startup" not in str(error):
                raise
    raise ClusterError(
        f"Ray did not start in time, {_STARTS} times: this machine is very busy, or has too little memory; try again, "
        "or give --local to use no Ray"
    )


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
        except (OSError, UnicodeError) as error:  # UnicodeError: of a name that is none, such as a..b
            why = getattr(error, "strerror", None) or error
            raise ClusterError(
                f"RAY_ADDRESS={address}: no connection ({why}); is the head node running? "
                "Unset RAY_ADDRESS to use a local Ray, or give --local to use none"
            ) from None
    try:
        with _silent_backend():
            _init(address=address)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(refusal(address, error)) from None


def refusal(address: str, error: Exception) -> str:
    """Why a cluster could not be joined, and what to do about it."""
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
    if len(versions) == 2:
        (cluster, cluster_python), (own, own_python) = versions
        return (
            f"RAY_ADDRESS={address}: the cluster runs Ray {cluster} on Python {cluster_python}, this process Ray {own} "
            f"on Python {own_python}; both must have the same versions"
        )
    reason = str(error).strip().splitlines()[0]
    return (
        f"RAY_ADDRESS={address}: cannot join the cluster ({reason}). If it runs with token authentication, set "
        "RAY_AUTH_MODE=token and put its token in ~/.ray/auth_token or RAY_AUTH_TOKEN; "
        "unset RAY_ADDRESS to use a local Ray, or give --local to use none"
    )


def _init(**options: Any) -> None:
    """Start or join a cluster, and restore the SIGTERM handler: that of Ray ends the process without a message."""
    before = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(namespace=NAMESPACE, ignore_reinit_error=True, **quiet, **options)
    except UnicodeEncodeError:
        raise ClusterError(
            "Ray takes no names that are not valid UTF-8, neither of the folder that kdray is started in nor on its "
            "command line; rename it, or give --local to use no Ray"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _silent_backend() -> Iterator[None]:
    """Discard what native code writes to standard error.

    While Ray's backend cannot join, it writes a warning there every second, at every log level. The warnings would hide
    the message that gives the reason.
    """
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
