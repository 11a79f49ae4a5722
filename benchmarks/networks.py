"""Networks of the benchmarks, by `benchmarks.networks:NAME` from the root of the repository."""

from torch import nn


def cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Three 3x3 convolutions with batch normalisation, 32-64-128 channels: 113,962 weights at 3x32x32, ten classes."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in (32, 64, 128):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.MaxPool2d(2),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * (shape[1] // 8) * (shape[2] // 8), classes))
