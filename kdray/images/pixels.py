"""From an image file to the pixels that a viewer shows: eight bits, upright, nothing transparent; docs/images.md."""

import io
import struct
from dataclasses import dataclass, replace
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageCms

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE = 258, 262, 281  # TIFF tags
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_CUT = (";16B", ";16L", ";16N")  # 16 bits a channel, in Pillow's words; Pillow keeps 8 of them where there are colours


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a viewer shows of an image file.

    Attributes:
        image: PIL image of mode L or RGB.
        highest: the highest value, 0..65535, of an image of 16 bits a channel that does not say how many of them it
            uses; None for all others.
        scalable: whether such an image can be scaled, were the number of bits known: Pillow reads only the upper
            eight bits of colours.
        frames: whether the file holds further frames, which are left out.
    """

    image: Image.Image
    highest: int | None = None
    scalable: bool = True
    frames: bool = False


def as_shown(
    image: Image.Image, background: tuple[int, int, int], bits: int | None, colour: Literal["grey", "rgb"] | None
) -> Shown:
    """The first frame of an opened image as a viewer shows it.

    Args:
        image: as `PIL.Image.open` gives it; at another frame, it is at that frame again afterwards.
        background: RGB, shown where the image is transparent.
        bits: significant bits of images of 16 bits a channel; None takes what the file says, else all 16.
        colour: of the result; None keeps grey grey and makes everything else RGB.

    Raises:
        ValueError: pixels that have no 8-bit form; or an image at another frame whose file is closed.
    """
    place, first = image.tell(), getattr(image, "_min_frame", 0)
    if place == first:
        return _shown(image, background, bits, colour)
    if hasattr(image, "_fp"):
        return _shown(_opened_anew(image), background, bits, colour)
    image.seek(first)  # WebP and AVIF, which Pillow holds whole
    try:
        return replace(shown := _shown(image, background, bits, colour), image=shown.image.copy())
    finally:
        image.seek(place)


def _opened_anew(image: Image.Image) -> Image.Image:
    """The file of an opened image that was moved to another frame, opened once more.

    Pillow cannot always move back: an APNG is then read from a wrong place.

    Raises:
        ValueError: the file is closed.
    """
    try:
        file: IO[bytes] = image._fp  # type: ignore[attr-defined]
        place = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(place)
    except ValueError:
        raise ValueError(
            f"it is at frame {image.tell()} of a file that is closed, and the first frame is wanted; give image.copy() "
            "of the frame that you mean, made while the file is open"
        ) from None
    return Image.open(io.BytesIO(data))


def _shown(
    image: Image.Image, background: tuple[int, int, int], bits: int | None, colour: Literal["grey", "rgb"] | None
) -> Shown:
    frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # of MPO the others are previews
    stored = _raw_modes(image)
    cut = any(mode.endswith(_CUT) for mode in stored) and not image.mode.startswith("I")
    grey = image.mode in _GREY or "LA;16B" in stored  # which Pillow makes RGBA
    declared = _png_bits(image) if image.format == "PNG" else None  # before the file is closed
    name = getattr(image, "filename", "")
    if image.format == "TIFF":  # Pillow maps a file that it knows by name, and turns what is mapped the wrong way
        image.filename = ""  # type: ignore[attr-defined]
    image.load()
    if image.format == "TIFF":
        image.filename = name  # type: ignore[attr-defined]
    orientation = _orientation(image)
    wide = None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow reads 16-bit PGM so
        image, wide = _eight_bits(image, bits, declared)
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of PIL's mode {image.mode!r}, 32 bits wide; convert it to 8 bits first")
    elif cut:
        if bits is not None and bits < 16:
            raise ValueError(
                f"it has 16 bits a channel and several channels, of which Pillow reads the upper 8 bits: with {bits} "
                "significant bits, convert it to 8 bits a channel first"
            )
        bands = np.atleast_3d(np.asarray(image))  # [H, W, C]
        opaque = bands[..., :-1] if image.mode in ("LA", "RGBA") else bands
        wide = None if bits else int(opaque.max()) * 257
        if isinstance(key := image.info.get("transparency"), tuple):
            image = image.copy()  # the caller's keeps its own
            image.info["transparency"] = tuple(value >> 8 for value in key)
    mode = {"grey": "L", "rgb": "RGB", None: "L" if grey else "RGB"}[colour]
    image = _flat(image, mode, background)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return Shown(image=image, highest=wide, scalable=not cut, frames=frames)


def _raw_modes(image: Image.Image) -> list[str]:
    """How the pixels lie in the file, in Pillow's words; known before they are loaded."""
    found = []
    for tile in getattr(image, "tile", None) or []:
        args = tile[3]
        first = args[0] if isinstance(args, tuple) and args else args
        found += [first] if isinstance(first, str) else []
    return found


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image as it is shown, turned by its EXIF orientation."""
    width, height = image.size
    return (height, width) if 5 <= _orientation(image) <= 8 else (width, height)


def is_grey(image: Image.Image) -> bool:
    """Whether an image has no colours, told by its mode."""
    return image.mode in _GREY


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 where there is none or it cannot be read, as viewers have it."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error):
        return 1
    return value if isinstance(value, int) else 1


def _eight_bits(image: Image.Image, bits: int | None, declared: int | None) -> tuple[Image.Image, int | None]:
    """A 16-bit grey image scaled to 8 bits, and `Shown.highest`.

    Args:
        bits: as the user says.
        declared: as a PNG says.
    """
    pixels = np.asarray(image).astype(np.uint32)  # [H, W]
    highest, inverted = int(pixels.max()), False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        declared, inverted = _tiff_bits(tags), tags.get(_PHOTOMETRIC) == 0  # which Pillow turns round in 8 bits only
    elif image.format in ("PPM", "JPEG2000"):  # Pillow has scaled them to 16 bits by what the file says
        bits = declared = 16
    elif declared is not None and _fills_16_bits(pixels, declared):
        declared = 16
    if bits is not None and highest >> bits:
        raise ValueError(f"it has a pixel of {highest:,}, which does not fit in {bits} bits; raise the field `bits`")
    used = bits or declared or 16
    if highest >> used:  # the file says fewer bits than it uses
        used = 16
    most = (1 << used) - 1
    eight = ((pixels * 510 + most) // (2 * most)).astype(np.uint8)
    scaled = Image.fromarray(255 - eight if inverted else eight)
    if isinstance(key := image.info.get("transparency"), int):  # the one grey value, of 16 bits too, that is none
        scaled = Image.merge("LA", (scaled, Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8))))
    return scaled, None if bits or declared else highest


def _png_bits(image: Image.Image) -> int | None:
    """Significant bits of a grey 16-bit PNG by its sBIT chunk, or None."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None or not image.mode.startswith("I"):
        return None
    place = file.tell()
    try:
        file.seek(8)  # after the signature
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"sBIT" and length == 1:
                return file.read(1)[0]
            if name in (b"IDAT", b"PLTE", b"IEND"):
                return None
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(place)


