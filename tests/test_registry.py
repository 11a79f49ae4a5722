"""Parts by name: strategies and pools, a user's own among them, and that naming them imports nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from kdray.config.load import dump_config, load_config, parse_config
from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.ledger.store import Ledger
from kdray.pools.base import PoolSection, pools
from kdray.pools.blended import PairsSection
from kdray.pools.boundary import BoundarySection
from kdray.pools.generator import GeneratorSection
from kdray.pools.images import ImagesSection
from kdray.pools.kinds import AutoSection
from kdray.pools.mixture import MixtureSection
from kdray.pools.mixup import MixupPool, MixupSection
from kdray.pools.procedural.contours import ContoursSection
from kdray.pools.procedural.crops import CropsSection
from kdray.pools.procedural.fractals import FractalsSection
from kdray.pools.procedural.leaves import LeavesSection
from kdray.pools.procedural.lines import LinesSection
from kdray.pools.procedural.noise import NoiseSection
from kdray.pools.procedural.shaders import ShadersSection
from kdray.pools.procedural.spectrum import SpectrumSection
from kdray.runs.directory import RunDirectory
from kdray.runs.run import resume, run
from kdray.sections.base import Section
from kdray.sections.registry import Registry, registry_of, sections_of
from kdray.select.base import Strategy, Task, select, strategies

ROOT = Path(__file__).resolve().parents[1]
MINIMAL = {
    "images": {"source": "digits"},
    "teacher": {"kind": "local", "weights": "teacher.safetensors"},
    "budget": {"queries": 1000},
}
OWN = '''
"""A user's own parts."""
import numpy as np
from pydantic import Field
from kdray.pools.base import PoolSection
from kdray.pools.mixup import MixupPool
from kdray.select.base import Selection, Strategy


class Every(Strategy):
    """Every so many-th candidate."""

    step: int = Field(default=7, ge=1)
    """How many to go on."""

    def choose(self, task):
        left = np.setdiff1d(np.arange(0, len(task.pool), self.step), task.taken)
        return Selection(ids=left[: task.k])


class Halves(PoolSection):
    """Pairs mixed half and half."""

    mixes = True

    def build(self, images, seed):
        return MixupPool(images, [0.5])


class Idle(Strategy):
    """It cannot choose."""


class Nowhere(PoolSection):
    """It cannot build."""


class Nested:
    Deep = Every


