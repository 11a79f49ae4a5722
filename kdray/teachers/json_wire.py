"""What a request looks like and where the answer is in a reply, for any server that takes and gives JSON."""

import base64
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdray.images import encode_png
from kdray.teachers.answers import Answers
from kdray.teachers.reader import MalformedReply, Reader, short
from kdray.teachers.wire import Writer, exactly

_POSITION = re.compile(r"-?[0-9]+")


class JsonWire:
    """Any server that takes and gives JSON.

    Args:
        template: the body; "$image", "$images" and {"$each": ...} mark where images belong.
        rows, probabilities, items, label, score: paths; see `kdray.config.HttpReply`.
    """

    about = None

    def __init__(
        self,
        url: str,
        *,
        reader: Reader,
        writer: Writer,
        png: bool = False,
        template: Any = None,
        rows: str | None = None,
        probabilities: str | None = None,
        items: str | None = None,
        label: str | None = None,
        score: str | None = None,
    ) -> None:
        self.url = url
        self._reader, self._writer, self._png = reader, writer, png
        self._template = {"images": "$images"} if template is None else template
        self._rows, self._probabilities, self._items, self._label, self._score = (
            rows,
            probabilities,
            items,
            label,
            score,
        )

    def learn(self, reply: Any) -> None:
        """Nothing is known about it."""

    def request(self, images: Tensor) -> Any:
        """See `Wire`."""
        if self._png:
            encoded: list[Any] = [base64.b64encode(encode_png(image)).decode() for image in images.numpy()]
        else:
            encoded = self._writer.array(images).tolist()
        return _fill(self._template, encoded)

    def answers(self, reply: Any, batch: int) -> Answers:
        """See `Wire`."""
        rows = [reply]
        if self._rows is not None:
            rows = follow(reply, self._rows)
            if not isinstance(rows, list):
                raise MalformedReply(f"{self._rows!r} of the teacher's reply is no list: check teacher.reply.rows")
        rows = exactly(rows, batch)
        if self._probabilities is not None:
            return self._each(rows, lambda row: follow(row, self._probabilities), self._reader.probabilities)
        if self._items is None:
            return self._each(rows, lambda row: follow(row, self._label), self._reader.labels)
        return self._each(rows, self._pairs, self._reader.top)

    def _pairs(self, row: Any) -> list[tuple[Any, Any]]:
        items = follow(row, self._items)
        if not isinstance(items, list):
            raise MalformedReply(f"{self._items!r} of the teacher's reply is no list: check teacher.reply.items")
        return [(follow(item, self._label), follow(item, self._score)) for item in items]

    def _each(self, rows: list, find: Callable[[Any], Any], read: Callable[[list], Answers]) -> Answers:
        """`read` what `find` finds in each row. Where it finds nothing the row is bad; where it never does, raise."""
        found, bad = [], {}
        for k, row in enumerate(rows):
            try:
                found.append(find(row))
            except MalformedReply as reason:
                bad[k] = str(reason)
        if len(bad) == len(rows):
            raise MalformedReply(next(iter(bad.values())))
        answers = read(found)
        kept = [k for k in range(len(rows)) if k not in bad]
        bad |= {kept[k]: reason for k, reason in answers.bad.items()}
        spread = torch.zeros(len(rows), dtype=torch.int64).scatter(0, torch.tensor(kept), answers.labels)
        probs = answers.probs
        if probs is not None:
            probs = torch.zeros(len(rows), self._reader.num_classes).index_copy(0, torch.tensor(kept), probs)
        return Answers(probs=probs, labels=spread, num_classes=self._reader.num_classes, bad=bad)


def follow(value: Any, path: str) -> Any:
    """What lies at `path` in a JSON value: keys and list positions with dots between.

    Raises:
        MalformedReply: nothing does.
    """
    here = value
    for step in filter(None, path.split(".")):
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and _POSITION.fullmatch(step) and -len(here) <= int(step) < len(here):
            here = here[int(step)]
        else:
            raise MalformedReply(f"the teacher's reply has nothing at {path!r}: {short(value)}; check teacher.reply")
    return here


def _fill(template: Any, images: list[Any]) -> Any:
    """`template` with the images in their places."""
    if template == "$images":
        return images
    if template == "$image":
        return images[0]
    if isinstance(template, str):  # "data:image/png;base64,$image"
        return template.replace("$image", images[0]) if isinstance(images[0], str) else template
    if isinstance(template, dict):
        if set(template) == {"$each"}:
            return [_fill(template["$each"], [image]) for image in images]
        return {key: _fill(part, images) for key, part in template.items()}
    return [_fill(part, images) for part in template] if isinstance(template, list) else template
