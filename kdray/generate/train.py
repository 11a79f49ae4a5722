"""IDEAL's inner loop: a generator learns to make images that the student is sure of (section 3.3, Algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdray.generate.losses import generator_loss
from kdray.utils.adam import adam_step, nothing_yet
from kdray.utils.seeds import global_numbers

_BRIGHTEST = 255.0  # students take pixels as they are stored


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """How a generator is trained.

    Attributes:
        steps: E_G.
        batch: images a step.
        lr: learning rate of Adam.
        weight: λ; None leaves the information loss out.
        cross_entropy: whether the loss has the cross-entropy.
    """

    steps: int = 5
    batch: int = 250
    lr: float = 1e-3
    weight: float | None = 5.0
    cross_entropy: bool = True


def codes_of(noise: Tensor, labels: Tensor, classes: int, conditional: bool) -> Tensor:
    """What a generator takes: the noise float [B, Z], and where `conditional` behind it the label one-hot, scaled so
    that it is about as long as the noise: float [B, Z + K]. Else the noise alone."""
    if not conditional:
        return noise
    one_hot = nn.functional.one_hot(labels, classes).to(noise.dtype)
    return torch.cat([noise, one_hot * noise.shape[1] ** 0.5], dim=1)


def balanced_labels(count: int, classes: int) -> Tensor:
    """Labels int64 [count], equally many of each class; where they do not divide evenly the first have one more."""
    return torch.arange(count) % classes


def train_generator(
    generator: nn.Module,
    student: nn.Module,
    recipe: GeneratorRecipe,
    *,
    classes: int,
    noise: int,
    conditional: bool,
    random: torch.Generator,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[float]:
    """Train a generator against a student, which does not change. It ends in eval mode.

    Args:
        generator: codes float [B, D] to images float [B, C, H, W] in [0, 1].
        student: in eval mode, on the device of the generator, without gradients of its own: pixels float [B, C, H, W]
            of 0...255 to logits float [B, K].
        classes: K.
        noise: Z, normal numbers of a code.
        conditional: see `codes_of`.
        random: draws the noise, on the CPU.
        on_progress: called with (steps done, steps in all).

    Returns:
        The loss at each step, before it, and last the loss of another batch after them: `steps` + 1 numbers.
    """
    device = next(generator.parameters()).device
    labels = balanced_labels(recipe.batch, classes).to(device)
    parameters: list[Tensor] = [p for p in generator.parameters() if p.requires_grad]
    kept = nothing_yet(parameters)
    losses: list[Tensor] = []

    def images() -> Tensor:
        drawn = torch.randn(recipe.batch, noise, generator=random).to(device)
        made: Tensor = generator(codes_of(drawn, labels, classes, conditional))
        return made

    def loss() -> Tensor:
        logits = student(images() * _BRIGHTEST)
        return generator_loss(logits, labels, recipe.weight, recipe.cross_entropy)

    generator.train()
    with global_numbers(random.initial_seed(), device):  # of dropout
        for step in range(recipe.steps):
            now = loss()
            gradients = torch.autograd.grad(now, parameters, materialize_grads=True)
            adam_step(parameters, list(gradients), *kept, rate=recipe.lr)
            losses.append(now.detach())
            on_progress(step + 1, recipe.steps)
        with torch.no_grad():
            _settle(generator, images)
            losses.append(loss())
    return torch.stack(losses).tolist()


def _settle(generator: nn.Module, images: Callable[[], Tensor]) -> None:
    """Take the statistics of batch normalisation from one batch of the trained generator, and end in eval mode: moving
    averages over a handful of steps would still be those of fresh weights."""
    layers = [layer for layer in generator.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over all batches, of which there is one
    if layers:
        images()
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
    generator.eval()
