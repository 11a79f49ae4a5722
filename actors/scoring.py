"""Scoring on Ray: workers that hold the pool and the student, and the searcher that assigns tasks to them."""

import os
import time
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from actors.cluster import LONG_WAIT_S, unwrap
from actors.metrics import ScoringMetrics, SearchMetrics
from actors.parcels import pack, unpack
from actors.scheduling import Assignment
from kdray.errors import ScoringError
from kdray.pools.base import Pool, placed
from kdray.search.cost import batch_on
from kdray.search.forward import Forward, ForwardOptions, a_seconds_work
from kdray.search.requests import R, Request, RunStage, SearchContext
from kdray.search.stages import Cut, Merge, Stage
from kdray.sections.search import PATIENCE_S, SearchSettings
from kdray.utils.memory import keep_freed_memory
from kdray.utils.text import counted

_RESTART_POLL_S = 0.1
_SHOW_S = 1.0  # least time between two updates of Ray's metrics
_LOOK_S = 2.0  # least time between two checks for free CPUs

Reference = ray.ObjectRef[Any]
Box = list[Reference]
"""A list with one reference. Ray replaces a bare reference in a call by its object, but not a reference in a list."""


class ScoringWorker:
    """Runs tasks of a search.

    It fetches the pool, the student and the stage when a call first names them, and keeps the newest of each. A worker
    that Ray restarts has lost them and fetches them again: no call depends on an earlier one.

    Args:
        device: cpu or cuda.
        options: how the student is run.
    """

    def __init__(self, device: str = "cpu", options: ForwardOptions | None = None) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._device, self._options = device, options or ForwardOptions()
        self._held: dict[str, tuple[Any, Any]] = {}
        self._metrics = ScoringMetrics()

    def pid(self) -> int:
        """The process id of the worker."""
        return os.getpid()

    def work(self, job: Box, number: int, bound: float) -> Any:
        """Run task `number` of a stage. `job` refers to references of the pool, the student and the stage: each
        reference in a call costs the driver time."""
        begin = time.monotonic()
        pool, model, stage = self._fetch("job", job[0], lambda value: value)
        held: Pool = self._fetch("pool", pool, lambda value: placed(value, self._device))
        forward: Forward = self._fetch("model", model, lambda value: Forward(value, self._device, self._options))
        work: Stage = self._fetch("stage", stage, lambda value: value)
        result = work.run(held, forward, number, bound)
        self._metrics.done(result.evaluated, begin)
        return result

    def _fetch(self, name: str, reference: Reference, make: Callable[[Any], Any]) -> Any:
        held = self._held.get(name)
        if held is None or held[0] != reference.hex():
            held = self._held[name] = (reference.hex(), make(unpack(ray.get(reference))))
        return held[1]


