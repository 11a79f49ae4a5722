"""Sweeps on a real Ray: trials on Tune, one ledger actor, failures, stops, and going on."""

import shutil
import sys

import pytest
import yaml
from conftest import actor_pids, command, digits_config

import kdray as library
from actors.scoring import RaySearcher
from kdray.errors import ClusterError, SweepError
from kdray.ledger.store import Ledger
from kdray.sweeps.api import sweep
from kdray.sweeps.folder import SweepFolder

QUERIES = {"budget.queries": {"grid": [60, 80]}}


@pytest.fixture
def base(teacher_weights):
    return digits_config(teacher_weights, student__epochs=1, budget__queries=80)


FLAKY = """
import pathlib
import numpy as np

def ask(images):
    return np.tile(np.eye(10, dtype=np.float32)[3], (len(images), 1))

def broken(images):
    if not pathlib.Path("mended").exists():
        raise RuntimeError("down for repair")
    return ask(images)
"""


@pytest.mark.storm
def test_a_failed_trial_loses_only_itself_and_goes_on_when_its_cause_is_mended(ray_local, base, tmp_path):
    (tmp_path / "flaky.py").write_text(FLAKY)
    base |= {
        "teacher": {"kind": "python", "function": "flaky:ask", "classes": 10, "retry": {"tries": 1}},
        "select": {"strategy": "random", "rounds": 1},
        "budget": {"queries": 50},
    }
    space = {"teacher.function": {"grid": ["flaky:ask", "flaky:broken"]}}
    one = {"resources": {"trials": 1}}  # the second trial is in the process of the first, which has imported torch
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"base": base, "space": space, "sweep": one}))
    out = tmp_path / "out"
    done = command("sweep", "sweep.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: function=flaky:broken: " in done.stdout and "down for repair" in done.stdout
    assert "1 of 2 trials failed" in done.stdout and "best   function=flaky:ask: " in done.stdout
    # Tune keeps no weights and no checkpoints: a trial's state is its run directories.
    assert not [
        path for path in (out / "tune").rglob("*") if path.suffix == ".safetensors" or "checkpoint" in path.name
    ]
    assert not actor_pids("LedgerService")

    done = command("sweep", "sweep.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2 and "holds a sweep; go on with it: kdray sweep --resume" in done.stderr
    done = command("sweep", "sweep.yaml", "--resume", "out", "sweep.seeds=2", cwd=tmp_path)
    assert done.returncode == 2 and "holds a sweep of another config (sweep.seeds: 1 -> 2)" in done.stderr

    (tmp_path / "mended").touch()
    done = command("sweep", "--resume", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("finished") == 3 and "failed:" not in done.stdout
    ledger = Ledger(out / "ledger.sqlite", read_only=True)
    # Each function is a teacher of its own, and is asked about its images once; the error was charged too.
    assert (ledger.spent(), ledger.uncertain() + ledger.rejected()) == (100, 1)
    ledger.close()
    done = command("sweep", "--resume", "out", cwd=tmp_path)
    assert done.returncode == 0 and "the sweep is complete; nothing is asked again" in done.stderr


@pytest.mark.storm
def test_a_proposal_of_optuna_that_is_no_config_is_a_failed_trial(ray_local, base, tmp_path):
    base |= {"budget": {"queries": 40}, "select": {"rounds": 0}}
    shutil.copy(base["teacher"]["weights"], tmp_path / "own.safetensors")
    file = {
        "base": base,
        "space": {"student.batch_size": {"choice": [0, 64]}, "teacher.weights": {"choice": ["own.safetensors"]}},
        "sweep": {"search": "optuna", "samples": 2, "resources": {"trials": 1}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(file))
    done = command("sweep", "sweep.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: batch_size=0, " in done.stdout and "best   batch_size=64, " in done.stdout
    assert "1 of 2 trials failed" in done.stdout and "started again" not in done.stderr
    trials = SweepFolder(tmp_path / "out").trials()
    assert {trial.values["student.batch_size"]: trial.state for trial in trials} == {0: "failed", 64: "finished"}
    assert all(trial.values["teacher.weights"] == str(tmp_path / "own.safetensors") for trial in trials)
    done = command("status", "out", cwd=tmp_path)
    assert done.returncode == 1 and "1 failed, 1 finished" in done.stdout


def test_a_trial_that_cannot_fit_is_refused_at_once(ray_local, base, tmp_path):
    with pytest.raises(ClusterError) as refused:
        sweep(base=base, space=QUERIES, resources={"scoring_workers": 9}, out=tmp_path / "s", progress=False)
    assert (
        "sweep.resources: a trial needs 10 CPUs in 10 parts, which do not fit into the cluster: it has 4 CPUs"
        in str(refused.value)
    )
    assert not (tmp_path / "s").exists()


def test_the_workers_of_a_trial_take_the_places_that_it_has_reserved(ray_local):
    """All CPUs are: a worker outside the group would never start."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def trial() -> int:
        searcher = RaySearcher(1)
        searcher.start()
        try:
            return len(set(searcher.pids()))
        finally:
            searcher.close()

    group = placement_group([{"CPU": 1}] * 4)
    try:
        ray.get(group.ready(), timeout=60)
        place = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        started = ray.remote(trial).options(num_cpus=1, scheduling_strategy=place).remote()
        assert ray.get(started, timeout=60) == 1
    finally:
        remove_placement_group(group)


@pytest.mark.storm
@pytest.mark.long
def test_a_trial_with_scoring_workers_measures_what_one_in_one_process_does(ray_local, base, tmp_path):
    results = [
        sweep(
            base=base,
            space={"budget.queries": {"grid": [60]}},
            seeds=2,
            resources={"scoring_workers": workers, "trials": 1},
            out=tmp_path / str(workers),
            progress=False,
        )
        for workers in (0, 2)
    ]
    without, on_workers = ([run.path for run in runs(result)] for result in results)
    for one, other in zip(without, on_workers, strict=True):
        assert (one / "student.safetensors").read_bytes() == (other / "student.safetensors").read_bytes()
    assert not actor_pids("ScoringWorker")


def runs(result):
    """The run directories of a sweep with one trial."""
    (trial,) = result.trials
    folder = SweepFolder(result.directory).trial(trial.values)
    return [folder.run(seed) for seed in trial.seeds]


@pytest.mark.storm
@pytest.mark.long
def test_a_tuner_of_the_users_own_runs_trials(ray_local, base, tmp_path):
    from ray import tune

    trials = library.trainable(base, out=tmp_path / "mine", queries=100, seeds=1)
    tuner = tune.Tuner(
        tune.with_resources(trials, {"cpu": 1}),
        param_space={"budget.queries": tune.grid_search([60, 80])},
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
    )
    results = tuner.fit()
    assert [result.error for result in results] == [None, None]
    assert sorted(result.metrics["asked"] for result in results) == [60, 80]
    assert all(result.metrics["round"] == 2 and result.metrics["student_accuracy"] > 0 for result in results)
    ledger = Ledger(tmp_path / "mine" / "ledger.sqlite", read_only=True)
    assert ledger.spent() <= 100
    ledger.close()


def test_optuna_that_is_not_installed_is_said_so_before_anything_is_paid(ray_local, base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SweepError, match=r"sweep.search: optuna is not installed; pip install 'kdray\[optuna\]'"):
        sweep(base=base, space=QUERIES, search="optuna", out=tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()
