"""The ledger: never a query past the budget, never an answer lost, whoever asks, dies or pulls the plug."""

import hashlib
import multiprocessing
import os
import resource
import signal
import sqlite3
import struct
import tempfile
from bisect import bisect_left
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
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

from kdray.errors import BudgetExceeded, LedgerError
from kdray.ledger import Ledger, Reservation, hash_images
from kdray.ledger.limiter import TokenBucket
from kdray.ledger.store import to_answers
from kdray.teachers import Answers

spawn = multiprocessing.get_context("spawn")


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def keys(*numbers: int) -> list[bytes]:
    return [key(number) for number in numbers]


def hard(*labels: int) -> Answers:
    return Answers(probs=None, labels=torch.tensor(labels, dtype=torch.int64), num_classes=10)


def soft(rows: list[list[float]]) -> Answers:
    probs = torch.tensor(rows, dtype=torch.float32)
    return Answers(probs=probs, labels=probs.argmax(dim=1), num_classes=probs.shape[1])


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ledger.sqlite"


@contextmanager
def opened(path: Path, budget: int | None = None, evaluation: int | None = None):
    ledger = Ledger(path, budget, evaluation)
    try:
        yield ledger
    finally:
        ledger.close()


def counts(ledger: Ledger, purpose: str = "training") -> tuple[int, int, int]:
    return ledger.spent(purpose), ledger.uncertain(purpose), ledger.remaining(purpose)


# ---- one reservation


def test_the_ways_of_a_reservation_by_hand(path):
    with opened(path, 10) as ledger:
        first, second, third = (ledger.reserve(n, teacher="t") for n in (3, 2, 4))
        assert counts(ledger) == (0, 0, 1)
        ledger.commit(first, keys(1, 2, 3), hard(7, 8, 9))
        assert counts(ledger) == (3, 0, 1)
        ledger.mark_uncertain(second)
        assert counts(ledger) == (5, 2, 1)
        ledger.release(third)
        assert counts(ledger) == (5, 2, 5)
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
        assert counts(ledger) == (0, 0, 8)
        assert ledger.lookup("t", keys(1, 2, 3)) == {}


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
        assert sum(ledger.spent_in_round(1, owner="a")) == 5
        assert sum(ledger.spent_in_round(2, owner="a")) == 11
        assert sum(ledger.spent_in_round(1, owner="b")) == 13
        assert sum(ledger.spent_in_round(1, "evaluation", owner="a")) == 17
        assert sum(ledger.spent_in_round(3, owner="a")) == 0


# ---- answers


@given(arrays.arrays(np.uint32, st.tuples(st.integers(1, 4), st.integers(1, 6))))
@settings(max_examples=40, deadline=None)
def test_answers_come_back_to_the_bit(bits):
    """Any 32 bits: denormals, minus zero, infinities and every kind of NaN."""
    ledger = Ledger(":memory:", 10)
    count, classes = bits.shape
    probs = torch.from_numpy(bits.view(np.float32))
    answers = Answers(probs=probs, labels=torch.arange(count), num_classes=classes)
    ledger.commit(ledger.reserve(count, teacher="t"), keys(*range(count)), answers)
    found = ledger.lookup("t", keys(*range(count)))
    assert [found[k][0] for k in keys(*range(count))] == list(range(count))
    assert [found[k][1].tobytes() for k in keys(*range(count))] == [row.tobytes() for row in bits]
    assert all(found[k][1].dtype == np.float32 for k in found)
    back = to_answers([found[k] for k in keys(*range(count))], classes)
    assert back.probs.numpy().tobytes() == bits.tobytes()
    ledger.close()


def test_a_teacher_sees_its_own_answers_alone(path):
    with opened(path, 10) as ledger:
        ledger.commit(ledger.reserve(1, teacher="one"), keys(1), hard(4))
        ledger.commit(ledger.reserve(1, teacher="two"), keys(1), hard(5))
        assert ledger.lookup("one", keys(1)) == {key(1): (4, None)}
        assert ledger.lookup("two", keys(1, 1, 1)) == {key(1): (5, None)}
        assert ledger.lookup("three", keys(1)) == {}
        assert ledger.lookup("one", []) == {}
        assert ledger.teachers() == ["one", "two"]


