"""Draws images with OpenGL, without a screen.

Only `kdray.pools.glsl.process` makes a canvas, in a process of its own: Mesa's software renderer brings an LLVM, and a
process that then loads Triton's, as torch may, ends in a segmentation fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from kdray.errors import ConfigError
from kdray.pools.glsl.forms import Program
from kdray.utils.lazy import LazyModule

if TYPE_CHECKING:
    import moderngl
else:
    moderngl = LazyModule("moderngl")  # an extra, which only those need who draw

PARAMETERS = 7
"""Numbers that a program draws an image from: time in seconds, four seeds in [0, 1), and the mouse's x and y, from 0 at
the left and the bottom to 1."""

_SHEET_PIXELS = 1 << 18
_SHEET_HEIGHT = 8192  # no driver has a lower limit
_STEP = 4  # corners lie on blocks of pixels, whose pixels are computed together: derivatives are the same in any place
_RATE = 60.0  # frames a second
_CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
_INSTANCE = "1f 1f 4f 4f/i"
_INSTANCE_FLOATS, _FLOAT_BYTES = 10, 4
_HOW = (
    "run: pip install 'kdray[gl]', and have the system's EGL and Mesa: apt-get install libegl1 libgl1 libgl1-mesa-dri"
)


def images_at_once(size: tuple[int, int]) -> int:
    """How many images (H, W) a sheet holds."""
    height, width = (_pitch(side) for side in size)
    return max(1, min(256, _SHEET_PIXELS // (height * width), _SHEET_HEIGHT // height))


class Canvas:
    """Draws images of one size.

    Args:
        programs: what draws them; each is compiled when it is first used.
        size: (H, W).

    Raises:
        ConfigError: there is no OpenGL, or it draws no images of this size.
    """

    def __init__(self, programs: Sequence[Program], size: tuple[int, int]) -> None:
        self._programs, self._size, self._pitch = tuple(programs), size, _pitch(size[0])
        self._gl = _open()
        largest = min(self._gl.info["GL_MAX_RENDERBUFFER_SIZE"], *self._gl.info["GL_MAX_VIEWPORT_DIMS"])
        if max(size) > largest:
            raise ConfigError(
                f"pool.kind: this driver draws shaders up to {largest:,} pixels a side, and the images have "
                f"{size[0]} x {size[1]}; set images.size"
            )
        self._compiled: dict[int, _Instanced | _Single] = {}
        self._sheet = (size[1], images_at_once(size) * self._pitch)
        self._frame = self._gl.framebuffer([self._gl.renderbuffer(self._sheet, 4)])
        self._frame.use()

    def draw(self, numbers: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Draw images uint8 [B, H, W, 3].

        Args:
            numbers: int64 [B], of the programs.
            parameters: float32 [B, PARAMETERS].

        Raises:
            ConfigError: a program does not compile, in the driver's words, or wants something that a candidate does not
                have.
        """
        images = np.empty((len(numbers), *self._size, 3), np.uint8)
        order, step = np.argsort(numbers, kind="stable"), images_at_once(self._size)
        for begin in range(0, len(order), step):
            part = order[begin : begin + step]
            images[part] = self._draw_sheet(numbers[part], parameters[part])
        return images

    def _draw_sheet(self, numbers: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Images of programs int64 [B] in ascending order, one above the other on the sheet."""
        used = (0, 0, self._sheet[0], len(numbers) * self._pitch)
        self._frame.clear(viewport=used)  # a program may discard pixels, and would show those of an earlier sheet
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(bounds):
            tops = self._pitch * np.arange(begin, end, dtype=np.float32)
            self._compile(int(numbers[begin])).draw(tops, parameters[begin:end])
        pixels = np.frombuffer(self._frame.read(viewport=used, components=3, alignment=1), np.uint8)
        rows = pixels.reshape(len(numbers), self._pitch, self._size[1], 3)[:, : self._size[0]]
        return rows[:, ::-1]  # the first row of OpenGL is the lowest

    def _compile(self, number: int) -> _Instanced | _Single:
        if number not in self._compiled:
            program = self._programs[number]
            with _named(program.name):
                kind = _Instanced if program.instanced else _Single
                self._compiled[number] = kind(self._gl, program, self._size, self._sheet)
        return self._compiled[number]


class _Instanced:
    """A program that draws many images in one call."""

    def __init__(self, gl: moderngl.Context, program: Program, size: tuple[int, int], sheet: tuple[int, int]) -> None:
        self._gl, self._sheet = gl, sheet
        linked = _link(gl, program)
        _set(linked, {"iResolution": (size[1], size[0], 1.0), "kd_sheet": sheet})
        self._scale = np.array([size[1], size[0]], np.float32)
        self._instances = gl.buffer(reserve=images_at_once(size) * _INSTANCE_FLOATS * _FLOAT_BYTES, dynamic=True)
        places = (gl.buffer(_CORNERS), "2f", "kd_place")
        instances = (self._instances, _INSTANCE, "kd_top", "kd_time", "kd_seed", "kd_mouse")
        self._array = gl.vertex_array(linked, [places, instances], skip_errors=True)

    def draw(self, tops: np.ndarray, parameters: np.ndarray) -> None:
        """Draw images of parameters float32 [B, PARAMETERS] whose lowest rows are float32 [B]."""
        mouse = parameters[:, 5:] * self._scale
        rows = np.concatenate([tops[:, None], parameters[:, :5], mouse, mouse], axis=1)
        self._instances.write(np.ascontiguousarray(rows))
        self._gl.viewport = (0, 0, *self._sheet)
        self._array.render(self._gl.TRIANGLE_STRIP, vertices=len(_CORNERS), instances=len(tops))


class _Single:
    """A program that draws one image in a call."""

    def __init__(self, gl: moderngl.Context, program: Program, size: tuple[int, int], sheet: tuple[int, int]) -> None:
        self._gl, self._size = gl, size
        self._linked = _link(gl, program)
        resolution = (float(size[1]), float(size[0]))
        _set(self._linked, {"resolution": resolution, "r": resolution, "s": 0.0})
        self._array = gl.vertex_array(self._linked, [(gl.buffer(_CORNERS), "2f", "kd_place")], skip_errors=True)

    def draw(self, tops: np.ndarray, parameters: np.ndarray) -> None:
        """See `_Instanced`."""
        for top, (time, *rest) in zip(tops.tolist(), parameters.tolist(), strict=True):
            seed, mouse, frame = tuple(rest[:4]), tuple(rest[4:]), float(int(time * _RATE))
            corner = (0.0, top, 0.0, 0.0)
            varied = {"time": time, "t": time, "frame": frame, "f": frame, "mouse": mouse, "m": mouse, "iSeed": seed}
            _set(self._linked, varied | {"kd_corner": corner})
            self._gl.viewport = (0, int(top), self._size[1], self._size[0])
            self._array.render(self._gl.TRIANGLE_STRIP, vertices=len(_CORNERS))


_KNOWN = {
    "iResolution": 3, "iSeed": 4, "resolution": 2, "r": 2, "mouse": 2, "m": 2, "time": 1, "t": 1, "frame": 1, "f": 1,
    "s": 1,
}  # fmt: skip
"""The uniforms that have a value besides kdray's own, and how many floats it has. s is the loudness of sound, 0."""
_FLOAT_TYPES = {1: 0x1406, 2: 0x8B50, 3: 0x8B51, 4: 0x8B52}  # GL_FLOAT, GL_FLOAT_VEC2, ...


def _set(linked: moderngl.Program, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(uniform := linked.get(name, None), moderngl.Uniform):
            uniform.value = value


def _link(gl: moderngl.Context, program: Program) -> moderngl.Program:
    linked = gl.program(vertex_shader=program.vertex, fragment_shader=program.fragment)
    for name in linked:
        uniform = linked[name]
        if isinstance(uniform, moderngl.UniformBlock | moderngl.StorageBlock):
            raise ConfigError(f"it reads the block {name}, for which a candidate has no values")
        kind = getattr(uniform, "gl_type", None)
        if kind is None or name.startswith("kd_"):
            continue
        if name not in _KNOWN:
            raise ConfigError(f"it reads the uniform {name}, for which a candidate has no value")
        if kind != _FLOAT_TYPES[_KNOWN[name]]:
            wanted = "float" if _KNOWN[name] == 1 else f"vec{_KNOWN[name]}"
            raise ConfigError(f"its uniform {name} must be a {wanted}")
    return linked


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of a program with its name and the first line in which the driver says what is wrong."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    except moderngl.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if re.search(r"\berror\b", line, flags=re.IGNORECASE)), lines[-1])
        raise ConfigError(f"{name}: it does not compile: {said}") from None


def _open() -> moderngl.Context:
    try:
        return moderngl.create_context(430, standalone=True, backend="egl")  # type: ignore[arg-type]  # a name
    except ImportError as error:
        raise ConfigError(f"pool.kind: shaders need moderngl ({error}); {_HOW}") from None
    except Exception as error:  # glcontext raises Exception itself
        raise ConfigError(f"pool.kind: shaders need OpenGL 4.3, and this machine has none ({error}); {_HOW}") from None


def _pitch(side: int) -> int:
    return -(-side // _STEP) * _STEP
