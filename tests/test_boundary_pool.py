"""Runs that buy boundary pairs: what a round makes, what the teacher confirms, and what is refused."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Notes, StopAtPhase

from kdray.errors import ConfigError, PoolExhausted
from kdray.models.checkpoint import load_student
from kdray.models.classifier import build_model
from kdray.models.predict import predict
from kdray.pools.base import pools
from kdray.pools.listed import ListedPool
from kdray.pools.remade import Basis, Made
from kdray.report.page import write_report
from kdray.report.preview import preview_pool
from kdray.runs.confirmed import confirmed, confirmed_note
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.plan import make_plan, plan_lines
from kdray.runs.run import resume, run

SHAPE = (1, 16, 16)
RANDOM = {"strategy": "random", "rounds": 2}
NONE = torch.empty(0, *SHAPE, dtype=torch.uint8)


def make(count: int = 10, number: int = 1, over: torch.Tensor = NONE, last=None, **fields) -> tuple[Made, ListedPool]:
    """What a round makes with a network that has learnt nothing."""
    pool = pools.parse({"kind": "boundary", **fields}).build(over, 0)
    student = build_model("mlp", SHAPE, 4, seed=1).requires_grad_(False)
    basis = Basis(
        number=number,
        student=student,
        images=NONE,
        targets=torch.empty(0, 4),
        last=last,
        device=torch.device("cpu"),
        count=count,
    )
    made = pool.make(basis)
    return made, pool.made(number, made.tensors)


# ---- what a round makes


def test_pairs_come_whole_and_in_order():
    made, pool = make(10)
    columns = pool.describe(torch.arange(10))
    assert columns["pair"] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    names = ["before", "after", "deeper before", "deeper after"]
    assert columns["side"] == [*names, *names, *names[:2]]
    assert columns["kind"] == [f"boundary: {side}" for side in columns["side"]]
    assert len(pool) == 10 and pool.image_shape == SHAPE and made.facts["found"] == 3 and not made.notes
    student = build_model("mlp", SHAPE, 4, seed=1)
    labels = predict(student, pool.render(torch.arange(10))).argmax(dim=1)
    assert all(labels[row] != labels[row + 1] for row in (0, 4, 8))


def test_some_candidates_are_not_moved():
    _, pool = make(10, share=0.4, deeper=False)
    columns = pool.describe(torch.arange(10))
    assert columns["side"] == ["before", "after"] * 2 + [None] * 6
    assert columns["kind"][4:] == ["lines"] * 6
    assert len({*columns["of"][::2][:2], *columns["of"][4:]}) == 8, "each image is used once"


def test_a_round_has_at_least_one_pair():
    _, pool = make(50, share=0.01)
    assert pool.describe(torch.arange(50))["pair"] == [0] * 4 + [None] * 46
    assert make(3, share=0.01)[1].describe(torch.arange(3))["pair"] == [0] * 3


def test_a_candidate_of_a_pool_that_ends_is_taken_once_as_it_is():
    taken, last, notes = [], None, []
    for number in (1, 2, 3):
        made, pool = make(20, number, last=last, share=0.5, of={"kind": "lines", "candidates": 25})
        columns = pool.describe(torch.arange(len(pool)))
        assert columns["side"][:10].count(None) == 0 and len(pool) == (15 if number == 3 else 20)
        taken += [of for of, side in zip(columns["of"], columns["side"], strict=True) if side is None]
        last, notes = made.tensors, [*notes, *made.notes]
    assert sorted(taken) == list(range(25))
    assert notes == ["round 3 asks about 5 candidates fewer: all 25 of lines were asked about as they are"]


def test_what_is_not_moved_is_a_candidate_of_the_other_pool():
    section = pools.parse({"kind": "boundary", "share": 0.5, "of": {"kind": "lines", "candidates": 100}})
    _, pool = make(8, share=0.5, of={"kind": "lines", "candidates": 100})
    ids = torch.tensor(pool.describe(torch.arange(8))["of"])
    assert torch.equal(pool.render(torch.arange(4, 8)), section.build(NONE, 0)._of.render(ids[4:]))


@pytest.mark.parametrize("of", ["lines", {"kind": "mixture", "of": ["lines", "spectrum"]}, "images", "mixup"])
def test_every_round_makes_others(of):
    over = pools.parse("spectrum").build(NONE, 0).render(torch.arange(30))
    rounds = [make(4, number, over, of=of)[1].render(torch.arange(4)) for number in (1, 1, 2)]
    assert torch.equal(rounds[0], rounds[1]) and not torch.equal(rounds[0], rounds[2])


def test_too_few_pairs_are_filled_up_with_images_that_were_not_moved():
    made, pool = make(8, steps=1, step=0.001)
    assert made.facts["found"] == 0 and len(pool) == 8
    assert "gave a boundary pair in round 1, and 2 are wanted" in made.notes[0]
    assert pool.describe(torch.arange(8))["kind"] == ["lines"] * 8
    with pytest.raises(PoolExhausted, match=r"0 of \d+ images of image gave .* raise pool\.steps or pool\.threshold"):
        make(8, over=torch.zeros(3, *SHAPE, dtype=torch.uint8), of="images", steps=1, step=0.001)


def test_what_fills_up_is_no_image_that_was_tried_or_is_there_already():
    made, pool = make(20, share=0.5, steps=1, step=0.001)
    of = pool.describe(torch.arange(20))["of"]
    whole = pools.parse({"kind": "boundary", "share": 0.5}).build(NONE, 0)
    tried = whole._moved(1, 10 + torch.arange(made.facts["moved"])).tolist()
    assert made.facts["found"] == 0 and len(set(of)) == 20 and not set(of) & set(tried)


def test_each_image_is_moved_to_any_other_class_and_to_another_in_another_round(monkeypatch):
    asked: dict[bytes, tuple[int, int]] = {}

    def nothing(network, start, targets, settings):
        own = predict(network, start).argmax(dim=1)
        rows = zip(start.numpy(), own.tolist(), targets.tolist(), strict=True)
        asked.update({bytes(image): (label, target) for image, label, target in rows})
        return SimpleNamespace(images=torch.empty(0, 4, *SHAPE, dtype=torch.uint8), rows=torch.empty(0).long())

    monkeypatch.setattr("kdray.models.boundary.boundary_pairs", nothing)
    rounds = []
    for number in (1, 2):
        make(1000, number, of={"kind": "lines", "candidates": 1000})
        rounds.append(dict(asked))
        asked.clear()
    away = Counter((target - label) % 4 for label, target in rounds[0].values())
    total = sum(away.values())
    assert total > 800 and away.keys() == {1, 2, 3} and all(abs(n / total - 1 / 3) < 0.06 for n in away.values()), away
    both = rounds[0].keys() & rounds[1].keys()
    same = sum(rounds[0][image] == rounds[1][image] for image in both) / len(both)
    assert len(both) > 800 and same == pytest.approx(1 / 3, abs=0.07)


def test_before_there_is_a_student_the_images_to_move_are_shown():
    pool = pools.parse({"kind": "boundary", "of": {"kind": "lines", "candidates": 50}}).build(NONE, 0)
    assert len(pool) == 200, "four candidates of each image"
    assert pool.render(torch.arange(3)).shape == (3, *SHAPE) and pool.describe(torch.arange(2))["kind"] == ["lines"] * 2
    half = pools.parse({"kind": "boundary", "share": 0.5, "deeper": False, "of": {"kind": "lines", "candidates": 75}})
    assert len(half.build(NONE, 0)) == 100, "a pair and two others take three images"


# ---- what the teacher confirms


def test_the_teacher_confirms_pairs_with_two_classes():
    columns = {
        "pair": [0, 0, 0, 0, 1, 1, 2, None],
        "side": ["before", "after", "deeper before", "deeper after", "before", "after", "before", None],
    }
    rows = np.array([1, 0, 2, 3, 4, 5, 7])  # the last "before" was not answered, nor is there an "after"
    counts = confirmed(columns, rows, torch.tensor([7, 2, 2, 2, 3, 3, 9]))
    assert counts == {"pairs": 2, "pairs_confirmed": 1, "deeper": 1, "deeper_confirmed": 0}
    assert confirmed_note(counts) == (
        "the teacher has a boundary in 1 of 2 pairs, and in 0 of 1 pairs of their deeper copies"
    )
    assert confirmed_note({"pairs": 1, "pairs_confirmed": 1, "deeper": 0}).endswith("1 of 1 pairs")
    assert confirmed({"kind": ["lines"]}, np.array([0]), torch.tensor([1])) == {}


# ---- runs


def config_of(make_config, **fields):
    pool = {"kind": "boundary", "of": "mixup", **fields}
    return make_config(pool=pool, select=RANDOM, student__epochs=3, student__model="mlp", teacher__answers="hard")


def test_a_run_buys_pairs_of_the_newest_student(make_config, tmp_path):
    notes = Notes()
    done = run(config_of(make_config), RunDirectory(tmp_path / "run"), local=True, observer=notes)
    directory = RunDirectory(done.directory)
    assert done.receipt.queries == 160
    page = write_report([directory]).read_text()
    for number in (1, 2):
        columns, part = directory.read_candidates(number).columns, directory.read_labelled(number, 10)
        sides = list(zip(columns["pair"], columns["side"], strict=True))
        before, after = (
            torch.tensor([sides.index((pair, side)) for pair in range(15)]) for side in ("before", "after")
        )
        student = load_student(directory.artefact(number - 1, "train"))
        seen = predict(student, part.images).argmax(dim=1)
        assert (seen[before] != seen[after]).all(), "the two sides differ for the student"
        counts = json.loads((directory.round(number) / "metrics.json").read_text())["boundaries"]
        differ = part.answers.labels[before] != part.answers.labels[after]
        assert counts["pairs"] == 15 and counts["pairs_confirmed"] == int(differ.sum())
        assert confirmed_note(counts) in notes.texts
        assert f"Round {number}: {confirmed_note(counts)}." in page
        assert set(part.source) == {f"boundary: {side}" for side in columns["side"]}


@pytest.mark.storm
@pytest.mark.parametrize("moment", [8, pytest.param(6, marks=pytest.mark.storm)])
def test_a_run_that_was_stopped_ends_with_the_same_bits(moment, make_config, tmp_path):
    config = config_of(make_config, share=0.5)
    whole = run(config, RunDirectory(tmp_path / "whole"), local=True)
    with pytest.raises(KeyboardInterrupt):
        run(config, RunDirectory(tmp_path / "part"), local=True, observer=StopAtPhase(moment))
    part = resume(RunDirectory(tmp_path / "part"), local=True)
    assert part.receipt.queries == whole.receipt.queries
    for name in ("001/pool.safetensors", "002/labelled.parquet", "002/student.safetensors"):
        first, second = (done.directory / "rounds" / name for done in (whole, part))
        assert first.read_bytes() == second.read_bytes(), name


def test_a_local_teacher_may_be_looked_into(make_config, tmp_path):
    done = run(config_of(make_config, gradients="teacher"), RunDirectory(tmp_path / "run"), local=True)
    counts = done.history[1].boundaries
    assert counts["pairs"] == counts["pairs_confirmed"] == 15, "the boundaries are its own"
    assert done.receipt.queries == 160, "its gradients are no queries"


def test_without_a_strategy_it_is_random(make_config):
    config = make_config(pool="boundary", select={"rounds": 2})
    assert config.select.strategy == "random" and config.select.rounds == 2
    assert make_config(pool="lines", select={"rounds": 2}).select.strategy == "cluster-margin"


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": {"strategy": "margin", "rounds": 2}}, r"margin has nothing to choose: .* set it to random"),
        (
            {"select": {"strategy": "random", "rounds": 2, "balance": 8}},
            r"select\.balance: 8 has nothing to choose: .* set it to null",
        ),
        ({"student__unpaid": {}}, r"student\.unpaid: .* set it to null"),
        ({"pool__of": "auto"}, r"pool\.of: the candidates of auto are not the same all along"),
        ({"pool__of": {"kind": "boundary"}}, r"pool\.of: the candidates of boundary are not the same all along"),
        ({"pool__of": "images", "pool__share": 0.5}, r"share is 0\.5, but the other candidates would be images"),
        ({"pool__share": 0}, r"pool\.share"),
        ({"pool__threshold": 0.5}, r"pool\.threshold"),
        ({"pool__shrink": 1}, r"pool\.shrink"),
        ({"pool__grow": 0.9}, r"pool\.grow"),
        ({"pool__steps": 0}, r"pool\.steps"),
        ({"pool__step": 0}, r"pool\.step"),
        (
            {"pool__gradients": "teacher", "teacher": {"kind": "python", "function": "os:getcwd", "classes": 10}},
            r"pool\.gradients: teacher needs teacher\.kind = local",
        ),
        ({"pool__gradients": "teacher", "teacher__input": {"size": 20}}, r"pool\.gradients: teacher needs"),
        ({"pool": {"kind": "mixture", "of": ["lines", "boundary"]}}, r"name boundary alone"),
    ],
)
def test_what_cannot_be_is_refused(changes, message, make_config):
    with pytest.raises(ConfigError, match=message):
        make_config(**{"pool": {"kind": "boundary"}, "select": RANDOM, **changes})


def test_a_pool_that_is_too_small_is_refused(make_config):
    small = {"kind": "boundary", "of": {"kind": "lines", "candidates": 14}}
    with pytest.raises(ConfigError, match=r"60 candidates .* in a round, .* only 56 .*raise pool\.of\.candidates"):
        read_inputs(make_config(pool=small, select=RANDOM))


def test_a_plan_and_a_preview_count_no_candidates_that_no_round_has_made(make_config):
    config = make_config(pool={"kind": "boundary"}, select=RANDOM)
    rows = dict(plan_lines(make_plan(config, probe_s=0.05)))
    assert rows["pool"] == "each round makes as many candidates as it asks about"
    assert preview_pool(config, 8).what.startswith("8 candidates from before there is a student")
