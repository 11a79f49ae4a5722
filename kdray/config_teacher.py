"""The teacher's sections of the config."""

import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from kdray.config_parts import Classes, ImagesConfig, Section, Threads, TrainConfig, known_device, known_model


class TeacherTrainConfig(TrainConfig):
    """How to make a local teacher that is not there yet. Uses labels: these images are the teacher's own."""

    images: ImagesConfig | None = None
    """Labelled images the teacher is trained on; null: those of `labelled` (RAD, Algorithm 1)."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    """Longer gradients are cut to this length; null cuts none. At a student's 2 few true labels teach less."""
    threads: Threads = "auto"
    """CPU threads of the teacher's training; auto as for the student."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the teacher, apart from the run's: runs with other seeds share one teacher."""


class NormaliseConfig(Section):
    """What a model from elsewhere expects of its input: (pixel / 255 - mean) / std, one number a channel."""

    mean: list[float]
    """Mean of each channel, in [0, 1]."""
    std: list[Annotated[float, Field(gt=0)]]
    """Standard deviation of each channel."""


class LimitsConfig(Section):
    """How fast the teacher may be asked: by all workers, runs and trials on one ledger together."""

    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    """Most requests a second; in any t seconds at most burst + requests_per_s * t."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Most requests a minute, likewise."""
    burst: Annotated[int, Field(ge=1)] = 1
    """Requests that may go at once after a pause."""
    in_flight: Annotated[int, Field(ge=1)] = 8
    """Most requests sent and not yet answered."""
    queries_per_day: Annotated[int, Field(ge=1)] | None = None
    """Most images a day (UTC). The run stops when they are used up, and can be resumed the next day."""


class RetryConfig(Section):
    """How patient to be with a teacher that fails."""

    tries: Annotated[int, Field(ge=1)] = 5
    """Requests for one image, and failures in a row, before giving up."""
    backoff_s: Annotated[float, Field(gt=0)] = 0.5
    """Rest after a failure, for all workers; doubled with each that follows, shortened at random by up to a half."""
    max_backoff_s: Annotated[float, Field(gt=0)] = 60.0
    """Longest such rest."""
    max_wait_s: Annotated[float, Field(gt=0)] = 300.0
    """Longest rest the teacher may ask for (Retry-After); when it wants more the run stops, and can be resumed."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a round's images that may be set aside because no answer to them could be believed."""


