"""The project as a whole: who imports whom, that documents say what the code does, and that examples can be planned."""

import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import command
from processes import processes

from kdray.config.load import load_config
from kdray.sweeps.checks import look_ahead
from kdray.sweeps.config import load_sweep

ROOT = Path(__file__).resolve().parents[1]


def test_import_rules():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


def test_ray_remote_is_said_only_in_the_actors():
    users = [path for path in (ROOT / "kdray").rglob("*.py") if "ray.remote" in path.read_text()]
    assert users == []


def test_the_pages_made_from_the_code_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import write_pages

    choosing = (ROOT / "docs" / "choosing.md").read_text()
    assert (ROOT / "docs" / "config.md").read_text() == write_pages.config_page(), "run make docs"
    assert choosing == write_pages.choosing_page(choosing), "run make docs"
    assert all(f"| `{name}` |" in choosing for name in write_pages.strategies.parts())
    sweeps = (ROOT / "docs" / "sweeps.md").read_text()
    assert sweeps == write_pages.sweeps_page(sweeps), "run make docs"
    assert "| `sweep.budget.queries` | null |" in sweeps


@pytest.mark.storm
@pytest.mark.parametrize("path", sorted((ROOT / "tune_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_that_comes_with_kdray_has_valid_trials(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    outlook = look_ahead(load_sweep(path))
    assert outlook.trials > 1 and f"[{path.name}]" in (ROOT / "docs" / "sweeps.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_config(path):
    assert load_config(path).budget.queries > 0


def test_the_command_knows_its_version():
    """The one of pyproject.toml, and those of what it stands on."""
    told = command("--version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    others = f"torch {version('torch')}, ray {version('ray')}"
    assert (told.returncode, told.stdout) == (
        0,
        f"kdray {project['version']}, Python {platform.python_version()}, {others}\n",
    )


def test_the_readme_names_only_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    commands = subprocess.run([sys.executable, "-m", "kdray", "--help"], capture_output=True, text=True).stdout
    named = set(re.findall(r"^kdray (\w+) .*#|^\| `kdray (\w+)", text, flags=re.MULTILINE))
    assert len(named) >= 5
    for name in {name for pair in named for name in pair if name}:
        assert re.search(rf"\b{name}\b", commands), name


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_recorded_figures_name_the_command_that_makes_them(path):
    program, script, *_ = json.loads(path.read_text())["command"].split()
    assert program == "python" and not Path(script).is_absolute() and (ROOT / script).exists()


def test_figures_are_kept_with_a_command_for_the_root_of_the_project(tmp_path):
    process = processes.Process(target=keep_figures, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    kept = json.loads((tmp_path / "x.json").read_text())
    assert kept["command"] == "python benchmarks/draw.py --all"
    assert kept["machine"]["commit"] != ""


def keep_figures(folder: Path) -> None:
    """What a benchmark does at its end, started from somewhere else."""
    os.chdir(folder)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import machine

    machine.RESULTS = folder
    sys.argv = [str(ROOT / "benchmarks" / "draw.py"), "--all"]
    machine.keep("x", {})


def test_links_lead_to_files_and_headings_of_the_repository():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.split("\0"))
    pages = {name: (ROOT / name).read_text() for name in tracked if name.endswith(".md")}
    checked = 0
    for name, text in pages.items():
        for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
            path, _, heading = target.partition("#")
            file = os.path.normpath(Path(name).parent / path) if path else name
            assert file in tracked or any(one.startswith(f"{file}/") for one in tracked), f"{name}: {target}"
            if heading:
                assert heading in headings(pages[file]), f"{name}: {target}"
            checked += 1
    assert checked > 200


def headings(text: str) -> set[str]:
    """What links to the headings of a page end in: lower case, no punctuation, hyphens for spaces, and numbers from the
    second of a name on."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M):
        plain = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        same = (f"{plain}-{number}" if number else plain for number in itertools.count())
        found.add(next(one for one in same if one not in found))
    return found
