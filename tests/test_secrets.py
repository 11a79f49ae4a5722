"""Keys: read from the environment, sent, and found nowhere else, whatever a server does with them."""

import asyncio
import html
import json
import os
import pickle
import threading
from pathlib import Path
from urllib.parse import parse_qs, quote, quote_plus, urlsplit

import cloudpickle
import pytest
import torch
import yaml
from aiohttp import web
from conftest import command
from hypothesis import given
from hypothesis import strategies as st
from processes import Program, kdray
from test_http import GOOD, answering, ask, images, reset, serving, talking, teacher, v2

from kdray.errors import TeacherError
from kdray.runs.inputs import read_inputs
from kdray.teachers.async_pool import AsyncTeacherPool
from kdray.teachers.faults import Fault
from kdray.teachers.http.secrets import Secrets

PLAIN = "sk-live-4f9Zq7Tw2Xn8Lk3Vb6Mc1Rd5"
AWKWARD = "s3/cr+t=&%#?'\"<\\>: ;ü~xyzzy-plugh"  # every character that some spelling changes


def pieces(secret: str, size: int = 8) -> list[str]:
    """Parts of a secret that are long enough to tell something."""
    return [secret[k : k + size] for k in range(len(secret) - size + 1)]


def leaks(text: str, secret: str) -> list[str]:
    """What a text tells of a secret, in any spelling."""
    spellings = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), quote(quote(secret), safe="")}
    spellings |= {html.escape(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return [piece for spelling in spellings for piece in pieces(spelling) if piece.lower() in text.lower()]


# ---- reading and filling


def test_variables_are_read_and_put_in_their_places():
    environ = {"KEY": f" {AWKWARD}\n", "_B2": "b", "OTHER": "x"}
    secrets = Secrets.read(["https://host/?key=${KEY}", "Bearer ${KEY}", "${_B2}${KEY}", "$KEY ${} ${a b}"], environ)
    assert secrets.fill("Bearer ${KEY}, ${_B2}") == f"Bearer {AWKWARD}, b"
    url = secrets.fill("https://host/p?key=${KEY}&b=${_B2}", for_url=True)
    assert parse_qs(urlsplit(url).query) == {"key": [AWKWARD], "b": ["b"]}
    assert secrets.fill("$KEY ${} ${a b}") == "$KEY ${} ${a b}"
    assert repr(secrets) == "Secrets(KEY, _B2)"


@pytest.mark.parametrize("environ", [{}, {"KEY": ""}, {"KEY": "  \n"}, {"key": "x"}])
def test_a_variable_that_is_missing_or_empty_is_named(environ):
    with pytest.raises(TeacherError) as error:
        Secrets.read(["${KEY}"], environ)
    assert str(error.value) == (
        "teacher.url, teacher.headers or teacher.request needs the environment variable KEY, which is not set; export "
        "KEY=... and start again"
    )


@pytest.mark.parametrize("value", ["s3cret\nX-Evil: 1", "s3cret\r", "s3c\0ret", "s3cret\x1b[0m", "s3c\ud800ret"])
def test_a_variable_that_no_header_can_carry_is_named_and_not_shown(value):
    with pytest.raises(TeacherError) as error:
        Secrets.read(["${KEY}"], {"KEY": f"{value}!"})
    assert str(error.value).startswith(
        "the environment variable KEY, which teacher.url, teacher.headers or teacher.request needs, holds"
    )
    assert "s3c" not in str(error.value)


def test_a_worker_on_another_machine_gets_the_key_of_the_driver(make_config, monkeypatch):
    """It is sent what makes the teacher, and its own environment has no key."""
    with serving(answering(200, {"probabilities": [[0.1] * 10] * 2})) as server:
        monkeypatch.setenv("KEY", PLAIN)
        headers = {"Authorization": "Bearer ${KEY}"}
        section = {"kind": "http", "protocol": "json", "url": server.url, "classes": 10, "headers": headers}
        sent = cloudpickle.dumps(read_inputs(make_config(teacher=section)).build)
        monkeypatch.delenv("KEY")
        there = pickle.loads(sent)()
        assert ask(there).bad == {}
        assert [headers["Authorization"] for _, _, headers, _ in server.posts] == [f"Bearer {PLAIN}"]


@pytest.mark.parametrize("secret", [PLAIN, AWKWARD])
def test_the_server_gets_the_key_in_header_and_address(secret):
    with serving(answering(200, {"probabilities": [GOOD, GOOD]})) as server:
        header = "Bearer ${KEY}"
        url = f"{server.url}/${{KEY}}/predict?a=b&key=${{KEY}}"
        assert ask(teacher(url, {"KEY": secret}, headers={"Authorization": header})).bad == {}
        ((_, path, headers, _),) = server.requests
        assert headers["Authorization"].encode("utf-8", "surrogateescape").decode() == f"Bearer {secret}"
        assert parse_qs(urlsplit(path).query) == {"a": ["b"], "key": [secret]}


@pytest.mark.parametrize("secret", [PLAIN, AWKWARD, "${KEY}", "$images", '"}, {"'])
def test_the_server_gets_the_key_in_the_body(secret):
    with serving(answering(200, {"probabilities": [GOOD, GOOD]})) as server:
        request = {
            "images": "$images",
            "auth": {"user": "${KEY}"},
            "${KEY}": "kdray",
            "list": ["${KEY}", "$KEY", "${}"],
        }
        assert ask(teacher(server.url, {"KEY": secret}, request=request)).bad == {}
        (body,) = [json.loads(body) for *_, body in server.requests]
        assert body.pop("images") == images().permute(0, 2, 3, 1).tolist()
        assert body == {"auth": {"user": secret}, secret: "kdray", "list": [secret, "$KEY", "${}"]}


def test_a_variable_of_any_alphabet_is_put_into_the_body():
    with serving(answering(200, {"probabilities": [GOOD, GOOD]})) as server:
        request = {"images": "$images", "api_key": "Schlüssel ${SCHLÜSSEL}"}
        ask(teacher(server.url, {"SCHLÜSSEL": "süß"}, request=request))
        assert json.loads(server.requests[0][3])["api_key"] == "Schlüssel süß"


def test_a_variable_of_the_body_that_is_missing_is_named_before_anything_is_sent():
    with pytest.raises(TeacherError, match=r"teacher.request needs the environment variable KEY, which is not set"):
        teacher("http://127.0.0.1:1", {}, request={"images": "$images", "deep": [{"key": "${KEY}"}]})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"api_key": PLAIN}, "api_key"),
        ({"apiKey": PLAIN}, "apiKey"),
        ({"key": 4711_0815}, "key"),
        ({"a": [{"access_token": PLAIN}]}, "access_token"),
        ({"auth": {"user": "me", "n": 3}}, "auth"),
        ({"credentials": ["${USER}", PLAIN]}, "credentials"),
        ({"$each": {"i": "$image", "Authorization": f"Bearer {PLAIN}"}}, "Authorization"),
        ({"password": "hunter2"}, "password"),
    ],
)
def test_a_key_in_clear_in_the_body_is_refused_and_not_shown(body, named, tmp_path):
    config = http_config("http://127.0.0.1:1", protocol="json", model=None)
    config["teacher"]["request"] = body if "$each" in body else {"images": "$images", **body}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    code, text = said("run", path, "--local", "--out", tmp_path / "out")
    assert code == 2 and not (tmp_path / "out").exists()
    assert f"teacher.request: {named!r} is written in clear" in text and "${VARIABLE}" in text
    assert leaks(text, PLAIN) == [] and "hunter2" not in text and "47110815" not in text


