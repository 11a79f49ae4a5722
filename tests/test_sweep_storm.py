"""Sweeps that are killed and stopped, each with its own Ray: nothing is bought twice, and the same trial is best."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import digits_config
from processes import kdray

from kdray.ledger.store import Ledger
from kdray.sweeps.folder import SweepFolder
from kdray.sweeps.outcome import write_results
from kdray.utils.seeds import numpy_generator

pytestmark = [pytest.mark.storm, pytest.mark.xdist_group("sweeps")]  # one Ray at a time, and early in all tests

ROOT = Path(__file__).resolve().parents[1]

SLOW = """
import hashlib, os, time
import torch
from kdray.teachers.local import LocalTeacherConfig

TEACHER = None

def ask(images):
    global TEACHER
    if TEACHER is None:
        TEACHER = LocalTeacherConfig(model="small-cnn", weights=os.environ["WEIGHTS"]).build((1, 16, 16))
    with open(os.environ["ASKED"], "a") as log:
        log.write("".join(hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest() + "\\n" for image in images))
    time.sleep(0.1)
    return TEACHER.answer(torch.from_numpy(images)).probs.numpy()
"""
CAP = 600
TRIAL, LEDGER = "ray::ResourceTrainable", "ray::LedgerService"
"""Titles that Ray gives to the processes of a trial and of the ledger."""


@pytest.fixture
def slow_sweep(tmp_path, teacher_weights, monkeypatch):
    """The file of a sweep with a slow metered teacher, which logs each image that it is asked about."""
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.setenv("WEIGHTS", str(teacher_weights))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.log"))
    base = digits_config(teacher_weights, student__epochs=12, select__rounds=2)
    base["teacher"] = {"kind": "python", "function": "slow:ask", "classes": 10, "batch_size": 4}
    base["resources"]["teacher_workers"] = 0
    space = {"budget.queries": {"grid": [60, 220]}, "pool.lambdas": {"grid": [[0.5], [0.3, 0.5, 0.7]]}}
    sweep = {"seeds": 1, "budget": {"queries": CAP}, "scheduler": "asha", "reduction": 4, "resources": {"trials": 2}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"base": base, "space": space, "sweep": sweep}))
    return tmp_path


def with_space(folder: Path, space: dict) -> None:
    """Let the sweep try these values alone."""
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"space": space}))


def start(folder: Path, out: str) -> subprocess.Popen:
    """`kdray sweep`, in a session of its own."""
    command = [sys.executable, "-m", "kdray", "sweep", "sweep.yaml", "--resume", out]
    with open(folder / f"{out}.log", "a") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def below(program: subprocess.Popen, name: str) -> list[psutil.Process]:
    """Processes that a program has started, by Ray's title of them."""
    found = []
    for process in psutil.Process(program.pid).children(recursive=True):
        try:
            if any(name in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def asked(folder: Path) -> list[str]:
    log = folder / "asked.log"
    return log.read_text().split() if log.exists() else []


def best_of(folder: Path, out: str):
    sweep = SweepFolder(folder / out)
    return write_results(sweep.read_config(), sweep)


@pytest.mark.timeout(900)  # it starts Ray up to eight times, and waits 300 s for a single sweep itself
@pytest.mark.parametrize(("kills", "least"), [(3, 3), pytest.param(10, 8, marks=pytest.mark.long)])
def test_kills_of_driver_trials_and_ledger_buy_nothing_twice_and_change_no_best_trial(kills, least, slow_sweep):
    if kills < 10:
        with_space(slow_sweep, {"budget.queries": {"grid": [60, 220]}})  # two trials, not four
    program = start(slow_sweep, "whole")
    assert program.wait(300) == 0, (slow_sweep / "whole.log").read_text()
    whole = best_of(slow_sweep, "whole")
    assert whole.best is not None and whole.best.values["budget.queries"] == 220
    (slow_sweep / "asked.log").unlink()

    generator = numpy_generator(0, "kills")
    victims = (["driver", TRIAL, LEDGER] * 4)[:kills]
    generator.shuffle(victims)
    program, killed = start(slow_sweep, "killed"), []
    for victim in victims:
        seen, deadline = len(asked(slow_sweep)), time.monotonic() + 120
        # Each kill comes when something was asked since the last one; towards the end, when something runs.
        while program.poll() is None and len(asked(slow_sweep)) < seen + 12 and time.monotonic() < deadline:
            time.sleep(0.05)
        if program.poll() is not None:
            break
        if victim == "driver":
            for process in [*psutil.Process(program.pid).children(recursive=True), psutil.Process(program.pid)]:
                process.kill()
            program.wait(60)
            program = start(slow_sweep, "killed")
            killed.append(victim)
        for process in [] if victim == "driver" else below(program, victim)[:1]:
            process.kill()
            killed.append(victim)
    while program.wait(300) != 0:  # a trial that died too often goes on when the sweep is resumed
        program = start(slow_sweep, "killed")
    assert len(killed) >= least and set(killed) == {"driver", TRIAL, LEDGER}, killed

    result = best_of(slow_sweep, "killed")
    assert result.best is not None and result.best.values == whole.best.values
    assert Counter(trial.state for trial in result.trials)["failed"] == 0
    ledger = Ledger(slow_sweep / "killed" / "ledger.sqlite", read_only=True)
    try:
        (answers,) = ledger.read("SELECT count(*) FROM answers")[0]
        lost = ledger.uncertain() + ledger.rejected()
        assert ledger.spent() == answers + lost <= CAP
        assert ledger.reserved() == 0
    finally:
        ledger.close()
    times = Counter(asked(slow_sweep))
    # An image is asked about again only if its answer was lost, and what the teacher saw was charged.
    assert sum(times.values()) - len(times) <= lost
    assert sum(times.values()) <= answers + lost


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_stopped_sweep_settles_what_is_on_its_way_and_says_how_to_go_on(number, slow_sweep):
    with_space(slow_sweep, {"budget.queries": {"grid": [220]}})
    program = start(slow_sweep, "out")
    while program.poll() is None and len(asked(slow_sweep)) < 30:
        time.sleep(0.05)
    program.send_signal(number)
    assert program.wait(60) == 130
    said = (slow_sweep / "out.log").read_text()
    assert said.rstrip().endswith(f"nothing is lost. Go on with: kdray sweep --resume {slow_sweep / 'out'}")
    assert "Traceback" not in said and "\x1b" not in said
    ledger = Ledger(slow_sweep / "out" / "ledger.sqlite", read_only=True)
    assert (ledger.reserved(), ledger.uncertain(), ledger.spent()) == (0, 0, len(asked(slow_sweep)))
    ledger.close()
    program = start(slow_sweep, "out")
    assert program.wait(300) == 0, (slow_sweep / "out.log").read_text()
    assert len(asked(slow_sweep)) == len(set(asked(slow_sweep)))  # not one image twice


@pytest.mark.long
def test_optuna_goes_on_after_a_kill_in_a_folder_that_was_moved(tmp_path, teacher_weights):
    base = digits_config(teacher_weights, student__epochs=2)
    space = {"budget.queries": {"randint": [60, 160]}, "select.strategy": {"choice": ["random", "margin"]}}
    sweep = {"search": "optuna", "samples": 5, "resources": {"trials": 1}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"base": base, "space": space, "sweep": sweep}))
    program = start(tmp_path, "first")
    ended = 0
    while program.poll() is None and ended < 2:
        told = [json.loads(path.read_text()) for path in tmp_path.glob("first/trials/*/state.json")]
        ended = sum(state["state"] == "finished" for state in told)
        time.sleep(0.05)
    moment = time.time()
    while max(path.stat().st_mtime for path in tmp_path.glob("first/tune/experiment_state*")) <= moment:
        time.sleep(0.05)  # Tune writes its state once a second
    for process in [*psutil.Process(program.pid).children(recursive=True), psutil.Process(program.pid)]:
        process.kill()
    program.wait(60)
    before = {path.name for path in (tmp_path / "first" / "trials").iterdir()}
    (tmp_path / "first").rename(tmp_path / "moved")
    done = kdray("sweep", "--resume", "moved", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = best_of(tmp_path, "moved")
    assert {trial.state for trial in result.trials} == {"finished"} and len(result.trials) <= 5
    assert before <= {trial.name for trial in result.trials}
    assert json.loads(json.dumps(result.best.values)) == result.best.values


SMALL = ["change.student.steps=20", "change.images.count=60", "sweep.seeds=1", "sweep.resources.trials=1"]
SMALLER = {
    "budgets": ["space.budget.queries={grid: [100, 200]}", "change.select.schedule=[100, 200]"],
    "lambda_range": ["space.pool.lambdas.min={grid: [0.3, 0.5]}", "space.pool.lambdas.max={grid: [0.5, 0.7]}"],
    "rad_w": ["space.select.w={grid: [0.1, 1.0]}", "space.select.m={grid: [0.05]}"],
    "strategies": ["space.select.strategy={grid: [random, margin]}", "space.select.rounds={grid: [1]}"],
    "joint": ["sweep.samples=3", "change.budget.queries=200"],
    "generator_steps": [
        "space.pool.steps={grid: [1, 2]}", "space.pool.weight={grid: [5]}", "change.budget.queries=60",
        "change.select.rounds=1",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def demo_teacher(tmp_path_factory):
    """The folder in which the sweeps run, with the demo's teacher in it."""
    folder = tmp_path_factory.mktemp("sweeps")
    for example in ("digits.yaml", "generator.yaml"):
        done = kdray("teacher", "train", ROOT / "examples" / example, "teacher.train.epochs=2", cwd=folder)
        assert done.returncode == 0, done.stderr
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def test_no_sweep_that_comes_with_kdray_is_left_out():
    assert {path.stem for path in (ROOT / "tune_configs").glob("*.yaml")} == set(SMALLER)


@pytest.mark.parametrize(
    "name",
    [name if name == "budgets" else pytest.param(name, marks=pytest.mark.long) for name in SMALLER],
)
def test_each_sweep_that_comes_with_kdray_runs_in_small(name, demo_teacher):
    file = ROOT / "tune_configs" / f"{name}.yaml"
    done = kdray("sweep", file, *SMALL, *SMALLER[name], cwd=demo_teacher)
    assert done.returncode == 0, done.stdout + done.stderr
    result = best_of(demo_teacher / "runs", name)
    assert result.best is not None and not result.failed
    assert all((result.directory / part).exists() for part in ("results.csv", "results.parquet", "best.yaml", "events"))
    if name == "budgets":
        largest = max(trial.asked for trial in result.trials)
        assert result.bought <= largest  # the smaller budgets cost nothing more
    if name == "joint":
        again = ["student.steps=20", "--local", "--out", "best"]
        done = kdray("run", result.directory / "best.yaml", *again, cwd=demo_teacher)
        assert done.returncode == 0, done.stderr
