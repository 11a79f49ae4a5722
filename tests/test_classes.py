"""What a label of a data set means to the teacher: by hand, and whatever order the classes are listed in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Notes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdray.config.load import parse_config
from kdray.errors import ImageSetError, ModelError
from kdray.images.base import ImageSet, read_images
from kdray.images.labels import with_teachers_labels
from kdray.images.parquet import ParquetImages
from kdray.models.checkpoint import read_card
from kdray.observers.base import Observer
from kdray.runs.inputs import InMemoryInputs, read_inputs, resolve
from kdray.runs.plan import make_plan
from kdray.runs.tables import write_image_set
from kdray.runs.teachers import train_by_recipe
from kdray.sections.classes import ClassesDiffer, loose, match_classes

TWELVE = tuple(sorted(map(str, range(12))))  # as folders are sorted: "0", "1", "10", "11", "2", ...


@pytest.mark.parametrize(
    ("labels", "own", "names", "count", "positions"),
    [
        # Both have names.
        ([0, 1, 2], ("a", "b", "c"), ("c", "a", "b"), None, {0: 1, 1: 2, 2: 0}),
        ([0, 1], ("a", "c"), ("a", "b", "c"), None, {0: 0, 1: 2}),
        ([1], ("unheard of", "b"), ("a", "b"), None, {1: 1}),
        ([0, 1, 2, 4], TWELVE, tuple(map(str, range(12))), None, {0: 0, 1: 1, 2: 10, 4: 2}),
        ([0, 1], ("Cat.", " dog"), ("DOG", "cat"), None, {0: 1, 1: 0}),
        ([0, 1], ("cat", "Cat"), ("Cat", "cat"), None, {0: 1, 1: 0}),
        ([0, 1], ("07", "8"), ("8", "7"), None, {0: 1, 1: 0}),
        ([0, 1], ("cafe\u0301", "tea"), ("tea", "caf\u00e9"), None, {0: 1, 1: 0}),
        # Only the data set has names.
        ([0, 2, 3], TWELVE, None, 12, {0: 0, 2: 10, 3: 11}),
        ([0, 1], ("3", "9"), None, 10, {0: 3, 1: 9}),
        ([0, 1], ("3", "9"), None, None, {0: 3, 1: 9}),
        ([0, 1], ("a", "b"), None, 2, {0: 0, 1: 1}),
        # Only the teacher has names, or nobody.
        ([0, 1], None, ("a", "b"), None, {0: 0, 1: 1}),
        ([0, 180], None, ("0", "180"), None, {0: 0, 180: 1}),
        ([0, 1], None, ("0", "180"), None, {0: 0, 1: 1}),
        ([1, 4], None, ("1", "2", "3", "4"), None, {1: 0, 4: 3}),
        ([0, 3], None, ("1", "2", "3", "4"), None, {0: 0, 3: 3}),
        ([2, 9], None, tuple(map(str, range(10))), None, {2: 2, 9: 9}),
        ([5, 0, 5], None, None, 6, {0: 0, 5: 5}),
        ([7], None, None, None, {7: 7}),
    ],
)
def test_a_label_by_hand(labels, own, names, count, positions):
    assert match_classes(labels, own, names, count).positions == positions


@pytest.mark.parametrize(
    ("labels", "own", "names", "count", "message"),
    [
        ([0, 1, 2], ("a", "x", "y"), ("a", "b", "c"), None, "the teacher has no class 'x', 'y'; it has 'b', 'c'"),
        ([0], ("0 - zero",), ("0", "1"), None, "the teacher has no class '0 - zero'; it has '0', '1'"),
        ([0], ("CAT",), ("Cat", "cat"), None, "class 'CAT' could be the teacher's 'Cat', 'cat'"),
        ([0, 1], ("cat", "Cat"), ("cat", "dog"), None, "'cat', 'Cat' would all be the teacher's class 'cat'"),
        ([0], ("a", "a"), ("a", "b"), None, "the data set has two classes named 'a'; names must differ"),
        ([0], None, ("a", "a"), None, "the teacher has two classes named 'a'; names must differ"),
        ([0, 2], ("a", "b"), ("a", "b"), None, "label 2 found, but the data set names 2 classes"),
        ([0, 1], ("1", "12"), None, 12,
         "class 12 found, but the teacher has 12 classes, 0 to 11, and no names for them"),
        ([0, 1], ("1", "01"), None, 12, "the data set has two classes named '1'; names must differ"),
        ([0, 1], ("a", "b"), None, 3, "the data set has 2 classes ('a', 'b'), the teacher 3 and no names for them"),
        ([0, 3], None, ("a", "b"), None, "label 3 found, but the teacher has 2 classes"),
        ([0, 3], None, None, 3, "label 3 found, but the teacher has 3 classes"),
        ([-1, 0], None, None, 3, "label -1 found; every image needs its true label"),
        ([1, 2], None, ("1", "2", "3", "4"), None, "label 1 could be the teacher's class named 1 or its class at "
         "position 1, which is '2'; positions count from 0"),
        ([0], None, ("1", "0"), None, "label 0 could be the teacher's class named 0 or its class at position 0, "
         "which is '1'; positions count from 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(labels, own, names, count, message):
    with pytest.raises(ClassesDiffer) as error:
        match_classes(labels, own, names, count)
    assert str(error.value) == message


def test_an_order_that_is_taken_for_granted_is_told():
    note = match_classes([0], ("a", "b"), None, 2).note
    assert note == "the teacher has no class names, so its classes are taken to be 'a', 'b', in this order"
    assert match_classes([0], ("0", "1"), None, 2).note is None
    assert match_classes([0], ("b", "a"), ("a", "b"), 2).note is None


different = st.lists(st.text(max_size=4), min_size=2, max_size=8, unique_by=loose)


@given(different, st.data())
def test_the_order_in_which_classes_are_listed_never_changes_what_a_label_means(names, data):
    own = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    teacher = data.draw(st.permutations(names))
    found = match_classes(range(len(own)), own, teacher, None).positions
    assert [teacher[found[label]] for label in range(len(own))] == own


@given(st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True), st.data())
def test_folders_named_by_numbers_are_those_positions_in_any_order(numbers, data):
    own = data.draw(st.permutations([str(number) for number in numbers]))
    found = match_classes(range(len(own)), own, None, 100).positions
    assert all(found[label] == int(name) for label, name in enumerate(own))


@given(st.lists(st.text(max_size=4), min_size=2, max_size=6), st.lists(st.text(max_size=4), min_size=2, max_size=6))
def test_two_labels_never_become_one_class(own, names):
    try:
        found = match_classes(range(len(own)), own, names, None).positions
    except ClassesDiffer:
        return
    assert len(set(found.values())) == len(own)
    assert all(loose(own[label]) == loose(names[place]) for label, place in found.items())


def test_labels_of_an_image_set_are_renumbered_and_its_images_stay():
    images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
    data = ImageSet(images=images, labels=torch.tensor([1, 0, 1, 2]), classes=("cat", "dog", "owl"))
    found = with_teachers_labels(data, ["owl", "fox", "dog", "cat"], None, field="test")
    assert found.true_labels.tolist() == [2, 3, 2, 0] and found.true_labels.dtype == torch.int64
    assert found.classes == ("owl", "fox", "dog", "cat") and torch.equal(found.images, images)
    heard: list[str] = []
    with_teachers_labels(data, None, 3, field="labelled", on_note=heard.append)
    assert len(heard) == 1 and heard[0].startswith("labelled: the teacher has no class names")
    with pytest.raises(ImageSetError, match=r"^test: the teacher has no class 'owl'; .* rename .* test\.classes"):
        with_teachers_labels(data, ["cat", "dog"], None, field="test")


# The sets of a config

WORDS = ["zero", "one", "two", "three"]


def write_folder(folder: Path, classes: dict[str, int], each: int = 2) -> dict[str, str]:
    """A folder of 16x16 images, `each` a class, whose pixels are 10 times the true class; its config section."""
    for name, true in classes.items():
        (folder / name).mkdir(parents=True)
        for k in range(each):
            Image.fromarray(np.full((16, 16), 10 * true, np.uint8)).save(folder / name / f"{k}.png")
    return {"source": "folder", "path": str(folder)}


def knows(images: np.ndarray) -> np.ndarray:
    """A teacher that reads the class off the pixels."""
    return np.eye(12, dtype=np.float32)[images[:, 0, 0, 0] // 10]


def config_of(tmp_path: Path, classes, **sets):
    images = write_folder(tmp_path / "unlabelled", {"images": 11}, each=6)
    teacher = {"kind": "python", "function": "m:f", "classes": classes}
    data = {"images": images, "teacher": teacher, "budget": {"queries": 20}, "student": {"model": "small-cnn"}, **sets}
    return resolve(parse_config(data))


def inputs_of(tmp_path: Path, classes, observer=None, **sets):
    given = InMemoryInputs(function=knows)
    return read_inputs(config_of(tmp_path, classes, **sets), in_memory=given, observer=observer)


def right(data: ImageSet) -> bool:
    """Whether the teacher above would be right about every image."""
    return data.true_labels.tolist() == (data.images[:, 0, 0, 0] // 10).tolist()


def test_every_labelled_set_speaks_of_the_teachers_classes(tmp_path):
    """Folders in the order of their names, which is not the teacher's, and some of its classes alone."""
    sets = {
        "labelled": write_folder(tmp_path / "a", {"three": 3, "one": 1}),
        "validation": write_folder(tmp_path / "b", {"Two.": 2, "zero": 0}),
        "test": write_folder(tmp_path / "c", {"one": 1, "three": 3, "two": 2}),
    }
    select = {"strategy": "rad", "m": "estimate", "estimate_queries": 2, "rounds": 1}
    inputs = inputs_of(tmp_path, WORDS, select=select, **sets)
    assert inputs.estimation is not None and inputs.estimation.validation is not None
    assert right(inputs.labelled) and right(inputs.test) and right(inputs.estimation.validation)


