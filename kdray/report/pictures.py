"""Images of a page, inside it, each of a few kilobytes at most."""

import base64
import io

import numpy as np

from kdray.images.png import encode_png

_LOSSLESS = 4_000  # bytes up to which an image is shown pixel by pixel
_SIDE = 96  # pixels of the longer side of any other


def picture(image: np.ndarray) -> str:
    """The address of an image that holds the image itself.

    Args:
        image: uint8 [C, H, W]. A small one is kept as it is; a larger one is reduced, and loses detail. Of channels
            that are neither grey nor RGB the first is shown.
    """
    from PIL import Image

    if image.shape[0] not in (1, 3):
        image = image[:1]
    data, kind = b"", "png"
    if image.shape[1] * image.shape[2] <= _SIDE * _SIDE:
        data = encode_png(image)
    if not 0 < len(data) <= _LOSSLESS:
        shown = Image.fromarray(image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        shown.thumbnail((_SIDE, _SIDE))
        buffer, kind = io.BytesIO(), "jpeg"
        shown.save(buffer, "JPEG", quality=85)
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
