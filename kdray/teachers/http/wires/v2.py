"""The Open Inference Protocol v2 with JSON tensors: Triton, KServe, MLServer, `kdray teacher serve`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kdray.errors import TeacherError
from kdray.teachers.http.parse import MalformedReply, Reader, short
from kdray.teachers.http.wire import Wire, exactly, register
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.teachers.answers import Answers
    from kdray.teachers.http.section import HttpTeacherConfig

_FLOATS = ("FP32", "FP64", "FP16", "BF16")


@register("v2")
class V2Wire(Wire):
    """Open Inference Protocol v2, JSON tensors."""

    layout: ClassVar[str] = "nchw"

    def __init__(self, section: HttpTeacherConfig, image_shape: tuple[int, int, int]) -> None:
        path = f"/v2/models/{section.model}" + (f"/versions/{section.version}" if section.version else "")
        self.about, self.url = _below(section.url, path), _below(section.url, f"{path}/infer")
        self._section, self._shape, self._reader = section, image_shape, Reader(section)
        self._input, self._output = section.input.name, section.output

    @classmethod
    def check(cls, section: HttpTeacherConfig) -> None:
        """See `Wire`."""
        if section.model is None:
            raise ValueError("model is missing: the name of the model on the server, for v2")
        if section.changed("request") or section.changed("reply"):
            raise ValueError("request and reply belong to json; v2 says itself how they look")
        if section.input.encoding == "png":
            raise ValueError("input.encoding: png is for json; v2 takes arrays")

    @classmethod
    def replies_in_names(cls, section: HttpTeacherConfig) -> bool:
        """Only labels may be names; probabilities come as plain numbers."""
        return section.answers == "hard"

    def learn(self, reply: Any) -> None:
        """Check input and output against the model's metadata, and take the input's name from it where none was
        given. The protocol allows a server to leave both out.

        Raises:
            TeacherError: another input, datatype, shape or number of classes than the config says.
        """
        inputs, outputs = _entries(reply, "inputs"), _entries(reply, "outputs")
        if inputs:
            self._learn_input(inputs)
        if outputs and all("datatype" in entry for entry in outputs):
            self._learn_output(outputs)

    def _learn_input(self, inputs: list[dict[str, Any]]) -> None:
        names = ", ".join(repr(entry.get("name")) for entry in inputs)
        if self._input is None and len(inputs) > 1:
            raise TeacherError(f"the model has several inputs: {names}; set teacher.input.name to the image's")
        entry = next((e for e in inputs if self._input in (None, e.get("name"))), None)
        if entry is None:
            raise TeacherError(f"teacher.input.name: the model has no input {self._input!r}; it has {names}")
        if isinstance(entry.get("name"), str):
            self._input = entry["name"]
        array = self._section.input.array(torch.zeros(1, *self._shape, dtype=torch.uint8), self.layout)
        datatype, wanted = _datatype(entry), _datatype_of(array)
        if datatype not in (None, wanted):
            other = {"UINT8": "uint8", "FP32": "unit"}.get(str(datatype))
            hint = f"set teacher.input.pixels to {other}" if other else "it can send UINT8 and FP32 only"
            raise TeacherError(f"teacher.input.pixels: the model takes {datatype}, kdray would send {wanted}; {hint}")
        shape = _sizes(entry)
        if shape and not _fits(shape, array.shape):
            raise TeacherError(
                f"the model takes images of shape {shape}, kdray would send {[-1, *array.shape[1:]]}; "
                "set images.size, images.colour and teacher.input.layout to bring them together"
            )
        if shape and len(shape) == array.ndim and shape[0] > 0:
            self.batch_limit = shape[0]

    def _learn_output(self, outputs: list[dict[str, Any]]) -> None:
        if self._output is not None and all(entry.get("name") != self._output for entry in outputs):
            return  # some servers give outputs that they do not list
        try:
            entry = self._choose(outputs)
        except MalformedReply as reason:
            raise TeacherError(str(reason)) from None
        shape = _sizes(entry) if _datatype(entry) in _FLOATS else None
        counts = {math.prod(sizes) for sizes in (shape or [], (shape or [])[1:]) if sizes and min(sizes) > 0}
        if counts and self._reader.num_classes not in counts:  # some leave the batch out of the shape
            raise TeacherError(
                f"output {entry.get('name')!r} of the model has shape {shape}, teacher.classes says "
                f"{self._reader.num_classes}: check teacher.classes and teacher.output"
            )

    def request(self, images: Tensor) -> Any:
        """See `Wire`."""
        array = self._section.input.array(images, self.layout)
        tensor = {"name": self._input or "input", "shape": list(array.shape), "datatype": _datatype_of(array)}
        body: dict[str, Any] = {"inputs": [tensor | {"data": array.reshape(-1).tolist()}]}
        if self._output is not None:
            body["outputs"] = [{"name": self._output}]
        return body

    def answers(self, reply: Any, batch: int) -> Answers:
        """See `Wire`."""
        outputs = reply.get("outputs") if isinstance(reply, dict) else None
        if not isinstance(outputs, list) or not all(isinstance(entry, dict) for entry in outputs):
            raise MalformedReply(f"the teacher's reply has no outputs: {short(reply)}")
        entry = self._choose(outputs)
        data = entry.get("data")
        if not isinstance(data, list):
            raise MalformedReply(f"output {entry.get('name')!r} of the teacher's reply has no data")
        if _datatype(entry) not in _FLOATS:
            return self._reader.labels(exactly(_flat(data), batch))
        if data and not isinstance(data[0], list):
            if len(data) % batch:
                raise MalformedReply(f"the teacher gave {len(data)} numbers for {batch} images")
            width = len(data) // batch
            data = [data[k * width : (k + 1) * width] for k in range(batch)]
        return self._reader.probabilities(exactly(data, batch))

    def _choose(self, outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The output with the answer."""
        hard = self._reader.form.kind == "hard"
        floats = [e for e in outputs if _datatype(e) in _FLOATS]
        others = [e for e in outputs if _datatype(e) not in _FLOATS]
        fitting = (others + floats) if hard else floats
        if self._output is not None:
            if all(entry.get("name") != self._output for entry in outputs):
                raise MalformedReply(f"the teacher's reply has no output {self._output!r}: check teacher.output")
            fitting = [entry for entry in fitting if entry.get("name") == self._output]
        if not fitting:
            which = "the teacher" if self._output is None else f"output {self._output!r} of the teacher"
            raise MalformedReply(f"{which} gives no probabilities; set teacher.answers to hard for labels")
        return fitting[0]