def test_more_answers_are_looked_up_than_sqlite_takes_parameters(path):
    with opened(path, 3000) as ledger:
        rows = torch.rand(2600, 4).softmax(dim=1)
        ledger.commit(ledger.reserve(2600, teacher="t"), keys(*range(2600)), soft(rows.tolist()))
        found = ledger.lookup("t", iter(keys(*range(3000))))
        assert len(found) == 2600
        assert torch.equal(to_answers([found[key(k)] for k in range(2600)], 4).probs, rows)


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


# ---- any sequence of events, against a plain model

CAPS = {"training": 20, "evaluation": 7}


class LedgerMachine(RuleBasedStateMachine):
    """Two connections to one file, reopened at will, against a few lists."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.ledgers = [Ledger(self.path, 20, 7), Ledger(self.path, 20, 7)]
        self.reservations: list[tuple[Reservation, dict]] = []
        self.answers: dict[tuple[str, bytes], tuple[int, bytes]] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for ledger in self.ledgers:
                ledger.close()
            self.folder.cleanup()

    def total(self, purpose: str, *states: str) -> int:
        return sum(r.queries for r, f in self.reservations if f["state"] in states and f["purpose"] == purpose)

    @rule(
        which=st.integers(0, 1), n=st.integers(1, 9), purpose=st.sampled_from(["training", "evaluation"]),
        owner=st.sampled_from("ab"), metered=st.booleans(), teacher=st.sampled_from("tu"),
    )  # fmt: skip
    def reserve(self, which, n, purpose, owner, metered, teacher) -> None:
        left = CAPS[purpose] - self.total(purpose, "reserved", "answered", "uncertain")
        facts = {"state": "reserved", "purpose": purpose, "owner": owner, "metered": metered}
        ask = {"teacher": teacher, "purpose": purpose, "owner": owner, "metered": metered}
        if n <= left:
            self.reservations.append((self.ledgers[which].reserve(n, **ask), facts))
        else:
            with pytest.raises(BudgetExceeded, match=f"{n} {purpose} queries wanted, {left} of"):
                self.ledgers[which].reserve(n, **ask)

    @precondition(lambda self: self.reservations)
    @rule(data=st.data(), which=st.integers(0, 1), way=st.sampled_from(["answered", "released", "uncertain"]))
    def settle(self, data, which, way) -> None:
        reservation, facts = data.draw(st.sampled_from(self.reservations))
        numbers = data.draw(st.lists(st.integers(0, 30), min_size=reservation.queries, max_size=reservation.queries))
        rows = torch.rand(len(numbers), 3)
        answers = Answers(probs=rows, labels=torch.tensor(numbers), num_classes=3)
        act = {
            "answered": lambda: self.ledgers[which].commit(reservation, keys(*numbers), answers),
            "released": lambda: self.ledgers[which].release(reservation),
            "uncertain": lambda: self.ledgers[which].mark_uncertain(reservation),
        }[way]
        if facts["state"] not in ("reserved", way):
            with pytest.raises(LedgerError, match="cannot become"):
                act()
            return
        act()
        if (facts["state"], way) == ("reserved", "answered"):
            for number, row in zip(numbers, rows, strict=True):
                self.answers.setdefault((reservation.teacher, key(number)), (number, row.numpy().tobytes()))
        facts["state"] = way

    @rule(which=st.integers(0, 1), owner=st.sampled_from("ab"))
    def recover(self, which, owner) -> None:
        expected = [0, 0]
        for reservation, facts in self.reservations:
            if facts["state"] == "reserved" and facts["owner"] == owner:
                facts["state"] = "uncertain" if facts["metered"] else "released"
                expected[0 if facts["metered"] else 1] += reservation.queries
        assert self.ledgers[which].recover(owner) == tuple(expected)

    @rule(which=st.integers(0, 1))
    def reopen(self, which) -> None:
        self.ledgers[which].close()
        self.ledgers[which] = Ledger(self.path, 20, 7)

    @invariant()
    def agrees_with_the_model(self) -> None:
        for ledger in self.ledgers:
            for purpose, cap in CAPS.items():
                charged, lost = self.total(purpose, "answered", "uncertain"), self.total(purpose, "uncertain")
                open_ = self.total(purpose, "reserved")
                assert charged + open_ <= cap
                assert counts(ledger, purpose) == (charged, lost, cap - charged - open_)
            for teacher in "tu":
                found = ledger.lookup(teacher, keys(*range(31)))
                expected = {k: value for (asked, k), value in self.answers.items() if asked == teacher}
                assert {k: (label, probs.tobytes()) for k, (label, probs) in found.items()} == expected


def test_any_sequence_of_events_keeps_the_books():
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=40, stateful_step_count=20, deadline=None))


# ---- several processes, and their deaths


def reserve_until_nothing_is_left(path: Path, seed: int, start, results) -> None:
    """A process that reserves blocks of 1 to 64, commits one in two, and gives one in five back."""
    generator, ledger, taken = np.random.default_rng(seed), Ledger(path), []
    start.wait()
    while (left := ledger.remaining()) > 0:
        n = min(int(generator.integers(1, 65)), left)
        try:
            reservation = ledger.reserve(n, teacher="t", owner=str(seed))
        except BudgetExceeded:  # somebody was faster
            continue
        fate = generator.random()
        asked = keys(*(seed * 100_000 + sum(taken) + k for k in range(1000)))  # the time a teacher takes
        if fate < 0.2:
            ledger.release(reservation)
            continue
        if fate < 0.5:
            ledger.commit(reservation, asked[:n], hard(*[seed] * n))
        taken.append(n)
    ledger.close()
    results.put((seed, taken))


def test_four_processes_reserve_the_budget_exactly(path):
    Ledger(path, 1000).close()
    start, results = spawn.Barrier(4), spawn.Queue()
    processes = [
        spawn.Process(target=reserve_until_nothing_is_left, args=(path, seed, start, results), daemon=True)
        for seed in range(4)
    ]
    for process in processes:
        process.start()
    taken = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert sum(sum(blocks) for blocks in taken.values()) == 1000
    assert sum(map(bool, taken.values())) >= 2  # they did get into each other's way
    with opened(path) as ledger:
        answered = ledger.spent()
        assert ledger.remaining() == 0
        with pytest.raises(BudgetExceeded):
            ledger.reserve(1, teacher="t")
        everything = keys(*(seed * 100_000 + k for seed in range(4) for k in range(1000)))
        assert len(ledger.lookup("t", everything)) == answered
        assert answered + sum(sum(ledger.recover(str(seed))) for seed in range(4)) == 1000
        assert ledger.spent() == 1000


def commit_for_ever(path: Path, sender) -> None:
    """A process that reserves and commits three answers at a time, and tells of each commit once it returned."""
    ledger = Ledger(path, 100_000)
    for batch in range(30_000):
        reservation = ledger.reserve(3, teacher="t", owner="run")
        numbers = range(3 * batch, 3 * batch + 3)
        ledger.commit(reservation, keys(*numbers), soft([[n, 1 / (n + 1), 0.0] for n in numbers]))
        sender.send(batch)


def test_an_answer_outlives_a_process_killed_after_its_commit(path):
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=commit_for_ever, args=(path, sender), daemon=True)
    process.start()
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
        expected = soft([[n, 1 / (n + 1), 0.0] for n in numbers]).probs.numpy()
        assert [found[key(n)][1].tobytes() for n in numbers] == [row.tobytes() for row in expected]
        # At most one batch more was on its way: committed and not yet told, or reserved, or not yet begun.
        assert len(told) * 3 <= ledger.spent() <= (len(told) + 1) * 3
        uncertain, released = ledger.recover("run")
        assert (uncertain in (0, 3), released) == (True, 0)
        assert ledger.spent() + ledger.remaining() == 100_000


@contextmanager
def no_file_larger_than(size: int):
    """A disk that is full at `size` bytes a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("count", [1, 3000])
