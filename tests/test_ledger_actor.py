"""The ledger behind an actor: it does what the file does, also when it is killed; one for all who name the file."""

import inspect
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import actor_pids

import actors.ledger
from actors.cluster import NAMESPACE
from actors.ledger import LedgerService, NamedLedger, RayLedger
from kdray.errors import Halted, KdrayError, LedgerError
from kdray.ledger import Ledger, hash_images
from kdray.ledger.limits import Limits
from kdray.ledger.records import Order, Outcome
from kdray.runs.purchase import LedgerLike, buy
from kdray.teachers import AnswerFormat, Answers
from kdray.teachers.pool import LocalTeacherPool


class Mortal(LedgerService):
    """Dies once after each call that a file beside the ledger names: all is written, and the reply is never sent.
    A grant of nothing (another has all of it on its way) is no such call.
    Lets nobody in while there is a file `wait`."""

    def enter(self, user, budget):
        order = Path(self._path).with_name("wait")
        if order.exists():
            order.with_name("waiting").touch()
            while order.exists():
                time.sleep(0.01)
        super().enter(user, budget)

    def call(self, user, name, args, kwargs):
        result = super().call(user, name, args, kwargs)
        order = Path(self._path).with_name(f"die-after-{name}")
        granted_nothing = name == "grant" and not any(part.reservation for part in result.parts)
        if order.exists() and not granted_nothing:
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return result


@pytest.fixture
def open_ledger(ray_local, tmp_path, monkeypatch) -> Iterator:
    """Opens the test's ledger through its actor; all are closed at the end."""
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    monkeypatch.setattr(actors.ledger, "LedgerService", Mortal)
    opened = []

    def open_it(budget: int | None = None, path: Path = tmp_path / "ledger.sqlite") -> RayLedger:
        opened.append(RayLedger(path, budget))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.close()


