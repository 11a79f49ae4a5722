"""Peak memory of the driver and of a scoring worker, for pools of a million to ten thousand million pairs.

Each pool is searched on two Ray workers, in a process of its own: the smallest whole, the others over a sample of their
pairs. The images are 6x6, so that what grows is the pool and not the images it mixes, and the student is one linear
layer, so that it takes minutes: memory is measured here, not speed.

    python benchmarks/memory.py
"""

import argparse
import json
import resource
import subprocess
import sys

IMAGES = (1_414, 14_142, 141_421)  # 1.0e6, 1.0e8 and 1.0e10 pairs, of eleven candidates each
LAMBDAS = tuple(round(0.3 + 0.04 * k, 2) for k in range(11))
K = 2_000
PAIRS = 1_000_000  # of the sample


def measure(count: int, search: str) -> dict[str, float | str]:
    """Search a pool over `count` random images; peaks in MiB."""
    import ray
    import torch

    from actors.scoring import RaySearcher
    from kdray.pools.mixup import MixupPool
    from kdray.runs.bench import peak_mib
    from kdray.search import SearchRequest
    from kdray.sections.search import SearchSettings

    images = torch.randint(0, 256, (count, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = MixupPool(images, LAMBDAS)
    pool = whole if whole.num_groups <= PAIRS else MixupPool(images, LAMBDAS, pairs=PAIRS)

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(36, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1).float() / 255)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    searcher = RaySearcher(2, chunk=8192, settings=SearchSettings(search=search, min_recall=0.0))
    searcher.start()
    workers = searcher.pids()
    searcher.search(pool, Linear(), SearchRequest(k=K))
    peaks = [peak_mib(pid) for pid in workers]
    searcher.close()
    ray.shutdown()
    return {
        "search": search,
        "images": count,
        "pairs": whole.num_groups,
        "searched": pool.num_groups,
        "image_mib": round(images.numel() / 2**20, 2),
        "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "worker_peak_mib": round(max(peaks), 1),
    }


def main() -> None:
    """Every pool in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, help="measure one pool and print it as JSON")
    parser.add_argument("--search", choices=("exhaustive", "interpolated"), default="exhaustive")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.search)))
        return
    from machine import keep

    rows = []
    for search in ("exhaustive", "interpolated"):
        for count in IMAGES:
            command = [sys.executable, __file__, "--one", str(count), "--search", search]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    keep("memory", {"k": K, "runs_each": 1, "pools": rows})


if __name__ == "__main__":
    main()
