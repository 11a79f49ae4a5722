"""What a round asks the teacher about: its candidates, and behind them all images so far where it asks about these
again (`kdray.pools.base.PoolSection.asks_again`)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kdray.runs.asking import namer
from kdray.runs.directory import RunDirectory
from kdray.runs.policy import Bought
from kdray.runs.tables import Candidates, Labelled
from kdray.utils.stored import joined, taken

_AGAIN = ", asked again"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The images of a purchase, and where each is from.

    Attributes:
        images: uint8 [N, C, H, W].
        ids: int64 [N], see `kdray.runs.tables.Labelled`.
        source: of each image.
        again: how many, the last ones, an earlier round has answers to.
        name: of the image at a position, in words for the user.
    """

    images: Tensor
    ids: np.ndarray
    source: tuple[str, ...]
    again: int
    name: Callable[[int], str]

    @classmethod
    def of(cls, images: Tensor, candidates: Candidates, where: str, before: tuple[Tensor, list[str]] | None) -> "Asked":
        """What a round asks.

        Args:
            images: of the candidates.
            where: names one of them by its id, as a format.
            before: what is asked about again, see `bought_before`; None where nothing is.
        """
        source = tuple(candidates.columns.get("kind") or [candidates.source] * len(candidates.ids))  # of several kinds
        new, name = len(candidates.ids), namer(where, candidates.ids)
        if before is None:
            return cls(images=images, ids=candidates.ids, source=source, again=0, name=name)
        old, sources = before
        return cls(
            images=joined([images, old]),
            ids=np.concatenate([candidates.ids, np.full(len(old), -1)]),
            source=source + tuple(one + _AGAIN for one in sources),
            again=len(old),
            name=lambda position: name(position) if position < new else f"image {position - new} that was asked again",
        )

    def answered(self, bought: Bought) -> Labelled:
        """Those that have an answer."""
        rows = bought.positions.numpy()
        # Positions ascend; a copy of all would double what is held.
        images = self.images if len(rows) == len(self.images) else taken(self.images, bought.positions)
        source = tuple(np.array(self.source)[rows].tolist())
        return Labelled(images=images, answers=bought.answers, ids=self.ids[rows], source=source)

    def notes(self, bought: Bought, number: int) -> list[str]:
        """What the user should know of the purchase of a round."""
        notes, images = [], f"{len(self.images):,} images of round {number}"
        if bought.short:
            notes.append(f"the budget ran out: {bought.short:,} of {images} were not asked")
        if bought.set_aside:
            position, reason = next(iter(bought.set_aside.items()))
            notes.append(
                f"{len(bought.set_aside):,} of {images} were set aside: they have no valid answer (for example "
                f"{self.name(position)}: {reason})"
            )
        return notes


def bought_before(directory: RunDirectory, number: int, num_classes: int) -> tuple[Tensor, list[str]] | None:
    """All images with an answer that rounds before this one have asked about, each once, in the order in which they
    were bought: uint8 [N, C, H, W], and their sources; None where there are none."""
    parts = [directory.read_labelled(earlier, num_classes, directory.count_first(earlier)) for earlier in range(number)]
    parts = [part for part in parts if len(part)]
    if not parts:
        return None
    return joined([part.images for part in parts]), [source for part in parts for source in part.source]
