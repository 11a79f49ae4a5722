"""A wheel works without the clone: the configs that come with kdray are inside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from kdray.config.files import bundled

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what a wheel installs, and nothing of the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # pip leaves its own files beside what it builds
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if name.startswith(("kdray/", "actors/", "examples/", "tune_configs/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, "-w", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("kdray-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def kdray(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.storm
def test_everything_that_is_no_code_is_in_the_wheel(installed):
    inside = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    for folder in ("examples", "tune_configs"):
        for path in (ROOT / folder).glob("*.yaml"):
            assert f"kdray/{folder}/{path.name}" in inside
    for path in (ROOT / "kdray").rglob("*"):
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in inside, path
    assert not [name for name in inside if name.startswith(("tests", "benchmarks", "docs"))]


@pytest.mark.storm
def test_a_config_that_is_not_here_is_the_installed_one(installed, tmp_path):
    done = kdray(installed, "plan", "examples/digits.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1,000 = 100 for the images" in done.stdout and not (tmp_path / "examples").exists()
    done = kdray(installed, "plan", "examples/nothing.yaml", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("kdray: no config file at examples/nothing.yaml")


@pytest.mark.storm
@pytest.mark.long
def test_the_demo_runs_from_a_wheel(installed, tmp_path):
    done = kdray(installed, "demo", "--local", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("demo-*")
    assert (folder / "report.html").exists() and "1,000 of 1,000" in done.stdout


def test_what_is_here_comes_before_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("examples/digits.yaml")
    assert bundled(name) == ROOT / name and yaml.safe_load(bundled(name).read_text())["budget"]["queries"] == 1000
    name.parent.mkdir()
    name.write_text("budget: {queries: 7}")
    assert bundled(name) == name
    for other in (Path("configs/digits.yaml"), Path("examples/nothing.yaml"), Path("digits.yaml"), tmp_path / "x.yaml"):
        assert bundled(other) == other
