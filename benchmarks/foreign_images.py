"""Images for foreign.py: lines of text, drawn with the fonts that matplotlib brings, and MNIST's drawings."""

from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from kdray.images.png import encode_png

HEIGHT, WIDTH = 48, 192
TWICE = 2  # drawn so much larger, then shrunk
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
NAMES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip
ONSETS = (*"bcdfghklmnprstvw", "br", "ch", "cl", "cr", "dr", "fl", "gr", "pl", "sc", "sh", "sp", "st", "th", "tr", "wh")
VOWELS = (*"aeiou", "ai", "ea", "ee", "ie", "oo", "ou")
CODAS = ("", "", *"nrstlmd", "nd", "nt", "st", "ck", "ng", "rd")


def text_lines(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lines of made-up words and numbers as a text detector cuts them out, half of them on their head.

    Returns:
        (uint8 [N, 48, 192, 3] in RGB, bool [N]: which are on their head).
    """
    generator = np.random.default_rng([seed, 48])
    turned = generator.random(count) < 0.5
    lines = [_line(generator) for _ in range(count)]
    return np.stack(
        [line[::-1, ::-1] if on_head else line for line, on_head in zip(lines, turned, strict=True)]
    ), turned


def _line(generator: np.random.Generator) -> np.ndarray:
    """One upright line, uint8 [48, 192, 3]: dark on light or light on dark, a little slanted, with noise."""
    light, dark = generator.integers(150, 256, 3), generator.integers(0, 110, 3)
    ground, ink = (light, dark) if generator.random() < 0.75 else (dark, light)
    size = (WIDTH * TWICE, HEIGHT * TWICE)
    picture = Image.new("RGB", size, tuple(ground.tolist()))
    draw = ImageDraw.Draw(picture)
    points = int(generator.integers(24, 39)) * TWICE  # half of the height to four fifths
    font = ImageFont.truetype(str(FONTS / f"{generator.choice(NAMES)}.ttf"), points)
    text, enough = _word(generator), size[0] * generator.uniform(0.6, 1.05)
    while draw.textlength(text, font=font) < enough:
        text += " " + _word(generator)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    spare = size[0] - (right - left)
    x = generator.uniform(0.2, 0.8) * spare if spare > 0 else generator.uniform(2, 8) * TWICE
    y = (size[1] - (bottom - top)) / 2 + generator.uniform(-3, 3) * TWICE
    draw.text((x - left, y - top), text, font=font, fill=tuple(ink.tolist()))
    slant = generator.uniform(-2, 2)  # degrees
    picture = picture.rotate(slant, resample=Image.Resampling.BILINEAR, fillcolor=tuple(ground.tolist()))
    pixels = np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX), dtype=np.float32)
    noise = generator.normal(0, generator.uniform(0, 12), pixels.shape)
    return (pixels + noise).clip(0, 255).round().astype(np.uint8)


def _word(generator: np.random.Generator) -> str:
    """A made-up word of one to three syllables, or a number."""
    if generator.random() < 0.12:
        return str(generator.integers(0, 10 ** int(generator.integers(1, 7))))
    parts = [generator.choice(some) for _ in range(generator.integers(1, 4)) for some in (ONSETS, VOWELS, CODAS)]
    word, case = "".join(parts), generator.random()
    return word.upper() if case < 0.15 else word.capitalize() if case < 0.4 else word


def drawings(path: Path, rows: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Rows of an MNIST file: (PNG files, the digits that they are, which no student sees)."""
    table = pq.read_table(path).take(rows)
    return [image["bytes"] for image in table.column("image").to_pylist()], table.column("label").to_numpy()


def write_files(folder: Path, images: np.ndarray | list[bytes]) -> None:
    """Images, uint8 [N, H, W, 3] or files, as 00000.png, 00001.png, ... of a folder."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        content = image if isinstance(image, bytes) else encode_png(image.transpose(2, 0, 1))
        (folder / f"{number:05}.png").write_bytes(content)
