"""Any server that takes and gives JSON: a template says what a request looks like, paths say where the answer is."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kdray.images.png import encode_png
from kdray.teachers.answers import Answers
from kdray.teachers.http.parse import MalformedReply, Reader, short
from kdray.teachers.http.wire import Wire, exactly, register
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.teachers.http.section import HttpTeacherConfig

_POSITION = re.compile(r"-?[0-9]+")


@register("json")
class JsonWire(Wire):
    """Any server that takes and gives JSON."""

    def __init__(self, section: HttpTeacherConfig, image_shape: tuple[int, int, int]) -> None:
        self.url, self._section, self._reader = section.url, section, Reader(section)
        self._template = {"images": "$images"} if section.request is None else section.request

    @classmethod
    def check(cls, section: HttpTeacherConfig) -> None:
        """See `Wire`."""
        if section.model is not None or section.version is not None or section.output is not None:
            raise ValueError("model, version and output belong to v2; with json the url says it all")
        if section.reply.probabilities is None and section.reply.items is None and section.answers != "hard":
            raise ValueError("the reply gives labels alone; set answers to hard")
        if section.batch_size > 1 and section.reply.rows is None:
            raise ValueError("without reply.rows a reply is about one image; set batch_size to 1")
        if section.input.name is not None:
            raise ValueError("input.name belongs to v2; with json the request says it all")
        png = section.input.encoding == "png"
        _check_template(section.request, section.batch_size, png)
        if png and (section.input.pixels != "uint8" or section.input.layout is not None):
            raise ValueError("input.encoding: png sends the image as it is; leave input.pixels and input.layout out")
        if png and section.input.colour == "bgr":
            raise ValueError("input.colour: bgr is for arrays; a PNG says itself which channel is which: use rgb")

    def request(self, images: Tensor) -> Any:
        """See `Wire`."""
        if self._section.input.encoding == "png":
            encoded: list[Any] = [base64.b64encode(encode_png(image)).decode() for image in images.numpy()]
        else:
            encoded = self._section.input.array(images, self.layout).tolist()
        return _fill(self._template, encoded)

    def answers(self, reply: Any, batch: int) -> Answers:
        """See `Wire`."""
        places, rows = self._section.reply, [reply]
        if places.rows is not None:
            rows = follow(reply, places.rows)
            if not isinstance(rows, list):
                raise MalformedReply(f"{places.rows!r} of the teacher's reply is no list: check teacher.reply.rows")
        rows = exactly(rows, batch)
        if (numbers := places.probabilities) is not None:
            return self._each(rows, lambda row: follow(row, numbers), self._reader.probabilities)
        if (items := places.items) is not None:
            return self._each(rows, lambda row: self._pairs(row, items), self._reader.top)
        return self._each(rows, lambda row: follow(row, places.label or ""), self._reader.labels)

    def _pairs(self, row: Any, path: str) -> list[tuple[Any, Any]]:
        """(class, number) of each item in the list at `path` of an entry."""
        items, places = follow(row, path), self._section.reply
        if not isinstance(items, list):
            raise MalformedReply(f"{path!r} of the teacher's reply is no list: check teacher.reply.items")
        return [(follow(item, places.label or ""), follow(item, places.score or "")) for item in items]

    def _each(self, rows: list[Any], find: Callable[[Any], Any], read: Callable[[list[Any]], Answers]) -> Answers:
        """`read` what `find` finds in each row. A row in which it finds nothing is invalid; raise where all are."""
        found: list[Any] = []
        bad: dict[int, str] = {}
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
    """The value at `path` in a JSON value; a path is keys and list positions with dots between.

    Raises:
        MalformedReply: there is none.
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


def _check_template(template: Any, batch_size: int, png: bool) -> None:
    """Refuse a template that cannot be written as JSON, holds too few marks for images, or marks that are not replaced.

    Raises:
        ValueError: one of these.
    """
    try:
        json.dumps(template, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"request cannot be written as JSON ({error}); put quotes around dates and the like") from None
    found = _marks(template, png) if template is not None else {"$images"}
    if not found:
        raise ValueError('request holds no "$image", "$images" or {$each: ...}: where does the image belong?')
    if found == {"$image"} and batch_size > 1:
        raise ValueError('request takes one "$image"; set batch_size to 1, or use "$images" or {$each: ...}')


def _marks(template: Any, png: bool) -> set[str]:
    """The marks in a template: $image, $images, $each."""
    if isinstance(template, dict):
        if "$each" not in template:
            return {mark for part in template.values() for mark in _marks(part, png)}
        if len(template) > 1:
            raise ValueError("request: $each stands alone: {$each: ...} is a list, and can have no other keys")
        if not _marks(template["$each"], png):
            raise ValueError('request: {$each: ...} holds no "$image"')
        return {"$each"}
    if isinstance(template, list):
        return {mark for part in template for mark in _marks(part, png)}
    if not isinstance(template, str) or "$image" not in template:
        return set()
    if template in ("$image", "$images"):
        return {template}
    if "$images" in template or not png:
        raise ValueError(f'request: {template!r} has text around an image; only "$image" with input.encoding: png may')
    return {"$image"}
