"""The ledger: never a query past a budget or a limit, never an answer lost, whoever asks, dies or pulls the plug."""

import hashlib
import os
import resource
import signal
import sqlite3
import struct
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from processes import processes

from kdray.errors import BudgetExceeded, LedgerError
from kdray.ledger import Ledger, Reservation, hash_images
from kdray.ledger.grants import FREE_CLAIM_S
from kdray.ledger.limits import Fill, Limits, TokenBucket, day_of, seconds_left_today
from kdray.ledger.receipt import accounts, lines, total
from kdray.ledger.records import DIED, STOPPED, AnswerRows, Failures, Grant, Order, Outcome
from kdray.teachers.answers import Answers, to_answers


def limited(**fields) -> Limits:
    """Limits of which no other than `fields` is met."""
    return Limits(**{"in_flight": 10**9, **fields})


NOON = datetime(2026, 3, 14, 12, tzinfo=UTC).timestamp()


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def keys(*numbers: int) -> list[bytes]:
    return [key(number) for number in numbers]


def hard(*labels: int) -> AnswerRows:
    return AnswerRows(labels=np.array(labels, dtype=np.int64))


def soft(rows: list[list[float]]) -> AnswerRows:
    probs = np.array(rows, dtype=np.float32)
    return AnswerRows(labels=probs.argmax(axis=1), probs=probs)


