"""Image sets: every reader on real files, which rows are drawn and decoded, and what a bad file is told."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import examples, shared_data
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from kdray.errors import ImageSetError
from kdray.images import digits
from kdray.images.base import ImageRows, ImageSet, read_images, sources
from kdray.images.png import decode_png, encode_png
from kdray.images.rows import choose_rows, parse_rows
from kdray.utils.seeds import numpy_generator

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read(*, seed: int = 0, field: str = "images", with_labels: bool = False, **config) -> ImageSet:
    """What `read_images` makes of a config section."""
    return read_images(
        sources.parse(config), generator=numpy_generator(seed, field), field=field, with_labels=with_labels
    )


def encode(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    """uint8 [H, W] or [H, W, 3] to the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def numbered(row: int) -> np.ndarray:
    """A grey 4x5 image whose every pixel is its row number."""
    return np.full((4, 5), row, dtype=np.uint8)


def write_parquet(path: Path, cells: list, labels=None, *, column: str = "image", names=None, cell=CELL) -> str:
    """Hugging Face style parquet; each cell is the bytes of a file, or None."""
    wrapped = [{"bytes": data, "path": None} for data in cells] if cell is CELL else cells
    columns = {column: pa.array(wrapped, cell)}
    features: dict = {column: {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels)
        features["label"] = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return str(path)


@pytest.fixture(scope="module")
def sixty(tmp_path_factory) -> str:
    """Sixty images that show their row number, labelled row % 3."""
    folder = tmp_path_factory.mktemp("sixty")
    cells = [encode(numbered(row)) for row in range(60)]
    return write_parquet(folder / "sixty.parquet", cells, [row % 3 for row in range(60)])


def rows_of(images: ImageSet) -> list[int]:
    """Row numbers of images of `sixty`."""
    return images.images[:, 0, 0, 0].tolist()


# Parquet


@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet_gives_pixels_labels_and_class_names(tmp_path, column):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    path = write_parquet(
        tmp_path / "a.parquet", [encode(x) for x in pixels], [2, 0, 1], column=column, names=["cat", "dog", "eel"]
    )
    found = read(source="parquet", path=path, with_labels=True)
    assert found.images.dtype == torch.uint8 and np.array_equal(found.images.numpy(), pixels[:, None])
    assert found.labels.dtype == torch.int64 and found.labels.tolist() == [2, 0, 1]
    assert found.classes == ("cat", "dog", "eel")
    assert found.image_shape == (1, 4, 5) and len(found) == 3


def test_rgb_becomes_three_channels_in_the_order_red_green_blue(tmp_path):
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 2] = (255, 0, 0), (0, 200, 0), (0, 0, 7)
    found = read(source="parquet", path=write_parquet(tmp_path / "a.parquet", [encode(pixels)]))
    assert found.images.shape == (1, 3, 2, 3)
    assert found.images[0, 0].tolist() == [[255, 0, 0], [0, 0, 0]]
    assert found.images[0, 1].tolist() == [[0, 200, 0], [0, 0, 0]]
    assert found.images[0, 2].tolist() == [[0, 0, 0], [0, 0, 7]]


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3)])
def test_jpeg_cells_decode_to_what_pillow_decodes(tmp_path, shape):
    data = encode(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8), "JPEG", quality=75)
    found = read(source="parquet", path=write_parquet(tmp_path / "a.parquet", [data]))
    expected = np.asarray(Image.open(io.BytesIO(data)))
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert np.array_equal(found.images[0].numpy(), expected)


@pytest.mark.parametrize("cell", [pa.binary(), pa.large_binary()])
def test_a_plain_column_of_bytes_is_read_too(tmp_path, cell):
    path = write_parquet(tmp_path / "a.parquet", [encode(numbered(k)) for k in (7, 8)], cell=cell)
    assert rows_of(read(source="parquet", path=path)) == [7, 8]


