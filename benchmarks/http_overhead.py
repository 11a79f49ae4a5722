"""What HTTP costs: the same images asked of the same teacher in this process, and through `kdray teacher serve`.

    kdray teacher train examples/mnist.yaml
    python benchmarks/http_overhead.py

24,000 MNIST images in batches of 128, bought through a ledger each time; then single-image requests to a server that
takes 50 ms, many on their way at once against one at a time. Answers must be the same to the bit.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import keep

from kdray.images.base import read_images
from kdray.images.parquet import ParquetImages
from kdray.ledger.limits import Limits
from kdray.ledger.store import Ledger
from kdray.runs.purchase import Bought, PurchasePolicy, buy
from kdray.teachers.async_pool import AsyncTeacherPool
from kdray.teachers.http import HttpTeacherConfig as HttpConfig
from kdray.teachers.local import LocalTeacherConfig as LocalConfig
from kdray.teachers.pool import LocalTeacherPool, TeacherPool
from kdray.utils.seeds import numpy_generator

WEIGHTS = "runs/teachers/mnist-lenet5.safetensors"
DATA = "../shared/data/mnist-train.parquet"
LATENCY_S = 0.05


def timed(pool: TeacherPool, images: torch.Tensor, batch_size: int) -> tuple[float, Bought]:
    """Seconds to buy all images into a new ledger, and what was bought."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", budget=len(images))
        policy = PurchasePolicy(limits=Limits(in_flight=pool.slots))
        begin = time.monotonic()
        bought = buy(images, teachers=pool, ledger=ledger, batch_size=batch_size, policy=policy)
        seconds = time.monotonic() - begin
        ledger.close()
    pool.close()
    return seconds, bought


def serve(weights: str, *options: str) -> tuple[subprocess.Popen, str]:
    """A teacher behind HTTP in a process of its own, and its address."""
    command = [sys.executable, "-m", "kdray", "teacher", "serve", "--model", weights, "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return server, server.stdout.readline().split()[-1].partition("/v2/")[0]


def main(weights: str, count: int, repeats: int) -> None:
    """Measure and keep."""
    source = ParquetImages(source="parquet", path=DATA, count=count)
    images = read_images(source, generator=numpy_generator(0, "benchmark")).images
    shape = tuple(images.shape[1:])
    local = LocalConfig(kind="local", model="lenet5", weights=weights)
    server, url = serve(weights)
    slow, slow_url = serve(weights, "--latency", str(LATENCY_S))
    rows = []
    try:
        http = HttpConfig(kind="http", url=url, model="teacher", classes=10)
        far = HttpConfig(kind="http", url=slow_url, model="teacher", classes=10)
        for _ in range(repeats):
            here, first = timed(LocalTeacherPool(local.build(shape)), images, 128)
            there, second = timed(AsyncTeacherPool(http.build(shape), 8), images, 128)
            some = images[:400]
            one, _ = timed(AsyncTeacherPool(far.build(shape), 1), some, 1)
            many, _ = timed(AsyncTeacherPool(far.build(shape), 32), some, 1)
            rows.append(
                {
                    "local_s": round(here, 2),
                    "http_s": round(there, 2),
                    "http_over_local": round(there / here, 2),
                    "same_answers": torch.equal(first.answers.probs, second.answers.probs),
                    "one_in_flight_per_s": round(len(some) / one, 1),
                    "32_in_flight_per_s": round(len(some) / many, 1),
                }
            )
    finally:
        server.terminate()
        slow.terminate()
    keep("http_overhead", {"images": count, "latency_s": LATENCY_S, "runs": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=WEIGHTS)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.weights, arguments.images, arguments.repeats)
