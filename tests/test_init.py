"""`kdray init`: a config that is valid as it is, by what lies in the folder, and nothing overwritten."""

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import command
from PIL import Image
from test_cli_errors import refused

from kdray.config.load import load_config
from kdray.config.starting import SIZES, starting_config, write_start
from kdray.errors import ConfigError
from kdray.runs.pool_schedule import read_pool


def folder_of(path: Path, sizes: list[tuple[int, int]]) -> Path:
    """A folder of images of these (width, height), and files that are none."""
    generator = np.random.default_rng(0)
    (path / "a part").mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save((path / "a part" if number % 3 == 0 else path) / f"{number:04}.png")
    (path / "notes.txt").write_text("no image")
    return path


@pytest.mark.parametrize(
    ("sizes", "size", "rows"),
    [
        ([(70, 66)] * 25, None, ("0:20", "20:25")),
        ([(70, 66), (300, 100)] * 15, 64, ("0:24", "24:30")),
        ([(9, 20), (20, 9)] * 10, 32, ("0:16", "16:20")),
        pytest.param([(900, 700), (700, 901)] * 10, 224, ("0:16", "16:20"), marks=pytest.mark.storm),
        ([(40, 40)] * 600, None, ("0:500", "500:600")),
        ([(70, 66)] * 19, None, (None, None)),
    ],
)
def test_a_config_fits_the_folder_and_loads(sizes, size, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", "k")
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / 'my "pho\\tos', sizes)
    done = command("init", "--images", 'my "pho\\tos', "--url", "http://127.0.0.1:1/x", "--classes", "cat, dög")
    assert done.returncode == 0, done.stderr
    config = load_config("kdray.yaml")
    assert (config.images.path, config.images.rows) == ('my "pho\\tos', rows[0])
    assert config.images.size == (None if size is None else (size, size))
    assert config.teacher.classes == ["cat", "dög"] and config.teacher.url == "http://127.0.0.1:1/x"
    assert config.budget.queries == 500
    if rows[1] is None:
        assert config.test is None and "0 of them are for the test" in done.stdout
    else:
        assert (config.test.rows, config.test.size) == (rows[1], config.images.size)
        assert config.images.shuffle == config.test.shuffle == 0
        first, last = map(int, rows[1].split(":"))
        assert config.budget.evaluation == last - first
        assert f"{len(sizes):,} images, " in done.stdout and f"{last - first} of them are for the test" in done.stdout
    assert "complete `teacher`, then: kdray plan kdray.yaml" in done.stdout


