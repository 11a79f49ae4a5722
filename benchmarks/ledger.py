"""How fast answers are put on disk and looked up, and how large they are there.

Each answer goes the way it goes in a run: queries are granted (one commit), then settled with their answers (another).
"turn" is how many requests share those two commits: a purchase grants and settles all that may go at once. Beside it,
with the same answers: one answer a commit, and a JSON-lines file that is flushed to disk after each batch, which keeps
no budget and finds nothing.

All ways take turns, so that whatever else the machine does meets them alike; the middle and the best of the repeats are
kept. The file lies in the folder the benchmark is started in, because a file in memory would be flushed for nothing.

    python benchmarks/ledger.py
"""

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from machine import keep

from kdray.ledger import Ledger
from kdray.ledger.records import AnswerRows, Order, Outcome

ANSWERS = 100_000
FEW = 1_000  # where each costs a commit
CLASSES = 10
TEACHER = "benchmark"


class Stock:
    """Answers to put away: random keys, as hashes are, and random probabilities."""

    def __init__(self, count: int, classes: int) -> None:
        self.hashes = [os.urandom(16) for _ in range(count)]
        self.probs = torch.rand(count, classes).softmax(dim=1).numpy()
        self.labels = self.probs.argmax(axis=1)

    def answers(self, start: int, stop: int) -> AnswerRows:
        """Some of them."""
        return AnswerRows(labels=self.labels[start:stop], probs=self.probs[start:stop])


def to_ledger(path: Path, stock: Stock, count: int, batch: int, turn: int) -> None:
    """Grant and settle `count` answers in requests of `batch`, `turn` of them at a time."""
    ledger = Ledger(path, count)
    for first in range(0, count, batch * turn):
        starts = range(first, min(first + batch * turn, count), batch)
        orders = [Order(hashes=stock.hashes[start : min(start + batch, count)]) for start in starts]
        grant = ledger.grant(orders, teacher=TEACHER)
        ledger.settle(
            [
                Outcome(
                    reservation=part.reservation,
                    state="answered",
                    hashes=part.send,
                    answers=stock.answers(start, start + len(part.send)),
                )
                for start, part in zip(starts, grant.parts, strict=True)
            ]
        )
    assert ledger.spent() == count
    ledger.close()


def to_json_lines(path: Path, stock: Stock, count: int, batch: int) -> None:
    """One line an answer, on disk after each batch."""
    with open(path, "w") as file:
        for start in range(0, count, batch):
            some = stock.answers(start, min(start + batch, count))
            rows = zip(stock.hashes[start:], some.labels.tolist(), some.probs.tolist(), strict=False)
            file.writelines(json.dumps({"hash": h.hex(), "label": x, "probs": p}) + "\n" for h, x, p in rows)
            file.flush()
            os.fsync(file.fileno())


def look_up(path: Path, hashes: Sequence[bytes]) -> None:
    """All answers, through a connection of its own."""
    ledger = Ledger(path)
    found = ledger.lookup(TEACHER, hashes)
    ledger.close()
    assert len(found) == len(hashes)


def flush(path: Path) -> None:
    """100 small writes, each on disk before the next."""
    with open(path, "wb") as file:
        for _ in range(100):
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())


def seconds(act: Callable[..., None], *arguments: object) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - start


def measure(folder: Path, repeats: int) -> dict[str, object]:
    """All figures."""
    stock = Stock(ANSWERS, CLASSES)
    ways = {
        "ledger, requests of 128, turn of 1": (to_ledger, ANSWERS, 128, 1),
        "ledger, requests of 128, turn of 8": (to_ledger, ANSWERS, 128, 8),
        "ledger, requests of 1024, turn of 1": (to_ledger, ANSWERS, 1024, 1),
        "ledger, requests of 1024, turn of 8": (to_ledger, ANSWERS, 1024, 8),
        "ledger, one answer a commit": (to_ledger, FEW, 1, 1),
        "JSON lines, batches of 128": (to_json_lines, ANSWERS, 128),
        "JSON lines, batches of 1024": (to_json_lines, ANSWERS, 1024),
    }
    times: dict[str, list[float]] = {name: [] for name in (*ways, "lookup", "flush")}
    sizes: dict[str, float] = {}
    for _ in range(repeats):
        for name, (act, count, *more) in ways.items():
            path = folder / "file"
            times[name].append(seconds(act, path, stock, count, *more))
            sizes[name] = path.stat().st_size / count
            if name == "ledger, requests of 128, turn of 8":
                times["lookup"].append(seconds(look_up, path, stock.hashes))
            path.unlink()
        times["flush"].append(seconds(flush, folder / "flushed") / 100)
    to_ledger(folder / "file", Stock(10_000, 1000), 10_000, 1024, 1)
    wide = (folder / "file").stat().st_size / 10_000
    return {
        "classes": CLASSES,
        "repeats": repeats,
        "sqlite": sqlite3.sqlite_version,
        "flush_ms": {"median": _milli(statistics.median(times["flush"])), "best": _milli(min(times["flush"]))},
        "committed_answers_per_s": {
            name: {
                "answers": count,
                "median": round(count / statistics.median(times[name])),
                "best": round(count / min(times[name])),
            }
            for name, (_, count, *_more) in ways.items()
        },
        "lookup_of_100000_s": {
            "median": round(statistics.median(times["lookup"]), 3),
            "best": round(min(times["lookup"]), 3),
        },
        "bytes_per_answer": {
            "ledger, 10 classes": round(sizes["ledger, requests of 1024, turn of 1"], 1),
            "ledger, 1000 classes": round(wide, 1),
            "JSON lines, 10 classes": round(sizes["JSON lines, batches of 1024"], 1),
        },
    }


def _milli(value: float) -> float:
    return round(1000 * value, 3)


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".ledger-") as folder:
        figures = measure(Path(folder), options.repeats)
    keep("ledger", figures)


if __name__ == "__main__":
    main()
