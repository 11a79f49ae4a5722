"""docs/teachers.md, "Two models from other packages": its files are written to a folder and run as they stand there,
against small stand-ins for the packages that keep what their models were given."""

import io
import re
import sys
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
from conftest import command, running
from PIL import Image

from kdray.runs.directory import RunDirectory
from kdray.runs.result import Result, read_result

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "teachers.md").read_text()
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\w+\.\w+)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))

ONNXRUNTIME = '''
import numpy as np

RECEIVED = []


class InferenceSession:
    """Says "180" where the lower half is the darker one."""

    def __init__(self, path):
        assert open(path).read() == "weights"

    def run(self, outputs, feed):
        assert outputs is None and list(feed) == ["x"]
        RECEIVED.extend(feed["x"])
        x = 10 * (feed["x"][:, :, :24].mean((1, 2, 3)) - feed["x"][:, :, 24:].mean((1, 2, 3)))
        return [np.stack([1 / (1 + np.exp(x)), 1 / (1 + np.exp(-x))], axis=1)]
'''

DIGIT_RECOGNIZER = '''
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

RECEIVED = []


@dataclass
class PredictionResult:
    digit: int
    probabilities: list

    @property
    def top_3(self):
        return sorted(enumerate(self.probabilities), key=lambda pair: -pair[1])[:3]


class DigitRecognizer:
    """Says which of ten fields, two rows of five, is the brightest."""

    def __init__(self, device):
        assert device == "cpu"

    def predict(self, image, detailed):
        assert detailed and type(image) is bytes
        picture = Image.open(io.BytesIO(image))
        RECEIVED.append((picture.format, picture.mode, np.array(picture)))
        bright = np.array(picture)[:, :25].reshape(2, 14, 5, 5).mean((1, 3)).ravel()
        weights = np.exp(bright / 10)
        return PredictionResult(int(bright.argmax()), (weights / weights.sum()).tolist())
'''

