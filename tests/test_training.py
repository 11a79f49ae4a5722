"""How long a network is trained, by which optimiser, and what becomes of a training that is broken off or diverges."""

import pytest
import test_students as students
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_students import TINY, images, recipe, same, soft_targets, weights
from torch import nn

from kdray.errors import TrainingError
from kdray.models.classifier import ImageClassifier, build_model
from kdray.training.augment import Crop
from kdray.training.descent import Descent, MovingAverage
from kdray.training.fitting import StudentSpec
from kdray.training.length import auto_steps, compared, early, length
from kdray.training.loop import TrainResult, train
from kdray.training.losses import soft_cross_entropy
from kdray.training.losses.base import Loss
from kdray.training.recipe import EarlyStop, Recipe, StudentSection
from kdray.training.saved import Saved, training_key
from kdray.training.trainer import LocalTrainer


def fresh(seed: int = 0, model: str = "small-cnn") -> nn.Module:
    return build_model(model, TINY if model == "small-cnn" else (1, 16, 16), 3, seed=seed)


def short(**changes) -> Recipe:
    return Recipe(**{"batch_size": 4, "device": "cpu", **changes})


# Length


@pytest.mark.parametrize(
    ("changes", "answers", "steps", "epochs"),
    [
        ({"epochs": 3, "batch_size": 4}, 10, 9, 3),
        ({"steps": 7, "batch_size": 4}, 10, 7, 3),
        ({"steps": 2, "batch_size": 4}, 10, 2, 1),
        ({"steps": 500, "batch_size": 128}, 100, 500, 500),
        ({"epochs": 2, "batch_size": 4, "early_stop": EarlyStop(holdout=0.5)}, 16, 4, 2),
    ],
)
def test_steps_and_epochs_of_a_recipe(changes, answers, steps, epochs):
    planned = length(Recipe(**changes), answers)
    assert (planned.steps, planned.epochs) == (steps, epochs)


def test_steps_grow_with_the_square_root_of_the_answers():
    assert [auto_steps(answers) for answers in (1, 1000, 4000, 9000, 100_000)] == [2000, 2000, 4000, 6000, 20_000]


def test_each_optimiser_has_its_rate_and_decay():
    sgd, adamw = Recipe(optimizer="sgd"), Recipe(optimizer="adamw")
    assert (sgd.rate, sgd.decay, adamw.rate, adamw.decay) == (0.05, 5e-4, 0.003, 0.05)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_more_answers_are_trained_on_no_shorter_and_fewer_times_each(one, other):
    few, many = sorted((one, other))
    assert auto_steps(few) <= auto_steps(many)
    assert auto_steps(many) / many <= auto_steps(few) / few * 1.001


@pytest.mark.parametrize(
    ("changes", "channels", "steps", "compared_steps"),
    [
        ({}, 1, 2000, 600),
        ({}, 3, 8000, 600),  # a comparison takes no longer
        ({"steps_factor": 0.5}, 3, 1000, 300),
        ({"steps_factor": 2}, 1, 4000, 600),
        ({"steps": 90}, 3, 90, 27),
        ({"epochs": 3}, 3, 24, 7),
    ],
)
def test_colour_images_are_trained_on_four_times_as_long(changes, channels, steps, compared_steps):
    section = StudentSection(**changes).for_images((channels, 32, 32))
    assert length(section, 1000).steps == steps
    assert length(compared(section, 1000, 0.3), 1000).steps == compared_steps
    assert length(early(section.model_copy(update={"early": 0.5}), 1000), 1000).steps == steps / 2
    teachers = Recipe(**{name: value for name, value in changes.items() if name != "steps_factor"})
    assert length(teachers, 1000).steps == (steps if "steps" in changes or "epochs" in changes else 2000)


def test_so_many_steps_are_done_and_the_last_epoch_is_cut_short():
    told, model = [], students.Recorder()
    data = images(10)
    result = train(
        model, data, soft_targets(10), short(steps=8), seed=0, on_epoch=lambda *progress: told.append(progress)
    )
    assert [len(batch) for batch in model.seen] == [3, 3, 4, 3, 3, 4, 3, 3]
    assert result.steps == 8
    assert told == [(done, 3, loss) for done, loss in enumerate(result.losses, start=1)]
    assert len(result.losses) == result.best_epoch == 3


@pytest.mark.parametrize(
    ("given", "steps", "epochs"),
    [
        ({}, "auto", None),
        ({"steps": 9}, 9, None),
        ({"epochs": 2}, "auto", 2),
        ({"steps": "auto", "epochs": 2}, "auto", 2),
    ],
)
def test_steps_or_epochs(given, steps, epochs):
    section = StudentSection.model_validate(given)
    assert (section.steps, section.epochs) == (steps, epochs)
    assert StudentSection.model_validate(section.model_dump()) == section


def test_steps_and_epochs_at_once_are_refused():
    with pytest.raises(ValidationError, match="steps is 9 and epochs 2; set steps to auto or epochs to null"):
        StudentSection.model_validate({"steps": 9, "epochs": 2})


