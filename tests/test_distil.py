"""kdray.distil: what it makes of arrays and labels, what it refuses, and that it refuses before anything is paid."""

import functools
import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdray
from kdray.errors import ConfigError, ImageSetError, KdrayError, LedgerError, RunDirectoryError, TeacherError
from kdray.images.arrays import as_images, as_labelled
from kdray.ledger import Ledger
from kdray.runs.directory import RunDirectory
from kdray.runs.run import resume
from kdray.teachers.function import own_name

PIXELS = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)


# Images


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (PIXELS, (4, 1, 8, 8)),
        (PIXELS.tolist(), None),
        (torch.from_numpy(PIXELS), (4, 1, 8, 8)),
        (PIXELS[..., None], (4, 1, 8, 8)),
        (np.stack([PIXELS] * 3, axis=3), (4, 3, 8, 8)),
        ([Image.fromarray(image) for image in PIXELS], (4, 1, 8, 8)),
        ([Image.fromarray(image).convert("P") for image in PIXELS], (4, 3, 8, 8)),
    ],
)
def test_images_in_every_form(images, shape):
    if shape is None:
        with pytest.raises(ImageSetError, match=r"^images: pixels must be uint8 in 0\.\.255, got int64; convert them"):
            as_images(images, "images")
        return
    found = as_images(images, "images")
    assert tuple(found.shape) == shape and found.dtype == torch.uint8
    assert np.array_equal(found[:, 0].numpy(), PIXELS)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS / 255.0, r"got float64; round\(255 \* images\)\.astype\(np\.uint8\) for pixels in 0\.\.1"),
        (PIXELS > 3, "got bool; convert them"),
        ([PIXELS[0], PIXELS[0][:5]], "these are no array .* expected images of one shape: resize them first"),
        (np.zeros((8, 9, 3), np.uint8), r"\[8, 9, 3\] looks like one image; .* images\[None\]"),
        (np.zeros((2, 4, 8, 8), np.uint8), r"expected \[N, C, H, W\] with 1 or 3 channels, got \[2, 4, 8, 8\]"),
        (np.zeros((8, 8), np.uint8), r"got \[8, 8\]"),
        ([Image.new("L", (8, 8)), Image.new("L", (9, 8))], r"images of several sizes, \[\(8, 8\), \(9, 8\)\]"),
        ([Image.new("L", (8, 8)), PIXELS[0]], "image 1 is a ndarray, the first is a PIL image"),
        ("photos", "got <U6; convert them"),
        ([], "there are no images in it; give at least one$"),
        ((), "there are no images in it; give at least one$"),
        (np.empty((0, 8, 8), np.uint8), "there are no images in it; give at least one$"),
        (torch.empty(0, 3, 8, 8), "there are no images in it; give at least one$"),
        (np.empty((2, 1, 0, 8), np.uint8), r"images of shape \[1, 0, 8\] have no pixels; give whole images$"),
    ],
)  # fmt: skip
def test_what_are_no_images_gets_one_message(images, message):
    with pytest.raises(ImageSetError, match=rf"^images: .*{message}"):
        as_images(images, "images")


def wide(mode: str) -> Image.Image:
    """A dark image of 16 bits a channel, as it is opened."""
    file = io.BytesIO()
    if mode == "RGB":  # which Pillow does not write
        rows = b"".join(b"\0" + np.full((8, 3), 4000, ">u2").tobytes() for _ in range(8))
        parts = {b"IHDR": struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in parts.items():
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    else:
        Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(file, "TIFF")
    return Image.open(file)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda: [Image.new("L", (8, 8)), Image.new("RGB", (8, 8))],
         r'image 1 is 8x8 RGB, but image 0 is 8x8 grey; bring all images to one shape first, with resize\(\) and '
         r'convert\("L"\) or convert\("RGB"\)$'),
        (lambda: [wide("I;16")], r"convert them to 8 bits first: for n used bits, Image\.fromarray\(\(np\.asarray"
                                 r"\(image\) >> n - 8\)\.astype\(np\.uint8\)\)$"),
        (lambda: [wide("RGB")], r"give image\.copy\(\) of images that are as dark as that, else convert the files to 8 "
                                r"bits a channel$"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_pil_images_names_no_field_that_a_caller_does_not_have(images, message):
    with pytest.raises(ImageSetError, match=message) as error:
        as_images(images(), "images")
    assert not re.search(r"images\.[a-z]", str(error.value))


def test_what_the_messages_about_pil_images_advise_works():
    dark = [Image.fromarray((np.asarray(image) >> 12 - 8).astype(np.uint8)) for image in [wide("I;16")]]
    assert (as_images(dark, "images") == 4000 >> 4).all()
    assert as_images([wide("RGB").copy()], "images").shape == (1, 3, 8, 8)


# Labels


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 1, 0],
        np.array([[2], [0], [1], [0]]),
        np.array([2.0, 0.0, 1.0, 0.0]),
        np.array([2, 0, 1, 0], dtype=object),
        np.array([2, 0, 1, 0], dtype=np.uint64),
        np.array([2, 0, 1, np.uint64(0)], dtype=object),
        torch.tensor([2, 0, 1, 0], dtype=torch.int8),
    ],
)
def test_labels_in_every_form(labels):
    found = as_labelled(PIXELS, labels, "test")
    assert found.true_labels.tolist() == [2, 0, 1, 0] and found.true_labels.dtype == torch.int64
    assert found.classes is None


