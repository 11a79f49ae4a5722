"""Procedural pools: the same bits for whoever draws them, the images that were meant, and runs that ask about them."""

import functools
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import scipy.fft
import torch
from conftest import command, examples
from hypothesis import example, given
from hypothesis import strategies as st

from kdray.errors import ConfigError
from kdray.pools.base import Pool, pools
from kdray.pools.counter import CounterRandom, below
from kdray.pools.procedural.compiled import drawing
from kdray.pools.procedural.lines import LinesPainter, _everywhere, _in_windows, _squared_distance
from kdray.pools.procedural.noise import channel_statistics
from kdray.pools.procedural.normal import TABLE_SIZE, bounded_normal_table, normal_table
from kdray.pools.procedural.spectrum import SpectrumPainter, SpectrumSums
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.run import resume, run

pytestmark = pytest.mark.xdist_group("compiled")  # once, not in each worker

KINDS = ("contours", "fractals", "leaves", "lines", "noise", "shaders", "spectrum")
SHAPES = [(1, 8, 8), (3, 9, 5), (2, 1, 4)]
CASES = [(kind, shape) for kind in KINDS for shape in SHAPES if kind != "shaders"]


def images(shape: tuple[int, int, int] = (1, 8, 8), n: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def pool_of(kind: str, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0, **fields) -> Pool:
    return pools.parse({"kind": kind, **fields}).build(images(shape), seed)


@pytest.mark.parametrize("kind", ["leaves", "fractals"])
def test_a_worker_whose_arrays_are_read_only_compiles_nothing_again(kind):
    compiled, buffers = drawing(kind).draw, []
    own = pool_of(kind)
    blob = pickle.dumps(own, protocol=5, buffer_callback=buffers.append)
    read_only = [bytes(one.raw()) for one in buffers]
    assert len(read_only) >= 3
    sent, ids = pickle.loads(blob, buffers=read_only), torch.arange(300)
    assert torch.equal(sent.render(ids), own.render(ids)) and len(compiled.signatures) == 1


def test_the_kinds_are_known():
    assert set(KINDS) < set(pools.parts())


@pytest.mark.parametrize(("kind", "shape"), CASES)
@examples(10)
@given(ids=st.lists(st.integers(0, 299), max_size=70))
def test_a_candidate_follows_from_its_id_alone(kind, shape, ids):
    check_ids(kind, shape, ids)


def test_one_of_shaders_does_which_each_pool_compiles_anew():
    check_ids("shaders", (1, 8, 8), [3, 299, 0, 3, 70, *range(64)])


@functools.cache
def three_of_it(kind, shape):
    """A pool, its first 300 candidates, and a larger one as another process would get it."""
    pool = pool_of(kind, shape, candidates=1000)
    other = pickle.loads(pickle.dumps(pool_of(kind, shape, candidates=10**12)))
    return pool, pool.render(torch.arange(300)), other


def check_ids(kind, shape, ids):
    pool, first, other = three_of_it(kind, shape)
    drawn = pool.render(torch.tensor(ids, dtype=torch.int64))
    assert drawn.dtype == torch.uint8 and drawn.shape == (len(ids), *shape)
    assert torch.equal(drawn, first[ids])
    assert torch.equal(torch.cat([drawn[:0], *other.batches(torch.tensor(ids, dtype=torch.int64), 7)]), drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_differ_from_one_another_and_from_seed_to_seed(kind):
    drawn = pool_of(kind, candidates=500).render(torch.arange(500)).flatten(1)
    assert len(drawn.unique(dim=0)) > 450
    other = pool_of(kind, seed=1, candidates=500).render(torch.arange(500)).flatten(1)
    assert (drawn != other).any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["contours", "crops", "lines", "noise", "spectrum"])
def test_large_images_are_drawn_a_few_at_a_time(kind, monkeypatch):
    pool, drawn = pool_of(kind, (3, 300, 400), candidates=10), []
    expected, call = pool.render(torch.arange(10)), type(pool._painter).__call__

    def counting(painter, ids):
        drawn.append(len(ids))
        return call(painter, ids)

    monkeypatch.setattr(type(pool._painter), "__call__", counting)
    assert torch.equal(pool.render(torch.arange(10)), expected) and drawn == [5, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_far_ids_are_drawn_and_none_beyond_the_end(kind):
    end = (1 << 62) - 1
    pool = pool_of(kind, candidates=end)
    assert len(pool) == pool.num_groups == end and pool.group_size == 1
    assert not torch.equal(*pool.render(torch.tensor([end - 1, end - 2])))
    for wrong in (-1, end):
        with pytest.raises(IndexError, match="ids must lie in"):
            pool.render(torch.tensor([wrong]))


def test_the_table_of_a_normal_distribution_is_its_quantiles():
    table = normal_table(1000)
    assert len(table) == TABLE_SIZE and table.sum() == 0
    assert [int((table < 1000 * z).sum()) / TABLE_SIZE for z in (-1.96, 0, 1)] == pytest.approx(
        [0.025, 0.5, 0.8413], abs=3e-4
    )
    bounded = bounded_normal_table(10, 5)
    assert bounded.min() == 0 and bounded.max() < 40
    for value in (0, 10, 12):
        share = 0.5 * (1 + math.erf((value + 0.5 - 10) / 5 / math.sqrt(2)))
        assert int((bounded <= value).sum()) == round(TABLE_SIZE * share)


def test_noise_has_the_mean_and_spread_of_the_images_or_those_given():
    shown = images((3, 16, 16), 50)
    shown[:, 1] = 100 + shown[:, 1] // 8
    shown[:, 2] = 7
    means, stds = channel_statistics(shown)
    assert means == pytest.approx(shown.double().mean(dim=(0, 2, 3)).tolist())
    assert stds == pytest.approx(shown.double().transpose(0, 1).flatten(1).std(dim=1, unbiased=False).tolist())
    drawn = pools.parse({"kind": "noise"}).build(shown, 0).render(torch.arange(500)).double()
    assert drawn[:, 1].mean().item() == pytest.approx(means[1], abs=0.1)
    assert drawn[:, 1].std().item() == pytest.approx(stds[1], abs=0.1)
    assert drawn[:, 2].std().item() == pytest.approx(1, abs=0.05), "not one colour"
    given_ = pools.parse({"kind": "noise", "mean": 0.5, "std": 0.1}).build(shown, 0).render(torch.arange(500)).double()
    assert given_.mean().item() == pytest.approx(127.5, abs=0.2)
    assert given_.std().item() == pytest.approx(25.5, abs=0.2)
    pixels = given_.flatten(1) - given_.mean()
    assert abs(float((pixels[:, 1:] * pixels[:, :-1]).mean())) < 0.02 * 25.5**2, "neighbours do not go together"


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_amplitude_of_a_spectrum_falls_as_it_should(exponent):
    side, contrast = 32, 0.1  # a sigmoid that is nearly straight
    painter = SpectrumPainter((1, side, side), (exponent, exponent), contrast, 0)
    drawn = (painter(torch.arange(400))[:, 0].double() - 127.5) * 4 / 255 / contrast
    assert drawn.square().mean().item() == pytest.approx(1, rel=0.1), "a standard deviation of 1"
    positions = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * positions + 1) * positions.unsqueeze(1) / (2 * side))
    power = (basis @ drawn @ basis.T).square().mean(dim=0)
    frequencies = [2, 4, 8]
    slopes = np.polyfit(np.log(frequencies), np.log([float(power[f, f]) for f in frequencies]), 1)
    assert slopes[0] == pytest.approx(-2 * exponent, abs=0.25)


