"""Rows of an opened source to one tensor of pixels."""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageColor, UnidentifiedImageError

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSource
from kdray.images.pixels import Shown, as_shown
from kdray.utils.stored import gathered, is_stored, temporary_folder

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for files that are not whole."""
_FEWEST_BITS = 14
"""A set of 16-bit images none of which needs more bits is taken for one of 14 bits or fewer, and asked about."""


class DamagedImage(ImageSetError):
    """The file of an image was read, and it holds no image that can be shown."""


@dataclass(kw_only=True)
class _Wide:
    """The images of 16 bits a channel that do not say how many they use: the highest value, and a row that has it."""

    highest: int = 0
    row: int = -1
    scalable: bool = True


def decode_rows(
    opened: ImageRows, rows: np.ndarray, source: ImageSource, field: str
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Decode rows to uint8 [M, C, H, W], and what is to be said about them.

    Args:
        opened: the source, opened.
        rows: row numbers, int64 [M]; at least one.
        source: its section, which says size and colours.
        field: the config field, for messages.

    Raises:
        ImageSetError: an image that is not readable, images of several shapes, or 16-bit images of which it cannot be
            known how many bits they use.
    """
    wide, frames = _Wide(), 0

    def decoded() -> Iterator[np.ndarray]:
        nonlocal wide, frames
        shape: tuple[int, ...] | None = None
        many = None if opened.decode_many is None else opened.decode_many(rows)
        for row in rows.tolist():
            read = partial(opened.decode, row) if many is None else partial(next, many, None)
            shown = _decode(opened, row, read, source, field)
            frames += shown.frames
            if shown.highest is not None and shown.highest >= wide.highest:
                wide = _Wide(highest=shown.highest, row=row, scalable=shown.scalable)
            array = _resized(shown.image, source.size)
            shape = shape or array.shape
            if array.shape != shape:
                raise ImageSetError(
                    f"{field}: {opened.where(row)} is {_shape(array.shape)}, but {opened.where(int(rows[0]))} is "
                    f"{_shape(shape)}; {_one_shape(source, field)}"
                )
            yield array[None]

    images = gathered(decoded(), len(rows))
    if 0 < wide.highest < 1 << _FEWEST_BITS:
        raise ImageSetError(f"{field}: {_too_dark(opened, wide, source, field)}")
    notes = []
    if frames:
        notes.append(
            f"{frames:,} of {len(rows):,} images of {opened.name} have several frames; the first of each is taken"
        )
    if is_stored(images):
        notes.append(
            f"{len(images):,} images take {images.nbytes / 2**20:,.0f} MiB; they lie in a temporary file in "
            f"{temporary_folder()}, not in memory"
        )
    return images, tuple(notes)


def decode_row(opened: ImageRows, row: int, source: ImageSource, field: str) -> np.ndarray:
    """Decode one row to uint8 [C, H, W]; the arguments are those of `decode_rows`.

    Raises:
        DamagedImage: the file holds no readable image.
        ImageSetError: the file cannot be read, or has 16 bits a channel and neither it nor the section says how many it
            uses: other images of a set would tell.
    """
    shown = _decode(opened, row, partial(opened.decode, row), source, field)
    if shown.highest is not None:
        raise ImageSetError(
            f"{field}: {opened.where(row)} has 16 bits a channel and does not say how many it uses, which a single "
            f"image cannot show; set {field}.bits, to 16 if all are used"
        )
    return _resized(shown.image, source.size)


def _decode(opened: ImageRows, row: int, read: Callable[[], object], source: ImageSource, field: str) -> Shown:
    """What `read` gives, the image of a row, as a viewer shows it."""
    background = ImageColor.getrgb(source.background)
    try:
        image = read()
        if not isinstance(image, Image.Image):
            raise TypeError(f"it was decoded to a {type(image).__name__}, not to a PIL image")
        return as_shown(image, background[:3], source.bits, source.colour or opened.colour)
    except UnidentifiedImageError:
        raise DamagedImage(f"{field}: {opened.where(row)} is not a readable image (unknown format)") from None
    except UNREADABLE as error:
        # The system's errors have a number: no such file, no permission, a disk that fails. Pillow's have none.
        kind = ImageSetError if isinstance(error, OSError) and error.errno is not None else DamagedImage
        raise kind(f"{field}: {opened.where(row)} is not a readable image ({error})") from None


def _resized(image: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
    """The pixels of an image of mode L or RGB, uint8 [C, H, W], resized to (height, width) where that is given."""
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _one_shape(source: ImageSource, field: str) -> str:
    """What to do about images of several shapes."""
    if source.given:
        return 'bring all images to one shape first, with resize() and convert("L") or convert("RGB")'
    return f"set {field}.size (and {field}.colour) to bring all images to one shape"


def _too_dark(opened: ImageRows, wide: _Wide, source: ImageSource, field: str) -> str:
    """Why 16-bit images are refused that use the lowest quarter of their range, and what to do."""
    text = (
        f"no image of 16 bits a channel has a pixel above {wide.highest:,} of 65,535 (the highest is in "
        f"{opened.where(wide.row)}), and the files do not say how many of the 16 bits are used; "
    )
    if source.given and wide.scalable:
        eight = "Image.fromarray((np.asarray(image) >> n - 8).astype(np.uint8))"
        return text + f"convert them to 8 bits first: for n used bits, {eight}"
    if source.given:
        return text + "give image.copy() of images that are as dark as that, else convert the files to 8 bits a channel"
    if wide.scalable:
        return text + f"set {field}.bits to that number, such as 12, or to 16 if the images are as dark as that"
    return text + f"set {field}.bits to 16 if the images are as dark as that, else convert them to 8 bits a channel"


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[2]} {'grey' if shape[0] == 1 else 'RGB'}"
