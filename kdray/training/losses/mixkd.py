"""The objective of MIX-KD: hard labels and answers together, on batches of which some images may be mixed."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdray.training.losses.base import Loss, losses
from kdray.training.losses.cross_entropy import soft_cross_entropy
from kdray.training.losses.kl import kd_rows
from kdray.training.losses.rescaled import ZERO, log_answers, need_classes, rescale, rescaled_rows
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def hard_labels(targets: "Tensor") -> "Tensor":
    """The top class of each row of probabilities, one-hot: float [B, K] in and out. Ties go to the lower class."""
    return torch.zeros_like(targets).scatter(1, targets.argmax(dim=1, keepdim=True), 1.0)


def mixkd_objective(
    logits: "Tensor",
    targets: "Tensor",
    *,
    gamma: float,
    alpha: float,
    temperature: float,
    smoothing: float,
    rescaled: bool,
    distil: "Tensor | None" = None,
    zero: float = ZERO,
) -> "Tensor":
    """gamma * cross entropy + alpha * divergence from the answers, averaged over the batch (MIX-KD, eq. 4).

    The cross entropy is with the top class of each answer. If `rescaled`, both terms see the student's logits over
    their standard deviation, as eq. 4 has it.

    MIX-KD asks the teacher about every mixed image. A black box would have to be paid for that, so a mixed image that
    was not bought counts for the cross entropy alone: `distil` leaves it out of the divergence, and its row of
    `targets` is the mix of labels that the cross entropy takes as it is. Both terms are divided by B, so the share of
    such rows lowers the weight of the divergence.

    Args:
        logits: of the student, float [B, K].
        targets: probabilities, float32 [B, K]: answers, and mixed labels where `distil` is False.
        gamma, alpha: weights, 0 or above.
        temperature: T of `kd_divergence`; without effect if `rescaled`.
        smoothing: of the labels, see `soft_cross_entropy`.
        rescaled: the divergence is `rescaled_divergence`, else `kd_divergence`.
        distil: bool [B], the rows with an answer; None: all.
        zero: see `rescaled_divergence`.

    Returns:
        A scalar, in nats.
    """
    labels, student = hard_labels(targets), rescale(logits) if rescaled else logits
    if rescaled:
        divergence = rescaled_rows(student, log_answers(targets), zero)
    else:
        divergence = temperature**2 * kd_rows(logits, targets, temperature)
    if distil is not None:
        labels = torch.where(distil[:, None], labels, targets)
        divergence = divergence.where(distil, 0.0)
    return gamma * soft_cross_entropy(student, labels, smoothing) + alpha * divergence.mean()


@losses.register
class MixKD(Loss):
    """Cross entropy with each answer's top class, plus a divergence from the answers (MIX-KD, eq. 4)."""

    labels_mixes: ClassVar[bool] = True

    kind: Literal["mix-kd"] = "mix-kd"
    gamma: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the cross entropy."""
    alpha: Annotated[float, Field(ge=0)] = 0.9
    """Weight of the divergence."""
    divergence: Literal["rescaled", "kl"] = "rescaled"
    """rescaled: see `kind: rescaled`; then the cross entropy sees rescaled logits as well. kl: see `kind: kl`."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Of kl: answers and student are softened by it. Rescaled logits need none."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each hard label that is spread evenly over all classes (label smoothing)."""
    zero: Annotated[float, Field(gt=0, lt=1)] = ZERO
    """Of rescaled: what a probability that the teacher shows as 0 counts as; see `kind: rescaled`."""

    @model_validator(mode="after")
    def _fields_have_an_effect(self) -> Self:
        if self.gamma == 0 and self.alpha == 0:
            raise ValueError("gamma and alpha are both 0, so that nothing would be learned; raise one of them")
        default = type(self).model_fields["temperature"].default
        if self.divergence == "rescaled" and self.temperature != default:
            raise ValueError(
                f"temperature is {self.temperature:g}, but rescaled logits have none; leave it out, or set "
                "divergence: kl"
            )
        return self

    def __call__(self, logits: "Tensor", targets: "Tensor", *, distil: "Tensor | None" = None) -> "Tensor":
        """See `mixkd_objective`."""
        if self.divergence == "rescaled":
            need_classes(logits.shape[1])
        return mixkd_objective(
            logits,
            targets,
            gamma=self.gamma,
            alpha=self.alpha,
            temperature=self.temperature,
            smoothing=self.smoothing,
            rescaled=self.divergence == "rescaled",
            distil=distil,
            zero=self.zero,
        )
