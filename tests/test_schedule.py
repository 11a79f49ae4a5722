"""How a budget is divided among rounds, and that runs with several budgets share what they buy."""

import itertools
import re
import shutil

import pytest
from conftest import command, digits_config
from hypothesis import given
from hypothesis import strategies as st

from kdray.config.load import differences, dump_config, load_config, parse_config
from kdray.errors import ConfigError
from kdray.ledger import Ledger
from kdray.observers.base import Observer
from kdray.runs.directory import RunDirectory
from kdray.runs.pool_schedule import read_pool
from kdray.runs.result import read_result
from kdray.runs.run import resume, run
from kdray.select.base import strategies
from kdray.select.schedule import nested, until
from kdray.select.strategies.random import Random

# By hand


@pytest.mark.parametrize(
    ("budget", "images", "expected"),
    [
        (40, 40, [40]),
        (41, 40, [40, 1]),
        (79, 40, [40, 39]),
        (80, 40, [40, 40]),
        (81, 40, [40, 40, 1]),
        (160, 40, [40, 40, 80]),
        (320, 40, [40, 40, 80, 160]),
        (500, 40, [40, 40, 80, 160, 180]),
        (8, 1, [1, 1, 2, 4]),
        (2_000, 250, [250, 250, 500, 1_000]),
    ],
)
def test_nested_totals_double_from_round_0_on(budget, images, expected):
    assert nested(budget, images) == expected


@pytest.mark.parametrize(
    ("budget", "images", "expected"),
    [
        (100, 100, [100]),
        (101, 100, [100, 1]),
        (250, 100, [100, 150]),
        (400, 100, [100, 150, 150]),
        (500, 100, [100, 150, 250]),
        (2_000, 100, [100, 150, 250, 500, 1_000]),
        (2_300, 100, [100, 150, 250, 500, 1_000, 300]),
        (250, 0, [0, 250]),
        (500, 0, [0, 250, 250]),
    ],
)
def test_rounds_end_at_the_totals_given(budget, images, expected):
    assert until(budget, images, [250, 500, 1_000, 2_000]) == expected


totals = st.sets(st.integers(1, 5_000), min_size=1, max_size=8).map(sorted)
budgets = st.tuples(st.integers(0, 6_000), st.integers(1, 6_000))


@given(st.integers(0, 900), budgets, st.none() | totals)
def test_a_smaller_budget_has_the_first_rounds_of_a_larger_one(images, more, given_totals):
    budget, larger = images + more[0], images + more[0] + more[1]
    if given_totals is None:
        images = max(1, images)
        budget, larger = max(budget, images), max(larger, images + 1)
        small, large = nested(budget, images), nested(larger, images)
    else:
        given_totals = [images + total for total in given_totals]
        small, large = until(budget, images, given_totals), until(larger, images, given_totals)
    for queries, most in ((small, budget), (large, larger)):
        assert queries[0] == images and sum(queries) == most and min(queries[1:], default=1) >= 1
    ends, later_ends = (list(itertools.accumulate(queries)) for queries in (small, large))
    assert ends[:-1] == later_ends[: len(ends) - 1]
    assert len(ends) == 1 or ends[-1] <= later_ends[len(ends) - 1]  # the last round is a beginning of the same one
    assert small[:-1] == large[: len(small) - 1]


