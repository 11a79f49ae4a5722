"""The images a purchase has still to ask for, in batches; which are asked again, and which are given up."""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kdray.errors import TeacherError
from kdray.ledger.records import Failures, GrantPart

_GOLDEN = (5**0.5 - 1) / 2  # its multiples, less their whole parts, are spread evenly


@dataclass(kw_only=True)
class Split:
    """A batch that was declined and asked again in two halves."""

    answered: int = 0
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images that go in one request.

    Attributes:
        positions: of the images, among those of the purchase.
        attempt: 1 for the first request with them.
        split: it is half of a batch that was declined.
    """

    positions: Sequence[int]
    attempt: int = 1
    split: Split | None = None


class Backlog:
    """Batches that wait to be sent.

    An image that failed t times is asked in batches of at most `batch_size` / 2^(t-1): a batch that fails twice is
    halved, so that the one image that spoils it is isolated, and given up alone.

    Args:
        hashes: of all images of the purchase, by position; an image may appear twice.
        known: hashes of the images that have an answer.
        failures: what came of images that were asked about in earlier processes. What was paid for counts as a try;
            those that were declined are set aside.
        tries: how often an image is paid for before it is set aside.
        batch_size: images a request.

    Attributes:
        set_aside: hash -> reason, of the images that are given up.
    """

    def __init__(
        self,
        hashes: Sequence[bytes],
        known: Container[bytes],
        failures: Mapping[bytes, Failures],
        *,
        tries: int,
        batch_size: int,
    ) -> None:
        self._hashes, self._tries_allowed, self._size = hashes, tries, batch_size
        self._tries = Counter({key: found.times for key, found in failures.items()})
        self._own = {key for key, found in failures.items() if found.own}
        self._sent = {key for key, found in failures.items() if found.sent}
        self.set_aside = {
            key: found.reason
            for key, found in failures.items()
            if found.declined or (found.own and found.times >= tries)
        }
        self._declined = {key for key, found in failures.items() if found.declined}
        # Cut by position, so that a run that goes on asks for the same batches, less the images that are answered.
        batches: dict[int, list[int]] = {}
        seen: set[bytes] = set()
        for position, key in enumerate(hashes):
            if key not in seen and key not in known and key not in self.set_aside:
                batches.setdefault(position // batch_size, []).append(position)
            seen.add(key)
        self._queue = deque(batch for number in sorted(batches) for batch in self._cut(batches[number], 1))

    def _cut(self, positions: Sequence[int], attempt: int) -> Iterable[Batch]:
        """Batches of these images, none larger than they may be; those that failed equally often stay together."""
        groups: dict[int, list[int]] = {}
        for position in positions:
            halvings = max(0, self._tries[self._hashes[position]] - 1)
            groups.setdefault(halvings, []).append(position)
        for halvings, group in sorted(groups.items()):
            size = max(1, -(-self._size // 2**halvings))
            for start in range(0, len(group), size):
                yield Batch(positions=group[start : start + size], attempt=attempt)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def hashes(self) -> list[bytes]:
        """Of the images that wait."""
        return [self._hashes[position] for batch in self._queue for position in batch.positions]

    def first(self, count: int) -> list[Batch]:
        """The first `count` batches, or as many as there are. They stay."""
        return list(itertools.islice(self._queue, count))

    def split_first(self) -> None:
        """Send one image alone, ahead of all others: the first that was not sent before, where there is one. Batches
        that were lost stay as they were, since a server may know them again and bill them once: that they had several
        images says that the teacher had answered one."""
        number = next((n for n, batch in enumerate(self._queue) if not self._was_sent(batch)), None)
        if number is not None:
            self._send_alone(number, self._queue[number].positions[0])

    def single_out(self, number: int, but: Container[bytes]) -> None:
        """Send one image alone, ahead of all others: from another place of the queue for each `number`. It is none of
        `but`, where there are others."""
        others = [
            (place, positions)
            for place, batch in enumerate(self._queue)
            if (positions := [p for p in batch.positions if self._hashes[p] not in but])
        ]
        if others:
            place, positions = others[int(number * _GOLDEN % 1.0 * len(others))]
            self._send_alone(place, positions[len(positions) // 2])

    def _send_alone(self, number: int, position: int) -> None:
        batch = self._queue[number]
        del self._queue[number]
        if len(batch.positions) > 1:
            rest = [p for p in batch.positions if p != position]
            self._queue.insert(number, Batch(positions=rest, attempt=batch.attempt))
        self._queue.appendleft(Batch(positions=[position], attempt=batch.attempt))

    def _was_sent(self, batch: Batch) -> bool:
        return any(self._tries[key] or key in self._sent for key in (self._hashes[p] for p in batch.positions))

    def limit(self, size: int) -> bool:
        """Send at most `size` images a request from now on; whether that is less than before."""
        less = size < self._size
        self._size = min(self._size, size)
        self._queue = deque(
            part
            for batch in self._queue
            for part in ([batch] if len(batch.positions) <= size else self._cut(batch.positions, batch.attempt))
        )
        return less

    def answered(self, batch: Batch) -> int | None:
        """Note that a batch was answered. Where both halves of a declined batch were, it was not the images but their
        number: then the images a request that the teacher takes, else None."""
        if batch.split is None:
            return None
        batch.split.answered += 1
        batch.split.size = max(batch.split.size, len(batch.positions))
        return batch.split.size if batch.split.answered == 2 else None

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
            # What is left of a half tells nothing about the number of images.
            sent.append(replace(granted, split=batch.split) if len(part.send) == len(batch.positions) else granted)
            if busy.positions:
                later.append(busy)
            if left.positions:
                self._queue.appendleft(left)  # only the last part can be cut
        self._queue.extend(later)
        return sent

    def drop(self, known: Container[bytes]) -> None:
        """Take off the images that have an answer by now."""
        left = (
            replace(batch, positions=[p for p in batch.positions if self._hashes[p] not in known])
            for batch in self._queue
        )
        self._queue = deque(batch for batch in left if batch.positions)

    def tried(self, batch: Batch) -> bool:
        """Whether each of its images has failed before, on its own account."""
        return all(self._tries[self._hashes[p]] for p in batch.positions)

    def retry(self, batch: Batch, reasons: Mapping[int, str]) -> None:
        """Count a try for the images at these positions. They go to the end of the queue; set aside are those without
        tries left of which it is known that it is them: once they were alone, or the others were answered."""
        if len(batch.positions) == 1 or len(reasons) < len(batch.positions):
            self._own.update(self._hashes[position] for position in reasons)
        again = []
        for position, reason in reasons.items():
            key = self._hashes[position]
            self._tries[key] += 1
            if key in self._own and self._tries[key] >= self._tries_allowed:
                self.set_aside[key] = reason
            else:
                again.append(position)
        self._queue.extend(self._cut(again, batch.attempt + 1))

    def resend(self, batch: Batch) -> None:
        """Ask for a batch that cost nothing again, before all others."""
        self._queue.extendleft(reversed(list(self._cut_to_size(batch.positions, batch.attempt + 1))))

    def _cut_to_size(self, positions: Sequence[int], attempt: int) -> Iterable[Batch]:
        for start in range(0, len(positions), self._size):
            yield Batch(positions=positions[start : start + self._size], attempt=attempt)

    def defer(self, batch: Batch) -> None:
        """Ask for a batch that cost nothing again, after all others."""
        self._queue.append(Batch(positions=batch.positions, attempt=batch.attempt + 1))

    def decline(self, reasons: Mapping[bytes, str], *, known: bool = False) -> None:
        """Set images aside that the teacher does not take: hash -> reason. `known`: the ledger remembers it."""
        self.set_aside.update(reasons)
        self.drop(reasons)
        if known:
            self._declined.update(reasons)

    def check_share(self, share: float, images: int, name: Callable[[int], str]) -> None:
        """Refuse more images set aside than a share of all.

        Args:
            share: of the `images`, each counted once.
            name: of the image at a position, in words for the user.

        Raises:
            TeacherError: there are more; with the last of them.
        """
        if len(self.set_aside) <= share * images:
            return
        key, reason = list(self.set_aside.items())[-1]
        remembered = (
            f". The ledger remembers {len(self._declined):,} of them as declined: if that was not for the images' "
            "sake, mend the cause and run `kdray ledger RUN --forget-declined`"
        )
        raise TeacherError(
            f"{len(self.set_aside):,} of {images:,} images have no answer one can believe, more than "
            f"teacher.retry.max_bad_share = {share:g} allows; the last is {name(self._hashes.index(key))}: "
            f"{reason}{remembered if self._declined else ''}"
        )

    def halve(self, batch: Batch) -> None:
        """Ask again in two parts: one image that the teacher does not take must not cost the others their answer."""
        cut, split = (len(batch.positions) + 1) // 2, Split()
        for positions in (batch.positions[cut:], batch.positions[:cut]):
            self._queue.appendleft(Batch(positions=positions, attempt=batch.attempt + 1, split=split))
