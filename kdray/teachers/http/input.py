"""What a server sees of an image, and how it is written into a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdray.teachers.input import PixelInput

if TYPE_CHECKING:
    from torch import Tensor

InputDatatype = Literal[
    "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16"
]


class HttpInput(PixelInput):
    """What the server sees of an image, and how it is written into a request."""

    name: str | None = None
    """v2: name of the input tensor; null asks the server."""
    layout: Literal["nchw", "nhwc", "nhw"] | None = None
    """Order of the axes; nhw leaves the channel of a grey image out. null: nchw for v2, nhwc else."""
    encoding: Literal["array", "png"] = "array"
    """json: nested lists of numbers, or a PNG file in base64."""
    datatype: InputDatatype | None = None
    """v2: datatype of the input tensor. INT8 sends pixel - 128. null takes what the server's metadata says where that
    leaves the pixels as they are, else UINT8 for uint8 pixels and FP32 for unit."""

    def array(self, images: Tensor, layout: str) -> np.ndarray:
        """Images that `view` gave, uint8 [B, C, H, W], as the server takes them: uint8, or float32 where `pixels` is
        unit.

        Args:
            layout: order of the axes where this section gives none.
        """
        array: np.ndarray = images.numpy()
        if self.pixels == "unit":
            array = array.astype(np.float32) / np.float32(255)
            if self.mean is not None:
                mean = np.asarray(self.mean, dtype=np.float32).reshape(1, -1, 1, 1)
                std = np.asarray(self.std, dtype=np.float32).reshape(1, -1, 1, 1)
                array = (array - mean) / std
        layout = self.layout or layout
        if layout == "nhwc":
            return array.transpose(0, 2, 3, 1)
        return array[:, 0] if layout == "nhw" else array

    def identity(self) -> dict[str, Any]:
        """What decides an answer besides the pixels that the ledger hashes; part of the teacher's identity. A field
        that came later is in it only where it is not at its default, so that earlier answers are still found."""
        own = {name: getattr(self, name) for name in ("name", "pixels", "layout", "encoding", "normalise")}
        return own | ({} if self.datatype is None else {"datatype": self.datatype})
