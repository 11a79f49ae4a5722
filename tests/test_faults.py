"""Money under fire: a server that fails in every way, and processes killed at random moments.

Whatever happens: the server never bills for more than the budget, the ledger never knows of less than the server bills
for, no good answer that arrived is lost, and an image is billed for again only where a charge was in doubt or the
answer was rubbish, and the ledger says so.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import fault_driver
import fault_server
import numpy as np
import pytest
from conftest import actor_pids
from fault_server import BILLED, name, probabilities
from processes import processes

from kdray.ledger.store import Ledger, hash_images

_STARTS = 25  # of one driver, before a run counts as stuck


@dataclass
class Run:
    """One purchase through all its deaths, with its own server and ledger."""

    number: int
    folder: Path
    ledger: str
    address: str | None
    count: int = 160
    starts: int = 0
    deaths: int = 0
    done: bool = False
    process: BaseProcess | None = None
    server: BaseProcess | None = None
    url: str = ""
    budget: int = field(init=False)

    def __post_init__(self) -> None:
        self.budget = random.Random(self.number).choice([120, 200, 400])
        self.folder.mkdir(parents=True, exist_ok=True)
        receiver, sender = processes.Pipe(duplex=False)
        self.server = processes.Process(target=fault_server.serve, args=(self.number, str(self.folder / "log"), sender))
        self.server.start()
        sender.close()
        with receiver:
            self.url = f"http://127.0.0.1:{receiver.recv()}"

    def start(self) -> None:
        """Start the driver, again or for the first time."""
        self.starts += 1
        arguments = (self.url, self.ledger, self.budget, self.count, self.number, self.address)
        self.process = processes.Process(target=fault_driver.drive, args=arguments)
        self.process.start()

    def look(self) -> None:
        """Start the driver again where it has ended without being done."""
        if self.done or self.process.is_alive():
            return
        assert self.process.exitcode in (fault_driver.DONE, fault_driver.AGAIN, -signal.SIGKILL)
        self.deaths += self.process.exitcode == -signal.SIGKILL
        if self.process.exitcode == fault_driver.DONE:
            self.done = True
        else:
            assert self.starts < _STARTS, f"run {self.number} never ends"
            self.start()

    def stop(self) -> None:
        """End the server, and the driver if it is there."""
        if self.process is not None and self.process.is_alive():
            self.process.kill()
        self.server.kill()
        self.server.join()

    def check(self) -> Counter:
        """Hold the server's book against the ledger; what the run went through."""
        images = fault_driver.images(self.count, self.number)
        fates: dict[str, Counter] = {}
        for line in (self.folder / "log").read_text().splitlines():
            image, fate = line.split()
            fates.setdefault(image, Counter())[fate] += 1
        ledger, owner = Ledger(self.ledger), fault_driver.owner(self.number)
        teacher = fault_driver.config(self.url, self.number).build(fault_driver.SHAPE)
        keys = hash_images(images)
        known = ledger.lookup(teacher.identity, keys)
        (number,) = ledger.read("SELECT id FROM teachers WHERE identity = ?", (teacher.identity,))
        refused = dict(ledger.read("SELECT hash, count(*) FROM rejects WHERE teacher = ? GROUP BY hash", number))
        lost = dict(ledger.read("SELECT hash, count(*) FROM lost WHERE teacher = ? GROUP BY hash", number))
        charged = ledger.spent("training", owner)
        uncertain = ledger.uncertain("training", owner)
        rejected = ledger.rejected("training", owner)
        billed = {image: sum(count[fate] for fate in BILLED) for image, count in fates.items()}
        again = 0
        for image, key in zip(images.numpy(), keys, strict=True):
            times = billed.get(name(image), 0)
            again += max(0, times - 1 - refused.get(key, 0))
            if key in known:
                assert times >= 1
                assert np.array_equal(known[key][1], np.float32(probabilities(image)))
        assert charged == len(known) + rejected + uncertain <= self.budget
        assert sum(billed.values()) <= charged, "the server bills for more than the ledger knows of"
        assert again <= uncertain, "an image was paid for again, and no charge was in doubt"
        answered = sum(count["answered"] > 0 for count in fates.values())
        assert answered - len(known) <= uncertain, "a good answer was lost without a trace"
        assert sum(refused.values()) == rejected
        assert ledger.read("SELECT count(*) FROM reservations WHERE state = 'reserved'") == [(0,)]
        assert ledger.read("SELECT count(*) FROM claims") == [(0,)]
        tries = Counter(refused) + Counter(lost)
        if len(known) < self.count and not any(times >= 8 for times in tries.values()):
            assert charged == self.budget, "it stopped early"
        ledger.close()
        return Counter(
            images=self.count, known=len(known), uncertain=uncertain, rejected=rejected, billed=sum(billed.values())
        )


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for run in made:
        run.stop()


