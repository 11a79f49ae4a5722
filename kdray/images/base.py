"""Image sets, and the config section that names a source of images.

Reading has three steps: the source says how many rows it has, the wanted rows are chosen without looking at a label,
and only those are decoded.
"""

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator

from kdray.errors import ImageSetError
from kdray.images.rows import choose_rows, parse_rows
from kdray.sections.base import ClassNames, Section, Size
from kdray.sections.registry import Registry
from kdray.utils.lazy import torch
from kdray.utils.memory import give_back_memory

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Real images, all of one shape.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], or None.
        classes: class names in the order of the labels, or None.
        notes: what the user should know of how they were read, such as files that were left out.
        given: whether they come from Python; messages then name no fields of a config section.
    """

    images: "torch.Tensor"
    labels: "torch.Tensor | None" = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    given: bool = False

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ImageSetError(f"images must be uint8 [N, C, H, W], got {self.images.dtype} {list(self.images.shape)}")
        if len(self.images) == 0:
            raise ImageSetError("the image set is empty")
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ImageSetError(f"{len(self.images)} images but {len(self.labels)} labels; give one label an image")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def true_labels(self) -> "torch.Tensor":
        """The labels, int64 [N], of a set that has some.

        Raises:
            ImageSetError: it has none.
        """
        if self.labels is None:
            raise ImageSetError("the image set has no labels, and they are needed here")
        return self.labels


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """An opened source: rows that can be decoded one by one.

    Attributes:
        name: of the source, for messages.
        rows: how many there are.
        decode: a row's number to its image. It may raise OSError or ValueError for an image that is not readable.
        decode_many: row numbers int64 [M] to their images, in order, where that is faster than one by one.
        where: a row's number to the words that name its place in messages.
        labels: row numbers int64 [M] to their labels, whole numbers [M]; None where the source has no labels.
        no_labels: where there are none, what the user can do about it.
        classes: class names in the order of the labels, or None; or a function that finds them, called where labels
            are wanted.
        colour: what images become if the config names no colour; None keeps grey grey and makes all others RGB.
        notes: what the user should know, such as files that were left out.
        listing: lines that tell these images from others, such as names and sizes of their files; None: their number
            alone does.
    """

    name: str
    rows: int
    decode: "Callable[[int], Image.Image]"
    where: Callable[[int], str]
    labels: Callable[[np.ndarray], np.ndarray] | None = None
    classes: tuple[str, ...] | Callable[[], tuple[str, ...] | None] | None = None
    no_labels: str = ""
    colour: Literal["grey", "rgb"] | None = None
    notes: tuple[str, ...] = ()
    listing: Callable[[], Iterable[str]] | None = None
    decode_many: "Callable[[np.ndarray], Iterator[Image.Image]] | None" = None

    def digest(self) -> str:
        """Of the number of images and of `listing`. No image is read."""
        found = hashlib.blake2b(str(self.rows).encode(), digest_size=8)
        for line in self.listing() if self.listing is not None else ():
            found.update(b"\0" + str(line).encode(errors="surrogatepass"))  # a user's own lines may be anything
        return found.hexdigest()


def _colour_name(value: Any) -> Any:
    """A colour that Pillow knows, without transparency; checked only where it is not the default."""
    if value is None:  # YAML takes an unquoted # for a comment
        raise ValueError('input should be the name of a colour, or "#rrggbb" in quotes')
    if isinstance(value, str):
        from PIL import ImageColor

        try:
            if len(ImageColor.getrgb(value)) == 3:
                return value
        except ValueError:
            pass
        raise ValueError(f'{value!r} is no colour; give a name such as white, or "#rrggbb" in quotes')
    return value


class ImageSource(Section):
    """Where images come from, and which of them are taken."""

    # A subclass adds its own fields and `open`; it leaves `source` alone, or narrows it to its name and registers.

    given: ClassVar[bool] = False
    """Whether the images come from Python; messages then name no fields of a config section."""

    at_random: ClassVar[bool] = False
    """Whether the images come in no order, so that the first ones stand for all."""

    source: str
    """Kind of source, or a class of your own as module:class."""
    rows: str | None = None
    """Half-open range of rows, "start:stop", taken before `count` is drawn; null takes all."""
    shuffle: Annotated[int, Field(ge=0)] | None = None
    """Seed of a random order for `rows` to count in; null takes the source's. One seed splits a source at random."""
    count: Annotated[int, Field(ge=1)] | None = None
    """How many images to draw (seeded, without looking at labels); null takes all."""
    size: Size | None = None
    """Resize to [height, width], or to one number squared; null leaves images as they are."""
    colour: Literal["grey", "rgb"] | None = None
    """Convert to this colour; null keeps grey grey and makes everything else RGB."""
    background: Annotated[str, BeforeValidator(_colour_name)] = "white"
    """What transparent images lie on: a colour's name, or "#rrggbb" in quotes."""
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """How many bits images of 16 bits a channel use, such as 12; null takes what the file says, else all 16."""
    classes: ClassNames | None = None
    """Class names in the order of the labels, in place of those that the source has; null takes the source's."""
    digest: str | None = None
    """Leave it out: a run records here which images there are, and does not go on with others."""

    @field_validator("rows", mode="before")
    @classmethod
    def _rows_is_a_range(cls, value: Any) -> Any:
        if isinstance(value, int):  # YAML reads 10:50 without quotes as a number to base 60
            raise ValueError(f'input should be a range in quotes, for example rows: "0:1000"; YAML gave {value!r}')
        if isinstance(value, str):
            parse_rows(value)
        return value

    @model_validator(mode="after")
    def _a_shuffle_is_for_rows(self) -> "ImageSource":
        if self.shuffle is not None and self.rows is None:
            raise ValueError(f'shuffle = {self.shuffle} is an order for rows to count in; give rows, such as "0:1000"')
        return self

    def recorded(self, other: "ImageSource") -> "ImageSource":
        """This section with what the config of a run that goes on, `other`, has recorded; see `resolved`."""
        told = self.model_copy(update={"digest": other.digest})
        return told if told == other else self

    def resolved(self, field: str) -> "tuple[ImageSource, list[str]]":
        """This section with what a run records in its config, to go on with the same images, and what the user should
        know of it. What is recorded already stays.

        Args:
            field: as in `open`.

        Raises:
            ConfigError: what was recorded does not hold any more.
        """
        if self.digest is not None:
            return self, []  # whoever reads the images looks, see `open_rows`
        return self.model_copy(update={"digest": open_source(self, field).digest()}), []

    @abstractmethod
    def open(self, field: str) -> ImageRows:
        """Open the source; no image is decoded yet.

        Args:
            field: the config field of this section, such as `teacher.train.images`, for messages.

        Raises:
            ImageSetError: the source is not there, or cannot be read.
        """