SMALL = ["budget.queries=40", "budget.evaluation=20", "select.first=40", "select.rounds=0", "student.epochs=1",
         "teacher.batch_size=16", "resources.trainer.threads=1"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with the page's files and the stand-ins, from which kdray is started."""
    for name, text in {"onnxruntime.py": ONNXRUNTIME, "digit_recognizer.py": DIGIT_RECOGNIZER, **FILES}.items():
        (tmp_path / name).write_text(text)
    models = tmp_path / "rapidocr_onnxruntime" / "models"
    models.mkdir(parents=True)
    (models / "ch_ppocr_mobile_v2.0_cls_infer.onnx").write_text("weights")
    (models.parent / "__init__.py").write_text("raise ImportError('the page only looks where this package is')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)  # the real one, which another test has imported
    yield tmp_path
    for name in ("direction", "onnxruntime", "digit_server", "digit_recognizer"):
        sys.modules.pop(name, None)


def drawn(folder: Path, images: np.ndarray) -> np.ndarray:
    """The images, uint8 [N, H, W] or [N, H, W, 3], as PNG files 00.png, 01.png, ... of a folder."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return images


def distilled(config: str, here: Path, *changes: str) -> Result:
    done = command("run", config, *SMALL, *changes, "--local", "--out", "run", cwd=here)
    assert done.returncode == 0, done.stderr
    return read_result(RunDirectory(here / "run"))


def predicted(result: Result, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return result.student(torch.from_numpy(images)).argmax(dim=1).numpy()


def doubled(image: np.ndarray) -> np.ndarray:
    """[H, W, C] twice as large, as cv2.resize does it by default: between the centres of pixels, linearly."""
    for axis in (0, 1):
        at = (np.arange(2 * image.shape[axis]) + 0.5) / 2 - 0.5
        low = np.floor(at).astype(int)
        first, second = (np.take(image, (low + k).clip(0, image.shape[axis] - 1), axis) for k in (0, 1))
        share = (at - low).reshape([-1 if k == axis else 1 for k in range(3)])
        image = (1 - share) * first + share * second
    return image


def as_the_ocr_package_reads_it(path: Path) -> np.ndarray:
    """float32 [3, 48, 192]: load_image.py, then resize_norm_img of text_cls.py, written out for 24x96."""
    image = doubled(np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1].astype(np.float32))
    image = image.transpose((2, 0, 1)) / 255
    image -= 0.5
    image /= 0.5
    return image.astype(np.float32)


def test_the_text_direction_model_is_given_what_its_own_package_would_give_it(here):
    generator = np.random.default_rng(0)
    lines = generator.integers(0, 256, (80, 1, 1, 3)) + generator.integers(-60, 60, (80, 24, 96, 3))
    lines[np.arange(80) % 2 == 0, :12] -= 90
    lines[np.arange(80) % 2 == 1, 12:] -= 90
    lines = lines.clip(0, 255).astype(np.uint8)
    drawn(here / "lines", lines[:60])
    held_out = drawn(here / "lines-held-out", lines[60:])
    result = distilled("direction.yaml", here)

    received = np.array(sys.modules["onnxruntime"].RECEIVED)
    assert received.shape == (60, 3, 48, 192) and received.dtype == np.float32
    assert received.min() >= -1 and received.max() <= 1
    files = sorted((here / "lines").iterdir()) + sorted((here / "lines-held-out").iterdir())
    own = np.array([as_the_ocr_package_reads_it(path) for path in files])
    nearest = [int(np.abs(own - one).mean((1, 2, 3)).argmin()) for one in received]
    assert len(set(nearest)) == 60 and set(nearest) >= set(range(60, 80))  # 40 bought, 20 compared, each asked once
    assert np.abs(own[nearest] - received).max() <= 1.01 / 127.5  # one of 255 levels: who rounds, and when

    assert result.classes == ("0", "180") and result.student.image_shape == (3, 24, 96)
    assert (result.receipt.queries, result.receipt.evaluation_queries) == (40, 20)
    metrics = result.history[-1]
    teacher = np.arange(60, 80) % 2
    assert metrics.agreement == np.mean(predicted(result, held_out.transpose(0, 3, 1, 2)) == teacher)
    assert (metrics.compared, metrics.student_accuracy) == (20, None)


def test_the_digit_recogniser_is_sent_the_drawings_themselves_and_answers_in_its_own_form(here):
    generator = np.random.default_rng(0)
    drawings = generator.integers(0, 60, (80, 28, 28)).astype(np.uint8)
    for number, drawing in enumerate(drawings):
        row, column = divmod(number % 10, 5)
        drawing[14 * row : 14 * row + 14, 5 * column : 5 * column + 5] += 150
    drawn(here / "drawings", drawings[:60])
    held_out = drawn(here / "drawings-held-out", drawings[60:])
    import digit_server

    with running(digit_server.app) as url:
        result = distilled("digits.yaml", here, f"teacher.url={url}/recognise")

    received = sys.modules["digit_recognizer"].RECEIVED
    assert {(form, mode) for form, mode, _ in received} == {("PNG", "L")}
    asked = {image.tobytes() for _, _, image in received}
    assert len(asked) == len(received) == 60
    assert asked >= {drawing.tobytes() for drawing in held_out}
    bought = torch.cat([part.images for part in result.labelled])
    assert asked == {drawing.tobytes() for drawing in held_out} | {image.tobytes() for image in bought.numpy()}

    for part in result.labelled:
        for image, probabilities in zip(part.images.numpy(), part.answers.probs.numpy(), strict=True):
            file = io.BytesIO()
            Image.fromarray(image[0]).save(file, "PNG")
            told = dict(digit_server.recogniser.predict(file.getvalue(), detailed=True).top_3)
            assert probabilities == pytest.approx([told.get(digit, 0) for digit in range(10)], abs=1e-6)
    metrics = result.history[-1]
    teacher = np.arange(60, 80) % 10
    assert metrics.agreement == np.mean(predicted(result, held_out[:, None]) == teacher)
    assert metrics.compared == result.receipt.evaluation_queries == 20


def test_the_benchmark_says_which_packages_are_missing(capsys):
    require = run_path(str(ROOT / "benchmarks" / "foreign.py"))["require"]
    require({"json": "part-of-python"})
    with pytest.raises(SystemExit) as stopped:
        require({"json": "part-of-python", "no_such_module": "no-such-package", "nor_this": "nor-this"})
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "not installed: no-such-package, nor-this. Run: pip install no-such-package nor-this\n"
    )
