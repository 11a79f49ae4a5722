"""One trial of a sweep, without Ray: seeds in lock-step, the folder as its state, one ledger and one cap for all."""

import csv
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import digits_config

from kdray.errors import BudgetExceeded, ConfigError, Halted, KdrayError, SweepError, TeacherError
from kdray.ledger.store import Ledger
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.sweeps.config import dump_sweep, parse_sweep
from kdray.sweeps.display import PlainSweepDisplay
from kdray.sweeps.folder import SweepFolder
from kdray.sweeps.outcome import write_results
from kdray.sweeps.sweep import _Watch, open_ledger
from kdray.sweeps.trial import TrialPlan, TrialRuns
from kdray.utils.files import write_bytes

SPACE = {"budget.queries": {"grid": [60, 80]}}


@pytest.fixture
def plan_of(tmp_path, teacher_weights, monkeypatch):
    """The plan of a sweep of small runs, in a folder of its own; the session and what `sweep` holds can be set."""
    monkeypatch.chdir(tmp_path)  # a trial goes to the folder of its sweep, and does not come back

    def make(session: str = "first", cap: int | None = None, folder: str = "sweep", **sweep) -> TrialPlan:
        base = digits_config(teacher_weights, student__epochs=1, budget__queries=80)
        config = parse_sweep({"base": base, "space": SPACE, "sweep": sweep | {"budget": {"queries": cap}}})
        sweep_folder = SweepFolder(tmp_path / folder)
        write_bytes(sweep_folder.config, dump_sweep(config).encode())
        identity = sweep_folder.identity()
        open_ledger(lambda path, budget, name: Ledger(path, budget), sweep_folder, cap, identity).close()
        return TrialPlan(
            folder=sweep_folder.path,
            identity=identity,
            config=config,
            open_ledger=partial(Ledger, sweep_folder.ledger),
            secrets=None,
            cwd=str(tmp_path),
            session=session,
        )

    return make


def all_reports(trial: TrialRuns) -> list[dict]:
    reports = [trial.step()]
    while not reports[-1]["done"]:
        reports.append(trial.step())
    return reports


def test_seeds_go_in_lock_step_and_each_is_the_run_it_would_be_alone(plan_of, tmp_path):
    plan = plan_of(seeds=2)
    trial = TrialRuns(plan, {"budget.queries": 80})
    first = trial.step()
    runs = [SweepFolder(plan.folder).trial({"budget.queries": 80}).run(seed) for seed in (3, 4)]
    assert all(directory.artefact(0, "evaluate").exists() for directory in runs)
    assert not any(directory.round(1).exists() for directory in runs)
    reports = [first, *all_reports(trial)]
    assert [report["round"] for report in reports] == [0, 1, 2]
    assert [report["done"] for report in reports] == [False, False, True] == [r["finished"] for r in reports]
    done = SweepFolder(plan.folder).trial({"budget.queries": 80}).read()
    assert (done.state, done.asked, done.seeds) == ("finished", 160, [3, 4])
    assert reports[-1]["student_accuracy"] == pytest.approx(
        sum(history[-1].student_accuracy for history in done.histories) / 2
    )
    alone = RunDirectory(tmp_path / "alone")
    run(plan.config.config_of({"budget.queries": 80, "seed": 4}), alone, local=True)
    assert alone.student.read_bytes() == runs[1].student.read_bytes()
    for number in (1, 2):
        assert (alone.read_candidates(number).ids == runs[1].read_candidates(number).ids).all()


def test_what_one_trial_bought_the_next_has_for_nothing(plan_of):
    plan = plan_of()
    for budget in (80, 60):
        all_reports(TrialRuns(plan, {"budget.queries": budget}))
    trials = {trial.values["budget.queries"]: trial for trial in SweepFolder(plan.folder).trials()}
    assert (trials[80].bought, trials[80].saved) == (80, 0)
    assert trials[60].asked == 60 and trials[60].saved >= 40  # the images of round 0 at least
    ledger = plan.open_ledger()
    assert ledger.spent() == trials[80].bought + trials[60].bought
    ledger.close()


