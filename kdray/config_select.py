"""The config's `select` section: which candidates are worth paying for, and how many in each round."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdray.config_parts import Section
from kdray.errors import ConfigError


class SelectConfig(Section):
    """Which candidates are worth paying for: docs/choosing.md."""

    strategy: Literal[
        "cluster-margin",
        "rad",
        "rad-pairs",
        "active-mixup",
        "vanilla",
        "random",
        "uniform",
        "margin",
        "entropy",
        "coreset",
        "unixkd",
    ] = "cluster-margin"
    """cluster-margin: smallest margins, one candidate a pair, some of every cluster of features (the default:
    docs/choosing.md). rad: candidates drawn with RAD's probabilities. rad-pairs: pairs drawn so, each at its best λ.
    active-mixup: lowest C2, one candidate a pair (eq. 3). vanilla: lowest C1, no such rule (eq. 2). random: random
    pairs at the λ nearest 0.5. uniform: random candidates. margin, entropy: smallest margin, highest entropy, one
    candidate a pair. coreset: k-center greedy. unixkd: uncertain images, and mixes of less uncertain ones."""
    score: Literal["confidence", "margin", "entropy"] = "confidence"
    """active-mixup and vanilla: what makes a candidate worth asking about: lowest confidence C1 (the paper), smallest
    margin, or highest entropy of the student's probabilities."""
    gain: Literal["margin", "confidence", "entropy"] = "margin"
    """rad and rad-pairs: what a right answer is worth: 1 - margin (the paper), 1 - confidence, or entropy."""
    w: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """rad and rad-pairs: what a wrong answer costs, as a share of that; auto: 1 - m / n."""
    m: int | float | Literal["estimate"] = 0.05
    """rad and rad-pairs: on how many candidates the teacher errs: a share of those that are left (a number with a
    point, such as 1.0 or 0.05, which RAD takes where nobody knows), a whole number of them, or estimate: ask first.
    With `validation`, m / n is then the teacher's error on it; else, for mixes, the share whose class neither of the
    two images is of."""
    estimate_queries: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """m = estimate: queries for that. They are paid from the budget and round 1 has so many fewer. auto: a tenth of
    round 1's, 1,000 at most."""
    clip: Literal["redistribute", "shrink"] = "redistribute"
    """rad and rad-pairs: what to do where a candidate's chance, b times its probability, would pass 1. redistribute: it
    is certain, and what that leaves goes to the others, as is best. shrink: buy fewer in that round (section 3.3)."""
    first: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Images asked about in round 0, drawn at random; 0 trains on `labelled` alone. auto: all of them; of a pool of
    images none where there is a labelled set, else as many as in a later round."""
    rounds: Annotated[int, Field(ge=0)] = 1
    """T: selection rounds after round 0. 0 trains on the real images alone."""
    per_round: Annotated[int, Field(ge=1)] | None = None
    """Candidates chosen a round; null spreads what round 0 leaves of the budget evenly."""

    @field_validator("m", mode="before")
    @classmethod
    def _m_is_a_number_a_share_or_asked_for(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value == "estimate" or (number and value >= 0 and (isinstance(value, int) or value <= 1)):
            return value
        raise ValueError(
            f"input should be 'estimate', a whole number of candidates, or a share of them in [0, 1], got {value!r}"
        )

    @model_validator(mode="after")
    def _the_choice_is_named(self) -> "SelectConfig":
        of = dict.fromkeys(("gain", "w", "m", "estimate_queries", "clip"), "rad") | {"score": "active-mixup"}
        strange = [] if "strategy" in self.model_fields_set else [name for name in of if name in self.model_fields_set]
        if strange:  # it would be passed over in silence
            raise ValueError(
                f"select.{strange[0]} is set, but means nothing to {self.strategy}, the default choice; "
                f"leave it out, or set select.strategy to {of[strange[0]]}"
            )
        return self

    @model_validator(mode="after")
    def _queries_are_for_an_estimate(self) -> "SelectConfig":
        if self.estimate_queries != "auto" and self.m != "estimate":
            raise ValueError(
                f"select.estimate_queries is set, but select.m is {self.m:g}: nothing is estimated; leave it out, or "
                "set m to estimate"
            )
        return self

    @property
    def estimates(self) -> bool:
        """Whether queries are spent on an estimate of m."""
        return self.rounds > 0 and self.m == "estimate" and self.strategy in ("rad", "rad-pairs")


def estimate_queries(choice: SelectConfig, queries: int) -> int:
    """How many of round 1's `queries` go into the estimate of m.

    Raises:
        ConfigError: none would be left to choose with.
    """
    if not choice.estimates:
        return 0
    wanted = choice.estimate_queries
    count = max(1, min(1000, queries // 10)) if wanted == "auto" else wanted
    if count >= queries:
        raise ConfigError(
            f"select.estimate_queries: {count:,} queries for the estimate of m leave nothing of the {queries:,} of "
            "round 1; lower it, raise budget.queries, or set select.m to a share such as 0.05"
        )
    return count


def schedule(budget: int, images: int, rounds: int, per_round: int | None) -> list[int]:
    """Queries of each round, round 0 first. Depends on the config alone, so a resumed run keeps to it.

    What round 0 leaves is spread evenly; the first rounds take one more where it does not divide.

    Args:
        images: asked in round 0.

    Raises:
        ConfigError: the budget does not pay for round 0, or for at least one candidate in every later round.
    """
    left = budget - images
    if left < 0:
        raise ConfigError(
            f"budget.queries: {budget:,} queries do not pay for round 0, which asks for all {images:,} images; "
            f"raise budget.queries to at least {images + rounds * (per_round or 1):,}, or lower images.count"
        )
    if rounds and left < rounds * (per_round or 1):
        raise ConfigError(
            f"budget.queries: after round 0 {left:,} of {budget:,} queries are left, too few for "
            f"select.rounds = {rounds} rounds of {per_round or 1:,}; "
            f"raise budget.queries to at least {images + rounds * (per_round or 1):,}"
        )
    if per_round is not None:
        return [images] + [per_round] * rounds
    return [images] + [left // rounds + (k < left % rounds) for k in range(rounds)]
