"""Scoring on Ray: workers that hold the pool and the student, and the searcher that gives them chunks."""

import os
import time
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from actors.cluster import unwrap
from actors.scheduling import Assignment
from kdray.errors import ScoringError
from kdray.search import Chunks, LowestK, Scored, SearchRequest, prepare, score_chunk

_RESTART_POLL_S = 0.1


class ScoringWorker:
    """Scores chunks. Fetches the pool and the student the first time a call names them, and keeps the newest of each.

    A worker that Ray restarts has lost both and simply fetches them again: no call depends on an earlier one.

    Args:
        device: cpu or cuda.
    """

    def __init__(self, device: str = "cpu") -> None:
        torch.set_num_threads(1)
        self._device = device
        self._held: dict[str, tuple[Any, Any]] = {}

    def pid(self) -> int:
        """The worker's process."""
        return os.getpid()

    def score(self, pool: list, model: list, request: list, start: int, stop: int, bound: float) -> Scored:
        """`kdray.search.score_chunk`; `pool`, `model` and `request` are one-item lists of object references."""
        pool = self._fetch("pool", pool[0], lambda value: value.to(self._device))
        model = self._fetch("model", model[0], lambda value: prepare(value, self._device))
        request = self._fetch("request", request[0], lambda value: value)
        return score_chunk(pool, model, start, stop, request, bound)

    def _fetch(self, name: str, reference: ray.ObjectRef, make: Callable[[Any], Any]) -> Any:
        held = self._held.get(name)
        if held is None or held[0] != reference.hex():
            held = self._held[name] = (reference.hex(), make(ray.get(reference)))
        return held[1]


class RaySearcher:
    """Finds the k lowest of a pool with scoring actors. Start it with `start`, end it with `close`.

    Args:
        workers: how many actors, one CPU each.
        gpus: of each actor; may be a fraction.
        chunk: candidates a task, about.
        patience_s: how long to go on without a single living worker.
    """

    def __init__(self, workers: int, *, gpus: float = 0.0, chunk: int = 8192, patience_s: float = 120.0) -> None:
        self._count, self._gpus, self._chunk, self._patience_s = workers, gpus, chunk, patience_s
        self._actors: list[ray.actor.ActorHandle] = []
        self._pool: tuple[Any, ray.ObjectRef] | None = None
        self.requeued = 0
        """Chunks given out again after a worker's death, over all searches."""

    def start(self) -> None:
        """Start the actors; they come up while other work goes on."""
        actor = ray.remote(ScoringWorker).options(
            num_cpus=1, num_gpus=self._gpus, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._actors = [actor.remote("cuda" if self._gpus else "cpu") for _ in range(self._count)]

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def pids(self) -> list[int]:
        """Process of each worker, for those who watch them."""
        return ray.get([actor.pid.remote() for actor in self._actors])

    def search(
        self,
        pool,
        model: torch.nn.Module,
        request: SearchRequest,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Scored:
        """See `kdray.search.Searcher`. The result does not depend on workers, their order or their deaths.

        Raises:
            ScoringError: the student's scores are not numbers, or no worker lives for `patience_s`.
        """
        if not self._actors:
            self.start()
        if self._pool is None or self._pool[0] is not pool:
            self._pool = (pool, ray.put(pool))
        boxes = ([self._pool[1]], [ray.put(model.cpu())], [ray.put(request)])
        search = _Search(self._actors, boxes, Chunks(pool, self._chunk), LowestK(request.k))
        alive_at = time.monotonic()
        while not search.assignment.complete:
            if search.advance():
                alive_at = time.monotonic()
                if on_progress is not None:
                    on_progress(search.merged.evaluated, len(pool))
            elif not search.assignment.workers and time.monotonic() - alive_at > self._patience_s:
                raise ScoringError(
                    f"no scoring worker for {self._patience_s:.0f} s; look at 'ray status', then 'kdray resume'"
                )
        search.cancel_rest()
        self.requeued += search.assignment.requeued
        return search.merged.result()


class _Search:
    """One search under way: which chunk runs where, which workers are being waited for, the lowest so far."""

    def __init__(self, actors: list, boxes: tuple, bounds: Chunks, merged: LowestK) -> None:
        self._actors, self._boxes, self._bounds, self.merged = actors, boxes, bounds, merged
        self.assignment = Assignment(len(bounds))
        self._running: dict[ray.ObjectRef, tuple[int, int]] = {}
        # A worker gets chunks once it has answered a call: one that waits for a free CPU must not hold any.
        self._waking = {actor.pid.remote(): worker for worker, actor in enumerate(actors)}

    def advance(self) -> bool:
        """Hand out chunks and take in the next reply, if one comes within a second; whether it was a new chunk."""
        for worker, task in self.assignment.next_tasks():
            call = self._actors[worker].score.remote(*self._boxes, *self._bounds[task], self.merged.bound)
            self._running[call] = (worker, task)
        ready, _ = ray.wait([*self._running, *self._waking], num_returns=1, timeout=1.0)
        if not ready:
            return False
        return self._woken(ready[0]) if ready[0] in self._waking else self._scored(ready[0])

    def cancel_rest(self) -> None:
        """Drop stolen copies that lost the race and have not started."""
        for call in self._running:
            ray.cancel(call)

    def _scored(self, call: ray.ObjectRef) -> bool:
        worker, task = self._running.pop(call)
        try:
            result = ray.get(call)
        except (RayActorError, ActorUnavailableError):
            if worker in self.assignment.workers:
                self.assignment.lost(worker)
                self._waking[self._actors[worker].pid.remote()] = worker
            return False
        except RayTaskError as error:
            raise unwrap(error) from None
        if not self.assignment.done(worker, task):
            return False
        self.merged.add(result)
        return True

    def _woken(self, call: ray.ObjectRef) -> bool:
        """A worker answers for the first time, or again after its death; or it died once more."""
        worker = self._waking.pop(call)
        try:
            ray.get(call)
        except (RayActorError, ActorUnavailableError):
            time.sleep(_RESTART_POLL_S)  # calls to an actor that is being restarted fail at once
            self._waking[self._actors[worker].pid.remote()] = worker
        else:
            self.assignment.joined(worker)
        return False
