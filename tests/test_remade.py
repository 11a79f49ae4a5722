"""Pools whose candidates each round makes anew from its student, in runs: what they are made from, and after a stop."""

import os
import signal

import pytest
import torch
from conftest import StopAtPhase, actor_pids, command

from kdray.errors import ConfigError, PoolExhausted
from kdray.models.checkpoint import ModelCard, load_student
from kdray.models.classifier import build_model
from kdray.pools.base import PoolSection, pools
from kdray.pools.procedural.base import ProceduralPool
from kdray.pools.remade import Basis, Made, is_remade
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.run import resume, run
from kdray.training.fitting import StudentSpec
from kdray.training.recipe import Recipe
from kdray.training.trainer import LocalTrainer


class ShiftedSection(PoolSection):
    """Bought images, brighter by a number that depends on the student and the round."""

    remade = True
    kind: str
    candidates: int = 150

    def build(self, images: torch.Tensor, seed: int) -> "ShiftedPool":
        return ShiftedPool(images, 0, self.candidates)


class ShiftedPool(ProceduralPool):
    """See `ShiftedSection`."""

    def __init__(self, images: torch.Tensor, shift: int, count: int) -> None:
        super().__init__(images, Shift(images, shift), count, "shifted")

    def make(self, basis: Basis) -> Made:
        assert not any(weight.requires_grad for weight in basis.student.parameters())
        logits = basis.student(basis.images[:50].float())
        shift = int(logits.detach().abs().sum() * 1000) % 200 + basis.number
        basis.on_progress(1, 1)
        return Made(tensors={"bought": basis.images, "shift": torch.tensor(shift)}, facts={"shift": shift})

    def made(self, number: int, tensors: dict[str, torch.Tensor]) -> "ShiftedPool":
        return ShiftedPool(tensors["bought"], int(tensors["shift"]), len(self))


class Shift:
    """See `ShiftedSection`."""

    batch = 64

    def __init__(self, images: torch.Tensor, shift: int) -> None:
        self.images, self.shift = images, shift

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return self.images[ids % len(self.images)] + (self.shift + ids // len(self.images)).to(torch.uint8).view(
            -1, 1, 1, 1
        )


KIND = f"{__name__}:ShiftedSection"


@pytest.fixture
def config(make_config):
    return make_config(pool={"kind": KIND}, select={"strategy": "margin", "rounds": 2}, student__epochs=2)


def test_each_round_makes_its_candidates_from_student_and_answers(config, tmp_path):
    done = run(config, RunDirectory(tmp_path / "run"), local=True)
    directory, pool = RunDirectory(done.directory), read_inputs(config).pool
    assert is_remade(pool) and not done.receipt.uncertain
    for number in (1, 2):
        earlier = [directory.read_labelled(one, 10) for one in range(number)]
        bought = torch.cat([one.images for one in earlier])
        student = load_student(directory.artefact(number - 1, "train"))
        again = pool.make(
            Basis(
                number=number,
                student=student.requires_grad_(False),
                images=bought,
                targets=torch.cat([one.answers.probs for one in earlier]),
            )
        )
        assert directory.phases(number)["make"]["shift"] == again.facts["shift"]
        part = directory.read_labelled(number, 10)
        assert len(part) == 60 and torch.equal(
            pool.made(number, again.tensors).render(torch.from_numpy(part.ids)), part.images
        )
        assert done.history[number].seconds["choose"] >= directory.phases(number)["make"]["seconds"]


@pytest.mark.parametrize("moment", [7, *(pytest.param(k, marks=pytest.mark.storm) for k in (6, 11))])
def test_a_run_that_was_stopped_ends_with_the_same_bits(moment, config, tmp_path):
    whole = run(config, RunDirectory(tmp_path / "whole"), local=True)
    with pytest.raises(KeyboardInterrupt):
        run(config, RunDirectory(tmp_path / "part"), local=True, observer=StopAtPhase(moment))
    part = resume(RunDirectory(tmp_path / "part"), local=True)
    assert part.receipt.queries == whole.receipt.queries
    for name in ("001/pool.safetensors", "002/pool.safetensors", "002/candidates.parquet", "002/student.safetensors"):
        first, second = (done.directory / "rounds" / name for done in (whole, part))
        assert first.read_bytes() == second.read_bytes(), name


