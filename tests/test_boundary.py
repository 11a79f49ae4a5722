"""Pairs on both sides of a decision boundary, on networks whose boundary is known."""

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdray.models.boundary import BoundaryPairs, boundary_pairs
from kdray.models.classifier import build_model
from kdray.models.predict import predict
from kdray.sections.boundary import BoundarySettings


class Ramp(nn.Module):
    """Two classes: class 1 where the mean of the pixels lies above `edge`, the surer the farther."""

    def __init__(self, edge: float, slope: float) -> None:
        super().__init__()
        self.edge, self.slope = nn.Parameter(torch.tensor(edge)), slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        lead = self.slope * (images.float().mean(dim=(1, 2, 3)) - self.edge)
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


class Island(Ramp):
    """Class 1 within 20 levels of `edge`."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        lead = self.slope * (20 - (images.float().mean(dim=(1, 2, 3)) - self.edge).abs())
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


def flat(*levels: int) -> torch.Tensor:
    """Images of one level each."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def sides(network: nn.Module, level: int, target: int = 1, **fields: float) -> list[int]:
    """The levels of the images of one pair, in order; none where there is no pair."""
    found = boundary_pairs(network, flat(level), torch.tensor([target]), BoundarySettings(**fields))
    assert (found.images == found.images[..., :1, :1]).all()
    return found.images[..., 0, 0].flatten().tolist()


# ---- by hand


def test_steps_grow_by_the_bold_driver_until_the_class_is_another():
    # Steps of 2, 4 and 8 levels: 100, 102, 106, 114. The last one crosses 110.5, and the deeper step is as long.
    assert sides(Ramp(110.5, 0.2), 100, step=2, grow=2) == [106, 114, 98, 122]
    assert sides(Ramp(110.5, 0.2), 100, step=2, grow=2, deeper=False) == [106, 114]
    assert sides(Ramp(110.5, 0.2), 120, target=0, step=2, grow=2) == [114, 106, 122, 98]


def test_a_step_after_which_the_loss_is_higher_is_taken_back_and_shortened():
    # 164 lies farther from 110 to 150 than 100 does; half the step, 32 levels, ends at 132. From there the island's
    # middle is at 130: one step back.
    assert sides(Island(130.0, 0.02), 100, step=64) == [100, 132, 68, 100]
    assert sides(Island(130.0, 0.02), 100, step=64, shrink=0.25) == [100, 116, 84, 132]


def test_a_pair_that_is_too_sure_is_brought_closer():
    # The network gives 106, 110, 112 and 114 the probabilities 0.711, 0.525, 0.574 and 0.668.
    def pair(threshold: float) -> list[int]:
        return sides(Ramp(110.5, 0.2), 100, step=2, grow=2, threshold=threshold, deeper=False)

    assert pair(0.72) == [106, 114]
    assert pair(0.70) == [110, 114]
    assert pair(0.60) == [110, 112]


def test_a_pair_that_cannot_be_less_sure_in_whole_levels_is_dropped():
    # Half a level from its boundary this network is sure to 0.993.
    assert sides(Ramp(110.5, 10.0), 100, threshold=0.99) == []
    assert len(sides(Ramp(110.5, 10.0), 100, threshold=0.994)) == 4


def test_pixels_stay_within_their_range():
    assert sides(Ramp(252.5, 0.2), 250, step=4) == [250, 254, 246, 255]


def test_the_longer_way_ends_when_the_steps_do():
    # 1 + 2 + 4 + 8 levels, then 16 more.
    assert sides(Ramp(120.5, 0.1), 100, step=1, grow=2, steps=4) == []
    assert sides(Ramp(120.5, 0.1), 100, step=1, grow=2, steps=5) == [115, 131, 99, 147]


# ---- degenerate input


def test_an_image_of_the_target_class_gives_no_pair():
    found = boundary_pairs(Ramp(110.5, 0.2), flat(120, 100, 90), torch.tensor([1, 1, 0]), BoundarySettings())
    assert found.rows.tolist() == [1] and found.classes.tolist() == [[0, 1]]


