"""Scores and the search: equal to a naive triple loop, whatever the chunks, the order and the ties."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdray.errors import ScoringError
from kdray.pools.mixup import MixupPool
from kdray.scores import confidence, entropy, margin
from kdray.search import Chunks, LocalSearcher, LowestK, SearchRequest, groups_per_batch, probe, score_chunk
from kdray.students.models import build_model


class Quantised(nn.Module):
    """A tiny linear student whose confidences take few values, so that ties are everywhere."""

    def __init__(self, seed: int, levels: int) -> None:
        super().__init__()
        weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed))
        self.weight, self.levels = nn.Parameter(weight), levels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # In whole numbers, so that an image scored alone and one scored in a batch agree to the last bit.
        logits = images.flatten(1).long() @ (self.weight * 100).round().long().T  # [B, 3]
        return (logits * self.levels // 25_500).float() / self.levels


def naive(pool: MixupPool, model: nn.Module, request: SearchRequest) -> list[tuple[float, int]]:
    """The definition: every candidate scored alone, every group's lowest, all sorted by (score, id)."""
    taken, best = set(request.taken.tolist()), []
    with torch.no_grad():
        for group in range(pool.num_groups):
            scores = []
            for k in range(pool.group_size):
                number = group * pool.group_size + k
                probs = model(pool.render(torch.tensor([number]))).softmax(dim=1)
                scores.append((float(probs.max()), number))
            if request.per == "group":
                best += [min(scores)] if group not in taken else []
            else:
                best += [entry for entry in scores if entry[1] not in taken]
    return sorted(best)[: request.k]


def small_pool(n: int, lambdas: list[float], seed: int) -> MixupPool:
    generator = torch.Generator().manual_seed(seed)
    return MixupPool(torch.randint(0, 256, (n, 1, 3, 4), generator=generator, dtype=torch.uint8), lambdas)


def test_scores_by_hand():
    probs = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    assert torch.allclose(confidence(probs), torch.tensor([0.5, 1.0, 1 / 3], dtype=torch.float64))
    assert torch.allclose(margin(probs), torch.tensor([0.2, 1.0, 0.0], dtype=torch.float64))
    by_hand = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2))
    assert torch.allclose(entropy(probs), torch.tensor([by_hand, 0.0, np.log(3)], dtype=torch.float64))
    assert margin(torch.ones(2, 1)).tolist() == [1.0, 1.0]


@given(
    n=st.integers(2, 9),
    lambdas=st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), min_size=1, max_size=4, unique=True),
    k=st.integers(1, 150),
    per=st.sampled_from(["group", "candidate"]),
    levels=st.sampled_from([1, 4, 1000]),
    chunk=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_search_equals_a_naive_triple_loop(n, lambdas, k, per, levels, chunk, seed):
    pool, model = small_pool(n, lambdas, seed), Quantised(seed, levels)
    rng = np.random.default_rng(seed)
    size = pool.num_groups if per == "group" else len(pool)
    taken = np.sort(rng.choice(size, size=rng.integers(0, size), replace=False)).astype(np.int64)
    request = SearchRequest(k=k, per=per, taken=taken)
    found = LocalSearcher(chunk).search(pool, model, request)
    expected = naive(pool, model, request)
    assert found.ids.tolist() == [number for _, number in expected]
    assert found.scores.tolist() == [score for score, _ in expected]
    assert found.evaluated == len(pool)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(1, 50), st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_the_order_of_chunks(values, k, random):
    scores, ids = np.array(values, dtype=np.float32), np.arange(len(values))
    merged, order = LowestK(k), list(range(0, len(values), 7))
    random.shuffle(order)
    for start in order:
        part = slice(start, start + 7)
        near = scores[part] <= merged.bound  # as a worker that was told the bound leaves them out
        merged.add(type(merged.result())(scores=scores[part][near], ids=ids[part][near], evaluated=7))
    expected = sorted(zip(values, range(len(values)), strict=True))[:k]
    assert merged.result().ids.tolist() == [number for _, number in expected]


def test_a_constant_student_is_decided_by_ids():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 5)

    pool = small_pool(12, [0.4, 0.6], 0)
    assert LocalSearcher(16).search(pool, Constant(), SearchRequest(k=10)).ids.tolist() == list(range(0, 20, 2))
    every = LocalSearcher(16).search(pool, Constant(), SearchRequest(k=10, per="candidate"))
    assert every.ids.tolist() == list(range(10))


def test_nan_is_an_error_that_names_the_candidate():
    class Broken(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 2)
            logits[:, 0] = torch.where(images.flatten(1).sum(dim=1) == 0, float("nan"), 0.0)
            return logits

    pool = MixupPool(torch.tensor([9, 0, 0, 9], dtype=torch.uint8).view(4, 1, 1, 1), [0.5])
    with pytest.raises(ScoringError, match="candidate 3 is not a number"):  # pair (1, 2), the only black one
        LocalSearcher().search(pool, Broken(), SearchRequest(k=1))


def test_chunks_cover_the_pool_once_in_whole_batches():
    pool = small_pool(60, [0.3, 0.5, 0.7], 0)
    chunks = Chunks(pool, 1000)
    assert len(chunks) == len(list(chunks)) > 1
    assert chunks[0][0] == 0
    assert chunks[len(chunks) - 1][1] == pool.num_groups
    assert all(stop == start for (_, stop), (start, _) in pairwise(chunks))
    assert all(start % groups_per_batch(pool) == 0 for start, _ in chunks)
    with pytest.raises(IndexError):
        chunks[len(chunks)]


@pytest.mark.parametrize("chunk", [1, 700, 10**6])
def test_a_real_students_scores_do_not_depend_on_the_chunk_size(chunk):
    generator = torch.Generator().manual_seed(0)
    pool = MixupPool(torch.randint(0, 256, (25, 1, 28, 28), generator=generator, dtype=torch.uint8), [0.3, 0.5, 0.7])
    model = build_model("lenet5", (1, 28, 28), 10, seed=1)
    request = SearchRequest(k=50)
    reference = LocalSearcher(300).search(pool, model, request)
    found = LocalSearcher(chunk).search(pool, model, request)
    assert found.ids.tolist() == reference.ids.tolist()
    assert found.scores.tobytes() == reference.scores.tobytes()


def test_a_bound_never_changes_the_result():
    pool, model = small_pool(14, [0.3, 0.6], 2), Quantised(2, 3)
    request = SearchRequest(k=5)
    free = score_chunk(pool, model, 0, pool.num_groups, request)
    bound = score_chunk(pool, model, 0, pool.num_groups, request, bound=float(free.scores[-1]))
    assert bound.ids.tolist() == free.ids.tolist()
    assert len(score_chunk(pool, model, 0, pool.num_groups, request, bound=-1.0).ids) == 0


def test_the_probe_counts_candidates_by_the_clock():
    ticks = iter(range(1000))  # a clock that moves one second a look
    rate = probe(small_pool(30, [0.5], 0), Quantised(0, 10), 3.0, lambda: float(next(ticks)))
    # 30 images make 435 groups: passes of 256 groups; three looks until three seconds are over.
    assert rate == pytest.approx(256 * 2 / 3)