def test_whole_numbers_draw_the_sum_of_cosines():
    painter = SpectrumPainter((2, 6, 9), (1.0, 1.0), 2.0, 5)
    ids = torch.arange(20)
    normal = painter._sums._normal[painter._sums._indices[0](ids)].view(20, 2, 6, 9) / 256
    weights = painter._sums._weights[0] / 1024
    assert weights.square().sum().item() == pytest.approx(54, rel=1e-3)

    def cosines(side):
        return np.array(
            [
                [
                    math.sqrt((2 if k else 1) / side) * math.cos(math.pi * (2 * x + 1) * k / (2 * side))
                    for x in range(side)
                ]
                for k in range(side)
            ]
        )

    sums = np.einsum("bckl,ky,lx->bcyx", (normal * weights).numpy(), cosines(6), cosines(9))
    wanted = 255 / (1 + np.exp(-2.0 * sums))
    assert np.abs(painter(ids).numpy() - wanted).max() < 2


@pytest.mark.parametrize("far", [400, 20_000])
def test_the_nearest_point_is_found_among_all(far):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-20, 100, (4, 7), generator=generator, dtype=torch.int32) for _ in range(2))
    found = _squared_distance(x, y, 6, 10, far)
    for b in range(4):
        for row in range(6):
            for column in range(10):
                apart = [
                    min((8 * column + 4 - int(px)) ** 2, far) + min((8 * row + 4 - int(py)) ** 2, far)
                    for px, py in zip(x[b], y[b], strict=True)
                ]
                assert found[row, column, b] == min(apart)


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)), st.sampled_from([16, 400, 16_000, 20_000]), st.integers(0, 99)
)
@example((1, 1), 16, 0)
def test_windows_find_all_that_is_near(size, far, seed):
    generator = torch.Generator().manual_seed(seed)
    reach = 8 * max(size)
    x, y = (torch.randint(-reach, 2 * reach, (3, 9), generator=generator, dtype=torch.int32) for _ in range(2))
    found, wanted = (way(x, y, *size, far).clamp(max=far).int() for way in (_in_windows, _everywhere))
    assert torch.equal(found, wanted)


