"""Answers without their run: several runs' in one labelled set, and students trained on it."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import command, copy_run, digits_config

from kdray.config.load import parse_config
from kdray.errors import ConfigError, RunDirectoryError
from kdray.ledger.records import hash_images
from kdray.models.checkpoint import load_student, read_own_card
from kdray.runs.directory import RunDirectory
from kdray.runs.labelled_set import learn_set, merge
from kdray.runs.run import run
from kdray.runs.tables import read_labelled, read_top
from kdray.runs.training_set import with_bought

SMALL = ("student.model=mlp", "student.epochs=4", "student.augment=none")
TEST = 'test={source: digits, rows: "1400:1500", size: 16}'


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher_weights):
    """Two runs on images half of which are the same, and one whose teacher shows labels alone."""
    folder = tmp_path_factory.mktemp("merged")

    def made(name, **changes):
        return run(parse_config(digits_config(teacher_weights, **changes)), RunDirectory(folder / name), local=True)

    return (
        made("first", seed=3),
        made("second", seed=4, images__count=200, budget__queries=260),
        made("hard", teacher__answers="hard"),
    )


def directories(*results):
    return [RunDirectory(result.directory) for result in results]


def hashes_of(result):
    return [key for part in result.labelled for key in hash_images(part.images)]


def test_a_set_has_each_image_of_all_runs_once_with_the_first_answer(runs, tmp_path):
    first, second, _ = runs
    merged = merge(directories(first, second), tmp_path / "set")
    every = hashes_of(first) + hashes_of(second)
    assert merged.images == len(set(every)) and merged.twice == len(every) - len(set(every)) > 0
    parts = [read_labelled(path, 10) for path in sorted(merged.folder.glob("*.parquet"))]
    found = [key for part in parts for key in hash_images(part.images)]
    assert found == list(dict.fromkeys(every)), "in the order in which they were bought, run by run"
    mine = torch.cat([part.answers.probs for part in first.labelled])
    assert torch.equal(parts[0].answers.probs, mine) and len(parts[0]) == len(mine)


def test_a_set_opens_in_datasets(runs, tmp_path):
    import datasets

    merge(directories(*runs[:2]), tmp_path / "set")
    opened = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened[0]["image"].size == (16, 16) and opened.features["label"].names == [str(k) for k in range(10)]


def test_students_of_a_set_learn_what_the_teacher_knows(runs, tmp_path):
    first, second, _ = runs
    merge(directories(first, second), tmp_path / "set")
    changes = ("student.model=small-cnn", "student.epochs=12", "student.augment=none", TEST)
    curve = learn_set(tmp_path / "set", changes, first=[40, 300])
    assert [(point.first, point.images) for point in curve.points] == [(40, 40), (300, 300)]
    assert curve.points[1].scores.student > max(0.6, curve.points[0].scores.student)
    assert curve.directory == tmp_path / "set-students" and curve.table.read_text().count("\n") == 3
    card = read_own_card(curve.points[1].student)
    assert (card.model, card.image_shape, card.num_classes) == ("small-cnn", (1, 16, 16), 10)
    again = learn_set(tmp_path / "set", changes, first=[40])
    assert again.points[0].student.read_bytes() == curve.points[0].student.read_bytes(), (
        "the same seed, the same student"
    )
    written = yaml.safe_load((again.directory / "config.yaml").read_text())
    assert written["student"]["epochs"] == 12 and written["seed"] == 0


def test_the_labelled_folder_of_a_run_is_enough(runs, tmp_path):
    shutil.copytree(runs[0].directory / "labelled", tmp_path / "answers")
    (point,) = learn_set(tmp_path / "answers", SMALL).points
    assert point.images == 160 and load_student(point.student)(torch.zeros(1, 1, 16, 16, dtype=torch.uint8)).shape == (
        1,
        10,
    )
    done = command("train", tmp_path / "answers", *SMALL, "--first", "20,40", cwd=tmp_path)
    assert done.returncode == 0 and str(tmp_path / "answers-students-2") in done.stdout, done.stderr


def test_soft_answers_have_no_k(runs):
    assert read_top(runs[0].directory / "labelled" / "round-000.parquet") is None


def test_top_k_answers_teach_in_a_set_as_in_their_run(teacher_weights, tmp_path):
    config = digits_config(teacher_weights, teacher__answers="top3", select__rounds=0, budget__queries=40)
    done = run(parse_config(config), RunDirectory(tmp_path / "run"), local=True)
    merge(directories(done), tmp_path / "set")
    for path in (done.directory / "labelled" / "round-000.parquet", tmp_path / "set" / "part-000.parquet"):
        assert read_top(path) == 3
        targets = with_bought([], read_labelled(path, 10), read_top(path))[1]
        assert torch.equal(targets, with_bought([], done.labelled[0], done.config.teacher.form.top)[1])
        assert (targets > 0).all(), "what three classes leave is spread over the others"


def test_answers_of_two_teachers_make_no_set(runs, tmp_path):
    first, second, hard = runs
    done = command("ledger", first.directory, hard.directory, "--merge", tmp_path / "set")
    assert done.returncode == 2 and done.stdout == ""
    said = f"kdray: --merge: {first.directory} has the teacher {first.receipt.teachers[0]}, and {hard.directory} "
    assert done.stderr.startswith(said + hard.receipt.teachers[0]) and not (tmp_path / "set").exists()
    done = command("ledger", first.directory, second.directory, "--merge", tmp_path / "set")
    assert done.returncode == 0 and f"kdray train {tmp_path / 'set'}" in done.stdout, done.stderr


def test_images_of_two_shapes_make_no_set(runs, tmp_path):
    other = RunDirectory(copy_run(runs[0].directory, tmp_path / "other"))
    for number in other.asked_rounds():
        path = other.artefact(number, "query")
        table = pq.read_table(path)
        pixels = np.zeros((1, 8, 8), np.uint8)
        from kdray.images.png import encode_png

        cells = [{"bytes": encode_png(pixels), "path": None}] * len(table)
        column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(table.set_column(0, "image", column).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(ConfigError, match=r"has the image shape 1, 16, 16, and .* 1, 8, 8"):
        merge([RunDirectory(runs[0].directory), other], tmp_path / "set")
    (tmp_path / "both").mkdir()
    for name, run_ in (("a", RunDirectory(runs[0].directory)), ("b", other)):
        shutil.copy(run_.artefact(run_.asked_rounds()[-1], "query"), tmp_path / "both" / f"{name}.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet has images of \[1, 8, 8\], and a\.parquet of \[1, 16, 16\]"):
        learn_set(tmp_path / "both", [])


def test_a_merge_that_fails_leaves_nothing_that_looks_like_a_set(runs, tmp_path):
    damaged = RunDirectory(copy_run(runs[1].directory, tmp_path / "damaged"))
    path = damaged.artefact(damaged.asked_rounds()[-1], "query")
    path.write_bytes(path.read_bytes()[:-200] + bytes(200))
    both = [RunDirectory(runs[0].directory), damaged]
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        merge(both, tmp_path / "set")
    assert not list((tmp_path / "set").glob("*.parquet"))
    assert merge(both[:1], tmp_path / "set").images > 0 and list((tmp_path / "set").glob("*.parquet"))


def test_a_round_that_was_damaged_and_asked_again_is_replaced_among_the_labelled(runs, tmp_path):
    own = RunDirectory(copy_run(runs[0].directory, tmp_path / "own"))
    number = own.asked_rounds()[-1]
    path, shown = own.artefact(number, "query"), own.labelled / f"round-{number:03d}.parquet"
    whole = path.read_bytes()
    shown.unlink()
    own.publish(number)
    assert shown.samefile(path)
    path.unlink()  # moved away
    shown.write_bytes(b"damaged")
    path.write_bytes(whole)
    own.publish(number)
    assert shown.read_bytes() == whole and not list(own.labelled.glob("*.tmp"))


def test_a_round_that_asked_nothing_is_no_obstacle(teacher_weights, tmp_path):
    own = {"source": "digits", "rows": "600:660", "size": 16}
    config = digits_config(teacher_weights, labelled=own, select__first=0, budget__queries=40)
    done = run(parse_config(config), RunDirectory(tmp_path / "run"), local=True)
    assert done.history[0].bought == 0
    assert merge(directories(done), tmp_path / "set").images == 40


def test_what_cannot_be_merged_or_trained_is_said_and_nothing_is_written(runs, tmp_path):
    first = RunDirectory(runs[0].directory)
    with pytest.raises(RunDirectoryError, match="holds no run"):
        merge([first, RunDirectory(tmp_path)], tmp_path / "set")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(ConfigError, match="is there already, and nothing is overwritten"):
        merge([first], tmp_path / "full")
    gone = RunDirectory(copy_run(first.path, tmp_path / "gone"))
    gone.ledger.unlink()
    with pytest.raises(RunDirectoryError, match="nothing says whose its answers are"):
        merge([first, gone], tmp_path / "set")
    assert not (tmp_path / "set").exists()
    done = command("ledger", first.path, first.path)
    assert done.returncode == 2 and "2 paths, but a receipt is of one; --merge DIR" in done.stderr

    done = command("ledger", first.path, "--merge", tmp_path / "set", "--export", tmp_path / "a.parquet")
    assert done.returncode == 2 and "--merge writes a labelled set and does nothing else" in done.stderr
    assert not (tmp_path / "set").exists()

    merge([first], tmp_path / "set")
    before = sorted(tmp_path.iterdir())
    for arguments, said in (
        (["--first", "161"], "--first: 161 images wanted"),
        (["student.modle=mlp"], "student.modle"),
        (["student.model=none"], "none"),
        (["student.unpaid={}", *SMALL], "student.unpaid needs a run's candidates"),
        (["budget.queries=3"], "budget"),
        (["test={source: digits, size: 8}", *SMALL], "test: its images have shape"),
    ):
        done = command("train", tmp_path / "set", *arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    (tmp_path / "foreign").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign" / "a.parquet")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.parquet").write_bytes(b"PAR1")
    for name, said in (("foreign", "has no images with a teacher's answers"), ("torn", "cannot be read")):
        done = command("train", tmp_path / name)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(path for path in tmp_path.iterdir() if path.name not in ("foreign", "torn")) == before
