"""Whole runs in this process: Algorithm 1 end to end, its files, and that a killed run ends as if it had lived."""

import asyncio
import contextlib
import json
import random
import re
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from aiohttp import web
from conftest import Notes, command, copy_run, served
from processes import Program, kdray

import kdray as package
from kdray.config.load import load_config, parse_config
from kdray.errors import ConfigError, LedgerError, RunDirectoryError, TeacherError, TrainingError
from kdray.images.base import ImageSet
from kdray.ledger import Ledger, hash_images
from kdray.models.checkpoint import ModelCard, save_model
from kdray.models.classifier import build_model
from kdray.observers.base import Observer
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import InMemoryInputs
from kdray.runs.plan import Plan, make_plan, plan_lines
from kdray.runs.result import read_result
from kdray.runs.run import choose_directory, resume, run
from kdray.training.workload import Training
from kdray.utils.files import distinct_names


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights):
    """A finished run, which tests read and copy, never change."""
    from conftest import digits_config

    directory = RunDirectory(tmp_path_factory.mktemp("finished") / "run")
    return run(parse_config(digits_config(teacher_weights)), directory, local=True)


def bought(directory: Path) -> int:
    return spent(directory / "ledger.sqlite")


def spent(path: Path) -> int:
    ledger = Ledger(path)
    try:
        return ledger.spent()
    finally:
        ledger.close()


def test_a_run_spends_its_budget_round_by_round(finished):
    assert [m.queries for m in finished.history] == [40, 100, 160]
    assert [m.bought for m in finished.history] == [40, 60, 60]
    assert [m.images for m in finished.history] == [40, 100, 160]
    assert [m.evaluated for m in finished.history] == [0, 780 * 3, 780 * 3]
    assert (finished.receipt.queries, finished.receipt.evaluation_queries, finished.receipt.uncertain) == (160, 100, 0)
    assert bought(finished.directory) == 160


def test_the_figures_are_what_the_student_and_the_teacher_do(finished):
    config = load_config(finished.directory / "config.yaml")
    from kdray.runs.inputs import read_inputs

    inputs = read_inputs(config)
    with torch.inference_mode():
        student = finished.student(inputs.test.images).argmax(dim=1)
    teacher = config.teacher.build(inputs.images.image_shape).answer(inputs.test.images).labels
    last = finished.history[-1]
    assert last.student_accuracy == pytest.approx(float((student == inputs.test.labels).double().mean()))
    assert last.teacher_accuracy == pytest.approx(float((teacher == inputs.test.labels).double().mean()))
    assert last.agreement == pytest.approx(float((student == teacher).double().mean()))
    assert last.success_rate == pytest.approx(last.student_accuracy / last.teacher_accuracy)
    assert last.teacher_accuracy > 0.9 and last.student_accuracy > 0.4


def test_chosen_pairs_leave_the_pool_and_images_are_what_the_ids_say(finished):
    directory = RunDirectory(finished.directory)
    first, second = directory.read_candidates(1), directory.read_candidates(2)
    assert not set((first.ids // 3).tolist()) & set((second.ids // 3).tolist())
    from kdray.runs.pool_schedule import read_pool

    found = read_pool(finished.config)
    images, pool = found.images, found.pool
    labelled = finished.labelled
    assert torch.equal(labelled[0].images, images.images)
    assert torch.equal(labelled[1].images, pool.render(torch.from_numpy(first.ids)))
    assert first.columns["lambda"] == [(0.3, 0.5, 0.7)[k] for k in (first.ids % 3).tolist()]
    assert np.all(np.diff(first.scores) >= 0)


GRID = {"pool__lambdas": {"min": 0.3, "max": 0.7, "step": 0.04}}


@pytest.mark.storm
def test_a_search_by_guesses_is_told_recorded_and_resumed_to_the_same_bits(make_config, tmp_path):
    config = make_config(**GRID, images__count=60, budget__queries=80)
    notes = Notes()
    result = run(config, RunDirectory(tmp_path / "run"), local=True, observer=notes)
    first = result.history[1].search
    # 60 images, two λ of each of 1,770 pairs, three more of 250, the other six of 50; at all eleven λ 35 pairs to learn
    # to guess, and 200 others as a check.
    assert result.history[1].evaluated == first["passes"] >= 60 + 2 * 1770 + 3 * 250 + 6 * 50 + (35 + 200) * 11
    assert first["exhaustive"] == 1770 * 11
    assert 0 <= first["recall_low"] <= first["recall"] <= first["recall_high"] <= 1
    line = r"search: [\d,]+ forward passes, \d\.\d times fewer than all; found .* \(.* to .*\)"
    assert sum(bool(re.fullmatch(line, note)) for note in notes.texts) == 2
    assert result.history[0].search == {}
    with pytest.raises(KeyboardInterrupt):
        run(config, RunDirectory(tmp_path / "again"), local=True, observer=StopAt(10))
    resumed = resume(RunDirectory(tmp_path / "again"), local=True)
    assert [m.search for m in resumed.history] == [m.search for m in result.history]
    assert student(tmp_path / "again") == student(tmp_path / "run")
    from kdray.report.page import write_report

    page = write_report([RunDirectory(tmp_path / "run")]).read_text()
    assert f"{100 * first['recall']:.1f} % ({100 * first['recall_low']:.1f} to" in page
    # All of it gives the same round 0, and is not the same config.
    every = run(
        make_config(**GRID, images__count=60, budget__queries=80, pool__search="exhaustive"),
        RunDirectory(tmp_path / "every"),
        local=True,
    )
    assert every.history[1].evaluated == 1770 * 11 and every.history[1].search["recall"] is None


def test_a_sample_of_the_pairs_is_what_is_chosen_from(make_config, tmp_path):
    result = run(make_config(pool__pairs=150), RunDirectory(tmp_path / "run"), local=True)
    assert [m.evaluated for m in result.history] == [0, 450, 450]
    chosen = RunDirectory(tmp_path / "run").read_candidates(1)
    from kdray.runs.pool_schedule import read_pool

    pool = read_pool(result.config).pool
    assert pool.num_groups == 150
    pairs = set(zip(*(part.tolist() for part in pool.pair(torch.arange(150))), strict=True))
    assert set(zip(chosen.columns["i"], chosen.columns["j"], strict=True)) <= pairs
    with pytest.raises(ConfigError, match="781 pairs wanted, 40 images make 780; lower it, or"):
        run(make_config(pool__pairs=781), RunDirectory(tmp_path / "more"), local=True)
    with pytest.raises(
        ConfigError, match=r"pool.mixing: the first layer of resnet18 cannot be taken apart from the rest"
    ):
        run(
            make_config(pool__mixing="first-layer", student__model="resnet18"), RunDirectory(tmp_path / "x"), local=True
        )
    with pytest.raises(
        ConfigError, match=r"has only 100 for active-mixup; lower budget\.queries to 140 or raise pool\.pairs"
    ):
        run(make_config(pool__pairs=100), RunDirectory(tmp_path / "few"), local=True)


@pytest.mark.parametrize("score", ["margin", "entropy"])
def test_another_score_chooses_other_candidates(score, finished, make_config, tmp_path):
    result = run(make_config(select__score=score), RunDirectory(tmp_path / "run"), local=True)
    ours, theirs = (RunDirectory(r.directory).read_candidates(1) for r in (result, finished))
    assert ours.ids.tolist() != theirs.ids.tolist()
    assert (ours.scores < 0).all() if score == "entropy" else (ours.scores >= 0).all()


def test_answers_in_the_labelled_set_are_the_teachers_own(finished):
    teacher = finished.config.teacher.build((1, 16, 16))
    for part in finished.labelled:
        direct = teacher.answer(part.images)
        assert torch.equal(part.answers.probs, direct.probs)
        assert torch.equal(part.answers.labels, direct.labels)


def test_the_labelled_set_is_hugging_face_style_parquet(finished):
    files = sorted((finished.directory / "labelled").glob("*.parquet"))
    assert [file.name for file in files] == ["round-000.parquet", "round-001.parquet", "round-002.parquet"]
    table = pq.read_table(files[1])
    assert {"image", "probs", "label", "source"} <= set(table.column_names)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == [str(k) for k in range(10)]
    assert table.column("source").unique().to_pylist() == ["mixup"]
    # It is an image set itself: another run can start from what this one bought.
    from kdray.images.base import read_images
    from kdray.images.parquet import ParquetImages

    config = ParquetImages(source="parquet", path=str(finished.directory / "labelled"))
    again = read_images(config, generator=np.random.default_rng(0), with_labels=True)
    assert torch.equal(again.images, torch.cat([part.images for part in finished.labelled]))


def test_the_student_file_alone_is_enough(finished):
    student = package.load_student(finished.directory / "student.safetensors")
    images = finished.labelled[0].images
    with torch.inference_mode():
        assert torch.equal(student(images), finished.student(images))


def test_events_hold_each_round_once(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.directory / "events"))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("student_accuracy")]
    assert points == [(m.queries, pytest.approx(m.student_accuracy)) for m in finished.history]


