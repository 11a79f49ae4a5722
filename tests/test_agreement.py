"""Test images without labels: student and teacher are compared, wherever accuracy is shown."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import command, digits_config
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_display import metrics

import kdray
from kdray.config.load import parse_config
from kdray.errors import ImageSetError
from kdray.images import ImageSet
from kdray.images.digits import _load
from kdray.ledger import Ledger, hash_images
from kdray.observers import Observer
from kdray.observers.display import PlainDisplay, result_table
from kdray.report.figures import accuracy_figure, agreement_figure
from kdray.report.page import write_report
from kdray.runs.directory import RunDirectory
from kdray.runs.evaluation import Scores, queries_allowed, rows_to_ask, score, unlabelled_note
from kdray.runs.inputs import read_test
from kdray.runs.plan import make_plan, plan_lines
from kdray.runs.result import read_result
from kdray.runs.run import run
from kdray.utils.intervals import clopper_pearson

SMALL = {"select": {"rounds": 1}, "pool": {"lambdas": [0.5]},
         "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
         "resources": {"trainer": {"threads": 1}}}  # fmt: skip


def blank(count: int, labels: list[int] | None = None) -> ImageSet:
    images = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)
    return ImageSet(images=images, labels=None if labels is None else torch.tensor(labels))


# Values by hand


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (0, 10, 0.0, 1 - 0.025**0.1),  # closed forms at the ends
        (10, 10, 0.025**0.1, 1.0),
        (1, 1, 0.025, 1.0),
        (5, 10, 0.1871, 0.8129),  # of the tables
        (93, 100, 0.8611, 0.9714),
    ],
)
def test_the_exact_interval_of_a_share(hits, count, low, high):
    assert clopper_pearson(hits, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_scores_by_hand():
    predictions, labels = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])
    rows, answers = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
    low, high = clopper_pearson(2, 3)
    both = {"agreement": pytest.approx(2 / 3), "agreement_low": low, "agreement_high": high, "compared": 3}
    assert score(predictions, None, rows, answers) == Scores(**both)
    # With labels: the teacher is right on one of three, the student on two of the same three.
    expected = Scores(student=0.75, teacher=pytest.approx(1 / 3), success=pytest.approx(2.0), **both)
    assert score(predictions, labels, rows, answers) == expected
    nothing = torch.empty(0, dtype=torch.int64)
    assert score(predictions, labels, nothing, nothing) == Scores(student=0.75)
    assert score(predictions, None, nothing, nothing) == Scores()
    wrong = score(predictions, labels, torch.tensor([2]), torch.tensor([2]))
    assert (wrong.teacher, wrong.success) == (0.0, None)


def test_the_images_asked_about_are_a_sample_that_a_larger_cap_adds_to():
    drawn = {allowed: rows_to_ask(50, allowed, seed=3).tolist() for allowed in (0, 1, 7, 20, 49, 50, 99)}
    for allowed, rows in drawn.items():
        assert len(set(rows)) == len(rows) == min(allowed, 50) and rows == sorted(rows)
        assert rows_to_ask(50, allowed, seed=3).tolist() == rows  # in every round
    for fewer, more in ((1, 7), (7, 20), (20, 49)):
        assert set(drawn[fewer]) < set(drawn[more])
    assert drawn[20] != list(range(20)) and drawn[20] != rows_to_ask(50, 20, seed=4).tolist()


@pytest.mark.parametrize(
    ("evaluation", "metered", "allowed"),
    [("auto", True, 0), ("auto", False, 9), (0, False, 0), (4, True, 4), (99, True, 9)],
)
def test_the_queries_that_a_budget_allows(evaluation, metered, allowed):
    assert queries_allowed(evaluation, 9, metered=metered) == allowed


def test_the_note_says_what_is_measured_or_what_to_set():
    assert unlabelled_note(500, 500) == (
        "test has no labels: student and teacher are compared on all 500 of its images (agreement)"
    )
    assert "on 40 of 1,500 of its images" in unlabelled_note(1500, 40)
    note = unlabelled_note(1500, 0)
    assert "nothing will be measured" in note and "up to 1,500: budget.evaluation=200, for example" in note
    assert "budget.evaluation=30, for example" in unlabelled_note(30, 0)


# What is shown

ALONE = {"student_accuracy": None, "teacher_accuracy": None, "success_rate": None, "agreement": 0.9,
         "agreement_low": 0.805, "agreement_high": 0.9567, "compared": 50}  # fmt: skip


def test_displays_show_agreement_where_there_is_no_accuracy():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.begin(rounds=2, budget=160, spent=0, title="x")
    display.round_done(metrics(**ALONE))
    assert "queries 100/160  agreement 90.00% (80.5% to 95.7%)" in stream.getvalue()
    display.round_done(metrics(**ALONE | {"agreement": None, "agreement_low": None, "agreement_high": None}))
    assert stream.getvalue().splitlines()[-1].endswith("queries 100/160")
    stream = io.StringIO()
    Console(file=stream, width=160).print(result_table([metrics(**ALONE), metrics(agreement_low=0.1)], 160))
    alone, labelled = stream.getvalue().splitlines()[-3:-1]
    assert "90.00% (80.5% to 95.7%)" in alone and alone.count(" - ") == 3
    assert "87.50%" in labelled and "88.00%" in labelled and " to " not in labelled


def test_figures_of_runs_with_and_without_labels():
    labelled, alone = ("with", [metrics()]), ("without", [metrics(**ALONE), metrics(**ALONE | {"round": 2})])
    assert agreement_figure([labelled]) is None and accuracy_figure([alone]) is None
    assert "accuracy on the test set, %" in accuracy_figure([labelled])
    page = agreement_figure([alone, labelled])
    assert all(text in page for text in ("agreement with the teacher, %", "with", "without", "90.00", "88.00"))
    assert ">without<" not in accuracy_figure([alone, labelled])
    # Of a run whose metrics have no interval.
    assert agreement_figure([("old", [metrics(**ALONE | {"agreement_low": None, "agreement_high": None})])])


# Runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Thirty digits of 16x16 without labels: files side by side."""
    path = tmp_path_factory.mktemp("unlabelled")
    for number in range(30):
        image = Image.fromarray(_load()[0][1400 + number]).resize((16, 16), Image.Resampling.BILINEAR)
        image.save(path / f"{number:02}.png")
    return path


