"""Scoring on Ray: workers that hold the pool and the student, and the searcher that gives them tasks."""

import os
import time
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from actors.cluster import unwrap
from actors.metrics import ScoringMetrics, SearchMetrics
from actors.scheduling import Assignment
from kdray.errors import ScoringError
from kdray.memory import keep_freed_memory
from kdray.search import Method
from kdray.search.forward import Forward, a_seconds_work
from kdray.search.guesses import Sweep
from kdray.search.requests import Reply, Request, expected_passes, perform
from kdray.search.stages import Merge, Stage
from kdray.search.work import batch_on

_RESTART_POLL_S = 0.1
_LOOK_S = 2.0  # between two looks for free CPUs


class ScoringWorker:
    """Does tasks of a search. Fetches the pool, the student and the stage the first time a call names them, and keeps
    the newest of each.

    A worker that Ray restarts has lost them and simply fetches them again: no call depends on an earlier one.

    Args:
        device: cpu or cuda.
        options: of `kdray.search.forward.Forward`.
    """

    def __init__(self, device: str = "cpu", options: dict[str, str] | None = None) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._device, self._options = device, options or {}
        self._held: dict[str, tuple[Any, Any]] = {}
        self._metrics = ScoringMetrics()

    def pid(self) -> int:
        """The worker's process."""
        return os.getpid()

    def work(self, pool: list, model: list, stage: list, number: int, bound: float) -> Any:
        """Task `number` of a stage; `pool`, `model` and `stage` are one-item lists of object references."""
        begin = time.monotonic()
        pool = self._fetch("pool", pool[0], lambda value: value.to(self._device))
        forward = self._fetch("model", model[0], lambda value: Forward(value, self._device, **self._options))
        stage = self._fetch("stage", stage[0], lambda value: value)
        result = stage.run(pool, forward, number, bound)
        self._metrics.done(result.evaluated, begin)
        return result

    def _fetch(self, name: str, reference: ray.ObjectRef, make: Callable[[Any], Any]) -> Any:
        held = self._held.get(name)
        if held is None or held[0] != reference.hex():
            held = self._held[name] = (reference.hex(), make(ray.get(reference)))
        return held[1]


