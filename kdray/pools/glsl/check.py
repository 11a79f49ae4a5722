"""Finds out which programs compile, end, and show something."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdray.errors import ConfigError
from kdray.pools.glsl.canvas import PARAMETERS
from kdray.pools.glsl.forms import Program
from kdray.pools.glsl.plain import is_plain
from kdray.pools.glsl.process import CanvasEnded, CanvasProcess

TRIED = 16
"""Images that a program is tried with."""


def find_unusable(
    programs: Sequence[Program], size: tuple[int, int], time: tuple[float, float], limit_s: float
) -> dict[str, str]:
    """The programs that cannot be used: name -> why.

    Args:
        programs: those to try.
        size: (H, W) of the images.
        time: least and largest time that a program is given, in seconds.
        limit_s: seconds in which one must compile and draw `TRIED` images.

    Raises:
        ConfigError: there is no OpenGL, or it draws no images of this size.
    """
    unusable: dict[str, str] = {}
    canvas = CanvasProcess(programs, size)
    random = np.random.default_rng(0).random((TRIED, PARAMETERS))
    random[:, 0] = time[0] + (time[1] - time[0]) * random[:, 0]
    for number, program in enumerate(programs):
        try:
            drawn = canvas.draw(np.full(TRIED, number), random.astype(np.float32), limit_s)
            if is_plain(drawn).all():
                told = f"all of {TRIED} images have one or two colours, or few pixels of another colour"
                unusable[program.name] = told
        except CanvasEnded as error:
            unusable[program.name] = f"{error}, in drawing {TRIED} images of this size (pool.limit_s is {limit_s:g})"
            canvas = CanvasProcess(programs, size)
        except ConfigError as error:
            unusable[program.name] = str(error).removeprefix(f"{program.name}: ")
    return unusable
