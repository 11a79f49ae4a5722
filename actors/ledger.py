"""The ledger behind one named actor, so that drivers and trials on any node of a cluster share one file.

All state is in the file. If the actor is killed, Ray starts it again; it opens the file and repeats the call in which
it died. Every call may be repeated: a second settlement changes nothing, and a grant that is requested again under the
same name returns the first grant, whose reply was lost. So an actor that ends too early costs only the time to start
another.
"""

import hashlib
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import NAMESPACE, unwrap
from kdray.errors import Halted, LedgerError
from kdray.ledger.store import Ledger

_CALLS = frozenset(
    {
        "answers_of",
        "bought_by_others",
        "failures",
        "grant",
        "knows",
        "lookup",
        "on_their_way",
        "open_account",
        "record_hits",
        "recover",
        "rejected",
        "remaining",
        "reserved",
        "rest",
        "settle",
        "spent",
        "spent_in_round",
        "teachers",
        "uncertain",
    }
)
_MAX_TRIES = 5
_POLL_S = 0.1
_FORGET_S = 3600.0  # a user without a call for this time was killed, or will start another actor when it needs one


class LedgerService:
    """Holds the one connection of a cluster to a ledger file.

    Args:
        path: path of the file on the actor's node.
        budget: see `Ledger`.
        clock: returns the time in seconds, to find users that make no more calls.
    """

    def __init__(self, path: str, budget: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._ledger, self._clock = path, Ledger(path, budget), clock
        self._file = _identity(path)
        self._seen: dict[str, float] = {}
        self._halted: str | None = None

    def enter(self, user: str, budget: int | None) -> None:
        """Register `user`. Raises LedgerError if `budget` is not that of the file."""
        if _identity(self._path) != self._file:
            # The file was deleted and made again. Ray restarts this actor, which then opens the new file. The old file
            # is not closed, because SQLite would then delete the log of the new file.
            os._exit(1)
        if budget is not None:
            self._ledger.open_account("", {"training": budget})
        self._seen[user] = self._clock()

    def leave(self, user: str) -> bool:
        """Forget `user`. Returns whether no user is left."""
        self._seen.pop(user, None)
        return all(self._clock() - seen > _FORGET_S for seen in self._seen.values())

    def halt(self, reason: str | None) -> None:
        """Grant nothing from now on, with this reason; None grants again. What is on its way is settled as usual."""
        self._halted = reason

    def call(self, user: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method of the ledger.

        Raises:
            Halted: a grant was asked for after `halt`.
        """
        self._seen[user] = self._clock()
        if self._halted is not None and name == "grant" and args and args[0]:
            raise Halted(self._halted)
        return getattr(self._ledger, name)(*args, **kwargs)


class _Calls(ABC):
    """Calls to the actor of a ledger, repeated where the actor died."""

    path: str

    def __init__(self) -> None:
        self._user = uuid.uuid4().hex
        self._actor: Any = None

    @abstractmethod
    def _enter(self) -> None:
        """Find the actor or start it.

        Raises:
            LedgerError: there is none, the file cannot be used, or the actor keeps dying.
        """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _CALLS:
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "grant":
                kwargs.setdefault("request", uuid.uuid4().hex)
            for _ in range(_MAX_TRIES):
                try:
                    return self._get(lambda: self._actor.call.remote(self._user, name, args, kwargs))
                except ActorDiedError:
                    self._enter()
            raise self._dying()

        return call

    def _dying(self) -> LedgerError:
        return LedgerError(f"the ledger actor of {self.path} keeps dying; look at 'ray status', then 'kdray resume'")

    def _get(self, send: Callable[[], Any]) -> Any:
        try:
            return ray.get(send())
        except RayTaskError as error:
            raise unwrap(error) from None

    def halt(self, reason: str | None) -> None:
        """See `LedgerService.halt`."""
        self._get(lambda: self._actor.halt.remote(reason))

    def close(self) -> None:
        """Leave the actor. The last user to leave ends it."""
        if not ray.is_initialized():
            return  # after `ray.shutdown`; a call would start another Ray
        try:
            if self._get(lambda: self._actor.leave.remote(self._user)):
                self._end()
        except (ray.exceptions.RayError, LedgerError):
            pass  # the cluster is shutting down, and the actor with it

    def _end(self) -> None:
        ray.kill(self._actor)


class RayLedger(_Calls):
    """The methods of `kdray.ledger.store.Ledger` that a run needs, executed by the cluster's actor for this file.

    Args:
        path: path of the file on this node.
        budget: see `Ledger`.
        name: name of the actor; None makes one of the node and the path.
    """

    def __init__(self, path: str | os.PathLike[str], budget: int | None = None, *, name: str | None = None) -> None:
        super().__init__()
        self.path, self._budget = os.path.realpath(path), budget
        self._node = ray.get_runtime_context().get_node_id()
        # The same path on another node is another file.
        place = f"{self._node}:{self.path}".encode("utf-8", "surrogateescape")
        self._name = name or f"ledger-{hashlib.blake2b(place, digest_size=8).hexdigest()}"
        self._enter()

    def _enter(self) -> None:
        # The file is opened here first, so that this process reports a faulty file before an actor dies of it.
        Ledger(self.path, self._budget).close()
        actor: Any = ray.remote(LedgerService).options(
            name=self._name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self._node, soft=False),
        )
        for _ in range(_MAX_TRIES):
            self._actor = actor.remote(self.path, self._budget)
            try:
                self._get(lambda: self._actor.enter.remote(self._user, self._budget))
                return
            except ActorDiedError:  # its last other user has just ended it
                time.sleep(_POLL_S)
        raise self._dying()


class NamedLedger(_Calls):
    """The same, from any node of the cluster: the actor is found by its name, and its file is not opened here. It
    cannot start another actor, and so leaves this one to those who can.

    Args:
        name: of the actor, which a `RayLedger` has started.
        path: of the file on the actor's node, for messages.
    """

    def __init__(self, name: str, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path, self._name = os.fspath(path), name
        self._enter()

    def _enter(self) -> None:
        try:
            self._actor = ray.get_actor(self._name, namespace=NAMESPACE)
            self._get(lambda: self._actor.enter.remote(self._user, None))
        except (ValueError, ActorDiedError):
            raise LedgerError(f"the actor {self._name} of the ledger {self.path} is gone") from None

    def _end(self) -> None:
        """Others may use it that have made no call for long, such as a trial that trains."""


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the file at `path`; None if there is no file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