def _flat(data: list[Any]) -> list[Any]:
    return [entry[0] if isinstance(entry, list) and len(entry) == 1 else entry for entry in data]


def _below(base: str, path: str) -> str:
    """`base` with `path` added to its path; `base` may have a query."""
    front, mark, query = base.partition("?")
    return front.rstrip("/") + path + mark + query


def _entries(reply: Any, key: str) -> list[dict[str, Any]]:
    """The tensors that metadata lists; none where it lists something else."""
    entries = reply.get(key) if isinstance(reply, dict) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _datatype(entry: dict[str, Any]) -> str | None:
    """A tensor's datatype, which some spell as Triton's configuration does."""
    datatype = entry.get("datatype")
    return datatype.upper().removeprefix("TYPE_") if isinstance(datatype, str) else None


def _sizes(entry: dict[str, Any]) -> list[int] | None:
    """A tensor's shape, where it is one; its numbers may be strings."""
    try:
        return [int(size) for size in entry["shape"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _datatype_of(array: np.ndarray) -> str:
    return "UINT8" if array.dtype == np.uint8 else "FP32"


def _fits(shape: Sequence[int], sent: Sequence[int]) -> bool:
    """Whether an array of shape `sent` is of `shape`, -1 there standing for any number; some leave the batch out."""
    full = shape if len(shape) == len(sent) else [-1, *shape]
    return len(full) == len(sent) and all(want in (-1, has) for want, has in zip(full[1:], sent[1:], strict=True))
