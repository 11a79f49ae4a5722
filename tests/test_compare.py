"""Choices that compare candidates with each other: k-center greedy, clusters, and UNIXKD's order."""

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from test_models import ONE_OF_EACH_FAMILY
from torch import nn

from kdray.errors import ConfigError, ModelError
from kdray.models.base import model_names
from kdray.models.classifier import ImageClassifier, build_model
from kdray.models.features import head, penultimate
from kdray.pools.images import ImagePool
from kdray.pools.mixup import MixupPool
from kdray.search import FeaturesRequest, SourceLogitsRequest
from kdray.search.acquisition import entropy
from kdray.search.local import LocalSearcher
from kdray.select.base import Task, select, strategies
from kdray.select.strategies.cluster_margin import cluster, clustered, looked_at, round_robin
from kdray.select.strategies.coreset import k_center_greedy


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# k-center greedy


def naive_greedy(features: np.ndarray, centres: np.ndarray, k: int) -> list[int]:
    """Sener and Savarese, Algorithm 1, word for word: the one farthest from all that are centres now."""
    chosen: list[int] = []
    for _ in range(k):
        now = [*centres, *(features[row] for row in chosen)] or [features.mean(axis=0)]
        distance = [min(float(((x - c) ** 2).sum()) for c in now) for x in features]
        for row in chosen:
            distance[row] = -1.0
        chosen.append(int(np.argmax(distance)))
    return chosen


@examples(40)
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(0, 5), st.integers(1, 4))
def test_k_center_greedy_is_the_greedy_of_the_paper(seed, n, m, dims):
    rng = np.random.default_rng(seed)
    features, centres = (rng.normal(size=(count, dims)).astype(np.float32) for count in (n, m))
    assert k_center_greedy(features, centres, n).tolist() == naive_greedy(features, centres, n)


def test_on_a_line_the_ends_come_first_and_then_the_middle():
    line = np.arange(9, dtype=np.float32)[:, None]
    assert k_center_greedy(line, line[:1], 4).tolist() == [8, 4, 2, 6]
    assert k_center_greedy(line, np.empty((0, 1), np.float32), 3).tolist() == [0, 8, 4]


def test_points_that_coincide_are_all_chosen_in_the_end():
    same = np.ones((7, 3), dtype=np.float32)
    assert sorted(k_center_greedy(same, same[:2], 7).tolist()) == list(range(7))


def test_coreset_stays_away_from_what_is_labelled():
    """The pool holds copies of the labelled images: they come last."""
    known = pictures(20)
    pool = ImagePool(torch.cat([known, pictures(20, seed=1)]))
    model, searcher = build_model("lenet5", (1, 28, 28), 10, seed=1), LocalSearcher(64)

    def chosen(taken, known):
        task = Task(
            pool=pool,
            k=12,
            taken=np.array(taken, dtype=np.int64),
            generator=np.random.default_rng(0),
            ask=lambda request: searcher.search(pool, model, request),
            known=known,
        )
        return select(strategies.parse("coreset"), task).ids

    assert chosen([], known).min() >= 20  # given as labelled
    assert chosen(range(10), known[10:]).min() >= 20  # half of them bought in earlier rounds
    assert chosen([], None).min() < 20


# Clusters


def test_clusters_are_those_that_lie_together():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8)) * 100
    features = (np.repeat(centres, 20, axis=0) + rng.normal(size=(100, 8))).astype(np.float32)
    found = cluster(features, rng).reshape(5, 20)
    assert (found == found[:, :1]).all() and len(set(found[:, 0].tolist())) == 5


def test_buckets_share_no_cluster(monkeypatch):
    monkeypatch.setattr("kdray.select.strategies.cluster_margin.BUCKET", 30)
    features = np.random.default_rng(0).normal(size=(70, 4)).astype(np.float32)
    found = cluster(features, np.random.default_rng(1))
    sizes = np.bincount(found)
    assert sizes.sum() == 70 and (sizes <= 24).all()
    assert len(sizes) == 6  # of 24, 23 and 23: two clusters each


