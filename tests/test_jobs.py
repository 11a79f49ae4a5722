"""What `ray job submit --working-dir .` sends to the cluster: Ray's own packing, without a cluster."""

import re
import shutil
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clone(tmp_path) -> Path:
    """The project's files, and what a user's copy has besides: 300 MiB."""
    copy = tmp_path / "clone"
    leave = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build")
    shutil.copytree(
        ROOT, copy, ignore=lambda folder, names: leave(folder, names) | ({"runs"} if folder == str(ROOT) else set())
    )
    for name in (
        *(".git/objects/pack/x.pack", ".venv/lib/python3/site-packages/torch/libtorch.so", "runs/demo/ledger.sqlite"),
        *("runs/demo/labelled/round-000.parquet", "runs/teacher.safetensors", "kdray/__pycache__/api.pyc"),
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        with (copy / name).open("wb") as file:
            file.truncate(50 * 2**20)
    return copy


@pytest.mark.parametrize("defaults", [None, ""], ids=["this Ray", "a Ray that leaves nothing out by itself"])
def test_a_clone_with_its_environment_and_runs_stays_far_below_what_a_cluster_takes(
    defaults, clone, tmp_path, monkeypatch
):
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    if defaults is not None:
        monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", defaults)
    package = tmp_path / "package.zip"

    def keep(path: str, excludes: list[str] | None = None, is_file: bool = False) -> None:
        create_package(path, package, include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed({"working_dir": str(clone)}, include_gitignore=True, upload_fn=keep)
    with zipfile.ZipFile(package) as file:
        sizes = {info.filename: info.file_size for info in file.infolist()}
    assert sum(sizes.values()) < 10 * 2**20
    assert {"examples/digits.yaml", "kdray/cli/app.py", "actors/scoring.py", "cluster.yaml"} <= set(sizes)
    left_out = re.compile(r"^(\.git|\.venv|runs)/|__pycache__|\.sqlite|\.safetensors$")
    assert not [name for name in sizes if left_out.search(name)]
    assert "kdray/runs/run.py" in sizes, "not every folder of this name"
