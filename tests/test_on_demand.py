"""Images that are read on demand: the same candidates as of images read ahead, and files that fail meanwhile."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from kdray.errors import ImageSetError
from kdray.images import read_images
from kdray.images.on_demand import ImagesOnDemand
from kdray.pools.base import Pool, pools
from kdray.pools.sources.drawn import DrawnImages
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 7, 30 - number % 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 photographs of several sizes, in two classes."""
    for number in range(40):
        path = tmp_path / "photographs" / str(number % 2) / f"{number:02}.{'jpg' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "photographs"


def crops(images: dict, read: str, shape: tuple[int, int, int] = (3, 8, 8), **fields) -> Pool:
    section = pools.parse({"kind": "crops", "images": images, "read": read, **fields})
    return section.build(torch.empty(0, *shape, dtype=torch.uint8), 1)


@pytest.mark.parametrize("more", [{}, {"count": 7}, {"rows": "5:25", "count": 12}])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 6)])
def test_the_candidates_are_those_of_images_read_ahead(folder, more, shape):
    ids = torch.tensor([5, 900, 5, *range(100), 49_999])
    images = {"source": "folder", "path": str(folder), **more}
    ahead, demanded = (crops(images, read, shape).render(ids) for read in ("ahead", "on-demand"))
    assert torch.equal(ahead, demanded) and len(ahead.unique(dim=0)) > 50


def test_the_same_of_parquet_files_in_any_order(tmp_path):
    cells = []
    for number in range(30):
        file = io.BytesIO()
        picture(number).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"image": cells}), tmp_path / "photographs.parquet", row_group_size=7)
    images = {"source": "parquet", "path": str(tmp_path / "photographs.parquet")}
    ahead, demanded = (crops(images, read) for read in ("ahead", "on-demand"))
    for ids in (torch.arange(200), torch.arange(100).flip(0)):
        assert torch.equal(ahead.render(ids), demanded.render(ids))


def test_a_pickle_holds_no_images_and_draws_the_same(folder):
    pool = crops({"source": "folder", "path": str(folder)}, "on-demand", (3, 200, 200))
    sent = pickle.dumps(pool)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent).render(torch.arange(20)), pool.render(torch.arange(20)))
    few = crops({"source": "folder", "path": str(folder), "count": 5}, "on-demand")
    assert torch.equal(pickle.loads(pickle.dumps(few)).render(torch.arange(20)), few.render(torch.arange(20)))


def test_auto_reads_on_demand_what_fills_memory_and_is_more_than_the_candidates(folder):
    images, large = {"source": "folder", "path": str(folder)}, (3, 800, 800)  # 40 of twice the size take 293 MiB
    assert isinstance(crops(images, "auto", large, candidates=39)._painter._images, ImagesOnDemand)
    for shape, candidates in (((3, 8, 8), 39), ((3, 8, 8), 40)):
        assert isinstance(crops(images, "auto", shape, candidates=candidates)._painter._images, torch.Tensor)
    section = pools.parse({"kind": "crops", "images": images | {"size": 1600, "colour": "rgb"}, "candidates": 40})
    assert section._demanded(41, section.images) and not section._demanded(40, section.images)


def test_what_is_shown_decides_where_a_pool_has_more(folder, make_config):
    images, large = {"source": "folder", "path": str(folder)}, torch.empty(0, 3, 800, 800, dtype=torch.uint8)
    section = pools.parse({"kind": "crops", "images": images})
    both = pools.parse({"kind": "mixture", "of": ["lines", section.model_dump()]})
    for shown, kind in ((39, ImagesOnDemand), (40, torch.Tensor)):
        pool = section.showing(shown).with_size(1_000_000).build(large, 1)
        assert isinstance(pool._painter._images, kind) and len(pool) == 1_000_000
        part = both.showing(shown).build(large, 1).parts[1].pool
        assert isinstance(part._painter._painter._images, kind)


def test_a_pool_that_is_built_again_with_another_size_reads_no_image_twice(folder):
    images = {"source": "folder", "path": str(folder)}
    first, second = (crops(images, "auto", candidates=count)._painter._images for count in (50, 60))
    assert first is second
    assert isinstance(crops(images, "on-demand")._painter._images, ImagesOnDemand)