class RaySearcher:
    """Performs requests about a pool with scoring workers. `start` starts the workers, `close` ends them.

    Args:
        workers: number of workers, one CPU each.
        gpus: GPUs of each worker; may be a fraction.
        chunk: approximate number of images in a task; None means about one second's work.
        patience_s: longest time to continue without a living worker.
        settings: how pools are searched.
        options: how the student is run.
        grow: whether to start more workers during a search if CPUs become free, such as those of a node that joins.
    """

    def __init__(
        self,
        workers: int,
        *,
        gpus: float = 0.0,
        chunk: int | None = None,
        patience_s: float = PATIENCE_S,
        settings: SearchSettings | None = None,
        options: ForwardOptions | None = None,
        grow: bool = False,
    ) -> None:
        self._count, self._gpus, self._patience_s = workers, gpus, patience_s
        self._device = "cuda" if gpus else "cpu"
        self._chunk = chunk
        self._settings, self._options = settings or SearchSettings(), options or ForwardOptions()
        self._grow = grow
        self._actors: list[Any] = []  # Ray's handles: their methods are made at run time
        self._pool: tuple[Pool, Reference] | None = None
        self._looked_at = 0.0
        self.requeued = 0
        """Number of tasks assigned again after a worker died, over all searches."""

    def start(self) -> None:
        """Start the workers. This does not wait until they are ready."""
        self._add(self._count)

    def _add(self, count: int) -> None:
        # A strategy of its own would take a worker out of the placement group of a trial of Ray Tune.
        spread = None if ray.util.get_current_placement_group() is not None else "SPREAD"
        actor: Any = ray.remote(ScoringWorker).options(
            num_cpus=1, num_gpus=self._gpus, max_restarts=-1, max_task_retries=0, scheduling_strategy=spread
        )
        self._actors += [actor.remote(self._device, self._options) for _ in range(count)]

    def close(self) -> None:
        """End the workers."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def pids(self) -> list[int]:
        """The process id of each worker."""
        return ray.get([actor.pid.remote() for actor in self._actors])

    def search(
        self,
        pool: Pool,
        model: torch.nn.Module,
        request: Request[R],
        *,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> R:
        """See `kdray.search.requests.Searcher`. The result does not depend on the number of workers or their deaths.

        Raises:
            ScoringError: an output of the student is not finite, or no worker lives for `patience_s`.
        """
        expected, done = request.passes(pool, self._settings), 0

        def tell(passes: int) -> None:
            nonlocal done
            done += passes
            if on_progress is not None:
                on_progress(done, max(done, expected))

        chunk = self._chunk or a_seconds_work(model, pool.image_shape, self._device, self._options)
        context = SearchContext(
            run_stage=self.stage_runner(pool, model, tell, on_note),
            cut=Cut(chunk=chunk, batch=batch_on(self._device, model)),
            settings=self._settings,
            seed=seed,
            note=on_note or (lambda text: None),
        )
        return request.perform(pool, context)

    def stage_runner(
        self,
        pool: Pool,
        model: torch.nn.Module,
        on_passes: Callable[[int], None] = lambda passes: None,
        on_note: Callable[[str], None] | None = None,
    ) -> RunStage:
        """A function that runs the tasks of a stage on the workers.

        Args:
            on_passes: called with the number of forward passes of each finished task.
            on_note: called with each message for the user.
        """
        if not self._actors:
            self.start()
        if self._pool is None or self._pool[0] is not pool:
            self._pool = (pool, ray.put(pack(pool)))
        parts = self._pool[1], ray.put(model.cpu())

        def run_stage(stage: Stage, merge: Merge) -> None:
            metrics = SearchMetrics()
            job = [ray.put((*parts, ray.put(pack(stage))))]
            under_way = _StageRun(self._actors, job, len(stage), merge)
            alive_at, told, seen_at = time.monotonic(), False, 0.0
            while not under_way.assignment.complete:
                self._look_for_more(under_way, on_note)
                if time.monotonic() - seen_at > _SHOW_S:
                    seen_at = time.monotonic()
                    metrics.seen(**under_way.facts())
                before = merge.evaluated
                if under_way.advance():
                    alive_at = time.monotonic()
                    on_passes(merge.evaluated - before)
                elif under_way.assignment.workers:
                    alive_at = time.monotonic()
                elif time.monotonic() - alive_at > self._patience_s:
                    raise ScoringError(
                        f"no scoring worker for {self._patience_s:.0f} s; look at 'ray status', then 'kdray resume'. "
                        "A cluster that starts nodes may need more: set resources.patience_s"
                    )
                elif on_note is not None and not told and time.monotonic() - alive_at > LONG_WAIT_S:
                    told = True
                    each = f"a CPU and {self._gpus:g} GPU" if self._gpus else "a CPU"
                    on_note(
                        f"no scoring worker yet: {under_way.waiting} wait for {each} each; the run stops if none "
                        f"starts within {self._patience_s:,.0f} s"
                    )
            # Copies of finished tasks are left to run, about a second each: after `ray.cancel`, the next call to the
            # worker can wait 30 s for the cancelled one, and then fails.
            self.requeued += under_way.assignment.requeued
            metrics.seen(**under_way.facts())

        return run_stage

    def _look_for_more(self, under_way: "_StageRun", on_note: Callable[[str], None] | None) -> None:
        """Start workers on CPUs that have become free."""
        if not self._grow or time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        free = ray.available_resources()
        room = int(free.get("CPU", 0))
        if self._gpus:
            room = min(room, int(free.get("GPU", 0) / self._gpus))
        room -= under_way.waiting  # workers that have not started yet need CPUs too
        if room > 0:
            known = len(self._actors)
            self._add(room)
            under_way.wake(range(known, known + room))
            if on_note is not None:
                on_note(f"{counted(room, 'more scoring worker')}, {known + room} in all: CPUs have become free")


class _StageRun:
    """A stage in progress: which task runs on which worker, and which workers have not started yet."""

    def __init__(self, actors: list[Any], job: Box, tasks: int, merge: Merge) -> None:
        self._actors, self._job, self._merge = actors, job, merge
        self.assignment = Assignment(tasks)
        self._running: dict[Reference, tuple[int, int]] = {}
        # A worker gets tasks after it has answered a call: a worker that waits for a free CPU must not hold tasks.
        self._waking: dict[Reference, int] = {}
        self.wake(range(len(actors)))

    @property
    def waiting(self) -> int:
        """Number of workers that have not started, or have not restarted."""
        return len(self._waking)

    def facts(self) -> dict[str, int]:
        """What `actors.metrics.SearchMetrics.seen` shows."""
        return {
            "requeued": self.assignment.requeued,
            "ready": len(self.assignment.workers),
            "waiting": len(self._waking),
        }

    def wake(self, workers: range) -> None:
        """Call these workers. They get tasks when they answer."""
        self._waking |= {self._actors[worker].pid.remote(): worker for worker in workers}

    def advance(self) -> bool:
        """Assign tasks, and process the replies that have come, or the next one if it comes within a second. Returns
        whether there is a new result."""
        for worker, task in self.assignment.next_tasks():
            call = self._actors[worker].work.remote(self._job, task, self._merge.bound)
            self._running[call] = (worker, task)
        # Ray looks at every call in each wait, which takes milliseconds for two thousand.
        calls = [*self._running, *self._waking]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        if not ready:
            ready, _ = ray.wait(calls, num_returns=1, timeout=1.0)
        results = [self._woken(call) if call in self._waking else self._scored(call) for call in ready]
        return any(results)

    def _scored(self, call: Reference) -> bool:
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

    def _woken(self, call: Reference) -> bool:
        """Process the reply of a worker that has started or restarted, or that died again."""
        worker = self._waking.pop(call)
        try:
            ray.get(call)
        except (RayActorError, ActorUnavailableError):
            time.sleep(_RESTART_POLL_S)  # calls to an actor that is being restarted fail at once
            self.wake(range(worker, worker + 1))
        else:
            self.assignment.joined(worker)
        return False
