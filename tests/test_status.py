"""status.json and log.txt of a run, and `kdray status`: what remains true where the log of a job breaks."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import command, copy_run, digits_config
from processes import Program, kdray

from kdray.errors import KdrayError
from kdray.observers import Observer
from kdray.observers.log import LogFile
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.sweeps.config import dump_sweep, parse_sweep
from kdray.sweeps.folder import SweepFolder
from kdray.utils.files import write_json
from kdray.utils.text import printable

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def status_of(path: Path) -> dict:
    return json.loads((path / "status.json").read_text())


def told(path: Path) -> tuple[int, str]:
    """Exit code and output of `kdray status`."""
    done = command("status", path)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights) -> tuple[Path, str]:
    """A finished run, and what it printed to a pipe."""
    folder = tmp_path_factory.mktemp("status")
    config = folder / "config.yaml"
    changes = {"budget__queries": 60, "select__rounds": 1, "student__epochs": 1}
    config.write_text(yaml.safe_dump(digits_config(teacher_weights, **changes)))
    done = kdray("run", config, "--local", "--out", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stderr


def test_a_finished_run(finished):
    path, _ = finished
    status = status_of(path)
    accuracy = json.loads((path / "rounds" / "001" / "metrics.json").read_text())["student_accuracy"]
    expected = {"state": "finished", "cause": "", "exit_code": 0, "round": 1, "rounds": 1, "phase": "evaluate"}
    expected |= {"queries": 60, "budget": 60, "evaluation_queries": 100, "student_accuracy": accuracy}
    assert {name: status[name] for name in expected} == expected
    metrics = json.loads((path / "rounds" / "001" / "metrics.json").read_text())
    assert 0 < status["relative_entropy"] == metrics["relative_entropy"] <= 1
    assert status["host"] == socket.gethostname() and status["pid"] > 0
    assert re.fullmatch(STAMP, status["started"]) and status["started"] <= status["updated"]
    code, text = told(path)
    assert code == 0
    assert "finished (exit code 0)" in text and "60 of 60; 100 for evaluation" in text and "go on" not in text
    assert f"entropy   {status['relative_entropy']:.2f} of 1" in text


def test_status_is_written_after_all_else(finished):
    path, _ = finished
    times = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    del times[path / "log.txt"]  # whose last line says so
    assert max(times, key=times.__getitem__) == path / "status.json"
    assert (path / "report.html") in times


def test_the_log_has_every_line_with_its_time_and_no_control_characters(finished):
    path, printed = finished
    log = (path / "log.txt").read_text()
    lines = [re.fullmatch(rf"{STAMP} (.*)", line).group(1) for line in log.splitlines()]
    assert lines == [*printed.splitlines(), "finished"]
    assert "round 1/1 training" in lines
    assert not CONTROL.search(log) and not CONTROL.search(printed)


def test_neither_torch_nor_ray_is_imported(finished):
    program = (
        "import sys; from kdray.cli.app import app\n"
        "try: app(['status', sys.argv[1]])\n"
        "finally: print([name for name in ('torch', 'ray', 'sklearn', 'matplotlib', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, finished[0]], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_running_killed_stopped_and_gone_on(config_file, tmp_path):
    path, out = config_file(student__epochs=60), tmp_path / "run"
    with Program("run", path, "--local", "--out", out) as process:
        assert any(line.startswith("round 1/2 choosing") for line in process.stderr)
        process.send_signal(signal.SIGSTOP)  # it stays there, however long the commands take
        assert told(out)[0] == 3
        assert (status_of(out)["state"], status_of(out)["pid"]) == ("running", process.pid)
        before = status_of(out)
        refused = command("resume", out, "--local")
        assert refused.returncode == 2 and "another kdray process" in refused.stderr
        assert status_of(out)["pid"] == before["pid"] and status_of(out)["state"] == "running"
        process.kill()
    assert status_of(out)["state"] == "running"
    code, text = told(out)
    assert code == 1 and "state     killed" in text and f"kdray resume {out}" in text
    with Program("resume", out, "--local") as process:
        assert any(line.startswith("round 1/2 training") for line in process.stderr)
        process.terminate()
        assert process.wait() == 130
    status = status_of(out)
    assert (status["state"], status["exit_code"], status["round"], status["phase"]) == ("stopped", 130, 1, "train")
    assert status["queries"] == 100 and status["student_accuracy"] > 0
    assert told(out)[0] == 1
    assert command("resume", out, "--local").returncode == 0
    assert (status_of(out)["state"], status_of(out)["queries"], told(out)[0]) == ("finished", 160, 0)
    log = (out / "log.txt").read_text()
    assert len(re.findall(f"^{STAMP} run directory", log, re.MULTILINE)) == 3
    assert re.search(f"^{STAMP} stopped$", log, re.MULTILINE)


def test_on_another_host_a_run_that_says_running_is_believed(finished, tmp_path):
    path = copy_run(finished[0], tmp_path / "run")
    write_json(path / "status.json", status_of(path) | {"state": "running", "host": "another"})
    code, text = told(path)
    assert code == 3 and "on another" in text


def test_a_failure_that_a_user_can_mend(config_file, tmp_path, teacher_weights):
    """The teacher's file is gone when the run goes on."""
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(teacher_weights.read_bytes())
    path, out = config_file(teacher__weights=str(weights), select__rounds=0, budget__queries=40), tmp_path / "run"
    assert command("run", path, "--local", "--out", out).returncode == 0
    (out / "rounds" / "000" / "metrics.json").unlink()
    weights.unlink()
    failed = command("resume", out, "--local")
    status = status_of(out)
    assert failed.returncode == 2
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    assert str(weights) in status["cause"] and status["cause"] in failed.stderr
    code, text = told(out)
    assert code == 1 and status["cause"] in text


