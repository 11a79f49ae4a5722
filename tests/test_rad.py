"""RAD: its closed forms against linear programs, its draws against their probabilities."""

import itertools

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from kdray.select.rad.draw import chances, draw, most_draws
from kdray.select.rad.game import distribution, inclusion, optimal_value
from kdray.select.rounding import dependent_round, round_parts


def game(gains: np.ndarray, losses: np.ndarray, mistakes: float, draws: int, most: float | None) -> float:
    """The value of eq. 3 for `draws` of them by linear programming, no probability above `most`.

    The adversary takes the m largest of q_i (g_i + l_i); their sum is the minimum over t of m t + sum (q a - t)+.
    """
    n, sums = len(gains), gains + losses
    found = linprog(
        np.concatenate([-gains, [mistakes], np.ones(n)]),
        A_ub=np.hstack([np.diag(sums), -np.ones((n, 1)), -np.eye(n)]),
        b_ub=np.zeros(n),
        A_eq=[[1.0] * n + [0.0] * (n + 1)],
        b_eq=[draws],
        bounds=[(0, most)] * n + [(None, None)] + [(0, None)] * n,
        method="highs",
    )
    assert found.status == 0
    return -found.fun


def worst(q: np.ndarray, gains: np.ndarray, losses: np.ndarray, mistakes: float) -> float:
    """What `q` gains against the worst adversary."""
    lost = np.sort(q * (gains + losses))[::-1]
    whole = int(mistakes)
    part = (mistakes - whole) * lost[whole] if whole < len(lost) else 0.0
    return float(q @ gains - lost[:whole].sum() - part)


def games(many: int):
    """So many among the long storms, 300 in every test run."""
    return pytest.mark.parametrize("count", [300, pytest.param(many, marks=[pytest.mark.storm, pytest.mark.long])])


