"""A teacher from its config section."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from kdray.errors import ImageSetError, TeacherError
from kdray.files import write_bytes
from kdray.images import read_images
from kdray.seeds import numpy_generator
from kdray.students.export import ModelCard
from kdray.students.fit import StudentSpec, fit
from kdray.students.models import pixel_statistics
from kdray.students.train import auto_threads
from kdray.teachers.answers import Teacher
from kdray.teachers.function import build_function_teacher
from kdray.teachers.local import build_local_teacher


def build_teacher(config, image_shape: tuple[int, int, int], folder: str = "") -> Teacher:
    """The teacher that a `kdray.config.TeacherConfig` describes, for images of shape (C, H, W).

    `folder` is where a python teacher's module may lie; a worker is told the driver's.

    Raises:
        TeacherError, ModelError: see the teachers.
    """
    if config.kind == "python":
        return build_function_teacher(config, folder=folder)
    return build_local_teacher(config, image_shape)


def train_teacher(
    config,
    on_epoch: Callable[[int, float], None] | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
) -> None:
    """Make the weights of a local teacher by its recipe, with hard labels, and write them to `config.weights`.

    Args:
        image_shape: (C, H, W) the teacher will be asked about, where that is known.

    Raises:
        TeacherError: no recipe, a model that is not of the zoo, or training images of another shape.
        ImageSetError: images without labels or class names to count.
    """
    recipe = config.train
    if recipe is None:
        raise TeacherError("teacher.train is missing: it says which labelled images to train the teacher on")
    if config.model is None or config.model.startswith("torchvision/"):
        raise TeacherError(f"teacher.model: {config.model!r} cannot be trained here; name a model of the zoo")
    data = read_images(
        recipe.images,
        generator=numpy_generator(recipe.seed, "teacher images"),
        field="teacher.train.images",
        with_labels=True,
    )
    if image_shape is not None and data.image_shape != image_shape:
        raise TeacherError(
            f"teacher.train.images have shape {data.image_shape}, the images to distil with {image_shape}; "
            "set size and colour of both alike"
        )
    names = tuple(config.classes) if isinstance(config.classes, list) else data.classes
    count = config.classes if isinstance(config.classes, int) else len(names or np.unique(data.labels))
    if int(data.labels.min()) < 0 or int(data.labels.max()) >= count:
        raise ImageSetError(
            f"teacher.train.images: label {int(data.labels.max())} with only {count} classes; set teacher.classes"
        )
    mean, std = pixel_statistics(data.images)
    card = ModelCard(
        model=config.model,
        image_shape=data.image_shape,
        num_classes=count,
        classes=names if names and len(names) == count else None,
    )
    threads = auto_threads(config.model) if recipe.threads == "auto" else recipe.threads
    spec = StudentSpec(card=card, mean=mean, std=std, recipe=recipe, seed=recipe.seed, threads=threads)
    content, _ = fit(spec, data.images, F.one_hot(data.labels, count).to(torch.float32), 0, on_epoch)
    write_bytes(Path(config.weights), content)


def measure_teacher(config, test) -> float:
    """Accuracy of a local teacher on the labelled images of the config section `test`."""
    data = read_images(test, generator=numpy_generator(0, "test"), field="test", with_labels=True)
    teacher = build_teacher(config, data.image_shape)
    return float((teacher.answer(data.images).labels == data.labels).double().mean())
