"""`kdray export --format web`: in headless Chromium, an image dropped on the page gets the class of the student."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browser import chromium
from conftest import command
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from kdray.errors import ExportError
from kdray.export.base import About, Deployed, find_format
from kdray.models.checkpoint import ModelCard, save_model
from kdray.models.classifier import build_model

NAMES = ("ant", "bee", "<b>cat</b>", "dög")
FILES = {"README.md", "classifier.mjs", "index.html", "package.json", "student.json", "student.onnx"}
RUNTIME = Path(__file__).parents[1] / ".venv" / "web" / "node_modules"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None: ...


def student(shape: tuple[int, int, int]) -> Deployed:
    """A network whose answers differ from image to image."""
    model = build_model("lenet5", shape, 4, seed=1, mean=[0.4] * shape[0], std=[0.3] * shape[0])
    patches = torch.rand((64, shape[0], 3, 2), generator=torch.Generator().manual_seed(0))
    some = (torch.nn.functional.interpolate(patches, shape[1:], mode="bilinear") * 255).to(torch.uint8)
    with torch.no_grad():
        *_, weights, bias = model.parameters()
        weights.mul_(30)
        bias.sub_(model.eval()(some).mean(dim=0))  # no class is everywhere the likeliest
    return Deployed(model).eval()


def exported(shape: tuple[int, int, int], folder: Path) -> Path:
    """The folder that the command writes."""
    card = ModelCard(model="lenet5", image_shape=shape, num_classes=4, classes=NAMES)
    save_model(folder / "m.safetensors", student(shape).student, card)
    done = command("export", folder / "m.safetensors", "--format", "web", "--out", folder / "page")
    assert done.returncode == 0, done.stderr
    return folder / "page"


@pytest.mark.storm
def test_the_folder_has_all_that_the_page_needs_but_the_runtime(tmp_path):
    page = exported((3, 16, 20), tmp_path)
    assert {path.name for path in page.iterdir()} == FILES
    assert json.loads((page / "student.json").read_text()) == {"names": list(NAMES), "shape": [3, 16, 20]}
    assert list(json.loads((page / "package.json").read_text())["dependencies"]) == ["onnxruntime-web"]
    done = command("export", tmp_path / "m.safetensors", "--format", "web", "--out", page)
    assert done.returncode == 2 and "page is there already, and nothing is overwritten" in done.stderr


def test_images_that_no_browser_shows_are_refused(tmp_path):
    card = ModelCard(model="lenet5", image_shape=(2, 16, 16), num_classes=4, classes=NAMES)
    with pytest.raises(ExportError, match="--format web is for images of 1 or 3 channels, and the student's have 2"):
        find_format("web").write(student((2, 16, 16)), About(card=card, names=NAMES), tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.fixture
def opened(tmp_path) -> Iterator[tuple[Page, list[str]]]:
    """A page over HTTP, and what went wrong there or was asked of other addresses."""
    if not (RUNTIME / "onnxruntime-web").is_dir():
        pytest.fail(
            "this test needs the runtime of web pages: make .venv/web/ready, which takes npm (apt-get install npm)"
        )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "page")))
    Thread(target=server.serve_forever, daemon=True).start()
    address, complaints = f"http://127.0.0.1:{server.server_port}/", []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 800, "height": 900}, base_url=address)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = ("data:", "blob:", address)
        page.on("request", lambda one: None if one.url.startswith(own) else complaints.append(one.url))
        yield page, complaints
        browser.close()
    server.shutdown()
    server.server_close()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def drop(page: Page, name: str, data: bytes) -> str:
    """What the page says to a file that is dropped on it: the class, or the error."""
    page.evaluate(
        """([name, data]) => {
            document.getElementById("error").textContent = "";
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
            const event = new DragEvent("drop", {dataTransfer: transfer, bubbles: true});
            document.getElementById("drop").dispatchEvent(event);
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.wait_for_function(
        "name => document.body.dataset.shown === name || document.getElementById('error').textContent", arg=name
    )
    return page.inner_text("#error") or page.inner_text("#best")


@pytest.mark.storm
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 24)])
def test_an_image_that_is_dropped_on_the_page_gets_the_students_class(shape, tmp_path, opened):
    folder, (page, complaints) = exported(shape, tmp_path), opened
    shutil.rmtree(folder / "node_modules", ignore_errors=True)
    (folder / "node_modules").symlink_to(RUNTIME)
    page.goto("/")
    page.wait_for_function("document.body.dataset.ready || document.getElementById('error').textContent")
    assert page.inner_text("#about").startswith(
        "It knows 4 classes, and sees " + ("grey" if shape[0] == 1 else "colour")
    )
    generator, seen = np.random.default_rng(0), set()
    for number, (rows, columns) in enumerate([(16, 16), (32, 24), (33, 47), (90, 70), (9, 40)] * 2):
        patches = Image.fromarray(generator.integers(0, 256, (3, 2, 3), dtype=np.uint8))
        image = np.asarray(patches.resize((columns, rows), Image.Resampling.BICUBIC))
        small = Image.fromarray(image).convert("L" if shape[0] == 1 else "RGB")
        small = np.asarray(small.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)).reshape(*shape[1:], -1)
        with torch.no_grad():
            expected = student(shape)(torch.from_numpy(small.transpose(2, 0, 1)[None].copy()))[0]
        assert drop(page, f"{number}.png", png(image)) == NAMES[int(expected.argmax())]
        pixels = page.evaluate(
            """async (data) => {
                const runtime = import("./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs");
                const { openClassifier } = await import("./classifier.mjs");
                const file = new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))]);
                return Array.from(await (await openClassifier(await runtime)).pixels(file));
            }""",
            base64.b64encode(png(image)).decode(),
        )
        difference = np.abs(np.array(pixels).reshape(shape) - small.transpose(2, 0, 1).astype(int))
        assert difference.max() <= 1, "as kdray reads it, but for the order of rounding"
        first = float(page.inner_text("#classes tr:first-child td.share").removesuffix(" %"))
        assert first == pytest.approx(100 * float(expected.max()), abs=2)
        seen.add(int(expected.argmax()))
    assert len(seen) > 1
    assert drop(page, "a.txt", b"a text").startswith("a.txt could not be read as an image")
    drop(page, "again.png", png(image))
    for scheme, width in (("light", 360), ("dark", 800)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert Axe().run(page).response["violations"] == []
    assert complaints == []


@pytest.mark.storm
@pytest.mark.xdist_group("browser")
def test_a_page_without_its_runtime_says_so(tmp_path, opened):
    exported((1, 16, 16), tmp_path)
    page, _ = opened
    page.goto("/")
    page.wait_for_function("document.getElementById('error').textContent")
    assert "The network could not be opened" in page.inner_text("#error")
    assert "See the README in this folder." in page.inner_text("#error")
