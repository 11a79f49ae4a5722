"""The Open Inference Protocol v2 with JSON tensors: Triton, KServe, MLServer, `kdray teacher serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdray.errors import TeacherError
from kdray.teachers.base import count_in
from kdray.teachers.http import tensors
from kdray.teachers.http.malformed import MalformedReply, short
from kdray.teachers.http.names import ClassNames, Position
from kdray.teachers.http.outputs import OutputChoice
from kdray.teachers.http.parse import Reader
from kdray.teachers.http.wire import Wire, register
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.teachers.answers import Answers
    from kdray.teachers.http.section import HttpTeacherConfig


@register("v2")
class V2Wire(Wire):
    """Open Inference Protocol v2, JSON tensors."""

    layout: ClassVar[str] = "nchw"

    def __init__(self, section: HttpTeacherConfig, image_shape: tuple[int, int, int]) -> None:
        path = f"/v2/models/{section.model}" + (f"/versions/{section.version}" if section.version else "")
        self.about, self.url = _below(section.url, path), _below(section.url, f"{path}/infer")
        self._section, self._shape, self._reader = section, image_shape, Reader(section)
        self._input, self._output = section.input.name, OutputChoice(section)
        self._datatype: str | None = section.input.datatype

    @classmethod
    def check(cls, section: HttpTeacherConfig) -> None:
        """See `Wire`."""
        if section.model is None:
            raise ValueError("model is missing: the name of the model on the server, for v2")
        if section.changed("request") or section.changed("reply"):
            raise ValueError("request and reply belong to json; v2 says itself how they look")
        if section.input.encoding == "png":
            raise ValueError("input.encoding: png is for json; v2 takes arrays")
        if section.input.pixels == "unit" and section.input.datatype in tensors.INTEGERS:
            raise ValueError(f"input.datatype: {section.input.datatype} has no fractions; set input.pixels to uint8")
        if section.classification is not None:
            cls._check_classification(section, section.classification)

    @classmethod
    def _check_classification(cls, section: HttpTeacherConfig, shown: int) -> None:
        count, top = count_in(section.classes), section.form.top or 1
        if section.answers == "soft" and shown < count:
            raise ValueError(f"classification shows {shown} of {count} classes; set answers to top{shown}")
        if shown < top:
            raise ValueError(f"classification shows {shown} classes, fewer than answers: top{top}; set it to {top}")
        if section.one_number:
            raise ValueError("one_number and classification are two ways to show the answer; give one of them up")

    @classmethod
    def replies_in_names(cls, section: HttpTeacherConfig) -> bool:
        """Labels and classification strings may be names; probabilities come as plain numbers."""
        return section.answers == "hard" or section.classification is not None

    def lacks(self) -> str | None:
        """See `Wire`."""
        if self._input is None:
            return "teacher.input.name"
        return "teacher.output" if self._section.classification is not None and self._output.name is None else None

    def learn(self, reply: Any) -> None:
        """Check input and output against the model's metadata, and take their names, and the input's datatype, from it
        where the config gives none. The protocol allows a server to leave both out.

        Raises:
            TeacherError: another input, datatype, shape or number of classes than the config says; several outputs
                that can hold the answer; classes in another order.
        """
        inputs, outputs = tensors.entries(reply, "inputs"), tensors.entries(reply, "outputs")
        if inputs:
            self._learn_input(inputs)
        if outputs and all("datatype" in entry for entry in outputs):
            self._output.learn(outputs)
        for entry in outputs:
            self._check_names(entry.get("parameters"))
        if self._section.classification is not None and self._output.name is None:
            raise TeacherError("the model's metadata names no output to classify; set teacher.output")

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
        if (wanted := tensors.datatype(entry)) is not None:
            own = self._section.input.datatype
            if own is None and tensors.keeps_pixels(array, wanted):
                self._datatype = wanted
            elif wanted != (sent := own or tensors.natural_datatype(array)):
                hint = _datatype_hint(wanted, own is None)
                field = "pixels" if own is None else "datatype"
                raise TeacherError(f"teacher.input.{field}: the model takes {wanted}, kdray would send {sent}; {hint}")
        shape = tensors.sizes(entry)
        if shape and not tensors.fits(shape, array.shape):
            raise TeacherError(
                f"the model takes images of shape {shape}, kdray would send {[-1, *array.shape[1:]]}; "
                "set size, colour and layout of teacher.input to bring them together"
            )
        if shape and len(shape) == array.ndim and shape[0] > 0:
            self.batch_limit = shape[0]

    def _check_names(self, parameters: Any) -> None:
        """Refuse classes in another order than in a mapping of position to name, as `kdray teacher serve` has it."""
        names, count = self._section.class_names(), self._reader.num_classes
        said = [parameters.get(str(k)) for k in range(count)] if isinstance(parameters, dict) else [None]
        if names is None or not all(isinstance(name, str) for name in said):
            return
        own = ClassNames(names, count, "names")
        for position, name in enumerate(said):
            try:
                other = own.index(name)
            except MalformedReply:
                continue  # the user may have other words for the same classes
            if other != position:
                raise TeacherError(
                    f"teacher.classes: class {position} of the server is {name!r}, of teacher.classes "
                    f"{names[position]!r}; list the classes in the server's order"
                )

    def request(self, images: Tensor) -> Any:
        """See `Wire`."""
        array = self._section.input.array(images, self.layout)
        datatype = self._datatype or tensors.natural_datatype(array)
        tensor = {"name": self._input or "input", "shape": list(array.shape), "datatype": datatype}
        body: dict[str, Any] = {"inputs": [tensor | {"data": tensors.cast(array, datatype).reshape(-1).tolist()}]}
        if self._output.name is not None:
            body["outputs"] = [{"name": self._output.name}]
            if self._section.classification is not None:
                body["outputs"][0]["parameters"] = {"classification": self._section.classification}
        return body

    def answers(self, reply: Any, batch: int) -> Answers:
        """See `Wire`."""
        outputs = reply.get("outputs") if isinstance(reply, dict) else None
        if not isinstance(outputs, list) or not all(isinstance(entry, dict) for entry in outputs):
            raise MalformedReply(f"the teacher's reply has no outputs: {short(reply)}")
        entry = self._output.pick(outputs, batch)
        data = entry.get("data")
        if not isinstance(data, list):
            raise MalformedReply(f"output {entry.get('name')!r} of the teacher's reply has no data")
        classified = self._section.classification is not None and tensors.datatype(entry) == "BYTES"
        numbers = self._output.holds_numbers(entry)
        rows = tensors.rows(data, tensors.sizes(entry), batch, single=not (numbers or classified))
        if classified:
            return self._reader.top(rows, self._classified)
        return self._reader.probabilities(rows) if numbers else self._reader.labels(rows)

    def _classified(self, row: Any) -> list[tuple[Any, Any]]:
        """(class, number) from each of Triton's classification strings, "0.7:2:name" or "0.7:2"."""
        pairs: list[tuple[Any, Any]] = []
        for text in row if isinstance(row, list) else [row]:
            number, _, named = str(text).partition(":")
            position, _, name = named.partition(":")
            if not position.isascii() or not position.isdigit():
                raise MalformedReply(f"the teacher answered {short(text)}, not number:position or number:position:name")
            by_name = name and self._section.class_names() is not None and self._section.labels != "positions"
            pairs.append((name if by_name else Position(position), number))
        return pairs


def _datatype_hint(wanted: str, free: bool) -> str:
    """What to do about a model whose input is of datatype `wanted`; `free`: the config names no datatype."""
    if not free:
        return f"set teacher.input.datatype to {wanted}"
    if wanted in tensors.FLOATS:
        return f"set teacher.input.pixels to unit, or teacher.input.datatype to {wanted} if it takes 0..255"
    if wanted == "INT8":
        return "set teacher.input.datatype to INT8 if it takes pixel - 128"
    return "set teacher.input.pixels to uint8" if wanted in tensors.INTEGERS else "it can send numbers only"


def _below(base: str, path: str) -> str:
    """`base` with `path` added to its path; `base` may have a query."""
    front, mark, query = base.partition("?")
    return front.rstrip("/") + path + mark + query
