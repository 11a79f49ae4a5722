"""What a request looks like and where the answer is in a reply, for servers of a known kind. Knows no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdray.errors import TeacherError
from kdray.teachers.answers import Answers
from kdray.teachers.reader import MalformedReply, Reader, short

_FLOATS = ("FP32", "FP64", "FP16", "BF16")


@dataclass(frozen=True, kw_only=True)
class Writer:
    """How images become numbers.

    Attributes:
        unit: divide by 255.
        layout: nchw, nhwc or nhw.
        mean, std: a number a channel, or None.
    """

    unit: bool = False
    layout: str = "nchw"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def array(self, images: Tensor) -> np.ndarray:
        """uint8 [B, C, H, W] as the server wants it: uint8, or float32."""
        array = images.numpy()
        if self.unit:
            array = array.astype(np.float32) / np.float32(255)
            if self.mean is not None:
                shape = (1, -1, 1, 1)
                array = (array - np.float32(self.mean).reshape(shape)) / np.float32(self.std).reshape(shape)
        if self.layout == "nhwc":
            return array.transpose(0, 2, 3, 1)
        return array[:, 0] if self.layout == "nhw" else array


class Wire(Protocol):
    """One kind of server."""

    url: str
    """Where requests go, with ${NAME} for what is secret."""
    about: str | None
    """Where the server says what the model is, free of charge, or None."""

    def learn(self, reply: Any) -> None:
        """Take what `about` replied. TeacherError where it cannot be the model that was meant."""

    def request(self, images: Tensor) -> Any:
        """The body for uint8 [B, C, H, W]."""

    def answers(self, reply: Any, batch: int) -> Answers:
        """The answers in the body of a reply. MalformedReply where there are none."""


class V2Wire:
    """Open Inference Protocol v2, JSON tensors."""

    def __init__(
        self,
        base: str,
        model: str,
        *,
        reader: Reader,
        writer: Writer,
        image_shape: tuple[int, int, int],
        version: str | None = None,
        input_name: str | None = None,
        output: str | None = None,
    ) -> None:
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
        self.about, self.url = _below(base, path), _below(base, f"{path}/infer")
        self._reader, self._writer, self._shape = reader, writer, image_shape
        self._input, self._output = input_name, output

    def learn(self, reply: Any) -> None:
        """Check input and output against the model's metadata, and take the input's name from there where none was
        given. The protocol lets a server say nothing.

        Raises:
            TeacherError: another input, datatype, shape or number of classes than the config says.
        """
        inputs, outputs = _entries(reply, "inputs"), _entries(reply, "outputs")
        if inputs:
            self._learn_input(inputs)
        if outputs and all("datatype" in entry for entry in outputs):
            self._learn_output(outputs)

    def _learn_input(self, inputs: list[dict]) -> None:
        names = ", ".join(repr(entry.get("name")) for entry in inputs)
        if self._input is None and len(inputs) > 1:
            raise TeacherError(f"the model has several inputs: {names}; set teacher.input.name to the image's")
        entry = next((e for e in inputs if self._input in (None, e.get("name"))), None)
        if entry is None:
            raise TeacherError(f"teacher.input.name: the model has no input {self._input!r}; it has {names}")
        if isinstance(entry.get("name"), str):
            self._input = entry["name"]
        array = self._writer.array(torch.zeros(1, *self._shape, dtype=torch.uint8))
        datatype, wanted = _datatype(entry), _datatype_of(array)
        if datatype not in (None, wanted):
            other = {"UINT8": "uint8", "FP32": "unit"}.get(datatype)
            hint = f"set teacher.input.pixels to {other}" if other else "it can send UINT8 and FP32 only"
            raise TeacherError(f"teacher.input.pixels: the model takes {datatype}, kdray would send {wanted}; {hint}")
        shape = _sizes(entry)
        if shape and not _fits(shape, array.shape):
            raise TeacherError(
                f"the model takes images of shape {shape}, kdray would send {[-1, *array.shape[1:]]}; "
                "set images.size, images.colour and teacher.input.layout to bring them together"
            )

    def _learn_output(self, outputs: list[dict]) -> None:
        if self._output is not None and all(entry.get("name") != self._output for entry in outputs):
            return  # some servers give more than they show here
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
        array = self._writer.array(images)
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

    def _choose(self, outputs: list[dict]) -> dict:
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


class TensorFlowWire:
    """TensorFlow Serving's REST form: instances in, predictions out."""

    def __init__(
        self,
        base: str,
        model: str,
        *,
        reader: Reader,
        writer: Writer,
        version: str | None = None,
        input_name: str | None = None,
        output: str | None = None,
    ) -> None:
        path = f"/v1/models/{model}" + (f"/versions/{version}" if version else "")
        self.about, self.url = _below(base, path), _below(base, f"{path}:predict")
        self._reader, self._writer, self._input, self._output = reader, writer, input_name, output

    def learn(self, reply: Any) -> None:
        """Whether a version of the model is there.

        Raises:
            TeacherError: none is.
        """
        states = reply.get("model_version_status") if isinstance(reply, dict) else None
        if isinstance(states, list) and not any(s.get("state") == "AVAILABLE" for s in states if isinstance(s, dict)):
            raise TeacherError("the server has the model, but no version of it is available now")

    def request(self, images: Tensor) -> Any:
        """See `Wire`."""
        instances = self._writer.array(images).tolist()
        return {"instances": [{self._input: one} for one in instances] if self._input else instances}

    def answers(self, reply: Any, batch: int) -> Answers:
        """See `Wire`."""
        rows = reply.get("predictions") if isinstance(reply, dict) else None
        if not isinstance(rows, list):
            raise MalformedReply(f"the teacher's reply has no predictions: {short(reply)}")
        rows = exactly(rows, batch)
        if self._output is not None:
            # A model of one output does not name it.
            if all(isinstance(row, dict) and self._output not in row for row in rows):
                raise MalformedReply(
                    f"the teacher's predictions have no output {self._output!r}, but {short(sorted(rows[0]))}: "
                    "check teacher.output"
                )
            rows = [row.get(self._output) if isinstance(row, dict) else row for row in rows]
        elif all(isinstance(row, dict) and any(isinstance(value, list) for value in row.values()) for row in rows):
            raise MalformedReply(
                f"the teacher's predictions have several outputs, {short(sorted(rows[0]))}: set teacher.output"
            )
        if self._reader.form.kind == "hard":
            rows = _flat(rows)
        if any(isinstance(row, list | dict) for row in rows):
            return self._reader.probabilities(rows)
        if self._reader.form.kind != "hard":
            raise MalformedReply(f"the teacher's predictions are labels ({short(rows)}); set teacher.answers to hard")
        return self._reader.labels(rows)


def exactly(rows: list, batch: int) -> list:
    """`rows`, where they are as many as the images.

    Raises:
        MalformedReply: they are not.
    """
    if len(rows) != batch:
        raise MalformedReply(f"the teacher gave {len(rows)} answers to {batch} images")
    return rows


def _flat(data: list) -> list:
    return [entry[0] if isinstance(entry, list) and len(entry) == 1 else entry for entry in data]


def _below(base: str, path: str) -> str:
    """An address below another, which may have a query."""
    front, mark, query = base.partition("?")
    return front.rstrip("/") + path + mark + query


def _entries(reply: Any, key: str) -> list[dict]:
    """The tensors that metadata lists; none where it lists something else."""
    entries = reply.get(key) if isinstance(reply, dict) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _datatype(entry: dict) -> str | None:
    """A tensor's datatype, which some spell as Triton's configuration does."""
    datatype = entry.get("datatype")
    return datatype.upper().removeprefix("TYPE_") if isinstance(datatype, str) else None


def _sizes(entry: dict) -> list[int] | None:
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
