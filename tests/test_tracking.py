"""Trackers: what Weights & Biases and MLflow are told of a run, without any network."""

import json
import struct

import numpy as np
import pytest
from conftest import command, copy_run, digits_config
from test_display import metrics

import kdray
from kdray.errors import ConfigError
from kdray.observers.tracking import Tracked, Tracker, Tracking, make_tracker, tracker_names
from kdray.runs.directory import RunDirectory
from kdray.runs.result import read_result
from kdray.runs.tracked import trackings
from kdray.utils.packages import why_missing

NAME = "it's 50 %: λ?"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Both trackers keep all they are told in a folder."""
    monkeypatch.chdir(tmp_path)  # MLflow's artifacts lie in the current one
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return uri


def mlflow_runs(uri):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return client, client.search_runs([client.get_experiment_by_name("kdray").experiment_id])


def _log_records(data):
    """Records of a log of LevelDB, as W&B writes it after 7 bytes: crc 4, length 2, kind 1, in blocks of 32 KiB.
    A record is whole (kind 1), or in pieces of kinds 2, 3 and 4."""
    place, held = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no header fits: the rest of the block is empty
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield held
            held = b""


def wandb_records(folder):
    """What an offline run has written: its config and its rows."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    config, rows = {}, []
    for data in _log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update} or config
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return config, rows


@pytest.mark.storm
def test_both_are_told_every_figure_of_every_round_the_config_and_the_report(config_file, offline, tmp_path):
    done = command("run", config_file(), "--local", "--out", tmp_path / NAME, "--track", "wandb,mlflow", cwd=tmp_path)
    assert done.returncode == 0 and "any more" not in done.stderr, done.stderr
    result = read_result(RunDirectory(tmp_path / NAME))
    client, (found,) = mlflow_runs(offline)
    assert found.info.status == "FINISHED" and found.info.run_name == NAME
    assert found.data.params["select.strategy"] == "active-mixup" and found.data.params["budget.queries"] == "160"
    for name, last in result.history[-1].figures().items():
        history = [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, name)]
        assert history == [(m.paid, m.figures()[name]) for m in result.history if name in m.figures()], name
        assert history[-1][1] == pytest.approx(last)
    assert [item.path for item in client.list_artifacts(found.info.run_id)] == ["report.html"]
    config, rows = wandb_records(tmp_path / NAME)
    assert config["select"]["strategy"] == "active-mixup"
    assert [row["queries"] for row in rows] == [m.paid for m in result.history]
    for row, m in zip(rows, result.history, strict=True):
        assert {name: row[name] for name in m.figures()} == pytest.approx(m.figures())


@pytest.mark.storm
def test_a_resumed_run_goes_on_where_it_is_tracked(teacher_weights, offline, tmp_path):
    directory = tmp_path / "r"
    config = digits_config(teacher_weights)
    kdray.distil(**_as_call(config), out=directory, local=True, progress=False, track=["mlflow"])
    cut = RunDirectory(directory)
    cut.artefact(2, "evaluate").unlink()
    kdray.distil(**_as_call(config), out=directory, local=True, progress=False, track=["mlflow"])
    moved = RunDirectory(copy_run(directory, tmp_path / "moved"))
    moved.artefact(2, "evaluate").unlink()
    assert command("resume", moved.path, "--local", "--track", "mlflow", cwd=tmp_path).returncode == 0
    client, runs = mlflow_runs(offline)
    assert len(runs) == 1, "a run has one name for good"
    steps = [point.step for point in client.get_metric_history(runs[0].info.run_id, "student_accuracy")]
    assert steps == [40, 100, 160, 160, 160]


def _as_call(config):
    config = dict(config)
    return {name: config.pop(name) for name in ("teacher", "images", "budget", "test")} | config


class Broken(Tracker):
    name, needs = "broken", ()

    def __init__(self, where):
        self.where, self.told = where, []

    def _do(self, what):
        self.told.append(what)
        if what == self.where:
            raise ConnectionError("no route to host\nand pages more")

    def start(self, run):
        self._do("start")

    def log(self, figures, queries):
        self._do("log")

    def attach(self, page):
        self._do("attach")

    def end(self):
        self._do("end")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("start", ["start"]),
        ("log", ["start", "log"]),
        ("attach", ["start", "log", "log", "attach"]),
        ("end", ["start", "log", "log", "attach", "end"]),
        ("none", ["start", "log", "log", "attach", "end"]),
    ],
)
def test_a_tracker_that_fails_is_given_up_and_the_run_goes_on(where, told, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("")
    about = Tracked(key="k", name="r", folder=tmp_path, report=page, config={})
    tracker, notes = Broken(where), []
    tracking = Tracking(tracker, lambda: about, notes.append)
    tracking.begin(rounds=1, budget=2, spent=0, title="")
    tracking.round_done(metrics(round=0))
    tracking.round_done(metrics(round=1))
    tracking.close()
    assert tracker.told == told
    assert notes == ([] if where == "none" else ["broken is not told of this run any more: no route to host"])


def test_nothing_is_said_of_a_run_that_never_began(tmp_path):
    tracker = Broken("none")
    Tracking(tracker, lambda: None, print).close()
    assert tracker.told == []


def test_what_is_no_tracker_is_refused_before_anything_is_paid(config_file, tmp_path, monkeypatch):
    assert tracker_names() == ["mlflow", "wandb"]
    for options, said in (
        (["--track", "tensorbord"], "kdray: --track: 'tensorbord' is not one of mlflow, wandb\n"),
        (["--track", "mlflow, mlflow"], "kdray: --track: mlflow is given twice; keep one of the two\n"),
    ):
        done = command("run", config_file(), "--local", "--out", tmp_path / "r", *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, said) and not (tmp_path / "r").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"--track wandb needs wandb, which is not installed: pip install 'kdray\[wandb\]'"
    ):
        make_tracker("wandb")
    with pytest.raises(ConfigError, match="is not one of mlflow, wandb"):
        kdray.distil(lambda images: pytest.fail("the function is asked"), np.zeros((4, 8, 8), np.uint8), track=["none"])
    assert trackings([], RunDirectory(tmp_path / "r"), None) == []


def test_packages_that_are_missing_are_named_with_the_command_that_brings_them():
    assert why_missing("x", ("json", "ast"), "all") is None
    for needs, said in (
        (("json", "no_such"), "no_such, which is not installed"),
        (("no_such", "nor_this"), "no_such and nor_this, which are not installed"),
        (("no_such", "nor_this", "nor_that"), "no_such, nor_this and nor_that, which are not installed"),
    ):
        assert why_missing("x", needs, "all") == f"x needs {said}: pip install 'kdray[all]'"
