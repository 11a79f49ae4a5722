"""Which files a folder or a set of parquet files gives, what is left out, and what the classes are called."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command
from PIL import Image
from pydantic import ValidationError
from test_images import CELL, encode, numbered, read, rows_of, write_images, write_parquet

from kdray.errors import ImageSetError
from kdray.images.splits import split_of


def refusal(**config) -> str:
    with pytest.raises(ImageSetError) as error:
        read(**config)
    return str(error.value)


# Folders


def test_leftovers_are_no_data(tmp_path):
    root = tmp_path / "set"
    write_images(root, {"cat/1.png": numbered(1), "dog/2.png": numbered(2)})
    write_images(
        root, {".ipynb_checkpoints/1-checkpoint.png": numbered(9), "cat/.ipynb_checkpoints/9.png": numbered(9)}
    )
    write_images(root, {"__MACOSX/cat/9.png": numbered(9), "dog/@eaDir/9.png": numbered(9)})
    (root / "cat" / "._1.png").write_bytes(b"\0\5\26\7")
    (root / ".DS_Store").write_bytes(b"Bud1")
    (root / "cat" / "labels.csv").write_text("a")
    (root / "dog" / "LICENSE").write_text("a")
    (root / "dog" / "b.CSV").write_text("a")
    found = read(source="folder", path=str(root), with_labels=True)
    assert rows_of(found) == [1, 2] and found.labels.tolist() == [0, 1] and found.classes == ("cat", "dog")
    assert found.notes == (
        f"images: 9 files of {root} are no images and were left out (hidden 6, .csv 2, no suffix 1)",
    )


def test_linked_class_folders_and_files_are_followed(tmp_path):
    write_images(tmp_path / "elsewhere", {"1.png": numbered(1), "2.png": numbered(2)})
    root = tmp_path / "set"
    write_images(root, {"ant/0.png": numbered(0)})
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (root / "ant" / "3.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "eel").symlink_to(tmp_path / "elsewhere")  # twice is no loop
    found = read(source="folder", path=str(root), with_labels=True)
    assert rows_of(found) == [0, 2, 1, 2, 1, 2] and found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.classes == ("ant", "cat", "eel") and found.notes == ()


def test_links_in_a_circle_and_links_to_nothing_are_refused(tmp_path):
    root = tmp_path / "set"
    write_images(root, {"cat/1.png": numbered(1)})
    (root / "cat" / "all").symlink_to(root)
    assert refusal(source="folder", path=str(root)) == (
        f"images: {root}/cat/all is a link to {root}, a folder that it lies in; remove the link"
    )
    (root / "cat" / "all").unlink()
    for target in ("nothing", "dog"):
        (root / "dog").symlink_to(target)
        assert refusal(source="folder", path=str(root)).startswith(
            f"images: {root}/dog is a link to a file that is not there ("
        )
        (root / "dog").unlink()


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "tga", "JPEG", "ico", "pcx", "pbm", "qoi", "sgi"])
def test_all_that_pillow_opens_is_read(tmp_path, suffix):
    Image.fromarray(np.full((16, 16), 255, np.uint8)).convert("1" if suffix == "pbm" else "RGB").save(
        tmp_path / f"a.{suffix}"
    )
    found = read(source="folder", path=str(tmp_path), colour="grey")
    assert found.image_shape == (1, 16, 16) and (found.images >= 254).all() and found.notes == ()


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for name in ("a.txt", "b.pdf", "c.h5", "d.eps"):
        (tmp_path / name).write_text("a")
    assert refusal(source="folder", path=str(tmp_path)) == (
        f"images: {tmp_path} holds no images; 4 files of {tmp_path} are no images and were left out (.eps 1, .h5 1, "
        ".pdf 1, .txt 1)"
    )


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ([str(k) for k in range(12)], tuple(str(k) for k in range(12))),
        (["90", "-90", "0"], ("-90", "0", "90")),
        (["007", "7", "10"], ("007", "7", "10")),
        (["10", "2", "x"], ("10", "2", "x")),
    ],
)
def test_folders_that_are_numbers_are_in_the_order_of_numbers(tmp_path, folders, classes):
    root = write_images(tmp_path, {f"{name}/a.png": numbered(classes.index(name)) for name in folders})
    found = read(source="folder", path=root, with_labels=True)
    assert found.classes == classes
    assert rows_of(found) == found.labels.tolist() == list(range(len(classes)))


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test"),
        ("Training", "val"),
        ("train", "validation", "test"),
        ("train2017", "val2017"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
    ],
)
def test_folders_of_training_and_test_images_are_no_classes(tmp_path, folders):
    root = write_images(tmp_path, {f"{name}/cat/1.png": numbered(1) for name in folders})
    listed = ", ".join(map(repr, sorted(folders)))
    assert refusal(source="folder", path=root) == (
        f"images.path: {root} holds the folders {listed}, sets of their own and no classes; name one of them, for "
        f"example {root}/{min(folders)}, or rename those that are classes"
    )
    assert len(read(source="folder", path=f"{root}/{folders[0]}", with_labels=True)) == 1


@pytest.mark.parametrize("folder", ["train", "Test", "val2017", "training_set"])
def test_a_single_folder_of_training_or_test_images_is_no_class_either(tmp_path, folder):
    root = write_images(tmp_path, {f"{folder}/cat/1.png": numbered(1), f"{folder}/dog/1.png": numbered(2)})
    assert refusal(source="folder", path=root) == (
        f"images.path: {root} holds the folder '{folder}', a set of its own and no class; name {root}/{folder}, or "
        "rename it if it is a class"
    )
    found = read(source="folder", path=f"{root}/{folder}", with_labels=True)
    assert found.classes == ("cat", "dog")


def test_training_and_test_images_beside_something_else_are_no_classes_and_alone_are_named(tmp_path):
    root = write_images(tmp_path, {f"{name}/1.png": numbered(1) for name in ("annotations", "test", "train")})
    assert "holds the folders 'test', 'train', sets of their own and no classes" in refusal(source="folder", path=root)


@pytest.mark.parametrize(
    "folders",
    [
        ("test tube",),
        ("test tube", "train station"),
        ("beaker", "test tube"),
        ("bus", "train"),
        ("test strip", "test tube"),
        ("invalid", "valid"),
        ("测试test",),
    ],
)
def test_classes_whose_names_hold_the_word_of_a_split_are_classes(tmp_path, folders):
    root = write_images(tmp_path, {f"{name}/1.png": numbered(k) for k, name in enumerate(folders)})
    for source in ({"source": "folder", "path": root}, {"source": "torchvision", "name": "ImageFolder", "root": root}):
        found = read(**source, with_labels=True)
        assert found.classes == folders and found.labels.tolist() == list(range(len(folders)))


@pytest.mark.parametrize("folders", [("train",), ("test", "train")])
def test_torchvision_does_not_take_sets_for_classes(tmp_path, folders):
    root = write_images(tmp_path, {f"{name}/cat/1.png": numbered(1) for name in folders})
    assert refusal(source="torchvision", name="ImageFolder", root=root) == (
        f"images: torchvision's ImageFolder takes the folder '{folders[0]}' under {root} for a class, and it is a set "
        "of its own; name it as the root, or rename it if it is a class"
    )


def test_torchvision_does_not_take_a_leftover_for_a_class(tmp_path):
    root = write_images(tmp_path, {"cat/1.png": numbered(1), ".ipynb_checkpoints/1.png": numbered(1)})
    assert "takes the folder '.ipynb_checkpoints'" in refusal(source="torchvision", name="ImageFolder", root=root)


def test_run_and_plan_say_what_is_left_out(tmp_path, teacher_weights):
    root = tmp_path / "set[red] :bug: [" / "]"  # as it is, on a terminal too
    write_images(root, {f"{k}.png": np.full((16, 16), k, np.uint8) for k in range(8)})
    (root / "a.txt").write_text("a")
    (tmp_path / "c.yaml").write_text(
        f"images: {{source: folder, path: '{root}'}}\n"
        f"teacher: {{kind: local, model: small-cnn, weights: {teacher_weights}}}\n"
        "budget: {queries: 8}\nselect: {strategy: random, rounds: 0}\n"
        "student: {model: lenet5, epochs: 1, augment: none}\n"
    )
    told = f"images: 1 file of {root} is no image and was left out (.txt 1)"
    planned = command("plan", tmp_path / "c.yaml", env={"COLUMNS": "400"})
    assert planned.returncode == 0 and told in " ".join(planned.stdout.split())
    done = command("run", tmp_path / "c.yaml", "--local", "--out", tmp_path / "r")
    assert done.returncode == 0 and told in done.stderr.splitlines()


# Splits of parquet files


def write_shards(folder, *names: str) -> str:
    """A parquet file of each name with one image, which shows the file's position."""
    for k, name in enumerate(names):
        write_parquet(folder / f"{name}.parquet", [encode(numbered(k))], [k])
    return str(folder)