def test_what_only_looks_like_a_key_is_taken():
    harmless = {
        "max_tokens": 1_000_000, "stop_tokens": ["x"], "tokenizer": "bert", "keywords": ["cat"], "keypoints": "none",
        "author": "me", "code": "python", "key": "$id", "token": "", "auth": None, "return_key": True, "key_id": 3,
        "api_key": "${KEY}",
    }  # fmt: skip
    request = {"rows": {"$each": {"image_key": "$image", **harmless}}}
    asked = teacher("http://127.0.0.1:1", {"KEY": PLAIN}, request=request)
    assert asked.identity == teacher("http://127.0.0.1:1", {"KEY": PLAIN[::-1]}, request=request).identity


# ---- keeping


@pytest.mark.parametrize("secret", [PLAIN, AWKWARD])
def test_a_value_is_taken_out_in_every_spelling(secret):
    secrets = Secrets({"KEY": secret, "SHORT": "abc"})
    spellings = [
        secret, quote(secret), quote(secret, safe=""), quote_plus(secret), quote(quote(secret, safe=""), safe=""),
        quote(secret, safe="").lower(), secret.upper() if secret == PLAIN else secret, repr(secret)[1:-1],
        json.dumps(secret)[1:-1], html.escape(secret), ascii(secret)[1:-1], json.dumps(json.dumps(secret)[1:-1])[1:-1],
        "".join(f"&#{ord(c)};" if not c.isalnum() else c for c in secret), quote(quote(secret), safe=""),
        quote(secret, safe="/:;?#"), repr(secret.encode())[2:-1] if secret == PLAIN else secret,
    ]  # fmt: skip
    for spelling in spellings:
        assert secrets.redact(f"a {spelling}, {spelling}b") == "a ${KEY}, ${KEY}b"
    assert secrets.redact("abc and nothing else") == "abc and nothing else"
    assert Secrets({}).redact("nothing") == "nothing"