def test_large_lines_are_those_of_either_way(monkeypatch):
    ids = torch.arange(3)
    in_windows = LinesPainter((3, 170, 180), (1, 3), (0.02, 0.15), True, 5)(ids)
    monkeypatch.setattr("kdray.pools.procedural.lines._LARGE", 1 << 30)
    assert torch.equal(LinesPainter((3, 170, 180), (1, 3), (0.02, 0.15), True, 5)(ids), in_windows)


def test_a_line_is_as_wide_as_it_should_be_and_lies_on_the_background():
    painter = LinesPainter((1, 64, 64), (1, 1), (0.25, 0.25), False, 0)  # 16 pixels wide
    drawn = painter(torch.arange(600))[:, 0]
    assert set(drawn[:, 0, 0].tolist()) > {0} and (drawn.amax(dim=(1, 2)) >= 128).all(), "light on black"
    solid = drawn == drawn.amax(dim=(1, 2), keepdim=True)
    area = solid.sum(dim=(1, 2))
    assert area.min() > math.pi * 8**2 / 4 * 0.8, "at least a quarter of a round dot, in a corner"
    dot = LinesPainter((1, 64, 64), (1, 1), (0.25, 0.25), False, 0)
    middle = torch.full((1, 4), 256)
    dot._path = lambda words: (middle, middle)  # a line without length, in the middle
    (round_,) = dot(torch.tensor([0]))[0]
    covered = round_.double().sum() / round_.max()
    assert covered.item() == pytest.approx(math.pi * 8**2, rel=0.03)


def test_widths_lie_evenly_between_the_two_given():
    painter = LinesPainter((1, 64, 64), (1, 1), (0.1, 0.4), False, 0)
    middle = torch.full((2000, 4), 256)
    painter._path = lambda words: (middle, middle)
    drawn = painter(torch.arange(2000)).double().flatten(1)
    widths = 2 * (drawn.sum(dim=1) / drawn.amax(dim=1) / math.pi).sqrt() / 64
    assert widths.min().item() == pytest.approx(0.1, abs=0.01) and widths.max().item() == pytest.approx(0.4, abs=0.01)
    assert widths.mean().item() == pytest.approx(0.25, abs=0.01)
    assert widths.std().item() == pytest.approx(0.3 / math.sqrt(12), abs=0.01), "that of even numbers"


