"""A node that dies in the middle of a search, and one that joins: the same selection, and the time it takes.

Nodes are simulated on this machine (`ray.cluster_utils`), each with one CPU. Every case runs in a process of its own:

    alone   one node all the time
    steady  two nodes all the time
    kill    two nodes; one is killed when a third of the pool is scored
    join    one node; a second joins when a third of the pool is scored

    python benchmarks/elastic.py
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from typing import Any

CASES = ("alone", "steady", "kill", "join")
# A dead node is noticed after a second and a half, not after half a minute: its port refuses each check at once. One
# that is alive but busy has 20 s to answer; it had a second, and could be taken for dead.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "20000",
    "RAY_health_check_failure_threshold": "3",
}


def measure(case: str, images: int) -> dict[str, float | str | int]:
    """One search; its seconds, and the hash of what it chose."""
    import ray
    import torch
    from ray.cluster_utils import Cluster

    from actors.scoring import RaySearcher
    from kdray.models.classifier import build_model
    from kdray.pools.mixup import MixupPool
    from kdray.search import SearchRequest
    from kdray.sections.search import SearchSettings

    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (images, 1, 28, 28), generator=generator, dtype=torch.uint8)
    pool, model = MixupPool(data, (0.3, 0.4, 0.5, 0.6, 0.7)), build_model("lenet5", (1, 28, 28), 10, seed=0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1) if case in ("steady", "kill") else None
    ray.init(address=cluster.address, namespace="kdray", log_to_driver=False, logging_level="ERROR")
    settings = SearchSettings(search="exhaustive")
    searcher = RaySearcher(1 if node is None else 2, chunk=1024, settings=settings, grow=True)
    searcher.start()
    before = searcher.pids()
    happened: list[float] = []

    def act(done: int, total: int) -> None:
        if case in ("kill", "join") and not happened and done * 3 > total:
            happened.append(time.perf_counter())
            if case == "kill":
                cluster.remove_node(node, allow_graceful=False)
            else:
                cluster.add_node(num_cpus=1)

    notes: list[str] = []
    begin = time.perf_counter()
    found = searcher.search(pool, model, SearchRequest(k=200), on_progress=act, on_note=notes.append)
    seconds = time.perf_counter() - begin
    searcher.close()
    ray.shutdown()
    cluster.shutdown()
    return {
        "case": case,
        "candidates": len(pool),
        "seconds": round(seconds, 2),
        "workers_before": len(before),
        "requeued": searcher.requeued,
        "notes": "; ".join(notes),
        "chosen": hashlib.blake2b(found.ids.tobytes() + found.scores.tobytes(), digest_size=8).hexdigest(),
    }


def run(case: str, images: int) -> dict[str, float | str | int]:
    """`measure` in a process of its own."""
    return in_a_process(__file__, "--one", case, "--images", str(images))


def in_a_process(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a script prints last. Ray reads its health checks from the environment when it starts."""
    command = [sys.executable, script, *arguments]
    environment = os.environ | HEALTH | {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Every case, and what the death and the arrival cost and bring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=CASES, help="measure one case here and print it as JSON")
    parser.add_argument("--images", type=int, default=600)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.images)))
        return
    from machine import keep

    rows = []
    for case in CASES:
        rows.append(run(case, options.images))
        print(rows[-1], flush=True)
    by_case = {row["case"]: row["seconds"] for row in rows}
    # The death leaves one of two for two thirds of the work: what it takes beyond that is lost.
    ideal = by_case["steady"] / 3 + by_case["alone"] * 2 / 3
    figures = {
        "cases": rows,
        "runs_each": 1,
        "same_selection": len({row["chosen"] for row in rows}) == 1,
        "seconds_lost_by_the_death": round(by_case["kill"] - ideal, 2),
        "seconds_won_by_the_arrival": round(by_case["alone"] - by_case["join"], 2),
    }
    keep("elastic", figures)


if __name__ == "__main__":
    main()
