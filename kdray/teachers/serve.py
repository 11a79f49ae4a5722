"""A teacher over HTTP, by the Open Inference Protocol v2: a black box to try kdray and its clients against.

It can be slow, strict and unreliable on purpose: latency, a token, a rate, a quota and failures are options.
"""

import asyncio
import errno
import hmac
import json
import logging
import math
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError
from torch import Tensor

from kdray.errors import TeacherError
from kdray.seeds import numpy_generator
from kdray.teachers.answers import Answers, Teacher

_VERSION = "1"
_MAX_BODY = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How the server behaves.

    Attributes:
        name: the model's name in the URL.
        host, port: where it listens; port 0 is a free one.
        token: what "Authorization: Bearer" must carry at all addresses of the model, or None.
        latency_s: seconds added to every reply to an infer request that was not refused (4xx); requests overlap.
        quota: images answered in all; what would pass it gets 429 and Retry-After: 3600.
        requests_per_s: infer requests; above it 429 and Retry-After: 1. After a pause a second's worth may go at once.
        error_rate: share of good infer requests that fail: with 503 and Retry-After 0 or 1, with 500, or with a reset
            of the connection after the work was done and counted.
        seed: of the failures.

    Raises:
        TeacherError: a value out of range.
    """

    name: str = "teacher"
    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)
    latency_s: float = 0.0
    quota: int | None = None
    requests_per_s: float | None = None
    error_rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            "name must be of letters, digits, '.', '_' and '-'": not re.fullmatch(r"[\w.-]+", self.name, re.ASCII),
            "port must lie in 0..65535": not 0 <= self.port <= 65535,
            "token must not be empty": self.token is not None and not self.token.strip(),
            "latency_s must be 0 or more": not 0 <= self.latency_s < math.inf,
            "quota must be 0 or more": self.quota is not None and self.quota < 0,
            "requests_per_s must be more than 0": self.requests_per_s is not None
            and not 0 < self.requests_per_s < math.inf,
            "error_rate must lie in 0..1": not 0 <= self.error_rate <= 1,
            "seed must be 0 or more": self.seed < 0,
        }
        for message, is_so in wrong.items():
            if is_so:
                raise TeacherError(f"serving a teacher: {message}")


@dataclass(frozen=True)
class InferRequest:
    """An infer request: uint8 images [B, C, H, W], the names of the outputs it wants, its id."""

    images: Tensor
    outputs: tuple[str, ...]
    id: str | None


def decode_request(body: bytes, image_shape: tuple[int, int, int], outputs: tuple[str, ...]) -> InferRequest:
    """The infer request in `body`, to a model of images (C, H, W) with these `outputs`.

    Raises:
        web.HTTPBadRequest: it is not JSON, not of the protocol, or does not fit the model; `text` says why.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"the body is not JSON: {error}") from None
    _require(isinstance(request, dict), "the body must be an object")
    _require(isinstance(request.get("id", ""), str), "'id' must be a string")
    inputs = request.get("inputs")
    one = isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)
    _require(one, "'inputs' must be a list of one object, the input 'image'")
    name, datatype = inputs[0].get("name"), inputs[0].get("datatype")
    _require(name == "image", f"there is no input {name!r}; the input is 'image'")
    _require(datatype == "UINT8", f"the input 'image' is UINT8, not {datatype!r}")
    wanted = request.get("outputs") or [{"name": name} for name in outputs]
    named = isinstance(wanted, list) and all(isinstance(output, dict) for output in wanted)
    _require(named, "'outputs' must be a list of objects, each with a 'name'")
    for output in wanted:
        known = f"the outputs are {', '.join(outputs)}"
        _require(output.get("name") in outputs, f"there is no output {output.get('name')!r}; {known}")
    images = _pixels(inputs[0].get("shape"), inputs[0].get("data"), image_shape)
    return InferRequest(images, tuple(dict.fromkeys(output["name"] for output in wanted)), request.get("id"))


def _pixels(shape: object, data: object, image_shape: tuple[int, int, int]) -> Tensor:
    """uint8 [B, C, H, W] of a tensor's `shape` and of its `data`, flat or nested."""
    whole = isinstance(shape, list) and len(shape) == 4 and all(type(size) is int for size in shape)
    fits = whole and shape[0] >= 1 and tuple(shape[1:]) == tuple(image_shape)
    _require(fits, f"'image' has shape {[-1, *image_shape]}, with one image at least, not {shape!r}")
    _require(isinstance(data, list), "'data' of 'image' must be a list; binary data is not supported")
    try:
        array = np.asarray(data)
    except ValueError:
        raise web.HTTPBadRequest(text="the lists in 'data' of 'image' differ in length or depth") from None
    fits = array.shape in (tuple(shape), (math.prod(shape),))
    _require(fits, f"'data' of 'image' has shape {list(array.shape)}; expected {shape}, or as many numbers flat")
    pixels = array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255
    _require(pixels, "'data' of 'image' must hold whole numbers of 0..255 only")
    return torch.from_numpy(array.astype(np.uint8).reshape(shape))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise web.HTTPBadRequest(text=message)


