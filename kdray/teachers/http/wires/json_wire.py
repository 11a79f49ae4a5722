"""Any server that takes and gives JSON: a template says what a request looks like, paths say where the answer is."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, ClassVar

from kdray.images.png import encode_png
from kdray.teachers.answers import Answers
from kdray.teachers.http.malformed import MalformedReply, short
from kdray.teachers.http.parse import Reader
from kdray.teachers.http.paths import Path, follow, unpacked
from kdray.teachers.http.wire import Wire, exactly, register

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.teachers.http.section import HttpTeacherConfig

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@register("json")
class JsonWire(Wire):
    """Any server that takes and gives JSON."""

    describes: ClassVar[bool] = False

    def __init__(self, section: HttpTeacherConfig, image_shape: tuple[int, int, int]) -> None:
        self.url, self._section, self._reader = section.url, section, Reader(section)
        self._template = {"images": "$images"} if section.request is None else section.request

    @classmethod
    def check(cls, section: HttpTeacherConfig) -> None:
        """See `Wire`."""
        if section.model is not None or section.version is not None or section.output is not None:
            raise ValueError("model, version and output belong to v2; with json the url says it all")
        if section.classification is not None:
            raise ValueError("classification belongs to v2; with json the request says it all")
        if section.reply.probabilities is None and section.reply.score is None and section.answers != "hard":
            raise ValueError("the reply gives labels alone; set answers to hard")
        if section.one_number and section.reply.probabilities is None:
            raise ValueError("one_number needs reply.probabilities: where the number is")
        if section.batch_size > 1 and section.reply.rows is None:
            raise ValueError("without reply.rows a reply is about one image; set batch_size to 1")
        if section.input.name is not None or section.input.datatype is not None:
            raise ValueError("input.name and input.datatype belong to v2; with json the request says it all")
        png = section.input.encoding == "png"
        marks = _check_template(section.request, section.batch_size, png)
        if section.reply.id is not None and not marks & {"$id", "$ids"}:
            raise ValueError('reply.id needs "$id" or "$ids" in the request: where the ids are sent')
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
        return _fill(self._template, encoded, image_ids(len(encoded)))

    def answers(self, reply: Any, batch: int) -> Answers:
        """See `Wire`."""
        places, rows = self._section.reply, [reply]
        if places.rows is not None:
            rows = _list_at(reply, places.rows, "rows")
        rows = exactly(rows, batch)
        if places.id is not None:
            rows = _by_id(rows, places.id)
        if (numbers := places.probabilities) is not None:
            return self._reader.probabilities(rows, lambda row: unpacked(follow(row, numbers)))
        label = places.label or ""
        if places.score is None:
            return self._reader.labels(rows, lambda row: follow(row, label))
        score = places.score
        return self._reader.top(rows, lambda row: self._pairs(row, places.items, label, score))

    def _pairs(self, row: Any, items: Path | None, label: Path, score: Path) -> list[tuple[Any, Any]]:
        """(class, number) of each item in the list at `items` of an entry; without `items`, of the entry's own class or
        classes."""
        if items is not None:
            return [(follow(item, label), follow(item, score)) for item in _list_at(row, items, "items")]
        classes, numbers = follow(row, label), follow(row, score)
        if not isinstance(classes, list) and not isinstance(numbers, list):
            return [(classes, numbers)]
        if not (isinstance(classes, list) and isinstance(numbers, list) and len(classes) == len(numbers)):
            raise MalformedReply(
                f"the teacher's reply has {short(classes)} at {label!r} and {short(numbers)} at {score!r}, not as many "
                "numbers as classes: check teacher.reply"
            )
        return list(zip(classes, numbers, strict=True))


def image_ids(count: int) -> list[str]:
    """What the images of a request are called: a, b, ..., z, aa, ab, ..."""
    ids: list[str] = []
    for number in range(1, count + 1):
        letters, left = "", number
        while left:
            left, rest = divmod(left - 1, len(_LETTERS))
            letters = _LETTERS[rest] + letters
        ids.append(letters)
    return ids


def _by_id(rows: list[Any], path: Path) -> list[Any]:
    """The entries in the order of the images, by the id in each.

    Raises:
        MalformedReply: an id is missing, unknown, or there twice.
    """
    found: dict[str, Any] = {}
    known = image_ids(len(rows))
    for row in rows:
        name = follow(row, path)
        if name not in known:
            raise MalformedReply(f"the teacher's reply has the id {short(name)}, which the request had not")
        if name in found:
            raise MalformedReply(f"the teacher's reply has the id {name!r} twice")
        found[name] = row
    return [found[name] for name in known]


def _list_at(value: Any, path: Path, field: str) -> list[Any]:
    """The list at `path`.

    Raises:
        MalformedReply: there is none.
    """
    found = unpacked(follow(value, path))
    if not isinstance(found, list):
        raise MalformedReply(f"{path!r} of the teacher's reply is no list: check teacher.reply.{field}")
    return found


def _fill(template: Any, images: list[Any], ids: list[str]) -> Any:
    """`template` with the images and their ids in their places."""
    whole = {"$images": images, "$image": images[0], "$ids": ids, "$id": ids[0]}
    if isinstance(template, str):
        if template in whole:
            return whole[template]
        # "data:image/png;base64,$image"
        return template.replace("$image", images[0]) if isinstance(images[0], str) else template
    if isinstance(template, dict):
        if set(template) == {"$each"}:
            return [_fill(template["$each"], [image], [name]) for image, name in zip(images, ids, strict=True)]
        return {key: _fill(part, images, ids) for key, part in template.items()}
    return [_fill(part, images, ids) for part in template] if isinstance(template, list) else template


def _check_template(template: Any, batch_size: int, png: bool) -> set[str]:
    """The marks in a template. Refuses one that cannot be written as JSON, holds too few marks for images, or marks
    that are not replaced.

    Raises:
        ValueError: one of these.
    """
    try:
        json.dumps(template, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"request cannot be written as JSON ({error}); put quotes around dates and the like") from None
    top, inside = _marks(template, png) if template is not None else ({"$images"}, set())
    if not top & {"$image", "$images", "$each"}:
        raise ValueError('request holds no "$image", "$images" or {$each: ...}: where does the image belong?')
    if batch_size > 1 and top & {"$image", "$images", "$each"} == {"$image"}:
        raise ValueError('request takes one "$image"; set batch_size to 1, or use "$images" or {$each: ...}')
    if batch_size > 1 and "$id" in top:
        raise ValueError('request has one "$id" for all images; put it into {$each: ...}, or use "$ids"')
    return top | inside


def _marks(template: Any, png: bool) -> tuple[set[str], set[str]]:
    """The marks in a template ($image, $images, $id, $ids, $each), and those inside {$each: ...}."""
    if isinstance(template, dict) and "$each" in template:
        if len(template) > 1:
            raise ValueError("request: $each stands alone: {$each: ...} is a list, and can have no other keys")
        top, inside = _marks(template["$each"], png)
        if not (top | inside) & {"$image", "$images"}:
            raise ValueError('request: {$each: ...} holds no "$image"')
        return {"$each"}, top | inside
    if isinstance(template, dict | list):
        parts = [_marks(part, png) for part in (template.values() if isinstance(template, dict) else template)]
        return {mark for top, _ in parts for mark in top}, {mark for _, inside in parts for mark in inside}
    if template in ("$image", "$images", "$id", "$ids"):
        return {template}, set()
    if not isinstance(template, str) or "$image" not in template:
        return set(), set()
    if "$images" in template or not png:
        raise ValueError(f'request: {template!r} has text around an image; only "$image" with input.encoding: png may')
    return {"$image"}, set()
