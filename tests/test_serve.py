"""The v2 server: every address, every refusal, exact answers, and being slow as asked."""

import asyncio
import gzip
import http.client
import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from aiohttp import web
from conftest import command, served
from torch import nn

from kdray import __version__
from kdray.errors import ImageDeclined, TeacherBusy, TeacherError
from kdray.teachers import AnswerFormat
from kdray.teachers.answers import Answers
from kdray.teachers.faults import Fault
from kdray.teachers.function import FunctionTeacher
from kdray.teachers.http import HttpTeacherConfig
from kdray.teachers.http.client import HttpTeacher
from kdray.teachers.local import LocalTeacher
from kdray.teachers.server import ServeOptions, decode_request, encode_reply, serve

SHAPE = (2, 5, 4)
MODEL = "/v2/models/teacher"
BOTH = ("probabilities", "label")


class Tiny(nn.Module):
    """A linear classifier of 3 classes with fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
        self.weights = nn.Parameter(weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255).flatten(1) @ self.weights.T


def tiny(kind: str = "soft") -> LocalTeacher:
    return LocalTeacher(Tiny(), identity="tiny", num_classes=3, form=AnswerFormat(kind), batch_size=8)


def function_teacher(function) -> FunctionTeacher:
    return FunctionTeacher(function, identity="f", num_classes=3, form=AnswerFormat())


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def body(batch: torch.Tensor, *, nested: bool = False, **changes) -> dict:
    """An infer request; `changes` are made to its input."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(batch.shape)}
    return {"inputs": [{**tensor, "data": (batch if nested else batch.flatten()).tolist(), **changes}]}


@contextmanager
def serving(teacher=None, classes=None, **options):
    """A server in a thread on a free port; gives a function that sends one request to it."""
    with served(teacher or tiny(), SHAPE, classes=classes, **options) as url:
        yield Client(urlsplit(url).hostname, urlsplit(url).port)


