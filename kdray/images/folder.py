"""Images as files in a folder."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSource, sources

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@sources.register
class FolderImages(ImageSource):
    """A folder of image files; subfolders, where there are any, are the classes."""

    path_fields: ClassVar[tuple[str, ...]] = ("path",)

    source: Literal["folder"] = "folder"
    path: str
    """The folder."""

    def open(self, field: str) -> ImageRows:
        """See `ImageSource.open`. Files and classes are in the order of their names.

        There are labels where every image lies in a subfolder.
        """
        from PIL import Image

        root = Path(self.path)
        if not root.is_dir():
            raise ImageSetError(f"{field}.path: no folder at {self.path}")
        files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        places = [file.relative_to(root).parts for file in files]
        classes = tuple(sorted({parts[0] for parts in places if len(parts) > 1}))
        labelled = bool(classes) and all(len(parts) > 1 for parts in places)
        index = {name: k for k, name in enumerate(classes)}

        def labels(rows: np.ndarray) -> np.ndarray:
            return np.array([index[places[row][0]] for row in rows], dtype=np.int64)

        return ImageRows(
            name=self.path,
            rows=len(files),
            decode=lambda row: Image.open(files[row]),
            where=lambda row: str(files[row]),
            labels=labels if labelled else None,
            classes=classes if labelled else None,
        )
