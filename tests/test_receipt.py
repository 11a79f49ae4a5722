"""The receipt: what was bought adds up, in Python, on the terminal and in an export, and reading it harms nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import command, digits_config
from processes import kdray

from kdray.cli.ledger import Book, find_book
from kdray.errors import LedgerError
from kdray.ledger import Ledger
from kdray.ledger.receipt import Account, Line, accounts, export, lines, reasons, total
from kdray.ledger.records import AnswerRows, Order, Outcome

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
FIRST, SECOND = "digits-1f", "digits [old]-2e"


def key(number: int) -> bytes:
    return bytes([number]) * 16


def probabilities(number: int) -> list[float]:
    return [number / 256, 0.5, 0.5 - number / 256]


def answers(numbers: list[int], soft: bool = True) -> AnswerRows:
    probs = np.array([probabilities(n) for n in numbers], dtype=np.float32) if soft else None
    return AnswerRows(labels=np.array([n % 3 for n in numbers]), probs=probs)


class Shop:
    """A ledger to buy in, an hour a purchase."""

    def __init__(self, path: Path) -> None:
        self.now = NOON
        self.ledger = Ledger(path, 100, 10, clock=self.clock)

    def clock(self) -> float:
        return self.now.timestamp()

    def order(self, numbers: list[int], attempt: int = 1, teacher: str = "t", owner: str = FIRST, **place):
        self.now += timedelta(hours=1)
        order = Order(hashes=[key(n) for n in numbers], attempt=attempt)
        (part,) = self.ledger.grant([order], teacher=teacher, owner=owner, **place).parts
        assert part.send == order.hashes
        return part

    def buy(self, numbers: list[int], bad: dict[int, str] | None = None, soft: bool = True, **place) -> None:
        part = self.order(numbers, **place)
        got = Outcome(
            reservation=part.reservation,
            state="answered",
            hashes=part.send,
            answers=answers(numbers, soft),
            bad=bad or {},
        )
        self.ledger.settle([got])

    def fail(self, numbers: list[int], state: str, reason: str, **place) -> None:
        part = self.order(numbers, **place)
        self.ledger.settle([Outcome(reservation=part.reservation, state=state, reason=reason)])


def fill(path: Path) -> None:
    """What two runs bought of two teachers; the tests below know it by heart."""
    shop = Shop(path)
    shop.ledger.open_account(FIRST, {"training": 40, "evaluation": 5})
    shop.ledger.open_account(SECOND, {"training": 30})
    shop.buy([1, 2, 3])
    shop.buy([4, 5], bad={1: "the probabilities hold NaN"})
    shop.fail([5, 6], "uncertain", "no reply in 30 s", attempt=2)
    shop.fail([7, 8, 9, 10], "released", "503 Service Unavailable", round=1)
    shop.fail([7, 8, 9], "released", "never sent", attempt=2, round=1)
    shop.buy([7, 8, 9, 10], attempt=2, round=1)
    shop.order([11, 12, 13], round=1)
    shop.buy([20, 21], purpose="evaluation")
    shop.buy([1, 2], soft=False, teacher="u", owner=SECOND)
    for images, teacher, number, owner in ((2, "t", 1, FIRST), (6, "t", 0, SECOND), (0, "u", 0, SECOND)):
        shop.ledger.record_hits(teacher, images, purpose="training", round=number, owner=owner)
    shop.ledger.close()


FIRSTS_LINES = [
    Line(
        owner=FIRST, teacher="t", purpose="training", round=0,
        requests=3, answered=4, rejected=1, uncertain=2, retries=1,
    ),
    Line(
        owner=FIRST, teacher="t", purpose="training", round=1,
        requests=3, answered=4, returned=7, open=3, retries=1, hits=2,
    ),
    Line(owner=FIRST, teacher="t", purpose="evaluation", round=0, requests=1, answered=2),
]  # fmt: skip
SECONDS_LINES = [
    Line(owner=SECOND, teacher="t", purpose="training", round=0, hits=6),
    Line(owner=SECOND, teacher="u", purpose="training", round=0, requests=1, answered=2),
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "ledger.sqlite"
    fill(path)
    return path


@pytest.fixture
def ledger(filled):
    ledger = Ledger(filled)
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def a_run(tmp_path_factory) -> Path:
    """A run directory, as far as its receipt needs one."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    run.mkdir()
    config = digits_config(run / "teacher.safetensors", budget__price_per_query=0.25, budget__currency="EUR")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "id").write_text(f"{FIRST}\n")
    (run / ".lock").touch()
    fill(run / "ledger.sqlite")
    return run


