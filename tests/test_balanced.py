"""Balanced classes: how often images are trained on, and a choice with as many candidates of each predicted class."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import command
from hypothesis import given
from hypothesis import strategies as st
from test_select import EXHAUSTIVE, STRATEGIES, choose, named, pictures
from test_students import Recorder, images, recipe
from test_unpaid import section, spec

from kdray.errors import ConfigError, PoolExhausted
from kdray.models.classifier import build_model
from kdray.models.features import head
from kdray.pools.images import ImagePool
from kdray.pools.mixup import MixupPool
from kdray.runs.directory import RunDirectory
from kdray.runs.plan import make_plan
from kdray.runs.run import run
from kdray.select import balanced
from kdray.select.balanced import in_turn, listed
from kdray.training.balance import MOST, balanced_order, repeats
from kdray.training.loop import train
from kdray.training.recipe import EarlyStop
from kdray.training.trainer import LocalTrainer

ORDERED = [name for name, strategy in STRATEGIES.items() if strategy.ordered]
COUNTS = torch.tensor([70, 29, 0, 1])
LABELS = torch.repeat_interleave(torch.arange(4), COUNTS)
label_lists = st.lists(st.integers(0, 6).map(lambda label: label // 2 * 2), min_size=1, max_size=80)
ways = st.sampled_from(["none", "equal", "replicate"])


# Training


@pytest.mark.parametrize(
    ("balance", "shares"),
    [
        ("none", (70, 29, 1)),
        ("equal", (45, 45, 10)),  # a third each, but for the bound of ten times
        ("replicate", (70 / 1.1333333, 33.333333 / 1.1333333, 10 / 1.1333333)),  # 113.33 images and repetitions
    ],
)
def test_how_often_classes_are_trained_on_by_hand(balance, shares):
    often = repeats(LABELS, balance)
    found = [float(often[label == LABELS].sum()) for label in (0, 1, 3)]
    assert found == pytest.approx(shares, rel=1e-6)


@given(label_lists, ways)
def test_an_epoch_keeps_its_length_and_no_image_is_repeated_without_bound(labels, balance):
    labels = torch.tensor(labels)
    often = repeats(labels, balance)
    assert float(often.sum()) == pytest.approx(len(labels))
    assert float(often.min()) > 0 and float(often.max()) <= MOST * (1 + 1e-9)
    counts = torch.bincount(labels)
    by_size = sorted((int(counts[label]), float(often[labels == label][0])) for label in labels.unique())
    assert all(rare >= common - 1e-9 for (_, rare), (_, common) in pairwise(by_size))
    if balance == "equal":
        level = max(float(often[labels == label].sum()) for label in labels.unique())
        for label in labels.unique():
            share = float(often[labels == label].sum())
            assert share == pytest.approx(min(level, MOST * int(counts[label])))


@given(label_lists, ways, st.integers(0, 100))
def test_each_image_and_class_is_drawn_as_often_as_it_should_give_or_take_one(labels, balance, seed):
    labels = torch.tensor(labels)
    often = repeats(labels, balance)
    order = balanced_order(labels, often, torch.Generator().manual_seed(seed))
    assert torch.equal(order, balanced_order(labels, often, torch.Generator().manual_seed(seed)))
    drawn = torch.bincount(order, minlength=len(labels))
    assert len(order) == len(labels) == int(drawn.sum())
    assert float((drawn - often).abs().max()) < 1 + 1e-6
    for label in labels.unique():
        mine = labels == label
        assert abs(int(drawn[mine].sum()) - float(often[mine].sum())) < 1 + 1e-6


def test_no_image_of_a_large_class_is_left_out_for_good():
    generator, often = torch.Generator().manual_seed(0), repeats(LABELS, "equal")
    drawn = sum(torch.bincount(balanced_order(LABELS, often, generator), minlength=100) for _ in range(200))
    assert int(drawn.min()) > 0
    torch.testing.assert_close(drawn.double() / 200, often, atol=0.12, rtol=0.0)


@pytest.mark.parametrize("held", [0, 6])
def test_a_student_sees_classes_equally_often_by_the_top_class_of_soft_answers(held):
    data, count = images(30), 30 - held
    data[:, 0, 0, 0] = torch.arange(30)
    targets = torch.full((30, 3), 0.2)
    labels = torch.tensor([0] * 22 + [1] * 8)
    targets[torch.arange(30), labels] = 0.6
    stop = EarlyStop(holdout=0.2, patience=50) if held else None
    model, plain = Recorder(), Recorder()
    for one, balance in ((model, "equal"), (plain, "none")):
        train(one, data, targets, recipe(epochs=40, balance=balance, early_stop=stop), seed=0)
    assert [len(batch) for batch in model.seen] == [len(batch) for batch in plain.seen]
    seen, trained = (np.array([image for batch in one.seen for image in batch]) for one in (model, plain))
    assert set(seen) == set(trained) and len(set(seen)) == count
    assert (labels.numpy()[seen] == 1).mean() == pytest.approx(0.5, abs=1.01 / count)
    assert (labels.numpy()[trained] == 1).mean() < 0.4


def test_balance_goes_with_mixes_unpaid_candidates_and_a_choice_from_answers():
    data, targets = images(12), torch.eye(3)[[0] * 9 + [1] * 3]
    more = {"mix": {"share": 0.5}, "unpaid": {"students": 1}, "augment": "auto", "epochs": 1}
    made = {way: LocalTrainer(spec(**more, balance=way)).fit(data, targets, 1)[0] for way in ("none", "equal")}
    assert made["none"] != made["equal"]
    assert made["equal"] == LocalTrainer(spec(**more, balance="equal")).fit(data, targets, 1)[0]
    even = torch.eye(3)[torch.arange(12) % 3]
    assert LocalTrainer(spec(balance="replicate")).fit(data, even, 1)[1].steps == 9, "three epochs of three batches"


def test_an_unknown_balance_is_refused():
    with pytest.raises(ValueError, match="balance"):
        section(balance="even")


# Choosing


@pytest.fixture(scope="module")
def pool() -> MixupPool:
    return MixupPool(pictures(16), [0.3, 0.5, 0.7])


@pytest.fixture(scope="module")
def real() -> ImagePool:
    return ImagePool(pictures(120))


@pytest.fixture(scope="module")
def model():
    model = build_model("lenet5", (1, 28, 28), 10, seed=1)
    with torch.no_grad():
        head(model).weight.mul_(30.0)
    return model


def predicted(pool, model, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(pool.render(torch.from_numpy(ids))).argmax(dim=1).numpy()


def naive(classes: list[int], k: int) -> list[int]:
    """Classes take turns."""
    queues: dict[int, list[int]] = {}
    for row, label in enumerate(classes):
        queues.setdefault(label, []).append(row)
    chosen: list[int] = []
    while len(chosen) < min(k, len(classes)):
        turn = sorted(queue.pop(0) for queue in queues.values() if queue)
        chosen += turn[: k - len(chosen)]
    return chosen


def test_turns_by_hand():
    assert in_turn(np.array([2, 2, 2, 0, 2, 1, 0]), 6).tolist() == [0, 3, 5, 1, 6, 2]
    assert in_turn(np.array([2, 2, 2, 0]), 9).tolist() == [0, 3, 1, 2]
    assert in_turn(np.empty(0, np.int64), 3).tolist() == []


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 70))
def test_k_is_divided_evenly_and_what_a_class_lacks_goes_to_the_others(classes, k):
    rows = in_turn(np.array(classes, np.int64), k).tolist()
    assert rows == naive(classes, k)
    chosen = [classes[row] for row in rows]
    most = max((chosen.count(label) for label in set(classes)), default=0)
    for label in set(classes):
        assert chosen.count(label) >= min(most - 1, classes.count(label))


@pytest.mark.parametrize(("k", "left", "length"), [(5, 100, 40), (5, 30, 30), (5, 3, 5), (0, 9, 0)])
def test_the_length_of_the_list(k, left, length):
    assert listed(k, 8, left) == length


@pytest.mark.parametrize("strategy", ORDERED)
@pytest.mark.parametrize("over", ["mixes", "images"])
def test_a_balanced_choice_is_that_of_turns_on_a_longer_choice(strategy, over, pool, real, model):
    of, taken = (pool, [0, 4, 33]) if over == "mixes" else (real, [0, 4, 33])
    found = choose(strategy, of, 12, model, taken, balance=4)
    long = choose(strategy, of, 48, model, taken)
    rows = naive(predicted(of, model, long.ids).tolist(), 12)
    assert found.ids.tolist() == long.ids[rows].tolist()
    assert (found.scores is None) == (long.scores is None)
    assert found.scores is None or np.array_equal(found.scores, long.scores[rows])
    assert np.array_equal(choose(strategy, of, 12, model, taken, balance=4, chunk=7).ids, found.ids)
    plain = predicted(of, model, choose(strategy, of, 12, model, taken).ids)
    spread = [len(np.unique(classes)) for classes in (predicted(of, model, found.ids), plain)]
    assert spread[0] >= spread[1]
    facts, before = found.search.facts(), long.search.facts()["passes"] if long.search else 0
    assert facts["passes"] == before + 48 and facts["balance_listed"] == 48
    assert facts["balance_classes"] == spread[0]
    assert f"{spread[0]} classes predicted among 48" in found.search.summary()


@pytest.mark.parametrize("strategy", ORDERED)
def test_all_that_is_left_can_be_chosen_and_no_more(strategy, real, model):
    assert sorted(choose(strategy, real, 100, model, range(20), balance=3).ids.tolist()) == list(range(20, 120))
    with pytest.raises(PoolExhausted, match="101 candidates wanted"):
        choose(strategy, real, 101, model, range(20), balance=3)
    assert len(choose(strategy, real, 0, model, balance=3).ids) == 0


@pytest.mark.parametrize("strategy", ORDERED)
def test_what_the_plan_says_a_balanced_choice_takes_is_what_it_takes(strategy, pool, real, model):
    for of in (pool, real):
        for k in (10, 70):
            took = choose(strategy, of, k, model, balance=4).search.facts()["passes"]
            assert took == balanced.passes(named(strategy, balance=4), of, k, EXHAUSTIVE)


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - set(ORDERED)))
def test_strategies_whose_choice_has_no_order_are_refused(strategy, make_config):
    with pytest.raises(ConfigError, match=rf"select.*balance is 8, but {strategy} has no order.*cluster-margin"):
        make_config(select={"strategy": strategy, "rounds": 1, "balance": 8})
    assert strategy in ("rad", "rad-pairs", "unixkd")


def test_a_list_as_long_as_the_choice_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"select\.balance"):
        make_config(select__balance=1)


def test_a_run_balances_both_and_a_plan_counts_the_predictions(make_config, tmp_path):
    config = make_config(
        select={"strategy": "random", "rounds": 2, "balance": 4}, student__balance="equal", student__epochs=1
    )
    plan = make_plan(config, probe_s=0.01)
    assert plan.scored == 2 * 4 * 60 and plan.rate_per_s > 0
    runs = [run(config, RunDirectory(tmp_path / name), local=True) for name in ("a", "b")]
    for metrics in runs[0].history[1:]:
        assert metrics.evaluated == 240 and metrics.search["balance_listed"] == 240
        assert 2 <= metrics.search["balance_classes"] <= 10
    students = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("a", "b")]
    assert students[0] == students[1]
    assert math.isfinite(runs[0].history[-1].loss)


def test_a_run_that_is_paid_for_can_be_trained_with_balance(config_file, tmp_path):
    done = command("run", config_file(student__epochs=1), "--local", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    again = command("train", tmp_path / "run", "student.balance=equal", "--out", tmp_path / "students")
    assert again.returncode == 0, again.stderr
    own = (tmp_path / "run" / "student.safetensors").read_bytes()
    assert (tmp_path / "students" / "160" / "student.safetensors").read_bytes() != own