class Clock:
    """Seconds since 1970, as the test says."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextmanager
def opened(path: Path, budget: int | None = None, evaluation: int | None = None, **more):
    ledger = Ledger(path, budget, evaluation, **more)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def two(path: Path, clock: Clock, budget: int | None = 1000):
    """Two connections to one file, as two runs have them, with one clock."""
    with opened(path, budget, clock=clock) as first, opened(path, budget, clock=clock) as second:
        yield first, second


def counts(ledger: Ledger, purpose: str = "training") -> tuple[int, int, int]:
    return ledger.spent(purpose), ledger.uncertain(purpose), ledger.remaining(purpose)


def ask(ledger: Ledger, *orders: list[bytes], teacher: str = "t", owner: str = "a", **more) -> Grant:
    return ledger.grant([Order(hashes=order) for order in orders], teacher=teacher, owner=owner, **more)


def sent(grant: Grant) -> int:
    """Requests that may go."""
    return sum(part.reservation is not None for part in grant.parts)


def label_all(ledger: Ledger, grant: Grant, label: int = 0) -> None:
    """Settle all a grant took as answered."""
    parts = [part for part in grant.parts if part.reservation is not None]
    ledger.settle([answered(part.reservation, part.send, label) for part in parts])


def answered(reservation: Reservation, hashes: list[bytes], label: int = 0, bad: dict | None = None) -> Outcome:
    answers = hard(*[label] * len(hashes))
    return Outcome(reservation=reservation, state="answered", hashes=hashes, answers=answers, bad=bad or {})


def refusals(ledger: Ledger, teacher: str, *numbers: int) -> dict[int, tuple[int, str]]:
    """What the ledger remembers of images that were asked about in vain: (times paid, last reason)."""
    found = ledger.failures(teacher, keys(*numbers))
    return {n: (found[key(n)].times, found[key(n)].reason) for n in numbers if key(n) in found}


def dump(path: Path) -> list[str]:
    """Everything a SQLite file says."""
    database = sqlite3.connect(path)
    try:
        return list(database.iterdump())
    finally:
        database.close()


def started(target, *arguments):
    process = processes.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


# ---- one reservation


def test_the_ways_of_a_reservation_by_hand(path):
    with opened(path, 20) as ledger:
        first, second, third, fourth = (ledger.reserve(n, teacher="t") for n in (3, 2, 4, 5))
        assert counts(ledger) == (0, 0, 6)
        ledger.commit(first, keys(1, 2, 3), hard(7, 8, 9))
        assert counts(ledger) == (3, 0, 6)
        ledger.mark_uncertain(second)
        assert counts(ledger) == (5, 2, 6)
        ledger.release(third)
        assert counts(ledger) == (5, 2, 10)
        ledger.settle([answered(fourth, keys(4, 5, 6, 7, 8), bad={1: "NaN", 3: "NaN"})])
        assert (counts(ledger), ledger.rejected()) == ((10, 2, 10), 2)
        assert (first.queries, first.teacher, first.purpose) == (3, "t", "training")
        assert ledger.teachers() == ["t"]


def test_all_or_nothing_is_reserved(path):
    with opened(path, 10) as ledger:
        ledger.reserve(8, teacher="t")
        with pytest.raises(
            BudgetExceeded, match="3 training queries wanted, 2 of the budget are left; nothing was asked"
        ):
            ledger.reserve(3, teacher="t")
        assert ledger.remaining() == 2
        ledger.reserve(2, teacher="t")
        with pytest.raises(BudgetExceeded, match="1 training queries wanted, 0"):
            ledger.reserve(1, teacher="t")
        for n in (0, -5):
            with pytest.raises(ValueError, match="at least 1"):
                ledger.reserve(n, teacher="t")
        assert counts(ledger) == (0, 0, 0)


def test_purposes_are_counted_apart(path):
    with opened(path, 10, evaluation=4) as ledger:
        ledger.commit(ledger.reserve(4, teacher="t", purpose="evaluation"), keys(1, 2, 3, 4), hard(0, 0, 0, 0))
        with pytest.raises(BudgetExceeded, match="1 evaluation queries wanted"):
            ledger.reserve(1, teacher="t", purpose="evaluation")
        assert counts(ledger, "evaluation") == (4, 0, 0)
        assert counts(ledger) == (0, 0, 10)
        assert list(ledger.lookup("t", keys(1))) == keys(1)  # bought is bought, for whatever purpose
        with pytest.raises(BudgetExceeded, match="1 holiday queries wanted, 0"):
            ledger.reserve(1, teacher="t", purpose="holiday")
    with opened(path, 10, evaluation=6) as ledger:
        assert counts(ledger, "evaluation") == (4, 0, 2)


def test_committing_again_changes_nothing(path):
    with opened(path, 10) as ledger:
        reservation = ledger.reserve(2, teacher="t")
        ledger.commit(reservation, keys(1, 2), hard(5, 6))
        ledger.commit(reservation, keys(1, 2), hard(8, 9))
        assert counts(ledger) == (2, 0, 8)
        assert ledger.lookup("t", keys(1, 2)) == {key(1): (5, None), key(2): (6, None)}


def test_an_image_keeps_its_first_answer(path):
    with opened(path, 10) as ledger:
        ledger.commit(ledger.reserve(2, teacher="t"), keys(1, 2), hard(5, 6))
        ledger.commit(ledger.reserve(2, teacher="t"), keys(2, 3), hard(0, 7))
        assert {k: label for k, (label, _) in ledger.lookup("t", keys(1, 2, 3)).items()} == dict(
            zip(keys(1, 2, 3), (5, 6, 7), strict=True)
        )
        assert ledger.spent() == 4


@pytest.mark.parametrize("settle", ["release", "mark_uncertain", "commit"])
def test_what_is_settled_stays_settled(settle, path):
    """The same way again changes nothing, another way is refused."""
    with opened(path, 10) as ledger:
        reservation = ledger.reserve(1, teacher="t")
        ways = {
            "release": lambda: ledger.release(reservation),
            "mark_uncertain": lambda: ledger.mark_uncertain(reservation),
            "commit": lambda: ledger.commit(reservation, keys(1), hard(1)),
        }
        ways.pop(settle)()
        after = counts(ledger)
        getattr(ledger, settle)(reservation, *((keys(1), hard(1)) if settle == "commit" else ()))
        for way in ways.values():
            with pytest.raises(LedgerError, match=f"reservation {reservation.id} is .* and cannot become"):
                way()
        assert counts(ledger) == after
        assert len(ledger.lookup("t", keys(1))) == (settle == "commit")


def test_what_does_not_fit_the_reservation_is_refused(path):
    with opened(path, 10) as ledger:
        reservation = ledger.reserve(2, teacher="t")
        for wrong in ((keys(1), hard(1)), (keys(1, 2), hard(1)), (keys(1, 2, 3), hard(1, 2, 3))):
            with pytest.raises(LedgerError, match="for a reservation of 2"):
                ledger.commit(reservation, *wrong)
        stranger = Reservation(id="nobody", queries=1, teacher="t", purpose="training")
        with pytest.raises(LedgerError, match="reservation nobody is unknown"):
            ledger.commit(stranger, keys(1), hard(1))
        for row in (-1, 2):
            with pytest.raises(LedgerError, match=f"row {row} cannot be believed, but there are 2 answers"):
                ledger.settle([answered(reservation, keys(1, 2), bad={row: "NaN"})])
        for state in ("released", "uncertain"):
            with pytest.raises(LedgerError, match="row 0 cannot be believed, but there are 0 answers"):
                ledger.settle([Outcome(reservation=reservation, state=state, bad={0: "NaN"})])
        assert (counts(ledger), ledger.rejected()) == ((0, 0, 8), 0)
        assert ledger.lookup("t", keys(1, 2, 3)) == {}


def test_several_are_settled_together_or_not_at_all(path):
    with opened(path, 10) as ledger:
        first, second = ledger.reserve(2, teacher="t"), ledger.reserve(3, teacher="t")
        gone = ledger.reserve(1, teacher="t")
        ledger.release(gone)
        together = [answered(first, keys(1, 2)), Outcome(reservation=second, state="uncertain", reason="lost")]
        with pytest.raises(LedgerError, match=f"{gone.id} is released and cannot become uncertain"):
            ledger.settle([*together, Outcome(reservation=gone, state="uncertain")])
        assert (counts(ledger), ledger.lookup("t", keys(1, 2))) == ((0, 0, 5), {})
        ledger.settle(together)
        assert (counts(ledger), len(ledger.lookup("t", keys(1, 2)))) == ((5, 3, 5), 2)


def test_recovery_settles_what_its_owner_left_and_nothing_else(path):
    with opened(path, 100) as ledger:
        ledger.reserve(3, teacher="t", owner="a")
        ledger.reserve(5, teacher="t", owner="a", metered=False)
        ledger.reserve(7, teacher="t", owner="b")
        done = ledger.reserve(11, teacher="t", owner="a")
        ledger.commit(done, keys(*range(11)), hard(*range(11)))
    with opened(path) as ledger:
        assert ledger.remaining() == 100 - 3 - 5 - 7 - 11
        assert ledger.recover("a") == (3, 5)
        assert counts(ledger) == (14, 3, 100 - 3 - 7 - 11)
        assert (ledger.spent(owner="a"), ledger.spent(owner="b"), ledger.uncertain(owner="a")) == (14, 0, 3)
        assert ledger.recover("a") == (0, 0)
        assert ledger.recover("b") == (7, 0)
        assert counts(ledger) == (21, 10, 79)


def test_what_a_round_was_charged(path):
    with opened(path, 100, evaluation=100) as ledger:
        ledger.commit(ledger.reserve(2, teacher="t", round=1, owner="a"), keys(1, 2), hard(0, 0))
        ledger.mark_uncertain(ledger.reserve(3, teacher="t", round=1, owner="a"))
        ledger.release(ledger.reserve(5, teacher="t", round=1, owner="a"))
        ledger.reserve(7, teacher="t", round=1, owner="a")
        ledger.mark_uncertain(ledger.reserve(11, teacher="t", round=2, owner="a"))
        ledger.mark_uncertain(ledger.reserve(13, teacher="t", round=1, owner="b"))
        ledger.mark_uncertain(ledger.reserve(17, teacher="t", round=1, owner="a", purpose="evaluation"))
        partly = ledger.reserve(4, teacher="t", round=1, owner="a")
        ledger.settle([answered(partly, keys(3, 4, 5, 6), bad={0: "NaN"})])
        assert ledger.spent_in_round(1, owner="a") == (2 + 3, 3 + 1)
        assert ledger.spent_in_round(2, owner="a") == (0, 11)
        assert ledger.spent_in_round(1, owner="b") == (0, 13)
        assert ledger.spent_in_round(1, "evaluation", owner="a") == (0, 17)
        assert ledger.spent_in_round(3, owner="a") == (0, 0)


# ---- caps of owners, and of the whole file


def test_an_owner_has_its_own_cap_and_the_files(path):
    with opened(path, 10) as ledger:
        ledger.open_account("a", {"training": 6, "evaluation": 2})
        ledger.open_account("b", {"training": 8})
        ledger.reserve(5, teacher="t", owner="a")
        assert [ledger.remaining(owner=name) for name in ("a", "b", "c", "")] == [1, 5, 5, 5]
        with pytest.raises(BudgetExceeded, match="2 training queries wanted, 1"):
            ledger.reserve(2, teacher="t", owner="a")
        assert [len(part.send) for part in ask(ledger, keys(1, 2), owner="a").parts] == [1]
        cut = ask(ledger, keys(11, 12, 13), keys(14, 15, 16), keys(17), owner="b")
        assert ([len(part.send) for part in cut.parts], cut.blocked) == ([3, 1], "budget")
        assert cut.parts[1].left == keys(15, 16)
        assert [ledger.remaining(owner=name) for name in ("a", "b", "c", "")] == [0, 0, 0, 0]
        # No cap of its own, and none of the file's: nobody has allowed anything.
        assert ledger.remaining("evaluation", owner="b") == 0
        assert ledger.remaining("evaluation", owner="a") == 2
        assert ledger.remaining("evaluation") == 0


def test_queries_for_an_estimate_have_their_own_cap_and_count_against_the_files(path):
    ledger = Ledger(path, budget=10)
    ledger.open_account("a", {"training": 6, "estimate": 4})
    first = ledger.reserve(4, teacher="t", purpose="estimate", owner="a")
    with pytest.raises(BudgetExceeded):
        ledger.reserve(1, teacher="t", purpose="estimate", owner="a")
    assert ledger.remaining("training") == 6 and ledger.remaining("training", "a") == 6
    ledger.mark_uncertain(first)
    assert ledger.spent("estimate", "a") == 4 and ledger.spent("training", "a") == 0
    assert ledger.spent("training") == 4  # of the file
    ledger.open_account("b", {"training": 9, "estimate": 9})
    assert ledger.remaining("estimate", "b") == ledger.remaining("training", "b") == 6
    ledger.release(ledger.reserve(5, teacher="t", purpose="training", owner="b"))
    ledger.mark_uncertain(ledger.reserve(6, teacher="t", purpose="estimate", owner="b"))
    assert ledger.remaining("training", "a") == 0
    ledger.close()


def test_an_owners_cap_stays_as_it_was_set(path):
    with opened(path) as ledger:
        ledger.open_account("a", {"training": 6, "evaluation": 2})
        ledger.open_account("a", {"training": 6, "evaluation": 3})
        with pytest.raises(LedgerError, match=r"a budget of 6 queries, not 7; use another ledger or run directory$"):
            ledger.open_account("a", {"evaluation": 9, "training": 7})
        assert (ledger.remaining(owner="a"), ledger.remaining("evaluation", owner="a")) == (6, 3)


def test_the_cap_of_the_file_can_be_changed_even_below_what_is_spent(path):
    with opened(path, 10) as ledger:
        ledger.mark_uncertain(ledger.reserve(8, teacher="t"))
        ledger.change_budget(20)
        assert counts(ledger) == (8, 8, 12)
        ledger.change_budget(5)
        assert counts(ledger) == (8, 8, 0)
        nothing = ask(ledger, keys(1))
        assert (sent(nothing), nothing.blocked) == (0, "budget")
        with pytest.raises(LedgerError, match="more than a ledger can count"):
            ledger.change_budget(10**20)
        assert counts(ledger) == (8, 8, 0)
    with pytest.raises(LedgerError, match=r"5 queries, not 10; .*, set ledger\.queries to 5, or change it with 'kdray"):
        Ledger(path, 10)
    with pytest.raises(LedgerError, match="more than a ledger can count"):
        Ledger(path.with_name("other.sqlite"), 10**20)


# ---- answers


@given(arrays.arrays(np.uint32, st.tuples(st.integers(1, 4), st.integers(1, 6))))
@examples(40)
def test_answers_come_back_to_the_bit(bits):
    """Any 32 bits: denormals, minus zero, infinities and every kind of NaN."""
    ledger = Ledger(":memory:", 10)
    count, classes = bits.shape
    probs = torch.from_numpy(bits.view(np.float32))
    answers = Answers(probs=probs, labels=torch.arange(count) % classes, num_classes=classes)
    ledger.commit(ledger.reserve(count, teacher="t"), keys(*range(count)), answers.rows())
    found = ledger.lookup("t", keys(*range(count)))
    assert [found[k][0] for k in keys(*range(count))] == [k % classes for k in range(count)]
    assert [found[k][1].tobytes() for k in keys(*range(count))] == [row.tobytes() for row in bits]
    assert all(found[k][1].dtype == np.float32 for k in found)
    back = to_answers([found[k] for k in keys(*range(count))], classes)
    assert back.probs.numpy().tobytes() == bits.tobytes()
    ledger.close()


def test_answers_may_lie_in_memory_in_any_way(path):
    wide = torch.rand(6, 3, dtype=torch.float64)
    forms = {"across": wide.t().contiguous().t(), "double": wide, "some": torch.rand(12, 6)[::2, ::2]}
    with opened(path, 100) as ledger:
        for name, probs in forms.items():
            answers = Answers(probs=probs, labels=torch.arange(6), num_classes=3)
            ledger.commit(ledger.reserve(6, teacher=name), keys(*range(6)), answers.rows())
            found = ledger.lookup(name, keys(*range(6)))
            assert [found[key(k)][1].tolist() for k in range(6)] == probs.float().tolist()


def test_a_teacher_sees_its_own_answers_alone(path):
    with opened(path, 10) as ledger:
        ledger.commit(ledger.reserve(1, teacher="one", owner="a"), keys(1), hard(4))
        ledger.commit(ledger.reserve(1, teacher="two", owner="b"), keys(1), hard(5))
        assert ledger.lookup("one", keys(1)) == {key(1): (4, None)}
        assert ledger.lookup("two", keys(1, 1, 1)) == {key(1): (5, None)}
        assert ledger.lookup("three", keys(1)) == {}
        assert ledger.lookup("one", []) == {}
        assert ledger.teachers() == ["one", "two"]
        assert (ledger.teachers("a"), ledger.teachers("b"), ledger.teachers("c")) == (["one"], ["two"], [])


def test_more_answers_are_looked_up_than_sqlite_takes_parameters(path):
    with opened(path, 3000) as ledger:
        rows = torch.rand(2600, 4).softmax(dim=1)
        ledger.commit(ledger.reserve(2600, teacher="t"), keys(*range(2600)), soft(rows.tolist()))
        found = ledger.lookup("t", iter(keys(*range(3000))))
        assert len(found) == 2600
        assert torch.equal(to_answers([found[key(k)] for k in range(2600)], 4).probs, rows)
        known = ask(ledger, keys(*range(3000))).parts[0]
        assert (known.known, known.send) == (keys(*range(2600)), keys(*range(2600, 3000)))


def test_rows_become_answers():
    assert (to_answers([], 3).probs, len(to_answers([], 3)), to_answers([], 3).num_classes) == (None, 0, 3)
    labels = to_answers([(2, None), (0, None)], 3)
    assert (labels.probs, labels.labels.tolist()) == (None, [2, 0])


def test_a_hash_tells_pixels_and_shapes_apart():
    data = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    first = hash_images(data)
    assert [len(one) for one in first] == [16, 16]
    assert first[0] != first[1]
    assert hash_images(data.clone()) == first
    assert hash_images(data[1:]) == first[1:]
    # The same bytes in another shape are another image.
    assert len({hash_images(data.view(2, *shape))[0] for shape in [(1, 3, 4), (1, 4, 3), (3, 4, 1), (3, 2, 2)]}) == 4
    # The same image lies differently in memory.
    assert hash_images(data.transpose(2, 3).contiguous().transpose(2, 3)) == first
    rgb = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert hash_images(rgb.contiguous(memory_format=torch.channels_last)) == hash_images(rgb)
    assert hash_images(data[:0]) == []
    # The format on disk: shape as three int64, then the pixels.
    by_hand = struct.pack("<3q", 1, 3, 4) + bytes(range(12))
    assert first[0] == hashlib.blake2b(by_hand, digest_size=16).digest()


@given(st.integers(0, 11), st.integers(1, 255))
def test_one_pixel_makes_another_hash(position, difference):
    data = torch.full((2, 1, 3, 4), 7, dtype=torch.uint8)
    data[1].view(-1)[position] = (7 + difference) % 256
    assert len(set(hash_images(data))) == 2


# ---- answers that make no sense, and images that cost nothing


def test_refused_answers_are_charged_and_remembered(path):
    with opened(path, 100) as ledger:
        tries = [ledger.reserve(3, teacher="t", owner="a") for _ in range(3)]
        ledger.settle([answered(tries[0], keys(1, 2, 3), bad={0: "zebra", 1: "zebra"})])
        ledger.settle([answered(tries[2], keys(1, 4, 5), bad={0: "ant"})])
        # The reply to the first call was lost. What counts is what it said.
        ledger.settle([answered(tries[2], keys(1, 4, 5), bad={0: "ant"})])
        ledger.settle([answered(tries[2], keys(1, 4, 5), bad={1: "bee"})])
        assert refusals(ledger, "t", 1, 2, 3, 4) == {1: (2, "ant"), 2: (1, "zebra")}
        assert list(ledger.lookup("t", keys(1, 2, 3, 4, 5))) == sorted(keys(3, 4, 5))
        assert (ledger.spent(), ledger.rejected(), ledger.rejected(owner="a"), ledger.uncertain()) == (6, 3, 3, 0)
        assert refusals(ledger, "u", 1, 2) == {}
        # One that is believed at last has no failures any more.
        ledger.settle([answered(tries[1], keys(1, 6, 7), bad={1: "moth"})])
        assert refusals(ledger, "t", 1, 2, 6) == {2: (1, "zebra"), 6: (1, "moth")}
        assert (ledger.spent(), ledger.rejected()) == (9, 4)


def test_the_last_reason_is_the_one_of_the_last_request(path):
    with opened(path, 100) as ledger:
        for reason in ("b", "c", "a"):
            ledger.settle([answered(ledger.reserve(1, teacher="t"), keys(1), bad={0: reason})])
        assert refusals(ledger, "t", 1) == {1: (3, "a")}


def test_what_came_of_each_image_by_hand(path, clock):
    """1, 2 and 6 are lost together, then 1 alone; 3 dies with its run; 4 was stopped; 5 is declined; 6 is answered."""
    with opened(path, 100, clock=clock) as ledger:

        def lose(*numbers: int, reason: str) -> None:
            (part,) = ask(ledger, keys(*numbers)).parts
            ledger.settle([Outcome(reservation=part.reservation, state="uncertain", reason=reason)])

        lose(1, 2, 6, reason="500")
        lose(1, reason="a reset")
        lose(4, reason=STOPPED)
        ask(ledger, keys(3), owner="dead")
        ledger.recover("dead")
        (part,) = ask(ledger, keys(5)).parts
        said = {"state": "released", "hashes": keys(5), "reason": "too dark", "declined": True}
        ledger.settle([Outcome(reservation=part.reservation, **said)])
        assert not ledger.answers_of("t")
        label_all(ledger, ask(ledger, keys(6)))
        assert ledger.answers_of("t") and not ledger.answers_of("u")
        assert ledger.failures("t", keys(*range(1, 8))) == {
            key(1): Failures(times=2, own=1, reason="a reset", sent=True),
            key(2): Failures(times=1, own=0, reason="500", sent=True),
            key(3): Failures(times=1, own=0, reason=DIED, sent=True),
            key(4): Failures(times=0, own=0, reason=STOPPED, sent=True),
            key(5): Failures(times=0, own=0, reason="too dark", declined=True),
        }
        assert ledger.failures("u", keys(1)) == {}
        assert (ledger.knows("a"), ledger.knows("nobody")) == (True, False)
        assert (ledger.spent(), ledger.uncertain()) == (7, 6)
        with pytest.raises(LedgerError, match="declined images for a reservation"):
            ledger.settle([Outcome(reservation=part.reservation, **said | {"hashes": ()})])


def test_free_images_are_noted_once_for_a_round(path):
    with opened(path, 10) as ledger:
        place = {"purpose": "training", "owner": "a"}
        ledger.record_hits("t", 5, round=1, **place)
        ledger.record_hits("t", 7, round=1, **place)  # resumed, and counted again
        ledger.record_hits("t", 2, round=2, **place)
        ledger.record_hits("u", 4, round=1, **place)
        ledger.record_hits("t", 9, round=1, purpose="training", owner="b")
        ledger.record_hits("t", 0, round=3, **place)
        assert [(line.teacher, line.round, line.hits) for line in lines(ledger, "a")] == [
            ("t", 1, 7), ("u", 1, 4), ("t", 2, 2),
        ]  # fmt: skip
        assert total(lines(ledger)).hits == 7 + 2 + 4 + 9
        assert counts(ledger) == (0, 0, 10)


# ---- grants and claims


def test_two_owners_pay_once_for_one_image(path, clock):
    with two(path, clock) as (first, second):
        mine = ask(first, keys(1, 2, 3))
        assert (mine.blocked, mine.parts[0].send) == (None, keys(1, 2, 3))
        theirs = ask(second, keys(2, 3, 4), owner="b")
        assert (theirs.parts[0].busy, theirs.parts[0].send, theirs.blocked) == (keys(2, 3), keys(4), None)
        waiting = ask(second, keys(3, 2), owner="b")
        assert (waiting.parts[0].busy, waiting.parts[0].reservation, waiting.blocked) == (keys(3, 2), None, "busy")
        assert waiting.wait_s > 0
        label_all(first, mine, 5)
        free = ask(second, keys(3, 2), owner="b")
        assert (free.parts[0].known, free.parts[0].busy, free.blocked) == (keys(3, 2), [], None)
        assert second.lookup("t", keys(2, 3)) == {key(2): (5, None), key(3): (5, None)}
        label_all(second, theirs)
        assert (first.spent(owner="a"), first.spent(owner="b"), first.spent()) == (3, 1, 4)


@pytest.mark.parametrize("way", ["released", "uncertain", "recovered", "rejected"])
def test_an_image_without_an_answer_may_be_asked_again_by_anybody(way, path, clock):
    with two(path, clock) as (first, second):
        mine = ask(first, keys(1)).parts[0]
        assert ask(second, keys(1), owner="b").blocked == "busy"
        if way == "recovered":
            first.recover("a")
        elif way == "rejected":
            first.settle([answered(mine.reservation, keys(1), bad={0: "NaN"})])
        else:
            first.settle([Outcome(reservation=mine.reservation, state=way)])
        assert ask(second, keys(1), owner="b").parts[0].send == keys(1)


def test_claims_of_a_run_that_died_end_with_their_lease(path, clock):
    with two(path, clock) as (first, second):
        late = ask(first, keys(1, 2), lease_s=30).parts[0]
        clock.now += 29.9
        assert ask(second, keys(1, 2), owner="b").blocked == "busy"
        clock.now += 0.1
        theirs = ask(second, keys(1), owner="b", lease_s=30)
        assert theirs.parts[0].send == keys(1)
        # The first was only slow. What it paid for is kept, and the claim of the other is not its to end.
        first.settle([Outcome(reservation=late.reservation, state="uncertain")])
        assert ask(first, keys(1)).blocked == "busy"
        label_all(second, theirs, 7)
        assert ask(first, keys(1)).parts[0].known == keys(1)
        assert (first.spent(owner="a"), first.spent(owner="b")) == (2, 1)


def test_a_slow_answer_that_comes_after_another_is_charged_and_not_used(path, clock):
    with two(path, clock) as (first, second):
        late = ask(first, keys(1), lease_s=30)
        clock.now += 30
        label_all(second, ask(second, keys(1), owner="b"), 3)
        label_all(first, late, 4)
        assert first.lookup("t", keys(1)) == {key(1): (3, None)}
        assert first.spent() == 2


def test_an_image_on_its_way_twice_is_known_once_one_answer_is_there(path, clock):
    with two(path, clock) as (first, second):
        ask(first, keys(1, 2))
        second.commit(second.reserve(1, teacher="t", owner="b"), keys(1), hard(3))
        part = ask(second, keys(1, 2), owner="b").parts[0]
        assert (part.known, part.busy, part.send) == (keys(1), keys(2), [])


def test_a_teacher_that_cannot_bill_is_asked_once_too_but_nobody_waits_long_for_a_dead_run(path, clock):
    with two(path, clock) as (first, second):
        assert sent(ask(first, keys(1), metered=False)) == 1
        assert ask(second, keys(1), owner="b", metered=False).blocked == "busy"
        clock.now += FREE_CLAIM_S
        assert sent(ask(second, keys(1), owner="b", metered=False)) == 1
        assert first.recover("a") == (0, 1)


def test_another_teachers_claims_and_answers_are_its_own(path, clock):
    with opened(path, 100, clock=clock) as ledger:
        label_all(ledger, ask(ledger, keys(1)))
        ask(ledger, keys(2))
        other = ask(ledger, keys(1, 2), teacher="u").parts[0]
        assert (other.send, other.known, other.busy) == (keys(1, 2), [], [])


def test_orders_that_share_images_pay_for_them_once(path, clock):
    with opened(path, 100, clock=clock) as ledger:
        grant = ask(ledger, keys(1, 2), keys(2, 3), keys(1, 3))
        assert [part.send for part in grant.parts] == [keys(1, 2), keys(3), []]
        assert [part.busy for part in grant.parts] == [[], keys(2), keys(1, 3)]
        assert (grant.blocked, ledger.remaining()) == (None, 97)
        assert ask(ledger) == Grant(parts=[])


def test_a_budget_is_cut_to_the_last_query(path, clock):
    with opened(path, 5, clock=clock) as ledger:
        grant = ask(ledger, keys(1, 2, 3), keys(4, 5, 6, 7), keys(8))
        assert [(part.send, part.left) for part in grant.parts] == [(keys(1, 2, 3), []), (keys(4, 5), keys(6, 7))]
        assert grant.blocked == "budget"
        assert [part.reservation.queries for part in grant.parts] == [3, 2]
        none = ask(ledger, keys(9))
        assert (sent(none), none.blocked) == (0, "budget")
        ledger.release(grant.parts[0].reservation)
        exact = ask(ledger, keys(9, 10, 11))
        assert (exact.parts[0].send, exact.blocked) == (keys(9, 10, 11), None)  # to the last one, and none refused
        assert (ledger.remaining(), ledger.spent()) == (0, 0)


def test_a_grant_asked_for_again_by_its_name_takes_nothing_twice(path, clock):
    with two(path, clock, 10) as (first, second):
        again = {"request": "r-1", "limits": limited(queries_per_day=10, in_flight=2)}
        lost = ask(first, keys(1, 2, 3), keys(4), **again)
        came = ask(second, keys(1, 2, 3), keys(4), **again)
        assert [part.send for part in came.parts] == [part.send for part in lost.parts] == [keys(1, 2, 3), keys(4)]
        assert (first.remaining(), came.blocked) == (6, None)
        with pytest.raises(LedgerError, match="is released and cannot become"):
            first.settle([answered(lost.parts[0].reservation, keys(1, 2, 3))])
        label_all(first, came)
        assert counts(first) == (4, 0, 6)
        (line,) = lines(first)
        assert (line.requests, line.answered, line.returned, line.retries) == (2, 4, 4, 0)
        # Only what is open is taken back: what was answered stays.
        third = ask(second, keys(1, 2, 3), **again)
        assert (third.parts[0].known, counts(first)) == (keys(1, 2, 3), (4, 0, 6))
        assert ask(first, keys(5, 6, 7, 8, 9, 10), limits=again["limits"]).blocked is None  # six of the day are left


def test_the_name_of_a_request_concerns_nobody_elses(path, clock):
    with opened(path, 10, clock=clock) as ledger:
        ledger.reserve(1, teacher="t")
        ask(ledger, keys(1), request="r-1")
        ask(ledger, keys(2), request="r-2")
        ask(ledger, keys(3))
        assert ledger.remaining() == 6


# ---- limits


def settle_and_count(ledger: Ledger, grant: Grant) -> int:
    label_all(ledger, grant)
    return sent(grant)


def test_the_bucket_by_hand():
    bucket = TokenBucket(10, 5)
    assert bucket.fill(None, 100.0) == Fill(5, 100.0)  # never used: full
    assert bucket.fill(Fill(0.0, 100.0), 100.3) == Fill(pytest.approx(3), 100.3)
    assert bucket.fill(Fill(0.0, 100.0), 200.0) == Fill(5, 200.0)  # never more than full
    assert bucket.fill(Fill(2.0, 100.0), 40.0) == Fill(2, 40.0)  # a clock set back adds none, and holds nothing up
    assert [bucket.tokens(Fill(level, 0)) for level in (0.0, 0.99, 1.0, 1 - 1e-12, 4.7)] == [0, 0, 1, 1, 4]
    assert bucket.wait_s(Fill(0.0, 7.0), 7.0) == pytest.approx(0.1, abs=1e-5)
    assert bucket.wait_s(Fill(0.75, 7.0), 7.0) == pytest.approx(0.025, abs=1e-5)
    assert bucket.wait_s(Fill(3.0, 7.0), 7.0) == 0


def test_after_a_pause_the_refill_comes_one_slack_late():
    bucket = TokenBucket(10, 6)
    assert bucket.slack_s == 0.2
    after = bucket.take(Fill(6.0, 100.0), 2, 100.0)
    assert after == Fill(4.0, 100.2)
    assert bucket.fill(after, 100.1) == after  # nothing comes in for a fifth of a second
    later = bucket.take(bucket.fill(after, 100.1), 4, 100.1)  # it was not full in between: no second delay
    assert later == Fill(0.0, 100.2)
    assert bucket.wait_s(later, 100.1) == pytest.approx(0.2, abs=1e-5)
    assert bucket.fill(later, 100.5) == Fill(pytest.approx(3), 100.5)
    # Four, and two that came in within the last fifth of a second: full since this moment.
    assert bucket.take(Fill(4.0, 100.5), 3, 100.5) == Fill(1.0, pytest.approx(100.5))
    assert bucket.take(Fill(5.0, 100.6), 3, 100.6) == Fill(2.0, pytest.approx(100.7))  # full for a tenth of a second
    # One of six went, so it is full again a tenth of a second later, and another twentieth passes.
    assert bucket.take(Fill(5.0, 100.2), 1, 100.15) == Fill(4.0, pytest.approx(100.25))
    assert bucket.take(Fill(6.0, 100.0), 0, 100.0) == Fill(6.0, 100.0)
    assert [TokenBucket(10, burst).slack_s for burst in (1, 2, 5, 100)] == [0, 0, 0.15, 0.25]
    assert TokenBucket(10, 1).take(Fill(1.0, 100.0), 1, 100.0) == Fill(0.0, 100.0)  # one at a time is never late


@given(
    st.sampled_from([(10.0, 5), (10.0, 2), (100.0, 7), (0.5, 3), (3.0, 1)]),
    st.lists(
        st.tuples(st.integers(1, 8), st.floats(0, 3), st.lists(st.floats(0, 1), min_size=8, max_size=8)), max_size=50
    ),
)
@examples(300)
def test_what_arrives_keeps_to_the_rate_though_requests_are_held_up(kind, steps):
    """Each request is on its way for anything up to the slack; pauses are in units of a token."""
    rate, burst = kind
    bucket, fill, now, arrivals = TokenBucket(rate, burst), None, 1000.0, []
    for wanted, pause, delays in steps:
        fill = bucket.fill(fill, now)
        going = min(wanted, bucket.tokens(fill))
        fill = bucket.take(fill, going, now)
        arrivals += [now - 1000.0 + delay * bucket.slack_s for delay in delays[:going]]
        now += pause / rate
    assert within(sorted(arrivals), rate, burst)


def test_the_buckets_in_force():
    assert limited().buckets() == {}
    assert limited(requests_per_s=10, burst=5).buckets() == {"second": TokenBucket(10, 5)}
    both = limited(requests_per_s=2, requests_per_minute=30, burst=3).buckets()
    assert both == {"second": TokenBucket(2, 3), "minute": TokenBucket(0.5, 3)}


def within(times: list[float], rate: float, burst: int) -> bool:
    """Whether any t seconds hold at most burst + rate t of `times`, in ascending order."""
    times = np.array(times)
    many = np.arange(len(times))
    # From the i-th to the j-th, both counted.
    return bool((many[None, :] - many[:, None] + 1 <= burst + rate * (times[None, :] - times[:, None]) + 1e-4)[
        np.triu_indices(len(times))
    ].all())  # fmt: skip


def test_the_check_of_the_windows_can_fail():
    assert within([0.0] * 5 + [0.1], 10, 5)
    assert not within([0.0] * 6, 10, 5)
    assert not within([0.0] * 5 + [0.1, 0.1], 10, 5)
    assert not within([0.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.05], 10, 5)


@given(st.lists(st.tuples(st.integers(1, 7), st.sampled_from([0.0, 0.01, 0.1, 0.37, 1.0, -1.0])), max_size=60))
@examples(30)
def test_no_window_holds_more_than_the_rate_and_the_burst(steps):
    """Whoever asks, however often, and whether they wait as told (-1) or not."""
    clock, limits, times = Clock(), limited(requests_per_s=10, burst=5), []
    ledger = Ledger(":memory:", 10_000, clock=clock)
    for number, (wanted, pause) in enumerate(steps):
        orders = [[key(100 * number + k)] for k in range(wanted)]
        grant = ask(ledger, *orders, owner="ab"[number % 2], limits=limits)
        times += [clock.now - NOON] * sent(grant)
        assert grant.blocked == (None if sent(grant) == wanted else "rate")
        assert 0 <= grant.wait_s <= 0.15 + 0.1 + 1e-5  # one slack, and a token
        if grant.blocked:
            now = clock.now
            if grant.wait_s > 0.001:  # not a moment sooner
                clock.now += 0.9 * grant.wait_s
                assert sent(ask(ledger, [key(100 * number + 99)], limits=limits)) == 0
            clock.now = now + grant.wait_s
            assert pause >= 0 or sent(ask(ledger, [key(100 * number + 98)], limits=limits)) == 1
            times += [clock.now - NOON] * (pause < 0)
        clock.now += max(pause, 0.0)
    assert within(times, 10, 5)
    ledger.close()


@pytest.mark.parametrize("poll", [None, 0.07, 0.3], ids=["as told", "often", "seldom"])
def test_ten_a_second_in_the_long_run_over_two_runs(poll, path, clock):
    limits, times, number = limited(requests_per_s=10, burst=5), [], 0
    with two(path, clock, 10_000) as ledgers:
        while clock.now < NOON + 20:
            orders = [[key(number + k)] for k in range(8)]
            grant = ask(ledgers[number % 2], *orders, owner="ab"[number % 2], limits=limits)
            times += [clock.now - NOON] * sent(grant)
            number += 9
            clock.now += poll or grant.wait_s
    assert times.count(0.0) == 5
    assert within(times, 10, 5)
    assert len(times) / times[-1] >= 9.5


def test_a_minute_holds_no_more_than_it_should(path, clock):
    slow, both = limited(requests_per_minute=30, burst=2), limited(requests_per_minute=30, requests_per_s=1, burst=2)
    with opened(path, 10_000, clock=clock) as ledger:
        for teacher, limits, rates in (("t", slow, [0.5]), ("u", both, [0.5, 1])):
            begin, times = clock.now, []
            while clock.now < begin + 120:
                number = int(clock.now * 1000)
                grant = ask(ledger, *[[key(number + k)] for k in range(4)], teacher=teacher, limits=limits)
                times += [clock.now - begin] * sent(grant)
                assert grant.blocked == "rate"
                clock.now += grant.wait_s
            assert all(within(times, rate, 2) for rate in rates)
            assert len(times) == pytest.approx(62, abs=1)
    fast = limited(requests_per_minute=600, requests_per_s=1, burst=1)  # here the seconds are the tighter ones
    with opened(path, 10_000, clock=clock) as ledger:
        assert sent(ask(ledger, keys(1), teacher="v", limits=fast)) == 1
        clock.now += 0.5
        assert sent(ask(ledger, keys(2), teacher="v", limits=fast)) == 0
        clock.now += 0.5
        assert sent(ask(ledger, keys(2), teacher="v", limits=fast)) == 1


def test_what_is_known_or_refused_uses_no_token(path, clock):
    limits = limited(requests_per_s=1, burst=2)
    with opened(path, 3, clock=clock) as ledger:
        label_all(ledger, ask(ledger, keys(1)))
        free = ask(ledger, keys(1), keys(1), keys(2), keys(3), limits=limits)
        assert ([len(part.known) for part in free.parts], sent(free), free.blocked) == ([1, 1, 0, 0], 2, None)
        clock.now += 5
        assert ask(ledger, keys(4), limits=limits).blocked == "budget"
        ledger.change_budget(10)
        assert sent(ask(ledger, keys(4), keys(5), keys(6), limits=limits)) == 2


def test_a_restarted_run_does_not_get_its_burst_again(path, clock):
    limits = limited(requests_per_s=1, burst=3)
    with opened(path, 100, clock=clock) as ledger:
        assert sent(ask(ledger, *[keys(k) for k in range(5)], limits=limits)) == 3
    with opened(path, 100, clock=clock) as ledger:
        assert sent(ask(ledger, keys(9), owner="b", limits=limits)) == 0
        assert sent(ask(ledger, keys(9), teacher="u", limits=limits)) == 1  # another teacher's bucket
        clock.now += 1.25
        assert sent(ask(ledger, keys(9), keys(10), limits=limits)) == 1


def test_a_clock_that_is_set_back_gives_nothing_and_stops_nothing(path, clock):
    limits = limited(requests_per_s=10, burst=5)
    with opened(path, 1000, clock=clock) as ledger:
        assert sent(ask(ledger, *[keys(k) for k in range(9)], limits=limits)) == 5
        clock.now -= 3600
        told = ask(ledger, keys(20), limits=limits)
        assert (sent(told), told.blocked) == (0, "rate")
        clock.now += told.wait_s
        assert sent(ask(ledger, keys(21), keys(22), limits=limits)) == 1
        clock.now -= 86_400
        assert sent(ask(ledger, keys(23), limits=limits)) == 0
        clock.now += 1000
        assert sent(ask(ledger, *[keys(30 + k) for k in range(9)], limits=limits)) == 5


@pytest.mark.parametrize("way", ["answered", "uncertain", "released", "recovered", "lease"])
def test_requests_in_flight_are_counted_over_all_runs(way, path, clock):
    limits = limited(in_flight=3)
    with two(path, clock) as (first, second):
        mine = ask(first, keys(1, 2), keys(3), limits=limits, lease_s=60)
        assert (sent(mine), mine.blocked) == (2, None)
        clock.now += 1
        theirs = ask(second, keys(11), keys(12), owner="b", limits=limits, lease_s=600)
        assert (sent(theirs), theirs.blocked, theirs.wait_s > 0) == (1, "in flight", True)
        assert sent(ask(first, keys(4), limits=limits)) == 0
        assert sent(ask(first, keys(4), teacher="u", limits=limits)) == 1  # another teacher has its own
        if way == "answered":
            label_all(first, mine)
        elif way == "recovered":
            first.recover("a")
        elif way == "lease":
            clock.now += 58.9
            assert sent(ask(second, keys(21), owner="b", limits=limits)) == 0
            clock.now += 0.1
        else:
            first.settle([Outcome(reservation=part.reservation, state=way) for part in mine.parts])
        after = ask(second, keys(21), keys(22), keys(23), owner="b", limits=limits)
        assert (sent(after), after.blocked) == (2, "in flight")


def test_fewer_in_flight_than_are_on_their_way(path, clock):
    with opened(path, 100, clock=clock) as ledger:
        ask(ledger, *[keys(k) for k in range(5)])
        none = ask(ledger, keys(10), limits=limited(in_flight=2))
        assert (sent(none), none.blocked) == (0, "in flight")


def test_a_day_ends_at_midnight_utc(path):
    clock, limits = Clock(datetime(2026, 3, 14, 23, 59, 50, tzinfo=UTC).timestamp()), limited(queries_per_day=10)
    with two(path, clock) as (first, second):
        mine = ask(first, keys(*range(6)), limits=limits)
        assert mine.blocked is None
        cut = ask(second, keys(11, 12), keys(13, 14, 15), keys(16), owner="b", limits=limits)
        assert [(len(part.send), len(part.left)) for part in cut.parts] == [(2, 0), (2, 1)]
        assert (cut.blocked, cut.wait_s) == ("day", 10)
        # What was given back can be asked today, what was lost cannot.
        first.settle([Outcome(reservation=mine.parts[0].reservation, state="released")])
        second.settle([Outcome(reservation=cut.parts[0].reservation, state="uncertain")])
        again = ask(first, keys(*range(20, 28)), limits=limits)
        assert ([len(part.send) for part in again.parts], again.blocked) == ([6], "day")
        assert ask(first, keys(30), teacher="u", limits=limits).blocked is None
        clock.now += 9.9
        assert (sent(ask(first, keys(30), limits=limits)), ask(first, keys(30), limits=limits).blocked) == (0, "day")
        clock.now += 0.1
        label_all(first, ask(first, keys(*range(40, 47)), limits=limits))
        # Given back today, but of yesterday's.
        first.settle([Outcome(reservation=again.parts[0].reservation, state="released")])
        last = ask(first, keys(*range(50, 60)), limits=limits)
        assert ([len(part.send) for part in last.parts], last.blocked, last.wait_s) == ([3], "day", 86_400)


def test_a_day_counts_runs_without_a_limit_too(path, clock):
    limits = limited(queries_per_day=10)
    with two(path, clock) as (free, bound):
        mine = ask(free, keys(*range(7)))
        free.reserve(1, teacher="t")
        assert len(ask(bound, keys(*range(20, 30)), owner="b", limits=limits).parts[0].send) == 2
        free.release(mine.parts[0].reservation)
        assert len(ask(bound, keys(*range(30, 40)), owner="b", limits=limits).parts[0].send) == 7


def test_the_tighter_of_day_and_budget_is_named(path, clock):
    with opened(path, 8, clock=clock) as ledger:
        assert ask(ledger, keys(*range(20)), teacher="u", limits=limited(queries_per_day=3)).blocked == "day"
        assert ask(ledger, keys(*range(20)), limits=limited(queries_per_day=5)).blocked == "budget"  # both end here
        assert ask(ledger, keys(30), limits=limited(queries_per_day=5)).blocked == "budget"
        ledger.change_budget(20)
        assert ask(ledger, keys(30), limits=limited(queries_per_day=5)).blocked == "day"
        assert ask(ledger, keys(*range(20, 40)), limits=limited(queries_per_day=100)).blocked == "budget"
        assert ask(ledger, keys(50), limits=limited(queries_per_day=100)).blocked == "budget"


def test_days_by_hand():
    midnight = datetime(2026, 3, 15, tzinfo=UTC).timestamp()
    assert (day_of(midnight - 0.5), day_of(midnight)) == ("2026-03-14", "2026-03-15")
    assert (seconds_left_today(midnight - 0.5), seconds_left_today(midnight)) == (0.5, 86_400)


def test_a_teacher_at_rest_is_asked_by_nobody(path, clock):
    with two(path, clock) as (first, second):
        first.rest("t", 30)
        second.rest("t", 10)  # does not shorten it
        for ledger, owner in ((first, "a"), (second, "b")):
            told = ask(ledger, keys(1), owner=owner, limits=limited())
            assert (sent(told), told.blocked, told.wait_s) == (0, "resting", 30)
        assert ask(second, keys(1), owner="b").blocked == "resting"  # also by one who has no limits
        assert sent(ask(second, keys(1), owner="b", teacher="u", limits=limited())) == 1
        clock.now += 29
        assert ask(second, keys(1), owner="b", limits=limited()).wait_s == 1
        first.rest("t", 5)  # a longer one counts
        clock.now += 4.9
        assert ask(second, keys(1), owner="b", limits=limited()).blocked == "resting"
        clock.now += 0.1
        assert sent(ask(second, keys(1), owner="b", limits=limited())) == 1
        first.rest("never asked", 5)
        assert ask(second, keys(1), teacher="never asked", limits=limited()).blocked == "resting"


# ---- any sequence of events, against a plain model

CAPS = {("", "training"): 20, ("", "evaluation"): 7, ("a", "training"): 12, ("b", "evaluation"): 3}
OWNERS, PURPOSES = ("a", "b", ""), ("training", "evaluation")
BEFORE_MIDNIGHT = datetime(2026, 3, 14, 23, 58, tzinfo=UTC).timestamp()
owners, purposes, teachers = st.sampled_from(OWNERS), st.sampled_from(PURPOSES), st.sampled_from("tu")


class LedgerMachine(RuleBasedStateMachine):
    """Two connections to one file, reopened at will, against a few lists."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path, self.clock = Path(self.folder.name) / "ledger.sqlite", Clock(BEFORE_MIDNIGHT)
        self.ledgers = [self.open(), self.open()]
        self.ledgers[0].open_account("a", {"training": 12})
        self.ledgers[1].open_account("b", {"evaluation": 3})
        self.entries: list[SimpleNamespace] = []
        self.answers: dict[tuple[str, bytes], tuple[int, bytes]] = {}
        self.claims: dict[tuple[str, bytes, int], tuple[SimpleNamespace, float]] = {}
        self.lost: dict[tuple[str, bytes], list[tuple[bool, str]]] = {}  # whether alone, why
        self.stopped: set[tuple[str, bytes]] = set()
        self.declined: dict[tuple[str, bytes], str] = {}
        self.labels = 0

    def open(self) -> Ledger:
        return Ledger(self.path, 20, 7, clock=self.clock)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for ledger in self.ledgers:
                ledger.close()
            self.folder.cleanup()

    # The model

    def some(self, purpose: str, *states: str, owner: str = "") -> list[SimpleNamespace]:
        return [e for e in self.entries if e.state in states and e.purpose == purpose and owner in ("", e.owner)]

    def held(self, purpose: str, owner: str) -> int:
        return sum(e.queries for e in self.some(purpose, "reserved", "answered", "uncertain", owner=owner))

    def left(self, purpose: str, owner: str) -> int:
        room = [CAPS[name, purpose] - self.held(purpose, name) for name in {"", owner} if (name, purpose) in CAPS]
        return min(room, default=0)

    def entry(self, queries: int, facts: dict, hashes: list[bytes] | None = None, request: str = "") -> SimpleNamespace:
        made = SimpleNamespace(queries=queries, hashes=hashes, request=request, state="reserved", rejected={}, **facts)
        made.created, made.reservation = self.clock.now, None
        self.entries.append(made)
        return made

    def close(self, entry: SimpleNamespace, state: str, reason: str = "why") -> None:
        entry.state = state
        for teacher, item in [(t, i) for (t, i, _), claim in self.claims.items() if claim[0] is entry]:
            if state == "uncertain" and reason == STOPPED:
                self.stopped.add((teacher, item))
            elif state == "uncertain":
                self.lost.setdefault((teacher, item), []).append((entry.queries == 1 and reason != DIED, reason))
        self.claims = {image: claim for image, claim in self.claims.items() if claim[0] is not entry}

    # What may happen

    @rule(
        which=st.integers(0, 1), n=st.integers(1, 9), purpose=purposes, owner=owners, metered=st.booleans(),
        teacher=teachers, round=st.integers(0, 1),
    )  # fmt: skip
    def reserve(self, which, n, **facts) -> None:
        left = self.left(facts["purpose"], facts["owner"])
        if n <= left:
            reservation = self.ledgers[which].reserve(n, **facts)
            self.entry(n, facts).reservation = reservation
        else:
            with pytest.raises(BudgetExceeded, match=f"{n} {facts['purpose']} queries wanted, {left} of"):
                self.ledgers[which].reserve(n, **facts)

    @rule(
        which=st.integers(0, 1), purpose=purposes, owner=owners, metered=st.booleans(), teacher=teachers,
        round=st.integers(0, 1), lease=st.sampled_from([5.0, 100.0]), name=st.sampled_from(["", "r", "s"]),
        orders=st.lists(st.lists(st.integers(0, 11), unique=True, min_size=1, max_size=5), max_size=3),
    )  # fmt: skip
    def grant(self, which, lease, name, orders, **facts) -> None:
        orders = [keys(*order) for order in orders]
        more = {"request": name} if name else {}
        got = ask(self.ledgers[which], *orders, lease_s=lease, **more, **facts)
        for entry in [e for e in self.entries if name and e.request == name and e.state == "reserved"]:
            self.close(entry, "released")
        left, teacher, now, parts = self.left(facts["purpose"], facts["owner"]), facts["teacher"], self.clock.now, []
        for order in orders:
            if left == 0:
                break
            known = [item for item in order if (teacher, item) in self.answers]
            claimed = {i for (t, i, _), (_, until) in self.claims.items() if t == teacher and until > now}
            taken = [item for item in order if item in claimed]
            free = [item for item in order if item not in known and item not in taken]
            parts.append((free[:left], known, [item for item in taken if item not in known], free[left:]))
            if free:
                entry = self.entry(len(free[:left]), facts, free[:left], name)
                entry.reservation = got.parts[len(parts) - 1].reservation
                until = now + (lease if facts["metered"] else min(lease, FREE_CLAIM_S))
                self.claims |= {(teacher, item, id(entry)): (entry, until) for item in free[:left]}
            left -= len(free[:left])
        assert [(part.send, part.known, part.busy, part.left) for part in got.parts] == parts
        assert [part.reservation is None for part in got.parts] == [not part[0] for part in parts]
        if len(parts) < len(orders) or (parts and parts[-1][3]):
            assert got.blocked == "budget"
        else:
            assert got.blocked == ("busy" if parts and all(part[2] and not part[0] for part in parts) else None)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), which=st.integers(0, 1))
    def settle(self, data, which) -> None:
        """Up to three at once; all of them, or none."""
        chosen = data.draw(st.lists(st.sampled_from(self.entries), min_size=1, max_size=3, unique_by=id))
        outcomes = []
        for entry in chosen:
            state = data.draw(st.sampled_from(["answered", "answered", "released", "uncertain"]))
            reason = data.draw(st.sampled_from(["why", "because", STOPPED]))
            declined = state == "released" and data.draw(st.booleans())
            numbers = st.lists(st.integers(0, 11), min_size=entry.queries, max_size=entry.queries)
            hashes = entry.hashes or keys(*data.draw(numbers))
            bad = data.draw(st.dictionaries(st.integers(0, entry.queries - 1), st.sampled_from(["NaN", "logits"])))
            labels = np.arange(self.labels, self.labels + entry.queries)
            self.labels += entry.queries
            answers = AnswerRows(labels=labels, probs=torch.rand(entry.queries, 3).numpy())
            more = {"answers": answers, "bad": bad} if state == "answered" else {"reason": reason}
            more |= {"hashes": hashes} if state == "answered" or declined else {}
            more |= {"declined": True} if declined else {}
            outcomes.append(Outcome(reservation=entry.reservation, state=state, **more))
        if any(e.state not in ("reserved", o.state) for e, o in zip(chosen, outcomes, strict=True)):
            with pytest.raises(LedgerError, match="cannot become"):
                self.ledgers[which].settle(outcomes)
            return
        self.ledgers[which].settle(outcomes)
        for entry, outcome in zip(chosen, outcomes, strict=True):
            if (entry.state, outcome.state) == ("reserved", "answered"):
                entry.rejected = {row: (outcome.hashes[row], reason) for row, reason in outcome.bad.items()}
                for row, item in enumerate(outcome.hashes):
                    if row not in outcome.bad:
                        probs = outcome.answers.probs[row].tobytes()
                        self.answers.setdefault((entry.teacher, item), (int(outcome.answers.labels[row]), probs))
            if outcome.declined:  # also of one that was released before
                self.declined |= {(entry.teacher, item): outcome.reason for item in outcome.hashes}
            if entry.state == "reserved":
                self.close(entry, outcome.state, outcome.reason)

    @rule(which=st.integers(0, 1))
    def forget_declined(self, which) -> None:
        assert self.ledgers[which].forget_declined() == len(self.declined)
        self.declined.clear()

    @rule(which=st.integers(0, 1), owner=owners)
    def recover(self, which, owner) -> None:
        expected = [0, 0]
        for entry in self.entries:
            if entry.state == "reserved" and entry.owner == owner:
                self.close(entry, "uncertain" if entry.metered else "released", DIED)
                expected[0 if entry.metered else 1] += entry.queries
        assert self.ledgers[which].recover(owner) == tuple(expected)

    @rule(seconds=st.sampled_from([1.0, 10.0, 200.0]))
    def wait(self, seconds) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 1))
    def reopen(self, which) -> None:
        self.ledgers[which].close()
        self.ledgers[which] = self.open()

    # What always holds

    @invariant()
    def no_cap_is_passed_and_every_count_is_the_models(self) -> None:
        for ledger in self.ledgers:
            for owner in OWNERS:
                for purpose in PURPOSES:
                    lost = sum(e.queries for e in self.some(purpose, "uncertain", owner=owner))
                    bad = sum(len(e.rejected) for e in self.some(purpose, "answered", owner=owner))
                    good = sum(e.queries for e in self.some(purpose, "answered", owner=owner)) - bad
                    assert self.held(purpose, owner) <= CAPS.get((owner, purpose), 99)
                    assert ledger.spent(purpose, owner) == good + bad + lost
                    assert (ledger.uncertain(purpose, owner), ledger.rejected(purpose, owner)) == (lost, bad)
                    assert ledger.remaining(purpose, owner) == self.left(purpose, owner)

    @invariant()
    def the_accounts_say_what_the_reservations_say(self) -> None:
        ledger = self.ledgers[0]
        held = {(a, b): tuple(rest) for a, b, *rest in ledger.read(
            "SELECT owner, purpose, reserved, answered, uncertain, rejected FROM accounts"
        )}  # fmt: skip
        found = ledger.read(
            "SELECT owner, purpose, sum(queries * (state = 'reserved')), "
            "sum(queries * (state = 'answered')) - sum(rejected), sum(queries * (state = 'uncertain')), sum(rejected) "
            "FROM reservations GROUP BY owner, purpose"
        )
        for purpose in PURPOSES:
            rows = {a: np.array(rest) for a, b, *rest in found if b == purpose}
            assert held.get(("", purpose), (0,) * 4) == tuple(sum(rows.values(), np.zeros(4, int)))
            for owner in ("a", "b"):
                assert held.get((owner, purpose), (0,) * 4) == tuple(rows.get(owner, np.zeros(4, int)))

    @invariant()
    def answers_rounds_and_days_are_the_models(self) -> None:
        ledger, everything = self.ledgers[1], keys(*range(12))
        for teacher in "tu":
            found = ledger.lookup(teacher, everything)
            expected = {item: value for (asked, item), value in self.answers.items() if asked == teacher}
            assert {item: (label, probs.tobytes()) for item, (label, probs) in found.items()} == expected
            refused: dict[bytes, list[tuple[bool, set[str]]]] = {}  # whether others were answered, why
            for entry in [e for e in self.entries if e.teacher == teacher]:
                for item in {item for item, _ in entry.rejected.values()} - expected.keys():
                    # An image that came twice in one batch is kept once, with one of its reasons.
                    reasons = {why for other, why in entry.rejected.values() if other == item}
                    own = entry.queries == 1 or len(entry.rejected) < entry.queries
                    refused.setdefault(item, []).append((own, reasons))
            lost = {i: times for (asked, i), times in self.lost.items() if asked == teacher and i not in expected}
            declined = {i: why for (asked, i), why in self.declined.items() if asked == teacher and i not in expected}
            stopped = {i for asked, i in self.stopped if asked == teacher and i not in expected}
            got = ledger.failures(teacher, everything)
            assert {item for item, x in got.items() if x.sent} == refused.keys() | lost.keys() | stopped
            assert {item: (x.times, x.own) for item, x in got.items()} == {
                item: (
                    len(refused.get(item, [])) + len(lost.get(item, [])),
                    sum(own for own, _ in lost.get(item, []) + refused.get(item, [])),
                )
                for item in refused.keys() | lost.keys() | declined.keys() | stopped
            }
            assert {item: x.reason for item, x in got.items() if x.declined} == declined
            for item in got.keys() - declined.keys():
                reasons = {why for _, why in lost.get(item, [])}
                reasons |= {why for _, several in refused.get(item, []) for why in several}
                assert got[item].reason in reasons or (not reasons and got[item].reason == STOPPED)
            assert ledger.answers_of(teacher) == bool(expected)
        days = Counter()
        for entry in self.entries:
            days[entry.teacher, day_of(entry.created)] += entry.queries * (entry.state != "released")
        rows = ledger.read("SELECT identity, day, queries FROM days JOIN teachers ON teachers.id = teacher")
        assert {(a, b): c for a, b, c in rows if c} == {day: count for day, count in days.items() if count}
        for owner in OWNERS:
            for number in (0, 1):
                mine = [e for e in self.entries if (e.owner, e.purpose, e.round) == (owner, "training", number)]
                bad = sum(len(e.rejected) for e in mine)
                good = sum(e.queries for e in mine if e.state == "answered") - bad
                lost = sum(e.queries for e in mine if e.state == "uncertain") + bad
                assert ledger.spent_in_round(number, "training", owner) == (good, lost)

    @invariant()
    def claims_are_the_models_and_the_receipt_adds_up(self) -> None:
        ledger = self.ledgers[0]
        rows = ledger.read("SELECT identity, hash, expires FROM claims JOIN teachers ON teachers.id = teacher")
        held = [(teacher, item, until) for (teacher, item, _), (_, until) in self.claims.items()]
        assert Counter(rows) == Counter(held)
        summed = total(lines(ledger))
        whole = [account for account in accounts(ledger) if account.owner == ""]
        assert summed.charged == sum(account.charged for account in whole)
        assert summed.open == sum(account.open for account in whole)