# In Python


def test_the_lines_are_what_was_bought(ledger):
    assert lines(ledger) == SECONDS_LINES + FIRSTS_LINES
    assert lines(ledger, FIRST) == FIRSTS_LINES
    assert lines(ledger, "nobody") == []
    assert [line.charged for line in lines(ledger, FIRST)] == [7, 4, 2]


def test_lines_are_summed(ledger):
    assert total(lines(ledger)) == Line(
        owner="", teacher="", purpose="", round=0,
        requests=8, answered=12, rejected=1, uncertain=2, open=3, returned=7, retries=2, hits=8,
    )  # fmt: skip
    assert total(lines(ledger)).charged == 15
    assert total([]) == Line(owner="", teacher="", purpose="", round=0)


def test_accounts_are_balanced(ledger):
    whole = [
        Account(owner="", purpose="training", cap=100, charged=13, open=3),
        Account(owner="", purpose="evaluation", cap=10, charged=2, open=0),
    ]
    mine = [
        Account(owner=FIRST, purpose="training", cap=40, charged=11, open=3),
        Account(owner=FIRST, purpose="evaluation", cap=5, charged=2, open=0),
    ]
    theirs = [Account(owner=SECOND, purpose="training", cap=30, charged=2, open=0)]
    assert accounts(ledger) == whole + theirs + mine
    assert accounts(ledger, FIRST) == whole + mine
    assert [account.left for account in accounts(ledger, FIRST)] == [84, 8, 26, 3]
    assert [ledger.remaining("training", FIRST), ledger.remaining("evaluation", FIRST)] == [26, 3]
    assert Account(owner="", purpose="training", cap=None, charged=1, open=0).left is None
    assert Account(owner="", purpose="training", cap=3, charged=5, open=0).left == 0


def test_the_reasons_come_with_the_commonest_first(ledger):
    everything = [
        ("released", "503 Service Unavailable", 4),
        ("released", "never sent", 3),
        ("uncertain", "no reply in 30 s", 2),
        ("rejected", "the probabilities hold NaN", 1),
    ]
    assert reasons(ledger) == reasons(ledger, FIRST) == everything
    assert reasons(ledger, most=2) == everything[:2]
    assert reasons(ledger, SECOND) == []


def test_reasons_of_an_owner_are_its_own_also_where_answers_make_no_sense(tmp_path):
    shop = Shop(tmp_path / "ledger.sqlite")
    shop.buy([1, 2], bad={0: "NaN", 1: "NaN"}, owner="a")
    shop.buy([3, 4], bad={0: "logits", 1: "NaN"}, owner="b")
    assert reasons(shop.ledger, "b") == [("rejected", "NaN", 1), ("rejected", "logits", 1)]
    assert reasons(shop.ledger) == [("rejected", "NaN", 3), ("rejected", "logits", 1)]
    shop.ledger.close()


# The export


def test_an_export_holds_every_answer_to_the_bit(ledger, tmp_path):
    target = tmp_path / "answers.parquet"
    assert export(ledger, target) == 12
    rows = pq.read_table(target).to_pylist()
    assert list(rows[0]) == ["teacher", "hash", "label", "probs", "owner", "purpose", "round", "time"]
    soft, hard = [row for row in rows if row["teacher"] == "t"], [row for row in rows if row["teacher"] == "u"]
    assert [int(row["hash"][:2], 16) for row in soft] == [1, 2, 3, 4, 7, 8, 9, 10, 20, 21]
    assert [int(row["hash"][:2], 16) for row in hard] == [1, 2]
    for teacher, some in (("t", soft), ("u", hard)):
        found = ledger.lookup(teacher, [bytes.fromhex(row["hash"]) for row in some])
        assert {bytes.fromhex(row["hash"]): row["label"] for row in some} == {
            k: label for k, (label, _) in found.items()
        }
        for row in some:
            probs = found[bytes.fromhex(row["hash"])][1]
            assert row["probs"] == (None if probs is None else probs.tolist())
    assert soft[0] == {
        "teacher": "t", "hash": key(1).hex(), "label": 1, "probs": probabilities(1), "owner": FIRST,
        "purpose": "training", "round": 0, "time": NOON + timedelta(hours=1),
    }  # fmt: skip
    assert [(row["owner"], row["probs"], row["time"].hour) for row in hard] == [(SECOND, None, 21)] * 2
    assert {(row["purpose"], row["round"]) for row in soft} == {("training", 0), ("training", 1), ("evaluation", 0)}


