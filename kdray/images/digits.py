"""The images that come with scikit-learn."""

from functools import lru_cache
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
    from sklearn.datasets import load_digits

    data = load_digits()
    # The file is sorted by writer; a fixed shuffle makes every range of rows a fair sample.
    order = np.random.default_rng(0).permutation(len(data.target))
    pixels = (data.images[order] * (255.0 / 16.0)).round().astype(np.uint8)
    return pixels, data.target[order].astype(np.int64)
