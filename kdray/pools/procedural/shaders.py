"""Shaders: images that GLSL fragment programs draw, the best of the made-up images of "What Makes a Good Dataset for
Knowledge Distillation?" (section 3.2). kdray has programs of its own, and draws those of a folder.

Program, time and seeds of a candidate follow from its id; an image that shows too little gives way to the next that the
random numbers of the same id make. On one machine and driver an image has the same bits in every process; other drivers
may round otherwise.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from kdray.errors import ConfigError
from kdray.pools.base import PoolSection, pools
from kdray.pools.counter import BITS, CounterRandom, below
from kdray.pools.glsl.canvas import PARAMETERS, images_at_once
from kdray.pools.glsl.check import TRIED, Tried, try_programs
from kdray.pools.glsl.forms import Program, builtin_programs, digest, read_folder
from kdray.pools.glsl.plain import is_plain
from kdray.pools.glsl.process import CanvasEnded, CanvasProcess
from kdray.pools.procedural.base import Painter, ProceduralSection
from kdray.pools.ranges import ASCENDING
from kdray.utils.lazy import torch
from kdray.utils.text import counted

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_SIDE = 8  # on fewer pixels most programs show nothing
_ATTEMPTS = 8  # to draw an image that shows enough
_FLOAT_BITS = 24  # whole numbers of so many bits are exact in float32
_TOLD = 10  # programs left out that are told with the reason
_GREY = np.array([77, 150, 29])  # of 256: ITU-R BT.601

Seconds = Annotated[float, Field(ge=0, le=100_000)]


@pools.register
class ShadersSection(ProceduralSection):
    """The candidates are images that GLSL programs draw, at random times and seeds. Needs `kdray[gl]`."""

    path_fields: ClassVar[tuple[str, ...]] = ("programs",)

    kind: Literal["shaders"] = "shaders"
    programs: str | None = None
    """A folder of programs of your own, see docs/choosing.md."""
    builtin: bool = True
    """Whether the programs that come with kdray are used, beside those of the folder."""
    time: Annotated[tuple[Seconds, Seconds], ASCENDING] = (0, 60)
    """Least and largest time that a program is given, in seconds."""
    limit_s: Annotated[float, Field(gt=0, le=3600)] = 10
    """Seconds in which a program must compile and draw 16 images; one that takes longer is left out."""
    left_out: list[str] = Field(default_factory=list)
    """Names of programs that are not used. A run adds those that it finds cannot be used, and goes on without them."""
    digest: str | None = None
    """Leave it out: a run records here the digest of all its programs, and does not go on with others."""

    @model_validator(mode="after")
    def _possible(self) -> ShadersSection:
        if self.programs == "":
            raise ValueError("programs is empty; name a folder, or set it to null for the programs of kdray alone")
        if self.programs is None and not self.builtin:
            raise ValueError("programs: name a folder, or set builtin to true; without both there is nothing to draw")
        return self

    def recorded(self, other: PoolSection) -> ShadersSection:
        """See `PoolSection`."""
        if (
            not isinstance(other, ShadersSection)
            or self.digest is not None
            or not {*self.left_out} <= {*other.left_out}
        ):
            return self
        return self.model_copy(update={"left_out": other.left_out, "digest": other.digest})

    def resolved(self, image_shape: tuple[int, int, int]) -> tuple[ShadersSection, list[str]]:
        """See `PoolSection`."""
        programs, found = self._read(image_shape)
        left_out = sorted({*self.left_out, *found.unusable})
        self._used(programs, found)
        return self.model_copy(update={"left_out": left_out, "digest": digest(programs)}), notes_of(found)

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`."""
        shape = (images.shape[1], images.shape[2], images.shape[3])
        programs, found = self._read(shape)
        painter = ShaderPainter(self._used(programs, found), shape, self.time, seed, self.limit_s)
        painter.open()
        return painter

    def _used(self, programs: list[Program], found: Tried) -> list[Program]:
        """Those of all `programs` that are not left out.

        Raises:
            ConfigError: there is none.
        """
        unusable = found.unusable
        left_out = {*self.left_out, *unusable}
        used = [one for one in programs if one.name not in left_out]
        if not used:
            name, why = next(iter(unusable.items()), ("pool.left_out", "it names all of them"))
            raise ConfigError(f"pool.programs: none of {len(left_out):,} programs can be used; {name}: {why}")
        return used

    def _read(self, shape: tuple[int, int, int]) -> tuple[list[Program], Tried]:
        """All programs that are in a known form, and what came of trying those that are not left out. None are tried
        where a run has recorded which programs it has."""
        check_shape(shape)
        own, unreadable = read_folder(self.programs) if self.programs else ([], {})
        programs = [*(builtin_programs() if self.builtin else ()), *own]
        if unknown := sorted({*self.left_out} - {one.name for one in programs} - {*unreadable}):
            raise ConfigError(f"pool.left_out: there is no program named {unknown[0]!r}")
        if self.digest is None:
            tried = tuple(one for one in programs if one.name not in self.left_out)
            found = _tried(tried, shape[1:], self.time, self.limit_s)
            unread = {name: why for name, why in unreadable.items() if name not in self.left_out}
            return programs, Tried(unread | found.unusable, found.slow)
        if self.digest != (now := digest(programs)):
            raise ConfigError(
                f"pool.programs: the programs have changed since the run began (digest {self.digest} is now {now}) and "
                "would draw other candidates; bring back the old files, or the kdray that began the run, or start a "
                "new run"
            )
        return programs, Tried({}, {})