@pytest.mark.parametrize("labels", [["c", "a", "b", "a"], np.array([b"c", b"a", b"b", b"a"]),
                                    np.array(["c", "a", "b", "a"], dtype=object)])  # fmt: skip
def test_labels_that_are_text_are_names(labels):
    found = as_labelled(PIXELS, labels, "test")
    assert [found.classes[label] for label in found.true_labels] == ["c", "a", "b", "a"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(4), r"labels of shape \[4, 4\]: .* for one-hot labels or probabilities give labels\.argmax\(axis=1\)"),
        ([0, 1, 0.7, 2], "label 0.7 of image 2 is not a whole number"),
        ([0, np.nan, 1, 2], "label nan of image 1 is not a whole number"),
        ([0, np.inf, 1, 2], "label inf of image 1 is not a whole number"),
        ([True, False, True, False], r"labels of type bool; labels\.astype\(int\) makes False 0 and True 1"),
        ([0, 1, 2], r"labels of shape \[3\] for 4 images; give one an image"),
        (3, r"labels of shape \[\] for 4 images"),
        (np.zeros((1, 4)), r"labels of shape \[1, 4\] for 4 images"),
        ([0, None, 1, 2], "labels of type NoneType, int; give whole numbers, or text alone"),
        (np.array([0, "a", 1, 2], dtype=object), "labels of type int, str; give whole numbers, or text alone"),
        ([[0], [1, 2], [0], [0]], " labels: these are no array .* expected one label an image"),
        ([0, 2**63, 1, 2], "label 9223372036854775808 of image 1 is too large$"),
        ([0, 1, 2, 2**64], "label 18446744073709551616 of image 3 is too large$"),
        ([0, 2**63, -1, 2], "label 9223372036854775808 of image 1 is too large$"),
        ([0, -(2**63) - 1, 1, 2], "label -9223372036854775809 of image 1 is too small$"),
        (np.array([0, 0, 2**64 - 1, 0], dtype=np.uint64), "label 18446744073709551615 of image 2 is too large$"),
        (torch.tensor([0, 0, 2**63, 0], dtype=torch.uint64), "label 9223372036854775808 of image 2 is too large$"),
        ([0, 2.0**63, 1, 2], "label 9223372036854775808 of image 1 is too large$"),
        ([0, -1e30, 1, 2], "label -1000000000000000019884624838656 of image 1 is too small$"),
        (np.array(["2020-01-01"] * 4, dtype="M8[D]"), "labels of type datetime64"),
    ],
)
def test_what_are_no_labels_gets_one_message(labels, message):
    with pytest.raises(ImageSetError, match=rf"^test.*{message}"):
        as_labelled(PIXELS, labels, "test")


# A function, and what it costs


