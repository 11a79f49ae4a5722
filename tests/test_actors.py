"""Real Ray actors in this process's cluster: the same results as without them, also when they are killed."""

import os
import signal
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import digits_config

from actors.cluster import connect, count_workers
from actors.scoring import RaySearcher
from actors.students import RayTrainer
from actors.teachers import RayTeacherPool
from kdray.artefacts import RunDirectory
from kdray.config_file import parse_config
from kdray.errors import ScoringError, TeacherError
from kdray.ledger import Ledger
from kdray.observers import Observer
from kdray.pools.mixup import MixupPool
from kdray.purchase import buy
from kdray.run import run
from kdray.search import LocalSearcher, SearchRequest
from kdray.students.export import ModelCard
from kdray.students.fit import LocalTrainer, StudentSpec
from kdray.students.models import build_model
from kdray.teachers.build import build_teacher
from kdray.teachers.pool import Pacer

LAMBDAS = [0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.fixture(scope="module")
def pool() -> MixupPool:
    generator = torch.Generator().manual_seed(0)
    return MixupPool(torch.randint(0, 256, (90, 1, 28, 28), generator=generator, dtype=torch.uint8), LAMBDAS)


@pytest.fixture(scope="module")
def model():
    return build_model("lenet5", (1, 28, 28), 10, seed=1)


@pytest.fixture(scope="module")
def reference(pool, model):
    return LocalSearcher(512).search(pool, model, SearchRequest(k=300))


def same(found, reference) -> bool:
    return found.ids.tolist() == reference.ids.tolist() and found.scores.tobytes() == reference.scores.tobytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_workers_find_what_one_process_finds_bit_for_bit(workers, ray_local, pool, model, reference):
    searcher = RaySearcher(workers, chunk=512)
    try:
        seen = []
        request = SearchRequest(k=300)
        found = searcher.search(pool, model, request, lambda done, total: seen.append((done, total)))
        assert same(found, reference)
        assert seen[-1] == (len(pool), len(pool))
        # The same actors again, with another student and with groups that have left the pool.
        other = build_model("lenet5", (1, 28, 28), 10, seed=2)
        taken = np.sort(found.ids // len(LAMBDAS))
        request = SearchRequest(k=200, taken=taken)
        assert same(searcher.search(pool, other, request), LocalSearcher(512).search(pool, other, request))
    finally:
        searcher.close()


def test_a_worker_killed_in_mid_search_changes_nothing(ray_local, pool, model, reference):
    searcher = RaySearcher(2, chunk=512)
    try:
        searcher.start()
        victims = searcher.pids()

        def kill(done: int, total: int) -> None:
            if victims and done > total // 4:
                os.kill(victims.pop(), signal.SIGKILL)

        assert same(searcher.search(pool, model, SearchRequest(k=300), kill), reference)
        assert len(victims) == 0 and searcher.requeued >= 1
    finally:
        searcher.close()


def test_more_workers_than_cpus_do_not_block_a_search(ray_local, pool, model, reference):
    searcher = RaySearcher(4, chunk=512)
    try:
        assert same(searcher.search(pool, model, SearchRequest(k=300)), reference)
    finally:
        searcher.close()


def test_an_error_of_the_students_comes_back_as_it_was_raised(ray_local, pool):
    broken = build_model("lenet5", (1, 28, 28), 10, seed=1)
    broken.mean.fill_(float("nan"))
    searcher = RaySearcher(1, chunk=512)
    try:
        with pytest.raises(ScoringError, match=r"^the student's output for candidate \d+ is not a number"):
            searcher.search(pool, broken, SearchRequest(k=3))
    finally:
        searcher.close()


@pytest.fixture
def teacher_parts(teacher_weights):
    config = parse_config(digits_config(teacher_weights)).teacher
    build = partial(build_teacher, config, (1, 16, 16))
    images = torch.randint(0, 256, (100, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return build, images


def test_a_pool_of_teachers_answers_as_one_does(ray_local, teacher_parts):
    build, images = teacher_parts
    teachers = RayTeacherPool(build(), build, 2, Pacer(None, 1))
    ledger = Ledger(":memory:", budget=100)
    try:
        bought = buy(images, pool=teachers, ledger=ledger, batch_size=16)
        direct = build().answer(images)
        assert torch.equal(bought.answers.probs, direct.probs)
        assert torch.equal(bought.answers.labels, direct.labels)
        assert (ledger.spent(), bought.charged) == (100, 100)
    finally:
        teachers.close()
        ledger.close()


class Mortal:
    """A teacher that takes its process with it the first time it is asked, as a crash or the kernel would."""

    identity, num_classes = "mortal", 2

    def __init__(self, marker: str, metered: bool) -> None:
        self.marker, self.metered = marker, metered

    def answer(self, images):
        from kdray.teachers import AnswerFormat

        if not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        share = images.float().mean(dim=(1, 2, 3)) / 255
        return AnswerFormat().apply(torch.stack([share, 1 - share], dim=1))


def test_a_worker_that_cannot_make_its_teacher_costs_nothing(ray_local, teacher_parts, tmp_path):
    build, images = teacher_parts

    def broken():
        raise ValueError("no such weights here")

    teachers = RayTeacherPool(build(), broken, 1, Pacer(None, 1))
    ledger = Ledger(":memory:", budget=100)
    try:
        with pytest.raises(TeacherError, match=r"cannot start: .*no such weights here"):
            buy(images, pool=teachers, ledger=ledger, batch_size=25)
        assert (ledger.spent(), ledger.remaining()) == (0, 100)
    finally:
        teachers.close()
        ledger.close()


@pytest.mark.parametrize(("metered", "charged", "short"), [(False, 100, 0), (True, 100, 25)])
def test_a_dead_teacher_workers_batch_is_asked_again_and_counted_honestly(
    metered, charged, short, ray_local, teacher_parts, tmp_path
):
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    _, images = teacher_parts
    build = partial(Mortal, str(tmp_path / "died"), metered)
    teachers = RayTeacherPool(build(), build, 1, Pacer(None, 1))
    ledger = Ledger(":memory:", budget=100)
    try:
        bought = buy(images, pool=teachers, ledger=ledger, batch_size=25)
        # What may have been billed counts as charged: the budget then ends one batch early.
        assert (bought.charged, bought.short, ledger.spent()) == (charged, short, charged)
        assert ledger.uncertain() == (25 if metered else 0)
    finally:
        teachers.close()
        ledger.close()


def test_a_student_trained_in_an_actor_is_the_one_trained_here(ray_local):
    spec = StudentSpec(
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
    there, remote = RayTrainer(spec).fit(images, targets, 2)
    assert here == there
    assert result.losses == remote.losses


class KillAWorker(Observer):
    """Kills a scoring worker of the run it watches, once, in the middle of a search."""

    def __init__(self) -> None:
        self.killed = False
        self._searching = False

    def phase(self, round, name):
        self._searching = round == 1 and name == "choose"

    def progress(self, done, total, *, spent=None):
        if self._searching and not self.killed and done > total // 4:
            import psutil

            for process in psutil.process_iter(["cmdline"]):
                if "ScoringWorker.score" in " ".join(process.info["cmdline"] or []):
                    process.kill()
                    self.killed = True
                    return


def test_a_run_selects_alike_without_ray_on_one_worker_on_two_and_after_a_kill(ray_local, teacher_weights, tmp_path):
    changes = {"images__count": 60, "budget__queries": 200, "resources__chunk": 128}
    local = run(parse_config(digits_config(teacher_weights, **changes)), RunDirectory(tmp_path / "local"), local=True)
    killer = KillAWorker()
    for name, workers, observer in (("one", 1, None), ("two", 2, None), ("killed", 2, killer)):
        config = parse_config(digits_config(teacher_weights, **changes, resources__scoring_workers=workers))
        result = run(config, RunDirectory(tmp_path / name), observer=observer)
        for number in (1, 2):
            ids = [RunDirectory(tmp_path / where).read_candidates(number).ids.tolist() for where in ("local", name)]
            assert ids[0] == ids[1], (name, number)
        student = (tmp_path / name / "student.safetensors").read_bytes()
        assert student == (tmp_path / "local/student.safetensors").read_bytes(), name
        assert result.receipt == local.receipt
    assert killer.killed


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
    data = digits_config("unused", select__rounds=1, budget__queries=80, test=None)
    data["teacher"] = {"kind": "python", "function": "my_teacher:ask", "classes": 2}
    result = run(parse_config(data), RunDirectory(tmp_path / "run"))
    assert result.receipt.queries == 80
    asked = [path for path in tmp_path.glob("asked-*") if path.name != f"asked-{os.getpid()}"]
    assert sum(int(line) for path in asked for line in path.read_text().split()) == 80


def test_the_training_worker_can_be_asked_for(ray_local, teacher_weights, tmp_path):
    changes = {"select__rounds": 1, "budget__queries": 80}
    local = run(parse_config(digits_config(teacher_weights, **changes)), RunDirectory(tmp_path / "local"), local=True)
    config = parse_config(digits_config(teacher_weights, **changes, resources__trainer__where="worker"))
    there = run(config, RunDirectory(tmp_path / "there"))
    assert (tmp_path / "local/student.safetensors").read_bytes() == (
        tmp_path / "there/student.safetensors"
    ).read_bytes()
    assert there.receipt == local.receipt


def test_workers_are_counted_from_what_is_free(ray_local):
    with connect({}) as cluster:
        assert cluster.address == "connected"
        assert 0 <= cluster.cpus <= 2
    assert [count_workers("auto", cpus) for cpus in (0.0, 1.0, 7.9)] == [1, 1, 7]
    assert count_workers(3, 64.0) == 3
    assert ray_local.is_initialized(), "a cluster that was there before is left running"