@pytest.mark.parametrize("sequences", [10, pytest.param(40, marks=pytest.mark.storm)])
def test_any_sequence_of_events_keeps_the_books(sequences):
    these = settings(max_examples=sequences, stateful_step_count=25)
    run_state_machine_as_test(LedgerMachine, settings=these)


# ---- several processes and threads, and their deaths


def take_until_nothing_is_left(path: Path, seed: int, blocks: list[int], way: str, start, results) -> None:
    """A process that takes blocks of queries, answers one in three, and gives one in five back."""
    generator, ledger, held, number = np.random.default_rng(seed), Ledger(path), [], 0
    start.wait()
    while True:
        if number == 1:  # each has its first block, whoever is quicker afterwards
            start.wait()
        keys(*range(1000))  # the time a teacher takes
        wanted, number = blocks[number % len(blocks)], number + 1
        asked = keys(*(seed * 1_000_000 + number * 100 + k for k in range(wanted)))
        if way == "grant":
            grant = ask(ledger, asked, teacher="t", owner=str(seed))
            if not sent(grant):
                break
            taken, asked = grant.parts[0].reservation, grant.parts[0].send
        else:
            left = ledger.remaining()
            if left == 0:
                break
            try:
                taken = ledger.reserve(min(wanted, left), teacher="t", owner=str(seed))
            except BudgetExceeded:  # somebody was faster
                continue
        fate = generator.random() if held else 1.0
        if fate < 0.2:
            ledger.release(taken)
            continue
        if fate < 0.5:
            ledger.commit(taken, asked[: taken.queries], hard(*[seed] * taken.queries))
        held.append(taken.queries)
    ledger.close()
    results.put((seed, held))