class _Teacher(Section):
    answers: str = "soft"
    """soft (all probabilities), hard (a label), or topK such as top5 (the K largest probabilities)."""
    decimals: Annotated[int, Field(ge=0, le=10)] | None = None
    """Round probabilities to so many decimals, as many APIs do; null does not."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 128
    """Images a request: also the most that one lost reply costs."""
    limits: LimitsConfig = LimitsConfig()
    """How fast it may be asked."""
    retry: RetryConfig = RetryConfig()
    """What to do when it fails."""

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, data: Any) -> Any:
        """Configs in older run directories have two fields more, and null in them."""
        old = ("rate_per_s", "burst")
        if not isinstance(data, dict) or not any(key in data for key in old):
            return data
        if any(data.get(key) is not None for key in old):
            raise ValueError(
                "rate_per_s and burst, in images, have become limits.requests_per_s and limits.burst, in requests of "
                "batch_size images"
            )
        return {key: value for key, value in data.items() if key not in old}

    @field_validator("answers")
    @classmethod
    def _known_answers(cls, value: str) -> str:
        if not re.fullmatch(r"soft|hard|top[1-9]\d*", value):
            raise ValueError(f"{value!r} is not a kind of answer; use soft, hard or topK (top5, for example)")
        return value


class LocalTeacher(_Teacher):
    """A model on this machine, seen only through its answers."""

    kind: Literal["local"]
    weights: str
    """safetensors for `model`; or, where `model` is null, a TorchScript or torch.export file."""
    model: str | None = None
    """A network of the zoo, or torchvision/NAME; null where `weights` is a whole program."""
    classes: Classes | None = None
    """Number or names of the classes; null reads them from weights that kdray saved."""
    input: Literal["uint8", "unit"] = "unit"
    """What a whole program takes: uint8 pixels, or floats in [0, 1] (then normalised, if `normalise` is set)."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What a whole program gives."""
    normalise: NormaliseConfig | None = None
    """Input normalisation of weights from elsewhere; kdray's own weights carry theirs."""
    train: TeacherTrainConfig | None = None
    """How to make `weights` when the file is not there."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    _device = field_validator("device")(known_device)

    @field_validator("model")
    @classmethod
    def _model_is_known(cls, value: str | None) -> str | None:
        return value if value is None or value.startswith("torchvision/") else known_model(value)


class PythonTeacher(_Teacher):
    """A Python function: uint8 [B, C, H, W] numpy array in, probabilities [B, K] or labels [B] out."""

    kind: Literal["python"]
    function: str
    """module:function, importable from where kdray runs."""
    classes: Classes
    """Number or names of the classes."""
    name: str | None = None
    """Who this is in the ledger; null uses `function`. Give a new name when the model behind it changes."""
    metered: bool = True
    """Somebody may bill for calls: a batch that was on its way when kdray died counts as charged."""

    @field_validator("function")
    @classmethod
    def _module_and_function(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.]+:[\w.<>]+", value):
            raise ValueError(f"{value!r} is not of the form module:function")
        return value


class HttpInput(Section):
    """How an image is written into a request."""

    name: str | None = None
    """v2: name of the input tensor; null asks the server. tensorflow: key of an instance; null sends it bare."""
    pixels: Literal["uint8", "unit"] = "uint8"
    """Pixels as whole numbers 0..255, or divided by 255 (then normalised, if `normalise` is set)."""
    layout: Literal["nchw", "nhwc", "nhw"] | None = None
    """Order of the axes; nhw leaves the channel of a grey image out. null: nchw for v2, nhwc else."""
    normalise: NormaliseConfig | None = None
    """What the server expects, where it does not do it itself; needs `pixels: unit`."""
    encoding: Literal["array", "png"] = "array"
    """json: nested lists of numbers, or a PNG file in base64."""


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
    def _one_form(self) -> "HttpReply":
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


class HttpTeacher(_Teacher):
    """A server. `${NAME}` in `url` and `headers` is replaced by that environment variable when a request is sent: the
    value itself is never written anywhere."""

    kind: Literal["http"]
    url: str
    """v2 and tensorflow: the server's address, such as http://127.0.0.1:8080. json: the address requests go to."""
    protocol: Literal["v2", "tensorflow", "json"] = "v2"
    """v2: the Open Inference Protocol (Triton, KServe, MLServer, `kdray teacher serve`). tensorflow: the REST form of
    TensorFlow Serving. json: anything else that takes and gives JSON: see `request` and `reply`."""
    model: str | None = None
    """v2 and tensorflow: the model's name on the server."""
    version: str | None = None
    """v2 and tensorflow: its version; null leaves it to the server."""
    classes: Classes
    """Number or names of the classes, in the order of the server's probabilities."""
    name: str | None = None
    """Who this is in the ledger; null uses the address and the model. Give it when the address may change and the model
    does not, and a new one when the model behind an address changes: answers are kept under it."""
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
    """v2: the output tensor with the answer; null takes the first that can hold it. tensorflow: its key in a
    prediction."""
    outputs: Literal["probabilities", "logits"] = "probabilities"
    """What the numbers are."""
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
    """Somebody may bill for requests: one that was sent and not answered counts as charged."""

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
    def _fits_the_protocol(self) -> "HttpTeacher":
        if self.protocol == "json":
            if self.model is not None or self.version is not None or self.output is not None:
                raise ValueError("model, version and output belong to v2 and tensorflow; with json the url says it all")
            if self.reply.probabilities is None and self.reply.items is None and self.answers != "hard":
                raise ValueError("the reply gives labels alone; set answers to hard")
            if self.batch_size > 1 and self.reply.rows is None:
                raise ValueError("without reply.rows a reply is about one image; set batch_size to 1")
            if self.input.name is not None:
                raise ValueError("input.name belongs to v2 and tensorflow; with json the request says it all")
            _check_template(self.request, self.batch_size, self.input.encoding == "png")
        elif self.model is None:
            raise ValueError(f"model is missing: the name of the model on the server, for {self.protocol}")
        elif self.request is not None or self.reply != _REPLY:
            raise ValueError(f"request and reply belong to json; {self.protocol} says itself how they look")
        if self.input.encoding == "png":
            if self.protocol != "json":
                raise ValueError("input.encoding: png is for json; v2 and tensorflow take arrays")
            if self.input.pixels != "uint8" or self.input.layout is not None:
                raise ValueError(
                    "input.encoding: png sends the image as it is; leave input.pixels and input.layout out"
                )
        if self.input.normalise is not None and self.input.pixels != "unit":
            raise ValueError("input.normalise needs input.pixels: unit")
        return self


def _check_template(template: Any, batch_size: int, png: bool) -> None:
    """Refuse a body that JSON cannot carry, or that holds too few images or a mark that would be sent as it is."""
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


TeacherConfig = Annotated[LocalTeacher | PythonTeacher | HttpTeacher, Field(discriminator="kind")]
