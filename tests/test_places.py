"""Where kdray may not write, and where it cannot show every character."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import yaml
from conftest import command, copy_run, digits_config

from kdray.errors import ConfigError, LedgerError
from kdray.ledger import Ledger
from kdray.utils.files import check_writable


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights) -> Path:
    """A finished run of one round, with a price in a currency that ASCII does not have."""
    folder = tmp_path_factory.mktemp("finished")
    changes = {"budget__queries": 50, "select__rounds": 1, "student__epochs": 1}
    changes |= {"budget__price_per_query": 0.5, "budget__currency": "€"}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(digits_config(teacher_weights, **changes)))
    done = command("run", config, "--local", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def without_privileges() -> None:
    """Root may no longer write what is read-only: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are given up."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for low in (0, 1):  # effective and permitted, capabilities 0 to 31
        sets[low] &= ~0b110
    assert libc.capset(header, sets) == 0


def kdray(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """`kdray ARGUMENTS` in a process that may write only what its user may."""
    return processes.kdray(*arguments, cwd=cwd, env={"MPLCONFIGDIR": str(cwd)}, first=without_privileges)


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in root.rglob("*")
    }


@pytest.fixture
def read_only(finished, tmp_path):
    """A copy of the finished run in which nothing can be written."""
    run = copy_run(finished, tmp_path / "run")
    paths = [run, *run.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    yield run
    for path in paths:
        path.chmod(path.stat().st_mode | 0o700)


def _writes(path: Path) -> None:
    without_privileges()
    (path / "x").touch()


@pytest.mark.storm
def test_a_finished_run_is_read_where_nothing_can_be_written(read_only, tmp_path):
    """The receipt, the end of the run again, and a report somewhere else; no file is made or changed."""
    work, before = tmp_path / "work", everything(read_only)
    work.mkdir()
    writer = processes.processes.Process(target=_writes, args=(read_only,))
    writer.start()
    writer.join()
    assert writer.exitcode == 1, "this test needs a place that is read-only"
    ledger = kdray("ledger", read_only, "--export", work / "answers.parquet", cwd=work)
    assert ledger.returncode == 0, ledger.stderr
    assert "training budget of the run" in ledger.stdout and "0.00 €" in ledger.stdout
    assert (work / "answers.parquet").exists()
    resumed = kdray("resume", read_only, "--local", cwd=work)
    assert resumed.returncode == 0, resumed.stderr
    told = " ".join(resumed.stdout.split())
    assert "50 of 50 training queries for 25.00 €" in told
    assert f"not written, the run is read-only: kdray report {read_only} --out FILE" in told
    report = kdray("report", read_only, cwd=work)
    assert report.returncode == 2 and "--out: cannot write" in report.stderr and "read-only" in report.stderr
    report = kdray("report", read_only, "--out", "page.html", cwd=work)
    assert report.returncode == 0, report.stderr
    assert "25.00 €" in (work / "page.html").read_text(encoding="utf-8")
    students = kdray("train", read_only, cwd=work)
    assert students.returncode == 2 and "read-only; choose another --out" in students.stderr
    students = kdray("train", read_only / "labelled", "--out", "students", cwd=work)
    assert students.returncode == 0, students.stderr
    own = (read_only / "student.safetensors").read_bytes()
    assert (work / "students" / "50" / "student.safetensors").read_bytes() == own
    assert everything(read_only) == before


def test_what_a_terminal_cannot_show_is_shown_as_its_code_at_the_end_of_a_run(finished, tmp_path):
    done = processes.kdray("resume", "--local", finished, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "25.00 \\u20ac" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_shown_as_its_code(encoding, finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kdray", "ledger", str(finished)],
        cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"25.00 \\u20ac" in done.stdout and b"Traceback" not in done.stderr


def test_a_home_folder_in_arguments(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    copy_run(finished, tmp_path / "run")
    done = command("ledger", "~/run", "--export", "~/answers.parquet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answers.parquet").exists()
    done = command("report", "~/run", "--out=~/page.html")
    assert done.returncode == 0 and (tmp_path / "page.html").exists(), done.stderr
    assert command("resume", "~/run", "--local").returncode == 0
    assert not Path("~").exists()


# A ledger that is only read


def test_a_reader_makes_no_ledger_and_changes_none(tmp_path):
    with pytest.raises(LedgerError, match="there is no ledger at"):
        Ledger(tmp_path / "ledger.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []
    writer = Ledger(tmp_path / "ledger.sqlite", budget=10)
    reservation = writer.reserve(3)
    reader = Ledger(tmp_path / "ledger.sqlite", read_only=True)
    assert reader.remaining() == 7, "what a writer has not yet moved from the log to the file is seen"
    with pytest.raises(LedgerError, match="cannot be written"):
        reader.reserve(1)
    writer.mark_uncertain(reservation)
    assert reader.spent() == 3
    reader.close()
    writer.close()
    before = everything(tmp_path)
    reader = Ledger(tmp_path / "ledger.sqlite", read_only=True)
    assert reader.spent() == 3
    reader.close()
    assert everything(tmp_path) == before


def test_a_file_that_is_no_ledger_is_not_read_either(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("no ledger " * 100)
    for name in ("empty", "text"):
        with pytest.raises(LedgerError):
            Ledger(tmp_path / name, read_only=True)


def test_where_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "a" / "b" / "new", "x")
    check_writable(tmp_path / "file", "x")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]
    with pytest.raises(ConfigError, match=r"^x: cannot write .*: .* is a folder; give another path$"):
        check_writable(tmp_path, "x")
    with pytest.raises(ConfigError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "below", "x")