@lru_cache(maxsize=8)
def _tried(programs: tuple[Program, ...], size: tuple[int, int], times: tuple[float, float], limit_s: float) -> Tried:
    """See `try_programs`: a pool may be built several times in a process, and the programs are tried once."""
    return try_programs(programs, size, times, limit_s)


def notes_of(found: Tried) -> list[str]:
    """What the user should know of programs that were tried: those left out, and the slow ones, the slowest first."""
    unusable, slowest = list(found.unusable), sorted(found.slow, key=found.slow.__getitem__, reverse=True)
    told = [f"pool.programs: {name} is left out: {found.unusable[name]}" for name in unusable[:_TOLD]]
    if more := unusable[_TOLD:]:
        told.append(f"pool.programs: {len(more):,} more are left out: {', '.join(more)}")
    told += [
        f"pool.programs: {name} is slow, {TRIED} images took {found.slow[name]:.1f} s; name it in pool.left_out to go "
        "without it"
        for name in slowest[:_TOLD]
    ]
    if more := slowest[_TOLD:]:
        told.append(f"pool.programs: {len(more):,} more are slow: {', '.join(more)}")
    return told


def check_shape(shape: tuple[int, int, int]) -> None:
    """Refuse images (C, H, W) that shaders do not draw.

    Raises:
        ConfigError: they are neither grey nor RGB, or too small.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ConfigError(
            f"pool.kind: shaders draw grey images or RGB, and the images have {channels} channels; set images.colour "
            "to grey or rgb, or take another kind of pool"
        )
    if min(height, width) < _LEAST_SIDE:
        raise ConfigError(
            f"pool.kind: shaders need {_LEAST_SIDE} pixels a side, and the images have {height} x {width}; set "
            "images.size"
        )


class ShaderPainter:
    """Draws the images of GLSL programs, on the CPU or GPU that OpenGL uses.

    Each process that draws starts one more, which has the OpenGL; see `kdray.pools.glsl.process`.

    Args:
        programs: all are equally likely.
        shape: (C, H, W).
        time: least and largest time, in seconds.
        seed: the run's seed.
        limit_s: seconds that 16 images may take.

    Raises:
        ConfigError: see `check_shape`.
    """

    def __init__(
        self,
        programs: list[Program],
        shape: tuple[int, int, int],
        time: tuple[float, float],
        seed: int,
        limit_s: float = 10,
    ) -> None:
        check_shape(shape)
        self._programs, self._shape, self._time, self._limit_s = programs, shape, time, limit_s
        self._random = CounterRandom(seed, "shaders", _ATTEMPTS * (1 + PARAMETERS))
        self.batch = images_at_once(shape[1:])
        self._canvas: CanvasProcess | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_canvas": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        attempts = self._random(ids.cpu()).view(_ATTEMPTS, 1 + PARAMETERS, len(ids))
        images = np.empty((len(ids), *self._shape[1:], self._shape[0]), np.uint8)
        waiting = np.arange(len(ids))
        for words in attempts:
            images[waiting] = drawn = self._draw(words[:, torch.from_numpy(waiting)])
            waiting = waiting[is_plain(drawn)]
            if not len(waiting):
                break
        return torch.from_numpy(images).permute(0, 3, 1, 2).to(ids.device)

    def open(self) -> CanvasProcess:
        """The canvas of this process.

        Raises:
            ConfigError: there is no OpenGL, or it draws no images of this size.
        """
        with self._lock:
            if self._canvas is None or not self._canvas.mine:
                self._canvas = CanvasProcess(self._programs, self._shape[1:])
            return self._canvas

    def _draw(self, words: Tensor) -> np.ndarray:
        """Images uint8 [B, H, W, C] of random numbers int64 [1 + PARAMETERS, B]."""
        numbers = below(words[0], len(self._programs)).numpy()
        shares = (words[1:] >> (BITS - _FLOAT_BITS)).T.numpy() / (1 << _FLOAT_BITS)  # float64 [B, PARAMETERS]
        begin, end = self._time
        shares[:, 0] = begin + (end - begin) * shares[:, 0]
        canvas = self.open()
        limit_s = self._limit_s * max(1.0, len(numbers) / TRIED, len({*numbers.tolist()} - canvas.compiled))
        try:
            drawn = canvas.draw(numbers, shares.astype(np.float32), limit_s)
        except CanvasEnded as error:
            self._canvas = None
            raise CanvasEnded(self._blame(numbers, shares.astype(np.float32), error)) from None
        if self._shape[0] == 3:
            return drawn
        grey: np.ndarray = (drawn @ _GREY + 128) >> 8
        return grey.astype(np.uint8)[..., None]

    def _blame(self, numbers: np.ndarray, parameters: np.ndarray, error: CanvasEnded) -> str:
        """Which program ended the canvas, found by drawing the same images once more, those of each program alone."""
        end = "name it in pool.left_out and start a new run"
        for number in np.unique(numbers):
            mine = numbers == number
            try:
                self.open().draw(numbers[mine], parameters[mine], self._limit_s * max(1.0, mine.sum() / TRIED))
            except CanvasEnded as own:
                self._canvas = None
                which = f"{self._programs[number].name}: {own}, in drawing {counted(int(mine.sum()), 'image')}"
                return f"pool.programs: {which}; it does so at some times or seeds alone; {end}"
        used = ", ".join(sorted({self._programs[number].name for number in numbers.tolist()}))
        return (
            f"pool.programs: {error}, in drawing {counted(len(numbers), 'image')} of several programs, each of which "
            f"draws its own in time: {used}; start the run again where the machine has more time, or leave the slow "
            "ones out (pool.left_out) in a new run"
        )
