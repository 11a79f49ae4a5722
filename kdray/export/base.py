"""The contract of an export format, and the check that an exported file says what the student says."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdray.errors import ConfigError, ExportError
from kdray.models.checkpoint import ModelCard
from kdray.models.classifier import ImageClassifier
from kdray.sections.registry import Catalogue
from kdray.utils.packages import why_missing

BATCHES = (1, 2, 7)
"""Batches that an exported file is tried with: a batch that was frozen at another size fails or answers otherwise."""
TOLERANCE = 1e-3
"""Largest difference of a probability from the student's: other software sums in another order."""

Runner = Callable[[Tensor], Tensor]
"""uint8 images [B, C, H, W] to probabilities float32 [B, K]."""


class Deployed(nn.Module):
    """A student with everything inside: uint8 images [B, C, H, W] in, probabilities float32 [B, K] out.

    Args:
        student: gives the logits.
        temperature: divides them.
    """

    def __init__(self, student: ImageClassifier, temperature: float = 1.0) -> None:
        super().__init__()
        self.student, self.temperature = student, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities."""
        logits: Tensor = self.student(images)
        return (logits / self.temperature).softmax(dim=1)


@dataclass(frozen=True, kw_only=True)
class About:
    """What an exported file says of the student.

    Attributes:
        card: the student's own.
        names: of the classes, K.
        temperature: that divides the logits.
        figures: what was measured and paid, name -> text; empty where nothing is known.
    """

    card: ModelCard
    names: tuple[str, ...]
    temperature: float = 1.0
    figures: Mapping[str, str] = field(default_factory=dict)

    def example(self) -> Tensor:
        """Two black images, for exporters that follow what the student does with some."""
        return torch.zeros(2, *self.card.image_shape, dtype=torch.uint8)

    def metadata(self) -> dict[str, str]:
        """As short texts, for formats that keep some."""
        return {
            "model": self.card.model,
            "input": f"uint8 [batch, {', '.join(map(str, self.card.image_shape))}], pixels",
            "output": f"float32 [batch, {self.card.num_classes}], probabilities",
            "temperature": f"{self.temperature:g}",
            "classes": "\n".join(self.names),
        }


class Format(ABC):
    """A format that students are exported to.

    Attributes:
        name: on the command line.
        suffix: of the file; "" for a folder.
        extra: of kdray that brings the packages it needs; "" for none.
        needs: these packages.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()

    def check_installed(self) -> None:
        """Refuse a format whose packages are missing.

        Raises:
            ExportError: with the command that installs them.
        """
        if why := why_missing(f"--format {self.name}", self.needs, self.extra):
            raise ExportError(why)

    @abstractmethod
    def write(self, graph: Deployed, about: About, path: Path) -> None:
        """Write the student to a path that is not there.

        Raises:
            ExportError: the network cannot be exported to this format.
        """

    @abstractmethod
    def load(self, path: Path) -> Runner:
        """What `write` has written, as its users run it."""


def check_temperature(temperature: float) -> None:
    """Refuse what logits cannot be divided by.

    Raises:
        ConfigError: it is not above 0, or not finite.
    """
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"--temperature: got {temperature:g}; give a number above 0")


_FORMATS: dict[str, Format] = {}
_CATALOGUE = Catalogue("kdray.export.formats")


def register_format(kind: type[Format]) -> type[Format]:
    """Class decorator: a format by its name."""
    if kind.name in _FORMATS:
        raise ValueError(f"two formats are named {kind.name!r}")
    _FORMATS[kind.name] = kind()
    return kind


def format_names() -> list[str]:
    """Names of all formats, sorted."""
    _CATALOGUE.load()
    return sorted(_FORMATS)


def find_format(name: str) -> Format:
    """The format of that name.

    Raises:
        ExportError: there is none.
    """
    if name not in (names := format_names()):
        raise ExportError(f"--format: {name!r} is not one of {', '.join(names)}")
    return _FORMATS[name]


def reason(error: Exception) -> str:
    """The first line of what another library says; its messages run over pages."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def largest_difference(run: Runner, graph: Deployed, images: Tensor) -> float:
    """The largest difference of a probability between an exported file and the student, over batches of `BATCHES`.

    Args:
        run: the file.
        graph: the student; on the CPU.
        images: uint8 [N, C, H, W] with N at least 1; used again where there are few.

    Raises:
        ExportError: it fails on a batch, answers in another shape, or differs by more than `TOLERANCE`.
    """
    worst = 0.0
    for size in BATCHES:
        for first in range(0, max(1, len(images) - size + 1), size):
            batch = images[(torch.arange(size) + first) % len(images)].contiguous()
            with torch.no_grad():
                expected = graph.eval()(batch).float()
            try:
                with torch.no_grad():
                    found = run(batch)
            except Exception as error:  # of whatever runs it
                raise ExportError(f"the exported file fails on {size} images at once ({reason(error)})") from None
            if found.shape != expected.shape:
                raise ExportError(
                    f"the exported file answers {size} images in the shape {list(found.shape)}, the student in "
                    f"{list(expected.shape)}"
                )
            difference = float((found - expected).abs().max())
            if not difference <= TOLERANCE:  # nor NaN
                raise ExportError(
                    f"the exported file differs from the student by {difference:.3g} in a probability of one of {size} "
                    f"images, more than {TOLERANCE:g}"
                )
            worst = max(worst, difference)
    return worst