def cases(seed: int, count: int, most: int = 10):
    """Random gains, some with ties and zeros, and whole and broken numbers of mistakes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        n = int(rng.integers(1, most + 1))
        gains = rng.random(n) if rng.random() < 0.7 else rng.integers(0, 5, n) / 4
        mistakes = rng.random() * n if rng.random() < 0.5 else float(rng.integers(0, n + 1))
        yield rng, gains, mistakes


@games(1500)
def test_the_distribution_is_the_optimum_of_the_relative_game(count: int) -> None:
    """Corollary 1, eq. 4."""
    for rng, gains, mistakes in cases(0, count):
        w = None if rng.random() < 0.3 else rng.random()
        losses = gains * (1 - mistakes / len(gains) if w is None else w)
        p, best = distribution(gains, mistakes, w), game(gains, losses, mistakes, 1, None)
        assert p.min() >= 0 and p.sum() == pytest.approx(1, abs=1e-12)
        assert optimal_value(gains, mistakes, w) == pytest.approx(best, abs=1e-7)
        assert worst(p, gains, losses, mistakes) == pytest.approx(best, abs=1e-7)


@games(1500)
def test_the_distribution_is_the_optimum_with_losses_of_any_kind(count: int) -> None:
    """Theorem 1, eq. 3."""
    for rng, gains, mistakes in cases(1, count):
        losses = rng.random(len(gains)) * 2 if rng.random() < 0.7 else rng.integers(0, 3, len(gains)) / 2
        p, best = distribution(gains, mistakes, losses=losses), game(gains, losses, mistakes, 1, None)
        assert p.min() >= 0 and p.sum() == pytest.approx(1, abs=1e-12)
        assert optimal_value(gains, mistakes, losses=losses) == pytest.approx(best, abs=1e-7)
        assert worst(p, gains, losses, mistakes) == pytest.approx(best, abs=1e-7)


@games(2000)
def test_several_draws_are_the_optimum_of_the_same_game_with_no_probability_above_one(count: int) -> None:
    for rng, gains, mistakes in cases(2, count, 12):
        draws, w = int(rng.integers(0, len(gains) + 1)), rng.random()
        q = inclusion(gains, draws, mistakes, w)
        assert q.min() >= 0 and q.max() <= 1 and q.sum() == pytest.approx(draws, abs=1e-9)
        best = game(gains, w * gains, mistakes, draws, 1.0)
        assert worst(q, gains, w * gains, mistakes) == pytest.approx(best, abs=1e-7)


def test_by_hand() -> None:
    # 1/g: 1, 2, 4. (k - 1.5) / H: -0.5, 0.5/3, 1.5/7 for w = 0.5, m = 1: all three, in the shares 1 : 2 : 4.
    gains = np.array([1.0, 0.5, 0.25])
    assert distribution(gains, 1, 0.5) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert optimal_value(gains, 1, 0.5) == pytest.approx(1.5 / 7)
    # the order of the input is nothing
    assert distribution(gains[[2, 0, 1]], 1, 0.5) == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    # w is 1 - m / n
    assert distribution(gains, 1) == pytest.approx(distribution(gains, 1, 2 / 3))
    # two draws: 8/7 is above 1
    assert inclusion(gains, 2, 1, 0.5) == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_nothing_is_clipped_where_many_are_in() -> None:
    """Section 3.3: q = min(b p, 1)."""
    gains = np.random.default_rng(0).random(5000)
    p = distribution(gains, 250)
    assert inclusion(gains, 400, 250) == pytest.approx(400 * p, abs=1e-12)


@pytest.mark.parametrize(
    ("gains", "mistakes", "expected"),
    [
        ([0.2, 0.9, 0.9], 0, [0, 0.5, 0.5]),  # a teacher that never errs: the largest gains, alike
        ([0.5, 0.5], 2, [0.5, 0.5]),  # one that always errs, w = 0: nothing to lose
        ([0.0, 0.0], 1, [0.5, 0.5]),
        ([0.7], 0, [1.0]),
    ],
)
def test_extremes(gains: list[float], mistakes: float, expected: list[float]) -> None:
    assert distribution(np.array(gains), mistakes) == pytest.approx(expected)


def test_a_game_that_is_lost_loses_the_least() -> None:
    """(1 + w) m >= n."""
    gains = np.array([0.8, 0.4, 0.2])
    assert distribution(gains, 3, 1.0) == pytest.approx([0, 0, 1])
    assert optimal_value(gains, 3, 1.0) == pytest.approx(-0.2)


@examples(200)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=30), st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 50))
def test_scale_and_order_of_gains_do_not_matter(gains: list[float], share: float, w: float, scale: float) -> None:
    gains, mistakes = np.array(gains), share * len(gains)
    order = np.random.default_rng(0).permutation(len(gains))
    p = distribution(gains, mistakes, w)
    assert distribution(gains[order], mistakes, w) == pytest.approx(p[order], abs=1e-9)
    value = optimal_value(gains, mistakes, w)
    assert optimal_value(scale * gains, mistakes, w) == pytest.approx(scale * value, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0.5, np.nan], 1), "finite"),
        (([0.5, -0.1], 1), "not negative"),
        (([], 0), "at least one"),
        (([0.5, 0.1], 3), r"mistakes must lie in \[0, 2\]"),
        (([0.5, 0.1], 1, 1.5), r"w must lie in \[0, 1\], got 1.5"),
        (([0.5, 0.1], 1, 0.5, [1.0, 1.0]), "w or losses, not both"),
        (([0.5, 0.1], 1, None, [1.0]), "as many as gains"),
    ],
)
def test_refusals(arguments: tuple, says: str) -> None:
    for function in (distribution, optimal_value):
        with pytest.raises(ValueError, match=says):
            function(*arguments)


def test_a_draw_among_many_refuses_the_same() -> None:
    for arguments, says in [((1, 3, None), "mistakes"), ((1, 1, -0.1), "w must"), ((3, 1, None), "draws")]:
        with pytest.raises(ValueError, match=says):
            draw(np.array([0.5, 0.5]), *arguments, np.random.default_rng(0))
    with pytest.raises(ValueError, match="finite"):
        draw(np.array([0.5, np.nan]), 1, 1, None, np.random.default_rng(0))


def test_draws_above_the_pool_are_refused() -> None:
    with pytest.raises(ValueError, match=r"draws must lie in \[0, 2\]"):
        inclusion(np.array([0.5, 0.5]), 3, 1)
    with pytest.raises(ValueError, match=r"draws must lie in \[0, 2\]"):
        draw(np.array([0.5, 0.5]), 3, 1, None, np.random.default_rng(0))


# --- rounding


@examples(300)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 2**32))
def test_exactly_as_many_as_the_probabilities_say(weights: list[float], seed: int) -> None:
    probs = np.array(weights)
    probs = np.append(probs, np.ceil(probs.sum()) - probs.sum())
    drawn = dependent_round(probs, np.random.default_rng(seed))
    assert len(drawn) == round(probs.sum()) and (np.diff(drawn) > 0).all()
    assert (probs[drawn] > 0).all()
    assert set(np.flatnonzero(probs == 1.0)) <= set(drawn.tolist())
    again = dependent_round(probs, np.random.default_rng(seed))
    assert np.array_equal(drawn, again)


@pytest.mark.parametrize("times", [4000, pytest.param(20_000, marks=[pytest.mark.storm, pytest.mark.long])])
def test_marginals_and_pairs_over_many_draws(times: int) -> None:
    probs = np.array([0.5, 0.25, 0.75, 0.9, 0.6, 1.0, 0.0, 0.3, 0.7, 0.05, 0.95])
    generator = np.random.default_rng(3)
    drawn = np.zeros((times, len(probs)))
    for row in drawn:
        row[dependent_round(probs, generator)] = 1
    error = np.sqrt(probs * (1 - probs) / times)
    assert (abs(drawn.mean(axis=0) - probs) <= 4.5 * error).all()
    for i, j in itertools.combinations(range(len(probs)), 2):  # both at once: never more often than if independent
        assert (drawn[:, i] * drawn[:, j]).mean() <= probs[i] * probs[j] + 4.5 * 0.5 / np.sqrt(times)


def test_parts_of_any_length() -> None:
    """What parts leave over is rounded with what others leave over."""
    probs = np.full(1001, 0.1)
    probs[-1] = 0.0
    cuts = [0, 1, 4, 500, 500, 1001]
    parts = [(np.arange(a, b), probs[a:b]) for a, b in itertools.pairwise(cuts)]
    times, generator = 2000, np.random.default_rng(0)
    drawn = np.zeros(len(probs))
    for _ in range(times):
        ids = round_parts(parts, generator)
        assert len(ids) == 100
        drawn[ids] += 1
    assert drawn[-1] == 0
    assert abs(drawn[:-1] / times - 0.1).max() < 5 * np.sqrt(0.09 / times)


@pytest.mark.parametrize(
    ("probs", "says"),
    [
        ([0.5, 0.6], "sum to a whole number"),
        ([1.5, 0.5], r"\[0, 1\]"),
        ([np.nan], r"\[0, 1\]"),
        ([[0.5, 0.5]], "shape"),
    ],
)
def test_what_cannot_be_rounded_is_refused(probs: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dependent_round(np.array(probs), np.random.default_rng(0))


def test_nothing_to_round() -> None:
    assert dependent_round(np.empty(0), np.random.default_rng(0)).tolist() == []
    assert dependent_round(np.zeros(3), np.random.default_rng(0)).tolist() == []


# --- many at once


@pytest.mark.parametrize("kind", ["uniform", "ties", "near one", "small", "zeros"])
@pytest.mark.parametrize(("share", "w"), [(0.05, None), (0.0, None), (0.3, 0.0), (0.3, 1.0), (0.9, 1.0)])
def test_a_draw_among_many_has_the_probabilities_of_the_sorted_form(kind: str, share: float, w: float | None) -> None:
    rng = np.random.default_rng(5)
    gains = {
        "uniform": rng.random(3000),
        "ties": rng.integers(1, 6, 3000) / 5,
        "near one": 1 - 1e-4 * rng.random(3000),
        "small": 1e-6 * rng.random(3000),
        "zeros": rng.random(3000) * (rng.random(3000) < 0.7),
    }[kind].astype(np.float32)
    mistakes = share * len(gains)
    for draws in (0, 1, 40, 2900, 3000):
        ids = draw(gains, draws, mistakes, w, np.random.default_rng(1))
        assert len(ids) == draws and len(set(ids.tolist())) == draws
        q = inclusion(gains, draws, mistakes, w)
        given = np.zeros(len(gains))
        for some, probs in chances(gains, draws, mistakes, w):
            given[some] = probs
        assert given == pytest.approx(q, abs=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "seldom seen", "never seen", "ties", "one value", "sorted", "zeros"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.49, 0.9])
def test_no_order_of_the_gains_hides_the_root_from_the_sample(kind: str, share: float) -> None:
    """More gains than the sample holds: every third is in it."""
    rng = np.random.default_rng(2)
    gains = rng.random(200_000)
    gains = {
        "uniform": gains,
        "seldom seen": np.where(np.arange(200_000) % 3 == 0, 1e-3 * gains, gains),
        "never seen": np.where(np.arange(200_000) % 3 == 0, 0.0, 0.5 + gains / 2),
        "ties": (gains * 7).round() / 7,
        "one value": np.full(200_000, 0.3),
        "sorted": np.sort(gains),
        "zeros": np.where(gains < 0.999, 0.0, gains),
    }[kind].astype(np.float32)
    for w in (0.0, 1.0):
        q = inclusion(gains, 1000, share * 200_000, w)
        given = np.zeros(200_000)
        for some, probs in chances(gains, 1000, share * 200_000, w):
            given[some] = probs
        np.testing.assert_allclose(given, q, rtol=1e-6, atol=1e-12)
        drawn = draw(gains, 1000, share * 200_000, w, np.random.default_rng(0))
        assert len(set(drawn.tolist())) == 1000 and (q[drawn] > 0).all()


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0])
def test_chances_of_many_sum_to_the_draws_where_a_few_gains_are_much_larger(scale: float) -> None:
    rng = np.random.default_rng(3)
    gains = (scale * rng.random(1_000_000)).astype(np.float32)
    gains[rng.random(1_000_000) < 0.01] = 1.0
    total = sum(float(probs.sum()) for _, probs in chances(gains, 20_000, 50_000.0, None))
    assert total == pytest.approx(20_000, abs=1e-6)


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
def test_one_bad_gain_of_many_is_refused(bad: float) -> None:
    gains = np.full(200_000, 0.5, dtype=np.float32)
    gains[100_001] = bad
    with pytest.raises(ValueError, match="finite and not negative"):
        draw(gains, 10, 5.0, None, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("mistakes", "w"), [(0, None), (3, 0.5), (40, 1.0), (55, 1.0), (60, 0.8), (75, 1.0), (80, None), (100, 1.0)]
)
def test_the_most_draws_are_those_that_leave_no_chance_above_one(mistakes: int, w: float | None) -> None:
    gains = np.random.default_rng(4).random(100).astype(np.float32)
    p = distribution(gains, mistakes, w)
    assert most_draws(gains, mistakes, w) == int(1 / p.max() + 1e-6)


@pytest.mark.parametrize("gain", np.linspace(0.01, 1, 60, dtype=np.float32).tolist())
def test_as_many_draws_as_there_are_of_one_gain(gain: float) -> None:
    """All of them are certain, and no rounding makes more than that of it."""
    gains = np.full(97, gain, dtype=np.float32)
    gains[50:] = gain / 2
    assert draw(gains, 50, 0, None, np.random.default_rng(0)).tolist() == list(range(50))
