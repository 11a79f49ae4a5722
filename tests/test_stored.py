"""Sets of images that may be larger than memory: decoded once into a file, mapped, and worked on like any other."""

import gc
import io
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import command
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdray.config.load import parse_config
from kdray.errors import ImageSetError
from kdray.images.base import read_images
from kdray.images.parquet import ParquetImages
from kdray.models.classifier import pixel_statistics
from kdray.models.predict import images_at_a_time
from kdray.pools.base import rendered
from kdray.pools.mixup import MixupPool
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.runs.tables import Labelled, count_rows, read_labelled, write_labelled
from kdray.teachers.answers import Answers
from kdray.utils import stored
from kdray.utils.files import whole_file
from kdray.utils.memory import give_back_memory
from kdray.utils.stored import SharedFile, gathered, is_stored, joined, taken

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def small(monkeypatch):
    """Sets of more than a KiB lie in a file."""
    monkeypatch.setattr(stored, "IN_MEMORY", KIB)


def pictures(n: int, shape: tuple[int, int, int] = (3, 9, 7), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# Tensors in files


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_images_gathered_in_memory_and_in_a_file_are_the_same(sizes):
    images = pictures(sum(sizes))
    parts = [part.numpy() for part in images.split(sizes)]
    before = stored.IN_MEMORY
    try:
        for stored.IN_MEMORY in (images.nbytes, images.nbytes - 1):
            whole = gathered(iter(parts), len(images))
            assert torch.equal(whole, images) and is_stored(whole) == (images.nbytes > stored.IN_MEMORY)
    finally:
        stored.IN_MEMORY = before


def test_parts_of_sets_are_those_of_tensors(small):
    images = joined([pictures(9), pictures(0), pictures(8, seed=1)])
    assert torch.equal(images, torch.cat([pictures(9), pictures(8, seed=1)])) and is_stored(images)
    rows = torch.tensor([16, 3, 3, 0, 9, 8])
    assert torch.equal(taken(images, rows), images[rows])
    assert taken(images, rows[:0]).shape == (0, 3, 9, 7)
    assert joined([pictures(0), pictures(0)]).shape == (0, 3, 9, 7)
    pool = MixupPool(images, [0.3, 0.5])
    ids = torch.arange(0, len(pool), 5)
    assert torch.equal(rendered(pool, ids), MixupPool(images.clone(), [0.3, 0.5]).render(ids))
    assert rendered(pool, ids[:0]).shape == (0, 3, 9, 7)


def test_a_file_has_no_name_and_is_gone_with_its_tensor(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    gc.collect()  # what earlier tests have left open
    before = set(os.listdir("/proc/self/fd"))
    images = gathered([pictures(20).numpy()], 20)
    assert is_stored(images) and is_stored(images[3:]) and not is_stored(images.clone())
    assert list(tmp_path.iterdir()) == []
    view = images[5:9, 1:]
    del images
    gc.collect()
    assert torch.equal(view, pictures(20)[5:9, 1:]) and is_stored(view)
    del view
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before and not stored.any_stored()


def test_another_process_of_the_machine_maps_the_same_file(small):
    images = gathered([pictures(20).numpy()], 20)
    shared = SharedFile.of(images[4:, 1:])
    assert torch.equal(shared.open(), images[4:, 1:])
    for change in ({"machine": "another"}, {"file": (*shared.file[:2], 1)}, {"path": f"/proc/{os.getpid()}/fd/99999"}):
        assert SharedFile(**{**vars(shared), **change}).open() is None
    del images
    gc.collect()
    assert shared.open() is None, "what has its number now is another file"


def test_a_file_that_cannot_be_written_is_one_message(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nothing"))
    with pytest.raises(ImageSetError, match=r"^20 images take .*be written to .*nothing: No such file.*set TMPDIR"):
        gathered([pictures(20).numpy()], 20)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * KIB, limits[1]))
        with pytest.raises(ImageSetError, match="File too large; set TMPDIR to a folder on a disk with room, or"):
            gathered([pictures(20).numpy()], 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_written_in_parts_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "a"
    with whole_file(path) as file:
        file.write(b"old")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.write(b"ne") + file.write("w")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_labelled_images_come_back_to_the_bit_a_few_at_a_time(small, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_PART", 5 * 3 * 9 * 7)
    images = gathered([pictures(23).numpy()], 23)
    answers = Answers(probs=torch.rand(23, 3).softmax(dim=1), labels=torch.arange(23) % 3, num_classes=3)
    labelled = Labelled(images=images, answers=answers, ids=np.arange(23), source=("image",) * 23)
    write_labelled(tmp_path / "l.parquet", labelled, None)
    assert pq.ParquetFile(tmp_path / "l.parquet").num_row_groups == 5 and count_rows(tmp_path / "l.parquet") == 23
    for count in (None, 23, 99, 12, 5, 0):
        back, n = read_labelled(tmp_path / "l.parquet", 3, count), 23 if count is None else min(count, 23)
        assert len(back) == len(back.ids) == len(back.source) == len(back.answers.labels) == n
        assert n == 0 or torch.equal(back.images, images[:n])
        assert n == 0 or torch.equal(back.answers.probs, answers.probs[:n])
        assert is_stored(back.images) == (n > 5)


# Reading


def jpeg(seed: int, side: int = 224, quality: int = 85) -> bytes:
    """Noise of a few colours, enlarged."""
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((side, side)).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


def parquet(path: Path, cells: list[bytes], **options) -> Path:
    column = pa.array([{"bytes": data, "path": None} for data in cells])
    table = pa.table({"image": column, "label": pa.array([k % 3 for k in range(len(cells))])})
    pq.write_table(table, path, use_dictionary=False, compression="none", **options)
    return path


def read(path: Path, **changes):
    source = ParquetImages(source="parquet", path=str(path), **changes)
    return read_images(source, generator=np.random.default_rng(0), with_labels=True)


def test_a_large_set_is_read_alike_and_says_where_it_lies(small, tmp_path):
    path = parquet(tmp_path / "a.parquet", [jpeg(k, 24) for k in range(10)])
    large = read(path)
    stored.IN_MEMORY = MIB
    plain = read(path)
    assert torch.equal(large.images, plain.images) and is_stored(large.images) and not is_stored(plain.images)
    where = stored.temporary_folder()
    assert large.notes == (f"images: 10 images take 0 MiB; they lie in a temporary file in {where}, not in memory",)
    assert plain.notes == () and pixel_statistics(large.images) == pixel_statistics(plain.images)


def test_cells_are_read_in_any_order_from_any_row_group(tmp_path):
    cells = [jpeg(k, 16) for k in range(200)]
    for name, part, rows in (("a", cells[:150], 70), ("b", cells[150:], 50)):  # 70 is more than is read at a time
        parquet(tmp_path / f"{name}.parquet", part, row_group_size=rows)
    opened = ParquetImages(source="parquet", path=str(tmp_path), split="all").open("images")
    assert opened.rows == 200
    for row in [0, 199, 150, 149, 69, 70, 71, 3, 3, 2, 68, 140, 141, *range(60, 160, 7)]:
        assert np.array_equal(np.asarray(opened.decode(row)), np.asarray(Image.open(io.BytesIO(cells[row])))), row


def test_a_file_that_is_damaged_in_the_middle_is_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", [jpeg(k, 64) for k in range(90)], row_group_size=30)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    assert len(read(path, rows="0:30")) == 30
    with pytest.raises(ImageSetError, match=r"^images.path: .*a\.parquet is not a readable parquet file \("):
        read(path)


def memory(kind: str) -> int:
    """A line of this process's status in bytes: RssAnon, or VmHWM, the highest resident memory."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * KIB for line in file if line.startswith(f"{kind}:"))


def highest_from_here() -> int:
    """The resident memory now in bytes; `VmHWM` is then the highest since."""
    gc.collect()
    give_back_memory()
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmHWM")


@pytest.mark.storm
def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    """600 images of 147 KiB: 86 MiB."""
    monkeypatch.setattr(stored, "IN_MEMORY", 16 * MIB)
    cells = [jpeg(k, quality=10) for k in range(10)]
    path = parquet(tmp_path / "a.parquet", cells * 60)
    few = read(path, rows="0:150").images  # all that is imported, and kept for later, is there by now
    pixel_statistics(few), rendered(MixupPool(few, [0.4]), torch.arange(0, 11_000, 70))
    before, private = highest_from_here(), memory("RssAnon")
    images = read(path).images
    assert images.nbytes == 600 * 3 * 224 * 224 > 86 * MIB
    assert memory("VmHWM") - before < 32 * MIB
    statistics = pixel_statistics(images)
    mixes = rendered(MixupPool(images, [0.4]), torch.arange(0, 600 * 250, 250))
    assert is_stored(mixes) and len(mixes) == 600
    give_back_memory()
    assert memory("RssAnon") - private < 48 * MIB, "of 172: what was read of files may go at any time, and is not in it"
    assert torch.equal(images[:10], images[590:]) and len(statistics[0]) == 3


def test_of_a_parquet_file_a_few_rows_are_read_at_a_time(tmp_path):
    noise = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noise, "PNG")
    path = parquet(tmp_path / "a.parquet", [noise.getvalue()] * 200, write_batch_size=8)  # cells in a page
    assert pq.ParquetFile(path).num_row_groups == 1 and path.stat().st_size > 90 * MIB
    before = highest_from_here()
    assert len(read(path, rows="0:2").images) == 2
    assert memory("VmHWM") - before < 60 * MIB


@pytest.mark.parametrize(
    ("most", "shape", "cpu", "gpu"),
    [
        (256, (1, 28, 28), 256, 256),
        (4096, (3, 32, 32), 512, 4096),
        (4096, (3, 64, 64), 128, 4096),
        (64, (3, 224, 224), 16, 64),
        (4096, (3, 224, 224), 16, 256),
        (64, (3, 4000, 4000), 1, 1),
    ],
)
def test_large_images_go_fewer_at_a_time(most, shape, cpu, gpu):
    assert (images_at_a_time(most, shape, "cpu"), images_at_a_time(most, shape, "cuda:0")) == (cpu, gpu)


# A whole run

NETWORK = """
from torch import nn

class Coarse(nn.Sequential):
    def __init__(self, num_classes):
        layers = nn.Conv2d(3, 8, 16, stride=16), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        super().__init__(*layers, nn.Linear(128, num_classes))
"""


@pytest.fixture
def photographs(tmp_path, monkeypatch) -> Iterator[dict]:
    """A config of 224x224 JPEGs of other sizes in folders, with a network of a millisecond."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"coarse_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETWORK)

    def write(folder: str, count: int) -> None:
        for k in range(count):
            place = tmp_path / folder / str(k % 3)
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(k).integers(0, 128, (8, 8, 3), dtype=np.uint8)
            pixels[..., k % 3] += 127
            Image.fromarray(pixels).resize((250 - k % 5, 230)).save(place / f"{k:04d}.jpg")

    def config(images: int, test: int) -> dict:
        write("images", images)
        write("test", test)
        seen = {"source": "folder", "path": "test", "size": 224}
        recipe = {"images": seen, "epochs": 2, "batch_size": 8, "threads": 1}
        weights = {"kind": "local", "model": f"{name}:Coarse", "weights": "teacher.safetensors", "batch_size": 8}
        return {
            "images": {"source": "folder", "path": "images", "size": 224},
            "test": seen,
            "teacher": weights | {"train": recipe},
            "budget": {"queries": 2 * images},
            "pool": {"lambdas": [0.3, 0.5, 0.7], "pairs": 3 * images},
            "select": {"strategy": "active-mixup", "rounds": 2},
            "student": {"model": f"{name}:Coarse", "epochs": 2, "batch_size": 16},
            "resources": {"trainer": {"threads": 1}},
        }

    yield config
    sys.modules.pop(name, None)


@pytest.mark.storm
def test_a_run_on_224_pixels_is_the_same_from_a_file_and_from_memory(photographs, monkeypatch):
    students = []
    for name, limit in (("memory", 2 << 30), ("file", MIB)):
        monkeypatch.setattr(stored, "IN_MEMORY", limit)
        config = photographs(12, 6) | {"select": {"strategy": "active-mixup", "rounds": 1}}
        result = run(parse_config(config), RunDirectory(name), local=True)
        assert [metrics.images for metrics in result.history] == [12, 24]
        students.append((Path(name) / "student.safetensors").read_bytes())
    assert students[0] == students[1]


@pytest.mark.storm  # small: the run above
@pytest.mark.long
def test_hundreds_of_224_pixels_go_through_every_command(photographs, monkeypatch):
    Path("config.yaml").write_text(yaml.safe_dump(photographs(300, 100)))
    monkeypatch.setattr(stored, "IN_MEMORY", 4 * MIB)
    for words in (["plan", "config.yaml"], ["run", "config.yaml", "--out", "run", "--local"], ["report", "run"]):
        done = command(*words)
        assert done.returncode == 0, done.stderr
        assert words[0] == "report" or "images: 300 images take 43 MiB; they lie in a temp" in done.stdout + done.stderr
    assert len(list(Path("run/labelled").iterdir())) == 3
    assert command("train", "run", "--first", "300,600", "--out", "again").returncode == 0
    for number, count in ((0, 300), (2, 600)):
        student = Path("again") / str(count) / "student.safetensors"
        assert student.read_bytes() == RunDirectory("run").artefact(number, "train").read_bytes()
