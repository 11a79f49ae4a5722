"""What a round asks the teacher about: its candidates, and behind them all images so far where it asks about these
again (`kdray.pools.base.PoolSection.asks_again`)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kdray.runs.asking import namer
from kdray.runs.policy import Bought
from kdray.runs.tables import Candidates, Labelled
from kdray.utils.stored import joined, taken

_AGAIN = ", asked again"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The images of a purchase, and where each is from.

    Attributes:
        images: uint8 [N, C, H, W].
        ids: int64 [N], image numbers or pool ids of the round that first asked.
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
    def of(cls, images: Tensor, candidates: Candidates, where: str, before: Labelled | None) -> "Asked":
        """What a round asks.

        Args:
            images: of the candidates.
            where: names one of them by its id, as a format.
            before: what is asked about again; None where nothing is.
        """
        new = tuple(candidates.columns.get("kind") or [candidates.source] * len(candidates.ids))  # of several kinds
        name = namer(where, candidates.ids)
        if before is None or len(before) == 0:
            return cls(images=images, ids=candidates.ids, source=new, again=0, name=name)
        old = tuple(source.removesuffix(_AGAIN) + _AGAIN for source in before.source)
        return cls(
            images=joined([images, before.images]),
            ids=np.concatenate([candidates.ids, before.ids]),
            source=new + old,
            again=len(before),
            name=lambda position: (
                name(position)
                if position < len(new)
                else f"an image from before (id {before.ids[position - len(new)]}), asked again"
            ),
        )

    def answered(self, bought: Bought) -> Labelled:
        """Those that have an answer."""
        rows = bought.positions.numpy()
        # Positions ascend; a copy of all would double what is held.
        images = self.images if len(rows) == len(self.images) else taken(self.images, bought.positions)
        source = tuple(np.array(self.source)[rows].tolist())
        return Labelled(images=images, answers=bought.answers, ids=self.ids[rows], source=source)