@pytest.mark.parametrize("way", ["reserve", "grant"])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.storm) for seed in (2, 3))])
def test_eight_processes_take_the_budget_exactly(seed, way, path):
    generator = np.random.default_rng(seed)
    with opened(path, 1000) as ledger:
        start, results = processes.Barrier(8, timeout=30), processes.Queue()
        racers = [
            started(take_until_nothing_is_left, path, n, generator.integers(1, 65, 30).tolist(), way, start, results)
            for n in range(8)
        ]
        while connection.wait([racer.sentinel for racer in racers], timeout=0.01) != [r.sentinel for r in racers]:
            assert [account.charged + account.open <= 1000 for account in accounts(ledger, "")] == [True]
        taken = dict(results.get(timeout=60) for _ in racers)
        assert [racer.exitcode for racer in racers] == [0] * 8
        assert sum(sum(blocks) for blocks in taken.values()) == 1000
        assert all(taken.values()) and len(taken) == 8
        assert ledger.remaining() == 0
        with pytest.raises(BudgetExceeded):
            ledger.reserve(1, teacher="t")
        assert ask(ledger, keys(1)).blocked == "budget"
        assert len(ledger.read("SELECT hash FROM answers")) == ledger.spent()
        for owner, blocks in taken.items():
            lost, _ = ledger.recover(str(owner))
            assert ledger.spent(owner=str(owner)) == sum(blocks) >= lost
        assert ledger.spent() == 1000