class Client:
    """Sends single requests; a reply is (status, headers, what its JSON says)."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def __call__(self, path: str, value: object = None, *, method: str | None = None, **headers: str):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        content = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        try:
            named = {key.replace("_", "-"): text for key, text in headers.items()}
            connection.request(method or ("GET" if value is None else "POST"), path, content, named)
            reply = connection.getresponse()
            return reply.status, reply.headers, json.loads(reply.read())
        finally:
            connection.close()

    def infer(self, data: torch.Tensor | dict, **headers: str):
        return self(MODEL + "/infer", data if isinstance(data, dict) else body(data), **headers)

    def counts(self, **headers: str) -> tuple[int, int]:
        (model,) = self(MODEL + "/stats", **headers)[2]["model_stats"]
        return model["inference_count"], model["execution_count"]


@pytest.fixture(scope="module")
def plain():
    with serving() as client:
        yield client


def output(reply: dict, name: str) -> dict:
    return next(tensor for tensor in reply["outputs"] if tensor["name"] == name)


# ---- addresses


def test_every_address_says_what_the_protocol_asks():
    with serving(classes=("cat", "dog", "ray"), name="m.1") as client:
        assert client("/v2")[::2] == (200, {"name": "kdray", "version": __version__, "extensions": ["statistics"]})
        assert client("/v2/health/live")[::2] == (200, {"live": True})
        assert client("/v2/health/ready")[::2] == (200, {"ready": True})
        for model in ("/v2/models/m.1", "/v2/models/m.1/versions/1"):
            status, headers, metadata = client(model)
            assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
            assert metadata == {
                "name": "m.1",
                "versions": ["1"],
                "platform": "kdray",
                "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 2, 5, 4]}],
                "outputs": [
                    {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
                    {
                        "name": "label",
                        "datatype": "INT64",
                        "shape": [-1],
                        "parameters": {"0": "cat", "1": "dog", "2": "ray"},
                    },
                ],
            }
            assert client(model + "/ready")[::2] == (200, {"name": "m.1", "ready": True})
            assert client(model + "/infer", body(images(2)))[0] == 200
            stats = client(model + "/stats")
        row = {"name": "m.1", "version": "1", "inference_count": 4, "execution_count": 2}
        assert stats[::2] == (200, {"model_stats": [row]})


@pytest.mark.parametrize("nested", [False, True])
def test_answers_are_the_teachers_to_the_bit(plain, nested):
    data = images(37)
    expected = tiny().answer(data)
    status, _, reply = plain.infer({**body(data, nested=nested), "id": "a7"})
    assert (status, reply["model_name"], reply["model_version"], reply["id"]) == (200, "teacher", "1", "a7")
    assert [tensor["name"] for tensor in reply["outputs"]] == list(BOTH)
    probs, label = output(reply, "probabilities"), output(reply, "label")
    assert (probs["datatype"], probs["shape"]) == ("FP32", [37, 3])
    assert (label["datatype"], label["shape"], label["data"]) == ("INT64", [37], expected.labels.tolist())
    # As doubles: nothing was rounded on the way, so no client can lose a bit by how it reads a number.
    assert probs["data"] == [float(p) for p in expected.probs.double().flatten()]
    got = np.array(probs["data"], dtype=np.float32).reshape(37, 3)
    assert got.tobytes() == expected.probs.numpy().tobytes()


def test_only_the_outputs_asked_for_come_in_the_order_asked(plain):
    def names(*outputs: str, **more) -> list[str]:
        wanted = [{"name": name, **more} for name in outputs]
        return [tensor["name"] for tensor in plain.infer({**body(images(2)), "outputs": wanted})[2]["outputs"]]

    assert names("label") == ["label"]
    assert names("probabilities", parameters={"classification": 2}) == ["probabilities"]
    assert names("label", "probabilities", "label") == ["label", "probabilities"]
    assert names() == list(BOTH)
    assert "id" not in plain.infer(images(1))[2]


def test_a_teacher_of_labels_shows_no_probabilities():
    with serving(tiny("hard")) as client:
        assert [tensor["name"] for tensor in client(MODEL)[2]["outputs"]] == ["label"]
        assert "parameters" not in client(MODEL)[2]["outputs"][0]
        reply = client.infer(images(5))[2]
        assert [tensor["name"] for tensor in reply["outputs"]] == ["label"]
        assert reply["outputs"][0]["data"] == tiny().answer(images(5)).labels.tolist()
        status, _, reply = client.infer({**body(images(1)), "outputs": [{"name": "probabilities"}]})
        assert (status, reply) == (400, {"error": "there is no output 'probabilities'; the outputs are label"})


def test_what_an_answer_leaves_out_stays_left_out():
    with serving(tiny("top1")) as client:
        probs = np.array(output(client.infer(images(4))[2], "probabilities")["data"], np.float32).reshape(4, 3)
        assert (np.count_nonzero(probs, axis=1) == 1).all()
        assert probs.tobytes() == tiny("top1").answer(images(4)).probs.numpy().tobytes()


# ---- refusals

GOOD = body(images(1))
DATA = GOOD["inputs"][0]["data"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe{", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"9" * 5000, "the body is not JSON"),
        ([], "must be an object"),
        ({**GOOD, "id": 3}, "'id' must be a string"),
        ({}, "'inputs' must be a list of one object"),
        ({"inputs": []}, "'inputs' must be a list of one object"),
        ({"inputs": GOOD["inputs"] * 2}, "'inputs' must be a list of one object"),
        ({"inputs": ["image"]}, "'inputs' must be a list of one object"),
        (body(images(1), name="pixels"), "there is no input 'pixels'; the input is 'image'"),
        (body(images(1), name=["image"]), r"there is no input \['image'\]"),
        (body(images(1), datatype="FP32"), "is UINT8, not 'FP32'"),
        (body(images(1), shape=[1, 40]), r"has shape \[-1, 2, 5, 4\], with one image at least, not \[1, 40\]"),
        (body(images(1), shape=[1, 2, 4, 5]), r"not \[1, 2, 4, 5\]"),
        (body(images(1), shape=[0, 2, 5, 4], data=[]), r"not \[0, 2, 5, 4\]"),
        (body(images(1), shape=[-1, 2, 5, 4]), r"not \[-1, 2, 5, 4\]"),
        (body(images(1), shape=[True, 2, 5, 4]), r"not \[True, 2, 5, 4\]"),
        (body(images(1), shape="1,2,5,4"), "not '1,2,5,4'"),
        (body(images(1), shape=None), "not None"),
        (body(images(1), shape=[10**30, 2, 5, 4]), r"'data' of 'image' has shape \[40\]"),
        (body(images(1), data=DATA[:-1]), r"'data' of 'image' has shape \[39\]; expected \[1, 2, 5, 4\]"),
        (body(images(2), shape=[1, 2, 5, 4]), r"'data' of 'image' has shape \[80\]"),
        (body(images(1)[:, :1], nested=True, shape=[1, 2, 5, 4]), r"'data' of 'image' has shape \[1, 1, 5, 4\]"),
        (body(images(1).mT, nested=True, shape=[1, 2, 5, 4]), r"'data' of 'image' has shape \[1, 2, 4, 5\]"),
        (body(images(1), data=[*DATA[:-1], [1]]), "differ in length or depth"),
        (body(images(1), data=None), "must be a list"),
        (body(images(1), data="AAAA"), "must be a list"),
        (body(images(1), data=[*DATA[:-1], 256]), "whole numbers of 0..255 only"),
        (body(images(1), data=[*DATA[:-1], -1]), "whole numbers of 0..255 only"),
        (body(images(1), data=[*DATA[:-1], 2**63]), "whole numbers of 0..255 only"),
        (body(images(1), data=[*DATA[:-1], 2**64]), "whole numbers of 0..255 only"),
        (body(images(1), data=[*DATA[:-1], 0.5]), "whole numbers of 0..255 only"),
        (body(images(1), data=[*DATA[:-1], float("nan")]), "whole numbers of 0..255 only"),
        (body(images(1), data=[*DATA[:-1], None]), "whole numbers of 0..255 only"),
        (body(images(1), data=["7"] * 40), "whole numbers of 0..255 only"),
        (body(images(1), data=[True] * 40), "whole numbers of 0..255 only"),
        (
            {**GOOD, "outputs": [{"name": "logits"}]},
            "there is no output 'logits'; the outputs are probabilities, label",
        ),
        ({**GOOD, "outputs": [{"name": "label"}, {}]}, "there is no output None"),
        ({**GOOD, "outputs": [{"name": ["label"]}]}, r"there is no output \['label'\]"),
        ({**GOOD, "outputs": {"name": "label"}}, "'outputs' must be a list of objects"),
        ({**GOOD, "outputs": ["label"]}, "'outputs' must be a list of objects"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(plain, request_, message):
    before = plain.counts()
    status, _, reply = plain(MODEL + "/infer", request_)
    assert (status, list(reply)) == (400, ["error"])
    assert re.search(message, reply["error"]), reply
    assert plain.counts() == before
    assert plain.infer(images(1))[0] == 200


def test_unknown_models_versions_addresses_and_methods(plain):
    for path in ("/v2/models/other", "/v2/models/teacher/versions/2"):
        for end in ("", "/ready", "/stats"):
            status, _, reply = plain(path + end)
            assert (status, list(reply)) == (404, ["error"])
            assert re.match("there is no version [12] of a model '(other|teacher)'", reply["error"])
        assert plain(path + "/infer", GOOD)[0] == 404
    for path in ("/", "/v1/models/teacher", MODEL + "/explain", "/v2/models"):
        status, _, reply = plain(path)
        assert (status, list(reply)) == (404, ["error"])
    status, headers, reply = plain(MODEL + "/infer", method="GET")
    assert (status, headers["Allow"], list(reply)) == (405, "POST", ["error"])


def test_a_token_guards_the_model_and_nothing_else():
    right = "Bearer s3cret-é"
    with serving(token="s3cret-é") as client:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
            assert client(path)[0] == 200
        wrong = ("", "Bearer", "Bearer s3cret", "Bearer s3cret-ée", "Basic s3cret-é", "s3cret-é", "Bearer \udcff")
        headers = [{}, *({"Authorization": text.encode("utf-8", "surrogateescape")} for text in wrong)]
        paths = [MODEL, MODEL + "/ready", MODEL + "/stats", "/v2/models/other", MODEL + "/versions/1"]
        for header in headers:
            for path, value in [*((path, None) for path in paths), (MODEL + "/infer", GOOD)]:
                status, got, reply = client(path, value, **header)
                assert (status, got["WWW-Authenticate"], list(reply)) == (401, "Bearer", ["error"]), (path, header)
                assert "s3cret" not in reply["error"]
        assert client.infer(images(1), Authorization=right.encode())[0] == 200
        assert client(MODEL, Authorization=b"bearer s3cret-\xc3\xa9")[0] == 200
        assert client.counts(Authorization=right.encode()) == (1, 1)
    assert "s3cret" not in repr(ServeOptions(token="s3cret"))


def test_bodies_above_256_mib_are_refused_before_they_are_read(plain):
    with socket.create_connection((plain.host, plain.port), timeout=60) as connection:
        length = 256 * 2**20 + 1
        connection.sendall(f"POST {MODEL}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode())
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        assert (reply.status, list(json.loads(reply.read()))) == (413, ["error"])
    assert plain.infer({**GOOD, "parameters": {"filling": "x" * 20_000_000}})[0] == 200


def test_a_body_that_only_grows_when_unpacked_is_refused_too(plain):
    packed = gzip.compress(bytes(256 * 2**20 + 1), compresslevel=1)
    status, _, reply = plain(MODEL + "/infer", packed, Content_Encoding="gzip")
    assert (status, list(reply)) == (413, ["error"])
    assert plain(MODEL + "/infer", gzip.compress(json.dumps(GOOD).encode()), Content_Encoding="gzip")[0] == 200


def test_a_body_that_cannot_be_unpacked_is_refused(plain):
    status, _, reply = plain(MODEL + "/infer", b"this is not gzip", Content_Encoding="gzip")
    assert (status, list(reply)) == (400, ["error"])
    assert plain.infer(images(1))[0] == 200


def test_a_client_that_leaves_half_way_through_its_request_does_no_harm(caplog):
    with serving() as client:
        with socket.create_connection((client.host, client.port), timeout=60) as connection:
            connection.sendall(f"POST {MODEL}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{{".encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        assert client.infer(images(1))[0] == 200
        assert client.counts() == (1, 1)
    assert caplog.records == []


# ---- models that fail


def test_images_of_a_model_that_failed_are_not_counted(caplog):
    calls = []

    def fails_once(data):
        calls.append(len(data))
        if len(calls) == 2:
            raise ValueError("out of memory")
        return [[0.5, 0.25, 0.25]] * len(data)

    with serving(function_teacher(fails_once)) as client:
        status, _, reply = client.infer(images(2))
        message = "TeacherError: the teacher function failed: ValueError: out of memory"
        assert (status, reply) == (500, {"error": message})
        assert client.counts() == (0, 0)
        assert client.infer(images(2))[0] == 200
        assert client.counts() == (2, 1)
    assert calls == [1, 2, 2]
    assert [record.message for record in caplog.records] == ["a request failed"]


def test_nonsense_is_passed_on_but_never_as_something_that_is_no_json(caplog):
    class Nonsense:
        identity, num_classes, metered = "nonsense", 3, False

        def answer(self, batch: torch.Tensor) -> Answers:
            value = 9.0 if len(batch) < 3 else math.nan
            return Answers(probs=torch.full((len(batch), 3), value), labels=torch.full((len(batch),), 7), num_classes=3)

    with serving(Nonsense()) as client:
        status, _, reply = client.infer(images(2))
        assert (status, output(reply, "probabilities")["data"], output(reply, "label")["data"]) == (
            200,
            [9] * 6,
            [7] * 2,
        )
        status, _, reply = client.infer(images(3))
        assert (status, output(reply, "probabilities")["data"], output(reply, "label")["data"]) == (
            200,
            [None] * 9,
            [None] * 3,
        )
        assert client.counts() == (5, 2)
    assert len(caplog.records) == 0


class Moody:
    """A teacher that does to an image what its first pixel says, and answers the others as `form` has it."""

    identity, num_classes, metered = "moody", 3, True

    def __init__(self, form: str = "soft", error: Exception | None = None) -> None:
        self._form, self._error = AnswerFormat(form), error

    def answer(self, batch: torch.Tensor) -> Answers:
        first = batch[:, 0, 0, 0]
        if self._error is not None and (first == 1).any():
            raise self._error
        probs = torch.tensor([[0.25, 0.5, 0.25]]).repeat(len(batch), 1)
        probs[first == 2, 1] = math.nan
        probs[first == 3] = math.inf
        probs[first == 4] = 9.0
        bad = {row: "no answer" for row in range(len(batch)) if first[row] > 1}
        return self._form.apply(probs, bad)


def moody(*first: int) -> torch.Tensor:
    batch = torch.zeros(len(first), *SHAPE, dtype=torch.uint8)
    batch[:, 0, 0, 0] = torch.tensor(first)
    return batch


def asking(url: str, **changes) -> HttpTeacher:
    """kdray's own client of a server."""
    section = HttpTeacherConfig(kind="http", url=url, model="teacher", classes=3, timeout_s=30, **changes)
    return section.build(SHAPE)


