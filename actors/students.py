"""The student's training in a Ray actor, where the GPU or the cores are."""

import time
from collections.abc import Callable

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.queue import Empty, Queue

from actors.cluster import unwrap
from kdray.errors import ScoringError
from kdray.students.fit import StudentSpec, fit
from kdray.students.train import TrainResult

_MAX_TRIES = 3


class TrainingWorker:
    """Trains one student a call; nothing is kept between calls."""

    def fit(self, spec: StudentSpec, images, targets, round: int, epochs: Queue) -> tuple[bytes, TrainResult]:
        """`kdray.students.fit.fit` on numpy arrays; epochs done go to the queue."""
        return fit(
            spec,
            torch.from_numpy(images.copy()),
            torch.from_numpy(targets.copy()),
            round,
            lambda done, loss: epochs.put((done, loss)),
        )


class RayTrainer:
    """Trains in an actor with `threads` CPUs' worth of threads and `gpus` GPUs.

    Args:
        spec: what to train.
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
        """See `kdray.rounds.Trainer`. Training is pure, so one that dies with its node is started again elsewhere.

        Raises:
            ScoringError: the worker died three times.
        """
        arrays = ray.put(images.numpy()), ray.put(targets.numpy())
        for _ in range(_MAX_TRIES):
            epochs = Queue(actor_options={"num_cpus": 0})
            # No CPU is reserved: the scoring workers, which hold them, stand still while the student trains.
            worker = ray.remote(TrainingWorker).options(num_cpus=0, num_gpus=self._gpus).remote()
            result = worker.fit.remote(self._spec, *arrays, round, epochs)
            try:
                while not ray.wait([result], timeout=0)[0]:
                    try:
                        done, loss = epochs.get(timeout=0.5)
                    except Empty:
                        continue
                    if on_epoch is not None:
                        on_epoch(done, loss)
                return ray.get(result)
            except RayTaskError as error:
                raise unwrap(error) from None
            except (RayActorError, ActorUnavailableError):
                time.sleep(1.0)  # the node's death has to be noticed before another can be chosen
            finally:
                ray.kill(worker)
                epochs.shutdown(force=True)
        raise ScoringError(f"the training worker died {_MAX_TRIES} times; look at 'ray status', then 'kdray resume'")