@pytest.mark.parametrize("secret", [PLAIN, AWKWARD])
def test_a_value_that_was_cut_is_taken_out_too(secret):
    secrets = Secrets({"KEY": secret})
    for length in range(4, len(secret)):
        assert secrets.redact(f"bad key {secret[:length]}... given") == "bad key ${KEY}... given"
    assert secrets.redact("so...") == "so..."


def test_the_longer_of_two_values_is_taken_out_whole():
    secrets = Secrets({"A": "abcdef", "B": "abcdef-ghijkl"})
    assert secrets.redact("abcdef-ghijkl abcdef") == "${B} ${A}"


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=8, max_size=40), st.integers(0, 230))
def test_no_value_is_found_in_what_a_server_says_wherever_it_is_cut(secret, offset):
    asked = teacher("http://127.0.0.1:1", {"KEY": secret}, headers={"Authorization": "${KEY}"})
    filler = "\N{MIDDLE DOT}" * offset
    for text in (asked._cut(f"{filler}{secret}{filler}"), asked.fault("lost", f"{filler} {secret!r}").message):
        rest = text.replace("${KEY}", "").replace("...", "")
        assert not any(piece in rest for piece in pieces(secret, 6))


ECHOES = {
    "an error": lambda key: (401, {"error": f"Incorrect API key provided: {key}."}, {}),
    "an error at the cut": lambda key: (403, {"error": {"message": "x" * 185 + key + "y" * 99}}, {}),
    "a failure": lambda key: (500, f"no route for key {key}".encode(), {}),
    "a page": lambda key: (200, f"<html><body>{'x' * 150} Bearer {html.escape(key)} is not known</body></html>", {}),
    "a page of its address": lambda key: (200, f"<html>Cannot POST /predict?key={quote(key, safe='')}</html>", {}),
    "a redirect": lambda key: (302, b"", {"Location": f"/login?next={quote(f'/p?key={quote(key)}', safe='')}"}),
    "a wish": lambda key: (429, {"detail": [{"input": key}]}, {"Retry-After": "3"}),
    "a header": lambda key: (200, b"?", {"Content-Type": f"text/{quote(key, safe='')}"}),
    "an answer": lambda key: (200, {"message": "bad key", "key": key, "more": "y" * 99}, {}),
    "an answer at the cut": lambda key: (200, {"m" * 50: key}, {}),
    "rows": lambda key: (200, {"probabilities": [key, [key]]}, {}),
    "one row": lambda key: (200, {"probabilities": [GOOD, "z" * 60 + key]}, {}),
    "a class": lambda key: (200, {"probabilities": [{key: 1.0}, GOOD]}, {}),
}


@pytest.mark.parametrize("secret", [PLAIN, AWKWARD], ids=["plain", "awkward"])
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_a_server_that_repeats_the_key_does_not_get_it_into_a_message(echo, secret):
    status, body, headers = echo(secret)

    async def handler(request: web.Request) -> web.Response:
        raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        return web.Response(status=status, body=raw, headers=headers)

    with serving(handler) as server:
        asked = teacher(
            f"{server.url}/predict?key=${{KEY}}", {"KEY": secret}, headers={"Authorization": "Bearer ${KEY}"}
        )
        result = ask(asked)
        assert len(server.requests) == 1
        texts = [result.message] if isinstance(result, Fault) else list(result.bad.values())
        assert texts
        for text in texts:
            assert leaks(text, secret) == [], text
        if isinstance(result, Fault):
            with pytest.raises(TeacherError) as error:
                asked.answer(images())
            assert leaks(str(error.value), secret) == []