@pytest.mark.parametrize(
    ("free", "k", "count"),
    [(100, 100, 100), (9_999, 300, 9_999), (2_000_000, 300, 10_000), (2_000_000, 8_001, 10_002), (8_500, 8_000, 8_500)],
)
def test_a_bucket_is_clustered_or_all_that_may_be_chosen(free, k, count):
    assert clustered(free, k) == count


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_anything_can_be_clustered_too(n):
    assert len(cluster(np.zeros((n, 3), np.float32), np.random.default_rng(0))) == n


def test_round_robin_serves_the_smallest_cluster_first_and_every_one_before_any_twice():
    clusters = np.array([0] * 10 + [1] * 3 + [2] * 7)
    margins = np.linspace(0, 1, 20)
    rows = round_robin(margins, clusters, 16, np.random.default_rng(0))
    got = clusters[rows].tolist()
    assert got == [1, 2, 0] * 3 + [2, 0] * 3 + [2]
    assert len(set(rows.tolist())) == 16


def test_round_robin_looks_at_small_margins_alone():
    margins = np.random.default_rng(0).permutation(100).astype(float)
    rows = round_robin(margins, np.zeros(100, np.int64), 20, np.random.default_rng(1))
    assert margins[rows].max() < 25
    everything = round_robin(margins, np.arange(100), 100, np.random.default_rng(1))
    assert sorted(everything.tolist()) == list(range(100))


# UNIXKD


def test_unixkd_takes_uncertain_images_pure_and_mixes_the_next():
    pool = MixupPool(pictures(30), [0.0, 0.25, 0.5, 0.75, 1.0])
    model, searcher = build_model("lenet5", (1, 28, 28), 10, seed=1), LocalSearcher(64)

    def ask(request):
        return searcher.search(pool, model, request)

    task = Task(pool=pool, k=18, taken=np.empty(0, np.int64), generator=np.random.default_rng(0), ask=ask)
    ids = select(strategies.parse("unixkd"), task).ids
    about = pool.describe(torch.from_numpy(ids))
    uncertain = entropy(torch.from_numpy(ask(SourceLogitsRequest()).rows).softmax(dim=1)).numpy()
    order = np.argsort(-uncertain)
    shown = pool.render(torch.from_numpy(ids))
    assert torch.equal(shown[:12], pool.images[torch.from_numpy(order[:12].copy())])
    for rank in range(12, 18):
        assert order[rank] in (about["i"][rank], about["j"][rank])
    assert len({about["lambda"][rank] for rank in range(12, 18)}) > 1


def test_unixkd_gives_every_image_its_turn_before_any_has_two():
    pool = MixupPool(pictures(10), [0.0, 0.5, 1.0])
    model, searcher = build_model("lenet5", (1, 28, 28), 10, seed=1), LocalSearcher(64)
    taken, whole = np.empty(0, np.int64), []
    for number in range(4):
        task = Task(
            pool=pool,
            k=5,
            taken=taken,
            generator=np.random.default_rng(number),
            ask=lambda request: searcher.search(pool, model, request),
        )
        ids = select(strategies.parse("unixkd"), task).ids
        taken = np.concatenate([taken, ids])
        about = pool.describe(torch.from_numpy(ids))
        if number < 2:  # the first four of five are bought as they are
            alone = [i if share == 1 else j for i, j, share in zip(*about.values(), strict=True) if share in (0, 1)]
            whole += alone[:4]
    assert len(set(whole)) == 8, "no image twice"


