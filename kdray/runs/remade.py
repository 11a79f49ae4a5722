"""Candidates that each round makes anew from its student; see `kdray.pools.remade`."""

import time
from collections.abc import Sequence

import torch
from safetensors.torch import save
from torch import Tensor, nn

from kdray.models.checkpoint import load_student, read_tensors
from kdray.observers import Observer
from kdray.pools.base import Pool
from kdray.pools.remade import Basis, is_remade
from kdray.runs.directory import RunDirectory
from kdray.training.base import Trainer
from kdray.utils.files import write_bytes


class Remade:
    """The pools of a run's rounds, where each round makes its own.

    Args:
        directory: of the run.
        pool: the run's; of most kinds it stays the same.
    """

    def __init__(self, directory: RunDirectory, pool: Pool) -> None:
        self._directory, self._pool = directory, pool if is_remade(pool) else None
        self._newest: tuple[int, Pool] | None = None

    def __bool__(self) -> bool:
        """Whether there is anything to make."""
        return self._pool is not None

    def make(
        self,
        number: int,
        learnt: Sequence[Tensor],
        *,
        trainer: Trainer,
        observer: Observer,
        count: int,
        teacher: nn.Module | None,
    ) -> None:
        """Make the candidates of a round, and keep what they follow from as rounds/NNN/pool.safetensors.

        Args:
            number: of the round, at least 1.
            learnt: images and targets that have been bought before it; empty where there are none.
            trainer: makes them where it trains students.
            count, teacher: see `Basis`.
        """
        assert self._pool is not None, "see `__bool__`"
        begin = time.monotonic()
        student = load_student(self._directory.artefact(number - 1, "train")).requires_grad_(False)
        before = self._directory.artefact(number - 1, "make")
        images, targets = learnt or _nothing(student.image_shape)
        basis = Basis(
            number=number,
            student=student,
            images=images,
            targets=targets,
            last=read_tensors(before) if before.exists() else None,
            count=count,
            teacher=teacher,
            on_progress=observer.progress,
        )
        made = trainer.make(self._pool, basis)
        for note in made.notes:
            observer.note(note)
        facts = {"seconds": time.monotonic() - begin, **made.facts, "notes": made.notes}
        self._directory.add_phase(number, "make", facts)
        tensors = {name: tensor.contiguous() for name, tensor in sorted(made.tensors.items())}
        write_bytes(self._directory.artefact(number, "make"), save(tensors))

    def of_round(self, number: int) -> Pool:
        """What a round chooses from: the same object each time, as workers fetch an object once. A round that makes no
        candidates has those of the round before; before round 1 they are those of an untrained student."""
        assert self._pool is not None, "see `__bool__`"
        while number and not self._directory.artefact(number, "make").exists():
            number -= 1
        if number == 0:
            return self._pool
        if self._newest is None or self._newest[0] != number:
            tensors = read_tensors(self._directory.artefact(number, "make"))
            self._newest = (number, self._pool.made(number, tensors))
        return self._newest[1]


def _nothing(image_shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    return torch.empty(0, *image_shape, dtype=torch.uint8), torch.empty(0, 0)
