"""Image sets: real images in memory, and the sources they are read from."""

from kdray.images.base import ImageSet, read_images
from kdray.images.png import decode_png, encode_png

__all__ = ["ImageSet", "decode_png", "encode_png", "read_images"]