def ask(asked: HttpTeacher, batch: torch.Tensor) -> Answers | Fault:
    async def once() -> Answers | Fault:
        async with asked.session() as session:
            return await asked.ask(session, batch)

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("error", "status", "after", "kind", "wait_s"),
    [
        (TeacherBusy("the quota is spent", wait_s=19.2), 503, "20", "throttled", 20.0),
        (TeacherBusy("the quota is spent", wait_s=0), 503, "0", "throttled", 0.0),
        (TeacherBusy("the quota is spent"), 503, "1", "throttled", 1.0),
        (TeacherBusy("the quota is spent", wait_s=math.inf), 503, "1", "throttled", 1.0),
        (ImageDeclined("the quota is spent"), 422, None, "declined", None),
        (TeacherError("the quota is spent"), 500, None, "lost", None),
    ],
)
def test_what_a_teacher_says_is_free_is_free_over_http(error, status, after, kind, wait_s):
    with served(Moody(error=error), SHAPE) as url:
        client = Client(urlsplit(url).hostname, urlsplit(url).port)
        found, headers, reply = client.infer(moody(0, 1))
        assert (found, headers["Retry-After"]) == (status, after)
        assert reply["error"].endswith("the quota is spent")
        assert client.counts() == (0, 0)
        asked = asking(url)
        fault = ask(asked, moody(0, 1))
        assert (fault.kind, fault.wait_s, fault.charged) == (kind, wait_s, status == 500)
        assert "the quota is spent" in fault.message
        assert ask(asked, moody(0, 0)).bad == {}


