"""Training of one student on several workers, by Ray Train's TorchTrainer."""

import os
import tempfile
from dataclasses import replace
from typing import Any

import ray

from actors.parcels import pack, unpack
from kdray.errors import KdrayError, ScoringError
from kdray.training.fitting import StudentSpec, fit, smallest_batch
from kdray.training.loop import TrainResult

_MAX_TRIES = 3
_SOME_MEMORY = 1 << 20  # bytes: a worker without GPU must reserve something, and the CPUs belong to the scoring workers
_QUIET = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a network of the user's own may read files beside it
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class TrainingGroup:
    """Trains one student in each call on several workers, and says meanwhile how far it is.

    The actor starts the workers for each student, and they end with it. It does several calls at once: workers tell it
    how far they are while `fit` runs. Killing it ends its workers.

    Args:
        workers: number of workers.
        gpus: whether each has a GPU.
        patience_s: longest time to wait for workers.
    """

    def __init__(self, workers: int, gpus: bool, patience_s: float) -> None:
        os.environ.update(_QUIET | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(patience_s / _MAX_TRIES)})
        self._patience_s = patience_s
        self._count, self._gpus = workers, gpus
        self._progress: tuple[int, list[tuple[int, int, float]]] = (0, [])
        self._started = False
        self._student: tuple[bytes, TrainResult] | None = None
        self._mistake: KdrayError | None = None
        self._state: bytes | None = None

    def started(self) -> bool:
        """Whether the workers of the present call have started."""
        return self._started

    def epochs(self, call: int, seen: int) -> list[tuple[int, int, float]]:
        """See `actors.students.TrainingWorker.epochs`. After a worker died, the epochs up to `seen` are done again."""
        under_way, epochs = self._progress
        return epochs[seen:] if under_way == call else []

    def state(self) -> bytes | None:
        """See `actors.students.TrainingWorker.state`."""
        state, self._state = self._state, None
        return state

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
        """See `actors.students.TrainingWorker.fit`.

        Raises:
            ScoringError: workers have died or failed three times, or do not start within `patience_s`.
        """
        from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        self._started, self._student, self._mistake, self._state = False, None, None, None
        self._progress = call, []
        student: StudentSpec = unpack(spec)
        on_gpu = self._gpus and student.recipe.device != "cpu"
        recipe = student.recipe.model_copy(update={"device": "cuda" if on_gpu else "cpu"})
        # A worker that gets no image of a batch would have nothing to compute, so a tiny labelled set takes fewer.
        own = replace(student, recipe=recipe)
        workers = min(self._count, smallest_batch(own, len(ray.get(targets[0])), final=final))
        arguments = {
            "group": ray.get_runtime_context().current_actor,
            "call": call,
            "spec": pack(own),
            "images": images,
            "targets": targets,
            "round": round,
            "final": final,
            "last": [ray.put(last)],
        }
        with tempfile.TemporaryDirectory(prefix="kdray-train-") as folder:
            trainer = TorchTrainer(
                train_part,
                train_loop_config=arguments,
                torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=self._gpus,
                    resources_per_worker={"CPU": 0, "GPU": 1} if self._gpus else {"CPU": 0, "memory": _SOME_MEMORY},
                    placement_strategy="PACK" if self._gpus else "SPREAD",
                ),
                run_config=RunConfig(
                    storage_path=folder,
                    failure_config=FailureConfig(  # mypy sees the class of Ray Train's first version
                        max_failures=_MAX_TRIES - 1,
                        controller_failure_limit=_MAX_TRIES - 1,  # type: ignore[call-arg]
                    ),
                ),
            )
            try:
                trainer.fit()
            except ControllerError:
                what = "GPUs" if self._gpus else "place"
                raise ScoringError(
                    f"{workers} training workers found no {what} for {self._patience_s:,.0f} s; set "
                    "resources.trainer.workers or resources.scoring_workers lower, or resources.patience_s higher if "
                    "the cluster starts nodes"
                ) from None
            except TrainingFailedError as error:
                reason = next(iter(getattr(error, "worker_failures", {}).values()), error)
                lines = str(reason).strip().splitlines() or [type(reason).__name__]
                raise ScoringError(
                    f"training on {workers} workers failed {_MAX_TRIES} times ({lines[-1]}); look at "
                    "'ray status', then 'kdray resume'"
                ) from None
        if self._mistake is not None:
            raise self._mistake
        assert self._student is not None  # the first worker sends it before it ends
        return self._student

    # Called by the first worker

    def begin(self, call: int) -> None:
        """The workers have started, perhaps again."""
        self._started, self._progress = True, (call, [])

    def done(self, call: int, done: int, of: int, loss: float) -> None:
        """An epoch has ended."""
        if self._progress[0] == call:
            self._progress[1].append((done, of, loss))

    def keep(self, call: int, state: bytes) -> None:
        """Keep the newest state of the training."""
        if self._progress[0] == call:
            self._state = state

    def finish(self, data: bytes, result: TrainResult) -> None:
        """The student is trained."""
        self._student = data, result

    def give_up(self, mistake: KdrayError) -> None:
        """The student cannot be trained, and trying again would not help."""
        self._mistake = mistake


def train_part(arguments: dict[str, Any]) -> None:
    """What each worker does: train on its rows of every batch. The first one tells the group."""
    from kdray.training.distributed import ProcessShard

    group, call, spec = arguments["group"], arguments["call"], unpack(arguments["spec"])
    shard = ProcessShard()
    first = shard.rank == 0
    if first:
        ray.get(group.begin.remote(call))
    images, targets = (unpack(ray.get(arguments[name][0])) for name in ("images", "targets"))
    try:
        data, result = fit(
            spec,
            images,
            targets,
            arguments["round"],
            (lambda done, of, loss: group.done.remote(call, done, of, loss)) if first else None,
            shard,
            final=arguments["final"],
            last=ray.get(arguments["last"][0]),
            on_state=(lambda state: group.keep.remote(call, state)) if first else None,
        )
    except KdrayError as mistake:  # of the config: all workers make it, and none waits for another
        ray.get(group.give_up.remote(mistake))
        return
    if first:
        ray.get(group.finish.remote(data, result))
