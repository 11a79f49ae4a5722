"""Weights to start a student from: those of a file, matched to the student's by their names."""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from kdray.errors import ModelError
from kdray.models.checkpoint import check_weights
from kdray.models.torchvision import without_auxiliary
from kdray.utils.files import shown

_TORCH = (".pt", ".pth", ".bin")
_DIGEST_BYTES = 12
_NAMED = re.compile(rf"(.*)#([0-9a-f]{{{2 * _DIGEST_BYTES}}})", flags=re.DOTALL)


def with_digest(init: str, recorded: str | None = None) -> str:
    """A file's path with the digest of its content behind it, as path#digest: so a run's config says which weights its
    students start from, and the run does not go on with others.

    Args:
        init: a path, with a digest (which is kept) or without.
        recorded: what the config of a run that goes on says; it holds where its file is not there any more.
    """
    path, digest = _parts(init)
    if digest is not None:
        return init
    try:
        return f"{path}#{_digest(Path(path).read_bytes())}"
    except OSError:
        return recorded if recorded is not None and _parts(recorded)[0] == path else init


def start_weights(init: str, network: nn.Module, name: str) -> bytes:
    """The weights that a network takes over from a file, as safetensors under the network's own names.

    Tensors match by name; files that kdray wrote have `network.` before each. Where the file is of another number of
    classes, its last layer is left out, and that of the network stays as it is. Counts of batches may be missing.

    Args:
        init: a path, which may have a digest behind it: safetensors, or where it ends in .pt, .pth or .bin a torch
            state dict.
        network: with fresh weights.
        name: of the network.

    Raises:
        ModelError: no such file, not of these formats, of another content than the digest says; or a tensor is missing,
            unknown or of another shape. It names the first of each.
    """
    path, digest = _parts(init)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"student.init: cannot read {shown(path)} ({error.strerror}); check the path") from None
    if digest not in (None, _digest(data)):
        raise ModelError(
            f"student.init: {shown(path)} has changed, and the students of one run start from the same weights; bring "
            "the old file back, or start a new run"
        )
    given = without_auxiliary(name, _of_network(_read(path, data)))
    own = {key: value for key, value in network.state_dict().items() if key in given or not _is_count(key)}
    head = _head(network)
    if any(key in given and _only_classes_differ(given[key], own[key]) for key in head):
        given = {key: value for key, value in given.items() if key not in head}
        own = {key: value for key, value in own.items() if key not in head}
    check_weights(own, given, f"student.init: {shown(path)}", name)
    for key in own:
        if not given[key].isfinite().all():
            raise ModelError(f"student.init: {shown(path)} has NaN or infinity in {key}; give finite weights")
    return save({key: given[key].to(value.dtype).clone().contiguous() for key, value in own.items()})


def weights_of(model: bytes) -> bytes:
    """The weights of a network as `start_weights` gives them, of the bytes of a file that kdray wrote."""
    return save(_of_network(load(model)))


def load_start(network: nn.Module, start: bytes) -> None:
    """Put what `start_weights` gave into a network of the same kind."""
    network.load_state_dict(load(start), strict=False)


def _parts(init: str) -> tuple[str, str | None]:
    """Path and digest."""
    found = _NAMED.fullmatch(init)
    return (found[1], found[2]) if found else (init, None)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def _read(path: str, data: bytes) -> dict[str, Tensor]:
    """The tensors in a file by name.

    Raises:
        ModelError: it holds something else.
    """
    if not path.lower().endswith(_TORCH):
        try:
            return load(data)
        except SafetensorError as error:
            raise ModelError(
                f"student.init: {shown(path)} is not a readable safetensors file ({error}); a torch state dict must "
                "end in .pt or .pth"
            ) from None
    advice = "save model.state_dict(), and nothing beside it"
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from RuntimeError to pickle errors for other files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"student.init: {shown(path)} is not a readable torch state dict ({reason}); {advice}"
        ) from None
    if not isinstance(found, Mapping):
        raise ModelError(f"student.init: {shown(path)} holds a {type(found).__name__}, not a state dict; {advice}")
    if nameless := [key for key in found if not isinstance(key, str)]:
        raise ModelError(
            f"student.init: {shown(path)} has a tensor under {nameless[0]!r}, and names of weights are text; {advice}"
        )
    other = next((key for key, value in found.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise ModelError(f"student.init: {shown(path)} holds {other!r}, a {type(found[other]).__name__}; {advice}")
    return dict(found)


def _of_network(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the network alone, where they are those of a whole `ImageClassifier`."""
    rest = tensors.keys() - {"mean", "std"}
    if len(rest) != len(tensors) - 2 or not all(name.startswith("network.") for name in rest):
        return tensors
    return {name.removeprefix("network."): value for name, value in tensors.items() if name in rest}


def _is_count(name: str) -> bool:
    """Whether a tensor counts batches: old state dicts lack them, and nothing here depends on them."""
    return name.endswith("num_batches_tracked")


def _head(network: nn.Module) -> list[str]:
    """Names of the weights of the last layer that has some."""
    layers = [name for name, layer in network.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    return [name for name in network.state_dict() if layers and name.rpartition(".")[0] == layers[-1]]


def _only_classes_differ(given: Tensor, own: Tensor) -> bool:
    return given.shape[1:] == own.shape[1:] and given.ndim == own.ndim and given.shape != own.shape
