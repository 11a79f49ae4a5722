"""The settings of the search. The section of every pool whose scores can be guessed from a few λ inherits them."""

from typing import Annotated, Literal

from pydantic import Field

from kdray.sections.base import Section

PATIENCE_S = 120.0
"""Longest time that a run waits for a worker, where nothing else is said."""


class SearchSettings(Section):
    """How the pool is searched."""

    search: Literal["interpolated", "exhaustive"] = "interpolated"
    """exhaustive: score every λ of every pair. interpolated: evaluate two λ of every pair, guess the scores at the
    other λ from these and from the source logits of the pair, and score the pairs with the best guesses exactly; used
    only if it at least halves the forward passes."""
    keep: Annotated[float, Field(ge=1)] = 5.0
    """interpolated: number of pairs scored exactly, divided by the number of chosen candidates. At least 40,000 pairs
    are scored, or a fortieth of the pool if that is fewer."""
    min_recall: Annotated[float, Field(ge=0, lt=1)] = 0.97
    """interpolated: the lowest accepted recall. While the estimated recall is lower, the number of pairs scored exactly
    is doubled; if that cannot help, the whole pool is scored."""
    mixing: Literal["auto", "pixels", "first-layer"] = "auto"
    """Where candidates are mixed for scoring. pixels: the pixels are mixed. first-layer: the outputs of the student's
    first layer are mixed, so the pixels are not rounded before scoring. auto: first-layer on CPUs for students with a
    large share of their multiplications in that layer (lenet5), else pixels. Queried candidates are always mixed as
    pixels."""
    audit: Annotated[float, Field(ge=0, le=1)] = 0.15
    """interpolated: size of the sample of other pairs that is scored to estimate the recall, as a share of the pairs
    scored exactly; at least 200 pairs. A sample four times as large follows if the estimate is below `min_recall` but
    its interval reaches it. 0 makes no estimate."""