def _fills_16_bits(pixels: np.ndarray, bits: int) -> bool:
    """Whether values of `bits` bits were scaled to 16 as the PNG standard asks: moved up, the rest filled or zero."""
    rest = (pixels & ((1 << (16 - bits)) - 1)).astype(np.int64)
    upper = (pixels >> bits).astype(np.int64) if bits >= 8 else np.full_like(rest, -2)
    return bool((rest == 0).all()) or bool((abs(rest - upper) <= 1).all())


def _tiff_bits(tags: object) -> int | None:
    """Significant bits of a grey TIFF by its tags: fewer than 16 stored, or a largest value such as 4095."""
    stored = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])  # type: ignore[attr-defined]
    if stored < 16:
        return stored
    largest = tags.get(_MAX_SAMPLE_VALUE)  # type: ignore[attr-defined]
    largest = largest[0] if isinstance(largest, tuple) and largest else largest
    if isinstance(largest, int) and 255 < largest < 65_536 and largest & (largest + 1) == 0:
        return largest.bit_length()
    return None


def _flat(image: Image.Image, mode: str, background: tuple[int, int, int]) -> Image.Image:
    """An 8-bit image in mode L or RGB, composed on the background where it is transparent."""
    if image.has_transparency_data:
        if image.mode in ("La", "RGBa"):  # colours multiplied with their opacity
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")
    elif image.mode == "LAB" or (image.mode == "CMYK" and "icc_profile" in image.info):
        image = _by_profile(image)
    if image.mode != mode:
        image = image.convert(mode)
    return image


def _by_profile(image: Image.Image) -> Image.Image:
    """CMYK by the profile in the file, or Lab, as sRGB."""
    try:
        profile = (
            ImageCms.createProfile("LAB")
            if image.mode == "LAB"
            else ImageCms.getOpenProfile(io.BytesIO(image.info["icc_profile"]))
        )
        shown = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert shown is not None  # not in place
        return shown
    except (ImageCms.PyCMSError, OSError, TypeError):
        if image.mode == "LAB":
            raise ValueError("its Lab colours cannot be converted by this Pillow; convert it to RGB first") from None
        return image  # a broken profile: Pillow's formula for CMYK
