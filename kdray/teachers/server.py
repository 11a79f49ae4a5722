"""A teacher over HTTP, by the Open Inference Protocol v2: a black box to try kdray and its clients against."""

import asyncio
import errno
import hmac
import json
import logging
import math
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError
from torch import Tensor

from kdray.errors import ImageDeclined, TeacherBusy, TeacherError
from kdray.teachers.answers import Answers
from kdray.teachers.base import Teacher
from kdray.teachers.faults import Fault, fault_of

_VERSION = "1"
_MAX_BODY = 256 * 2**20
_WAIT_S = 1  # where a busy teacher does not say how long it wants to be left alone
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How the server behaves.

    Attributes:
        name: the model's name in the URL.
        host, port: where it listens; port 0 is a free one.
        token: what "Authorization: Bearer" must carry at all addresses of the model, or None.
        latency_s: seconds added to every reply to an infer request that was not refused (4xx); requests overlap.

    Raises:
        TeacherError: a value out of range.
    """

    name: str = "teacher"
    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        wrong = {
            "name must be of letters, digits, '.', '_' and '-'": not re.fullmatch(r"[\w.-]+", self.name, re.ASCII),
            "port must lie in 0..65535": not 0 <= self.port <= 65535,
            "token must not be empty": self.token is not None and not self.token.strip(),
            "latency_s must be 0 or more": not 0 <= self.latency_s < math.inf,
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


def _pixels(shape: Any, data: Any, image_shape: tuple[int, int, int]) -> Tensor:
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


def encode_reply(answers: Answers, request: InferRequest, name: str) -> dict[str, Any]:
    """The body of the reply to `request`. A float32 probability is written as the double it equals: none is rounded.

    What is no answer is null, as JSON has no NaN: all numbers of a row with one that is not finite, and the label of
    such a row and of one that the teacher calls invalid. Other nonsense, and labels that name no class, stay as they
    are.
    """
    count = len(answers)
    labels: list[int | None] = answers.labels.tolist()
    broken = (
        set() if answers.probs is None else set((~answers.probs.isfinite()).any(dim=1).nonzero().flatten().tolist())
    )
    for row, label in enumerate(answers.labels.tolist()):
        if row in broken or (row in answers.bad and 0 <= label < answers.num_classes):
            labels[row] = None
    tensors: dict[str, dict[str, Any]] = {"label": {"datatype": "INT64", "shape": [count], "data": labels}}
    if answers.probs is not None:
        width = answers.num_classes
        rows = answers.probs.to(torch.float32).tolist()
        probs = [number for k, row in enumerate(rows) for number in ([None] * width if k in broken else row)]
        tensors["probabilities"] = {"datatype": "FP32", "shape": [count, answers.num_classes], "data": probs}
    reply: dict[str, Any] = {"model_name": name, "model_version": _VERSION}
    reply |= {} if request.id is None else {"id": request.id}
    return reply | {"outputs": [{"name": output, **tensors[output]} for output in request.outputs]}


def make_app(
    teacher: Teacher,
    image_shape: tuple[int, int, int],
    options: ServeOptions,
    classes: tuple[str, ...] | None = None,
) -> web.Application:
    """The server of `teacher`, for images (C, H, W).

    The teacher is asked about one black image now, or about one of noise where it declines that, to see that it can
    answer and whether it shows more than labels. That query is not counted. Answers are passed on as they are, also
    invalid ones; see `encode_reply`.

    Args:
        classes: their names, shown in the metadata of the output "label".

    Raises:
        TeacherError: the teacher cannot answer images of that shape.
    """
    try:
        first = teacher.answer(torch.zeros(1, *image_shape, dtype=torch.uint8))
    except ImageDeclined:
        noise = torch.Generator().manual_seed(0)
        first = teacher.answer(torch.randint(0, 256, (1, *image_shape), generator=noise, dtype=torch.uint8))
    soft = first.probs is not None
    label: dict[str, Any] = {"name": "label", "datatype": "INT64", "shape": [-1]}
    if classes:
        label["parameters"] = {str(number): name for number, name in enumerate(classes)}
    probabilities = {"name": "probabilities", "datatype": "FP32", "shape": [-1, teacher.num_classes]}
    outputs = [probabilities, label] if soft else [label]
    metadata = {
        "name": options.name,
        "versions": [_VERSION],
        "platform": "kdray",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *image_shape]}],
        "outputs": outputs,
    }
    service = _Service(teacher, image_shape, tuple(str(output["name"]) for output in outputs), options)
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

    def __init__(
        self, teacher: Teacher, image_shape: tuple[int, int, int], outputs: tuple[str, ...], options: ServeOptions
    ) -> None:
        self._teacher, self._shape, self._outputs, self._options = teacher, image_shape, outputs, options
        self._images = self._requests = 0
        # One thread: the model is not asked twice at a time, and the event loop stays free.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher")

    async def worker(self, app: web.Application) -> AsyncIterator[None]:
        yield
        self._worker.shutdown(wait=False, cancel_futures=True)

    @web.middleware
    async def guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Check the token, and give every error the form of the protocol."""
        try:
            self._check(request)
            return await handler(request)
        except web.HTTPException as error:
            headers = {key: value for key, value in error.headers.items() if key != "Content-Type"}
            return web.json_response({"error": error.text}, status=error.status, headers=headers)
        except RequestPayloadError as error:
            return web.json_response({"error": f"the body cannot be read: {error}"}, status=400)
        except ConnectionError:  # the client has left, so nothing reads this response
            return web.Response()
        except Exception as error:  # a model may raise anything; the next request may succeed
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
        if (size := request.content_length or 0) > _MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(_MAX_BODY, size)  # before the body is read
        asked = decode_request(await request.read(), self._shape, self._outputs)
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._worker, self._teacher.answer, asked.images)
        except (TeacherBusy, ImageDeclined) as error:
            raise _refusal(fault_of(error)) from None
        response = web.json_response(text=json.dumps(encode_reply(answers, asked, self._options.name), allow_nan=False))
        self._images, self._requests = self._images + len(asked.images), self._requests + 1
        await asyncio.sleep(self._options.latency_s)
        return response


def _refusal(fault: Fault) -> web.HTTPException:
    """What tells a client that a request was not worked on, and cost nothing."""
    if fault.kind == "declined":
        return web.HTTPUnprocessableEntity(text=fault.message)
    wait_s = _WAIT_S if fault.wait_s is None or not math.isfinite(fault.wait_s) else max(0, math.ceil(fault.wait_s))
    return web.HTTPServiceUnavailable(text=fault.message, headers={"Retry-After": str(wait_s)})


def _saying(value: dict[str, Any]) -> _Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(value)

    return handler
