"""A first config, for images in a folder or none, and a teacher behind HTTP: `kdray init`."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from kdray.errors import ConfigError
from kdray.images.base import ImageRows
from kdray.images.decode import UNREADABLE
from kdray.images.folder import FolderImages
from kdray.images.pixels import is_grey, upright_size
from kdray.pools.procedural.lines import MOST_SIDE

SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
"""Sizes that images of several shapes are brought to."""
_LOOKED_AT = 40  # images whose shapes are read
_TEST_SHARE, _MOST_TESTED, _FEWEST = 5, 100, 20  # one image of five is for the test, at most 100; none of fewer than 20

_TEMPLATE = """\
# Written by kdray init. What this would do and cost: kdray plan {name}. All fields: docs/config.md
seed: 0

{images}
# The teacher. An API is told by what its requests and replies look like; other forms, and Triton, KServe and MLServer:
# docs/teachers.md. The first image is asked alone: if the reply is not as said here, no other is paid for.
teacher:
  kind: http
  protocol: json
  url: {url}
  classes: {classes}{classes_note}
  answers: top{most}            # classes with probabilities that a reply has; soft: all of them; hard: one, without
  batch_size: 1            # images of a request
  headers: {{Authorization: "Bearer ${{API_KEY}}"}}   # ${{API_KEY}} is taken from the environment, and written nowhere
  input: {{encoding: png}}   # in base64; array: nested lists of numbers
  request: {{image: "$image"}}
  reply: {{items: predictions, label: class, score: confidence}}
  limits: {{requests_per_s: 10, in_flight: 4}}

{pool}{select}budget:
  queries: {queries}             # a hard cap
{evaluation}  # price_per_query: 0.001
  # currency: USD

# student: {{steps_factor: 1}}   # a shorter training of colour images, for a first look
"""

_DRAWN = """\
# Not one image: random candidates are asked about first. size, and colour rgb or grey: what the teacher takes.
images:
  source: drawn
  size: {size}
  colour: rgb
  count: {first}
  pool: &drawn {{kind: mixture, of: [lines, contours, spectrum]}}

# The candidates; to see them: kdray preview {name}. Other kinds: fractals and leaves (kdray[fractals,leaves]), shaders
# (kdray[gl]), and parts of photographs of anything: {{kind: crops, images: {{source: folder, path: photographs}}}}.
# Which ones teach most: docs/choosing.md, "Without a single image".
pool: *drawn

