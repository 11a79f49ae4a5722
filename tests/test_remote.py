"""Runs at an address: a folder behind file://, and an S3 server in this process.

A machine that is lost is a work folder that is deleted, or another KDRAY_RUNS."""

import contextlib
import json
import re
import shutil
import signal
import socket
import sqlite3
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Notes, command, digits_config
from processes import Program

from kdray.errors import ConfigError, RunDirectoryError
from kdray.observers import Observer, Observers
from kdray.runs import remote
from kdray.runs.directory import RunDirectory
from kdray.runs.ownership import OWNER, Owner, Pace, read_owner
from kdray.runs.remote import MANIFEST, copy_ledger, mirrored, work_folder
from kdray.runs.result import read_result
from kdray.runs.run import run
from kdray.runs.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
STORM = (pytest.mark.storm, pytest.mark.long)
pytestmark = pytest.mark.xdist_group("remote")  # one S3 server

HOST = socket.gethostname()
QUICK = Pace(push=0.0, beat=0.05, patience=0.3)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server with one bucket; its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
    yield url
    server.stop()


@pytest.fixture
def machine(s3, tmp_path, monkeypatch):
    """This machine's folder for runs, and its way to the storage. Called with a name, it is another machine."""
    for name, value in (("ENDPOINT_URL", s3), ("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.chdir(tmp_path)

    def become(name: str) -> Path:
        monkeypatch.setenv("KDRAY_RUNS", str(tmp_path / name))
        host = HOST if name == "first" else name
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        return tmp_path / name

    become("first")
    return become


@pytest.fixture(params=["file", "s3"])
def address(request, tmp_path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/storage/run"
    return f"s3://bucket/{tmp_path.name}/run"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, teacher_weights):
    """The same run in a local folder."""
    from kdray.config.load import parse_config

    directory = RunDirectory(tmp_path_factory.mktemp("undisturbed") / "run")
    return run(parse_config(digits_config(teacher_weights, student__epochs=1)), directory, local=True)


def student(path: Path) -> bytes:
    return (path / "student.safetensors").read_bytes()


def fetched(address: str, folder: Path) -> RunDirectory:
    """All files at an address, copied as they are."""
    storage = Storage(address)
    for path in storage.list():
        storage.get(path, folder / path)
    return RunDirectory(folder)


@pytest.mark.storm
@pytest.mark.parametrize("address", ["s3", pytest.param("file", marks=STORM)], indirect=True)
def test_what_is_at_the_address_is_the_run(machine, address, config_file, tmp_path, undisturbed):
    done = command("run", config_file(student__epochs=1), "--local", "--out", address)
    assert done.returncode == 0, done.stderr
    assert f"run    {address}" in done.stdout
    work = work_folder(address)
    assert work.is_relative_to(tmp_path / "first" / "remote")
    there = fetched(address, tmp_path / "copy")
    local = {path.relative_to(work) for path in work.rglob("*") if path.is_file()} - {Path(".lock")}
    copied = {path.relative_to(there.path) for path in there.path.rglob("*") if path.is_file()}
    assert copied == local | {Path(MANIFEST)}
    for path in local - {Path("ledger.sqlite")}:
        assert (there.path / path).read_bytes() == (work / path).read_bytes(), path
    (there.path / MANIFEST).unlink()
    result = read_result(there)
    assert result.receipt == undisturbed.receipt
    assert student(there.path) == student(undisturbed.directory)
    assert json.loads(there.status.read_text())["state"] == "finished"
    status = command("status", address)
    assert status.returncode == 0 and "finished" in status.stdout


@pytest.mark.parametrize(
    ("line", "address"),
    [
        pytest.param("round 1/2 asking", "file", marks=STORM),
        pytest.param("round 1/2 asking", "s3", marks=STORM),
        pytest.param("round 2/2 training", "file", marks=STORM),
    ],
    indirect=["address"],
)
def test_a_lost_machine_costs_no_query_twice(line, machine, address, config_file, tmp_path, undisturbed):
    """Killed in the middle, and its disk is gone."""
    path = config_file(student__epochs=1)
    with Program("run", path, "--local", "--out", address) as process:
        assert any(said.startswith(line) for said in process.stderr), line
        process.kill()
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "second", ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRAY_RUNS", str(tmp_path / "second"))  # the host is the same, and sees that the process is dead
        done = command("resume", address, "--local")
        work = work_folder(address)
    assert done.returncode == 0, done.stderr
    assert "fetched" in done.stderr
    result = read_result(RunDirectory(work))
    assert student(work) == student(undisturbed.directory)
    assert (result.receipt.queries, result.receipt.uncertain) == (160, 0)
    assert result.receipt == undisturbed.receipt


class Stop(Observer):
    """Ends a run the hard way: the files at the address stay as they are at that moment."""

    def __init__(self, when: int) -> None:
        self.when = when

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        if spent is not None and spent >= self.when:
            raise KeyboardInterrupt


@pytest.mark.parametrize("address", ["file", pytest.param("s3", marks=STORM)], indirect=True)
def test_answers_of_a_phase_under_way_are_not_lost(machine, address, make_config, tmp_path, undisturbed):
    """The ledger is copied while the teacher is asked, so that no artefact shows these answers yet."""
    with mirrored(address, Notes(), QUICK) as (directory, mirror):
        with pytest.raises(KeyboardInterrupt):
            run(make_config(student__epochs=1), directory, local=True, observer=Observers([mirror, Stop(116)]))
        mirror.push = lambda needed=False: None  # the machine is lost: nothing is copied at its end
    copy = tmp_path / "copy.sqlite"
    Storage(address).get("ledger.sqlite", copy)
    with contextlib.closing(sqlite3.connect(copy)) as db:
        ((answers,),) = db.execute("SELECT count(*) FROM answers").fetchall()
    assert answers >= 116
    assert "rounds/002/labelled.parquet" not in Storage(address).list()
    machine("second")
    with mirrored(address, Notes(), QUICK) as (directory, mirror):
        result = run(make_config(student__epochs=1), directory, local=True, observer=mirror)
    assert result.receipt.queries == 160
    assert student(directory.path) == student(undisturbed.directory)


class Failing(Storage):
    """Breaks at a write, as a network does."""

    after = 10**9

    def put(self, path: str, source: Path | bytes) -> None:
        if path != OWNER:
            type(self).after -= 1
            if type(self).after < 0:
                raise RunDirectoryError(f"{path} is cut off")
        super().put(path, source)


@pytest.mark.parametrize(
    "after",
    [12, pytest.param(30, marks=pytest.mark.storm), *(pytest.param(k, marks=STORM) for k in (0, 6, 18, 24, 36, 42))],
)
def test_a_copy_cut_off_anywhere_is_gone_on_with_and_nothing_is_paid_twice(
    after, machine, tmp_path, make_config, undisturbed, monkeypatch
):
    """After so many writes nothing more arrives, and the machine is lost at the end of its work."""
    address = f"file://{tmp_path}/storage/run"
    monkeypatch.setattr(remote, "Storage", Failing)
    monkeypatch.setattr(remote, "_TOGETHER", 1)
    monkeypatch.setattr(Failing, "after", after)
    cut_off = pytest.raises(RunDirectoryError, match="is cut off; all is kept in")
    with cut_off, mirrored(address, Notes(), QUICK) as here:
        run(make_config(student__epochs=1), here[0], local=True, observer=here[1])
    monkeypatch.setattr(remote, "Storage", Storage)
    machine("second")
    files = Storage(address).list()
    rounds = [path for path in files if path.endswith("/labelled.parquet") and path.startswith("rounds")]
    if rounds:
        Storage(address).get("ledger.sqlite", tmp_path / "copy.sqlite")
        with contextlib.closing(sqlite3.connect(tmp_path / "copy.sqlite")) as db:
            ((answers,),) = db.execute("SELECT count(*) FROM answers").fetchall()
        assert answers >= {1: 40, 2: 100, 3: 160}[len(rounds)], "an artefact's answers are in the ledger"
    with mirrored(address, Notes(), QUICK) as (directory, mirror):
        result = run(make_config(student__epochs=1), directory, local=True, observer=mirror)
    assert result.receipt.queries == 160
    assert student(directory.path) == student(undisturbed.directory)


@pytest.mark.storm
@pytest.mark.parametrize("address", ["file"], indirect=True)
def test_the_same_machine_goes_on_with_its_own_files(machine, address, config_file):
    path = config_file(student__epochs=60)
    with Program("run", path, "--local", "--out", address) as process:
        assert any(line.startswith("round 1/2 training") for line in process.stderr)
        process.terminate()
        said = process.stderr.read()
        assert process.wait() == 130
    assert said.strip().splitlines()[-1] == f"kdray: stopped; nothing is lost. Go on with: kdray resume {address}"
    status = command("status", address)
    assert status.returncode == 1 and "stopped" in status.stdout and f"kdray resume {address}" in status.stdout
    done = command("resume", address, "--local")
    assert done.returncode == 0 and "fetched" not in done.stderr


@pytest.mark.storm
@pytest.mark.parametrize("address", ["file", pytest.param("s3", marks=STORM)], indirect=True)
def test_files_that_another_machine_went_on_from_are_set_aside(machine, address, make_config, tmp_path, undisturbed):
    def go(rounds_done: int | None) -> Notes:
        notes = Notes()
        with contextlib.suppress(KeyboardInterrupt), mirrored(address, notes, QUICK) as (directory, mirror):
            stop = Stop(10**9 if rounds_done is None else rounds_done)
            run(make_config(student__epochs=1), directory, local=True, observer=Observers([mirror, stop]))
        return notes

    go(60)
    machine("second")
    assert "fetched" in go(120).texts[0]
    machine("first")
    notes = go(None)
    assert "was changed by another machine" in notes.texts[0] and "fetched" in notes.texts[1]
    assert len([path for path in (tmp_path / "first" / "remote").iterdir() if path.is_dir()]) == 2
    result = read_result(RunDirectory(work_folder(address)))
    assert result.receipt == undisturbed.receipt and student(result.directory) == student(undisturbed.directory)


# Who works there


def test_two_machines(machine, address, make_config):
    with mirrored(address, Notes(), QUICK):
        machine("second")
        notes = Notes()
        refused = pytest.raises(
            RunDirectoryError, match=rf"process \d+ on {re.escape(HOST)} is working on .*; wait for it"
        )
        with refused, mirrored(address, notes, Pace(beat=0.5, patience=20)):
            pass
        assert "looking for 20 s" in notes.texts[0]
    with mirrored(address, Notes(), QUICK):
        pass


def test_a_machine_that_gives_no_sign_is_followed_by_another(machine, address):
    Storage(address).put(OWNER, json.dumps(vars(Owner(token="x", host="gone", pid=1, beat=7, time=0.0))).encode())
    notes = Notes()
    with mirrored(address, notes, QUICK):
        assert read_owner(Storage(address)).host == HOST
    assert "process 1 on gone has worked" in notes.texts[0]
    assert read_owner(Storage(address)) is None


@pytest.mark.parametrize("number", [5, pytest.param(20, marks=pytest.mark.storm)])
def test_a_file_that_is_replaced_meanwhile_is_read_whole(number, machine, address, tmp_path):
    """An object store tells the size first and gives the bytes afterwards."""
    whole, storage, target = [b"a" * 10, b"b" * 1000], Storage(address), tmp_path / "got"
    storage.put("file", whole[0])
    turns, written = threading.Semaphore(0), threading.Semaphore(0)

    def write() -> None:
        for turn in range(number):
            turns.acquire()
            Storage(address).put("file", whole[(turn + 1) % 2])
            written.release()

    with ThreadPoolExecutor(1) as other:
        writing = other.submit(write)
        read = set()
        try:
            for _ in range(number):
                turns.release()  # one is written meanwhile
                for _ in range(2):
                    read.add(storage.read("file"))
                    storage.get("file", target)
                    read.add(target.read_bytes())
                assert written.acquire(timeout=60)
                read.add(storage.read("file"))
        finally:
            turns.release(number)
        writing.result()
    assert read == set(whole)


def test_a_file_that_is_not_there(machine, address, tmp_path):
    storage = Storage(address)
    storage.put("other", b"")
    assert storage.read("file") is None and storage.read("other") == b""
    with pytest.raises(RunDirectoryError, match="cannot read file: it is not there"):
        storage.get("file", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_machine_that_was_taken_for_dead_stops_before_it_asks_or_copies(machine, address, make_config):
    other = Owner(token="x", host="second", pid=1, beat=0, time=0.0)

    class Taken(Observer):
        def phase(self, round: int, name: str) -> None:
            if (round, name) == (1, "query"):
                Storage(address).put(OWNER, json.dumps(vars(other)).encode())

    stopped = pytest.raises(RunDirectoryError, match="process 1 on second has begun to work")
    with stopped, mirrored(address, Notes(), Pace(push=10**6, beat=10**6)) as (directory, mirror):
        run(make_config(student__epochs=1), directory, local=True, observer=Observers([Taken(), mirror]))
    assert json.loads(directory.status.read_text())["queries"] == 40 + 60 * 0
    assert read_owner(Storage(address)) == other
    assert json.loads(Storage(address).read("status.json"))["phase"] == "choose"


@pytest.mark.parametrize("address", ["file"], indirect=True)
def test_status_at_an_address_of_a_machine_that_is_lost(machine, address, config_file):
    with Program("run", config_file(student__epochs=1), "--local", "--out", address) as process:
        assert any(line.startswith("round 1/2 choosing") for line in process.stderr)
        process.send_signal(signal.SIGSTOP)  # it stays there, however long the command takes
        running = command("status", address)
        process.kill()
    assert running.returncode == 3 and "running" in running.stdout
    storage = Storage(address)
    owner = read_owner(storage)
    storage.put(OWNER, json.dumps(vars(owner) | {"time": owner.time - 3600}).encode())
    done = command("status", address)
    assert done.returncode == 1 and "killed" in done.stdout


# Bad input


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("s3://missing/run", "NO_SUCH_BUCKET"),
        ("s3://bucket", "names a whole bucket; add the name of a folder: s3://bucket/NAME"),
        ("s3://id:secret@bucket/run", "credentials in an address"),
        ("s4://bucket/run", "is no address that pyarrow knows"),
        ("http://bucket/run", "is no address that pyarrow knows"),
        ("s3://[bucket/run", "is no address that pyarrow knows"),
        ("s3:/bucket/run", "is no address that pyarrow knows"),
        ("gs://anonymous@bucket/run?scheme=http&endpoint_override=127.0.0.1%3A1&retry_limit_seconds=1", "cannot "),
    ],
)
@pytest.mark.parametrize("verb", ["run", "resume", "status"])
def test_addresses_that_cannot_be_used(verb, where, message, machine, config_file, tmp_path):
    arguments = {
        "run": ["run", config_file(student__epochs=1), "--local", "--out", where],
        "resume": ["resume", where, "--local"],
    }
    done = command(*arguments.get(verb, ["status", where]))
    assert done.returncode == 2
    if (verb, where) == ("status", "s3://missing/run"):
        message = "holds no run"
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert "secret" not in done.stderr.replace("AWS_SECRET_ACCESS_KEY", "")
    assert not list(tmp_path.glob("first/remote/*/ledger.sqlite"))


def test_no_credentials(machine, config_file, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = command("run", config_file(student__epochs=1), "--local", "--out", "s3://bucket/none")
    assert done.returncode == 2 and "s3://bucket/none: cannot write owner.json" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_holds_something_else(machine, address, config_file):
    Storage(address).put("thesis.tex", b"x")
    done = command("run", config_file(student__epochs=1), "--local", "--out", address)
    assert done.returncode == 2 and "is not empty and holds no run" in done.stderr
    assert set(Storage(address).list()) == {"thesis.tex"}


def test_no_run_there(machine, address):
    done = command("resume", address, "--local")
    assert done.returncode == 2 and f"{address} holds no run" in done.stderr
    assert command("status", address).returncode == 2


def test_a_shared_ledger_is_refused(machine, address, config_file, tmp_path):
    done = command(
        "run", config_file(student__epochs=1), f"ledger.path={tmp_path}/shared.sqlite", "--local", "--out", address
    )
    assert done.returncode == 2 and "ledger.path: a run at an address" in done.stderr
    assert Storage(address).list() == {}


@pytest.mark.parametrize("address", ["file"], indirect=True)
def test_another_config_is_refused(machine, address, config_file):
    done = command("run", config_file(select__rounds=0, budget__queries=40), "--local", "--out", address)
    assert done.returncode == 0, done.stderr
    machine("second")
    done = command("run", config_file(select__rounds=0, budget__queries=39), "--local", "--out", address)
    assert done.returncode == 2 and f"{address} holds a run of another config" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["report"], ["ledger"], ["sweep", ROOT / "tune_configs" / "budgets.yaml", "--out"]]
)
def test_other_commands_say_what_to_do(arguments, machine):
    done = command(*arguments, "s3://bucket/run")
    assert done.returncode == 2 and "give a local path" in done.stderr


