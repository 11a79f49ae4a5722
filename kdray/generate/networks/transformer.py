"""A generator of a transformer encoder: a code becomes a row of tokens, and each token a patch of the image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdray.generate.networks.contrast import to_pixels

_SMALLEST_PATCH = 4  # pixels a side
_MOST_PATCHES = 8  # along the longer side, so that the cost does not grow with the image


class Transformer(nn.Module):
    """Generates images patch by patch with self-attention.

    Args:
        code: length of the codes.
        image_shape: (C, H, W).
        width: numbers of a token.
        depth: layers.
    """

    def __init__(self, code: int, image_shape: tuple[int, int, int], width: int = 192, depth: int = 4) -> None:
        super().__init__()
        self._shape = image_shape
        channels, height, wide = image_shape
        self._patch = max(_SMALLEST_PATCH, -(-max(height, wide) // _MOST_PATCHES))
        self._rows, self._columns = -(-height // self._patch), -(-wide // self._patch)
        self._tokens = (self._rows * self._columns, width)
        self.spread = nn.Linear(code, self._tokens[0] * width)
        self.place = nn.Parameter(torch.randn(1, *self._tokens) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.show = nn.Linear(width, channels * self._patch**2)
        self.pixels = to_pixels(channels)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes float [B, D] to images float [B, C, H, W] in [0, 1]."""
        tokens = self.spread(codes).view(-1, *self._tokens) + self.place
        patches = self.show(self.norm(self.body(tokens))).transpose(1, 2)  # [B, C * P * P, T]
        size = (self._rows * self._patch, self._columns * self._patch)
        images: Tensor = self.pixels(F.fold(patches, size, self._patch, stride=self._patch))
        return images[:, :, : self._shape[1], : self._shape[2]]