sources = Registry(
    ImageSource,  # type: ignore[type-abstract]  # a registry holds what is derived from it
    field="images",
    tag="source",
    package=("kdray.images", "kdray.pools.sources"),
    skip=("arrays", "decode", "labels", "on_demand", "pixels", "rows", "shards", "splits"),
)
"""The sources of images, by name."""


def read_images(
    source: ImageSource,
    *,
    generator: np.random.Generator,
    field: str = "images",
    with_labels: bool | None = False,
) -> ImageSet:
    """Read the images that a config section names.

    Args:
        source: the section.
        generator: draws `count` of the rows; the drawn rows keep their order.
        field: the config field of the section, for messages.
        with_labels: read the labels too; None: where the source has some. Otherwise they are not read at all.

    Raises:
        ImageSetError: no such file, no image column, a corrupt image, mixed sizes, `count` above the set's size, or no
            labels where they are wanted.
    """
    try:
        return _read(source, generator, field, with_labels)
    finally:
        give_back_memory()


def _read(source: ImageSource, generator: np.random.Generator, field: str, with_labels: bool | None) -> ImageSet:
    from kdray.images.decode import decode_rows

    opened, rows = open_rows(source, generator=generator, field=field)
    if with_labels is None:
        with_labels = opened.labels is not None
    if with_labels and opened.labels is None:
        hint = f"; {opened.no_labels}" if opened.no_labels else ""
        raise ImageSetError(f"{field}: {opened.name} holds no labels; labels are needed here{hint}")
    labels = torch.from_numpy(_read_labels(opened, rows, field)) if with_labels else None
    classes = _class_names(opened, source, labels, field)
    images, notes = decode_rows(opened, rows, source, field)
    notes = tuple(f"{field}: {note}" for note in (*opened.notes, *notes))
    return ImageSet(images=images, labels=labels, classes=classes, notes=notes)