TRAIN, TEST = ("train-00000-of-00002", "train-00001-of-00002"), ("test-00000-of-00001",)


def test_splits_that_lie_together_are_not_one_set(tmp_path):
    path = write_shards(tmp_path, *TRAIN, *TEST)
    for given in (path, f"{path}/*.parquet"):
        assert refusal(source="parquet", path=given) == (
            f"images.path: {given} holds files of several splits, test, train; name one as images.split, or set it to "
            "all to read them together"
        )
    assert rows_of(read(source="parquet", path=path, split="train")) == [0, 1]
    assert rows_of(read(source="parquet", path=path, split="test")) == [2]
    assert rows_of(read(source="parquet", path=path, split="all")) == [2, 0, 1]
    assert rows_of(read(source="parquet", path=f"{path}/train-*")) == [0, 1]
    assert refusal(source="parquet", path=path, split="validation") == (
        f"images.split: no file of validation at {path}; its files are of test, train"
    )


def test_a_split_that_no_name_says_is_refused(tmp_path):
    path = write_shards(tmp_path, "a", "b")
    assert rows_of(read(source="parquet", path=path)) == [0, 1]
    assert refusal(source="parquet", path=path, split="train").endswith("; the names of its files say no split")


def test_missing_shards_and_folders_below_are_said(tmp_path):
    path = write_shards(tmp_path, "train-00000-of-00003", "train-00002-of-00003", "deep/train-0001")
    assert read(source="parquet", path=path).notes == (
        f"images: 1 parquet files in folders below {path} were left out",
        f"images: only 2 of the 3 shards of train are at {path}",
    )
    (tmp_path / "data").mkdir()
    for file in tmp_path.glob("*.parquet"):
        file.rename(tmp_path / "data" / file.name)
    assert refusal(source="parquet", path=path) == (
        f"images.path: no parquet file at {path}; the 3 below it lie in folders of their own: name one"
    )


