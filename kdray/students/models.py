"""The zoo: small classifiers by name, for students and local teachers, in their 28x28 and 32x32 forms.

Every network is wrapped in an `ImageClassifier`, which takes uint8 images: normalisation belongs to the model.
"""

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdray.errors import ModelError
from kdray.seeds import torch_seed


class ImageClassifier(nn.Module):
    """uint8 images [B, C, H, W] in, logits float [B, K] out.

    Args:
        network: takes normalised float [B, C, H, W].
        image_shape: (C, H, W) it was made for.
        mean, std: of each channel, in units of pixel / 255.
    """

    def __init__(
        self, network: nn.Module, image_shape: tuple[int, int, int], mean: list[float], std: list[float]
    ) -> None:
        super().__init__()
        self.network = network
        self.image_shape = tuple(image_shape)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.image_shape:
            raise ModelError(f"the model takes images of shape {self.image_shape}, got {tuple(images.shape[1:])}")
        return self.network(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels uint8 [B, C, H, W] as the network takes them: (pixel / 255 - mean) / std."""
        scale, offset = 1.0 / (255.0 * self.std), self.mean / self.std
        return torch.addcmul(-offset, images.to(self.mean.dtype), scale)


class MaxPool2x2(nn.Module):
    """2x2 max pooling, stride 2; a last odd row or column is dropped.

    Without gradients, on CPU, the maximum of the four strided views gives the same values as torch's kernel and
    takes a tenth of its time on contiguous tensors: torch's own is most of a LeNet's forward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            h, w = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
            rows = torch.maximum(x[..., 0:h:2, :w], x[..., 1:h:2, :w])
            return torch.maximum(rows[..., 0::2], rows[..., 1::2])
        return F.max_pool2d(x, 2)


def _flat_features(features: nn.Module, shape: tuple[int, int, int]) -> int:
    training = features.training
    with torch.no_grad():
        size = features.eval()(torch.zeros(1, *shape)).flatten(1).shape[1]
    features.train(training)
    return size


def _need(shape: tuple[int, int, int], smallest: int, name: str) -> None:
    if min(shape[1:]) < smallest:
        raise ModelError(
            f"{name} needs images of at least {smallest}x{smallest}, got {shape[1]}x{shape[2]}; set images.size"
        )


def lenet5(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling: 61,706 parameters at 28x28, ten classes."""
    _need(shape, 16, "lenet5")
    # ReLU after pooling is ReLU before it, to the bit, on a quarter of the values.
    features = nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, padding=2), MaxPool2x2(), nn.ReLU(),
        nn.Conv2d(6, 16, 5), MaxPool2x2(), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    flat = _flat_features(features, shape)
    return nn.Sequential(
        features, nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
    )


def small_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Three 3x3 convolutions with batch normalisation, 16-32-64 channels, and one linear layer."""
    _need(shape, 8, "small-cnn")
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), MaxPool2x2(), nn.ReLU()]
        channels = width
    features = nn.Sequential(*layers, nn.Flatten())
    return nn.Sequential(features, nn.Linear(_flat_features(features, shape), classes))


def alexnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """AlexNet with 3x3 kernels and stride 1 for small images; dropout as in the original."""
    _need(shape, 16, "alexnet")
    features = nn.Sequential(
        nn.Conv2d(shape[0], 64, 3, padding=1), nn.ReLU(), MaxPool2x2(),
        nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), MaxPool2x2(),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), MaxPool2x2(), nn.Flatten(),
    )  # fmt: skip
    flat = _flat_features(features, shape)
    return nn.Sequential(
        features,
        nn.Dropout(0.5), nn.Linear(flat, 1024), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, classes),
    )  # fmt: skip


def vgg16(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-16 with batch normalisation: torchvision's features and, as usual for CIFAR, one linear layer."""
    _need(shape, 32, "vgg16")
    from torchvision.models import vgg  # 160 MB of memory: only those who need it pay

    layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    for module in layers.modules():  # as torchvision initialises them, without its 120 million unused weights
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    features = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(features, nn.Linear(512, classes))


def _resnet(name: str) -> Callable[[tuple[int, int, int], int], nn.Module]:
    def make(shape: tuple[int, int, int], classes: int) -> nn.Module:
        import torchvision

        _need(shape, 16, name)
        network = torchvision.models.get_model(name, weights=None, num_classes=classes)
        network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)  # small images: no stride, no first pooling
        network.maxpool = nn.Identity()
        return network

    make.__doc__ = "torchvision's residual network with the 3x3 stem for small images."
    return make


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights: every other pixel, new channels empty (option A)."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide),
        )  # fmt: skip
        self.stride, self.missing = stride, wide - narrow

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[..., :: self.stride, :: self.stride]
        if self.missing:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return F.relu(self.body(x) + shortcut)


def resnet20(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The residual network for CIFAR-10 (He et al., 2016, section 4.2): 20 layers, 16-32-64 channels, 0.27 million
    parameters."""
    _need(shape, 8, "resnet20")
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for number in range(3):
            layers.append(_Block(channels, width, 2 if number == 0 and width > 16 else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def mobilenetv2(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's MobileNetV2 with the first two strides removed, as usual for 32x32 images."""
    import torchvision

    _need(shape, 16, "mobilenetv2")
    network = torchvision.models.mobilenet_v2(weights=None, num_classes=classes)
    network.features[0][0] = nn.Conv2d(shape[0], 32, 3, stride=1, padding=1, bias=False)
    network.features[2].conv[1][0].stride = (1, 1)
    return network


ZOO: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "lenet5": lenet5,
    "small-cnn": small_cnn,
    "alexnet": alexnet,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "mobilenetv2": mobilenetv2,
}

LIGHT = frozenset({"lenet5", "small-cnn"})
"""Networks whose training steps take about a millisecond."""


def build_model(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    seed: int,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> ImageClassifier:
    """A network of the zoo with fresh weights, the same for the same seed; the global random state is left alone.

    Args:
        name: a key of `ZOO`.
        image_shape: (C, H, W).
        seed: of the initial weights.
        mean, std: input normalisation, in units of pixel / 255; 0.5 and 0.25 where not given.

    Raises:
        ModelError: an unknown name, or images too small for the network.
    """
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ModelError(f"no model named {name!r}; {hint}There are: {', '.join(sorted(ZOO))}")
    channels = image_shape[0]
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, f"weights of {name}"))
        network = ZOO[name](tuple(image_shape), num_classes)
    return ImageClassifier(network, image_shape, mean or [0.5] * channels, std or [0.25] * channels)


def pixel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], in units of pixel / 255.

    Exact integer sums, so they do not depend on threads or batching. A constant channel gets standard deviation 1.
    """
    counts = torch.stack(
        [images[:, c].flatten().bincount(minlength=256) for c in range(images.shape[1])]
    ).double()  # [C, 256]
    values = torch.arange(256, dtype=torch.float64) / 255.0
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = share @ values
    std = ((share @ values.square()) - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), torch.where(std < 1e-6, 1.0, std).tolist()
