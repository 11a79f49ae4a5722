"""The file of a sweep: its space, what it may change, and what is refused before anything starts."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import command, digits_config
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import ConfigError, KdrayError, SweepError
from kdray.sweeps.config import dump_sweep, load_sweep, parse_sweep, with_absolute_paths, with_values
from kdray.sweeps.folder import trial_name
from kdray.sweeps.space import Domain, flatten, nested, parse_space, points


@pytest.fixture
def base(teacher_weights):
    return digits_config(teacher_weights)


def sweep_of(base, space, **sweep):
    return parse_sweep({"base": base, "space": space, "sweep": sweep})


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ([1, 2], "space.x should be one of {grid: [...]}"),
        ({}, "space.x should be one of"),
        ({"grid": [1], "choice": [2]}, "space.x should be one of"),
        ({"gird": [1]}, "space.x: unknown kind 'gird'; did you mean 'grid'?"),
        ({"grid": 3}, "space.x: grid takes a list, got 3"),
        ({"grid": []}, "space.x: grid lists no value; give at least one"),
        ({"choice": [1, 2, 1]}, "space.x: 1 is listed twice; keep one of the two"),
        ({"uniform": [1]}, "space.x: uniform takes [low, high], got [1]"),
        ({"uniform": [2, 1]}, "space.x: uniform takes a low end below the high end, got [2, 1]"),
        ({"uniform": ["a", 1]}, "space.x: uniform takes [low, high]"),
        ({"uniform": [True, 2]}, "space.x: uniform takes [low, high]"),
        ({"uniform": [0, math.inf]}, "space.x: uniform takes a low end below the high end"),
        ({"uniform": [-1e308, 1e308]}, "space.x: uniform takes ends up to 1e+300 in size"),
        ({"uniform": [0, 10**400]}, "space.x: uniform takes ends up to 1e+300 in size"),
        ({"randint": [1, 2**70]}, "space.x: randint takes ends up to 4.61e+18 in size"),
        ({"loguniform": [0, 1]}, "space.x: loguniform takes ends above 0, got [0, 1]; use uniform"),
        ({"randint": [0.5, 2]}, "space.x: randint takes whole numbers, got [0.5, 2]; use uniform"),
    ],
)
def test_a_wrong_domain_is_named(domain, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_space({"x": domain})


def test_true_and_one_are_two_values():
    assert parse_space({"x": {"grid": [True, 1, 0, False]}})["x"].values == (True, 1, 0, False)


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), seed=st.integers(0, 99))
def test_draws_lie_in_their_range(low, width, seed):
    generator = np.random.default_rng(seed)
    assert low <= Domain(kind="uniform", low=low, high=low + width).draw(generator) <= low + width
    first, last = math.floor(low), math.floor(low) + 1 + math.floor(width)
    whole = Domain(kind="randint", low=first, high=last).draw(generator)
    assert isinstance(whole, int) and first <= whole <= last
    assert 1e-3 <= Domain(kind="loguniform", low=1e-3, high=1e-3 + width).draw(generator) <= 1e-3 + width


def test_randint_has_both_ends_and_loguniform_halves_its_decades():
    generator = np.random.default_rng(0)
    whole = Domain(kind="randint", low=1, high=3)
    assert {whole.draw(generator) for _ in range(50)} == {1, 2, 3}
    logarithms = Domain(kind="loguniform", low=1e-4, high=1.0)
    share = np.mean([logarithms.draw(generator) < 1e-2 for _ in range(2000)])
    assert share == pytest.approx(0.5, abs=0.05)


def test_a_grid_has_every_combination_in_order():
    domains = parse_space({"a": {"grid": [1, 2]}, "b": {"choice": ["x", "y"]}})
    assert points(domains, "grid", 1, np.random.default_rng(0)) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_a_random_search_draws_anew_for_each_combination_of_the_grid():
    domains = parse_space({"a": {"grid": [1, 2]}, "b": {"uniform": [0, 1]}})
    found = points(domains, "random", 3, np.random.default_rng(0))
    assert [point["a"] for point in found] == [1, 2] * 3
    assert len({point["b"] for point in found}) == 6


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        ({"a.b": 1, "a.c": 2}, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b.c": 1}, "a.b.d": 2}, {"a": {"b": {"c": 1, "d": 2}}}),
    ],
)
def test_keys_with_dots_are_keys_of_sections(data, plain):
    assert nested(data, "here") == plain


@pytest.mark.parametrize("data", [{"a.b": 1, "a": {"b": 2}}, {"a": 1, "a.b": 2}, {"a.b": 1, "a": 2}])
def test_a_key_that_is_given_twice_is_refused(data):
    with pytest.raises(ConfigError, match=r"here: a(\.b)? is (given twice|part of another key)"):
        nested(data, "here")


def test_flatten_undoes_nested():
    data = {"a": {"b": {"c": 1}, "d": {}}, "e": [1, {"f": 2}]}
    assert flatten(data) == {"a.b.c": 1, "a.d": {}, "e": [1, {"f": 2}]}
    assert nested(flatten(data), "here") == data


def test_values_replace_fields_and_leave_the_base_alone():
    base = {"a": {"b": 1, "c": 2}, "d": None}
    assert with_values(base, {"a.b": 3, "d.e": 4}) == {"a": {"b": 3, "c": 2}, "d": {"e": 4}}
    assert base == {"a": {"b": 1, "c": 2}, "d": None}


# The file


def test_a_file_names_its_base_and_is_overridden_like_a_config(tmp_path, base):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    file = tmp_path / "sweep.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "base": str(tmp_path / "base.yaml"),
                "change": {"student.epochs": 3, "student": {"lr": 0.5}},
                "space": {"budget.queries": {"grid": [80, 120]}, "select": {"rounds": {"choice": [1, 2]}}},
            }
        )
    )
    config = load_sweep(file, ["sweep.seeds=4", "change.student.epochs=7", "space.budget.queries={grid: [90]}"])
    assert (config.sweep.seeds, config.base["student"]["epochs"], config.base["student"]["lr"]) == (4, 7, 0.5)
    assert config.base["student"]["model"] == "mlp"
    assert config.space == {"budget.queries": {"grid": [90]}, "select.rounds": {"choice": [1, 2]}}
    assert config.search == "random"
    assert parse_sweep(yaml.safe_load(dump_sweep(config))) == config


@pytest.mark.parametrize(
    ("space", "sweep", "message"),
    [
        (
            {"seed": {"grid": [1]}},
            {},
            "space.seed is fixed in a sweep: every trial has the seeds that sweep.seeds",
        ),
        ({"ledger.path": {"grid": ["x"]}}, {}, "space.ledger.path is fixed in a sweep: all trials share the ledger"),
        ({"budget": {"grid": [{"queries": 9}]}}, {}, "space.budget is fixed in a sweep: figures of different test"),
        ({"select.w": {"uniform": [0, 1]}}, {"search": "grid"}, "space.select.w is a range, which has no grid"),
        ({"select.w": {"grid": [1]}}, {"metric": "acuracy"}, "sweep.metric: no trial reports 'acuracy'; did you mean"),
        ({"select.w": {"grid": [1]}}, {"metrik": 1}, "unknown key 'sweep.metrik'; did you mean 'metric'?"),
        ({"select.w": {"grid": [1]}}, {"budget": {"queries": 0}}, "sweep.budget.queries: input should be greater than"),
        ({"select.w": {"gird": [1]}}, {}, "space.select.w: unknown kind 'gird'"),
    ],
)
def test_what_no_sweep_may_have_is_refused(space, sweep, message, base):
    with pytest.raises(ConfigError) as refused:
        sweep_of(base, space, **sweep)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "sweep: expected a mapping with base, space and sweep, got list"),
        ({"space": {}}, "base should be the path of a config, or a config, got None"),
        ({"base": 3, "space": {}}, "base should be the path of a config, or a config, got 3"),
        ({"base": {}, "space": [1]}, "sweep: space should be a mapping of keys, got [1]"),
        ({"base": {}, "change": {"a": 1}, "space": {"a": {"grid": [1]}}}, "a is in change and in space; keep one"),
        ({"base": {}, "spaces": {}}, "unknown key 'spaces'; did you mean 'space'?"),
        ({"base": "nowhere.yaml", "space": {}}, "no config file at nowhere.yaml"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(data, message):
    with pytest.raises(ConfigError) as refused:
        parse_sweep(data)
    assert message in str(refused.value)


def test_paths_of_the_base_become_absolute_and_nothing_else_changes(base, tmp_path, monkeypatch, teacher_weights):
    monkeypatch.chdir(teacher_weights.parent)
    base["teacher"]["weights"] = teacher_weights.name
    config = sweep_of(base, {"budget.queries": {"grid": [80]}})
    whole = with_absolute_paths(config, config.config_of({"budget.queries": 80}))
    assert whole.base["teacher"]["weights"] == str(teacher_weights)
    assert whole.base == with_values(base, {"teacher.weights": str(teacher_weights)})


def test_paths_of_the_space_become_absolute_and_leave_the_base_alone(base, tmp_path, monkeypatch, teacher_weights):
    from kdray.sweeps.checks import located, look_ahead

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(teacher_weights.read_bytes())
    (tmp_path / "own.safetensors").write_bytes(teacher_weights.read_bytes())
    base["teacher"]["weights"] = "own.safetensors"
    sections = [
        {**base["teacher"], "weights": "a.safetensors"},
        {"kind": "python", "function": "os:stat", "classes": 10},
    ]
    images = {"source": "folder", "path": "images", "size": 16, "colour": "grey"}
    config = sweep_of(
        base | {"images": images},
        {
            "teacher.weights": {"grid": ["a.safetensors", "./b.safetensors", "b.safetensors", str(tmp_path / "c")]},
            "images.path": {"choice": ["~/images", "images"]},
            "select.strategy": {"grid": ["random"]},
            "budget.queries": {"randint": [80, 90]},
        },
    )
    whole = located(config)
    weights = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c")]
    home = [os.path.expanduser("~/images"), str(tmp_path / "images")]
    assert whole.space == config.space | {"teacher.weights": {"grid": weights}, "images.path": {"choice": home}}
    assert whole.base == config.base
    assert located(parse_sweep(yaml.safe_load(dump_sweep(whole)))) == whole
    # A section as a value; `os:stat` is no path.
    del base["teacher"]
    whole = located(sweep_of(base, {"teacher": {"grid": sections}}))
    assert whole.space == {"teacher": {"grid": [{**sections[0], "weights": weights[0]}, sections[1]]}}
    points = look_ahead(located(sweep_of(base, {"teacher": {"grid": sections[:1]}}))).points
    assert points == [{"teacher": {**sections[0], "weights": weights[0]}}]


def test_paths_of_a_base_that_only_some_trials_use_become_absolute(base, tmp_path, monkeypatch):
    from kdray.sweeps.checks import located

    monkeypatch.chdir(tmp_path)
    base["student"]["init"] = "start.safetensors"
    whole = located(sweep_of(base, {"select.rounds": {"grid": [1, 2]}, "student.init": {"grid": [None, "b"]}}))
    assert whole.base["student"]["init"] == "start.safetensors"
    assert whole.space["student.init"] == {"grid": [None, str(tmp_path / "b")]}
    whole = located(sweep_of(base, {"select.rounds": {"grid": [1, 2]}}))
    assert whole.base["student"]["init"] == str(tmp_path / "start.safetensors")


def test_paths_of_pools_in_a_pool_become_absolute_too(base, tmp_path, monkeypatch):
    from kdray.sweeps.checks import located

    monkeypatch.chdir(tmp_path)

    def crops(path: str) -> dict:
        return {"kind": "crops", "images": {"source": "folder", "path": path}}

    def mixture(path: str) -> dict:
        inner = {"kind": "mixture", "of": ["noise", crops(path)]}
        return {"kind": "mixture", "of": ["lines", crops(path), inner]}

    here = str(tmp_path / "photographs")
    whole = located(sweep_of(base, {"pool": {"choice": [crops("photographs"), mixture("photographs"), "mixup"]}}))
    assert whole.space["pool"] == {"choice": [crops(here), mixture(here), "mixup"]}
    whole = located(sweep_of(base | {"pool": mixture("photographs")}, {"select.strategy": {"grid": ["random"]}}))
    assert whole.base["pool"] == mixture(here)
    lists = [["lines", crops("photographs")], ["lines", "noise"]]
    whole = located(sweep_of(base | {"pool": {"kind": "mixture"}}, {"pool.of": {"grid": lists}}))
    assert whole.space["pool.of"] == {"grid": [["lines", crops(here)], ["lines", "noise"]]}


# What is found out before anything starts


def test_points_that_give_the_same_config_are_one(base):
    from kdray.sweeps.checks import look_ahead

    space = {"select.strategy": {"grid": ["random", "rad"]}, "select.w": {"grid": [0.1, 0.2]}}
    outlook = look_ahead(sweep_of(base, space))
    assert [tuple(point.values()) for point in outlook.points] == [("random", 0.1), ("rad", 0.1), ("rad", 0.2)]
    assert (outlook.trials, outlook.rounds, outlook.first) == (3, 2, 40)
    assert outlook.queries == [160, 160, 160]


def test_draws_that_are_no_config_are_drawn_again_and_the_seed_decides(base):
    from kdray.sweeps.checks import look_ahead

    base["pool"] = {"lambdas": {"min": 0.3, "max": 0.7, "step": 0.1}}
    space = {"pool.lambdas.min": {"uniform": [0.1, 0.9]}, "pool.lambdas.max": {"uniform": [0.1, 0.9]}}
    drawn = look_ahead(sweep_of(base, space, samples=6)).points
    assert len(drawn) == 6 and all(point["pool.lambdas.min"] <= point["pool.lambdas.max"] for point in drawn)
    assert look_ahead(sweep_of(base, space, samples=6)).points == drawn
    assert look_ahead(sweep_of(base, space, samples=6, seed=1)).points != drawn


@pytest.mark.parametrize(
    ("changes", "space", "least", "most"),
    [
        # Twenty examples of a thousand would miss the largest.
        ({}, {"select.rounds": {"randint": [1, 90]}}, 90, 90),
        ({}, {"select.rounds": {"choice": list(range(1, 90))}}, 89, 89),
        ({"pool": {"kind": "auto"}}, {"select.rounds": {"randint": [1, 60]}}, 61, 61),
        ({}, {"select": {"choice": [{"rounds": k} for k in range(60)]}}, 59, 59),
        ({"select": {"schedule": "nested", "first": 5}}, {"budget.queries": {"randint": [6, 160]}}, 5, 8),
        ({"select": {}}, {"select.schedule": {"choice": [[50 + k, 60 + k, 70 + k] for k in range(50)]}}, 4, 4),
        ({"budget": {"queries": 60}}, {"select.rounds": {"randint": [1, 20]}}, 20, 20),
        ({}, {"student.labels": {"choice": ["reuse", "requery"]}, "select.rounds": {"choice": [1, 2]}}, 3, 3),
        ({}, {"student.lr": {"uniform": [0.01, 0.1]}}, 2, 2),
    ],
)  # fmt: skip
def test_no_proposal_of_optuna_has_more_rounds_than_asha_knows(changes, space, least, most, base):
    from kdray.sweeps.checks import look_ahead

    base["student"]["epochs"] = 1
    config = sweep_of(base | changes, space, search="optuna", samples=4, scheduler="asha")
    assert least <= look_ahead(config).rounds <= most


@pytest.mark.parametrize(
    ("changes", "space", "sweep", "message"),
    [
        ({}, {"budget.qeries": {"grid": [1]}}, {}, "unknown key 'budget.qeries'; did you mean 'queries'?"),
        ({}, {"select.rounds": {"grid": [2, -1]}}, {}, "select.rounds: input should be greater than or equal to 0"),
        ({}, {"budget.queries": {"grid": [80, 20]}}, {}, "the trial budget.queries=20: budget.queries: 20 queries"),
        ({}, {"budget.queries": {"grid": [80]}}, {"budget": {"queries": 39}}, "39 queries do not pay for round 0 of"),
        ({"test": None}, {"budget.queries": {"grid": [80]}}, {}, "student_accuracy is not measured, because the base"),
        ({"budget": {"queries": 80, "evaluation": 0}}, {"select.rounds": {"grid": [1]}}, {"metric": "agreement"},
         "agreement is not measured, because budget.evaluation allows no queries"),
        ({}, {"budget.queries": {"grid": [80]}}, {"scheduler": "asha", "grace_rounds": 2}, "grace_rounds: 2 of 2"),
        ({}, {}, {}, "space is empty; give at least one key"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_is_refused_before_it_starts(changes, space, sweep, message, base):
    from kdray.sweeps.checks import look_ahead

    with pytest.raises((ConfigError, SweepError)) as refused:
        look_ahead(sweep_of(base | changes, space, **sweep))
    assert isinstance(refused.value, KdrayError) and message in str(refused.value)


def test_a_test_set_without_labels_measures_agreement_alone(base, tmp_path):
    from kdray.sweeps.checks import look_ahead

    folder = tmp_path / "images"
    folder.mkdir()
    from PIL import Image

    for k in range(3):
        Image.new("L", (16, 16), 80 * k).save(folder / f"{k}.png")
    base["test"] = {"source": "folder", "path": str(folder), "size": 16, "colour": "grey"}
    with pytest.raises(ConfigError, match="student_accuracy is not measured, because test has no labels"):
        look_ahead(sweep_of(base, {"budget.queries": {"grid": [80]}}))
    assert look_ahead(sweep_of(base, {"budget.queries": {"grid": [80]}}, metric="agreement")).trials == 1


def test_a_name_tells_values_apart_and_is_a_folder_anywhere():
    names = [trial_name({"a.b": value}) for value in (1, 1.0, "1", True, "x/y z" * 30, [0.3, 0.5])]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and "/" not in name and len(name) < 60 for name in names)
    assert trial_name({"teacher.weights": "/a/long/way/" + "x/" * 30 + "b.npz"}).startswith("weights=b.npz-")
    assert trial_name({"a.b": 1}) == trial_name({"a.b": 1})


def test_a_sweep_that_is_refused_needs_neither_torch_nor_ray(tmp_path):
    (tmp_path / "sweep.yaml").write_text("base: {}\nspace: {seed: {grid: [1]}}\n")
    code = (
        "import sys\nfrom kdray.cli.app import app\n"
        "try: app(['sweep', 'sweep.yaml'])\nexcept SystemExit as end: print(end.code)\n"
        "print([m for m in ('torch', 'ray', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["2", "[]"], done.stderr
    assert "space.seed is fixed in a sweep" in done.stderr


def test_a_plan_of_a_sweep_says_what_its_trials_may_buy(base, tmp_path):
    base["budget"] = {"queries": 80, "price_per_query": 0.01}
    sweep = {"seeds": 2, "budget": {"queries": 250}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": base, "space": {"budget.queries": {"grid": [60, 80]}}, "sweep": sweep}))
    done = command("plan", file)
    assert done.returncode == 0, done.stderr
    assert "2 (grid), 2 seeds each" in done.stdout and "280 asked by all trials; cap 250" in done.stdout
    assert "at most 2.50 USD" in done.stdout
    assert "no cap" in command("plan", file, "sweep.budget.queries=null", "sweep.seeds=1").stdout
