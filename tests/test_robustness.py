"""Attacks against hand-computed ones, V-measure against scikit-learn, entropy of answers."""

import math

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdray.models.classifier import ImageClassifier, build_model
from kdray.models.features import penultimate
from kdray.models.predict import accuracy, predict
from kdray.models.robustness import EPSILONS, fgsm, ifgsm, robust_accuracy
from kdray.models.smoothness import class_means, mean_entropy, v_measure
from kdray.search.acquisition import entropy

SHAPE = (1, 8, 8)


def images(count: int, seed: int = 0, low: int = 0, high: int = 256) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, *SHAPE), generator=drawn, dtype=torch.uint8)


def labels(count: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def linear(scale: float = 1.0) -> ImageClassifier:
    """Logits are linear in the pixels, so that the sign of a gradient is known."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        network[1].weight.copy_(scale * torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    return ImageClassifier(network, SHAPE, [0.4], [0.3])


# ---- attacks


def test_fgsm_moves_each_pixel_by_eps_along_the_gradient_of_a_linear_model():
    model, x, y = linear(), images(5, low=20, high=230), torch.tensor([0, 1, 2, 0, 1])
    weights = model.network[1].weight.detach()
    # dL / dx = sum_k (p_k - [k = y]) w_k / std: the label's own row is pushed down, the others up by their probability.
    probs = predict(model, x)
    slope = (probs - torch.eye(3)[y]) @ weights  # [5, 64]
    expected = x.float() / 255 + 0.01 * slope.sign().view(5, *SHAPE)
    found = fgsm(model, x, y, 0.01)
    assert torch.allclose(found, expected, atol=1e-7)
    assert (found - x.float() / 255).abs().sub(0.01).abs().max() < 1e-6
    assert x.dtype == torch.uint8 and all(p.grad is None for p in model.parameters())


def test_a_very_sure_model_is_attacked_all_the_same():
    """The gradient of its cross entropy is 0 in float32."""
    sure, x = linear(1e4), images(4, low=20, high=230)
    y = predict(sure, x).argmax(dim=1)
    pixels = (x.float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(sure(255 * pixels), y), pixels)
    assert gradient.abs().max() == 0
    moved = fgsm(sure, x, y, 0.05)
    assert (moved - x.float() / 255).abs().sub(0.05).abs().max() < 1e-6
    for label, before, after in zip(y.tolist(), sure(x).detach(), sure(255 * moved).detach(), strict=True):
        others = [k for k in range(3) if k != label]
        assert after[label] - after[others].max() < before[label] - before[others].max()


@examples(25)
@given(st.integers(0, 99), st.floats(0, 0.3), st.integers(1, 4))
def test_attacks_stay_in_the_range_of_pixels_and_near_the_image(seed, eps, steps):
    model, x = build_model("small-cnn", SHAPE, 3, seed=seed), images(3, seed)
    moved = ifgsm(model, x, labels(3, 3, seed), eps, steps)
    assert moved.dtype == torch.float32 and moved.shape == x.shape
    assert moved.min() >= 0 and moved.max() <= 1
    assert (moved - x.float() / 255).abs().max() <= eps + 1e-6


def test_one_step_of_the_iterative_attack_is_the_fast_one_and_ten_mislead_more():
    model, x = build_model("small-cnn", SHAPE, 5, seed=1), images(64)
    y = predict(model, x).argmax(dim=1)
    assert torch.equal(ifgsm(model, x, y, 0.03, steps=1), fgsm(model, x, y, 0.03))
    odds = [predict(model, 255 * moved).gather(1, y[:, None]).mean() for moved in (
        x.float() / 255, fgsm(model, x, y, 0.03), ifgsm(model, x, y, 0.03),
    )]  # fmt: skip
    assert odds[2] < odds[1] < odds[0]


def test_an_attack_on_an_image_does_not_depend_on_the_others_of_its_batch():
    model, x, y = build_model("small-cnn", SHAPE, 4, seed=2), images(6), labels(6, 4)
    alone = torch.cat([fgsm(model, x[row : row + 1], y[row : row + 1], 0.02) for row in range(6)])
    assert torch.allclose(fgsm(model, x, y, 0.02), alone, atol=1e-6)


@pytest.mark.parametrize(("side", "most"), [(28, 256), (224, 4)])
def test_large_images_are_attacked_a_few_at_a_time(side, most):
    model, seen = build_model("mlp", (3, side, side), 2, seed=0), []

    def none(model, images, labels, eps):
        seen.append(len(images))
        return images.float() / 255

    data = torch.zeros(most + 3, 3, side, side, dtype=torch.uint8)
    robust_accuracy(model, data, torch.zeros(len(data), dtype=torch.int64), (0.0,), none)
    assert seen == [most, 3]


def test_accuracy_falls_with_eps_and_is_the_usual_one_at_zero():
    model, x = linear(), images(150)
    y = predict(model, x).argmax(dim=1)
    y[::3] = labels(150, 3)[::3]
    for attack in (fgsm, ifgsm):
        found = robust_accuracy(model, x, y, (0.0, 0.01, 0.1), attack, batch_size=40)
        assert list(found) == [0.0, 0.01, 0.1]
        assert found[0.0] == accuracy(predict(model, x).argmax(dim=1), y)
        assert found[0.0] >= found[0.01] > found[0.1]
    assert list(robust_accuracy(model, x[:2], y[:2])) == list(EPSILONS) == [0.001, 0.003, 0.005, 0.01]


def test_batch_statistics_do_not_change_and_inference_mode_is_no_hindrance():
    model, x, y = build_model("small-cnn", SHAPE, 3, seed=0).train(), images(4), labels(4, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        moved = fgsm(model, x.clone(), y, 0.1)
    assert torch.equal(moved, fgsm(model, x, y, 0.1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_arguments_of_attacks_are_refused():
    model, x = linear(), images(2)
    for arguments, message in (
        ((labels(2, 3), -0.1), "eps is -0.1"),
        ((labels(3, 3), 0.1), "3 labels of 2 images"),
        ((labels(2, 3), 0.1, 0), "steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ifgsm(model, x, *arguments)


# ---- features and answers


def test_v_measure_is_scikit_learn_s_of_the_k_means_clusters():
    from sklearn.cluster import KMeans
    from sklearn.metrics import v_measure_score

    rng = np.random.default_rng(0)
    features, classes = rng.normal(size=(60, 4)), np.repeat([0, 1, 2], 20)
    features[:, 0] += 2 * classes
    assigned = KMeans(3, n_init=10, random_state=5).fit_predict(features)
    found = v_measure(torch.from_numpy(features), torch.from_numpy(classes), 3, seed=5)
    assert found == pytest.approx(v_measure_score(classes, assigned)) and 0.1 < found < 0.95
    apart = torch.from_numpy(features + 100 * np.eye(4)[classes])
    assert v_measure(apart, torch.from_numpy(classes), 3) == pytest.approx(1.0)
    # Two clusters, each of two classes whole: homogeneity 1/2, completeness 1, so 2/3.
    four = torch.tensor([[0.0], [0.0], [0.1], [0.1], [9.0], [9.0], [9.1], [9.1]])
    assert v_measure(four, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), 2) == pytest.approx(2 / 3)


def test_v_measure_takes_any_seed_of_a_run():
    features, classes = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    assert v_measure(features, classes, 3, 5 + (1 << 40)) == v_measure(features, classes, 3, 5)


def test_v_measure_takes_the_features_of_a_student():
    model, x = build_model("small-cnn", SHAPE, 3, seed=0), images(12)
    assert 0 <= v_measure(penultimate(model, x).detach(), labels(12, 3), 3) <= 1


def test_v_measure_refuses_what_cannot_be_clustered():
    with pytest.raises(ValueError, match="3 labels of 4 rows"):
        v_measure(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="5 clusters of 4 rows"):
        v_measure(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), 5)


def test_mean_entropy_by_hand_and_as_the_search_has_it():
    assert mean_entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])) == pytest.approx(math.log(2) / 2)
    probs = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert mean_entropy(probs) == pytest.approx(float(entropy(probs).mean()), abs=1e-6)


def test_class_means_are_the_mean_rows_of_each_class():
    probs = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    means = class_means(probs, torch.tensor([0, 0, 1]))
    assert means[:2].tolist() == [pytest.approx([0.7, 0.2, 0.1]), pytest.approx([0.2, 0.7, 0.1])]
    assert means[2].isnan().all()
