"""Teachers behind HTTP, against real servers: how every request can end, and what it means for money and patience."""

import asyncio
import contextlib
import email.utils
import gc
import gzip
import json
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from aiohttp import web
from conftest import served
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import TeacherError
from kdray.teachers import AnswerFormat, Answers
from kdray.teachers.answers import UnknownClass
from kdray.teachers.async_pool import AsyncTeacherPool, as_reply
from kdray.teachers.faults import Fault
from kdray.teachers.function import FunctionTeacher
from kdray.teachers.http import HttpTeacherConfig as HttpConfig
from kdray.teachers.http import client
from kdray.teachers.http.addresses import bare, bare_in
from kdray.teachers.http.client import HttpTeacher
from kdray.teachers.http.raw import retry_after

SHAPE = (1, 4, 3)
CLASSES = ["cat", "dog", "ray"]
GOOD = [0.25, 0.5, 0.25]
SAID = {"error": "so it is"}


def images(n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# ---- servers


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


@dataclass
class Server:
    """Where it listens, and what it was asked: (method, path with query, headers, body)."""

    url: str
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def posts(self) -> list:
        return [request for request in self.requests if request[0] == "POST"]


LOOP: list[Loop] = []
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def servers_loop() -> Loop:
    if not LOOP:
        LOOP.append(Loop())
    return LOOP[0]


@contextmanager
def serving(handler: Handler, ssl_context=None) -> Iterator[Server]:
    """A server on a free port that leaves every request to `handler`."""
    server = Server("")

    async def seen(request: web.Request) -> web.StreamResponse:
        server.requests.append((request.method, request.path_qs, dict(request.headers), await request.read()))
        return await handler(request)

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", seen)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
        return runner

    async def stop() -> None:
        await accept_no_more([sock for site in runner.sites for sock in site._server.sockets])
        await runner.cleanup()

    runner = servers_loop().run(start())
    server.url = f"http{'s' if ssl_context else ''}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        servers_loop().run(stop())


async def accept_no_more(listeners) -> None:
    """Let no connection be half accepted while its server closes: asyncio (3.11) would leave its socket open, and warn
    in whichever test comes next."""
    for listener in listeners:
        asyncio.get_running_loop().remove_reader(listener)
    for _ in range(3):  # turns of the loop: what was accepted gets its transport
        await asyncio.sleep(0)


def answering(status: int = 200, body: object = None, **headers: str) -> Handler:
    """A handler that always says the same: bytes or text as they are, anything else as JSON."""
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    kind = "application/json" if not isinstance(body, str | bytes) else "text/html"
    named = {"Content-Type": kind} | {name.replace("_", "-"): text for name, text in headers.items()}

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=raw, headers=named)

    return handler


@contextmanager
def talking(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Iterator[Server]:
    """A server without HTTP: `talk` gets each connection. Counts what begins like a request."""
    server = Server("")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.transport.abort()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(connected, "127.0.0.1", 0)

    async def stop() -> None:
        await accept_no_more(listener.sockets)
        listener.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_coro().__qualname__.endswith("connected"):
                task.cancel()

    listener = servers_loop().run(start())
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        servers_loop().run(stop())


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """A whole request, body and all."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return head + await reader.readexactly(int(size[1]) if size else 0)


def reset(writer: asyncio.StreamWriter) -> None:
    """Closing with a linger of zero seconds sends a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


# ---- teachers


def teacher(url: str, environ: dict[str, str] | None = None, **changes) -> HttpTeacher:
    """A teacher as its config section makes it; json with the default body and reply."""
    fields = {"kind": "http", "protocol": "json", "url": url, "classes": CLASSES, "timeout_s": 30.0, **changes}
    config = HttpConfig(**fields)
    return config.build(SHAPE, secrets=config.read_secrets(environ or {}))


def v2(url: str, environ: dict[str, str] | None = None, **changes) -> HttpTeacher:
    return teacher(url, environ, **{"protocol": "v2", "model": "m", **changes})


def ask(asked: HttpTeacher, data: torch.Tensor | None = None) -> Answers | Fault:
    """What came of one request."""

    async def once() -> Answers | Fault:
        async with asked.session() as session:
            return await asked.ask(session, images() if data is None else data)

    return asyncio.run(once())


def told(asked: HttpTeacher) -> str:
    """What `check` refuses the server with."""
    with pytest.raises(TeacherError) as error:
        asked.check()
    return str(error.value)


# ---- answers


def test_images_go_out_and_answers_come_back():
    with serving(answering(200, {"probabilities": [GOOD, [0, 0, 1]]})) as server:
        asked = teacher(f"{server.url}/predict?region=eu", headers={"X-Region": "eu"})
        answers = asked.answer(images())
        assert answers.probs.tolist() == [GOOD, [0, 0, 1]] and answers.bad == {}
        ((method, path, headers, body),) = server.requests
        assert (method, path, headers["Content-Type"]) == ("POST", "/predict?region=eu", "application/json")
        assert headers["X-Region"] == "eu" and re.fullmatch(r"[0-9a-f]{32}", headers["Idempotency-Key"])
        assert json.loads(body) == {"images": images().permute(0, 2, 3, 1).tolist()}
        assert (asked.num_classes, asked.metered) == (3, True)
        assert not teacher(server.url, metered=False).metered


@pytest.mark.parametrize("status", [200, 201, 206])
def test_any_success_with_an_answer_is_one(status):
    with serving(answering(status, {"probabilities": [GOOD, GOOD]})) as server:
        assert ask(teacher(server.url)).probs.tolist() == [GOOD, GOOD]


def test_a_packed_reply_is_unpacked():
    body = gzip.compress(json.dumps({"probabilities": [GOOD, GOOD]}).encode())
    with serving(answering(200, body, Content_Encoding="gzip")) as server:
        assert ask(teacher(server.url)).probs.tolist() == [GOOD, GOOD]


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [
        ("application/json", "utf-8-sig"),  # a byte order mark
        ("application/json", "utf-16"),
        ("text/plain; charset=ISO-8859-1", "latin-1"),
        ('application/json; charset="windows-1252"', "cp1252"),
        ("application/json; charset=utf-8", "utf-8"),
        ("application/json; charset=latin-1", "utf-8"),  # what the header says is wrong more often than the body
    ],
)
def test_a_reply_is_read_in_its_encoding(kind, encoding):
    body = json.dumps({"probabilities": [{"café": 0.25, "dog": 0.5, "ray": 0.25}] * 2}, ensure_ascii=False)
    with serving(answering(200, body.encode(encoding), Content_Type=kind)) as server:
        assert ask(teacher(server.url, classes=["café", "dog", "ray"])).probs.tolist() == [GOOD, GOOD]


