"""What is kept of a training that is under way, so that one that is killed goes on where it was."""

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdray.training.recipe import Recipe

EVERY_S = 15.0
"""Seconds between two states, at least. An epoch of few answers takes a fraction of a second."""


class Saved:
    """The newest state of one training, as bytes that somebody keeps.

    A training may be of several networks, one after another; those that are done are part of the state.

    Args:
        key: of the training, see `training_key`; the state of another one is ignored.
        last: bytes of an earlier state; None or b"" where there is none.
        keep: called with the bytes of each new state.
        every_s: seconds between two states, at least; None: `EVERY_S`.
    """

    def __init__(
        self, key: str, last: bytes | None, keep: Callable[[bytes], None], every_s: float | None = None
    ) -> None:
        self._key, self._keep = key, keep
        self._every_s = EVERY_S if every_s is None else every_s
        self._kept = time.monotonic()
        held = _read(last, key)
        self.done: list[dict[str, Tensor]] = held["done"]
        self.said: list[list[str]] = held.get("said", [[]] * len(self.done))
        self._state: dict[str, Any] | None = held["state"]

    def read(self) -> dict[str, Any] | None:
        """The state of the present network's training to go on from; None where there is none."""
        state, self._state = self._state, None
        return state

    def write(self, state: Callable[[], dict[str, Any]]) -> None:
        """Keep the present state, if the last one is old enough."""
        if time.monotonic() - self._kept < self._every_s:
            return
        file = io.BytesIO()
        torch.save({"key": self._key, "done": self.done, "said": self.said, "state": state()}, file)
        self._keep(file.getvalue())
        self._kept = time.monotonic()

    def finish(self, weights: dict[str, Tensor], said: Sequence[str] = ()) -> None:
        """A network is trained, of which this is to be said; the next one begins."""
        self.done.append(weights)
        self.said.append(list(said))
        self._state = None


_FORMAT = 4  # of a state, and of which networks follow one another; one of another format is another training's


def _read(data: bytes | None, key: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"done": [], "state": None}
    if not data:
        return nothing
    try:
        held: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # a file that is damaged costs time alone
        return nothing
    return held if held.get("key") == key else nothing


def training_key(recipe: Recipe, images: Tensor, targets: Tensor, *facts: object) -> str:
    """Names a training by all that it depends on.

    Args:
        images: uint8 [N, C, H, W].
        targets: float32 [N, K].
        facts: network, seed, round and the like; text or numbers.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_FORMAT, recipe.model_dump(mode="json"), torch.__version__, *map(str, facts)]).encode())
    for tensor in (images, targets):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
