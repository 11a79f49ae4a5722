"""What a student costs its users: the same answers wherever it runs, how long each takes, and the load it bears.

    python benchmarks/serving.py answers    # torch, ONNX Runtime, a web page, `kdray serve`: answers and latency
    python benchmarks/serving.py load       # `kdray serve` beside `kdray teacher serve`, 1 and 32 requests at once

small-cnn, student of a CIFAR-10 teacher of 114,000 weights; one image a request, one thread each. How well it was
trained makes no difference here, so it learns for 200 steps; nor does it for the second teacher of `load`, a ResNet-18
of random weights. Needs ../shared/data, the teacher (kdray teacher train
benchmarks/cifar10-small.yaml), and for `answers` Chromium and `make .venv/web/ready`.
"""

import argparse
import asyncio
import base64
import functools
import http.client
import http.server
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from machine import ROOT, keep
from torch import Tensor

from kdray.config.load import load_config
from kdray.images.base import read_images
from kdray.models.checkpoint import ModelCard, load_student, save_model
from kdray.models.classifier import build_model
from kdray.runs.directory import RunDirectory
from kdray.runs.exporting import export
from kdray.runs.run import run
from kdray.utils.seeds import numpy_generator

CONFIG = "benchmarks/cifar10-small.yaml"
SHORT = ("budget={queries: 200, evaluation: 0}", "images.count=100", "student={model: small-cnn, steps: 200}")
ALONE = ("teacher.batch_size=1",)  # of the teacher, which would fill each request up to so many images
LARGE = "torchvision/resnet18"
IMAGES, TIMED, WARM = 1000, 300, 20
IN_FLIGHT, SECONDS, REPEATS = (1, 32), 4.0, 3
IN_PAGE = """async ([all, size, timed]) => {
  const { openClassifier } = await import("./classifier.mjs");
  const ort = await import("./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  const opened = await openClassifier(ort);
  const pixels = Uint8Array.from(atob(all), (c) => c.charCodeAt(0));
  const answers = Array.from(await opened.probabilities(pixels, pixels.length / size));
  const times = [];
  for (let at = 0; at < timed; at++) {
    const one = pixels.slice(at * size, (at + 1) * size), begin = performance.now();
    await opened.probabilities(one);
    times.push(performance.now() - begin);
  }
  return [answers, times];
}"""

Found = tuple[np.ndarray, list[float]]
"""Probabilities float32 [N, K] of all images, and milliseconds of single ones."""


def trained(folder: Path) -> tuple[RunDirectory, Tensor]:
    """A finished run, and test images uint8 [N, C, H, W]."""
    config = load_config(ROOT / CONFIG, [*SHORT, "resources.trainer.threads=1"])
    directory = RunDirectory(folder / "run")
    run(config, directory, local=True)
    images = read_images(config.test, generator=numpy_generator(0, "serving")).images[:IMAGES]
    return directory, images


def singly(answer: Callable[[Tensor], Any], images: Tensor) -> list[float]:
    """Milliseconds of each of single images, after some that warm up."""
    times = []
    for number in range(WARM + TIMED):
        one = images[number : number + 1].contiguous()
        begin = time.perf_counter()
        answer(one)
        times.append(1000 * (time.perf_counter() - begin))
    return times[WARM:]


def in_torch(directory: RunDirectory, images: Tensor) -> Found:
    """The student as kdray has it."""
    student = load_student(directory.student)

    @torch.no_grad()
    def answer(some: Tensor) -> Tensor:
        found: Tensor = student(some).softmax(dim=1)
        return found

    return answer(images).numpy(), singly(answer, images)


