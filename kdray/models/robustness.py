"""How a classifier stands up to small changes of its input that are made to mislead it (MIX-KD, section 5.2).

A perturbation has a size of up to ε in each pixel, in units of pixel / 255. The paper's ε, 0.001 to 0.01, are a quarter
to two and a half of the 255 steps of a pixel, so perturbed images are floats, which only a white-box attack can have.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdray.models.predict import accuracy, images_at_a_time, predict

_KEPT = 4  # times as much memory as a forward pass takes one with gradients, roughly
EPSILONS = (0.001, 0.003, 0.005, 0.01)
"""The ε of MIX-KD's Table 3."""

Attack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""Model, images, labels and ε to perturbed images, as `fgsm`."""


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The fast gradient sign method: x + eps sign(dL / dx), cut to [0, 1] (Goodfellow et al., 2015, section 4).

    Args:
        model: pixel values [B, C, H, W] to logits [B, K]; it must take floats, as `ImageClassifier` does. It is left in
            eval mode.
        images: uint8 [B, C, H, W], on the model's device.
        labels: the classes to lead away from, int64 [B].
        eps: largest change of a pixel, in units of pixel / 255.

    Returns:
        float32 [B, C, H, W] in [0, 1], in units of pixel / 255. The model takes 255 times that.

    Raises:
        ValueError: `eps` is negative, or there is not one label for each image.
    """
    return ifgsm(model, images, labels, eps, steps=1)


def ifgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int = 10) -> Tensor:
    """The iterative method: `steps` times a step of eps / steps along the sign of the gradient (Kurakin et al., 2017).

    No step leaves [0, 1] or changes a pixel by more than eps in all. Arguments, result and errors are those of `fgsm`;
    MIX-KD takes ten steps.

    Raises:
        ValueError: see `fgsm`; or `steps` is below 1.
    """
    if eps < 0:
        raise ValueError(f"eps is {eps:g}; it must not be negative")
    if steps < 1:
        raise ValueError(f"steps is {steps}; an attack takes at least one")
    if len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels of {len(images)} images; each image needs one")
    model.eval()
    start = images.float() / 255.0
    low, high = (start - eps).clamp_min(0.0), (start + eps).clamp_max(1.0)
    moved = start
    for _ in range(steps):
        moved = (moved + eps / steps * _ascent(model, moved, labels)).clamp(low, high)
    return moved


def surplus(logits: Tensor, labels: Tensor) -> Tensor:
    """z = logsumexp of the other logits - logit of the label: of logits float [B, K] and labels int64 [B], float [B].

    Cross entropy is log(1 + exp(z)) and grows with z, so both have gradients of one direction. But that of cross
    entropy vanishes in float32 where a network is very sure, and such a network would count as robust. Students of
    rescaled logits are of that kind: nothing limits their scale.
    """
    label = labels[:, None].clone()
    others = logits.scatter(1, label, -torch.inf).logsumexp(dim=1)
    return others - logits.gather(1, label)[:, 0]


def _ascent(model: nn.Module, moved: Tensor, labels: Tensor) -> Tensor:
    """Sign of the gradient of each image's cross entropy with respect to its pixels."""
    with torch.inference_mode(False), torch.enable_grad():
        moved = moved.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(surplus(model(255.0 * moved).float(), labels).sum(), moved)
    return gradient.sign()


def robust_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float] = EPSILONS,
    attack: Attack = fgsm,
    *,
    batch_size: int | None = None,
) -> dict[float, float]:
    """Accuracy on images that are perturbed against the model itself, by ε; ε = 0 gives the usual accuracy.

    Args:
        model: see `fgsm`; attacked where its parameters are.
        images: uint8 [N, C, H, W], on any device.
        labels: the true classes, int64 [N].
        epsilons: in units of pixel / 255.
        attack: `fgsm`, `ifgsm`, or another of that form.
        batch_size: images a pass. None: 256, or fewer large ones: a pass with gradients keeps all that it computes.

    Raises:
        ValueError: see `fgsm`.
    """
    device = next(iter(model.parameters())).device
    if batch_size is None:
        batch_size = max(1, images_at_a_time(_KEPT * 256, images.shape[1:], device) // _KEPT)
    found = {}
    for eps in epsilons:
        predictions = []
        for some, classes in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            perturbed = attack(model, some.to(device), classes.to(device), eps)
            predictions.append(predict(model, 255.0 * perturbed, batch_size=batch_size, device=str(device)).argmax(1))
        found[eps] = accuracy(torch.cat(predictions), labels)
    return found
