"""Pools whose candidates each round makes anew from its student, in runs: what they are made from, and after a stop."""

import pytest
import torch
from conftest import StopAtPhase, command

from kdray.errors import ConfigError
from kdray.models.checkpoint import load_student
from kdray.pools.base import PoolSection
from kdray.pools.procedural.base import ProceduralPool
from kdray.pools.remade import Basis, Made, is_remade
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.run import resume, run


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
                device=torch.device("cpu"),
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
    with pytest.raises(ConfigError, match=r"pool\.of: 1: each round makes the candidates of .* anew"):
        make_config(pool={"kind": kind, "of": ["mixup", {"kind": KIND}]})


def test_m_is_not_estimated_before_there_are_candidates(make_config):
    with pytest.raises(ConfigError, match=r"select\.m: estimate asks about candidates before round 1"):
        make_config(pool={"kind": KIND}, select={"strategy": "rad", "m": "estimate", "rounds": 2})


def test_a_plan_counts_what_every_round_scores(config_file):
    done = command("plan", config_file(pool={"kind": KIND}, select={"strategy": "margin", "rounds": 2}))
    assert done.returncode == 0, done.stderr
    assert "300 forward passes" in done.stdout.replace("\n", " ")
