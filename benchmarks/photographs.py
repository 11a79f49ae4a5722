"""Crops of many photographs, read ahead and on demand: time to build the pool, memory, images a second of one thread.

    python benchmarks/photographs.py            # 20,000 JPEG files of 128x96 in a temporary folder

Each way has a process of its own. Memory is the growth of its resident memory from before the pool is built to after
the last image; `pickle` is what a worker is sent besides a file that it maps.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from machine import keep
from PIL import Image

from kdray.pools.base import pools

SHAPE = (3, 32, 32)
_RENDERED = 4096


def main() -> None:
    """Write the files, and measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        write(Path(folder), options.files)
        found = {}
        for read in ("ahead", "on-demand"):
            done = subprocess.run(
                [sys.executable, __file__, "--one", folder, read], check=True, capture_output=True, text=True
            )
            found[read] = json.loads(done.stdout)
    keep("photographs", {"files": options.files, "candidate": "x".join(map(str, SHAPE)), **found})


def write(folder: Path, count: int) -> None:
    """Smooth random pictures, a thousand to a folder."""
    generator = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"{number // 1000:04}"
        place.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((128, 96), Image.Resampling.BICUBIC).save(place / f"{number:07}.jpg", quality=90)


def measure(folder: str, read: str) -> dict[str, float]:
    """One way, in this process."""
    torch.set_num_threads(1)
    process = psutil.Process()
    section = pools.parse({"kind": "crops", "images": {"source": "folder", "path": folder}, "read": read})
    before, begin = process.memory_info().rss, time.perf_counter()
    pool = section.build(torch.empty(0, *SHAPE, dtype=torch.uint8), 0)
    built_s = time.perf_counter() - begin
    begin = time.process_time()
    for ids in torch.arange(_RENDERED).split(512):
        pool.render(ids)
    taken_s = time.process_time() - begin
    grown = process.memory_info().rss - before
    return {
        "build_s": round(built_s, 2),
        "memory_mib": round(grown / 2**20, 1),
        "images_per_s": round(_RENDERED / taken_s),
        "pickle_bytes": len(pickle.dumps(pool)),
    }


if __name__ == "__main__":
    main()
