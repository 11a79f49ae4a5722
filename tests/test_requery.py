"""Rounds that ask again about all images so far, as IDEAL's released code does: `pool.requery`."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from aiohttp import web
from conftest import Notes, StopAtPhase, command, served
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import ConfigError, TeacherError
from kdray.ledger.store import Ledger
from kdray.pools.base import PoolSection
from kdray.report.curve import curve_of
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import InMemoryInputs, read_inputs
from kdray.runs.policy import PurchasePolicy
from kdray.runs.result import read_result
from kdray.runs.run import resume, run
from kdray.select.schedule import asking_again
from kdray.select.strategies.random import Random
from kdray.teachers.local import LocalTeacherConfig
from kdray.training.fitting import fit, with_start

REQUERY = {
    "images": {"source": "drawn", "pool": "lines", "size": 16, "colour": "grey", "count": 20},
    "teacher": {"kind": "python", "function": "made:here", "name": "here", "classes": 10, "answers": "hard"},
    "budget": {"queries": 120, "evaluation": 0},
    "pool": {"kind": "generator", "steps": 2, "batch": 20, "requery": True},
    "select": {"strategy": "random", "first": 0, "rounds": 3},
    "student": {
        "model": "small-cnn", "steps": 6, "batch_size": 40, "augment": "none", "start": "last", "replay": "none",
    },
}  # fmt: skip


def requery(**changes) -> dict:
    """`REQUERY` with changes, which shares nothing with it."""
    return copy.deepcopy(REQUERY | changes)


class Growing(Random):
    """A strategy of one's own."""

    strategy: str = "growing"

    def queries(self, budget: int, images: int, others: int = 0) -> list[int]:
        return [images, 1, budget - images - 1]


class Stays(PoolSection):
    """A pool of one's own that asks again, though all rounds choose from the same candidates."""

    kind: str = "stays"

    @property
    def asks_again(self) -> bool:
        return True

    def build(self, images, seed):
        raise AssertionError("it is refused before")


class Counting:
    """A teacher that counts how often it sees each image, and may answer otherwise each time."""

    def __init__(self, *, moody: bool = False, fails_at: int | None = None, spoils: range = range(0)) -> None:
        """`spoils`: the turns at which the first image gets a class that there is not."""
        self.seen, self.moody, self.fails_at, self.spoils, self.batches = Counter(), moody, fails_at, spoils, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches += 1
        if self.batches == self.fails_at:
            raise RuntimeError("gone")
        keys = [image.tobytes() for image in images]
        self.seen.update(keys)
        labels = np.array([(sum(key) + (self.seen[key] if self.moody else 0)) % 10 for key in keys])
        first = next(iter(self.seen))
        if self.seen[first] in self.spoils:
            labels[[key == first for key in keys]] = 99
        return labels


def run_with(teacher: Counting, config, path, **options):
    return run(config, RunDirectory(path), local=True, in_memory=InMemoryInputs(function=teacher), **options)


# The schedule


@pytest.mark.parametrize(
    ("budget", "images", "rounds", "per_round", "expected"),
    [
        (120, 0, 3, None, [0, 20, 20, 20]),  # 20 + 40 + 60
        (120, 0, 3, 20, [0, 20, 20, 20]),
        (139, 0, 3, None, [0, 23, 23, 23]),  # 138 of 139
        (25_000, 0, 13, 250, [0] + [250] * 13),  # 22,750
        (100, 10, 2, None, [10, 23, 23]),  # 10 + 33 + 56
        (20, 20, 0, None, [20]),
    ],
)
def test_new_images_are_what_the_budget_pays_for_with_all_that_is_asked_again(
    budget, images, rounds, per_round, expected
):
    assert asking_again(budget, images, rounds, per_round) == expected


def asked(new: list[int]) -> int:
    """Queries of all rounds, each of which asks about its new images and all before."""
    return sum(sum(new[: number + 1]) for number in range(len(new)))


@given(st.integers(0, 50), st.integers(1, 30), st.integers(0, 5000))
def test_rounds_that_ask_again_spend_as_much_as_whole_rounds_can(images, rounds, extra):
    budget = asked([images] + [1] * rounds) + extra
    new = asking_again(budget, images, rounds, None)
    assert asked(new) <= budget < asked([images, *(count + 1 for count in new[1:])])
    assert len(new) == rounds + 1 and len(set(new[1:])) == 1


@given(st.integers(0, 50), st.integers(1, 30), st.integers(1, 30), st.integers(1, 4000))
def test_a_budget_too_small_says_how_many_rounds_it_pays_for(images, rounds, per_round, short):
    enough = asked([images] + [per_round] * rounds)
    budget = max(images, enough - short)
    if budget == enough:
        return
    with pytest.raises(ConfigError, match=rf"budget\.queries: {budget:,} .* {enough:,}") as error:
        asking_again(budget, images, rounds, per_round)
    most = max(e for e in range(rounds) if asked([images] + [per_round] * e) <= budget)
    advice = f"lower select.rounds to {most}" if most else "lower select.first or select.per_round"
    assert str(error.value).endswith(advice), str(error.value)


