"""What the ledger is told of a reply, by hand."""

import pytest
import torch

from kdray.ledger.records import Reservation
from kdray.runs.outcomes import outcome_of
from kdray.teachers.answers import Answers
from kdray.teachers.faults import Fault
from kdray.teachers.pool import TeacherReply

HASHES = [b"a", b"b"]


def told(*, answers=None, fault=None, hashes=HASHES, classes=3, metered=True):
    reservation = Reservation(id="r", queries=len(hashes), teacher="t", purpose="training")
    reply = TeacherReply(key=1, answers=answers, fault=fault)
    return outcome_of(reply, reservation, hashes, classes=classes, metered=metered)


def soft(*rows: list[float]) -> Answers:
    probs = torch.tensor(rows)
    return Answers(probs=probs, labels=probs.nan_to_num().argmax(dim=1), num_classes=probs.shape[1], bad={})


def test_answers_are_kept_and_a_row_of_nan_is_rejected():
    outcome = told(answers=soft([0.2, 0.7, 0.1], [0.5, float("nan"), 0.5]))
    assert (outcome.state, list(outcome.hashes), outcome.valid()) == ("answered", HASHES, [b"a"])
    assert outcome.bad == {1: "the teacher's probabilities hold NaN or infinity"}


def test_a_label_that_is_no_class_is_rejected():
    answers = Answers(probs=None, labels=torch.tensor([2, 3]), num_classes=3, bad={})
    assert told(answers=answers).bad == {1: "the teacher answered label 3; labels lie in 0..2: check teacher.classes"}


@pytest.mark.parametrize(
    ("answers", "classes", "reason"),
    [
        (None, 3, "the teacher gave 0 answers to 2 images"),
        (soft([0.2, 0.7, 0.1]), 3, "the teacher gave 1 answer to 2 images"),
        (soft([0.2, 0.8], [0.5, 0.5]), 3, "the teacher gave answers of 2 classes, and says that it has 3"),
    ],
)
def test_answers_that_do_not_fit_are_charged_and_rejected(answers, classes, reason):
    outcome = told(answers=answers, classes=classes)
    assert (outcome.state, outcome.valid(), outcome.bad) == ("answered", [], {0: reason, 1: reason})


@pytest.mark.parametrize(
    ("kind", "metered", "state"),
    [
        ("lost", True, "uncertain"),
        ("failed", True, "uncertain"),
        ("lost", False, "released"),  # nobody bills
        ("throttled", True, "released"),
        ("unsent", True, "released"),
        ("refused", True, "released"),
    ],
)
def test_a_fault_is_charged_where_it_may_have_been_billed(kind, metered, state):
    outcome = told(fault=Fault(kind=kind, message="so it is"), metered=metered)
    assert (outcome.state, outcome.reason, outcome.declined) == (state, "so it is", False)


@pytest.mark.parametrize("kind", ["declined", "oversized"])
@pytest.mark.parametrize("hashes", [[b"a"], HASHES])
def test_what_is_declined_is_free_and_not_remembered_before_another_image_was_answered(kind, hashes):
    outcome = told(fault=Fault(kind=kind, message="no"), hashes=hashes)
    assert (outcome.state, outcome.declined, list(outcome.hashes)) == ("released", False, [])