def test_a_folder_of_parquet_files_is_read_in_the_order_of_their_names(tmp_path):
    for name, rows in (("c", [5]), ("a", [0, 1, 2]), ("b", [3, 4])):
        write_parquet(tmp_path / f"{name}.parquet", [encode(numbered(k)) for k in rows], rows, names=list("uvwxyz"))
    (tmp_path / "README.md").write_text("not an image")
    found = read(source="parquet", path=str(tmp_path), with_labels=True)
    assert rows_of(found) == found.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.classes == tuple("uvwxyz")
    assert rows_of(read(source="parquet", path=str(tmp_path), rows="2:4")) == [2, 3]


def test_labels_are_left_alone_unless_asked_for(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [encode(numbered(0))], [0.5])
    assert read(source="parquet", path=path).labels is None
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path, with_labels=True)
    assert str(error.value) == (
        f"images.path: column 'label' of {path} holds double, neither whole numbers nor names; name another as "
        "images.label_column (its columns are 'image', 'label')"
    )


@pytest.mark.parametrize("labels", [[0, None], ["cat", None]])
def test_a_row_without_a_label_is_named(tmp_path, labels):
    path = write_parquet(tmp_path / "a.parquet", [encode(numbered(0))] * 2, labels)
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path, with_labels=True)
    assert str(error.value) == f"images: row 1 of {path} has no label in column 'label'"
    assert read(source="parquet", path=path, with_labels=True, rows="0:1").labels.tolist() == [0]


def test_without_hugging_face_metadata_there_are_no_class_names(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array([{"bytes": encode(numbered(3)), "path": None}], CELL)}), path)
    found = read(source="parquet", path=str(path))
    assert found.classes is None and rows_of(found) == [3]


def test_real_mnist():
    path = shared_data("mnist-test.parquet")
    found = read(source="parquet", path=str(path), rows="100:160", with_labels=True)
    table = pq.read_table(path).slice(100, 60)
    expected = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table.column("image").to_pylist()]
    assert found.images.shape == (60, 1, 28, 28)
    assert np.array_equal(found.images[:, 0].numpy(), np.stack(expected))
    assert found.labels.tolist() == table.column("label").to_pylist()
    assert found.classes == tuple("0123456789")
    assert set(found.labels.tolist()) == set(range(10))


def test_real_cifar10():
    path = shared_data("cifar10-test.parquet")
    found = read(source="parquet", path=str(path), rows="0:50", with_labels=True)
    table = pq.read_table(path).slice(0, 50)
    expected = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table.column("img").to_pylist()]
    assert found.images.shape == (50, 3, 32, 32)
    assert np.array_equal(found.images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
    assert found.labels.tolist() == table.column("label").to_pylist()
    assert found.classes[0] == "airplane" and found.classes[9] == "truck" and len(found.classes) == 10
    grey = read(source="parquet", path=str(path), rows="0:50", colour="grey", size=16)
    assert grey.image_shape == (1, 16, 16)


# Folders


def write_images(root: Path, files: dict[str, np.ndarray]) -> str:
    for name, pixels in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return str(root)


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path):
    root = write_images(
        tmp_path / "set", {"dog/1.png": numbered(1), "ant/2.bmp": numbered(2), "cat/deep/er/3.PNG": numbered(3)}
    )
    (tmp_path / "set" / "empty").mkdir()
    (tmp_path / "set" / "ant" / "notes.txt").write_text("not an image")
    found = read(source="folder", path=root, with_labels=True)
    assert found.classes == ("ant", "cat", "dog", "empty")
    assert rows_of(found) == [2, 3, 1] and found.labels.tolist() == [0, 1, 2]
    assert found.notes == (f"images: 1 file of {root} is no image and was left out (.txt 1)",)


def test_a_flat_folder_is_read_in_the_order_of_names_and_has_no_labels(tmp_path):
    root = write_images(tmp_path, {"b.png": numbered(1), "a.png": numbered(0), "c.tif": numbered(2)})
    found = read(source="folder", path=root)
    assert rows_of(found) == [0, 1, 2] and found.classes is None
    with pytest.raises(ImageSetError, match=r"images: .* holds no labels; labels are needed here"):
        read(source="folder", path=root, with_labels=True)


