"""Ranges in a config: [least, most]."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"a range is [least, most], and {value[0]:g} is more than {value[1]:g}; swap them")
    return value


ASCENDING = AfterValidator(_ascending)
"""A range whose first number must not exceed the second."""
_Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[_Share, _Share], ASCENDING]
"""[least, most] of a share, each in [0, 1]."""
_PositiveShare = Annotated[float, Field(gt=0, le=1)]
PositiveShares = Annotated[tuple[_PositiveShare, _PositiveShare], ASCENDING]
"""[least, most] of a share, each in (0, 1]."""
