"""Images and labels that come from Python: arrays, tensors, lists."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSet, ImageSource, as_int64
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def are_images(value: Any) -> bool:
    """Whether `value` is one thing that `as_images` may take, and not a pair (images, labels)."""
    return hasattr(value, "dtype") or _is_pil_list(value)


def _is_pil_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and hasattr(value[0], "getbands")


def as_images(images: Any, field: str) -> "Tensor":
    """Images as uint8 [N, C, H, W].

    Args:
        images: uint8 array, tensor or nested list, [N, C, H, W], [N, H, W, C] or [N, H, W]; or a list of PIL images,
            of which the first frame is taken, at whichever they are.
        field: what they are, for messages.

    Raises:
        ImageSetError: there are none, or they are not uint8, not of one shape, or not of 1 or 3 channels.
    """
    return _read(images, field)[0]


def _read(images: Any, field: str) -> tuple["Tensor", tuple[str, ...]]:
    """See `as_images`; and what the user should know of how they were read."""
    if _is_pil_list(images):
        return _from_pil(images, field)
    array = _to_array(images, field, "images of one shape: resize them first")
    if array.ndim and len(array) == 0:
        raise ImageSetError(f"{field}: there are no images in it; give at least one")
    if array.size == 0:
        raise ImageSetError(f"{field}: images of shape {list(array.shape[1:])} have no pixels; give whole images")
    if array.dtype != np.uint8:
        hint = "round(255 * images).astype(np.uint8) for pixels in 0..1" if array.dtype.kind == "f" else "convert them"
        raise ImageSetError(f"{field}: pixels must be uint8 in 0..255, got {array.dtype}; {hint}")
    if array.ndim == 3 and array.shape[2] in (1, 3):
        raise ImageSetError(
            f"{field}: {list(array.shape)} looks like one image; expected [N, H, W], [N, H, W, C] or [N, C, H, W]: "
            "write images[None] for a set of one"
        )
    tensor = torch.from_numpy(array)
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim == 4 and tensor.shape[1] not in (1, 3) and tensor.shape[3] in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise ImageSetError(f"{field}: expected [N, C, H, W] with 1 or 3 channels, got {list(tensor.shape)}")
    return tensor.contiguous(), ()


def as_unlabelled(images: Any, field: str) -> ImageSet:
    """Images without labels; see `as_images`."""
    pixels, notes = _read(images, field)
    return ImageSet(images=pixels, notes=notes, given=True)


def as_labelled(images: Any, labels: Any, field: str) -> ImageSet:
    """Images with labels.

    Args:
        images: see `as_images`.
        labels: whole numbers [N] or [N, 1], of any type; or text [N], the names of classes.
        field: what they are, for messages.

    Raises:
        ImageSetError: see `as_images`; or labels that are not one class an image.
    """
    pixels, notes = _read(images, field)
    array = _to_array(labels, f"{field} labels", "one label an image")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and len(array) == len(pixels):
        raise ImageSetError(
            f"{field}: labels of shape {list(array.shape)}: expected one class an image, [{len(pixels)}]; for one-hot "
            "labels or probabilities give labels.argmax(axis=1)"
        )
    if array.shape != (len(pixels),):
        raise ImageSetError(f"{field}: labels of shape {list(array.shape)} for {len(pixels)} images; give one an image")
    if array.dtype.kind == "O":
        array = _of_one_type(array, field)
    if array.dtype.kind in "US":
        numbers, classes = _with_names(array)
    else:
        numbers, classes = _whole(array, field), None
    return ImageSet(images=pixels, labels=torch.from_numpy(numbers), classes=classes, notes=notes, given=True)


def _from_pil(images: Any, field: str) -> tuple["Tensor", tuple[str, ...]]:
    from PIL import Image

    from kdray.images.decode import decode_rows

    other = next((k for k, image in enumerate(images) if not isinstance(image, Image.Image)), None)
    if other is not None:
        raise ImageSetError(f"{field}: image {other} is a {type(images[other]).__name__}, the first is a PIL image")
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ImageSetError(f"{field}: images of several sizes, {sorted(sizes)[:3]} (width, height); resize them first")
    source = _Pictures(images=tuple(images))
    pixels, notes = decode_rows(source.open(field), np.arange(len(images)), source, field)
    return pixels, tuple(f"{field}: {note}" for note in notes)


class _Pictures(ImageSource):
    """PIL images that are here already, read as every source reads its own by default."""

    given: ClassVar[bool] = True

    source: str = "python"
    images: tuple[Any, ...]

    def open(self, field: str) -> ImageRows:
        """See `ImageSource.open`."""
        return ImageRows(
            name="the list",
            rows=len(self.images),
            decode=lambda row: self.images[row],
            where=lambda row: f"image {row}",
        )


def _to_array(values: Any, field: str, wanted: str) -> np.ndarray:
    """A copy of the values as an array."""
    try:
        if isinstance(values, torch.Tensor):
            return np.array(values.detach().cpu().numpy())
        return np.array(values)
    except (ValueError, TypeError) as error:
        raise ImageSetError(f"{field}: these are no array ({error}); expected {wanted}") from None


def _of_one_type(array: np.ndarray, field: str) -> np.ndarray:
    """An array of objects as one of text or of numbers."""
    kinds = {type(value).__name__ for value in array}
    if all(isinstance(value, str) for value in array):
        return array.astype(str)
    if all(type(value) is int for value in array):  # numpy keeps those as objects that none of its types holds
        return as_int64(array, field, lambda row: f"image {row}")
    if all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in array):
        return np.array(array.tolist())
    raise ImageSetError(f"{field}: labels of type {', '.join(sorted(kinds))}; give whole numbers, or text alone")


def _whole(array: np.ndarray, field: str) -> np.ndarray:
    """Whole numbers as int64."""
    if array.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(array) | (array != np.round(array)))
        if len(wrong):
            raise ImageSetError(f"{field}: label {array[wrong[0]]} of image {wrong[0]} is not a whole number")
    elif array.dtype.kind not in "iu":
        hint = "labels.astype(int) makes False 0 and True 1" if array.dtype.kind == "b" else "give whole numbers"
        raise ImageSetError(f"{field}: labels of type {array.dtype}; {hint}")
    return as_int64(array, field, lambda row: f"image {row}")


def _with_names(array: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Text labels, of which each is the name of a class, as int64 and the names in their order."""
    text = np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array
    names, labels = np.unique(text, return_inverse=True)
    return labels.astype(np.int64), tuple(names.tolist())