class Breaking(Observer):
    def __init__(self, error: BaseException, phase: str) -> None:
        self.error, self.at = error, phase

    def phase(self, round: int, name: str) -> None:
        if name == self.at:
            raise self.error


@pytest.mark.parametrize(
    ("error", "state", "code", "cause"),
    [
        (RuntimeError("a bug"), "failed", 1, "RuntimeError: a bug"),
        (KdrayError("no more"), "failed", 2, "no more"),
        (KeyboardInterrupt(), "stopped", 130, ""),
        (SystemExit(3), "stopped", 1, ""),
    ],
)
def test_whatever_ends_a_run_is_recorded(error, state, code, cause, make_config, tmp_path):
    config, directory = make_config(select__rounds=0, budget__queries=40), RunDirectory(tmp_path / "run")
    with pytest.raises(type(error)):
        run(config, directory, local=True, observer=Breaking(error, "train"))
    status = status_of(directory.path)
    assert (status["state"], status["exit_code"], status["cause"]) == (state, code, cause)
    assert status["queries"] == 40
    log = directory.log.read_text()
    assert log.splitlines()[-1].endswith(f" {state}: {cause}" if cause else f" {state}")
    assert ("Traceback" in log) == (code == 1)
    run(config, directory, local=True)
    assert status_of(directory.path)["state"] == "finished"


def test_a_run_that_died_after_its_last_round_is_finished(finished, tmp_path):
    path = copy_run(finished[0], tmp_path / "run")
    write_json(path / "status.json", status_of(path) | {"state": "running", "exit_code": None})
    assert told(path)[0] == 1
    assert command("resume", path, "--local").returncode == 0
    assert (status_of(path)["state"], told(path)[0]) == ("finished", 0)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_no_run_or_a_damaged_status(content, tmp_path):
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    done = command("status", tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_a_run_begins_where_one_died_before_its_config_was_written(make_config, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.status.write_text("{}")
    directory.log.touch()
    (directory.path / ".status.json.17.tmp").touch()
    run(make_config(select__rounds=0, budget__queries=40), directory, local=True)
    assert status_of(directory.path)["state"] == "finished"


def test_the_trials_of_a_sweep_by_state(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.lock()
    folder.identity()
    folder.config.write_text("{}")
    for number, state in enumerate(["finished", "finished", "stopped", "running", "failed"]):
        trial = folder.trial({"seed": number})
        trial.begin({"seed": number}, [0])
        trial.put_state(state)
    code, text = told(folder.path)
    assert code == 3 and "1 failed, 2 finished, 1 running, 1 stopped" in text
    folder.unlock()
    code, text = told(folder.path)
    assert code == 1 and "stopped or killed" in text and f"kdray sweep --resume {folder.path}" in text
    folder.trial({"seed": 3}).put_state("finished")
    folder.trial({"seed": 4}).put_state("finished")
    (folder.path / "report.html").touch()  # as `kdray report` writes it of a sweep that was killed
    assert told(folder.path)[0] == 1, "there may be trials that have not begun"
    folder.ended.touch()
    folder.trial({"seed": 4}).put_state("failed")
    code, text = told(folder.path)
    assert code == 1 and "state     failed" in text
    folder.trial({"seed": 4}).put_state("finished")
    code, text = told(folder.path)
    assert code == 0 and "4 finished, 1 stopped" in text


def test_a_sweep_that_never_ran_a_trial_is_not_finished(make_config, tmp_path):
    """It was killed before its first trial began, and somebody looked at its page."""
    folder = SweepFolder(tmp_path / "sweep")
    folder.identity()
    base = make_config(budget__queries=80).model_dump(mode="json")
    config = parse_sweep({"base": base, "space": {"budget.queries": {"grid": [60, 80]}}})
    folder.config.write_text(dump_sweep(config))
    assert command("report", folder.path).returncode == 0 and (folder.path / "report.html").exists()
    code, text = told(folder.path)
    assert code == 1 and "stopped or killed" in text and "none has begun" in text
    assert f"kdray sweep --resume {folder.path}" in text


def test_control_characters_are_shown_as_their_codes(tmp_path):
    assert printable("a\x1b[31mred\r\n\x00é\u202e") == "a\\x1b[31mred\\r\n\\x00é\\u202e"
    log = LogFile()
    log.note("before\x1b[2J")
    log.open(tmp_path / "log.txt")
    log.note("one\ntwo")
    lines = [line.partition(" ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines == ["before\\x1b[2J", "one", "two"]


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    log = LogFile()
    log.open(tmp_path / "missing" / "log.txt")
    log.note("one")
    (tmp_path / "missing").mkdir()
    log.note("two")
    assert len((tmp_path / "missing" / "log.txt").read_text().splitlines()) == 2
