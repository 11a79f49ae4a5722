"""The teacher pool on Ray: actors that ask, and one rate limit for all, kept where batches are handed out."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from kdray.errors import TeacherError
from kdray.teachers.answers import Answers, Teacher
from kdray.teachers.pool import Pacer, Reply

_RESTART_POLL_S = 0.1


class TeacherWorker:
    """Holds one teacher and answers batches.

    Args:
        build: makes the teacher; called in the worker, so weights are read there.
    """

    def __init__(self, build: Callable[[], Teacher]) -> None:
        self._teacher = build()

    def ready(self) -> bool:
        """Answers once the teacher is made."""
        return True

    def answer(self, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Answers to uint8 [B, C, H, W] as numpy (probs or None, labels): cheaper through the store than tensors."""
        answers = self._teacher.answer(torch.from_numpy(images.copy()))
        return None if answers.probs is None else answers.probs.numpy(), answers.labels.numpy()


class RayTeacherPool:
    """Asks batches over several actors, one at a time each. A batch whose worker died is reported, never repeated here.

    Args:
        teacher: the same teacher in this process: who is asked, how many classes, metered or not.
        build: makes it in a worker.
        workers: how many actors.
        pacer: the pool's rate limit.
        gpus: of each actor.
    """

    def __init__(
        self, teacher: Teacher, build: Callable[[], Teacher], workers: int, pacer: Pacer, gpus: float = 0.0
    ) -> None:
        self.teacher = teacher
        self._build, self._count, self._pacer, self._gpus = build, workers, pacer, gpus
        self._actors: list[ray.actor.ActorHandle] = []

    def start(self) -> None:
        """Start the actors. They reserve no CPU: they work while the scoring workers, which do, stand still."""
        actor = ray.remote(TeacherWorker).options(num_cpus=0, num_gpus=self._gpus, max_restarts=-1, max_task_retries=0)
        self._actors = [actor.remote(self._build) for _ in range(self._count)]

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def ask(self, batches: Iterable[tuple[Any, torch.Tensor]]) -> Iterator[Reply]:
        """See `kdray.teachers.pool.TeacherPool`.

        Raises:
            TeacherError: a worker cannot make its teacher; nothing was sent to it.
        """
        if not self._actors:
            self.start()
        source = iter(batches)
        idle: list[ray.actor.ActorHandle] = []
        running: dict[ray.ObjectRef, tuple[Any, ray.actor.ActorHandle]] = {}
        # A batch goes only to a worker that has just said it is there: one that never came up cannot have spent it.
        waking = {actor.ready.remote(): actor for actor in self._actors}
        more = True
        while more or running:
            while more and idle:
                batch = next(source, None)
                if batch is None:
                    more = False
                    break
                key, images = batch
                self._pacer.wait(len(images))
                actor = idle.pop()
                running[actor.answer.remote(images.numpy())] = (key, actor)
            if not running and not more:
                return
            ready, _ = ray.wait([*running, *waking], num_returns=1)
            if ready[0] in waking:
                actor = waking.pop(ready[0])
                if self._woken(ready[0]):
                    idle.append(actor)
                else:
                    waking[actor.ready.remote()] = actor
                continue
            key, actor = running.pop(ready[0])
            reply = self._reply(key, ready[0])
            if reply.answers is None and not reply.fatal:
                waking[actor.ready.remote()] = actor
            else:
                idle.insert(0, actor)
            yield reply

    def _woken(self, call: ray.ObjectRef) -> bool:
        """Whether a worker is there now; not yet while Ray restarts it."""
        try:
            return ray.get(call)
        except ActorUnavailableError:
            time.sleep(_RESTART_POLL_S)
            return False
        except (RayActorError, RayTaskError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise TeacherError(f"a teacher worker cannot start: {reason}") from None

    def _reply(self, key: Any, reference: ray.ObjectRef) -> Reply:
        try:
            probs, labels = ray.get(reference)
        except (RayActorError, ActorUnavailableError) as error:
            return Reply(key=key, error=f"a teacher worker died: {str(error).splitlines()[0]}", fatal=False)
        except RayTaskError as error:
            if not isinstance(error.cause, TeacherError):
                raise
            return Reply(key=key, error=str(error.cause))
        answers = Answers(
            probs=None if probs is None else torch.from_numpy(probs.copy()),
            labels=torch.from_numpy(labels.copy()),
            num_classes=self.teacher.num_classes,
        )
        return Reply(key=key, answers=answers)
