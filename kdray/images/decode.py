"""Rows of an opened source to one tensor of pixels."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows

_MODES = {"grey": "L", "rgb": "RGB"}


def decode_rows(
    opened: ImageRows,
    rows: np.ndarray,
    size: tuple[int, int] | None,
    colour: Literal["grey", "rgb"] | None,
    field: str,
) -> torch.Tensor:
    """Decode rows to uint8 [M, C, H, W].

    Args:
        opened: the source.
        rows: row numbers, int64 [M]; at least one.
        size: resize to (height, width), bilinear; None leaves the size.
        colour: convert to it; None makes grey images one channel and all others RGB.
        field: the config field, for messages.

    Raises:
        ImageSetError: an image that is not readable, or images of several shapes.
    """
    pixels: np.ndarray | None = None
    for position, row in enumerate(rows.tolist()):
        array = _decode(opened, row, size, colour, field)
        if pixels is None:
            pixels = np.empty((len(rows), *array.shape), dtype=np.uint8)
        if array.shape != pixels.shape[1:]:
            raise ImageSetError(
                f"{field}: {opened.where(row)} is {_shape(array.shape)}, but {opened.where(int(rows[0]))} is "
                f"{_shape(pixels.shape[1:])}; set {field}.size (and {field}.colour) to bring all images to one shape"
            )
        pixels[position] = array
    assert pixels is not None  # there is at least one row
    return torch.from_numpy(pixels)


def _decode(
    opened: ImageRows,
    row: int,
    size: tuple[int, int] | None,
    colour: Literal["grey", "rgb"] | None,
    field: str,
) -> np.ndarray:
    """One image, uint8 [C, H, W]."""
    try:
        image = opened.decode(row)
        if not isinstance(image, Image.Image):
            raise TypeError(f"it was decoded to a {type(image).__name__}, not to a PIL image")
        image = _eight_bits(image)
        mode = _MODES[colour] if colour else ("L" if image.mode in ("1", "L", "LA") else "RGB")
        if image.mode != mode:
            image = image.convert(mode)
    except UnidentifiedImageError:
        raise ImageSetError(f"{field}: {opened.where(row)} is not a readable image (unknown format)") from None
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise ImageSetError(f"{field}: {opened.where(row)} is not a readable image ({error})") from None
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image with eight bits a channel.

    16-bit grey is scaled, because PIL would clip it. Wider pixels are refused with ValueError.
    """
    image.load()
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of PIL's mode {image.mode!r}, 32 bits wide; convert it to 8 bits first")
    return image


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[2]} {'grey' if shape[0] == 1 else 'RGB'}"
