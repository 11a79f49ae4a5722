"""What training or choosing would refuse of a student after the first answers were paid, refused before."""

import copy

from kdray.config.root import Config
from kdray.errors import ConfigError, ModelError
from kdray.models.checkpoint import ModelCard
from kdray.models.classifier import ImageClassifier, build_model
from kdray.models.features import head
from kdray.models.start import start_weights
from kdray.search.first_layer import split
from kdray.training.augment import check_augment
from kdray.training.recipe import StudentSection
from kdray.utils.devices import resolve_device
from kdray.utils.lazy import torch


def check_student_and_search(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Refuse what training or choosing would refuse after the first answers were paid."""
    student = check_student(config.student, image_shape)
    if config.select.features:
        try:
            head(student)
        except ModelError as error:
            raise ConfigError(f"select.strategy: {config.select.strategy} compares features, but {error}") from None
    if config.search.mixing == "first-layer" and split(student) is None:
        raise ConfigError(
            f"pool.mixing: the first layer of {config.student.model} cannot be taken apart from the rest; "
            "set it to auto or pixels"
        )


def check_student(section: StudentSection, image_shape: tuple[int, int, int]) -> ImageClassifier:
    """A student with fresh weights for two classes.

    Raises:
        ConfigError: a shift that does not fit the images, or a device that is not there.
        ModelError: an unknown network, images too small for it, or weights of `init` that do not fit it.
    """
    check_augment(section.augment, image_shape, "student.augment")
    if section.unpaid is not None and section.unpaid.model is not None:
        build_model(section.unpaid.model, image_shape, 2, seed=0)
    resolve_device(section.device, "student.device")
    student = build_model(section.model, image_shape, 2, seed=0)
    if section.batch_size == 1:
        _check_single(student, section, image_shape)
    if section.init is not None:
        start_weights(section.init, student.network, section.model)
    return student


def _check_single(student: ImageClassifier, section: StudentSection, image_shape: tuple[int, int, int]) -> None:
    try:
        copy.deepcopy(student).train()(torch.zeros(1, *image_shape))
    except ValueError as error:  # of batch normalisation
        raise ConfigError(
            f"student.batch_size: {section.model} cannot be trained on single images ({error}); raise it"
        ) from None


def read_start(section: StudentSection, card: ModelCard) -> bytes | None:
    """The weights that students start from, see `kdray.models.start`; None for fresh ones.

    Raises:
        ModelError: see `check_student`.
    """
    if section.init is None:
        return None
    fresh = build_model(card.model, card.image_shape, card.num_classes, seed=0)
    return start_weights(section.init, fresh.network, card.model)