@pytest.mark.parametrize("classes", [12, [str(k) for k in range(12)]])
def test_folders_named_by_numbers_with_gaps_are_the_numbers(classes, tmp_path):
    folders = {str(k): k for k in range(12) if k != 3}
    assert right(inputs_of(tmp_path, classes, test=write_folder(tmp_path / "a", folders)).test)


@pytest.mark.parametrize("field", ["labelled", "test"])
def test_a_class_that_the_teacher_lacks_is_refused_by_run_and_plan(field, tmp_path, monkeypatch):
    sets = {field: write_folder(tmp_path / "a", {"one": 1, "seven": 7})}
    message = rf"^{field}: the teacher has no class 'seven'; it has 'zero', 'two', 'three'"
    with pytest.raises(ImageSetError, match=message):
        inputs_of(tmp_path / "run", WORDS, **sets)
    (tmp_path / "m.py").write_text("def f(images):\n    raise AssertionError\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageSetError, match=message):
        make_plan(config_of(tmp_path / "plan", WORDS, **sets), 0.01)


def test_names_without_a_counterpart_count_only_if_there_are_as_many(tmp_path):
    heard = Notes()
    test = write_folder(tmp_path / "a", {"b": 1, "a": 0})
    assert right(inputs_of(tmp_path / "1", 2, heard, test=test).test)
    assert heard.texts == [
        "test: the teacher has no class names, so its classes are taken to be 'a', 'b', in this order"
    ]
    with pytest.raises(ImageSetError, match=r"the data set has 2 classes .*, the teacher 3 and no names"):
        inputs_of(tmp_path / "2", 3, test=test)


# A teacher that is trained here


def recipe_of(tmp_path: Path, images: dict, **teacher) -> dict:
    train = {"images": images, "epochs": 40, "lr": 0.05}
    weights = tmp_path / "teacher.safetensors"
    section = {"kind": "local", "model": "small-cnn", "weights": str(weights), "train": train, **teacher}
    return {"images": images, "teacher": section, "budget": {"queries": 20}}


@pytest.mark.parametrize(
    ("folders", "classes", "card"),
    [
        ({"low": 0, "high": 25}, ["low", "high"], ("low", "high")),
        ({"low": 0, "high": 25}, None, ("high", "low")),
        ({"low": 0, "high": 25}, 2, ("high", "low")),
        ({"2": 0, "10": 25}, 12, tuple(map(str, range(12)))),
    ],
)
def test_a_teacher_is_trained_on_the_classes_it_is_said_to_have(folders, classes, card, tmp_path):
    data = recipe_of(tmp_path, write_folder(tmp_path / "a", folders, each=8), classes=classes)
    data["test"] = write_folder(tmp_path / "b", dict(reversed(folders.items())))
    weights, accuracy = train_by_recipe(parse_config(data), force=False, observer=Observer())
    assert read_card(weights).classes == card
    assert accuracy == 1.0
    inputs = read_inputs(resolve(parse_config(data)))
    answered = inputs.teacher.answer(inputs.test.images).labels
    assert answered.tolist() == inputs.test.true_labels.tolist()


def test_a_teacher_trained_on_the_labelled_set_and_that_set_agree(tmp_path):
    data = recipe_of(tmp_path, write_folder(tmp_path / "a", {"low": 0, "high": 25}, each=8), classes=["low", "high"])
    data["labelled"] = data["teacher"]["train"].pop("images")
    inputs = read_inputs(resolve(parse_config(data)))
    assert inputs.classes == ("low", "high")
    assert inputs.labelled.true_labels.tolist() == [1] * 8 + [0] * 8, "folders are read in the order of their names"
    answered = inputs.teacher.answer(inputs.labelled.images).labels
    assert answered.tolist() == inputs.labelled.true_labels.tolist()


def test_what_a_trained_teacher_would_lack_is_found_out_before_it_is_trained(tmp_path):
    data = recipe_of(tmp_path, write_folder(tmp_path / "a", {"low": 0, "high": 25}, each=8))
    data["test"] = write_folder(tmp_path / "b", {"low": 0, "middle": 12})
    for call in (
        lambda config: train_by_recipe(config, force=False, observer=Observer()),
        lambda config: read_inputs(resolve(config)),
        make_plan,
    ):
        with pytest.raises(ImageSetError, match=r"^test: the teacher has no class 'middle'"):
            call(parse_config(data))
    assert not (tmp_path / "teacher.safetensors").exists()
    data["teacher"]["classes"] = 3
    with pytest.raises(ImageSetError, match=r"^teacher\.train\.images: the data set has 2 classes .* the teacher 3"):
        train_by_recipe(parse_config(data | {"test": None}), force=False, observer=Observer())


def test_names_in_another_order_than_the_weights_have_are_refused(teacher_weights, make_config):
    order = [*map(str, range(1, 10)), "0"]
    with pytest.raises(ModelError, match=r"^teacher\.classes: '1' is at position 0, but .* it is at 1, and at 0 '0'"):
        read_inputs(resolve(make_config(teacher__classes=order)))
    renamed = ["nought", *map(str, range(1, 10))]
    with pytest.raises(ImageSetError, match=r"^test: the teacher has no class '0'; it has 'nought'; bring test and "):
        read_inputs(resolve(make_config(teacher__classes=renamed)))
    assert read_inputs(resolve(make_config(teacher__classes=renamed, test=None))).classes == tuple(renamed)


def test_class_names_of_an_array_go_into_the_run_directory(tmp_path):
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    data = ImageSet(images=images, labels=torch.tensor([1, 0, 1]), classes=("cat", "dog"))
    write_image_set(tmp_path / "x.parquet", data)
    source = ParquetImages(path=str(tmp_path / "x.parquet"))
    read = read_images(source, generator=np.random.default_rng(0), with_labels=True)
    assert read.classes == ("cat", "dog") and read.true_labels.tolist() == [1, 0, 1]