def test_a_charset_that_does_not_exist_is_no_json():
    with serving(answering(200, b'{"probabilities": "\xe9"}', Content_Type="text/x; charset=klingon")) as server:
        assert "replied text/x, not JSON" in ask(teacher(server.url)).message


def test_a_bad_row_is_named_and_the_others_come():
    with serving(answering(200, b'{"probabilities": [[NaN, 0, 1], [0.25, 0.5, 0.25]]}')) as server:
        answers = ask(teacher(server.url))
        assert answers.bad == {0: "the teacher's probabilities hold NaN or infinity"}
        assert answers.probs[1].tolist() == GOOD


def brightness(data) -> list:
    level = data.reshape(len(data), -1).mean(axis=1) / 255
    return [[x / 3, 2 * x / 3, 1 - x] for x in level]


@pytest.mark.parametrize("answers", ["soft", "hard", "top2"])
def test_the_server_of_kdray_gives_its_teachers_answers_to_the_bit(answers):
    shown, data = FunctionTeacher(brightness, identity="f", num_classes=3, form=AnswerFormat()), images(20)
    with served(shown, SHAPE, name="m") as url:
        asked = v2(url, answers=answers)
        asked.check()
        got = asked.answer(data)
    expected = AnswerFormat(answers).apply(shown.answer(data).probs)
    assert torch.equal(got.labels, expected.labels) and got.bad == {}
    assert (got.probs is None) == (expected.probs is None)
    assert got.probs is None or got.probs.numpy().tobytes() == expected.probs.numpy().tobytes()


def test_the_same_images_have_the_same_idempotency_key_and_others_another():
    with serving(answering(200, {"probabilities": [GOOD, GOOD]})) as server:
        url = server.url
        for asked, data in (
            (teacher(url), images()),
            (teacher(url, batch_size=7, timeout_s=3.0), images()),
            (teacher(url), images(seed=1)),
            (teacher(url), images().flip(0)),
            (teacher(url), images().reshape(2, 1, 3, 4)),
            (teacher(url, name="other"), images()),
            (teacher(url, input={"pixels": "unit"}), images()),
        ):
            ask(asked, data)
        first, again, *others = [headers["Idempotency-Key"] for _, _, headers, _ in server.requests]
        assert first == again and len({first, *others}) == 6


class Remembering:
    """A server that replies once to an Idempotency-Key, and repeats that reply.

    Args:
        broken: status and body of the reply to the first keys.
        times: to so many keys.
        lose: requests, counted from 0, that get no reply: it works, and the connection breaks off.

    Attributes:
        worked: keys that it has worked at, each of which it bills.
    """

    def __init__(self, broken: tuple[int, dict], *, times: int = 1, lose: tuple[int, ...] = ()) -> None:
        self.worked: list[str] = []
        self.asked: list[str] = []
        self._broken, self._times, self._lose = broken, times, lose

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        key = request.headers["Idempotency-Key"]
        if key not in self.worked:
            self.worked.append(key)
        self.asked.append(key)
        if len(self.asked) - 1 in self._lose:
            request.transport.abort()
        status, body = self._broken if self.worked.index(key) < self._times else (200, DONE)
        return web.json_response(body, status=status)


def kinds(results: list[Answers | Fault]) -> list[str]:
    return [result.kind if isinstance(result, Fault) else "bad" if result.bad else "answered" for result in results]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ((500, SAID), "lost"),
        ((503, SAID), "throttled"),
        ((422, SAID), "declined"),
        ((200, {"error": "no"}), "malformed"),
        ((200, {"probabilities": [[0.25, 0.5, 0.25], [9, 9, 9]]}), "bad"),
    ],
)
def test_a_try_after_a_reply_has_a_key_of_its_own(reply, kind):
    server_side = Remembering(reply, times=2)
    with serving(server_side) as server:
        asked = teacher(server.url)
        assert kinds([ask(asked) for _ in range(3)]) == [kind, kind, "answered"]
        ask(asked, images(seed=1))
    assert len(set(server_side.worked)) == 4
    again = teacher(server.url)  # another process begins with the first key
    assert again._key(images()) == server_side.worked[0]


def test_a_try_after_no_reply_has_the_key_of_the_one_before():
    server_side = Remembering((500, SAID), lose=(0, 1, 3))
    with serving(server_side) as server:
        asked = teacher(server.url)
        assert kinds([ask(asked) for _ in range(5)]) == ["lost"] * 4 + ["answered"]
    first, second = server_side.worked
    assert server_side.asked == [first, first, first, second, second]  # billed twice: for the failure and the answer


def test_a_try_of_what_is_still_worked_on_keeps_its_key():
    for handler in (answering(409, SAID), working(*[not_yet() for _ in range(99)])[0]):
        with serving(handler) as server:
            asked = teacher(server.url, timeout_s=0.3)
            assert {ask(asked).kind for _ in range(2)} <= {"throttled", "lost"}
            assert len({headers["Idempotency-Key"] for _, _, headers, _ in server.posts}) == 1


