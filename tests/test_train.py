"""`kdray train`: students of the answers that a run has bought, without a query, and bit for bit those of the run."""

import csv
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
import yaml
from conftest import command, copy_run, digits_config

import kdray
from kdray.config.load import load_config, parse_config
from kdray.models.checkpoint import read_own_card
from kdray.observers.base import Observer
from kdray.runs.directory import RunDirectory
from kdray.runs.learning import learn
from kdray.runs.run import run
from kdray.utils.files import read_json


def made(folder: Path, weights: Path, **changes) -> Path:
    quick = {"student__epochs": 2} | changes
    run(parse_config(digits_config(weights, **quick)), RunDirectory(folder), local=True)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights) -> Path:
    """A run of 40, 60 and 60 queries, whose teacher was asked about all 100 test images. Only read."""
    return made(tmp_path_factory.mktemp("finished") / "run", teacher_weights)


@pytest.fixture(scope="module")
def rich(tmp_path_factory, teacher_weights) -> Path:
    """A run with images of true labels, a sample for the estimate of m, and a shared ledger. Only read."""
    folder = tmp_path_factory.mktemp("rich")
    changes = {
        "labelled": {"source": "digits", "rows": "0:30", "size": 16, "count": 12},
        "select": {"strategy": "rad-pairs", "schedule": [100, 140], "m": "estimate", "estimate_queries": 10},
        "teacher__answers": "top3",
        "budget": {"queries": 140, "evaluation": 30},
        "ledger": {"path": str(folder / "shared.sqlite")},
        "student__early_stop": {"holdout": 0.2, "patience": 1},
    }
    return made(folder / "run", teacher_weights, **changes)