def test_a_strategy_that_compares_features_knows_all_that_was_bought(config, monkeypatch, tmp_path):
    from kdray.select.base import select

    tasks = []
    monkeypatch.setattr("kdray.runs.loop.select", lambda strategy, task: tasks.append(task) or select(strategy, task))
    coreset = type(config).model_validate(config.model_dump() | {"select": {"strategy": "coreset", "rounds": 2}})
    run(coreset, RunDirectory(tmp_path / "run"), local=True)
    assert [(len(task.known), len(task.taken)) for task in tasks] == [(40, 0), (100, 0)]


def test_a_round_may_not_want_more_than_it_can_make(config, make_config):
    assert read_inputs(config).schedule == [40, 60, 60], "150 candidates are enough for each round"
    small = make_config(pool={"kind": KIND, "candidates": 59}, select={"strategy": "margin", "rounds": 2})
    with pytest.raises(ConfigError, match=r"60 candidates are to be chosen in a round, but the pool .* only 59"):
        read_inputs(small)


@pytest.mark.parametrize("kind", ["auto", "mixture"])
def test_it_is_no_part_of_a_pool_that_stays(kind, make_config):
    with pytest.raises(ConfigError, match=r"pool\.of\.1: each round makes the candidates of .* anew"):
        make_config(pool={"kind": kind, "of": ["mixup", {"kind": KIND}]})


def test_m_is_not_estimated_before_there_are_candidates(make_config):
    with pytest.raises(ConfigError, match=r"select\.m: estimate asks about candidates before round 1"):
        make_config(pool={"kind": KIND}, select={"strategy": "rad", "m": "estimate", "rounds": 2})


def test_a_plan_counts_what_every_round_scores(config_file):
    done = command("plan", config_file(pool={"kind": KIND}, select={"strategy": "margin", "rounds": 2}))
    assert done.returncode == 0, done.stderr
    assert "300 forward passes" in done.stdout.replace("\n", " ")


@pytest.mark.storm
def test_a_training_worker_makes_the_candidates_and_another_where_it_dies(ray_local):
    from actors.students import RayTrainer

    card = ModelCard(model="small-cnn", image_shape=(1, 16, 16), num_classes=3)
    spec = StudentSpec(card=card, mean=[0.5], std=[0.25], recipe=Recipe(device="cpu"), seed=0, threads=1)
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    pool = pools.parse({"kind": "generator", "steps": 3, "batch": 12, "candidates": 20}).build(images, 0)
    student = build_model("small-cnn", (1, 16, 16), 3, seed=1).eval().requires_grad_(False)
    told: list[tuple[int, int]] = []
    basis = Basis(
        number=1,
        student=student,
        images=images[:0],
        targets=torch.empty(0, 3),
        on_progress=lambda done, of: told.append((done, of)),
    )
    here = LocalTrainer(spec).make(pool, basis)
    assert [told.pop(0) for _ in range(3)] == [(1, 3), (2, 3), (3, 3)] and not told
    trainer = RayTrainer(spec)
    try:
        for _ in range(2):
            there = trainer.make(pool, basis)
            assert there.tensors.keys() == here.tensors.keys() and there.facts == here.facts
            assert all(torch.equal(tensor, here.tensors[name]) for name, tensor in there.tensors.items())
            assert [told.pop(0) for _ in range(3)] == [(1, 3), (2, 3), (3, 3)] and not told
            (pid,) = actor_pids("TrainingWorker")  # it made them, and the next one has to start
            os.kill(pid, signal.SIGKILL)
        picky = pools.parse({"kind": "generator", "steps": 1, "batch": 12, "candidates": 20, "ask_below": 0.33334})
        with pytest.raises(PoolExhausted, match=r"pool\.ask_below: .* 0\.33334 sure"):
            trainer.make(picky.build(images, 0), basis)
    finally:
        trainer.close()
