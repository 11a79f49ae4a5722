"""Students: the loss, pooling, the zoo, training to the bit, and model files that say what they are."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from kdray.errors import ConfigError, ModelError
from kdray.images.base import read_images
from kdray.images.digits import DigitsImages
from kdray.models.checkpoint import ModelCard, load_student, model_bytes, read_card, read_own_card, save_model
from kdray.models.classifier import ImageClassifier, build_model, pixel_statistics
from kdray.models.layers import MaxPool2x2
from kdray.models.predict import accuracy, predict
from kdray.training.augment import Crop
from kdray.training.descent import Descent
from kdray.training.fitting import StudentSpec
from kdray.training.length import rate_factor
from kdray.training.loop import train
from kdray.training.losses import kd_divergence, soft_cross_entropy
from kdray.training.losses.base import losses
from kdray.training.recipe import EarlyStop, Recipe
from kdray.training.trainer import LocalTrainer
from kdray.utils.seeds import numpy_generator

TINY, GREY = (1, 8, 8), (1, 28, 28)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, shape: tuple[int, int, int] = TINY, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=generator(seed), dtype=torch.uint8)


def soft_targets(n: int, k: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=generator(seed)).softmax(dim=1)


def recipe(**changes) -> Recipe:
    return Recipe(**{"epochs": 2, "batch_size": 4, "device": "cpu", **changes})


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def trained(seed: int = 0, round: int = 0, model: str = "small-cnn", n: int = 9, **changes) -> dict[str, torch.Tensor]:
    """Weights after two epochs on noise, from the same start."""
    shape = TINY if model == "small-cnn" else (1, 16, 16)
    network = build_model(model, shape, 3, seed=7)
    train(network, images(n, shape), soft_targets(n), recipe(**changes), seed=seed, round=round, threads=1)
    return weights(network)


def trained_losses(epochs: int) -> list[float]:
    """Mean losses of `epochs` epochs of one step each."""
    model = build_model("small-cnn", TINY, 3, seed=0)
    return train(model, images(4), soft_targets(4), recipe(epochs=epochs), seed=0, threads=1).losses


# ---- loss


def test_soft_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]])  # softmax: 1/4, 3/4 and 1/2, 1/2
    targets = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    by_hand = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 2 - math.log(0.5) / 2
    assert float(soft_cross_entropy(logits, targets)) == pytest.approx(by_hand, abs=1e-6)
    assert float(soft_cross_entropy(logits[1:], targets[1:])) == pytest.approx(math.log(2), abs=1e-6)


@given(st.integers(1, 9), st.integers(2, 12), st.integers(0, 999))
@examples(60)
def test_soft_cross_entropy_of_one_hot_targets_is_the_usual_one_and_ignores_shifts(batch, classes, seed):
    logits = 5 * torch.randn(batch, classes, generator=generator(seed))
    labels = torch.randint(0, classes, (batch,), generator=generator(seed + 1))
    one_hot = F.one_hot(labels, classes).float()
    assert torch.allclose(soft_cross_entropy(logits, one_hot), F.cross_entropy(logits, labels), atol=1e-6)
    targets = soft_targets(batch, classes, seed)
    shift = 10 * torch.randn(batch, 1, generator=generator(seed + 2))
    assert torch.allclose(soft_cross_entropy(logits + shift, targets), soft_cross_entropy(logits, targets), atol=1e-4)
    slow = [
        -sum(t * math.log(p) for t, p in zip(ts, ps, strict=True))
        for ts, ps in zip(targets.double().tolist(), logits.double().softmax(1).tolist(), strict=True)
    ]
    assert float(soft_cross_entropy(logits, targets)) == pytest.approx(sum(slow) / batch, abs=1e-4)


def test_kd_divergence_by_hand():
    logits, targets = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.9, 0.1]])
    by_hand = 0.9 * math.log(0.9 / 0.75) + 0.1 * math.log(0.1 / 0.25)
    assert float(kd_divergence(logits, targets)) == pytest.approx(by_hand, abs=1e-6)
    # At T = 2: targets 0.9^(1/2) : 0.1^(1/2) = 3 : 1, student 3^(1/2) : 1, and 2^2 in front.
    student = math.sqrt(3) / (1 + math.sqrt(3))
    soft = 4 * (0.75 * math.log(0.75 / student) + 0.25 * math.log(0.25 / (1 - student)))
    assert float(kd_divergence(logits, targets, 2.0)) == pytest.approx(soft, abs=1e-6)
    assert float(kd_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))) == pytest.approx(math.log(2))


@given(st.integers(1, 8), st.integers(2, 6), st.integers(0, 1000))
def test_kd_divergence_has_the_gradients_of_cross_entropy_and_is_zero_for_the_teacher_itself(batch, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    theirs = torch.randn(batch, classes, generator=generator)
    targets = theirs.softmax(dim=1)
    gradients = []
    for loss in (soft_cross_entropy, kd_divergence):
        logits = torch.randn(batch, classes, generator=generator.manual_seed(seed + 1)).requires_grad_()
        loss(logits, targets).backward()
        gradients.append(logits.grad)
    assert torch.allclose(*gradients, atol=1e-6)
    for temperature in (1.0, 4.0):
        assert float(kd_divergence(theirs, targets, temperature)) == pytest.approx(0.0, abs=1e-4)
        assert float(kd_divergence(theirs + 1.0, targets, temperature)) == pytest.approx(0.0, abs=1e-4)


def test_the_loss_of_a_recipe_is_what_is_trained_on():
    images, targets = torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.full((8, 2), 0.5)
    images[4:] = 255
    reported = {}
    for loss in ("cross-entropy", "kl"):
        model = build_model("small-cnn", (1, 16, 16), 2, seed=0)
        recipe = Recipe(epochs=30, loss=losses.parse(loss))
        reported[loss] = train(model, images, targets, recipe, seed=0, threads=1).losses[-1]
    assert reported["cross-entropy"] == pytest.approx(math.log(2), abs=0.01)  # the entropy of the answers
    assert reported["kl"] == pytest.approx(0.0, abs=0.01)


def test_soft_cross_entropy_works_in_float32_whatever_the_logits():
    logits = torch.tensor([[40000.0, -40000.0]], dtype=torch.float16)  # 80,000 apart: more than float16 can hold
    loss = soft_cross_entropy(logits, torch.tensor([[0.0, 1.0]]))
    assert loss.dtype == torch.float32
    assert float(loss) == 80000.0


# ---- pooling and normalisation


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 3), (5, 4), (7, 7), (14, 14), (3, 9)])
def test_pooling_equals_torchs_with_and_without_gradients(height, width, layout):
    x = torch.randn(3, 4, height, width, generator=generator(height * 10 + width)).contiguous(memory_format=layout)
    x[0, 0, 0, 0], x[1, 1, 1, 1] = float("nan"), -float("inf")
    expected = F.max_pool2d(x, 2)
    assert expected.shape[2:] == (height // 2, width // 2)
    with torch.no_grad():
        assert torch.allclose(MaxPool2x2()(x), expected, rtol=0, atol=0, equal_nan=True)
    with torch.inference_mode():
        assert torch.allclose(MaxPool2x2()(x), expected, rtol=0, atol=0, equal_nan=True)
    ours, theirs = x.nan_to_num(0.5).requires_grad_(), x.nan_to_num(0.5).requires_grad_()
    MaxPool2x2()(ours).square().sum().backward()
    F.max_pool2d(theirs, 2).square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_normalisation_belongs_to_the_model():
    model = ImageClassifier(nn.Identity(), (2, 1, 2), mean=[0.5, 0.2], std=[0.25, 0.1])
    pixels = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)  # channels: 0, 1 and 0.2, 0.4
    assert torch.allclose(model(pixels), torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]]), atol=1e-5)
    with pytest.raises(ModelError, match=r"takes images of shape \(2, 1, 2\), got \(1, 1, 2\)"):
        model(pixels[:, :1])


@given(arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 4)))
@examples(60)
def test_pixel_statistics_are_those_of_the_naive_sums(pixels):
    mean, std = pixel_statistics(torch.from_numpy(pixels))
    unit = pixels.astype(np.float64) / 255
    assert mean == pytest.approx(unit.mean(axis=(0, 2, 3)), abs=1e-9)
    naive = unit.std(axis=(0, 2, 3))
    assert std == pytest.approx([1.0 if value < 1e-6 else value for value in naive], abs=1e-6)


def test_pixel_statistics_do_not_depend_on_the_order_and_spare_constant_channels():
    data = images(50, (3, 9, 9))
    data[:, 1] = 77
    mean, std = pixel_statistics(data)
    assert (mean[1], std[1]) == (pytest.approx(77 / 255), 1.0)
    assert pixel_statistics(data.flip(0, 3)) == (mean, std)


# ---- training


class Recorder(nn.Module):
    """A linear model that writes down which images it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.norm = nn.BatchNorm1d(3)
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(x[:, 0, 0, 0].tolist())
        return self.norm(self.linear(x.flatten(1).float() / 255))


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        *[(2, 4, [2]), (4, 4, [4]), (5, 4, [2, 3]), (8, 4, [4, 4]), (9, 4, [3] * 3), (10, 4, [3, 3, 4])],
        *[(13, 4, [3, 3, 3, 4]), (5, 2, [2, 3]), (6, 2, [2] * 3), (65, 64, [32, 33]), (132, 64, [44] * 3)],
    ],
)
def test_each_epoch_shows_every_image_once_in_even_batches_and_never_one_alone(count, batch_size, sizes):
    data = images(count)
    data[:, 0, 0, 0] = torch.arange(count)
    model = Recorder()
    train(model, data, soft_targets(count), recipe(epochs=3, batch_size=batch_size), seed=0)
    assert [len(batch) for batch in model.seen] == sizes * 3
    seen = [image for batch in model.seen for image in batch]
    epochs = [seen[start : start + count] for start in range(0, 3 * count, count)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(count))] * 3
    assert count < 5 or epochs[0] != epochs[1]