# Mistakes


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (
            lambda: nested(30, 40),
            "budget.queries: 30 queries do not pay for round 0, which asks for 40 images; raise budget.queries to "
            "at least 40, lower select.first, or give fewer images (images.count)",
        ),
        (
            lambda: nested(30, 0),
            "select.schedule: nested doubles the queries of round 0, and round 0 has none; set select.first to a "
            "number, or list the queries in all after each round, such as [250, 500, 1000]",
        ),
        (
            lambda: until(100, 40, [40, 80]),
            "select.schedule: 40 queries in all after a round, but round 0 asks 40 already; a total counts the queries "
            "of round 0 too: give totals above 40, or lower select.first",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(queries, message):
    with pytest.raises(ConfigError) as error:
        queries()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"schedule": [500, 250]}, "select.schedule: totals must ascend, and 250 follows 500: a total counts all"),
        ({"schedule": [250, 250]}, "select.schedule: totals must ascend, and 250 follows 250: a total counts all"),
        ({"schedule": "double"}, "select.schedule: input should be 'even', 'nested', or a list of totals such as"),
        ({"schedule": []}, "select.schedule: input should be 'even', 'nested', or a list of totals such as [250, 500]"),
        ({"schedule": None}, "select.schedule: input should be 'even', 'nested', or a list of totals such as"),
        ({"schedule": [0, 5]}, "select.schedule: a total is a whole number of queries, at least 1, got 0"),
        ({"schedule": [True]}, "select.schedule: a total is a whole number of queries, at least 1, got True"),
        ({"schedule": [2.5]}, "select.schedule: a total is a whole number of queries, at least 1, got 2.5"),
        ({"schedule": "nested", "rounds": 2}, "select.rounds is set, but with select.schedule = nested the rounds"),
        ({"schedule": "nested", "rounds": 0}, "select.rounds is set, but with select.schedule = nested the rounds"),
        ({"schedule": [50], "per_round": 5}, "select.per_round is set, but with select.schedule = [50] the rounds"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(select, message, tmp_path):
    data = digits_config(tmp_path / "teacher.safetensors") | {"select": select}
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    assert str(error.value).startswith(f"config: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": {"kind": "images"}}, "select.first: auto takes as many real images as the rounds divide the budget"),
        (
            {"pool": {"kind": "images"}, "labelled": {"source": "digits", "rows": "0:20", "size": 16}},
            "select.schedule: nested doubles the queries of round 0, and round 0 has none; set select.first",
        ),
        ({"budget": {"queries": 30}}, "budget.queries: 30 queries do not pay for round 0, which asks for 40"),
        (
            {"budget": {"queries": 900}},
            "budget.queries: 860 candidates are to be chosen after round 0, but the pool over 40 images has only 780",
        ),
    ],
)
def test_what_the_images_show_to_be_impossible_is_refused_before_anything_is_paid(changes, message, tmp_path):
    data = digits_config(tmp_path / "teacher.safetensors") | {"select": {"schedule": "nested"}} | changes
    with pytest.raises(ConfigError) as error:
        read_pool(parse_config(data))
    assert str(error.value).startswith(message)


AUTO, IMAGES = {"pool": {"kind": "auto"}}, {"pool": {"kind": "images"}}
REQUERY = {"student": {"labels": "requery", "augment": "affine"}}


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 820),  # 40 images, and one candidate of each of their 780 pairs
        (REQUERY, 1_600),  # as many copies besides
        (AUTO, 1_046),  # 302 for the trial, 76 of each kind at most, and the 704 that are left
        (AUTO | REQUERY, 1_874),  # 550 for the trial, 138 of a kind at most; half of the other 1,284 for copies
        (IMAGES | {"select": {"strategy": "margin", "rounds": 2}}, 40),
        (IMAGES | REQUERY | {"select": {"strategy": "margin", "rounds": 1}}, 54),  # 27 + 13, and 14 copies
        ({"select": {"strategy": "random", "rounds": 2, "per_round": 500}}, None),  # 1,000 in any budget
    ],
)
def test_the_largest_budget_is_named_where_candidates_are_too_few(changes, most, tmp_path):
    def read(queries: int):
        return read_pool(parse_config(data | {"budget": {"queries": queries}}))

    data = digits_config(tmp_path / "teacher.safetensors") | changes
    with pytest.raises(ConfigError, match="images has only") as error:
        read(5_000)
    named = re.search(r"lower budget\.queries to ([0-9,]+) or give more images \(images\.count\)$", str(error.value))
    assert (int(named[1].replace(",", "")) if named else None) == most
    if most:
        assert sum(read(most).schedule) == most
        with pytest.raises(ConfigError, match="images has only"):
            read(most + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": {"kind": "mixup", "pairs": 300}}, "; lower budget.queries to 340 or raise pool.pairs"),
        (
            {"pool": {"kind": "mixup", "pairs": 780}},
            "; lower budget.queries to 820 or give more images (images.count)",
        ),
        ({"pool": {"kind": "auto", "of": ["mixup", {"kind": "pairs", "pairs": 300}]}}, " or raise pool.pairs"),
    ],
)
def test_what_limits_the_candidates_is_named(changes, message, tmp_path):
    data = digits_config(tmp_path / "teacher.safetensors") | changes | {"budget": {"queries": 900}}
    with pytest.raises(ConfigError) as error:
        read_pool(parse_config(data))
    assert str(error.value).endswith(message)


def test_real_images_without_rounds_are_all_bought_and_the_rest_is_left(tmp_path):
    changes = {"pool": {"kind": "images"}, "select": {"strategy": "random", "rounds": 0}}
    data = digits_config(tmp_path / "teacher.safetensors") | changes
    assert [read_pool(parse_config(data | {"budget": {"queries": q}})).schedule for q in (30, 160)] == [[30], [40]]


