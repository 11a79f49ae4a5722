"""Two models from other people's packages, by the code and the configs of docs/teachers.md: agreement with them.

    pip install rapidocr-onnxruntime==1.4.4 digit-recognizer-py==0.1.0
    python benchmarks/foreign.py               # both models, into results/foreign.json
    python benchmarks/foreign.py direction     # or digits: this one alone; the figures of the other are kept

Each model is distilled as the page has it, with random choice, and for twice as many epochs. Each seed draws its own
images, and all runs of a seed share them; the held-out images are the same for all seeds. `limits` changes one thing at
a time, on other images and other held-out images: those on which the configs were decided. Lines of text are drawn with
matplotlib's fonts, the drawings are MNIST's (../shared/data). Two runs at a time, each on one thread and without Ray.
"""

import argparse
import contextlib
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
MNIST = ROOT.parent / "shared" / "data"
# Module: package.
PACKAGES = {
    "rapidocr_onnxruntime": "rapidocr-onnxruntime",
    "digit_recognizer": "digit-recognizer-py",
}  # module: package
UNLABELLED, HELD_OUT = 5000, 2000  # images of a seed; images on which student and teacher are compared
DECIDED = {"direction": (1000,), "digits": (1000, 1001)}  # seeds of the images on which the configs were decided
RANDOM = ["select={strategy: random, first: 1000, rounds: 0}"]
MIXES = ["pool={kind: mixup}", "select={strategy: cluster-margin, rounds: 1}"]  # of so few images: the default pool
MORE = ["budget.queries=2000", "select={strategy: random, first: 2000, rounds: 0}"]
COMPARED = {
    "direction": {
        "as on the page": [],
        "random choice": RANDOM,
        "random choice, twice the epochs": [*RANDOM, "student.epochs=80"],
    },
    "digits": {"as on the page": [], "random choice": RANDOM, "twice the epochs": ["student.epochs=160"]},
}
LIMITS = {
    "direction": {
        "as on the page": [],
        "random choice": RANDOM,
        "random choice, hard answers": [*RANDOM, "teacher.answers=hard"],
        "random choice, small-cnn": [*RANDOM, "student.model=small-cnn"],
        "random choice, lenet5": [*RANDOM, "student.model=lenet5"],
        "random choice, 2,000 queries": MORE,
        "twice the epochs": ["student.epochs=80"],
        "200 lines and 800 mixes": ["images.count=200", *MIXES],
        "200 lines and 800 mixes, lenet5": ["images.count=200", *MIXES, "student.model=lenet5"],
    },
    "digits": {
        "as on the page": [],
        "random choice": RANDOM,
        "random choice, hard answers": [*RANDOM, "teacher.answers=hard", "teacher.reply={rows: found, label: digit}"],
        "random choice, 2,000 queries": MORE,
        "200 drawings and 800 mixes": ["images.count=200", *MIXES],
        "500 drawings and 500 mixes": ["images.count=500", *MIXES],
    },
}


