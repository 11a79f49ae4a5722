"""Training a local teacher by the recipe in its section, and measuring it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdray.errors import ImageSetError, TeacherError
from kdray.images.base import ImageSource, read_images, sources
from kdray.images.labels import with_teachers_labels
from kdray.models.base import find_model
from kdray.sections.base import Threads
from kdray.sections.classes import are_numbers
from kdray.teachers.base import names_in
from kdray.training.recipe import Recipe
from kdray.utils.devices import auto_threads, resolve_device
from kdray.utils.files import check_writable, write_bytes
from kdray.utils.seeds import numpy_generator

if TYPE_CHECKING:
    from kdray.images.base import ImageSet
    from kdray.teachers.local import LocalTeacherConfig


class TeacherTrainConfig(Recipe):
    """How to make a local teacher that is not there yet. Uses labels: these images are the teacher's own."""

    images: Annotated[ImageSource, sources] | None = None
    """Labelled images the teacher is trained on; null: those of `labelled` (RAD, Algorithm 1)."""
    epochs: Annotated[int, Field(ge=1)] | None = 40
    """Passes over the images; steps that are set replace them."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images a step, at most: an epoch is cut into batches of one size, give or take one image."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    """Longer gradients are cut to this length; null cuts none. At a student's 2 few true labels teach less."""
    threads: Threads = "auto"
    """CPU threads of the teacher's training; auto as for the student."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the teacher, apart from the run's: runs with other seeds share one teacher."""


def train_teacher(
    section: LocalTeacherConfig,
    on_epoch: Callable[[int, int, float], None] | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
    labelled: ImageSet | None = None,
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Train the network of a local teacher on hard labels, by the section's recipe, and write `section.weights`.

    Its classes are those of `teacher.classes`, to which the images are matched by name; where that names none, they are
    those of the images.

    Args:
        on_epoch: called with (epochs done, epochs in all, mean loss) after each epoch.
        on_note: told how classes were matched, where that is an assumption.
        image_shape: (C, H, W) of the images the teacher will be asked about, where that is known.
        labelled: the images to train on where the recipe names none.

    It is trained on what it will see: images as `section.input` converts them.

    Raises:
        TeacherError: no recipe, no network that is named, or training images of another shape.
        ImageSetError: images without labels, or a label that is not below the number of classes.
    """
    from torch.nn import functional

    from kdray.models.checkpoint import ModelCard
    from kdray.models.classifier import pixel_statistics
    from kdray.training.fitting import StudentSpec, fit

    recipe = section.train
    if recipe is None:
        raise TeacherError("teacher.train is missing: it says which labelled images to train the teacher on")
    if section.model is None:
        raise TeacherError("teacher.model: a whole program cannot be trained here; name a network")
    data = labelled
    if recipe.images is not None:
        data = _read(recipe.images, recipe.seed, "teacher images", "teacher.train.images")
        if on_note is not None:
            for note in data.notes:
                on_note(note)
    if data is None:
        raise TeacherError("teacher.train.images is missing: it says which labelled images to train the teacher on")
    field = "labelled" if recipe.images is None else "teacher.train.images"
    images = section.input.view(data.images)
    shape = section.input.shape(data.image_shape)
    if image_shape is not None and shape != image_shape:
        alike = "bring them to one size and colour first" if data.given else "set size and colour of both alike"
        raise TeacherError(
            f"{field}: its images have shape {shape}, the images the teacher is asked about {image_shape}; {alike}, or "
            "set those of teacher.input"
        )
    count, names = trained_classes(section, data.classes)
    counted = count is None
    count = len(data.true_labels.unique()) if count is None else count
    if counted and int(data.true_labels.max()) >= count:
        raise ImageSetError(
            f"{field}: its labels are of {count} classes and go up to {int(data.true_labels.max())}; set "
            "teacher.classes to the number or the names of the classes"
        )
    data = with_teachers_labels(data, names, count, field=field, on_note=on_note)
    section.form.check(count)
    resolve_device(section.device, "teacher.device")
    check_writable(Path(section.weights), "teacher.weights")
    mean, std = pixel_statistics(images)
    card = ModelCard(
        model=section.model,
        image_shape=shape,
        num_classes=count,
        classes=names,
    )
    threads = auto_threads(find_model(section.model).light) if recipe.threads == "auto" else recipe.threads
    spec = StudentSpec(card=card, mean=mean, std=std, recipe=recipe, seed=recipe.seed, threads=threads)
    targets = functional.one_hot(data.true_labels, count).float()
    content, _ = fit(spec, images, targets, 0, on_epoch)
    write_bytes(Path(section.weights), content)


def trained_classes(
    section: LocalTeacherConfig, of_images: tuple[str, ...] | None
) -> tuple[int | None, tuple[str, ...] | None]:
    """Number and names of the classes of a teacher that is trained on images with these class names: those of the
    section, else those of the images; None where neither says."""
    if isinstance(section.classes, int):
        if of_images is None:
            return section.classes, None
        if are_numbers(of_images):
            return section.classes, tuple(map(str, range(section.classes)))
        return section.classes, of_images if len(of_images) == section.classes else None
    names = names_in(section.classes) or of_images
    return (len(names), tuple(names)) if names else (None, None)


def measure_teacher(section: LocalTeacherConfig, test: ImageSet, on_note: Callable[[str], None] | None = None) -> float:
    """Accuracy of a local teacher, in [0, 1], on labelled images as the student sees them."""
    teacher = section.build(section.input.shape(test.image_shape))
    test = with_teachers_labels(test, section.class_names(), teacher.num_classes, field="test", on_note=on_note)
    predicted = teacher.answer(section.input.view(test.images)).believed().labels
    return int((predicted == test.true_labels).sum()) / len(predicted)


def _read(images: ImageSource, seed: int, stream: str, field: str) -> ImageSet:
    """The labelled images of a section; `stream` names the random numbers that draw them."""
    return read_images(images, generator=numpy_generator(seed, stream), field=field, with_labels=True)