def ask_for_all(path: Path, owner: str, images: int, start, results) -> None:
    """A process that asks for the same images as others, five at a time, until it knows them all."""
    ledger, known, order = Ledger(path), set(), np.random.default_rng(int(owner)).permutation(images).tolist()
    start.wait()
    while len(known) < images:
        wanted = [number for number in order if number not in known][:5]
        grant = ask(ledger, keys(*wanted), owner=owner)
        label_all(ledger, grant)
        known.update(number for number in wanted if key(number) in ledger.lookup("t", keys(*wanted)))
    ledger.close()
    results.put(owner)


def test_processes_that_want_the_same_images_pay_for_each_once(path):
    with opened(path, 1000) as ledger:
        start, results = processes.Barrier(4, timeout=30), processes.Queue()
        racers = [started(ask_for_all, path, str(n), 200, start, results) for n in range(4)]
        assert {results.get(timeout=60) for _ in racers} == set("0123")
        for racer in racers:
            racer.join()
        assert (ledger.spent(), len(ledger.lookup("t", keys(*range(200))))) == (200, 200)
        assert sum(ledger.spent(owner=str(n)) for n in range(4)) == 200


def open_at_once(paths: list[Path], budget: int, start, results) -> None:
    for path in paths:
        start.wait()
        ledger = Ledger(path, budget)
        results.put(ledger.reserve(1, teacher="t").queries)
        ledger.close()


