"""docs/extending.md: the parts in it are written to a module and run, as they stand there."""

import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from kdray.config.load import dump_config, load_config, parse_config
from kdray.models.classifier import build_model
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run

GENERATOR = 'pool: {kind: generator, network: "my_parts:Dense"}\n'
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def my_parts(tmp_path, monkeypatch) -> Path:
    """A folder with the page's module in it, from which kdray is started."""
    (tmp_path / "my_parts.py").write_text("\n\n".join(blocks("python")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_parts", None)


def merged(sections: list[str]) -> dict:
    config: dict = {}
    for text in sections:
        for name, section in yaml.safe_load(text).items():
            config[name] = {**config.get(name, {}), **section}
    return config


def test_a_run_of_nothing_but_the_pages_own_parts(my_parts):
    data = merged([block for block in blocks("yaml") if block != GENERATOR])
    assert sorted(data) == ["images", "pool", "select", "student", "teacher"]
    data |= {"budget": {"queries": 100}, "resources": {"trainer": {"threads": 1}}}
    data["student"]["epochs"] = 3
    config = parse_config(data)
    assert (config.select.wide, config.student.loss.scale, config.teacher.threshold) == (3, 10, 80)
    assert config.student.augment.most == 5
    result = run(config, RunDirectory(my_parts / "run"), local=True)
    # An image of round 0 that is chosen again as a candidate has its answer already, and costs nothing.
    assert result.receipt.queries + result.receipt.reused == 100
    assert [m.images for m in result.history] == [60, 80, 100]
    chosen = RunDirectory(my_parts / "run").read_candidates(2)
    assert chosen.source == "mirrored" and set(chosen.columns) == {"image", "mirrored"}
    assert load_config(my_parts / "run" / "config.yaml") == parse_config(yaml.safe_load(dump_config(result.config)))


def test_the_class_of_networks_is_a_model_as_well(my_parts):
    assert build_model("my_parts:Averages", (1, 16, 16), 3, seed=0)(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_a_run_whose_candidates_are_those_of_the_pages_own_generator(my_parts):
    data = merged([block for block in blocks("yaml") if "teacher:" in block or "images:" in block] + [GENERATOR])
    data["pool"]["steps"] = 2
    data |= {"budget": {"queries": 100}, "select": {"strategy": "random", "rounds": 2}}
    data |= {"student": {"model": "lenet5", "steps": 5}, "resources": {"trainer": {"threads": 1}}}
    result = run(parse_config(data), RunDirectory(my_parts / "run"), local=True)
    assert [m.images for m in result.history] == [60, 80, 100]
    kept = safetensors.torch.load_file(my_parts / "run" / "rounds" / "002" / "pool.safetensors")
    assert kept["generator.0.weight"].shape == (256, 100 + 2), "of Dense: noise and a class of two"


def test_every_kind_of_part_has_its_example():
    table = re.findall(r"^\| (\w[\w ]*) \| `kdray/([\w/]+)/`", PAGE, flags=re.MULTILINE)
    assert len(table) == 8
    for kind, package in table:
        assert re.search(rf"^## An? {kind}$", PAGE, flags=re.MULTILINE), kind
        assert (Path(__file__).resolve().parents[1] / "kdray" / package).is_dir(), package
