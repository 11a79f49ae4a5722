"""Scores and the search: equal to a naive triple loop, whatever the chunks, the order and the ties."""

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdray.errors import ScoringError
from kdray.models.classifier import build_model
from kdray.pools.mixup import MixupPool
from kdray.search import LowestK, Scored, SearchContext, SearchRequest
from kdray.search.acquisition import confidence, entropy, margin
from kdray.search.cost import CPU_BATCH
from kdray.search.forward import Forward, ForwardOptions
from kdray.search.interpolation import first_knots, fit, linear, second_knots
from kdray.search.local import LocalSearcher, probe
from kdray.search.lowest import plan_search
from kdray.search.stages import Cut, Cuts, Guess, SampleLogits, ScoreGroups, SourceLogits
from kdray.sections.search import SearchSettings

EXHAUSTIVE = SearchSettings(search="exhaustive")
CUT = Cut(chunk=8192, batch=CPU_BATCH)
SCORES = {"confidence": confidence, "margin": margin, "entropy": lambda probs: -entropy(probs)}


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
                scores.append((float(SCORES[request.score](probs)), number))
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
    score=st.sampled_from(sorted(SCORES)),
    levels=st.sampled_from([1, 4, 1000]),
    chunk=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
@examples(60)
def test_search_equals_a_naive_triple_loop(n, lambdas, k, per, score, levels, chunk, seed):
    pool, model = small_pool(n, lambdas, seed), Quantised(seed, levels)
    rng = np.random.default_rng(seed)
    size = pool.num_groups if per == "group" else len(pool)
    taken = np.sort(rng.choice(size, size=rng.integers(0, size), replace=False)).astype(np.int64)
    request = SearchRequest(k=k, per=per, taken=taken, score=score)
    found = LocalSearcher(chunk, settings=EXHAUSTIVE).search(pool, model, request)
    expected = naive(pool, model, request)
    assert found.ids.tolist() == [number for _, number in expected]
    assert found.scores.tolist() == [score for score, _ in expected]
    assert found.evaluated == found.exhaustive == len(pool)
    assert found.recall is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(1, 50), st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_the_order_of_chunks(values, k, random):
    scores, ids = np.array(values, dtype=np.float32), np.arange(len(values))
    merged, order = LowestK(k), list(range(0, len(values), 7))
    random.shuffle(order)
    for start in order:
        part = slice(start, start + 7)
        near = scores[part] <= merged.bound  # as a worker that was told the bound leaves them out
        merged.add(start, type(merged.result())(scores=scores[part][near], ids=ids[part][near], evaluated=7))
    expected = sorted(zip(values, range(len(values)), strict=True))[:k]
    assert merged.result().ids.tolist() == [number for _, number in expected]


def test_a_constant_student_is_decided_by_ids():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 5)

    pool = small_pool(12, [0.4, 0.6], 0)
    assert LocalSearcher(16, settings=EXHAUSTIVE).search(pool, Constant(), SearchRequest(k=10)).ids.tolist() == list(
        range(0, 20, 2)
    )
    every = LocalSearcher(16, settings=EXHAUSTIVE).search(pool, Constant(), SearchRequest(k=10, per="candidate"))
    assert every.ids.tolist() == list(range(10))


def test_nan_is_an_error_that_names_the_candidate():
    class Broken(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 2)
            logits[:, 0] = torch.where(images.flatten(1).sum(dim=1) == 0, float("nan"), 0.0)
            return logits

    pool = MixupPool(torch.tensor([9, 0, 0, 9], dtype=torch.uint8).view(4, 1, 1, 1), [0.5])
    with pytest.raises(ScoringError, match="candidate 3 is not a number"):  # pair (1, 2), the only black one
        LocalSearcher(settings=EXHAUSTIVE).search(pool, Broken(), SearchRequest(k=1))


