"""Divergence of logits that are rescaled by their standard deviation, which takes the place of a temperature."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.errors import ConfigError
from kdray.training.losses.base import Loss, losses
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

ZERO = 1e-4
"""What a probability that reads 0 counts as, at most; see `without_zeros`."""
# A standard deviation below this counts as this. It keeps the gradient of equal logits finite, and an answer that is
# even up to float32 rounding (1e-7) stays even: dividing by its own deviation would make a sure answer of the rounding.
_FLAT = 1e-3


def rescale(logits: "Tensor") -> "Tensor":
    """Each row of logits over its own standard deviation (MIX-KD, section 4): float32 [B, K].

    The standard deviation has K - 1 in the denominator, as in the authors' code (github.com/hchoi71/MIX-KD). A row
    whose deviation is below 0.001 is divided by 0.001.

    Args:
        logits: float [B, K].
    """
    logits = logits.float()
    return logits / logits.var(dim=1, keepdim=True).clamp_min(_FLAT**2).sqrt()


def rescaled_divergence(logits: "Tensor", teacher_log_probs: "Tensor", zero: float = ZERO) -> "Tensor":
    """KL(softmax(t / std(t)) || softmax(s / std(s))) of teacher t and student s, over the batch (MIX-KD, eq. 3).

    The teacher's distribution comes first, as in eq. 2 and in the authors' code; eq. 3 is printed the other way round.
    Softmax and standard deviation ignore a shift, and the log-probabilities of a black box are its logits up to a
    shift, so they serve as well. The scale of both is ignored, too, so that of the student's logits stays open. Of two
    classes nothing remains but which one is larger, and the gradient is 0.

    Args:
        logits: of the student, float [B, K]; the softmax is taken in float32.
        teacher_log_probs: float [B, K], logits of the teacher or their log-softmax. -inf is a probability that was
            shown as 0; no row may be all -inf.
        zero: what such a probability counts as, or half of the smallest one that the row shows, if that is less.

    Returns:
        A scalar, in nats.
    """
    return rescaled_rows(rescale(logits), teacher_log_probs, zero).mean()


def rescaled_rows(student: "Tensor", teacher_log_probs: "Tensor", zero: float = ZERO) -> "Tensor":
    """The divergence of each row, float32 [B], of logits that were rescaled already; see `rescaled_divergence`."""
    teacher = rescale(without_zeros(teacher_log_probs, zero)).log_softmax(dim=1)
    return (teacher.exp() * (teacher - student.log_softmax(dim=1))).sum(dim=1)


def without_zeros(log_probs: "Tensor", zero: float = ZERO) -> "Tensor":
    """Log-probabilities float32 [B, K], with a finite number in place of -inf.

    A probability reads 0 because it was rounded, or because it was left out: it lies somewhere below the last place
    shown, and mostly far below. The default suits answers of two and of three decimals. Half of the last place of two
    decimals, 0.005, leaves the rescaled answers up to twice as far from those in full (`benchmarks/mixkd.py zeros`).
    Half of the smallest number in the row is taken where that is less, so no class overtakes one that is shown. What is
    shown stays as it is, however small.

    In a one-hot row the number has no effect on the rescaled logits: they are sqrt(K) for the label and 0 elsewhere, up
    to a shift. So a hard label is a fixed soft target, of ten classes 0.72 for the label and 0.03 for each other.

    Args:
        log_probs: float [B, K], up to a shift of each row.
        zero: see `rescaled_divergence`.
    """
    log_probs = log_probs.float().log_softmax(dim=1)
    hidden = log_probs == -math.inf
    smallest = log_probs.masked_fill(hidden, math.inf).amin(dim=1, keepdim=True)
    return torch.where(hidden, (smallest - math.log(2)).clamp_max(math.log(zero)), log_probs)


def log_answers(targets: "Tensor") -> "Tensor":
    """Answers, probabilities float [B, K], as the log-probabilities of `rescaled_divergence`: float32 [B, K]."""
    return targets.float().clamp_min(0).log()


def need_classes(classes: int) -> None:
    """Refuse two classes, of which rescaled logits tell nothing but the larger.

    Raises:
        ConfigError: there are fewer than three.
    """
    if classes < 3:
        raise ConfigError(
            f"rescaled logits need at least 3 classes, there are {classes}: two logits over their standard deviation "
            "are always sqrt(2) apart, so that nothing can be learned; use kind: kl, or divergence: kl in mix-kd"
        )


@losses.register
class Rescaled(Loss):
    """Divergence from the answers, the logits of both rescaled by their standard deviation (MIX-KD, eq. 3).

    It has no temperature, and a label alone works as an answer. The scale of the student's logits stays open, so the
    classes are ranked, but the probabilities of the student are no estimates.
    """

    kind: Literal["rescaled"] = "rescaled"
    zero: Annotated[float, Field(gt=0, lt=1)] = ZERO
    """What a probability that the teacher shows as 0 counts as. If half of the smallest number in the answer is less,
    that is taken. A hard label needs none: it is the same target for every value."""

    def __call__(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """See `rescaled_divergence`."""
        need_classes(logits.shape[1])
        return rescaled_divergence(logits, log_answers(targets), self.zero)