def test_answer_and_check_work_inside_a_running_event_loop():
    """As in a notebook."""
    with serving(answering(200, {"outputs": [{"name": "p", "datatype": "FP32", "data": [GOOD, GOOD]}]})) as server:
        asked = v2(server.url)

        async def cell() -> Answers:
            asked.check()
            return asked.answer(images())

        assert asyncio.run(cell()).probs.tolist() == [GOOD, GOOD]


# ---- replies that are no success


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, "declined", "{url} does not take the request (400: so it is)"),
        (401, "refused", "{url} refuses the key (401: so it is); check teacher.headers and the key"),
        (402, "refused", "{url} refuses the request (402: so it is)"),
        (403, "refused", "{url} refuses the key (403: so it is); check teacher.headers and the key"),
        (404, "refused", "{url} does not exist there (404: so it is); check teacher.url"),
        (405, "refused", "{url} refuses the request (405: so it is)"),
        (408, "unsent", "{url} says 408: so it is"),
        (409, "throttled", "{url} says 409: so it is"),
        (413, "oversized", "{url}: the request is too large (413: so it is)"),
        (415, "declined", "{url} does not take the request (415: so it is)"),
        (422, "declined", "{url} does not take the request (422: so it is)"),
        (425, "unsent", "{url} says 425: so it is"),
        (429, "throttled", "{url} says 429: so it is"),
        (500, "lost", "{url} failed (500: so it is)"),
        (502, "lost", "{url} failed (502: so it is)"),
        (503, "throttled", "{url} says 503: so it is"),
        (504, "lost", "{url} failed (504: so it is)"),
    ],
)
def test_what_a_status_means(status, kind, message):
    with serving(answering(status, SAID)) as server:
        url = f"{server.url}/predict"
        fault = ask(teacher(url))
        assert (fault.kind, fault.message, fault.wait_s) == (kind, message.format(url=url), None)
        with pytest.raises(TeacherError, match=re.escape(fault.message)):
            teacher(url).answer(images())
        assert len(server.posts) == 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": "a"}, ": a"),
        ({"error": {"message": "a", "code": 3}}, ": a"),
        ({"error": {"code": 3}}, ": {'code': 3}"),
        ({"message": "a"}, ": a"),
        ({"error": None, "message": "a"}, ": a"),
        ({"detail": [{"loc": ["body"], "msg": "a"}]}, ": [{'loc': ['body'], 'msg': 'a'}]"),
        ({"other": "a"}, ""),
        (["a"], ""),
        (3, ""),
        (b"", ""),
        (b"Internal\nServer  Error\n", ": Internal Server Error"),
        (b"<html><body>a</body></html>", ""),
        ({"error": "\x1b[31mred\x1b[0m\r\n\x07 \ud800 \u202ex"}, ": \ufffd[31mred\ufffd[0m \ufffd \ufffd \ufffdx"),
        (b"\xff\xfe a", ": \ufffd\ufffd a"),
        ({"error": "x" * 300}, ": " + "x" * 200 + "..."),
        (b"[" * 100_000, ": " + "[" * 200 + "..."),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_the_server_says_is_repeated_where_it_can_be_shown(body, said):
    with serving(answering(500, body)) as server:
        message = ask(teacher(server.url)).message
    assert message == f"{server.url} failed (500{said})"
    assert message.isprintable() and message.encode()


def http_date(seconds: float) -> str:
    return email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [409, 429, 503])
@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("7", 7, 7), ("0", 0, 0), ("1.5", 1.5, 1.5), ("-3", 0, 0), (3600, 3400, 3600), (-60, 0, 0)],
)
def test_how_long_the_server_wants_to_be_left_alone(status, text, low, high):
    said = text if isinstance(text, str) else http_date(text)
    with serving(answering(status, SAID, Retry_After=said)) as server:
        fault = ask(teacher(server.url))
        assert fault.kind == "throttled" and low <= fault.wait_s <= high


