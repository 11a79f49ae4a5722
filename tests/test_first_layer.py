"""Mixing behind the first layer: what mixing pixels gives, but for their rounding."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdray.models.classifier import ImageClassifier, build_model
from kdray.pools.mixup import MixupPool
from kdray.search import SearchRequest
from kdray.search.cost import CPU_BATCH, GPU_BATCH, SLOW_CPU_BATCH, batch_on, multiplications
from kdray.search.first_layer import Outputs, pays, split
from kdray.search.forward import Forward, ForwardOptions
from kdray.search.local import LocalSearcher
from kdray.sections.search import SearchSettings

GRID = (0.3, 0.4, 0.5, 0.6, 0.7)
PAIRS = list(itertools.combinations(range(12), 2))  # in the pool's order


def images(n: int, shape: tuple[int, int, int] = (1, 28, 28)) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["lenet5", "small-cnn", "alexnet", "resnet20"])
def test_the_two_parts_are_the_student(name):
    model = build_model(name, (3, 32, 32), 10, seed=1).eval()
    first, rest = split(model)
    with torch.no_grad():
        assert torch.equal(rest(first(images(5, (3, 32, 32)))), model(images(5, (3, 32, 32))))


def test_what_cannot_be_split_is_left_alone():
    assert split(build_model("resnet18", (3, 32, 32), 10, seed=0)) is None
    assert split(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) is None  # no classifier of uint8 images

    def wrapped(*layers: nn.Module) -> ImageClassifier:
        return ImageClassifier(nn.Sequential(*layers), (1, 4, 4), [0.5], [0.2])

    assert split(wrapped()) is None
    assert split(wrapped(nn.ReLU(), nn.Conv2d(1, 2, 3))) is None  # not linear
    assert split(wrapped(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"))) is None
    assert split(wrapped(nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.ReLU()), nn.Flatten())) is not None


def test_mixing_by_hand():
    outputs = Outputs(nn.Identity(), torch.tensor([[0.0, 10.0], [8.0, 20.0]]))
    mixed = outputs.mix((torch.tensor([0]), torch.tensor([1])), [0.25, 1.0])
    assert mixed.tolist() == [[6.0, 17.5], [0.0, 10.0]]  # a quarter of the first; all of it


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40)
    | st.tuples(st.integers(0, 60), st.integers(0, 66)).map(lambda cut: PAIRS[min(cut) : max(cut)]),
    st.sampled_from([(5,), (2, 3, 4)]),
)
def test_mixing_is_the_same_for_pairs_in_any_order(pairs, shape):
    """Rows that lie together are not gathered: whether they do makes no difference to the bits."""
    rows = torch.randn(12, *shape, generator=torch.Generator().manual_seed(1))
    i, j = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    outputs = Outputs(nn.Identity(), rows, step=5)
    mixed = outputs.mix((i, j), GRID)
    assert mixed.shape == (len(pairs) * len(GRID), *shape)
    alone = [torch.lerp(rows[b], rows[a], weight) for a, b in pairs for weight in GRID]
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(mixed, alone, strict=True))
    shuffled = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(2))
    again = outputs.mix((i[shuffled], j[shuffled]), GRID).view(len(pairs), len(GRID), *shape)
    assert torch.equal(again, mixed.view(len(pairs), len(GRID), *shape)[shuffled])


def test_work_by_hand():
    # Of LeNet-5: 25 x 6 x 28 x 28, 150 x 16 x 10 x 10, 400 x 120, 120 x 84, 84 x 10.
    lenet = build_model("lenet5", (1, 28, 28), 10, seed=0).train()
    assert multiplications(lenet, (1, 28, 28)) == [117_600, 240_000, 48_000, 10_080, 840]
    assert lenet.training and not any(layer._forward_hooks for layer in lenet.modules())


def test_slow_students_get_smaller_passes_on_a_cpu_and_all_the_same_on_a_gpu():
    sizes = {name: batch_on("cpu", build_model(name, (3, 32, 32), 10, seed=0)) for name in ("small-cnn", "resnet20")}
    assert sizes == {"small-cnn": CPU_BATCH, "resnet20": SLOW_CPU_BATCH}
    assert batch_on("cpu", nn.Linear(3, 2)) == CPU_BATCH
    assert batch_on("cuda:1", nn.Linear(3, 2)) == GPU_BATCH


def test_it_pays_where_the_first_layer_is_much_of_the_work_and_its_outputs_fit():
    lenet = build_model("lenet5", (1, 28, 28), 10, seed=0).train()
    # 117,600 of 416,520 multiplications; 4,704 outputs an image, of four bytes.
    assert pays(lenet, (1, 28, 28), 2000)
    assert pays(lenet, (1, 28, 28), (256 << 20) // (4 * 4704))
    assert not pays(lenet, (1, 28, 28), (256 << 20) // (4 * 4704) + 1)
    assert lenet.training
    for name in ("small-cnn", "resnet20", "alexnet", "resnet18"):
        assert not pays(build_model(name, (3, 32, 32), 10, seed=0), (3, 32, 32), 10)


@pytest.mark.parametrize("indices", [None, (2,), (4, 0)])
def test_logits_are_those_of_mixed_pixels_but_for_their_rounding(indices):
    model = build_model("lenet5", (1, 28, 28), 10, seed=3)
    pool, groups = MixupPool(images(9), GRID), torch.tensor([0, 7, 35, 20])
    pixels, features = (Forward(model, options=ForwardOptions(mixing=way)) for way in ("pixels", "first-layer"))
    one, other = (torch.cat(list(f.candidates(pool, groups, 3, indices))) for f in (pixels, features))
    assert one.shape == other.shape == (4 * len(indices or GRID), 10)
    assert torch.allclose(one, other, atol=0.01)
    assert not torch.equal(one, other)
    plain = torch.cat([Forward(model)(part) for part in pool.batches(groups, 3, indices)])
    assert torch.allclose(one, plain, atol=1e-6)


def test_a_search_finds_what_mixed_pixels_would_and_auto_takes_the_faster_way():
    pool, request = MixupPool(images(40), GRID), SearchRequest(k=100)
    model = build_model("lenet5", (1, 28, 28), 10, seed=3)

    def searcher(way: str) -> LocalSearcher:
        return LocalSearcher(settings=SearchSettings(search="exhaustive"), options=ForwardOptions(mixing=way))

    found = {way: searcher(way).search(pool, model, request) for way in ("pixels", "first-layer", "auto")}
    assert len(set(found["pixels"].ids.tolist()) & set(found["first-layer"].ids.tolist())) >= 90
    assert found["auto"].scores.tobytes() == found["first-layer"].scores.tobytes()
    other = build_model("small-cnn", (1, 28, 28), 10, seed=3)
    both = [searcher(way).search(pool, other, request).scores.tobytes() for way in ("pixels", "auto")]
    assert both[0] == both[1]


def test_a_forward_pass_serves_one_pool_after_another():
    model = build_model("lenet5", (1, 28, 28), 10, seed=3)
    behind = ForwardOptions(mixing="first-layer")
    shared = Forward(model, options=behind)
    for count in (5, 9, 5):
        pool = MixupPool(images(count), GRID)
        fresh = next(Forward(model, options=behind).candidates(pool, torch.tensor([3]), 1))
        assert torch.equal(next(shared.candidates(pool, torch.tensor([3]), 1)), fresh)
