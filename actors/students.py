"""Training of the student in a Ray actor, on a node with a GPU or with many cores, or on several of them."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import LONG_WAIT_S, unwrap
from actors.parcels import pack, pack_images, unpack
from actors.training_group import TrainingGroup
from kdray.errors import ScoringError
from kdray.pools.base import Pool
from kdray.pools.remade import Basis, Made, RemadePool
from kdray.sections.search import PATIENCE_S
from kdray.training.candidates import make_candidates
from kdray.training.fitting import StudentSpec, fit, with_candidates, with_start
from kdray.training.loop import TrainResult

_MAX_TRIES = 3
_LOOK_S = 0.5  # between two looks at how far it is


def with_most_cpus(nodes: Sequence[Mapping[str, Any]], here: str, failed: Collection[str] = ()) -> str:
    """ID of the living node with the most CPUs.

    Args:
        nodes: as `ray.nodes()` gives them: one that has just died may still count as alive.
        here: ID of the driver's node, which is chosen among equals.
        failed: IDs of nodes that are taken only if there is no other.
    """
    alive = [node for node in nodes if node["Alive"]]
    alive = [node for node in alive if node["NodeID"] not in failed] or alive
    best = max(alive, key=lambda node: (node["Resources"].get("CPU", 0.0), node["NodeID"] == here, node["NodeID"]))
    return str(best["NodeID"])


class TrainingWorker:
    """Trains one student in each call, and says meanwhile how far it is: an actor that does two calls at once."""

    def __init__(self) -> None:
        self._progress: tuple[int, list[tuple[int, int, float]]] = (0, [])
        self._state: bytes | None = None

    def fit(
        self,
        call: int,
        spec: Any,
        images: list[Any],
        targets: list[Any],
        round: int,
        final: bool,
        last: bytes | None,
    ) -> tuple[bytes, TrainResult]:
        """Call `kdray.training.fitting.fit`.

        Args:
            call: a number that no other call has.
            spec: the student, as `actors.parcels.pack` gave it.
            images, targets: each a list with the reference of what `actors.parcels.pack_images` gave: Ray would replace
                a bare reference.
        """
        epochs: list[tuple[int, int, float]] = []
        self._progress, self._state = (call, epochs), None
        return fit(
            unpack(spec),
            unpack(ray.get(images[0])),
            unpack(ray.get(targets[0])),
            round,
            lambda done, of, loss: epochs.append((done, of, loss)),
            final=final,
            last=last,
            on_state=self._keep,
        )

    def make(self, call: int, spec: Any, pool: Any, basis: Any) -> Made:
        """Call `kdray.training.candidates.make_candidates`; see `fit`."""
        steps: list[tuple[int, int, float]] = []
        self._progress, self._state = (call, steps), None
        told = replace(unpack(basis), on_progress=lambda done, of: steps.append((done, of, 0.0)))
        return make_candidates(unpack(spec), unpack(pool), told)

    def _keep(self, state: bytes) -> None:
        self._state = state

    def state(self) -> bytes | None:
        """The newest state of the training, once; None where there is no newer one."""
        state, self._state = self._state, None
        return state

    def epochs(self, call: int, seen: int) -> list[tuple[int, int, float]]:
        """Number, number in all and mean loss of each epoch that this call has finished, but for the first `seen`."""
        under_way, epochs = self._progress
        return epochs[seen:] if under_way == call else []


class RayTrainer:
    """Trains the student in a Ray actor with `spec.threads` threads and `gpus` GPUs, or on several workers.

    Without GPUs the actor is on the node with the most CPUs. It starts with the first student and stays: it holds its
    GPUs for the run, and has imported torch. Several workers start anew for each student; see `actors.training_group`.

    Args:
        spec: the student to train.
        gpus: GPUs of a worker; may be a fraction if there is one, else 0 or 1.
        workers: number of workers.
        patience_s: longest time to wait for them.
        on_note: called with each message for the user.
    """

    def __init__(
        self,
        spec: StudentSpec,
        gpus: float = 0.0,
        *,
        workers: int = 1,
        patience_s: float = PATIENCE_S,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self._spec, self._gpus, self._workers = spec, gpus, workers
        self._patience_s, self._note = patience_s, on_note or (lambda text: None)
        self._worker: Any = None
        self._place = ""  # ID of the node that was chosen for it
        self._failed: set[str] = set()  # nodes on which training the present student has failed
        self._calls = 0
        self._last: bytes | None = None  # the newest state of the present training
        self._on_state: Callable[[bytes], None] = lambda state: None

    def close(self) -> None:
        """End the actor."""
        if self._worker is not None:
            ray.kill(self._worker)
        self._worker = None

    def take_candidates(self, pool: Pool) -> None:
        """See `kdray.training.base.Trainer.take_candidates`."""
        self._spec = with_candidates(self._spec, pool)

    def start_from(self, student: bytes) -> None:
        """See `kdray.training.base.Trainer.start_from`."""
        self._spec = with_start(self._spec, student)

    def fit(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        round: int,
        on_epoch: Callable[[int, int, float], None] | None = None,
        *,
        final: bool = True,
        last: bytes | None = None,
        on_state: Callable[[bytes], None] | None = None,
    ) -> tuple[bytes, TrainResult]:
        """See `kdray.training.base.Trainer.fit`.

        Training depends on its arguments alone, so a worker that dies with its node is replaced by another, which goes
        on from the newest state.

        Raises:
            ScoringError: the worker died three times, or gets no GPU for `patience_s`.
        """
        arrays = [ray.put(pack_images(images))], [ray.put(targets.numpy())]
        self._last, self._on_state = last, on_state or (lambda state: None)

        def begin(worker: Any, call: int) -> Any:
            return worker.fit.remote(call, pack(self._spec), *arrays, round, final, self._last)

        student: tuple[bytes, TrainResult] = self._tried(begin, on_epoch or (lambda done, of, loss: None))
        return student

    def make(self, pool: RemadePool, basis: Basis) -> Made:
        """See `kdray.training.base.Trainer.make`. Several workers share no such work, and a teacher's network stays
        where it is: then this process does it.

        Raises:
            ScoringError: see `fit`.
        """
        if self._workers > 1 or basis.teacher is not None:
            return make_candidates(self._spec, pool, basis)
        self._last = None
        tell, sent = basis.on_progress, pack(replace(basis, on_progress=Basis.on_progress))

        def begin(worker: Any, call: int) -> Any:
            return worker.make.remote(call, pack(self._spec), pack(pool), sent)

        made: Made = self._tried(begin, lambda done, of, loss: tell(done, of))
        return made

    def _tried(self, begin: Callable[[Any, int], Any], on_epoch: Callable[[int, int, float], None]) -> Any:
        """What a worker gives, or another if it dies. `begin` has a worker start with a call, and gives the reference
        of its result."""
        self._failed.clear()
        for _ in range(_MAX_TRIES):
            try:
                return self._done(begin, on_epoch)
            except RayTaskError as error:
                raise unwrap(error) from None
            except (RayActorError, ActorUnavailableError, ActorUnschedulableError):
                self.close()
                self._failed.add(self._place)
                time.sleep(1.0)  # Ray must notice that the node died before it can choose another
        raise ScoringError(f"the training worker died {_MAX_TRIES} times; look at 'ray status', then 'kdray resume'")

    def _done(self, begin: Callable[[Any, int], Any], on_epoch: Callable[[int, int, float], None]) -> Any:
        if self._worker is None:
            self._worker = self._start()
            if self._gpus and self._workers == 1:
                self._wait_for_gpus()
        self._calls += 1
        result = begin(self._worker, self._calls)
        seen, ended = 0, False
        begun, told = time.monotonic(), self._workers == 1
        while not ended:
            ended = bool(ray.wait([result], timeout=_LOOK_S)[0])
            if not told and time.monotonic() - begun > LONG_WAIT_S:
                told = True
                if not ray.get(self._worker.started.remote()):
                    self._note(f"waiting for {self._workers} training workers for up to {self._patience_s:,.0f} s")
            for done, of, loss in ray.get(self._worker.epochs.remote(self._calls, seen)):
                on_epoch(done, of, loss)
                seen += 1
            if (state := ray.get(self._worker.state.remote())) is not None:
                self._last = state
                self._on_state(state)
        return ray.get(result)

    def _start(self) -> Any:
        # No CPU is reserved: the scoring workers hold the CPUs, but are idle while the student trains.
        if self._workers == 1:
            options: dict[str, Any] = {"num_cpus": 0, "num_gpus": self._gpus, "max_concurrency": 2}
            # Ray would put an actor that reserves nothing beside the driver, though the head may have one core, and
            # often does so in spite of a soft affinity.
            if not self._gpus and ray.util.get_current_placement_group() is None:
                here = ray.get_runtime_context().get_node_id()
                self._place = with_most_cpus(ray.nodes(), here, self._failed)
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._place, soft=False)
            return ray.remote(TrainingWorker).options(**options).remote()
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(TrainingGroup).options(num_cpus=0, max_concurrency=8, scheduling_strategy=beside)
        return actor.remote(self._workers, bool(self._gpus), self._patience_s)

    def _wait_for_gpus(self) -> None:
        """Wait until the actor has started. Scoring workers hold their GPUs for the whole run."""
        started, begin, told = self._worker.epochs.remote(0, 0), time.monotonic(), False
        while not ray.wait([started], timeout=1.0)[0]:
            waited, wanted = time.monotonic() - begin, f"the training worker waits for {self._gpus:g} GPU"
            if waited > self._patience_s:
                self.close()
                raise ScoringError(
                    f"{wanted}, and none came free for {self._patience_s:,.0f} s; set resources.trainer.gpus or "
                    "resources.scoring_workers lower, or resources.patience_s higher if the cluster starts nodes"
                )
            if waited > LONG_WAIT_S and not told:
                told = True
                self._note(f"{wanted}; the run stops if none comes free within {self._patience_s:,.0f} s")