def encode_reply(answers: Answers, request: InferRequest, name: str) -> dict:
    """The body of the reply to `request`. A float32 probability is written as the double it equals: none is rounded."""
    count = len(answers)
    tensors: dict[str, dict] = {"label": {"datatype": "INT64", "shape": [count], "data": answers.labels.tolist()}}
    if answers.probs is not None:
        probs = answers.probs.to(torch.float32).flatten().tolist()
        tensors["probabilities"] = {"datatype": "FP32", "shape": [count, answers.num_classes], "data": probs}
    reply = {"model_name": name, "model_version": _VERSION} | ({} if request.id is None else {"id": request.id})
    return reply | {"outputs": [{"name": output, **tensors[output]} for output in request.outputs]}


class RequestRate:
    """A token bucket: `per_s` requests a second, and at most a second's worth (one at least) at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._burst = per_s, float(max(1, math.ceil(per_s)))
        self._level, self._since = self._burst, -math.inf

    def admit(self, now: float) -> bool:
        """Whether a request may pass at `now`, in seconds of a clock that is never set back."""
        self._level = min(self._burst, self._level + (now - self._since) * self._per_s)
        self._since = now
        admitted = self._level >= 1
        self._level -= admitted
        return admitted


def make_app(
    teacher: Teacher,
    image_shape: tuple[int, int, int],
    options: ServeOptions,
    classes: tuple[str, ...] | None = None,
) -> web.Application:
    """The server of `teacher`, for images (C, H, W).

    The teacher is asked about one black image now, to see that it can answer and whether it shows more than labels.
    That query is in no count. Whatever it answers is passed on, sense or nonsense.

    Args:
        classes: their names, shown in the metadata of the output "label".

    Raises:
        TeacherError: the teacher cannot answer images of that shape.
    """
    soft = teacher.answer(torch.zeros(1, *image_shape, dtype=torch.uint8)).probs is not None
    label: dict = {"name": "label", "datatype": "INT64", "shape": [-1]}
    if classes:
        label["parameters"] = {str(number): name for number, name in enumerate(classes)}
    probabilities = {"name": "probabilities", "datatype": "FP32", "shape": [-1, teacher.num_classes]}
    metadata = {
        "name": options.name,
        "versions": [_VERSION],
        "platform": "kdray",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *image_shape]}],
        "outputs": [probabilities, label] if soft else [label],
    }
    outputs = tuple(output["name"] for output in metadata["outputs"])
    service = _Service(teacher, tuple(image_shape), outputs, options)
    app = web.Application(client_max_size=_MAX_BODY, middlewares=[service.guard])
    app.cleanup_ctx.append(service.worker)
    app.router.add_get("/v2", _saying({"name": "kdray", "version": version("kdray"), "extensions": ["statistics"]}))
    app.router.add_get("/v2/health/live", _saying({"live": True}))
    app.router.add_get("/v2/health/ready", _saying({"ready": True}))
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.router.add_get(model, _saying(metadata))
        app.router.add_get(model + "/ready", _saying({"name": options.name, "ready": True}))
        app.router.add_get(model + "/stats", service.stats)
        app.router.add_post(model + "/infer", service.infer)
    return app


def serve(
    teacher: Teacher,
    image_shape: tuple[int, int, int],
    options: ServeOptions,
    classes: tuple[str, ...] | None = None,
    on_ready: Callable[[str], None] = print,
) -> None:
    """Serve `teacher` until SIGINT or SIGTERM. Call it from the main thread.

    Args:
        image_shape, classes: see `make_app`.
        on_ready: gets the address, http://HOST:PORT, once the server listens.

    Raises:
        TeacherError: see `make_app`; or it cannot listen on the port.
    """
    asyncio.run(_serve(make_app(teacher, image_shape, options, classes), options, on_ready))


async def _serve(app: web.Application, options: ServeOptions, on_ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # What is still under way two seconds after the signal is cut off.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, options.host, options.port).start()
        except OSError as error:
            reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise TeacherError(
                f"cannot listen on port {options.port} of {options.host}: {reason}; choose another, or 0 for a free one"
            ) from None
        host, port = runner.addresses[0][:2]
        on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        await stop.wait()
    finally:
        await runner.cleanup()


class _Service:
    """The handlers and their counts, which change on the event loop only and need no lock."""

    def __init__(self, teacher: Teacher, image_shape, outputs: tuple[str, ...], options: ServeOptions) -> None:
        self._teacher, self._shape, self._outputs, self._options = teacher, image_shape, outputs, options
        self._rate = RequestRate(options.requests_per_s) if options.requests_per_s else None
        self._failures = numpy_generator(options.seed, "served failures")
        self._reserved = self._images = self._requests = 0
        # One thread: the model is not asked twice at a time, and the event loop stays free.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher")

    async def worker(self, app: web.Application) -> AsyncIterator[None]:
        yield
        self._worker.shutdown(wait=False, cancel_futures=True)

    @web.middleware
    async def guard(self, request: web.Request, handler) -> web.StreamResponse:
        """Lets in who may ask, and gives every error the form of the protocol."""
        try:
            self._check(request)
            return await handler(request)
        except web.HTTPException as error:
            headers = {key: value for key, value in error.headers.items() if key != "Content-Type"}
            return web.json_response({"error": error.text}, status=error.status, headers=headers)
        except RequestPayloadError as error:
            return web.json_response({"error": f"the body cannot be read: {error}"}, status=400)
        except ConnectionError:  # the client has left: nobody reads this
            return web.Response()
        except Exception as error:  # a model may raise anything; the next request may fare better
            logging.getLogger(__name__).exception("a request failed")
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=500)

    def _check(self, request: web.Request) -> None:
        name, token = request.match_info.get("name"), self._options.token
        if name is not None and token is not None:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token.encode())
            if scheme.lower() != "bearer" or not same:
                message = "a bearer token is needed, and the right one"
                raise web.HTTPUnauthorized(text=message, headers={"WWW-Authenticate": "Bearer"})
        number = request.match_info.get("version", _VERSION)
        if name not in (None, self._options.name) or number != _VERSION:
            raise web.HTTPNotFound(text=f"there is no version {number} of a model {name!r}")

    async def stats(self, request: web.Request) -> web.Response:
        counts = {"inference_count": self._images, "execution_count": self._requests}
        return web.json_response({"model_stats": [{"name": self._options.name, "version": _VERSION, **counts}]})

    async def infer(self, request: web.Request) -> web.Response:
        options = self._options
        if self._rate is not None and not self._rate.admit(asyncio.get_running_loop().time()):
            message = f"more than {options.requests_per_s:g} requests a second"
            raise web.HTTPTooManyRequests(text=message, headers={"Retry-After": "1"})
        if (request.content_length or 0) > _MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(_MAX_BODY, request.content_length)  # before a byte of it is read
        asked = decode_request(await request.read(), self._shape, self._outputs)
        if options.quota is not None and self._reserved + len(asked.images) > options.quota:
            message = f"{len(asked.images)} images asked, {options.quota - self._reserved} left of {options.quota}"
            raise web.HTTPTooManyRequests(text=f"the quota is spent: {message}", headers={"Retry-After": "3600"})
        # Three draws whatever becomes of it: the same seed fails the same requests at any rate of errors.
        chance, kind, wait = self._failures.random(3)
        failure = ("busy", "broken", "reset")[int(kind * 3)] if chance < options.error_rate else None
        reply = None if failure in ("busy", "broken") else await self._work(asked)
        await asyncio.sleep(options.latency_s)
        if failure == "busy":
            raise web.HTTPServiceUnavailable(text="busy, on purpose", headers={"Retry-After": str(int(wait * 2))})
        if failure == "broken":
            raise web.HTTPInternalServerError(text="broken, on purpose")
        if failure == "reset":
            _reset(request)
        return reply

    async def _work(self, asked: InferRequest) -> web.Response:
        count = len(asked.images)
        self._reserved += count  # before the first await: two requests cannot both get the last of the quota
        try:
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self._worker, self._teacher.answer, asked.images)
            reply = encode_reply(answers, asked, self._options.name)
            response = web.json_response(text=json.dumps(reply, allow_nan=False))
        except BaseException:
            self._reserved -= count
            raise
        self._images, self._requests = self._images + count, self._requests + 1
        return response


def _saying(value: dict) -> Callable:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(value)

    return handler


def _reset(request: web.Request) -> None:
    """Cut the connection. What is still written to it goes nowhere."""
    if request.transport is not None:
        # Closing with a linger of zero seconds sends a reset, as a crashed server or a firewall does.
        linger = struct.pack("ii", 1, 0)
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.transport.abort()
