"""A config's teacher without a run: trained by its recipe, or built to be served."""

import os
from pathlib import Path

from kdray.config.root import Config
from kdray.errors import TeacherError
from kdray.images import read_images
from kdray.images.labels import with_teachers_labels
from kdray.models.checkpoint import read_card
from kdray.observers import Observer
from kdray.runs.inputs import read_labelled, read_test, resolve
from kdray.teachers.base import Teacher
from kdray.teachers.local import LocalTeacherConfig
from kdray.teachers.recipe import measure_teacher, train_teacher
from kdray.utils.seeds import numpy_generator

Served = tuple[Teacher, tuple[int, int, int], tuple[str, ...] | None]
"""A teacher, the shape (C, H, W) of its images, and its class names where they are known."""


def train_by_recipe(config: Config, *, force: bool, observer: Observer) -> tuple[str, float | None]:
    """Train the local teacher of a config and write its weights.

    Args:
        force: train again where the weights exist.

    Returns:
        The path of the weights, and the accuracy on the config's test set where that has labels.

    Raises:
        TeacherError: the teacher is not local or has no recipe, or its weights exist.
    """
    config = resolve(config)
    teacher, recipe = config.teacher, config.teacher.recipe
    if not isinstance(teacher, LocalTeacherConfig):
        raise TeacherError(f"teacher.kind is {teacher.kind!r}: only a local teacher can be trained here")
    if Path(teacher.weights).exists() and not force:
        raise TeacherError(f"teacher.weights: {teacher.weights} is there already; give --force to train it again")
    test = read_test(config)
    measured = test is not None and test.labels is not None
    own = recipe is not None and recipe.images is not None
    labelled = None if own else read_labelled(config, "labelled")
    if test is not None and measured:  # found out before the training, which may take hours
        count, names = teacher.classes_by_recipe(labelled)
        with_teachers_labels(test, names, count, field="test")

    def tell(done: int, of: int, loss: float) -> None:
        if done == 1:  # and not before: the recipe may be refused
            observer.phase(0, "train")
        observer.progress(done, of)

    train_teacher(teacher, tell, labelled=labelled, on_note=observer.note)
    return teacher.weights, measure_teacher(teacher, test, observer.note) if test is not None and measured else None


def count_field(config: Config) -> str | None:
    """The field that says how many images a teacher's recipe takes; None for a teacher without a recipe."""
    if config.teacher.recipe is None:
        return None
    return "labelled.count" if config.teacher.recipe.images is None else "teacher.train.images.count"


def teacher_of_weights(path: Path) -> Served:
    """The teacher in a model file that kdray wrote.

    Raises:
        TeacherError: there is no such file, or another program wrote it.
    """
    card = read_card(path) if path.is_file() else None
    if card is None:
        raise TeacherError(f"--model: {path} holds no weights that kdray wrote; for other models give a CONFIG")
    teacher = LocalTeacherConfig(model=card.model, weights=str(path)).build(card.image_shape)
    return teacher, card.image_shape, card.classes


def teacher_of_config(config: Config) -> Served:
    """The teacher of a config, for images of the shape of its `images` as `teacher.input` converts them.

    Raises:
        TeacherError: the teacher is a server already.
    """
    config = resolve(config)
    section = config.teacher
    if not section.servable:
        kind = f"teacher.kind is {section.kind!r}"
        raise TeacherError(f"{kind}: it is served already; only a local or python teacher can be")
    images = read_images(config.images, generator=numpy_generator(config.seed, "images"))
    seen = section.input.shape(images.image_shape)
    return section.build(seen, folder=os.getcwd()), seen, section.class_names()
