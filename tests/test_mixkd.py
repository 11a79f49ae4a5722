"""MIX-KD: rescaled logits, the objective of hard labels and answers, label smoothing, partial mixup."""

import math

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F

from kdray.errors import ConfigError
from kdray.models.classifier import build_model
from kdray.teachers.answers import AnswerFormat, training_targets
from kdray.training.feed import Feed
from kdray.training.loop import train
from kdray.training.losses import kd_divergence, mixkd_objective, rescaled_divergence, soft_cross_entropy
from kdray.training.losses.base import check_loss, losses
from kdray.training.losses.mixkd import hard_labels
from kdray.training.losses.rescaled import rescale, without_zeros
from kdray.training.mix import blend, draw_mixing, partial_mixup, paste, symmetric_beta
from kdray.training.recipe import Recipe
from kdray.training.shard import Shard

OBJECTIVE = {"gamma": 0.1, "alpha": 0.9, "temperature": 4.0, "smoothing": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 5, 4), generator=generator(seed), dtype=torch.uint8)


def naive(logits: torch.Tensor, teacher: torch.Tensor) -> float:
    """Eq. 3 row by row in float64."""
    values = []
    for s, t in zip(logits.double().numpy(), teacher.double().numpy(), strict=True):
        p, q = (np.exp(x / x.std(ddof=1)) / np.exp(x / x.std(ddof=1)).sum() for x in (t, s))
        values.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return float(np.mean(values))


