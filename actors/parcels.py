"""Objects with large images in them, on their way to workers.

Ray would copy images that lie in a file (`kdray.utils.stored`) into memory, and into its object store. A worker of the
same machine maps the file instead. One of another machine gets the images in parts through the object store, into a
file of its own: the first that asks starts an actor beside the file, which puts the parts there.
"""

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.cloudpickle import CloudPickler
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import NAMESPACE
from kdray.errors import ScoringError
from kdray.utils.stored import SharedFile, any_stored, gathered, is_stored, pieces

_MAX_TRIES = 3
_KEPT = 2  # keepers of earlier images that are kept: other workers may still be asking them
_KEEPERS: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """An object without its large images.

    Attributes:
        content: the object, pickled.
        buffers: memory of its arrays, which is not copied.
        files: the images.
        node: ID of the node where the files are.
    """

    content: bytes
    buffers: tuple[pickle.PickleBuffer, ...]
    files: tuple[SharedFile, ...]
    node: str


def pack(value: Any) -> Any:
    """What to put into the object store for `value`: the object itself, if no images in it lie in a file."""
    if not any_stored():
        return value
    content = io.BytesIO()
    packer = _Packer(content)
    packer.dump(value)
    if not packer.files:
        return value
    node = ray.get_runtime_context().get_node_id()
    return Parcel(content=content.getvalue(), buffers=tuple(packer.buffers), files=tuple(packer.files), node=node)


def pack_images(images: torch.Tensor) -> Any:
    """The same for uint8 [N, C, H, W] alone: as an array, which Ray copies once, if they do not lie in a file."""
    return pack(images) if is_stored(images) else images.numpy()


def unpack(value: Any) -> Any:
    """The object that `pack` was given; images [N, C, H, W] where `pack_images` was.

    Raises:
        ScoringError: images of another machine do not arrive.
    """
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())  # the object store's memory cannot be written to
    return _Unpacker(value).load() if isinstance(value, Parcel) else value


class _Packer(CloudPickler):
    def __init__(self, content: io.BytesIO) -> None:
        self.buffers: list[pickle.PickleBuffer] = []
        self.files: list[SharedFile] = []
        super().__init__(content, protocol=5, buffer_callback=self.buffers.append)

    def persistent_id(self, value: Any) -> int | None:
        """A number in place of images in a file."""
        if not isinstance(value, torch.Tensor) or not is_stored(value):
            return None
        self.files.append(SharedFile.of(value))
        return len(self.files) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, parcel: Parcel) -> None:
        super().__init__(io.BytesIO(parcel.content), buffers=parcel.buffers)
        self._parcel = parcel

    def persistent_load(self, number: int) -> torch.Tensor:
        """The images of a number."""
        file = self._parcel.files[number]
        images = file.open()
        return fetch(file, self._parcel.node) if images is None else images


class ImageKeeper:
    """Puts the images of a file into the object store when they are first asked for.

    Args:
        file: on the node of this actor.
    """

    def __init__(self, file: SharedFile) -> None:
        self._file = file
        self._parts: list[Any] | None = None

    def parts(self) -> list[Any]:
        """References of arrays uint8 [n, C, H, W], in order. There are none where the file is gone."""
        if self._parts is None:
            images = self._file.open()
            self._parts = [] if images is None else [ray.put(part) for part in pieces(images)]
        return self._parts


def fetch(file: SharedFile, node: str) -> torch.Tensor:
    """The images of a file on another node.

    Raises:
        ScoringError: they do not arrive.
    """
    name = f"kdray-images-{file.machine}-{'-'.join(map(str, file.file))}"
    reason = "the file is gone"
    for _ in range(_MAX_TRIES):
        try:
            parts = ray.get(_keeper(name, file, node).parts.remote())
            if not parts:
                break
            return gathered(_arrays(parts), file.shape[0])
        except RayError as error:  # the worker that had started the keeper has ended, and the keeper with it
            _KEEPERS.pop(name, None)
            reason = str(error).strip().splitlines()[0]
    raise ScoringError(
        f"the images do not arrive from the driver's node ({reason}); look at 'ray status', then 'kdray resume'"
    )


def _keeper(name: str, file: SharedFile, node: str) -> Any:
    """The keeper of this name: ours, that of another worker, or a new one. One ends with the process that started it,
    or as soon as this drops it."""
    if name not in _KEEPERS:
        while len(_KEEPERS) >= _KEPT:
            del _KEEPERS[next(iter(_KEEPERS))]
        beside = NodeAffinitySchedulingStrategy(node, soft=False)
        actor: Any = ray.remote(ImageKeeper).options(
            name=name, namespace=NAMESPACE, get_if_exists=True, num_cpus=0, scheduling_strategy=beside
        )
        _KEEPERS[name] = actor.remote(file)
    return _KEEPERS[name]


def _arrays(parts: list[Any]) -> Iterator[np.ndarray]:
    while parts:
        yield ray.get(parts.pop(0))