@pytest.fixture(scope="module")
def finished(teacher_weights, folder, tmp_path_factory):
    """A run with these as its test set and a local teacher, by the command line; what it printed."""
    here = tmp_path_factory.mktemp("finished")
    (here / "c.yaml").write_text(
        yaml.safe_dump(digits_config(teacher_weights, test={"source": "folder", "path": str(folder)}))
    )
    done = command("run", here / "c.yaml", "--local", "--out", here / "run", cwd=here)
    assert done.returncode == 0, done.stderr
    return here, done


def test_a_run_without_test_labels_gives_agreement_everywhere(finished, folder, teacher_weights):
    here, done = finished
    result = read_result(RunDirectory(here / "run"))
    test = read_test(result.config)
    assert test.labels is None and len(test) == 30
    teacher = result.config.teacher.build(test.image_shape).answer(test.images).labels
    same = int((result.student(test.images).argmax(dim=1) == teacher).sum())
    last = result.history[-1]
    assert (last.student_accuracy, last.teacher_accuracy, last.success_rate) == (None, None, None)
    assert last.agreement == pytest.approx(same / 30) and last.compared == 30
    assert (last.agreement_low, last.agreement_high) == clopper_pearson(same, 30)
    assert result.receipt.evaluation_queries == 30  # counted once, though asked for in each of three rounds
    # On disk, on the terminal, in TensorBoard and on the page.
    written = json.loads((here / "run" / "rounds" / "002" / "metrics.json").read_text())
    assert written["agreement"] == last.agreement and written["compared"] == 30
    assert f"agreement {last.agreement:.2%} (" in done.stderr and f"{last.agreement:.2%} (" in done.stdout
    assert "test has no labels: student and teacher are compared on all 30 of its images" in done.stderr
    events = EventAccumulator(str(here / "run" / "events"))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("agreement")]
    assert points == [(m.paid, pytest.approx(m.agreement)) for m in result.history]
    page = (here / "run" / "report.html").read_text()
    assert "student accuracy" not in page and ">agreement, %</text>" in page
    assert "test images compared; they have no labels" in page and f"{100 * last.agreement:.2f} %" in page
    low, high = 100 * last.agreement_low, 100 * last.agreement_high
    assert f"{low:.2f} %–{high:.2f} %" in page


@pytest.mark.storm
def test_runs_with_and_without_labels_are_compared_on_one_page(finished, make_config, tmp_path):
    here, _ = finished
    run(make_config(select__rounds=0), RunDirectory(tmp_path / "labelled"), local=True)
    for directories in ([here / "run", tmp_path / "labelled"], [tmp_path / "labelled", here / "run"]):
        page = write_report([RunDirectory(path) for path in directories]).read_text()
        assert "accuracy on the test set, %" in page and "agreement with the teacher, %" in page
    write_report([RunDirectory(here / "run")])  # as it was


def brightness(images: np.ndarray) -> np.ndarray:
    bright = images.astype(np.float32).mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - bright, bright], axis=1)


def test_an_array_of_test_images_will_do_and_the_same_are_asked_about_in_every_round(tmp_path):
    asked = []

    def teacher(images: np.ndarray) -> np.ndarray:
        asked.append(images.copy())
        return brightness(images)

    pixels, test = _load()[0][:20], _load()[0][100:140]
    result = kdray.distil(
        teacher, pixels, {"queries": 40, "evaluation": 12}, test=test, classes=2, out=tmp_path / "run",
        local=True, progress=False, **SMALL | {"select": {"rounds": 2}},
    )  # fmt: skip
    assert [m.compared for m in result.history] == [12, 12, 12] and result.receipt.evaluation_queries == 12
    assert sum(map(len, asked)) == 40 + 12
    rows = rows_to_ask(len(test), 12, seed=0)
    keys = hash_images(torch.from_numpy(test)[rows][:, None])
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    assert len(ledger.lookup(result.receipt.teachers[0], keys)) == 12
    ledger.close()
    assert all(0 <= m.agreement <= 1 and m.student_accuracy is None for m in result.history)


