"""The section of a teacher behind HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from pydantic import Field, field_validator, model_validator

from kdray.errors import TeacherError
from kdray.sections.base import Classes, Section
from kdray.teachers.base import NormaliseConfig, Teacher, TeacherSection, count_in, names_in, teachers
from kdray.teachers.http.secrets import Secrets
from kdray.teachers.http.wire import wires

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.teachers.http.client import HttpTeacher

_LEASE_GRACE_S = 30.0  # after a request has timed out, for the worker that sent it to report that


class HttpInput(Section):
    """How an image is written into a request."""

    name: str | None = None
    """v2: name of the input tensor; null asks the server."""
    pixels: Literal["uint8", "unit"] = "uint8"
    """Pixels as whole numbers 0..255, or divided by 255 (then normalised, if `normalise` is set)."""
    layout: Literal["nchw", "nhwc", "nhw"] | None = None
    """Order of the axes; nhw leaves the channel of a grey image out. null: nchw for v2, nhwc else."""
    normalise: NormaliseConfig | None = None
    """What the server expects, where it does not do it itself; needs `pixels: unit`."""
    encoding: Literal["array", "png"] = "array"
    """json: nested lists of numbers, or a PNG file in base64."""

    def array(self, images: Tensor, layout: str) -> np.ndarray:
        """uint8 images [B, C, H, W] as the server takes them: uint8, or float32 where `pixels` is unit.

        Args:
            layout: order of the axes where this section gives none.
        """
        array: np.ndarray = images.numpy()
        if self.pixels == "unit":
            array = array.astype(np.float32) / np.float32(255)
            if self.normalise is not None:
                mean = np.asarray(self.normalise.mean, dtype=np.float32).reshape(1, -1, 1, 1)
                std = np.asarray(self.normalise.std, dtype=np.float32).reshape(1, -1, 1, 1)
                array = (array - mean) / std
        layout = self.layout or layout
        if layout == "nhwc":
            return array.transpose(0, 2, 3, 1)
        return array[:, 0] if layout == "nhw" else array


class HttpReply(Section):
    """json: where the answer is in a reply. A path is keys and list positions with dots between, such as
    `result.0.scores`; an empty one is the place itself."""

    rows: str | None = None
    """Path to the list that has an entry for each image; null: the whole reply is about one image."""
    probabilities: str | None = None
    """In an entry, path to K numbers, or to a mapping from class name to number."""
    items: str | None = None
    """In an entry, path to a list of classes with their numbers, the likeliest of them or all: see `label`, `score`."""
    label: str | None = None
    """In an item of `items`, or without `items` in the entry, path to a class: its name or number."""
    score: str | None = None
    """In an item of `items`, path to its probability."""

    @model_validator(mode="after")
    def _one_form(self) -> HttpReply:
        if self.probabilities is not None:
            if self.items is not None or self.label is not None or self.score is not None:
                raise ValueError("give probabilities alone, or items with label and score, or label alone")
        elif self.items is not None:
            if self.label is None or self.score is None:
                raise ValueError("items needs label and score: where an item has its class and its probability")
        elif self.label is None or self.score is not None:
            raise ValueError("say where the answer is: probabilities, or items with label and score, or label alone")
        return self


_REPLY = HttpReply(rows="probabilities", probabilities="")
_SECRET = re.compile(r"auth|key|token|secret|cookie|passw|pwd|credential|signature|^sig$|^code$", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{\w+\}")


@teachers.register
class HttpTeacherConfig(TeacherSection):
    """A server. `${NAME}` in `url` and `headers` is replaced by that environment variable when a request is sent: the
    value itself is never written anywhere."""

    servable: ClassVar[bool] = False
    path_fields: ClassVar[tuple[str, ...]] = ("ca",)
    # Whether it is the same teacher there, the ledger knows.
    resumable_fields: ClassVar[tuple[str, ...]] = ("url", "headers", "ca", "timeout_s")

    kind: Literal["http"] = "http"
    """http: a server."""
    url: str
    """v2: the server's address, such as http://127.0.0.1:8080. json: the address requests go to."""
    protocol: str = "v2"
    """v2: the Open Inference Protocol (Triton, KServe, MLServer, `kdray teacher serve`). json: anything else that
    takes and gives JSON, TensorFlow Serving too: see `request` and `reply`."""
    model: str | None = None
    """v2: the model's name on the server."""
    version: str | None = None
    """v2: the model's version; null leaves it to the server."""
    classes: Classes
    """Number or names of the classes, in the order of the server's probabilities."""
    name: str | None = None
    """The teacher's name in the ledger, under which answers are kept; null uses the address and the model. Give one
    when the address may change and the model does not, and a new one when the model behind an address changes."""
    headers: dict[str, str] = Field(default={})
    """Sent with every request, such as Authorization: "Bearer ${MY_KEY}"."""
    input: HttpInput = HttpInput()
    """How an image is written."""
    request: Any = None
    """json: the body of a request, with "$image" where the image belongs, "$images" where a list of them, or
    {$each: ...} where a list with an entry for each image belongs. null: {"images": "$images"}. A PNG may have text
    around it, such as "data:image/png;base64,$image"."""
    reply: HttpReply = _REPLY
    """json: where the answer is. Not given: {rows: probabilities, probabilities: ""}, a list of K numbers an image
    under the key `probabilities`."""
    output: str | None = None
    """v2: the output tensor with the answer; null takes the first that can hold it."""
    outputs: Literal["probabilities", "logits"] = "probabilities"
    """What the numbers in a reply are."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """How far probabilities may be from summing to 1."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Images a request: also the most that one lost reply costs. 1 for servers that take one image at a time."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """How long to wait for a reply. After that the request counts as charged."""
    ca: str | None = None
    """PEM file of the authority that signed the server's certificate; null uses the system's. TLS is always
    verified."""
    metered: bool = True
    """Requests may be billed: one that was sent and not answered counts as charged."""

    @field_validator("protocol")
    @classmethod
    def _is_a_wire(cls, value: str) -> str:
        if value not in wires():
            raise ValueError(f"input should be {' or '.join(map(repr, wires()))}, got {value!r}")
        return value

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        example = "write it as http://HOST:PORT or https://HOST/PATH"
        # A key may stand behind the "?", a password before an "@".
        shown = "this" if "@" in value else repr(value.partition("?")[0])
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            usable = usable and ("${" in parts.netloc or parts.port is None or parts.port > 0)
        except ValueError:
            usable = False
        if usable and "@" in parts.netloc:
            raise ValueError("the address holds a user name or password; send it as a header: see teacher.headers")
        if not usable:
            raise ValueError(f"{shown} is not an address; {example}")
        if parts.fragment:
            raise ValueError("the address holds a '#'; what follows it is never sent, so leave it out")
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            if _SECRET.search(name) and not _VARIABLE.search(text):
                raise ValueError(f"the address holds {name!r} in clear; write {name}=${{VARIABLE}} and export VARIABLE")
        return value

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, value: int | list[str]) -> int | list[str]:
        if isinstance(value, list) and len(set(value)) < len(value):
            twice = next(name for name in value if value.count(name) > 1)
            raise ValueError(f"{twice!r} is given twice; a server may answer in these names, so they must differ")
        return value

    @field_validator("headers")
    @classmethod
    def _no_secret_in_clear(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not text.isprintable():
                raise ValueError(f"{name!r} is not a header: a name of letters, digits and '-', a value in one line")
            if _SECRET.search(name) and not _VARIABLE.search(text):
                raise ValueError(
                    f"{name} is written in clear, and the config goes into the run directory; "
                    f'write {name}: "${{VARIABLE}}" and export VARIABLE'
                )
        return value

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> HttpTeacherConfig:
        wires()[self.protocol].check(self)
        if self.input.normalise is not None and self.input.pixels != "unit":
            raise ValueError("input.normalise needs input.pixels: unit")
        return self

    def changed(self, field: str) -> bool:
        """Whether a field differs from its default."""
        return bool(getattr(self, field) != type(self).model_fields[field].default)

    def class_names(self) -> tuple[str, ...] | None:
        """The names in `classes`."""
        return names_in(self.classes)

    def read_secrets(self, environ: Mapping[str, str] = os.environ) -> Secrets:
        """Values of the environment variables in `url` and `headers`.

        Raises:
            TeacherError: a variable is not set.
        """
        return Secrets.read([self.url, *self.headers.values()], environ)

    def check(self, teacher: Teacher) -> None:
        """Ask the server about the model, where its protocol has that.

        Raises:
            TeacherError: no server answers, there is no such model, the key is refused, or the model does not fit.
        """
        from kdray.teachers.http.client import HttpTeacher

        if isinstance(teacher, HttpTeacher):
            teacher.check()

    def lease_s(self) -> float:
        """The time a request may take, and some for its worker to report the end."""
        return self.timeout_s + _LEASE_GRACE_S

    def build(
        self, image_shape: tuple[int, int, int], *, folder: str = "", secrets: Secrets | None = None
    ) -> HttpTeacher:
        """The teacher. Nothing is sent.

        Raises:
            TeacherError: the section does not fit such images, a variable is not set, or `ca` is no certificate.
        """
        from kdray.teachers.http.client import HttpTeacher

        secrets, wire = secrets or self.read_secrets(), wires()[self.protocol]
        self.form.check(count_in(self.classes))
        if (self.input.layout or wire.layout) == "nhw" and image_shape[0] != 1:
            raise TeacherError("teacher.input.layout: nhw is for grey images, these are RGB; use nhwc or nchw")
        if self.input.normalise is not None:
            self.input.normalise.check(image_shape[0], "teacher.input.normalise")
        if self.ca is not None:
            _check_authority(self.ca)
        return HttpTeacher(self, wire(self, image_shape), identity=self._identity(), secrets=secrets)

    def _identity(self) -> str:
        """The teacher's name in the ledger: all that decides what an answer is, and nothing that decides how it is
        fetched. An answer bought yesterday at another speed is the same answer."""
        settings = self.model_dump(mode="json", include={"protocol", "input", "request", "reply", "output", "outputs"})
        names = self.class_names()
        if names and wires()[self.protocol].replies_in_names(self):
            settings["classes"] = names
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
        where = self.name or f"{self.url.rstrip('/')}/{self.model or ''}@{self.version or ''}".rstrip("/@")
        return f"http:{where}:{digest}:{self.form}"


def _check_authority(path: str) -> None:
    """Refuse a file that holds no certificates in PEM form.

    Raises:
        TeacherError: it holds none, or does not exist.
    """
    if not Path(path).is_file():
        raise TeacherError(f"teacher.ca: no file at {path}")
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise TeacherError(f"teacher.ca: {path} holds no certificate in PEM form ({error.strerror or error})") from None
