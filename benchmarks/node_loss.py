"""A run on three nodes, one of which dies: while it scores, asks or trains. The right end, and the time it takes.

Nodes are simulated on this machine (`ray.cluster_utils`): a head with the driver and the ledger, and two that score,
ask and train. The node that is killed is one that is at work in that phase of round 1, when a third of it is done.
Every case runs in a process of its own:

    none      no node dies
    scoring   a node with a scoring worker dies
    asking    a node with a teacher worker
    billed    the same, and the teacher may have billed what was on its way
    training  the node that trains the student
    two       two workers train the student together, and no node dies
    of_two    the same, and a node of one of them dies

    python benchmarks/node_loss.py [--repeats 3]
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from elastic import in_a_process

from kdray.observers import Observer

VICTIMS = {
    "none": None,
    "two": None,
    "scoring": ("choose", "ScoringWorker"),
    "asking": ("query", "TeacherWorker"),
    "billed": ("query", "TeacherWorker"),
    "training": ("train", "TrainingWorker"),
    "of_two": ("train", "RayTrainWorker"),
}
BUDGET = 800
_MAX_TRIES = 5


def answer(images: np.ndarray) -> np.ndarray:
    """A teacher of ten classes that takes 0.2 s a request: the brightest tenth of the rows."""
    time.sleep(0.2)
    rows = np.stack([part.mean(axis=(1, 2, 3)) for part in np.array_split(images, 10, axis=2)], axis=1)
    powers = np.exp((rows - rows.max(axis=1, keepdims=True)) / 8)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


class KillNode(Observer):
    """Kills a node that is at work in a phase of round 1, when a third of it is done."""

    def __init__(self, cluster: Any, phase: str, actor: str) -> None:
        self._cluster, self._phase, self._actor = cluster, phase, actor
        self._now = False
        self.killed = ""

    def phase(self, round: int, name: str) -> None:
        self._now = (round, name) == (1, self._phase)

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        if not self._now or self.killed or done * 3 < total:
            return
        nodes = {node.node_id: node for node in self._cluster.worker_nodes}
        for kind, place in at_work():
            if kind == self._actor and place in nodes:
                self._cluster.remove_node(nodes[place], allow_graceful=False)
                self.killed = place
                return


def at_work() -> list[tuple[str, str]]:
    """Class and node of each living actor."""
    from ray._private.state import actors

    return [
        (actor["ActorClassName"], actor["Address"]["NodeID"])
        for actor in actors().values()
        if actor["State"] == "ALIVE"
    ]


def measure(case: str) -> dict[str, Any]:
    """One run; its seconds, and what it ended with. Nothing where no node was killed: Ray puts actors that reserve no
    CPU on any node, so all teachers may be on the head's."""
    import ray
    from ray.cluster_utils import Cluster

    from kdray.config.load import parse_config
    from kdray.runs.directory import RunDirectory
    from kdray.runs.run import run as distil

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=4)
    ray.init(address=cluster.address, namespace="kdray", log_to_driver=False, logging_level="ERROR")
    victim = VICTIMS[case]
    killer = None if victim is None else KillNode(cluster, *victim)
    with tempfile.TemporaryDirectory(prefix="kd") as folder:
        directory = RunDirectory(Path(folder) / "run")
        begin = time.perf_counter()
        result = distil(parse_config(config(case)), directory, observer=killer)
        seconds = time.perf_counter() - begin
        chosen = b"".join(directory.read_candidates(number).ids.tobytes() for number in (1, 2))
        student = (directory.path / "student.safetensors").read_bytes()
    ray.shutdown()
    cluster.shutdown()
    if killer is not None and not killer.killed:
        return {}
    return {
        "case": case,
        "seconds": round(seconds, 2),
        "phases_of_round_1": {name: round(value, 2) for name, value in result.history[1].seconds.items()},
        "spent": result.receipt.queries,
        "uncertain": result.receipt.uncertain,
        "chosen": digest(chosen),
        "student": digest(student),
    }


def digest(data: bytes) -> str:
    """A short name of these bytes."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def run(case: str) -> dict[str, Any]:
    """`measure` in a process of its own, until a node was killed."""
    for _ in range(_MAX_TRIES):
        if found := in_a_process(__file__, "--one", case):
            return found
    raise RuntimeError(f"{case}: no node was killed in {_MAX_TRIES} runs")


def config(case: str) -> dict[str, Any]:
    """200 digits, 800 queries in two rounds; two workers of each kind."""
    trainer = {"where": "worker", "threads": 1} | ({"workers": 2} if case in ("two", "of_two") else {})
    return {
        "images": {"source": "digits", "rows": "0:200", "size": 16},
        "teacher": {
            "kind": "python",
            "function": "node_loss:answer",
            "classes": 10,
            "batch_size": 10,
            "metered": case == "billed",
        },
        "budget": {"queries": BUDGET},
        "pool": {"search": "exhaustive", "lambdas": [0.5]},
        "select": {"strategy": "margin", "rounds": 2},
        "student": {"model": "small-cnn", "epochs": 30, "batch_size": 64, "augment": "none"},
        "resources": {"chunk": 2048, "scoring_workers": 2, "teacher_workers": 2, "trainer": trainer},
    }


def main() -> None:
    """Every case, and the seconds it takes beyond those of the undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=VICTIMS, help="measure one case here and print it as JSON")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.one:
        sys.path.insert(0, str(Path(__file__).parent))
        print(json.dumps(measure(options.one)))
        return
    from machine import keep

    rows = []
    for _ in range(options.repeats):
        for case in VICTIMS:
            rows.append(run(case))
            print(rows[-1], flush=True)
    seconds = {case: statistics.median(row["seconds"] for row in rows if row["case"] == case) for case in VICTIMS}
    lost = {
        case: seconds[case] - seconds["two" if case == "of_two" else "none"]
        for case, victim in VICTIMS.items()
        if victim
    }
    ends = {case: {(row["chosen"], row["student"]) for row in rows if row["case"] == case} for case in VICTIMS}
    figures = {
        "runs": rows,
        "seconds": seconds,
        "seconds_lost": {case: round(value, 1) for case, value in lost.items()},
        "same_end": ends["none"] == ends["scoring"] == ends["asking"] == ends["training"]
        and ends["two"] == ends["of_two"],
        "spent_at_most_the_budget": max(row["spent"] for row in rows) <= BUDGET,
    }
    keep("node_loss", figures)


if __name__ == "__main__":
    main()