def grey(*shades: int) -> torch.Tensor:
    return torch.tensor(shades, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def brightness(images: torch.Tensor) -> Answers:
    share = images.float().mean(dim=(1, 2, 3)) / 255
    return AnswerFormat().apply(torch.stack([share, 1 - share], dim=1))


def there(ray_local, ledger: RayLedger) -> bool:
    """Whether its actor is alive."""
    try:
        ray_local.get_actor(ledger._name, NAMESPACE)
    except ValueError:
        return False
    return True


def wait_until_gone(ray, ledger: RayLedger) -> None:
    """Ray ends an actor some time after it was told to."""
    deadline = time.monotonic() + 60
    while there(ray, ledger):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ledgers(ray_local) -> set[str]:
    """Names of the ledger actors of this Ray."""
    names = [actor["name"] for actor in ray_local.util.list_named_actors(all_namespaces=True)]
    return {name for name in names if name.startswith("ledger-")}


def test_a_purchase_can_have_all_it_needs():
    methods = {name for name, _ in inspect.getmembers(LedgerLike, inspect.isfunction) if not name.startswith("_")}
    assert methods == {
        "answers_of", "failures", "grant", "lookup", "on_their_way", "record_hits", "rest", "settle", "spent_in_round"
    }  # fmt: skip
    assert methods <= actors.ledger._CALLS
    assert all(hasattr(Ledger, name) for name in actors.ledger._CALLS)


def story(ledger) -> list:
    """What a ledger says while a run works with it, reservation keys apart."""
    key, said = hash_images(grey(1, 2, 3, 4, 5, 6)), []
    ledger.open_account("me", {"training": 9, "evaluation": 2})
    said.append((ledger.remaining(), ledger.remaining("training", "me"), ledger.remaining("evaluation", "me")))
    facts = {"teacher": "t", "round": 2, "owner": "me", "limits": Limits(in_flight=3), "lease_s": 5.0}
    grant = ledger.grant([Order(hashes=key[:3]), Order(hashes=key[3:5], attempt=2), Order(hashes=key[5:])], **facts)
    said.append([(part.reservation.queries, part.send, part.busy, part.left) for part in grant.parts])
    first, second, third = (part.reservation for part in grant.parts)
    said.append((grant.blocked, ledger.grant([Order(hashes=key[:1])], **facts).blocked))
    bad = {1: "nonsense"}
    ledger.settle(
        [
            Outcome(
                reservation=first,
                state="answered",
                hashes=key[:3],
                answers=brightness(grey(1, 2, 3)).rows(),
                bad=bad,
            ),
            Outcome(reservation=second, state="uncertain", reason="lost"),
        ]
    )
    said.append({k: (label, probs.tolist()) for k, (label, probs) in ledger.lookup("t", key).items()})
    said.append((ledger.failures("t", key), ledger.answers_of("t"), ledger.knows("me"), ledger.knows("you")))
    said.append((ledger.recover("me"), ledger.recover("me"), third.queries))
    said.append((ledger.spent(), ledger.uncertain("training", "me"), ledger.rejected("training", "me")))
    ledger.record_hits("t", 4, purpose="training", round=2, owner="me")
    said.append((ledger.spent_in_round(2, "training", "me"), ledger.teachers("me"), ledger.teachers("you")))
    ledger.rest("t", 1000.0)
    said.append(ledger.grant([Order(hashes=key[5:])], **facts).blocked)
    with pytest.raises(LedgerError, match=r"is answered and cannot become released$") as error:
        ledger.settle([Outcome(reservation=first, state="released")])
    assert type(error.value) is LedgerError and len(str(error.value).splitlines()) == 1
    return said


def test_the_actor_says_what_the_file_says(open_ledger, tmp_path):
    file = Ledger(tmp_path / "file.sqlite", 100)
    assert story(open_ledger(100)) == story(file)
    other = Ledger(tmp_path / "ledger.sqlite")
    assert other.read("SELECT * FROM accounts ORDER BY owner, purpose") == file.read(
        "SELECT * FROM accounts ORDER BY owner, purpose"
    )
    for ledger in (file, other):
        assert ledger.read("SELECT images FROM hits") == [(4,)]
        ledger.close()


class Dangerous:
    """A teacher of two runs that counts what it is asked, and has something happen to the ledger now and then."""

    identity, num_classes, metered = "dangerous", 2, True

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[int] = Counter()
        self.folder, self.batches, self.lock = folder, 0, threading.Lock()

    def answer(self, images: torch.Tensor) -> Answers:
        with self.lock:
            self.asked.update(images[:, 0, 0, 0].tolist())
            self.batches += 1
            order = {3: "grant", 9: "settle"}.get(self.batches)
            if order:
                (self.folder / f"die-after-{order}").touch()
            if self.batches in (15, 22):
                for pid in actor_pids("Mortal"):
                    os.kill(pid, signal.SIGKILL)
        return brightness(images)


@pytest.mark.storm
def test_two_runs_buy_each_image_once_while_the_actor_is_killed_again_and_again(open_ledger, tmp_path):
    """It dies right after it has written a grant or a settlement, before anybody hears of it; and at any moment."""
    teacher, images, results = Dangerous(tmp_path), grey(*range(150)), {}

    def work(owner: str, ledger: RayLedger) -> None:
        ledger.open_account(owner, {"training": 150})
        results[owner] = buy(images, teachers=LocalTeacherPool(teacher), ledger=ledger, batch_size=4, owner=owner)

    threads = [threading.Thread(target=work, args=(owner, open_ledger(150))) for owner in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(results) == ["a", "b"]
    assert not list(tmp_path.glob("die-*")), "it died of each"
    assert teacher.asked == Counter(range(150)), "each image was answered exactly once"
    for bought in results.values():
        assert torch.equal(bought.answers.probs, brightness(images).probs)
        assert bought.charged + bought.reused == 150
    assert sum(bought.charged for bought in results.values()) == 150
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.read("SELECT answered, rejected, uncertain, reserved FROM accounts WHERE owner = ''") == [
        (150, 0, 0, 0)
    ]
    assert {row[0] for row in ledger.read("SELECT reason FROM reservations WHERE state = 'released'")} == {"never sent"}
    assert ledger.read("SELECT count(*) FROM claims") == [(0,)]
    ledger.close()


@pytest.mark.storm
def test_all_who_name_the_file_share_an_actor_and_the_last_to_leave_ends_it(open_ledger, ray_local, tmp_path):
    (tmp_path / "same").symlink_to(tmp_path)
    before = ledgers(ray_local)
    first, second = open_ledger(100), open_ledger(path=tmp_path / "same" / "ledger.sqlite")
    elsewhere = open_ledger(100, path=tmp_path / "other.sqlite")
    assert first._actor == second._actor != elsewhere._actor
    assert ledgers(ray_local) - before == {first._name, elsewhere._name}
    first.open_account("me", {"training": 7})
    assert second.remaining("training", "me") == 7
    first.close()
    assert there(ray_local, second) and second.remaining("training", "me") == 7
    second.close()
    wait_until_gone(ray_local, second)
    assert there(ray_local, elsewhere)
    late = open_ledger(100)
    assert late._actor != first._actor and late.remaining("training", "me") == 7
    # Whoever has left and goes on all the same gets an actor too.
    late.close()
    assert second.remaining("training", "me") == 7


@pytest.mark.storm
def test_coming_while_the_last_one_leaves(open_ledger, ray_local, tmp_path):
    """The actor is ended by the one before, while it is letting the next one in."""
    first = open_ledger(100)
    (tmp_path / "wait").touch()
    with ThreadPoolExecutor(1) as executor:
        coming = executor.submit(open_ledger, 100)
        while not (tmp_path / "waiting").exists():
            assert not coming.done()
            time.sleep(0.01)
        ray_local.kill(first._actor)
        (tmp_path / "wait").unlink()
        second = coming.result(60)
    second.open_account("me", {"training": 5})
    assert first.remaining("training", "me") == 5
    assert first._actor == second._actor, "both are with the new one"


def test_a_ledger_is_found_by_its_name_and_halted_for_all(ray_local, tmp_path):
    """The trials of a sweep know the name alone: the file may be on another node."""
    owner = RayLedger(tmp_path / "ledger.sqlite", 100, name="sweep-of-this-test")
    trial = NamedLedger("sweep-of-this-test", "a path on another node")
    order = [Order(hashes=[b"x" * 16], attempt=1)]
    granted = trial.grant(order, teacher="t", owner="me")
    owner.halt("the sweep is being stopped")
    with pytest.raises(Halted, match="the sweep is being stopped"):
        trial.grant(order, teacher="t", owner="me")
    assert trial.reserved() == 1
    trial.settle([Outcome(reservation=granted.parts[0].reservation, state="uncertain")])  # what is on its way ends well
    assert (trial.reserved(), owner.spent()) == (0, 1)
    trial.grant([], teacher="t", owner="me", request="mine")  # closing a grant buys nothing
    owner.halt(None)
    assert trial.grant([Order(hashes=[b"y" * 16], attempt=1)], teacher="t", owner="me").parts
    owner.close()
    trial.close()  # the last one, but it could not start another, so it leaves this one to who can
    found = NamedLedger("sweep-of-this-test", "a path on another node")
    assert found.spent() == 1
    found.close()
    RayLedger(tmp_path / "ledger.sqlite", 100, name="sweep-of-this-test").close()
    with pytest.raises(LedgerError, match="the actor sweep-of-this-test of the ledger a path on another node is gone"):
        NamedLedger("sweep-of-this-test", "a path on another node")
    with pytest.raises(LedgerError, match="is gone"):
        trial.spent()


@pytest.mark.storm
def test_a_file_that_was_deleted_and_made_anew_is_the_one_that_is_used(open_ledger, tmp_path):
    """A driver was killed, and never left; its run was deleted, and started again under the same name."""
    killed = open_ledger(100)
    killed.open_account("old", {"training": 7})
    for file in tmp_path.glob("ledger.sqlite*"):
        file.unlink()
    again = open_ledger(50)
    again.open_account("new", {"training": 5})
    assert (again.remaining("training", "old"), again.remaining("training", "new")) == (50, 5)
    file = Ledger(tmp_path / "ledger.sqlite", 50)
    assert file.remaining("training", "new") == 5, "on disk, in the file that is there"
    file.close()


def test_what_is_wrong_with_the_file_is_one_sentence(open_ledger, ray_local, tmp_path):
    ledger = open_ledger(100)
    before = ledgers(ray_local)
    (tmp_path / "broken.sqlite").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 32)
    for path, budget, message in (
        (tmp_path / "ledger.sqlite", 50, "was made for a budget of 100 queries, not 50"),
        (tmp_path / "broken.sqlite", 50, "cannot use .* as a ledger"),
        (tmp_path / "nowhere" / "ledger.sqlite", 50, "cannot use .* as a ledger"),
        (tmp_path, 50, "cannot use .* as a ledger"),
    ):
        with pytest.raises(LedgerError, match=message) as error:
            RayLedger(path, budget)
        assert isinstance(error.value, KdrayError) and len(str(error.value).splitlines()) == 1
    assert ledger._name in ledgers(ray_local) <= before, "no actor was started for a file that cannot be used"
    with pytest.raises(AttributeError):
        ledger.change_budget(10)
    assert ledger.remaining() == 100


@pytest.mark.storm  # small: a file that was spoilt before
def test_the_actor_of_a_file_that_was_spoilt_meanwhile_says_so(open_ledger, tmp_path):
    ledger = open_ledger(100)
    for file in tmp_path.glob("ledger.sqlite-*"):
        file.unlink()
    (tmp_path / "ledger.sqlite").write_bytes(b"no database at all" * 1000)
    (pid,) = actor_pids("Mortal", ledger._name)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(LedgerError, match=r"cannot use .* as a ledger") as error:
        ledger.remaining()
    assert len(str(error.value).splitlines()) == 1


def test_a_user_that_was_killed_is_forgotten_after_a_while(tmp_path):
    now = [0.0]
    service = LedgerService(str(tmp_path / "ledger.sqlite"), 100, lambda: now[0])
    service.enter("killed", None)
    service.enter("alive", 100)
    now[0] = 3000.0
    assert service.call("alive", "remaining", (), {}) == 100
    assert not service.leave("somebody"), "two were heard of in the last hour"
    now[0] = 3700.0
    assert not service.leave("somebody")
    assert service.leave("alive")
    service.enter("late", None)
    assert service.leave("late")
    # An actor that Ray has started again knows nobody, until they call.
    service.call("unknown", "spent", (), {})
    assert not service.leave("late")
    assert service.leave("unknown")
