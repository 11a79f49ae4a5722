"""How pairs of images on both sides of a decision boundary are looked for; fields of the pool that asks about them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdray.sections.base import Section


class BoundarySettings(Section):
    """How an image is moved until a network takes it for another class, see `kdray.models.boundary`."""

    step: Annotated[float, Field(gt=0, le=255)] = 2.0
    """Length of the first step: the root mean square of what it changes, in units of a pixel's 255 levels. The Bold
    Driver then changes it."""
    grow: Annotated[float, Field(ge=1, le=10)] = 1.5
    """The Bold Driver's factor after a step that was kept: the loss of the target class did not rise."""
    shrink: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The factor after a step that was taken back: the loss rose."""
    steps: Annotated[int, Field(ge=1)] = 50
    """Most steps of an image, kept or taken back. One that has not crossed by then gives no pair."""
    threshold: Annotated[float, Field(gt=0.5, lt=1)] = 0.9
    """Largest probability that the network may give either image of a pair. A pair that is surer is brought closer to
    the boundary, or dropped."""
    deeper: bool = True
    """Whether a pair is joined by a copy of each side that one more step moves deeper into its own class."""

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the images of a pair, in order."""
        return ("before", "after", "deeper before", "deeper after") if self.deeper else ("before", "after")
