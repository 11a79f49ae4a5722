"""Buying: each image once, in order, as far as the budget goes; what is lost is charged where somebody may bill."""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from torch import Tensor

import kdray.runs.purchase
from kdray.errors import LedgerError, TeacherError
from kdray.ledger import Ledger, hash_images
from kdray.ledger.limits import Limits
from kdray.ledger.records import Order, Outcome
from kdray.runs.purchase import Bought, PurchasePolicy, buy
from kdray.teachers import Answers
from kdray.teachers.answers import UnknownClass
from kdray.teachers.faults import Fault
from kdray.teachers.pool import LocalTeacherPool, TeacherReply
from kdray.teachers.retry import RetryPolicy, RetryState

CLASSES = 3


def pictures(*numbers: int) -> Tensor:
    """Tiny images; the same number is the same image."""
    return torch.tensor(numbers, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def numbers_of(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def opinion(images: Tensor) -> Tensor:
    """Probabilities float32 [B, 3] that tell all pictures apart; picture n is of class n % 3."""
    rows = [torch.tensor([0.6 - n / 2000, 0.3, 0.1 + n / 2000]).roll(n % 3) for n in numbers_of(images)]
    return torch.stack(rows) if rows else torch.zeros(0, CLASSES)


class CountingTeacher:
    """Writes down which pictures it was asked, batch by batch; may do something else first."""

    num_classes = CLASSES

    def __init__(self, metered: bool = True, hard: bool = False, before: Callable[[int], None] = lambda batch: None):
        self.identity = f"counting:{'hard' if hard else 'soft'}"
        self.metered, self.hard, self.before = metered, hard, before
        self.batches: list[list[int]] = []

    def answer(self, images: Tensor) -> Answers:
        self.batches.append(numbers_of(images))
        self.before(len(self.batches))
        probs = opinion(images)
        return Answers(probs=None if self.hard else probs, labels=probs.argmax(dim=1), num_classes=CLASSES)


class Clock:
    """Time made by hand: it passes where somebody waits. Stands in for the module `time` of a purchase."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0  # 22:13:20 UTC

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-6)


class Line:
    """A teacher at the end of a line: replies to each batch some time after it was sent, as `script` has it.

    Args:
        script: from the pictures of a batch and its number, from 1, to the fault it meets, the rows of it that cannot
            be believed, or None where all goes well. What it raises, `collect` raises.
        slots: batches that can be on their way at once.
        seconds: from the number of a batch to how long its reply takes.
    """

    def __init__(
        self,
        clock: Clock,
        script: Callable[[list[int], int], Fault | dict[int, str] | None] = lambda pictures, number: None,
        *,
        slots: int = 1,
        metered: bool = True,
        seconds: Callable[[int], float] = lambda number: 1.0,
    ) -> None:
        self.teacher = CountingTeacher(metered)
        self.slots = self._room = slots
        self._clock, self._script, self._seconds = clock, script, seconds
        self._waiting: list[tuple[float, int, Any, Tensor]] = []
        self.sent: list[tuple[float, list[int]]] = []
        self.on_their_way: list[int] = []  # after each batch was sent
        self.replied = 0

    @property
    def batches(self) -> list[list[int]]:
        return [batch for _, batch in self.sent]

    @property
    def asked(self) -> Counter[int]:
        return Counter(n for batch in self.batches for n in batch)

    def wait_until_ready(self) -> None:
        assert len(self._waiting) < self._room

    def send(self, key: Any, images: Tensor, replies: int = 0) -> None:
        assert len(self._waiting) < self._room, "more on their way than it takes"
        self.sent.append((self._clock.now, numbers_of(images)))
        number = len(self.sent)
        self._waiting.append((self._clock.now + self._seconds(number), number, key, images))
        self.on_their_way.append(len(self._waiting))

    def collect(self, timeout_s: float | None) -> list[TeacherReply]:
        if not self._waiting:
            return []
        due = min(self._waiting)[0]
        if due > self._clock.now:
            self._clock.sleep(due - self._clock.now if timeout_s is None else min(due - self._clock.now, timeout_s))
        ready = sorted(entry for entry in self._waiting if entry[0] <= self._clock.now)
        self._waiting = [entry for entry in self._waiting if entry[0] > self._clock.now]
        return [self._reply(number, key, images) for _, number, key, images in ready]

    def close(self) -> None:
        self._waiting.clear()

    def _reply(self, number: int, key: Any, images: Tensor) -> TeacherReply:
        self.replied += 1
        result = self._script(numbers_of(images), number)
        if isinstance(result, Fault):
            return TeacherReply(key=key, fault=result)
        answers = self.teacher.answer(images)
        return TeacherReply(key=key, answers=spoilt(answers, result) if result else answers)


def spoilt(answers: Answers, bad: dict[int, str]) -> Answers:
    """Answers of which some rows are nonsense."""
    probs = answers.probs.clone()
    probs[list(bad)] = float("nan")
    return Answers(probs=probs, labels=answers.labels, num_classes=CLASSES, bad=bad)


def fault(kind: str, wait_s: float | None = None) -> Fault:
    return Fault(kind=kind, message=f"it was {kind}", wait_s=wait_s)


def at(*numbers: int, kind: str, wait_s: float | None = None) -> Callable[[list[int], int], Fault | None]:
    """The script of a teacher that has this fault at these batches."""
    return lambda pictures, number: fault(kind, wait_s) if number in numbers else None


def never_believed(*wrong: int) -> Callable[[list[int], int], dict[int, str]]:
    """The script of a teacher that answers nonsense to some pictures, always."""
    return lambda pictures, number: {row: f"picture {n} is NaN" for row, n in enumerate(pictures) if n in wrong}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """A purchase's clock, which no test has to wait for."""
    clock = Clock()
    monkeypatch.setattr("kdray.runs.purchase.time", clock)
    return clock


@pytest.fixture
def make_ledger(tmp_path) -> Iterator[Callable[..., Ledger]]:
    """Opens the test's ledger, closed at the end; its clock is the purchase's."""
    ledgers = []

    def open_ledger(budget: int, evaluation: int | None = None) -> Ledger:
        clock = kdray.runs.purchase.time.time
        ledgers.append(Ledger(tmp_path / "ledger.sqlite", budget, evaluation, clock=clock))
        return ledgers[-1]

    yield open_ledger
    for ledger in ledgers:
        ledger.close()


def purchase(images: Tensor, teacher: CountingTeacher, ledger: Ledger, batch_size: int = 4, **more) -> Bought:
    return buy(images, teachers=LocalTeacherPool(teacher), ledger=ledger, batch_size=batch_size, **more)


def patient(proven: bool = True, **policy) -> RetryState:
    """Patience with a teacher that has answered before, without jitter."""

    class Longest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    patience = RetryState(RetryPolicy(**policy), Longest())
    if proven:
        patience.succeeded()
    return patience


def facts(bought: Bought) -> tuple[int, int, int]:
    return bought.charged, bought.reused, bought.short


def money(ledger: Ledger) -> tuple[int, int, int, int]:
    """(answered, rejected, uncertain, reserved) of all training queries."""
    rows = ledger.read(
        "SELECT answered, rejected, uncertain, reserved FROM accounts WHERE owner = '' AND purpose = 'training'"
    )
    return rows[0]


def reservations(ledger: Ledger) -> list[tuple]:
    """(queries, state, attempt, reason) of every reservation ever made, in order."""
    return ledger.read("SELECT queries, state, attempt, reason FROM reservations ORDER BY rowid")


def refusals(ledger: Ledger, teacher: CountingTeacher, *numbers: int) -> dict[int, tuple[int, str]]:
    """What the ledger remembers of these pictures that were asked about in vain: (times paid, last reason)."""
    found = ledger.failures(teacher.identity, hash_images(pictures(*numbers)))
    return {
        n: (found[key].times, found[key].reason)
        for n, key in zip(numbers, hash_images(pictures(*numbers)), strict=True)
        if key in found
    }


def rejects(ledger: Ledger) -> Counter[bytes]:
    """How often each image was answered with nonsense, whether or not it has an answer by now."""
    return Counter(key for (key,) in ledger.read("SELECT hash FROM rejects"))


def answers_are_right(bought: Bought, images: Tensor) -> bool:
    expected = opinion(images[bought.positions])
    return torch.equal(bought.answers.probs, expected) and torch.equal(bought.answers.labels, expected.argmax(dim=1))


# ---- what is asked


def test_each_image_is_asked_once_and_answered_in_its_place(make_ledger):
    teacher, ledger, images = CountingTeacher(), make_ledger(100), pictures(5, 6, 7, 8, 9, 10)
    bought = purchase(images, teacher, ledger)
    assert teacher.batches == [[5, 6, 7, 8], [9, 10]]
    assert bought.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert bought.positions.dtype == torch.int64
    assert torch.equal(bought.answers.probs, opinion(images))
    assert bought.answers.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert (facts(bought), bought.set_aside) == ((6, 0, 0), {})
    assert (ledger.spent(), ledger.remaining()) == (6, 94)
    assert reservations(ledger) == [(4, "answered", 1, None), (2, "answered", 1, None)]


def test_duplicates_are_free(make_ledger):
    teacher, ledger, images = CountingTeacher(), make_ledger(100), pictures(1, 2, 1, 1, 3, 2)
    bought = purchase(images, teacher, ledger)
    assert teacher.batches == [[1, 2], [3]]
    assert bought.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(bought.answers.probs, opinion(images))
    assert facts(bought) == (3, 3, 0)
    assert ledger.spent() == 3


def test_what_the_ledger_knows_is_free(make_ledger):
    teacher, ledger = CountingTeacher(), make_ledger(100)
    purchase(pictures(2, 3, 4), teacher, ledger)
    again = purchase(pictures(4, 3, 2), teacher, ledger, round=1)
    assert (facts(again), again.positions.tolist()) == ((0, 3, 0), [0, 1, 2])
    assert torch.equal(again.answers.probs, opinion(pictures(4, 3, 2)))
    other = make_ledger(100)  # another connection, as another run would have
    mixed = purchase(pictures(1, 2, 3, 4, 5, 6), teacher, other, owner="other")
    assert facts(mixed) == (3, 3, 0)
    assert torch.equal(mixed.answers.probs, opinion(pictures(1, 2, 3, 4, 5, 6)))
    assert teacher.batches == [[2, 3, 4], [1], [5, 6]]
    assert ledger.spent() == 6
    assert ledger.read("SELECT owner, round, images FROM hits ORDER BY owner, round") == [
        ("", 0, 0), ("", 1, 3), ("other", 0, 3)
    ]  # fmt: skip


def test_another_teacher_knows_nothing_of_it(make_ledger):
    ledger, soft, hard = make_ledger(100), CountingTeacher(), CountingTeacher(hard=True)
    purchase(pictures(1, 2), soft, ledger)
    bought = purchase(pictures(1, 2), hard, ledger, round=1)
    assert hard.batches == [[1, 2]]
    assert (facts(bought), bought.answers.probs) == ((2, 0, 0), None)
    assert bought.answers.labels.tolist() == [1, 2]


def test_batches_are_cut_by_position_so_that_the_same_ones_are_asked_after_a_crash(make_ledger):
    teacher, ledger, images = CountingTeacher(), make_ledger(100), pictures(*range(20, 31))
    purchase(pictures(21, 24, 25, 26, 27), CountingTeacher(), ledger)  # answered before the crash
    purchase(images, teacher, ledger)
    assert teacher.batches == [[20, 22, 23], [28, 29, 30]]  # not [20, 22, 23, 28], [29, 30]


def test_no_images_cost_nothing(make_ledger):
    teacher, ledger = CountingTeacher(), make_ledger(100)
    bought = purchase(pictures(), teacher, ledger)
    assert (facts(bought), len(bought.positions), len(bought.answers)) == ((0, 0, 0), 0, 0)
    assert (teacher.batches, ledger.spent()) == ([], 0)


def test_progress_counts_distinct_images(make_ledger):
    told, ledger = [], make_ledger(100)
    purchase(pictures(1), CountingTeacher(), ledger)
    purchase(
        pictures(1, 2, 2, 3, 4, 5), CountingTeacher(), ledger, batch_size=2,
        on_progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(2, 5), (3, 5), (5, 5)]


def test_a_purchase_is_booked_on_its_purpose_round_and_owner(make_ledger):
    ledger = make_ledger(100, evaluation=3)
    purchase(pictures(1, 2), CountingTeacher(), ledger, round=4, owner="me")
    measured = purchase(
        pictures(2, 3, 4, 5, 6, 7), CountingTeacher(), ledger, purpose="evaluation", round=4, owner="me"
    )
    assert facts(measured) == (3, 1, 2)  # 2 is known already, whatever it was bought for
    assert (ledger.spent(), ledger.spent("evaluation"), ledger.remaining("evaluation")) == (2, 3, 0)
    assert sum(ledger.spent_in_round(4, owner="me")) == 2
    assert sum(ledger.spent_in_round(4, "evaluation", owner="me")) == 3
    assert sum(ledger.spent_in_round(4, owner="you")) == 0


# ---- the budget


@pytest.mark.parametrize(
    ("budget", "batches"),
    [
        (1, [[1]]), (3, [[1, 2, 3]]), (4, [[1, 2, 3, 4]]), (5, [[1, 2, 3, 4], [5]]),
        (8, [[1, 2, 3, 4], [5, 6, 7, 8]]), (9, [[1, 2, 3, 4], [5, 6, 7, 8], [9]]),
        (10, [[1, 2, 3, 4], [5, 6, 7, 8], [9]]),
    ],
)  # fmt: skip
def test_a_budget_that_runs_out_buys_in_order_and_tells_what_is_missing(budget, batches, make_ledger):
    teacher, ledger, images = CountingTeacher(), make_ledger(budget), pictures(*range(1, 10))
    bought = purchase(images, teacher, ledger)
    count = min(budget, 9)
    assert teacher.batches == batches
    assert bought.positions.tolist() == list(range(count))
    assert torch.equal(bought.answers.probs, opinion(images[:count]))
    assert facts(bought) == (count, 0, 9 - count)
    assert (ledger.spent(), ledger.remaining()) == (count, budget - count)


def test_with_nothing_left_nobody_is_asked_and_known_answers_still_come(make_ledger):
    teacher, ledger = CountingTeacher(), make_ledger(2)
    purchase(pictures(3, 5), teacher, ledger)
    bought = purchase(pictures(1, 2, 3, 4, 5), teacher, ledger, round=1)
    assert teacher.batches == [[3, 5]]
    assert (facts(bought), bought.positions.tolist()) == ((0, 2, 3), [2, 4])
    assert torch.equal(bought.answers.probs, opinion(pictures(3, 5)))


def test_what_others_have_bought_meanwhile_is_taken_also_when_the_own_budget_is_spent(clock, make_ledger):
    """While this run has its first batch on its way, another pays for the last ones."""
    ledger, other = make_ledger(100), make_ledger(100)
    ledger.open_account("poor", {"training": 4})

    def script(asked: list[int], number: int) -> None:
        purchase(pictures(9, 10, 11), CountingTeacher(), other, owner="rich")

    bought = buy(pictures(*range(12)), teachers=Line(clock, script), ledger=ledger, batch_size=4, owner="poor")
    assert bought.positions.tolist() == [0, 1, 2, 3, 9, 10, 11]
    assert answers_are_right(bought, pictures(*range(12)))
    assert facts(bought) == (4, 3, 5)


def test_queries_that_come_back_are_spent_on_what_was_cut(clock, make_ledger):
    """Ten queries: two and a half batches are on their way; the first comes back unasked, so all goes on."""
    ledger, line = make_ledger(10), Line(clock, at(1, kind="throttled"), slots=3)
    policy = PurchasePolicy(retry=patient())
    bought = buy(pictures(*range(12)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert line.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    assert bought.positions.tolist() == list(range(10))
    assert (facts(bought), money(ledger)) == ((10, 0, 2), (10, 0, 0, 0))
    assert reservations(ledger) == [
        (4, "released", 1, "it was throttled"), (4, "answered", 1, None), (2, "answered", 1, None),
        (4, "answered", 2, None),
    ]  # fmt: skip


def test_what_the_budget_cut_off_is_asked_when_a_query_is_left_after_all(clock, make_ledger):
    """Ten queries for twelve pictures. The first of them is not taken, so the eleventh is paid for with its query."""

    def script(asked: list[int], number: int) -> Fault | None:
        return fault("declined") if 0 in asked else None

    ledger, policy = make_ledger(10), PurchasePolicy(retry=patient(max_bad_share=0.1))
    line = Line(clock, script, slots=3, seconds=lambda number: 5.0 if number == 1 else 1.0)
    bought = buy(pictures(*range(12)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert line.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1], [2, 3], [0], [1], [10]]
    assert (bought.positions.tolist(), bought.set_aside) == (list(range(1, 11)), {0: "it was declined"})
    assert (facts(bought), money(ledger)) == ((10, 0, 1), (10, 0, 0, 0))


@given(
    st.lists(st.integers(0, 8), max_size=25), st.lists(st.integers(0, 8), max_size=4, unique=True),
    st.integers(1, 6), st.integers(0, 8), st.integers(1, 3), st.booleans(), st.randoms(use_true_random=False),
)  # fmt: skip
@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_purchase_is_what_a_slow_buyer_would_make(
    clock, numbers, known, batch_size, money_left, slots, metered, chance
):
    """The model walks through the images, cuts batches at fixed positions, and pays until nothing is left."""
    ledger = Ledger(":memory:", len(known) + money_left, clock=clock.time)
    if known:
        purchase(pictures(*known), CountingTeacher(), ledger)
    line = Line(clock, slots=slots, metered=metered, seconds=lambda number: chance.choice([1, 2, 5]))
    policy = PurchasePolicy(retry=patient())
    bought = buy(pictures(*numbers), teachers=line, ledger=ledger, batch_size=batch_size, round=1, policy=policy)

    have, left, batches = set(known), money_left, {}
    for position, number in enumerate(numbers):
        if number not in have and left:
            have.add(number)
            left -= 1
            batches.setdefault(position // batch_size, []).append(number)
    expected = [position for position, number in enumerate(numbers) if number in have]
    assert line.batches == list(batches.values())
    assert sorted(line.teacher.batches) == sorted(batches.values())
    assert bought.positions.tolist() == expected
    assert bought.answers.labels.tolist() == [numbers[position] % 3 for position in expected]
    if expected:
        assert torch.equal(bought.answers.probs, opinion(pictures(*numbers)[expected]))
    assert facts(bought) == (money_left - left, len(expected) - (money_left - left), len(numbers) - len(expected))
    assert money(ledger) == (len(known) + money_left - left, 0, 0, 0)
    ledger.close()


# ---- how much is on its way


def test_one_image_goes_first_where_the_teacher_has_never_answered(clock, make_ledger):
    line, policy = Line(clock, slots=3), PurchasePolicy(retry=patient(proven=False), probe=True)
    ledger = make_ledger(100)
    buy(pictures(*range(12)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert line.batches == [[0], [1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert line.on_their_way == [1, 1, 2, 3]
    buy(pictures(*range(20, 26)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert line.batches[4:] == [[20, 21, 22, 23], [24, 25]], "it has answered: no second probe"


def test_each_process_begins_with_one_image_and_leaves_lost_batches_whole(clock, make_ledger):
    """The address or the function may be another than yesterday. A server may bill a batch it knows again once."""
    ledger, line = make_ledger(100), Line(clock)
    purchase(pictures(1), CountingTeacher(), ledger)
    policy = PurchasePolicy(retry=patient(proven=False), probe=True)
    buy(pictures(*range(1, 6)), teachers=line, ledger=ledger, batch_size=5, policy=policy)
    assert line.batches == [[2], [3, 4, 5]]
    stopped, policy = Line(clock, at(1, kind="lost")), PurchasePolicy(retry=patient(tries=1))
    with pytest.raises(TeacherError, match="it was lost"):  # and the run stops
        buy(pictures(*range(10, 14)), teachers=stopped, ledger=ledger, batch_size=4, policy=policy)
    line, policy = Line(clock), PurchasePolicy(retry=patient(proven=False), probe=True)
    buy(pictures(*range(10, 18)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert line.batches == [[14], [10, 11, 12, 13], [15, 16, 17]]


def test_a_batch_that_ctrl_c_left_on_its_way_stays_whole(clock, make_ledger):
    """Also where no other image is left: it had several images, so the teacher had answered one before."""
    ledger = make_ledger(100)
    stopped = Line(clock, slots=2, seconds=lambda number: 1.0 if number == 1 else 1000.0)

    def broken(done: int, total: int) -> None:
        raise KeyboardInterrupt

    begin, policy = pictures(*range(12)), PurchasePolicy(retry=patient())
    with pytest.raises(KeyboardInterrupt):
        buy(begin, teachers=stopped, ledger=ledger, batch_size=4, on_progress=broken, policy=policy)
    assert stopped.batches[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]] and money(ledger) == (4, 0, 4, 0)
    line, policy = Line(clock), PurchasePolicy(retry=patient(proven=False), probe=True)
    buy(begin[:8], teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert line.batches == [[4, 5, 6, 7]]


@pytest.mark.parametrize(("kind", "tried"), [("lost", [0, 1, 2]), ("doubtful", [0, 1, 2]), ("throttled", [0, 0, 0, 0])])
def test_until_it_has_answered_each_request_is_one_image(kind, tried, clock, make_ledger):
    """A wrong address that swallows requests, or a model that answers logits, costs `tries` queries, not batches."""
    retry = patient(proven=False, tries=3, give_up_after_s=5.0)
    ledger, policy = make_ledger(100), PurchasePolicy(retry=retry, probe=True)
    line = Line(clock, at(*range(1, 10), kind=kind), slots=4)
    why = "no request for 6 s" if kind == "throttled" else "the teacher failed 3 times in a row"
    with pytest.raises(TeacherError, match=f"{why}.*; last: it was {kind}"):
        buy(pictures(*range(12)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert line.batches == [[n] for n in tried]
    assert ledger.spent() == (0 if kind == "throttled" else 3)
    # One is lost, the next comes: then whole batches, and the lost one at the end.
    line, policy = Line(clock, at(1, kind=kind)), PurchasePolicy(retry=patient(proven=False), probe=True)
    buy(pictures(*range(20, 32)), teachers=line, ledger=make_ledger(100), batch_size=4, policy=policy)
    after = [[20], [21, 22, 23]] if kind == "throttled" else [[21], [22, 23]]
    assert line.batches[:3] == [[20], *after]
    assert line.asked == Counter([20, *range(20, 32)])


@pytest.mark.parametrize(
    ("kind", "wait_s", "down_s"), [("throttled", None, 20), ("throttled", 2.0, 15), ("throttled", 60.0, 290),
                                   ("unsent", None, 200)],
)  # fmt: skip
@pytest.mark.parametrize("proven", [False, True])
def test_a_teacher_that_takes_nothing_for_a_while_is_waited_for(proven, kind, wait_s, down_s, clock, make_ledger):
    """A cold start with 503, or 429 with Retry-After; nothing is charged in that time."""
    ledger, begin, line = make_ledger(100), clock.now, Line(clock)
    line._script = lambda asked, number: fault(kind, wait_s) if clock.now - begin < down_s else None
    line._seconds = lambda number: 0.01
    policy = PurchasePolicy(retry=patient(proven, tries=2), probe=True)
    if kind == "unsent" and not proven:
        with pytest.raises(TeacherError, match=r"^it was unsent$"):
            buy(pictures(*range(8)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
        assert len(line.sent) == 1, "a wrong address is found out at once"
        return
    bought = buy(pictures(*range(8)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert (facts(bought), money(ledger)) == ((8, 0, 0), (8, 0, 0, 0))
    assert clock.now - begin <= down_s + 62, "it rests at most a minute at a time"


def test_a_teacher_that_takes_nothing_for_too_long_stops_the_run(clock, make_ledger):
    ledger, begin, line = make_ledger(100), clock.now, Line(clock, at(*range(2, 1000), kind="throttled"))
    with pytest.raises(TeacherError, match=r"no request for \d+ s \(teacher.retry.give_up_after_s\); last: it was thr"):
        buy(pictures(*range(8)), teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient()))
    assert 300 <= clock.now - begin <= 370 and money(ledger) == (4, 0, 0, 0)


def test_one_request_is_on_its_way_until_the_first_answer_and_while_the_teacher_fails(clock, make_ledger):
    line = Line(clock, at(1, 6, kind="throttled"), slots=3)
    policy = PurchasePolicy(retry=patient(proven=False))
    buy(pictures(*range(20)), teachers=line, ledger=make_ledger(100), batch_size=2, policy=policy)
    # 1 fails, 2 is answered, 3 to 5 go together; when they are answered 6 to 8, of which 6 fails, the others do not.
    assert line.on_their_way[:8] == [1, 1, 1, 2, 3, 1, 2, 3]
    line = Line(clock, at(2, 3, 4, 5, 6, kind="throttled"), slots=3, seconds=lambda number: 1 + number / 100)
    buy(
        pictures(*range(40, 60)), teachers=line, ledger=make_ledger(100), batch_size=2,
        policy=PurchasePolicy(retry=patient(tries=9)),
    )  # fmt: skip
    # 1 to 3 together; 1 is answered, 2 and 3 are not (4 took the place of 1): alone until 7 is answered.
    assert line.on_their_way == [1, 2, 3, 3, 1, 1, 1, 1, 2, 3, *line.on_their_way[10:]]


# ---- faults: money, state, reason, and what follows

STOPS = {"refused", "failed"}
STOPS_UNPROVEN = STOPS | {"unsent", "malformed"}
REJECTED, UNCERTAIN = {"malformed", "doubtful"}, {"lost", "failed"}


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("metered", [True, False])
@pytest.mark.parametrize(
    "kind", ["refused", "throttled", "unsent", "lost", "malformed", "doubtful", "declined", "oversized", "failed"]
)
def test_every_fault_costs_what_it_may_cost_and_stops_or_goes_on(kind, metered, proven, clock, make_ledger):
    ledger, line = make_ledger(100), Line(clock, at(1, kind=kind), metered=metered)
    policy, images = PurchasePolicy(retry=patient(proven)), pictures(*range(8))
    state, charged = "released", 0
    if kind in REJECTED:
        state, charged = "answered", 4
    elif kind in UNCERTAIN and metered:
        state, charged = "uncertain", 4
    stops = kind in (STOPS if proven else STOPS_UNPROVEN)
    if stops:
        with pytest.raises(TeacherError, match=f"^it was {kind}$"):
            buy(images, teachers=line, ledger=ledger, batch_size=4, policy=policy)
        assert line.batches == [[0, 1, 2, 3]]
        answered = 0
    else:
        bought = buy(images, teachers=line, ledger=ledger, batch_size=4, policy=policy)
        assert bought.positions.tolist() == list(range(8)) and answers_are_right(bought, images)
        assert facts(bought) == (8 + charged, 0, 0)
        # Where both halves are taken, it was their number: no more than so many are sent again.
        again = {same: [[0, 1], [2, 3], [4, 5], [6, 7]] for same in ("declined", "oversized")}
        again |= {same: [[0, 1, 2, 3], [4, 5, 6, 7]] for same in ("throttled", "unsent")}
        assert line.batches[1:] == again.get(kind, [[4, 5, 6, 7], [0, 1, 2, 3]])
        attempts = [attempt for _, _, attempt, _ in reservations(ledger)]
        assert attempts == [1, *(1 + (batch[0] < 4) for batch in line.batches[1:])]
        answered = 8
    rejected = charged if kind in REJECTED else 0
    assert money(ledger) == (answered, rejected, charged - rejected, 0)
    reason = None if kind in REJECTED else f"it was {kind}"  # then each image has its reason
    assert reservations(ledger)[0] == (4, state, 1, reason)
    assert set(ledger.read("SELECT metered FROM reservations")) == {(int(metered),)}
    assert rejects(ledger) == Counter(dict.fromkeys(hash_images(images[:4]), 1) if rejected else {})
    remembered = dict.fromkeys(range(4), (1, f"it was {kind}")) if charged and stops else {}
    assert refusals(ledger, line.teacher, *range(8)) == remembered, "of those that have no other answer"


@pytest.mark.parametrize("metered", [True, False])
def test_a_reply_with_another_number_of_answers_is_no_answer(metered, clock, make_ledger):
    class Short(Line):
        def _reply(self, number: int, key: Any, images: Tensor) -> TeacherReply:
            reply = super()._reply(number, key, images)
            return TeacherReply(key=key, answers=reply.answers[torch.arange(2)]) if number == 2 else reply

    ledger, line = make_ledger(100), Short(clock, metered=metered)
    bought = buy(
        pictures(*range(6)), teachers=line, ledger=ledger, batch_size=3, policy=PurchasePolicy(retry=patient())
    )
    assert line.batches == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert (facts(bought), money(ledger)) == ((9, 0, 0), (6, 3, 0, 0))
    assert answers_are_right(bought, pictures(*range(6)))
    assert rejects(ledger) == Counter(hash_images(pictures(3, 4, 5)))
    assert {row[0] for row in ledger.read("SELECT reason FROM rejects")} == {"the teacher gave 2 answers to 3 images"}


def test_a_teacher_that_fails_so_often_in_a_row_stops_the_run_and_each_time_is_paid(clock, make_ledger):
    ledger = make_ledger(100)
    line = Line(clock, lambda pictures, number: fault("lost") if number >= 2 else None)
    with pytest.raises(TeacherError, match=r"^the teacher failed 3 times in a row; last: it was lost$"):
        buy(
            pictures(*range(20)),
            teachers=line,
            ledger=ledger,
            batch_size=4,
            policy=PurchasePolicy(retry=patient(tries=3)),
        )
    assert line.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert money(ledger) == (4, 0, 12, 0)
    # Asked once more, later: what was answered is not paid again.
    line = Line(clock)
    bought = buy(pictures(*range(20)), teachers=line, ledger=ledger, batch_size=4)
    assert line.batches == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]
    assert (facts(bought), money(ledger)) == ((32, 0, 0), (20, 0, 12, 0))


@pytest.mark.parametrize("kind", ["throttled", "unsent", "lost", "malformed"])
def test_requests_that_fail_together_are_one_failure(kind, clock, make_ledger):
    line = Line(clock, at(1, 2, 3, 4, 5, kind=kind), slots=5, seconds=float)
    policy = PurchasePolicy(retry=patient(tries=2))
    bought = buy(pictures(*range(30)), teachers=line, ledger=make_ledger(100), batch_size=3, policy=policy)
    assert line.on_their_way[:6] == [1, 2, 3, 4, 5, 1], "and it is alone until it is answered"
    assert bought.positions.tolist() == list(range(30))


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize(("metered", "lost"), [(True, 3 * 4 + 2), (False, 0)])
def test_batches_that_are_lost_are_asked_again(metered, lost, slots, clock, make_ledger):
    times = Counter({0: 2, 4: 1, 8: 1})

    def script(asked: list[int], number: int) -> Fault | None:
        times[asked[0]] -= 1
        return fault("lost") if times[asked[0]] >= 0 else None

    ledger, images = make_ledger(100), pictures(*range(10))
    line = Line(clock, script, metered=metered, slots=slots)
    bought = buy(images, teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient()))
    # Each is answered once; the first batch was lost twice, so it went in halves.
    assert sorted(line.teacher.batches) == [[0, 1], [2, 3], [4, 5, 6, 7], [8, 9]]
    assert answers_are_right(bought, images)
    assert (facts(bought), money(ledger)) == ((10 + lost, 0, 0), (10, 0, lost, 0))
    assert ledger.remaining() == 90 - lost


def test_what_was_lost_is_paid_from_the_budget(clock, make_ledger):
    ledger, line = make_ledger(10), Line(clock, at(2, kind="lost"))
    bought = buy(
        pictures(*range(9)), teachers=line, ledger=ledger, batch_size=3, policy=PurchasePolicy(retry=patient())
    )
    assert line.batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [3]]  # one query is left when 3, 4 and 5 come again
    assert bought.positions.tolist() == [0, 1, 2, 3, 6, 7, 8]
    assert (facts(bought), money(ledger)) == ((10, 0, 2), (7, 0, 3, 0))


def poison(number: int, kind: str = "lost") -> Callable[[list[int], int], Fault | None]:
    """The script of a teacher that fails whenever this picture is among those it is asked."""
    return lambda asked, _: fault(kind) if number in asked else None


@pytest.mark.parametrize("kind", ["lost", "malformed"])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_one_image_that_spoils_its_batch_is_isolated_and_given_up_alone(slots, kind, clock, make_ledger):
    ledger, images = make_ledger(1000), pictures(*range(80))
    line = Line(clock, poison(13, kind), slots=slots, seconds=lambda number: 1 + number % 3)
    policy = PurchasePolicy(retry=patient(tries=5))
    bought = buy(images, teachers=line, ledger=ledger, batch_size=16, policy=policy)
    assert bought.set_aside == {13: f"it was {kind}"} and answers_are_right(bought, images)
    assert [batch for batch in line.batches if 13 in batch] == [
        [*range(16)], [*range(16)], [*range(8, 16)], [*range(12, 16)], [12, 13], [13]
    ]  # fmt: skip
    charged = 16 + 16 + 8 + 4 + 2 + 1
    assert (bought.charged, ledger.spent()) == (79 + charged, 79 + charged)


def test_the_last_image_that_spoils_its_batch_does_not_pass_for_a_teacher_that_is_down(clock, make_ledger):
    """A batch of one at the very end, where no other answer comes in between."""
    ledger, line = make_ledger(100), Line(clock, poison(59))
    bought = buy(
        pictures(*range(60)), teachers=line, ledger=ledger, batch_size=1, policy=PurchasePolicy(retry=patient(tries=5))
    )
    assert (bought.set_aside, line.asked[59], money(ledger)) == ({59: "it was lost"}, 5, (59, 0, 5, 0))


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_lost_tries_are_remembered_when_the_run_goes_on(batch_size, clock, make_ledger):
    """The teacher answers nothing but that batch; each process is stopped by it after a try or two, none pays again
    for what was learned."""
    ledger, images, asked = make_ledger(1000), pictures(*range(64)), []
    bought = None
    while bought is None:
        line = Line(clock, poison(40))
        policy = PurchasePolicy(retry=patient(proven=False, tries=2), probe=True)
        with contextlib.suppress(TeacherError):
            bought = buy(images, teachers=line, ledger=ledger, batch_size=batch_size, policy=policy)
        asked += [batch for batch in line.batches if 40 in batch]
        assert len(asked) < 20, "it never ends"
    sizes = {1: [1, 1], 4: [4, 4, 2, 1], 16: [16, 16, 8, 4, 2, 1]}[batch_size]
    assert [len(batch) for batch in asked] == sizes
    assert (bought.set_aside, money(ledger)) == ({40: "it was lost"}, (63, 0, sum(sizes), 0))
    # Another run does not pay for it either.
    other = Line(clock, poison(40))
    policy = PurchasePolicy(retry=patient(proven=False, tries=2))
    later = buy(images, teachers=other, ledger=ledger, batch_size=batch_size, owner="another", policy=policy)
    assert (other.batches, later.set_aside) == ([], {40: "it was lost"})


def test_a_stop_of_the_users_is_not_held_against_an_image_nor_are_deaths_alone(clock, make_ledger):
    ledger, line = make_ledger(100), Line(clock, seconds=lambda number: 100.0)
    keys = hash_images(pictures(1, 2))

    class Impatient(Line):
        def collect(self, timeout_s: float | None) -> list[TeacherReply]:
            raise KeyboardInterrupt

    for _ in range(9):
        with pytest.raises(KeyboardInterrupt):
            buy(pictures(1), teachers=Impatient(clock), ledger=ledger, batch_size=1)
        ledger.grant([Order(hashes=keys[1:])], teacher=line.teacher.identity, owner="dead")
        ledger.recover("dead")
    assert money(ledger) == (0, 0, 18, 0)
    stopped = "kdray was stopped before the answer came"
    assert refusals(ledger, line.teacher, 1, 2) == {1: (0, stopped), 2: (9, "kdray died")}
    bought = buy(pictures(1, 2), teachers=Line(clock), ledger=ledger, batch_size=2)
    assert (bought.set_aside, len(bought.positions)) == ({}, 2)


@given(
    st.integers(2, 40), st.integers(1, 40), st.integers(1, 16), st.integers(1, 16), st.integers(1, 5), st.data(),
)  # fmt: skip
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_images_that_spoil_their_batches_cost_what_the_halving_costs_however_often_it_is_started(
    clock, count, last, first_size, second_size, tries, data
):
    """Started again and again, with another batch size each time: it ends, the rest is answered once, and each image
    that spoils costs about three batches and its tries."""
    spoils = data.draw(st.sets(st.integers(0, count - 1), max_size=2))
    ledger = Ledger(":memory:", 10**6, clock=clock.time)
    sizes, images = itertools.cycle([first_size, second_size]), pictures(*range(count))
    answered: Counter[int] = Counter()
    for _ in range(200):
        line = Line(clock, lambda asked, _: fault("lost") if spoils & set(asked) else None)
        policy = PurchasePolicy(retry=patient(proven=False, tries=tries, max_bad_share=1.0), probe=True)
        try:
            bought = buy(images, teachers=line, ledger=ledger, batch_size=next(sizes), policy=policy)
        except TeacherError:
            continue
        finally:
            answered.update(n for batch in line.teacher.batches for n in batch)
        break
    else:
        pytest.fail("it never ends")
    assert set(bought.set_aside) == spoils and not bought.short
    assert answered == Counter(set(range(count)) - spoils), "nobody is answered twice"
    largest = max(first_size, second_size)
    assert money(ledger)[2] <= len(spoils) * (4 * largest + tries + 8)
    ledger.close()


# ---- rests


def test_after_a_failure_all_is_quiet_for_as_long_as_the_policy_says(clock, make_ledger):
    line = Line(clock, at(2, 3, 4, kind="throttled"))
    start = clock.now
    buy(
        pictures(*range(4)), teachers=line, ledger=make_ledger(100), batch_size=2,
        policy=PurchasePolicy(retry=patient(backoff_s=2.0)),
    )  # fmt: skip
    # A second a reply, and rests of 2, 4 and 8 seconds between them.
    assert [round(when - start) for when, _ in line.sent] == [0, 1, 4, 9, 18]


def test_a_teacher_that_asks_for_more_rest_than_the_run_will_wait_stops_it(clock, make_ledger):
    ledger, line = make_ledger(100), Line(clock, at(2, kind="throttled", wait_s=301.0))
    begin = clock.now
    with pytest.raises(TeacherError, match=r"it wants to be left alone for 301 s \(teacher.retry.max_wait_s\)"):
        buy(pictures(*range(8)), teachers=line, ledger=ledger, batch_size=4)
    assert (clock.now - begin < 5, money(ledger)) == (True, (4, 0, 0, 0))
    notes, line = [], Line(clock, at(1, kind="throttled", wait_s=299.0))
    buy(
        pictures(*range(8)), teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient()),
        on_note=notes.append,
    )  # fmt: skip
    assert 299 <= line.sent[1][0] - line.sent[0][0] <= 302
    assert (notes, money(ledger)) == (["it was throttled: leaving the teacher alone for 299 s"], (8, 0, 0, 0))


@pytest.mark.parametrize("limits", [None, Limits(in_flight=8)], ids=["no limits", "limits"])
@pytest.mark.parametrize("metered", [True, False])
def test_a_rest_is_for_all_who_ask_this_teacher(metered, limits, clock, make_ledger):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    policy = PurchasePolicy(retry=patient(), limits=limits)
    line = Line(clock, at(1, kind="throttled", wait_s=60.0), metered=metered)
    with pytest.raises(KeyboardInterrupt):
        buy(
            pictures(1), teachers=line, ledger=make_ledger(100), batch_size=4, owner="first",
            policy=policy, on_progress=stop,
        )  # fmt: skip
    failed_at = clock.now
    other = Line(clock, metered=metered)
    policy = PurchasePolicy(retry=patient(), limits=limits)
    ledger = make_ledger(100)
    buy(pictures(2), teachers=other, ledger=ledger, batch_size=4, owner="second", policy=policy)
    assert 60 <= other.sent[0][0] - failed_at <= 62
    # Another teacher was not meant.
    third = Line(clock)
    third.teacher.identity = "somebody else"
    ledger.rest(other.teacher.identity, 1000)
    before = clock.now
    buy(pictures(3), teachers=third, ledger=ledger, batch_size=4, policy=policy)
    assert third.sent[0][0] - before < 1


@given(
    st.integers(1, 30), st.integers(1, 4), st.integers(2, 4), st.sampled_from([0.5, 2.0, 10.0]), st.integers(1, 3),
    st.integers(0, 2**32),
)  # fmt: skip
@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_limits_hold_for_two_runs_together(clock, count, slots, in_flight, rate, burst, seed):
    """One run has a request on its way all the time that the other one buys: never more on their way than allowed, and
    in t seconds at most burst + rate * t requests."""
    chance, ledger = random.Random(seed), Ledger(":memory:", 1000, clock=clock.time)
    limits = Limits(in_flight=in_flight, requests_per_s=rate, burst=burst)

    def policy() -> PurchasePolicy:
        retry = RetryPolicy(tries=1000, backoff_s=0.01, max_backoff_s=0.01)
        return PurchasePolicy(retry=RetryState(retry, chance), limits=limits, lease_s=1e6)

    def moody(asked: list[int], number: int) -> Fault | None:
        return fault("throttled") if chance.random() < 0.2 else None

    second = Line(clock, moody, slots=slots, seconds=lambda number: chance.choice([0.1, 0.5, 3.0]))

    def script(asked: list[int], number: int) -> Fault | None:
        if number == 2:
            images = pictures(*range(100, 100 + count))
            buy(images, teachers=second, ledger=ledger, batch_size=2, owner="second", policy=policy())
        return moody(asked, number)

    first = Line(clock, script, seconds=lambda number: 0.3)
    buy(pictures(*range(10)), teachers=first, ledger=ledger, batch_size=2, owner="first", policy=policy())
    assert money(ledger) == (10 + count, 0, 0, 0)
    assert 1 + max(second.on_their_way) <= in_flight
    sent = sorted(when for line in (first, second) for when, _ in line.sent)
    for k, begin in enumerate(sent):
        for number, end in enumerate(sent[k:], start=1):
            assert number <= burst + rate * (end - begin) + 1e-3
    ledger.close()


# ---- the daily quota


def test_a_used_up_day_stops_the_run_and_the_next_one_goes_on(clock, make_ledger):
    ledger = make_ledger(100)
    limits, images = Limits(queries_per_day=10), pictures(*range(24))
    line = Line(clock, slots=2)
    with pytest.raises(TeacherError) as error:
        buy(images, teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient(), limits=limits))
    assert str(error.value) == (
        "the teacher's daily quota (teacher.limits.queries_per_day) is used up; go on in 1.8 hours, after midnight UTC"
    )  # it is 22:13 there
    assert line.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert money(ledger) == (10, 0, 0, 0)
    assert len(ledger.lookup(line.teacher.identity, hash_images(images))) == 10
    with pytest.raises(TeacherError, match="daily quota"):  # another run is told the same
        buy(
            pictures(99), teachers=line, ledger=make_ledger(100), batch_size=4, owner="other",
            policy=PurchasePolicy(retry=patient(), limits=limits),
        )  # fmt: skip
    clock.now += 2 * 3600
    with pytest.raises(TeacherError, match=r"go on in 23\.8 hours"):
        buy(images, teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient(), limits=limits))
    assert line.batches[3:] == [[10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]
    clock.now += 24 * 3600
    bought = buy(
        images, teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient(), limits=limits)
    )
    assert (facts(bought), money(ledger)) == ((24, 0, 0), (24, 0, 0, 0))


def test_a_day_that_ends_while_the_budget_does_is_no_reason_to_come_back(clock, make_ledger):
    limits = Limits(queries_per_day=6)
    bought = buy(
        pictures(*range(9)), teachers=Line(clock), ledger=make_ledger(6), batch_size=3,
        policy=PurchasePolicy(retry=patient(), limits=limits),
    )  # fmt: skip
    assert facts(bought) == (6, 0, 3)


# ---- answers nobody can believe


def test_an_image_whose_answers_make_no_sense_is_asked_alone_and_then_set_aside(clock, make_ledger):
    ledger, line, images = make_ledger(100), Line(clock, never_believed(5)), pictures(*range(40))
    bought = buy(images, teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient(tries=5)))
    assert line.batches == [*(list(range(k, k + 4)) for k in range(0, 40, 4)), *[[5]] * 4]
    assert bought.set_aside == {5: "picture 5 is NaN"}
    assert bought.positions.tolist() == [n for n in range(40) if n != 5] and answers_are_right(bought, images)
    assert (facts(bought), money(ledger)) == ((44, 0, 0), (39, 5, 0, 0))
    assert refusals(ledger, line.teacher, 4, 5) == {5: (5, "picture 5 is NaN")}
    # Never paid again, by nobody.
    other = Line(clock)
    later = buy(images, teachers=other, ledger=make_ledger(100), batch_size=4, owner="another run")
    assert (other.batches, later.set_aside, facts(later)) == ([], {5: "picture 5 is NaN"}, (0, 39, 0))


def test_several_such_images_do_not_pass_for_a_teacher_that_is_down(clock, make_ledger):
    """Each of them is asked again alone, at the end, where no other answer comes in between."""
    wrong = (5, 17, 18, 33, 58)
    for slots in (1, 3):
        ledger, line = Ledger(":memory:", 1000, clock=clock.time), Line(clock, never_believed(*wrong), slots=slots)
        policy = PurchasePolicy(retry=patient(tries=5, max_bad_share=0.1))
        bought = buy(pictures(*range(60)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
        assert bought.set_aside == {n: f"picture {n} is NaN" for n in wrong}
        assert money(ledger) == (55, 5 * 5, 0, 0)
        assert line.asked[17] == 5
        ledger.close()


def test_an_accident_is_not_held_against_an_image(clock, make_ledger):
    def script(asked: list[int], number: int) -> dict[int, str]:
        return {1: "it slipped"} if number == 1 else {}

    ledger, line = make_ledger(100), Line(clock, script)
    bought = buy(
        pictures(*range(8)), teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient())
    )
    assert line.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [1]]
    assert (facts(bought), bought.set_aside, money(ledger)) == ((9, 0, 0), {}, (8, 1, 0, 0))
    assert reservations(ledger)[2] == (1, "answered", 2, None)


def test_too_many_such_images_stop_the_run(clock, make_ledger):
    wrong, policy = range(0, 40, 13), lambda share: PurchasePolicy(retry=patient(tries=2, max_bad_share=share))
    ledger, images = make_ledger(1000), pictures(*range(40))
    line = Line(clock, never_believed(*wrong))  # 0, 13, 26, 39: a tenth
    with pytest.raises(TeacherError) as error:
        buy(images, teachers=line, ledger=ledger, batch_size=4, policy=policy(0.07))
    assert str(error.value) == (
        "3 of 40 images have no answer one can believe, more than teacher.retry.max_bad_share = 0.07 allows; "
        "the last is image 26 of round 0: picture 26 is NaN"
    )
    spent = ledger.spent()
    assert spent == 40 + 3
    # Started again: refused before anything is paid. With patience for them, it goes on where it was.
    with pytest.raises(TeacherError, match="3 of 40 images have no answer"):
        buy(images, teachers=line, ledger=ledger, batch_size=4, policy=policy(0.07))
    assert ledger.spent() == spent
    bought = buy(images, teachers=line, ledger=ledger, batch_size=4, policy=policy(0.1))
    assert (sorted(bought.set_aside), ledger.spent()) == ([0, 13, 26, 39], spent + 1)


def test_classes_that_the_teacher_should_not_have_stop_the_run_after_one_batch(clock, make_ledger):
    """As `classes: 7` of a teacher with ten: every image of three classes would be paid for nothing."""
    ledger, images = make_ledger(1000), pictures(*range(40))
    unknown = UnknownClass("the teacher answered label 8")
    line = Line(clock, lambda numbers, _: {row: unknown for row, n in enumerate(numbers) if n % 10 >= 7})
    with pytest.raises(TeacherError) as error:
        buy(images, teachers=line, ledger=ledger, batch_size=10, policy=PurchasePolicy(retry=patient()))
    assert str(error.value) == (
        "3 of 10 images got a class that the teacher should not have, more than teacher.retry.max_bad_share = 0.05 "
        "allows; the last: the teacher answered label 8"
    )
    assert money(ledger) == (7, 3, 0, 0)


def test_few_classes_that_the_teacher_should_not_have_are_set_aside(clock, make_ledger):
    ledger, images = make_ledger(1000), pictures(*range(40))
    line = Line(clock, lambda numbers, _: {row: UnknownClass("other") for row, n in enumerate(numbers) if n in (3, 4)})
    bought = buy(images, teachers=line, ledger=ledger, batch_size=10, policy=PurchasePolicy(retry=patient(tries=2)))
    assert bought.set_aside == {3: "other", 4: "other"}
    assert money(ledger) == (38, 4, 0, 0)


@pytest.mark.parametrize(("share", "stops"), [(0.02, False), (0.01, True)])
def test_the_share_of_such_classes_among_all_answers_decides(clock, make_ledger, share, stops):
    """Three of them, once 197 others have been answered."""
    ledger, images = make_ledger(1000), pictures(*range(200))
    line = Line(clock, lambda numbers, _: {row: UnknownClass("other") for row, n in enumerate(numbers) if n >= 197})
    policy = PurchasePolicy(retry=patient(tries=2, max_bad_share=share))
    if stops:
        with pytest.raises(TeacherError, match=r"3 of 200 images got a class .*max_bad_share = 0\.01 allows"):
            buy(images, teachers=line, ledger=ledger, batch_size=10, policy=policy)
    else:
        bought = buy(images, teachers=line, ledger=ledger, batch_size=10, policy=policy)
        assert sorted(bought.set_aside) == [197, 198, 199]


def test_tries_are_remembered_where_the_run_is_killed_between_them(clock, make_ledger):
    ledger, images, asked = make_ledger(1000), pictures(*range(20)), []

    def start(stop_at: int) -> Bought:
        """A new process, stopped when it has told of so many replies."""
        turns, line = iter(range(1, 100)), Line(clock, never_believed(7))

        def stop(done: int, total: int) -> None:
            if next(turns) == stop_at:
                raise KeyboardInterrupt

        try:
            return buy(
                images, teachers=line, ledger=ledger, batch_size=4, on_progress=stop,
                policy=PurchasePolicy(retry=patient(tries=5, max_bad_share=0.5)),
            )  # fmt: skip
        finally:
            asked.append(line.asked[7])

    for stop_at in (6, 1, 1):
        with pytest.raises(KeyboardInterrupt):
            start(stop_at)
    for _ in range(2):
        bought = start(0)
        assert bought.set_aside == {7: "picture 7 is NaN"} and facts(bought) == (24, 0, 0)
    assert asked == [2, 1, 1, 1, 0]


def test_a_run_that_goes_on_with_nothing_but_such_images_sets_them_aside(clock, make_ledger):
    """The process before it was stopped when all else was answered: this one has not seen the teacher answer."""
    wrong, ledger = (5, 6, 17, 18, 33, 50, 51), make_ledger(1000)
    turns = iter(range(1, 100))

    def stop(done: int, total: int) -> None:
        if next(turns) == 16:  # the first batch went in two
            raise KeyboardInterrupt

    def start(line: Line, **more) -> Bought:
        policy = PurchasePolicy(retry=patient(proven=False, tries=5, max_bad_share=0.2), probe=True)
        return buy(pictures(*range(60)), teachers=line, ledger=ledger, batch_size=4, policy=policy, **more)

    with pytest.raises(KeyboardInterrupt):
        start(Line(clock, never_believed(*wrong)), on_progress=stop)
    assert money(ledger) == (53, 7, 0, 0)
    line = Line(clock, never_believed(*wrong))
    bought = start(line)
    assert bought.set_aside == {n: f"picture {n} is NaN" for n in wrong}
    assert line.asked == Counter(dict.fromkeys(wrong, 4))


def test_a_purchase_of_nothing_but_such_images_is_no_reason_to_doubt_a_teacher_that_has_answered(clock, make_ledger):
    line, policy = Line(clock, never_believed(1, 2, 3)), PurchasePolicy(retry=patient(tries=3, max_bad_share=1.0))
    bought = buy(pictures(1, 2, 3), teachers=line, ledger=make_ledger(100), batch_size=2, policy=policy)
    assert (len(bought.positions), sorted(bought.set_aside), facts(bought)) == (0, [0, 1, 2], (9, 0, 0))


def test_a_teacher_that_never_made_sense_costs_one_batch_each_time_it_is_tried(clock, make_ledger):
    """It answers logits, say. The user starts the run again, and has not seen to it."""
    ledger, line = make_ledger(1000), Line(clock, lambda asked, number: dict.fromkeys(range(len(asked)), "logits?"))
    for spent in (4, 8, 8 + 2):  # what failed twice is asked in halves
        policy = PurchasePolicy(retry=patient(proven=False))
        with pytest.raises(TeacherError, match=r"^logits\?$"):
            buy(pictures(*range(40)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
        assert money(ledger) == (0, spent, 0, 0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_teacher_gone_mad_is_found_out_soon(batch_size, clock, make_ledger):
    """From the fifth batch on nothing it says makes sense."""

    def script(asked: list[int], number: int) -> dict[int, str]:
        return dict.fromkeys(range(len(asked)), "NaN") if number >= 5 else {}

    ledger, line = make_ledger(1000), Line(clock, script)
    with pytest.raises(TeacherError, match="the teacher failed 3 times in a row; last: NaN"):
        buy(
            pictures(*range(200)), teachers=line, ledger=ledger, batch_size=batch_size,
            policy=PurchasePolicy(retry=patient(tries=3)),
        )  # fmt: skip
    assert len(line.batches) == 4 + 3
    assert money(ledger) == (4 * batch_size, 3 * batch_size, 0, 0)


# ---- images the teacher does not take


def test_a_declined_batch_is_halved_until_the_one_image_is_alone(clock, make_ledger):
    def script(asked: list[int], number: int) -> Fault | None:
        return fault("declined") if 13 in asked else None

    ledger, line, images = make_ledger(1000), Line(clock, script), pictures(*range(32))
    bought = buy(images, teachers=line, ledger=ledger, batch_size=8, policy=PurchasePolicy(retry=patient()))
    eights = [list(range(k, k + 8)) for k in range(0, 32, 8)]
    halves = [[8, 9, 10, 11], [12, 13, 14, 15], [12, 13], [12], [13], [14, 15]]
    assert line.batches == [*eights[:2], *halves, *eights[2:]]
    assert bought.set_aside == {13: "it was declined"}
    assert (facts(bought), money(ledger)) == ((31, 0, 0), (31, 0, 0, 0)), "what it turned down is not charged"
    assert answers_are_right(bought, images)


def test_declined_images_are_remembered_and_prove_nothing_against_a_teacher_that_has_answered(clock, make_ledger):
    """A run set an image aside and was stopped. It goes on, and another run does not ask for the image either."""
    ledger, images, declines = make_ledger(1000), pictures(*range(32)), poison(13, "declined")
    turns = iter(range(1, 100))

    def stop(done: int, total: int) -> None:
        if next(turns) == 9:
            raise KeyboardInterrupt

    def start(line: Line, **more) -> Bought:
        policy = PurchasePolicy(retry=patient(proven=False), probe=True)
        return buy(images, teachers=line, ledger=ledger, batch_size=8, policy=policy, **more)

    first = Line(clock, declines)
    with pytest.raises(KeyboardInterrupt):
        start(first, on_progress=stop)
    assert first.asked[13] == 4, "among 8, 4 and 2, and alone"
    assert first.batches[-1] == [14, 15], "another image was answered after it"
    line = Line(clock, declines)
    bought = start(line)
    assert bought.set_aside == {13: "it was declined"} and facts(bought) == (31, 0, 0)
    assert line.asked[13] == 0
    other = Line(clock, declines)
    assert start(other, owner="another run").set_aside == {13: "it was declined"}
    assert other.batches == []
    assert ledger.forget_declined() == 1
    again = Line(clock)  # a teacher that has learned to read it
    assert start(again, owner="third", round=1).set_aside == {}
    assert again.batches == [[13]]


@pytest.mark.parametrize("kind", ["declined", "oversized"])
@pytest.mark.parametrize("metered", [True, False])
def test_a_first_image_that_is_declined_is_no_reason_to_give_up(metered, kind, clock, make_ledger):
    ledger, line = make_ledger(1000), Line(clock, poison(0, kind), metered=metered)
    policy = PurchasePolicy(retry=patient(proven=False), probe=metered)
    bought = buy(pictures(*range(32)), teachers=line, ledger=ledger, batch_size=8, policy=policy)
    assert bought.set_aside == {0: f"it was {kind}"} and len(bought.positions) == 31
    assert money(ledger) == (31, 0, 0, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_a_teacher_that_declines_all_it_is_asked_stops_the_run_soon_and_names_the_images(count, clock, make_ledger):
    ledger, line = make_ledger(1000), Line(clock, at(*range(1, 100), kind="declined"))
    policy = PurchasePolicy(retry=patient(proven=False), probe=True)
    with pytest.raises(TeacherError) as error:
        buy(
            pictures(*range(count)), teachers=line, ledger=ledger, batch_size=8, policy=policy,
            name=lambda position: f"row {position} of images",
        )  # fmt: skip
    names = ", ".join(f"row {n} of images" for n in range(min(count, 3)))
    assert str(error.value) == f"it was declined; the teacher has answered no image yet, and did not take {names}"
    assert len(line.batches) <= 3 and money(ledger) == (0, 0, 0, 0)
    assert refusals(ledger, line.teacher, *range(count)) == {}, "it may be the setting: nothing is held against them"


def expires(after: int) -> Callable[[list[int], int], Fault | None]:
    """The script of a teacher whose key expires after so many batches: it says no more than that it declines."""
    return lambda asked, number: fault("declined") if number > after else None


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("after", [0, 1, 3, 11])
def test_images_are_not_held_guilty_of_a_key_that_expires(after, slots, clock, make_ledger):
    """The run stops soon, and says why. With a new key it goes on, and every image is answered once."""
    ledger, images = make_ledger(1000), pictures(*range(100))
    purchase(images[:4], CountingTeacher(), ledger)  # it has answered others before

    def start(line: Line) -> Bought:
        return buy(
            images, teachers=line, ledger=ledger, batch_size=8, policy=PurchasePolicy(retry=patient(proven=after > 0))
        )

    line = Line(clock, expires(after), slots=slots)
    with pytest.raises(TeacherError, match="has taken none of the last 10 images, though it answered others before"):
        start(line)
    assert len(line.batches) <= after + 45
    assert refusals(ledger, line.teacher, *range(100)) == {}, "nothing is held against them"
    bought = start(Line(clock, slots=slots))
    assert len(bought.positions) == 100 and bought.set_aside == {} and money(ledger) == (100, 0, 0, 0)


def test_images_declined_at_the_very_end_are_left_out_but_not_remembered(clock, make_ledger):
    ledger, line, images = make_ledger(1000), Line(clock, expires(5)), pictures(*range(42))
    bought = buy(images, teachers=line, ledger=ledger, batch_size=8, policy=PurchasePolicy(retry=patient()))
    assert bought.set_aside == {40: "it was declined", 41: "it was declined"} and len(bought.positions) == 40
    assert refusals(ledger, line.teacher, *range(42)) == {}
    again = buy(images, teachers=Line(clock), ledger=ledger, batch_size=8, round=1)
    assert again.set_aside == {} and money(ledger) == (42, 0, 0, 0)


@given(
    st.sets(st.integers(0, 59), max_size=30), st.integers(1, 16), st.integers(1, 3), st.booleans(),
    st.sampled_from(["declined", "oversized"]),
)  # fmt: skip
@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whichever_images_a_teacher_declines_all_others_are_answered(clock, bad, size, slots, proven, kind):
    ledger = Ledger(":memory:", 100, clock=clock.time)
    line = Line(clock, lambda asked, number: fault(kind) if bad & set(asked) else None, slots=slots)
    retry = patient(proven=True, max_bad_share=1)
    retry.proven, retry.known = proven, True
    bought = buy(
        pictures(*range(60)), teachers=line, ledger=ledger, batch_size=size, policy=PurchasePolicy(retry=retry)
    )
    assert set(bought.set_aside) == bad and set(bought.positions.tolist()) == set(range(60)) - bad
    assert money(ledger) == (60 - len(bad), 0, 0, 0)
    assert refusals(ledger, line.teacher, *range(60)).keys() <= bad
    ledger.close()


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", ["declined", "oversized"])
def test_thirty_declined_images_side_by_side_are_told_from_a_key_that_expired(kind, slots, clock, make_ledger):
    ledger, bad, policy = make_ledger(100), set(range(20, 50)), PurchasePolicy(retry=patient(max_bad_share=0.5))
    line = Line(clock, lambda asked, number: fault(kind) if bad & set(asked) else None, slots=slots)
    bought = buy(pictures(*range(60)), teachers=line, ledger=ledger, batch_size=16, policy=policy)
    assert set(bought.set_aside) == bad and len(bought.positions) == 30


def test_a_run_that_has_too_many_declined_images_says_how_to_forget_them(clock, make_ledger):
    ledger, bad = make_ledger(1000), range(0, 40, 8)
    line = Line(clock, lambda asked, number: fault("declined") if set(bad) & set(asked) else None)
    for _ in range(2):  # and again, where it asks about none of them
        with pytest.raises(TeacherError, match=r"more than teacher\.retry\.max_bad_share = 0\.05 allows") as error:
            buy(
                pictures(*range(40)), teachers=line, ledger=ledger, batch_size=8, policy=PurchasePolicy(retry=patient())
            )
    assert "kdray ledger RUN --forget-declined" in str(error.value)


@pytest.mark.parametrize("images", [(0, 1), (1, 2)])
def test_answers_of_another_number_of_classes_are_told_before_anything_is_paid(images, clock, make_ledger):
    ledger, line = make_ledger(1000), Line(clock)
    buy(pictures(1), teachers=line, ledger=ledger, batch_size=4)
    line.teacher.num_classes = 5
    with pytest.raises(TeacherError, match=r"holds an answer of 3 classes of this teacher, teacher\.classes says 5"):
        buy(pictures(*images), teachers=line, ledger=ledger, batch_size=4)
    assert money(ledger) == (1, 0, 0, 0)


# ---- fewer images a request


def takes_at_most(size: int, kind: str) -> Callable[[list[int], int], Fault | None]:
    """The script of a teacher that does not take larger batches."""
    return lambda asked, number: fault(kind) if len(asked) > size else None


@pytest.mark.parametrize(("kind", "requests"), [("oversized", 7 + 59), ("declined", 7 + 59 + 7)])
def test_a_batch_size_that_is_too_large_is_lowered_and_said(kind, requests, clock, make_ledger):
    ledger, line, notes, retry = make_ledger(1000), Line(clock, takes_at_most(1, kind)), [], patient(proven=False)
    policy = PurchasePolicy(retry=retry, probe=True)
    bought = buy(
        pictures(*range(60)), teachers=line, ledger=ledger, batch_size=128, policy=policy, on_note=notes.append
    )
    assert len(bought.positions) == 60 and money(ledger) == (60, 0, 0, 0) and not bought.set_aside
    assert len(line.batches) <= requests
    assert notes[-1].startswith("the teacher takes no more than 1 image a request")
    # It is remembered in the next rounds of the run.
    line = Line(clock, takes_at_most(1, kind))
    buy(pictures(*range(60, 90)), teachers=line, ledger=ledger, batch_size=128, policy=policy, round=1)
    assert line.batches == [[n] for n in range(60, 90)]


def test_what_the_server_says_of_its_batches_is_known_before_it_is_asked(clock, make_ledger):
    line, notes = Line(clock, takes_at_most(4, "declined")), []
    line.teacher.batch_limit = 4
    buy(pictures(*range(10)), teachers=line, ledger=make_ledger(100), batch_size=8, on_note=notes.append)
    assert line.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and len(notes) == 1


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 9), st.integers(1, 3),
    st.sampled_from(["oversized", "declined"]), st.randoms(use_true_random=False),
)  # fmt: skip
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_another_batch_size_never_pays_for_an_image_twice(clock, sizes, most, slots, kind, chance):
    """A run is stopped and goes on with other batch sizes, by a teacher that takes only so many images."""
    ledger, images = Ledger(":memory:", 30, clock=clock.time), pictures(*range(30))
    answered: Counter[int] = Counter()

    def stop(done: int, total: int) -> None:
        if chance.random() < 0.3:
            raise KeyboardInterrupt

    for start, size in enumerate([*sizes, 4]):
        line = Line(clock, takes_at_most(most, kind), slots=slots)
        policy = PurchasePolicy(retry=patient(proven=False), probe=chance.random() < 0.5)
        with contextlib.suppress(KeyboardInterrupt):
            bought = buy(
                images, teachers=line, ledger=ledger, batch_size=size, policy=policy,
                on_progress=stop if start < len(sizes) else None,
            )  # fmt: skip
        answered.update(n for batch in line.teacher.batches for n in batch)
    assert answered == Counter(range(30)) and bought.positions.tolist() == list(range(30))
    assert money(ledger) == (30, 0, 0, 0)
    ledger.close()


# ---- one class


def test_a_teacher_that_names_one_class_is_told_of_once_after_fifty_images(clock, make_ledger):
    """Over the purchases of a run; pictures 0, 3, 6, ... are of class 0."""
    notes, ledger, policy = [], make_ledger(1000), PurchasePolicy(retry=patient())

    def bought(*numbers: int) -> list[str]:
        more = {"round": len(notes), "policy": policy, "on_note": notes.append}
        buy(pictures(*numbers), teachers=Line(clock), ledger=ledger, batch_size=7, **more)
        return notes

    assert bought(*range(0, 120, 3)) == []  # 40 of them
    assert bought(*range(0, 120, 3)) == [], "the same ones again"
    (note,) = bought(*range(120, 180, 3))
    assert note.startswith("all answers to the first 50 images name one class (number 0)")
    assert len(bought(*range(180, 250, 3))) == 1
    policy = PurchasePolicy(retry=patient())
    buy(pictures(*range(0, 240, 3), 1), teachers=Line(clock), ledger=ledger, batch_size=7, policy=policy)
    assert len(notes) == 1


def test_a_second_class_among_the_first_fifty_is_enough(clock, make_ledger):
    notes = []
    images = pictures(1, *range(0, 210, 3))
    buy(images, teachers=Line(clock), ledger=make_ledger(1000), batch_size=50, on_note=notes.append)
    assert notes == []


# ---- two at once


class Together:
    """A teacher that two runs ask at the same time: neither gets its first answer before both have asked."""

    identity, num_classes, metered = "together", CLASSES, True

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.batches = 0
        self._lock, self._both = threading.Lock(), threading.Barrier(2)
        self._met = threading.local()

    def answer(self, images: Tensor) -> Answers:
        with self._lock:
            self.asked.update(numbers_of(images))
            self.batches += 1
        if not hasattr(self._met, "done"):
            self._met.done = True
            self._both.wait(30)
        probs = opinion(images)
        return Answers(probs=probs, labels=probs.argmax(dim=1), num_classes=CLASSES)


def test_two_runs_that_buy_the_same_images_at_once_pay_for_each_one_once(tmp_path):
    teacher, images, results = Together(), pictures(*range(150)), {}

    def work(owner: str) -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite", 1000)
        try:
            results[owner] = buy(
                images, teachers=LocalTeacherPool(teacher), ledger=ledger, batch_size=4, owner=owner,
                policy=PurchasePolicy(limits=Limits(in_flight=8)),
            )  # fmt: skip
        finally:
            ledger.close()

    threads = [threading.Thread(target=work, args=(owner,)) for owner in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == ["a", "b"]
    assert teacher.asked == Counter(range(150)), "each image was answered exactly once"
    for bought in results.values():
        assert bought.positions.tolist() == list(range(150)) and answers_are_right(bought, images)
        assert bought.charged > 0 and bought.charged + bought.reused == 150
    assert sum(bought.charged for bought in results.values()) == 150
    with pytest.raises(LedgerError):
        Ledger(tmp_path / "ledger.sqlite", 999)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert money(ledger) == (150, 0, 0, 0)
    assert ledger.read("SELECT count(*) FROM claims") == [(0,)]
    ledger.close()


class Logging:
    """A teacher for several processes: each picture it is asked is a line in a file. It may wait for good."""

    identity, num_classes, metered = "logging", CLASSES, True

    def __init__(self, path, stuck_at: int | None = None, seen=None) -> None:
        self.path, self.stuck_at, self.seen = path, stuck_at, seen

    def answer(self, images: Tensor) -> Answers:
        if self.stuck_at in numbers_of(images):
            self.seen.set()
            signal.pause()
        with open(self.path, "a") as log:
            log.write("".join(f"{n}\n" for n in numbers_of(images)))
        probs = opinion(images)
        return Answers(probs=probs, labels=probs.argmax(dim=1), num_classes=CLASSES)


def _buy_in_a_process(teacher: Logging, path: str, start) -> None:
    torch.set_num_threads(1)
    ledger = Ledger(path)
    start.wait(30)
    bought = buy(
        pictures(*range(90)), teachers=LocalTeacherPool(teacher), ledger=ledger, batch_size=3, owner=str(os.getpid()),
        policy=PurchasePolicy(lease_s=60.0),
    )  # fmt: skip
    ledger.close()
    os._exit(0 if answers_are_right(bought, pictures(*range(90))) and not bought.short else 1)


def test_processes_share_a_ledger_and_what_a_killed_one_had_asked_for_is_asked_again(tmp_path):
    """One of three is killed with a batch on its way: its images are busy until its lease is over."""
    context, log, path = multiprocessing.get_context("fork"), tmp_path / "log", str(tmp_path / "ledger.sqlite")
    log.touch()
    Ledger(path, 1000).close()
    start, seen = context.Barrier(2), context.Event()
    victim = context.Process(
        target=_buy_in_a_process, args=(Logging(log, 12, seen), path, context.Barrier(1)), daemon=True
    )
    victim.start()
    assert seen.wait(60), "it has twelve answers, and three images on their way"
    others = [
        context.Process(target=_buy_in_a_process, args=(Logging(log), path, start), daemon=True) for _ in range(2)
    ]
    for process in others:
        process.start()
    ledger = Ledger(path)
    while ledger.spent() < 87:  # all but the three that are on their way
        assert all(process.exitcode is None for process in others), "they wait for the rest"
        others[0].join(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(30)
    assert ledger.recover(str(victim.pid)) == (3, 0), "as the next start of that run does"
    for process in others:
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0]
    assert Counter(log.read_text().split()) == Counter(str(n) for n in range(90)), "each answered exactly once"
    assert money(ledger) == (90, 0, 3, 0)
    ledger.close()


def test_what_another_run_has_on_its_way_is_waited_for_and_asked_when_its_lease_is_over(clock, make_ledger):
    """While A waits for its reply, B wants the same images and more. A never says anything again."""
    a, b = make_ledger(100), make_ledger(100)
    second, notes = Line(clock), []

    def script(asked: list[int], number: int) -> None:
        nonlocal bought
        bought = buy(
            pictures(*range(8)), teachers=second, ledger=b, batch_size=4, owner="b",
            policy=PurchasePolicy(lease_s=50.0), on_note=notes.append,
        )  # fmt: skip

    bought, begin = None, clock.now
    policy = PurchasePolicy(lease_s=50.0)
    buy(pictures(2, 3, 4), teachers=Line(clock, script), ledger=a, batch_size=4, owner="a", policy=policy)
    assert second.batches[:2] == [[0, 1], [5, 6, 7]]
    assert sorted(second.batches[2:]) == [[2, 3], [4]]
    assert second.sent[1][0] - begin < 10 and 50 <= second.sent[2][0] - begin <= 52
    assert len(notes) == 1 and "another run on this ledger has 3 of the images on their way" in notes[0]
    assert facts(bought) == (8, 0, 0) and answers_are_right(bought, pictures(*range(8)))
    # A's reply came after all, and was paid: charges are honest, and the first answer stays.
    assert money(a) == (11, 0, 0, 0)


@pytest.mark.parametrize("cap", ["budget", "day"])
@pytest.mark.parametrize(
    ("state", "money_after", "bought_after"),
    [("answered", (8, 0, 0, 0), (5, 3, 0)), ("released", (8, 0, 0, 0), (8, 0, 0)), (None, (5, 0, 0, 3), (5, 0, 3))],
)
def test_who_may_buy_no_more_waits_for_what_others_have_on_their_way(
    cap, state, money_after, bought_after, clock, make_ledger
):
    """Eight queries in all. A has three images on their way, B wants these and five more; B then hears of A's end."""
    ledger, images, line, notes = make_ledger(8 if cap == "budget" else 100), pictures(*range(8)), Line(clock), []
    theirs = hash_images(images)[5:]
    identity, limits = line.teacher.identity, Limits(queries_per_day=8 if cap == "day" else None)
    order = Order(hashes=theirs)
    (part,) = ledger.grant([order], teacher=identity, owner="a", lease_s=50.0, limits=limits).parts

    def end_of_a(note: str) -> None:
        notes.append(note)
        if state is not None:
            answers = line.teacher.answer(images[5:]).rows() if state == "answered" else None
            hashes = theirs if state == "answered" else ()
            ledger.settle([Outcome(reservation=part.reservation, state=state, hashes=hashes, answers=answers)])

    def b() -> Bought:
        policy = PurchasePolicy(limits=limits, lease_s=50.0)
        return buy(images, teachers=line, ledger=ledger, batch_size=4, owner="b", policy=policy, on_note=end_of_a)

    begin = clock.now
    if cap == "day" and state is None:
        with pytest.raises(TeacherError, match="daily quota"):
            b()
    else:
        bought = b()
        assert facts(bought) == bought_after and answers_are_right(bought, images)
    assert money(ledger) == money_after
    assert notes == ["another run on this ledger has 3 of the images on their way: waiting for its answers"]
    assert 50 <= clock.now - begin < 60 if state is None else clock.now - begin < 10


# ---- interruptions


@pytest.mark.parametrize(("metered", "lost"), [(True, 4), (False, 0)])
def test_a_refusal_ends_the_purchase_and_keeps_what_was_answered(metered, lost, make_ledger):
    def refuse(batch: int) -> None:
        if batch == 2:
            raise TeacherError("error 451: not for you")

    teacher, ledger, images = CountingTeacher(metered, before=refuse), make_ledger(100), pictures(*range(11))
    with pytest.raises(TeacherError, match="error 451: not for you"):
        purchase(images, teacher, ledger)
    assert teacher.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]  # never asked again
    assert (ledger.spent(), ledger.uncertain(), ledger.remaining()) == (4 + lost, lost, 96 - lost)
    assert ledger.recover("") == (0, 0)
    assert set(ledger.lookup(teacher.identity, hash_images(images))) == set(hash_images(images[:4]))
    # Asked once more, later: what was answered is not paid again.
    bought = purchase(images, teacher, ledger, round=1)
    assert teacher.batches[2:] == [[4, 5, 6, 7], [8, 9, 10]]
    assert (facts(bought), ledger.spent()) == ((7, 4, 0), 11 + lost)
    assert torch.equal(bought.answers.probs, opinion(images))


@pytest.mark.parametrize("kind", ["refused", "failed"])
def test_what_is_on_its_way_when_the_teacher_refuses_is_waited_for(kind, clock, make_ledger):
    """Four are on their way; one is refused at once, the others answer, or not, up to a minute later."""

    def script(asked: list[int], number: int) -> Fault | dict[int, str] | None:
        return {2: fault(kind), 3: fault("lost"), 4: {0: "NaN"}}.get(number)

    ledger = make_ledger(100)
    line = Line(clock, script, slots=4, seconds=lambda number: {2: 1.0, 3: 20.0}.get(number, 60.0))
    with pytest.raises(TeacherError, match=f"^it was {kind}$"):
        buy(pictures(*range(20)), teachers=line, ledger=ledger, batch_size=3, policy=PurchasePolicy(retry=patient()))
    assert (len(line.sent), line.replied) == (4, 4)
    assert money(ledger) == (5, 1, 3 + 3 * (kind == "failed"), 0)
    assert len(ledger.lookup(line.teacher.identity, hash_images(pictures(*range(20))))) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize(("metered", "lost"), [(True, 4), (False, 0)])
def test_an_interruption_leaves_no_reservation_open(metered, lost, error, make_ledger):
    def before(batch: int) -> None:
        if batch == 3:
            raise error

    teacher, ledger, images = CountingTeacher(metered, before=before), make_ledger(100), pictures(*range(20))
    with pytest.raises(error):
        purchase(images, teacher, ledger)
    assert money(ledger) == (8, 0, lost, 0)
    state = "uncertain" if metered else "released"
    assert reservations(ledger)[2] == (4, state, 1, "kdray was stopped before the answer came")
    assert facts(purchase(images, teacher, ledger, round=1)) == (12, 8, 0)
    assert [len(batch) for batch in teacher.batches] == [4] * 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_when_the_user_stops_the_run_the_replies_of_the_next_seconds_are_kept(error, clock, make_ledger):
    """Told of the first reply the observer fails. Two more come in time, the fourth would take a minute."""

    def broken(done: int, total: int) -> None:
        raise error("no terminal")

    ledger = make_ledger(100)
    line = Line(clock, slots=4, seconds=lambda number: {1: 1.0, 2: 3.0, 3: 9.0}.get(number, 60.0))
    begin = clock.now
    with pytest.raises(error, match="no terminal"):
        buy(
            pictures(*range(20)), teachers=line, ledger=ledger, batch_size=4, on_progress=broken,
            policy=PurchasePolicy(retry=patient()),
        )  # fmt: skip
    assert len(line.sent) == 4 and clock.now - begin < 15
    assert money(ledger) == (12, 0, 4, 0)
    assert len(ledger.lookup(line.teacher.identity, hash_images(pictures(*range(12))))) == 12


def test_stopping_twice_counts_what_is_on_its_way_and_ends_at_once(clock, make_ledger):
    class Impatient(Line):
        def collect(self, timeout_s: float | None) -> list[TeacherReply]:
            raise KeyboardInterrupt

    ledger = make_ledger(100)
    with pytest.raises(KeyboardInterrupt):
        buy(
            pictures(*range(20)), teachers=Impatient(clock, slots=2), ledger=ledger, batch_size=4,
            policy=PurchasePolicy(retry=patient()),
        )  # fmt: skip
    assert money(ledger) == (0, 0, 8, 0)


@pytest.mark.parametrize(("error", "sent"), [(TeacherError, 1), (KeyboardInterrupt, 2)])
def test_what_could_not_be_sent_is_given_back(error, sent, clock, make_ledger):
    """Three batches have their reservation when the second cannot be sent. A pool that says so has not sent it; one
    that was interrupted may have."""

    class Torn(Line):
        def send(self, key: Any, images: Tensor, replies: int = 0) -> None:
            if len(self.sent) == 1:
                raise error("no worker there")
            super().send(key, images, replies)

    ledger, line = make_ledger(100), Torn(clock, slots=3)
    with pytest.raises(error, match="no worker there"):
        buy(pictures(*range(20)), teachers=line, ledger=ledger, batch_size=4, policy=PurchasePolicy(retry=patient()))
    assert money(ledger) == (4, 0, 4 * (sent - 1), 0)
    states = ["answered", "uncertain" if sent == 2 else "released", "released"]
    assert [row[1] for row in reservations(ledger)] == states
    assert reservations(ledger)[2][3] == "never sent"


class Torn(Ledger):
    """A ledger that cannot settle at some calls, from 1."""

    fails_at: tuple[int, ...] = ()
    calls = 0

    def settle(self, outcomes) -> None:
        self.calls += 1
        if self.calls in self.fails_at:
            raise LedgerError("the disk is full")
        super().settle(outcomes)


def test_a_ledger_that_fails_while_the_run_ends_does_not_hide_why_it_ends(clock, tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt("the user")

    ledger = Torn(tmp_path / "ledger.sqlite", 100, clock=clock.time)
    ledger.fails_at = (2,)
    with pytest.raises(KeyboardInterrupt, match="the user"):
        buy(
            pictures(*range(12)), teachers=Line(clock, slots=2, seconds=float), ledger=ledger, batch_size=4,
            on_progress=stop, policy=PurchasePolicy(retry=patient()),
        )  # fmt: skip
    assert money(ledger) == (4, 0, 0, 4)
    assert ledger.recover("") == (4, 0), "the next start counts it"
    ledger.close()


def test_answers_that_could_not_be_written_are_written_when_the_run_ends(clock, tmp_path):
    ledger = Torn(tmp_path / "ledger.sqlite", 100, clock=clock.time)
    ledger.fails_at = (2,)
    line = Line(clock)
    with pytest.raises(LedgerError, match="the disk is full"):
        buy(pictures(*range(12)), teachers=line, ledger=ledger, batch_size=4)
    assert money(ledger) == (8, 0, 0, 0), "the second try had room"
    assert len(ledger.lookup(line.teacher.identity, hash_images(pictures(*range(12))))) == 8
    ledger.close()


def test_a_reply_to_an_earlier_purchase_is_not_taken_for_an_answer_to_this_one(clock, make_ledger):
    """The first purchase was stopped, and did not wait any longer; its answer arrives during the second."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    ledger = make_ledger(100)
    line = Line(clock, slots=4, seconds=lambda number: 30.0 if number == 2 else 1.0 if number == 1 else 25.0)
    with pytest.raises(KeyboardInterrupt):
        buy(
            pictures(*range(8)), teachers=line, ledger=ledger, batch_size=4, on_progress=stop,
            policy=PurchasePolicy(retry=patient()),
        )  # fmt: skip
    assert money(ledger) == (4, 0, 4, 0)
    line.slots = 3  # one is taken
    images = pictures(*range(50, 62))
    bought = buy(images, teachers=line, ledger=ledger, batch_size=4, round=1, policy=PurchasePolicy(retry=patient()))
    assert bought.positions.tolist() == list(range(12)) and answers_are_right(bought, images)
    assert money(ledger) == (16, 0, 4, 0)


# ---- everything at once


class Chaos:
    """The script of a teacher that fails at random, and its own book of what it may bill."""

    def __init__(self, chance: random.Random, rate: float, metered: bool) -> None:
        self.chance, self.rate, self.metered = chance, rate, metered
        self.answered: Counter[int] = Counter()
        self.rejected = self.uncertain = 0

    def __call__(self, asked: list[int], number: int) -> Fault | dict[int, str] | None:
        if self.chance.random() >= self.rate:
            self.answered.update(asked)
            return None
        kind = self.chance.choice(
            ["throttled", "throttled", "unsent", "lost", "lost", "malformed", "bad", "bad", "declined", "refused",
             "failed"]
        )  # fmt: skip
        if kind == "bad":
            bad = {row: "NaN" for row in range(len(asked)) if self.chance.random() < 0.4}
            self.answered.update(n for row, n in enumerate(asked) if row not in bad)
            self.rejected += len(bad)
            return bad or None
        self.rejected += len(asked) * (kind == "malformed")
        self.uncertain += len(asked) * (kind in ("lost", "failed") and self.metered)
        return fault(kind, wait_s=self.chance.choice([None, 0.0, 7.0, 1000.0]))


@given(
    st.integers(0, 2**32), st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 8),
    st.integers(1, 120), st.integers(1, 4), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.1, 0.4, 0.8]),
)  # fmt: skip
@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_goes_wrong_the_books_agree(clock, seed, numbers, batch_size, budget, slots, metered, probe, rate):
    """A run is started again and again, each time as a new process would, until it is done."""
    chance, ledger = random.Random(seed), Ledger(":memory:", budget, clock=clock.time)
    chaos, images = Chaos(chance, rate, metered), pictures(*numbers)
    limits = chance.choice([None, Limits(in_flight=2), Limits(requests_per_s=2, burst=2), Limits(queries_per_day=20)])
    identity, tries = CountingTeacher().identity, chance.choice([1, 3, 5])

    def check() -> None:
        """The ledger has all that was answered, and charges exactly what the teacher may bill."""
        assert money(ledger) == (chaos.answered.total(), chaos.rejected, chaos.uncertain, 0)
        assert ledger.spent() <= budget
        assert max(chaos.answered.values(), default=0) <= 1, "nothing was answered twice"
        known = ledger.lookup(identity, hash_images(pictures(*range(41))))
        for n, key in enumerate(hash_images(pictures(*range(41)))):
            assert (key in known) == (n in chaos.answered)
            if key in known:
                assert torch.equal(torch.tensor(known[key][1]), opinion(pictures(n))[0])
        assert ledger.read("SELECT count(*) FROM claims") == [(0,)]

    def observe(done: int, total: int) -> None:
        assert ledger.spent() + money(ledger)[3] <= budget
        if chance.random() < 0.05 * (chaos.rate > 0):
            raise KeyboardInterrupt

    for start in range(60):
        if start == 50:
            chaos.rate, tries = 0.0, 10**6  # a teacher that has come to its senses
        line = Line(clock, chaos, slots=slots, metered=metered, seconds=lambda number: chance.choice([0.2, 1, 5]))
        policy = PurchasePolicy(
            limits=limits, probe=probe, lease_s=100,
            retry=patient(proven=False, tries=tries, backoff_s=0.1, max_bad_share=1.0),
        )  # fmt: skip
        try:
            bought = buy(
                images, teachers=line, ledger=ledger, batch_size=batch_size, policy=policy, on_progress=observe
            )
        except (TeacherError, KeyboardInterrupt):
            check()
            clock.now += 12 * 3600
            continue
        check()
        break
    have = [position for position, n in enumerate(numbers) if n in chaos.answered]
    assert bought.positions.tolist() == have and (not have or answers_are_right(bought, images))
    assert bought.charged == ledger.spent()
    assert bought.reused == len(have) - chaos.answered.total()
    assert not set(bought.set_aside) & set(have)
    assert bought.short == len(numbers) - len(have) - len(bought.set_aside)
    assert bought.short == 0 or ledger.remaining() == 0, "it did not stop while there was money"
    ledger.close()