def test_without_anything_it_is_a_config_with_places_to_fill_in(tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", "k")
    done = command("init", tmp_path / "mine.yaml", "--queries", 1200)
    assert done.returncode == 0 and "images" not in done.stdout.replace("images.", "").split("wrote")[0]
    config = load_config(tmp_path / "mine.yaml")
    assert config.images.path == "images" and config.images.size == (64, 64) and config.budget.queries == 1200
    assert config.teacher.classes == ["cat", "dog", "rabbit"]
    assert yaml.safe_load(starting_config("x", None, None, "7", 1).text)["teacher"]["classes"] == 7


def test_without_images_candidates_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", "k")
    monkeypatch.chdir(tmp_path)
    done = command("init", "--drawn", 24, "--queries", 40)
    assert done.returncode == 0, done.stderr
    assert "no images: candidates of 24 x 24 pixels are drawn" in done.stdout
    config = load_config("kdray.yaml")
    assert (config.images.source, config.images.size, config.images.count) == ("drawn", (24, 24), 8)
    assert config.images.pool == config.pool and config.pool.kind == "mixture" and config.test is None
    shown = command("preview", "kdray.yaml", "--count", 12, env={"API_KEY": "k"})
    assert shown.returncode == 0, shown.stderr
    for queries, first in ((2, 1), (4, 1), (50_000, 10_000), (10**9, 10_000)):
        text = starting_config("x", None, None, None, queries, drawn=1).text
        assert yaml.safe_load(text)["images"]["count"] == first


@pytest.mark.storm
def test_the_plan_of_drawn_candidates_needs_nothing_but_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("init", "--drawn", 16, "--queries", 60).returncode == 0
    done = command("plan", "kdray.yaml", env={"API_KEY": "k"})
    assert done.returncode == 0, done.stderr
    assert "60 = 12 for the images + 1 x 48" in done.stdout


@pytest.mark.parametrize(
    "classes", ["cat,dog", *(pytest.param(some, marks=pytest.mark.storm) for some in ("2", "cat,dog,rabbit,horse"))]
)
def test_the_plan_of_it_needs_nothing_but_the_key(classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", [(40, 30), (33, 50)] * 20)
    assert command("init", "--images", "photos", "--queries", 60, "--classes", classes).returncode == 0
    assert "API_KEY, which is not set" in command("plan", "kdray.yaml").stderr
    done = command("plan", "kdray.yaml", env={"API_KEY": "k"})
    assert done.returncode == 0, done.stderr
    for text in ("60 = 32 for the images + 1 x 28", "8 queries, counted apart", "at least 6 s at the limits"):
        assert text in done.stdout, text


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kdray.yaml").write_text("mine")
    found = refused("init", tmp_path / "kdray.yaml", unchanged=(tmp_path,))
    assert "kdray.yaml is there already, and nothing is overwritten; give another FILE" in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere"], "--images.path: no folder at nowhere"),
        (["--images", "empty"], "--images: empty holds no images"),
        (["--classes", "cat"], "--classes: got 'cat'; give their number, or different names with commas between them"),
        (["--classes", "cat,,dog"], "--classes: got 'cat,,dog'; give their number"),
        (["--classes", "cat,cat"], "--classes: got 'cat,cat'; give their number"),
        (["--classes", "1"], "--classes: got 1; a classifier has two classes or more"),
        (["--drawn", "0"], "--drawn: got 0; give the height and width that the teacher takes, 1 to 2,048 pixels"),
        (
            ["--drawn", "5000"],
            "--drawn: got 5,000; give the height and width that the teacher takes, 1 to 2,048 pixels",
        ),
        (
            ["--drawn", "8", "--queries", "1"],
            "--queries: got 1; with --drawn two rounds ask about an image each at least, so give 2 or more",
        ),
        (["--drawn", "8", "--images", "empty"], "--drawn: got 8 beside --images empty; give one of the two"),
        (["--queries", "0"], "--queries: got 0; give a number from 1 on"),
        (["no/folder/a.yaml"], "cannot write no/folder/a.yaml: No such file or directory; give another FILE"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert message in refused("init", *arguments, unchanged=(tmp_path,))


def test_photos_that_are_turned_or_of_two_kinds_are_told(tmp_path):
    folder = folder_of(tmp_path / "photos", [(60, 40)] * 12)
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "0000a.jpg", exif=exif)
    text = starting_config("x", str(folder), None, None, 10)
    assert text.size == 32, "a photo that is shown upright has another shape"
    grey = folder_of(tmp_path / "grey", [(60, 40)] * 12)
    Image.new("L", (60, 40)).save(grey / "0000a.png")
    (grey / "huge.png").write_bytes(b"")
    Image.new("1", (20000, 20000)).save(grey / "huge.png")  # more pixels than Pillow opens
    found = starting_config("x", str(grey), None, None, 10)
    assert found.size is None and yaml.safe_load(found.text)["images"]["colour"] == "rgb"


def test_a_file_that_is_half_written_does_not_stay(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
        with pytest.raises(ConfigError, match=r"cannot write .*a\.yaml: File too large; give another FILE"):
            write_start(tmp_path / "a.yaml", "a text of more than ten bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize("words", [["--images", b"caf\xe9"], ["--classes", b"a,caf\xe9"]])
def test_a_name_that_yaml_cannot_hold_is_refused_and_nothing_is_written(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / os.fsdecode(b"caf\xe9"), [(8, 8)])
    option, name = words
    assert "YAML holds no name that is not UTF-8, as in " in refused("init", option, os.fsdecode(name))
    assert not (tmp_path / "kdray.yaml").exists()


def test_an_image_that_cannot_be_read_is_left_to_the_plan(tmp_path):
    folder = folder_of(tmp_path / "photos", [(50, 40), (64, 64)] * 10)
    (folder / "0000a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    assert starting_config("x", str(folder), None, None, 10).size in SIZES


@pytest.mark.parametrize(("count", "first"), [(700, 250), (475, 250), (312, "auto")])
def test_a_folder_of_many_images_for_the_budget_is_asked_about_in_part(count, first, tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", "k")
    for number in range(count):
        Image.new("L", (8, 8), number % 256).save(tmp_path / f"{number:03}.png")
    write_start(tmp_path / "a.yaml", starting_config("a.yaml", str(tmp_path), None, None, 500).text)
    config = load_config(tmp_path / "a.yaml")
    assert config.select.first == first
    assert read_pool(config).schedule == [250, 250], "and none is refused"


@pytest.mark.parametrize(("count", "queries"), [(1, 2), (1, 500), (2, 40), (28, 500)])
def test_a_few_images_and_what_is_drawn_beside_them_are_enough_for_the_budget(count, queries, tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", "k")
    generator = np.random.default_rng(count)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (36, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    write_start(tmp_path / "a.yaml", starting_config("a.yaml", str(tmp_path), None, None, queries).text)
    config = load_config(tmp_path / "a.yaml")
    assert config.pool.kind == "mixture"
    assert sum(read_pool(config).schedule) == queries, "none is refused"


@pytest.mark.parametrize(("count", "queries", "kind"), [(7, 28, "mixup"), (7, 29, "mixture")])
def test_mixes_are_the_candidates_of_images_that_have_enough_pairs(count, queries, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", "k")
    for number in range(count):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    write_start(tmp_path / "a.yaml", starting_config("a.yaml", str(tmp_path), None, None, queries).text)
    config = load_config(tmp_path / "a.yaml")
    assert config.pool.kind == kind
    read_pool(config)
