"""Images of a torchvision data set."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSource, sources
from kdray.images.splits import split_folders
from kdray.utils.files import shown


@sources.register
class TorchvisionImages(ImageSource):
    """A torchvision data set."""

    path_fields: ClassVar[tuple[str, ...]] = ("root",)

    source: Literal["torchvision"] = "torchvision"
    name: str
    """Class name in torchvision.datasets, for example FashionMNIST."""
    root: str
    """Where its files lie."""
    split: Literal["train", "test", "val"] = "train"
    """Which part of it."""
    download: bool = False
    """Let torchvision download what is missing under `root`."""

    def open(self, field: str) -> ImageRows:
        """See `ImageSource.open`."""
        import torchvision
        from PIL import Image

        found = getattr(torchvision.datasets, self.name, None)
        if not inspect.isclass(found):
            raise ImageSetError(f"{field}.name: torchvision.datasets has no {self.name!r}")
        kind: Callable[..., Any] = found
        accepted = inspect.signature(kind).parameters
        options: dict[str, object] = {"download": self.download} if "download" in accepted else {}
        if "train" in accepted and self.split != "val":
            options["train"] = self.split == "train"
        elif "split" in accepted:
            options["split"] = self.split
        elif self.split != "train":
            raise ImageSetError(f"{field}.split: torchvision's {self.name} has no part {self.split!r}")
        passed_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values())
        if "loader" in accepted or (passed_on and issubclass(found, torchvision.datasets.DatasetFolder)):
            # The usual one drops transparency and clips 16 bits before kdray sees the image.
            options["loader"] = Image.open
        try:
            data = kind(self.root, **options)
            count = len(data)
        except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
            raise ImageSetError(
                f"{field}: torchvision cannot read {self.name} under {shown(self.root)} ({error})"
            ) from None
        targets = getattr(data, "targets", getattr(data, "labels", None))
        names = getattr(data, "classes", None)
        if hidden := [name for name in names or () if str(name).startswith(".")]:
            raise ImageSetError(
                f"{field}: torchvision's {self.name} takes the folder {hidden[0]!r} under {shown(self.root)} for a "
                "class; remove it, or use source: folder, which leaves it out"
            )
        if kind is torchvision.datasets.ImageFolder and (parts := split_folders(map(str, names or ()))):
            raise ImageSetError(
                f"{field}: torchvision's {self.name} takes the folder {shown(parts[0])!r} under {shown(self.root)} for "
                "a class, and it is a set of its own; name it as the root, or rename it if it is a class"
            )
        return ImageRows(
            name=f"torchvision {self.name} ({self.split})",
            rows=count,
            decode=lambda row: data[row][0],
            where=lambda row: f"row {row} of torchvision {self.name}",
            labels=None if targets is None else lambda rows: np.asarray(targets)[rows],
            classes=tuple(shown(str(name)) for name in names) if names else None,
            colour="rgb" if "loader" in options else None,  # as torchvision has it
        )