def test_a_single_image_can_be_trained_on():
    model = build_model("lenet5", (1, 16, 16), 3, seed=0)
    result = train(model, images(1, (1, 16, 16)), soft_targets(1), recipe(), seed=0, threads=1)
    assert len(result.losses) == 2
    assert all(math.isfinite(loss) for loss in result.losses)


def test_one_step_by_hand_decays_weights_and_not_biases():
    """Peak rate 0.2, of which a single step takes half: w <- w - 0.1 (g + 0.5 w), b <- b - 0.1 g."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model = ImageClassifier(network, TINY, [0.0], [1.0])
    before = weights(model)
    data, targets = images(4), soft_targets(4)
    x = data.flatten(1).double() / 255
    w, b = before["network.1.weight"].double(), before["network.1.bias"].double()
    error = ((x @ w.T + b).softmax(dim=1) - targets.double()) / 4  # the gradient of the mean loss by the logits
    plain = recipe(epochs=1, lr=0.2, momentum=0.0, weight_decay=0.5, schedule="cosine", clip_norm=None)
    result = train(model, data, targets, plain, seed=0, threads=1)
    after = weights(model)
    assert torch.allclose(after["network.1.weight"].double(), w - 0.1 * (error.T @ x + 0.5 * w), atol=1e-6)
    assert torch.allclose(after["network.1.bias"].double(), b - 0.1 * error.sum(dim=0), atol=1e-6)
    loss = -(targets.double() * (x @ w.T + b).log_softmax(dim=1)).sum(dim=1).mean()
    assert result.losses == [pytest.approx(float(loss), abs=1e-5)]


def test_the_learning_rate_by_hand():
    """At the middle of each step: cosines of 45 and 135 degrees; half of the rise, then 30, 90 and 150 degrees."""
    assert rate_factor(0, 1, "cosine") == pytest.approx(0.5)
    assert [rate_factor(k, 2, "cosine") for k in range(2)] == pytest.approx([0.853553, 0.146447], abs=1e-6)
    by_hand = [0.04 + 0.96 / 2, 0.933013, 0.5, 0.066987]
    assert [rate_factor(k, 4, "one-cycle") for k in range(4)] == pytest.approx(by_hand, abs=1e-6)


@given(st.integers(1, 400), st.sampled_from(["cosine", "one-cycle"]))
@examples(60)
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(steps, schedule):
    rates = [rate_factor(k, steps, schedule) for k in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert abs((top + 0.5) / steps - (0.25 if schedule == "one-cycle" else 0)) <= 1 / steps
    if steps >= 20:
        assert max(rates) > 0.98
        assert rates[-1] < 0.02


@pytest.mark.parametrize("epochs", range(1, 9))
def test_any_number_of_steps_can_be_trained(epochs):
    assert len(trained_losses(epochs)) == epochs


@pytest.mark.parametrize(
    "changes",
    [{}, {"augment": Crop(shift=2, flip=True)}, {"schedule": "cosine"}, {"early_stop": EarlyStop()}],
    ids=["plain", "augmented", "cosine", "early-stop"],
)
def test_the_same_arguments_give_the_same_bits(changes):
    first = trained(**changes)
    torch.manual_seed(99)  # whatever was drawn before
    assert same(trained(**changes), first)
    assert not same(trained(seed=1, **changes), first)
    assert not same(trained(round=1, **changes), first)


def test_dropout_draws_from_its_own_stream_and_the_global_state_is_left_alone():
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = trained(model="alexnet", n=4, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    assert same(trained(model="alexnet", n=4, epochs=1), first)


def test_digits_are_learnt_and_the_images_stay_as_they_are():
    digits = read_images(
        DigitsImages(source="digits", rows="0:400", size=16),
        generator=numpy_generator(0, "test"),
        with_labels=True,
    )
    mean, std = pixel_statistics(digits.images)
    model = build_model("small-cnn", digits.image_shape, 10, seed=0, mean=mean, std=std)
    kept, told = digits.images.clone(), []
    result = train(
        model, digits.images, F.one_hot(digits.labels, 10).float(),
        recipe(epochs=4, batch_size=32, augment=Crop(shift=1)),
        seed=0, on_epoch=lambda *told_of: told.append(told_of),
    )  # fmt: skip
    assert told == [(done, 4, loss) for done, loss in enumerate(result.losses, start=1)]
    assert (result.best_epoch, result.holdout_losses) == (4, [])
    assert result.losses[-1] < result.losses[0] / 3
    assert torch.equal(digits.images, kept)
    assert not model.training
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert accuracy(predict(model, digits.images).argmax(dim=1), digits.labels) > 0.95


def test_early_stop_keeps_the_best_epoch_and_stops():
    """Random answers to noise: what is learnt by heart makes the held-out part worse."""
    model, states = build_model("small-cnn", TINY, 3, seed=0), []
    result = train(
        model, images(60), F.one_hot(torch.randint(0, 3, (60,), generator=generator()), 3).float(),
        recipe(epochs=60, batch_size=16, lr=0.1, early_stop=EarlyStop(holdout=0.3, patience=4)),
        seed=0, threads=1, on_epoch=lambda *_: states.append(weights(model)),
    )  # fmt: skip
    held = result.holdout_losses
    assert len(result.losses) == len(held) == len(states) < 60
    assert held[result.best_epoch - 1] == min(held)
    assert len(held) == result.best_epoch + 4
    assert same(weights(model), states[result.best_epoch - 1])
    assert not same(weights(model), states[-1])
    assert not model.training


def test_the_held_out_part_is_never_trained_on():
    data = images(20)
    data[:, 0, 0, 0] = torch.arange(20)
    model = Recorder()
    train(model, data, soft_targets(20), recipe(epochs=3, early_stop=EarlyStop(holdout=0.25)), seed=0)
    assert len({image for batch in model.seen for image in batch}) == 15
    assert sum(len(batch) for batch in model.seen) == 3 * 15


def test_a_shift_that_leaves_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"augment.shift: 8 pixels do not fit images of 8x8"):
        trained(augment=Crop(shift=8))


# ---- predictions


def test_predictions_are_probabilities_whatever_the_batch_size():
    model, data = build_model("lenet5", GREY, 10, seed=0).train(), images(11, GREY)
    probs = predict(model, data, batch_size=4)
    assert (probs.shape, probs.dtype) == ((11, 10), torch.float32)
    assert torch.allclose(probs, predict(model, data, batch_size=100), atol=1e-6)
    assert torch.allclose(probs.sum(dim=1), torch.ones(11))
    with torch.inference_mode():
        assert torch.allclose(probs, model.eval()(data).softmax(dim=1), atol=1e-6)


def test_accuracy_by_hand():
    assert accuracy(torch.tensor([1, 2, 3, 0]), torch.tensor([1, 2, 0, 3])) == 0.5


# ---- files


def card(model: str = "small-cnn", shape: tuple[int, int, int] = TINY, classes=("a", "b", "ü")) -> ModelCard:
    return ModelCard(model=model, image_shape=shape, num_classes=3, classes=classes)


def test_the_same_model_gives_the_same_bytes():
    make = lambda seed: model_bytes(build_model("small-cnn", TINY, 3, seed=seed), card())  # noqa: E731
    assert len({make(0) for _ in range(8)}) == 1
    assert make(1) != make(0)
    assert model_bytes(build_model("small-cnn", TINY, 3, seed=0), card(classes=None)) != make(0)


@pytest.mark.parametrize("name", ["small-cnn", "lenet5", "mobilenetv2"])
def test_a_saved_model_comes_back_to_the_bit(name, tmp_path):
    shape = (3, 16, 16)
    model = build_model(name, shape, 3, seed=4, mean=[0.1, 0.2, 0.3], std=[0.3, 0.2, 0.1])
    train(model, images(8, shape), soft_targets(8), recipe(epochs=1), seed=0, threads=1)
    path = tmp_path / "model.safetensors"
    save_model(path, model, card(name, shape))
    back = load_student(path)
    assert not back.training
    assert same(weights(back), weights(model))
    data = images(5, shape, seed=9)
    with torch.inference_mode():
        assert torch.equal(back(data), model(data))
    assert read_card(path) == card(name, shape)
    assert model_bytes(back, card(name, shape)) == path.read_bytes()


def test_a_run_directory_gives_its_newest_student(tmp_path):
    model = build_model("small-cnn", TINY, 3, seed=2)
    save_model(tmp_path / "student.safetensors", model, card())
    assert same(weights(load_student(tmp_path)), weights(model))
    assert same(weights(load_student(str(tmp_path))), weights(model))


def test_the_metadata_tells_a_stranger_all_there_is_to_know(tmp_path):
    model = build_model("small-cnn", TINY, 3, seed=0, mean=[0.25], std=[0.5])
    save_model(tmp_path / "m.safetensors", model, card())
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["kdray"])
    assert facts == {
        "model": "small-cnn",
        "input_shape": [1, 8, 8],
        "num_classes": 3,
        "classes": ["a", "b", "ü"],
        "normalisation": {"mean": [0.25], "std": [0.5]},
        "input": "uint8 [B, C, H, W]",
    }


def rewritten(tmp_path, change, **facts):
    """A model file with tensors and facts changed; returns its path."""
    path = tmp_path / "changed.safetensors"
    save_model(path, build_model("small-cnn", TINY, 3, seed=0), card())
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["kdray"])
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"kdray": json.dumps(metadata | facts)})
    return path


def test_files_that_cannot_be_a_student_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no model file at"):
        load_student(tmp_path / "nothing.safetensors")
    with pytest.raises(ModelError, match=r"no model file at .*student\.safetensors"):
        load_student(tmp_path)
    garbage = tmp_path / "garbage.safetensors"
    for content in (b"", b"not safetensors at all", bytes(1000)):
        garbage.write_bytes(content)
        with pytest.raises(ModelError, match=r"garbage\.safetensors is not a readable safetensors file"):
            load_student(garbage)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    assert read_card(foreign) is None
    with pytest.raises(ModelError, match="was not saved by kdray"):
        read_own_card(foreign)
    with pytest.raises(ModelError, match="was not saved by kdray"):
        load_student(foreign)
    with pytest.raises(ModelError, match="holds a 'lenet6', which cannot be built here: no model named 'lenet6'"):
        load_student(rewritten(tmp_path, lambda tensors: None, model="lenet6"))


@pytest.mark.parametrize(
    "facts", [{"input_shape": [1, 8]}, {"input_shape": "abc"}, {"num_classes": "many"}, {"classes": ["a", "b"]}]
)
def test_a_description_that_makes_no_sense_is_refused(facts, tmp_path):
    with pytest.raises(ModelError, match=r"changed\.safetensors was saved by kdray, but its desc.* is not readable"):
        read_card(rewritten(tmp_path, lambda tensors: None, **facts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("network.1.bias"), r"1 missing \(first: network.1.bias\)"),
        (lambda t: t.update(more=torch.zeros(1)), r"1 unknown \(first: more\)"),
        (lambda t: t.update({"network.1.bias": torch.zeros(4)}), r"network.1.bias is \[4\], the model has \[3\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    with pytest.raises(ModelError, match=f"changed.safetensors: the weights do not fit the model: {message}"):
        load_student(rewritten(tmp_path, change))


def test_a_trainer_gives_the_file_of_the_student_it_trained(tmp_path):
    spec = StudentSpec(card=card(), mean=[0.4], std=[0.3], recipe=recipe(), seed=5, threads=1)
    data, targets = images(9), soft_targets(9)
    content, result = LocalTrainer(spec).fit(data, targets, round=2)
    by_hand = build_model("small-cnn", TINY, 3, seed=5, mean=[0.4], std=[0.3])
    assert train(by_hand, data, targets, recipe(), seed=5, round=2, threads=1) == result
    assert content == model_bytes(by_hand, card())


@pytest.mark.parametrize("clip", [None, 0.01, 1e6])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("layouts", ["alike", "gradients lie another way"])
def test_a_step_of_descent_is_torchs_sgd_to_the_bit(momentum, clip, layouts):
    here, there = (build_model("small-cnn", (1, 16, 16), 3, seed=0) for _ in range(2))
    here.to(memory_format=torch.channels_last)
    there.to(memory_format=torch.channels_last)
    descent = Descent(here, recipe(momentum=momentum, weight_decay=1e-2, clip_norm=clip))
    groups = [
        {"params": [p for p in there.parameters() if p.ndim > 1], "weight_decay": 1e-2},
        {"params": [p for p in there.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=momentum > 0)
    for number, rate in enumerate((0.1, 0.05, 0.2)):
        x, y = images(8, (1, 16, 16), seed=number), soft_targets(8)
        for model in (here, there):
            soft_cross_entropy(model(x), y).backward()
        if layouts != "alike":
            for parameter in here.parameters():
                parameter.grad = parameter.grad.contiguous()
            assert any(p.stride() != p.grad.stride() for p in here.parameters())
        descent.step(rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
        optimizer.step()
        optimizer.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True))
        assert all(p.grad is None for p in here.parameters())


def test_a_gradient_that_is_too_long_is_cut_to_the_norm_and_no_other():
    layer = nn.Linear(1, 1)  # a matrix and a vector: two groups, one length
    for clip, rate, moved in ((5.0, 0.1, (0.3, 0.4)), (None, 0.1, (3.0, 4.0)), (50.1, 0.1, (3.0, 4.0))):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        layer.weight.grad, layer.bias.grad = torch.tensor([[30.0]]), torch.tensor([40.0])
        Descent(layer, recipe(momentum=0.0, weight_decay=0.0, clip_norm=clip)).step(rate)
        assert (-layer.weight.item(), -layer.bias.item()) == pytest.approx(moved, rel=1e-5)