def test_dates_without_a_time_zone_are_in_gmt(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        then = datetime.now(UTC) + timedelta(seconds=600)
        for form in ("%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S -0000"):
            assert 500 < retry_after(then.strftime(form)) <= 600
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text() | st.from_regex(r"\w{3}, \d{1,3} \w{3} \d{1,6} \d\d:\d\d:\d\d [+-]?\w{0,5}", fullmatch=True))
def test_a_wish_that_nobody_can_read_is_none(text):
    seconds = retry_after(text)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_never_followed(status):
    with serving(answering(200, {"probabilities": [GOOD, GOOD]})) as elsewhere:
        target = f"{elsewhere.url}/login"
        with serving(answering(status, SAID, Location=target)) as server:
            fault = ask(teacher(server.url, {"KEY": "s3cret-key"}, headers={"Authorization": "Bearer ${KEY}"}))
            assert len(server.requests) == 1 and server.requests[0][2]["Authorization"] == "Bearer s3cret-key"
        assert elsewhere.requests == []
    assert fault.kind == "refused" and fault.message == (
        f"{server.url} answers {status}, not 200 (it points to {target}); set teacher.url to where the model is"
    )


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, "<html><body>Log in</body></html>", "replied text/html, not JSON: '<html><body>Log in</body></html>'"),
        (200, b'{"probabilities": [[0.25, 0.5, ', "not JSON: '{\"probabilities\": [[0.25, 0.5,'"),
        (200, b"", "not JSON: ''"),
        (204, b"", "not JSON: ''"),
        (200, b"[" * 100_000, "not JSON: '[["),
        (200, b"\xff\xfe\xff", "not JSON: '\ufffd\ufffd\ufffd'"),
        (200, b"1" * 5000, "not JSON: '111"),
        (200, {"error": "no"}, " replied with an error: no"),
        (200, {"errors": [{"message": "no"}]}, " replied with an error: [{'message': 'no'}]"),
        (202, {"job": 3}, " answers 202 and does not say where the result will be; see teacher.poll"),
        (200, {"message": "no"}, "the teacher's reply has nothing at 'probabilities': {'message': 'no'}; check"),
        (200, {"probabilities": [GOOD]}, "the teacher gave 1 answer to 2 images"),
        (200, {"probabilities": [[0.5, 0.5]] * 2}, "2 numbers for an image, teacher.classes says 3"),
        (200, None, "has nothing at 'probabilities': None"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_success_without_an_answer_is_malformed(status, body, message):
    with serving(answering(status, body)) as server:
        fault = ask(teacher(server.url))
        assert fault.kind == "malformed" and message in fault.message and fault.message.isprintable()


# ---- results that come later


def working(*looks: web.Response | dict, first: dict | None = None, body: object = None) -> tuple[Handler, list[str]]:
    """A handler that accepts a request with 202, and its later replies, one for each look; the addresses looked at."""
    replies, seen = list(looks), []

    async def handler(request: web.Request) -> web.Response:
        if request.method == "POST":
            headers = {"Location": "/jobs/1", "Retry-After": "0.01"} if first is None else first
            return web.json_response(body, status=202, headers=headers)
        seen.append(request.path_qs)
        reply = replies.pop(0)
        return web.json_response(reply, headers={"Retry-After": "0.01"}) if isinstance(reply, dict) else reply

    return handler, seen


def not_yet(status: int = 202, **headers: str) -> web.Response:
    return web.json_response({}, status=status, headers={"Retry-After": "0.01"} | headers)


DONE = {"probabilities": [GOOD, GOOD]}


@pytest.mark.parametrize(
    ("looks", "first", "body", "poll", "addresses"),
    [
        ([DONE], None, None, {}, ["/jobs/1"]),
        ([not_yet(), not_yet(), DONE], None, None, {}, ["/jobs/1"] * 3),
        ([not_yet(429), not_yet(503), not_yet(500), DONE], None, None, {}, ["/jobs/1"] * 4),
        ([not_yet(303, Location="/results/1?part=2"), DONE], None, None, {}, ["/jobs/1", "/results/1?part=2"]),
        ([DONE], {"Operation-Location": "{url}/ops/7", "Retry-After": "0"}, None, {}, ["/ops/7"]),
        ([DONE], {"Retry-After": "0"}, {"urls": {"get": "/jobs/2"}}, {"url": "urls.get"}, ["/jobs/2"]),
        ([{"state": "Running"}, {"state": "done", **DONE}], None, None, {"status": "state"}, ["/jobs/1"] * 2),
        ([{"state": "warming"}, DONE], None, None, {"status": "state", "pending": ["warming"]}, ["/jobs/1"] * 2),
    ],
)
def test_a_result_is_waited_for_and_the_request_is_sent_once(looks, first, body, poll, addresses):
    handler, seen = working(*looks, first=first, body=body)
    with serving(handler) as server:
        if first and "Operation-Location" in first:
            first["Operation-Location"] = first["Operation-Location"].format(url=server.url)
        asked = teacher(server.url, {"KEY": "s3cret-key"}, headers={"Authorization": "Bearer ${KEY}"}, poll=poll)
        assert ask(asked).probs.tolist() == [GOOD, GOOD]
        assert len(server.posts) == 1 and seen == addresses
        assert {headers["Authorization"] for _, _, headers, _ in server.requests} == {"Bearer s3cret-key"}
        assert {body for method, _, _, body in server.requests if method == "GET"} == {b""}


def test_between_looks_is_a_second_where_the_server_names_none(monkeypatch):
    waited = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(client, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    moved = web.json_response({}, status=303, headers={"Location": "/results/1"})
    handler, seen = working(web.json_response({}, status=202), moved, web.json_response(DONE), first={"Location": "/j"})
    with serving(handler) as server:
        assert ask(teacher(server.url)).probs.tolist() == [GOOD, GOOD]
    assert seen == ["/j", "/j", "/results/1"] and waited == [1.0, 1.0, 0.05]


def test_a_server_that_accepts_with_200_or_201_and_says_starting_is_waited_for():
    async def handler(request: web.Request) -> web.Response:
        if request.method == "POST":
            started = {"status": "starting", "urls": {"get": "/p/1"}}
            return web.json_response(started, status=201, headers={"Retry-After": "0.01"})
        return web.json_response({"status": "succeeded", "output": {"scores": [GOOD, GOOD]}})

    forms = {"poll": {"url": "urls.get", "status": "status"}, "reply": {"rows": "output.scores", "probabilities": ""}}
    with serving(handler) as server:
        assert ask(teacher(server.url, **forms)).probs.tolist() == [GOOD, GOOD]
        assert [method for method, *_ in server.requests] == ["POST", "GET"]


def test_a_result_at_another_host_is_not_asked_for():
    with serving(answering(200, DONE)) as elsewhere:
        for place in (f"{elsewhere.url}/jobs/1", elsewhere.url.replace("http://", "//"), "http://user@127.0.0.1/"):
            handler, _ = working(first={"Location": place, "Retry-After": "0.01"})
            with serving(handler) as server:
                asked = teacher(server.url, {"KEY": "s3cret-key"}, headers={"Authorization": "Bearer ${KEY}"})
                fault = ask(asked)
            assert fault.kind == "failed" and fault.charged and fault.final
            assert "its result is at another host, which gets no keys" in fault.message
        handler, seen = working(not_yet(303, Location=f"{elsewhere.url}/jobs/1"))
        with serving(handler) as server:
            assert ask(teacher(server.url)).kind == "failed" and seen == ["/jobs/1"]
        assert elsewhere.requests == []


@pytest.mark.parametrize("place", ["http://[bad/r", "//[", "http://host:99999999/r"])
def test_a_place_of_a_result_that_is_no_address_is_said(place):
    handler, _ = working(first={"Location": place, "Retry-After": "0.01"})
    with serving(handler) as server:
        fault = ask(teacher(server.url))
    assert fault.kind == "failed" and fault.charged and place in fault.message, fault


def test_a_class_that_the_teacher_should_not_have_is_told_from_other_answers_without_sense():
    for rows, answers, number, kind in (([7, 1], "hard", 0, UnknownClass), ([GOOD, [2, 0, 1]], "soft", 1, str)):
        form = {"label": ""} if answers == "hard" else {"probabilities": ""}
        with serving(answering(200, {"rows": rows})) as server:
            bad = ask(teacher(server.url, answers=answers, reply={"rows": "rows", **form})).bad
        assert [(row, type(why)) for row, why in bad.items()] == [(number, kind)]


def test_a_result_that_does_not_come_in_time_may_be_charged():
    handler, _ = working(*[not_yet() for _ in range(1000)])
    with serving(handler) as server:
        fault = ask(teacher(server.url, timeout_s=0.5))
        assert len(server.posts) == 1
    assert fault.kind == "lost"
    assert fault.message == f"no result from {server.url} within 0.5 s (teacher.timeout_s)"
    handler, seen = working(first={"Location": "/jobs/1", "Retry-After": "3600"})
    with serving(handler) as server:
        assert ask(teacher(server.url)).kind == "lost" and seen == []  # it would not be there in time


@pytest.mark.parametrize("status", [401, 404, 410])
def test_a_result_that_is_refused_is_charged_and_not_asked_for_again(status):
    handler, _ = working(not_yet(status))
    with serving(handler) as server:
        fault = ask(teacher(server.url))
    assert fault.kind == "failed" and f"({status}" in fault.message and "/jobs/1" in fault.message


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
def test_an_error_is_an_error_whatever_its_body_says_of_a_result(status):
    """A failed job may be shown as it was when it began."""
    body = {"status": "starting", "urls": {"get": "/p/1"}, "error": "no"}
    poll = {"url": "urls.get", "status": "status"}
    with serving(answering(status, body)) as server:
        fault, without = ask(teacher(server.url, poll=poll)), ask(teacher(server.url))
        assert fault == without and fault.kind != "failed" and "no" in fault.message
        assert [method for method, *_ in server.requests] == ["POST", "POST"]


SIGNED = "/r/1?X-Amz-Signature=5f2ab9c3&sv=1#part"


@pytest.mark.parametrize("status", [401, 404, 302])
def test_a_message_shows_an_address_without_what_may_be_a_key(status):
    def at(url: str) -> str:
        return url.replace("//", "//me:pa55word@") + SIGNED

    for look in (
        web.json_response({}, status=404),
        web.json_response({"error": f"no {at('https://store')}, and not //me:pa55word@other{SIGNED}."}, status=401),
        web.Response(status=200, text=f"<a href='{at('https://store')}'>"),
        web.json_response({"result": at("https://store")}),
        web.json_response({"error": {"at": at("https://store")}}),
        web.json_response({"probabilities": [GOOD, at("https://s")]}),
        web.json_response({}, status=303, headers={"Location": at("https://store")}),
    ):
        handler, seen = working(look, first={"Location": SIGNED, "Retry-After": "0.01"})
        with serving(handler) as server:
            found = ask(teacher(server.url))
        assert seen == [SIGNED.partition("#")[0]]
        messages = [found.message] if isinstance(found, Fault) else list(found.bad.values())
        assert messages
        for message in messages:
            assert "/r/1" in message or "//s" in message
            assert not any(secret in message for secret in ("5f2ab9c3", "pa55word", "Signature")), message
    with serving(answering(status, {"error": f"it went to {at('https://store')}"}, Location=at("/a"))) as server:
        address = f"{server.url}/p?key=${{KEY}}"
        message = ask(teacher(address, {"KEY": "s3cret-key"})).message
    assert address in message and not any(secret in message for secret in ("5f2ab9c3", "pa55word"))


def test_only_the_address_of_the_config_keeps_its_query():
    text = r"at https://a:b@h/p?k=${KEY}: not https:\/\/u:p@h\/q?s=1, is it https://? https://h/p?k=${KEY}&s=1 //h?#x"
    known = ["https://h/p?k=${KEY}", "https://h/p"]
    assert bare_in(text, known) == (r"at https://h/p not https:\/\/h\/q is it https://? https://h/p //h")
    assert bare_in("https://h/p?k=${KEY}: no", known) == "https://h/p?k=${KEY}: no"
    assert bare("/r?sig=1") == bare("/r#sig") == "/r" and bare("//u:p@h/r?x") == "//h/r"


# ---- accidents of the network


def test_a_connection_that_is_refused_costs_nothing():
    url = f"http://127.0.0.1:{free_port()}"
    fault = ask(teacher(url))
    assert fault.kind == "unsent" and fault.message.startswith(f"no server answers at {url} (")
    assert fault.message.endswith("): is the server up, is teacher.url right?")
    assert told(v2(url)).startswith(f"no server answers at {url}/v2/models/m (")


def test_a_host_that_does_not_exist_costs_nothing():
    fault = ask(teacher("http://nowhere.invalid/predict"))
    assert fault.kind == "unsent" and fault.message.startswith("no server answers at http://nowhere.invalid/predict (")


def test_an_address_that_only_its_variables_spoil_is_told():
    fault = ask(teacher("http://127.0.0.1:${PORT}/", {"PORT": "abc"}))
    assert (fault.kind, fault.message) == ("refused", "teacher.url: http://127.0.0.1:${PORT}/ is not an address")


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


def test_a_connection_that_never_comes_about_costs_nothing():
    """A listener whose queue is full answers no one."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        fault = ask(teacher(f"http://127.0.0.1:{full.getsockname()[1]}", timeout_s=0.4))
    assert fault.kind == "unsent" and "no server answers at" in fault.message


def test_a_tls_greeting_that_is_never_answered_costs_nothing():
    with talking(never) as server:
        fault = ask(teacher(server.url.replace("http:", "https:"), timeout_s=0.4))
    assert fault.kind == "unsent" and "no server answers at" in fault.message


def http_reply(text: bytes, length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (length, text)


async def resets_unread(reader, writer) -> None:
    await reader.read(1)
    reset(writer)


async def resets_before_the_reply(reader, writer) -> None:
    await read_request(reader)
    reset(writer)


async def closes_before_the_reply(reader, writer) -> None:
    await read_request(reader)


async def resets_in_mid_reply(reader, writer) -> None:
    await read_request(reader)
    writer.write(http_reply(b'{"probabilities": [', 500))
    await writer.drain()
    reset(writer)


async def closes_in_mid_reply(reader, writer) -> None:
    await read_request(reader)
    writer.write(http_reply(b'{"probabilities": [', 500))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def closes_in_mid_head(reader, writer) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def speaks_something_else(reader, writer) -> None:
    await read_request(reader)
    writer.write(b"220 mail.example ESMTP\r\n")
    await writer.drain()
    await reader.read()


async def sends_a_broken_archive(reader, writer) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd")
    await writer.drain()
    await reader.read()


async def sends_an_endless_header(reader, writer) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
    await writer.drain()
    await reader.read()


@pytest.mark.parametrize(
    "talk",
    [
        resets_unread, resets_before_the_reply, closes_before_the_reply, resets_in_mid_reply, closes_in_mid_reply,
        closes_in_mid_head, speaks_something_else, sends_a_broken_archive, sends_an_endless_header,
    ],
)  # fmt: skip
def test_a_request_that_was_sent_and_not_answered_may_be_charged(talk):
    with talking(talk) as server:
        fault = ask(teacher(server.url))
    assert fault.kind == "lost" and fault.message.startswith(f"the connection to {server.url} broke off (")
    assert fault.message.isprintable()


async def drips(reader, writer) -> None:
    await read_request(reader)
    writer.write(http_reply(b"", 10**6))
    while True:
        writer.write(b"[")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("talk", [never, drips])
def test_a_reply_that_does_not_come_in_time_may_be_charged(talk):
    with talking(talk) as server:
        began = time.monotonic()
        fault = ask(teacher(server.url, timeout_s=0.6))
        assert time.monotonic() - began < 10
    assert fault.kind == "lost"
    assert fault.message == f"no reply from {server.url} within 0.6 s (teacher.timeout_s)"


def test_no_request_is_repeated_behind_our_back():
    """A server may close a connection that was kept open just when the next request goes into it."""
    requests = []

    async def answers_once(reader, writer) -> None:
        body = json.dumps({"probabilities": [GOOD, GOOD]}).encode()
        for count in (1, 2):
            requests.append(await read_request(reader))
            if count == 1:
                writer.write(http_reply(body, len(body)))
                await writer.drain()

    async def twice(asked: HttpTeacher) -> list:
        async with asked.session() as session:
            return [await asked.ask(session, images()), await asked.ask(session, images(seed=1))]

    with talking(answers_once) as server:
        first, second = asyncio.run(twice(teacher(server.url)))
    assert first.probs.tolist() == [GOOD, GOOD] and second.kind == "lost"
    assert len(requests) == 2


# ---- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """Two self-signed certificates for 127.0.0.1: mine.pem and other.pem, with their keys."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("mine", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                   "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
                   "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(certificates) -> Iterator[Server]:
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "mine.pem", certificates / "mine.key")
    with serving(answering(200, {"probabilities": [GOOD, GOOD]}), context) as server:
        yield server


def test_a_certificate_that_nobody_vouches_for_is_refused(secure, certificates):
    for changes in ({}, {"ca": str(certificates / "other.pem")}):
        fault = ask(teacher(secure.url, **changes))
        assert fault.kind == "refused" and fault.message.startswith(
            f"{secure.url}: the server's certificate is not trusted ("
        )
        assert fault.message.endswith("); see teacher.ca")
    assert secure.requests == []


def test_a_certificate_is_accepted_with_its_authority(secure, certificates):
    asked = teacher(secure.url, ca=str(certificates / "mine.pem"))
    assert ask(asked).probs.tolist() == [GOOD, GOOD]
    by_name = teacher(secure.url.replace("127.0.0.1", "localhost"), ca=str(certificates / "mine.pem"))
    assert ask(by_name).kind == "refused"  # it is for another name


def test_http_and_https_taken_for_each_other_are_told(secure):
    with serving(answering(200, {"probabilities": [GOOD, GOOD]})) as server:
        url = server.url.replace("http:", "https:")
        fault = ask(teacher(url))
        assert fault.kind == "unsent" and fault.message.startswith(f"{url}: no TLS connection (")
        assert fault.message.endswith("): is it http:// there, not https://?")
    fault = ask(teacher(secure.url.replace("https:", "http:")))
    assert isinstance(fault, Fault) and secure.requests == []


def test_an_authority_that_is_none_is_refused_before_anything_is_sent(tmp_path, certificates):
    (tmp_path / "junk.pem").write_text("junk")
    for name in ("missing.pem", "."):
        with pytest.raises(TeacherError, match=rf"^teacher\.ca: no file at .*{re.escape(name)}$"):
            teacher("https://127.0.0.1", ca=str(tmp_path) + "/" + name)
    for path in (tmp_path / "junk.pem", certificates / "mine.key"):
        with pytest.raises(TeacherError, match=rf"^teacher\.ca: {path} holds no certificate in PEM form \("):
            teacher("https://127.0.0.1", ca=str(path))


# ---- looking at the server


def model(**changes) -> dict:
    """Metadata of a model for SHAPE and three classes."""
    entry = {"name": "x", "datatype": "UINT8", "shape": [-1, *SHAPE]} | changes
    output = {"name": "p", "datatype": "FP32", "shape": [-1, 3]}
    return {"name": "m", "versions": ["1"], "platform": "p", "inputs": [entry], "outputs": [output]}


def test_looking_asks_for_the_model_and_learns_the_name_of_its_input():
    async def handler(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(model())
        return web.json_response({"outputs": [{"name": "p", "datatype": "FP32", "data": [*GOOD, *GOOD]}]})

    with serving(handler) as server:
        asked = v2(server.url, {"KEY": "s3cret"}, headers={"Authorization": "Bearer ${KEY}"}, version="1")
        asked.check()
        asked.answer(images())
        (get, path, headers, body), (post, target, _, sent) = server.requests
        assert (get, path, headers["Authorization"], body) == ("GET", "/v2/models/m/versions/1", "Bearer s3cret", b"")
        assert (post, target) == ("POST", "/v2/models/m/versions/1/infer")
        assert json.loads(sent)["inputs"][0]["name"] == "x"


@pytest.mark.parametrize(
    ("status", "body", "changes", "message"),
    [
        (404, {"error": "Request for unknown model"}, {}, "{url} does not exist there (404: Request for unknown "
         "model); check teacher.url and teacher.model; if the server does not describe models, set "
         "teacher.input.name"),
        (400, {"error": "Request for unknown model"}, {}, "{url} does not take the request (400: Request for unknown "
         "model)"),
        (401, {"error": "who?"}, {}, "{url} refuses the key (401: who?); check teacher.headers and the key"),
        (200, "<p>hello</p>", {}, "{url} replied text/html, not JSON: '<p>hello</p>'; check teacher.url"),
        (200, model(shape=[-1, 1, 28, 28]), {}, "the model takes images of shape [-1, 1, 28, 28], kdray would send "
         "[-1, 1, 4, 3]; set size, colour and layout of teacher.input to bring them together"),
        (200, model(datatype="FP32"), {}, "teacher.input.pixels: the model takes FP32, kdray would send UINT8; set "
         "teacher.input.pixels to unit, or teacher.input.datatype to FP32 if it takes 0..255"),
        (200, model(), {"input": {"name": "y"}}, "teacher.input.name: the model has no input 'y'; it has 'x'"),
        (200, model(), {"classes": 4}, "output 'p' of the model has shape [-1, 3], teacher.classes says 4: check "
         "teacher.classes and teacher.output"),
    ],
)  # fmt: skip
def test_what_looking_finds_wrong_is_told_before_anything_is_paid(status, body, changes, message):
    with serving(answering(status, body)) as server:
        assert told(v2(server.url, **changes)) == message.format(url=f"{server.url}/v2/models/m")
        assert server.posts == [] and len(server.requests) == 1


@pytest.mark.parametrize(
    ("request_", "reply", "answers", "predictions"),
    [
        ("$images", {"probabilities": ""}, "soft", [GOOD, GOOD]),
        ({"$each": {"x": "$image"}}, {"probabilities": "p"}, "soft", [{"p": GOOD, "l": 1}] * 2),
        ("$images", {"probabilities": ""}, "hard", [GOOD, GOOD]),
        ("$images", {"label": ""}, "hard", [1, 1]),
        ("$images", {"label": "0"}, "hard", [[1], [1]]),
        ({"$each": {"x": "$image"}}, {"label": "l"}, "hard", [{"p": GOOD, "l": "dog"}] * 2),
    ],
)
def test_tensorflow_serving_is_asked_through_json(request_, reply, answers, predictions):
    with serving(answering(200, {"predictions": predictions})) as server:
        url, classes = f"{server.url}/v1/models/m:predict", ["cat", "dog", "ray"]
        forms = {"request": {"instances": request_}, "reply": {"rows": "predictions", **reply}}
        given = ask(teacher(url, classes=classes, answers=answers, **forms))
        assert given.labels.tolist() == [1, 1] and given.bad == {}
        assert (given.probs is None) == (answers == "hard")
        ((method, path, _, body),) = server.requests
        pixels = images().permute(0, 2, 3, 1).tolist()
        instances = pixels if request_ == "$images" else [{"x": one} for one in pixels]
        assert (method, path, json.loads(body)) == ("POST", "/v1/models/m:predict", {"instances": instances})


def test_a_teacher_that_was_not_checked_looks_before_its_first_request_and_only_then():
    """A worker is not checked, and a server that was busy when it was is looked at again."""
    states = iter([503, 500, 200])

    async def handler(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(model(), status=next(states))
        return web.json_response({"outputs": [{"name": "p", "datatype": "FP32", "data": [GOOD, GOOD]}]})

    with serving(handler) as server:
        asked = v2(server.url)
        asked.check()
        fault = ask(asked)
        assert fault.kind == "unsent" and server.posts == []  # a look is free, however it ends
        assert ask(asked).probs.tolist() == [GOOD, GOOD] and ask(asked).bad == {}
        assert [method for method, *_ in server.requests] == ["GET", "GET", "GET", "POST", "POST"]
        assert json.loads(server.posts[0][3])["inputs"][0]["name"] == "x"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, SAID, "refused"), (401, SAID, "refused"), (400, SAID, "declined"), (429, SAID, "throttled"),
        (500, SAID, "unsent"), (200, "<p>hello</p>", "unsent"), (200, model(datatype="FP32"), "refused"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_a_look_that_fails_charges_nothing(status, body, kind):
    with serving(answering(status, body)) as server:
        fault = ask(v2(server.url))
        assert fault.kind == kind and not fault.charged and server.posts == []


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_metadata_is_asked_all_the_same_where_the_config_says_enough(status):
    async def handler(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(SAID, status=status)
        return web.json_response({"outputs": [{"name": "p", "datatype": "FP32", "data": [*GOOD, *GOOD]}]})

    with serving(handler) as server:
        asked = v2(server.url, input={"name": "x"})
        asked.check()
        assert ask(asked).probs.tolist() == [GOOD, GOOD] == ask(asked).probs.tolist()
        first, second = [json.loads(body) for _, _, _, body in server.posts]
        assert first["inputs"][0]["name"] == "x" and "outputs" not in first and second["outputs"] == [{"name": "p"}]
        assert [method for method, *_ in server.requests] == ["GET", "POST", "POST"]
        assert told(v2(server.url)).endswith("; if the server does not describe models, set teacher.input.name")
        classified = v2(server.url, input={"name": "x"}, answers="top1", classification=1)
        assert told(classified).endswith("; if the server does not describe models, set teacher.output")


def test_two_outputs_that_fit_stop_the_run_at_the_first_reply():
    def tensor(name: str) -> dict:
        return {"name": name, "datatype": "FP32", "data": [*GOOD, *GOOD]}

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"outputs": [tensor("p"), tensor("q")]} if request.method == "POST" else {})

    with serving(handler) as server:
        fault = ask(v2(server.url))
        assert fault.kind == "failed" and fault.final and "'p', 'q'; set teacher.output" in fault.message
        assert ask(v2(server.url, output="q")).probs.tolist() == [GOOD, GOOD]


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_server_that_is_busy_shows_with_the_first_query(status):
    with serving(answering(status, SAID)) as server:
        v2(server.url).check()
        assert len(server.requests) == 1


def test_a_server_of_no_known_protocol_is_not_looked_at():
    with serving(answering(500, SAID)) as server:
        teacher(server.url).check()
        assert server.requests == []


# ---- many at once


def test_as_many_requests_as_slots_are_on_their_way_at_once():
    """The server answers none before all have come."""
    gate = asyncio.Barrier(6)

    async def handler(request: web.Request) -> web.Response:
        number = len(json.loads(await request.read())["images"])
        async with asyncio.timeout(20):
            await gate.wait()
        return web.json_response({"probabilities": [GOOD] * number})

    with serving(handler) as server:
        pool = AsyncTeacherPool(teacher(server.url), slots=6)
        assert (pool.slots, pool.teacher.num_classes, pool.collect(0.0)) == (6, 3, [])
        for key in range(6):
            pool.send(key, images(key + 1))
        replies = []
        while len(replies) < 6:
            replies += pool.collect(None)
        assert {reply.key: len(reply.answers) for reply in replies} == {key: key + 1 for key in range(6)}
        assert pool.collect(None) == []
        pool.close()


def test_collecting_waits_no_longer_than_told_and_gets_what_came_later():
    let_go = threading.Event()

    async def handler(request: web.Request) -> web.Response:
        await asyncio.to_thread(let_go.wait, 20)
        return web.json_response({"probabilities": [GOOD, GOOD]})

    with serving(handler) as server:
        pool = AsyncTeacherPool(teacher(server.url), slots=2)
        pool.send("a", images())
        assert pool.collect(0.05) == []
        let_go.set()
        (reply,) = pool.collect(20)
        assert reply.key == "a" and reply.answers.probs.tolist() == [GOOD, GOOD]
        pool.close()


@pytest.mark.parametrize("started", [True, False], ids=["under way", "just sent"])
def test_closing_drops_what_is_on_its_way_at_once(started, capfd, recwarn):
    arrived = threading.Event()
    gc.collect()  # what other tests have left may warn when it is collected
    recwarn.clear()

    async def handler(request: web.Request) -> web.Response:
        arrived.set()
        await asyncio.sleep(60)

    with serving(handler) as server:
        pool = AsyncTeacherPool(teacher(server.url, timeout_s=60.0), slots=4)
        for key in range(4):
            pool.send(key, images())
        if started:
            assert arrived.wait(20)
        began = time.monotonic()
        pool.close()
        pool.close()
        assert time.monotonic() - began < 10
        assert not any(thread.name == "kdray-teacher" for thread in threading.enumerate())
        assert pool.collect(None) == []
    gc.collect()
    assert capfd.readouterr().err == "" and [str(warning.message) for warning in recwarn.list] == []


def test_a_pool_may_be_used_again_after_it_was_closed():
    with serving(answering(200, {"probabilities": [GOOD, GOOD]})) as server:
        pool = AsyncTeacherPool(teacher(server.url), slots=2)
        for _ in range(2):
            pool.send("a", images())
            assert [reply.key for reply in pool.collect(20)] == ["a"]
            pool.close()


def test_faults_come_as_replies_and_a_fault_of_kdray_reaches_its_user():
    with serving(answering(429, SAID, Retry_After="9")) as server:
        pool = AsyncTeacherPool(teacher(server.url), slots=2)
        pool.send("a", images())
        (reply,) = pool.collect(20)
        assert (reply.key, reply.answers, reply.fault.kind, reply.fault.wait_s) == ("a", None, "throttled", 9)
        pool.send("b", torch.zeros(2, 3))  # no images at all
        (reply,) = pool.collect(20)
        assert (reply.key, reply.fault.kind) == ("b", "failed") and reply.fault.final
        pool.close()
    answers = AnswerFormat().apply(torch.tensor([GOOD]))
    assert as_reply("c", answers).answers is answers and as_reply("c", answers).fault is None