@pytest.mark.storm
def test_many_make_a_file_at_the_same_moment(path):
    files = [path.with_name(f"{number}.sqlite") for number in range(20)]
    start, results = processes.Barrier(6, timeout=30), processes.Queue()
    racers = [started(open_at_once, files, 100, start, results) for _ in range(6)]
    assert [results.get(timeout=60) for _ in racers for _ in files] == [1] * 6 * 20
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 6
    for file in files:
        with opened(file, 100) as ledger:
            assert ledger.remaining() == 100 - 6


def test_threads_may_share_one_ledger(path):
    with opened(path, 300) as ledger:
        faults, barrier, done = [], threading.Barrier(5), threading.Event()

        def look() -> None:
            """What one transaction writes is seen together or not at all."""
            barrier.wait()
            while not done.is_set():
                query = "SELECT sum(reserved + answered) FROM accounts GROUP BY owner = ''"
                if len(set(ledger.read(query))) > 1:
                    faults.append("the owners' accounts do not add up to the file's")

        def work(owner: str) -> None:
            barrier.wait()
            try:
                for number in range(40):
                    label_all(ledger, ask(ledger, keys(int(owner) * 1000 + number, number), owner=owner))
            except Exception as error:
                faults.append(error)

        reader = threading.Thread(target=look)
        workers = [threading.Thread(target=work, args=(str(n),)) for n in range(1, 5)]
        for worker in (reader, *workers):
            worker.start()
        for worker in workers:
            worker.join()
        done.set()
        reader.join()
        assert faults == []
        assert ledger.spent() == 4 * 40 + 40
        assert ledger.spent() == sum(ledger.spent(owner=str(n)) for n in range(1, 5))


