"""The images that come with scikit-learn."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from kdray.images.base import ImageRows, ImageSource, sources


@sources.register
class DigitsImages(ImageSource):
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8, in a fixed random order."""

    source: Literal["digits"] = "digits"

    def open(self, field: str) -> ImageRows:
        """See `ImageSource.open`."""
        from PIL import Image

        pixels, labels = _load()
        return ImageRows(
            name="digits",
            rows=len(pixels),
            decode=lambda row: Image.fromarray(pixels[row]),
            where=lambda row: f"row {row} of digits",
            labels=lambda rows: labels[rows],
            classes=tuple(str(k) for k in range(10)),
        )


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [1797, 8, 8] and labels int64 [1797]."""
    rows = _rows()
    # The file is sorted by writer; a fixed shuffle makes every range of rows a fair sample.
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    pixels = (rows[:, :-1].reshape(-1, 8, 8) * (255.0 / 16.0)).round().astype(np.uint8)
    return pixels, rows[:, -1].astype(np.int64)


def _rows() -> np.ndarray:
    """Float64 [1797, 65]: 64 values from 0 to 16, and the label."""
    found = find_spec("sklearn")  # its import alone takes longer than many a run on the digits
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))