def test_a_third_of_the_lines_are_straight_a_third_arcs_and_the_rest_bezier_curves():
    painter = LinesPainter((1, 64, 64), (1, 1), (0.1, 0.1), False, 0)
    words = CounterRandom(3, "words", 9)(torch.arange(600))
    paths = [torch.stack(path, dim=1).double().numpy() for path in zip(*painter._path(words), strict=True)]
    corners = below(words[1:], 64 * 8).double().T.reshape(600, 4, 2).numpy()  # x and y of each in 1/8 pixels
    time = np.linspace(0, 1, 600)[:, None]
    falling = [(1 - time) ** 3, 3 * (1 - time) ** 2 * time, 3 * (1 - time) * time**2, time**3]
    kinds: Counter[str] = Counter()
    radii = []
    for path, four in zip(paths, corners, strict=True):
        chord = (path[-1] - path[0]) / max(1.0, np.hypot(*(path[-1] - path[0])))
        off = np.abs((path - path[0]) @ np.array([-chord[1], chord[0]]))
        ahead = (path - path[0]) @ chord
        system = np.column_stack([2 * path, np.ones(len(path))])  # a circle through all points, by least squares
        *middle, rest = np.linalg.lstsq(system, (path**2).sum(axis=1), rcond=None)[0]
        radius = math.sqrt(max(0.0, rest + middle[0] ** 2 + middle[1] ** 2))
        curve = sum(share * corner for share, corner in zip(falling, four, strict=True))
        if off.max() < 2 and (np.diff(ahead) >= -1).all():
            kinds["straight"] += 1
        elif radius < 0.5 * 512 + 4 and np.abs(np.hypot(*(path - middle).T) - radius).max() < 3:
            kinds["arc"] += 1
            radii.append(radius)
        else:
            kinds["curve"] += 1
            apart = np.hypot(*(path[:, None] - curve[None]).transpose(2, 0, 1)).min(axis=1)
            assert apart.max() < 10, "about a pixel, as its points are rounded three times"
            steps = np.hypot(*np.diff(path, axis=0).T)
            assert steps.max() < 4 * max(4.0, steps.mean()), "without gaps"
    assert all(150 < kinds[kind] < 250 for kind in ("straight", "arc", "curve")), kinds
    assert np.percentile(radii, [1, 50, 99]) == pytest.approx([0.1 * 512, 0.3 * 512, 0.5 * 512], abs=20)


def test_the_exponents_lie_evenly_between_the_two_given():
    ids = torch.arange(2400)
    drawn = SpectrumSums((1, 32, 32), (0.0, 3.0), 0, ["spectrum"])(ids)[:, 0].double().numpy()
    which = below(CounterRandom(0, "spectrum exponents", 1)(ids)[0], 16).numpy()
    power = scipy.fft.dctn(drawn, axes=(1, 2), norm="ortho") ** 2
    far = np.hypot(*np.meshgrid(np.arange(32), np.arange(32), indexing="ij")) / 32
    middling = (far > 0.1) & (far < 0.7)
    for exponent in range(16):
        mine = power[which == exponent]
        assert 100 < len(mine) < 200
        slope = np.polyfit(np.log(far[middling]), np.log(mine.mean(axis=0)[middling]), 1)[0]
        assert slope == pytest.approx(-2 * 3 * exponent / 15, abs=0.3)


def test_lines_have_any_colour_on_any_colour():
    drawn = pool_of("lines", (3, 16, 16)).render(torch.arange(500)).double()
    corners = drawn[:, :, 0, 0]
    assert corners.mean().item() == pytest.approx(127.5, abs=8) and corners.std().item() == pytest.approx(74, abs=5)


