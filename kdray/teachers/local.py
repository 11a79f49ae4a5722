"""A model on this machine as a teacher: a zoo or torchvision network with weights, or a whole saved program."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from kdray.errors import ModelError, TeacherError
from kdray.images.base import read_class_names
from kdray.models.base import ModelName
from kdray.models.torchvision import PREFIX, build_torchvision, without_auxiliary
from kdray.sections.base import Classes, Device
from kdray.sections.classes import loose
from kdray.teachers.answers import AnswerFormat, Answers, check_probabilities, check_shape
from kdray.teachers.base import TeacherSection, count_in, names_in, teachers
from kdray.teachers.input import PixelInput
from kdray.teachers.recipe import TeacherTrainConfig, train_teacher, trained_classes
from kdray.teachers.suspicion import LogitsCheck
from kdray.utils.devices import cpu_threads, resolve_device
from kdray.utils.files import shown
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.images.base import ImageSet
    from kdray.models.classifier import ImageClassifier
    from kdray.observers.base import Observer
    from kdray.teachers.http.secrets import Secrets

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_REMEDIES = {
    "percent": "divide them by 100 in the program",
    "logs": "set teacher.outputs to logits",
    "logits": "set teacher.outputs to logits",
}


class LocalInput(PixelInput):
    """What the model sees of an image. `mean` and `std` are for weights from elsewhere: kdray's own carry theirs."""

    pixels: Literal["uint8", "unit"] = "unit"
    """What a whole program takes: uint8 pixels, or floats in [0, 1] (then normalised, if `mean` and `std` are set)."""


