"""Fresh candidates that nobody pays for: several students label them, and one more learns from them too."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdray.models.base import ModelName
from kdray.pools.base import Pool
from kdray.sections.base import Section
from kdray.training.augment.base import Augment, Draw
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


class Unpaid(Section):
    """In the last round several students learn from the answers, and one more from these and from what the others,
    together, say of fresh candidates of the pool. These candidates are neither stored nor asked about."""

    students: Annotated[int, Field(ge=1)] = 5
    """Students whose mean answer is the label."""
    model: ModelName | None = None
    """Their network; null: the student's. A larger one may learn more from few answers than the student can."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of unpaid candidates in a step. They are added to the batch of answered images."""


class Labeller:
    """Draws candidates from a pool and labels them.

    Args:
        section: says how many.
        pool: to draw from, with replacement.
        students: in eval mode.
        augment: changes the candidates before they are labelled.
        device: of the students, where the pool may be elsewhere; None: the pool's.
    """

    def __init__(
        self,
        section: Unpaid,
        pool: Pool,
        students: "Sequence[nn.Module]",
        augment: Augment,
        device: "torch.device | None" = None,
    ) -> None:
        self._section, self._pool, self._students, self._augment = section, pool, students, augment
        self._device = device

    def count(self, bought: int) -> int:
        """Unpaid candidates beside `bought` images, at least one."""
        return max(1, round(bought * self._section.share / (1.0 - self._section.share)))

    def draw(self, draw: Draw) -> "tuple[Tensor, Tensor]":
        """Images [B, C, H, W] with pixels of 0 to 255, and the students' mean probabilities, float32 [B, K].

        Args:
            draw: random numbers for the B candidates.
        """
        images = self._pool.render(draw.integers(0, len(self._pool)))
        images = images if self._device is None else images.to(self._device)
        if len(images):  # a small batch over many processes has none for some
            images = self._augment(images, draw)
        with torch.no_grad():
            answers = [student(images).float().softmax(dim=1) for student in self._students]
        return images, torch.stack(answers).mean(dim=0)
