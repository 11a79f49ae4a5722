"""What becomes of the pixels of real files: turned upright, composed, brought to 8 bits, grey or RGB."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pydantic import ValidationError
from test_images import read, write_parquet

from kdray.errors import ImageSetError
from kdray.images.arrays import as_images, as_labelled
from kdray.images.pixels import as_shown

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
WIDE = np.array([[0, 4095], [2048, 100]], dtype=np.uint16)  # 12 bits
TWELVE = [[0, 255], [128, 6]]  # 100 / 4095 * 255 = 6.2
SIXTEEN = [[0, 16], [8, 0]]


def saved(folder, image: Image.Image | np.ndarray, form: str = "PNG", name: str = "a", **options) -> str:
    """The folder, with one image file more in it."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(folder / f"{name}.{form.lower()}", form, **options)
    return str(folder)


def pixels(folder, **config) -> list:
    """Pixels of the one image in a folder, [C][H][W]; of a grey one [H][W]."""
    (image,) = read(source="folder", path=str(folder), **config).images
    return (image[0] if len(image) == 1 else image).tolist()


def png16(folder, values: np.ndarray, colour_type: int, significant: list[int] | None = None) -> None:
    """A PNG of 16 bits a channel, [H, W, C], with or without an sBIT chunk: Pillow writes neither."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    (folder / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
        + (chunk(b"sBIT", bytes(significant)) if significant else b"")
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


# Orientation

UPRIGHT = {
    1: GREY,
    2: GREY[:, ::-1],
    3: GREY[::-1, ::-1],
    4: GREY[::-1],
    5: GREY.T,
    6: GREY[::-1].T,
    7: GREY[::-1, ::-1].T,
    8: GREY[:, ::-1].T,
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright_by_their_exif_orientation(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved(tmp_path, GREY, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert pixels(tmp_path, colour="grey") == UPRIGHT[orientation].tolist()


def test_sixteen_bits_and_cells_of_parquet_are_turned_too_and_before_resizing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint16) * 257).save(buffer, "PNG", exif=exif)
    path = write_parquet(tmp_path / "a.parquet", [buffer.getvalue()])
    assert read(source="parquet", path=path).images[0, 0].tolist() == UPRIGHT[6].tolist()
    assert read(source="parquet", path=path, size=[3, 2]).images[0, 0].tolist() == UPRIGHT[6].tolist()


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_an_exif_block_that_cannot_be_read_turns_nothing(tmp_path, exif):
    saved(tmp_path, GREY, exif=exif)
    assert pixels(tmp_path) == GREY.tolist()


# Transparency


def transparent(mode: str) -> Image.Image:
    """Two pixels: an opaque 50 and one that is not seen."""
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (50, 50, 50, 255))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_images_lie_on_white_or_the_colour_that_is_set(tmp_path, form):
    saved(tmp_path, transparent("RGBA"), form, **({"lossless": True} if form == "WEBP" else {}))
    assert pixels(tmp_path) == [[[50, 255]]] * 3
    assert pixels(tmp_path, background="black") == [[[50, 0]]] * 3
    assert pixels(tmp_path, background="#ff0001") == [[[50, 255]], [[50, 0]], [[50, 1]]]
    assert pixels(tmp_path, background="red", colour="grey") == [[50, 76]]


def test_transparency_of_grey_and_of_palettes_and_single_colours(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([50, 50, 50, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    for name, image, form, options, expected in (
        ("grey", transparent("LA"), "PNG", {}, [[50, 255]]),
        ("palette", palette, "PNG", {"transparency": 1}, [[[50, 255]]] * 3),
        ("gif", palette, "GIF", {"transparency": 1}, [[[50, 255]]] * 3),
        ("rgb", transparent("RGB"), "PNG", {"transparency": (0, 0, 0)}, [[[50, 255]]] * 3),
        ("key", np.array([[50, 7]], np.uint8), "PNG", {"transparency": 7}, [[50, 255]]),
        ("wide", np.array([[50 * 257, 65535]], np.uint16), "PNG", {"transparency": 65535}, [[50, 255]]),
        ("bit", Image.new("1", (2, 1)), "PNG", {"transparency": 0}, [[255, 255]]),
    ):
        (tmp_path / name).mkdir()
        saved(tmp_path / name, image, form, **options)
        assert pixels(tmp_path / name) == expected, name


def test_half_transparent_pixels_are_mixed(tmp_path):
    saved(tmp_path, Image.new("RGBA", (1, 1), (0, 0, 0, 51)))  # a fifth
    assert pixels(tmp_path) == [[[204]]] * 3


@pytest.mark.parametrize("background", ["noir", "#ff", 3, None, "rgba(1, 2, 3, 4)"])
def test_a_background_that_is_no_colour_is_refused(background):
    with pytest.raises(ValidationError, match="background"):
        read(source="digits", background=background)


# Sixteen bits


@pytest.mark.parametrize("values", [WIDE, (WIDE << 4) | (WIDE >> 8), WIDE << 4])
def test_a_png_that_says_12_bits_is_scaled_by_them_wherever_in_the_16_they_lie(tmp_path, values):
    png16(tmp_path, values[..., None], 0, significant=[12])
    assert pixels(tmp_path) == TWELVE


def test_a_png_that_says_12_bits_and_uses_more_has_16(tmp_path):
    png16(tmp_path, np.array([[0, 65535, 32769]])[..., None], 0, significant=[12])
    assert pixels(tmp_path) == [[0, 255, 128]]


@given(st.integers(9, 16), st.data())
@examples(60)
def test_scaling_is_rounding_to_the_nearest_of_256_values(bits, data):
    most = 2**bits - 1
    values = [most, *data.draw(st.lists(st.integers(0, most), min_size=1, max_size=20))]
    shown = as_shown(Image.fromarray(np.array([values], np.uint16)), (255, 255, 255), bits, None)
    assert np.asarray(shown.image)[0].tolist() == [math.floor(value * 255 / most + 0.5) for value in values]


@pytest.mark.parametrize("largest", [4095, (4095,)])
def test_a_tiff_that_says_its_largest_value_is_scaled_by_it(tmp_path, largest):
    saved(tmp_path, WIDE, "TIFF", tiffinfo={281: largest})
    assert pixels(tmp_path) == TWELVE


def test_a_tiff_in_which_white_is_zero_is_turned_round(tmp_path):
    saved(tmp_path, np.array([[0, 65535, 257]], np.uint16), "TIFF", tiffinfo={262: 0})
    assert pixels(tmp_path) == [[255, 0, 254]]


def test_formats_that_say_their_range_are_scaled_by_it(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 4095\n" + WIDE.astype(">u2").tobytes())
    assert pixels(tmp_path) == TWELVE
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 65535\n" + WIDE.astype(">u2").tobytes())
    assert pixels(tmp_path) == SIXTEEN


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_12_bits_of_which_the_file_says_nothing_are_refused_until_the_config_says_them(tmp_path, form):
    saved(tmp_path, WIDE, form)
    with pytest.raises(ImageSetError) as error:
        pixels(tmp_path)
    assert str(error.value) == (
        "images: no image of 16 bits a channel has a pixel above 4,095 of 65,535 (the highest is in "
        f"{tmp_path}/a.{form.lower()}), and the files do not say how many of the 16 bits are used; set images.bits to "
        "that number, such as 12, or to 16 if the images are as dark as that"
    )
    assert pixels(tmp_path, bits=12) == TWELVE
    assert pixels(tmp_path, bits=16) == SIXTEEN
    with pytest.raises(ImageSetError, match=r"a pixel of 4,095, which does not fit in 11 bits; raise the field `bits`"):
        pixels(tmp_path, bits=11)


def test_a_dark_image_among_bright_ones_is_dark(tmp_path):
    saved(tmp_path, WIDE, name="a")
    saved(tmp_path, np.full((2, 2), 65535, np.uint16), name="b")
    saved(tmp_path, np.zeros((2, 2), np.uint16), name="c")
    found = read(source="folder", path=str(tmp_path))
    assert found.images[:, 0].tolist() == [SIXTEEN, [[255] * 2] * 2, [[0] * 2] * 2]
    assert read(source="folder", path=str(tmp_path), rows="2:3").images.max() == 0


def test_sixteen_bits_of_colour_keep_the_upper_eight_and_are_refused_where_these_may_be_empty(tmp_path):
    png16(tmp_path, np.array([[[0, 65535, 32768]]]), 2)
    assert pixels(tmp_path) == [[[0]], [[255]], [[128]]]
    png16(tmp_path, np.array([[[40000, 65535], [0, 0]]]), 4)  # grey with opacity
    assert pixels(tmp_path) == [[156, 255]]
    png16(tmp_path, np.array([[[0, 4095, 100, 65535]]]), 6)
    with pytest.raises(ImageSetError, match=r"set images\.bits to 16 if .*, else convert them to 8 bits a channel"):
        pixels(tmp_path)
    assert pixels(tmp_path, bits=16) == [[[0]], [[15]], [[0]]]
    with pytest.raises(ImageSetError, match=r"with 12 significant bits, convert it to 8 bits a channel first"):
        pixels(tmp_path, bits=12)


def test_a_broken_file_of_any_format_is_named(tmp_path):
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "AVIF", "JP2", "TGA", "PCX", "SGI"):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
        place = tmp_path / f"a.{form.lower()}"
        image.save(place)
        place.write_bytes(place.read_bytes()[: place.stat().st_size * 2 // 3])
        with pytest.raises(ImageSetError, match=rf"a\.{form.lower()} is not a readable image \("):
            pixels(tmp_path)
        place.unlink()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused_by_name(tmp_path, mode):
    saved(tmp_path, Image.new(mode, (2, 2)), "TIFF")
    with pytest.raises(ImageSetError, match=rf"a\.tiff is not .* \(its pixels are of PIL's mode '{mode}'"):
        pixels(tmp_path)


# Other colours, several frames


def test_cmyk_is_what_was_printed(tmp_path):
    for form in ("JPEG", "TIFF"):  # a JPEG of Adobe's holds it inverted
        (tmp_path / form).mkdir()
        saved(tmp_path / form, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form)
        red, green, blue = pixels(tmp_path / form)
        assert red[0][0] >= 250 and green[0][0] <= 5 and blue[0][0] <= 5


def test_cmyk_with_a_broken_profile_is_converted_without_it(tmp_path):
    saved(tmp_path, Image.new("CMYK", (2, 2), (0, 0, 0, 255)), "TIFF", icc_profile=b"junk")
    assert pixels(tmp_path) == [[[0, 0]] * 2] * 3


def test_lab_is_converted(tmp_path):
    source = Image.new("RGB", (2, 2), (200, 30, 60))
    lab = ImageCms.profileToProfile(
        source, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    saved(tmp_path, lab, "TIFF")
    found = read(source="folder", path=str(tmp_path)).images[0, :, 0, 0].tolist()
    assert np.abs(np.array(found) - [200, 30, 60]).max() <= 3


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path, form):
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    saved(tmp_path, frames[0], form, save_all=True, append_images=frames[1:])
    saved(tmp_path, frames[0], "BMP", name="b")
    found = read(source="folder", path=str(tmp_path), colour="grey", field="test")
    assert (found.images == 10).all()
    assert found.notes == (f"test: 1 of 2 images of {tmp_path} have several frames; the first of each is taken",)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_pil_image_at_another_frame_gives_the_first_and_stays_where_it_is(tmp_path, form, place):
    frames = [Image.new("RGB", (4, 4), (value, 0, 9)) for value in (10, 100, 200)]
    saved(tmp_path, frames[0], form, save_all=True, append_images=frames[1:])
    from_file = read(source="folder", path=str(tmp_path)).images

    def is_there(pixel) -> bool:
        return np.abs(np.array(pixel) - frames[place].getpixel((3, 3))).max() <= 3  # WebP is not exact

    for loaded in (True, False):
        with Image.open(tmp_path / f"a.{form.lower()}") as image:
            image.seek(place)
            if loaded:
                image.load()
            found = as_labelled([image, image, image.copy()], [0, 0, 0], "test")
            assert image.tell() == place and image.filename.endswith(form.lower())
            assert is_there(image.convert("RGB").getpixel((3, 3)))
            if place < 2:
                image.seek(place + 1)
                image.load()
        assert (found.images[:2] == from_file).all() and is_there(found.images[2, :, 3, 3].tolist())
        assert found.notes == ("test: 2 of 3 images of the list have several frames; the first of each is taken",)


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF"])  # WebP is held whole
def test_a_pil_image_at_another_frame_of_a_closed_file_is_refused(tmp_path, form):
    frames = [Image.new("L", (4, 4), value) for value in (10, 100)]
    saved(tmp_path, frames[0], form, save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / f"a.{form.lower()}") as image:
        image.seek(1)
        image.load()
    with pytest.raises(ImageSetError, match=r"image 0 .*it is at frame 1 of a file that is closed, .* image\.copy\(\)"):
        as_images([image], "images")


def test_reading_a_pil_image_leaves_it_as_it_was(tmp_path):
    png16(tmp_path, np.full((2, 2, 3), 0xFFFF), 2)
    with Image.open(tmp_path / "a.png") as image:
        image.info["transparency"] = (0xFFFF, 0xFFFF, 0xFFFF)
        assert (as_images([image], "images") == 255).all()
        assert image.info["transparency"] == (0xFFFF, 0xFFFF, 0xFFFF)


def test_torchvisions_folders_show_the_same_pixels(tmp_path):
    for name in ("RGBA", "LA", "CMYK"):
        (tmp_path / name).mkdir()
    saved(tmp_path / "RGBA", transparent("RGBA"))
    saved(tmp_path / "LA", transparent("LA"))
    saved(tmp_path / "CMYK", Image.new("CMYK", (2, 1), (0, 0, 0, 255)), "TIFF")
    found = read(source="torchvision", name="ImageFolder", root=str(tmp_path), with_labels=True)
    assert found.classes == ("CMYK", "LA", "RGBA")
    assert found.images[:, :, 0].tolist() == [[[0, 0]] * 3, [[50, 255]] * 3, [[50, 255]] * 3]
