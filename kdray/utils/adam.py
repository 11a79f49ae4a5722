"""Adam by torch's own function: making a torch.optim.Adam imports torch's compiler, which takes seconds and 155 MB."""

import torch
from torch import Tensor
from torch.optim.adam import adam

_BETA2, _EPS = 0.999, 1e-8  # torch's defaults


@torch.no_grad()
def adam_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    squares: list[Tensor],
    counts: list[Tensor],
    *,
    rate: float | Tensor,
    beta1: float = 0.9,
    decay: float = 0.0,
) -> None:
    """One step of AdamW ("Decoupled Weight Decay Regularization", Loshchilov and Hutter, 2019), without decay of Adam.

    Args:
        parameters: changed in place.
        gradients, momenta, squares: of the shapes of the parameters. The averages of the gradients and of their squares
            begin with zeros, and change in place.
        counts: float [] on the CPU each, the steps so far; they change in place.
        rate: the learning rate.
        decay: of the weights.
    """
    adam(
        parameters,
        gradients,
        momenta,
        squares,
        [],
        counts,
        foreach=True,
        amsgrad=False,
        beta1=beta1,
        beta2=_BETA2,
        lr=rate,
        weight_decay=decay,
        eps=_EPS,
        maximize=False,
        decoupled_weight_decay=True,
    )


def nothing_yet(parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Momenta, squares and counts before the first step."""
    momenta, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    return momenta, squares, [torch.zeros((), device="cpu") for _ in parameters]