# A few images of what the teacher knows, if you have any, measure the student. If they have no labels, set
# budget.evaluation to their number: these queries, counted apart, measure its agreement with the teacher.
# test: {{source: folder, path: test, size: {size}, colour: rgb}}
"""
_FEWEST_DRAWN = 2  # queries
_FIRST_SHARE, _MOST_FIRST = 5, 10_000  # one query of five is for images drawn at random, at most 10,000


@dataclass(frozen=True, kw_only=True)
class Start:
    """A first config.

    Attributes:
        text: as YAML.
        images: how many images the folder has; None where none was given, and where images are drawn.
        tested: how many of them are for the test.
        size: to which they are resized, or in which they are drawn; None where they have one shape.
    """

    text: str
    images: int | None
    tested: int
    size: int | None


def starting_config(
    name: str, folder: str | None, url: str | None, classes: str | None, queries: int, *, drawn: int | None = None
) -> Start:
    """A config with comments, for images in a folder or none, and a teacher that takes and gives JSON.

    Args:
        name: of the file, for its first line.
        folder: with the images; None leaves a place for it.
        url: of the teacher; None leaves a place for it.
        classes: their number, or their names with commas between them; None leaves a place for them.
        queries: the budget.
        drawn: height and width in pixels of images that are drawn, for a user who has none; None for a folder.

    Raises:
        ConfigError: a class is named twice or not at all, there are fewer than two, `queries` or `drawn` is out of
            range, or both `folder` and `drawn` are given.
        ImageSetError: the folder is not there, or it holds no images that can be read.
    """
    if queries < 1:
        raise ConfigError(f"--queries: got {queries:,}; give a number from 1 on")
    if drawn is not None and not 1 <= drawn <= MOST_SIDE:
        raise ConfigError(
            f"--drawn: got {drawn:,}; give the height and width that the teacher takes, 1 to {MOST_SIDE:,} pixels"
        )
    if drawn is not None and queries < _FEWEST_DRAWN:
        raise ConfigError(
            f"--queries: got {queries:,}; with --drawn two rounds ask about an image each at least, so give 2 or more"
        )
    if drawn is not None and folder is not None:
        raise ConfigError(f"--drawn: got {drawn:,} beside --images {folder}; give one of the two")
    named = _classes(classes)
    opened = None if folder is None else FolderImages(path=folder).open("--images")
    size, mixed = (None, False) if opened is None else _form(opened)
    count = 0 if opened is None else opened.rows
    tested = min(_MOST_TESTED, count // _TEST_SHARE) if count >= _FEWEST else 0
    text = _TEMPLATE.format(
        name=name,
        images=_images(folder, count, tested, size if opened is not None else 64, mixed)
        if drawn is None
        else _DRAWN.format(name=name, size=drawn, first=max(1, min(_MOST_FIRST, queries // _FIRST_SHARE))),
        url=json.dumps(url or "https://api.example.org/v1/classify"),
        classes=json.dumps(named, ensure_ascii=False),
        most=min(3, named if isinstance(named, int) else len(named)),
        classes_note="" if classes else "   # all that it may answer, or their number",
        queries=queries,
        pool="" if opened is None else _pool(count - tested, queries),
        select=_select(count - tested, queries),
        evaluation=f"  evaluation: {tested}          # queries about the images of test, counted apart\n"
        if tested
        else "",
    )
    return Start(
        text=text, images=None if opened is None else count, tested=tested, size=size if drawn is None else drawn
    )


def _images(folder: str | None, count: int, tested: int, size: int | None, mixed: bool) -> str:
    """The sections images and test; `mixed` images are grey and in colour."""
    shape = ("" if size is None else f", size: {size}") + (", colour: rgb" if mixed else "")
    source = f"source: folder, path: {json.dumps(folder or 'images', ensure_ascii=False)}{shape}"
    if not tested:
        return f"# Images without labels, to ask about and to mix.\nimages: {{{source}}}\n"
    first = count - tested
    return (
        f"# Images without labels, to ask about and to mix. {tested} of the {count:,}, drawn at random by the seed "
        "shuffle, are kept\n# out: the student is measured on them by its agreement with the teacher.\n"
        f'images: {{{source}, shuffle: 0, rows: "0:{first}"}}\n'
        f'test:   {{{source}, shuffle: 0, rows: "{first}:{count}"}}\n'
    )


def _pool(images: int, queries: int) -> str:
    """The section pool where the images have fewer pairs than there are queries after round 0."""
    pairs = images * (images - 1) // 2
    if images > 1 and pairs >= queries - images:
        return ""
    return (
        f"# {images} image{'s' if images > 1 else ''} and {pairs} pair{'' if pairs == 1 else 's'} of them are too few "
        f"for {queries:,} queries. So candidates are parts of images, and drawn\n# ones, which need no image. "
        "With more images leave this out. Other kinds: docs/choosing.md.\n"
        "pool: {kind: mixture, of: [crops, lines, contours, spectrum], shares: [3, 1, 1, 1]}\n\n"
    )


def _select(images: int, queries: int) -> str:
    """The section select where round 0 would take more than three quarters of the budget."""
    if 4 * images <= 3 * queries:
        return ""
    first = max(1, queries // 2)
    return (
        f"# Half of the budget asks about images as they are, drawn at random. Candidates mix all {images:,}.\n"
        f"select: {{first: {first}}}\n\n"
    )


def _classes(text: str | None) -> list[str] | int:
    if text is None:
        return ["cat", "dog", "rabbit"]
    names = [name.strip() for name in text.split(",")]
    if len(names) == 1 and names[0].isdecimal():
        if int(names[0]) < 2:
            raise ConfigError(f"--classes: got {names[0]}; a classifier has two classes or more")
        return int(names[0])
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"--classes: got {text!r}; give their number, or different names with commas between them")
    return names


def _form(opened: ImageRows) -> tuple[int | None, bool]:
    """What images are resized to: the largest of `SIZES` that half of them have; None if all have one shape. And
    whether some are grey and others are not."""
    step, shapes, grey = max(1, opened.rows // _LOOKED_AT), [], set()
    for row in range(0, opened.rows, step):
        try:
            with opened.decode(row) as image:
                shapes.append(upright_size(image))
                grey.add(is_grey(image))
        except UNREADABLE:
            continue  # `kdray plan` reads every image, and names it
    if not shapes or len(set(shapes)) == 1:
        return None, len(grey) > 1
    shorter = statistics.median(min(shape) for shape in shapes)
    return max((size for size in SIZES if size <= shorter), default=SIZES[0]), len(grey) > 1


def write_start(path: Path, text: str) -> None:
    """Write a new file.

    Raises:
        ConfigError: it is there already, or cannot be written.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        line = next(line for line in text.splitlines() if error.object[error.start] in line)
        raise ConfigError(f"YAML holds no name that is not UTF-8, as in {line.strip()}; give it another name") from None
    made = False
    try:
        with open(path, "xb") as file:
            made = True
            file.write(data)
    except FileExistsError:
        raise ConfigError(f"{path} is there already, and nothing is overwritten; give another FILE") from None
    except OSError as error:
        if made:  # a part of a config is none, and would stand in the way of the next try
            path.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another FILE") from None
