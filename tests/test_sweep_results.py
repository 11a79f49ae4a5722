"""What the trials of a sweep measured, and which is best."""

import math
from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sweep_trials import after, trial

from kdray.observers.base import RoundMetrics
from kdray.sweeps.results import METRICS, Trial, beaten, best_trial, lead, pareto_front, scope
from kdray.sweeps.shown import figure_text, is_number, ordered, short_text, swept_keys, value_text, varied_keys


def test_a_figure_is_the_mean_over_the_seeds_with_its_standard_error():
    (measured,) = trial("a", (0.8, 0.9, 1.0)).measured("student_accuracy")
    assert measured.mean == pytest.approx(0.9) and measured.seeds == 3
    assert measured.error == pytest.approx(0.1 / math.sqrt(3))  # standard deviation 0.1, with n - 1
    assert trial("a", (0.8,)).last("student_accuracy").error is None


def test_only_rounds_that_all_seeds_have_finished_count():
    first = [after(0, 0.5, paid=10, reused=5), after(1, 0.7, paid=18, reused=2), after(2, 0.9, paid=30)]
    second = [after(0, 0.7, paid=15), after(1, 0.9, paid=25)]
    both = Trial(name="a", values={}, state="running", cause="", seeds=(3, 4), histories=[first, second])
    rounds = both.measured("student_accuracy")
    assert [(r.round, r.asked) for r in rounds] == [(0, 15.0), (1, 25.0)]  # paid and reused so far, the mean of both
    assert [r.mean for r in rounds] == pytest.approx([0.6, 0.8])
    assert both.last("student_accuracy") == rounds[-1] and both.rounds == 2
    assert (both.bought, both.saved, both.asked) == (30 + 25, 5 + 2, 62)


def test_queries_for_an_estimate_are_bought_too():
    history = [after(0, 0.5, paid=10), after(1, 0.6, paid=20, estimate_queries=4)]
    told = Trial(name="a", values={}, state="finished", cause="", seeds=(0,), histories=[history])
    assert told.bought == 24 and told.last("student_accuracy").asked == 24


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_figure_that_a_seed_did_not_measure_is_none_and_never_best(missing):
    broken, whole = trial("a", (0.99, missing)), trial("b", (0.1, 0.2))
    assert broken.measured("student_accuracy") == [] and broken.last("student_accuracy") is None
    for mode in ("max", "min"):
        assert best_trial([broken, whole], "student_accuracy", mode) is whole
        assert best_trial([broken], "student_accuracy", mode) is None


def test_a_figure_of_an_earlier_round_does_not_stand_for_the_last():
    history = [after(0, 0.9), after(1, math.nan)]
    late = Trial(name="a", values={}, state="finished", cause="", seeds=(0,), histories=[history])
    assert len(late.measured("student_accuracy")) == 1 and late.last("student_accuracy") is None


@pytest.mark.parametrize("state", ["waiting", "running", "stopped", "failed"])
def test_what_is_not_finished_is_never_best(state):
    good, plain = trial("a", (0.99,), state=state), trial("b", (0.5,))
    assert best_trial([good, plain], "student_accuracy", "max") is plain
    assert best_trial([good], "student_accuracy", "max") is None


def test_of_equals_the_best_asked_least_and_then_has_the_first_name():
    dear, cheap = trial("a", (0.9,), paid=200), trial("b", (0.9,), paid=50, reused=100)
    assert best_trial([dear, cheap], "student_accuracy", "max") is cheap
    twins = [trial("c", (0.9,)), trial("b", (0.9,))]
    assert best_trial(twins, "student_accuracy", "max") is twins[1]
    assert best_trial([dear, trial("z", (0.2,))], "student_accuracy", "min").name == "z"


def test_no_trial_and_trials_without_rounds():
    waiting = trial("a", state="waiting")
    assert (waiting.bought, waiting.saved, waiting.asked, waiting.rounds) == (0, 0, 0, 0)
    assert waiting.last("loss") is None and best_trial([], "loss", "min") is None
    assert scope([], "loss", "min") == "lowest loss after the last round, among 0 finished of 0 trials"


def test_the_scope_says_among_which_trials_the_best_was_found():
    trials = [trial("a", (0.9, 0.8)), trial("b", (0.9, 0.7)), trial("c", state="failed")]
    assert scope(trials, "student_accuracy", "max") == (
        "highest mean of student_accuracy over 2 seeds after the last round, among 2 finished of 3 trials"
    )
    assert scope(trials[:1], "student_accuracy", "min").endswith("among 1 finished of 1 trial")


def test_metrics_are_the_numbers_of_a_round():
    assert {"student_accuracy", "success_rate", "agreement", "loss"} <= set(METRICS)
    assert set(METRICS) <= {field.name for field in fields(RoundMetrics)}


