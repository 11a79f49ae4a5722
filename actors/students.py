"""Training of the student in a Ray actor, on a node with a GPU or with many cores."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.queue import Empty, Queue

from actors.cluster import unwrap
from kdray.errors import ScoringError
from kdray.training.loop import TrainResult
from kdray.training.trainer import StudentSpec, fit

_MAX_TRIES = 3


class TrainingWorker:
    """Trains one student in each call. It keeps nothing between calls."""

    def fit(
        self, spec: StudentSpec, images: np.ndarray, targets: np.ndarray, round: int, epochs: Queue
    ) -> tuple[bytes, TrainResult]:
        """Call `kdray.training.trainer.fit` with numpy arrays, and put each finished epoch into the queue."""
        return fit(
            spec,
            torch.from_numpy(images.copy()),
            torch.from_numpy(targets.copy()),
            round,
            lambda done, loss: epochs.put((done, loss)),
        )


class RayTrainer:
    """Trains the student in a Ray actor with `spec.threads` threads and `gpus` GPUs.

    Args:
        spec: the student to train.
        gpus: GPUs of the actor; may be a fraction.
    """

    def __init__(self, spec: StudentSpec, gpus: float = 0.0) -> None:
        self._spec, self._gpus = spec, gpus

    def fit(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        round: int,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> tuple[bytes, TrainResult]:
        """See `kdray.training.base.Trainer.fit`.

        Training depends on its arguments alone, so a worker that dies with its node is replaced by another.

        Raises:
            ScoringError: the worker died three times.
        """
        arrays = ray.put(images.numpy()), ray.put(targets.numpy())
        for _ in range(_MAX_TRIES):
            epochs = Queue(actor_options={"num_cpus": 0})
            # No CPU is reserved: the scoring workers hold the CPUs, but are idle while the student trains.
            worker: Any = ray.remote(TrainingWorker).options(num_cpus=0, num_gpus=self._gpus).remote()
            result = worker.fit.remote(self._spec, *arrays, round, epochs)
            try:
                while not ray.wait([result], timeout=0)[0]:
                    try:
                        done, loss = epochs.get(timeout=0.5)
                    except Empty:
                        continue
                    if on_epoch is not None:
                        on_epoch(done, loss)
                trained: tuple[bytes, TrainResult] = ray.get(result)
                return trained
            except RayTaskError as error:
                raise unwrap(error) from None
            except (RayActorError, ActorUnavailableError):
                time.sleep(1.0)  # Ray must notice that the node died before it can choose another
            finally:
                ray.kill(worker)
                epochs.shutdown(force=True)
        raise ScoringError(f"the training worker died {_MAX_TRIES} times; look at 'ray status', then 'kdray resume'")
