"""The time RAD's draw takes: 100,000 of 10^7 gains, beside numpy.sort of the same array, and the memory.

python benchmarks/draw.py [--all]   # --all: up to 10^8
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from machine import keep

from kdray.select.rad.draw import draw


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    times(parser.parse_args().all)


def times(large: bool) -> None:
    """Seconds to choose 100,000 of 10^7, and of more, beside numpy.sort of the same array; peak memory of each."""
    sizes = (10**7, 3 * 10**7, 10**8) if large else (10**7,)
    figures = {}
    for count in sizes:
        for shape in ("uniform", "student"):
            figures[f"{shape} {count:.0e}"] = json.loads(
                subprocess.run(
                    [sys.executable, __file__, "one", str(count), shape],
                    capture_output=True,
                    text=True,
                    check=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                ).stdout
            )
    keep("select_draw", figures)


def draw_one(count: int, shape: str) -> None:
    """In a process of its own: both timings in turn, five times; medians."""
    generator = np.random.default_rng(0)
    gains = generator.random(count, dtype=np.float32)
    if shape == "student":  # most candidates are easy: as a student's margins are spread
        np.power(gains, np.float32(8.0), out=gains)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, list[float]] = {"sort": [], "draw": []}
    for number in range(5):
        begin = time.perf_counter()
        chosen = draw(gains, 100_000, 0.05 * count, None, np.random.default_rng(number))
        figures["draw"].append(time.perf_counter() - begin)
        assert len(np.unique(chosen)) == 100_000
        if number == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        copy = gains.copy()
        begin = time.perf_counter()
        copy.sort()
        figures["sort"].append(time.perf_counter() - begin)
        del copy
    ratios = sorted(a / b for a, b in zip(figures["draw"], figures["sort"], strict=True))
    print(
        json.dumps(
            {
                "draw_seconds": round(statistics.median(figures["draw"]), 3),
                "sort_seconds": round(statistics.median(figures["sort"]), 3),
                "ratio": round(ratios[2], 2),
                "ratio_least_and_most": [round(ratios[0], 2), round(ratios[-1], 2)],
                "gains_MiB": round(4 * count / 2**20),
                "more_MiB": round((peak - held) / 1024),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        draw_one(int(sys.argv[2]), sys.argv[3])
    else:
        main()
