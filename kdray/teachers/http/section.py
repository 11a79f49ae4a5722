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

from pydantic import Field, field_validator, model_validator

from kdray.errors import TeacherError
from kdray.sections.base import Classes
from kdray.teachers.base import Teacher, TeacherSection, count_in, names_in, teachers
from kdray.teachers.http.input import HttpInput
from kdray.teachers.http.reply import HttpPoll, HttpReply
from kdray.teachers.http.secrets import Secrets, in_clear, is_secret, key_in_clear, texts_in
from kdray.teachers.http.wire import wires

if TYPE_CHECKING:
    from kdray.teachers.http.client import HttpTeacher

_LEASE_GRACE_S = 30.0  # after a request has timed out, for the worker that sent it to report that


_REPLY = HttpReply(rows="probabilities", probabilities="")


@teachers.register
class HttpTeacherConfig(TeacherSection):
    """A server. `${NAME}` in `url`, `headers` and `request` is replaced by that environment variable when a request is
    sent: the value itself is never written anywhere."""

    servable: ClassVar[bool] = False
    path_fields: ClassVar[tuple[str, ...]] = ("ca",)
    # Whether it is the same teacher there, the ledger knows.
    resumable_fields: ClassVar[tuple[str, ...]] = ("url", "headers", "ca", "timeout_s", "poll", "tolerance")

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
    """What it sees of an image, and how that is written."""
    request: Any = None
    """json: the body of a request, with "$image" where the image belongs, "$images" where a list of them, or
    {$each: ...} where a list with an entry for each image belongs. null: {"images": "$images"}. A PNG may have text
    around it, such as "data:image/png;base64,$image". "$id" stands for an id of the image, "$ids" for the list of them:
    "a", "b", ... in each request; see `reply.id`."""
    reply: HttpReply = _REPLY
    """json: where the answer is. Not given: {rows: probabilities, probabilities: ""}, a list of K numbers an image
    under the key `probabilities`."""
    output: str | None = None
    """v2: name of the output tensor with the answer; null takes the only one that can hold it, and refuses a model
    with several."""
    classification: Annotated[int, Field(ge=1)] | None = None
    """v2: ask Triton for the so many likeliest classes as texts (its classification extension), not for all numbers."""
    outputs: Literal["probabilities", "percent", "logits"] = "probabilities"
    """What the numbers in a reply are. Texts such as "0.7" and "70%" are read as numbers, too."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """Factor that makes probabilities (or logits) of the numbers in a reply, such as 1/255 for whole numbers of 0..255.
    v2 then reads integer outputs as numbers, and not as labels."""
    zero_point: float = 0.0
    """Taken from the numbers before `scale`, such as -128 for whole numbers of -128..127."""
    one_number: bool = False
    """Two classes: a reply has one number an image, that of the second class. The first has the rest."""
    labels: Literal["auto", "names", "positions"] = "auto"
    """What a class in a reply is. names: a name in `classes`, whether it is written as text or as number, in any case.
    positions: a number is a position in `classes`, from 0. auto: a name where one matches; any other number is a
    position, unless names in `classes` are whole numbers themselves: then it is refused."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """How far probabilities may be from summing to 1, and how far below 0."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Images a request: also the most that one lost reply costs. 1 for servers that take one image at a time."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """How long to wait for a reply. After that the request counts as charged."""
    poll: HttpPoll = HttpPoll()
    """Where the result will be if the server answers 202."""
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
            if is_secret(name) and in_clear(text):
                raise ValueError(f"the address holds {name!r} in clear; write {name}=${{VARIABLE}} and export VARIABLE")
        return value

    @field_validator("scale", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        """1/255 is easier to read than 0.00392156862745098."""
        parts = re.fullmatch(r"\s*([0-9.]+)\s*/\s*([0-9.]+)\s*", value) if isinstance(value, str) else None
        try:
            return float(parts[1]) / float(parts[2]) if parts else value
        except (ValueError, ZeroDivisionError):
            return value

    @field_validator("headers")
    @classmethod
    def _no_secret_in_clear(cls, value: dict[str, str]) -> dict[str, str]:
        seen: dict[str, str] = {}
        for name, text in value.items():
            if (other := seen.setdefault(name.lower(), name)) != name:
                raise ValueError(f"{other} and {name} are one header to a server; keep one of them")
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not text.isprintable():
                raise ValueError(f"{name!r} is not a header: a name of letters, digits and '-', a value in one line")
            if is_secret(name) and in_clear(text):
                raise ValueError(
                    f"{name} is written in clear, and the config goes into the run directory; "
                    f'write {name}: "${{VARIABLE}}" and export VARIABLE'
                )
        return value

    @field_validator("request")
    @classmethod
    def _no_key_in_clear(cls, value: Any) -> Any:
        if (name := key_in_clear(value)) is not None:
            raise ValueError(
                f"{name!r} is written in clear, and the config goes into the run directory; "
                f'write {name}: "${{VARIABLE}}" and export VARIABLE'
            )
        return value

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> HttpTeacherConfig:
        wires()[self.protocol].check(self)
        if self.outputs == "percent" and (self.scale is not None or self.zero_point):
            raise ValueError("outputs: percent is a scale of 1/100; leave scale and zero_point out")
        if self.zero_point and self.scale is None:
            raise ValueError("zero_point is of no use without scale")
        if self.one_number and count_in(self.classes) != 2:
            raise ValueError("one_number is for two classes; give it up, or set classes to two names")
        if self.labels == "names" and self.class_names() is None:
            raise ValueError("labels: names needs the names in classes, which holds a number")
        return self

    def changed(self, field: str) -> bool:
        """Whether a field differs from its default."""
        return bool(getattr(self, field) != type(self).model_fields[field].default)

    def class_names(self) -> tuple[str, ...] | None:
        """The names in `classes`."""
        return names_in(self.classes)

    def read_secrets(self, environ: Mapping[str, str] = os.environ) -> Secrets:
        """Values of the environment variables in `url`, `headers` and `request`.

        Raises:
            TeacherError: a variable is not set.
        """
        return Secrets.read([self.url, *self.headers.values(), *texts_in(self.request)], environ)

    def check(self, teacher: Teacher) -> None:
        """Ask the server about the model, where its protocol has that.

        Raises:
            TeacherError: no server answers, there is no such model, the key is refused, or the model does not fit.
        """
        from kdray.teachers.http.client import HttpTeacher

        if isinstance(teacher, HttpTeacher):
            teacher.check()

    def lease_s(self) -> float:
        """The time a request may take, with that for the model's metadata before it, and some for its worker to report
        the end."""
        return self.timeout_s * (2 if wires()[self.protocol].describes else 1) + _LEASE_GRACE_S

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
            raise TeacherError(
                "teacher.input.layout: nhw is for grey images, these are in colour; use nhwc or nchw, or set "
                "teacher.input.colour to grey"
            )
        self.input.check_channels(image_shape[0])
        if self.ca is not None:
            _check_authority(self.ca)
        return HttpTeacher(self, wire(self, image_shape), identity=self._identity(), secrets=secrets)

    def _identity(self) -> str:
        """The teacher's name in the ledger: all that decides what an answer is, and nothing that decides how it is
        fetched. An answer bought yesterday at another speed is the same answer."""
        settings = {name: _settled(getattr(self, name)) for name in _FIRST_FIELDS}
        settings |= {name: _settled(getattr(self, name)) for name in _LATER_FIELDS if self.changed(name)}
        settings["input"] = self.input.identity()
        names = self.class_names()
        if names and wires()[self.protocol].replies_in_names(self):
            settings["classes"] = names
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
        where = self.name or f"{self.url.rstrip('/')}/{self.model or ''}@{self.version or ''}".rstrip("/@")
        return f"http:{where}:{digest}:{self.form}"


_FIRST_FIELDS = ("protocol", "request", "reply", "output", "outputs")
_LATER_FIELDS = ("classification", "scale", "zero_point", "one_number", "labels")
_FIRST_PLACES = ("rows", "probabilities", "items", "label", "score")
"""Fields that decide what an answer is. The first ones are in every teacher's digest in the ledger; one that came later
only where it is not at its default, so that answers bought before it came are still found."""


def _settled(value: Any) -> Any:
    """A field's value for the digest, as JSON values."""
    if not isinstance(value, HttpReply):
        return value
    dumped = value.model_dump(mode="json")
    return {
        name: dumped[name]
        for name, field in HttpReply.model_fields.items()
        if name in _FIRST_PLACES or getattr(value, name) != field.default
    }


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
