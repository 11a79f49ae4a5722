"""Buying: each image once, in order, as far as the budget goes; what is lost is charged where somebody may bill."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdray.errors import TeacherError
from kdray.ledger import Ledger, hash_images
from kdray.purchase import Bought, buy
from kdray.teachers import Answers
from kdray.teachers.pool import LocalTeacherPool, Pacer, Reply

CLASSES = 3


def pictures(*numbers: int) -> Tensor:
    """Tiny images; the same number is the same image."""
    return torch.tensor(numbers, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def opinion(images: Tensor) -> Tensor:
    """Probabilities float32 [B, 3] that tell all pictures apart; picture n is of class n % 3."""
    rows = [torch.tensor([0.6 - n / 2000, 0.3, 0.1 + n / 2000]).roll(n % 3) for n in images[:, 0, 0, 0].tolist()]
    return torch.stack(rows) if rows else torch.zeros(0, CLASSES)


class CountingTeacher:
    """Writes down which pictures it was asked, batch by batch; may do something else first."""

    num_classes = CLASSES

    def __init__(self, metered: bool = True, hard: bool = False, before: Callable[[int], None] = lambda batch: None):
        self.identity = f"counting:{'hard' if hard else 'soft'}"
        self.metered, self.hard, self.before = metered, hard, before
        self.batches: list[list[int]] = []

    def answer(self, images: Tensor) -> Answers:
        self.batches.append(images[:, 0, 0, 0].tolist())
        self.before(len(self.batches))
        probs = opinion(images)
        return Answers(probs=None if self.hard else probs, labels=probs.argmax(dim=1), num_classes=CLASSES)


class LosingPool:
    """Asks through workers that die with some batches: `losses` of the pictures that start a batch, so often each.

    Draws up to `window` batches before it replies, the newest first, as several workers would.
    """

    def __init__(self, teacher: CountingTeacher, losses: dict[int, int], window: int = 1) -> None:
        self.teacher, self.losses, self.window = teacher, dict(losses), window

    def ask(self, batches: Iterable[tuple[Any, Tensor]]) -> Iterator[Reply]:
        waiting = []
        for batch in batches:
            waiting.append(batch)
            if len(waiting) == self.window:
                yield self.reply(*waiting.pop())
        while waiting:
            yield self.reply(*waiting.pop())

    def reply(self, key: Any, images: Tensor) -> Reply:
        first = int(images[0, 0, 0, 0])
        if self.losses.get(first, 0) > 0:
            self.losses[first] -= 1
            return Reply(key=key, error=f"the worker asking picture {first} died", fatal=False)
        return Reply(key=key, answers=self.teacher.answer(images))


@pytest.fixture
def make_ledger(tmp_path):
    """Opens the test's ledger, closed at the end."""
    ledgers = []

    def open_ledger(budget: int, evaluation: int | None = None) -> Ledger:
        ledgers.append(Ledger(tmp_path / "ledger.sqlite", budget, evaluation))
        return ledgers[-1]

    yield open_ledger
    for ledger in ledgers:
        ledger.close()


def purchase(images: Tensor, teacher: CountingTeacher, ledger: Ledger, batch_size: int = 4, **more) -> Bought:
    return buy(images, pool=LocalTeacherPool(teacher, Pacer(None, 1)), ledger=ledger, batch_size=batch_size, **more)


def facts(bought: Bought) -> tuple[int, int, int]:
    return bought.charged, bought.reused, bought.short


def nothing_is_open(ledger: Ledger, cap: int) -> bool:
    return ledger.spent() + ledger.remaining() == cap


# ---- what is asked


def test_each_image_is_asked_once_and_answered_in_its_place(make_ledger):
    teacher, ledger, images = CountingTeacher(), make_ledger(100), pictures(5, 6, 7, 8, 9, 10)
    bought = purchase(images, teacher, ledger)
    assert teacher.batches == [[5, 6, 7, 8], [9, 10]]
    assert bought.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert bought.positions.dtype == torch.int64
    assert torch.equal(bought.answers.probs, opinion(images))
    assert bought.answers.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert facts(bought) == (6, 0, 0)
    assert (ledger.spent(), ledger.remaining()) == (6, 94)


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
    again = purchase(pictures(4, 3, 2), teacher, ledger)
    assert (facts(again), again.positions.tolist()) == ((0, 3, 0), [0, 1, 2])
    assert torch.equal(again.answers.probs, opinion(pictures(4, 3, 2)))
    mixed = purchase(pictures(1, 2, 3, 4, 5, 6), teacher, make_ledger(100))  # another connection, as another run would
    assert facts(mixed) == (3, 3, 0)
    assert torch.equal(mixed.answers.probs, opinion(pictures(1, 2, 3, 4, 5, 6)))
    assert teacher.batches == [[2, 3, 4], [1], [5, 6]]
    assert ledger.spent() == 6