# Optimisers


def test_a_step_of_adamw_is_torchs_to_the_bit():
    here, there = (build_model("small-cnn", (1, 16, 16), 3, seed=0) for _ in range(2))
    descent = Descent(here, short(optimizer="adamw", clip_norm=None))
    groups = [
        {"params": [p for p in there.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in there.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    for number, rate in enumerate((0.003, 0.001, 0.002)):
        x, y = images(8, (1, 16, 16), seed=number), soft_targets(8)
        for model in (here, there):
            soft_cross_entropy(model(x), y).backward()
        descent.step(rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True))


def test_the_moving_average_by_hand():
    """Decays (1 + t) / (10 + t): 0.1, 2/11, 3/12, then 0.3, where the limit is lower than 4/13."""
    layer = nn.Linear(1, 1, bias=False)
    values, kept, expected = (4.0, -2.0, 3.0, 5.0), (0.1, 2 / 11, 0.25, 0.3), 1.0
    nn.init.ones_(layer.weight)
    average = MovingAverage(layer, 0.3)
    for value, share in zip(values, kept, strict=True):
        nn.init.constant_(layer.weight, value)
        average.update()
        expected = share * expected + (1 - share) * value
        assert average.averages[0].item() == pytest.approx(expected, rel=1e-6)
    with average.in_place():
        assert layer.weight.item() == pytest.approx(expected, rel=1e-6)
    assert layer.weight.item() == 5.0
    average.copy()
    assert layer.weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_average_of_the_weights_and_of_the_running_statistics_is_kept():
    plain, averaged = fresh(), fresh()
    data, targets = images(12), soft_targets(12)
    train(plain, data, targets, recipe(epochs=8), seed=0, threads=1)
    train(averaged, data, targets, recipe(epochs=8, ema=0.9), seed=0, threads=1)
    ours, theirs = weights(averaged), weights(plain)
    for name in ("network.0.0.weight", "network.0.1.running_mean"):
        assert not torch.equal(ours[name], theirs[name]), name
    assert torch.equal(ours["network.0.1.num_batches_tracked"], theirs["network.0.1.num_batches_tracked"])
    assert torch.equal(ours["std"], theirs["std"])


def test_half_precision_is_of_the_forward_pass_alone():
    first, second = (fresh() for _ in range(2))
    train(first, images(9), soft_targets(9), recipe(precision="bfloat16"), seed=0, threads=1)
    train(second, images(9), soft_targets(9), recipe(), seed=0, threads=1)
    assert all(value.dtype != torch.bfloat16 for value in weights(first).values())
    for name, value in weights(second).items():
        torch.testing.assert_close(weights(first)[name], value, atol=0.05, rtol=0.1)
    assert not same(weights(first), weights(second))


# Broken off


class Stopped(Exception):
    """The process is killed."""


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("small-cnn", {"augment": Crop(shift=2, flip=True)}),
        ("small-cnn", {"optimizer": "adamw", "ema": 0.9}),
        ("small-cnn", {"early_stop": EarlyStop(holdout=0.3, patience=3), "epochs": 12}),
        pytest.param("small-cnn", {"steps": 17}, marks=pytest.mark.storm),
        pytest.param("alexnet", {}, marks=pytest.mark.storm),
        pytest.param("small-cnn", {"balance": "equal"}, marks=pytest.mark.storm),
    ],
    ids=["sgd", "adamw and average", "early stop", "steps", "dropout", "balance"],
)
def test_a_training_that_is_killed_goes_on_to_the_same_bits(name, changes):
    shape, how = (TINY if name == "small-cnn" else (1, 16, 16)), {"epochs": 6, **changes}
    how.pop("epochs") if "steps" in how else None
    data, targets, how = images(9, shape), soft_targets(9), short(**how)
    key, states = training_key(how, data, targets), []

    def killed(done: int, of: int, loss: float) -> None:
        if done == 4:
            raise Stopped

    def begun(last: bytes | None, on_epoch=None) -> tuple[nn.Module, TrainResult]:
        model = build_model(name, shape, 3, seed=0)
        saved = Saved(key, last, states.append, every_s=0.0)
        return model, train(model, data, targets, how, seed=0, threads=1, saved=saved, on_epoch=on_epoch)

    whole = begun(None)
    states.clear()
    with pytest.raises(Stopped):
        begun(None, killed)
    assert len(states) == 3
    seen = []
    again = begun(states[-1], lambda *progress: seen.append(progress[0]))
    assert seen[0] == 4, "the first three epochs are not done again"
    assert again[1] == whole[1]
    assert same(weights(again[0]), weights(whole[0]))


