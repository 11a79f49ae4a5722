"""Images as files in a folder."""

import os
import stat
from collections import Counter
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSource, in_order, sources
from kdray.images.splits import split_folders
from kdray.utils.files import shown

_NO_IMAGES = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"}
"""Formats that Pillow knows by name, and opens only with the help of other programs."""
_LEFTOVERS = {"__MACOSX", "@eaDir", "lost+found"}
"""Folders that programs and file systems leave among a user's own, besides those whose name begins with a dot."""


@sources.register
class FolderImages(ImageSource):
    """A folder of image files; subfolders, where there are any, are the classes."""

    path_fields: ClassVar[tuple[str, ...]] = ("path",)

    source: Literal["folder"] = "folder"
    path: str
    """The folder."""

    def open(self, field: str) -> ImageRows:
        """See `ImageSource.open`. Files and classes are in the order of their names, numbers in that of numbers.

        There are labels where every image lies in a subfolder. A subfolder without images is a class too.
        """
        from PIL import Image

        root = Path(self.path)
        if not root.is_dir():
            raise ImageSetError(f"{field}.path: no folder at {shown(self.path)}")
        found = _Walk(root=root, field=field)
        found.enter(root, [])
        classes = in_order(found.folders)
        _check_splits(classes, found, field)
        index = {name: k for k, name in enumerate(classes)}
        files = sorted(found.files, key=lambda parts: (index.get(parts[0], -1) if len(parts) > 1 else -1, parts))
        labelled = bool(classes) and all(len(parts) > 1 for parts in files)

        def labels(rows: np.ndarray) -> np.ndarray:
            return np.array([index[files[row][0]] for row in rows], dtype=np.int64)

        note = found.left_out(shown(self.path))
        if not files:
            raise ImageSetError(f"{field}: {shown(self.path)} holds no images" + (f"; {note}" if note else ""))
        return ImageRows(
            name=shown(self.path),
            rows=len(files),
            decode=lambda row: Image.open(root.joinpath(*files[row])),
            where=lambda row: shown(root.joinpath(*files[row])),
            labels=labels if labelled else None,
            no_labels="give each class a folder of its own, and each image to one of them",
            classes=tuple(shown(name) for name in classes) if labelled else None,
            notes=(note,) if note else (),
            listing=lambda: (f"{'/'.join(parts)} {found.files[parts]}" for parts in files),
        )


@dataclass(kw_only=True)
class _Walk:
    """What lies in a folder.

    Attributes:
        root: the folder.
        field: the config field, for messages.
        files: sizes in bytes of the image files, by their parts below the root.
        folders: names of the folders in the root.
        others: what was left out, counted by suffix.
    """

    root: Path
    field: str
    files: dict[tuple[str, ...], int] = dataclass_field(default_factory=dict)
    folders: list[str] = dataclass_field(default_factory=list)
    others: Counter[str] = dataclass_field(default_factory=Counter)

    def enter(self, folder: Path, above: list[tuple[int, int, Path]]) -> None:
        """List a folder and those in it, links followed.

        Args:
            above: device, inode and path of the folders on the way to it.

        Raises:
            ImageSetError: a link to a folder that it lies in, a link to nothing, or a folder that cannot be read.
        """
        try:
            state = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ImageSetError(f"{self.field}: {shown(folder)} cannot be read ({error.strerror})") from None
        for device, inode, path in above:
            if (device, inode) == (state.st_dev, state.st_ino):
                raise ImageSetError(
                    f"{self.field}: {shown(folder)} is a link to {shown(path)}, a folder that it lies in; "
                    "remove the link"
                )
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name in _LEFTOVERS:
                self.others["hidden"] += 1
                continue
            its = self._state(entry)
            if stat.S_ISDIR(its.st_mode):
                if folder == self.root:
                    self.folders.append(entry.name)
                self.enter(path, [*above, (state.st_dev, state.st_ino, folder)])
            elif path.suffix.lower() in _suffixes():
                self.files[path.relative_to(self.root).parts] = its.st_size
            else:
                self.others[path.suffix.lower() or "no suffix"] += 1

    def _state(self, entry: "os.DirEntry[str]") -> os.stat_result:
        """Of the file or folder, links followed."""
        try:
            return os.stat(entry.path)
        except OSError as error:
            what = "is a link to a file that is not there" if entry.is_symlink() else "cannot be read"
            raise ImageSetError(f"{self.field}: {shown(entry.path)} {what} ({error.strerror})") from None

    def left_out(self, name: str) -> str:
        """What was left out of the folder `name`, in words; empty where nothing was."""
        count = self.others.total()
        if count == 0:
            return ""
        kinds = sorted(self.others.items(), key=lambda kind: (-kind[1], kind[0]))
        listed = ", ".join(f"{shown(kind)} {number:,}" for kind, number in kinds[:6])
        more = f", others {sum(number for _, number in kinds[6:]):,}" if kinds[6:] else ""
        what = "file of {} is no image and was" if count == 1 else "files of {} are no images and were"
        return f"{count:,} {what.format(name)} left out ({listed}{more})"


@lru_cache(maxsize=1)
def _suffixes() -> frozenset[str]:
    """Suffixes of the formats that the installed Pillow opens."""
    from PIL import Image

    known = Image.registered_extensions()  # loads Pillow's plugins
    return frozenset(suffix for suffix, form in known.items() if form in Image.OPEN and form not in _NO_IMAGES)


def _check_splits(classes: list[str], found: _Walk, field: str) -> None:
    """Refuse a folder whose subfolders are not classes but training or test images.

    Raises:
        ImageSetError: it is one.
    """
    parts = split_folders(classes)
    if parts:
        place, listed = shown(found.root / parts[0]), ", ".join(repr(shown(part)) for part in parts)
        held, advice = (
            (f"the folder {listed}, a set of its own and no class", f"name {place}, or rename it if it is a class")
            if len(parts) == 1
            else (
                f"the folders {listed}, sets of their own and no classes",
                f"name one of them, for example {place}, or rename those that are classes",
            )
        )
        raise ImageSetError(f"{field}.path: {shown(found.root)} holds {held}; {advice}")