def test_an_export_reads_a_large_ledger_in_parts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", 100_000)
    for teacher, count in (("t", 9_000), ("u", 12_000), ("v", 1)):
        bought = AnswerRows(labels=np.arange(count) % 7)
        ledger.commit(ledger.reserve(count, teacher=teacher), [n.to_bytes(16, "big") for n in range(count)], bought)
    assert export(ledger, tmp_path / "answers.parquet") == 21_001
    table = pq.read_table(tmp_path / "answers.parquet").to_pydict()
    seen = [
        (t, int(item, 16), label) for t, item, label in zip(*map(table.get, ("teacher", "hash", "label")), strict=True)
    ]
    assert seen == [(t, n, n % 7) for t, count in (("t", 9_000), ("u", 12_000), ("v", 1)) for n in range(count)]
    ledger.close()


def test_an_empty_ledger_gives_an_empty_table(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", 10)
    assert export(ledger, tmp_path / "answers.parquet") == 0
    table = pq.read_table(tmp_path / "answers.parquet")
    assert (len(table), table.schema.field("probs").type.value_type) == (0, "float")
    assert (lines(ledger), reasons(ledger)) == ([], [])
    ledger.close()


def test_an_export_takes_the_place_of_an_older_one_and_of_nothing_else(ledger, filled, tmp_path):
    target = tmp_path / "answers.parquet"
    pq.write_table(pq.read_table(_small(tmp_path)), target)
    assert export(ledger, target) == 12
    assert len(pq.read_table(target)) == 12
    for name in ("notes.txt", "empty"):
        (tmp_path / name).write_text("thesis" * (name != "empty"))
        with pytest.raises(LedgerError, match="is there and is no parquet file; choose another name"):
            export(ledger, tmp_path / name)
        assert (tmp_path / name).read_text() == "thesis" * (name != "empty")
    before = filled.read_bytes()
    with pytest.raises(LedgerError, match="is no parquet file"):
        export(ledger, filled)  # the ledger itself
    assert filled.read_bytes() == before
    for place in (tmp_path / "no" / "folder.parquet", tmp_path):
        with pytest.raises(LedgerError, match=f"cannot write {place}"):
            export(ledger, place)
    assert {entry.name for entry in tmp_path.iterdir()} == {"answers.parquet", "small.parquet", "notes.txt", "empty"}


def _small(folder: Path) -> Path:
    shop = Shop(folder / "small.sqlite")
    shop.buy([1])
    assert export(shop.ledger, folder / "small.parquet") == 1
    shop.ledger.close()
    (folder / "small.sqlite").unlink()
    return folder / "small.parquet"


def test_an_export_that_fails_leaves_the_older_one(filled, tmp_path):
    target = _small(tmp_path)
    before = target.read_bytes()
    ledger = Ledger(filled)
    ledger.close()
    with pytest.raises(LedgerError, match="is closed"):
        export(ledger, target)
    assert target.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.parquet"]


# On the terminal


RUN_RECEIPT = """\
purpose round requests answered rejected uncertain charged returned retries hits cost saved
training 0 3 4 1 2 7 0 1 0 1.75 EUR 0.00 EUR
training 1 3 4 0 0 4 7 1 2 1.00 EUR 0.50 EUR
evaluation 0 1 2 0 0 2 0 0 0 0.50 EUR 0.00 EUR
training all 6 8 1 2 11 7 2 2 2.75 EUR 0.50 EUR
evaluation all 1 2 0 0 2 0 0 0 0.50 EUR 0.00 EUR
teacher t: 13 charged, 2 free
training budget of the whole file: 13 of 100 spent, 84 left, 3 on their way (21.00 EUR)
evaluation budget of the whole file: 2 of 10 spent, 8 left (2.00 EUR)
training budget of the run digits-1f: 11 of 40 spent, 26 left, 3 on their way (6.50 EUR)
evaluation budget of the run digits-1f: 2 of 5 spent, 3 left (0.75 EUR)
4 released: 503 Service Unavailable
3 released: never sent
2 uncertain: no reply in 30 s
1 rejected: the probabilities hold NaN"""

FILE_RECEIPT = """\
run purpose round requests answered rejected uncertain charged returned retries hits
digits [old]-2e training 0 0 0 0 0 0 0 0 6
digits [old]-2e training 0 1 2 0 0 2 0 0 0
digits-1f training 0 3 4 1 2 7 0 1 0
digits-1f training 1 3 4 0 0 4 7 1 2
digits-1f evaluation 0 1 2 0 0 2 0 0 0
training all 7 10 1 2 13 7 2 8
evaluation all 1 2 0 0 2 0 0 0
teacher t: 13 charged, 8 free
teacher u: 2 charged, 0 free
training budget of the whole file: 13 of 100 spent, 84 left, 3 on their way
evaluation budget of the whole file: 2 of 10 spent, 8 left
training budget of the run digits [old]-2e: 2 of 30 spent, 28 left
training budget of the run digits-1f: 11 of 40 spent, 26 left, 3 on their way
evaluation budget of the run digits-1f: 2 of 5 spent, 3 left
4 released: 503 Service Unavailable
3 released: never sent
2 uncertain: no reply in 30 s
1 rejected: the probabilities hold NaN"""


def told(stdout: str) -> tuple[str, str]:
    """The first line of a receipt, and the rest with single spaces and no empty lines."""
    first, *rest = [" ".join(line.split()) for line in stdout.splitlines() if line.strip()]
    return first, "\n".join(rest)


def test_the_receipt_of_a_run(a_run, tmp_path):
    before = {entry.name for entry in a_run.iterdir()}
    done = command("ledger", a_run, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert told(done.stdout) == (f"ledger {a_run / 'ledger.sqlite'}", RUN_RECEIPT)
    assert {entry.name for entry in a_run.iterdir()} == before


def test_the_receipt_of_a_file_with_a_price_and_an_export(filled, tmp_path):
    done = command("ledger", filled, cwd=tmp_path)
    assert (done.returncode, done.stderr, told(done.stdout)[1]) == (0, "", FILE_RECEIPT)
    done = command("ledger", filled, "--price", "2", "--export", "all.parquet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    _, text = told(done.stdout)
    assert "training all 7 10 1 2 13 7 2 8 26.00 16.00\n" in text
    assert "\ntraining budget of the run digits-1f: 11 of 40 spent, 26 left, 3 on their way (52.00)\n" in text
    assert text.endswith("\nwrote 12 answers to all.parquet")
    assert len(pq.read_table(tmp_path / "all.parquet")) == 12


def test_the_budget_of_a_shared_file_is_changed(tmp_path):
    path = tmp_path / "ledger.sqlite"
    fill(path)
    done = command("ledger", path, "--budget", "14", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "training budget of the whole file: 13 of 14 spent, 0 left, 3 on their way" in done.stdout
    ledger = Ledger(path, 14)
    assert (ledger.remaining(), ledger.remaining(owner=FIRST)) == (0, 0)
    ledger.close()
    with pytest.raises(LedgerError, match="a budget of 14 queries, not 100"):
        Ledger(path, 100)


def refused(*arguments: object) -> str:
    """The one line that a command says which fails; in this process."""
    done = command("ledger", *arguments)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("kdray: ") and done.stderr.endswith("\n") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("kdray: ").removesuffix("\n")


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "notes.txt").write_text("thesis " * 300)
    assert refused("nothing") == "nothing is neither a run directory nor a ledger file"
    assert refused("folder") == "folder is neither a run directory nor a ledger file"
    assert refused("empty") == "empty is empty; it is no ledger"
    assert "cannot use notes.txt as a ledger: file is not a database" in refused("notes.txt")
    assert refused("empty", "--budget", 10) == "empty is empty; it is no ledger"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "folder", "notes.txt"]
    assert (tmp_path / "empty").read_bytes() == b"" and (tmp_path / "notes.txt").read_text() == "thesis " * 300


def test_a_run_that_has_bought_nothing_yet_says_so(tmp_path, a_run):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes((a_run / "config.yaml").read_bytes())
    (run / ".lock").touch()
    assert refused(run) == f"{run} has no ledger yet: {run / 'ledger.sqlite'} is not there"
    (run / "config.yaml").write_text("seed: [")
    assert refused(run).startswith(f"{run / 'config.yaml'} is not readable YAML: ")


def test_a_runs_own_budget_is_not_changed_behind_its_config(a_run):
    before = (a_run / "ledger.sqlite").read_bytes()
    message = refused(a_run, "--budget", 500)
    assert message.startswith("--budget changes the cap of a shared ledger; give its file")
    assert (a_run / "ledger.sqlite").read_bytes() == before


def test_a_budget_too_large_and_an_export_in_the_way_are_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    fill(path)
    before = path.read_bytes()
    assert refused(path, "--budget", 10**20).startswith("a budget of 100,000,000,000,000,000,000 queries is more than")
    done = command("ledger", path, "--export", path)
    assert done.returncode == 2
    assert done.stderr == f"kdray: {path} is there and is no parquet file; choose another name for the export\n"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing argument 'RUN|FILE...'"),
        (["x.sqlite", "--budget", "0"], "Invalid value for '--budget'"),
        (["x.sqlite", "--budget", "many"], "Invalid value for '--budget'"),
        (["x.sqlite", "--price", "-1"], "Invalid value for '--price'"),
        (["x.sqlite", "--pirce", "1"], "No such option: --pirce"),
    ],
)
def test_wrong_words_are_told_with_the_usage(arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("ledger", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ") and complaint in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_process_ends_with_the_same_message_and_code(tmp_path):
    (tmp_path / "notes.txt").write_text("thesis " * 300)
    done = kdray("ledger", "notes.txt", "--budget", "5", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kdray: cannot use notes.txt as a ledger: file is not a database; it was left as it is\n"


# Books


def test_a_book_is_found_for_a_run_and_for_a_file(a_run, filled, tmp_path):
    assert find_book(a_run, None) == Book(path=a_run / "ledger.sqlite", owner=FIRST, price=0.25, currency="EUR")
    assert find_book(a_run, 3).price == 3
    assert find_book(a_run, 0).price == 0  # free is a price
    assert find_book(filled, None) == Book(path=filled, owner=None, price=None, currency="")
    # A run that shares a ledger with others: its own part of that file.
    run = tmp_path / "run"
    run.mkdir()
    config = digits_config(run / "teacher.safetensors", ledger__path=str(filled))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "id").write_text(f"{SECOND}\n")
    (run / ".lock").touch()
    assert find_book(run, None) == Book(path=filled, owner=SECOND, price=None, currency="USD")


@pytest.mark.parametrize(
    ("budget", "space", "price", "currency"),
    [
        ({"price_per_query": 0.25, "currency": "EUR"}, {"budget.queries": {"grid": [60, 80]}}, 0.25, "EUR"),
        ({"queries": 60}, {"student.lr": {"uniform": [0.1, 0.2]}}, None, "USD"),
        ({}, {"budget": {"grid": [{"queries": n, "price_per_query": 2} for n in (60, 80)]}}, 2, "USD"),
        ({"price_per_query": 1}, {"budget.price_per_query": {"grid": [1, 3]}}, None, ""),
        ({"price_per_query": 1}, {"budget.price_per_query": {"uniform": [1, 3]}}, None, ""),
    ],
)
def test_the_book_of_a_sweep_has_its_price(budget, space, price, currency, filled, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(filled.read_bytes())
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"base": {"budget": budget}, "space": space, "sweep": {}}))
    found = find_book(tmp_path, None)
    assert (found.price, found.currency, found.owner) == (price, currency, None)
    assert find_book(tmp_path, 5).price == 5
    done = command("ledger", tmp_path)
    assert done.returncode == 0 and ("cost" in done.stdout) == (price is not None)
    assert currency != "EUR" or " EUR" in done.stdout
    (tmp_path / "sweep.yaml").write_text("[]")
    done = command("ledger", tmp_path)
    assert done.returncode == 2 and "is not the file of a sweep" in done.stderr