def main() -> None:
    """The models that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=tuple(COMPARED))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    require(PACKAGES)
    from machine import RESULTS, keep

    kept = RESULTS / "foreign.json"
    figures = json.loads(kept.read_text())["figures"] if options.model and kept.exists() else {}
    figures["packages"] = {name: version(name) for name in (*PACKAGES.values(), "onnxruntime")}
    for model in [options.model] if options.model else COMPARED:
        with tempfile.TemporaryDirectory() as folder:
            figures[model] = measured(model, Path(folder), options.seeds, options.at_once)
        keep("foreign", figures)


def require(packages: Mapping[str, str]) -> None:
    """Exit with 2 and say so where a module of a package is not installed."""
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}. Run: pip install {' '.join(missing)}", file=sys.stderr)
        sys.exit(2)


def measured(model: str, folder: Path, seeds: int, at_once: int) -> dict[str, Any]:
    """All runs of a model: those that are compared, and those that show what limits it."""
    from machine import in_parallel

    write_page(folder)
    sys.path.insert(0, str(folder))
    write = write_lines if model == "direction" else write_drawings
    teacher = write(folder, [*range(seeds), *DECIDED[model]])
    print(json.dumps(teacher, indent=2), flush=True)
    compared = [("held-out", name, seed) for name in COMPARED[model] for seed in range(seeds)]
    limits = [("decided", name, seed) for seed in DECIDED[model] for name in LIMITS[model]]
    with digit_server(folder) if model == "digits" else contextlib.nullcontext() as url:
        tasks = []
        for test, name, seed in compared + limits:
            changes = (COMPARED if test == "held-out" else LIMITS)[model][name]
            tasks.append((model, folder, test, seed, [*([f"teacher.url={url}"] if url else []), *changes]))
        found = dict(zip(compared + limits, in_parallel(one, tasks, at_once), strict=True))
    return {
        "teacher": teacher,
        "compared": summaries({key: found[key] for key in compared}),
        "limits": summaries({key: found[key] for key in limits}),
    }


def one(model: str, folder: Path, test: str, seed: int, changes: list[str]) -> dict[str, float]:
    """One run of the page's config."""
    from kdray.config.load import load_config
    from kdray.runs.directory import RunDirectory
    from kdray.runs.run import run

    sys.path.insert(0, str(folder))
    here = [f"images.path={folder}/images-{seed}", f"test.path={folder}/{test}", f"seed={seed}"]
    with contextlib.chdir(folder), tempfile.TemporaryDirectory() as out:
        config = load_config(folder / f"{model}.yaml", [*here, "resources.trainer.threads=1", *changes])
        begin = time.perf_counter()
        result = run(config, RunDirectory(Path(out) / "run"), local=True)
    last = result.history[-1]
    print(model, test, seed, changes, f"{last.agreement:.4f}", f"{time.perf_counter() - begin:.0f} s", flush=True)
    return {"agreement": last.agreement, "loss": last.loss, "queries": last.queries + last.reused}


def summaries(found: Mapping[tuple[str, str, int], dict[str, float]]) -> dict[str, Any]:
    """Of each name, over its seeds: the mean and its standard error, beside the first name's on the same images."""
    names = list(dict.fromkeys(name for _, name, _ in found))
    figures = {}
    for name in names:
        some = [figure for (_, other, _), figure in found.items() if other == name]
        first = [figure for (_, other, _), figure in found.items() if other == names[0]]
        behind = [a["agreement"] - b["agreement"] for a, b in zip(first, some, strict=True)]
        figures[name] = {
            **mean_and_error([figure["agreement"] for figure in some], "agreement"),
            **mean_and_error(behind, "behind_the_first"),
            "agreements": [figure["agreement"] for figure in some],
            "training_loss": round(statistics.mean(figure["loss"] for figure in some), 4),
            "queries": [figure["queries"] for figure in some],
        }
    return figures


def mean_and_error(values: list[float], name: str) -> dict[str, float]:
    """Mean and standard error; a single value has none."""
    mean = {name: round(statistics.mean(values), 4)}
    if len(values) < 2:
        return mean
    return mean | {f"{name}_standard_error": round(statistics.stdev(values) / len(values) ** 0.5, 4)}


# The page, the images, the teachers


