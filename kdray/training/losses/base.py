"""What a loss is, and the registry of losses."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from kdray.errors import ConfigError
from kdray.sections.base import Section
from kdray.sections.registry import Registry
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Loss(Section):
    """The training loss, between the student's logits and the answers."""

    # A subclass adds its own fields and `__call__`; it leaves `kind` alone, or narrows it to its name and registers.

    labels_mixes: ClassVar[bool] = False
    """Whether a mix of two images has a mix of hard labels as its target, not of answers. The loss is then called with
    `distil` by name, bool [B]: the rows whose targets are answers; None: all."""

    kind: str
    """Kind of loss, or a class of your own as module:class."""

    @abstractmethod
    def __call__(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """The mean loss of a batch.

        Args:
            logits: of the student, float [B, K].
            targets: probabilities, float32 [B, K]; rows sum to 1.

        Returns:
            A scalar with a gradient with respect to `logits`.
        """


losses = Registry(
    Loss,  # type: ignore[type-abstract]  # a registry holds what is derived from it
    field="loss",
    package="kdray.training.losses",
    default="cross-entropy",
)
"""The losses, by name."""

student_losses = losses.with_default("kl")
"""The losses of a student, which learns from answers; a teacher's recipe has true labels, for which cross entropy is
enough."""


def check_loss(loss: Loss, classes: int, field: str = "loss") -> None:
    """Try a loss on two images of `classes` classes, one with a hard label, before anything is trained or paid.

    Args:
        loss: of a config.
        classes: K.
        field: the config field, for messages.

    Raises:
        ConfigError: it fails, or does not give a finite scalar with a gradient.
    """
    logits = torch.zeros(2, classes, requires_grad=True)
    targets = torch.full((2, classes), 1.0 / classes)
    targets[1] = torch.eye(classes)[0]
    try:
        with torch.enable_grad():
            value = loss(logits, targets)
            if loss.labels_mixes:
                for distil in (None, torch.tensor([True, False])):
                    value = loss(logits, targets, distil=distil)  # type: ignore[call-arg]  # see `labels_mixes`
    except ConfigError as error:  # which says itself what to do
        raise ConfigError(f"{field}: {error}") from None
    except Exception as error:  # a user's loss may raise anything
        raise ConfigError(
            f"{field}: {loss.kind} failed on logits [2, {classes}] ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(value, torch.Tensor):
        raise ConfigError(f"{field}: {loss.kind} gave a {type(value).__name__}; it must give a scalar tensor")
    if value.ndim != 0 or not value.requires_grad:
        gradient = "with" if value.requires_grad else "without"
        raise ConfigError(
            f"{field}: {loss.kind} gave a tensor of shape {list(value.shape)} {gradient} a gradient; "
            "it must give a scalar with one: the mean over the batch"
        )
    if not value.isfinite():
        raise ConfigError(
            f"{field}: {loss.kind} gave {value.item()} for logits of 0 and targets of which one is a hard label; "
            "it must give a finite number"
        )
