"""Pairs of images just before and just after a network's decision boundary.

The attack of "What Makes a Good Dataset for Knowledge Distillation?" (section 4.1 and Figure 3): an image is moved
towards a target class until the network takes it for that class. The last image before and the first one after are a
pair, both must lie close to the boundary, and one more step takes a copy of each deeper into its own class. What the
paper leaves open is decided here:

- A step goes along the gradient, divided by its root mean square. Steps along the gradient's sign change all pixels
  alike: rounded to whole levels, they come no closer to a boundary than one level of every pixel.
- A pair that is too far from the boundary is brought closer by halving the segment between its two images.
- Classes, probabilities and losses are those of rounded images, which are what a teacher is asked about.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from kdray.models.predict import images_at_a_time
from kdray.models.robustness import surplus
from kdray.sections.boundary import BoundarySettings

_BATCH = 64
_LONGEST = 255.0  # step: from black to white
_HALVINGS = 8  # of the segment that crosses: far below what rounding to whole levels leaves of it


@dataclass(frozen=True, kw_only=True)
class BoundaryPairs:
    """Pairs on both sides of a boundary.

    Attributes:
        rows: int64 [M], ascending: the images that gave a pair.
        images: uint8 [M, S, C, H, W], of the S sides that `BoundarySettings.sides` names.
        classes: int64 [M, 2], what the network takes the first two for; never the target, and the target.
    """

    rows: Tensor
    images: Tensor
    classes: Tensor


def boundary_pairs(
    model: nn.Module, images: Tensor, targets: Tensor, settings: BoundarySettings, *, batch_size: int = _BATCH
) -> BoundaryPairs:
    """Move images towards target classes, and return those on both sides of each boundary that was crossed.

    An image gives no pair if the network takes it for its target already, if it does not cross within
    `settings.steps`, or if no pair on its way lies within `settings.threshold`. The pair of an image follows from that
    image alone: batches are filled up to one size, as a kernel may sum in another order for another size.

    Args:
        model: pixel values [B, C, H, W] to logits [B, K], K at least 2; it must take floats, as `ImageClassifier` does.
            Its modes and its parameters' gradients stay as they are.
        images: uint8 [N, C, H, W], on any device.
        targets: classes int64 [N], on any device.
        settings: see there.
        batch_size: images in a pass; large ones go fewer at a time.

    Returns:
        Tensors on the CPU.

    Raises:
        ValueError: there is not one target for each image.
    """
    if len(targets) != len(images):
        raise ValueError(f"{len(targets)} targets of {len(images)} images; each image needs one")
    device = next(iter(model.parameters())).device
    size = images_at_a_time(batch_size, images.shape[1:], device)
    rows, sides, classes = [], [], []
    with _in_eval_mode(model):
        for start in range(0, len(images), size):
            some, wanted = images[start : start + size].to(device), targets[start : start + size].to(device)
            filled = torch.arange(size, device=device).clamp_max(len(some) - 1)
            close, pixels, labels = _pairs(model, some[filled].float(), wanted[filled], settings)
            found = close[: len(some)].nonzero().flatten()
            rows.append(start + found.cpu())
            sides.append(pixels[found].round().to(torch.uint8).cpu())
            classes.append(labels[found].cpu())
    none = torch.empty(0, dtype=torch.int64)
    return BoundaryPairs(
        rows=torch.cat([none, *rows]),
        images=torch.cat([images.new_empty((0, len(settings.sides), *images.shape[1:]), device="cpu"), *sides]),
        classes=torch.cat([none.view(0, 2), *classes]),
    )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A batch of images on their way, and what the network makes of them once they are rounded.

    Attributes:
        pixels: float32 [B, C, H, W] in [0, 255], before they are rounded.
        labels: int64 [B], the classes of highest probability.
        certainty: float32 [B], these probabilities.
        loss: float32 [B], of the targets, see `kdray.models.robustness.surplus`.
        direction: float32 [B, C, H, W], in which the loss falls, of root mean square 1; 0 where it has no slope.
    """

    pixels: Tensor
    labels: Tensor
    certainty: Tensor
    loss: Tensor
    direction: Tensor

    def moved(self, length: Tensor) -> Tensor:
        """The images, float32 [B, C, H, W], after a step of so many levels, float32 [B]."""
        return (self.pixels + length.view(-1, 1, 1, 1) * self.direction).clamp(0.0, 255.0)

    def replaced(self, mask: Tensor, by: "_Place") -> "_Place":
        """The same, with what `by` has where `mask` bool [B] is set."""

        def either(name: str) -> Tensor:
            mine, its = getattr(self, name), getattr(by, name)
            return torch.where(mask.view(-1, *[1] * (mine.ndim - 1)), its, mine)

        return _Place(**{field.name: either(field.name) for field in fields(self)})


def _look(model: nn.Module, pixels: Tensor, targets: Tensor) -> _Place:
    """Show the network images float32 [B, C, H, W], rounded."""
    with torch.inference_mode(False), torch.enable_grad():
        seen = pixels.round().requires_grad_()
        logits = model(seen).float()
        loss = surplus(logits, targets)
        (slope,) = torch.autograd.grad(loss.sum(), seen)
    scale = slope.flatten(1).square().mean(dim=1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    certainty, labels = logits.detach().softmax(dim=1).max(dim=1)
    return _Place(
        pixels=pixels,
        labels=labels,
        certainty=certainty,
        loss=loss.detach(),
        direction=-slope / scale.view(-1, 1, 1, 1),
    )


def _pairs(
    model: nn.Module, images: Tensor, targets: Tensor, settings: BoundarySettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk images float32 [B, C, H, W] to their targets.

    Returns:
        Which gave a close pair, bool [B]; the images of the pairs, float32 [B, S, C, H, W]; the classes of the first
        two, int64 [B, 2].
    """
    here = after = _look(model, images, targets)
    length = torch.full_like(here.loss, settings.step)
    crossed, walking = torch.zeros_like(targets, dtype=torch.bool), here.labels != targets
    for _ in range(settings.steps):
        if not bool(walking.any()):
            break
        there = _look(model, here.moved(length), targets)
        crossing = walking & (there.labels == targets)
        after, crossed, walking = after.replaced(crossing, there), crossed | crossing, walking & ~crossing
        kept = walking & (there.loss <= here.loss)
        here = here.replaced(kept, there)
        changed = (length * torch.where(kept, settings.grow, settings.shrink)).clamp_max(_LONGEST)
        length = torch.where(walking, changed, length)
    for _ in range(_HALVINGS):
        far = crossed & (torch.maximum(here.certainty, after.certainty) > settings.threshold)
        if not bool(far.any()):
            break
        middle = _look(model, (here.pixels + after.pixels) / 2, targets)
        beyond = middle.labels == targets
        here, after = here.replaced(far & ~beyond, middle), after.replaced(far & beyond, middle)
    close = crossed & (torch.maximum(here.certainty, after.certainty) <= settings.threshold)
    sides = [here.pixels, after.pixels]
    if settings.deeper:
        sides += [_look(model, here.pixels, here.labels).moved(length), after.moved(length)]
    return close, torch.stack(sides, dim=1), torch.stack([here.labels, targets], dim=1)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, and each of its modules back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
