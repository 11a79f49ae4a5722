"""Parts that several tests share: a trained teacher, a small config, a Ray."""

import asyncio
import contextlib
import copy
import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

from kdray.observers.base import Observer

# Set before Ray is imported anywhere: what surrounds the tests is no business of theirs, and a cluster that a test
# starts is a throw-away, and dies quickly.
for name in [name for name in os.environ if name.startswith(("RAY_", "KDRAY_"))]:
    del os.environ[name]
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ADDRESS"] = ""
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"  # a process for each core: with more threads they would wait for one another
os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112 -- Ray spells it so
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 -- else all that is not Ray's comes first, and its tests last
os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112 -- a process for each CPU, and few are used

# Tests of runs wait for the disk for a third of their time, and none can tell whether their files lie on one.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 8 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# A test fails for what it finds, not for the time it takes beside other work.
settings.register_profile("kdray", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
settings.register_profile("kdray-without-storms", settings.get_profile("kdray"), max_examples=25)

gc.disable()  # until all tests are found: what is imported stays

# A shell that starts the tests in the background has them ignore Ctrl-C, and all they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """A property is tried on a quarter of its examples where storms are left out, on other ones each time."""
    settings.load_profile("kdray-without-storms" if "not storm" in config.option.markexpr else "kdray")


def examples(count: int, **others: Any) -> settings:
    """Settings of a property that takes longer or shorter than most: `count` examples where storms run."""
    share = settings().max_examples / settings.get_profile("kdray").max_examples
    return settings(max_examples=max(5, round(count * share)), **others)


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that needs a Ray runs in one worker, one test after the other: there is one Ray, and nobody in its way. What
    shares a fixture of its module runs in one worker, too, which makes it once."""
    for item in items:
        if "ray_local" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif item.get_closest_marker("xdist_group") is None and _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _shares_a_fixture(item: pytest.Item) -> bool:
    known = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    return any(found[-1].scope == "module" for found in known.values())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Ray ends after its last test, and not with the process: idle, it takes an eighth of a core from all others."""
    yield
    if hasattr(item.config, "workerinput") and _group(item) == "ray" != _group(nextitem):
        import ray

        ray.shutdown()


def _group(item: pytest.Item | None) -> str | None:
    marker = None if item is None else item.get_closest_marker("xdist_group")
    return None if marker is None else marker.args[0]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups show in the names of tests; where they do not, each worker would start a Ray of its own."""
    gc.freeze()
    gc.enable()
    if getattr(session.config.option, "loadgroup", False):
        grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
        assert all("@" in item.nodeid for item in grouped), "this pytest-xdist does not group tests"


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
        "student": {"model": "mlp", "epochs": 6, "batch_size": 64, "lr": 0.2, "augment": {"shift": 1}},
        "resources": {"chunk": 256, "trainer": {"threads": 1}},
    }
    for key, value in changes.items():
        section = config
        *path, last = key.split("__")
        for name in path:
            section = section.setdefault(name, {})
        section[last] = copy.deepcopy(value)  # a later key may change a part of it, and a test shares its constants
    return config


@pytest.fixture(autouse=True)
def same_folder() -> Iterator[None]:
    """Each test ends in the folder where it began: its own is gone for the next one."""
    before = Path.cwd()
    yield
    assert Path.cwd() == before, "this test left another current folder; monkeypatch.chdir goes back"


@pytest.fixture
def own(tmp_path, monkeypatch) -> Callable[[str], str]:
    """Writes a user's module into the current folder and gives its name; Python forgets it after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"own_{tmp_path.name.replace('-', '_')}"

    def write(text: str) -> str:
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory, worker_id) -> Path:
    """A small-cnn teacher for 16x16 digits, trained once for all tests of all workers."""
    from kdray.config.root import Config
    from kdray.teachers.recipe import train_teacher

    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent  # which the workers of one `pytest` share
    path = folder / "shared-teacher" / "teacher.safetensors"
    data = digits_config(path)
    data["teacher"]["train"] = {"images": {"source": "digits", "rows": "0:600", "size": 16}, "epochs": 6}
    path.parent.mkdir(exist_ok=True)
    with open(folder / "shared-teacher.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
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
    from kdray.config.load import parse_config

    return lambda **changes: parse_config(digits_config(teacher_weights, **changes))


class StopAtPhase(Observer):
    """Interrupts a run as Ctrl-C would, at the beginning of its n-th phase."""

    def __init__(self, when: int) -> None:
        self.left = when

    def phase(self, round: int, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Notes(Observer):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def on_workers(config):
    """The config with two scoring workers, and training in a worker, on Ray; its teacher is asked here."""
    trainer = config.resources.trainer.model_copy(update={"where": "worker"})
    workers = {"scoring_workers": 2, "teacher_workers": 0, "trainer": trainer}
    resources = config.resources.model_copy(update=workers)
    return config.model_copy(update={"resources": resources})


@pytest.fixture(scope="session")
def ray_local():
    """A Ray of four CPUs for all tests that need one in this process."""
    import ray

    from actors.cluster import start_local

    start_local(num_cpus=4, object_store_memory=256 * 2**20)
    yield ray
    ray.shutdown()


def command(*arguments: object, cwd: Path | None = None, env: dict | None = None) -> subprocess.CompletedProcess:
    """Run the command line in this process: quick, and enough where it is not the process that matters."""
    from typer.testing import CliRunner

    from kdray.cli.app import app

    with contextlib.chdir(cwd or Path.cwd()):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"} | (env or {}))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception  # a user would see a traceback
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def actor_pids(kind: str, name: str | None = None) -> list[int]:
    """Processes of living actors of a class, or of the one of that name, in the Ray that this process is connected to:
    nobody else's may be counted or killed."""
    from ray._private.state import actors

    return [
        actor["Pid"]
        for actor in actors().values()
        if (actor["ActorClassName"], actor["State"]) == (kind, "ALIVE") and name in (None, actor["Name"])
    ]


@contextlib.contextmanager
def served(teacher, image_shape: tuple[int, int, int], *middlewares, classes=None, **options) -> Iterator[str]:
    """A teacher behind HTTP, in a thread of this process, on a free port; its address.

    Args:
        middlewares: of aiohttp, around every request.
        classes: their names.
        options: of `kdray.teachers.server.ServeOptions`.
    """
    from kdray.teachers.server import ServeOptions, make_app

    app = make_app(teacher, image_shape, ServeOptions(**options), classes)
    app.middlewares.extend(middlewares)
    with running(app) as url:
        yield url


@contextlib.contextmanager
def running(app) -> Iterator[str]:
    """An aiohttp application, in a thread of this process, on a free port; its address."""
    from aiohttp import web

    ready, port, loop = threading.Event(), [], asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.append(runner.addresses[0][1])
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert ready.wait(30)
        yield f"http://127.0.0.1:{port[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def shared_data(name: str) -> Path:
    """A file of real images beside the project."""
    path = SHARED / name
    if not path.exists():
        pytest.fail(f"this test needs {path}, which lies beside the project; see shared/data/README.md")
    return path


def copy_run(source: Path, target: Path) -> Path:
    """A run directory copied, as a power cut would leave it."""
    return Path(shutil.copytree(source, target))
