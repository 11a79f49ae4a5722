"""A teacher that gives one answer whatever it is asked: a run stops early, and keeps most of its budget."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import command
from torch import Tensor

from kdray.errors import OneClassError
from kdray.ledger.store import Ledger
from kdray.runs.policy import FirstAnswers, PurchasePolicy
from kdray.runs.purchase import buy
from kdray.select.balance import ALIKE, FIRST_ALIKE
from kdray.teachers.answers import Answers
from kdray.teachers.pool import LocalTeacherPool

SEVEN = "import torch\n\n\ndef seven(images):\n    return torch.full((len(images),), 7)\n"
NOISE = {"source": "drawn", "pool": "noise", "size": 16, "colour": "grey"}


class Teacher:
    """Gives the class, and perhaps the probabilities, that `answers` has for images uint8 [B, 1, 2, 2]."""

    identity, num_classes, metered = "one", 3, True

    def __init__(self, answers: Callable[[Tensor], Answers]) -> None:
        self.answer = answers


def pictures(count: int) -> Tensor:
    """Different images, uint8 [count, 1, 2, 2]."""
    numbers = torch.arange(count)
    return torch.stack([numbers // 256, numbers % 256, numbers * 0, numbers * 0], 1).view(-1, 1, 2, 2).to(torch.uint8)


def numbers(images: Tensor) -> Tensor:
    flat = images.flatten(1).long()
    return flat[:, 0] * 256 + flat[:, 1]


def hard(images: Tensor) -> Answers:
    return Answers(probs=None, labels=torch.full((len(images),), 2), num_classes=3)


def another_at_999(images: Tensor) -> Answers:
    return Answers(probs=None, labels=torch.where(numbers(images) == FIRST_ALIKE - 1, 1, 2), num_classes=3)


def soft(images: Tensor) -> Answers:
    return replace(hard(images), probs=torch.tensor([[0.1, 0.2, 0.7]]).repeat(len(images), 1))


def unsure(images: Tensor) -> Answers:
    share = 0.3 * numbers(images).float() / 2000
    return replace(hard(images), probs=torch.stack([share, 0.3 - share, torch.full_like(share, 0.7)], dim=1))


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(tmp_path / "ledger.sqlite", 2000)
    yield opened
    opened.close()


def bought(ledger: Ledger, answers: Callable[[Tensor], Answers], count: int, **policy) -> int:
    """How many of so many images are answered."""
    policy = PurchasePolicy(**policy)
    teachers = LocalTeacherPool(Teacher(answers))
    return len(buy(pictures(count), teachers=teachers, ledger=ledger, batch_size=64, policy=policy).positions)


# ---- within a purchase


@pytest.mark.parametrize("answers", [hard, soft], ids=("hard", "soft"))
def test_the_first_thousand_of_random_images_are_enough(ledger, answers):
    with pytest.raises(OneClassError, match=r"all 1,000 answers so far are the same, class two;") as error:
        bought(ledger, answers, 1800, at_random=True, first=FirstAnswers(["zero", "one", "two"]))
    assert error.value.repeats
    assert ledger.spent("training", "") == 1024, "the batch in which the thousandth is, and none after it"
    with pytest.raises(OneClassError, match="all 1,000 answers so far are the same, class 2;"):
        bought(ledger, answers, 1800, at_random=True)
    assert ledger.spent("training", "") == 1024, "going on pays for nothing"


@pytest.mark.parametrize(
    ("answers", "policy"),
    [
        (hard, {}),  # such as a folder that is sorted by class: the first images do not stand for all
        (another_at_999, {"at_random": True}),
        (unsure, {"at_random": True}),  # probabilities that differ teach something
    ],
    ids=("sorted", "another class", "other probabilities"),
)
def test_others_are_asked_about_to_the_end(ledger, answers, policy):
    assert bought(ledger, answers, 1800, **policy) == 1800


def test_nothing_is_saved_once_all_have_been_asked(ledger):
    assert bought(ledger, hard, FIRST_ALIKE, at_random=True) == FIRST_ALIKE


def test_fifty_answers_are_told_of_by_the_name_of_their_class():
    known = {bytes([number]): (1, None) for number in range(50)}
    note = FirstAnswers(["cat", "dog"]).look(known)
    assert note and note.startswith("all answers to the first 50 images name one class (dog):")


# ---- in runs


def words(done) -> str:
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def constant(config_file, tmp_path):
    """Runs a config whose teacher names class 7 alone; gives what was said."""
    (tmp_path / "constant.py").write_text(SEVEN)
    teacher = {"kind": "python", "function": "constant:seven", "classes": 10, "answers": "hard"}

    def ended(**changes) -> str:
        file = config_file(**{"teacher": teacher, "student__epochs": 1, **changes})
        done = command("run", file, "--local", "--out", tmp_path / "run", cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in words(done), words(done)
        assert "kdray resume" not in words(done), "that would stop in the same place"
        return words(done)

    return ended


def books(tmp_path) -> str:
    return command("ledger", tmp_path / "run", cwd=tmp_path).stdout


def test_a_run_on_images_stops_after_its_first_round(constant, tmp_path):
    said = constant(images__count=ALIKE, images__rows=None, budget__queries=900)
    assert "all 200 answers so far are the same, class 7; a student learns nothing from them" in said
    assert "queries 200/900" not in said
    assert ": 200 of 900 spent, 700 left" in books(tmp_path)


def test_a_run_on_drawn_images_stops_within_its_first_round(constant, tmp_path):
    said = constant(images=NOISE | {"count": 4000}, pool="noise", budget__queries=9000, teacher__batch_size=100)
    assert "all 1,000 answers so far are the same, class 7; a student learns nothing from them" in said
    assert ": 1,000 of 9,000 spent, 8,000 left" in books(tmp_path)
    again = command("resume", "run", "--local", cwd=tmp_path)
    assert again.returncode == 2 and "all 1,000 answers so far are the same" in words(again), words(again)
    assert ": 1,000 of 9,000 spent, 8,000 left" in books(tmp_path)


@pytest.mark.parametrize(("first", "spent"), [(0, 600), (200, 200)], ids=("IDEAL", "warm"))
def test_a_generator_of_three_rounds_stops_before_the_last(constant, tmp_path, first, spent):
    """In the first rounds of a student that nobody taught a sound teacher may name one class. One that has been taught
    stops earlier."""
    said = constant(
        images=NOISE | {"count": 200},
        pool={"kind": "generator", "steps": 1, "batch": 10},
        select={"strategy": "random", "first": first, "rounds": 3},
        student__start="last",
        student__replay="none",
        student__steps=2,
        student__epochs=None,
        budget__queries=900,
        budget__evaluation=0,
    )
    assert "answers so far are the same" in said, said
    assert f": {spent} of 900 spent, {900 - spent} left" in books(tmp_path)


def test_a_run_with_few_images_stops_within_its_only_round_of_drawn_candidates(constant, tmp_path):
    said = constant(
        images=NOISE | {"count": 100},
        pool="noise",
        select={"strategy": "random", "rounds": 1},
        budget__queries=5000,
        teacher__batch_size=100,
    )
    assert "all 1,000 answers so far are the same, class 7; a student learns nothing from them" in said
    assert ": 1,000 of 5,000 spent, 4,000 left" in books(tmp_path)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_generator_of_large_rounds_stops_within_its_first_round(constant, tmp_path, rounds):
    constant(
        images=NOISE | {"count": 200},
        pool={"kind": "generator", "steps": 1, "batch": 10},
        select={"strategy": "random", "first": 0, "rounds": rounds},
        student__start="last",
        student__steps=2,
        student__epochs=None,
        teacher__batch_size=100,
        budget__queries=2400,
        budget__evaluation=0,
    )
    assert ": 1,000 of 2,400 spent, 1,400 left" in books(tmp_path)


AT_FIRST = """
import os

