"""`kdray serve`: a student at the address of its teacher."""

import contextlib
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import command, digits_config, served
from processes import Program
from test_cli_errors import refused

from kdray.config.load import parse_config
from kdray.models.checkpoint import load_student
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.runs.serving import student_to_serve

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights) -> Path:
    folder = tmp_path_factory.mktemp("served") / "run"
    changes = {"student": {"model": "lenet5", "steps": 30, "augment": "none"}, "select__rounds": 0}
    run(parse_config(digits_config(teacher_weights, budget__queries=40, **changes)), RunDirectory(folder), local=True)
    return folder


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ask(url: str, batch: torch.Tensor, token: str | None = None) -> torch.Tensor:
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(batch.shape), "data": batch.flatten().tolist()}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"{url}/infer", json.dumps({"inputs": [tensor]}).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        outputs = {one["name"]: one for one in json.load(reply)["outputs"]}
    found = outputs["probabilities"]
    return torch.tensor(found["data"]).view(found["shape"])


@contextlib.contextmanager
def serving(*arguments: object, **env: str) -> Iterator[str]:
    """`kdray serve` in a process of its own; the address of the model."""
    server = Program("serve", *map(str, arguments), "--port", "0", env=env)
    try:
        line = server.stdout.readline()
        assert line.startswith("serving 10 classes at http://127.0.0.1:"), line
        yield line.split()[-1]
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_is_served_are_the_students_probabilities(temperature, finished):
    teacher, shape, classes = student_to_serve(finished, temperature)
    assert (shape, classes, teacher.num_classes) == (SHAPE, tuple("0123456789"), 10)
    student = load_student(finished)
    with served(teacher, shape, classes=classes, name="student") as url:
        for count in (1, 2, 7):
            with torch.no_grad():
                expected = (student(images(count)) / temperature).softmax(dim=1)
            assert torch.allclose(ask(f"{url}/v2/models/student", images(count)), expected, atol=1e-6)


def test_a_request_is_answered_as_it_comes(finished):
    """Not filled up to a whole batch, as a teacher's is: that would cost a single image the time of many."""
    teacher, _, _ = student_to_serve(finished)
    seen = []
    ask_before = teacher._function
    teacher._function = lambda batch: seen.append(len(batch)) or ask_before(batch)
    with served(teacher, SHAPE, name="student") as url:
        ask(f"{url}/v2/models/student", images(1))
        ask(f"{url}/v2/models/student", images(3))
    assert seen[-2:] == [1, 3]


def test_the_command_serves_a_run_until_it_is_stopped(finished):
    with serving(finished, "--name", "mine", "--token-env", "KEY", KEY="secret") as url:
        assert url.endswith("/v2/models/mine")
        with torch.no_grad():
            expected = load_student(finished)(images(2)).softmax(dim=1)
        assert torch.allclose(ask(url, images(2), "secret"), expected, atol=1e-6)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(url, images(1))


def test_a_student_takes_the_place_of_a_teacher_by_its_address(finished, config_file, tmp_path):
    """A run asks it as it would ask any server."""
    teacher, shape, classes = student_to_serve(finished / "student.safetensors")
    with served(teacher, shape, classes=classes, name="student") as url:
        section = {"kind": "http", "url": url, "model": "student", "metered": False, "classes": 10}
        path = config_file(teacher=section, select__rounds=0, budget__queries=40, student__epochs=1, test=None)
        done = command("run", path, "--local", "--out", tmp_path / "second")
    assert done.returncode == 0, done.stderr
    bought = RunDirectory(tmp_path / "second").read_labelled(0, 10)
    with torch.no_grad():
        expected = load_student(finished)(bought.images).softmax(dim=1)
    assert torch.allclose(bought.answers.probs, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing is not there; give a run directory, or a model file of kdray's"),
        (["folder"], "folder is a folder that holds no run; give a run directory"),
        (["text.safetensors"], "text.safetensors is not a readable safetensors file"),
        (["RUN", "--temperature", "-1"], "--temperature: got -1; give a number above 0"),
        (["RUN", "--token-env", "NOT_SET"], "--token-env: the environment variable NOT_SET is not set"),
        (["RUN", "--name", "a/b"], "name must be of letters"),
        (["RUN", "--port", "70000"], "port must lie in 0..65535"),
        (["RUN", "--port", "0", "--host", "192.0.2.1"], "of 192.0.2.1: "),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(arguments, message, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.safetensors").write_text("a text")
    found = refused("serve", *(finished if text == "RUN" else text for text in arguments), unchanged=(finished,))
    assert message in found
