"""A teacher from its config section."""

import hashlib
import json
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from kdray.errors import ImageSetError, TeacherError
from kdray.files import write_bytes
from kdray.images import ImageSet, read_images
from kdray.seeds import numpy_generator
from kdray.students.export import ModelCard
from kdray.students.fit import StudentSpec, fit
from kdray.students.models import pixel_statistics
from kdray.students.train import auto_threads
from kdray.teachers.answers import AnswerFormat, Teacher
from kdray.teachers.function import build_function_teacher
from kdray.teachers.http import HttpTeacher
from kdray.teachers.json_wire import JsonWire
from kdray.teachers.local import build_local_teacher, check_channels
from kdray.teachers.reader import Reader
from kdray.teachers.secrets import Secrets
from kdray.teachers.wire import TensorFlowWire, V2Wire, Wire, Writer


def build_teacher(
    config, image_shape: tuple[int, int, int], folder: str = "", secrets: Secrets | None = None
) -> Teacher:
    """The teacher that a `kdray.config.TeacherConfig` describes, for images of shape (C, H, W).

    A worker is told what only the driver knows: `folder`, where a python teacher's module may lie, and `secrets`, the
    environment variables an http teacher needs.

    Raises:
        TeacherError, ModelError: see the teachers.
    """
    if config.kind == "python":
        return build_function_teacher(config, folder=folder)
    if config.kind == "http":
        return _http(config, image_shape, secrets or read_secrets(config))
    return build_local_teacher(config, image_shape)


def read_secrets(config, environ: Mapping[str, str] = os.environ) -> Secrets:
    """The environment variables that a teacher's section names.

    Raises:
        TeacherError: one is not set.
    """
    return Secrets.read([config.url, *config.headers.values()] if config.kind == "http" else [], environ)


def _http(config, image_shape: tuple[int, int, int], secrets: Secrets) -> HttpTeacher:
    names = tuple(config.classes) if isinstance(config.classes, list) else None
    count = len(names) if names else config.classes
    form = AnswerFormat(config.answers, config.decimals)
    if form.top is not None and form.top > count:
        raise TeacherError(
            f"teacher.answers: {config.answers} of a teacher with {count} classes; use top{count} at most, or soft"
        )
    layout = config.input.layout or ("nchw" if config.protocol == "v2" else "nhwc")
    if layout == "nhw" and image_shape[0] != 1:
        raise TeacherError("teacher.input.layout: nhw is for grey images, these are RGB; use nhwc or nchw")
    normalise = config.input.normalise
    if normalise is not None:
        check_channels(normalise.mean, normalise.std, image_shape[0], "teacher.input.normalise")
    if config.ca is not None:
        _check_authority(config.ca)
    parts = {
        "reader": Reader(
            form=form,
            num_classes=count,
            names=names,
            logits=config.outputs == "logits",
            tolerance=config.tolerance,
        ),
        "writer": Writer(
            unit=config.input.pixels == "unit",
            layout=layout,
            mean=tuple(normalise.mean) if normalise else None,
            std=tuple(normalise.std) if normalise else None,
        ),
    }
    served = {"version": config.version, "input_name": config.input.name, "output": config.output}
    if config.protocol == "v2":
        wire: Wire = V2Wire(config.url, config.model, image_shape=image_shape, **parts, **served)
    elif config.protocol == "tensorflow":
        wire = TensorFlowWire(config.url, config.model, **parts, **served)
    else:
        png = config.input.encoding == "png"
        wire = JsonWire(config.url, png=png, template=config.request, **config.reply.model_dump(), **parts)
    # All that decides what an answer is, and nothing that decides how it is fetched: an answer bought yesterday at
    # another speed is the same answer.
    settings = config.model_dump(mode="json", include={"protocol", "input", "request", "reply", "output", "outputs"})
    if names and (config.protocol != "v2" or config.answers == "hard"):
        settings["classes"] = names  # the server may answer in these words: their order decides what they mean
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
    where = config.name or f"{config.url.rstrip('/')}/{config.model or ''}@{config.version or ''}".rstrip("/@")
    return HttpTeacher(
        wire,
        identity=f"http:{where}:{digest}:{form}",
        num_classes=count,
        headers=config.headers,
        secrets=secrets,
        timeout_s=config.timeout_s,
        ca=config.ca,
        metered=config.metered,
    )


def _check_authority(path: str) -> None:
    """Refuse what is no PEM file of certificates.

    Raises:
        TeacherError: it is none, or not there.
    """
    if not Path(path).is_file():
        raise TeacherError(f"teacher.ca: no file at {path}")
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise TeacherError(f"teacher.ca: {path} holds no certificate in PEM form ({error.strerror or error})") from None


def train_teacher(
    config,
    on_epoch: Callable[[int, float], None] | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
    labelled: ImageSet | None = None,
) -> None:
    """Make the weights of a local teacher by its recipe, with hard labels, and write them to `config.weights`.

    Args:
        image_shape: (C, H, W) the teacher will be asked about, where that is known.
        labelled: what to train on where the recipe names no images.

    Raises:
        TeacherError: no recipe, a model that is not of the zoo, or training images of another shape.
        ImageSetError: images without labels or class names to count.
    """
    recipe = config.train
    if recipe is None:
        raise TeacherError("teacher.train is missing: it says which labelled images to train the teacher on")
    if config.model is None or config.model.startswith("torchvision/"):
        raise TeacherError(f"teacher.model: {config.model!r} cannot be trained here; name a model of the zoo")
    data = labelled
    if recipe.images is not None:
        data = read_images(
            recipe.images,
            generator=numpy_generator(recipe.seed, "teacher images"),
            field="teacher.train.images",
            with_labels=True,
        )
    if data is None:
        raise TeacherError("teacher.train.images is missing: it says which labelled images to train the teacher on")
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
    return float((teacher.answer(data.images).believed().labels == data.labels).double().mean())
