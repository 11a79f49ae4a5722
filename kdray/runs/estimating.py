"""RAD's m (section 3.3) in a run: what is asked for its estimate, and what was found."""

import time

import numpy as np
from torch import Tensor

from kdray.runs.asking import Asking, namer
from kdray.runs.context import RunContext
from kdray.runs.directory import RunDirectory
from kdray.runs.policy import Bought
from kdray.runs.tables import Labelled
from kdray.select.rad.estimate import draw_images, judge
from kdray.select.rad.mistakes import Estimate, Mistakes
from kdray.utils.files import read_json, write_json

ESTIMATE_ROUND = 1
"""The round that begins with the estimate."""


class Estimating:
    """The estimate of m of one run, where its config asks for one."""

    def __init__(self, directory: RunDirectory, run: RunContext, asking: Asking) -> None:
        self._directory, self._run, self._inputs, self._asking = directory, run, run.inputs, asking

    def estimate(self, chosen: np.ndarray) -> None:
        """Ask about a uniform sample, and record the estimate of m.

        Args:
            chosen: int64, candidates that have left the pool.
        """
        begin = time.monotonic()
        assert self._inputs.estimation is not None, "there is no such phase without one"
        estimation, seed = self._inputs.estimation, self._inputs.config.seed
        drawn = draw_images(self._inputs.pool, chosen, estimation, seed, self._source_classes)
        if len(drawn.images) < estimation.queries:
            self._run.observer.note(
                f"m: {len(drawn.images):,} of {estimation.queries:,} queries are spent, as no more pairs were found of "
                "whose two images both classes are known"
            )
        where = "image {} of the sample for m" if drawn.ids is None else f"candidate {{}} of {self._inputs.pool.source}"
        bought = self._asking.buy(drawn.images, ESTIMATE_ROUND, "estimate", namer(where, drawn.ids))
        rows = bought.positions.numpy()
        estimate = judge(drawn, rows, bought.answers.labels.numpy(), self._inputs.pool, self._source_classes)
        self._run.observer.note(
            f"m: the teacher errs on {estimate.share:.1%} ({estimate.low:.1%} to {estimate.high:.1%}) of the "
            f"candidates, from {estimate.answered:,} answers"
        )
        facts = {"seconds": time.monotonic() - begin, "charged": bought.charged, "reused": bought.reused}
        first = self._directory.read_labelled(0, self._run.teachers.teacher.num_classes)
        facts["repeated"] = self._asking.repeated(drawn.images, bought, [first.images])
        if drawn.ids is not None and len(rows):
            labelled = self._kept(drawn.images, drawn.ids, bought)
            top = self._inputs.config.teacher.form.top
            self._directory.write_labelled(ESTIMATE_ROUND, labelled, self._inputs.classes, sample=True, top=top)
        self._directory.add_phase(ESTIMATE_ROUND, "estimate", facts)
        write_json(self._directory.artefact(ESTIMATE_ROUND, "estimate"), estimate.to_json())

    def mistakes(self) -> Mistakes | None:
        """m as it was estimated; None where it was not."""
        if self._inputs.estimation is None:
            return None
        return Mistakes(share=Estimate(**read_json(self._directory.artefact(ESTIMATE_ROUND, "estimate"))).share)

    def sampled(self) -> np.ndarray:
        """Candidates that were asked about for the estimate, int64."""
        if not self._directory.has_sample(ESTIMATE_ROUND):
            return np.empty(0, np.int64)
        classes = self._run.teachers.teacher.num_classes
        return self._directory.read_labelled(ESTIMATE_ROUND, classes, sample=True).ids

    def _source_classes(self) -> np.ndarray:
        """The teacher's class for each of the user's images, int64 [N]; -1 where it gave none."""
        known = self._directory.read_labelled(0, self._run.teachers.teacher.num_classes)
        classes = np.full(len(self._inputs.images), -1, dtype=np.int64)
        classes[known.ids] = known.answers.labels.numpy()
        return classes

    def _kept(self, images: Tensor, ids: np.ndarray, bought: Bought) -> Labelled:
        """The answered candidates of an estimate. They are paid for, so the student is trained on them."""
        return Labelled(
            images=images[bought.positions],
            answers=bought.answers,
            ids=ids[bought.positions.numpy()],
            source=(self._inputs.pool.source,) * len(bought.positions),
        )