def commit_for_ever(path: Path, sender) -> None:
    """A process that takes and commits three answers at a time, and tells of each commit once it returned."""
    ledger = Ledger(path, 100_000)
    for batch in range(30_000):
        numbers = range(3 * batch, 3 * batch + 3)
        part = ask(ledger, keys(*numbers), owner="run").parts[0]
        ledger.commit(part.reservation, part.send, soft([[n, 1 / (n + 1), 0.0] for n in numbers]))
        sender.send(batch)


def test_an_answer_outlives_a_process_killed_after_its_commit(path):
    receiver, sender = processes.Pipe(duplex=False)
    process = started(commit_for_ever, path, sender)
    sender.close()
    told = [receiver.recv() for _ in range(25)]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with suppress(EOFError):  # what it still told
        while True:
            told.append(receiver.recv())
    assert process.exitcode == -signal.SIGKILL
    with opened(path, 100_000) as ledger:
        numbers = range(3 * len(told))
        found = ledger.lookup("t", keys(*numbers))
        expected = soft([[n, 1 / (n + 1), 0.0] for n in numbers]).probs
        assert [found[key(n)][1].tobytes() for n in numbers] == [row.tobytes() for row in expected]
        # At most one batch more was on its way: committed and not yet told, or reserved, or not yet begun.
        assert len(told) * 3 <= ledger.spent() <= (len(told) + 1) * 3
        uncertain, released = ledger.recover("run")
        assert (uncertain in (0, 3), released) == (True, 0)
        assert ledger.spent() + ledger.remaining() == 100_000
        assert ledger.read("SELECT count(*) FROM claims") == [(0,)]