def test_running_a_finished_run_again_asks_nothing(finished, make_config):
    before = (finished.directory / "ledger.sqlite").read_bytes()
    again = run(make_config(), RunDirectory(finished.directory), local=True)
    assert [m.to_json() for m in again.history] == [m.to_json() for m in finished.history]
    assert bought(finished.directory) == 160
    assert (finished.directory / "ledger.sqlite").read_bytes() == before


def test_another_config_is_refused_by_the_directory_but_other_workers_are_not(finished, make_config):
    with pytest.raises(RunDirectoryError, match=r"another config \(student.epochs: 6 -> 5\)"):
        run(make_config(student__epochs=5), RunDirectory(finished.directory), local=True)
    run(make_config(resources__scoring_workers=7, resources__chunk=99), RunDirectory(finished.directory), local=True)


def test_the_default_directory_is_the_first_that_is_free_or_holds_this_config(tmp_path, monkeypatch, make_config):
    monkeypatch.setenv("KDRAY_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config, other = make_config(select__rounds=0), make_config(select__rounds=0, seed=9)
    assert choose_directory(config, "x").path == tmp_path / "x"
    run(config, choose_directory(config, "x"), local=True)
    assert choose_directory(config, "x").path == tmp_path / "x"
    assert choose_directory(other, "x").path == tmp_path / "x-2"


def test_the_resolved_config_reproduces_the_run(finished, tmp_path):
    again = run(load_config(finished.directory / "config.yaml"), RunDirectory(tmp_path / "again"), local=True)
    assert (tmp_path / "again/student.safetensors").read_bytes() == (
        finished.directory / "student.safetensors"
    ).read_bytes()
    assert again.receipt == finished.receipt


def test_another_seed_draws_other_images_and_another_student(finished, make_config, tmp_path):
    other = run(make_config(seed=4), RunDirectory(tmp_path / "other"), local=True)
    assert not torch.equal(other.labelled[0].images, finished.labelled[0].images)


@pytest.mark.parametrize("strategy", ["vanilla", "random"])
def test_the_other_strategies_of_figure_4(strategy, make_config, tmp_path):
    result = run(make_config(select__strategy=strategy), RunDirectory(tmp_path / "run"), local=True)
    directory = RunDirectory(tmp_path / "run")
    ids = np.concatenate([directory.read_candidates(k).ids for k in (1, 2)])
    assert len(set(ids.tolist())) == 120
    assert result.history[-1].queries == 160
    if strategy == "random":
        assert set((ids % 3).tolist()) == {1} and len(set((ids // 3).tolist())) == 120
    else:
        assert len(set((ids // 3).tolist())) < 120


@pytest.mark.parametrize(("answers", "decimals"), [("hard", None), ("top3", 2), ("soft", 1)])
def test_runs_on_every_kind_of_answer(answers, decimals, make_config, tmp_path):
    config = make_config(teacher__answers=answers, teacher__decimals=decimals, select__rounds=1, budget__queries=80)
    result = run(config, RunDirectory(tmp_path / "run"), local=True)
    probs = result.labelled[1].answers.probs
    if answers == "hard":
        assert probs is None
    else:
        assert torch.equal(probs, torch.from_numpy(probs.double().numpy().round(decimals).astype(np.float32)))
        assert int((probs > 0).sum(dim=1).max()) <= (3 if answers == "top3" else 10)


def test_evaluation_queries_are_capped_and_counted_apart(make_config, tmp_path):
    result = run(make_config(budget__evaluation=30, select__rounds=1), RunDirectory(tmp_path / "some"), local=True)
    assert (result.receipt.queries, result.receipt.evaluation_queries) == (160, 30)
    none = run(make_config(budget__evaluation=0, select__rounds=0), RunDirectory(tmp_path / "none"), local=True)
    assert none.receipt.evaluation_queries == 0
    assert none.history[-1].teacher_accuracy is none.history[-1].success_rate is None
    assert none.history[-1].student_accuracy is not None


def test_early_stop_and_no_test_set(make_config, tmp_path):
    config = make_config(student__early_stop={"patience": 1}, student__epochs=30, select__rounds=1, test=None)
    result = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert result.history[-1].student_accuracy is None
    facts = RunDirectory(tmp_path / "run").phases(1)["train"]
    assert facts["best_epoch"] == int(np.argmin(facts["holdout_losses"][::-1]) * -1 + len(facts["holdout_losses"]))


def test_a_second_process_is_kept_out(finished, make_config, tmp_path):
    directory = RunDirectory(tmp_path / "busy")
    directory.lock()
    with pytest.raises(RunDirectoryError, match="another kdray process"):
        run(make_config(), RunDirectory(tmp_path / "busy"), local=True)
    directory.unlock()
    assert not (tmp_path / "busy" / "config.yaml").exists()


def test_a_run_that_another_process_started_meanwhile_is_not_overwritten(make_config, tmp_path):
    class Rival(Observer):
        """Starts a run of its own in the same directory while this one still trains its teacher."""

        def note(self, text):
            if not (tmp_path / "run" / "config.yaml").exists():
                run(make_config(select__rounds=0, seed=8), RunDirectory(tmp_path / "run"), local=True)

    recipe = {"images": {"source": "digits", "rows": "0:50", "size": 16}, "epochs": 1}
    late = make_config(teacher__weights=str(tmp_path / "new.safetensors"), teacher__train=recipe)
    with pytest.raises(RunDirectoryError, match="another process has just started"):
        run(late, RunDirectory(tmp_path / "run"), local=True, observer=Rival())
    assert load_config(tmp_path / "run" / "config.yaml").seed == 8


class StopAt(Observer):
    """Interrupts a run as Ctrl-C would, at the n-th thing it hears."""

    def __init__(self, when: int) -> None:
        self.left = when

    def _hear(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def phase(self, round, name):
        self._hear()

    def progress(self, done, total, *, spent=None):
        self._hear()


@pytest.mark.parametrize(
    "moments", [(1, 12, 40), pytest.param((2, 4, 7, 17, 25, 33), marks=pytest.mark.storm)], ids=["some", "more"]
)
def test_a_run_interrupted_anywhere_resumes_to_the_same_bits(moments, finished, make_config, tmp_path):
    for when in moments:
        directory = RunDirectory(tmp_path / str(when))
        with pytest.raises(KeyboardInterrupt):
            run(make_config(), directory, local=True, observer=StopAt(when))
        result = resume(directory, local=True)
        assert (directory.path / "student.safetensors").read_bytes() == (
            finished.directory / "student.safetensors"
        ).read_bytes(), when
        assert result.receipt == finished.receipt, when
        assert [m.bought for m in result.history] == [40, 60, 60], when


def test_a_run_broken_off_in_a_training_goes_on_in_it_to_the_same_bits(finished, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("kdray.training.saved.EVERY_S", 0.0)
    epochs = make_config().student.epochs

    class StopInTraining(Observer):
        """Notes the epochs of round 1, and stops after half of them."""

        def __init__(self, stop: bool) -> None:
            self.stop, self.seen = stop, []

        def phase(self, round, name):
            self.here = (round, name) == (1, "train")

        def progress(self, done, total, *, spent=None):
            if self.here:
                assert total == epochs
                self.seen.append(done)
                if self.stop and done == epochs // 2 + 1:
                    raise KeyboardInterrupt

    directory, told = RunDirectory(tmp_path / "run"), StopInTraining(stop=False)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), directory, local=True, observer=StopInTraining(stop=True))
    assert directory.training(1).exists()
    resume(directory, local=True, observer=told)
    assert told.seen == list(range(epochs // 2 + 1, epochs + 1))
    name = "student.safetensors"
    assert (directory.path / name).read_bytes() == (finished.directory / name).read_bytes()
    assert not list(directory.path.rglob("training.pt"))


def test_a_run_without_its_last_artefacts_goes_on_from_there(finished, tmp_path):
    import shutil

    for phase in ("query", "train", "evaluate"):
        copy = Path(shutil.copytree(finished.directory, tmp_path / phase))
        order = ["choose", "query", "train", "evaluate"]
        for lost in order[order.index(phase) :]:
            RunDirectory(copy).artefact(2, lost).unlink()
        result = resume(RunDirectory(copy), local=True)
        assert (copy / "rounds/002/student.safetensors").read_bytes() == (
            finished.directory / "rounds/002/student.safetensors"
        ).read_bytes()
        assert bought(copy) == 160, "answers came from the ledger"
        assert result.history[-1].student_accuracy == finished.history[-1].student_accuracy


@pytest.mark.storm
@pytest.mark.parametrize(("epochs", "fewest"), [(10, 1), pytest.param(60, 5, marks=pytest.mark.long)])
def test_sigkill_at_random_moments_then_resume_is_bit_identical(epochs, fewest, config_file, tmp_path):
    """The driver is killed with SIGKILL again and again, each time a random moment after it was seen to work."""
    path, out, rng, kills = config_file(student__epochs=epochs), tmp_path / "killed", random.Random(0), 0
    lived = run(load_config(path), RunDirectory(tmp_path / "lived"), local=True)
    while RunDirectory(out).next_phase(2) is not None:
        with Program("run", path, "--local", "--out", out) as process:
            for line in process.stderr:  # the first line comes when the work begins
                if line.startswith("run directory"):
                    break
            # The later a kill, the more is done before it: short lives first, so that there are many.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.0, 0.3 * (kills + 1)))
            kills += process.poll() is None
            process.kill()
    assert kills >= fewest
    done = kdray("resume", out, "--local", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("student.safetensors", "rounds/000/student.safetensors", "rounds/001/student.safetensors"):
        assert (out / name).read_bytes() == (lived.directory / name).read_bytes(), name
    assert bought(out) == bought(lived.directory) == 160
    with sqlite3.connect(out / "ledger.sqlite") as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone() == (260,)  # 160 for training, 100 for evaluation
        assert db.execute("SELECT count(*) FROM reservations WHERE state = 'reserved'").fetchone() == (0,)


def test_a_teacher_that_fails_half_way_loses_nothing(tmp_path):
    asked = []

    def teacher(images):
        asked.append(len(images))
        if len(asked) == 4:
            raise ConnectionError("the line is dead")
        return np.eye(3, dtype=np.float32)[images.reshape(len(images), -1).sum(axis=1) % 3]

    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    call = {
        "images": images,
        "budget": 50,
        "out": tmp_path / "run",
        "local": True,  # or it would join the Ray of other tests
        "progress": False,
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
    }
    call |= {"resources": {"trainer": {"threads": 1}}}
    call |= {"classes": 3, "teacher_options": {"batch_size": 8}}
    with pytest.raises(TeacherError, match=r"the line is dead\. What was answered is kept; go on with: kdray\.distil"):
        package.distil(teacher, **call)
    before = bought(tmp_path / "run")
    assert before == sum(asked), "the batch that failed may have been billed"
    assert asked == [1, 7, 8, 4], "one image first"
    result = package.distil(teacher, **call)
    assert result.receipt.queries == sum(asked) == 50
    assert result.receipt.uncertain == asked[3]


def test_a_budget_lost_to_failures_ends_the_run_with_what_there_is(tmp_path):
    """Every batch after round 0 fails once and may have been billed: the budget is gone before the rounds are."""
    asked = []

    def teacher(images):
        asked.append(len(images))
        if len(asked) > 2:
            raise ConnectionError("no answer")
        return np.full((len(images), 2), 0.5, dtype=np.float32)

    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)
    call = {"teacher": teacher, "images": images, "budget": 20, "classes": 2, "out": tmp_path / "run", "local": True}
    call |= {
        "progress": False,
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
        "select": {"rounds": 1},
    }
    with pytest.raises(TeacherError, match="no answer"):
        package.distil(**call)
    result = package.distil(**call)
    assert sum(asked) == result.receipt.queries == 20, "not asked again: it may have been billed"
    assert result.receipt.uncertain == 10
    assert [m.round for m in result.history] == [0]


@pytest.mark.parametrize("error", [package.TeacherBusy("not now"), package.ImageDeclined("too dark")])
def test_the_query_that_finds_the_number_of_classes_is_given_back_where_the_teacher_charges_nothing(error, tmp_path):
    def teacher(batch):
        raise error

    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16), dtype=np.uint8)
    with pytest.raises(type(error)):
        package.distil(teacher, images, 20, out=tmp_path / "run", local=True, progress=False)
    assert bought(tmp_path / "run") == 0


# ---- what may change when a run goes on


def test_what_may_change_is_a_field_of_its_section(make_config):
    paths = make_config().resumable_paths()
    for path in paths:
        section = make_config()
        for name in path.split("."):
            section = getattr(section, name)
    assert {"teacher.batch_size", "teacher.retry", "teacher.limits", "budget.currency", "ledger.path"} <= set(paths)
    assert not {"seed", "budget.queries", "teacher.answers", "resources.trainer.threads"} & set(paths)


def test_a_run_goes_on_with_another_batch_size_price_and_patience_and_keeps_them(make_config, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(make_config(teacher__batch_size=16), directory, local=True, observer=StopAt(9))
    paid = bought(directory.path)
    assert 0 < paid < 160
    with pytest.raises(RunDirectoryError, match=r"another config \(seed: "):
        run(make_config(seed=9, teacher__batch_size=4), directory, local=True)
    changed = {"teacher__batch_size": 4, "budget__price_per_query": 0.5, "budget__currency": "€"}
    changed |= {"teacher__retry": {"tries": 2}, "resources__chunk": 100}
    with pytest.raises(KeyboardInterrupt):
        run(make_config(**changed), directory, local=True, observer=StopAt(9))
    result = resume(directory, local=True)
    assert (result.config.teacher.batch_size, result.config.budget.currency) == (4, "€")
    assert result.config.teacher.retry.tries == 2
    assert result.receipt.queries == 160 and result.receipt.cost == 80.0


def test_a_ledger_may_move_and_one_that_does_not_know_the_run_is_refused(make_config, tmp_path):
    directory, old, new = RunDirectory(tmp_path / "run"), tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run(make_config(ledger__path=str(old)), directory, local=True, observer=StopAt(9))
    paid = spent(old)
    assert paid > 0
    with pytest.raises(LedgerError, match=r"new.sqlite knows nothing of this run.* set ledger.path to where it is now"):
        run(make_config(ledger__path=str(new)), directory, local=True)
    assert not new.exists(), "no ledger is made where there is none"
    Ledger(new).close()
    with pytest.raises(LedgerError, match="knows nothing of this run"):
        run(make_config(ledger__path=str(new)), directory, local=True)
    new.unlink()
    old.rename(new)
    with pytest.raises(LedgerError, match=r"old.sqlite knows nothing of this run.*go on with: kdray resume"):
        resume(directory, local=True)
    result = run(make_config(ledger__path=str(new)), directory, local=True)
    assert result.receipt.queries == 160 and spent(new) == 160
    assert resume(directory, local=True).receipt.queries == 160, "the new path is kept"


def test_a_run_that_set_an_image_aside_and_was_stopped_goes_on(tmp_path):
    """The first image is one that the teacher never takes."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    asked = []

    def teacher(batch):
        asked.extend(image.tobytes() for image in batch)
        if any(image.tobytes() == images[0].tobytes() for image in batch):
            raise package.ImageDeclined("it is not a photograph")
        p = batch.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - p, p], axis=1).astype(np.float32)

    data = {
        "images": {"source": "parquet", "path": str(tmp_path / "images.parquet")},
        "teacher": {"kind": "python", "function": "x:y", "classes": 2, "batch_size": 8},
        "budget": {"queries": 60},
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
        "select": {"rounds": 1},
    }
    given = InMemoryInputs(images=ImageSet(images=torch.from_numpy(images[:, None])), function=teacher)
    directory = RunDirectory(tmp_path / "run")
    stops = 0
    for when in range(3, 30):
        try:
            result = run(parse_config(data), directory, local=True, in_memory=given, observer=StopAt(when))
        except KeyboardInterrupt:
            stops += 1
        else:
            break
    assert stops > 3
    assert result.history[0].set_aside == 1 and result.history[0].images == 39
    assert result.receipt.queries == 39 + 20 and result.receipt.uncertain == 0
    assert asked.count(images[0].tobytes()) < 6


# ---- one ledger for several runs


def replace_teacher(weights: Path) -> None:
    """Another small-cnn, which nobody has trained."""
    card = ModelCard(model="small-cnn", image_shape=(1, 16, 16), num_classes=10)
    save_model(weights, build_model("small-cnn", card.image_shape, card.num_classes, seed=9).eval(), card)


def student(directory: Path) -> bytes:
    return (directory / "student.safetensors").read_bytes()


def test_a_run_has_a_name_of_its_own_that_goes_where_it_goes(finished, tmp_path):
    name = (finished.directory / "id").read_text().strip()
    assert re.fullmatch(r"run-[0-9a-f]{12}", name)
    ledger = Ledger(finished.directory / "ledger.sqlite")
    accounts = ledger.read("SELECT owner, purpose, cap, answered FROM accounts ORDER BY owner, purpose DESC")
    ledger.close()
    assert accounts == [
        ("", "training", None, 160), ("", "evaluation", None, 100),
        (name, "training", 160, 160), (name, "evaluation", 100, 100),
    ]  # fmt: skip
    moved = copy_run(finished.directory, tmp_path / "elsewhere")
    assert RunDirectory(moved).owner() == name
    assert read_result(RunDirectory(moved)).receipt == finished.receipt


def test_a_second_run_on_the_same_ledger_pays_nothing_and_is_the_same_to_the_bit(finished, make_config, tmp_path):
    shared = tmp_path / "shared.sqlite"
    config = make_config(ledger__path=str(shared))
    first = run(config, RunDirectory(tmp_path / "first"), local=True)
    second = run(config, RunDirectory(tmp_path / "second"), local=True)
    assert student(first.directory) == student(second.directory) == student(finished.directory)
    assert [m.bought for m in first.history] == [40, 60, 60] and [m.bought for m in second.history] == [0, 0, 0]
    assert [m.reused for m in second.history] == [40, 60, 60]
    one, two = first.receipt, second.receipt
    assert (one.queries, one.reused, one.evaluation_queries) == (160, 0, 100)
    assert (two.queries, two.reused, two.evaluation_queries) == (0, 160, 0)
    assert two.teachers == one.teachers != []
    assert not (tmp_path / "second" / "ledger.sqlite").exists()
    ledger = Ledger(shared)
    assert (ledger.spent(), ledger.spent("evaluation")) == (160, 100)
    assert ledger.read("SELECT sum(images) FROM hits WHERE purpose = 'training'") == [(160,)]
    ledger.close()
    again = resume(RunDirectory(tmp_path / "second"), local=True)
    assert again.receipt == two, "the finished run is shown as it was"


def inference_count(url: str) -> int:
    """Images that a server has answered, by its own count."""
    with urllib.request.urlopen(f"{url}/v2/models/teacher/stats") as reply:
        return json.load(reply)["model_stats"][0]["inference_count"]


def test_two_runs_at_once_on_one_ledger_pay_for_each_image_once(finished, config_file, tmp_path):
    """Two processes with the same config, against one server."""
    teacher = finished.config.teacher.build((1, 16, 16))
    with served(teacher, (1, 16, 16), latency_s=0.02) as url:
        section = {"kind": "http", "url": url, "model": "teacher", "classes": [str(k) for k in range(10)]}
        path = config_file(teacher=section | {"batch_size": 4}, ledger__path=str(tmp_path / "shared.sqlite"))
        processes = [Program("run", path, "--local", "--out", tmp_path / name) for name in ("a", "b")]
        for process in processes:
            _, said = process.communicate(timeout=120)
            assert process.returncode == 0, said
        assert inference_count(url) == 160
    results = [read_result(RunDirectory(tmp_path / name)) for name in ("a", "b")]
    assert sum(result.receipt.queries for result in results) == 160
    assert all(result.receipt.queries + result.receipt.reused == 160 for result in results)
    assert student(tmp_path / "a") == student(tmp_path / "b") == student(finished.directory)


def test_a_cap_on_the_ledger_holds_for_all_runs_together(make_config, tmp_path):
    changes = {"ledger__path": str(tmp_path / "shared.sqlite"), "ledger__queries": 200}
    heard = Notes()
    first = run(make_config(**changes), RunDirectory(tmp_path / "first"), local=True)
    second = run(make_config(**changes, seed=4), RunDirectory(tmp_path / "second"), local=True, observer=heard)
    assert first.receipt.queries == 160
    assert second.receipt.queries == 40 == 200 - 160
    labelled = sum(len(part) for part in second.labelled)
    assert labelled == 40 + second.receipt.reused < 160
    assert any("the budget" in text for text in heard.texts)
    ledger = Ledger(tmp_path / "shared.sqlite")
    assert (ledger.spent(), ledger.remaining()) == (200, 0)
    ledger.close()
    with pytest.raises(LedgerError, match="was made for a budget of 200 queries, not 300"):
        run(make_config(**changes | {"ledger__queries": 300}), RunDirectory(tmp_path / "third"), local=True)


def test_a_run_that_would_diverge_again_says_how_another_one_has_its_answers(make_config, tmp_path):
    """And that one pays for the rest alone."""
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(TrainingError) as error:
        run(make_config(student__lr=1e30, student__clip_norm=None), directory, local=True)
    assert re.fullmatch(
        r"the loss is not finite at step \d of \d+; set lr, which is 1e\+30, lower\. What was answered is kept; a new "
        rf"run with ledger\.path={directory.ledger} pays for none of it again",
        str(error.value),
    )
    assert bought(directory.path) == 40
    other = run(make_config(ledger__path=str(directory.ledger)), RunDirectory(tmp_path / "other"), local=True)
    assert (other.receipt.queries, other.receipt.reused) == (120, 40)
    assert bought(directory.path) == 160


def test_a_teacher_that_was_replaced_is_found_out_before_anything_is_paid(finished, make_config, tmp_path):
    weights, directory = tmp_path / "teacher.safetensors", RunDirectory(tmp_path / "run")
    old = Path(finished.config.teacher.weights).read_bytes()
    weights.write_bytes(old)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(teacher__weights=str(weights)), directory, local=True, observer=StopAt(12))
    paid = bought(directory.path)
    assert 0 < paid < 160
    replace_teacher(weights)
    for _ in range(2):
        with pytest.raises(LedgerError) as error:
            resume(directory, local=True)
        assert re.fullmatch(
            r"\S+ledger\.sqlite: this run has bought its answers from local:small-cnn:\w+:soft, and the teacher is now "
            r"local:small-cnn:\w+:soft; answers of two teachers do not mix: bring the old one back, or start a new run"
            rf"\. What was answered is kept; go on with: kdray resume {directory.path}",
            str(error.value),
        )
        assert bought(directory.path) == paid
    weights.write_bytes(old)
    result = resume(directory, local=True)
    assert student(directory.path) == student(finished.directory)
    assert result.receipt.queries == 160


def test_a_replaced_teacher_is_found_out_also_by_a_run_that_has_paid_nothing(finished, make_config, tmp_path):
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(Path(finished.config.teacher.weights).read_bytes())
    config = make_config(teacher__weights=str(weights), ledger__path=str(tmp_path / "shared.sqlite"))
    run(config, RunDirectory(tmp_path / "first"), local=True)
    second = RunDirectory(tmp_path / "second")
    with pytest.raises(KeyboardInterrupt):
        run(config, second, local=True, observer=StopAt(14))
    assert second.artefact(0, "query").exists() and not second.artefact(2, "query").exists()
    replace_teacher(weights)
    with pytest.raises(LedgerError, match="answers of two teachers do not mix"):
        resume(second, local=True)
    assert spent(tmp_path / "shared.sqlite") == 160


# ---- a teacher that is not always to be believed


def test_images_that_are_set_aside_do_not_stop_a_run(tmp_path):
    """The teacher answers NaN to one of the user's images, and to nothing else."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    asked = []

    def teacher(batch):
        asked.extend(image.tobytes() for image in batch)
        p = batch.mean(axis=(1, 2, 3)) / 255
        p[[image.tobytes() == images[7].tobytes() for image in batch]] = np.nan
        return np.stack([1 - p, p], axis=1).astype(np.float32)

    call = {"teacher": teacher, "images": images, "budget": 100, "classes": 2, "out": tmp_path / "run", "local": True}
    call |= {
        "progress": False,
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
        "select": {"rounds": 1},
    }
    call |= {"teacher_options": {"batch_size": 16, "retry": {"backoff_s": 0.001}}}
    result = package.distil(**call)
    assert [(m.images, m.bought, m.set_aside, m.short) for m in result.history] == [(39, 44, 1, 0), (95, 56, 0, 4)]
    assert asked.count(images[7].tobytes()) == 5
    written = json.loads((tmp_path / "run" / "rounds" / "000" / "metrics.json").read_text())
    assert (written["set_aside"], written["images"]) == (1, 39)
    assert (result.receipt.queries, result.receipt.rejected, result.receipt.uncertain) == (100, 5, 0)
    first = result.labelled[0]
    assert len(first) == 39 and images[7].tobytes() not in {image.numpy().tobytes() for image in first.images}
    # The first round is asked for again, from the ledger: nothing is paid, and the image is not tried again.
    count, metrics = len(asked), (tmp_path / "run" / "rounds" / "000" / "metrics.json").read_bytes()
    for phase in ("query", "train", "evaluate"):
        RunDirectory(tmp_path / "run").artefact(0, phase).unlink()
    again = package.distil(**call)
    assert (len(asked), again.receipt.queries) == (count, 100)
    assert (again.history[0].set_aside, again.history[0].images) == (1, 39)
    assert json.loads(metrics)["loss"] == again.history[0].loss


def test_a_run_says_which_images_it_set_aside_and_stops_where_they_are_many(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    wrong = {image.tobytes() for image in images[17:20]}

    def teacher(batch):
        p = batch.mean(axis=(1, 2, 3)) / 255
        p[[image.tobytes() in wrong for image in batch]] = 3.0
        return np.stack([1 - p, p], axis=1).astype(np.float32)

    data = {
        "images": {"source": "parquet", "path": str(tmp_path / "images.parquet")},
        "teacher": {"kind": "python", "function": "x:y", "classes": 2, "batch_size": 16},
        "budget": {"queries": 80},
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
        "select": {"rounds": 0},
    }
    data["teacher"]["retry"] = {"tries": 3, "backoff_s": 0.001}
    given, directory = (
        InMemoryInputs(images=ImageSet(images=torch.from_numpy(images[:, None])), function=teacher),
        tmp_path / "run",
    )
    with pytest.raises(TeacherError, match=r"^3 of 40 images have no answer one can believe, more than .*negative"):
        run(parse_config(data), RunDirectory(directory), local=True, in_memory=given)
    assert bought(directory) == 40 + 2 * 3
    data["teacher"]["retry"]["max_bad_share"] = 0.1
    heard = Notes()
    result = run(parse_config(data), RunDirectory(directory), local=True, in_memory=given, observer=heard)
    assert bought(directory) == 46, "the tries of the first process count"
    assert result.history[0].set_aside == 3
    assert [text for text in heard.texts if "set aside" in text] == [
        "3 of 40 images of round 0 were set aside: they have no valid answer "
        "(for example image 17 of images: the teacher answered a negative probability (-2); does it give logits? "
        "let the function return their softmax)"
    ]


@pytest.mark.parametrize(
    ("student", "images"),
    [({}, [40, 40, 60]), ({"start": "last", "replay": "none", "early": 1}, [40, 0, 20])],
    ids=("all answers", "the newest alone"),
)
def test_a_run_goes_on_after_a_round_without_a_single_answer(student, images, tmp_path):
    trained_on = images
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    own, bad = {image.tobytes() for image in images}, set()

    def teacher(batch):
        """Does not take the first twenty mixes."""
        new = {bytes(image) for image in batch} - own
        bad.update(list(new)[: 20 - len(bad)])
        if bad & new:
            raise package.ImageDeclined("too dark")
        p = batch.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - p, p], axis=1).astype(np.float32)

    result = package.distil(
        teacher=teacher,
        images=images,
        budget=80,
        classes=2,
        out=tmp_path / "run",
        local=True,
        progress=False,
        student={"model": "small-cnn", "epochs": 1, "augment": "none"} | student,
        select={"rounds": 2},
        teacher_options={"batch_size": 16, "retry": {"max_bad_share": 1}},
    )
    assert [(m.bought, m.set_aside) for m in result.history] == [(40, 0), (0, 20), (20, 0)]
    assert [m.images for m in result.history] == trained_on
    students = [(tmp_path / f"run/rounds/00{number}/student.safetensors").read_bytes() for number in range(3)]
    assert student == {} or (students[1] == students[0] and students[2] != students[1])


def test_distil_from_python(tmp_path):
    """Images in three layouts, classes found out by one paid question, a student that does what the teacher does."""
    rng = np.random.default_rng(0)
    asked = []

    def bright(images: np.ndarray) -> np.ndarray:
        """A teacher with two classes: dark or bright?"""
        asked.append(images.copy())
        p = 1 / (1 + np.exp((127.5 - images.mean(axis=(1, 2, 3))) / 10))
        return np.stack([1 - p, p], axis=1)

    def draw(count: int) -> np.ndarray:
        return rng.integers(0, 56, (count, 12, 12), dtype=np.uint8) + rng.integers(
            0, 200, (count, 1, 1), dtype=np.uint8
        )

    images, test = draw(30), draw(200)
    labels = bright(test[:, None]).argmax(axis=1)
    asked.clear()
    result = package.distil(
        teacher=bright,
        images=images,
        budget=120,
        test=(test, labels),
        out=tmp_path / "run",
        local=True,
        progress=False,
        select={"rounds": 2},
        student={"model": "small-cnn", "epochs": 15, "augment": "none"},
        resources={"trainer": {"threads": 1}},
    )
    sent = np.concatenate(asked)
    assert len(sent) == result.receipt.queries == 120
    assert len({image.tobytes() for image in sent}) == 120, "no image is asked twice"
    assert sum(len(part) for part in result.labelled) == 120
    assert result.history[-1].student_accuracy > 0.8
    assert result.history[-1].teacher_accuracy is None, "a metered teacher is not asked about test images by itself"
    assert isinstance(result.student, torch.nn.Module)
    again = package.distil(
        teacher=bright, images=images[..., None], budget=120, test=(test, labels), out=tmp_path / "run",
        local=True, progress=False, select={"rounds": 2},
        student={"model": "small-cnn", "epochs": 15, "augment": "none"}, resources={"trainer": {"threads": 1}},
    )  # fmt: skip
    assert again.receipt == result.receipt and np.concatenate(asked).shape[0] == 120
    with pytest.raises(RunDirectoryError, match="another config"):
        package.distil(bright, images[1:], 120, out=tmp_path / "run", progress=False, local=True, classes=2)


def test_distil_from_configs(teacher_weights, tmp_path):
    from conftest import digits_config

    data = digits_config(teacher_weights, select__rounds=0, budget__queries=40)
    result = package.distil(
        teacher=data.pop("teacher"), images=data.pop("images"), budget=data.pop("budget"), out=tmp_path / "run",
        progress=False, local=True, **data,
    )  # fmt: skip
    assert result.receipt.queries == 40


def test_plan_counts_what_the_run_does_and_leaves_no_trace(config_file, tmp_path):
    path = config_file(budget__price_per_query=0.01, budget__currency="EUR")
    before = sorted(tmp_path.rglob("*"))
    done = command("plan", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (
        "780 groups, 2,340 candidates",
        "160 = 40 for the images + 2 x 60",
        "1.60 EUR",
        "candidates/s, from a probe of one here)",
        "the last student for 18 steps of 54 images",
        "MiB a worker",
    ):
        assert part in done.stdout
    assert "4,680 forward passes" in done.stdout and "in the driver" not in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def a_plan(**changes) -> Plan:
    """Of 2,000 MNIST images and their 21,989,000 candidates, all scored once by two workers."""
    values = {
        "images": 2000, "groups": 1_999_000, "candidates": 21_989_000, "schedule": [2000, 22_000], "estimate": 0,
        "seen": None, "test": 0, "test_labels": False, "evaluation": 0, "evaluation_cost": None, "free": True,
        "cost": None, "currency": "USD", "requests": 750, "batch": 32, "asking_s": None,
        "asking_days": 1, "scored": 21_989_000, "exhaustive": 21_989_000, "group_size": 11, "rate_per_s": 2000.0,
        "workers": 2, "worker_bytes": 500 << 20, "driver_bytes": 0, "held": "", "note": None,
        "pairs": None, "trainings": (Training("lenet5", 1, 480, 125),), "training_s": 7.4, "shorter_s": 7.4,
    }  # fmt: skip
    return Plan(**(values | changes))


def scoring(**changes) -> str:
    return dict(plan_lines(a_plan(**changes)))["scoring"]


def test_a_plan_says_how_long_scoring_takes_and_how_it_knows():
    assert scoring(scored=60_000, rate_per_s=2000.0) == (
        "about 30 s for 60,000 forward passes, 366.5 times fewer than all, with 2 workers (2,000 candidates/s, from a "
        "probe of one here)"
    )
    assert scoring(scored=0, rate_per_s=0.0) == "none: this strategy does not look at the student"
    for none in ({"schedule": [100]}, {"schedule": [100, 60], "copies": 60}):
        assert scoring(scored=0, rate_per_s=0.0, **none) == "none: no round chooses candidates"


def test_a_plan_says_how_long_training_takes():
    def training(**changes) -> str:
        return dict(plan_lines(a_plan(**changes)))["training"]

    assert training(schedule=[1000]) == "about 7 s here: the last student for 480 steps of 125 images"
    some = (Training("lenet5", 1, 240, 63), Training("small-cnn", 5, 480, 125), Training("lenet5", 1, 480, 250))
    assert training(trainings=some).endswith("the last student for 480 steps of 250 images and 5 networks beside it")
    told = training(trainings=some, training_s=1500.0, shorter_s=750.0)
    assert told.endswith("beside it; student.steps_factor=1 would take about 12 min, see docs/training.md")
    for short in ({"training_s": 600.0, "shorter_s": 100.0}, {"training_s": 1500.0, "shorter_s": 1400.0}):
        assert "steps_factor" not in training(**short), "not long, or not shorter"


def test_a_plan_whose_scoring_is_long_says_what_takes_the_time_and_how_to_take_less():
    assert scoring(pairs=109_000) == (
        "about 183 min for 21,989,000 forward passes, with 2 workers (2,000 candidates/s, from a probe of one "
        "here); one λ of all 1,999,000 pairs takes 17 min, and the grid has 11; pool.pairs=109000 would take about "
        "10 min"
    )
    assert scoring(rate_per_s=19_990.0).endswith("; one λ of all 1,999,000 pairs takes 100 s, and the grid has 11")
    assert "about 10.9 h for" in scoring(rate_per_s=560.0)
    # Ten minutes are not long yet, and where a group is one image there are no λ and no pairs.
    assert scoring(scored=1_200_000, rate_per_s=2000.0).endswith("from a probe of one here)")
    assert "; one λ" in scoring(scored=2_002_000, rate_per_s=2000.0)
    # A strategy that looks at a part of the pool does not take one λ of all of it.
    assert "; one λ" not in scoring(scored=1_990_000, rate_per_s=2000.0)
    assert scoring(group_size=1, groups=21_989_000).endswith("from a probe of one here)")


@pytest.mark.parametrize(
    "strategy",
    ["active-mixup", "rad", *(pytest.param(name, marks=pytest.mark.storm) for name in ("cluster-margin", "random"))],
)
def test_the_pairs_a_long_plan_suggests_are_the_most_that_take_ten_minutes(strategy, make_config, monkeypatch):
    monkeypatch.setattr("kdray.runs.plan.probe", lambda *arguments, **options: 50.0)

    def plan(**pool) -> Plan:
        changes = {"images__count": 400, "budget__queries": 1000, "resources__scoring_workers": 2}
        return make_plan(make_config(**changes, select={"strategy": strategy}, **pool))

    whole = plan()
    assert whole.scoring_s == (0 if strategy == "random" else pytest.approx(whole.scored / 100))
    if strategy == "random":
        assert whole.pairs is None
    else:
        assert whole.scoring_s > 600
        assert plan(pool__pairs=whole.pairs).scoring_s <= 600 < plan(pool__pairs=whole.pairs + 1000).scoring_s


def test_a_plan_says_how_many_pairs_auto_takes_and_why(make_config, monkeypatch):
    monkeypatch.setattr("kdray.runs.plan.probe", lambda *arguments, **options: 50.0)
    plan = make_plan(make_config(images__count=400, budget__queries=1000, pool__pairs="auto"))
    assert (plan.groups, plan.candidates) == (50_000, 150_000)
    assert (
        "pool.pairs: auto samples 50,000 of 79,800 pairs, 83 for each of the 600 candidates to choose"
        in (dict(plan_lines(plan))["note"])
    )


def test_a_plan_is_made_from_the_rate_of_a_probe_in_this_process(make_config, monkeypatch):
    asked = []

    def probe(pool, model, seconds, clock, **options):
        asked.append((len(pool), seconds, options["enough"], options["options"].mixing, torch.get_num_threads()))
        return 3.5

    monkeypatch.setattr("kdray.runs.plan.probe", probe)
    changes = {"resources__scoring_workers": 2, "pool__mixing": "pixels"}
    plan = make_plan(make_config(**changes))
    assert asked == [(2340, 2.0, 4680, "pixels", 1)]
    assert (plan.rate_per_s, plan.workers, plan.scored, plan.scoring_s) == (7.0, 2, 4680, 4680 / 7)
    assert (plan.schedule, plan.groups, plan.group_size, plan.driver_bytes) == ([40, 60, 60], 780, 3, 0)
    rows = dict(plan_lines(plan))
    assert "with 2 workers (7 candidates/s, from a probe of one here)" in rows["scoring"]
    assert "; one λ of all 780 pairs takes 111 s, and the grid has 3" in rows["scoring"]
    # Nothing is probed where nothing is scored.
    for none in ({"select__strategy": "random"}, {"select__rounds": 0, "budget__queries": 40}):
        assert make_plan(make_config(**none)).rate_per_s == 0.0
    assert len(asked) == 1


def test_plan_of_22_million_candidates_takes_no_memory_for_them(teacher_weights, tmp_path):
    from conftest import shared_data

    config = {
        "images": {"source": "parquet", "path": str(shared_data("mnist-train.parquet")), "count": 2000},
        "teacher": {
            "kind": "local",
            "model": "lenet5",
            "weights": "missing",
            "train": {"images": {"source": "digits"}},
        },
        "budget": {"queries": 24000},
        "resources": {"scoring_workers": 1},
    }
    path = tmp_path / "mnist.yaml"
    path.write_text(yaml.safe_dump(config))
    done = command("plan", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1,999,000 groups, 21,989,000 candidates" in done.stdout
    assert "24,000 = 2,000 for the images + 1 x 22,000" in done.stdout
    assert "in the driver up to 763 MiB for the distances between candidates" in done.stdout
    config = load_config(path, ["select.strategy=rad"])
    facts = str(plan_lines(make_plan(config, probe_s=0.01)))
    assert "in the driver up to 168 MiB for the gains that the choice is made from" in facts


def test_ctrl_c_stops_cleanly_and_says_how_to_resume(config_file, tmp_path):
    out = tmp_path / "stopped"
    path = config_file(student__epochs=20)  # seconds, in which it is interrupted
    with Program("run", path, "--local", "--out", out) as process:
        assert any(line.startswith("round 0/2 training") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
    assert f"kdray resume {out}" in rest and "Traceback" not in rest
    done = kdray("resume", out, "--local", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stdout
    assert "160/160" in table and str(out) in table and "success" in table
    assert (out / "report.html").exists()


@pytest.mark.storm
def test_ctrl_c_waits_for_the_answers_that_are_on_their_way(finished, config_file, tmp_path):
    """Four requests are in the hands of a server when the user stops the run: what they bring is paid, and kept."""
    seen, go = [], threading.Event()

    @web.middleware
    async def hold(request, handler):
        if request.path.endswith("/infer"):
            seen.append(request)
            while len(seen) > 1 and not go.is_set():  # the first one shows that there is somebody
                await asyncio.sleep(0.05)
        return await handler(request)

    out = tmp_path / "stopped"
    teacher = finished.config.teacher.build((1, 16, 16))
    with served(teacher, (1, 16, 16), hold) as url:
        section = {"kind": "http", "url": url, "model": "teacher", "classes": [str(k) for k in range(10)]}
        path = config_file(teacher=section | {"batch_size": 8, "limits": {"in_flight": 4}})
        with Program("run", path, "--local", "--out", out) as process:
            deadline = time.monotonic() + 120
            while len(seen) < 5:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            go.set()
            rest = process.stderr.read()
            assert process.wait() == 130, rest
        assert f"kdray resume {out}" in rest and "Traceback" not in rest
        answered = inference_count(url)
        ledger = Ledger(out / "ledger.sqlite")
        counts = ledger.read("SELECT answered, rejected, uncertain, reserved FROM accounts WHERE owner = ''")
        ledger.close()
        assert answered >= 1 + 7 + 3 * 8 and counts == [(answered, 0, 0, 0)]
        done = kdray("resume", out, "--local", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert bought(out) == 160
    assert student(out) == student(finished.directory), "the same answers, and so the same student"


def test_the_report_is_one_page_that_stands_alone(finished, tmp_path):
    done = command("report", finished.directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (finished.directory / "report.html").read_text()
    assert page.count('alt="Queried image') == 24  # eight of each round
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert f"{100 * finished.history[-1].student_accuracy:.2f} %" in page


def test_runs_of_the_same_folder_name_have_labels_that_tell_them_apart(finished, tmp_path):
    runs = [copy_run(finished.directory, tmp_path / name) for name in ("a/x/seed-0", "b/x/seed-0", "b/x/seed-1")]
    assert command("report", *runs).returncode == 0
    page = (runs[0] / "report.html").read_text()
    for label in ("a/x/seed-0", "b/x/seed-0", "seed-1"):
        assert f">{label}</th>" in page and f">{label}</text>" in page, "in the table, and in the figure's legend"


def test_a_name_is_no_longer_than_it_takes():
    paths = [Path(path) for path in ("/r/a", "/x/r/a", "/r/b/", "/r/c/../b", "/r/b/a", "/")]
    assert distinct_names(paths) == ["/r/a", "x/r/a", "b", "b", "b/a", "/"]
    assert distinct_names([]) == [] and distinct_names([Path("/r/a")]) == ["a"]


def test_images_of_a_run_are_hashed_as_they_were_seen(finished):
    ledger = Ledger(finished.directory / "ledger.sqlite")
    try:
        images = finished.labelled[1].images
        known = ledger.lookup(finished.receipt.teachers[0], hash_images(images))
        assert len(known) == len(images)
    finally:
        ledger.close()


def test_read_result_of_an_unfinished_run_says_so(tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no run"):
        read_result(RunDirectory(tmp_path))