def test_images_that_a_run_has_twice_are_not_saved_by_others(plan_of, tmp_path):
    """Ten of the forty images are there twice, and so are those that round 1 and 2 ask about again, with λ = 1."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16), dtype=np.uint8)
    for k in range(40):
        Image.fromarray(pixels[k % 30]).save(tmp_path / "images" / f"{k:02d}.png")
    source = {"source": "folder", "path": str(tmp_path / "images"), "size": 16, "colour": "grey"}
    plan = plan_of()
    select = {"strategy": "random", "rounds": 2}
    plan.config.base.update(images=source, pool={"lambdas": [0.5, 1.0]}, select=select)
    for lr in (0.05, 0.06):  # the same images, in this order
        all_reports(TrialRuns(plan, {"student.lr": lr}))
    first, second = SweepFolder(plan.folder).trials()
    assert 30 < first.bought < 70
    assert (first.saved, first.asked) == (0, first.bought)
    assert (second.bought, second.saved, second.asked) == (0, first.bought, first.bought)
    assert [second.asked_after(number) for number in range(3)] == [first.asked_after(number) for number in range(3)]
    ledger = plan.open_ledger()
    assert ledger.spent() == first.bought
    ledger.close()


def test_a_trial_that_is_started_again_reports_what_it_finds_and_goes_on(plan_of):
    plan = plan_of()
    whole = all_reports(TrialRuns(plan, {"budget.queries": 80}))
    again = plan_of(folder="again")
    killed = TrialRuns(again, {"budget.queries": 80})
    killed.step()
    killed.step()
    killed.close()  # what a dead process leaves: no more than its files
    second = TrialRuns(again, {"budget.queries": 80})
    assert all_reports(second) == whole
    asked = again.open_ledger()
    assert asked.spent() == 80
    asked.close()
    assert all_reports(TrialRuns(again, {"budget.queries": 80})) == whole  # a finished one has nothing to do


def test_two_trials_of_the_same_values_are_one(plan_of):
    """Optuna may propose them at the same moment: the second waits, and reports what the first one measured."""
    plan = plan_of()
    first = TrialRuns(plan, {"budget.queries": 80})
    begun = first.step()
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(all_reports, TrialRuns(plan, {"budget.queries": 80}))
        rest = all_reports(first)
        assert second.result(60) == [begun, *rest]
    ledger = plan.open_ledger()
    assert ledger.spent() == 80
    ledger.close()


def test_a_trial_that_the_scheduler_stopped_stays_stopped(plan_of):
    plan = plan_of()
    trial = TrialRuns(plan, {"budget.queries": 80})
    trial.step()
    trial.close()
    folder = SweepFolder(plan.folder).trial({"budget.queries": 80})
    folder.put_state("stopped")
    report = TrialRuns(plan, {"budget.queries": 80}).step()
    assert report["done"] and not report["finished"] and folder.state == "stopped"


def test_a_round_that_the_cap_of_all_does_not_pay_is_not_trained_on_and_goes_on_under_a_higher_cap(plan_of):
    whole = all_reports(TrialRuns(plan_of(folder="whole"), {"budget.queries": 80}))
    plan = plan_of(cap=65)
    trial = TrialRuns(plan, {"budget.queries": 80})
    assert [trial.step()["round"], trial.step()["round"]] == [0, 1]
    with pytest.raises(BudgetExceeded, match="the budget of all runs that share the ledger is spent: 15 of 20 images"):
        trial.step()
    trial.close()
    folder = SweepFolder(plan.folder).trial({"budget.queries": 80})
    assert folder.state == "failed" and "kdray resume" not in folder.cause[0]
    ledger = plan.open_ledger()
    assert ledger.spent() == 65
    ledger.close()
    with pytest.raises(SweepError, match="the budget of all"):  # in the same session it is not tried again
        TrialRuns(plan, {"budget.queries": 80}).step()
    higher = plan_of(cap=80, session="second")
    assert all_reports(TrialRuns(higher, {"budget.queries": 80})) == whole
    ledger = plan.open_ledger()
    assert ledger.spent() == 80  # no query twice
    ledger.close()


LOST = """
import os

import numpy as np


def ask(images):
    if os.path.exists("down"):
        raise ConnectionError("no answer")
    return np.full((len(images), 10), 0.1, dtype=np.float32)