# Keys


def test_an_image_that_is_asked_again_has_a_key_of_its_own_in_each_round():
    images = torch.randint(0, 256, (4, 1, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = PurchasePolicy().keys(images, 2)
    second, third = (PurchasePolicy(again=3).keys(images, number) for number in (2, 3))
    assert second[:1] == third[:1] == plain[:1]
    assert len({*plain, *second, *third}) == 4 + 3 + 3 and {len(key) for key in second} == {len(plain[0])}
    assert PurchasePolicy(again=3).keys(images, 2) == second, "the same after a resume"


# Runs


def test_every_round_asks_about_all_images_so_far_and_counts_it(make_config, tmp_path):
    teacher, notes = Counting(), Notes()
    done = run_with(teacher, make_config(**requery()), tmp_path / "run", observer=notes)
    assert [m.queries for m in done.history] == [0, 20, 60, 120]
    assert [m.images for m in done.history] == [0, 20, 40, 60], "a student learns from all that its round asks"
    assert sorted(teacher.seen.values()) == [1] * 20 + [2] * 20 + [3] * 20, "so often was each image really sent"
    assert done.receipt.queries == 120 and [m.reused for m in done.history] == [0, 0, 0, 0]
    assert any("60 of 120 queries ask again" in text for text in notes.texts), notes.texts
    last = RunDirectory(done.directory).read_labelled(3, 10)
    assert len(torch.unique(last.images.flatten(1), dim=0)) == len(last) == 60
    assert Counter(last.source) == {"generator": 20, "generator, asked again": 40}
    curve = curve_of(RunDirectory(done.directory), done, 100)
    assert [count for count, _ in curve.points] == [20, 60, 120], "of answers, as these have a price"
    assert curve.said[-1].startswith("An image that was asked about again counts again")
    first = [RunDirectory(done.directory).read_labelled(number, 10, 20).images for number in (1, 2)]
    assert torch.equal(last.images[20:], torch.cat(first)), "in the order in which they were bought"
    assert set(last.ids[20:].tolist()) == {-1} and sorted(last.ids[:20].tolist()) == list(range(20))


def test_a_student_learns_the_newest_answers(make_config, tmp_path):
    teacher = Counting(moody=True)
    done = run_with(teacher, make_config(**requery()), tmp_path / "run")
    directory = RunDirectory(done.directory)
    last = directory.read_labelled(3, 10)
    keys = [image.numpy().tobytes() for image in last.images]
    assert last.answers.labels.tolist() == [(sum(key) + teacher.seen[key]) % 10 for key in keys]
    before, student = (directory.artefact(number, "train").read_bytes() for number in (2, 3))
    targets = F.one_hot(last.answers.labels, 10).float()
    again, _ = fit(
        with_start(read_inputs(done.config, in_memory=InMemoryInputs(function=teacher)).spec, before),
        last.images,
        targets,
        3,
        final=True,
    )
    assert student == again


def test_an_image_that_once_got_no_answer_is_asked_again_in_the_next_round(make_config, tmp_path):
    """The teacher spoils one image of round 1 for as long as round 2 asks about it."""
    teacher = Counting(spoils=range(2, 5 + 2))
    config = make_config(**requery(budget__queries=140, select__per_round=20))
    done = run_with(teacher, config, tmp_path / "run")
    assert [(m.images, m.set_aside) for m in done.history] == [(0, 0), (20, 0), (39, 1), (60, 0)]
    assert done.receipt.queries == 120 + 4, "asked four times more often than planned, and each time counted"


def test_images_of_round_0_are_asked_again_too(make_config, tmp_path):
    teacher = Counting()
    config = make_config(**requery(select={"strategy": "random", "first": 10, "rounds": 2}))
    done = run_with(teacher, config, tmp_path / "run")  # 10, 10 + 30, 10 + 60
    assert [m.queries for m in done.history] == [10, 50, 120]
    assert sorted(teacher.seen.values()) == [1] * 30 + [2] * 30 + [3] * 10
    assert done.receipt.queries == 120


@pytest.mark.storm  # small: a purchase that broke off
@pytest.mark.parametrize("when", [12, 8])
def test_a_run_that_was_stopped_ends_with_the_same_bits_and_pays_nothing_twice(when, make_config, tmp_path):
    config, teachers = make_config(**requery()), (Counting(), Counting())
    whole = run_with(teachers[0], config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_with(teachers[1], config, tmp_path / "part", observer=StopAtPhase(when))
    again = InMemoryInputs(function=teachers[1])
    part = resume(RunDirectory(tmp_path / "part"), local=True, in_memory=again)
    assert teachers[0].seen == teachers[1].seen and part.receipt.queries == 120
    for name in ("rounds/003/labelled.parquet", "student.safetensors"):
        assert (part.directory / name).read_bytes() == (whole.directory / name).read_bytes(), name


def test_a_purchase_that_broke_off_goes_on_where_it_was(make_config, tmp_path):
    """A batch in the middle of round 3 fails: what was asked again before it is not asked once more."""
    config = make_config(**requery(teacher=REQUERY["teacher"] | {"batch_size": 7}))
    whole = Counting()
    run_with(whole, config, tmp_path / "whole")
    teacher = Counting(fails_at=whole.batches - 4)
    with pytest.raises(TeacherError, match="gone"):
        run_with(teacher, config, tmp_path / "part")
    spent = Ledger(tmp_path / "part/ledger.sqlite", read_only=True).spent()
    assert 60 < spent < 120
    part = resume(RunDirectory(tmp_path / "part"), local=True, in_memory=InMemoryInputs(function=teacher))
    assert max((teacher.seen - whole.seen).values(), default=0) == 0, "nothing was asked more often"
    assert len(part.history) == 4


def test_two_runs_on_one_ledger_pay_once(make_config, tmp_path):
    teacher, ledger = Counting(), {"path": str(tmp_path / "shared.sqlite"), "queries": 120}
    config = make_config(**requery(ledger=ledger))
    run_with(teacher, config, tmp_path / "first")
    second = run_with(teacher, config, tmp_path / "second")
    assert sum(teacher.seen.values()) == 120 and second.receipt.queries == 0
    assert [m.saved for m in second.history] == [0, 20, 40, 60]


def test_a_server_that_repeats_replies_takes_it_for_new_requests(make_config, teacher_weights, tmp_path):
    """Requests of later rounds have the very images of earlier ones; their Idempotency-Key has to differ."""
    keys: list[str] = []

    @web.middleware
    async def watch(request: web.Request, handler) -> web.StreamResponse:
        if key := request.headers.get("Idempotency-Key"):
            keys.append(key)
        return await handler(request)

    behind = LocalTeacherConfig(kind="local", model="small-cnn", weights=str(teacher_weights))
    with served(behind.build((1, 16, 16)), (1, 16, 16), watch) as url:
        teacher = {"kind": "http", "url": url, "model": "teacher", "classes": 10, "answers": "hard", "metered": False}
        config = make_config(**requery(teacher=teacher | {"batch_size": 20}))
        done = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert done.receipt.queries == 120 and len(keys) == len(set(keys)) == 1 + 2 + 3


def test_the_cli_plans_runs_and_shows_such_a_run(config_file, teacher_weights, tmp_path):
    data = requery()
    del data["teacher"]
    path = config_file(**data, teacher__answers="hard")
    plan = command("plan", path)
    text = " ".join(plan.stdout.split())
    assert plan.returncode == 0 and "120 = 0 for the images + 3 x 20 + 60 that ask again" in text, plan.stderr
    assert "60 of 120 queries ask again about images that have an answer, and are paid for again" in text
    assert "each round makes 20 candidates" in text
    done = command("run", path, "--local", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "120 of 120 spent" in command("ledger", tmp_path / "run").stdout
    assert read_result(RunDirectory(tmp_path / "run")).receipt.queries == 120
    trained = command("train", tmp_path / "run", "student.steps=2", "--out", tmp_path / "students")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "students/learning_curve.csv").read_text().splitlines()[1].startswith("60,"), "each image once"
    merged = " ".join(command("ledger", tmp_path / "run", "--merge", tmp_path / "merged").stdout.split())
    assert "60 images of 1 run" in merged and "60 more answers were to the same images" in merged
    shown = command("preview", tmp_path / "run", "--out", tmp_path / "sheet.png")
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student__replay": "all"}, r"pool\.requery: .* set student\.start to last and student\.replay to none"),
        ({"student__start": "new", "student__replay": "all"}, r"pool\.requery: .* student\.replay to none"),
        ({"select": {"strategy": "random", "first": 20, "schedule": "nested"}}, r"pool\.requery .* even"),
        ({"pool__requery": 3}, r"pool\.requery"),
        ({"pool": {"kind": f"{__name__}:Stays"}, "select__first": 20}, r"Stays asks again .* let asks_again be false"),
        ({"select__strategy": f"{__name__}:Growing"}, r"Growing divides the budget in its own way"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(**requery(**changes))


def test_a_budget_that_does_not_pay_for_it_is_refused_before_anything_is_asked(config_file, tmp_path):
    data = requery(select={"strategy": "random", "first": 0, "rounds": 3, "per_round": 40})
    del data["teacher"]
    refused = command("run", config_file(**data), "--local", "--out", tmp_path / "run")
    said = " ".join(refused.stderr.split())
    assert refused.returncode == 2 and "Traceback" not in said
    assert "these are 240 queries" in said and "lower select.rounds to 2" in said, said
    assert not (tmp_path / "run").exists()