import torch


def ask(images):
    calls = os.path.getsize("calls") if os.path.exists("calls") else 0
    if calls == 2 and os.path.exists("down"):
        raise ConnectionError("no answer")
    with open("calls", "a") as file:
        file.write(".")
    return torch.full((len(images),), 1 if calls == 0 else 7)
"""


def test_a_run_whose_first_round_had_two_classes_asks_to_the_end_when_it_is_resumed_too(config_file, tmp_path):
    (tmp_path / "at_first.py").write_text(AT_FIRST)
    teacher = {"kind": "python", "function": "at_first:ask", "classes": 10, "answers": "hard", "batch_size": 200}
    file = config_file(
        teacher=teacher | {"retry": {"tries": 1}},
        images=NOISE | {"count": 100},
        pool="noise",
        select={"strategy": "random", "rounds": 1},
        budget__queries=1600,
        student__epochs=1,
    )
    (tmp_path / "down").touch()
    done = command("run", file, "--local", "--out", tmp_path / "run", cwd=tmp_path)
    assert "no answer" in words(done) and "Traceback" not in words(done)
    (tmp_path / "down").unlink()
    done = command("resume", "run", "--local", cwd=tmp_path)
    assert done.returncode == 0, words(done)
    assert ": 1,600 of 1,600 spent" in books(tmp_path)