def test_what_unixkd_mixes_shows_two_images():
    pool, rest = MixupPool(pictures(12), [0.0, 0.25, 0.75, 1.0]), []
    model, searcher = build_model("lenet5", (1, 28, 28), 10, seed=1), LocalSearcher(64)
    for seed in range(10):
        task = Task(
            pool=pool,
            k=12,
            taken=np.empty(0, np.int64),
            generator=np.random.default_rng(seed),
            ask=lambda request: searcher.search(pool, model, request),
            asked=np.arange(12),
        )
        rest += pool.describe(torch.from_numpy(select(strategies.parse("unixkd"), task).ids))["lambda"]
    assert set(rest) == {0.25, 0.75}, "all images have their answers"


def test_unixkd_does_not_choose_the_images_of_round_0_again():
    pool = MixupPool(pictures(10), [0.0, 0.5, 1.0])
    model, searcher = build_model("lenet5", (1, 28, 28), 10, seed=1), LocalSearcher(64)
    task = Task(
        pool=pool,
        k=6,
        taken=np.empty(0, np.int64),
        generator=np.random.default_rng(0),
        ask=lambda request: searcher.search(pool, model, request),
        asked=np.array([0, 2, 4, 6, 8]),
    )
    about = pool.describe(torch.from_numpy(select(strategies.parse("unixkd"), task).ids))
    alone = [i if share == 1 else j for i, j, share in zip(*about.values(), strict=True) if share in (0, 1)]
    assert len(set(alone[:4])) == 4 and set(alone[:4]) < {1, 3, 5, 7, 9}


@pytest.mark.parametrize(("pool", "seen"), [(ImagePool(pictures(400)), 400), (MixupPool(pictures(400), [0.5]), 50_000)])
def test_cluster_margin_looks_at_all_images_and_at_a_sample_of_pairs(pool, seen):
    assert looked_at(pool, pool.num_groups, 100) == seen


# Features


@pytest.mark.parametrize(
    "name",
    [name if name in ONE_OF_EACH_FAMILY else pytest.param(name, marks=pytest.mark.storm) for name in model_names()],
)
def test_every_student_of_the_zoo_has_features_and_its_head_makes_logits_of_them(name):
    model = build_model(name, (3, 32, 32), 4, seed=0, mean=[0.5] * 3, std=[0.5] * 3).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        features = penultimate(model, images)
        assert features.shape == (2, head(model).in_features)
        torch.testing.assert_close(head(model)(features), model(images))


def test_a_model_that_ends_otherwise_has_none():
    with pytest.raises(ModelError, match="does not end in a linear layer"):
        head(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    with pytest.raises(ModelError):
        head(nn.Sequential())


def test_features_of_candidates_and_of_other_images_are_what_the_student_makes_of_them():
    pool = MixupPool(pictures(12), [0.3, 0.7])
    model, ids = build_model("lenet5", (1, 28, 28), 10, seed=1), np.array([5, 0, 131, 17])
    found = LocalSearcher(2).search(pool, model, FeaturesRequest(ids=ids))
    with torch.inference_mode():
        want = penultimate(model, pool.render(torch.from_numpy(ids)))
        others = penultimate(model, pool.images)
    torch.testing.assert_close(torch.from_numpy(found.rows), want)
    assert found.evaluated == 4
    found = LocalSearcher(5).search(pool, model, FeaturesRequest(images=pool.images))
    torch.testing.assert_close(torch.from_numpy(found.rows), others)
    assert LocalSearcher(5).search(pool, model, FeaturesRequest()).rows.shape[0] == 0


def headless(shape, classes):
    """A network without a linear layer."""
    return nn.Sequential(nn.Conv2d(shape[0], classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_strategy_that_needs_features_refuses_a_student_without_before_anything_is_paid(make_config):
    from kdray.runs.inputs import read_inputs

    config = make_config(student__model="test_compare:headless", select__strategy="coreset")
    with pytest.raises(ConfigError, match=r"select\.strategy: coreset compares features"):
        read_inputs(config)
    read_inputs(make_config(student__model="test_compare:headless", select__strategy="margin"))
    assert isinstance(build_model("test_compare:headless", (1, 16, 16), 10, seed=0), ImageClassifier)