def test_the_pareto_front_by_hand():
    a = Trial(
        name="a",
        values={},
        state="finished",
        cause="",
        seeds=(0,),
        histories=[[after(0, 0.5, paid=10), after(1, 0.8, paid=20), after(2, 0.8, paid=30)]],
    )
    b = Trial(
        name="b",
        values={},
        state="failed",
        cause="x",
        seeds=(0,),
        histories=[[after(0, 0.6, paid=10), after(1, 0.7, paid=25), after(2, 0.9, paid=40)]],
    )
    front = [(t.name, m.asked, m.mean) for t, m in pareto_front([a, b], "student_accuracy", "max")]
    assert front == [("b", 10, 0.6), ("a", 20, 0.8), ("b", 40, 0.9)]
    assert [(t.name, m.asked) for t, m in pareto_front([a, b], "student_accuracy", "min")] == [("a", 10)]
    assert pareto_front([], "student_accuracy", "max") == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12), st.sampled_from(["max", "min"]))
def test_the_pareto_front_is_what_nothing_beats(points, mode):
    trials = [trial(f"t{k:02d}", (share / 10,), paid=paid) for k, (paid, share) in enumerate(points)]
    better = (lambda x, y: x > y) if mode == "max" else (lambda x, y: x < y)
    wanted = {
        (paid, share / 10)
        for paid, share in points
        if not any((p < paid and not better(share, s)) or (p == paid and better(s, share)) for p, s in points)
    }
    found = [(m.asked, m.mean) for _, m in pareto_front(trials, "student_accuracy", mode)]
    assert set(found) == wanted and found == sorted(found) and len(set(found)) == len(found)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(_VALUES)
def test_a_value_is_one_line_that_a_config_reads_back(value):
    text = value_text(value)
    assert "\n" not in text and yaml.safe_load(text) == value
    assert len(short_text(value)) <= 32


def test_values_of_different_types_stay_apart():
    assert [value_text(v) for v in (1, "1", True, "true", None, "a  b")] == [
        "1",
        "'1'",
        "true",
        "'true'",
        "null",
        "a  b",
    ]
    assert value_text("\udcff") == "\\xff"
    assert value_text(object) == "<class 'object'>"
    assert ordered([0.5, "auto", 2, None, 0.1, 2]) == [0.1, 0.5, 2, "auto", None]
    assert [is_number(v) for v in (1, 0.5, True, None, "1", math.nan, 10**400)] == [True, True, *[False] * 5]


def test_keys_keep_the_order_in_which_they_appear():
    trials = [trial("a", b=1, a=2), trial("b", b=1, a=3, c=None)]
    assert swept_keys(trials) == ["b", "a", "c"]
    assert varied_keys(trials) == ["a"]  # c is None in one and missing in the other


def test_figures_in_words():
    assert figure_text("student_accuracy", 0.93421, 0.00214) == "93.42 ± 0.21 %"
    assert figure_text("agreement", 1.0) == "100.00 %"
    assert figure_text("loss", 0.123456, 0.01) == "0.1235 ± 0.01"
    assert figure_text("loss", None) == "–"
    assert figure_text("queries", 12345.5, 250.4) == "12,346 ± 250" and figure_text("queries", 40.0) == "40"


def test_the_best_trial_clearly_beats_what_it_leads_in_every_seed():
    best = trial("best", (0.90, 0.80, 0.70))
    near = trial("near", (0.89, 0.78, 0.71))  # leads of 1, 2 and -1 points: t = 0.76
    far = trial("far", (0.86, 0.76, 0.65))  # leads of 4, 4 and 5 points: t = 13
    copy = trial("copy", (0.90, 0.80, 0.70))
    steady = trial("steady", (0.875, 0.775, 0.675))  # the same lead in each
    trials = [best, near, far, copy, steady, trial("running", (0.1, 0.1, 0.1), state="running"), trial("none")]
    assert beaten(best, trials, "student_accuracy", "max") == [far, steady]
    assert lead(trials, "student_accuracy", "max") == (
        "clearly better than 2 of the other 4, by a paired t-test over the seeds at 5 %"
    )
    worst = trial("worst", (0.1, 0.1, 0.1))
    assert beaten(worst, [best, worst], "student_accuracy", "min") == [best]


@pytest.mark.parametrize("leads", [(0.021, 0.0, 0.022, 0.024), (0.021, 0.01, 0.022, 0.024), (-0.01, -0.02)])
def test_the_test_is_the_one_of_scipy(leads):
    from scipy.stats import ttest_rel

    ours = [0.9 - 0.05 * k for k in range(len(leads))]
    theirs = [value - lead for value, lead in zip(ours, leads, strict=True)]
    best, other = trial("a", tuple(ours)), trial("b", tuple(theirs))
    found = ttest_rel(ours, theirs)
    assert bool(beaten(best, [best, other], "student_accuracy", "max")) == (found.pvalue < 0.05 and found.statistic > 0)


def test_a_lead_over_one_seed_says_nothing():
    one = [trial("a", (0.9,)), trial("b", (0.1,))]
    assert lead(one, "student_accuracy", "max").startswith("with one seed a trial, a lead cannot be told from chance")
    assert lead(one[:1], "student_accuracy", "max") == lead([], "student_accuracy", "max") == ""