def test_images_beside_class_folders_make_a_folder_unlabelled(tmp_path):
    root = write_images(tmp_path, {"cat/1.png": numbered(1), "stray.png": numbered(2)})
    assert sorted(rows_of(read(source="folder", path=root))) == [1, 2]
    with pytest.raises(ImageSetError, match="holds no labels"):
        read(source="folder", path=root, with_labels=True)


# torchvision


def write_mnist(root: Path, kind: str = "MNIST") -> tuple[np.ndarray, np.ndarray]:
    """An MNIST of twelve training and four test images as its own idx files; gives the training pixels, labels."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made = {}
    for part, n in (("train", 12), ("t10k", 4)):
        pixels, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">4i", 2051, n, 28, 28) + pixels.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">2i", 2049, n) + labels.tobytes(),
        }
        for name, data in files.items():
            (raw / name).write_bytes(data)
        made[part] = pixels, labels
    return made["train"]


def test_torchvision_reads_files_that_are_there(tmp_path):
    pixels, labels = write_mnist(tmp_path)
    found = read(source="torchvision", name="MNIST", root=str(tmp_path), with_labels=True)
    assert np.array_equal(found.images.numpy(), pixels[:, None])
    assert found.labels.dtype == torch.int64 and found.labels.tolist() == labels.tolist()
    assert found.classes[:3] == ("0 - zero", "1 - one", "2 - two")


def test_torchvision_splits_and_names_are_told_apart(tmp_path):
    write_mnist(tmp_path)
    write_mnist(tmp_path, "FashionMNIST")
    assert len(read(source="torchvision", name="MNIST", root=str(tmp_path), split="test")) == 4
    fashion = read(source="torchvision", name="FashionMNIST", root=str(tmp_path))
    assert len(fashion) == 12 and fashion.classes[0] == "T-shirt/top"


def test_torchvision_data_sets_with_named_splits_get_the_name(tmp_path):
    folder = tmp_path / "country211"
    for part, number in (("train", 1), ("test", 2)):
        write_images(folder / part, {f"AD/{k}.png": numbered(number) for k in range(number)})
    train = read(source="torchvision", name="Country211", root=str(tmp_path), with_labels=True)
    test = read(source="torchvision", name="Country211", root=str(tmp_path), split="test")
    assert train.image_shape == (3, 4, 5) and rows_of(train) == [1] and train.classes == ("AD",)
    assert rows_of(test) == [2, 2]
    with pytest.raises(ImageSetError, match=r"images: torchvision cannot read Country211 under .*'val'"):
        read(source="torchvision", name="Country211", root=str(tmp_path), split="val")


def test_torchvision_data_without_a_split_is_read_whole(tmp_path):
    root = write_images(tmp_path, {"cat/1.png": numbered(1), "ant/2.png": numbered(2)})
    found = read(source="torchvision", name="ImageFolder", root=root, with_labels=True, colour="grey")
    assert rows_of(found) == [2, 1] and found.labels.tolist() == [0, 1] and found.classes == ("ant", "cat")


@pytest.mark.parametrize("name", ["Nope", "mnist", "folder", "vision"])
def test_an_unknown_torchvision_name_is_named(tmp_path, name):
    with pytest.raises(ImageSetError) as error:
        read(source="torchvision", name=name, root=str(tmp_path))
    assert str(error.value) == f"images.name: torchvision.datasets has no {name!r}"


def test_nothing_is_downloaded_unasked(tmp_path):
    with pytest.raises(ImageSetError, match=r"test: torchvision cannot read MNIST under .* \(Dataset not found"):
        read(source="torchvision", name="MNIST", root=str(tmp_path), field="test")
    assert list(tmp_path.rglob("*")) == []


# Digits


def test_digits_are_scikit_learns_in_another_order():
    from sklearn.datasets import load_digits

    found = read(source="digits", with_labels=True)
    source = load_digits()
    assert found.images.shape == (1797, 1, 8, 8) and found.classes == tuple("0123456789")
    scaled = np.rint(source.images * 255 / 16).astype(np.uint8)

    def lines(pixels, labels):
        return sorted([*image.ravel().tolist(), int(label)] for image, label in zip(pixels, labels, strict=True))

    assert lines(found.images[:, 0].numpy(), found.labels) == lines(scaled, source.target)
    assert found.images.max() == 255 and found.images.min() == 0
    assert not np.array_equal(found.labels.numpy(), source.target)


def test_digits_are_read_without_scikit_learn_where_their_file_is_and_by_it_elsewhere(monkeypatch):
    direct = digits._rows()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    assert np.array_equal(digits._rows(), direct) and direct.shape == (1797, 65)


def test_digits_keep_one_order_in_which_every_range_is_a_fair_sample():
    whole = read(source="digits", with_labels=True)
    part = read(source="digits", rows="300:600", with_labels=True, seed=99)
    assert torch.equal(part.images, whole.images[300:600]) and torch.equal(part.labels, whole.labels[300:600])
    for start in range(0, 1500, 300):
        counts = torch.bincount(whole.labels[start : start + 300], minlength=10)
        assert counts.min() >= 15 and counts.max() <= 50, f"rows {start}: {counts.tolist()}"


# Rows, count


@given(st.integers(0, 59), st.integers(1, 60), st.data())
@examples(60)
def test_a_draw_lies_in_its_rows_keeps_their_order_and_repeats(sixty, first, length, data):
    last = min(60, first + length)
    count = data.draw(st.integers(1, last - first))
    seed = data.draw(st.integers(0, 2**32))
    config = {"source": "parquet", "path": sixty, "rows": f"{first}:{last}", "count": count}
    drawn = rows_of(read(seed=seed, **config))
    assert len(drawn) == count and drawn == sorted(set(drawn))
    assert first <= drawn[0] and drawn[-1] < last
    assert rows_of(read(seed=seed, **config)) == drawn


@pytest.mark.parametrize(
    ("rows", "expected"),
    [("0:3", [0, 1, 2]), ("57:", [57, 58, 59]), (":2", [0, 1]), ("59:60", [59]), (":", list(range(60)))],
)
def test_rows_are_a_half_open_range(sixty, rows, expected):
    assert rows_of(read(source="parquet", path=sixty, rows=rows)) == expected


@given(st.integers(0, 2**40), st.integers(1, 59), st.sampled_from([None, 1]))
@examples(30)
def test_one_shuffle_splits_a_source_at_random(sixty, shuffle, cut, count):
    parts = [
        rows_of(read(source="parquet", path=sixty, shuffle=shuffle, rows=rows, seed=seed))
        for seed, rows in enumerate((f":{cut}", f"{cut}:"))
    ]
    assert sorted(parts[0] + parts[1]) == list(range(60)) and len(parts[0]) == cut
    assert all(part == sorted(part) for part in parts)
    (one,) = rows_of(read(source="parquet", path=sixty, shuffle=shuffle, rows=f":{cut}", count=1))
    assert one in parts[0]


def test_every_row_is_as_likely_to_come_first_in_a_shuffled_source():
    five = ImageRows(name="five", rows=5, decode=lambda row: Image.new("L", (4, 4)), where=str)
    first = np.zeros(5)
    for seed in range(1000):
        section = sources.parse({"source": "digits", "shuffle": seed, "rows": "0:1"})
        first[choose_rows(five, section, numpy_generator(0, "not used"), "images")] += 1
    assert np.abs(first - 200).max() < 5 * (1000 * 0.2 * 0.8) ** 0.5


def test_a_draw_of_all_is_all_and_other_seeds_draw_others(sixty):
    assert rows_of(read(source="parquet", path=sixty, count=60)) == list(range(60))
    draws = {tuple(rows_of(read(source="parquet", path=sixty, count=10, seed=seed))) for seed in range(20)}
    assert len(draws) == 20


def test_every_row_is_as_likely_to_be_drawn():
    seeds = 400
    drawn = torch.zeros(20)
    whole = read(source="digits", rows="0:20").images.flatten(1)
    for seed in range(seeds):
        part = read(source="digits", rows="0:20", count=5, seed=seed).images.flatten(1)
        drawn += (part[:, None] == whole[None]).all(dim=2).any(dim=0)
    assert drawn.sum() == 5 * seeds
    spread = (seeds * 0.25 * 0.75) ** 0.5
    assert (drawn - seeds * 0.25).abs().max() < 5 * spread, drawn.tolist()


@pytest.mark.parametrize("labels", [None, [0] * 60, list(range(60)), [59 - k for k in range(60)]])
def test_labels_never_change_the_draw(sixty, tmp_path, labels):
    expected = rows_of(read(source="parquet", path=sixty, count=15, seed=5))
    path = write_parquet(tmp_path / "other.parquet", [encode(numbered(k)) for k in range(60)], labels)
    assert rows_of(read(source="parquet", path=path, count=15, seed=5)) == expected
    if labels is not None:
        found = read(source="parquet", path=path, count=15, seed=5, with_labels=True)
        assert rows_of(found) == expected
        assert found.labels.tolist() == [labels[row] for row in expected]


def test_moving_images_between_classes_never_changes_the_draw(tmp_path):
    names = [f"{k:02d}.png" for k in range(30)]
    flat = write_images(tmp_path / "flat", {name: numbered(k) for k, name in enumerate(names)})
    classed = write_images(tmp_path / "classed", {f"{k // 7}/{name}": numbered(k) for k, name in enumerate(names)})
    expected = rows_of(read(source="folder", path=flat, count=9))
    found = read(source="folder", path=classed, count=9, with_labels=True)
    assert rows_of(found) == expected and found.labels.tolist() == [row // 7 for row in expected]


def test_only_wanted_rows_are_decoded(tmp_path):
    cells = [encode(numbered(0)), encode(numbered(1)), b"junk", encode(np.zeros((9, 9), np.uint8))]
    path = write_parquet(tmp_path / "a.parquet", cells)
    assert rows_of(read(source="parquet", path=path, rows="0:2")) == [0, 1]


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_parse_rows_reads_every_range(first, length):
    assert parse_rows(f"{first}:{first + length}") == (first, first + length)
    assert parse_rows(f"{first}:") == (first, None)
    assert parse_rows(f":{length}") == (0, length)


@pytest.mark.parametrize("text", ["5", "", "5:5", "5:3", "0:0", "-1:4", ":-1", "a:b", "1:2:3", "1.5:2"])
def test_parse_rows_refuses_what_is_no_range(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the words are the config's test
        parse_rows(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 61}, "images.count: 61 images wanted, but {path} holds 60"),
        ({"rows": "10:20", "count": 11}, "images.count: 11 images wanted, but {path} holds 10"),
        ({"rows": "50:61"}, "images.rows: 50:61 reaches past the 60 images of {path}"),
        ({"rows": "60:"}, "images: {path} holds no images in rows 60:"),
        ({"rows": "1000:"}, "images: {path} holds no images in rows 1000:"),
    ],
)
def test_too_few_rows_is_an_error_with_the_numbers(sixty, change, message):
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=sixty, **change)
    assert str(error.value) == message.format(path=sixty)


def test_numbers_in_errors_are_grouped_and_the_field_is_the_callers():
    with pytest.raises(ImageSetError) as error:
        read(source="digits", count=2000, field="teacher.train.images")
    assert str(error.value) == "teacher.train.images.count: 2,000 images wanted, but digits holds 1,797"


# Size, colour


@pytest.mark.parametrize(("size", "shape"), [(6, (6, 6)), ([3, 10], (3, 10)), ([8, 8], (8, 8)), (1, (1, 1))])
def test_size_is_height_then_width(size, shape):
    found = read(source="digits", rows="0:5", size=size)
    whole = read(source="digits", rows="0:5")
    assert found.images.shape == (5, 1, *shape)
    for image, original in zip(found.images, whole.images, strict=True):
        resized = Image.fromarray(original[0].numpy()).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
        assert np.array_equal(image[0].numpy(), np.asarray(resized))


def test_images_that_have_the_size_already_keep_every_bit(sixty):
    assert torch.equal(
        read(source="parquet", path=sixty, size=[4, 5]).images, read(source="parquet", path=sixty).images
    )


def test_size_and_colour_bring_mixed_images_to_one_shape(tmp_path):
    root = write_images(tmp_path, {"a.png": numbered(9), "b.png": np.full((7, 3, 3), 200, np.uint8)})
    found = read(source="folder", path=root, size=6, colour="rgb")
    assert found.images.shape == (2, 3, 6, 6)
    assert (found.images[0] == 9).all() and (found.images[1] == 200).all()


def test_colour_converts_both_ways(tmp_path):
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    root = write_images(tmp_path / "rgb", {"a.png": pixels})
    # The luma weights of ITU-R 601: 0.299, 0.587, 0.114.
    assert read(source="folder", path=root, colour="grey").images.tolist() == [[[[76, 150, 29, 255]]]]
    root = write_images(tmp_path / "grey", {"a.png": np.array([[0, 76, 255]], dtype=np.uint8)})
    assert read(source="folder", path=root, colour="rgb").images.tolist() == [[[[0, 76, 255]]] * 3]


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_without_colour_grey_stays_grey_and_the_rest_becomes_rgb(tmp_path, mode, channels):
    Image.new(mode, (5, 4)).save(tmp_path / "a.tif")
    assert read(source="folder", path=str(tmp_path)).image_shape == (channels, 4, 5)


# Files that cannot be used


@pytest.mark.parametrize(
    "data",
    [
        b"junk",
        b"",
        None,
        encode(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))[:900],
        encode(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8), "JPEG")[:900],
    ],
    ids=["junk", "empty", "null", "half a png", "half a jpeg"],
)
def test_a_corrupt_image_is_named_by_row_and_file(tmp_path, data):
    path = write_parquet(tmp_path / "a.parquet", [encode(np.zeros((40, 40), np.uint8))] * 3 + [data])
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path)
    assert str(error.value).startswith(f"images: row 3 of {path} is not a readable image (")


def test_a_null_cell_is_named_by_row_and_file(tmp_path):
    cells = [{"bytes": encode(numbered(0)), "path": None}, None]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(cells, CELL)}), path)
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=str(path))
    assert str(error.value) == f"images: row 1 of {path} is not a readable image (the cell is empty)"


def test_a_corrupt_file_in_a_folder_is_named(tmp_path):
    root = write_images(tmp_path, {"a.png": numbered(0)})
    (tmp_path / "b.png").write_bytes(b"junk")
    with pytest.raises(ImageSetError) as error:
        read(source="folder", path=root, field="test")
    assert str(error.value).startswith(f"test: {tmp_path / 'b.png'} is not a readable image (")


def test_mixed_sizes_name_both_rows_both_shapes_and_the_way_out(tmp_path):
    cells = [encode(numbered(0)), encode(numbered(1)), encode(np.zeros((9, 5, 3), np.uint8))]
    path = write_parquet(tmp_path / "a.parquet", cells)
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path, rows="1:3")
    assert str(error.value) == (
        f"images: row 2 of {path} is 9x5 RGB, but row 1 of {path} is 4x5 grey; "
        "set images.size (and images.colour) to bring all images to one shape"
    )


def test_grey_among_rgb_is_mixed_too(tmp_path):
    root = write_images(tmp_path, {"a.png": np.zeros((4, 5, 3), np.uint8), "b.png": numbered(1)})
    with pytest.raises(ImageSetError, match=r"b\.png is 4x5 grey, but .*a\.png is 4x5 RGB; set images\.size"):
        read(source="folder", path=root)


def test_a_parquet_file_without_an_image_column_lists_what_it_has(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [encode(numbered(0))], [1], column="picture")
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path)
    assert str(error.value) == (
        f"images.path: {path} has no image column; expected 'image' or 'img', found 'picture', 'label'; "
        "name it as images.image_column"
    )
    assert rows_of(read(source="parquet", path=path, image_column="picture")) == [0]


def test_an_image_column_without_bytes_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"url": "x"}], cell=pa.struct([("url", pa.string())]))
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path)
    assert str(error.value) == f"images.path: column 'image' of {path} has no field 'bytes' or 'path', but 'url'"


@pytest.mark.parametrize(
    ("cell", "value", "held"),
    [
        (
            pa.string(),
            "https://example.org/a.png",
            "text, not the bytes of image files; download what it names, or name",
        ),
        (pa.large_string(), "x", "text, not the bytes of image files; download what it names, or name"),
        (pa.int64(), 3, "int64, not the bytes of image files; name"),
        (pa.list_(pa.int64()), [1], "list<element: int64>, not the bytes of image files; name"),
        (
            pa.list_(pa.list_(pa.uint8())),
            [[1]],
            "list<element: list<element: uint8>>, not the bytes of image files; name",
        ),
    ],
)
def test_an_image_column_of_something_else_is_refused(tmp_path, cell, value, held):
    path = write_parquet(tmp_path / "a.parquet", [value], cell=cell)
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path)
    assert str(error.value) == (
        f"images.path: column 'image' of {path} holds {held} another column as images.image_column (its columns are "
        "'image')"
    )


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=str(path))
    assert str(error.value).startswith(f"images.path: {path} is not a readable parquet file (")


def test_parquet_files_of_different_columns_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [encode(numbered(0))])
    write_parquet(tmp_path / "b.parquet", [encode(numbered(1))], column="img")
    with pytest.raises(ImageSetError, match=r"images\.path"):
        read(source="parquet", path=str(tmp_path))


def test_missing_and_empty_places_are_named(tmp_path):
    for config, message in (
        ({"source": "parquet", "path": str(tmp_path / "no.parquet")}, "images.path: no parquet file at {}/no.parquet"),
        ({"source": "parquet", "path": str(tmp_path)}, "images.path: no parquet file at {}"),
        ({"source": "folder", "path": str(tmp_path / "no")}, "images.path: no folder at {}/no"),
        ({"source": "folder", "path": str(tmp_path)}, "images: {} holds no images"),
    ):
        with pytest.raises(ImageSetError) as error:
            read(**config)
        assert str(error.value) == message.format(tmp_path)


def test_a_parquet_file_without_rows_is_empty(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path)
    assert str(error.value) == f"images: {path} holds no images"


def test_labels_that_are_not_there_are_missed(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [encode(numbered(0))])
    with pytest.raises(ImageSetError) as error:
        read(source="parquet", path=path, with_labels=True, field="test")
    assert str(error.value) == (
        f"test: {path} holds no labels; labels are needed here; its columns are 'image'; name one as test.label_column"
    )


# The set itself, PNG


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), None, "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, r"\[2, 4, 4\]"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), None, "empty"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "2 images but 3 labels"),
    ],
)
def test_an_image_set_refuses_what_it_is_not(images, labels, message):
    with pytest.raises(ImageSetError, match=message):
        ImageSet(images=images, labels=labels)


shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))


@given(arrays(np.uint8, shapes))
@examples(200)
def test_png_keeps_every_bit(image):
    data = encode_png(image)
    assert data.startswith(b"\x89PNG")
    decoded = decode_png(data)
    assert decoded.dtype == np.uint8 and decoded.shape == image.shape and np.array_equal(decoded, image)
    assert encode_png(decoded) == data


def test_what_encode_png_writes_is_what_the_parquet_reader_reads(tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
    found = read(source="parquet", path=write_parquet(tmp_path / "a.parquet", [encode_png(x) for x in images]))
    assert np.array_equal(found.images.numpy(), images)