@pytest.mark.parametrize(("count", "deaths"), [(4, 4), pytest.param(20, 20, marks=pytest.mark.storm)])
def test_killed_drivers_on_a_failing_server(count, deaths, runs, tmp_path):
    generator = random.Random(5)
    for number in range(count):
        runs.append(Run(number, tmp_path / str(number), str(tmp_path / f"{number}.sqlite"), None))
    for some in (runs[:10], runs[10:]):
        for run in some:
            run.start()
        _fire(some, generator, partial(_drivers, some), (0.003, 0.02))
    totals = sum((run.check() for run in runs), Counter())
    assert sum(run.deaths for run in runs) >= deaths
    assert totals["uncertain"] > 0 and (totals["rejected"] > 0 or count < 20)


@pytest.fixture
def address(ray_local) -> Iterator[str]:
    """Of this process's Ray, on which nobody else works now: all teacher workers and ledgers there may be killed."""
    yield ray_local.get_runtime_context().gcs_address
    for actor in ray_local.util.list_named_actors(all_namespaces=True):  # drivers that were killed are still waited for
        ray_local.kill(ray_local.get_actor(actor["name"], actor["namespace"]))


@pytest.mark.storm
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("groups", "each", "kills"), [(1, 1, 1), pytest.param(4, 5, 3, marks=pytest.mark.long)])
def test_killed_drivers_workers_and_ledger_actors_on_ray(groups, each, kills, runs, tmp_path, address):
    """Each run is a driver of its own, on one Ray; each group of runs loses at most `kills` of each kind."""
    generator, killed = random.Random(6), Counter()

    def victims() -> list[int]:
        kind = min(("driver", "AsyncTeacherWorker", "LedgerService"), key=lambda k: (killed[k], k))
        if killed.total() >= 3 * allowed:
            return []
        found = [run.process.pid for run in some if not run.done] if kind == "driver" else actor_pids(kind)
        killed[kind] += bool(found)
        return found

    for number in range(100, 100 + groups * each):
        runs.append(Run(number, tmp_path / str(number), str(tmp_path / "shared.sqlite"), address))
    for group in range(groups):
        some, allowed = runs[group * each :][:each], (group + 1) * kills
        for run in some:
            run.start()
        _fire(some, generator, victims, (0.4, 1.2) if groups > 1 else (0.1, 0.5))
    totals = sum((run.check() for run in runs), Counter())
    fewest = min(killed[kind] for kind in ("driver", "AsyncTeacherWorker", "LedgerService"))
    assert fewest >= groups * kills * 2 // 3, killed
    assert totals["known"] > 0 and (totals["uncertain"] > 0 or groups == 1)


def _drivers(some: list[Run]) -> list[int]:
    return [run.process.pid for run in some if not run.done and run.deaths < 4]


def _fire(some: list[Run], generator: random.Random, victims, pause_s: tuple[float, float]) -> None:
    """Kill random victims until all runs are done."""
    deadline = time.monotonic() + 600  # only a hang takes so long: on a busy machine each start takes many seconds
    while not all(run.done for run in some):
        assert time.monotonic() < deadline, [(run.number, run.starts, run.deaths, run.done) for run in some]
        time.sleep(generator.uniform(*pause_s))
        found = sorted(victims())
        if found:
            victim = generator.choice(found)
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(victim, signal.SIGKILL)
        for run in some:
            run.look()