def test_the_state_of_another_training_or_a_damaged_one_is_not_used():
    spec = StudentSpec(card=students.card(), mean=[0.4], std=[0.3], recipe=recipe(epochs=5), seed=5, threads=1)
    data, targets, states = images(9), soft_targets(9), []
    model = fresh()
    train(model, data, targets, short(epochs=5), seed=0, saved=Saved("another", None, states.append, every_s=0.0))
    expected = LocalTrainer(spec).fit(data, targets, round=2)
    for last in (states[-1], states[-1][:-100], b"no state"):
        assert LocalTrainer(spec).fit(data, targets, round=2, last=last) == expected


def test_the_key_of_a_training_names_all_it_depends_on():
    data, targets = images(9), soft_targets(9)
    keys = {
        training_key(recipe(), data, targets, 0),
        training_key(recipe(epochs=3), data, targets, 0),
        training_key(recipe(), 255 - data, targets, 0),
        training_key(recipe(), data, soft_targets(9, seed=1), 0),
        training_key(recipe(), data, targets, 1),
    }
    assert len(keys) == 5
    assert training_key(recipe(), data.clone(), targets.clone(), 0) in keys


# Divergence


class Breaking(Loss):
    """Cross entropy that is NaN from one step on."""

    kind: str = "breaking"
    at: int
    calls: list[int]

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        factor = float("nan") if len(self.calls) > self.at else 1.0
        return soft_cross_entropy(logits, targets) * factor


def test_a_loss_that_is_not_finite_stops_the_training_and_the_last_good_weights_are_kept():
    data, targets, told = images(8), soft_targets(8), []
    model = fresh()
    loss = Breaking(at=1 + 131, calls=[])  # one call tries the loss
    result = train(
        model, data, targets, short(steps=200, batch_size=4, schedule="constant", loss=loss), seed=0, threads=1,
        on_epoch=lambda done, of, loss: told.append(done),
    )  # fmt: skip
    assert (result.diverged, result.kept, result.steps) == (132, 102, 200)  # after 2, 52 and 102 steps
    assert told == list(range(1, 66))
    expected = fresh()
    train(expected, data, targets, short(steps=102, batch_size=4, schedule="constant"), seed=0, threads=1)
    assert same(weights(model), weights(expected))
    assert result.notes() == [
        "training stopped at step 132 of 200: the loss is not finite. The student has the weights of step 102; set "
        "student.lr lower"
    ]
    assert TrainResult().notes() == []


def test_weights_are_good_once_a_finite_loss_came_of_them():
    """A copy is taken after two steps: it is as bad as the loss of step 3, and good if step 4 is the first bad one."""

    def trained(broken: int) -> TrainResult:
        how = short(steps=200, batch_size=4, loss=Breaking(at=broken, calls=[]))  # one call tries the loss
        return train(fresh(), images(8), soft_targets(8), how, seed=0, threads=1)

    for step in (2, 3):
        with pytest.raises(
            TrainingError, match=rf"the loss is not finite at step {step} of 200; set lr, which is 0.05, l"
        ):
            trained(step)
    assert (trained(4).diverged, trained(4).kept) == (4, 2)
    assert (trained(53).diverged, trained(53).kept) == (53, 2)
    assert (trained(54).diverged, trained(54).kept) == (54, 52)


def test_with_early_stopping_the_best_weights_before_are_kept_and_it_is_told():
    data, targets, model = images(8), soft_targets(8), fresh()
    how = {"batch_size": 4, "schedule": "constant", "early_stop": EarlyStop(holdout=0.25, patience=100)}
    # One call tries the loss; each epoch is two steps and a look at what is held out.
    result = train(model, data, targets, short(steps=200, loss=Breaking(at=1 + 31, calls=[]), **how), seed=0, threads=1)
    assert result.diverged == 22 and result.kept == 2 * result.best_epoch <= 20
    lowest = min(result.holdout_losses)
    assert result.holdout_losses[result.best_epoch - 1] == lowest
    assert "stopped at step 22 of 200: the loss is not finite" in result.notes()[0]
    expected = fresh()
    train(expected, data, targets, short(steps=result.kept, **how), seed=0, threads=1)
    assert same(weights(model), weights(expected))


def test_early_stopping_keeps_no_weights_that_are_not_finite():
    how = {"steps": 1, "lr": 1e38, "clip_norm": None, "weight_decay": 1e30, "early_stop": EarlyStop(holdout=0.25)}
    with pytest.raises(TrainingError, match="the loss is not finite at step"):
        train(fresh(), images(8), soft_targets(8), short(**how), seed=0, threads=1)


def test_a_batch_of_one_image_that_is_normalised_is_told():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model = ImageClassifier(network, (1, 8, 8), [0.5], [0.25])
    with pytest.raises(TrainingError, match="this batch is a single image"):
        train(model, images(1), soft_targets(1), short(steps=2), seed=0, threads=1)


def test_weights_that_the_last_step_breaks_are_found_out():
    with pytest.raises(TrainingError, match="the loss is not finite at step 1 of 1"):
        train(fresh(), images(4), soft_targets(4), short(steps=1, lr=1e38, clip_norm=None, weight_decay=1e30), seed=0)