def test_a_metered_teacher_is_not_asked_by_itself_and_the_user_is_told_before_anything_is_paid(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metered_teacher.py").write_text(
        "import numpy as np\n\n\ndef ask(images):\n    return np.full((len(images), 2), 0.5, np.float32)\n"
    )
    config = {
        "images": {"source": "digits", "rows": "0:20", "size": 16}, "test": {"source": "folder", "path": str(folder)},
        "teacher": {"kind": "python", "function": "metered_teacher:ask", "classes": 2}, "budget": {"queries": 30},
    } | SMALL  # fmt: skip
    heard: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            heard.append(text)

        def phase(self, round: int, name: str) -> None:
            heard.append(name)

    result = run(parse_config(config), RunDirectory(tmp_path / "run"), local=True, observer=Listener())
    assert heard[0] == unlabelled_note(30, 0) and heard[1] == "choose"
    assert {(m.agreement, m.compared) for m in result.history} == {(None, 0)}
    assert result.receipt.evaluation_queries == 0
    page = write_report([RunDirectory(tmp_path / "run")]).read_text()
    assert "agreement with the teacher, %" not in page


@pytest.mark.parametrize(
    ("budget", "test", "expected"),
    [
        ({}, {}, unlabelled_note(30, 0)),
        ({"evaluation": 0}, {}, unlabelled_note(30, 0)),
        ({"evaluation": 12}, {}, "12 queries, counted apart; " + unlabelled_note(30, 12)),
        (
            {"evaluation": 99, "price_per_query": 0.5, "currency": "EUR"},
            {},
            "30 queries for 15.00 EUR, counted apart; " + unlabelled_note(30, 30),
        ),
        ({"evaluation": 12, "price_per_query": 0.5}, {"source": "digits", "count": 40, "size": 16},
         "12 queries for 6.00 USD, counted apart"),
        ({}, {"source": "digits", "count": 40, "size": 16},
         "0 queries; the student's accuracy on 40 labelled test images"),
        ({}, None, "none: there is no test set"),
    ],
)  # fmt: skip
def test_a_plan_says_what_measuring_will_cost(budget, test, expected, folder, teacher_weights, monkeypatch):
    data = digits_config(
        teacher_weights, select__strategy="random", test=test or {"source": "folder", "path": str(folder)}
    )
    if test is None:
        del data["test"]
    data["teacher"] = {"kind": "http", "url": "http://127.0.0.1:1", "model": "m", "classes": 10}
    data["budget"] |= budget
    plan = make_plan(parse_config(data))
    assert dict(plan_lines(plan))["evaluation"] == expected
    if not budget and test is not None:
        data["teacher"]["metered"] = False
        free = make_plan(parse_config(data))
        assert dict(plan_lines(free))["evaluation"].startswith(f"{len(read_test(parse_config(data)))} queries, free")


def test_labels_that_are_held_back_are_none_and_some_that_are_missing_are_refused(make_config):
    config = make_config()
    images = torch.zeros(3, 1, 16, 16, dtype=torch.uint8)
    assert read_test(config, ImageSet(images=images, labels=torch.tensor([-1, -1, -1]))).labels is None
    assert read_test(config, ImageSet(images=images)).labels is None
    assert read_test(config, ImageSet(images=images, labels=torch.tensor([0, 1, 2]))).labels.tolist() == [0, 1, 2]
    with pytest.raises(ImageSetError, match="test: label -1 found; every image of it needs its true label"):
        read_test(config, ImageSet(images=images, labels=torch.tensor([0, -1, 2])))
    with pytest.raises(ImageSetError, match=r"test: its images have shape \(1, 16, 16\)"):
        read_test(config, ImageSet(images=images), (1, 8, 8))


def test_a_teacher_is_trained_where_the_test_set_has_no_labels(folder, tmp_path):
    train = {"images": {"source": "digits", "rows": "0:100", "size": 16}, "epochs": 1}
    data = digits_config(
        tmp_path / "t.safetensors", teacher__train=train, test={"source": "folder", "path": str(folder)}
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
    done = command("teacher", "train", tmp_path / "c.yaml", cwd=tmp_path)
    assert done.returncode == 0 and "wrote" in done.stdout and "accuracy" not in done.stdout, done.stderr


def test_an_array_is_taken_alone_for_test_only():
    images = _load()[0][:20]
    for field in ("labelled", "validation"):
        with pytest.raises(ImageSetError, match=rf"{field}: expected a pair \(images, labels\) or a mapping"):
            kdray.distil(brightness, images, 30, classes=2, local=True, progress=False, **{field: images})