def test_another_teacher_knows_nothing_of_it(make_ledger):
    ledger, soft, hard = make_ledger(100), CountingTeacher(), CountingTeacher(hard=True)
    purchase(pictures(1, 2), soft, ledger)
    bought = purchase(pictures(1, 2), hard, ledger)
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
    bought = purchase(pictures(1, 2, 3, 4, 5), teacher, ledger)
    assert teacher.batches == [[3, 5]]
    assert (facts(bought), bought.positions.tolist()) == ((0, 2, 3), [2, 4])
    assert torch.equal(bought.answers.probs, opinion(pictures(3, 5)))


@given(
    st.lists(st.integers(0, 8), max_size=25), st.lists(st.integers(0, 8), max_size=4, unique=True),
    st.integers(1, 6), st.integers(0, 8), st.integers(1, 3), st.booleans(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_purchase_is_what_a_slow_buyer_would_make(numbers, known, batch_size, money, window, metered):
    """The model walks through the images, cuts batches at fixed positions, and pays until nothing is left."""
    ledger, teacher = Ledger(":memory:", len(known) + money), CountingTeacher(metered)
    if known:
        purchase(pictures(*known), CountingTeacher(), ledger)
    pool = LosingPool(teacher, losses={}, window=window)
    bought = buy(pictures(*numbers), pool=pool, ledger=ledger, batch_size=batch_size)

    have, left, batches = set(known), money, {}
    for position, number in enumerate(numbers):
        if number not in have and left:
            have.add(number)
            left -= 1
            batches.setdefault(position // batch_size, []).append(number)
    expected = [position for position, number in enumerate(numbers) if number in have]
    assert sorted(teacher.batches) == sorted(batches.values())
    assert bought.positions.tolist() == expected
    assert bought.answers.labels.tolist() == [numbers[position] % 3 for position in expected]
    if expected:
        assert torch.equal(bought.answers.probs, opinion(pictures(*numbers)[expected]))
    assert (bought.charged, bought.short) == (money - left, len(numbers) - len(expected))
    if not bought.short:
        assert bought.reused == len(numbers) - bought.charged
    assert (ledger.spent(), ledger.remaining()) == (len(known) + money - left, left)
    ledger.close()


# ---- a teacher that says no


def refusing(batch: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == batch:
            raise TeacherError("error 451: not for you")

    return before


@pytest.mark.parametrize(("metered", "lost"), [(True, 4), (False, 0)])
def test_a_refusal_ends_the_purchase_and_keeps_what_was_answered(metered, lost, make_ledger):
    teacher, ledger, images = CountingTeacher(metered, before=refusing(2)), make_ledger(100), pictures(*range(11))
    with pytest.raises(TeacherError, match="error 451: not for you"):
        purchase(images, teacher, ledger)
    assert teacher.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]  # never asked again
    assert (ledger.spent(), ledger.uncertain(), ledger.remaining()) == (4 + lost, lost, 96 - lost)
    assert ledger.recover("") == (0, 0)
    assert set(ledger.lookup(teacher.identity, hash_images(images))) == set(hash_images(images[:4]))
    # Asked once more, later: what was answered is not paid again.
    bought = purchase(images, teacher, ledger)
    assert teacher.batches[2:] == [[4, 5, 6, 7], [8, 9, 10]]
    assert (facts(bought), ledger.spent()) == ((7, 4, 0), 11 + lost)
    assert torch.equal(bought.answers.probs, opinion(images))


@pytest.mark.parametrize("metered", [True, False])
def test_a_refusal_settles_all_that_other_workers_were_sent(metered, make_ledger):
    """Four batches are on their way when the newest is refused; the three others are never answered."""
    teacher, ledger = CountingTeacher(metered, before=refusing(1)), make_ledger(100)

    class FatalPool(LosingPool):
        def reply(self, key: Any, images: Tensor) -> Reply:
            try:
                return super().reply(key, images)
            except TeacherError as error:
                return Reply(key=key, error=str(error))

    with pytest.raises(TeacherError, match="error 451"):
        buy(pictures(*range(20)), pool=FatalPool(teacher, {}, window=4), ledger=ledger, batch_size=3)
    assert teacher.batches == [[9, 10, 11]]
    assert ledger.uncertain() == ledger.spent() == (12 if metered else 0)
    assert ledger.remaining() == 100 - ledger.spent()
    assert ledger.recover("") == (0, 0)


def test_a_reply_without_a_reason_is_an_error_all_the_same(make_ledger):
    class SilentPool(LosingPool):
        def reply(self, key: Any, images: Tensor) -> Reply:
            return Reply(key=key)

    with pytest.raises(TeacherError, match="the teacher did not answer"):
        buy(pictures(1), pool=SilentPool(CountingTeacher(), {}), ledger=make_ledger(10), batch_size=4)


# ---- workers that die


@pytest.mark.parametrize("window", [1, 2, 8])
@pytest.mark.parametrize(("metered", "lost"), [(True, 3 * 4 + 2), (False, 0)])
def test_a_batch_whose_worker_died_is_asked_again(metered, lost, window, make_ledger):
    teacher, ledger, images = CountingTeacher(metered), make_ledger(100), pictures(*range(10))
    pool = LosingPool(teacher, {0: 2, 4: 1, 8: 1}, window)
    bought = buy(images, pool=pool, ledger=ledger, batch_size=4)
    assert sorted(teacher.batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # each answered once
    assert torch.equal(bought.answers.probs, opinion(images))
    assert facts(bought) == (10 + lost, 0, 0)
    assert (ledger.spent(), ledger.uncertain(), ledger.remaining()) == (10 + lost, lost, 90 - lost)
    assert ledger.recover("") == (0, 0)


@pytest.mark.parametrize("metered", [True, False])
def test_a_batch_is_tried_five_times_and_then_given_up(metered, make_ledger):
    teacher, ledger, images = CountingTeacher(metered), make_ledger(100), pictures(*range(12))
    assert facts(buy(images, pool=LosingPool(teacher, {4: 4}), ledger=ledger, batch_size=4))[2] == 0
    spent = ledger.spent()
    pool = LosingPool(teacher, {104: 5})
    with pytest.raises(TeacherError, match="the worker asking picture 104 died"):
        buy(pictures(*range(100, 112)), pool=pool, ledger=ledger, batch_size=4)
    assert pool.losses == {104: 0}
    assert teacher.batches[3:] == [[100, 101, 102, 103], [108, 109, 110, 111]]  # the others were answered before
    assert ledger.spent() == spent + 8 + (5 * 4 if metered else 0)
    assert nothing_is_open(ledger, 100)


def test_what_dead_workers_lost_is_paid_from_the_budget(make_ledger):
    teacher, ledger, images = CountingTeacher(metered=True), make_ledger(10), pictures(*range(9))
    bought = buy(images, pool=LosingPool(teacher, {3: 1}), ledger=ledger, batch_size=3)
    assert sorted(teacher.batches) == [[0, 1, 2], [3], [6, 7, 8]]  # one query is left when 3, 4 and 5 come again
    assert bought.positions.tolist() == [0, 1, 2, 3, 6, 7, 8]
    assert facts(bought) == (10, 0, 2)
    assert (ledger.spent(), ledger.uncertain(), ledger.remaining()) == (10, 3, 0)


# ---- interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize(("metered", "lost"), [(True, 4), (False, 0)])
def test_an_interruption_leaves_no_reservation_open(metered, lost, error, make_ledger):
    def before(batch: int) -> None:
        if batch == 3:
            raise error

    teacher, ledger, images = CountingTeacher(metered, before=before), make_ledger(100), pictures(*range(20))
    with pytest.raises(error):
        purchase(images, teacher, ledger)
    assert (ledger.spent(), ledger.uncertain(), ledger.remaining()) == (8 + lost, lost, 92 - lost)
    assert ledger.recover("") == (0, 0)
    assert facts(purchase(images, teacher, ledger)) == (12, 8, 0)
    assert [len(batch) for batch in teacher.batches] == [4] * 6


def test_an_observer_that_fails_leaves_no_reservation_open(make_ledger):
    """The reply it was told of is committed already; the one that waits in the other worker is not."""

    def broken(done: int, total: int) -> None:
        raise ValueError("no terminal")

    ledger = make_ledger(100)
    with pytest.raises(ValueError, match="no terminal"):
        buy(
            pictures(*range(12)), pool=LosingPool(CountingTeacher(), {}, window=2), ledger=ledger, batch_size=4,
            on_progress=broken,
        )  # fmt: skip
    assert (ledger.spent(), ledger.uncertain(), ledger.remaining()) == (8, 4, 92)
    assert ledger.recover("") == (0, 0)