@given(count=st.integers(0, 500), each=st.integers(1, 400), batch=st.integers(1, 300), wanted=st.integers(1, 2000))
def test_cuts_cover_everything_once_in_whole_passes(count, each, batch, wanted):
    cuts = Cuts(count, each, batch, wanted)
    bounds = list(cuts)
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])][: len(bounds)]
    assert all(stop > start and start % cuts.step == 0 for start, stop in bounds)
    assert (bounds[-1][1] if bounds else 0) == count
    assert cuts.step == 1 or cuts.step * each <= batch
    with pytest.raises(IndexError):
        cuts[len(cuts)]


@pytest.mark.parametrize("chunk", [1, 700, 10**6])
def test_a_real_students_scores_do_not_depend_on_the_chunk_size(chunk):
    generator = torch.Generator().manual_seed(0)
    pool = MixupPool(torch.randint(0, 256, (25, 1, 28, 28), generator=generator, dtype=torch.uint8), [0.3, 0.5, 0.7])
    model = build_model("lenet5", (1, 28, 28), 10, seed=1)
    request = SearchRequest(k=50)
    reference = LocalSearcher(300, settings=EXHAUSTIVE).search(pool, model, request)
    found = LocalSearcher(chunk, settings=EXHAUSTIVE).search(pool, model, request)
    assert found.ids.tolist() == reference.ids.tolist()
    assert found.scores.tobytes() == reference.scores.tobytes()


def test_a_bound_never_changes_the_result():
    pool, model = small_pool(14, [0.3, 0.6], 2), Forward(Quantised(2, 3))
    stage = ScoreGroups(cut=CUT, count=pool.num_groups, group_size=2, k=5)
    free = stage.run(pool, model, 0)
    assert stage.run(pool, model, 0, bound=float(free.scores[-1])).ids.tolist() == free.ids.tolist()
    assert len(stage.run(pool, model, 0, bound=-1.0).ids) == 0


def test_the_probe_counts_candidates_by_the_clock():
    ticks = iter(range(1000))  # a clock that moves one second a look
    rate = probe(small_pool(60, [0.5], 0), Quantised(0, 10), 3.0, lambda: float(next(ticks)))
    # 60 images make 1,770 groups: tasks of four passes of 256 groups; two of them until three seconds are over.
    assert rate == pytest.approx(4 * 256 * 2 / 3)


@pytest.mark.parametrize(("enough", "tasks"), [(1, 1), (1024, 1), (1025, 2), (4096, 4)])
def test_the_probe_ends_with_the_task_that_scores_enough(enough, tasks):
    ticks = iter(range(1000))
    rate = probe(small_pool(60, [0.5], 0), Quantised(0, 10), 100.0, lambda: float(next(ticks)), enough=enough)
    assert rate == pytest.approx(4 * 256 * tasks / (tasks + 1)), "a second a look, the last one included"


def test_the_probe_of_a_slow_pool_measures_one_batch():
    drawn: list[int] = []

    class Slow(MixupPool):
        def batches(self, groups, step, indices=None):
            for batch in super().batches(groups, step, indices):
                drawn.append(len(batch))
                yield batch

    pool = Slow(torch.zeros(60, 1, 3, 4, dtype=torch.uint8), [0.5])
    # A batch takes 5 s, more than the probe may: the first includes set-up, and the second is measured.
    assert probe(pool, Quantised(0, 10), 2.0, lambda: 5.0 * len(drawn)) == pytest.approx(256 / 5)
    assert drawn == [256, 256]
    drawn.clear()
    assert probe(pool, Quantised(0, 10), 2.0, lambda: 0.25 * len(drawn)) == pytest.approx(256 / 0.25)
    assert len(drawn) == 2 + 2 * 4


# ---- guessing


GRID = [0.30, 0.34, 0.38, 0.42, 0.46, 0.50, 0.54, 0.58, 0.62, 0.66, 0.70]


