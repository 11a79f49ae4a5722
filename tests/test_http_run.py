"""Whole runs against a teacher behind HTTP, as a user starts them."""

import contextlib
import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import command, served
from faulty import failing, quota
from processes import Program, kdray

from kdray.teachers.local import LocalTeacherConfig

TOKEN = "t0ken-that-nobody-may-see"


@pytest.fixture
def serve(teacher_weights, tmp_path) -> Iterator:
    """Starts `kdray teacher serve` with more options and gives its address."""
    servers = []

    def start(*options: str) -> str:
        command = ["teacher", "serve", "--model", str(teacher_weights), "--port", "0"]
        servers.append(Program(*command, *options, env={"TOKEN": TOKEN}))
        line = servers[-1].stdout.readline()
        assert line.startswith("serving 10 classes at http://127.0.0.1:"), line
        return line.split()[-1].partition("/v2/")[0]

    yield start
    for server in servers:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0


@pytest.fixture
def here(teacher_weights) -> Iterator:
    """Starts a server in this process, with middleware, and gives its address."""
    config = LocalTeacherConfig(kind="local", model="small-cnn", weights=str(teacher_weights))
    with contextlib.ExitStack() as servers:
        yield lambda *middlewares: servers.enter_context(served(config.build((1, 16, 16)), (1, 16, 16), *middlewares))


def http_config(config_file, url: str, **changes) -> Path:
    section = {"kind": "http", "url": url, "model": "teacher", "batch_size": 16, "metered": False}
    section["classes"] = [str(digit) for digit in range(10)]
    return config_file(teacher=section, **changes)


def bought(run: Path) -> dict[str, list]:
    """What each round chose, and the answers to it."""
    tables = [pq.read_table(path) for path in sorted(run.glob("rounds/*/labelled.parquet"))]
    return {name: [part.column(name).to_pylist() for part in tables] for name in ("id", "label", "probs", "image")}


def images_answered(url: str) -> int:
    with urllib.request.urlopen(f"{url}/v2/models/teacher/stats") as reply:
        return json.load(reply)["model_stats"][0]["inference_count"]


@pytest.mark.parametrize(
    "flags",
    [["--local"], pytest.param([], marks=[pytest.mark.storm, pytest.mark.long, pytest.mark.xdist_group("ray")])],
    ids=["local", "ray"],
)
def test_a_teacher_over_http_gives_the_same_run_as_in_the_process(serve, config_file, tmp_path, flags):
    small = {
        "select__rounds": 1,
        "budget__queries": 80,
        "resources__scoring_workers": 1,
        "resources__teacher_workers": 1,
    }
    done = command("run", config_file(**small), "--local", "--out", tmp_path / "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    url = serve()
    done = kdray("run", http_config(config_file, url, **small), *flags, "--out", tmp_path / "there", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here, there = bought(tmp_path / "here"), bought(tmp_path / "there")
    assert here == there
    assert len(here["id"]) == 2
    student = "student.safetensors"
    assert (tmp_path / "here" / student).read_bytes() == (tmp_path / "there" / student).read_bytes()
    assert images_answered(url) == 80 + 100  # training and test images, each once


def test_a_run_with_a_key_leaves_no_trace_of_it(serve, config_file, tmp_path):
    url = serve("--token-env", "TOKEN")
    path = http_config(config_file, url, teacher__headers={"Authorization": "Bearer ${TOKEN}"})
    refused = kdray("run", path, "--local", "--out", tmp_path / "run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "environment variable TOKEN" in refused.stderr
    wrong = kdray("run", path, "--local", "--out", tmp_path / "run", cwd=tmp_path, env={"TOKEN": "another"})
    assert wrong.returncode == 2
    assert "401" in wrong.stderr and "Traceback" not in wrong.stderr and "another" not in wrong.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()
    done = kdray("run", path, "--local", "--out", tmp_path / "run", cwd=tmp_path, env={"TOKEN": TOKEN})
    assert done.returncode == 0, done.stderr
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in done.stdout + done.stderr


def test_a_server_that_fails_now_and_then_costs_what_the_receipt_says(here, config_file, tmp_path):
    url = here(failing(0.3, seed=1))
    path = http_config(
        config_file, url, teacher__metered=True, teacher__batch_size=4, teacher__retry={"backoff_s": 0.05}
    )
    done = kdray("run", path, "--local", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    receipt = kdray("ledger", tmp_path / "run", cwd=tmp_path)
    assert receipt.returncode == 0
    (row,) = [line.split() for line in receipt.stdout.splitlines() if line.split()[:2] == ["training", "all"]]
    requests, answered, rejected, uncertain, charged, returned, retries, _hits = (int(n) for n in row[2:])
    assert answered + rejected + uncertain == charged <= 160
    assert uncertain > 0 and returned > 0 and retries > 0 and requests > 10
    assert images_answered(url) <= charged
    assert answered == sum(len(ids) for ids in bought(tmp_path / "run")["id"])


@pytest.mark.storm
def test_a_teacher_that_is_down_stops_the_run_and_resume_goes_on(here, config_file, tmp_path):
    url = here(quota(100))
    path = http_config(config_file, url, teacher__retry={"max_wait_s": 10}, teacher__name="the same")
    done = kdray("run", path, "--local", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "3,600 s" in done.stderr and "Traceback" not in done.stderr
    assert images_answered(url) <= 100
    paid = images_answered(url)
    other = here()  # without a quota, and at another address
    moved = http_config(config_file, other, teacher__retry={"max_wait_s": 10}, teacher__name="the same")
    done = kdray("run", moved, "--local", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert paid + images_answered(other) == 160 + 100