@pytest.mark.parametrize("secret", [PLAIN, AWKWARD], ids=["plain", "awkward"])
def test_accidents_do_not_tell_the_address_with_the_key_in_it(secret):
    environ = {"KEY": secret}

    async def speaks_something_else(reader, writer) -> None:
        head = await reader.readuntil(b"\r\n")
        writer.write(b"HTTP/9.9.9 " + head)  # the request line, with its query
        await writer.drain()
        await reader.read()

    async def goes_away(reader, writer) -> None:
        await reader.read(1)
        reset(writer)

    for talk in (speaks_something_else, goes_away):
        with talking(talk) as server:
            fault = ask(teacher(f"{server.url}/?key=${{KEY}}", environ))
            assert fault.kind == "lost" and leaks(fault.message, secret) == [], fault.message
            assert fault.message.count(server.url) == fault.message.count(f"{server.url}/?key=${{KEY}} broke off") == 1
    for url in ("http://127.0.0.1:1/?key=${KEY}", "http://nowhere.invalid/${KEY}", "http://127.0.0.1:${KEY}/",
                "http://${KEY}.invalid/"):  # fmt: skip
        fault = ask(teacher(url, environ))
        assert leaks(fault.message, secret) == [], fault.message
        assert url in fault.message


def test_metadata_that_repeats_the_key_does_not_get_it_into_a_message():
    inputs = [{"name": f"{PLAIN}-input", "datatype": PLAIN, "shape": [1]}]
    for changes in ({}, {"input": {"name": "x"}}):
        with serving(answering(200, {"inputs": inputs})) as server:
            asked = v2(server.url, {"KEY": PLAIN}, headers={"Authorization": "${KEY}"}, **changes)
            with pytest.raises(TeacherError) as error:
                asked.check()
            assert leaks(str(error.value), PLAIN) == [] and "${KEY}" in str(error.value)


def test_a_fault_of_kdray_itself_does_not_tell_either():
    asked = teacher("http://127.0.0.1:1", {"KEY": PLAIN}, headers={"Authorization": "${KEY}"})

    def broken(images):
        raise ValueError(f"header {PLAIN} is wrong")

    asked._wire.request = broken
    pool = AsyncTeacherPool(asked, slots=1)
    pool.send("a", torch.zeros(1, 1, 4, 3, dtype=torch.uint8))
    (reply,) = pool.collect(20)
    pool.close()
    assert reply.fault.kind == "failed" and "ValueError: header ${KEY} is wrong" in reply.fault.message


# ---- whole runs


def http_config(url: str, **teacher_changes) -> dict:
    """A run of 12 images and 8 more, in two rounds, of a teacher at `url`; quick to retry."""
    return {
        "images": {"source": "digits", "rows": "1000:1012", "size": 16},
        "teacher": {
            "kind": "http", "url": f"{url}/?key=${{QUERY_KEY}}", "model": "m", "classes": 3, "batch_size": 4,
            "headers": {"Authorization": "Bearer ${HEADER_KEY}"}, "limits": {"in_flight": 2},
            "retry": {"tries": 9, "backoff_s": 0.01, "max_backoff_s": 0.01, "max_bad_share": 1},
            **teacher_changes,
        },
        "budget": {"queries": 60, "price_per_query": 0.01},
        "pool": {"lambdas": [0.5]},
        "select": {"strategy": "random", "rounds": 1, "per_round": 8},
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
        "resources": {"trainer": {"threads": 1}},
    }  # fmt: skip


KEYS = {"HEADER_KEY": PLAIN, "QUERY_KEY": AWKWARD}
METADATA = {
    "name": "m", "versions": [], "platform": "p",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 16, 16]}], "outputs": [],
}  # fmt: skip


class Indiscreet:
    """A v2 server that demands both keys and repeats them in every way it can before it answers.

    Args:
        hang_at: infer request that is never answered.
    """

    def __init__(self, hang_at: int | None = None) -> None:
        self.count, self.hang_at, self.hangs = 0, hang_at, threading.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        key, query = request.headers.get("Authorization", ""), request.query.get("key", "")
        if (key, query) != (f"Bearer {PLAIN}", AWKWARD):
            return web.json_response({"error": f"wrong keys: {key} and {query} for {request.path_qs}"}, status=401)
        if request.method == "GET":
            return web.json_response(METADATA)
        self.count += 1
        if self.count == self.hang_at:
            self.hangs.set()
            await asyncio.sleep(60)
        batch = json.loads(await request.read())["inputs"][0]["shape"][0]
        data: list = [GOOD] * batch
        if self.count == 2:
            return web.json_response({"error": f"{key} has no luck with {request.path_qs}"}, status=500)
        if self.count == 3:
            page = f"<html>{'x' * 170}{html.escape(query)} {key}</html>"
            return web.Response(text=page, content_type="text/html")
        if self.count == 4:
            return web.json_response({"error": f"{query}: slow down, {key}"}, status=503, headers={"Retry-After": "0"})
        if self.count == 5:
            return web.json_response({"whose": key, "which": query})
        if self.count == 6:
            data[0] = [f"{key} {query}"]
        if self.count == 7:
            return web.json_response({"error": f"{key}, {query}: no such image"}, status=422)
        return web.json_response({"outputs": [{"name": "p", "datatype": "FP32", "shape": [batch, 3], "data": data}]})