def test_the_number_of_lines_is_between_the_two_given():
    def colours(strokes):
        drawn = pool_of("lines", (1, 32, 32), strokes=strokes, width=[0.3, 0.3]).render(torch.arange(200))
        solid = [np.unique(one.numpy(), return_counts=True) for one in drawn]
        return [int((counts > 30).sum()) for _, counts in solid]

    assert max(colours([1, 1])) == 2, "the background and one line"
    assert 3 <= max(colours([3, 3])) <= 4 and np.mean(colours([3, 3])) > np.mean(colours([1, 3]))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "lines", "strokes": [3, 2]}, r"strokes: a range is \[least, most\], and 3 is more than 2; swap them"),
        ({"kind": "lines", "width": [0.2, 0.1]}, r"width: a range is \[least, most\]"),
        ({"kind": "lines", "width": [0, 0.1]}, r"pool\.width\.0"),
        ({"kind": "spectrum", "exponent": [2, 1]}, r"exponent: a range is \[least, most\]"),
        ({"kind": "spectrum", "contrast": 0}, r"pool\.contrast"),
        ({"kind": "noise", "std": 0}, r"pool\.std"),
        ({"kind": "noise", "candidates": 0}, r"pool\.candidates"),
        ({"kind": "noise", "lambdas": [0.5]}, r"pool\.lambdas"),
    ],
)
def test_a_section_that_cannot_work_is_refused(section, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(pool=section)


def test_lines_of_images_that_are_too_large_are_refused():
    with pytest.raises(ConfigError, match=r"up to 2,048 pixels a side, and the images have 4 x 2049; set images\.size"):
        pool_of("lines", (1, 4, 2049))


def test_a_pool_that_is_too_small_says_what_makes_it_larger(make_config):
    with pytest.raises(ConfigError, match=r"has only 100 for margin; lower budget\.queries to 140 or raise pool\.cand"):
        read_inputs(make_config(pool={"kind": "lines", "candidates": 100}, select={"strategy": "margin"}))
    kinds = ["mixup", {"kind": "lines", "candidates": 50}]
    with pytest.raises(ConfigError, match=r"raise pool\.candidates"):
        read_inputs(make_config(pool={"kind": "auto", "of": kinds}))


def test_auto_is_fifty_for_each_candidate_to_choose():
    section = pools.parse({"kind": "noise"})
    sized, reason = section.sized(0, 2000)
    assert sized.candidates == 100_000 and "50 for each of the 2,000 candidates" in reason
    assert section.sized(0, 10)[0].candidates == 50_000
    assert pools.parse({"kind": "noise", "candidates": 7}).sized(0, 2000)[0].candidates == 7


@pytest.mark.parametrize(
    "kind", [kind if kind == "lines" else pytest.param(kind, marks=pytest.mark.storm) for kind in KINDS]
)
def test_a_run_asks_about_drawn_candidates_and_goes_on_where_it_was(kind, make_config, tmp_path):
    config = make_config(pool={"kind": kind, "candidates": 500}, select={"strategy": "cluster-margin", "rounds": 2})
    done = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert done.receipt.queries == 160 and [set(part.source) for part in done.labelled[1:]] == [{kind}] * 2
    pool = read_inputs(config).pool
    for part in done.labelled[1:]:
        assert torch.equal(pool.render(torch.from_numpy(part.ids)), part.images)
    student = (done.directory / "student.safetensors").read_bytes()
    for name in ("labelled.parquet", "student.safetensors", "metrics.json"):
        (done.directory / "rounds/002" / name).unlink()
    again = resume(RunDirectory(done.directory), local=True)
    assert again.receipt.queries == 160 and (again.directory / "student.safetensors").read_bytes() == student


def test_kinds_that_are_drawn_are_tried_beside_mixes(make_config, tmp_path):
    kinds = [{"kind": "mixup", "lambdas": [0.5]}, {"kind": "lines", "candidates": 300}]
    config = make_config(pool={"kind": "auto", "of": kinds}, student__epochs=2)
    done = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert set(done.labelled[1].source) == {"mixup", "lines"}


@pytest.mark.parametrize("strategy", ["active-mixup", "rad", "rad-pairs", "uniform", "coreset", "vanilla", "margin"])
def test_strategies_choose_among_drawn_candidates(strategy, make_config, tmp_path):
    config = make_config(
        pool={"kind": "lines", "candidates": 400}, select={"strategy": strategy}, student__epochs=1, budget__queries=60
    )
    done = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert len(np.unique(done.labelled[1].ids)) == 20


@pytest.mark.parametrize(
    ("select", "words"),
    [({"strategy": "unixkd"}, "set pool.kind to mixup"), ({"strategy": "rad", "m": "estimate"}, "select.m")],
)
def test_what_needs_pairs_is_refused(select, words, config_file):
    done = command("plan", config_file(pool={"kind": "noise"}, select=select))
    assert done.returncode == 2 and words in done.stderr.replace("\n", " ")


def test_a_plan_says_how_many_are_drawn(config_file):
    done = command("plan", config_file(pool={"kind": "spectrum"}))
    assert done.returncode == 0, done.stderr
    assert "auto takes 50,000" in done.stdout.replace("\n", " ")
