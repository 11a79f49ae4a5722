"""Mixtures of pools, crops of photographs, and images that are drawn for a user who has none."""

import io
import pickle
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import command, examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdray.config.load import load_config
from kdray.errors import ConfigError, ImageSetError, KdrayError
from kdray.images.base import read_images, sources
from kdray.pools.base import Pool, pools
from kdray.pools.mixture import CYCLE, Part, capacity, turns, whole_shares
from kdray.report.captions import what_asked
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs, resolve
from kdray.runs.run import resume, run
from kdray.utils.seeds import numpy_generator

pytestmark = pytest.mark.xdist_group("compiled")  # once, not in each worker


def images(shape: tuple[int, int, int] = (1, 8, 8), n: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def mixture(of: list, shares: list[float] | None = None, over: torch.Tensor | None = None, **fields) -> Pool:
    section = pools.parse({"kind": "mixture", "of": of, "shares": shares, **fields})
    return section.build(images() if over is None else over, 0)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_shares_are_whole_within_one_candidate_of_a_cycle(shares):
    whole = whole_shares(shares)
    assert sum(whole) == CYCLE
    for share, count in zip(shares, whole, strict=True):
        assert abs(count - CYCLE * Fraction(share) / sum(map(Fraction, shares))) < 1


def test_what_is_left_over_goes_to_those_that_lost_most():
    assert whole_shares([1, 1, 1]) == [334, 333, 333]
    assert whole_shares([2, 1]) == [667, 333] and whole_shares([0.3]) == [1000]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_parts_take_turns_evenly(weights):
    order = turns(weights)
    assert [order.count(number) for number in range(len(weights))] == weights
    for end in range(1, len(order) + 1):
        for number, weight in enumerate(weights):
            assert abs(order[:end].count(number) - end * weight / len(order)) <= len(weights)
    assert turns([2, 1]) == [0, 1, 0]


def test_every_candidate_of_a_part_is_the_next_of_its_pool():
    pool = mixture(["lines", {"kind": "noise", "mean": 0.5, "std": 0.1}], [3, 1], candidates=4000)
    kinds = pool.describe(torch.arange(4000))["kind"]
    assert kinds[:4] == ["lines", "lines", "noise", "lines"] and kinds.count("noise") == 1000
    drawn = pool.render(torch.arange(4000))
    for name, part in zip(("lines", "noise"), pool.parts, strict=True):
        mine = torch.tensor([number for number, kind in enumerate(kinds) if kind == name])
        assert torch.equal(drawn[mine], part.pool.render(torch.arange(len(mine))))


@pytest.fixture(scope="module")
def three_parts() -> tuple[Pool, Pool, torch.Tensor]:
    """A mixture, one of more candidates that was pickled, and all images of the first."""
    parts = ["lines", "spectrum", {"kind": "mixup", "lambdas": [0.3, 0.5]}]
    pool = mixture(parts, over=images(n=60), candidates=3000)
    other = pickle.loads(pickle.dumps(mixture(parts, over=images(n=60), candidates=5000)))
    return pool, other, pool.render(torch.arange(3000))


@examples(20)
@given(ids=st.lists(st.integers(0, 2999), max_size=40))
def test_a_candidate_follows_from_its_id_alone(three_parts, ids):
    pool, other, every = three_parts
    wanted = torch.tensor(ids, dtype=torch.int64)
    assert torch.equal(pool.render(wanted), every[wanted])
    assert torch.equal(torch.cat([every[:0], *other.batches(wanted, 7)]), every[wanted])


def test_of_a_group_of_mixes_one_is_in_the_mixture():
    mixes = {"kind": "mixup", "lambdas": [0.3, 0.4, 0.5]}
    pool = mixture(["lines", mixes], over=images(n=30))
    (part,) = (part for part in pool.parts if part.pool.group_size == 3)
    assert len(pool) == 2 * 435 + 1, "all pairs, and lines before and after each"
    taken = part.candidates(torch.arange(435))
    assert sorted((taken // 3).tolist()) == list(range(435))
    assert set((taken % 3).tolist()) == {0, 1, 2}


def test_parts_of_one_kind_draw_different_candidates():
    pool = mixture(["lines", {"kind": "lines", "candidates": 10**6}], candidates=100)
    assert pool.describe(torch.arange(2))["kind"] == ["lines (0)", "lines (1)"]
    drawn = pool.render(torch.arange(100))
    assert len(drawn.flatten(1).unique(dim=0)) > 90


def test_the_capacity_is_that_of_the_part_that_runs_out_first():
    large = pools.parse({"kind": "lines", "candidates": 10**6}).build(images(), 0)
    for groups in (1, 2, 333, 334, 700):
        small = pools.parse({"kind": "lines", "candidates": groups}).build(images(), 0)
        parts = [Part(large, 667, None), Part(small, 333, None)]
        order = [number for _ in range(5) for number in turns([667, 333])]
        end = capacity(parts)
        assert order[:end].count(1) == groups and order[end] == 1, "the next one would be one too many"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shares": [1, 0]}, r"pool\.shares\.1"),
        ({"shares": [1, -2]}, r"pool\.shares\.1"),
        ({"shares": [1]}, r"shares: 1 given for 2 pools; give one for each"),
        ({"shares": [5000, 1]}, r"shares: that of pool 1 is less than one in 1,000 candidates"),
        ({"of": ["lines"]}, r"pool\.of"),
        ({"of": ["lines", "lines"]}, r"pool\.of\.1: this pool is named twice; give it a larger share"),
        ({"of": ["lines", "auto"]}, r"pool\.of\.1: a pool of kind auto is several pools; name them one by one"),
        ({"of": ["lines", "leafs"]}, r"pool\.of\.1\.kind: 'leafs' is not one of"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(fields, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(pool={"kind": "mixture", "of": ["lines", "spectrum"], **fields})


def test_a_mixture_of_the_images_themselves_is_refused():
    with pytest.raises(ConfigError, match=r"pool\.of\.1: its candidates are the images, which round 0 asks about"):
        mixture(["lines", "images"])


def test_a_mixture_ends_where_a_part_runs_out():
    mixes = {"kind": "mixup", "lambdas": [0.5]}
    assert len(mixture(["lines", mixes], candidates=100)) == 21, "10 pairs of 5 images, and lines before and after each"
    assert len(mixture(["lines", mixes], [2, 1], candidates=30)) == 30


def test_a_run_asks_about_a_mixture_and_goes_on_where_it_was(make_config, tmp_path):
    pool = {"kind": "mixture", "of": ["lines", {"kind": "mixup", "lambdas": [0.5]}], "shares": [1, 2]}
    config = make_config(pool=pool, select={"strategy": "margin", "rounds": 2})
    done = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert done.receipt.queries == 160
    assert {one for part in done.labelled[1:] for one in part.source} == {"lines", "mixup"}, "each by its own name"
    student = (done.directory / "student.safetensors").read_bytes()
    for name in ("labelled.parquet", "student.safetensors", "metrics.json"):
        (done.directory / "rounds/002" / name).unlink()
    again = resume(RunDirectory(done.directory), local=True)
    assert again.receipt.queries == 160 and (again.directory / "student.safetensors").read_bytes() == student


def test_a_mixture_records_what_its_parts_do(make_config):
    """The programs of shaders that a run has found, which it goes on with."""
    parts = ["shaders", "lines"]
    config = read_inputs(make_config(pool={"kind": "mixture", "of": parts, "candidates": 200})).config
    assert config.pool.of[0].digest is not None and config.pool.of[1] == pools.parse("lines")
    again = resolve(make_config(pool={"kind": "mixture", "of": parts, "candidates": 200}), config)
    assert again.pool == config.pool


def test_a_mixture_that_is_too_small_says_what_makes_it_larger(make_config):
    pool = {"kind": "mixture", "of": ["lines", {"kind": "mixup", "lambdas": [0.5], "pairs": 20}]}
    with pytest.raises(ConfigError, match=r"has only 41 for margin; .*the sizes of the pools in pool\.of that run"):
        read_inputs(make_config(pool=pool, select={"strategy": "margin"}))


# Crops of other images


@pytest.fixture
def photographs(tmp_path):
    """A file of 6 coloured images of several sizes, each of two colours side by side."""

    def encoded(number: int) -> bytes:
        size = (40 + 10 * number, 60)
        picture = Image.new("RGB", size, (250, 30 * number, 0))
        picture.paste((0, 30 * number, 250), (0, 0, size[0] // 2, 60))
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()

    path = tmp_path / "photographs.parquet"
    pq.write_table(pa.table({"image": [{"bytes": encoded(number), "path": None} for number in range(6)]}), path)
    return {"source": "parquet", "path": str(path)}


def test_crops_show_parts_of_the_images_in_colour_or_grey(photographs):
    pool = pools.parse({"kind": "crops", "images": photographs}).build(images((3, 8, 8), 0), 0)
    drawn = pool.render(torch.arange(500))
    assert drawn.shape == (500, 3, 8, 8)
    greens = drawn[:, 1].flatten(1)
    assert torch.equal(greens.amin(dim=1), greens.amax(dim=1)), "each shows one image, whose green is even"
    assert set(greens[:, 0].tolist()) == {0, 30, 60, 90, 120, 150}
    left, right = drawn[:, 2, :, 0].double().mean(dim=1), drawn[:, 2, :, -1].double().mean(dim=1)
    assert (left > 200).float().mean() == pytest.approx((right > 200).float().mean(), abs=0.1), "half are mirrored"
    assert ((left > 200) == (right > 200)).any() and ((left > 200) != (right > 200)).any(), "small parts and large ones"
    grey = pools.parse({"kind": "crops", "images": photographs}).build(images((1, 8, 8), 0), 0)
    assert grey.render(torch.arange(4)).shape == (4, 1, 8, 8)


def test_a_whole_image_that_is_reduced_is_its_mean_over_blocks(photographs):
    whole = {"kind": "crops", "images": photographs | {"size": 24}, "area": [1, 1], "flip": False}
    pool = pools.parse(whole).build(images((3, 8, 8), 0), 3)
    read = read_images(
        sources.parse(photographs | {"size": 24, "colour": "rgb"}), generator=numpy_generator(3, "crops")
    ).images
    blocks = read.double().view(6, 3, 8, 3, 8, 3).mean(dim=(3, 5))
    for drawn in pool.render(torch.arange(30)).double():
        assert min(float((drawn - one).abs().max()) for one in blocks) <= 0.5


def test_whole_images_are_candidates_once_each(photographs):
    whole = {"kind": "crops", "images": photographs, "whole": True}
    pool = pools.parse(whole).build(images((3, 8, 8), 0), 3)
    section = sources.parse(photographs | {"size": 8, "colour": "rgb"})
    read = read_images(section, generator=numpy_generator(3, "crops")).images
    assert len(pool) == 6 and sorted(map(bytes, pool.render(torch.arange(6)).numpy())) == sorted(
        map(bytes, read.numpy())
    )
    assert not torch.equal(pool.render(torch.arange(6)), read), "in an order of their own"
    demanded = pools.parse(whole | {"read": "on-demand"}).build(images((3, 8, 8), 0), 3)
    assert torch.equal(demanded.render(torch.arange(6)), pool.render(torch.arange(6)))
    assert len(pools.parse(whole | {"candidates": 4}).build(images((3, 8, 8), 0), 3)) == 4
    larger = pools.parse({"kind": "crops", "images": photographs | {"size": 24}, "whole": True})
    drawn = larger.build(images((3, 8, 8), 0), 3).render(torch.arange(6)).double()
    blocks = read_images(
        sources.parse(photographs | {"size": 24, "colour": "rgb"}), generator=numpy_generator(3, "crops")
    ).images.double()
    means = blocks.view(6, 3, 8, 3, 8, 3).mean(dim=(3, 5))
    assert all(min(float((one - mean).abs().max()) for mean in means) <= 0.5 for one in drawn)
    assert pools.parse(whole).sized(5, 100)[1] is None, "how many there are is not known before they are opened"
    mixed = pools.parse({"kind": "mixture", "of": ["lines", whole]}).build(images((3, 8, 8), 0), 0)
    assert len(mixed) in (12, 13), "until the images run out"


def test_whole_images_have_no_parts_and_are_not_the_users_own(photographs, make_config):
    with pytest.raises(ConfigError, match=r"pool: whole: your own images as they are are a pool of kind images"):
        make_config(pool={"kind": "crops", "whole": True})
    for field, value in (("area", [0.5, 1]), ("longest", 1), ("flip", False)):
        with pytest.raises(ConfigError, match=f"pool: {field} says which parts of images are taken, and whole is true"):
            make_config(pool={"kind": "crops", "images": photographs, "whole": True, field: value})


def test_a_run_asks_about_whole_images_and_says_where_they_run_out(photographs, make_config, tmp_path):
    pool = {"kind": "crops", "images": photographs, "whole": True}
    config = make_config(pool=pool, budget__queries=46, select={"strategy": "random", "rounds": 1}, student__epochs=1)
    done = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert len(done.labelled[1].images.unique(dim=0)) == 6
    config = make_config(pool=pool, budget__queries=47, select={"strategy": "random", "rounds": 1}, student__epochs=1)
    with pytest.raises(KdrayError, match=r"give more images \(pool\.images\)"):
        run(config, RunDirectory(tmp_path / "more"), local=True)


def test_crops_of_the_users_own_images_are_parts_of_them():
    own = images((2, 8, 8), 3)
    whole = pools.parse({"kind": "crops", "area": [1, 1], "flip": False}).build(own, 0).render(torch.arange(50))
    assert {one.numpy().tobytes() for one in whole} == {one.numpy().tobytes() for one in own}


def test_crops_that_cannot_be_are_refused(photographs, make_config):
    section = pools.parse({"kind": "crops", "images": photographs | {"size": [16, 24]}})
    with pytest.raises(ConfigError, match=r"pool\.images\.size: 16 x 24 is no whole multiple of a candidate's 8 x 8"):
        section.build(images((1, 8, 8)), 0)
    with pytest.raises(ConfigError, match=r"grey or RGB, and the user's images have 2 channels; leave pool"):
        pools.parse({"kind": "crops", "images": photographs}).build(images((2, 8, 8)), 0)
    with pytest.raises(ConfigError, match=r"pool\.area"):
        make_config(pool={"kind": "crops", "area": [0, 1]})


def test_files_in_parts_of_a_mixture_have_absolute_paths(make_config, monkeypatch, photographs, tmp_path):
    monkeypatch.chdir(tmp_path)
    parts = ["lines", {"kind": "crops", "images": {"source": "parquet", "path": "photographs.parquet"}}]
    config = resolve(make_config(pool={"kind": "mixture", "of": parts}))
    assert config.pool.of[1].images.path == photographs["path"] and config.pool.of[0] == pools.parse("lines")


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (["noise", {"kind": "lines"}], r"pool\.of\.1\.kind: lines are drawn up to 2,048 .*; set images\.size"),
        (
            ["noise", {"kind": "mixture", "of": ["noise", "lines"]}],
            r"pool\.of\.1\.of\.1\.kind: lines are drawn up to 2,048",
        ),
        (
            [{"kind": "crops", "images": {"source": "folder", "path": "nowhere"}}, "noise"],
            r"pool\.of\.0\.images\.path: no folder at nowhere",
        ),
    ],
)
def test_an_error_of_a_part_names_the_part(of, words):
    over = torch.empty(0, 1, 4, 2049, dtype=torch.uint8)
    with pytest.raises((ConfigError, ImageSetError), match=words):
        mixture(of, over=over)
    if of[0] == "noise":
        with pytest.raises(ConfigError, match=words):
            pools.parse({"kind": "auto", "of": of}).build(over, 0)


def test_an_unknown_key_of_a_part_is_told_the_keys_it_has(make_config):
    with pytest.raises(ConfigError, match=r"unknown key 'pool\.of\.1\.stroke'; did you mean 'strokes'"):
        make_config(pool={"kind": "mixture", "of": ["noise", {"kind": "lines", "stroke": [1, 2]}]})


# No images at all


def drawn(**fields) -> dict:
    return {"source": "drawn", "pool": "lines", "size": 28, "colour": "grey", "count": 40, **fields}


def test_drawn_images_follow_from_the_runs_seed_and_are_not_the_pools_candidates(make_config):
    first, again, other = (
        read_inputs(make_config(images=drawn(size=16), pool="lines", seed=seed)).images.images for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and first.shape == (40, 1, 16, 16) and len(first.flatten(1).unique(dim=0)) == 40
    assert not torch.equal(first, other)
    pool = read_inputs(make_config(images=drawn(size=16), pool={"kind": "lines", "candidates": 2000})).pool
    both = torch.cat([first, pool.render(torch.arange(2000))]).flatten(1)
    assert len(both.unique(dim=0)) > 2030


@pytest.mark.parametrize("colour", ["grey", pytest.param("rgb", marks=pytest.mark.storm)])
def test_images_drawn_together_are_those_drawn_one_by_one(colour):
    section = sources.parse({"source": "drawn", "pool": "lines", "size": 9, "colour": colour})
    opened, rows = section.open("images"), np.array([3, 700, 701, 999_999, *range(1000, 1300)])
    together = [np.asarray(image) for image in opened.decode_many(rows)]
    assert len(together) == len(rows)
    for row, image in zip(rows.tolist(), together, strict=True):
        assert np.array_equal(image, np.asarray(opened.decode(row)))


def test_drawn_images_of_noise_are_grey_in_the_mean():
    source = sources.parse({"source": "drawn", "pool": "noise", "size": [16, 12], "count": 50})
    found = read_images(source, generator=numpy_generator(0, "images")).images.double()
    assert found.shape == (50, 3, 16, 12)
    assert found.mean().item() == pytest.approx(127.5, abs=1) and found.std().item() == pytest.approx(61, abs=3)


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param({"kind": "lines", "candidates": 1000}, marks=pytest.mark.storm),
        {"kind": "mixture", "candidates": 1000},
        pytest.param({"kind": "mixup", "lambdas": [0.5]}, marks=pytest.mark.storm),
    ],
)
def test_a_run_without_a_single_image(pool, make_config, tmp_path):
    images = drawn(pool={"kind": "mixture", "of": ["lines", "noise"]}, size=16)
    config = make_config(images=images, pool=pool)
    done = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert done.receipt.queries == config.budget.queries and 0 < done.history[-1].student_accuracy <= 1
    recorded = load_config(RunDirectory(done.directory).config)
    assert what_asked(RunDirectory(done.directory).read_candidates(0), recorded, 0) == "drawn images"
    assert recorded.images.size == (16, 16) and recorded.images.pool.kind == "mixture"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"pool": "mixup"},
            r"images\.pool: the candidates of mixup are made of images, and here there are",
        ),
        (
            {"pool": {"kind": "mixture", "of": ["lines", "pairs"]}},
            r"images\.pool: the candidates of mixture are",
        ),
        ({"pool": "crops"}, r"images\.pool: the candidates of crops are made of images"),
        ({"size": None}, r"images\.size: drawn images have no size or number of their own; give one"),
        ({"count": None}, r"images\.count: drawn images have no size or number of their own; give one"),
        ({"count": 0}, r"images\.count"),
        ({"rows": "0:5"}, r"images\.rows: drawn images are random ones; leave rows and shuffle out"),
        ({"shuffle": 3}, r"images\.shuffle: drawn images are random ones; leave rows and shuffle out"),
    ],
)
def test_what_cannot_be_drawn_is_refused(fields, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(images=drawn(**fields))


@pytest.mark.parametrize("name", ["size", "pool"])
def test_what_is_drawn_and_how_large_has_to_be_said(name, make_config):
    fields = drawn()
    del fields[name]
    with pytest.raises(ConfigError, match=rf"images\.{name} is missing"):
        make_config(images=fields)


@pytest.mark.parametrize(
    "pool",
    [{"kind": "lines", "candidates": 20}, {"kind": "mixture", "of": [{"kind": "lines", "candidates": 10}, "noise"]}],
)
def test_no_more_images_are_drawn_than_the_pool_has(pool, make_config):
    found = read_inputs(make_config(images=drawn(pool=pool, size=16, count=20))).images.images
    assert len(found.flatten(1).unique(dim=0)) == 20
    with pytest.raises(ImageSetError, match=r"images\.count: 40 images wanted, but drawn \w+ holds 2[01]"):
        read_inputs(make_config(images=drawn(pool=pool, size=16)))


def test_drawn_images_have_no_labels(config_file):
    done = command("plan", config_file(test=drawn(), labelled=drawn()))
    assert done.returncode == 2
    assert "labelled: drawn lines holds no labels" in done.stderr.replace("\n", " ")
