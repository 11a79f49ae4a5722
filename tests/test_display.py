"""What people see while a run works: live on a terminal, plain lines elsewhere, and the closing table."""

import io
import os
import pty
import sys

import pytest
from conftest import digits_config
from rich.console import Console

from kdray.observers.base import Observer, Observers, RoundMetrics
from kdray.observers.display import LiveDisplay, PlainDisplay, make_display, result_table


def metrics(**changes) -> RoundMetrics:
    values = {
        "round": 1, "images": 100, "queries": 100, "bought": 60, "reused": 0, "short": 0, "set_aside": 0,
        "evaluated": 2340, "search": {}, "estimate_queries": 0, "estimate": {},
        "student_accuracy": 0.875, "teacher_accuracy": 0.98, "success_rate": 0.8929, "agreement": 0.88,
        "evaluation_queries": 50, "loss": 0.5,
        "seconds": {"choose": 1.0, "query": 0.25, "train": 2.0, "evaluate": 0.05},
    }  # fmt: skip
    return RoundMetrics(**(values | changes))


def play(display: Observer) -> None:
    """The same short story for every display."""
    display.begin(rounds=2, budget=160, spent=40, title="runs/x")
    display.phase(1, "choose")
    display.progress(1000, 2340)
    display.phase(1, "query")
    display.progress(32, 60, spent=72)
    display.note("something to know")
    display.round_done(metrics())
    display.close()


def test_plain_lines_hold_no_control_characters():
    stream = io.StringIO()
    play(make_display(stream))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "run directory runs/x: 2 rounds after round 0, 40 of 160 queries spent",
        "round 1/2 choosing",
        "round 1/2 asking",
        "something to know",
        "round 1/2 done in 3.3 s: queries 100/160  accuracy 87.50%",
    ]


def test_a_long_phase_speaks_now_and_then_with_rate_and_money(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("kdray.observers.display.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.begin(rounds=2, budget=160, spent=40, title="x")
    display.phase(1, "query")
    for second in range(1, 26):
        clock[0] = float(second)
        display.progress(second, 60, spent=40 + second)
    said = stream.getvalue().splitlines()[2:]
    assert said == [
        "round 1/2 asking: 10/60 images, 1/s, 50 s left  queries 50/160",
        "round 1/2 asking: 20/60 images, 1/s, 40 s left  queries 60/160",
    ]


def test_less_than_one_a_second_is_told_as_seconds_for_each(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("kdray.observers.display.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.begin(rounds=2, budget=160, spent=40, title="x")
    display.phase(1, "train")
    clock[0] = 12.0
    display.progress(1, 60)
    clock[0] = 24.0
    display.progress(2, 60)
    assert stream.getvalue().splitlines()[-1] == (
        "round 1/2 training: 2/60 epochs, 12 s each, 12 min left  queries 40/160"
    )


def test_the_first_answer_says_nothing_of_the_time_that_is_left(monkeypatch):
    """A cold teacher takes 15 s to answer the first image, which goes alone, then 40 a second."""
    clock = [0.0]
    monkeypatch.setattr("kdray.observers.display.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.begin(rounds=2, budget=2000, spent=0, title="x")
    display.phase(1, "query")
    for clock[0], done in ((15.0, 1), (26.0, 441)):
        display.progress(done, 2000, spent=done)
    assert stream.getvalue().splitlines()[2:] == [
        "round 1/2 asking: 1/2,000 images  queries 1/2,000",
        "round 1/2 asking: 441/2,000 images, 40/s, 39 s left  queries 441/2,000",
    ]


def test_a_terminal_gets_a_live_display():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        display = make_display(terminal)
        assert isinstance(display, LiveDisplay)
        display.close()
    os.close(ours)


def test_the_live_display_shows_phase_rate_money_and_accuracy():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160)
    display = LiveDisplay(console)
    display.note("evil\x07name\x1b is left out")
    display.begin(rounds=2, budget=160, spent=40, title="runs/x")
    display.round_done(metrics())
    display.phase(2, "choose")
    display.progress(500, 2340)
    display.progress(1000, 2340)
    display._progress.refresh()
    display.close()
    shown = stream.getvalue()
    for part in (
        "round 2/2 choosing",
        "candidates/s",
        "queries 100/160",
        "accuracy 87.50%",
        "1000/2340",
        r"evil\x07name\x1b is left out",
    ):
        assert part in shown


def test_the_table_says_what_is_not_known():
    stream = io.StringIO()
    rows = [metrics(), metrics(round=2, teacher_accuracy=None, success_rate=None, agreement=None)]
    Console(file=stream, width=160).print(result_table(rows, 160))
    text = stream.getvalue()
    assert "87.50%" in text
    assert "89.29%" in text
    assert "100/160" in text
    assert text.splitlines()[-2].count(" - ") == 3


def test_observers_hear_everything_in_turn():
    first, second = io.StringIO(), io.StringIO()
    play(Observers([PlainDisplay(first), PlainDisplay(second), Observer()]))
    assert first.getvalue() == second.getvalue() != ""


@pytest.mark.storm  # small: a display on a terminal, and the table by itself
def test_a_run_on_a_terminal_ends_with_the_table(teacher_weights, tmp_path):
    """The real command on a real pseudo-terminal."""
    import yaml

    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(digits_config(teacher_weights, select__rounds=1, budget__queries=80, student__epochs=1))
    )
    seen = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 4096)
        seen.extend(data)
        return data

    command = [sys.executable, "-m", "kdray", "run", str(path), "--local", "--out", str(tmp_path / "run")]
    status = pty.spawn(["env", "COLUMNS=160", "LINES=40", "TERM=xterm", *command], read)
    text = seen.decode(errors="replace")
    assert os.waitstatus_to_exitcode(status) == 0, text
    assert "\x1b[" in text
    assert "student against teacher" in text
    assert "80/80" in text