def in_onnxruntime(directory: RunDirectory, images: Tensor) -> Found:
    """The exported file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = export(directory.path, "onnx", directory.path / "one.onnx").path
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def answer(some: Tensor) -> np.ndarray:
        found: np.ndarray = session.run(None, {"images": some.numpy()})[0]
        return found

    return answer(images), singly(answer, images)


def in_a_page(directory: RunDirectory, images: Tensor) -> Found:
    """The exported page, in headless Chromium."""
    from playwright.sync_api import sync_playwright

    page_folder = export(directory.path, "web", directory.path / "page").path
    (page_folder / "node_modules").symlink_to(ROOT / ".venv/web/node_modules")
    handler = functools.partial(_Quiet, directory=str(page_folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_function("document.body.dataset.ready")
        data = base64.b64encode(images.numpy().tobytes()).decode()
        answers, times = page.evaluate(IN_PAGE, [data, images[0].numel(), WARM + TIMED])
        browser.close()
    server.shutdown()
    return np.array(answers, dtype=np.float32).reshape(len(images), -1), times[WARM:]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def over_http(directory: RunDirectory, images: Tensor) -> Found:
    """`kdray serve`, one connection."""
    with serving("serve", str(directory.path)) as (host, path):
        connection = http.client.HTTPConnection(host)

        def answer(some: Tensor) -> np.ndarray:
            connection.request("POST", path, body(some), {"Content-Type": "application/json"})
            outputs = json.loads(connection.getresponse().read())["outputs"]
            return np.array(outputs[0]["data"], dtype=np.float32).reshape(len(some), -1)

        return answer(images), singly(answer, images)


@contextmanager
def serving(*command: str) -> Iterator[tuple[str, str]]:
    """A server of kdray's in a process of its own: its host with the port, and the path of requests."""
    arguments = [sys.executable, "-m", "kdray", *command, "--port", "0"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = process.stdout.readline().split()[-1].removeprefix("http://")  # type: ignore[union-attr]
        host, _, path = address.partition("/")
        yield host, f"/{path.removesuffix('/infer')}/infer"
    finally:
        process.terminate()
        process.wait()


def body(images: Tensor) -> bytes:
    """An infer request of the Open Inference Protocol v2."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.flatten().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def answers(directory: RunDirectory, images: Tensor) -> dict[str, Any]:
    """Each place: how far its probabilities are from torch's, on how many images it names the same class, and how long
    one image takes."""
    torch.set_num_threads(1)
    expected, times = in_torch(directory, images)
    found = {"torch": (expected, times)}
    found["ONNX Runtime"] = in_onnxruntime(directory, images)
    found["web page"] = in_a_page(directory, images)
    found["kdray serve"] = over_http(directory, images)
    return {
        name: {
            "largest_difference": float(np.abs(probs - expected).max()),
            "same_class": float((probs.argmax(1) == expected.argmax(1)).mean()),
            "median_ms": round(statistics.median(times), 3),
            "99th_percentile_ms": round(float(np.percentile(times, 99)), 3),
        }
        for name, (probs, times) in found.items()
    }


def load(directory: RunDirectory, images: Tensor) -> dict[str, Any]:
    """Requests a second and latencies of three servers, in turn."""
    large = directory.path / "resnet18.safetensors"
    shape = (images.shape[1], images.shape[2], images.shape[3])
    card = ModelCard(model=LARGE, image_shape=shape, num_classes=10)
    save_model(large, build_model(LARGE, shape, 10, seed=0), card)
    bodies = [body(images[number : number + 1]) for number in range(64)]
    found: dict[str, Any] = {}
    with (
        serving("serve", str(directory.path)) as student,
        serving("teacher", "serve", CONFIG, *ALONE) as teacher,
        serving("teacher", "serve", CONFIG, *ALONE, f"teacher.model={LARGE}", f"teacher.weights={large}") as second,
    ):
        servers = {"student": student, "teacher": teacher, "ResNet-18": second}
        for at_once in IN_FLIGHT:
            rows: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in servers}
            for _ in range(REPEATS):
                for name, (host, path) in servers.items():
                    rows[name].append(asyncio.run(_asked(f"http://{host}{path}", bodies, at_once)))
            found[f"{at_once} at once"] = {
                name: {
                    "requests_per_s": [round(rate, 1) for rate, _ in runs],
                    "median_ms": round(statistics.median([t for _, times in runs for t in times]), 2),
                    "99th_percentile_ms": round(float(np.percentile([t for _, times in runs for t in times], 99)), 2),
                }
                for name, runs in rows.items()
            }
    return found


async def _asked(url: str, bodies: list[bytes], at_once: int) -> tuple[float, list[float]]:
    """Requests a second, and milliseconds of each, with so many always on their way."""
    times: list[float] = []
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=at_once)) as session:
        begin = time.monotonic()

        async def client(number: int) -> None:
            while time.monotonic() - begin < SECONDS:
                start = time.perf_counter()
                async with session.post(url, data=bodies[number % len(bodies)], headers=headers) as response:
                    await response.read()
                    response.raise_for_status()
                times.append(1000 * (time.perf_counter() - start))
                number += at_once

        await asyncio.gather(*(client(number) for number in range(at_once)))
        return len(times) / (time.monotonic() - begin), times


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("answers", "load"))
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory() as temporary:
        keep(f"serving_{what}", {"answers": answers, "load": load}[what](*trained(Path(temporary))))
