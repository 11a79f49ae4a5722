"""Score a pool with the student and keep the k lowest: one chunk of groups at a time, nothing the size of the pool.

The pool is cut into chunks by group number alone, and a chunk into forward passes by group number alone. So a
candidate is always scored in the same batch, whoever scores it, and the result is the same for any number of workers
and any order of chunks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kdray.errors import ScoringError
from kdray.scores import confidence

# Candidates in one forward pass, about: small enough for a CPU's caches (design, section 8).
BATCH = 256


class GroupedPool(Protocol):
    """What searching needs of a pool."""

    num_groups: int
    group_size: int

    def render_groups(self, start: int, stop: int) -> Tensor:
        """All candidates of the groups [start, stop), uint8 [(stop - start) * group_size, C, H, W]."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What to look for.

    Attributes:
        k: how many.
        per: "group": at most one candidate a group, its lowest (Active Mixup, eq. 3);
            "candidate": no such rule (eq. 2).
        taken: int64, sorted: groups, or candidate ids, that have left the pool.
    """

    k: int
    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Candidates and their scores, ordered by (score, id).

    Attributes:
        scores: float32 [M].
        ids: int64 [M], candidate ids.
        evaluated: forward passes it took, in candidates.
    """

    scores: np.ndarray
    ids: np.ndarray
    evaluated: int


class Searcher(Protocol):
    """Finds the k lowest of a pool; in this process or on Ray."""

    def search(
        self, pool, model: nn.Module, request: SearchRequest, on_progress: Callable[[int, int], None] | None = None
    ) -> Scored:
        """The `request.k` lowest of `pool` under `model`; `on_progress` gets (candidates scored, candidates in all)."""