def test_a_teacher_that_declines_without_a_word_is_understood():
    with served(Moody(error=ImageDeclined()), SHAPE) as url:
        fault = ask(asking(url), moody(1))
    assert fault.kind == "declined" and "the teacher does not take the image" in fault.message


def test_a_teacher_that_declines_a_black_image_is_served():
    class Picky(Moody):
        def answer(self, batch: torch.Tensor) -> Answers:
            if (batch == 0).all():
                raise ImageDeclined("too dark")
            return super().answer(batch)

    with served(Picky(), SHAPE) as url:
        assert ask(asking(url), images(2)).bad == {}
        assert ask(asking(url), moody(0)).message.endswith("does not take the request (422: too dark)")


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_rows_without_an_answer_are_null_and_their_neighbours_are_not(form):
    batch = moody(0, 2, 3, 4, 0)
    with served(Moody(form), SHAPE) as url:
        client = Client(urlsplit(url).hostname, urlsplit(url).port)
        status, _, reply = client.infer(batch)
        assert status == 200 and output(reply, "label")["data"] == [1, None, None, None, 1]
        if form != "hard":
            numbers = np.array(output(reply, "probabilities")["data"], object).reshape(5, 3)
            assert (numbers[1:3] == None).all() and (numbers[[0, 3, 4]] != None).all()  # noqa: E711
        for answers in {form, "hard"}:
            found = ask(asking(url, answers=answers, output="label" if answers == "hard" else None), batch)
            assert isinstance(found, Answers) and set(found.bad) == {1, 2, 3}
            assert found.labels[[0, 4]].tolist() == [1, 1]
            alone = ask(asking(url, answers=answers, output="label" if answers == "hard" else None), batch[1:2])
            assert set(alone.bad) == {0}