def test_hidden_parquet_files_are_left_alone(tmp_path):
    path = write_shards(tmp_path, "a")
    (tmp_path / "._a.parquet").write_bytes(b"\0\5\26\7")
    assert rows_of(read(source="parquet", path=path)) == [0]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001-a09b74b3ef9c3b56", "train"),
        ("extra-00000-of-00002", "extra"),
        ("mnist-test", "test"),
        ("Training", "train"),
        ("dev", "validation"),
        ("valid_1", "validation"),
        ("round-000", None),
        ("trainer", None),
        ("contest", None),
    ],
)
def test_the_split_of_a_name(name, split):
    assert split_of(name) == split


# Columns of parquet files


def test_shards_that_differ_where_images_need_nothing_are_read(tmp_path):
    good = encode(numbered(7))
    turned = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])
    for name, columns in {
        "a": {"image": pa.array([{"bytes": good, "path": None}], CELL), "label": pa.array([0], pa.int32())},
        "b": {"label": pa.array([1], pa.int64()), "image": pa.array([{"bytes": good, "path": "x"}], turned)},
        "c": {"image": pa.array([good], pa.binary()), "label": pa.array([2], pa.uint8())},
        "d": {"image": pa.array([{"bytes": good}], pa.struct([("bytes", pa.binary())]))},
    }.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    assert rows_of(read(source="parquet", path=str(tmp_path))) == [7] * 4
    assert read(source="parquet", path=str(tmp_path), with_labels=True, rows="0:3").labels.tolist() == [0, 1, 2]
    assert refusal(source="parquet", path=str(tmp_path), with_labels=True, field="test") == (
        f"test: {tmp_path}/d.parquet has no column 'label', and labels are needed here; its columns are 'image'; name "
        "another as test.label_column, or read fewer files"
    )


def test_the_shard_that_is_wrong_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", [encode(numbered(0))])
    write_parquet(tmp_path / "b.parquet", [encode(numbered(0))], column="img")
    (tmp_path / "c.parquet").write_bytes(b"junk")
    assert refusal(source="parquet", path=str(tmp_path)) == (
        f"images.path: {tmp_path}/b.parquet has no column 'image'; its columns are 'img'"
    )
    (tmp_path / "b.parquet").unlink()
    assert refusal(source="parquet", path=str(tmp_path)).startswith(
        f"images.path: {tmp_path}/c.parquet is not a readable parquet file ("
    )


