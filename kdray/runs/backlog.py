"""The images a purchase has still to ask for, in batches; which are asked again, and which are given up."""

import itertools
from collections import Counter, deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from kdray.ledger.records import GrantPart


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images that go in one request.

    Attributes:
        positions: of the images, among those of the purchase.
        attempt: 1 for the first request with them.
    """

    positions: Sequence[int]
    attempt: int = 1


class Backlog:
    """Batches that wait to be sent.

    Args:
        hashes: of all images of the purchase, by position; an image may appear twice.
        known: hashes of the images that have an answer.
        refusals: hash -> (times, reason) of images that got an answer nobody could believe in earlier processes. Each
            of those was paid for, so it counts as a try.
        tries: how often an image is asked for before it is set aside.
        batch_size: images a request.

    Attributes:
        set_aside: hash -> reason, of the images that are given up.
    """

    def __init__(
        self,
        hashes: Sequence[bytes],
        known: Container[bytes],
        refusals: Mapping[bytes, tuple[int, str]],
        *,
        tries: int,
        batch_size: int,
    ) -> None:
        self._hashes, self._tries_allowed = hashes, tries
        self._tries = Counter({key: times for key, (times, _) in refusals.items()})
        self.set_aside = {key: reason for key, (times, reason) in refusals.items() if times >= tries}
        # Cut by position, so that a run that goes on asks for the same batches, less the images that are answered.
        batches: dict[int, list[int]] = {}
        seen: set[bytes] = set()
        for position, key in enumerate(hashes):
            if key not in seen and key not in known and key not in self.set_aside:
                batches.setdefault(position // batch_size, []).append(position)
            seen.add(key)
        self._queue = deque(Batch(positions=batches[number]) for number in sorted(batches))

    def __bool__(self) -> bool:
        return bool(self._queue)

    def hashes(self) -> list[bytes]:
        """Of the images that wait."""
        return [self._hashes[position] for batch in self._queue for position in batch.positions]

    def first(self, count: int) -> list[Batch]:
        """The first `count` batches, or as many as there are. They stay."""
        return list(itertools.islice(self._queue, count))

    def split_first(self) -> None:
        """Send the first image alone, ahead of the rest of its batch."""
        self._replace_first(1)

    def take(self, parts: Sequence[GrantPart]) -> list[Batch]:
        """Take the first `len(parts)` batches off the queue; for each, what of it may be sent.

        Images that another purchase has on their way go to the end, those that were left out to the front again.
        """
        later, sent = [], []
        for part in parts:
            batch = self._queue.popleft()
            position = {self._hashes[p]: p for p in batch.positions}
            granted, busy, left = (
                Batch(positions=[position[key] for key in keys], attempt=batch.attempt)
                for keys in (part.send, part.busy, part.left)
            )
            sent.append(granted)
            if busy.positions:
                later.append(busy)
            if left.positions:
                self._queue.appendleft(left)  # only the last part can be cut
        self._queue.extend(later)
        return sent

    def drop(self, known: Container[bytes]) -> None:
        """Take off the images that have an answer by now."""
        left = (
            Batch(positions=[p for p in batch.positions if self._hashes[p] not in known], attempt=batch.attempt)
            for batch in self._queue
        )
        self._queue = deque(batch for batch in left if batch.positions)

    def tried(self, batch: Batch) -> bool:
        """Whether each of its images has failed before, on its own account."""
        return all(self._tries[self._hashes[p]] for p in batch.positions)

    def retry(self, batch: Batch, reasons: Mapping[int, str]) -> None:
        """Count a try for the images at these positions: those with tries left go to the end of the queue."""
        again = []
        for position, reason in reasons.items():
            key = self._hashes[position]
            self._tries[key] += 1
            if self._tries[key] < self._tries_allowed:
                again.append(position)
            else:
                self.set_aside[key] = reason
        if again:
            self._queue.append(Batch(positions=again, attempt=batch.attempt + 1))

    def resend(self, batch: Batch) -> None:
        """Ask for a batch that cost nothing again, before all others."""
        self._queue.appendleft(Batch(positions=batch.positions, attempt=batch.attempt + 1))

    def halve(self, batch: Batch, reason: str) -> None:
        """Ask again in two parts: one image that the teacher does not take must not cost the others their answer."""
        if len(batch.positions) == 1:
            self.set_aside[self._hashes[batch.positions[0]]] = reason
            return
        self.resend(batch)
        self._replace_first((len(batch.positions) + 1) // 2)

    def _replace_first(self, cut: int) -> None:
        head = self._queue.popleft()
        for positions in (head.positions[cut:], head.positions[:cut]):
            if positions:
                self._queue.appendleft(Batch(positions=positions, attempt=head.attempt))