class RaySearcher:
    """Asks a student about a pool with scoring actors. Start it with `start`, end it with `close`.

    Args:
        workers: how many actors, one CPU each.
        gpus: of each actor; may be a fraction.
        chunk: images a task, about; None: about a second's work.
        patience_s: how long to go on without a single living worker.
        method: how to search.
        options: of `kdray.search.forward.Forward`.
        grow: take CPUs that become free, such as those of a node that joins, while it searches.
    """

    def __init__(
        self,
        workers: int,
        *,
        gpus: float = 0.0,
        chunk: int | None = None,
        patience_s: float = 120.0,
        method: Method | None = None,
        options: dict[str, str] | None = None,
        grow: bool = False,
    ) -> None:
        self._count, self._gpus, self._patience_s = workers, gpus, patience_s
        self._device = "cuda" if gpus else "cpu"
        self._chunk = chunk
        self._method, self._options, self._grow = method or Method(), options or {}, grow
        self._actors: list[ray.actor.ActorHandle] = []
        self._pool: tuple[Any, ray.ObjectRef] | None = None
        self._looked_at = 0.0
        self.requeued = 0
        """Tasks given out again after a worker's death, over all searches."""

    def start(self) -> None:
        """Start the actors; they come up while other work goes on."""
        self._add(self._count)

    def _add(self, count: int) -> None:
        actor = ray.remote(ScoringWorker).options(
            num_cpus=1, num_gpus=self._gpus, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._actors += [actor.remote(self._device, self._options) for _ in range(count)]

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
        request: Request,
        on_progress: Callable[[int, int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> Reply:
        """See `kdray.search.Searcher`. The result does not depend on workers, their order or their deaths.

        Raises:
            ScoringError: the student's scores are not numbers, or no worker lives for `patience_s`.
        """
        expected, done = expected_passes(pool, request, self._method), 0

        def tell(passes: int) -> None:
            nonlocal done
            done += passes
            if on_progress is not None:
                on_progress(done, max(done, expected))

        chunk = self._chunk or a_seconds_work(model, pool.image_shape, self._device, self._options)
        sweep = self.sweeper(pool, model, tell, on_note)
        return perform(
            pool, request, self._method, sweep, chunk=chunk, batch=batch_on(self._device, model), on_note=on_note
        )

    def sweeper(
        self,
        pool,
        model: torch.nn.Module,
        on_passes: Callable[[int], None] = lambda passes: None,
        on_note: Callable[[str], None] | None = None,
    ) -> Sweep:
        """What does the tasks of a stage on the workers.

        Args:
            on_passes: told of each task's forward passes when it is done.
            on_note: told what the user should know.
        """
        if not self._actors:
            self.start()
        if self._pool is None or self._pool[0] is not pool:
            self._pool = (pool, ray.put(pool))
        boxes, metrics = ([self._pool[1]], [ray.put(model.cpu())]), SearchMetrics()

        def sweep(stage: Stage, merge: Merge) -> None:
            under_way = _Sweep(self._actors, (*boxes, [ray.put(stage)]), len(stage), merge)
            alive_at = time.monotonic()
            while not under_way.assignment.complete:
                self._look_for_more(under_way, on_note)
                before = merge.evaluated
                if under_way.advance():
                    alive_at = time.monotonic()
                    on_passes(merge.evaluated - before)
                elif not under_way.assignment.workers and time.monotonic() - alive_at > self._patience_s:
                    raise ScoringError(
                        f"no scoring worker for {self._patience_s:.0f} s; look at 'ray status', then 'kdray resume'"
                    )
            under_way.cancel_rest()
            self.requeued += under_way.assignment.requeued
            metrics.requeued(under_way.assignment.requeued)

        return sweep

    def _look_for_more(self, under_way: "_Sweep", on_note: Callable[[str], None] | None) -> None:
        """Start workers on CPUs that have become free."""
        if not self._grow or time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        free = ray.available_resources()
        room = int(free.get("CPU", 0))
        if self._gpus:
            room = min(room, int(free.get("GPU", 0) / self._gpus))
        room -= under_way.waiting  # those will take theirs
        if room > 0:
            known = len(self._actors)
            self._add(room)
            under_way.wake(range(known, known + room))
            if on_note is not None:
                more = "worker" if room == 1 else "workers"
                on_note(f"{room} more scoring {more}, {known + room} in all: CPUs have become free")


class _Sweep:
    """One stage under way: which task runs where, which workers are being waited for."""

    def __init__(self, actors: list, boxes: tuple, tasks: int, merge: Merge) -> None:
        self._actors, self._boxes, self._merge = actors, boxes, merge
        self.assignment = Assignment(tasks)
        self._running: dict[ray.ObjectRef, tuple[int, int]] = {}
        # A worker gets tasks once it has answered a call: one that waits for a free CPU must not hold any.
        self._waking: dict[ray.ObjectRef, int] = {}
        self.wake(range(len(actors)))

    @property
    def waiting(self) -> int:
        """Workers that have not come up, or not again."""
        return len(self._waking)

    def wake(self, workers: range) -> None:
        """Give these tasks once they answer."""
        self._waking |= {self._actors[worker].pid.remote(): worker for worker in workers}

    def advance(self) -> bool:
        """Hand out tasks and take in the next reply, if one comes within a second; whether it was a new one."""
        for worker, task in self.assignment.next_tasks():
            call = self._actors[worker].work.remote(*self._boxes, task, self._merge.bound)
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
                self.wake(range(worker, worker + 1))
            return False
        except RayTaskError as error:
            raise unwrap(error) from None
        if not self.assignment.done(worker, task):
            return False
        self._merge.add(task, result)
        return True

    def _woken(self, call: ray.ObjectRef) -> bool:
        """A worker answers for the first time, or again after its death; or it died once more."""
        worker = self._waking.pop(call)
        try:
            ray.get(call)
        except (RayActorError, ActorUnavailableError):
            time.sleep(_RESTART_POLL_S)  # calls to an actor that is being restarted fail at once
            self.wake(range(worker, worker + 1))
        else:
            self.assignment.joined(worker)
        return False