def test_a_full_disk_leaves_the_books_as_they_were(count, path):
    with opened(path, 10_000) as ledger:
        reservation = ledger.reserve(count, teacher="t")
        answers = soft(torch.rand(count, 10).tolist())
        room = 50_000 if count > 1 else 0
        with no_file_larger_than(path.with_name("ledger.sqlite-wal").stat().st_size + room):
            with pytest.raises(LedgerError, match=r"ledger\.sqlite cannot be written: .*; nothing more was spent"):
                ledger.commit(reservation, keys(*range(count)), answers)
            assert counts(ledger) == (0, 0, 10_000 - count)
            assert ledger.lookup("t", keys(*range(count))) == {}
        ledger.commit(reservation, keys(*range(count)), answers)  # there is room again
        assert counts(ledger) == (count, 0, 10_000 - count)
    with opened(path) as ledger:
        assert len(ledger.lookup("t", keys(*range(count)))) == count


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
        with opened(path, budget) as ledger, pytest.raises(BudgetExceeded, match="0 of the budget are left"):
            ledger.reserve(1, teacher="t")


def test_a_newer_schema_is_refused_and_left_alone(path):
    with opened(path, 10) as ledger:
        ledger.commit(ledger.reserve(1, teacher="t"), keys(1), hard(1))
    database = sqlite3.connect(path)
    database.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    database.commit()
    database.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="has ledger schema 2, this kdray reads 1; use the kdray that wrote it"):
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
    with pytest.raises(LedgerError, match=r"cannot use .* as a ledger: .*malformed"):
        Ledger(path, 5000)
    assert path.read_bytes() == torn