def open_rows(source: ImageSource, *, generator: np.random.Generator, field: str) -> tuple[ImageRows, np.ndarray]:
    """The source that a section names, opened, and the numbers of the rows that it takes, int64 [M], in order. No image
    is decoded. For arguments and errors see `read_images`.

    Raises:
        ImageSetError: or a run has recorded other images.
    """
    opened = open_source(source, field)
    if source.digest is not None and source.digest != (now := opened.digest()):
        raise ImageSetError(
            f"{field}: the images of {opened.name} have changed since the run began (there are {opened.rows:,} now, "
            f"and digest {source.digest} is {now}); bring back the old ones, or start a new run"
        )
    return opened, choose_rows(opened, source, generator, field)


def open_source(source: ImageSource, field: str) -> ImageRows:
    """The source that a section names, opened; see `ImageSource.open`.

    Raises:
        ImageSetError: or what a user's own source gives is no `ImageRows`.
    """
    opened = source.open(field)
    if not isinstance(opened, ImageRows):
        raise ImageSetError(f"{field}.source: open() of {source.source} gave {_kind(opened)}, not an ImageRows")
    return opened


def read_class_names(source: ImageSource, field: str) -> tuple[str, ...] | None:
    """Names of the classes of the labels that a section's source has, in their order, or None.

    Raises:
        ImageSetError: the source cannot be read.
    """
    opened = open_source(source, field)
    if callable(opened.classes):
        opened = replace(opened, classes=opened.classes())
    return _class_names(opened, source, None, field)


def _class_names(
    opened: ImageRows, source: ImageSource, labels: "torch.Tensor | None", field: str
) -> tuple[str, ...] | None:
    """The config's class names, else the source's; checked against each other and the labels."""
    own = opened.classes
    if callable(own):
        own = own() if labels is not None else None
    if source.classes is not None and own is not None and len(source.classes) != len(own):
        raise ImageSetError(
            f"{field}.classes: {len(source.classes)} names given, but {opened.name} has {len(own)} classes "
            f"({_some(own)}); give one name each, in this order"
        )
    names = own if source.classes is None else tuple(source.classes)
    highest = int(labels.max()) if labels is not None else -1
    if names is not None and highest >= len(names):
        raise ImageSetError(
            f"{field}: label {highest} found in {opened.name}, but there are names for {len(names)} classes "
            f"({_some(names)}); give them all in {field}.classes"
        )
    return names


def _some(names: tuple[str, ...], most: int = 12) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes in the order of numbers where all are whole numbers, else in that of text."""
    names = list(names)
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _read_labels(opened: ImageRows, rows: np.ndarray, field: str) -> np.ndarray:
    """The labels of the wanted rows, int64 [M].

    Raises:
        ImageSetError: they are not one whole number an image.
    """
    assert opened.labels is not None  # the caller has checked
    try:
        found = np.asarray(opened.labels(rows))
    except (TypeError, ValueError) as error:
        raise ImageSetError(f"{field}: the labels of {opened.name} cannot be read ({error})") from None
    if found.dtype.kind == "O" and all(type(value) is int for value in found.flat):
        found = as_int64(found, field, lambda k: opened.where(int(rows[k])))
    if found.dtype.kind not in "iu" or found.shape != rows.shape:
        raise ImageSetError(
            f"{field}: the labels of {opened.name} are {found.dtype} {list(found.shape)} for {len(rows):,} images; "
            "one whole number an image is needed"
        )
    return as_int64(found, field, lambda k: opened.where(int(rows[k])))


def as_int64(found: np.ndarray, field: str, where: Callable[[int], str]) -> np.ndarray:
    """Labels that are whole numbers, of any type, as int64 [M].

    Args:
        field: the config field of the images, for messages.
        where: the number of a label to the words that name the place of its image.

    Raises:
        ImageSetError: a label that int64 does not hold. numpy would make another number of it.
    """
    if found.dtype.kind == "i":
        return found.astype(np.int64)
    wrong = np.flatnonzero((found >= 2**63) | (found < -(2**63)))
    if len(wrong):
        row = int(wrong[0])
        value = int(found[row])
        raise ImageSetError(f"{field}: label {value} of {where(row)} is too {'large' if value > 0 else 'small'}")
    return found.astype(np.int64)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
