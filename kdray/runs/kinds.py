"""Which of several kinds of candidates teaches most, by what their trial has bought; later rounds choose from it."""

import shutil
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kdray.errors import TrainingError
from kdray.models.checkpoint import load_student
from kdray.models.classifier import ImageClassifier
from kdray.pools.base import Pool
from kdray.pools.kinds import KindsPool
from kdray.runs.directory import RunDirectory
from kdray.runs.tables import Candidates, Labelled
from kdray.runs.training_set import with_bought
from kdray.training.base import Trainer
from kdray.training.choice import Choice, choose
from kdray.utils.files import read_json, write_bytes
from kdray.utils.stored import joined, taken

TRIAL = 1
"""The round whose candidates are of all kinds; the next one begins with the comparison."""


class Kinds:
    """The kinds of candidates that a run may choose from. On disk a candidate has the id of the whole pool.

    Args:
        directory: of the run.
        pool: the run's; of one kind alone there is nothing to find out.
    """

    def __init__(self, directory: RunDirectory, pool: Pool) -> None:
        self._directory, self._whole = directory, pool
        self._several = pool if isinstance(pool, KindsPool) else None
        self._number: int | None = None

    @property
    def several(self) -> bool:
        """Whether there is anything to find out."""
        return self._several is not None

    def on_trial(self, number: int) -> bool:
        """Whether a round asks about candidates of all kinds."""
        return self.several and number == TRIAL

    def drawn(self, count: int, generator: np.random.Generator) -> Candidates:
        """So many candidates, evenly of all kinds, for the trial."""
        assert self._several is not None, "see `on_trial`"
        ids = self._several.draw(count, generator)
        columns = self._several.describe(torch.from_numpy(ids))
        return Candidates(ids=ids, scores=None, source=self._several.source, columns=columns)

    @property
    def pool(self) -> Pool:
        """What the rounds after the trial choose from; the whole pool as long as that is not known."""
        number = self._found()
        return self._whole if self._several is None or number is None else self._several.kinds[number]

    @property
    def source(self) -> str:
        """Where the candidates of `pool` come from, in words: as the trial named them."""
        number = self._found()
        return self._whole.source if self._several is None or number is None else self._several.names[number]

    def others(self, labelled: Labelled) -> Tensor:
        """Of what the trial bought the images of other kinds than `pool`'s, uint8 [B, C, H, W]."""
        assert self._several is not None, "see `several`"
        numbers = self._several.numbers(torch.from_numpy(labelled.ids))
        others = torch.tensor([number != self._found() for number in numbers.tolist()]).nonzero().flatten()
        return taken(labelled.images, others)

    def inner(self, ids: np.ndarray) -> np.ndarray:
        """Of candidates int64 those of `pool`, by the ids that they have there."""
        number = self._found()
        return ids if self._several is None or number is None else self._several.inner(number, ids)

    def outer(self, ids: np.ndarray) -> np.ndarray:
        """Candidates of `pool`, int64, by the ids that they have on disk."""
        number = self._found()
        return ids if self._several is None or number is None else self._several.outer(number, ids)

    def _found(self) -> int | None:
        path = self._directory.artefact(TRIAL + 1, "compare")
        if self._number is None and self._several is not None and path.exists():
            self._number = self._several.names.index(read_json(path)["chosen"])
        return self._number

    def compare(
        self,
        trainer: Trainer,
        *,
        given: list[Tensor],
        num_classes: int,
        top: int | None,
        seed: int,
        on_progress: Callable[[int, int], None],
    ) -> Choice:
        """The kind whose candidates, with a part of the user's images, make the students that agree best with the
        teacher on the rest of these images. All parts are held out from all kinds: kinds differ less than recipes do.
        Students that were done when a comparison was broken off are not trained again.

        Args:
            given: images with true labels and their targets, which every student learns; or nothing.
            top: see `kdray.teachers.answers.training_targets`.
            on_progress: called with (epochs done, epochs in all) of each network.
        """
        assert self._several is not None, "see `several`"
        names = self._several.names
        first, trial = (self._directory.read_labelled(number, num_classes) for number in (0, TRIAL))
        kind_of = self._several.numbers(torch.from_numpy(trial.ids))
        images, targets = with_bought([], first, top) or _none_of(trial)
        tried_images, tried_targets = with_bought([], trial, top) or _none_of(trial)
        scratch = self._directory.round(TRIAL + 1) / "compared"

        def fit(name: str, learnt: Tensor, answers: Tensor, fold: int) -> ImageClassifier | None:
            done = scratch / f"{names.index(name)}-{fold}.safetensors"
            if done.exists():
                return load_student(done)
            mine = kind_of == names.index(name)
            parts = [given] if given else []
            parts += [[learnt, answers], [tried_images[mine], tried_targets[mine]]]
            try:
                data, _ = trainer.fit(
                    joined([part[0] for part in parts]),
                    torch.cat([part[1] for part in parts]),
                    TRIAL,
                    lambda done, of, loss: on_progress(done, of),
                    final=False,
                )
            except TrainingError:  # such as a loss that is not finite: this kind is no choice, and the others still are
                return None
            write_bytes(done, data)
            return load_student(done)

        choice = choose(names, images, targets, fit=fit, seed=seed, round=TRIAL, halving=False)
        shutil.rmtree(scratch, ignore_errors=True)
        return choice


def _none_of(labelled: Labelled) -> list[Tensor]:
    return [labelled.images[:0], torch.empty(0, labelled.answers.num_classes)]