def with_gradient(loss, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


# ---- rescaled logits


def test_rescaled_divergence_by_hand():
    # The standard deviation of (0, 0, d) is d / sqrt(3): whatever d, its rescaled logits are (0, 0, sqrt(3)).
    big, small = (x / (math.exp(math.sqrt(3)) + 2) for x in (math.exp(math.sqrt(3)), 1.0))
    wrong = (big - small) * math.sqrt(3)
    logits, teacher = torch.tensor([[0.0, 0.0, 5.0], [7.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.2], [0.0, 0.0, 9.0]])
    assert float(rescaled_divergence(logits, teacher)) == pytest.approx((0 + wrong) / 2, abs=1e-6)
    # Deviations 3 and 1: (0, 1, -1) against (-1, 0, 1).
    total = 1 + math.e + 1 / math.e
    by_hand = sum(p * (math.log(p) - math.log(q)) for p, q in zip(
        (1 / math.e / total, 1 / total, math.e / total), (1 / total, math.e / total, 1 / math.e / total), strict=True
    ))  # fmt: skip
    found = rescaled_divergence(torch.tensor([[0.0, 3.0, -3.0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    assert float(found) == pytest.approx(by_hand, abs=1e-6)


@examples(60)
@given(st.integers(1, 6), st.integers(3, 12), st.integers(0, 999))
def test_rescaled_divergence_is_the_naive_one_and_ignores_shift_and_scale_of_both(batch, classes, seed):
    logits, teacher = normal(batch, classes, seed=seed), 3 * normal(batch, classes, seed=seed + 1)
    value = rescaled_divergence(logits, teacher)
    assert float(value) == pytest.approx(naive(logits, teacher), abs=1e-5)
    shift, scale = 10 * normal(batch, 1, seed=seed + 2), normal(batch, 1, seed=seed + 3).exp()
    assert torch.allclose(rescaled_divergence(scale * logits + shift, teacher), value, atol=1e-4)
    assert torch.allclose(rescaled_divergence(logits, scale * teacher + shift), value, atol=1e-4)
    assert float(value) >= -1e-6
    assert float(rescaled_divergence(2 * teacher - 1, teacher)) == pytest.approx(0, abs=1e-5)


@examples(60)
@given(st.integers(1, 6), st.integers(3, 12), st.integers(0, 999))
def test_log_probabilities_of_a_black_box_serve_as_well_as_its_logits(batch, classes, seed):
    """The same value and the same gradient; also from probabilities, as the registered loss has them."""
    logits, teacher = normal(batch, classes, seed=seed), 4 * normal(batch, classes, seed=seed + 1) + 7
    value, gradient = with_gradient(lambda s: rescaled_divergence(s, teacher), logits)
    for same in (
        lambda s: rescaled_divergence(s, teacher.log_softmax(dim=1)),
        lambda s: losses.parse("rescaled")(s, teacher.softmax(dim=1)),
    ):
        other, others = with_gradient(same, logits)
        assert torch.allclose(other, value, atol=1e-5)
        assert torch.allclose(others, gradient, atol=1e-5)


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_a_hard_label_has_the_same_rescaled_logits_whatever_a_zero_counts_as(classes):
    """sqrt(K) for the label, 0 elsewhere: of ten classes a target of 0.72."""
    label = F.one_hot(torch.tensor([1]), classes).float()
    top = math.exp(math.sqrt(classes)) / (math.exp(math.sqrt(classes)) + classes - 1)
    for zero in (0.005, 1e-6, 1e-30):
        target = rescale(without_zeros(label.log(), zero)).softmax(dim=1)
        assert float(target[0, 1]) == pytest.approx(top, abs=1e-5)
    assert classes != 10 or top == pytest.approx(0.724, abs=1e-3)
    value, gradient = with_gradient(lambda s: losses.parse("rescaled")(s, label), normal(1, classes))
    assert value.isfinite() and gradient.isfinite().all()


def test_a_zero_counts_as_the_field_says_or_as_half_of_the_smallest_number_shown():
    shown = torch.tensor([[0.93, 0.07, 0.0], [0.998, 0.002, 0.0], [1 - 1e-4, 1e-4, 0.0], [1.0, 1e-9, 0.0]])
    found = without_zeros(shown.log()).exp()
    assert found[:, 2].tolist() == pytest.approx([1e-4, 1e-4, 5e-5, 5e-10], rel=1e-4)
    assert torch.allclose(found[:, :2], shown[:, :2])
    assert without_zeros(shown.log(), 0.005).exp()[:2, 2].tolist() == pytest.approx([0.005, 0.001], rel=1e-4)
    # What is shown stays as it is, denormal numbers too: the logarithm of float32's smallest is -103.3.
    assert float(without_zeros(torch.tensor([[1.0, 1e-45, 0.0]]).log())[0, 1]) == pytest.approx(-103.28, abs=0.01)


def test_rounded_answers_are_near_those_in_full_and_keep_their_order():
    """Half of the last place would leave the rescaled answers further away, and their labels alone much further."""
    full = (3 * normal(2000, 10)).softmax(dim=1)
    rounded = training_targets(AnswerFormat(decimals=2).apply(full))
    assert 0.3 < (rounded == 0).float().mean() < 0.6

    def target(probs: torch.Tensor, zero: float) -> torch.Tensor:
        return rescale(without_zeros(probs.log(), zero)).softmax(dim=1)

    def apart(probs: torch.Tensor, zero: float) -> float:  # total variation
        return float((target(probs, zero) - target(full, zero)).abs().sum(dim=1).mean()) / 2

    assert apart(rounded, 1e-4) < 0.7 * apart(rounded, 0.005) < 0.3 * apart(hard_labels(full), 1e-4)
    assert (target(rounded, 1e-4).gather(1, rounded.argsort(dim=1)).diff(dim=1) > -1e-7).all()


def test_rescaled_divergence_is_finite_where_all_logits_or_answers_are_equal():
    targets = torch.full((2, 4), 0.25)
    targets[1] = torch.tensor([0.25, 0.25, 0.25, 0.2500001])  # even, up to the rounding of float32
    value, gradient = with_gradient(lambda s: losses.parse("rescaled")(s, targets), torch.zeros(2, 4))
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert gradient.isfinite().all() and gradient.abs().max() < 0.1
    half = rescaled_divergence(torch.tensor([[6e4, -6e4, 0.0]], dtype=torch.float16), torch.tensor([[1.0, 2.0, 3.0]]))
    assert half.dtype == torch.float32 and half.isfinite()


# ---- the objective


@examples(40)
@given(st.integers(1, 6), st.integers(3, 8), st.floats(0, 0.9), st.integers(0, 999))
def test_the_objective_is_the_sum_of_its_terms(batch, classes, smoothing, seed):
    logits, targets = normal(batch, classes, seed=seed), (2 * normal(batch, classes, seed=seed + 1)).softmax(dim=1)
    labels = targets.argmax(dim=1)
    options = OBJECTIVE | {"smoothing": smoothing}
    by_torch = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    expected = 0.1 * by_torch + 0.9 * kd_divergence(logits, targets, 4.0)
    assert torch.allclose(mixkd_objective(logits, targets, **options, rescaled=False), expected, atol=1e-5)
    by_torch = F.cross_entropy(logits / logits.std(dim=1, keepdim=True), labels, label_smoothing=smoothing)
    expected = 0.1 * by_torch + 0.9 * rescaled_divergence(logits, targets.log())
    assert torch.allclose(mixkd_objective(logits, targets, **options, rescaled=True), expected, atol=1e-5)
    section = losses.parse({"kind": "mix-kd", "smoothing": smoothing})
    assert torch.equal(section(logits, targets), mixkd_objective(logits, targets, **options, rescaled=True))


@pytest.mark.parametrize("rescaled", [False, True])
def test_rows_that_are_not_distilled_count_for_the_classification_alone(rescaled):
    logits, targets = normal(6, 4), (2 * normal(6, 4, seed=1)).softmax(dim=1)
    distil = torch.tensor([True, False, True, True, False, True])
    found = mixkd_objective(logits, targets, **OBJECTIVE, rescaled=rescaled, distil=distil)
    student = rescale(logits) if rescaled else logits
    total = torch.zeros(())
    for row in range(6):
        one, answer = logits[row : row + 1], targets[row : row + 1]
        if distil[row]:
            total += mixkd_objective(one, answer, **OBJECTIVE, rescaled=rescaled)
        else:  # the row is the mixed label itself
            total += 0.1 * soft_cross_entropy(student[row : row + 1], answer)
    assert torch.allclose(found, total / 6, atol=1e-6)
    everything = mixkd_objective(
        logits, targets, **OBJECTIVE, rescaled=rescaled, distil=torch.ones(6, dtype=torch.bool)
    )
    assert torch.equal(everything, mixkd_objective(logits, targets, **OBJECTIVE, rescaled=rescaled))
    section = losses.parse({"kind": "mix-kd", "divergence": "rescaled" if rescaled else "kl"})
    assert torch.equal(section(logits, targets, distil=distil), found)
    none = mixkd_objective(logits, targets, **OBJECTIVE, rescaled=rescaled, distil=torch.zeros(6, dtype=torch.bool))
    assert torch.allclose(none, 0.1 * soft_cross_entropy(student, targets), atol=1e-6)


def test_hard_labels_are_the_top_classes_and_ties_go_to_the_lower():
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    assert hard_labels(probs).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_smoothing_of_cross_entropy_is_torch_s_own_and_zero_changes_no_bit():
    logits, labels = normal(5, 7), torch.tensor([0, 3, 6, 6, 2])
    one_hot, soft = F.one_hot(labels, 7).float(), normal(5, 7, seed=1).softmax(dim=1)
    for smoothing in (0.0, 0.1, 0.5):
        section = losses.parse({"kind": "cross-entropy", "smoothing": smoothing})
        expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        assert torch.allclose(section(logits, one_hot), expected, atol=1e-6)
        assert torch.allclose(
            section(logits, soft), F.cross_entropy(logits, soft, label_smoothing=smoothing), atol=1e-6
        )
    plain = -(soft * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    assert torch.equal(soft_cross_entropy(logits, soft), plain)


@pytest.mark.parametrize("loss", ["rescaled", "mix-kd", {"kind": "mix-kd", "divergence": "kl"}])
def test_a_student_learns_from_each_loss(loss):
    blocks = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    for row in range(12):
        blocks[row, :, :, 2 * (row % 3) : 2 * (row % 3) + 3] = 255
    answers = F.one_hot(torch.arange(12) % 3, 3).float() * 0.9 + 0.1 / 3
    model = build_model("small-cnn", (1, 8, 8), 3, seed=0)
    recipe = Recipe(epochs=30, batch_size=12, device="cpu", loss=losses.parse(loss))
    found = train(model, blocks, answers, recipe, seed=0, threads=1).losses
    assert found[-1] < found[0] and torch.equal(model(blocks).argmax(dim=1), torch.arange(12) % 3)


# ---- bad input


@pytest.mark.parametrize("loss", ["rescaled", "mix-kd"])
def test_two_classes_are_refused_as_nothing_could_be_learned(loss):
    targets = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    _, gradient = with_gradient(lambda s: rescaled_divergence(s, targets.log()), normal(2, 2))
    assert gradient.abs().max() < 1e-6
    with pytest.raises(
        ConfigError, match=r"^student\.loss: rescaled logits need at least 3 classes, there are 2: .*kl"
    ):
        check_loss(losses.parse(loss), 2, "student.loss")
    check_loss(losses.parse(loss), 3)
    check_loss(losses.parse({"kind": "mix-kd", "divergence": "kl"}), 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "mix-kd", "gamma": 0, "alpha": 0}, "gamma and alpha are both 0"),
        ({"kind": "mix-kd", "temperature": 2}, "temperature is 2, but rescaled logits have none; leave it out, or set"),
        ({"kind": "mix-kd", "gamma": -1}, "greater than or equal to 0"),
        ({"kind": "mix-kd", "divergence": "l2"}, "'rescaled' or 'kl'"),
        ({"kind": "rescaled", "zero": 0}, "greater than 0"),
        ({"kind": "rescaled", "temperature": 2}, "temperature belongs to kind kl and mix-kd"),
        ({"kind": "cross-entropy", "smoothing": 1}, "less than 1"),
    ],
)
def test_fields_out_of_range_or_without_effect_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        losses.parse(fields)


def test_a_dumped_section_is_read_again():
    for section in (losses.parse("mix-kd"), losses.parse({"kind": "mix-kd", "divergence": "kl", "temperature": 2})):
        assert losses.parse(section.model_dump()) == section


# ---- partial mixup


@examples(60)
@given(st.integers(1, 40), st.floats(0, 1), st.floats(0.05, 5), st.integers(0, 999))
def test_a_share_of_the_batch_is_mixed_and_the_rest_is_as_it_was(batch, share, alpha, seed):
    before, targets = images(batch, seed), normal(batch, 3, seed=seed).softmax(dim=1)
    after, mixes, mixed = partial_mixup(before, targets, share, alpha, generator(seed))
    assert after.dtype == torch.uint8 and mixed.dtype == torch.bool
    count = int(mixed.sum())
    assert count == 0 if batch == 1 else math.floor(share * batch) <= count <= math.ceil(share * batch)
    assert torch.equal(after[~mixed], before[~mixed]) and torch.equal(mixes[~mixed], targets[~mixed])
    assert torch.allclose(mixes.sum(dim=1), torch.ones(batch), atol=1e-5)
    if share > 0 and batch > 1:
        draw = draw_mixing(batch, share, alpha, generator(seed))
        assert torch.equal(draw.mixed, mixed) and ((draw.weight >= 0) & (draw.weight <= 1)).all()
        for row in mixed.nonzero().flatten().tolist():
            other, weight = int(draw.partner[row]), float(draw.weight[row])
            assert other != row and 0 <= other < batch
            slow = weight * before[row].double() + (1 - weight) * before[other].double()
            assert (after[row].double() - slow).abs().max() <= 0.5 + 1e-4
            assert torch.allclose(mixes[row], weight * targets[row] + (1 - weight) * targets[other], atol=1e-6)


def test_the_share_is_right_on_average_and_every_pair_is_as_likely():
    draws = [draw_mixing(7, 0.3, 1.0, generator(seed)) for seed in range(3000)]
    counts = torch.stack([draw.mixed.sum() for draw in draws]).double()
    assert set(counts.tolist()) == {2.0, 3.0} and float(counts.mean()) == pytest.approx(2.1, abs=0.03)
    assert torch.stack([draw.mixed for draw in draws]).double().mean(dim=0).sub(0.3).abs().max() < 0.04
    ahead = torch.stack([(draw.partner - torch.arange(7)) % 7 for draw in draws]).flatten().bincount(minlength=7)
    assert ahead[0] == 0 and (ahead[1:] / 21_000 - 1 / 6).abs().max() < 0.01


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 1.0, 4.0])
def test_weights_are_drawn_from_beta(alpha):
    from scipy.stats import beta, kstest

    drawn = torch.rand(2, 20_000, generator=generator(1), dtype=torch.float64)
    weight = symmetric_beta(alpha, *drawn).numpy()
    assert np.isfinite(weight).all() and weight.min() >= 0 and weight.max() <= 1
    if alpha > 0.05:  # below that floating point holds hardly anything but 0 and 1
        assert kstest(weight, beta(alpha, alpha).cdf).pvalue > 0.01
    assert weight.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_no_share_changes_nothing_and_bad_numbers_are_refused():
    before, targets = images(4), torch.eye(4)
    after, same, mixed = partial_mixup(before, targets, 0.0, 1.0, generator())
    assert torch.equal(after, before) and torch.equal(same, targets) and not mixed.any()
    for share, alpha, message in ((1.5, 1.0, "share is 1.5"), (-0.1, 1.0, "share is -0.1"), (0.5, 0.0, "alpha is 0")):
        with pytest.raises(ValueError, match=message):
            partial_mixup(before, targets, share, alpha, generator())


def test_a_weight_of_one_is_the_image_and_of_zero_the_other():
    some, others = images(2), images(2, seed=1)
    assert torch.equal(blend(some, others, torch.ones(2)), some)
    assert torch.equal(blend(some, others, torch.zeros(2)), others)


@given(st.integers(0, 999), st.sampled_from([(5, 4), (9, 12)]))
def test_a_rectangle_of_the_other_image_is_pasted_and_the_rest_is_counted(seed, sides):
    some, others = (torch.full((6, 2, *sides), value, dtype=torch.uint8) for value in (1, 2))
    weight, places = torch.rand(6, generator=generator(seed)), torch.rand(6, 2, generator=generator(seed + 1))
    pasted, left = paste(some, others, weight, places)
    for n in range(6):
        height, width = sides
        tall, wide = (round(side * math.sqrt(1 - float(weight[n])) / 2) for side in sides)
        y, x = math.floor(float(places[n, 0]) * height), math.floor(float(places[n, 1]) * width)
        slow = np.ones(sides)
        slow[max(0, y - tall) : y + tall, max(0, x - wide) : x + wide] = 2
        assert np.array_equal(pasted[n, 0].numpy(), slow) and torch.equal(pasted[n, 0], pasted[n, 1])
        assert float(left[n]) == pytest.approx((slow == 1).mean(), abs=1e-6)


def feed(loss="cross-entropy", kind="mixup", share=0.5, unpaid=None, shard=None):
    before, targets = images(30), normal(30, 4).softmax(dim=1)
    recipe = Recipe(mix={"kind": kind, "share": share}, loss=loss, augment="none")
    return before, targets, Feed(before, targets, recipe, shard or Shard(), unpaid)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_batch_has_mixes_of_its_images_and_of_their_answers(kind):
    before, targets, made = feed(kind=kind)
    numbers = torch.arange(20)
    x, y, answered, of = made.batch(numbers, generator(4))
    assert of == 20 and int(answered.sum()) == 10
    assert torch.equal(x[answered], before[:20][answered]) and torch.equal(y[answered], targets[:20][answered])
    drawn = draw_mixing(20, 0.5, 1.0, generator(4))
    for row in (~answered).nonzero().flatten().tolist():
        other, weight = int(drawn.partner[row]), float(drawn.weight[row])
        if kind == "cutmix":
            from_first = (x[row] == before[row]).all(dim=0)
            weight = float(from_first.float().mean())
            assert torch.equal(x[row][:, ~from_first], before[other][:, ~from_first])
        assert torch.allclose(y[row], weight * targets[row] + (1 - weight) * targets[other], atol=1e-5)


def test_mixes_have_mixes_of_hard_labels_where_the_loss_wants_them():
    _, targets, made = feed(loss="mix-kd", share=1.0)
    _, y, answered, _ = made.batch(torch.arange(12), generator(4))
    drawn = draw_mixing(12, 1.0, 1.0, generator(4))
    labels = hard_labels(targets)[:12]
    assert not answered.any()
    assert torch.allclose(y, torch.lerp(labels[drawn.partner], labels, drawn.weight[:, None]))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_processes_that_share_a_batch_make_the_batch_of_one(kind, size):
    whole = feed(kind=kind)[2].batch(torch.arange(11), generator(5))
    parts = []
    for rank in range(size):
        shard = Shard()
        shard.rank, shard.size = rank, size
        parts.append(feed(kind=kind, shard=shard)[2].batch(torch.arange(11), generator(5)))
    for name in ("images", "targets", "answered"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_a_student_trained_on_mixes_learns():
    for kind, loss in (("mixup", "cross-entropy"), ("cutmix", "mix-kd")):
        data = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
        classes = torch.arange(60) % 3
        for n, k in enumerate(classes.tolist()):
            data[n, 0, 2 * k : 2 * k + 2] = 200
        model = build_model("small-cnn", (1, 8, 8), 3, seed=0)
        recipe = Recipe(steps=60, batch_size=20, mix={"kind": kind, "share": 0.5}, loss=loss, device="cpu")
        train(model, data, torch.eye(3)[classes], recipe, seed=0, threads=1)
        with torch.inference_mode():
            assert float((model(data).argmax(dim=1) == classes).float().mean()) > 0.95, (kind, loss)
