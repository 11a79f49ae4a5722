"""Peak memory of the driver and of a scoring worker, for pools that differ by a factor of 400 in candidates.

Each pool is searched whole, on two Ray workers, in a process of its own. The images are 28x28 and the student one
linear layer, so that 100 million candidates take minutes: memory is measured here, not speed.

    python benchmarks/memory.py
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

IMAGES = (500, 2_000, 10_000)
LAMBDAS = (0.35, 0.65)
K = 10_000


def measure(count: int) -> dict[str, float]:
    """Search a pool over `count` random images; peaks in MiB."""
    import psutil
    import ray
    import torch

    from actors.scoring import RaySearcher
    from kdray.pools.mixup import MixupPool
    from kdray.search import SearchRequest

    images = torch.randint(0, 256, (count, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pool = MixupPool(images, LAMBDAS)

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(784, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1).float() / 255)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    searcher = RaySearcher(2)
    searcher.start()
    workers = [psutil.Process(pid) for pid in searcher.pids()]
    searcher.search(pool, Linear(), SearchRequest(k=K))
    peaks = [_peak(worker.pid) for worker in workers]
    searcher.close()
    ray.shutdown()
    return {
        "images": count,
        "candidates": len(pool),
        "image_mib": round(images.numel() / 2**20, 1),
        "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "worker_peak_mib": round(max(peaks), 1),
    }


def _peak(pid: int) -> float:
    """Peak resident memory of a process, in MiB, as the kernel counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmHWM")


def main() -> None:
    """Every pool in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, help="measure one pool and print it as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    from machine import keep

    rows = []
    for count in IMAGES:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(count)], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    keep("memory", {"k": K, "runs_each": 1, "pools": rows})


if __name__ == "__main__":
    main()