# ---- slow


def blocking(entered: threading.Semaphore, release: threading.Event):
    """A model that says when it is asked, and answers batches when it is let."""

    def function(data):
        if len(data) > 1:
            entered.release()
            assert release.wait(10)
        return [[0.5, 0.25, 0.25]] * len(data)

    return function


def test_the_command_serves_a_teacher_as_its_options_say(teacher_weights, monkeypatch):
    asked = []
    monkeypatch.setattr("kdray.teachers.server.serve", lambda *arguments, **more: asked.append(arguments))
    monkeypatch.setenv("TOKEN", "secret")
    named = ("--name", "mine", "--latency", 0.25, "--port", 0, "--token-env", "TOKEN")
    done = command("teacher", "serve", "--model", teacher_weights, *named)
    assert done.returncode == 0, done.stderr
    ((teacher, shape, options, _),) = asked
    assert (teacher.num_classes, shape) == (10, (1, 16, 16))
    assert options == ServeOptions(name="mine", port=0, token="secret", latency_s=0.25)


def test_latencies_overlap(monkeypatch):
    """Each waits until another waits as well."""
    both, waited = asyncio.Barrier(2), []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await asyncio.wait_for(both.wait(), 60)

    monkeypatch.setattr("kdray.teachers.server.asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    with serving(latency_s=0.5) as client, ThreadPoolExecutor(2) as threads:
        replies = list(threads.map(lambda seed: client.infer(images(1, seed)), range(2)))
        assert [status for status, _, _ in replies] == [200, 200] and waited == [0.5, 0.5]
        assert client.infer({})[0] == 400
        assert client(MODEL)[0] == 200
        assert waited == [0.5, 0.5], "neither of these waits"


def test_the_server_talks_while_the_model_works_and_asks_it_one_batch_at_a_time():
    entered, release, running, most = threading.Semaphore(0), threading.Event(), [], []
    answer = blocking(entered, release)

    def function(data):
        running.append(data)
        most.append(len(running))
        reply = answer(data)
        running.pop()
        return reply

    with serving(function_teacher(function)) as client, ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(client.infer, images(2)) for _ in range(3)]
        entered.acquire()
        assert client("/v2/health/ready")[0] == 200
        assert client.infer({})[0] == 400
        assert client.counts() == (0, 0)
        release.set()
        assert [future.result()[0] for future in waiting] == [200, 200, 200]
        assert client.counts() == (6, 3)
    assert most == [1, 1, 1, 1]


