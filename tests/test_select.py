"""Every choice keeps the same contract: exactly k distinct candidates, none already chosen, whatever does the work."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import entr

from kdray.errors import DivergedError, PoolExhausted, ScoringError
from kdray.models.classifier import build_model
from kdray.models.features import head
from kdray.pools.images import ImagePool, ImagesSection
from kdray.pools.mixup import MixupPool
from kdray.pools.permutation import sample_without
from kdray.search import (
    BestRequest,
    FeaturesRequest,
    GainsRequest,
    PredictionsRequest,
    ScoresRequest,
    SearchRequest,
    SourceLogitsRequest,
)
from kdray.search.binned import BinnedRequest
from kdray.search.forward import ForwardOptions
from kdray.search.local import LocalSearcher
from kdray.sections.search import SearchSettings
from kdray.select.base import Selection, Strategy, Task, select, strategies
from kdray.select.rad.game import distribution
from kdray.select.rad.mistakes import Mistakes

LAMBDAS = [0.3, 0.4, 0.5, 0.6, 0.7]
EXHAUSTIVE, GUESSING = SearchSettings(search="exhaustive"), SearchSettings(search="interpolated")
PIXELS = ForwardOptions(mixing="pixels")
STRATEGIES = strategies.parts()
PAIRS_ONCE = [name for name, strategy in STRATEGIES.items() if strategy.per == "group"]


def works_on_images(name: str) -> bool:
    try:
        STRATEGIES[name]().check(ImagesSection(), labelled=True, validation=True)
    except ValueError:
        return False
    return True


ON_IMAGES = [name for name in STRATEGIES if works_on_images(name)]


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def pool() -> MixupPool:
    return MixupPool(pictures(16), LAMBDAS)


@pytest.fixture(scope="module")
def images() -> ImagePool:
    return ImagePool(pictures(120))


@pytest.fixture(scope="module")
def model():
    """With opinions: a fresh network finds all classes alike."""
    model = build_model("lenet5", (1, 28, 28), 10, seed=1)
    with torch.no_grad():
        head(model).weight.mul_(30.0)
    return model


def named(strategy: str, **fields) -> Strategy:
    return strategies.parse({"strategy": strategy, **fields})


def choose(
    strategy, pool, k, model, taken=(), seed=0, chunk=64, known=None, settings=EXHAUSTIVE, mistakes=None, **fields
) -> Selection:
    searcher = LocalSearcher(chunk, settings=settings, options=PIXELS)
    task = Task(
        pool=pool,
        k=k,
        taken=np.array(taken, dtype=np.int64),
        generator=np.random.default_rng(seed),
        ask=lambda request: searcher.search(pool, model, request),
        known=known,
        mistakes=mistakes,
    )
    return select(named(strategy, **fields), task)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("k", [0, 1, 37, 120])
def test_exactly_k_distinct_ids_of_the_pool(strategy, k, pool, model):
    chosen = choose(strategy, pool, k, model)
    assert chosen.ids.dtype == np.int64
    assert len(chosen.ids) == len(set(chosen.ids.tolist())) == k
    assert k == 0 or (chosen.ids.min() >= 0 and chosen.ids.max() < len(pool))
    assert chosen.scores is None or (chosen.scores.dtype == np.float32 and len(chosen.scores) == k)
    assert (chosen.search is None) == (not STRATEGIES[strategy].asks) or k == 0


def test_all_but_unixkd_choose_among_real_images_too():
    assert set(STRATEGIES) - set(ON_IMAGES) == {"unixkd"}


@pytest.mark.parametrize("strategy", ON_IMAGES)
@pytest.mark.parametrize("k", [0, 1, 37, 120])
def test_the_same_of_a_pool_of_real_images(strategy, k, images, model):
    ids = choose(strategy, images, k, model).ids
    assert len(ids) == len(set(ids.tolist())) == k
    assert k == 0 or (ids.min() >= 0 and ids.max() < 120)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chosen_ones_leave_the_pool_until_it_is_empty(strategy, pool, model):
    taken, room = [], named(strategy).capacity(pool)
    for k in (50, 60, room - 110):
        taken += choose(strategy, pool, k, model, taken, seed=len(taken)).ids.tolist()
    assert len(set(taken)) == len(taken) == room
    with pytest.raises(PoolExhausted):
        choose(strategy, pool, 1, model, taken)


@pytest.mark.parametrize("strategy", ON_IMAGES)
def test_what_is_left_of_a_pool_with_holes_is_chosen_whole(strategy, images, model):
    """The first, the last and every third image are gone: all others can be chosen, and nothing else."""
    gone = sorted({0, 119, *range(0, 120, 3)})
    left = sorted(set(range(120)) - set(gone))
    assert sorted(choose(strategy, images, len(left), model, taken=gone).ids.tolist()) == left
    some = choose(strategy, images, 20, model, taken=gone).ids.tolist()
    assert set(some) <= set(left)
    with pytest.raises(PoolExhausted):
        choose(strategy, images, len(left) + 1, model, taken=gone)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_choice_however_the_work_is_cut(strategy, pool, model):
    first, second = (choose(strategy, pool, 40, model, taken=[3, 77], seed=5, chunk=chunk) for chunk in (64, 8192))
    assert first.ids.tolist() == second.ids.tolist()
    if first.scores is not None:
        assert first.scores.tobytes() == second.scores.tobytes()


def diverged(where: str) -> torch.nn.Module:
    """A student whose training has diverged: weights are not a number, or so large that logits are infinite."""
    broken = build_model("lenet5", (1, 28, 28), 10, seed=1)
    with torch.no_grad():
        if where == "all":
            for weights in broken.parameters():
                weights.fill_(float("nan"))
        elif where == "head":  # the features are finite
            head(broken).bias.fill_(float("nan"))
        elif where == "class":  # one of ten
            head(broken).bias[3] = float("nan")
        else:
            head(broken).weight.fill_(3e38)
    return broken


@pytest.mark.parametrize("where", ["all", "head", "class", "infinite"])
@pytest.mark.parametrize("settings", [EXHAUSTIVE, GUESSING], ids=["exhaustive", "guessing"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_student_that_has_diverged_chooses_nothing(strategy, settings, where, pool):
    if not STRATEGIES[strategy].asks:
        assert len(choose(strategy, pool, 5, diverged(where), settings=settings).ids) == 5
        return
    with pytest.raises(
        DivergedError, match=r"the student's output for (candidate|image) \d+ is not a number: .*student\.lr"
    ) as error:
        choose(strategy, pool, 5, diverged(where), settings=settings)
    assert error.value.repeats


@pytest.mark.parametrize("where", ["all", "head", "class", "infinite"])
@pytest.mark.parametrize("strategy", ON_IMAGES)
def test_nor_among_real_images(strategy, where, images):
    if not STRATEGIES[strategy].asks:
        assert len(choose(strategy, images, 5, diverged(where)).ids) == 5
        return
    with pytest.raises(ScoringError, match=r"the student's output for candidate \d+ is not a number: .*student\.lr"):
        choose(strategy, images, 5, diverged(where))


@pytest.mark.parametrize("gain", ["margin", "confidence", "entropy"])
@pytest.mark.parametrize("strategy", ["rad", "rad-pairs"])
def test_rad_without_a_list_of_gains_refuses_it_too(strategy, gain, pool, monkeypatch):
    monkeypatch.setattr("kdray.select.strategies.rad.MOST_LISTED", 10)
    with pytest.raises(ScoringError, match=r"the student's output for candidate \d+ is not a number"):
        choose(strategy, pool, 5, diverged("class"), gain=gain)


class BlackIsNan(torch.nn.Module):
    """Diverged for black images alone. It has a last layer, as features want one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(28 * 28, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1).float()
        return self.layer(torch.where(x.sum(dim=1, keepdim=True) == 0, float("nan"), x))


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (SourceLogitsRequest(), "image 9"),
        (FeaturesRequest(ids=np.array([3, 9, 20])), "candidate 9"),
        (FeaturesRequest(images=torch.cat([pictures(5), pictures(1) * 0])), "labelled image 5"),
        (ScoresRequest(ids=np.array([3, 20, 9])), "candidate 9"),
        (PredictionsRequest(ids=np.array([3, 20, 9])), "candidate 9"),
        (BestRequest(groups=np.array([3, 9, 20])), "candidate 9"),
        (GainsRequest(), "candidate 9"),
        (BinnedRequest(gains=GainsRequest(score="entropy")), "candidate 9"),
        (SearchRequest(k=3), "candidate 9"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_every_request_names_what_the_student_gives_nothing_finite_for(request_, named, chunk):
    pixels = pictures(30)
    pixels[9] = 0
    with pytest.raises(ScoringError, match=f"^the student's output for {named} is not a number"):
        LocalSearcher(chunk).search(ImagePool(pixels), BlackIsNan(), request_)


def test_a_class_that_a_student_rules_out_is_no_divergence(pool, images):
    """Its logit is minus infinity, and its probability 0."""
    model = build_model("lenet5", (1, 28, 28), 10, seed=1)
    with torch.no_grad():
        head(model).bias[3] = -float("inf")
    for strategy in STRATEGIES:
        assert len(choose(strategy, pool, 5, model).ids) == 5
        assert strategy not in ON_IMAGES or len(choose(strategy, images, 5, model).ids) == 5


@pytest.mark.parametrize("strategy", ["random", "uniform", "rad", "rad-pairs", "unixkd"])
def test_another_seed_draws_others(strategy, pool, model):
    first, second = (choose(strategy, pool, 40, model, seed=seed).ids for seed in (1, 2))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("strategy", PAIRS_ONCE)
def test_at_most_one_candidate_a_pair_also_over_rounds(strategy, pool, model):
    first = choose(strategy, pool, 60, model).ids
    second = choose(strategy, pool, 60, model, taken=first).ids
    groups = np.concatenate([first, second]) // len(LAMBDAS)
    assert len(set(groups.tolist())) == 120


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_the_plan_says_a_choice_takes_is_what_it_takes(strategy, pool, images, model):
    for of in (pool, images) if strategy in ON_IMAGES else (pool,):
        chosen = choose(strategy, of, 30, model)
        took = 0 if chosen.search is None else chosen.search.facts()["passes"]
        assert took == named(strategy).passes(of, 30, EXHAUSTIVE)


def probabilities(pool, model) -> np.ndarray:
    """Of every candidate, [pairs, λ, classes]."""
    with torch.inference_mode():
        logits = model(pool.render(torch.arange(len(pool))))
    return logits.softmax(dim=1).numpy().reshape(pool.num_groups, pool.group_size, -1)


def test_margin_and_entropy_are_the_extremes_of_each_pair(pool, model):
    probs = probabilities(pool, model)
    top = np.sort(probs, axis=2)
    margins = (top[..., -1] - top[..., -2]).min(axis=1)
    entropies = entr(probs).sum(axis=2).max(axis=1)
    by_margin, by_entropy = (choose(name, pool, 25, model).ids // 5 for name in ("margin", "entropy"))
    assert set(by_margin.tolist()) == set(np.argsort(margins)[:25].tolist())
    assert set(by_entropy.tolist()) == set(np.argsort(-entropies)[:25].tolist())


def test_cluster_margin_takes_of_the_smallest_margins(pool, model, monkeypatch):
    monkeypatch.setattr("kdray.select.strategies.cluster_margin.BUCKET", 30)
    top = np.sort(probabilities(pool, model), axis=2)
    margins = top[..., -1] - top[..., -2]
    chosen = choose("cluster-margin", pool, 20, model)
    assert set((chosen.ids // 5).tolist()) <= set(np.argsort(margins.min(axis=1))[:25].tolist())
    assert (margins[chosen.ids // 5, chosen.ids % 5] <= margins[chosen.ids // 5].min(axis=1) + 1e-5).all()
    assert np.abs(chosen.scores - margins[chosen.ids // 5, chosen.ids % 5]).max() < 1e-5
    assert chosen.search.facts()["passes"] == len(pool) + 30  # those 30 are clustered: the plan says so, too
    assert named("cluster-margin").passes(pool, 20, EXHAUSTIVE) == len(pool) + 30


def test_cluster_margin_looks_at_a_sample_of_many_pairs_and_at_all_of_many_images(pool, images, model, monkeypatch):
    monkeypatch.setattr("kdray.select.sample._MOST", 50)
    monkeypatch.setattr("kdray.select.strategies.cluster_margin.BUCKET", 10)
    of_pairs, of_images = (choose("cluster-margin", of, 4, model).search.facts()["passes"] for of in (pool, images))
    assert pool.num_groups > 50 and len(images) > 50
    assert of_pairs == 50 * len(LAMBDAS) + 10 and of_images == len(images) + 10
    more = choose("cluster-margin", pool, 8, model).search.facts()["passes"]
    assert more == 80 * len(LAMBDAS) + 10  # ten for each that is chosen
    first, second = (choose("cluster-margin", pool, 4, model, seed=seed).ids.tolist() for seed in (1, 2))
    assert first != second, "another sample"


@pytest.mark.parametrize("strategy", ["cluster-margin", "coreset"])
def test_who_looks_at_all_that_is_left_says_so_in_every_round(strategy, pool, images, model, monkeypatch):
    for of in (pool, images):
        first = choose(strategy, of, 20, model)
        second = choose(strategy, of, 20, model, taken=first.ids)
        for chosen in (first, second):
            facts = chosen.search.facts()
            assert facts["passes"] == facts["exhaustive"]
    monkeypatch.setattr("kdray.select.sample._MOST", 50)
    facts = choose(strategy, pool, 4, model).search.facts()
    assert facts["passes"] < facts["exhaustive"]


def test_vanilla_takes_several_of_a_pair_and_its_scores_are_the_lowest_of_all(pool, model):
    vanilla, active = choose("vanilla", pool, 60, model), choose("active-mixup", pool, 60, model)
    assert len(set((vanilla.ids // len(LAMBDAS)).tolist())) < 60
    assert vanilla.scores.max() <= active.scores.max()
    assert vanilla.scores.min() == active.scores.min()


def test_random_mixes_with_one_half(pool, model):
    chosen = choose("random", pool, 40, model)
    assert set((chosen.ids % len(LAMBDAS)).tolist()) == {LAMBDAS.index(0.5)}
    assert chosen.scores is None and chosen.search is None


# Choices for a smaller budget

PREFIX = [name for name, strategy in STRATEGIES.items() if strategy.prefix]
FEW = (0, 1, 20, 59)


@pytest.mark.parametrize("strategy", PREFIX)
def test_who_says_so_chooses_the_first_k_of_what_it_chooses_of_more(strategy, pool, images, model):
    for of in (pool, images):
        for taken in ([], choose("random", of, 30, model).ids.tolist()):
            *fewer, more = (choose(strategy, of, k, model, taken=taken, seed=7).ids.tolist() for k in (*FEW, 60))
            assert fewer == [more[:k] for k in FEW]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - set(PREFIX)))
def test_of_the_others_none_could_say_so(strategy, pool, model):
    fewer, more = (choose(strategy, pool, k, model, seed=7).ids.tolist() for k in (20, 40))
    assert fewer != more[:20]
    assert not set(fewer) <= set(more), "and no other order would help"


@pytest.mark.storm
@pytest.mark.parametrize(
    "strategy", ["margin", *(pytest.param(name, marks=pytest.mark.long) for name in ("active-mixup", "entropy"))]
)
def test_a_search_by_guesses_may_find_with_a_longer_list_what_it_missed_with_a_shorter_one(strategy, model):
    """So the strategies of lowest score say "if every candidate is scored"."""
    wide = MixupPool(pictures(60), np.linspace(0.3, 0.7, 11).round(2).tolist())
    settings = SearchSettings(search="interpolated", keep=1.0, min_recall=0.0, audit=0.0)
    fewer, more = (choose(strategy, wide, k, model, settings=settings).ids.tolist() for k in (50, 400))
    assert fewer != more[:50]
    fewer, more = (choose(strategy, wide, k, model).ids.tolist() for k in (50, 400))
    assert fewer == more[:50]


def test_coreset_draws_a_larger_sample_for_more_than_a_tenth_of_it(pool, model, monkeypatch):
    monkeypatch.setattr("kdray.select.sample._MOST", 80)
    five, eight, ten = (choose("coreset", pool, k, model).ids.tolist() for k in (5, 8, 10))
    assert five == eight[:5]  # of the same 80 groups
    assert eight != ten[:8]  # ten are chosen of 100


# RAD


@pytest.mark.parametrize(
    "gain", ["entropy", *(pytest.param(k, marks=pytest.mark.storm) for k in ("margin", "confidence"))]
)
@pytest.mark.parametrize("runs", [100, pytest.param(400, marks=[pytest.mark.storm, pytest.mark.long])])
def test_rad_pairs_draws_with_the_probabilities_of_corollary_1_and_takes_the_best_lambda(gain, runs, pool, model):
    probs = probabilities(pool, model)
    top = np.sort(probs, axis=2)
    gains = {
        "margin": 1 - (top[..., -1] - top[..., -2]),
        "confidence": 1 - top[..., -1],
        "entropy": entr(probs).sum(axis=2),
    }[gain]
    want = 10 * distribution(gains.max(axis=1), 12, 0.7)
    assert want.max() <= 1
    drawn = np.zeros(pool.num_groups)
    found = asking_once(pool, model)
    for seed in range(runs):
        task = Task(
            pool=pool,
            k=10,
            taken=np.empty(0, np.int64),
            generator=np.random.default_rng(seed),
            ask=found,
        )
        ids = select(named("rad-pairs", gain=gain, w=0.7, m=12), task).ids
        drawn[ids // 5] += 1
        assert (gains[ids // 5, ids % 5] >= gains[ids // 5].max(axis=1) - 1e-5).all()
    assert np.abs(drawn / runs - want).max() < 5 * np.sqrt(want.max() / runs)
    assert drawn[want == 0].sum() == 0


def asking_once(pool, model):
    """Asks once for what hundreds of draws want to know."""
    searcher, known = LocalSearcher(64, settings=EXHAUSTIVE, options=PIXELS), {}

    def ask(request):
        key = type(request), getattr(request, "groups", np.empty(0)).tobytes()
        if key not in known:
            known[key] = searcher.search(pool, model, request)
        return known[key]

    return ask


def test_rad_says_what_it_was_told_and_from_how_many_it_drew(pool, model):
    facts = choose("rad-pairs", pool, 20, model, m=0.25, gain="entropy").search.facts()
    assert (facts["rad_m"], facts["rad_n"], facts["rad_w"]) == (30.0, 120, 0.75)
    assert 20 <= facts["rad_support"] <= 120
    assert facts["passes"] == 120 * 5 + 20 * 5


def test_rad_with_a_teacher_that_never_errs_takes_the_largest_gains(pool, model):
    """m = 0: any distribution over the k largest gains is optimal with k draws, and all of them are certain."""
    drawn = choose("rad-pairs", pool, 30, model, m=0)
    strict = choose("margin", pool, 30, model)
    assert set(drawn.ids.tolist()) == set(strict.ids.tolist())


def test_rad_draws_fewer_where_chances_would_pass_1_if_told_to(pool, model):
    fields = {"m": 1, "w": 1.0, "gain": "confidence"}
    searcher = LocalSearcher(64, settings=EXHAUSTIVE, options=PIXELS)
    searched = searcher.search(pool, model, GainsRequest(score="confidence"))
    most = int(1 / distribution(searched.gains, 1, 1.0).max() + 1e-9)
    assert 1 <= most < 60
    shrunk = choose("rad-pairs", pool, 60, model, clip="shrink", **fields)
    assert len(shrunk.ids) == most and shrunk.fewer
    assert len(choose("rad-pairs", pool, 60, model, **fields).ids) == 60
    enough = choose("rad-pairs", pool, 1, model, clip="shrink", **fields)
    assert len(enough.ids) == 1 and not enough.fewer


def test_rad_counts_m_among_those_that_are_left(pool, model):
    taken = choose("rad-pairs", pool, 100, model).ids
    facts = choose("rad-pairs", pool, 5, model, taken=taken, m=0.5).search.facts()
    assert (facts["rad_n"], facts["rad_m"]) == (20, 10.0)


def test_rad_goes_by_the_estimate_where_one_was_made_and_by_the_usual_share_where_it_failed(pool, model):
    facts = choose("rad-pairs", pool, 20, model, m="estimate", mistakes=Mistakes(share=0.25)).search.facts()
    assert (facts["rad_m"], facts["rad_w"]) == (30.0, 0.75)
    assert choose("rad-pairs", pool, 20, model, m="estimate").search.facts()["rad_m"] == 0.05 * 120


@pytest.mark.parametrize(
    ("strategy", "gain"),
    [
        ("rad-pairs", "margin"),
        pytest.param("rad", "confidence", marks=pytest.mark.storm),
        pytest.param("rad", "margin", marks=pytest.mark.storm),
        pytest.param("rad", "entropy", marks=pytest.mark.storm),
        pytest.param("rad-pairs", "confidence", marks=pytest.mark.storm),
        pytest.param("rad-pairs", "entropy", marks=pytest.mark.storm),
    ],
)
def test_rad_by_guesses_asks_less_and_scores_what_it_draws_exactly(strategy, gain, model):
    wide = MixupPool(pictures(60), np.linspace(0.3, 0.7, 11).round(2).tolist())
    whole, guessed = (
        choose(strategy, wide, 40, model, gain=gain, settings=settings, m=0.2) for settings in (EXHAUSTIVE, GUESSING)
    )
    assert guessed.search.facts()["passes"] < 0.5 * whole.search.facts()["passes"]
    assert guessed.search.facts()["passes"] == named(strategy, gain=gain).passes(wide, 40, GUESSING)
    assert 0 < guessed.search.facts()["guess_error"] < 0.1 and "guess_error" not in whole.search.facts()
    searcher = LocalSearcher(512, settings=EXHAUSTIVE, options=PIXELS)
    exact = searcher.search(wide, model, ScoresRequest(ids=guessed.ids, score=gain)).rows[:, 0]
    np.testing.assert_allclose(guessed.scores, exact, atol=1e-5)
    if strategy == "rad-pairs":
        found = searcher.search(wide, model, SearchRequest(k=wide.num_groups, score=gain))
        best = dict(zip((found.ids // 11).tolist(), found.ids.tolist(), strict=True))
        assert [best[number // 11] for number in guessed.ids.tolist()] == guessed.ids.tolist()


def test_guessed_gains_of_candidates_are_near_the_exact_ones_and_leave_out_the_taken(model):
    wide = MixupPool(pictures(60), np.linspace(0.3, 0.7, 11).round(2).tolist())
    taken = np.array([0, 5, 19_469])
    request = GainsRequest(per="candidate", taken=taken, score="confidence")
    exact, guessed = (
        LocalSearcher(512, settings=settings, options=PIXELS).search(wide, model, request, seed=3)
        for settings in (EXHAUSTIVE, GUESSING)
    )
    assert guessed.guessed and not exact.guessed
    assert len(guessed.gains) == len(exact.gains) == len(wide) - 3
    assert np.corrcoef(guessed.gains, exact.gains)[0, 1] > 0.95
    assert exact.numbers(np.array([0, 4, len(wide) - 4])).tolist() == [1, 6, 19_468]


# Sampling without listing


@given(st.integers(1, 60), st.data())
def test_sampling_without_listing_never_repeats_and_never_takes_the_taken(n, data):
    taken = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), dtype=np.int64)
    k = data.draw(st.integers(0, n - len(taken)))
    drawn = sample_without(n, k, taken, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == k
    assert not set(drawn.tolist()) & set(taken.tolist())
    assert all(0 <= number < n for number in drawn.tolist())
    with pytest.raises(PoolExhausted, match="are left"):
        sample_without(n, n - len(taken) + 1, taken, np.random.default_rng(0))


def test_sampling_is_uniform_over_what_is_free():
    rng = np.random.default_rng(0)
    counts = np.zeros(10)
    for _ in range(1500):
        counts[sample_without(10, 3, np.array([2, 3, 9]), rng)] += 1
    assert counts[[2, 3, 9]].sum() == 0
    free = counts[[0, 1, 4, 5, 6, 7, 8]] / 1500
    assert np.abs(free - 3 / 7).max() < 5 * np.sqrt(3 / 7 * 4 / 7 / 1500)


def test_sampling_from_billions_of_pairs():
    n = 80_000 * 79_999 // 2
    drawn = sample_without(n, 1000, np.arange(5), np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 1000
    assert drawn.max() > n // 2 and drawn.min() >= 5


@pytest.mark.parametrize("ids", [[7, 7, 3, 9], [7, 3, 9, 12]])
def test_a_strategy_of_the_users_own_that_chooses_one_twice_is_refused(ids):
    class Twice(type(strategies.parse("random"))):
        def choose(self, task: Task) -> Selection:
            return Selection(ids=np.array(ids))

    pool = ImagePool(torch.zeros(20, 1, 4, 4, dtype=torch.uint8))
    task = Task(pool=pool, k=4, taken=np.array([12]), generator=np.random.default_rng(0), ask=None)
    with pytest.raises(ScoringError, match="random chose a candidate twice, or one that was chosen before"):
        select(Twice(), task)
