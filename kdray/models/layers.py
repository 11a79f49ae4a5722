"""Layers and checks that several networks of the zoo share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdray.errors import ModelError


class MaxPool2x2(nn.Module):
    """2x2 max pooling with stride 2; a last odd row or column is dropped.

    Without gradients, on CPU, it takes the maximum of the four strided views. The values are those of torch's kernel,
    in a tenth of its time on contiguous tensors: torch's kernel takes most of a LeNet's forward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, H, W] to [B, C, H // 2, W // 2]."""
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            h, w = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
            rows = torch.maximum(x[..., 0:h:2, :w], x[..., 1:h:2, :w])
            return torch.maximum(rows[..., 0::2], rows[..., 1::2])
        return F.max_pool2d(x, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights (He et al., 2016, section 3.3, option A).

    The shortcut takes every `stride`-th pixel, and its new channels are zero.

    Args:
        narrow: channels of the input.
        wide: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide),
        )  # fmt: skip
        self.stride, self.missing = stride, wide - narrow

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, narrow, H, W] to [B, wide, ceil(H / stride), ceil(W / stride)]."""
        shortcut = x[..., :: self.stride, :: self.stride]
        if self.missing:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return F.relu(self.body(x) + shortcut)


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch normalisation and ReLU, and a shortcut (Zagoruyko and Komodakis, 2016).

    Where the number of channels changes, the shortcut is a 1x1 convolution of what the first one takes.

    Args:
        narrow, wide, stride: see `ResidualBlock`.
    """

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(narrow), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(narrow, wide, 1, stride=stride, bias=False) if narrow != wide else None

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, narrow, H, W] to [B, wide, ceil(H / stride), ceil(W / stride)]."""
        active = self.before(x)
        output: Tensor = self.body(active) + (x if self.shortcut is None else self.shortcut(active))
        return output


def flat_features(features: nn.Module, shape: tuple[int, int, int]) -> int:
    """How many numbers `features` gives for one image of shape (C, H, W)."""
    training = features.training
    with torch.no_grad():
        size = features.eval()(torch.zeros(1, *shape)).numel()
    features.train(training)
    return int(size)


def need(shape: tuple[int, int, int], smallest: int, name: str) -> None:
    """Refuse images that are too small for a network.

    Raises:
        ModelError: the height or width of `shape` (C, H, W) is below `smallest` pixels.
    """
    if min(shape[1:]) < smallest:
        raise ModelError(
            f"{name} needs images of at least {smallest}x{smallest}, got {shape[1]}x{shape[2]}; resize them "
            "(images.size)"
        )