def test_a_foreign_database_is_refused(path):
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE recipes (name TEXT)")
    database.execute("INSERT INTO recipes VALUES ('soup')")
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match="is a SQLite file, but not a kdray ledger"):
        Ledger(path, 10)
    database = sqlite3.connect(path)
    assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    assert database.execute("SELECT * FROM recipes").fetchall() == [("soup",)]
    database.close()


def test_a_place_where_no_file_can_be_is_refused(tmp_path):
    """True for root too, whom no permission stops."""
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "no" / "folder.sqlite", tmp_path / "file" / "ledger.sqlite"):
        with pytest.raises(LedgerError, match="unable to open database file"):
            Ledger(place, 10)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_ledger_closed_spends_nothing(path):
    ledger = Ledger(path, 10)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="is closed"):
        ledger.reserve(1, teacher="t")


# ---- the rate limit


def test_the_bucket_by_hand():
    bucket = TokenBucket(10, 5, now=100.0)
    assert [bucket.take(1, 100.0) for _ in range(5)] == [0.0] * 5
    assert bucket.take(1, 100.0) == pytest.approx(0.1)  # a debt of one
    assert bucket.take(2, 100.0) == pytest.approx(0.3)
    assert bucket.take(1, 100.3) == pytest.approx(0.1)  # paid back, and empty
    assert bucket.take(5, 200.0) == 0.0  # never more than full
    assert bucket.take(1, 200.0) == pytest.approx(0.1)


def test_a_batch_larger_than_the_burst_goes_when_full_and_is_paid_for_later():
    bucket = TokenBucket(10, 5, now=0.0)
    assert bucket.take(25, 0.0) == 0.0
    assert bucket.take(5, 0.0) == pytest.approx(2.5)
    assert TokenBucket(10, 5, now=0.0).take(0, 0.0) == 0.0


def test_a_clock_that_goes_back_gives_nothing():
    bucket = TokenBucket(10, 5, now=10.0)
    bucket.take(5, 10.0)
    assert bucket.take(1, 4.0) == pytest.approx(0.1)
    assert bucket.take(1, 10.2) == pytest.approx(0.0, abs=1e-9)


def sent(batches: list[int], pauses: list[float], rate: float = 10, burst: int = 5) -> list[float]:
    """When each query goes out, for a caller who waits as told and pauses on its own account; the first at 0."""
    bucket, now, times = TokenBucket(rate, burst, now=0.0), 0.0, []
    for size, pause in zip(batches, pauses, strict=True):
        now += pause
        now += bucket.take(size, now)
        times += [now] * size
    return times


def most_in_a_second(times: list[float]) -> int:
    return max(bisect_left(times, start + 1 - 1e-9) - k for k, start in enumerate(times))


def test_ten_a_second_in_the_long_run():
    for size in (1, 2, 3, 5):
        times = sent([size] * (3000 // size), [0.0] * (3000 // size))
        assert most_in_a_second(times) <= 15
        assert len(times) / times[-1] >= 9.5
        assert times.count(0.0) == 5 // size * size


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.37, 2.0])), min_size=1, max_size=200),
)
def test_no_second_holds_more_than_the_rate_and_the_burst(steps):
    batches, pauses = zip(*steps, strict=True)
    times = sent(list(batches), list(pauses))
    assert times == sorted(times)
    assert most_in_a_second(times) <= 15
    assert times[-1] <= sum(batches) / 10 + sum(pauses)  # never slower than the rate