def test_what_is_written_is_flushed_to_disk_before_a_call_returns(path):
    """A power cut cannot be had here; that SQLite was told what to do about one can be seen."""
    with opened(path, 10) as ledger:
        told = {name: ledger.read(f"PRAGMA {name}")[0][0] for name in ("synchronous", "journal_mode", "foreign_keys")}
    assert told == {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}  # 2 is FULL


def test_an_interrupt_at_any_moment_leaves_the_books_right(path):
    """As Ctrl-C does it: between any two steps of a call."""
    armed, interrupted = False, 0

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    generator = np.random.default_rng(0)
    try:
        with opened(path, 100_000) as ledger, opened(path) as other:
            began = time.perf_counter()
            label_all(ledger, ask(ledger, keys(0, 1, 2)))
            usual = time.perf_counter() - began
            for number in range(1, 151):
                try:
                    try:
                        armed = True
                        signal.setitimer(signal.ITIMER_REAL, float(generator.uniform(1e-5, usual)))
                        label_all(ledger, ask(ledger, keys(3 * number, 3 * number + 1, 3 * number + 2)))
                    finally:
                        armed = False
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                assert ledger.remaining() == other.remaining()  # nothing half-done is open
            lost, _ = ledger.recover("a")
            label_all(other, ask(other, keys(9999), owner="b"))
            answers = len(ledger.read("SELECT * FROM answers"))
            assert ledger.spent() == answers + lost == total(lines(ledger)).charged
            assert ledger.read("SELECT * FROM claims") == []
            assert interrupted > 0
    finally:
        signal.signal(signal.SIGALRM, before)


@contextmanager
def no_file_larger_than(size: int):
    """A disk that is full at `size` bytes a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("count", "room"), [(1, 0), (3000, 50_000), (60_000, 3_000_000)])
def test_a_full_disk_leaves_the_books_as_they_were(count, room, path):
    with opened(path, 100_000) as ledger:
        reservation = ledger.reserve(count, teacher="t")
        answers = soft(torch.rand(count, 10).tolist())
        with no_file_larger_than(path.with_name("ledger.sqlite-wal").stat().st_size + room):
            with pytest.raises(
                LedgerError, match=r"ledger\.sqlite cannot be written: .*; nothing more was spent"
            ) as error:
                ledger.commit(reservation, keys(*range(count)), answers)
            assert "rollback" not in str(error.value)  # but the disk, which is to blame
            assert counts(ledger) == (0, 0, 100_000 - count)
            assert ledger.lookup("t", keys(*range(count))) == {}
        ledger.commit(reservation, keys(*range(count)), answers)  # there is room again
        assert counts(ledger) == (count, 0, 100_000 - count)
    with opened(path) as ledger:
        assert len(ledger.lookup("t", keys(*range(count)))) == count


def test_a_grant_on_a_full_disk_takes_nothing(path):
    with opened(path, 10_000) as ledger:
        label_all(ledger, ask(ledger, keys(1)))
        before = ledger.read("SELECT * FROM accounts"), ledger.read("SELECT * FROM days")
        wal = path.with_name("ledger.sqlite-wal").stat().st_size
        with no_file_larger_than(wal), pytest.raises(LedgerError, match="nothing more was spent"):
            ask(ledger, keys(*range(2, 1000)))
        assert before == (ledger.read("SELECT * FROM accounts"), ledger.read("SELECT * FROM days"))
        assert ask(ledger, keys(*range(2, 1000))).blocked is None  # no claim was left either
        assert ledger.remaining() == 10_000 - 999


# ---- files that cannot be a ledger


def test_a_ledger_remembers_its_budget(path):
    with opened(path, 10) as ledger:
        ledger.commit(ledger.reserve(4, teacher="t"), keys(1, 2, 3, 4), hard(1, 2, 3, 4))
    with opened(path) as ledger:
        assert counts(ledger) == (4, 0, 6)
    with opened(path, 10) as ledger:
        assert counts(ledger) == (4, 0, 6)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="was made for a budget of 10 queries, not 1,100; use another ledger"):
        Ledger(path, 1100)
    assert path.read_bytes() == before


def test_without_a_budget_nothing_can_be_spent(path):
    for budget in (None, 0):
        with opened(path, budget) as ledger:
            with pytest.raises(BudgetExceeded, match="0 of the budget are left"):
                ledger.reserve(1, teacher="t")
            assert ask(ledger, keys(1)).blocked == "budget"


@pytest.mark.parametrize("version", ["1", "2", "4", "0"])
def test_another_schema_is_refused_and_left_alone(version, path):
    with opened(path, 10) as ledger:
        ledger.commit(ledger.reserve(1, teacher="t"), keys(1), hard(1))
    database = sqlite3.connect(path)
    database.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (version,))
    database.commit()
    database.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=f"schema {version}, this kdray reads 3; use the kdray that wrote it"):
        Ledger(path, 10)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [None, "two", "", "-1"])
def test_a_file_that_does_not_name_its_schema_is_refused_and_left_alone(value, path):
    Ledger(path, 10).close()
    database = sqlite3.connect(path)
    if value is None:
        database.execute("DELETE FROM meta")
    else:
        database.execute("UPDATE meta SET value = ?", (value,))
    database.commit()
    database.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="does not say which ledger schema it has; it was left as it is"):
        Ledger(path, 10)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database " * 300, b"SQLite format 3\x00" + bytes(range(256)) * 16])
def test_what_is_no_database_is_refused_and_left_alone(content, path):
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"cannot use .*ledger\.sqlite as a ledger: .*; it was left as it is"):
        Ledger(path, 10)
    assert path.read_bytes() == content


def test_a_torn_ledger_is_refused_and_left_alone(path):
    with opened(path, 5000) as ledger:
        ledger.commit(ledger.reserve(2000, teacher="t"), keys(*range(2000)), soft(torch.rand(2000, 10).tolist()))
    torn = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(torn)
    with pytest.raises(LedgerError, match="malformed"):
        Ledger(path, 5000)
    assert path.read_bytes() == torn


def test_a_damaged_page_is_a_ledger_error(path):
    with opened(path, 5000) as ledger:
        ledger.commit(ledger.reserve(2000, teacher="t"), keys(*range(2000)), soft(torch.rand(2000, 10).tolist()))
    data = bytearray(path.read_bytes())
    data[8 * 4096 :] = b"\xa5" * (len(data) - 8 * 4096)
    path.write_bytes(data)
    with pytest.raises(LedgerError), opened(path, 5000) as ledger:
        ledger.lookup("t", keys(*range(2000)))


def test_a_foreign_database_is_refused(path):
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE recipes (name TEXT)")
    database.execute("INSERT INTO recipes VALUES ('soup')")
    database.commit()
    database.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="is a SQLite file, but not a kdray ledger"):
        Ledger(path, 10)
    assert path.read_bytes() == before


def test_a_place_where_no_file_can_be_is_refused(tmp_path):
    """True for root too, whom no permission stops."""
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "no" / "folder.sqlite", tmp_path / "file" / "ledger.sqlite"):
        with pytest.raises(LedgerError, match="unable to open database file"):
            Ledger(place, 10)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@contextmanager
def as_nobody():
    """Root may write anywhere; so not as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("folder", [0o555, 0o777], ids=["folder too", "file alone"])
def test_a_read_only_ledger_is_refused_and_left_alone(folder):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.sqlite"
        with opened(path, 10) as ledger:
            label_all(ledger, ask(ledger, keys(1)))
        path.chmod(0o444)
        before = path.read_bytes()
        Path(name).chmod(folder)
        try:
            with as_nobody(), pytest.raises(LedgerError) as error:
                Ledger(path, 10)
        finally:
            Path(name).chmod(0o777)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        assert path.read_bytes() == before


def test_a_ledger_that_cannot_be_switched_to_its_log_says_so_soon(path):
    """Not after the minute that is meant for other writers."""
    Ledger(path, 10).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = DELETE")
    database.close()
    before, began = path.read_bytes(), time.monotonic()
    with no_file_larger_than(0), pytest.raises(LedgerError, match=r"cannot use .* as a ledger"):
        Ledger(path)
    assert time.monotonic() - began < 20
    assert path.read_bytes() == before


def test_a_new_ledger_on_a_full_disk_is_refused(path):
    with no_file_larger_than(0), pytest.raises(LedgerError, match=r"ledger\.sqlite"):
        Ledger(path, 10)
    with opened(path, 10) as ledger:
        assert ledger.remaining() == 10


def test_a_ledger_closed_spends_nothing(path):
    ledger = Ledger(path, 10)
    reservation = ledger.reserve(1, teacher="t")
    ledger.close()
    ledger.close()
    for act in (
        lambda: ledger.reserve(1, teacher="t"),
        lambda: ask(ledger, keys(1)),
        lambda: ledger.release(reservation),
        ledger.remaining,
        ledger.spent,
        lambda: ledger.lookup("t", keys(1)),
    ):
        with pytest.raises(LedgerError, match="is closed"):
            act()


def test_a_table_that_went_missing_is_a_ledger_error(path):
    with opened(path, 10) as ledger:
        database = sqlite3.connect(path)
        database.execute("DROP TABLE accounts")
        database.commit()
        database.close()
        reserve = lambda: ledger.reserve(1, teacher="t")  # noqa: E731
        for act in (ledger.remaining, ledger.spent, reserve, lambda: ask(ledger, keys(1))):
            with pytest.raises(LedgerError, match="no such table: accounts"):
                act()