@teachers.register
class LocalTeacherConfig(TeacherSection):
    """A model on this machine, seen only through its answers."""

    local: ClassVar[bool] = True
    path_fields: ClassVar[tuple[str, ...]] = ("weights",)

    kind: Literal["local"] = "local"
    """local: a model on this machine."""
    weights: str
    """safetensors for `model`; or, where `model` is null, a TorchScript or torch.export file."""
    model: ModelName | None = None
    """A network by name, as `student.model`; null where `weights` is a whole program."""
    classes: Classes | None = None
    """Number or names of the classes; null reads them from weights that kdray saved. A teacher that is trained here has
    these classes, in this order; null takes those of its images."""
    input: LocalInput = LocalInput()
    """What it sees of an image, where that is not what the student sees."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What a whole program gives."""
    train: TeacherTrainConfig | None = None
    """How to make `weights` when the file is not there."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""

    @model_validator(mode="after")
    def _a_network_takes_floats(self) -> LocalTeacherConfig:
        if self.model is not None and self.input.pixels == "uint8":
            raise ValueError("input.pixels: uint8 is for a whole program (model: null); leave it out")
        return self

    def class_names(self) -> tuple[str, ...] | None:
        """From `classes`, or from weights that kdray saved."""
        if isinstance(self.classes, list):
            return names_in(self.classes)
        if self.model is not None and Path(self.weights).is_file():
            from kdray.models.checkpoint import read_card

            card = read_card(self.weights)
            return card.classes if card else None
        return None

    def expected_classes(self, labelled: ImageSet | None) -> tuple[int | None, tuple[str, ...] | None]:
        """Before the teacher was trained, those it will be trained on."""
        if self.train is None or not self.missing():
            return super().expected_classes(labelled)
        return self.classes_by_recipe(labelled)

    def classes_by_recipe(self, labelled: ImageSet | None) -> tuple[int | None, tuple[str, ...] | None]:
        """Number and names of the classes that training by the recipe will give; None where they are not known yet."""
        if self.train is not None and self.train.images is not None:
            return trained_classes(self, read_class_names(self.train.images, "teacher.train.images"))
        return (None, None) if labelled is None else trained_classes(self, labelled.classes)

    def count_classes(self, image_shape: tuple[int, int, int]) -> int | None:
        """Before the teacher was trained, what `classes` says."""
        if self.missing():
            return None if self.classes is None else count_in(self.classes)
        return super().count_classes(image_shape)

    @property
    def recipe(self) -> TeacherTrainConfig | None:
        """The field `train`."""
        return self.train

    def missing(self) -> bool:
        """There is a recipe, and the weights do not exist."""
        return self.train is not None and not Path(self.weights).exists()

    def prepare(self, image_shape: tuple[int, int, int], labelled: ImageSet | None, observer: Observer) -> None:
        """Train the teacher and write `weights`, where they are `missing`."""
        recipe = self.train
        if recipe is None or not self.missing():
            return
        observer.note(f"the teacher's weights are not there yet: training {self.model} once")
        train_teacher(
            self,
            lambda done, of, loss: observer.progress(done, of),
            image_shape=image_shape,
            labelled=labelled,
            on_note=observer.note,
        )
        observer.note(f"teacher written to {shown(self.weights)}; from here on it is only queried")

    def build(
        self, image_shape: tuple[int, int, int], *, folder: str = "", secrets: Secrets | None = None
    ) -> LocalTeacher:
        """The teacher, after it has answered one black image: a model that does not fit the images fails now.

        Raises:
            TeacherError: no weights, no class count, or a model that cannot be read or does not take such images.
            ModelError: weights that do not fit the model.
        """
        path = Path(self.weights)
        if not path.is_file():
            hint = "train it with 'kdray teacher train CONFIG'" if self.train else "check the path"
            raise TeacherError(f"teacher.weights: no file at {self.weights}; {hint}")
        model, count, shape = self._load(path, image_shape)
        self.form.check(count)
        teacher = LocalTeacher(
            model,
            identity=f"local:{self.model or path.suffix.lstrip('.')}:{self._digest(path)}:{self.form}",
            num_classes=count,
            image_shape=shape,
            form=self.form,
            outputs=self.outputs if self.model is None else "logits",
            batch_size=self.batch_size,
            device=self.device,
        )
        teacher.answer(torch.zeros(1, *image_shape, dtype=torch.uint8)).believed()
        return teacher

    def _digest(self, path: Path) -> str:
        """Names the model in the ledger: the weights, and the fields that decide what it answers to given pixels."""
        settings: dict[str, Any] = {"model": self.model, "input": self.input.pixels, "outputs": self.outputs}
        settings["normalise"] = self.input.normalise
        digest = hashlib.blake2b(path.read_bytes(), digest_size=12)
        digest.update(json.dumps(settings, sort_keys=True).encode() + self.own_settings().encode())
        return digest.hexdigest()

    def _load(
        self, path: Path, image_shape: tuple[int, int, int]
    ) -> tuple[torch.nn.Module, int, tuple[int, int, int] | None]:
        """The model, its number of classes, and the shape (C, H, W) of the images it takes, where it says."""
        from kdray.models.checkpoint import read_card

        if self.model is not None and (not self.model.startswith(PREFIX) or read_card(path) is not None):
            return self._load_named(path, self.model, image_shape)
        if self.model is not None:
            if self.classes is None:
                raise TeacherError("teacher.classes is missing: give the number or the names of the classes")
            count = count_in(self.classes)
            return self._load_torchvision(path, self.model, count, image_shape), count, image_shape
        if self.classes is None:
            raise TeacherError("teacher.classes is missing: a saved program does not say how many classes it has")
        from kdray.models.program import load_program

        self.input.check_channels(image_shape[0])
        program = load_program(path, self.input.pixels, self.input.mean, self.input.std)
        return program, count_in(self.classes), None

    def _load_named(
        self, path: Path, name: str, image_shape: tuple[int, int, int]
    ) -> tuple[ImageClassifier, int, tuple[int, int, int]]:
        from kdray.models.checkpoint import load_weights, read_card, read_tensors
        from kdray.models.classifier import ImageClassifier, build_network

        card, count = read_card(path), None if self.classes is None else count_in(self.classes)
        if card is not None and card.model != name:
            raise ModelError(f"teacher.model is {name!r}, but {path} holds the weights of a {card.model!r}")
        if card is not None and count is not None and count != card.num_classes:
            raise ModelError(f"teacher.classes gives {count} classes, but {path} holds a model of {card.num_classes}")
        if card is not None and card.classes is not None and isinstance(self.classes, list):
            _check_order(self.classes, card.classes, path)
        count = card.num_classes if card else count
        if count is None:
            raise TeacherError(f"teacher.classes is missing, and {path} does not say how many classes it has")
        shape = card.image_shape if card else image_shape
        if tuple(shape) != tuple(image_shape):
            raise TeacherError(
                f"the teacher takes images of shape {tuple(shape)} (channels, height, width), "
                f"but is asked about images of {tuple(image_shape)}; set teacher.input.size and teacher.input.colour"
            )
        with torch.random.fork_rng(devices=[]):
            network = build_network(name, shape, count)
        channels = shape[0]
        if card is not None and self.input.mean is not None:
            raise TeacherError(f"teacher.input.mean: {path} has a mean and std of its own; leave them out")
        self.input.check_channels(channels)
        mean, std = self.input.mean or [0.5] * channels, self.input.std or [0.25] * channels
        model = ImageClassifier(network, shape, mean, std)
        load_weights(model if card else network, read_tensors(path), f"teacher.weights {path}")
        return model.eval(), count, shape

    def _load_torchvision(
        self, path: Path, model: str, count: int, image_shape: tuple[int, int, int]
    ) -> ImageClassifier:
        """A network of torchvision's with weights that kdray did not write, such as torchvision's own."""
        from kdray.models.checkpoint import load_weights, read_tensors
        from kdray.models.classifier import ImageClassifier

        if image_shape[0] != 3:
            raise TeacherError(
                f"teacher.model: {model} takes RGB images, the images are grey; set teacher.input.colour to rgb"
            )
        with torch.random.fork_rng(devices=[]):
            network = build_torchvision(model.removeprefix(PREFIX), image_shape, count)
        self.input.check_channels(image_shape[0])
        mean, std = self.input.mean or _IMAGENET[0], self.input.std or _IMAGENET[1]
        load_weights(network, without_auxiliary(model, read_tensors(path)), f"teacher.weights {path}")
        return ImageClassifier(network, image_shape, mean, std).eval()


def _check_order(names: Sequence[str], card: Sequence[str], path: Path) -> None:
    """Refuse names of the model's classes in another order. Other words for them are fine.

    Raises:
        ModelError: a class that the model knows by name stands at another position.
    """
    places = {loose(name): k for k, name in enumerate(card)}
    for k, name in enumerate(names):
        place = places.get(loose(name), k)
        if place != k:
            raise ModelError(
                f"teacher.classes: {name!r} is at position {k}, but {path} says that it is at {place}, and at {k} "
                f"{card[k]!r}; give the names in the model's order, or leave teacher.classes out"
            )


class LocalTeacher:
    """Answers with a local model, on one thread, in batches padded to one size.

    A kernel may sum in another order for another batch size. Padding every batch to `batch_size` makes an answer
    depend on the image alone, not on the images asked with it.

    Args:
        model: uint8 [B, C, H, W] to logits or probabilities [B, K].
        identity: names the weights and the form of the answers.
        num_classes: K.
        image_shape: (C, H, W) it takes, or None where the model does not say.
        form: how much of its probabilities it shows.
        outputs: "logits" or "probabilities".
        batch_size: images a forward pass.
        device: auto, cpu or cuda.
    """

    metered = False

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        identity: str,
        num_classes: int,
        form: AnswerFormat,
        image_shape: tuple[int, int, int] | None = None,
        outputs: str = "logits",
        batch_size: int = 128,
        device: str = "cpu",
    ) -> None:
        self.identity = identity
        self.num_classes = num_classes
        self.image_shape = image_shape
        self._form, self._outputs, self._batch_size = form, outputs, batch_size
        self._device = resolve_device(device, "teacher.device")
        self._model = model.to(self._device)
        self._check = LogitsCheck()

    @property
    def network(self) -> torch.nn.Module:
        """The model itself, for a user who lets it be looked into."""
        return self._model

    def answer(self, images: Tensor) -> Answers:
        """Answers to uint8 images [B, C, H, W].

        Raises:
            TeacherError: the model cannot take the images, or what it gives is not of shape [B, K].
        """
        if len(images) == 0:
            return self._form.apply(torch.zeros(0, self.num_classes))
        with cpu_threads(1), torch.inference_mode():
            output = torch.cat([self._forward(batch) for batch in torch.split(images, self._batch_size)])
            if self._outputs == "logits" and (found := self._check.look(output.double().numpy())) is not None:
                percent = " and divide them by 100 in the program" if found == "percentages" else ""
                raise TeacherError(
                    f"the teacher gives {found}, not logits: set teacher.outputs to probabilities{percent}"
                )
            probs = output.softmax(dim=1) if self._outputs == "logits" else output
        wrong = check_probabilities(probs, len(images), self.num_classes, tolerance=1e-3, remedies=_REMEDIES)
        return self._form.apply(probs, wrong)

    def _forward(self, batch: Tensor) -> Tensor:
        padded = torch.cat([batch, batch[-1:].expand(self._batch_size - len(batch), -1, -1, -1)])
        try:
            output = self._model(padded.to(self._device)).float().cpu()
        except Exception as error:  # a program from elsewhere may raise anything: failed guards, no tensor as output
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise TeacherError(
                f"the teacher cannot answer images of shape {list(batch.shape[1:])} in batches of {self._batch_size}: "
                f"{reason}. (A program exported for one batch size needs teacher.batch_size set to it.)"
            ) from None
        check_shape(output, self._batch_size, self.num_classes)
        logits: Tensor = output[: len(batch)]
        return logits