"""


@pytest.fixture
def losing(plan_of, tmp_path, monkeypatch):
    """The plan of a sweep whose teacher bills and does not answer while there is a file "down"."""
    name = f"lost_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(LOST)
    monkeypatch.syspath_prepend(tmp_path)

    def make(session: str, images: int, tries: int = 1) -> TrialPlan:
        plan = plan_of(session=session, seeds=2)
        retry = {"tries": tries, "max_bad_share": 1}
        teacher = {"kind": "python", "function": f"{name}:ask", "classes": 10, "batch_size": 64, "retry": retry}
        plan.config.base.update(teacher=teacher, select={"strategy": "random", "rounds": 1})
        plan.config.base["images"]["count"] = images
        return plan

    return make


def test_a_seed_that_lost_its_budget_ends_the_trial_with_the_rounds_that_all_seeds_have(losing, tmp_path):
    values, down = {"budget.queries": 60}, tmp_path / "down"
    trial = TrialRuns(losing("first", 40), values)
    begun = trial.step()
    down.touch()
    with pytest.raises(TeacherError, match="no answer"):
        trial.step()
    trial.close()
    down.unlink()
    for session in ("second", "third"):  # the third finds a finished trial
        plan = losing(session, 40)
        first, last = all_reports(TrialRuns(plan, values))
        figures = {name: value for name, value in begun.items() if name not in ("asked", "bought", "saved")}
        assert figures.items() <= first.items()
        assert (last["round"], last["done"], last["finished"]) == (0, True, True)
        assert last["student_accuracy"] == begun["student_accuracy"]
    folder = SweepFolder(plan.folder).trial(values)
    done = folder.read()
    assert (done.state, done.rounds) == ("finished", 1)
    assert [len(history) for history in done.histories] == [1, 2]
    assert "the budget is spent before round 1: 20 queries were charged and never answered" in folder.log.read_text()
    assert write_results(plan.config, SweepFolder(plan.folder)).best is not None


def test_a_seed_that_lost_its_budget_before_it_had_a_student_fails_its_trial(losing, tmp_path):
    (tmp_path / "down").touch()
    causes = []
    for session in "abcdefg":
        plan = losing(session, 4, tries=2)
        trial = TrialRuns(plan, {"budget.queries": 6})
        with pytest.raises(KdrayError) as error:
            trial.step()
        trial.close()
        causes.append(str(error.value))
    assert "no answer" in causes[0]
    assert causes[-1].startswith("the budget is spent before round 0: 6 queries were charged and never answered")
    assert SweepFolder(plan.folder).trial({"budget.queries": 6}).state == "failed"


def test_a_cap_can_be_raised_and_not_taken_away(plan_of):
    plan_of(cap=65)
    with pytest.raises(KdrayError, match=r"sweep.budget.queries: a cap cannot be taken away"):
        plan_of(cap=None)


def test_whatever_a_part_of_the_users_own_raises_is_the_cause_of_the_failure(plan_of):
    plan = plan_of()

    def broken() -> Ledger:
        raise RuntimeError("a bug of mine")

    with pytest.raises(RuntimeError):
        TrialRuns(TrialPlan(**{**vars(plan), "open_ledger": broken}), {"budget.queries": 80}).step()
    folder = SweepFolder(plan.folder).trial({"budget.queries": 80})
    assert (folder.state, folder.cause) == ("failed", ("RuntimeError: a bug of mine", "first"))


def test_a_halt_is_no_failure(plan_of):
    plan = plan_of()

    class Halting(Ledger):
        def grant(self, *args, **kwargs):
            raise Halted("the sweep is being stopped")

    halted = TrialRuns(
        TrialPlan(**{**vars(plan), "open_ledger": partial(Halting, plan.folder / "ledger.sqlite")}),
        {"budget.queries": 80},
    )
    with pytest.raises(Halted):
        halted.step()
    halted.close()
    assert SweepFolder(plan.folder).trial({"budget.queries": 80}).state == "running"
    assert all_reports(TrialRuns(plan, {"budget.queries": 80}))[-1]["finished"]


def test_relative_paths_of_a_tuner_of_ones_own_start_where_it_was_made(plan_of, tmp_path, teacher_weights, monkeypatch):
    shutil.copy(teacher_weights, tmp_path / "own.safetensors")
    plan = plan_of()
    plan = TrialPlan(**{**vars(plan), "config": plan.config.model_copy(update={"space": {}})})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    all_reports(TrialRuns(plan, {"teacher.weights": "own.safetensors", "budget.queries": 60}))
    (trial,) = SweepFolder(plan.folder).trials()
    assert trial.state == "finished" and trial.values["teacher.weights"] == str(tmp_path / "own.safetensors")


def test_a_node_that_does_not_see_the_sweep_pays_nothing(plan_of, tmp_path):
    plan = plan_of()
    elsewhere = tmp_path / "elsewhere"
    for there in (False, True):  # no such folder, and another sweep's
        if there:
            shutil.copytree(plan.folder, elsewhere)
            (elsewhere / "id").write_text("sweep-of-somebody-else\n")
        blind = TrialPlan(**{**vars(plan), "folder": Path(elsewhere)})
        with pytest.raises(SweepError, match="does not see the sweep in"):
            TrialRuns(blind, {"budget.queries": 80}).step()
    assert not (elsewhere / "trials").exists()


def test_a_trial_whose_values_give_no_config_stands_in_the_table_with_its_cause(plan_of):
    """Optuna may propose such; the other trials are not asked about it."""
    plan, values = plan_of(), {"student.batch_size": 0}
    with pytest.raises(ConfigError, match="batch_size"):
        TrialRuns(plan, values).step()
    folder = SweepFolder(plan.folder).trial(values)
    assert (folder.state, folder.cause[1]) == ("failed", "first") and "student.batch_size" in folder.cause[0]
    with pytest.raises(SweepError, match="batch_size"):  # in the same session it is not tried again
        TrialRuns(plan, values).step()
    with pytest.raises(ConfigError):
        TrialRuns(plan_of(session="second"), values).step()
    all_reports(TrialRuns(plan, {"budget.queries": 60}))
    result = write_results(plan.config, SweepFolder(plan.folder))
    assert [trial.values for trial in result.failed] == [values]
    assert result.best is not None and result.best.values == {"budget.queries": 60}
    with open(plan.folder / "results.csv", newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["state"] == "failed"]
    assert "student.batch_size" in row["cause"] and row["seeds"] == ""


def test_a_trial_that_no_node_could_begin_stands_in_the_table_and_begins_when_it_is_resumed(plan_of):
    plan, values, told = plan_of(seeds=2), {"budget.queries": 60}, io.StringIO()
    sweep, display = SweepFolder(plan.folder), PlainSweepDisplay(told)
    display.begin("s", 2, "student_accuracy")
    watch = _Watch(sweep, "student_accuracy", None, display, "first")
    reason = "node b does not see the sweep"
    assert watch.failed(values, reason, final=False) is False
    assert not sweep.trials() and "it is started again" in told.getvalue()
    watch.failed(values, reason, final=True)
    (trial,) = write_results(plan.config, sweep).failed
    assert (trial.state, trial.cause, trial.values) == ("failed", f"{reason}, again and again", values)
    assert told.getvalue().rstrip().endswith(f"{reason}, again and again")
    all_reports(TrialRuns(plan_of(seeds=2, session="second"), values))
    (trial,) = sweep.trials()
    assert (trial.state, trial.seeds, trial.asked) == ("finished", [3, 4], 120)
    watch.failed(values, reason, final=True)  # another trial of the same values: the first one's result stays
    assert sweep.trials()[0].state == "finished"


def test_a_moved_sweep_goes_on_and_its_best_config_is_ready_to_run(plan_of, tmp_path):
    plan = plan_of()
    begun = TrialRuns(plan, {"budget.queries": 80})
    begun.step()
    begun.close()
    plan.folder.rename(tmp_path / "moved")
    moved = plan_of(folder="moved")
    assert all_reports(TrialRuns(moved, {"budget.queries": 80}))[-1]["finished"]
    result = write_results(moved.config, SweepFolder(moved.folder))
    assert result.best is not None and result.best.values == {"budget.queries": 80}
    from kdray.config.load import load_config

    best = load_config(moved.folder / "best.yaml")
    assert (best.budget.queries, best.seed, best.ledger.path) == (80, 3, None)