def found(root: Path, secret: str) -> list[str]:
    """Files below `root` that hold a part of a secret."""
    needles = {piece.encode() for piece in pieces(secret)}
    needles |= {piece.encode() for piece in pieces(quote(secret, safe=""), 12)}
    return [str(path) for path in root.rglob("*") if path.is_file() for n in needles if n in path.read_bytes()]


def hidden(folder: Path, *outputs: str) -> None:
    """Neither key is in any file below `folder`, nor in what was printed."""
    for secret in KEYS.values():
        assert found(folder, secret) == []
        for text in outputs:
            assert leaks(text, secret) == [], text


def test_the_search_for_secrets_finds_one(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0" + PLAIN[3:14].encode() + b"\0")
    (tmp_path / "b.txt").write_text(f"?key={quote(AWKWARD, safe='')}&")
    assert found(tmp_path, PLAIN) and found(tmp_path, AWKWARD) and leaks(f"x{PLAIN[5:15]}x", PLAIN)


def said(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and all that is printed."""
    done = command(*arguments)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def keys(monkeypatch, tmp_path):
    """Both keys in the environment, and an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("keys")
def test_a_whole_run_keeps_the_keys_to_itself(tmp_path, monkeypatch):
    server_side = Indiscreet()
    with serving(server_side) as server:
        Path("config.yaml").write_text(yaml.safe_dump(http_config(server.url)))
        monkeypatch.setenv("HEADER_KEY", PLAIN[::-1])
        code, wrong = said("run", "config.yaml", "--local", "--out", "out")
        assert code == 2 and not Path("out").exists() and server_side.count == 0
        assert "refuses the key (401: wrong keys: Bearer ${HEADER_KEY} and ${QUERY_KEY} for" in wrong
        assert leaks(wrong, PLAIN[::-1]) == []
        done = kdray("run", "config.yaml", "--local", "--out", "out", cwd=tmp_path, env=KEYS)
        assert done.returncode == 0, done.stderr
        assert server_side.count > 8  # it went through all of it
    code, ledger = said("ledger", "out")
    assert code == 0 and "has no luck" in ledger and "${HEADER_KEY}" in ledger
    assert {"config.yaml", "ledger.sqlite", "report.html", "events", "student.safetensors"} <= set(os.listdir("out"))
    assert "${HEADER_KEY}" in Path("out/config.yaml").read_text()
    hidden(tmp_path, wrong, done.stdout, done.stderr, ledger)


@pytest.mark.storm
@pytest.mark.usefixtures("keys")
def test_a_run_that_is_killed_leaves_no_key_behind_and_goes_on_only_with_it(tmp_path, monkeypatch):
    server_side = Indiscreet(hang_at=8)
    with serving(server_side) as server:
        Path("config.yaml").write_text(yaml.safe_dump(http_config(server.url)))
        with Program("run", "config.yaml", "--local", "--out", "out") as process:
            try:
                assert server_side.hangs.wait(120)
            finally:
                process.kill()
            printed = process.communicate()
        assert Path("out/ledger.sqlite-wal").stat().st_size > 0
        hidden(tmp_path, *printed)
        with monkeypatch.context() as forgetful:
            forgetful.delenv("QUERY_KEY")
            code, text = said("resume", "out", "--local")
            assert code == 2 and "needs the environment variable QUERY_KEY, which is not set; export QUERY_KEY=" in text
        code, resumed = said("resume", "out", "--local")
        assert code == 0, resumed
    hidden(tmp_path, resumed)


def test_the_variables_of_several_teachers_are_all_kept():
    both = Secrets({"KEY_A": "first-secret"}).with_those_of(Secrets({"KEY_B": "second-secret"}))
    assert both.fill("${KEY_A} ${KEY_B}") == "first-secret second-secret"
    assert "secret" not in both.redact("first-secret, second-secret")