def test_a_cell_without_bytes_names_a_file_beside_the_parquet(tmp_path):
    cells = pa.array([{"bytes": None, "path": "pictures/a.png"}, {"bytes": None, "path": "no.png"}], CELL)
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    write_images(tmp_path, {"pictures/a.png": numbered(5)})
    path = str(tmp_path / "a.parquet")
    assert rows_of(read(source="parquet", path=path, rows="0:1")) == [5]
    assert refusal(source="parquet", path=path) == (
        f"images: row 1 of {path} is not a readable image (it has no bytes but a path, and there is no file at "
        f"{tmp_path}/no.png)"
    )


def cifar100(path, fine=("apple", "baby", "can"), coarse=("x", "y")) -> str:
    """Three images in the columns of CIFAR-100."""
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"names": list(fine), "_type": "ClassLabel"},
        "coarse_label": {"names": list(coarse), "_type": "ClassLabel"},
    }
    cells = [{"bytes": encode(numbered(k)), "path": None} for k in range(3)]
    table = pa.table({"img": pa.array(cells, CELL), "fine_label": [2, 0, 1], "coarse_label": [1, 1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return str(path)


def test_columns_can_be_chosen_and_class_names_follow_the_labels(tmp_path):
    path = cifar100(tmp_path / "a.parquet")
    fine = read(source="parquet", path=path, label_column="fine_label", with_labels=True)
    assert fine.labels.tolist() == [2, 0, 1] and fine.classes == ("apple", "baby", "can")
    coarse = read(source="parquet", path=path, label_column="coarse_label", image_column="img", with_labels=True)
    assert coarse.labels.tolist() == [1, 1, 0] and coarse.classes == ("x", "y")
    listed = "'img', 'fine_label', 'coarse_label'"
    assert refusal(source="parquet", path=path, with_labels=True) == (
        f"images: {path} holds no labels; labels are needed here; its columns are {listed}; name one as "
        "images.label_column"
    )
    assert refusal(source="parquet", path=path, image_column="pixels") == (
        f"images.path: {path} has no column 'pixels'; its columns are {listed}"
    )
    assert f"has no column 'label'; its columns are {listed}".replace("; its", ", and labels are needed here; its") in (
        refusal(source="parquet", path=path, label_column="label", with_labels=True)
    )


def write_twice(path, names: list[str], cell: pa.StructType = CELL) -> str:
    """One image in columns of these names: images where they are img or image, the label 3 else."""
    good = encode(numbered(3))
    parts = [pa.array([good if pa.types.is_binary(part.type) else None], part.type) for part in cell]
    cells = pa.StructArray.from_arrays(parts, fields=list(cell))
    pq.write_table(pa.table([cells if name in ("image", "img") else pa.array([3]) for name in names], names), path)
    return str(path)


@pytest.mark.parametrize("label_column", [None, "label"])
def test_two_columns_of_labels_of_one_name_are_refused_where_labels_are_read(tmp_path, label_column):
    path = write_twice(tmp_path / "a.parquet", ["image", "label", "label", "id", "id", "coarse"])
    found = {"source": "parquet", "path": path, "label_column": label_column}
    assert rows_of(read(**found)) == [3]
    for with_labels in (True, None):
        assert refusal(**found, with_labels=with_labels, field="test") == (
            f"test.path: {path} has 2 columns named 'label', and it cannot be known which is meant; rename one of "
            "them, or name another column as test.label_column (its columns are 'image', 'label', 'label', 'id', 'id', "
            "'coarse')"
        )
    assert read(**(found | {"label_column": "coarse"}), with_labels=True).labels.tolist() == [3]


def test_the_shard_with_two_columns_of_labels_is_named(tmp_path):
    write_twice(tmp_path / "a.parquet", ["image", "label"])
    path = write_twice(tmp_path / "b.parquet", ["label", "image", "label", "label"])
    found = {"source": "parquet", "path": str(tmp_path), "with_labels": True}
    assert f"{path} has 3 columns named 'label'" in refusal(**found)
    assert f"{path} has 3 columns named 'label'" in refusal(**found, rows="0:1")  # classes are those of all files


@pytest.mark.parametrize("column", ["image", "img"])
def test_two_columns_of_images_of_one_name_are_refused(tmp_path, column):
    path = write_twice(tmp_path / "a.parquet", [column, "label", column])
    for image_column in (None, column):
        assert refusal(source="parquet", path=path, image_column=image_column) == (
            f"images.path: {path} has 2 columns named '{column}', and it cannot be known which is meant; rename one of "
            f"them, or name another column as images.image_column (its columns are '{column}', 'label', '{column}')"
        )


@pytest.mark.parametrize("twice", ["bytes", "path"])
def test_two_parts_of_an_image_of_one_name_are_refused(tmp_path, twice):
    kind = CELL.field(twice).type
    path = write_twice(tmp_path / "a.parquet", ["image"], pa.struct([*CELL, pa.field(twice, kind)]))
    assert refusal(source="parquet", path=path) == (
        f"images.path: column 'image' of {path} has 2 fields '{twice}', and it cannot be known which is meant; write "
        "the file anew with one of them"
    )


def test_a_label_that_no_int64_holds_is_refused_by_name_and_no_other(tmp_path):
    for name, labels in {
        "a": pa.array([0, 2**63 - 1], pa.uint64()),
        "b": pa.array([5, 2**64 - 1], pa.uint64()),
    }.items():
        cells = pa.array([{"bytes": encode(numbered(k)), "path": None} for k in range(2)], CELL)
        pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / f"{name}.parquet")
    found = {"source": "parquet", "path": str(tmp_path), "with_labels": True}
    assert read(**found, rows="0:3").labels.tolist() == [0, 2**63 - 1, 5]
    assert refusal(**found, rows="1:4", field="test") == (
        f"test: label 18446744073709551615 of row 1 of {tmp_path}/b.parquet is too large"
    )


OWN = """
import numpy as np
from PIL import Image
from kdray.images.base import ImageRows, ImageSource

class Own(ImageSource):
    kind: str

    def open(self, field):
        labels = {
            "uint64": np.array([0, 1, 2**64 - 1], dtype=np.uint64),
            "list": [0, 1, 2**64],
            "small": np.array([0, 1, -(2**63) - 1], dtype=object),
            "float": np.array([0.0, 1.0, 2.5]),
            "good": np.array([0, 1, 2], dtype=object),
        }[self.kind]
        return ImageRows(
            name="own", rows=3, decode=lambda row: Image.new("L", (2, 2), row), where=lambda row: f"place {row}",
            labels=lambda rows: np.asarray(labels)[rows],
        )
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("uint64", "images: label 18446744073709551615 of place 2 is too large"),
        ("list", "images: label 18446744073709551616 of place 2 is too large"),
        ("small", "images: label -9223372036854775809 of place 2 is too small"),
        ("float", "images: the labels of own are float64 [2] for 2 images; one whole number an image is needed"),
    ],
)
def test_labels_of_a_source_of_the_users_own_are_never_made_others(tmp_path, monkeypatch, kind, message):
    (tmp_path / "own_numbers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal(source="own_numbers:Own", kind=kind, rows="1:3", with_labels=True) == message
    assert read(source="own_numbers:Own", kind="good", with_labels=True).labels.tolist() == [0, 1, 2]


def test_shards_with_other_class_names_are_refused_where_labels_are_read(tmp_path):
    cifar100(tmp_path / "a.parquet")
    cifar100(tmp_path / "b.parquet", fine=("baby", "apple", "can"))
    found = {"source": "parquet", "path": str(tmp_path)}
    assert len(read(**found)) == 6
    assert len(read(**found, label_column="coarse_label", with_labels=True)) == 6
    assert refusal(**found, label_column="fine_label", with_labels=True) == (
        f"images.path: {tmp_path}/b.parquet has other class names than {tmp_path}/a.parquet, or in another order; read "
        "them apart"
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_labels_that_are_names_are_classes_in_the_order_of_all_names(tmp_path, kind):
    for name, labels in (("a", ["dog", "ant"]), ("b", ["cat", "dog"])):
        write_parquet(tmp_path / f"{name}.parquet", [encode(numbered(0))] * 2, pa.array(labels).cast(kind))
    found = read(source="parquet", path=str(tmp_path), with_labels=True)
    assert found.classes == ("ant", "cat", "dog") and found.labels.tolist() == [2, 0, 1, 2]
    part = read(source="parquet", path=str(tmp_path), with_labels=True, rows="2:3")
    assert part.classes == ("ant", "cat", "dog") and part.labels.tolist() == [1]
    numbers = write_parquet(tmp_path / "c.parquet", [encode(numbered(0))] * 3, ["10", "9", "10"])
    assert read(source="parquet", path=numbers, with_labels=True).classes == ("9", "10")


def test_labels_that_are_names_in_one_shard_only_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [encode(numbered(0))], ["dog"])
    write_parquet(tmp_path / "b.parquet", [encode(numbered(0))], [1])
    assert refusal(source="parquet", path=str(tmp_path), with_labels=True) == (
        f"images.path: labels are names in {tmp_path}/a.parquet, but whole numbers in {tmp_path}/b.parquet; read them "
        "apart"
    )


# Names of classes from the config


def test_the_configs_class_names_replace_the_sources(tmp_path):
    root = write_images(tmp_path, {"a/1.png": numbered(1), "b/2.png": numbered(2)})
    (tmp_path / "c").mkdir()
    found = read(source="folder", path=root, classes=["cat", 7, "eel"], with_labels=True)
    assert found.classes == ("cat", "7", "eel") and found.labels.tolist() == [0, 1]
    assert refusal(source="folder", path=root, classes=["cat", "dog"], field="test") == (
        f"test.classes: 2 names given, but {root} has 3 classes ('a', 'b', 'c'); give one name each, in this order"
    )
    path = write_parquet(tmp_path / "a.parquet", [encode(numbered(0))] * 3, [0, 2, 1])
    assert read(source="parquet", path=path, classes=["x", "y", "z"], with_labels=True).classes == ("x", "y", "z")
    assert refusal(source="parquet", path=path, classes=["x", "y"], with_labels=True) == (
        f"images: label 2 found in {path}, but there are names for 2 classes ('x', 'y'); give them all in "
        "images.classes"
    )
    assert read(source="digits", rows="0:5", classes=list("abcdefghij"), with_labels=True).classes == tuple(
        "abcdefghij"
    )


@pytest.mark.parametrize("classes", [["a", "b", "a"], ["7", 7], [True, False], [], "ab", [1.5]])
def test_class_names_that_are_none_are_refused(classes):
    with pytest.raises(ValidationError, match="classes"):
        read(source="digits", classes=classes)


# Names that are not UTF-8


@pytest.fixture
def latin(tmp_path):
    """A folder whose name, like those of its files and of one class, is in Latin-1."""
    root = tmp_path / os.fsdecode(b"caf\xe9")
    write_images(root, {os.fsdecode(b"gr\xfcn/b\xe4r%d.png" % k): np.full((16, 16), k, np.uint8) for k in range(4)})
    write_images(root, {f"rot/{k}.png": np.full((16, 16), 200 + k, np.uint8) for k in range(4)})
    (root / os.fsdecode(b"gr\xfcn/x.t\xe9xt")).write_text("a")
    return root


def test_a_run_among_names_that_are_not_utf8(latin, tmp_path, monkeypatch):
    """Images, weights, ledger and run directory; the run, its report, receipt and export, and the way back into it."""
    monkeypatch.chdir(latin.parent)
    out, weights = latin / os.fsdecode(b"r\xe9sultat"), latin / os.fsdecode(b"t\xe9.safetensors")
    here = tmp_path / "c.yaml"
    here.write_text(
        "images: {source: folder, path: set}\ntest: {source: folder, path: set}\n"
        "teacher: {kind: local, model: lenet5, weights: w, train: {images: {source: folder, path: set}, epochs: 1}}\n"
        "budget: {queries: 8}\nselect: {strategy: random, rounds: 0}\n"
        "student: {model: lenet5, epochs: 1, augment: none}\n"
    )
    sets = [f"{field}.path={latin}" for field in ("images", "test", "teacher.train.images")]
    files = [f"teacher.weights={weights}", f"ledger.path={latin / os.fsdecode(b'l%c.sqlite' % 0xE9)}"]
    done = command("run", here, *sets, *files, "--local", "--out", out)
    assert done.returncode == 0, done.stderr
    shown = f"{tmp_path}/caf\\xe9"
    assert f"images: 1 file of {shown} is no image and was left out (.t\\xe9xt 1)" in done.stderr.splitlines()
    assert f"run    {shown}/r\\xe9sultat" in done.stdout.splitlines()
    assert f"{shown}/r\\xe9sultat" in (out / "report.html").read_text(encoding="utf-8")
    for arguments in (("resume", out, "--local"), ("ledger", out), ("report", out)):
        again = command(*arguments)
        assert again.returncode == 0, again.stderr
    exported = command("ledger", out, "--export", latin / os.fsdecode(b"\xe9.parquet"))
    assert exported.returncode == 0 and exported.stdout.splitlines()[-1].endswith(f"answers to {shown}/\\xe9.parquet")
    labelled = read(source="parquet", path=str(out / "labelled"), with_labels=True)
    assert len(labelled) == 8 and labelled.classes == ("gr\\xfcn", "rot")
