"""Model files: safetensors with metadata that says which model it is, so that the file alone can be used."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from kdray.errors import ModelError
from kdray.models.classifier import ImageClassifier, build_model
from kdray.utils.files import openable, write_bytes


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model file says of itself.

    Attributes:
        model: name of the network, see `kdray.models.base.find_model`.
        image_shape: (C, H, W).
        num_classes: K.
        classes: K names, or None.
    """

    model: str
    image_shape: tuple[int, int, int]
    num_classes: int
    classes: tuple[str, ...] | None = None


def model_bytes(model: ImageClassifier, card: ModelCard) -> bytes:
    """The bytes of a model file; the same model and card give the same bytes."""
    # Copies, as safetensors takes no two tensors that share memory: layers may share their weights.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in sorted(model.state_dict().items())}
    metadata = {
        # One entry: safetensors writes several in an order that changes from call to call.
        "kdray": json.dumps(
            {
                "model": card.model,
                "input_shape": list(card.image_shape),
                "num_classes": card.num_classes,
                "classes": list(card.classes) if card.classes else None,
                "normalisation": {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()},
                "input": "uint8 [B, C, H, W]",
            },
            sort_keys=True,
        )
    }
    return save(tensors, metadata=metadata)


def save_model(path: str | os.PathLike[str], model: ImageClassifier, card: ModelCard) -> None:
    """Write the model file, whole or not at all."""
    write_bytes(Path(path), model_bytes(model, card))


def read_card(path: str | os.PathLike[str]) -> ModelCard | None:
    """The card of a model file, or None for safetensors that kdray did not write.

    Raises:
        ModelError: no such file, not safetensors, or a card that is not readable.
    """
    try:
        with openable(path) as name, safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ModelError(f"no model file at {path}") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error})") from None
    if "kdray" not in metadata:
        return None
    try:
        return _parse_card(json.loads(metadata["kdray"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} was saved by kdray, but its description is not readable ({error!r})") from None


def read_own_card(path: str | os.PathLike[str]) -> ModelCard:
    """The card of a model file that kdray wrote.

    Raises:
        ModelError: see `read_card`; or kdray did not write the file.
    """
    card = read_card(path)
    if card is None:
        raise ModelError(f"{path} was not saved by kdray: it does not say which model it is")
    return card


def _parse_card(data: Any) -> ModelCard:
    """A card from its JSON; ValueError, KeyError or TypeError where it is none."""
    channels, height, width = (int(side) for side in data["input_shape"])
    count, classes = int(data["num_classes"]), data["classes"]
    names = tuple(str(name) for name in classes) if classes else None
    if names is not None and len(names) != count:
        raise ValueError(f"{len(names)} class names for {count} classes")
    return ModelCard(model=str(data["model"]), image_shape=(channels, height, width), num_classes=count, classes=names)


def load_student(path: str | os.PathLike[str]) -> ImageClassifier:
    """A model that kdray saved, in eval mode: uint8 images [B, C, H, W] in, logits float32 [B, K] out.

    A file may name a network of the user's own as `module:function`. That module is then imported and the function
    called, so a file from a stranger may run code that is installed here.

    Args:
        path: a model file, or a run directory (then its newest student).

    Raises:
        ModelError: no such file, not saved by kdray, a network that is unknown or cannot be imported here, or weights
            that do not fit the network.
    """
    path = Path(path)
    path = path / "student.safetensors" if path.is_dir() else path
    card = read_own_card(path)
    try:
        model = build_model(card.model, card.image_shape, card.num_classes, seed=0)
    except ModelError as error:
        raise ModelError(f"{path} holds a {card.model!r}, which cannot be built here: {error}") from None
    load_weights(model, read_tensors(path), str(path))
    return model.eval()


def read_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name."""
    with openable(path) as name:
        return load_file(name)


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Put `tensors` into `model`.

    Raises:
        ModelError: see `check_weights`.
    """
    check_weights(model.state_dict(), tensors, origin)
    model.load_state_dict(tensors)


def check_weights(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], origin: str, model: str = "the model"
) -> None:
    """Refuse tensors that are not those of a model.

    Args:
        own: the model's, by name.
        origin: where `tensors` come from, for the message.
        model: how the message calls the model.

    Raises:
        ModelError: a tensor is missing, left over or of another shape; names the first of each.
    """
    missing = [name for name in own if name not in tensors]
    extra = [name for name in tensors if name not in own]
    wrong = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if missing or extra or wrong:
        what = [f"{len(missing)} missing (first: {missing[0]})"] if missing else []
        what += [f"{len(extra)} unknown (first: {extra[0]})"] if extra else []
        what += (
            [f"{wrong[0]} is {list(tensors[wrong[0]].shape)}, the model has {list(own[wrong[0]].shape)}"]
            if wrong
            else []
        )
        raise ModelError(f"{origin}: the weights do not fit {model}: {'; '.join(what)}")
