"""Finds out which programs compile, end, show something, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdray.errors import ConfigError
from kdray.pools.glsl.canvas import PARAMETERS
from kdray.pools.glsl.forms import Program
from kdray.pools.glsl.plain import is_plain
from kdray.pools.glsl.process import CanvasEnded, CanvasProcess

TRIED = 16
"""Images that a program is tried with."""
_SLOW_S = 0.5  # for as many images; programs that come with kdray take 0.01 s at most at 32 x 32, 0.3 s at 224 x 224


@dataclass(frozen=True)
class Tried:
    """What came of trying programs.

    Attributes:
        unusable: those that cannot be used: name -> why.
        slow: those that can be used and took long: name -> seconds for `TRIED` images.
    """

    unusable: dict[str, str]
    slow: dict[str, float]


def try_programs(
    programs: Sequence[Program], size: tuple[int, int], times: tuple[float, float], limit_s: float
) -> Tried:
    """Compile each program and draw `TRIED` images with it.

    Args:
        programs: those to try.
        size: (H, W) of the images.
        times: least and largest time that a program is given, in seconds.
        limit_s: seconds in which one must compile and draw `TRIED` images.

    Raises:
        ConfigError: there is no OpenGL, or it draws no images of this size.
    """
    unusable: dict[str, str] = {}
    slow: dict[str, float] = {}
    canvas = CanvasProcess(programs, size)
    random = np.random.default_rng(0).random((TRIED, PARAMETERS))
    random[:, 0] = times[0] + (times[1] - times[0]) * random[:, 0]
    for number, program in enumerate(programs):
        request = np.full(TRIED, number), random.astype(np.float32), limit_s
        try:
            drawn, took = _timed(canvas, request)
            if took > _SLOW_S:  # it may have been the compiler
                drawn, took = _timed(canvas, request)
            if is_plain(drawn).all():
                told = f"all of {TRIED} images have one or two colours, or few pixels of another colour"
                unusable[program.name] = told
            elif took > _SLOW_S:
                slow[program.name] = took
        except CanvasEnded as error:
            unusable[program.name] = f"{error}, in drawing {TRIED} images of this size (pool.limit_s is {limit_s:g})"
            canvas = CanvasProcess(programs, size)
        except ConfigError as error:
            unusable[program.name] = str(error).removeprefix(f"{program.name}: ")
    return Tried(unusable, slow)


def _timed(canvas: CanvasProcess, request: tuple[np.ndarray, np.ndarray, float]) -> tuple[np.ndarray, float]:
    """The images, and the seconds they took."""
    begin = time.monotonic()
    return canvas.draw(*request), time.monotonic() - begin
