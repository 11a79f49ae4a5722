"""kdray on a cluster that is already there, with token authentication: a head of the test's own, on free ports."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import command
from processes import Program, kdray
from ray.job_submission import JobSubmissionClient

from kdray.runs.directory import RunDirectory
from kdray.runs.result import read_result

pytestmark = pytest.mark.xdist_group("head")  # which is another Ray than the other tests have

ROOT = Path(__file__).resolve().parents[1]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head as a user starts one, with a token of its own in a home of its own; its environment and ports."""
    home = tmp_path_factory.mktemp("home")
    with tempfile.TemporaryDirectory(prefix="kd") as short:  # Ray's sockets allow only short paths
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {
            "HOME": str(home),
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": short,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",
        }
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
        with contextlib.ExitStack() as stack:
            for _ in range(5):  # somebody else may take a port first
                ports, said = free_ports(5), []
                process = stack.enter_context(ray_start(f"{short}/ray", ports, environment))
                for line in process.stdout:
                    said.append(line)
                    if "Ray runtime started" in line:
                        yield environment, ports[0], ports[1]
                        return
            pytest.fail("the head did not come up: " + "".join(said))


@contextlib.contextmanager
def ray_start(folder: str, ports: list[int], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """`ray start` on these ports, and its end with all that it has started."""
    port, dashboard, client, agent, metrics = ports
    command = (
        f"ray start --head --block --num-cpus=2 --temp-dir={folder} --port={port} --dashboard-port={dashboard} "
        f"--ray-client-server-port={client} --dashboard-agent-listen-port={agent} --metrics-export-port={metrics}"
    )
    with subprocess.Popen(
        command.split(),
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run_on(head, arguments: list[str], address: str, cwd: Path) -> subprocess.CompletedProcess:
    environment, _, _ = head
    return kdray(*arguments, cwd=cwd, env=instead(environment, RAY_ADDRESS=address))


def instead(environment: dict[str, str], **more: str) -> dict[str, str | None]:
    """What makes an environment of ours into this one."""
    return dict.fromkeys(os.environ) | environment | more


@pytest.mark.storm
def test_ray_address_auto_joins_the_cluster_and_selects_as_without_ray(head, config_file, tmp_path):
    path = config_file(select__rounds=1, budget__queries=80, student__epochs=2, resources__teacher_workers=0)
    done = run_on(head, ["run", str(path), "--out", str(tmp_path / "auto")], "auto", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Ray (auto): 2 scoring workers" in done.stderr
    local = command("run", path, "--local", "--out", tmp_path / "local", cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    students = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("auto", "local")]
    assert students[0] == students[1]


@pytest.mark.storm
@pytest.mark.long  # smaller, on Ray: test_faults.py
@pytest.mark.timeout(1200)
def test_a_driver_killed_on_the_cluster_is_resumed_to_the_same_bits(head, config_file, tmp_path):
    environment, _, _ = head
    path, out = config_file(student__epochs=8), tmp_path / "killed"
    for line_of_death in ("round 0/2 asking", "round 1/2 training"):
        with Program("run", path, "--out", out, env=instead(environment, RAY_ADDRESS="auto")) as process:
            assert any(line.startswith(line_of_death) for line in process.stderr), line_of_death
            process.kill()
    done = run_on(head, ["resume", str(out)], "auto", tmp_path)
    assert done.returncode == 0, done.stderr
    assert kdray("run", path, "--local", "--out", tmp_path / "lived", cwd=tmp_path).returncode == 0
    killed, lived = (read_result(RunDirectory(tmp_path / name)) for name in ("killed", "lived"))
    assert (killed.directory / "student.safetensors").read_bytes() == (
        lived.directory / "student.safetensors"
    ).read_bytes()
    assert killed.receipt == lived.receipt


@pytest.mark.storm
@pytest.mark.long  # that of a job is below
def test_sigterm_stops_a_run_on_ray_as_cleanly_as_ctrl_c(head, config_file, tmp_path):
    environment, _, _ = head
    out = tmp_path / "stopped"
    path = config_file(student__epochs=8)
    with Program("run", path, "--out", out, env=instead(environment, RAY_ADDRESS="auto")) as process:
        assert any(line.startswith("round 1/2 choosing") for line in process.stderr)
        process.terminate()
        rest = process.stderr.read()
        assert process.wait() == 130
    assert rest.strip().splitlines()[-1] == f"kdray: stopped; nothing is lost. Go on with: kdray resume {out}"
    assert "Traceback" not in rest


@pytest.mark.storm
@pytest.mark.long
def test_an_explicit_address_finds_the_token_by_itself(head, config_file, tmp_path):
    environment, port, dashboard = head
    without_mode = {key: value for key, value in environment.items() if key != "RAY_AUTH_MODE"}
    path = config_file(select__rounds=0, resources__teacher_workers=0, resources__scoring_workers=1)
    done = run_on(
        (without_mode, port, dashboard),
        ["run", str(path), "--out", str(tmp_path / "run")],
        f"127.0.0.1:{port}",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.storm  # Ray tries for twenty seconds
def test_a_wrong_token_is_one_clear_message(head, config_file, tmp_path):
    environment, port, dashboard = head
    wrong = environment | {"RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
    out = tmp_path / "run"
    done = run_on(
        (wrong, port, dashboard), ["run", str(config_file()), "--out", str(out)], f"127.0.0.1:{port}", tmp_path
    )
    assert done.returncode == 2
    assert "cannot join the cluster" in done.stderr and "RAY_AUTH_TOKEN" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, "one message, and nothing around it"


@pytest.mark.storm
@pytest.mark.timeout(1200)  # a busy machine takes minutes to start a job
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
def test_ray_job_submit_as_in_the_readme(head, whole):
    environment, _, dashboard = head
    command = "ray job submit --working-dir . -- python -m kdray run examples/digits.yaml"
    assert command in (ROOT / "README.md").read_text()
    # The files and the workers are the README's; teacher, student and budget are smaller, but for the whole.
    small = ["budget.queries=200", "select.rounds=1", "student.steps=50", "teacher.train.epochs=3"]
    done = subprocess.run(
        [*command.split(), *([] if whole else small)],
        cwd=ROOT,
        env=environment | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"},
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The job's own folder is deleted after it: what was paid for lies in the home folder.
    runs = Path(environment["HOME"]).glob("kdray-runs/digits*")  # the second one has a number
    result = read_result(RunDirectory(max(runs, key=lambda run: run.stat().st_ctime)))
    assert result.receipt.queries == (1000 if whole else 200) == result.history[-1].images
    assert not whole or result.history[-1].success_rate >= 0.95


def jobs_of(head) -> JobSubmissionClient:
    """What `ray job` uses, without a process for each command."""
    environment, _, dashboard = head
    token = Path(environment["HOME"], ".ray", "auth_token").read_text().strip()
    return JobSubmissionClient(f"http://127.0.0.1:{dashboard}", headers={"Authorization": f"Bearer {token}"})


def submit(jobs: JobSubmissionClient, *arguments: str, job: str) -> None:
    """A command of kdray's as a job, from an empty folder."""
    with tempfile.TemporaryDirectory() as empty:
        entrypoint = shlex.join([sys.executable, "-m", "kdray", *arguments])
        jobs.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env={"working_dir": empty})


def wait_for(out: Path, deadline_s: float = 500, **expected: object) -> dict:
    """Follow RUN/status.json until it says all this; what it says then."""
    end = time.monotonic() + deadline_s
    status: dict = {}
    while time.monotonic() < end:
        if (out / "status.json").exists():
            status = json.loads((out / "status.json").read_text())
            if expected.items() <= status.items():
                return status
        time.sleep(0.2)
    pytest.fail(f"after {deadline_s} s: {status}")


@pytest.mark.storm
@pytest.mark.timeout(1200)
def test_a_job_that_is_stopped_says_so_and_goes_on(head, config_file, tmp_path):
    """`ray job stop` sends SIGTERM, and SIGKILL three seconds later."""
    jobs = jobs_of(head)
    slow = {"student__model": "small-cnn", "student__epochs": 300}  # it is to be seen at work, also on a busy machine
    workers = {"resources__teacher_workers": 0, "resources__scoring_workers": 1}
    path, out = config_file(**slow, **workers), tmp_path / "run"
    run = ["run", str(path), "--out", str(out)]
    submit(jobs, *run, job="first")
    wait_for(out, round=1, phase="train")
    assert command("status", out).returncode == 3
    jobs.stop_job("first")
    status = wait_for(out, state="stopped")
    assert status["exit_code"] == 130 and status["queries"] >= 40
    submit(jobs, *run, job="second")
    assert wait_for(out, state="finished")["queries"] == 160
    assert command("status", out).returncode == 0
    for job in ("first", "second"):
        log = jobs.get_job_logs(job)
        assert f"run directory {out}" in log
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log), "no control characters"
        assert "Traceback" not in log
    logged = (out / "log.txt").read_text()
    assert "Z stopped\n" in logged and logged.endswith("Z finished\n")
