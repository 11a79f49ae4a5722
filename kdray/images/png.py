"""Images as PNG bytes and back, without loss."""

import io

import numpy as np


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 image [C, H, W] with one or three channels as the bytes of a PNG file."""
    from PIL import Image

    picture = Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """The image in bytes from `encode_png`: uint8 [C, H, W], equal to what was encoded."""
    from PIL import Image

    array = np.asarray(Image.open(io.BytesIO(data)), dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