def function(task): ...
'''


@pytest.fixture
def own(own) -> str:
    """The name of a module with a user's own parts."""
    return own(OWN)


def refusal(**sections) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(MINIMAL | sections)
    return str(error.value).removeprefix("config: ")


# Names


def test_the_parts_that_come_with_kdray_go_by_name_the_default_first():
    assert list(strategies.parts()) == [
        "cluster-margin", "active-mixup", "coreset", "entropy", "margin", "rad", "rad-pairs", "random", "uniform",
        "unixkd", "vanilla",
    ]  # fmt: skip
    assert pools.parts() == {
        "mixup": MixupSection, "auto": AutoSection, "boundary": BoundarySection,
        "contours": ContoursSection, "crops": CropsSection,
        "fractals": FractalsSection, "generator": GeneratorSection, "images": ImagesSection, "leaves": LeavesSection,
         "lines": LinesSection, "mixture": MixtureSection,
        "noise": NoiseSection, "pairs": PairsSection, "shaders": ShadersSection, "spectrum": SpectrumSection,
    }  # fmt: skip
    for registry in (strategies, pools):
        for name, part in registry.parts().items():
            assert registry.get(name) is part and issubclass(part, registry.base)
            assert getattr(registry.parse(name), registry.tag) == name, "a name alone is enough"
            assert part.__doc__ and part.__doc__ != registry.base.__doc__


def test_the_part_that_is_taken_where_none_is_named():
    assert strategies.default() == strategies.parse({}) == strategies.parse("cluster-margin")
    assert pools.default() == MixupSection()
    config = parse_config(MINIMAL)
    assert (config.select, config.pool) == (strategies.default(), pools.default())
    assert parse_config(MINIMAL | {"select": {"rounds": 3}}).select == strategies.parse(
        {"strategy": "cluster-margin", "rounds": 3}
    )


def test_a_section_that_is_one_already_stays_what_it_is():
    section = strategies.parse({"strategy": "rad", "m": 3})
    assert strategies.parse(section) is section
    assert parse_config(MINIMAL | {"select": section}).select is section


@pytest.mark.parametrize(
    ("name", "near"),
    [("activ-mixup", "active-mixup"), ("RAD", None), ("rad_pairs", "rad-pairs"), ("zzz", None), (7, None)],
)
def test_an_unknown_name_is_told_all_names_and_the_nearest(name, near):
    known = ", ".join(repr(known) for known in strategies.parts())
    hint = f"; did you mean {near!r}?" if near else ""
    assert refusal(select={"strategy": name}) == (
        f"select.strategy: {str(name)!r} is not one of {known}, nor module:object{hint}"
    )


def test_what_is_no_section_is_refused():
    assert refusal(pool=5) == "pool: input should be a mapping, got 5"
    assert refusal(pool=["mixup"]) == "pool: input should be a mapping, got ['mixup']"
    known = (
        "'mixup', 'auto', 'boundary', 'contours', 'crops', 'fractals', 'generator', 'images', 'leaves', 'lines', "
        "'mixture', 'noise', 'pairs', 'shaders', 'spectrum'"
    )
    assert refusal(pool="cutmix") == f"pool.kind: 'cutmix' is not one of {known}, nor module:object"


def test_braces_in_a_message_are_those_the_user_wrote():
    assert refusal(pool=[{"kind": "mixup"}]) == "pool: input should be a mapping, got [{'kind': 'mixup'}]"
    assert refusal(pool={"kind": "{x}"}).startswith("pool.kind: '{x}' is not one of ")


class Shape(Section):
    """Of the registry below."""

    kind: str


def shapes(**options) -> Registry[Shape]:
    """A registry of two parts, which every test has for itself; its package holds no others."""
    registry = Registry(Shape, field="shape", package="kdray.cli", skip=_modules("cli"), **options)

    @registry.register
    class Square(Shape):
        kind: Literal["square"] = "square"
        side: int = 1

    @registry.register
    class Circle(Shape):
        kind: Literal["circle"] = "circle"
        radius: int = 1

    return registry


def _modules(package: str) -> tuple[str, ...]:
    return tuple(path.stem for path in (ROOT / "kdray" / package).iterdir())


def test_two_parts_of_one_name_are_a_programming_error():
    registry = shapes()

    class Other(Shape):
        kind: Literal["square"] = "square"

    with pytest.raises(ValueError, match=r"shape\.kind: two parts are named 'square'"):
        registry.register(Other)
    assert registry.register(registry.get("square")) is registry.get("square"), "the same one again is no other"


def test_without_a_default_a_part_must_be_named():
    with pytest.raises(ValidationError, match="is missing; give one of 'circle', 'square'"):
        shapes().parse({})
    with pytest.raises(ValidationError, match="is missing; give one of 'square', 'circle'"):
        shapes(default="square").parse({"kind": None})
    assert shapes(default="square").parse({"side": 3}).side == 3


# Fields of other parts


def test_a_lenient_registry_ignores_what_other_parts_know_where_the_part_is_named():
    sweep = {"m": 0.2, "w": 0.5, "clip": "shrink", "score": "margin", "gain": "entropy", "estimate_queries": "auto"}
    for name, part in strategies.parts().items():
        section = strategies.parse({"strategy": name, "rounds": 3, **sweep})
        assert type(section) is part and section.rounds == 3
        assert set(section.model_dump()) == set(part.model_fields)
        assert all(getattr(section, key) == sweep[key] for key in sweep if key in part.model_fields)


def test_and_refuses_it_where_no_part_is_named():
    for key, value, owner in (("m", 0.2, "rad"), ("w", 0.5, "rad"), ("score", "margin", "active-mixup")):
        assert refusal(select={key: value}) == (
            f"select.{key} is set, but means nothing to cluster-margin, the default; leave it out, or set "
            f"select.strategy to {owner}"
        )


def test_nobody_ignores_what_no_part_knows():
    assert refusal(select={"strategy": "random", "mm": 0.2}).startswith("unknown key 'select.mm'; ")
    assert refusal(select={"mm": 0.2}).startswith("unknown key 'select.mm'; ")


def test_a_strict_registry_refuses_what_another_part_knows():
    strict = "pool.{} belongs to kind {}; with kind = images leave it out"
    assert refusal(pool={"kind": "images", "pairs": 5}) == strict.format("pairs", "mixup and pairs")
    assert refusal(pool={"kind": "images", "search": "exhaustive"}) == strict.format("search", "mixup")
    registry = shapes(default="square")
    with pytest.raises(ValidationError, match=r"shape\.radius is set, but means nothing to square, the default"):
        registry.parse({"radius": 3})
    with pytest.raises(ValidationError, match=r"shape\.radius belongs to kind circle; with kind = square leave it out"):
        registry.parse({"kind": "square", "radius": 3})


def test_every_problem_of_a_part_is_told_with_its_field():
    told = refusal(select={"strategy": "rad", "m": 2.5, "w": -1, "rounds": "x"}).splitlines()
    assert [line.strip().partition(":")[0] for line in told] == ["select.rounds", "select.w", "select.m"]


# A user's own


def test_a_users_own_strategy_chooses_in_a_run_that_can_be_resumed(own, make_config, tmp_path):
    data = make_config().model_dump(mode="json")
    data["select"] = {"strategy": f"{own}:Every", "step": 11, "rounds": 2}
    config = parse_config(data)
    assert (config.select.step, config.select.per, config.select.asks) == (11, "group", True)
    result = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert [m.queries for m in result.history] == [40, 100, 160]
    directory = RunDirectory(tmp_path / "run")
    chosen = np.concatenate([directory.read_candidates(number).ids for number in (1, 2)])
    assert chosen.tolist() == list(range(0, 120 * 11, 11))
    assert load_config(directory.config).select == config.select
    directory.artefact(2, "choose").unlink()
    for phase in ("query", "train", "evaluate"):
        directory.artefact(2, phase).unlink()
    again = resume(directory, local=True)
    assert directory.read_candidates(2).ids.tolist() == chosen[60:].tolist()
    assert again.receipt == result.receipt


def test_a_users_own_pool_is_chosen_from(own, make_config, tmp_path):
    data = make_config().model_dump(mode="json")
    data["pool"], data["select"] = {"kind": f"{own}:Halves"}, {"strategy": "margin", "rounds": 1}
    config = parse_config(data)
    assert isinstance(config.pool, PoolSection) and not config.pool.model_dump().keys() - {"kind"}
    directory = RunDirectory(tmp_path / "run")
    run(config, directory, local=True)
    assert directory.read_candidates(1).columns["lambda"] == [0.5] * 120
    assert load_config(directory.config).pool == config.pool


def test_a_users_own_part_keeps_the_contract_of_all_others(own):
    section = strategies.parse({"strategy": f"{own}:Every", "step": 2})
    pool = MixupPool(torch.zeros(10, 1, 4, 4, dtype=torch.uint8), [0.3, 0.7])
    task = Task(pool=pool, k=4, taken=np.array([0, 4]), generator=np.random.default_rng(0), ask=lambda request: None)
    assert select(section, task).ids.tolist() == [2, 6, 8, 10]
    assert strategies.get(f"{own}:Nested.Deep") is strategies.get(f"{own}:Every")
    assert refusal(select={"strategy": f"{own}:Every", "step": 0}).startswith("select.step: input should be greater")
    assert refusal(select={"strategy": f"{own}:Every", "stepp": 1}).startswith("unknown key 'select.stepp'; ")


@pytest.mark.parametrize(
    ("section", "field", "name", "message"),
    [
        ("select", "strategy", "no_such_module_here:Mine", "cannot import no_such_module_here:Mine "
         "(ModuleNotFoundError: No module named 'no_such_module_here')"),
        ("select", "strategy", "OWN:Missing", "cannot import OWN:Missing (AttributeError: module 'OWN' has no "
         "attribute 'Missing')"),
        ("select", "strategy", "OWN:function", "OWN:function is not a subclass of kdray.select.base.Strategy; see "
         "docs/extending.md"),
        ("select", "strategy", "OWN:Halves", "OWN:Halves is not a subclass of kdray.select.base.Strategy; see "
         "docs/extending.md"),
        ("select", "strategy", "OWN:Idle", "OWN:Idle lacks choose(); see docs/extending.md"),
        ("pool", "kind", "OWN:Every", "OWN:Every is not a subclass of kdray.pools.base.PoolSection; see "
         "docs/extending.md"),
        ("pool", "kind", "OWN:Nowhere", "OWN:Nowhere lacks build(); see docs/extending.md"),
    ],
)  # fmt: skip
def test_a_users_own_part_that_cannot_work_is_one_clear_message(own, section, field, name, message):
    name, message = name.replace("OWN", own), message.replace("OWN", own)
    assert refusal(**{section: {field: name}}) == f"{section}.{field}: {message}"


def test_a_module_that_fails_is_told_why(tmp_path, monkeypatch):
    (tmp_path / "failing_parts.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert refusal(select={"strategy": "failing_parts:Mine"}) == (
        "select.strategy: cannot import failing_parts:Mine (ZeroDivisionError: division by zero)"
    )


# Files


def sections() -> list[dict]:
    """One of each part, with a field of its own where it has some."""
    own_fields = {
        "rad": {"m": 12, "gain": "entropy", "w": 0.7},
        "rad-pairs": {"m": 0.2},
        "vanilla": {"score": "margin"},
    }
    own_fields |= {"mixup": {"lambdas": [0.25, 0.5], "pairs": 12, "search": "exhaustive", "keep": 2.5}}
    own_fields |= {"pairs": {"draws": 3, "blend": {"kind": "cutline", "share": [0.25, 0.5]}, "pre": {"kind": "none"}}}
    chosen = [{"select": {"strategy": name, **own_fields.get(name, {})}} for name in strategies.parts()]
    return chosen + [{"pool": {"kind": name, **own_fields.get(name, {})}} for name in pools.parts()]


@pytest.mark.parametrize("section", sections(), ids=json.dumps)
def test_a_config_with_any_part_is_the_same_after_it_was_written_and_read(section, tmp_path):
    config, path = parse_config(MINIMAL | section), tmp_path / "a.yaml"
    path.write_text(dump_config(config))
    again = load_config(path)
    assert again == config
    (name,) = section
    assert type(getattr(again, name)) is type(getattr(config, name))
    written = yaml.safe_load(path.read_text())[name]
    assert written == getattr(config, name).model_dump(mode="json") and section[name].items() <= written.items()
    assert dump_config(again) == dump_config(config)


def test_a_field_with_a_registry_may_hold_any_of_its_parts():
    for name, registry in (("select", strategies), ("pool", pools)):
        field = Config.model_fields[name]
        assert registry_of(field.annotation, field.metadata) is registry
        assert sections_of(field.annotation, field.metadata) == list(registry.parts().values())
    assert issubclass(strategies.base, Strategy) and registry_of(int | None) is None


def test_a_users_part_derived_from_a_registered_one_says_so_where_it_inherits_the_name(tmp_path, monkeypatch):
    (tmp_path / "derived_parts.py").write_text(
        "from kdray.select.strategies.lowest import Vanilla\n"
        "class Same(Vanilla):\n    pass\n"
        "class Mine(Vanilla):\n    strategy: str\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValidationError, match="inherits the name 'vanilla'; declare 'strategy: str' in it"):
        strategies.parse("derived_parts:Same")
    assert strategies.parse({"strategy": "derived_parts:Mine", "score": "margin"}).score == "margin"


# What it costs to import

HEAVY = ("torch", "numba", "sklearn", "matplotlib", "PIL", "pyarrow", "ray", "aiohttp", "safetensors")


def loaded_by(code: str) -> list[str]:
    """Which heavy modules a process has imported that ran `code`."""
    look = f"\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + look], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1].replace("'", '"'))


def test_naming_strategies_and_pools_imports_nothing_heavy():
    code = """
from kdray.pools.base import pools
from kdray.select.base import strategies
from kdray.select.schedule import evenly
for registry in (strategies, pools):
    for name in registry.parts():
        registry.parse({registry.tag: name})
evenly(100, 10, 2, None)
"""
    assert loaded_by(code) == []


def test_reading_a_config_imports_nothing_heavy():
    code = """
import kdray.config.load as load
from kdray.sections.registry import sections_of
from kdray.config.root import Config
assert load.load_config("examples/digits.yaml").select.strategy == "margin"
for field in Config.model_fields.values():
    sections_of(field.annotation, field.metadata)
"""
    assert loaded_by(code) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "bad.yaml"], 2),
        (["ledger", "empty.sqlite"], 0),
        pytest.param(["--version"], 0, marks=pytest.mark.storm),
        pytest.param(["plan", "bad.yaml"], 2, marks=pytest.mark.storm),
        pytest.param(["train", "--help"], 0, marks=pytest.mark.storm),
        pytest.param(["train", "."], 2, marks=pytest.mark.storm),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_commands_that_need_nothing_heavy_import_nothing_heavy(arguments, code, tmp_path):
    (tmp_path / "bad.yaml").write_text("budgett: {}\n")
    Ledger(tmp_path / "empty.sqlite", 10).close()
    program = f"""
import os, sys
os.chdir({str(tmp_path)!r})
sys.argv = ["kdray", *{arguments!r}]
from kdray.cli.app import main
try:
    main()
except SystemExit as stop:
    assert stop.code == {code}, stop.code
"""
    assert loaded_by(program) == []


def test_the_receipt_of_a_run_imports_nothing_heavy(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((ROOT / "examples" / "digits.yaml").read_text())
    Ledger(run / "ledger.sqlite").close()
    program = f"""
import sys
sys.argv = ["kdray", "ledger", {str(run)!r}]
from kdray.cli.app import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""
    assert loaded_by(program) == []