def groups_per_batch(pool: GroupedPool) -> int:
    """Groups in one forward pass. Whole groups only; a property of the pool alone."""
    return max(1, BATCH // pool.group_size)


@dataclass(frozen=True)
class Chunks(Sequence[tuple[int, int]]):
    """The pool's groups as [start, stop) of about `candidates` candidates each; a chunk's number is its index.

    Nothing is listed: a pool of billions has millions of chunks.
    """

    pool: GroupedPool
    candidates: int

    @property
    def size(self) -> int:
        """Groups in a chunk: whole forward passes."""
        step = groups_per_batch(self.pool)
        return step * max(1, round(self.candidates / (step * self.pool.group_size)))

    def __len__(self) -> int:
        return (self.pool.num_groups + self.size - 1) // self.size

    def __getitem__(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"chunk {number} of {len(self)}")
        return number * self.size, min((number + 1) * self.size, self.pool.num_groups)


def score_chunk(
    pool: GroupedPool, model: nn.Module, start: int, stop: int, request: SearchRequest, bound: float = float("inf")
) -> Scored:
    """Confidence C1 of every candidate of the groups [start, stop); those of the k lowest it can hold.

    Args:
        model: in eval mode, uint8 [B, C, H, W] to logits [B, K].
        start: first group; a multiple of `groups_per_batch`.
        bound: scores above it are left out: the caller already holds k that are lower. Never changes the result.

    Raises:
        ScoringError: the student gives NaN for a candidate.
    """
    size, step = pool.group_size, groups_per_batch(pool)
    parts = []
    with torch.inference_mode():
        for first in range(start, stop, step):
            images = pool.render_groups(first, min(first + step, stop))
            probs = model(images.contiguous(memory_format=torch.channels_last)).float().softmax(dim=1)
            parts.append(confidence(probs))
    scores = torch.cat(parts).cpu().numpy()  # [(stop - start) * size]
    if np.isnan(scores).any():
        candidate = start * size + int(np.isnan(scores).argmax())
        raise ScoringError(
            f"the student's output for candidate {candidate} is not a number: its training has diverged; "
            "lower student.lr"
        )
    evaluated = len(scores)
    if request.per == "group":
        table = scores.reshape(-1, size)
        best = table.argmin(axis=1)  # the first on a tie: the lowest id
        groups = np.arange(start, stop, dtype=np.int64)
        ids, scores = groups * size + best, table[np.arange(len(table)), best]
        free = ~_contains(request.taken, groups)
    else:
        ids = np.arange(start * size, stop * size, dtype=np.int64)
        free = ~_contains(request.taken, ids)
    keep = free & (scores <= bound)
    scores, ids = _lowest(scores[keep], ids[keep], request.k)
    return Scored(scores=scores, ids=ids, evaluated=evaluated)


class LowestK:
    """Merges scored chunks, in any order, into the k lowest by (score, id). Holds at most 4k + one chunk of them."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._scores: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._held = 0
        self.evaluated = 0
        """Candidates scored so far."""
        self.bound = float("inf")
        """No candidate above this can be among the k lowest any more."""

    def add(self, chunk: Scored) -> None:
        """Take in one chunk."""
        self._scores.append(chunk.scores)
        self._ids.append(chunk.ids)
        self._held += len(chunk.ids)
        self.evaluated += chunk.evaluated
        if self._held > 4 * self._k:
            self._shrink()

    def _shrink(self) -> None:
        scores, ids = _lowest(np.concatenate(self._scores), np.concatenate(self._ids), self._k)
        self._scores, self._ids, self._held = [scores], [ids], len(ids)
        if len(ids) == self._k and self._k:
            self.bound = float(scores[-1])

    def result(self) -> Scored:
        """The k lowest so far (fewer if there were fewer)."""
        if not self._ids:
            return Scored(scores=np.empty(0, np.float32), ids=np.empty(0, np.int64), evaluated=self.evaluated)
        self._shrink()
        return Scored(scores=self._scores[0], ids=self._ids[0], evaluated=self.evaluated)


class LocalSearcher:
    """Scores the pool in this process, on one thread, as each Ray worker does: the same bits, no Ray.

    Args:
        chunk: candidates a chunk, about.
        device: cpu or cuda.
    """

    def __init__(self, chunk: int = 8192, device: str = "cpu") -> None:
        self._chunk, self._device = chunk, device

    def search(
        self, pool, model: nn.Module, request: SearchRequest, on_progress: Callable[[int, int], None] | None = None
    ) -> Scored:
        """See `Searcher`."""
        model, pool = prepare(model, self._device), pool.to(self._device)
        merged = LowestK(request.k)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            done = 0
            for start, stop in Chunks(pool, self._chunk):
                merged.add(score_chunk(pool, model, start, stop, request, merged.bound))
                done += (stop - start) * pool.group_size
                if on_progress is not None:
                    on_progress(done, len(pool))
        finally:
            torch.set_num_threads(threads)
        return merged.result()


def prepare(model: nn.Module, device: str) -> nn.Module:
    """The model as it is scored with: on its device, channels last, in eval mode."""
    return model.to(device=device, memory_format=torch.channels_last).eval()


def probe(pool, model: nn.Module, seconds: float, clock: Callable[[], float], device: str = "cpu") -> float:
    """Candidates a second that one worker scores, measured for about `seconds` on the pool's first groups."""
    model = prepare(model, device)
    step = groups_per_batch(pool)
    request = SearchRequest(k=1)
    batches: Iterator[int] = (
        number * step % max(pool.num_groups - step, 1) // step * step for number in range(1 << 60)
    )
    score_chunk(pool, model, 0, min(step, pool.num_groups), request)  # the first pass pays for set-up
    scored, begin = 0, clock()
    while (elapsed := clock() - begin) < seconds or not scored:
        first = next(batches)
        scored += score_chunk(pool, model, first, min(first + step, pool.num_groups), request).evaluated
    return scored / max(elapsed, 1e-9)


def _contains(taken: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which of `values` are in the sorted array `taken`; bool."""
    if len(taken) == 0:
        return np.zeros(len(values), dtype=bool)
    position = np.searchsorted(taken, values)
    return taken[np.minimum(position, len(taken) - 1)] == values


def _lowest(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k lowest by (score, id), in that order. All of them when there are fewer."""
    if k < len(scores):
        # Everything at or below the k-th score; ties there are decided by id in the sort.
        limit = np.partition(scores, k - 1)[k - 1] if k else -np.inf
        near = scores <= limit
        scores, ids = scores[near], ids[near]
    order = np.lexsort((ids, scores))[:k]
    return scores[order], ids[order]