def test_a_ledger_is_copied_whole_while_others_write(tmp_path):
    source = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    source.execute("PRAGMA journal_mode = WAL")
    source.execute("CREATE TABLE t (x)")
    source.execute("INSERT INTO t VALUES (1)")
    source.execute("BEGIN IMMEDIATE")
    source.execute("INSERT INTO t VALUES (2)")
    copy_ledger(tmp_path / "a.sqlite", tmp_path / "b.sqlite")
    source.execute("COMMIT")
    source.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "b.sqlite")) as copy:
        assert copy.execute("SELECT x FROM t").fetchall() == [(1,)]
    assert [path.name for path in tmp_path.glob("b.sqlite*")] == ["b.sqlite"]


def test_a_file_arrives_whole_or_not_at_all(tmp_path):
    storage = Storage(f"file://{tmp_path}/s")
    storage.put("a/b", b"old")

    class Broken(type(tmp_path)):
        def open(self, *arguments, **options):
            raise OSError("the disk is gone")

    with pytest.raises(RunDirectoryError, match="cannot write a/b: the disk is gone"):
        storage.put("a/b", Broken(tmp_path / "x"))
    assert storage.read("a/b") == b"old" and storage.list() == {"a/b": 3}
    assert storage.read("a/c") is None
    with pytest.raises(ConfigError, match="is no address"):
        Storage("nothing")
