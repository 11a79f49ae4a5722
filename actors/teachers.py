"""The teacher pool on Ray: actors that ask. The purchase decides when a batch goes and what follows a failure."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from kdray.errors import TeacherError
from kdray.sections.search import PATIENCE_S
from kdray.teachers.answers import Answers
from kdray.teachers.base import AsyncTeacher, CountsReplies, Teacher
from kdray.teachers.faults import Fault, fault_of
from kdray.teachers.pool import TeacherReply, as_reply, ask

_RESTART_POLL_S = 0.1
Wired = tuple[np.ndarray | None, np.ndarray, dict[int, str]]


class TeacherWorker:
    """Holds one teacher and answers batches.

    Args:
        build: makes the teacher; called in the worker, where the weights are then read.
    """

    def __init__(self, build: Callable[[], Teacher]) -> None:
        self._teacher = build()

    def ready(self) -> bool:
        """Returns once the teacher is made."""
        return True

    def answer(self, images: np.ndarray) -> Wired | Fault:
        """Answers to uint8 [B, C, H, W] as numpy (probs or None, labels, bad rows): cheaper than tensors."""
        return _wired(ask(self._teacher, None, torch.from_numpy(images.copy())))


class AsyncTeacherWorker:
    """Keeps many requests to one teacher on their way: an async actor.

    Args:
        build: makes the teacher.
    """

    def __init__(self, build: Callable[[], AsyncTeacher]) -> None:
        self._teacher = build()
        self._session: Any = None

    async def ready(self) -> bool:
        """Returns once the teacher is made."""
        return True

    async def answer(self, images: np.ndarray, replies: int = 0) -> Wired | Fault:
        """One request; as `TeacherWorker.answer`.

        Args:
            replies: how often one came to a request with these images, and had no answers; see `CountsReplies`.
        """
        if self._session is None:  # here and not in `ready`, which a worker that Ray restarts may never be asked
            try:
                self._session = self._teacher.session()
            except Exception as error:  # before anything was sent
                return self._fault(fault_of(error, sent=False))
        try:
            batch = torch.from_numpy(images.copy())
            if replies and isinstance(self._teacher, CountsReplies):
                self._teacher.note_replies(batch, replies)
            return _wired(as_reply(None, await self._teacher.ask(self._session, batch)))
        except BaseException as error:
            return self._fault(fault_of(error))

    def _fault(self, fault: Fault) -> Fault:
        """`fault` without a secret of the teacher."""
        return self._teacher.fault(fault.kind, fault.message, fault.wait_s)


class RayTeacherPool:
    """Sends batches to several actors. A batch whose worker died is reported, never repeated here.

    Args:
        teacher: the same teacher in this process: its identity, number of classes, and whether it is metered.
        build: makes it in a worker.
        workers: how many actors.
        slots: batches on their way at once, over all actors, where the teacher can answer several; else one an actor.
        gpus: of each actor.
        patience_s: longest time to wait while no worker is ready.
    """

    def __init__(
        self,
        teacher: Teacher,
        build: Callable[[], Teacher],
        workers: int,
        *,
        slots: int | None = None,
        gpus: float = 0.0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.teacher = teacher
        self._build, self._count, self._gpus, self._patience_s = build, workers, gpus, patience_s
        self._many = isinstance(teacher, AsyncTeacher)
        self._slots = (slots or workers) if self._many else workers
        self._each = -(-self._slots // workers)
        self._actors: list[ray.actor.ActorHandle[Any]] = []
        self._load: Counter[int] = Counter()
        self._awake: set[int] = set()
        self._waking: dict[ray.ObjectRef[Any], int] = {}
        self._running: dict[ray.ObjectRef[Any], tuple[Any, int, bytes]] = {}
        self._replies: Counter[bytes] = Counter()  # without answers, by the images' digest, over all workers

    @property
    def slots(self) -> int:
        """Batches that can be on their way at once. Workers that are being restarted can have none: a batch for them
        would wait while the replies of the others are not taken."""
        if self._waking and self._awake:
            self._wait_for_workers(0)
        return min(self._slots, self._each * len(self._awake)) if self._awake else self._slots

    def start(self) -> None:
        """Start the actors. They reserve no CPU: they work while the scoring workers, which do, stand still."""
        options = {"num_cpus": 0, "num_gpus": self._gpus, "max_restarts": -1, "max_task_retries": 0}
        worker: type[Any] = TeacherWorker
        if self._many:
            worker, options["max_concurrency"] = AsyncTeacherWorker, self._each + 1
        actor: Any = ray.remote(worker).options(**options)
        self._actors = [actor.remote(self._build) for _ in range(self._count)]
        for number in range(self._count):
            self._wake(number)

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._awake.clear()
        self._waking.clear()
        self._running.clear()

    def wait_until_ready(self) -> None:
        """Wait until a worker has made its teacher. Until then nothing is spent.

        Raises:
            TeacherError: a worker cannot make its teacher, or none is ready for `patience_s`.
        """
        self._wait_for_one_of(lambda: bool(self._awake))

    def send(self, key: Any, images: torch.Tensor, replies: int = 0) -> None:
        """See `kdray.teachers.pool.TeacherPool`. A batch goes only to a worker whose teacher is made: nothing is
        spent by a worker that cannot make it.

        Raises:
            TeacherError: a worker cannot make its teacher, or none is ready for `patience_s`; nothing was sent.
        """
        self._wait_for_one_of(lambda: any(self._load[n] < self._each for n in self._awake))
        free = [n for n in self._awake if self._load[n] < self._each]
        number = min(free, key=lambda n: (self._load[n], n))
        self._load[number] += 1
        pixels = images.numpy()
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest() if self._many else b""
        if replies and self._many:
            self._replies[digest] = max(self._replies[digest], replies)
        more = (self._replies[digest],) if digest in self._replies else ()
        self._running[self._actors[number].answer.remote(pixels, *more)] = (key, number, digest)

    def _wait_for_one_of(self, there_is: Callable[[], bool]) -> None:
        if not self._actors:
            self.start()
        if self._waking:
            self._wait_for_workers(0)
        deadline = time.monotonic() + self._patience_s
        while not there_is():
            if (left := deadline - time.monotonic()) <= 0:
                raise TeacherError(
                    f"no teacher worker was ready for {self._patience_s:,.0f} s; look at 'ray status', then go on. A "
                    "cluster that starts nodes, or a teacher that is slow to load, may need more: set "
                    "resources.patience_s, or resources.teacher_workers to 0"
                )
            self._wait_for_workers(left)

    def collect(self, timeout_s: float | None) -> list[TeacherReply]:
        """See `kdray.teachers.pool.TeacherPool`."""
        if not self._running:
            return []
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._reply(reference) for reference in ready]

    def _wake(self, number: int) -> None:
        self._awake.discard(number)
        self._waking[self._actors[number].ready.remote()] = number

    def _wait_for_workers(self, timeout_s: float) -> None:
        """Note the workers that have become ready."""
        ready, _ = ray.wait(list(self._waking), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(self._waking), num_returns=len(self._waking), timeout=0)
        for call in ready:
            number = self._waking.pop(call)
            try:
                ray.get(call)
                self._awake.add(number)
                self._load[number] = 0
            except ActorUnavailableError:  # being restarted
                time.sleep(_RESTART_POLL_S)
                self._wake(number)
            except (RayActorError, RayTaskError) as error:
                reason = str(error).strip().splitlines()[-1]
                raise TeacherError(f"a teacher worker cannot start: {reason}") from None

    def _reply(self, reference: ray.ObjectRef[Any]) -> TeacherReply:
        key, number, digest = self._running.pop(reference)
        self._load[number] = max(0, self._load[number] - 1)
        try:
            result = ray.get(reference)
        except (RayActorError, ActorUnavailableError) as error:
            if number in self._awake:
                self._wake(number)
            return TeacherReply(
                key=key, fault=Fault(kind="lost", message=f"a teacher worker died: {str(error).splitlines()[0]}")
            )
        except RayTaskError as error:  # a fault in the teacher's code; other replies must not be lost with it
            reason = f"{type(error.cause).__name__}: {error.cause}"
            return TeacherReply(key=key, fault=Fault(kind="failed", message=f"a teacher worker failed: {reason}"))
        if isinstance(result, Fault):
            if result.replied:
                self._replies[digest] += 1
            return TeacherReply(key=key, fault=result)
        probs, labels, bad = result
        if bad and self._many:
            self._replies[digest] += 1
        answers = Answers(
            probs=None if probs is None else torch.from_numpy(probs.copy()),
            labels=torch.from_numpy(labels.copy()),
            num_classes=self.teacher.num_classes,
            bad=bad,
        )
        return TeacherReply(key=key, answers=answers)


def _wired(reply: TeacherReply) -> Wired | Fault:
    answers = reply.answers
    if answers is None:
        return reply.fault or Fault(kind="failed", message="the teacher gave no answers")
    return None if answers.probs is None else answers.probs.numpy(), answers.labels.numpy(), dict(answers.bad)
