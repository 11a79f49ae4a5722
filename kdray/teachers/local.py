"""A model on this machine as a teacher: a zoo or torchvision network with weights, or a whole saved program."""

import hashlib
import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdray.errors import ModelError, TeacherError
from kdray.students.export import load_weights, read_card
from kdray.students.models import ZOO, ImageClassifier
from kdray.students.train import cpu_threads, resolve_device
from kdray.teachers.answers import AnswerFormat, Answers, check_probabilities, check_shape

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class LocalTeacher:
    """Answers with a local model, on one thread, in batches padded to one size.

    A kernel may sum in another order for another batch size. Padding every batch to `batch_size` makes an answer
    depend on the image alone, not on which others happened to be asked with it.

    Args:
        model: uint8 [B, C, H, W] to logits or probabilities [B, K].
        identity: names the weights and the form of the answers.
        num_classes: K.
        image_shape: (C, H, W) it takes, or None if only a try can tell.
        form: what it shows of its probabilities.
        outputs: "logits" or "probabilities".
        batch_size: images a forward pass.
        device: auto, cpu or cuda.
    """

    metered = False

    def __init__(
        self,
        model: nn.Module,
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

    def answer(self, images: Tensor) -> Answers:
        """Answers to uint8 images [B, C, H, W].

        Raises:
            TeacherError: the model cannot take the images, or what it gives is not of shape [B, K].
        """
        if len(images) == 0:
            return self._form.apply(torch.zeros(0, self.num_classes))
        with cpu_threads(1), torch.inference_mode():
            probs = torch.cat([self._forward(batch) for batch in images.split(self._batch_size)])
        return self._form.apply(probs, check_probabilities(probs, len(images), self.num_classes, tolerance=1e-3))

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
        probs = output.softmax(dim=1) if self._outputs == "logits" and output.ndim == 2 else output
        check_shape(probs, self._batch_size, self.num_classes)
        return probs[: len(batch)]


def build_local_teacher(config, image_shape: tuple[int, int, int]) -> LocalTeacher:
    """The teacher of a `kdray.config.LocalTeacher` section.

    Raises:
        TeacherError: no weights, no class count, or a model that cannot be read.
        ModelError: weights that do not fit the model.
    """
    path = Path(config.weights)
    if not path.is_file():
        hint = "train it with 'kdray teacher train CONFIG'" if config.train else "check the path"
        raise TeacherError(f"teacher.weights: no file at {config.weights}; {hint}")
    names = tuple(config.classes) if isinstance(config.classes, list) else None
    count = len(names) if names else config.classes
    if config.model is None:
        if count is None:
            raise TeacherError("teacher.classes is missing: a saved program does not say how many classes it has")
        model, shape = _program(path, config, image_shape), None
    elif config.model.startswith("torchvision/"):
        if count is None:
            raise TeacherError("teacher.classes is missing: give the number or the names of the classes")
        model, shape = _torchvision(path, config, count, image_shape), image_shape
    else:
        model, count, shape = _zoo(path, config, count, image_shape)
    form = AnswerFormat(config.answers, config.decimals)
    if form.top is not None and form.top > count:
        raise TeacherError(
            f"teacher.answers: {config.answers} of a teacher with {count} classes; use top{count} at most, or soft"
        )
    settings = {key: getattr(config, key) for key in ("model", "input", "outputs")}
    settings["normalise"] = config.normalise.model_dump() if config.normalise else None
    digest = hashlib.blake2b(path.read_bytes(), digest_size=12)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    teacher = LocalTeacher(
        model,
        identity=f"local:{config.model or path.suffix.lstrip('.')}:{digest.hexdigest()}:{form}",
        num_classes=count,
        image_shape=shape,
        form=form,
        outputs=config.outputs if config.model is None else "logits",
        batch_size=config.batch_size,
        device=config.device,
    )
    # A misfit shows now, not after the first round.
    teacher.answer(torch.zeros(1, *image_shape, dtype=torch.uint8)).believed()
    return teacher


def class_names(config) -> tuple[str, ...] | None:
    """Class names of a local or python teacher: from its config, or from weights that kdray saved."""
    if isinstance(config.classes, list):
        return tuple(config.classes)
    if config.kind == "local" and config.model is not None and Path(config.weights).is_file():
        card = read_card(config.weights)
        return card.classes if card else None
    return None


def _zoo(path: Path, config, count: int | None, image_shape: tuple[int, int, int]) -> tuple[nn.Module, int, tuple]:
    card = read_card(path)
    if card is not None and card.model != config.model:
        raise ModelError(f"teacher.model is {config.model!r}, but {path} holds the weights of a {card.model!r}")
    if card is not None and count is not None and count != card.num_classes:
        raise ModelError(f"teacher.classes gives {count} classes, but {path} holds a model of {card.num_classes}")
    count = card.num_classes if card else count
    if count is None:
        raise TeacherError(f"teacher.classes is missing, and {path} does not say how many classes it has")
    shape = card.image_shape if card else image_shape
    if tuple(shape) != tuple(image_shape):
        raise TeacherError(
            f"the teacher takes images of shape {tuple(shape)} (channels, height, width), "
            f"but the images have {tuple(image_shape)}; set images.size and images.colour to bring them together"
        )
    with torch.random.fork_rng():
        network = ZOO[config.model](tuple(shape), count)
    channels = shape[0]
    mean, std = (
        (config.normalise.mean, config.normalise.std) if config.normalise else ([0.5] * channels, [0.25] * channels)
    )
    check_channels(mean, std, channels)
    model = ImageClassifier(network, shape, mean, std)
    tensors = load_file(path)
    load_weights(model if card else network, tensors, f"teacher.weights {path}")
    return model.eval(), count, tuple(shape)


def _torchvision(path: Path, config, count: int, image_shape: tuple[int, int, int]) -> nn.Module:
    import torchvision

    name = config.model.removeprefix("torchvision/")
    try:
        with torch.random.fork_rng():
            network = torchvision.models.get_model(name, weights=None, num_classes=count)
    except ValueError:
        raise ModelError(f"teacher.model: torchvision has no model named {name!r}") from None
    if image_shape[0] != 3:
        raise TeacherError(
            f"teacher.model: {config.model} takes RGB images, the images are grey; set images.colour to rgb"
        )
    mean, std = (config.normalise.mean, config.normalise.std) if config.normalise else _IMAGENET
    check_channels(mean, std, image_shape[0])
    card = read_card(path)
    if card is not None:
        raise ModelError(f"teacher.model is {config.model!r}, but {path} holds a kdray {card.model!r}")
    load_weights(network, load_file(path), f"teacher.weights {path}")
    return ImageClassifier(network, image_shape, list(mean), list(std)).eval()


def check_channels(mean: list[float], std: list[float], channels: int, field: str = "teacher.normalise") -> None:
    """Refuse a normalisation for images with another number of channels.

    Raises:
        TeacherError: it is one.
    """
    if len(mean) != channels or len(std) != channels:
        raise TeacherError(
            f"{field} has {len(mean)} means and {len(std)} standard deviations, "
            f"but the images have {channels} channels; give one number a channel"
        )


class _Program(nn.Module):
    """A saved program, fed with what it expects."""

    def __init__(self, program, takes: str, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        self._program = program
        self._takes = takes
        self.register_buffer("_mean", torch.tensor(mean or [0.0]).view(1, -1, 1, 1))
        self.register_buffer("_std", torch.tensor(std or [1.0]).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self._program(images if self._takes == "uint8" else (images.float() / 255.0 - self._mean) / self._std)


def _program(path: Path, config, image_shape: tuple[int, int, int]) -> nn.Module:
    """A TorchScript file or a torch.export file, whichever `path` turns out to be."""
    if config.normalise:
        check_channels(config.normalise.mean, config.normalise.std, image_shape[0])
    try:
        if path.suffix == ".pt2":
            program = torch.export.load(path).module()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, its files are still around
                program = torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # torch raises anything from RuntimeError to pickle errors for a file that is neither
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TeacherError(
            f"teacher.weights: {path} is neither TorchScript nor a torch.export file (.pt2): {reason}; "
            "for plain safetensors set teacher.model"
        ) from None
    normalise = config.normalise
    return _Program(program, config.input, normalise.mean if normalise else None, normalise.std if normalise else None)
