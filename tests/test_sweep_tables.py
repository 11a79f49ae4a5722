"""Tables of a sweep, and the importance of its keys."""

import csv
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from sweep_trials import after, trial

from kdray.sweeps.importance import importances
from kdray.sweeps.results import Trial
from kdray.sweeps.tables import write_tables


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_row_a_trial(tmp_path):
    trials = [
        trial("a", (0.8, 0.9), paid=100, reused=20, select__w=0.5, pool__kind="mixup"),
        trial("b", (0.7, 0.7), select__w=1, pool__kind=None),
        trial("c", state="failed", cause='the "teacher" said, no', select__w=0.1, pool__kind="cutmix"),
    ]
    write_tables(tmp_path, trials, "student_accuracy", "max")
    a, b, c = rows(tmp_path / "results.csv")
    assert (a["name"], a["state"], a["best"], a["cause"]) == ("a", "finished", "true", "")
    assert (a["select.w"], a["pool.kind"], a["seeds"], a["rounds"]) == ("0.5", "mixup", "0 1", "1")
    assert float(a["student_accuracy"]) == pytest.approx(0.85)
    assert float(a["student_accuracy_error"]) == pytest.approx(0.05)
    assert (a["loss"], a["agreement"]) == ("0.5", "")
    assert (a["asked"], a["bought"], a["saved"]) == ("240", "200", "40")
    assert (b["select.w"], b["pool.kind"], b["best"]) == ("1", "", "false")
    assert (c["cause"], c["rounds"], c["student_accuracy"], c["asked"]) == ('the "teacher" said, no', "0", "", "0")
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.column_names == list(a)
    assert table["select.w"].to_pylist() == [0.5, 1.0, 0.1]
    assert table["best"].to_pylist() == [True, False, False]


def test_one_row_a_round(tmp_path):
    histories = [
        [after(0, 0.5, paid=10, agreement=0.6), after(1, 0.7, paid=20, reused=4)],
        [after(0, 0.7, paid=20, agreement=0.8), after(1, 0.7, paid=30, loss=math.nan), after(2, 0.9)],
    ]
    both = Trial(name="a", values={}, state="running", cause="", seeds=(0, 1), histories=histories)
    write_tables(tmp_path, [both, trial("b", state="waiting")], "agreement", "max")
    first, second = rows(tmp_path / "rounds.csv")
    assert (first["name"], first["round"], first["asked"], second["asked"]) == ("a", "0", "15", "27")
    assert float(first["agreement"]) == pytest.approx(0.7) and float(first["agreement_error"]) == pytest.approx(0.1)
    assert float(second["student_accuracy"]) == pytest.approx(0.7) and float(second["student_accuracy_error"]) == 0
    assert second["agreement"] == second["loss"] == second["loss_error"] == ""


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ((True, False, None), [True, False, None]),
        ((1, 2, None), [1, 2, None]),
        ((1, 0.5, None), [1.0, 0.5, None]),
        ((1, "auto", None), ["1", "auto", None]),
        ((True, 1, "true"), ["true", "1", "'true'"]),
        (([0.3, 0.7], "x", [1]), ["[0.3, 0.7]", "x", "[1]"]),
        ((2**80, 1, 2), [str(2**80), "1", "2"]),
        (({"kind": "kl"}, "cross-entropy", None), ["{kind: kl}", "cross-entropy", None]),
        ((None, None, None), [None, None, None]),
        (("\udcff", "b", "c"), ["\\xff", "b", "c"]),
        ((math.inf, 1.0, 2.0), [math.inf, 1.0, 2.0]),
    ],
    ids=str,
)
def test_columns_of_any_values(tmp_path, values, kept):
    write_tables(tmp_path, [trial(f"t{k}", (0.5,), x=value) for k, value in enumerate(values)], "loss", "min")
    assert pq.read_table(tmp_path / "results.parquet")["x"].to_pylist() == kept
    assert len(rows(tmp_path / "results.csv")) == 3


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)


@examples(30)
@given(st.lists(_LEAF | st.lists(_LEAF, max_size=2), min_size=1, max_size=4))
def test_no_values_make_the_tables_fail(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder, [trial(f"t{k}", x=value, state="failed") for k, value in enumerate(values)], "loss", "min")
    assert len(pq.read_table(folder / "results.parquet")) == len(values)


def test_tables_of_no_trials(tmp_path):
    write_tables(tmp_path, [], "student_accuracy", "max")
    assert rows(tmp_path / "results.csv") == rows(tmp_path / "rounds.csv") == []
    assert "student_accuracy_error" in pq.read_table(tmp_path / "results.parquet").column_names
    assert "asked" in (tmp_path / "rounds.csv").read_text()


def sampled(count, figure, **fixed):
    draw = np.random.default_rng(0)
    drawn = [
        {"a": float(draw.uniform()), "b": str(draw.choice(["x", "y", "z"])), "c": float(draw.uniform())}
        for _ in range(count)
    ]
    return [trial(f"t{k:02d}", (figure(values),), **values, **fixed) for k, values in enumerate(drawn)]


def test_the_key_that_decides_is_the_most_important():
    found = importances(sampled(40, lambda v: v["a"] + 0.2 * (v["b"] == "y")), "student_accuracy")
    assert [item.key for item in found.keys][:2] == ["a", "b"] and found.why_not == ""
    assert found.keys[0].mean > 0.5 > 0.05 > abs(found.keys[2].mean)
    assert found.keys[0].deviation > 0 and found.trials == 40 and found.fit > 0.5


def test_importance_is_the_same_each_time_and_depends_on_the_seed():
    trials = sampled(12, lambda v: v["a"])
    first, again, other = (importances(trials, "student_accuracy", seed=s, trees=20, repeats=3) for s in (0, 0, 1))
    assert first == again != other


def test_mixed_values_lists_and_missing_ones_are_categories():
    choices = ["auto", 0.5, None, [1, 2], True, "auto", 0.5, None]
    trials = [trial(f"t{k}", (0.1 * (choices.index(w)),), w=w, other=k) for k, w in enumerate(choices)]
    trials.append(trial("t9", (0.9,), other=1))
    found = importances(trials, "student_accuracy")
    assert {item.key for item in found.keys} == {"w", "other"}


def test_keys_of_one_value_and_unfinished_trials_are_left_out():
    trials = sampled(8, lambda v: v["a"], fixed=1)
    trials.append(trial("failed", (0.9,), state="failed", a=0.1, b="x", c=0.1, fixed=2))
    trials.append(trial("stopped", (0.9,), state="stopped", a=0.1, b="x", c=0.1, fixed=2))
    found = importances(trials, "student_accuracy")
    assert {item.key for item in found.keys} == {"a", "b", "c"} and found.trials == 8


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        ([], "at least 5 finished trials that have measured student_accuracy; 0 of 0 trials did"),
        (sampled(4, lambda v: v["a"]), "4 of 4 trials did"),
        (sampled(9, lambda v: math.nan), "0 of 9 trials did"),
        (sampled(9, lambda v: 0.5), "All finished trials have the same student_accuracy"),
        ([trial(f"t{k}", (0.1 * k,), a=1) for k in range(6)], "No key has more than one value"),
        ([trial(f"t{k}", (0.1 * k,), a=k, b=1) for k in range(6)], "Only a has more than one value"),
    ],
    ids=["none", "few", "nan", "equal", "fixed", "one key"],
)
def test_where_there_is_no_importance_the_reason_is_said(trials, why):
    found = importances(trials, "student_accuracy")
    assert found.keys == () and why in found.why_not
