"""Parts that several tests share: a trained teacher, a small config, a Ray."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

# Set before Ray is imported anywhere: a cluster started by a test is a throw-away, and dies quickly.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_ADDRESS"] = ""
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def digits_config(weights: Path, **changes) -> dict:
    """The demo in small: 40 images, 160 queries, two rounds, a few seconds."""
    config = {
        "seed": 3,
        "images": {"source": "digits", "rows": "1000:1400", "count": 40, "size": 16},
        "test": {"source": "digits", "rows": "1400:1500", "size": 16},
        "teacher": {"kind": "local", "model": "small-cnn", "weights": str(weights), "batch_size": 16},
        "budget": {"queries": 160},
        "pool": {"lambdas": [0.3, 0.5, 0.7]},
        "select": {"strategy": "active-mixup", "rounds": 2},
        "student": {"model": "small-cnn", "epochs": 4, "augment": {"shift": 1}},
        "resources": {"chunk": 256, "trainer": {"threads": 1}},
    }
    for key, value in changes.items():
        section = config
        *path, last = key.split("__")
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return config


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory) -> Path:
    """A small-cnn teacher for 16x16 digits, trained once for all tests."""
    from kdray.config import Config
    from kdray.teachers.build import train_teacher

    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    data = digits_config(path)
    data["teacher"]["train"] = {"images": {"source": "digits", "rows": "0:600", "size": 16}, "epochs": 6}
    train_teacher(Config.model_validate(data).teacher)
    return path


@pytest.fixture
def config_file(tmp_path, teacher_weights):
    """Writes a digits config with changes (`section__key=value`) and gives its path."""

    def write(**changes) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(digits_config(teacher_weights, **changes)))
        return path

    return write


@pytest.fixture
def make_config(teacher_weights):
    """A parsed digits config with changes (`section__key=value`)."""
    from kdray.config_file import parse_config

    return lambda **changes: parse_config(digits_config(teacher_weights, **changes))


@pytest.fixture(scope="session")
def ray_local():
    """A Ray of two CPUs for all tests that need one in this process."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def kdray(*arguments, cwd: Path, env: dict | None = None, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run the command line as a user does; one thread, so that tests do not wait for each other's cores."""
    return subprocess.run(
        [sys.executable, "-m", "kdray", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"} | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def shared_data(name: str) -> Path:
    """A file of real images beside the project."""
    path = SHARED / name
    if not path.exists():
        pytest.fail(f"this test needs {path}, which lies beside the project; see shared/data/README.md")
    return path


def copy_run(source: Path, target: Path) -> Path:
    """A run directory copied, as a power cut would leave it."""
    return Path(shutil.copytree(source, target))
