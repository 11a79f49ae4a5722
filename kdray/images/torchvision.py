"""Images of a torchvision data set."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSource, sources


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
        try:
            data = kind(self.root, **options)
            count = len(data)
        except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
            raise ImageSetError(f"{field}: torchvision cannot read {self.name} under {self.root} ({error})") from None
        targets = getattr(data, "targets", getattr(data, "labels", None))
        names = getattr(data, "classes", None)
        return ImageRows(
            name=f"torchvision {self.name} ({self.split})",
            rows=count,
            decode=lambda row: data[row][0],
            where=lambda row: f"row {row} of torchvision {self.name}",
            labels=None if targets is None else lambda rows: np.asarray(targets, dtype=np.int64)[rows],
            classes=tuple(names) if names else None,
        )
