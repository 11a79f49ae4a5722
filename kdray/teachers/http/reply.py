"""The parts of a teacher's section that say where in a reply the answer is, and where a later reply will be."""

from __future__ import annotations

from pydantic import model_validator

from kdray.sections.base import Section
from kdray.teachers.http.paths import Path


class HttpReply(Section):
    """json: where the answer is in a reply. A path is keys and list positions with dots between, such as
    `result.0.scores`, or a list of them, such as [result, 0, scores]; an empty one is the place itself. A key may hold
    dots itself, and a text on the way is read as JSON."""

    rows: Path | None = None
    """Path to the list that has an entry for each image; null: the whole reply is about one image."""
    id: Path | None = None
    """In an entry, path to the id that the request gave the image with "$id" or "$ids". null: the entries are in the
    order of the images."""
    probabilities: Path | None = None
    """In an entry, path to K numbers, or to a mapping from class name to number. With topK answers the mapping may
    leave classes out."""
    ignore: tuple[str, ...] = ()
    """Keys of such a mapping that are no classes, such as [model]."""
    items: Path | None = None
    """In an entry, path to a list of classes with their numbers, the likeliest of them or all: see `label`, `score`."""
    label: Path | None = None
    """In an item of `items`, or without `items` in the entry, path to a class: its name or number. With `score` and
    without `items`, it may also be a list of classes."""
    score: Path | None = None
    """In an item of `items`, or without `items` in the entry, path to the class's probability; a list where `label`
    is one."""

    @model_validator(mode="after")
    def _one_form(self) -> HttpReply:
        if self.probabilities is not None:
            if self.items is not None or self.label is not None or self.score is not None:
                raise ValueError("give probabilities alone, or label and score (with items or without), or label alone")
        elif self.label is None:
            raise ValueError(
                "say where the answer is: probabilities, or label and score (with items or without), or label alone"
            )
        elif self.items is not None and self.score is None:
            raise ValueError("items needs label and score: where an item has its class and its probability")
        if self.ignore and self.probabilities is None:
            raise ValueError("ignore names keys of the mapping at probabilities; without that leave it out")
        if self.id is not None and self.rows is None:
            raise ValueError("id needs rows: the list whose entries carry the ids")
        return self


class HttpPoll(Section):
    """Servers that answer 202 and have the result later, at an address of their own. It is asked for with GET, with the
    same headers, until it is there or `timeout_s` is over; it must be at the host of `url`."""

    url: Path | None = None
    """In the body of the 202, path to the address of the result; null takes the header Location or
    Operation-Location."""
    status: Path | None = None
    """In a later reply, path to a word that says whether the result is there. null: status 202 says that it is not."""
    pending: tuple[str, ...] = ("queued", "pending", "starting", "started", "running", "processing", "in_progress")
    """Words at `status` that mean: not yet. Case does not matter."""