def trained(*arguments: object, out: Path) -> list[dict[str, str]]:
    """What `kdray train` writes to the table in `out`."""
    done = command("train", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    with open(out / "learning_curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def of_round(folder: Path, number: int) -> bytes:
    return RunDirectory(folder).artefact(number, "train").read_bytes()


def ledger_of(folder: Path) -> Path:
    return RunDirectory(folder).ledger_of(load_config(folder / "config.yaml").ledger)


def charges(folder: Path) -> list[tuple]:
    db = sqlite3.connect(ledger_of(folder))
    rows = db.execute("SELECT * FROM accounts ORDER BY owner, purpose").fetchall()
    rows += db.execute("SELECT count(*) FROM answers").fetchall() + db.execute("SELECT * FROM reservations").fetchall()
    db.close()
    return rows


# The same students as the run's


@pytest.mark.parametrize("where", ["", "labelled"])
def test_a_student_of_all_is_the_run_s_own_bit_for_bit_and_nothing_is_asked(where, finished, tmp_path):
    before = charges(finished)
    (row,) = trained(finished / where, out=tmp_path / "out")
    assert (tmp_path / "out" / "160" / "student.safetensors").read_bytes() == (
        finished / "student.safetensors"
    ).read_bytes()
    assert row["first"] == row["images"] == "160" and row["round"] == "2"
    assert row["student"] == "160/student.safetensors"
    assert charges(finished) == before


@pytest.mark.parametrize("name", ["finished", "rich"])
def test_students_of_the_first_images_are_those_of_the_rounds(name, request, tmp_path):
    folder = request.getfixturevalue(name)
    given = 12 if name == "rich" else 0
    history = [read_json(RunDirectory(folder).artefact(number, "evaluate")) for number in range(3)]
    ends = [metrics["images"] - given for metrics in history]
    assert ends == ([40, 100, 160] if name == "finished" else [40, 100, 140])
    rows = trained(folder, "--first", ",".join(map(str, reversed(ends))), out=tmp_path / "out")
    for number, (row, end, metrics) in enumerate(zip(rows, ends, history, strict=True)):
        assert (tmp_path / "out" / str(end) / "student.safetensors").read_bytes() == of_round(folder, number)
        assert (int(row["first"]), int(row["images"]), int(row["round"])) == (end, end + given, number)
        figures = ("student_accuracy", "teacher_accuracy", "success_rate", "agreement", "agreement_low")
        for figure in (*figures, "agreement_high", "compared", "loss"):
            assert float(row[figure]) == metrics[figure], figure


def test_counts_between_rounds_cut_the_images_in_the_order_in_which_they_were_bought(rich, tmp_path):
    """40 images, the 10 of the estimate, then 50 of round 1 and 40 of round 2."""
    rows = trained(rich, "--first", "39,41,50,51,101", out=tmp_path / "out")
    assert [(row["first"], row["round"]) for row in rows] == [
        ("39", "0"), ("41", "1"), ("50", "1"), ("51", "1"), ("101", "2"),
    ]  # fmt: skip
    # The first 50 end with the sample of the estimate: a run that has bought no more trains on the same images.
    cut = copy_run(rich, tmp_path / "cut")
    directory = RunDirectory(cut)
    labelled = directory.read_labelled(1, 10, 0)
    shutil.rmtree(directory.round(2))
    (directory.labelled / "round-001.parquet").unlink()
    directory.artefact(1, "query").unlink()
    directory.write_labelled(1, labelled, None)
    trained(cut, out=tmp_path / "again")
    assert (tmp_path / "again" / "50" / "student.safetensors").read_bytes() == (
        tmp_path / "out" / "50" / "student.safetensors"
    ).read_bytes()


def test_random_numbers_are_those_of_the_last_round_also_where_it_bought_nothing(finished, tmp_path):
    longer = RunDirectory(copy_run(finished, tmp_path / "run"))
    longer.write_labelled(3, longer.read_labelled(2, 10, 0), None)
    rows = trained(longer.path, "--first", "159,160", out=tmp_path / "out")
    assert [row["round"] for row in rows] == ["2", "3"]
    last = (tmp_path / "out" / "160" / "student.safetensors").read_bytes()
    assert last != longer.student.read_bytes()  # of round 2


def test_a_run_that_stopped_is_trained_on_what_it_has(finished, tmp_path):
    cut = copy_run(finished, tmp_path / "run")
    for phase in ("train", "evaluate"):
        RunDirectory(cut).artefact(2, phase).unlink()
    shutil.copyfile(RunDirectory(cut).artefact(1, "train"), cut / "student.safetensors")
    trained(cut, out=tmp_path / "out")
    assert (tmp_path / "out" / "160" / "student.safetensors").read_bytes() == of_round(finished, 2)


def test_the_run_s_images_and_teacher_need_not_be_here_any_more(finished, tmp_path):
    moved = copy_run(finished, tmp_path / "moved")
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["images"] = {"source": "parquet", "path": str(tmp_path / "gone.parquet")}
    config["teacher"]["weights"] = str(tmp_path / "gone.safetensors")
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    trained(moved, out=tmp_path / "out")
    assert (tmp_path / "out" / "160" / "student.safetensors").read_bytes() == of_round(finished, 2)


def test_a_run_from_python_needs_its_function_no_more(tmp_path):
    pictures = torch.randint(0, 256, (60, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = (pictures.float().mean(dim=(1, 2, 3)) > 127).long()
    result = kdray.distil(
        lambda batch: (batch.mean(axis=(1, 2, 3)) > 127).astype(int),
        pictures[:20],
        30,
        classes=2,
        teacher_options={"answers": "hard"},
        test=(pictures[40:], labels[40:]),
        labelled=(pictures[20:30], labels[20:30]),
        student={"model": "small-cnn", "epochs": 1, "augment": "none"},
        out=tmp_path / "run",
        local=True,
        progress=False,
    )
    (row,) = trained(tmp_path / "run", out=tmp_path / "out")
    assert (tmp_path / "out" / "30" / "student.safetensors").read_bytes() == of_round(tmp_path / "run", 1)
    # A function may cost money, so it was asked about no test image.
    assert (row["images"], row["compared"]) == ("40", "0")
    assert float(row["student_accuracy"]) == result.history[-1].student_accuracy


# Other students


def test_a_network_by_name(finished, tmp_path):
    """The option is the field."""
    short = "student.epochs=1"
    trained(finished, "--model", "lenet5", short, out=tmp_path / "option")
    trained(finished, "student.model=lenet5", short, out=tmp_path / "field")
    files = [(tmp_path / name / "160" / "student.safetensors").read_bytes() for name in ("option", "field")]
    assert files[0] == files[1] and read_own_card(tmp_path / "option" / "160" / "student.safetensors").model == "lenet5"


def test_another_network_seed_and_test_set(finished, tmp_path):
    changes = ["student.model=lenet5", "student.epochs=1", "test.rows=1500:1550"]
    (row,) = trained(finished, "--first", "50", *changes, out=tmp_path / "one")
    path = tmp_path / "one" / "50" / "student.safetensors"
    assert read_own_card(path).model == "lenet5"
    assert kdray.load_student(path.parent).image_shape == (1, 16, 16)
    # The teacher was asked about none of these test images.
    assert float(row["student_accuracy"]) >= 0 and row["agreement"] == row["teacher_accuracy"] == ""
    assert row["compared"] == "0"
    assert load_config(tmp_path / "one" / "config.yaml").student.model == "lenet5"
    trained(finished, "--first", "50", *changes, "seed=9", out=tmp_path / "two")
    assert (tmp_path / "two" / "50" / "student.safetensors").read_bytes() != path.read_bytes()


def test_another_seed_leaves_the_images_as_they_are(rich, tmp_path):
    """The 12 of 30 images with true labels are those of the run: their seed is the run's."""
    rows = [trained(rich, f"seed={seed}", out=tmp_path / str(seed)) for seed in (3, 4)]
    students = [(tmp_path / str(seed) / "140" / "student.safetensors").read_bytes() for seed in (3, 4)]
    assert students[0] == of_round(rich, 2) != students[1]
    assert [row["images"] for (row,) in rows] == ["152", "152"]
    directory = RunDirectory(rich)
    config = load_config(directory.config)
    again = learn(directory, config.model_copy(update={"seed": 4}), out=tmp_path / "again").points[0]
    assert again.student.read_bytes() == students[1]


def test_without_a_test_set_nothing_is_measured(finished, tmp_path):
    (row,) = trained(finished, "test=null", out=tmp_path / "out")
    assert row["student_accuracy"] == row["agreement"] == "" and row["compared"] == "0"
    assert (tmp_path / "out" / "160" / "student.safetensors").read_bytes() == of_round(finished, 2)


def test_a_table_shows_the_figures(finished, tmp_path):
    done = command("train", finished, "--first", "40,160", "--out", tmp_path / "out")
    with open(tmp_path / "out" / "learning_curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [cells[:3] for cells in shown] == [["40", "40", "0"], ["160", "160", "2"]]
    figures = ("student_accuracy", "teacher_accuracy", "success_rate", "agreement")
    assert [cells[3:7] for cells in shown] == [[f"{float(row[figure]):.2%}" for figure in figures] for row in rows]
    assert f"students  {tmp_path / 'out'}\n" in done.stdout
    said = done.stderr.splitlines()
    assert said[0] == said[2] == "training" and said[1].startswith("trained a student on the first 40 images in ")


def test_what_was_trained_before_a_stop_is_kept(finished, tmp_path):
    class Impatient(Observer):
        def note(self, text: str) -> None:
            if "trained" in text:
                raise KeyboardInterrupt

    directory = RunDirectory(finished)
    with pytest.raises(KeyboardInterrupt):
        learn(directory, load_config(directory.config), first=[40, 100], out=tmp_path / "out", observer=Impatient())
    with open(tmp_path / "out" / "learning_curve.csv", newline="") as file:
        assert [row["first"] for row in csv.DictReader(file)] == ["40"]
    assert (tmp_path / "out" / "40" / "student.safetensors").read_bytes() == of_round(finished, 0)


def test_a_ledger_that_is_gone_costs_the_agreement_alone(rich, tmp_path):
    moved = copy_run(rich, tmp_path / "run")
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["ledger"]["path"] = str(tmp_path / "gone.sqlite")
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    done = command("train", moved, "--first", "40", "--out", tmp_path / "out")
    assert done.returncode == 0
    told = f"the run's ledger {tmp_path / 'gone.sqlite'} is not there, so agreement with the teacher is not measured"
    assert told in done.stderr and not (tmp_path / "gone.sqlite").exists()
    with open(tmp_path / "out" / "learning_curve.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["agreement"] == "" and float(row["student_accuracy"]) > 0


# Where students go


def test_students_go_to_a_free_folder_of_the_run_and_overwrite_nothing(finished, tmp_path):
    own = copy_run(finished, tmp_path / "run")
    for name in ("students", "students-2"):
        done = command("train", own / "labelled", "--first", "40", "student.epochs=1")
        assert done.returncode == 0 and str(own / name / "learning_curve.csv") in done.stdout
    assert sorted(path.name for path in (own / "students").iterdir()) == ["40", "config.yaml", "learning_curve.csv"]
    before = (own / "students" / "learning_curve.csv").read_bytes()
    done = command("train", own, "--out", own / "students")
    assert done.returncode == 2
    assert (
        done.stderr == f"kdray: {own / 'students'} is there already, and nothing is overwritten; choose another --out\n"
    )
    assert (own / "students" / "learning_curve.csv").read_bytes() == before
    again = command("resume", own, "--local")  # to the run they mean nothing
    assert again.returncode == 0 and "the run is complete" in again.stderr


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--first", "161"], "--first: 161 images wanted, but {run} has bought 160"),
        (["--first", "40,0"], "--first: a student cannot be trained on 0 images; give at least 1"),
        (["--first", "40,-1"], "--first: '-1' is not a number of images; give one or more, as in --first 1000,2000"),
        (["--first", "many"], "--first: 'many' is not a number of images; give one or more, as in --first 1000,2000"),
        (["--first", "40,"], "--first: '' is not a number of images; give one or more, as in --first 1000,2000"),
        (["--first", "40,80,40"], "--first: 40 is given twice; keep one of the two"),
        (
            ["budget.queries=500"],
            "override 'budget.queries=500': nothing is chosen or asked here, so budget.queries would change nothing; "
            "student, seed and test can be changed",
        ),
        (["images.count=3"], "override 'images.count=3': nothing is chosen or asked here, so images.count would"),
        (["student.epoch=3"], "{run}/config.yaml: unknown key 'student.epoch'; did you mean 'epochs'?"),
        (["student"], "override 'student' is not of the form key.sub=value"),
        (["student.augment.shift=16"], "student.augment.shift: 16 pixels do not fit images of 16x16"),
        (["--model", "vgg17"], "{run}/config.yaml: student.model: no model named 'vgg17'"),
        (["--model", "lenet5", "student.model=mlp"], "student.model is given twice on the command line"),
        (["student.model=vgg17"], "{run}/config.yaml: student.model: no model named 'vgg17'"),
        (["student.model=nowhere:net"], "{run}/config.yaml: student.model: no model 'nowhere:net': cannot"),
        (["student.loss=nowhere:loss"], "{run}/config.yaml: student.loss.kind: cannot import nowhere:loss"),
        (["test.rows=1400:9999"], "test.rows"),
        (["test.size=28"], "test: its images have shape (1, 28, 28), the images to distil with (1, 16, 16)"),
        (["test={source: parquet, path: none.parquet}"], "test.path: "),
        (["--out", "{run}/student.safetensors"], "{run}/student.safetensors is there already"),
    ],
)
def test_a_mistake_gets_one_message_and_leaves_nothing(arguments, message, finished, tmp_path):
    before = sorted(finished.rglob("*"))
    arguments = [argument.format(run=finished) if argument.startswith("{run}") else argument for argument in arguments]
    out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    done = command("train", finished, *arguments, *out)
    assert done.returncode == 2
    assert done.stderr.startswith(f"kdray: {message.format(run=finished)}"), done.stderr
    assert not (tmp_path / "out").exists() and sorted(finished.rglob("*")) == before


def test_what_is_no_run_is_named(finished, tmp_path):
    (tmp_path / "labelled").mkdir()
    for path in (tmp_path, tmp_path / "labelled", tmp_path / "none", finished / "rounds", finished / "config.yaml"):
        done = command("train", path)
        assert done.returncode == 2
        assert done.stderr == (
            f"kdray: {path} is neither a run directory nor a folder of labelled images; give RUN, RUN/labelled, or a "
            "folder that kdray ledger --merge wrote\n"
        )


def test_a_run_without_a_student_or_without_images_says_how_to_go_on(finished, tmp_path):
    cut = copy_run(finished, tmp_path / "run")
    (cut / "student.safetensors").unlink()
    done = command("train", cut)
    assert done.returncode == 2
    assert done.stderr == f"kdray: {cut} has not finished a round yet; go on with: kdray resume {cut}\n"
    shutil.rmtree(cut / "rounds")
    done = command("train", cut)
    assert done.returncode == 2
    assert done.stderr == f"kdray: {cut} has bought no images; go on with: kdray resume {cut}\n"