@pytest.mark.parametrize(
    ("changes", "queries", "message"),
    [
        (AUTO, 39, "39 queries do not pay for round 0, which asks for 40 images; raise budget.queries to at"),
        (REQUERY, 39, "39 queries do not pay for round 0, which asks for 40 images; raise budget.queries to at"),
        (
            AUTO | {"select": {"strategy": "random", "rounds": 3}},
            46,
            "after round 0 and 4 queries of other rounds 2 of 46 queries are left, too few for select.rounds = 3 "
            "rounds of 1; raise budget.queries",
        ),
    ],
)
def test_a_budget_too_small_for_all_rounds_is_refused(changes, queries, message, tmp_path):
    data = digits_config(tmp_path / "teacher.safetensors") | changes | {"budget": {"queries": queries}}
    with pytest.raises(ConfigError) as error:
        read_pool(parse_config(data))
    assert str(error.value).startswith(f"budget.queries: {message}")


@pytest.mark.parametrize("select", [{}, {"rounds": 0}, {"rounds": 3}, {"schedule": "nested"}, {"schedule": [50, 90]}])
def test_a_config_as_written_is_the_same_config(select, tmp_path):
    config = parse_config(digits_config(tmp_path / "teacher.safetensors") | {"select": select})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    again = load_config(path)
    assert again == config and differences(again, config) == []
    assert (config.select.rounds is None) == ("schedule" in select)


def test_a_strategy_of_the_user_s_own_may_have_another_number_of_rounds():
    class Own(Random):
        strategy: str
        rounds: int | None = 4

    assert (Own(strategy="own").rounds, Own(strategy="own", rounds=2).rounds) == (4, 2)
    assert Random().rounds == Random(rounds=None).rounds == 1 and Random(rounds=0).rounds == 0
    assert Random(schedule="nested").rounds is None


def test_a_plan_shows_the_rounds(config_file, teacher_weights):
    done = command("plan", config_file(select={"strategy": "random", "schedule": "nested"}, budget__queries=200))
    assert done.returncode == 0 and "200 = 40 + 40 + 80 + 40" in done.stdout, done.stderr


# Runs that share a ledger


class Chosen(Observer):
    def __init__(self) -> None:
        self.notes, self.phases = [], []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def phase(self, round: int, name: str) -> None:
        self.phases.append((round, name))


@pytest.fixture
def bought(make_config, tmp_path):
    """Runs a budget of a sweep on one ledger; gives its result and what the ledger has charged in all."""

    def do(budget: int, **changes):
        quick = {"test": None, "student__epochs": 1, "budget__queries": budget} | changes
        config = make_config(ledger={"path": str(tmp_path / "shared.sqlite")}, **quick)
        result = run(config, RunDirectory(tmp_path / f"run-{budget}"), local=True)
        ledger = Ledger(tmp_path / "shared.sqlite", read_only=True)
        charged = ledger.spent("training") + ledger.spent("estimate")
        ledger.close()
        return result, charged

    return do


def candidates(result, number: int) -> bytes:
    return RunDirectory(result.directory).artefact(number, "choose").read_bytes()


QUICK = ("cluster-margin", "rad", "random", "coreset")
"""Strategies of each kind; the others are storms."""


@pytest.mark.parametrize(
    "strategy",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.storm) for name in strategies.parts()],
)
def test_budgets_on_the_totals_share_whole_rounds_and_buy_the_largest_alone(strategy, bought):
    select = {"strategy": strategy, "schedule": "nested"}
    (small, first), (middle, second), (large, third) = (bought(budget, select=select) for budget in (40, 80, 160))
    assert (first, second, third) == (40, 80, 160)
    assert [m.queries for m in large.history] == [0, 0, 80]
    assert [m.images for m in large.history] == [40, 80, 160]
    for shared, number in ((small, 0), (middle, 0), (middle, 1)):
        assert candidates(shared, number) == candidates(large, number)
        students = [RunDirectory(r.directory).artefact(number, "train").read_bytes() for r in (shared, large)]
        assert students[0] == students[1]


@pytest.mark.parametrize("strategy", [pytest.param("rad", marks=pytest.mark.storm), "rad-pairs"])
def test_an_estimate_of_m_is_shared_too(strategy, bought):
    select = {"strategy": strategy, "schedule": [90, 140], "m": "estimate", "estimate_queries": 10}
    (small, first), (large, second) = (bought(budget, select=select) for budget in (90, 140))
    assert (first, second) == (90, 140)
    assert candidates(small, 1) == candidates(large, 1)
    assert small.history[1].estimate == large.history[1].estimate
    assert [m.images for m in large.history] == [40, 90, 140]


