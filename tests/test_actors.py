"""Real Ray actors in this process's cluster: the same results as without them, also when they are killed."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import actor_pids, digits_config, running, served
from PIL import Image
from safetensors.torch import save

from actors.cluster import Cluster, connect, count_workers, start_local
from actors.scoring import RaySearcher
from actors.students import RayTrainer
from actors.teachers import RayTeacherPool
from kdray.config.load import parse_config
from kdray.errors import ClusterError, ImageDeclined, ScoringError, TeacherBusy, TeacherError
from kdray.ledger import Ledger
from kdray.ledger.limits import Limits
from kdray.models.checkpoint import ModelCard
from kdray.models.classifier import build_model
from kdray.observers.base import Observer
from kdray.pools.base import pools
from kdray.pools.mixup import MixupPool
from kdray.runs.directory import RunDirectory
from kdray.runs.purchase import PurchasePolicy, buy
from kdray.runs.run import run
from kdray.search import SearchRequest
from kdray.search.local import LocalSearcher
from kdray.search.lowest import plan_search
from kdray.sections.search import SearchSettings
from kdray.select.base import Task, select, strategies
from kdray.teachers import AnswerFormat, Answers
from kdray.teachers.http import HttpTeacherConfig as HttpConfig
from kdray.teachers.retry import RetryPolicy, RetryState
from kdray.training.fitting import StudentSpec
from kdray.training.trainer import LocalTrainer

LAMBDAS = [0.3, 0.4, 0.5, 0.6, 0.7]
EXHAUSTIVE = SearchSettings(search="exhaustive")
GUESSING = SearchSettings(search="interpolated", min_recall=0.0)


@pytest.fixture(scope="module")
def pool() -> MixupPool:
    generator = torch.Generator().manual_seed(0)
    return MixupPool(torch.randint(0, 256, (90, 1, 28, 28), generator=generator, dtype=torch.uint8), LAMBDAS)


@pytest.fixture(scope="module")
def model():
    return build_model("lenet5", (1, 28, 28), 10, seed=1)


@pytest.fixture(scope="module")
def reference(pool, model):
    return LocalSearcher(512, settings=EXHAUSTIVE).search(pool, model, SearchRequest(k=300))


@pytest.fixture(scope="module")
def two_workers(ray_local) -> Iterator[list]:
    """Scoring workers for several tests: nothing of one search is left in them for the next."""
    searcher = RaySearcher(2)
    searcher.start()
    yield searcher._actors
    searcher.close()


@pytest.fixture
def searcher_of(two_workers):
    """Makes a searcher with some of them."""

    def make(workers: int = 2, **options) -> RaySearcher:
        searcher = RaySearcher(workers, **options)
        searcher._actors = two_workers[:workers]
        return searcher

    return make


def same(found, reference) -> bool:
    return found.ids.tolist() == reference.ids.tolist() and found.scores.tobytes() == reference.scores.tobytes()


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.storm), 2])
def test_ray_workers_find_what_one_process_finds_bit_for_bit(workers, searcher_of, pool, model, reference):
    searcher, seen = searcher_of(workers, chunk=512, settings=EXHAUSTIVE), []
    request = SearchRequest(k=300)
    found = searcher.search(pool, model, request, on_progress=lambda done, total: seen.append((done, total)))
    assert same(found, reference)
    assert seen[-1] == (len(pool), len(pool))
    # The same actors again, with another student and with groups that have left the pool.
    other = build_model("lenet5", (1, 28, 28), 10, seed=2)
    taken = np.sort(found.ids // len(LAMBDAS))
    request = SearchRequest(k=200, taken=taken)
    again = LocalSearcher(512, settings=EXHAUSTIVE).search(pool, other, request)
    assert same(searcher.search(pool, other, request), again)


@pytest.mark.storm
@pytest.mark.parametrize(
    "kind", [pytest.param("leaves", marks=pytest.mark.long), "mixture", "photographs read on demand"]
)
def test_workers_choose_the_same_of_candidates_that_they_draw_themselves(kind, searcher_of, model, tmp_path):
    section = {"kind": kind, "candidates": 700}
    if kind.startswith("photographs"):
        rows = np.random.default_rng(0).integers(0, 256, (20, 40, 50), dtype=np.uint8)
        for number, pixels in enumerate(rows):
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images = {"source": "folder", "path": str(tmp_path)}
        section |= {"kind": "crops", "images": images, "read": "on-demand"}
    drawn = pools.parse(section).build(torch.empty(0, 1, 28, 28, dtype=torch.uint8), 3)
    request = SearchRequest(k=20)
    reference = LocalSearcher(512, settings=EXHAUSTIVE).search(drawn, model, request)
    assert same(searcher_of(chunk=100, settings=EXHAUSTIVE).search(drawn, model, request), reference)
    assert len(set(reference.scores.tolist())) > 10


def test_workers_guess_as_one_process_does_bit_for_bit(searcher_of, pool, model):
    pool = MixupPool(pool.images[:60], [round(0.3 + 0.04 * k, 2) for k in range(11)])
    request = SearchRequest(k=10)
    assert plan_search(pool, request, GUESSING).guess
    reference = LocalSearcher(512, settings=GUESSING).search(pool, model, request, seed=7)
    found = searcher_of(chunk=300, settings=GUESSING).search(pool, model, request, seed=7)
    assert same(found, reference)
    assert found.facts() == reference.facts()
    assert found.recall.sampled == 200 and found.evaluated <= found.exhaustive / 2


@pytest.mark.storm
def test_every_strategy_chooses_alike_on_two_workers_and_in_one_process(searcher_of, pool, model):
    pool = MixupPool(pool.images[:60], [round(0.3 + 0.04 * k, 2) for k in range(11)])
    searchers = LocalSearcher(512, settings=GUESSING), searcher_of(chunk=300, settings=GUESSING)
    for name in [*strategies.parts(), {"strategy": "margin", "balance": 4}, {"strategy": "random", "balance": 4}]:
        chosen = []
        for searcher in searchers:
            task = Task(
                pool=pool,
                k=30,
                taken=np.array([5, 700, 19_000]),
                generator=np.random.default_rng(3),
                ask=lambda request, by=searcher: by.search(pool, model, request),
                known=pool.images,
            )
            chosen.append(select(strategies.parse(name), task))
        here, there = chosen
        assert here.ids.tolist() == there.ids.tolist(), name
        if here.scores is not None:
            assert here.scores.tobytes() == there.scores.tobytes(), name
        if here.search is not None:
            assert here.search.facts() == there.search.facts(), name


@pytest.mark.storm
def test_what_is_scored_shows_in_rays_metrics(ray_local, pool, model):
    searcher = RaySearcher(1, chunk=2048, settings=EXHAUSTIVE)
    try:
        searcher.search(pool, model, SearchRequest(k=5))
        port, deadline, text = ray_local.nodes()[0]["MetricsExportPort"], time.monotonic() + 120, ""
        while "kdray_candidates_scored" not in text:  # workers report every few seconds
            assert time.monotonic() < deadline, "no metric of kdray's at the metrics port"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
                text = reply.read().decode()
            time.sleep(0.5)
    finally:
        searcher.close()
    counts = [line.rpartition(" ")[2] for line in text.splitlines() if "kdray_candidates_scored" in line.split("{")[0]]
    assert max(float(count) for count in counts if count.replace(".", "").isdigit()) >= len(pool)
    assert "kdray_chunk_seconds_bucket" in text


def test_a_worker_killed_in_mid_search_changes_nothing(searcher_of, pool, model, reference):
    searcher = searcher_of(chunk=512, settings=EXHAUSTIVE)
    victims = searcher.pids()

    def kill(done: int, total: int) -> None:
        if victims and done > total // 4:
            os.kill(victims.pop(), signal.SIGKILL)

    assert same(searcher.search(pool, model, SearchRequest(k=300), on_progress=kill), reference)
    assert len(victims) == 0 and searcher.requeued >= 1


@pytest.mark.storm
def test_cpus_that_become_free_in_mid_search_are_put_to_work(ray_local, pool, model, reference):
    """As when a node joins."""

    class Holder:
        def ready(self) -> bool:
            return True

    until(lambda: ray_local.available_resources().get("CPU", 0) >= 2)  # the test before may just have given one back
    free = int(ray_local.available_resources()["CPU"])
    holder = ray_local.remote(Holder).options(num_cpus=free - 1).remote()
    searcher, notes = RaySearcher(1, chunk=512, settings=EXHAUSTIVE, grow=True), []
    try:
        assert ray_local.get(holder.ready.remote())

        def leave(done: int, total: int) -> None:
            nonlocal holder
            if holder is not None and done * 3 > total:
                ray_local.kill(holder)
                holder = None
                until(lambda: ray_local.available_resources().get("CPU", 0) == free - 1)
                until(lambda: time.monotonic() - searcher._looked_at > 2)  # it looks every two seconds

        found = searcher.search(pool, model, SearchRequest(k=300), on_progress=leave, on_note=notes.append)
        assert same(found, reference)
    finally:
        searcher.close()
    more = "1 more scoring worker" if free == 2 else f"{free - 1} more scoring workers"
    slow = [note for note in notes if note.startswith("no scoring worker yet")]  # on a busy machine
    assert [note for note in notes if note not in slow] == [f"{more}, {free} in all: CPUs have become free"]
    assert searcher.requeued == 0


@pytest.mark.storm
def test_more_workers_than_cpus_do_not_block_a_search(ray_local, pool, model, reference):
    searcher = RaySearcher(5, chunk=512, settings=EXHAUSTIVE)
    try:
        assert same(searcher.search(pool, model, SearchRequest(k=300)), reference)
    finally:
        searcher.close()


def test_an_error_of_the_students_comes_back_as_it_was_raised(searcher_of, pool):
    broken = build_model("lenet5", (1, 28, 28), 10, seed=1)
    broken.mean.fill_(float("nan"))
    with pytest.raises(ScoringError, match=r"^the student's output for candidate \d+ is not a number"):
        searcher_of(1, chunk=512, settings=EXHAUSTIVE).search(pool, broken, SearchRequest(k=3))


@pytest.fixture
def teacher_parts(teacher_weights):
    config = parse_config(digits_config(teacher_weights)).teacher
    build = partial(config.build, (1, 16, 16))
    images = torch.randint(0, 256, (100, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return build, images


@pytest.fixture
def ledger():
    ledger = Ledger(":memory:", budget=100)
    yield ledger
    ledger.close()


@pytest.mark.storm  # small: two workers of which one dies
def test_a_pool_of_teachers_answers_as_one_does(ray_local, ledger, teacher_parts):
    build, images = teacher_parts
    pool = RayTeacherPool(build(), build, 2)
    try:
        bought = buy(images, teachers=pool, ledger=ledger, batch_size=16)
    finally:
        pool.close()
    direct = build().answer(images)
    assert torch.equal(bought.answers.probs, direct.probs)
    assert torch.equal(bought.answers.labels, direct.labels)
    assert (ledger.spent(), bought.charged) == (100, 100)


def brightness(images) -> Answers:
    """Two classes, dark and bright; with one bad row where the first image is black."""
    share = images.float().mean(dim=(1, 2, 3)) / 255
    answers = AnswerFormat().apply(torch.stack([share, 1 - share], dim=1))
    return replace(answers, bad={0: "it is black"}) if len(share) and share[0] == 0 else answers


class Playful:
    """A teacher whose process does something else first, as files in its folder say: wait, fail, break, die, or be
    reluctant."""

    identity, num_classes = "playful", 2

    def __init__(self, folder: str, metered: bool = True) -> None:
        self.folder, self.metered = Path(folder), metered

    def answer(self, images):
        me = self.folder / f"working-{os.getpid()}"
        me.touch(exist_ok=False)  # a worker does one batch at a time
        try:
            while (self.folder / "wait").exists():
                time.sleep(0.01)
            if (self.folder / "reluctant").exists():
                return self._reluctant(images)
            if len(images) == 13:
                raise TeacherError("thirteen!")
            if len(images) == 17:
                raise ZeroDivisionError("seventeen!")
            if (self.folder / "die").exists():
                (self.folder / "die").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return brightness(images)
        finally:
            me.unlink()

    def _reluctant(self, images):
        """The first three calls, over all workers: it is busy, takes no dark image, and gives nothing."""
        calls = len(list(self.folder.glob("call-*")))
        (self.folder / f"call-{calls}").touch()
        if calls == 0:
            raise TeacherBusy("not now", 0.01)
        if calls == 1:
            raise ImageDeclined("too dark")
        return brightness(images) if calls > 2 else None


@pytest.fixture(scope="module")
def playground(ray_local, tmp_path_factory):
    """A pool of two workers for several tests."""
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    build = partial(Playful, str(tmp_path_factory.mktemp("playful")))
    pool = RayTeacherPool(build(), build, 2, slots=8)
    yield pool
    pool.close()


@pytest.fixture
def playful(playground):
    """The pool, with nothing ordered and nobody working; and the folder for orders."""
    folder = playground.teacher.folder
    playground.teacher = Playful(folder)
    yield playground, folder
    for left in folder.iterdir():
        left.unlink()


def until(condition) -> None:
    """Waits for what is bound to come."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def grey(*shades: int) -> torch.Tensor:
    return torch.tensor(shades, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()


def working(folder: Path) -> int:
    return len(list(folder.glob("working-*")))


@pytest.mark.storm
def test_a_worker_has_one_batch_at_a_time_and_replies_come_as_they_are_ready(playful):
    pool, folder = playful
    assert (pool.slots, pool.teacher.identity) == (2, "playful"), "slots are for teachers on HTTP"
    assert pool.collect(None) == [], "nothing was asked"
    (folder / "wait").touch()
    pool.send("a", grey(10, 20))
    pool.send(("b", 2), grey(0, 255, 128))
    until(lambda: working(folder) == 2)  # two processes at once
    assert pool.collect(0) == pool.collect(0.05) == []
    (folder / "wait").unlink()
    answers = {reply.key: reply.answers for reply in (*pool.collect(None), *pool.collect(None))}
    assert torch.equal(answers["a"].probs, brightness(grey(10, 20)).probs)
    assert torch.equal(answers["b", 2].labels, brightness(grey(0, 255, 128)).labels)
    assert (answers["a"].bad, answers["b", 2].bad) == ({}, {0: "it is black"})
    assert pool.collect(None) == []


@pytest.mark.parametrize(("count", "message"), [(13, "thirteen!"), (17, "ZeroDivisionError: seventeen!")])
def test_what_goes_wrong_in_one_worker_takes_no_reply_of_another_with_it(count, message, playful):
    pool, folder = playful
    (folder / "wait").touch()
    pool.send("wrong", grey(*range(count)))
    pool.send("right", grey(7))
    until(lambda: working(folder) == 2)
    (folder / "wait").unlink()
    until(lambda: working(folder) == 0)
    replies = {reply.key: reply for reply in (*pool.collect(None), *pool.collect(None))}
    assert (replies["wrong"].fault.kind, replies["wrong"].answers) == ("failed", None)
    assert message in replies["wrong"].fault.message
    assert torch.equal(replies["right"].answers.probs, brightness(grey(7)).probs)


def test_what_a_teacher_raises_in_a_worker_means_what_it_means_here(playful, ledger):
    pool, folder = playful
    (folder / "reluctant").touch()
    images = grey(200, 201, 202, 203)
    with pytest.raises(TeacherError, match="the teacher gave NoneType"):
        buy(images, teachers=pool, ledger=ledger, batch_size=4)
    assert ledger.read("SELECT state, reason FROM reservations ORDER BY rowid")[:2] == [
        ("released", "not now"), ("released", "too dark")
    ]  # fmt: skip
    assert ledger.spent() == 2, "of the four, two were asked when it failed"
    assert buy(images, teachers=pool, ledger=ledger, batch_size=4).positions.tolist() == [0, 1, 2, 3]


@pytest.mark.storm
def test_dead_workers_are_reported_and_serve_again(playful):
    pool, folder = playful
    for word in ("a", "b"):
        (folder / "die").touch()
        pool.send(word, grey(1))
        (reply,) = pool.collect(None)
        assert (reply.key, reply.answers, reply.fault.kind) == (word, None, "lost")
        assert reply.fault.message.startswith("a teacher worker died: ") and "\n" not in reply.fault.message
    for left in folder.glob("working-*"):
        left.unlink()
    (folder / "wait").touch()
    pool.send("c", grey(1))
    pool.send("d", grey(2))
    until(lambda: working(folder) == 2)
    (folder / "wait").unlink()
    answers = {reply.key: reply.answers for reply in (*pool.collect(None), *pool.collect(None))}
    assert torch.equal(answers["c"].probs, brightness(grey(1)).probs)
    assert torch.equal(answers["d"].probs, brightness(grey(2)).probs)


@pytest.mark.storm
def test_workers_that_die_between_two_rounds_are_there_for_the_next(playful, ledger):
    pool, _ = playful
    pool.teacher.metered = False
    assert facts(buy(grey(*range(1, 21)), teachers=pool, ledger=ledger, batch_size=5)) == (20, 0, 0)
    until(lambda: len(actor_pids("TeacherWorker")) == 2)  # one may have answered all before the other was there
    for pid in actor_pids("TeacherWorker"):
        os.kill(pid, signal.SIGKILL)
    bought = buy(grey(*range(21, 51)), teachers=pool, ledger=ledger, batch_size=5, round=1)
    assert (facts(bought), ledger.spent()) == ((30, 0, 0), 50)
    assert torch.equal(bought.answers.probs, brightness(grey(*range(21, 51))).probs)


@pytest.mark.parametrize(
    ("metered", "charged", "short"), [pytest.param(False, 100, 0, marks=pytest.mark.storm), (True, 100, 25)]
)
def test_a_dead_teacher_workers_batch_is_asked_again_and_counted_honestly(metered, charged, short, playful, ledger):
    pool, folder = playful
    pool.teacher.metered = metered
    (folder / "die").touch()
    bought = buy(grey(*range(1, 101)), teachers=pool, ledger=ledger, batch_size=25)
    # What may have been billed counts as charged: the budget then ends one batch early.
    assert (bought.charged, bought.short, ledger.spent()) == (charged, short, charged)
    assert ledger.uncertain() == (25 if metered else 0)


def facts(bought) -> tuple[int, int, int]:
    return bought.charged, bought.reused, bought.short


@pytest.mark.storm
def test_a_worker_that_cannot_make_its_teacher_costs_nothing(ray_local, ledger, tmp_path):
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def broken():
        raise ValueError("no such weights here")

    pool = RayTeacherPool(Playful(str(tmp_path)), broken, 1)
    try:
        with pytest.raises(TeacherError, match=r"cannot start: .*no such weights here"):
            buy(grey(*range(1, 21)), teachers=pool, ledger=ledger, batch_size=5)
    finally:
        pool.close()
    assert (ledger.spent(), ledger.remaining()) == (0, 100)
    assert ledger.read("SELECT state, reason FROM reservations") == []


def test_a_run_whose_teacher_workers_find_no_place_stops_after_its_patience(ray_local, ledger, tmp_path):
    """As after the loss of the one node that had a GPU."""
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    build = partial(Playful, str(tmp_path))
    pool = RayTeacherPool(build(), build, 1, gpus=1, patience_s=1)
    try:
        with pytest.raises(TeacherError, match=r"no teacher worker was ready for 1 s; .* set resources\.patience_s"):
            buy(grey(*range(1, 21)), teachers=pool, ledger=ledger, batch_size=5)
    finally:
        pool.close()
    assert (ledger.spent(), ledger.reserved()) == (0, 0)
    assert ledger.read("SELECT state, reason FROM reservations") == [], "nothing is reserved before one is ready"


class Slow(Playful):
    """A teacher that is not made while the file `stuck` is there, but for the first one of `alone`."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, metered=False)
        with contextlib.suppress(OSError):
            (self.folder / "alone").rename(self.folder / "taken")
            (self.folder / "pid").write_text(str(os.getpid()))
            return
        while (self.folder / "stuck").exists():
            time.sleep(0.05)


@pytest.mark.storm
def test_what_was_bought_is_kept_when_workers_do_not_come_back_and_the_living_go_on(ray_local, ledger, tmp_path):
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    teacher = Slow(str(tmp_path))
    for name in ("alone", "stuck"):
        (tmp_path / name).touch()
    pool = RayTeacherPool(teacher, partial(Slow, str(tmp_path)), 2, patience_s=60)
    try:
        # The second worker never starts; the first one answers everything.
        assert facts(buy(grey(*range(1, 21)), teachers=pool, ledger=ledger, batch_size=5)) == (20, 0, 0)
        assert pool.slots == 1
        pool._patience_s = 1
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # workers of earlier tests may be ending still
        with pytest.raises(TeacherError, match="no teacher worker was ready for 1 s"):
            buy(grey(*range(21, 41)), teachers=pool, ledger=ledger, batch_size=5, round=1)
        assert (ledger.spent(), ledger.reserved()) == (20, 0)
        # Four before, and what was sent to the one that was killed: nothing is reserved while nobody can send it.
        assert ledger.read("SELECT count(*) FROM reservations") == [(5,)]
        (tmp_path / "stuck").unlink()
        pool._patience_s = 60
        assert facts(buy(grey(*range(1, 41)), teachers=pool, ledger=ledger, batch_size=5, round=2)) == (20, 20, 0)
    finally:
        pool.close()


# ---- a teacher behind HTTP


class Desk:
    """Middleware of a server: counts the requests inside, and holds them back until so many are there."""

    def __init__(self) -> None:
        self.inside = self.most = self.hold = 0

    @property
    def middleware(self):
        from aiohttp import web

        @web.middleware
        async def count(request, handler):
            if not request.path.endswith("/infer"):
                return await handler(request)
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                while self.inside < self.hold:
                    await asyncio.sleep(0.005)
                self.hold = 0
                return await handler(request)
            finally:
                self.inside -= 1

        return count


class Counting:
    """A teacher that counts the images it has answered; picture 77 is nonsense to it."""

    identity, num_classes, metered = "counting", 2, True

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()

    def answer(self, images):
        self.asked.update(images[:, 0, 0, 0].tolist())
        answers = brightness(images)
        answers.probs[images[:, 0, 0, 0] == 77] = -1.0
        return answers


@pytest.fixture(scope="module")
def office(ray_local):
    """A server, and a pool of one worker that asks it, for several tests."""
    desk, counting = Desk(), Counting()
    with served(counting, (1, 4, 4), desk.middleware) as url:
        section = HttpConfig(kind="http", url=url, model="teacher", classes=2, timeout_s=30)
        build = partial(section.build, (1, 4, 4))
        pool = RayTeacherPool(build(), build, 1, slots=4)
        yield pool, desk, counting
        pool.close()


@pytest.fixture
def http_parts(office):
    """The same, with new counts."""
    pool, desk, counting = office
    desk.most, desk.hold = 0, 0
    counting.asked.clear()
    return pool, desk, counting


@pytest.mark.storm
def test_one_worker_keeps_many_requests_on_their_way(http_parts, ledger):
    pool, desk, counting = http_parts
    assert pool.slots == 4
    images = grey(*range(1, 91))
    policy = PurchasePolicy(probe=True, limits=Limits(in_flight=4))
    buy(images[:2], teachers=pool, ledger=ledger, batch_size=2, policy=policy)
    assert desk.most == 1, "it had never answered"
    desk.hold = 4
    bought = buy(images, teachers=pool, ledger=ledger, batch_size=3, round=1, policy=policy)
    assert desk.most == 4
    assert (facts(bought), bought.set_aside.keys()) == ((87 + 5, 2, 0), {76})
    assert torch.equal(bought.answers.probs, brightness(images[bought.positions]).probs)
    # Each answered once, and the one that makes no sense as often as the policy tries.
    assert counting.asked == Counter(range(1, 91)) + Counter({77: 4})
    assert ledger.rejected() == 5


@pytest.mark.storm
def test_an_http_worker_killed_with_requests_on_their_way_loses_those_and_serves_again(http_parts, ledger):
    """The server has four requests in hand when the worker that sent them is killed."""
    pool, desk, counting = http_parts
    policy = PurchasePolicy(retry=RetryState(RetryPolicy(backoff_s=0.01)))
    buy(grey(1), teachers=pool, ledger=ledger, batch_size=1, policy=policy)
    desk.hold = 5  # which never come

    def kill() -> None:
        until(lambda: desk.inside == 4)
        (victim,) = actor_pids("AsyncTeacherWorker")
        os.kill(victim, signal.SIGKILL)
        desk.hold = 0

    with ThreadPoolExecutor(1) as executor:
        killed = executor.submit(kill)
        bought = buy(grey(*range(2, 42)), teachers=pool, ledger=ledger, batch_size=5, round=1, policy=policy)
        killed.result()
    assert facts(bought) == (40 + 20, 0, 0)
    assert torch.equal(bought.answers.probs, brightness(grey(*range(2, 42))).probs)
    assert (ledger.spent(), ledger.uncertain()) == (61, 20)
    assert set(counting.asked) == set(range(1, 42)) and max(counting.asked.values()) <= 2
    assert counting.asked.total() <= ledger.spent(), "never more than the ledger knows of"


@pytest.mark.storm
def test_a_reply_that_one_worker_got_makes_a_new_request_of_the_try_of_another(ray_local):
    """The server replies once to an Idempotency-Key; it fails at the first two that it gets for a picture."""
    from aiohttp import web

    keys: dict[int, list[str]] = {1: [], 2: []}
    held = threading.Event()

    async def handler(request: web.Request) -> web.Response:
        ((((shade,),),),) = [(await request.json())["inputs"]]
        mine, key = keys[shade], request.headers["Idempotency-Key"]
        if key not in mine:
            mine.append(key)
        while shade == 1 and not held.is_set():
            await asyncio.sleep(0.01)
        failed = shade == 2 and mine.index(key) < 2
        return web.json_response({"p": [[0.25, 0.75]]}, status=500 if failed else 200)

    app = web.Application()
    app.router.add_post("/", handler)
    with running(app) as url:
        section = HttpConfig(
            kind="http", protocol="json", url=url, classes=2, batch_size=1, timeout_s=60,
            request={"inputs": "$images"}, reply={"rows": "p", "probabilities": ""},
            input={"layout": "nhw"},
        )  # fmt: skip
        build = partial(section.build, (1, 1, 1))
        pool = RayTeacherPool(build(), build, 2, slots=2)
        try:
            pool.send("held", torch.full((1, 1, 1, 1), 1, dtype=torch.uint8))
            until(lambda: keys[1])
            replies = []
            for turn in range(3):
                if turn == 2:  # the other worker is idle, and is taken
                    held.set()
                    replies += pool.collect(30)
                pool.send(turn, torch.full((1, 1, 1, 1), 2, dtype=torch.uint8))
                replies += pool.collect(30)
            tries = len(keys[2])
            pool.send("on purpose", torch.full((1, 1, 1, 1), 2, dtype=torch.uint8), 1000)
            (again,) = pool.collect(30)
        finally:
            held.set()
            pool.close()
    assert [(reply.key, reply.fault and reply.fault.kind) for reply in replies] == [
        (0, "lost"), (1, "lost"), ("held", None), (2, None)
    ]  # fmt: skip
    assert tries == 3
    assert again.fault is None and len(keys[2]) == 4, "what is asked again on purpose is a new request"


@pytest.mark.storm
def test_an_http_worker_that_died_at_its_leisure_still_knows_how_to_ask(http_parts, ledger):
    """Ray has started it again before anybody looked; what the server had told it must be asked for again."""
    pool, _, _ = http_parts
    buy(grey(1), teachers=pool, ledger=ledger, batch_size=1)
    (victim,) = actor_pids("AsyncTeacherWorker")
    os.kill(victim, signal.SIGKILL)
    until(lambda: any(pid != victim for pid in actor_pids("AsyncTeacherWorker")))
    bought = buy(grey(*range(2, 12)), teachers=pool, ledger=ledger, batch_size=5, round=1)
    assert bought.positions.tolist() == list(range(10))
    assert ledger.rejected() == 0


@pytest.mark.storm  # small: the run on workers that are killed trains in one too
def test_a_student_trained_in_an_actor_is_the_one_trained_here(ray_local):
    spec = StudentSpec(
        start=save(build_model("small-cnn", (1, 16, 16), 3, seed=8).network.state_dict()),
        card=ModelCard(model="small-cnn", image_shape=(1, 16, 16), num_classes=3),
        mean=[0.5],
        std=[0.2],
        recipe=parse_config(digits_config("x")).student,
        seed=5,
        threads=1,
    )
    images = torch.randint(0, 256, (64, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    targets = torch.softmax(torch.randn(64, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    here, result = LocalTrainer(spec).fit(images, targets, 2)
    trainer, told = RayTrainer(spec), []
    try:
        there, remote = trainer.fit(images, targets, 2, lambda done, of, loss: told.append((done, loss)))
        assert here == there
        assert result.losses == remote.losses
        assert told == list(enumerate(result.losses, 1)), "each epoch is told, once"
        (pid,) = actor_pids("TrainingWorker")
        os.kill(pid, signal.SIGKILL)
        again, _ = trainer.fit(images, targets, 2)
        assert again == here, "by another worker"
    finally:
        trainer.close()
    until(lambda: actor_pids("TrainingWorker") == [])


class KillWorkers(Observer):
    """Kills workers of the run it watches, one of each kind, while they work for the first round."""

    def __init__(self) -> None:
        self.victims = {"choose": {"ScoringWorker"}, "query": {"TeacherWorker", "LedgerService"}}
        self._now: set[str] = set()
        self._spared = {pid for kinds in self.victims.values() for kind in kinds for pid in actor_pids(kind)}

    def phase(self, round, name):
        self._now = self.victims.get(name, set()) if round == 1 else set()

    def progress(self, done, total, *, spent=None):
        for kind in list(self._now) if done > total // 4 else ():
            at_work = [pid for pid in actor_pids(kind) if pid not in self._spared and is_at_work(pid, kind)]
            for pid in at_work[:1]:
                os.kill(pid, signal.SIGKILL)
                self._now.remove(kind)


def is_at_work(pid: int, kind: str) -> bool:
    """Whether a scoring worker is in a call right now; others may be killed at any time."""
    try:
        return kind != "ScoringWorker" or "ray::ScoringWorker.work" in " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.mark.storm
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_run_selects_alike_without_ray_and_on_workers_that_are_killed(workers, ray_local, teacher_weights, tmp_path):
    """One scoring worker, and the teacher asked in the driver; or two and a teacher's, one of each kind killed."""
    grid = [0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70]
    changes = {"images__count": 70, "budget__queries": 90, "resources__chunk": 128, "pool__lambdas": grid}
    local = run(parse_config(digits_config(teacher_weights, **changes)), RunDirectory(tmp_path / "local"), local=True)
    assert all(metrics.search["keep"] >= 4 for metrics in local.history[1:]), "it guessed"
    killer = KillWorkers() if workers == 2 else None
    changes |= {"resources__scoring_workers": workers, "resources__teacher_workers": workers - 1}
    config = parse_config(digits_config(teacher_weights, **changes, resources__trainer__where="worker"))
    result = run(config, RunDirectory(tmp_path / "ray"), observer=killer)
    for number in (1, 2):
        ids = [RunDirectory(tmp_path / place).read_candidates(number).ids.tolist() for place in ("local", "ray")]
        assert ids[0] == ids[1], number
    student = (tmp_path / "ray/student.safetensors").read_bytes()
    assert student == (tmp_path / "local/student.safetensors").read_bytes()
    assert result.receipt == local.receipt
    assert killer is None or killer.victims == {"choose": set(), "query": set()}, "all were killed"


@pytest.mark.storm
def test_a_function_of_the_users_own_module_is_asked_from_a_worker(ray_local, tmp_path, monkeypatch):
    (tmp_path / "my_teacher.py").write_text(
        "import os, numpy as np\n"
        "def ask(images):\n"
        "    log = os.path.join(os.path.dirname(__file__), 'asked-' + str(os.getpid()))\n"
        "    open(log, 'a').write(f'{len(images)}\\n')\n"
        "    share = images.mean(axis=(1, 2, 3)) / 255\n"
        "    return np.stack([share, 1 - share], axis=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    data = digits_config("unused", select__rounds=0, budget__queries=40, test=None, resources__scoring_workers=1)
    data["teacher"] = {"kind": "python", "function": "my_teacher:ask", "classes": 2}
    result = run(parse_config(data), RunDirectory(tmp_path / "run"))
    assert result.receipt.queries == 40
    asked = [path for path in tmp_path.glob("asked-*") if path.name != f"asked-{os.getpid()}"]
    assert sum(int(line) for path in asked for line in path.read_text().split()) == 40


def test_a_ray_that_does_not_start_in_time_is_started_once_more(monkeypatch):
    tries = []

    def too_late(**options):
        tries.append(options["address"])
        raise Exception("The current node timed out during startup. This could happen because ...")  # as Ray says it

    monkeypatch.setattr("ray.init", too_late)
    with pytest.raises(ClusterError, match=r"did not start in time, 2 times: .* or give --local"):
        start_local()
    assert tries == ["local", "local"]


def test_workers_are_counted_from_what_is_free(ray_local):
    with connect({}) as cluster:
        assert cluster.address == "connected"
        assert 0 <= cluster.cpus <= 4

    def count(wanted, cpus, gpus=0.0, each=0.0):
        return count_workers(wanted, Cluster(address="auto", cpus=cpus, gpus=gpus), each)

    assert [count("auto", cpus) for cpus in (0.0, 1.0, 7.9)] == [1, 1, 7]
    assert count(3, 64.0) == 3
    # With GPUs, the scarcer of the two; none are there yet where a cluster has still to start its nodes.
    assert [count("auto", 64.0, gpus, 0.5) for gpus in (0.0, 0.4, 2.0, 40.0)] == [1, 1, 4, 64]
    assert count("auto", 2.0, 8.0, 1.0) == 2 and count(3, 64.0, 0.0, 1.0) == 3
    assert ray_local.is_initialized(), "a cluster that was there before is left running"