def test_work_for_a_client_that_left_is_counted():
    entered, release = threading.Semaphore(0), threading.Event()
    with serving(function_teacher(blocking(entered, release))) as client:
        left = http.client.HTTPConnection(client.host, client.port, timeout=60)
        left.request("POST", MODEL + "/infer", json.dumps(body(images(2))))
        entered.acquire()
        left.close()
        release.set()
        assert client.infer(images(1))[0] == 200
        assert client.counts() == (3, 2)


# ---- helpers alone


def test_a_request_is_decoded_without_a_server():
    asked = decode_request(json.dumps({**body(images(3)), "outputs": [{"name": "label"}]}).encode(), SHAPE, BOTH)
    assert asked.images.dtype == torch.uint8
    assert torch.equal(asked.images, images(3))
    assert (asked.outputs, asked.id) == (("label",), None)
    with pytest.raises(web.HTTPBadRequest) as caught:
        decode_request(b"{}", SHAPE, BOTH)
    assert caught.value.text == "'inputs' must be a list of one object, the input 'image'"


def test_a_reply_is_encoded_without_a_server():
    asked = decode_request(json.dumps({**body(images(2)), "id": "7"}).encode(), SHAPE, BOTH)
    probs = torch.tensor([[0.1, 0.9], [0.75, 0.25]])
    reply = encode_reply(Answers(probs=probs, labels=torch.tensor([1, 0]), num_classes=2), asked, "m")
    tenth, nine = float(np.float32(0.1)), float(np.float32(0.9))
    assert reply == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [tenth, nine, 0.75, 0.25]},
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [1, 0]},
        ],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, "name must be of letters"),
        ({"name": ""}, "name must be of letters"),
        ({"port": 65536}, r"port must lie in 0\.\.65535"),
        ({"token": " "}, "token must not be empty"),
        ({"latency_s": -0.1}, "latency_s must be 0 or more"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(TeacherError, match=message):
        ServeOptions(**options)


# ---- the whole program


def test_a_teacher_that_cannot_answer_such_images_is_not_served():
    with pytest.raises(TeacherError, match=r"cannot answer images of shape \[1, 7, 7\]"):
        serve(tiny(), (1, 7, 7), ServeOptions(port=0), on_ready=pytest.fail)


def test_a_port_in_use_is_named(plain):
    with pytest.raises(TeacherError, match=f"port {plain.port} of 127.0.0.1: it is in use; choose another, or 0 for"):
        serve(tiny(), SHAPE, ServeOptions(port=plain.port), on_ready=pytest.fail)
    with pytest.raises(TeacherError, match=r"cannot listen on port \d+ of 192\.0\.2\.1: .*; choose another"):
        serve(tiny(), SHAPE, ServeOptions(port=plain.port, host="192.0.2.1"), on_ready=pytest.fail)


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from test_serve import SHAPE, function_teacher
from kdray.teachers.server import ServeOptions, serve

def function(data):
    print("asked", len(data), flush=True)
    return [[0.5, 0.25, 0.25]] * len(data)

options = ServeOptions(port=0, latency_s=0.3)
serve(function_teacher(function), SHAPE, options, on_ready=lambda url: print(url, flush=True))
print("stopped")
"""


@pytest.mark.storm  # small: Ctrl-C ends the servers of test_http_run.py and test_serving.py
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_after_what_is_under_way(number):
    program = PROGRAM.format(folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "asked 1\n"
            url = urlsplit(server.stdout.readline().strip())
            assert (url.scheme, url.hostname) == ("http", "127.0.0.1")
            with ThreadPoolExecutor(1) as threads:
                reply = threads.submit(Client(url.hostname, url.port).infer, images(2))
                assert server.stdout.readline() == "asked 2\n"
                server.send_signal(number)
                assert reply.result()[0] == 200
            rest, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert (server.returncode, rest, errors) == (0, "stopped\n", "")