def write_page(folder: Path) -> None:
    """The files of docs/teachers.md: blocks of code that begin with their name."""
    page = (ROOT / "docs" / "teachers.md").read_text()
    for name, text in re.findall(r"^```(?:python|yaml)\n# (\w+\.\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(text)


def write_lines(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Lines of text: each seed's, and the held-out ones, of which it says what the teacher makes of them."""
    from foreign_images import text_lines, write_files
    from machine import in_parallel

    list(in_parallel(write_lines_of, [(folder, seed) for seed in seeds]))
    about = {}
    for name, seed in (("held-out", 5000), ("decided", 6000)):
        lines, turned = text_lines(HELD_OUT, seed)
        write_files(folder / name, lines)
        about[name] = about_direction(folder / name, lines, turned)
    return about


def write_lines_of(folder: Path, seed: int) -> None:
    """The lines of a seed."""
    from foreign_images import text_lines, write_files

    write_files(folder / f"images-{seed}", text_lines(UNLABELLED, seed)[0])


def write_drawings(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """MNIST's drawings, likewise. Figures and decisions are of different rows of both of its files."""
    from foreign_images import drawings, write_files

    for seed in seeds:
        rows = np.arange(30_000) + (0 if seed in DECIDED["digits"] else 30_000)
        chosen = np.random.default_rng(seed).permutation(rows)[:UNLABELLED]
        write_files(folder / f"images-{seed}", drawings(MNIST / "mnist-train.parquet", chosen)[0])
    about = {}
    for name, first in (("held-out", HELD_OUT), ("decided", 0)):
        files, digits = drawings(MNIST / "mnist-test.parquet", np.arange(first, first + HELD_OUT))
        write_files(folder / name, files)
        about[name] = about_digits(files, digits)
    return about


def about_direction(files: Path, lines: np.ndarray, turned: np.ndarray) -> dict[str, float]:
    """How good the text-direction classifier is on the lines as they were drawn, and as kdray asks about them; and
    whether its own package gives the model the same input, and reads the same class from it."""
    import direction
    import rapidocr_onnxruntime
    from rapidocr_onnxruntime.ch_ppocr_cls import TextClassifier
    from rapidocr_onnxruntime.utils import read_yaml

    from kdray.config.load import load_config
    from kdray.images.base import read_images

    package = Path(rapidocr_onnxruntime.__file__).parent
    settings = read_yaml(package / "config.yaml")["Cls"]
    own = TextClassifier(settings | {"model_path": package / settings["model_path"]})
    config = load_config(files.parent / "direction.yaml", [f"images.path={files}", f"test.path={files}"])
    images = read_images(config.images, generator=np.random.default_rng(0)).images
    seen = config.teacher.input.view(images).numpy()
    answers = np.concatenate([direction.direction(part) for part in np.array_split(seen, 20)])
    says_180 = answers.argmax(axis=1) == 1

    small = list(images.numpy().transpose(0, 2, 3, 1)[..., ::-1])
    inputs = np.stack([own.resize_norm_img(image) for image in small])
    own_180 = np.array([label == "180" for label, _ in own(small)[1]])
    drawn_180 = np.array([label == "180" for label, _ in own(list(lines[..., ::-1]))[1]])
    return {
        "accuracy": float((says_180 == turned).mean()),
        "accuracy_at_48x192": float((drawn_180 == turned).mean()),
        "says_180": float(says_180.mean()),
        "mean_confidence": round(float(answers.max(axis=1).mean()), 4),
        "same_class_as_in_its_own_package": float((says_180 == own_180).mean()),
        "largest_difference_of_an_input_in_levels_of_255": round(
            float(np.abs(inputs - (seen.astype(np.float32) / 255 - 0.5) / 0.5).max() * 127.5), 3
        ),
    }


def about_digits(files: list[bytes], digits: np.ndarray) -> dict[str, float]:
    """How good the digit recogniser is."""
    import digit_recognizer

    recogniser = digit_recognizer.DigitRecognizer(device="cpu")
    answers = np.array([recogniser.predict(file) for file in files])
    return {"accuracy": float((answers == digits).mean())}


@contextlib.contextmanager
def digit_server(folder: Path) -> Iterator[str]:
    """The page's server in a process of its own; the address of its API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = (
        f"import torch; torch.set_num_threads(1); from digit_server import *; web.run_app(app, port={port}, print=None)"
    )
    server = subprocess.Popen([sys.executable, "-c", code.format(port)], cwd=folder)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > until:
                    sys.exit("the page's digit_server.py does not start")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/recognise"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
