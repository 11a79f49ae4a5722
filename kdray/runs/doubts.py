"""Images that the teacher did not take, each asked about alone: is it the image, or how all are asked about?

An expired key, a changed address or a broken setting looks just like an image that the teacher does not take. An
answer to another image that is asked about later tells: only then is the image remembered as declined.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass, replace

from kdray.ledger.records import Outcome

_SHOWN = 3  # images named in a message
_DOUBTS = 3  # images in a row after which others are picked out to ask about


@dataclass(frozen=True, kw_only=True)
class _Doubt:
    position: int
    outcome: Outcome
    at: float
    first: bool


class Doubts:
    """The images that were declined since the teacher last answered one.

    Args:
        name: of the image at a position, in words for the user.
    """

    def __init__(self, name: Callable[[int], str]) -> None:
        self._name = name
        self._images: dict[bytes, _Doubt] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._images

    def __len__(self) -> int:
        return len(self._images)

    @property
    def many(self) -> bool:
        """So many that the teacher is in doubt: ask about one image at a time, each from another place."""
        return len(self._images) >= _DOUBTS

    def add(self, key: bytes, position: int, outcome: Outcome, now: float, *, first: bool) -> None:
        """Note that the image at `position`, asked about alone, was declined `now` (seconds of a monotonic clock).
        `first`: the teacher had never answered, so the image deserves to be asked about again."""
        self._images[key] = _Doubt(position=position, outcome=outcome, at=now, first=first)

    def dispelled(self, sent_at: float, waiting: Container[bytes]) -> dict[bytes, Outcome]:
        """The teacher has answered a request sent at `sent_at`: what was declined before was for the image's own sake.

        Args:
            waiting: images that still wait to be asked about; one that is being asked about again is judged by that.

        Returns:
            Of each such image, the outcome that makes the ledger remember it. They are in doubt no more.
        """
        before = {key: doubt for key, doubt in self._images.items() if doubt.at <= sent_at}
        for key in before:
            del self._images[key]
        return {
            key: replace(doubt.outcome, hashes=[key], declined=True)
            for key, doubt in before.items()
            if key in waiting and not doubt.first
        }

    def verdict(self, reason: str, *, answered: bool) -> str:
        """Why the run has to stop. `answered`: the teacher has answered others earlier."""
        shown = [self._name(doubt.position) for doubt in self._images.values()]
        names = ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")
        if not answered:
            return f"{reason}; the teacher has answered no image yet, and did not take {names}"
        return (
            f"{reason}; the teacher has taken none of the last {len(shown)} images, though it answered others before: "
            f"{names}. Nothing is held against them: check the teacher's key, address and settings, then go on"
        )