@pytest.mark.parametrize("name", ["[bold]", "[/]", "a[/red]b", "[link=x]", "a:bug:b"])
def test_brackets_and_colons_in_names_are_shown_as_they_are(name, tmp_path):
    folder = tmp_path / name.replace("/", "-")
    folder.mkdir()
    shop = Shop(folder / "ledger.sqlite")
    shop.ledger.open_account(f"{name}-1", {"training": 5})
    shop.buy([1], bad={0: f"{name} is no number"}, owner=f"{name}-1", teacher=f"http:{name}")
    shop.ledger.close()
    done = command("ledger", folder / "ledger.sqlite")
    assert done.returncode == 0
    first, text = told(done.stdout)
    assert first == f"ledger {folder / 'ledger.sqlite'}"
    for part in (f"{name}-1 training 0", f"teacher http:{name}: 1", f"the run {name}-1: 1", f"1 rejected: {name} is"):
        assert part in text


def test_declined_images_are_forgotten_on_demand(tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, 10)
    taken = ledger.reserve(1, teacher="t")
    ledger.settle([Outcome(reservation=taken, state="released", hashes=[b"k" * 16], reason="too dark", declined=True)])
    ledger.close()
    done = command("ledger", path, "--forget-declined")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"forgot 1 declined image of {path}")
    ledger = Ledger(path, 10)
    assert ledger.failures("t", [b"k" * 16]) == {}
    ledger.close()