class Rough(nn.Module):
    """A network of one hidden layer: piecewise linear, and not linear."""

    def __init__(self, seed: int, scale: float = 6.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(12, 16, generator=generator))
        self.second = nn.Parameter(torch.randn(16, 4, generator=generator) * scale / 16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return ((images.flatten(1).float() / 255 - 0.5) @ self.first).relu() @ self.second


def guessing(**changes) -> SearchSettings:
    return SearchSettings(search="interpolated", **changes)


def true_recall(found, exact) -> float:
    return len(set(found.ids.tolist()) & set(exact.ids.tolist())) / len(exact.ids)


@pytest.mark.parametrize("per", ["group", "candidate"])
@pytest.mark.parametrize("score", ["confidence", "entropy"])
def test_guessing_finds_nearly_all_for_a_fraction_of_the_passes(per, score):
    pool, model = small_pool(60, GRID, 4), Rough(4)
    request = SearchRequest(k=10, per=per, score=score)
    exact = LocalSearcher(settings=EXHAUSTIVE).search(pool, model, request)
    found = LocalSearcher(settings=guessing()).search(pool, model, request, seed=1)
    assert true_recall(found, exact) >= 0.9
    assert found.evaluated * 2 <= found.exhaustive == exact.evaluated == len(pool)
    # What is chosen is chosen on exact scores.
    known = dict(zip(exact.ids.tolist(), exact.scores.tolist(), strict=True))
    both = [(known[n], s) for n, s in zip(found.ids.tolist(), found.scores.tolist(), strict=True) if n in known]
    assert all(one == pytest.approx(other, abs=1e-6) for one, other in both)
    assert found.recall.low <= found.recall.value <= found.recall.high
    assert found.recall.sampled == 200


@pytest.mark.storm
def test_margins_are_hard_to_guess_and_the_search_notices():
    """On a line that crosses a decision boundary the margin is small only right beside it: the crossing has to be known
    to a fraction of the grid's step."""
    pool, request, notes = small_pool(200, GRID, 4), SearchRequest(k=200, score="margin"), []
    exact = LocalSearcher(settings=EXHAUSTIVE).search(pool, Rough(4), request)
    content = LocalSearcher(settings=guessing(min_recall=0.0, audit=1.0)).search(pool, Rough(4), request, seed=1)
    assert true_recall(content, exact) < 0.8 and content.recall.value < 0.9
    searcher = LocalSearcher(settings=guessing(audit=1.0))
    found = searcher.search(pool, Rough(4), request, seed=1, on_note=notes.append)
    assert found.ids.tolist() == exact.ids.tolist()
    assert "scoring the whole pool" in notes[-1]


def test_the_passes_are_those_that_were_announced():
    pool, request = small_pool(60, GRID, 4), SearchRequest(k=10)
    plan = plan_search(pool, request, guessing())
    # 60 images; 35 pairs to fit to; two mixes of each of the 1,770 pairs; three more of five times the list; 50 pairs
    # at the other six, 200 to audit.
    assert (plan.shortlist, plan.wide, plan.sample, plan.audit) == (50, 250, 35, 200)
    assert plan.passes == 60 + 35 * 11 + 2 * 1770 + 3 * 250 + 50 * 6 + 200 * 11
    assert plan.exhaustive == 1770 * 11
    seen = []
    searcher = LocalSearcher(settings=guessing())
    found = searcher.search(pool, Rough(4), request, on_progress=lambda *done: seen.append(done))
    assert found.evaluated == plan.passes
    assert seen[-1] == (plan.passes, plan.passes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_where_guessing_saves_little_all_is_scored():
    pool = small_pool(20, GRID, 0)
    exact = LocalSearcher(settings=EXHAUSTIVE).search(pool, Rough(1), SearchRequest(k=60))
    found = LocalSearcher(settings=guessing()).search(pool, Rough(1), SearchRequest(k=60))
    assert found.ids.tolist() == exact.ids.tolist()
    assert (found.evaluated, found.keep, found.recall) == (exact.evaluated, None, None)
    one = plan_search(small_pool(200, [0.5], 0), SearchRequest(k=5), guessing())
    assert not one.guess  # one λ: nothing to guess
    assert not plan_search(pool, SearchRequest(k=0), guessing()).guess
    assert plan_search(small_pool(200, GRID, 0), SearchRequest(k=5), guessing()).guess
    assert not plan_search(small_pool(200, GRID, 0), SearchRequest(k=5), EXHAUSTIVE).guess


class Whimsical(nn.Module):
    """Unsure about one candidate in a hundred, and nobody can guess which."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        number = (images.flatten(1).long() * torch.arange(1, 13) ** 2).sum(dim=1)
        logit = torch.where(number % 97 == 0, (number % 1009) / 1009, 8.0)
        return torch.stack([logit, torch.zeros_like(logit)], dim=1)


def test_where_nothing_can_be_guessed_all_is_scored_in_the_end():
    pool, request, notes = small_pool(100, GRID, 4), SearchRequest(k=200), []
    exact = LocalSearcher(settings=EXHAUSTIVE).search(pool, Whimsical(), request)
    unsure = LocalSearcher(settings=guessing(keep=1.0, min_recall=0.9, audit=1.0))
    found = unsure.search(pool, Whimsical(), request, seed=3, on_note=notes.append)
    assert found.ids.tolist() == exact.ids.tolist()
    assert found.keep is None and found.evaluated > found.exhaustive
    assert "less than pool.min_recall = 0.9: scoring the whole pool" in notes[-1]
    # Who does not want to know is not told, and who does not mind gets what was found.
    told = []
    unaware = LocalSearcher(settings=guessing(keep=1.0, audit=0.0))
    cheap = unaware.search(pool, Whimsical(), request, seed=3, on_note=told.append)
    assert cheap.recall is None and cheap.keep == 1.0 and told == []
    patient = LocalSearcher(settings=guessing(keep=1.0, min_recall=0.0, audit=1.0))
    content = patient.search(pool, Whimsical(), request, seed=3)
    assert content.recall.value < 0.9 and content.keep == 1.0


@pytest.mark.parametrize(
    ("score", "keep", "sizes"),
    [
        # Below 0.97, and by a little: the next sample is four times as large, and settles it. The list is doubled.
        ("confidence", 1.0, [300, 21, 21, 168, 84, 84, 672, 300, 21, 21, 168]),
        # So far below that there is nothing to settle.
        ("margin", 2.0, [600, 42, 42, 336]),
    ],
)
def test_too_small_a_recall_is_looked_at_again_where_it_is_not_clear(score, keep, sizes):
    pool, forward, scored = small_pool(120, GRID, 4), Forward(Rough(4, scale=20.0)), []

    def run_stage(stage, merge):
        if isinstance(stage, ScoreGroups) and stage.groups is not None:
            scored.append(len(stage.groups))
        for number in range(len(stage)):
            merge.add(number, stage.run(pool, forward, number, merge.bound))

    context = SearchContext(run_stage=run_stage, cut=CUT, settings=guessing(keep=keep, audit=0.7), seed=3)
    SearchRequest(k=300, score=score).perform(pool, context)
    assert scored == sizes


def test_a_list_that_is_too_short_is_made_longer():
    pool, request, notes = small_pool(120, GRID, 4), SearchRequest(k=300), []
    model = Rough(4, scale=20.0)
    content = LocalSearcher(settings=guessing(keep=1.0, audit=1.0, min_recall=0.0))
    short = content.search(pool, model, request, seed=1)
    strict = LocalSearcher(settings=guessing(keep=1.0, audit=1.0))
    found = strict.search(pool, model, request, seed=1, on_note=notes.append)
    exact = LocalSearcher(settings=EXHAUSTIVE).search(pool, model, request)
    assert notes[0].endswith("scoring 2 times as many exactly instead of 1")
    assert found.keep >= 2.0 and short.keep == 1.0
    assert true_recall(found, exact) > true_recall(short, exact)


@given(
    chunk=st.sampled_from([1, 300, 5000]),
    taken=st.sets(st.integers(0, 1769), max_size=300),
    per=st.sampled_from(["group", "candidate"]),
    seed=st.integers(0, 50),
)
@examples(15)
def test_a_guessing_search_does_not_depend_on_chunks_and_their_order(chunk, taken, per, seed):
    pool, forward = small_pool(60, GRID, 4), Forward(Rough(4))
    request = SearchRequest(k=10, per=per, taken=np.array(sorted(taken), dtype=np.int64))
    rng = np.random.default_rng(seed)

    def backwards(stage, merge):
        for number in rng.permutation(len(stage)):
            merge.add(int(number), stage.run(pool, forward, int(number), merge.bound))

    cut = Cut(chunk=chunk, batch=CPU_BATCH)
    found = request.perform(pool, SearchContext(run_stage=backwards, cut=cut, settings=guessing(), seed=seed))
    reference = LocalSearcher(700, settings=guessing()).search(pool, Rough(4), request, seed=seed)
    assert found.ids.tolist() == reference.ids.tolist()
    assert found.scores.tobytes() == reference.scores.tobytes()
    assert found.recall == reference.recall
    gone = taken if per == "group" else {number // 11 for number in ()}
    assert not gone & set((found.ids // 11).tolist())
    assert per == "group" or not taken & set(found.ids.tolist())


def test_nan_among_the_guesses_is_an_error_too():
    class Broken(Rough):
        def forward(self, images):
            return super().forward(images) * torch.where(images.flatten(1).sum(dim=1) == 0, float("nan"), 1.0)[:, None]

    pool = small_pool(60, GRID, 4)
    pool.images[7] = 0
    with pytest.raises(ScoringError, match="is not a number"):
        LocalSearcher(settings=guessing()).search(pool, Broken(4), SearchRequest(k=5))


@given(st.integers(2, 12), st.integers(0, 30), st.sampled_from(["confidence", "margin", "entropy"]))
@examples(30)
def test_the_guess_of_a_group_by_the_definition(n, seed, score):
    """A loop over groups and λ: between the two nearest known logits, linearly."""
    pool, model = small_pool(n, [0.1, 0.4, 0.5, 0.9], seed), Rough(seed)
    forward, knots = Forward(model), (1, 3)
    sources = SourceLogits(cut=CUT, count=n).run(pool, forward, 0).rows
    matrix = linear(pool.lambdas, knots).astype(np.float32)
    parts = {"cut": CUT, "count": pool.num_groups, "k": pool.num_groups, "sources": sources}
    stage = Guess(knots=knots, matrix=matrix, score=score, **parts)
    found = stage.run(pool, forward, 0)
    assert found.evaluated == 2 * pool.num_groups
    with torch.no_grad():
        for group, value in zip(found.ids.tolist(), found.scores.tolist(), strict=True):
            i, j = (int(x) for x in pool.pair(torch.tensor([group])))
            known = {0.0: model(pool.images[j][None])[0], 1.0: model(pool.images[i][None])[0]}
            known |= {pool.lambdas[k]: model(pool.render(torch.tensor([group * 4 + k])))[0] for k in knots}
            guesses = []
            for point in pool.lambdas:
                low, high = max(x for x in known if x <= point), min(x for x in known if x >= point)
                share = 0.0 if low == high else (point - low) / (high - low)
                logits = (1 - share) * known[low] + share * known[high]
                guesses.append(float(SCORES[score](logits.softmax(dim=0)[None])))
            assert value == pytest.approx(min(guesses), abs=1e-5)


def test_a_second_guess_asks_about_the_new_knots_alone():
    pool, forward = small_pool(12, GRID, 3), Forward(Rough(3))
    sources = SourceLogits(cut=CUT, count=12).run(pool, forward, 0).rows
    few, more = first_knots(11), second_knots(11)
    assert (few, more) == ((3, 7), (1, 3, 5, 7, 9))
    parts = {"cut": CUT, "count": 66, "k": 30, "sources": sources}
    matrices = [linear(pool.lambdas, knots).astype(np.float32) for knots in (few, more)]
    hand_on = ("logits", "scores")
    first = Guess(knots=few, matrix=matrices[0], hand_on=hand_on, **parts).run(pool, forward, 0)
    assert first.extra["logits"].shape == (30, 2, 4) and first.extra["logits"].dtype == np.float16
    order = np.argsort(first.ids)
    again = Guess(knots=more, matrix=matrices[1], groups=first.ids[order], **parts).run(pool, forward, 0)
    handed = Guess(
        knots=more, matrix=matrices[1], groups=first.ids[order], known=first.extra[order], have=few, **parts
    ).run(pool, forward, 0)
    assert (again.evaluated, handed.evaluated) == (30 * 5, 30 * 3)
    assert dict(zip(again.ids.tolist(), again.scores.tolist(), strict=True)) == pytest.approx(
        dict(zip(handed.ids.tolist(), handed.scores.tolist(), strict=True)), abs=2e-3
    )


@pytest.mark.parametrize("per", ["group", "candidate"])
def test_scores_that_are_handed_on_are_exact_and_not_asked_about_again(per):
    pool, forward = small_pool(12, GRID, 3), Forward(Rough(3))
    sources, (few, more) = (
        SourceLogits(cut=CUT, count=12).run(pool, forward, 0).rows,
        (first_knots(11), second_knots(11)),
    )
    parts = {"cut": CUT, "count": 66, "k": 30, "sources": sources}
    matrices = [linear(pool.lambdas, knots).astype(np.float32) for knots in (few, more)]
    first = Guess(knots=few, matrix=matrices[0], hand_on=("logits", "scores"), **parts).run(pool, forward, 0)
    order = np.argsort(first.ids)
    groups, known = first.ids[order], first.extra[order]
    stage = Guess(knots=more, matrix=matrices[1], groups=groups, known=known, have=few, hand_on=("scores",), **parts)
    second = stage.run(pool, forward, 0)
    order = np.argsort(second.ids)
    groups, scores = second.ids[order], second.extra["scores"][order]
    ids = torch.from_numpy(groups[:, None] * 11 + np.array(more))
    with torch.inference_mode():
        exact = SCORES["confidence"](Rough(3)(pool.render(ids.flatten())).softmax(dim=1)).view(30, 5).numpy()
    assert scores == pytest.approx(exact, abs=1e-6)
    common = {"cut": CUT, "count": 66, "group_size": 11, "k": 500, "per": per, "groups": groups}
    whole = ScoreGroups(**common).run(pool, forward, 0)
    rest = ScoreGroups(known=scores, have=more, **common).run(pool, forward, 0)
    assert (whole.evaluated, rest.evaluated) == (30 * 11, 30 * 6)
    assert len(rest.ids) == (30 if per == "group" else 330)
    assert dict(zip(rest.ids.tolist(), rest.scores.tolist(), strict=True)) == pytest.approx(
        dict(zip(whole.ids.tolist(), whole.scores.tolist(), strict=True)), abs=1e-6
    )
    # Nothing left to ask: what was handed on is all there is.
    grid = tuple(range(11))
    full = np.arange(330, dtype=np.float32).reshape(30, 11)
    found = ScoreGroups(known=full, have=grid, **common).run(pool, forward, 0)
    assert found.evaluated == 0 and found.ids[0] == groups[0] * 11


def test_the_merge_keeps_what_goes_with_each():
    merged, rng = LowestK(4), np.random.default_rng(0)
    scores = rng.permutation(40).astype(np.float32)
    for start in range(0, 40, 5):
        part = slice(start, start + 5)
        merged.add(
            start, Scored(scores=scores[part], ids=np.arange(40)[part], evaluated=5, extra=scores[part, None] * 2)
        )
    found = merged.result()
    assert found.scores.tolist() == [0, 1, 2, 3] and found.extra[:, 0].tolist() == [0, 2, 4, 6]
    ordered = merged.result(by="id")
    assert ordered.ids.tolist() == sorted(found.ids.tolist())
    assert ordered.scores.tolist() == [scores[n] for n in ordered.ids] == (ordered.extra[:, 0] / 2).tolist()


def test_interpolation_by_hand():
    matrix = linear([0.2, 0.5, 0.8], [1])
    # At 0.2: three fifths of the end at 0, two of the knot at 0.5. At 0.8 likewise from the other side.
    assert matrix == pytest.approx(np.array([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.0, 0.4, 0.6]]))
    assert linear([0.0, 1.0], []) == pytest.approx(np.eye(2))


def test_a_fit_finds_the_combination_that_made_the_logits():
    rng = np.random.default_rng(0)
    truth = linear(GRID, (3, 7))
    free = [row for row in range(11) if row not in (3, 7)]
    truth[free] += 0.1 * rng.normal(size=(9, 4))
    known = rng.normal(size=(50, 4, 6))
    logits = np.einsum("lm,gmk->glk", truth, known)
    found = fit(GRID, (3, 7), known[:, [0, 3]], logits)
    assert found.dtype == np.float32
    assert np.allclose(found, truth, atol=1e-3)
    # A shift of all classes changes no probability, and no fit.
    shift = rng.normal(size=(50, 11, 1))
    assert np.allclose(fit(GRID, (3, 7), known[:, [0, 3]] + shift[:, :2], logits + shift), found, atol=1e-5)


def test_a_fit_to_next_to_nothing_stays_near_linear_interpolation():
    flat = np.zeros((1, 2, 3)), np.zeros((1, 11, 3))
    assert np.allclose(fit(GRID, (3, 7), *flat), linear(GRID, (3, 7)))


def test_a_fitted_guess_is_better_than_a_linear_one():
    pool, model = small_pool(80, GRID, 4), Rough(4, scale=20.0)
    forward, total, cut = Forward(model), pool.num_groups, Cut(chunk=10**6, batch=CPU_BATCH)
    sources = SourceLogits(cut=CUT, count=80).run(pool, forward, 0).rows
    logits = SampleLogits(cut=cut, group_size=11, groups=np.arange(total)).run(pool, forward, 0).rows
    best = torch.from_numpy(logits).softmax(dim=2).amax(dim=2).amin(dim=1).numpy()
    i, j = (part.numpy() for part in pool.pair(torch.arange(total)))
    sample = np.random.default_rng(0).choice(total, 200, replace=False)
    sides = np.stack([sources[j], sources[i]], axis=1)
    error = {}
    for name, matrix in (
        ("linear", linear(GRID, (3, 7)).astype(np.float32)),
        ("fitted", fit(GRID, (3, 7), sides[sample], logits[sample])),
    ):
        stage = Guess(cut=cut, count=total, k=total, knots=(3, 7), matrix=matrix, sources=sources)
        found = stage.run(pool, forward, 0)
        error[name] = np.abs(found.scores - best[found.ids]).mean()
    assert error["fitted"] < error["linear"]


@pytest.mark.parametrize(
    ("compile", "precision"),
    [
        ("off", "float32"),
        ("off", "bfloat16"),
        pytest.param("on", "float32", marks=pytest.mark.storm),
        pytest.param("on", "bfloat16", marks=[pytest.mark.storm, pytest.mark.long]),
    ],
)
def test_a_student_is_scored_alike_with_every_option(compile, precision):
    model = build_model("lenet5", (1, 28, 28), 10, seed=1)
    images = torch.randint(
        0, 256, (CPU_BATCH + 7, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        plain = model.eval()(images)
    options = ForwardOptions(precision=precision, compile=compile)
    forward = Forward(build_model("lenet5", (1, 28, 28), 10, seed=1), options=options)
    parts = [forward(part) for part in images.split(CPU_BATCH)]  # the last is filled up where there is one shape only
    assert [len(part) for part in parts] == [CPU_BATCH, 7]
    assert all(part.dtype == torch.float32 for part in parts)
    tolerance = 1e-5 if precision == "float32" else 0.05
    assert torch.allclose(torch.cat(parts), plain, atol=tolerance)