def test_a_damaged_image_gives_way_to_the_next(folder):
    files = sorted(folder.rglob("*.*"))
    whole = crops({"source": "folder", "path": str(folder)}, "on-demand", area=[1, 1], flip=False)._painter._images
    before = whole[torch.arange(40)]
    files[7].write_bytes(files[7].read_bytes()[:100])
    files[8].write_bytes(b"no image")
    files[39].write_bytes(b"")
    after = pickle.loads(pickle.dumps(whole))[torch.arange(40)]
    expected = before.clone()
    expected[7] = expected[8] = before[9]
    expected[39] = before[0]
    assert torch.equal(after, expected)
    for file in files:
        file.write_bytes(b"no image")
    with pytest.raises(ImageSetError, match=r"pool\.images: .*00\.png is not a readable .*nor is any of the 39 after"):
        whole[torch.tensor([0])]


def test_a_set_of_one_damaged_image_says_no_more_than_that(tmp_path):
    (tmp_path / "00.png").write_bytes(b"no image")
    with pytest.raises(ImageSetError) as error:
        crops({"source": "folder", "path": str(tmp_path)}, "on-demand").render(torch.tensor([0]))
    assert "00.png is not a readable" in str(error.value) and "nor is any" not in str(error.value)


def test_a_file_that_is_gone_is_an_error_and_so_is_another_number_of_files(folder):
    pool = crops({"source": "folder", "path": str(folder)}, "on-demand")
    sent = pickle.dumps(pool)
    (folder / "0" / "00.png").unlink()
    with pytest.raises(ImageSetError, match=r"00\.png is not a readable image \(.*No such file"):
        pool.render(torch.arange(400))
    with pytest.raises(ImageSetError, match=r"pool\.images: .* has 39 images here, and had 40 when"):
        pickle.loads(sent).render(torch.arange(4))


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"kind": "mixture", "of": ["lines", "CROPS"]}, r"pool\.of\.1\.images"),
        ({"kind": "auto", "of": ["CROPS", "lines"]}, r"pool\.of\.0\.images"),
        ({"kind": "boundary", "of": "CROPS"}, r"pool\.of\.images"),
        ({"kind": "boundary", "of": {"kind": "mixture", "of": ["lines", "CROPS"]}}, r"pool\.of\.of\.1\.images"),
    ],
)
def test_an_error_of_drawing_names_the_field_where_it_stands(section, field, folder):
    one = {"kind": "crops", "read": "on-demand", "images": {"source": "folder", "path": str(folder)}}
    section = json.loads(json.dumps(section).replace('"CROPS"', json.dumps(one)))
    pool = pools.parse(section).build(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0)
    for file in folder.rglob("*.*"):
        file.write_bytes(b"no image")
    with pytest.raises(ImageSetError, match=rf"^{field}: .* is not a readable image"):
        pickle.loads(pickle.dumps(pool)).to("cpu").render(torch.arange(40))
    if section["kind"] == "mixture":
        with pytest.raises(ImageSetError, match=rf"^images\.{field}: .* is not a readable image"):
            read_images(DrawnImages(pool=section, size=8, colour="rgb"), generator=np.random.default_rng(0))


def test_16_bits_that_are_not_told_are_refused_and_told_ones_are_read(tmp_path):
    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20) * 160
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    images = {"source": "folder", "path": str(tmp_path)}
    with pytest.raises(ImageSetError, match=r"deep\.png has 16 bits .*set pool\.images\.bits, to 16 if all are used"):
        crops(images, "on-demand").render(torch.arange(4))
    told = [crops(images | {"bits": 16}, read).render(torch.arange(50)) for read in ("ahead", "on-demand")]
    assert torch.equal(*told)


def test_a_run_asks_about_them(folder, make_config, tmp_path):
    images = {"source": "folder", "path": str(folder)}
    runs = []
    for read in ("ahead", "on-demand"):
        config = make_config(
            pool={"kind": "crops", "images": images, "read": read, "candidates": 300}, select={"strategy": "margin"},
            student__epochs=1,
        )  # fmt: skip
        runs.append(run(config, RunDirectory(tmp_path / read), local=True).labelled[1])
    assert runs[0].ids.tolist() == runs[1].ids.tolist() and torch.equal(runs[0].images, runs[1].images)
