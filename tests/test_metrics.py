"""Figures of a student against scikit-learn's on the same predictions, against sums by hand, and at their edges."""

import math

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdray.metrics.calibration import at_temperature, best_temperature, calibrate, reliability
from kdray.metrics.classes import class_figures, confusion_matrix, top_k_accuracy
from kdray.metrics.evaluation import evaluate
from kdray.metrics.speed import measure_speed, size_of
from kdray.models.classifier import build_model
from kdray.models.features import penultimate
from kdray.models.predict import predict, predict_log_probs
from kdray.models.robustness import fgsm, ifgsm, robust_accuracy
from kdray.models.smoothness import v_measure
from kdray.utils.lazy import LazyModule

scikit_learns = LazyModule("sklearn.metrics")  # slow to import, and one of the processes of the tests needs it

K = 7


def drawn(count: int, classes: int = K, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of random logits, and labels that follow them: so they are calibrated."""
    numbers = torch.Generator().manual_seed(seed)
    log_probs = (scale * torch.randn(count, classes, generator=numbers, dtype=torch.float64)).log_softmax(dim=1)
    return log_probs, torch.multinomial(log_probs.exp(), 1, generator=numbers)[:, 0]


# ---- classes


@given(st.integers(1, 60), st.integers(2, 9), st.integers(0, 99))
@examples(40)
def test_figures_of_classes_are_scikit_learns(count, classes, seed):
    """Also of classes without an image or a prediction."""
    numbers = torch.Generator().manual_seed(seed)
    labels, called = torch.randint(0, classes, (2, count), generator=numbers)
    confusion = confusion_matrix(labels, called, classes)
    names = list(range(classes))
    assert np.array_equal(confusion, scikit_learns.confusion_matrix(labels, called, labels=names))
    expected = scikit_learns.precision_recall_fscore_support(labels, called, labels=names, zero_division=np.nan)
    for k, one in enumerate(class_figures(confusion)):
        got = [math.nan if x is None else x for x in (one.precision, one.recall, one.f1)]
        assert np.allclose(got, [column[k] for column in expected[:3]], equal_nan=True)
        assert one.support == expected[3][k] and one.predicted == int((called == k).sum())


def test_a_confusion_by_hand():
    confusion = confusion_matrix(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 1, 1]), 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 0, 0], [0, 1, 0]]
    first, second, third = class_figures(confusion)
    assert (first.precision, first.recall, first.f1) == (1.0, 2 / 3, 0.8)
    assert (second.precision, second.recall, second.support, second.predicted) == (0.0, None, 0, 2)
    assert (third.precision, third.recall, third.f1) == (None, 0.0, 0.0)


@pytest.mark.parametrize(("labels", "called"), [([0, 3], [0, 1]), ([0, 1], [0, -1]), ([0], [0, 1])])
def test_what_is_no_class_is_refused(labels, called):
    with pytest.raises(ValueError, match=r"must lie in|each image needs both"):
        confusion_matrix(torch.tensor(labels), torch.tensor(called), 3)


@pytest.mark.parametrize("k", [1, 2, 5, K - 1])
def test_top_k_is_scikit_learns(k):
    log_probs, labels = drawn(200)
    expected = scikit_learns.top_k_accuracy_score(labels, log_probs, k=k, labels=list(range(K)))
    assert top_k_accuracy(log_probs, labels, k) == pytest.approx(expected)


def test_a_k_that_is_not_there_is_refused():
    log_probs, labels = drawn(3)
    assert top_k_accuracy(log_probs, labels, K) == 1
    for k in (0, K + 1):
        with pytest.raises(ValueError, match=f"k is {k}; give 1 to {K}"):
            top_k_accuracy(log_probs, labels, k)
    with pytest.raises(ValueError, match="there is no image"):
        top_k_accuracy(log_probs[:0], labels[:0], 1)


# ---- calibration


@given(st.integers(1, 80), st.integers(2, 6), st.integers(1, 20), st.integers(0, 99))
@examples(40)
def test_bins_are_those_of_scikit_learn_and_the_error_is_their_mean_distance(count, classes, bins, seed):
    log_probs, labels = drawn(count, classes, seed)
    found = reliability(log_probs, labels, bins)
    sure, called = log_probs.exp().max(dim=1)
    right = (called == labels).numpy()
    from sklearn.calibration import calibration_curve

    accuracy, confidence = calibration_curve(right, sure.numpy(), n_bins=bins)
    assert np.allclose([x for x in found.accuracy if x is not None], accuracy)
    assert np.allclose([x for x in found.confidence if x is not None], confidence)
    filled = [n for n in found.counts if n]
    assert found.error == pytest.approx(
        sum(n * abs(a - c) for n, a, c in zip(filled, accuracy, confidence, strict=True)) / count
    )
    assert found.nll == pytest.approx(scikit_learns.log_loss(labels, log_probs.exp(), labels=list(range(classes))))
    assert sum(found.counts) == count


def test_a_bin_holds_its_upper_edge():
    probs = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0], [0.51, 0.49]], dtype=torch.float64)
    found = reliability(probs.log(), torch.tensor([0, 0, 0, 1]), bins=4)
    assert found.counts == (0, 1, 2, 1)
    assert found.confidence == (None, 0.5, pytest.approx(0.63), 1.0) and found.accuracy == (None, 1.0, 0.5, 1.0)
    assert found.error == pytest.approx((0.5 + abs(1.26 - 1.0)) / 4)
    assert found.nll == pytest.approx(-(math.log(0.5) + math.log(0.75) + math.log(0.49)) / 4)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_is_what_the_logits_were_multiplied_by(factor):
    log_probs, labels = drawn(20_000)
    assert best_temperature(factor * log_probs, labels) == pytest.approx(factor, rel=0.03)
    assert best_temperature((factor * log_probs).log_softmax(dim=1), labels) == pytest.approx(factor, rel=0.03)


def test_no_other_temperature_is_better():
    log_probs, labels = drawn(300, scale=5.0)
    best = best_temperature(log_probs, labels)

    def nll(temperature: float) -> float:
        return reliability(at_temperature(log_probs, temperature), labels).nll

    assert all(nll(best) <= nll(other) + 1e-9 for other in np.geomspace(0.01, 100, 200))


def test_a_temperature_mends_one_who_is_too_sure_and_is_tried_on_other_images():
    log_probs, labels = drawn(4000)
    found = calibrate(4 * log_probs, labels, np.random.default_rng(0))
    assert found.temperature == pytest.approx(4, rel=0.1)
    assert found.before.error > 0.1 > 0.03 > found.after.error
    assert (
        found.before.nll > found.after.nll > reliability(at_temperature(4 * log_probs, found.temperature), labels).nll
    )
    again = calibrate(4 * log_probs, labels, np.random.default_rng(0))
    assert again == found


def test_confidence_without_bounds_is_measured():
    """All right, or a true class of probability 0."""
    sure = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0], [0.0, -torch.inf], [-torch.inf, 0.0]])
    found = calibrate(sure, torch.tensor([0, 1, 0, 1]), np.random.default_rng(0))
    assert found.before.error == found.after.error == 0 and found.before.nll == 0
    wrong = calibrate(sure, torch.tensor([0, 1, 0, 0]), np.random.default_rng(0))
    assert wrong.before.nll == math.inf and wrong.before.error == 0.25
    assert math.isfinite(wrong.temperature)


def test_too_few_images_to_calibrate_are_refused():
    log_probs, labels = drawn(2)
    assert calibrate(log_probs, labels, np.random.default_rng(0)).before.counts
    with pytest.raises(ValueError, match="give two at least"):
        calibrate(log_probs[:1], labels[:1], np.random.default_rng(0))
    with pytest.raises(ValueError, match="there is no image"):
        reliability(log_probs[:0], labels[:0])
    with pytest.raises(ValueError, match="1 labels of 2 predictions"):
        reliability(log_probs, labels[:1])
    with pytest.raises(ValueError, match="bins is 0"):
        reliability(log_probs, labels, 0)


# ---- a student, whole


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return build_model("lenet5", (1, 16, 16), K, seed=3)


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(1)
    return (
        torch.randint(0, 256, (60, 1, 16, 16), dtype=torch.uint8, generator=numbers),
        torch.randint(0, K, (60,), generator=numbers),
    )


def test_log_probabilities_are_those_of_the_probabilities(student, pictures):
    log_probs = predict_log_probs(student, pictures[0])
    assert torch.allclose(log_probs.exp(), predict(student, pictures[0]), atol=1e-6)


def test_all_figures_of_a_student_are_those_of_its_parts(student, pictures):
    images, labels = pictures
    rows, answers = torch.arange(0, 60, 2), labels[::2].clone()
    answers[:3] = (answers[:3] + 1) % K
    found = evaluate(student, images, labels, rows=rows, answers=answers, epsilons=(0.01,), seconds=0.01)
    called = predict(student, images).argmax(dim=1)
    assert found.images == 60
    assert found.labelled.top1.value == pytest.approx(scikit_learns.accuracy_score(labels, called))
    assert found.labelled.top1.low < found.labelled.top1.value < found.labelled.top1.high
    assert found.labelled.top5 == top_k_accuracy(predict(student, images), labels, 5)
    assert np.array_equal(
        found.labelled.confusion, scikit_learns.confusion_matrix(labels, called, labels=list(range(K)))
    )
    assert found.labelled.calibration.before.error == pytest.approx(
        reliability(predict_log_probs(student, images), labels).error
    )
    beside = found.teacher
    assert (beside.images, beside.teacher) == (30, 0.9)
    assert beside.agreement.value == pytest.approx(float((called[::2] == answers).double().mean()))
    assert beside.student == pytest.approx(float((called[::2] == labels[::2]).double().mean()))
    assert beside.success == pytest.approx(beside.student / 0.9)
    assert (found.attacked.images, found.attacked.none) == (60, found.labelled.top1.value)
    assert found.attacked.fgsm == tuple(robust_accuracy(student, images, labels, (0.01,), fgsm).values())
    assert found.attacked.ifgsm == tuple(robust_accuracy(student, images, labels, (0.01,), ifgsm).values())
    with torch.no_grad():
        assert found.v_measure == v_measure(penultimate(student, images), labels, K)
    assert found.size.parameters == sum(value.numel() for value in student.parameters())
    assert found.speed.throughput > 0 and found.speed.latency_slow_ms >= found.speed.latency_ms > 0


def test_without_labels_the_teacher_is_what_there_is(student, pictures):
    images, labels = pictures
    found = evaluate(student, images, None, rows=torch.arange(60), answers=labels, seconds=0.01)
    assert (found.labelled, found.attacked, found.v_measure) == (None, None, None)
    assert (found.teacher.images, found.teacher.teacher, found.teacher.success) == (60, None, None)
    assert evaluate(student, images, None, seconds=0.01).teacher is None


def test_few_images_and_few_classes(student, pictures):
    images, labels = pictures
    one = evaluate(student, images[:1], labels[:1], attacked=0, seconds=0.01)
    assert one.labelled.calibration is None and one.attacked is None and one.v_measure == 1.0
    two = build_model("lenet5", (1, 16, 16), 2, seed=0)
    assert evaluate(two, images, labels % 2, attacked=5, epsilons=(0.1,), seconds=0.01).labelled.top5 is None
    with pytest.raises(ValueError, match="there is no image"):
        evaluate(student, images[:0], labels[:0])


def test_a_network_that_ends_otherwise_has_no_features(pictures):
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, K), nn.Softplus())

    class Floats(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(images.float())

    assert evaluate(Floats(), *pictures, attacked=0, seconds=0.01).v_measure is None


def test_which_images_are_attacked_follows_from_the_seed(student, pictures):
    def attacked(seed: int) -> object:
        return evaluate(student, *pictures, attacked=20, epsilons=(0.0,), seconds=0.01, seed=seed).attacked

    assert attacked(1) == attacked(1) and attacked(1).images == 20 and attacked(1).fgsm == (attacked(1).none,)
    assert len({attacked(seed).none for seed in range(8)}) > 1


# ---- speed and size


def test_speed_is_measured_on_one_thread_and_the_setting_comes_back(student):
    seen, before = [], torch.get_num_threads()

    class Noting(nn.Module):
        def forward(self, images):
            seen.append((torch.get_num_threads(), len(images)))
            return images.float().flatten(1)

    found = measure_speed(Noting(), (1, 4, 4), seconds=0.001)
    assert {threads for threads, _ in seen} == {1} and torch.get_num_threads() == before
    assert {count for _, count in seen} == {1, 128} and found.batch_size == 128
    assert measure_speed(Noting(), (3, 224, 224), seconds=0.001).batch_size == 16
    with pytest.raises(ValueError, match="must be above 0"):
        measure_speed(student, (1, 16, 16), seconds=0)


def test_size_counts_running_statistics_too():
    size = size_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    assert size.parameters == 18 + 2 + 4
    assert size.megabytes == pytest.approx((4 * (18 + 2 + 4 + 4) + 8) / 1e6)