class Teacher:
    """A teacher of two classes that counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.asked += len(images)
        bright = images.mean(axis=(1, 2, 3)) > 100
        return np.stack([~bright, bright], axis=1).astype(np.float32)


def images(count: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 200, (count, 1, 1), dtype=np.uint8) + rng.integers(0, 50, (count, 8, 8), dtype=np.uint8)


def distil(teacher: Callable, out: Path, **changes):
    call = {
        "budget": 12,
        "classes": None,
        "select": {"rounds": 0},
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
    }
    call |= {"resources": {"trainer": {"threads": 1}}, "local": True, "progress": False, "images": images()}
    return kdray.distil(teacher, out=out, **(call | changes))


BLACK = np.zeros((2, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"test": {"source": "folder", "path": "nowhere"}}, ImageSetError, r"test\.path: no folder at .*nowhere"),
        ({"test": (BLACK, ["dark", "dark"])}, ImageSetError, r"test: its labels are text .* give classes=\[\.\.\.\]"),
        ({"labelled": (BLACK[:, :5], [0, 0])}, ImageSetError,
         "labelled: its images have shape .*; bring them to one size and colour first$"),
        ({"test": (BLACK, ["dark", "odd"]), "classes": ["dark", "bright"]}, ImageSetError,
         "test: .*'odd'; .*; bring test and the teacher's classes together: rename a class on one side$"),
        ({"images": images(1), "budget": 1}, ImageSetError, r"needs at least two images to mix, got 1; give more"),
        ({"images": []}, ImageSetError, "^images: there are no images in it; give at least one$"),
        ({"test": ([], [])}, ImageSetError, "^test: there are no images in it; give at least one$"),
        ({"test": images(0)}, ImageSetError, "^test: there are no images in it; give at least one$"),
        ({"budget": 9}, ConfigError, "lower select.first, or give fewer images"),
        ({"validation": (BLACK, [0.5, 0])}, ImageSetError, "validation: label 0.5"),
        ({"test": (BLACK, [0, -1])}, ImageSetError, "test: label -1 found"),
        ({"ledger": {"path": "missing/ledger.sqlite"}, "teacher_options": {"name": "t"}}, ConfigError,
         r"ledger\.path: there is no folder .*missing; make it, or give another path"),
        ({"ledger": {"path": "."}, "teacher_options": {"name": "t"}}, ConfigError, r"ledger\.path: .* is a folder"),
        ({"ledger": {"path": "notes.txt"}, "teacher_options": {"name": "t"}}, LedgerError, r"notes\.txt"),
        ({"budget": 11}, ConfigError, r"budget\.queries"),
        ({"student": {"model": "lenet5"}}, KdrayError, "lenet5"),
        ({"student": {"model": "small-cnn", "device": "cuda:99"}}, ConfigError, r"student\.device"),
        ({"teacher_options": {"answer": "soft"}}, ConfigError, r"unknown key 'teacher\.answer'"),
        ({"teacher_options": {"kind": "http"}}, ConfigError, "teacher_options: kind is decided by the function itself"),
        ({"teacher_options": {"classes": 2}, "classes": 2}, ConfigError, "classes is given twice"),
        ({"out": "notes.txt"}, RunDirectoryError, r"notes\.txt is a file; choose another --out"),
        ({"out": "notes.txt/run"}, RunDirectoryError, r"cannot work in .*: .*notes\.txt is not a folder"),
        ({"out": "full"}, RunDirectoryError, "full is not empty and holds no run"),
    ],
)  # fmt: skip
def test_all_that_is_free_is_checked_before_the_first_image_is_paid(changes, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("not a ledger, but long enough to be taken for a file of something else\n" * 9)
    Path("full").mkdir()
    Path("full/thing").write_text("")
    before, teacher = sorted(tmp_path.rglob("*")), Teacher()
    with pytest.raises(error, match=message):
        distil(teacher, **({"out": "run"} | changes))
    assert teacher.asked == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_path_of_the_ledger_that_is_mended_is_no_other_config(tmp_path):
    teacher, options = Teacher(), {"teacher_options": {"name": "bright"}, "classes": 2}
    with pytest.raises(ConfigError, match=r"ledger\.path: there is no folder"):
        distil(teacher, tmp_path / "run", ledger={"path": str(tmp_path / "x" / "ledger.sqlite")}, **options)
    (tmp_path / "x").mkdir()
    result = distil(teacher, tmp_path / "run", ledger={"path": str(tmp_path / "x" / "ledger.sqlite")}, **options)
    assert result.receipt.queries == teacher.asked == 12


def test_another_cap_than_the_ledgers_is_found_out_before_anything_is_written(tmp_path):
    Ledger(tmp_path / "ledger.sqlite", budget=100).close()
    teacher = Teacher()
    with pytest.raises(LedgerError, match="was made for a budget of 100 queries, not 50"):
        distil(teacher, tmp_path / "run", ledger={"path": str(tmp_path / "ledger.sqlite"), "queries": 50}, classes=2,
               teacher_options={"name": "bright"})  # fmt: skip
    assert teacher.asked == 0 and not (tmp_path / "run").exists()


def test_classes_in_the_options_are_used_and_those_of_a_run_are_known(tmp_path):
    teacher = Teacher()
    first = distil(teacher, tmp_path / "a", teacher_options={"classes": ["dark", "bright"]})
    assert first.classes == ("dark", "bright") and teacher.asked == 12
    again = distil(teacher, tmp_path / "a")
    assert again.receipt == first.receipt and teacher.asked == 12


def test_text_labels_are_matched_to_the_functions_names(tmp_path):
    test = (np.stack([np.full((8, 8), 200, np.uint8), np.zeros((8, 8), np.uint8)]), ["Bright", "dark"])
    call = {"classes": ["dark", "bright"], "test": test, "budget": {"queries": 12, "evaluation": 2}}
    result = distil(Teacher(), tmp_path / "run", **call)
    assert result.history[0].teacher_accuracy == 1.0
    (tmp_path / "run" / "rounds" / "000" / "metrics.json").unlink()
    resumed = resume(
        RunDirectory(tmp_path / "run"), local=True
    )  # labels from the run directory, answers from the ledger
    assert resumed.history[0].teacher_accuracy == 1.0
    with pytest.raises(ImageSetError, match=r"^test: the teacher has no class 'grey'; it has 'bright'"):
        distil(Teacher(), tmp_path / "other", **(call | {"test": (test[0], ["grey", "dark"])}))


@pytest.mark.parametrize(("given", "field"), [({"classes": 2}, "classes"), ({"teacher_options": {"name": "a"}},
                                                                            "teacher_options")])  # fmt: skip
def test_what_belongs_to_a_function_is_refused_beside_a_section(given, field, tmp_path):
    with pytest.raises(ConfigError, match=f"^{field} belongs to a function; write it into the teacher's section"):
        distil({"kind": "python", "function": "m:f", "classes": 2}, tmp_path / "run", **given)


# Which functions have a name


def plain(images: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[(images.mean(axis=(1, 2, 3)) > 100).astype(int)]


def made(threshold: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda images: np.eye(2, dtype=np.float32)[(images.mean(axis=(1, 2, 3)) > threshold).astype(int)]


@functools.wraps(plain)
def wrapped(images: np.ndarray) -> np.ndarray:
    return plain(images)[:, ::-1]


class Client:
    def ask(self, images: np.ndarray) -> np.ndarray:
        return plain(images)

    @staticmethod
    def ask_all(images: np.ndarray) -> np.ndarray:
        return plain(images)


def of_a_script(images: np.ndarray) -> np.ndarray:
    return plain(images)


of_a_script.__module__ = "__main__"
NAMELESS = [functools.partial(plain), made(100), Client().ask, Teacher(), wrapped, of_a_script]


def test_a_function_of_a_module_has_a_name():
    assert own_name(plain) == f"{__name__}:plain"
    assert own_name(Client.ask_all) == f"{__name__}:Client.ask_all"
    assert [own_name(function) for function in NAMELESS] == [None] * len(NAMELESS)


@pytest.mark.parametrize("function", NAMELESS)
def test_a_function_without_a_name_of_its_own_needs_one_on_a_shared_ledger(function, tmp_path):
    shared = {"ledger": {"path": str(tmp_path / "ledger.sqlite")}}
    with pytest.raises(ConfigError, match=r"has no name that tells it from others like it, and on the shared ledger"):
        distil(function, tmp_path / "run", **shared)
    assert list(tmp_path.iterdir()) == []


def test_two_closures_on_one_ledger_are_two_teachers(tmp_path):
    shared = {"ledger": {"path": str(tmp_path / "ledger.sqlite")}, "classes": 2}
    results = [
        distil(made(limit), tmp_path / f"{limit}", teacher_options={"name": f"over {limit}"}, **shared)
        for limit in (0, 255)
    ]
    assert [set(result.labelled[0].answers.labels.tolist()) for result in results] == [{1}, {0}]
    assert [result.receipt.queries for result in results] == [12, 12]
    assert distil(plain, tmp_path / "plain", **shared).receipt.queries == 12, "a function of a module needs none"


def test_answers_kept_under_a_name_are_of_so_many_classes(tmp_path):
    shared = {"ledger": {"path": str(tmp_path / "ledger.sqlite")}}
    options = {"teacher_options": {"name": "labels", "answers": "hard"}}
    distil(lambda images: np.full(len(images), 4), tmp_path / "a", classes=5, **shared, **options)
    with pytest.raises(TeacherError, match=r"answer with class 4 of this teacher, teacher\.classes says 3"):
        distil(lambda images: np.full(len(images), 2), tmp_path / "b", classes=3, **shared, **options)


def test_an_image_for_which_the_function_gives_nan_is_set_aside(tmp_path):
    """It is paid for as often as `retry.tries` says; the others are learned from, and the run ends well."""
    asked = []

    def teacher(images):
        asked.extend(images[:, 0, 0, 0].tolist())
        probs = np.full((len(images), 2), 0.5)
        probs[images[:, 0, 0, 0] == 7] = np.nan
        return probs

    images = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 16, 16), np.uint8)
    options = {"classes": 2, "retry": {"tries": 3}}
    small = {"select": {"rounds": 0}, "student": {"model": "small-cnn", "epochs": 1, "augment": "none"}, "local": True}
    result = kdray.distil(
        images=images, teacher=teacher, budget=60, teacher_options=options, out=tmp_path / "run", **small
    )
    assert asked.count(7) == 3 and len(asked) == 42
    assert (result.receipt.queries, result.receipt.rejected) == (42, 3)
    assert result.labelled[0].images[:, 0, 0, 0].tolist() == [n for n in range(40) if n != 7]