@pytest.mark.parametrize("network", [Ramp(110.5, 0.0), Ramp(float("nan"), 1.0)], ids=["flat", "not finite"])
def test_a_network_without_a_slope_gives_no_pair(network):
    assert len(boundary_pairs(network, flat(100, 7), torch.tensor([1, 1]), BoundarySettings()).rows) == 0


def test_one_class_has_no_boundary():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    found = boundary_pairs(network, flat(1, 2), torch.zeros(2, dtype=torch.int64), BoundarySettings())
    assert len(found.rows) == 0


def test_no_images_give_no_pairs():
    found = boundary_pairs(Ramp(1.0, 1.0), flat(), torch.empty(0, dtype=torch.int64), BoundarySettings())
    assert found.images.shape == (0, 4, 1, 2, 2) and found.rows.shape == (0,) and found.classes.shape == (0, 2)


def test_every_image_needs_a_target():
    with pytest.raises(ValueError, match="1 targets of 2 images"):
        boundary_pairs(Ramp(1.0, 1.0), flat(1, 2), torch.tensor([1]), BoundarySettings())


# ---- invariants


@examples(40)
@given(
    level=st.integers(0, 255),
    edge=st.integers(0, 254).map(lambda below: below + 0.5),
    step=st.floats(0.5, 40),
    threshold=st.floats(0.6, 0.95),
)
def test_a_pair_lies_on_both_sides_and_within_the_threshold(level, edge, step, threshold):
    network, target = Ramp(edge, 0.05), int(level < edge)
    pair = sides(network, level, target, step=step, threshold=threshold, steps=200)
    before, after, deeper_before, deeper_after = pair
    assert (before < edge < after) if target else (after < edge < before)
    sure = predict(network, flat(before, after)).max(dim=1).values
    assert float(sure.max()) <= threshold + 1e-6
    away = 1 if target else -1
    assert away * (deeper_before - before) <= 0 <= away * (deeper_after - after)


SHAPE = (1, 12, 12)


def random_pairs(batch_size: int = 64) -> tuple[nn.Module, torch.Tensor, torch.Tensor, BoundaryPairs]:
    model = build_model("small-cnn", SHAPE, 5, seed=3).train()
    images = torch.randint(0, 256, (23, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    targets = torch.arange(23) % 5
    return model, images, targets, boundary_pairs(model, images, targets, BoundarySettings(), batch_size=batch_size)


def test_pairs_of_a_network_hold_for_the_rounded_images():
    model, images, targets, found = random_pairs()
    assert len(found.rows) > 10
    before, after = (predict(model, found.images[:, side]) for side in (0, 1))
    assert torch.equal(after.argmax(dim=1), targets[found.rows])
    assert (before.argmax(dim=1) != targets[found.rows]).all()
    assert torch.equal(found.classes, torch.stack([before.argmax(dim=1), after.argmax(dim=1)], dim=1))
    assert float(torch.cat([before, after]).max()) <= BoundarySettings().threshold + 1e-6
    own = predict(model, images).argmax(dim=1)
    assert not (own == targets)[found.rows].any()


def test_the_network_stays_as_it_was():
    model = build_model("small-cnn", SHAPE, 5, seed=3).train()
    model.network[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    parameter = next(model.parameters())
    parameter.grad = torch.ones_like(parameter)
    boundary_pairs(model, torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.tensor([1, 2]), BoundarySettings())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert bool((parameter.grad == 1).all())
    assert all(one.grad is None and one.requires_grad for one in list(model.parameters())[1:])


def test_a_pair_follows_from_its_image_alone():
    model, images, targets, found = random_pairs(batch_size=16)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    again = boundary_pairs(model, images[order], targets[order], BoundarySettings(), batch_size=16)
    place = order[again.rows].argsort()
    assert torch.equal(order[again.rows][place], found.rows)
    assert torch.equal(again.images[place], found.images)