def test_a_pool_of_real_images_is_shared_too(bought):
    changes = {"pool": {"kind": "images"}, "images__count": 100}
    select = {"strategy": "margin", "first": 10, "schedule": "nested"}
    (small, first), (large, second) = (bought(budget, select=select, **changes) for budget in (20, 70))
    assert (first, second) == (20, 70)
    assert [m.images for m in large.history] == [10, 20, 40, 70]
    assert all(candidates(small, number) == candidates(large, number) for number in (0, 1))


@pytest.mark.parametrize(
    "strategy",
    ["random", "active-mixup", *(pytest.param(k, marks=pytest.mark.storm) for k in ("coreset", "uniform", "vanilla"))],
)
def test_a_budget_that_ends_within_a_round_has_the_first_of_its_candidates(strategy, bought):
    select = {"strategy": strategy, "schedule": "nested"}
    (small, first), (large, second) = (bought(budget, select=select) for budget in (110, 160))
    assert (first, second) == (110, 160)  # nothing but the larger budget
    few, many = (RunDirectory(result.directory).read_candidates(2).ids for result in (small, large))
    assert len(few) == 30 and few.tolist() == many[:30].tolist()


# Stopped and resumed


def test_how_many_rounds_there_are_is_known_before_images_are_read(make_config, tmp_path):
    config = make_config(test=None, student__epochs=1, select={"strategy": "random", "schedule": "nested"})
    directory = RunDirectory(tmp_path / "run")
    whole = run(config, directory, local=True)
    assert [m.images for m in whole.history] == [40, 80, 160] and directory.is_complete(None)
    seen = Chosen()
    assert resume(directory, local=True, observer=seen).history == whole.history
    assert seen.notes == ["the run is complete; nothing is asked again"] and seen.phases == []
    student = directory.student.read_bytes()
    # As a run that was killed in its last round left it: it goes on there, from its config alone.
    shutil.rmtree(directory.round(2))
    assert not directory.is_complete(None)
    assert [m.round for m in read_result(directory).history] == [0, 1]
    seen = Chosen()
    again = resume(directory, local=True, observer=seen)
    assert seen.phases == [(2, name) for name in ("choose", "query", "train", "evaluate")]
    assert directory.student.read_bytes() == student and again.receipt.queries == 160
    # And one that was killed before round 0 was chosen knows no schedule yet.
    shutil.rmtree(directory.path / "rounds")
    assert not directory.is_complete(None)
    resume(directory, local=True)
    assert directory.student.read_bytes() == student


@pytest.mark.storm
def test_another_schedule_is_another_experiment(config_file, tmp_path):
    path = config_file(test=None, student__epochs=1, budget__queries=80, select={"strategy": "random"})
    assert command("run", path, "--local", "--out", tmp_path / "run").returncode == 0
    same = command("run", path, "select.rounds=1", "--local", "--out", tmp_path / "run")
    assert same.returncode == 0 and "the run is complete" in same.stderr
    other = command("run", path, "select.schedule=nested", "--local", "--out", tmp_path / "run")
    assert other.returncode == 2 and "select.schedule: 'even' -> 'nested'" in other.stderr


def test_a_pool_that_depends_on_the_budget_shares_no_rounds(make_config):
    with pytest.raises(ConfigError, match=r"pool.pairs: auto takes as many pairs as the budget needs"):
        make_config(pool__pairs="auto", select__schedule="nested", select__rounds=None)
    assert make_config(pool__pairs="auto").pool.pairs == "auto"
    for pool, field in (
        ("lines", r"pool\.candidates"),
        ({"kind": "mixture", "of": ["lines", "noise"]}, r"pool\.candidates"),
        ({"kind": "generator"}, r"pool\.candidates"),
        (
            {"kind": "mixture", "candidates": 900, "of": ["lines", {"kind": "mixup", "pairs": "auto"}]},
            r"pool\.of\.1\.pairs",
        ),
    ):
        with pytest.raises(ConfigError, match=rf"{field}: auto takes as many .* give a number"):
            make_config(pool=pool, select={"schedule": "nested"})
    whole = {"kind": "mixture", "candidates": 900, "of": ["lines", "mixup"]}
    assert make_config(pool=whole, select={"schedule": "nested"}).pool.candidates == 900
