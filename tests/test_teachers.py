"""Teachers: forms of answers and their training targets, local models to the bit, programs, functions, pool."""

import math
import shutil
import sys
import typing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from kdray.errors import ModelError, TeacherError
from kdray.models.checkpoint import ModelCard, save_model
from kdray.models.classifier import build_model
from kdray.teachers import AnswerFormat, Answers
from kdray.teachers.answers import check_labels, check_probabilities, training_targets
from kdray.teachers.faults import Fault, FaultKind
from kdray.teachers.function import FunctionTeacher
from kdray.teachers.function import PythonTeacherConfig as PythonConfig
from kdray.teachers.local import LocalTeacher
from kdray.teachers.local import LocalTeacherConfig as LocalConfig
from kdray.teachers.pool import LocalTeacherPool, as_reply

SHAPE = (1, 12, 12)
NORMALISE = {"mean": [0.4], "std": [0.3]}


def images(n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)


def local(path: Path, **changes) -> LocalConfig:
    fields = {"kind": "local", "weights": str(path), "classes": 3, "batch_size": 4, "device": "cpu"}
    return LocalConfig(**{**fields, **changes})


def python(function: str = "module:function", **changes) -> PythonConfig:
    return PythonConfig(**{"kind": "python", "function": function, "classes": 3, **changes})


def soft(*rows: list[float]) -> Answers:
    probs = torch.tensor(rows, dtype=torch.float32)
    return Answers(probs=probs, labels=probs.argmax(dim=1), num_classes=probs.shape[1])


def exactly(values) -> list:
    """Decimals as the nearest float32, for comparison without tolerance."""
    return torch.tensor(values, dtype=torch.float32).tolist()


# ---- forms of answers

PROBS = torch.tensor([[0.1, 0.125, 0.4, 0.375], [0.25, 0.25, 0.25, 0.25], [0.987, 0.004, 0.005, 0.004]])


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (AnswerFormat("soft"), PROBS.tolist()),
        (AnswerFormat("top1"), [[0, 0, 0.4, 0], [0.25, 0, 0, 0], [0.987, 0, 0, 0]]),
        (AnswerFormat("top2"), [[0, 0, 0.4, 0.375], [0.25, 0.25, 0, 0], [0.987, 0, 0.005, 0]]),
        (AnswerFormat("top3"), [[0, 0.125, 0.4, 0.375], [0.25, 0.25, 0.25, 0], [0.987, 0.004, 0.005, 0]]),
        (AnswerFormat("top4"), PROBS.tolist()),
        (AnswerFormat("soft", 1), [[0.1, 0.1, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [1, 0, 0, 0]]),
        (AnswerFormat("soft", 0), [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]),
        (AnswerFormat("top2", 2), [[0, 0, 0.4, 0.38], [0.25, 0.25, 0, 0], [0.99, 0, 0, 0]]),
    ],
    ids=str,
)
def test_forms_by_hand(form, expected):
    answers = form.apply(PROBS)
    assert answers.probs.dtype == torch.float32
    assert answers.probs.tolist() == exactly(expected)
    assert answers.labels.tolist() == [2, 0, 0]
    assert answers.num_classes == 4


def test_a_hard_answer_is_a_label_alone():
    answers = AnswerFormat("hard", 2).apply(PROBS)
    assert answers.probs is None
    assert answers.labels.tolist() == [2, 0, 0]
    assert (len(answers), answers.num_classes) == (3, 4)


def test_forms_name_themselves():
    assert [str(AnswerFormat(*form)) for form in [("soft",), ("soft", 0), ("top5", 2), ("hard", 2)]] == [
        "soft", "soft,decimals=0", "top5,decimals=2", "hard",
    ]  # fmt: skip
    assert [AnswerFormat(kind).top for kind in ("soft", "hard", "top1", "top12")] == [None, None, 1, 12]


def test_more_than_all_classes_cannot_be_shown():
    with pytest.raises(TeacherError, match="top5 of 4 classes; use top4 at most, or soft"):
        AnswerFormat("top5").apply(PROBS)


def test_ties_among_many_classes_go_to_the_lower_ones():
    """torch's plain sort and topk mix ties up from a few dozen values on."""
    probs = torch.full((2, 1000), 0.5 / 999)
    probs[:, 500] = 0.5
    shown = AnswerFormat("top5").apply(probs)
    assert [row.nonzero().flatten().tolist() for row in shown.probs] == [[0, 1, 2, 3, 500]] * 2
    # What the four share with the rest is the same, so the targets are what they were.
    assert torch.allclose(training_targets(shown, top=5), probs, atol=1e-6)


@given(st.integers(1, 7), st.integers(1, 8), st.integers(0, 9999), st.one_of(st.none(), st.integers(0, 4)))
@examples(80)
def test_top_k_shows_what_a_slow_sort_would(top, extra, seed, decimals):
    classes = top + extra
    counts = torch.randint(0, 4, (5, classes), generator=torch.Generator().manual_seed(seed)) + 1  # ties everywhere
    probs = counts.float() / counts.sum(dim=1, keepdim=True)
    shown = AnswerFormat(f"top{top}", decimals).apply(probs).probs
    for row, cut in zip(probs.double().tolist(), shown.tolist(), strict=True):
        kept = sorted(range(classes), key=lambda k: (-row[k], k))[:top]
        expected = [row[k] if k in kept else 0.0 for k in range(classes)]
        assert cut == exactly([v if decimals is None else round(v, decimals) for v in expected])


def test_answers_of_another_shape_are_refused_and_can_be_picked_from():
    with pytest.raises(TeacherError, match=r"have shape \[3, 4\]; expected \[3, 5\] for 3 images"):
        Answers(probs=PROBS, labels=torch.zeros(3, dtype=torch.int64), num_classes=5)
    with pytest.raises(TeacherError, match=r"expected \[2, 4\] for 2 images"):
        Answers(probs=PROBS, labels=torch.zeros(2, dtype=torch.int64), num_classes=4)
    picked = AnswerFormat().apply(PROBS)[torch.tensor([2, 0])]
    assert torch.equal(picked.probs, PROBS[[2, 0]])
    assert picked.labels.tolist() == [0, 2]
    assert AnswerFormat("hard").apply(PROBS)[torch.tensor([0])].probs is None


# ---- training targets


def test_a_label_becomes_a_one_hot_row():
    answers = Answers(probs=None, labels=torch.tensor([2, 0]), num_classes=3)
    assert training_targets(answers).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert training_targets(answers).dtype == torch.float32


def test_what_the_top_k_leave_is_spread_over_the_others():
    targets = training_targets(soft([0.6, 0.0, 0.2, 0.0]), top=2)
    assert targets.tolist() == [pytest.approx([0.6, 0.1, 0.2, 0.1])]
    # Nothing is left: rounded up past 1, the two are scaled and the others stay at zero.
    assert training_targets(soft([0.8, 0.0, 0.4, 0.0]), top=2).tolist() == [pytest.approx([2 / 3, 0, 1 / 3, 0])]
    # All classes shown: nothing to spread.
    assert training_targets(soft([0.5, 0.3, 0.1]), top=3).tolist() == [pytest.approx([5 / 9, 3 / 9, 1 / 9])]


def test_rounded_rows_are_scaled_and_a_row_rounded_to_nothing_becomes_its_label():
    answers = Answers(
        probs=torch.tensor([[0.33, 0.33, 0.33], [0.7, 0.4, 0.0], [0.0, 0.0, 0.0]]),
        labels=torch.tensor([1, 0, 2]),
        num_classes=3,
    )
    targets = training_targets(answers)
    assert targets.tolist() == [pytest.approx([1 / 3] * 3), pytest.approx([7 / 11, 4 / 11, 0]), [0, 0, 1]]


@given(
    st.integers(2, 9), st.sampled_from(["soft", "hard", "top"]), st.one_of(st.none(), st.integers(1, 4)),
    st.integers(1, 9), st.integers(0, 9999),
)  # fmt: skip
@examples(100)
def test_targets_are_probabilities_that_agree_with_the_label(classes, kind, decimals, top, seed):
    probs = (3 * torch.randn(6, classes, generator=torch.Generator().manual_seed(seed))).softmax(dim=1)
    form = AnswerFormat(f"top{min(top, classes)}" if kind == "top" else kind, decimals)
    answers = form.apply(probs)
    targets = training_targets(answers, form.top)
    assert (targets.dtype, targets.shape) == (torch.float32, (6, classes))
    assert float(targets.min()) >= 0
    assert torch.allclose(targets.sum(dim=1), torch.ones(6), atol=1e-6)
    if form.top is None or decimals is None:  # rounded down, the k may each be less than an even share of the rest
        assert bool((targets.gather(1, answers.labels.view(-1, 1)).squeeze(1) >= targets.amax(dim=1) - 1e-6).all())
    if (kind, decimals) == ("soft", None):
        assert torch.allclose(targets, probs, atol=1e-6)


# ---- checks


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.5, 0.5]], r"answered 2 images with an array of shape \[1, 2\]; expected \[2, 2\]"),
        ([[0.5, 0.3, 0.2]] * 2, r"shape \[2, 3\]; expected \[2, 2\]: check teacher.classes"),
        ([0.5, 0.5], r"shape \[2\]; expected \[2, 2\]"),
    ],
)
def test_probabilities_of_another_shape_are_refused_as_a_whole(rows, message):
    with pytest.raises(TeacherError, match=message):
        check_probabilities(torch.tensor(rows), 2, 2, tolerance=0.01)


def test_rows_that_cannot_be_probabilities_are_named_and_the_others_are_not():
    rows = [[0.5, 0.5], [math.nan, 0.5], [1, 0], [math.inf, 0.5], [1.5, -0.5], [0.5, 0.75], [0.25, 0.25], [0.3, 0.7]]
    assert check_probabilities(torch.tensor(rows), 8, 2, tolerance=0.01) == {
        1: "the teacher's probabilities hold NaN or infinity",
        3: "the teacher's probabilities hold NaN or infinity",
        4: "the teacher answered a negative probability (-0.5); does it give logits?",
        5: "the teacher's probabilities sum to 1.25, not 1; each lies in 0..1, so they look like scores of several "
        "labels at once (sigmoid), which no student can be trained on; kdray takes probabilities of one class among "
        "all, their logits, or one label an image",
        6: "the teacher's probabilities sum to 0.5, not 1; does it leave classes out?",
    }


def test_sums_within_the_tolerance_pass():
    rows = torch.tensor([[0.5, 0.508], [1.0, 0.0], [0.5, 0.492], [0.5, 0.512], [0.5, 0.488]])
    assert set(check_probabilities(rows, 5, 2, tolerance=0.01)) == {3, 4}
    assert check_probabilities(torch.zeros(0, 2), 0, 2, tolerance=0.01) == {}


def test_labels_that_name_no_class_are_named():
    assert check_labels(np.array([0, -1, 2, 3]), 3) == {
        1: "the teacher answered label -1; labels lie in 0..2: check teacher.classes",
        3: "the teacher answered label 3; labels lie in 0..2: check teacher.classes",
    }


def test_answers_with_a_bad_row_can_be_believed_only_without_it():
    form, bad = AnswerFormat("top2"), {1: "nonsense", 2: "more nonsense"}
    answers = form.apply(PROBS, bad)
    assert dict(answers.bad) == bad and form.apply(PROBS).believed().bad == {}
    assert AnswerFormat("hard").apply(PROBS, bad).bad == bad
    with pytest.raises(TeacherError, match=r"^nonsense$"):
        answers.believed()


# ---- local teachers


@pytest.mark.parametrize("batch_size", [3, 7, 16, 128])
@pytest.mark.parametrize(("name", "shape"), [("lenet5", (1, 28, 28)), ("small-cnn", (3, 13, 11))])
def test_an_answer_depends_on_the_image_alone(name, shape, batch_size):
    """To the bit: alone, in any order, in any company, as the odd one of a last batch."""
    teacher = LocalTeacher(
        build_model(name, shape, 10, seed=0).eval(), identity="t", num_classes=10, form=AnswerFormat(),
        batch_size=batch_size,
    )  # fmt: skip
    data = images(19, shape)
    together = teacher.answer(data)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(1))
    assert torch.equal(teacher.answer(data[order]).probs, together.probs[order])
    for k in range(19):
        assert torch.equal(teacher.answer(data[k : k + 1]).probs[0], together.probs[k])
    for count in (2, batch_size - 1, batch_size, batch_size + 1):
        assert torch.equal(teacher.answer(data[:count]).probs, together.probs[:count])
    assert together.probs.shape == (19, 10)
    assert torch.equal(together.labels, together.probs.argmax(dim=1))


class Network(nn.Module):
    """A model from elsewhere: floats in, logits out, any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(400, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.convolution(x)).relu().flatten(1))


class Uint8Probabilities(Network):
    """Pixels in, probabilities out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x.float() / 255.0 - 0.4) / 0.3).softmax(dim=1)


def network(kind: type[Network] = Network, seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().eval()


def script(model: nn.Module, path: Path) -> Path:
    example = torch.zeros(2, *SHAPE, dtype=torch.uint8 if isinstance(model, Uint8Probabilities) else torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.trace(model, example).save(path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """`network()` as a torch.export file that takes any batch."""
    path = tmp_path_factory.mktemp("exported") / "network.pt2"
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network(), (torch.zeros(2, *SHAPE),), dynamic_shapes=dynamic), path)
    return path


def directly(model: nn.Module, data: torch.Tensor, mean: float = 0.4, std: float = 0.3) -> torch.Tensor:
    with torch.inference_mode():
        return model((data.float() / 255 - mean) / std).softmax(dim=1)


def test_a_torch_export_file_answers_as_its_model_does(exported):
    teacher, data = local(exported, input=NORMALISE).build(SHAPE), images(9)
    assert torch.allclose(teacher.answer(data).probs, directly(network(), data), atol=1e-6)
    plain = local(exported, answers="hard").build(SHAPE).answer(data)
    assert torch.equal(plain.labels, directly(network(), data, 0.0, 1.0).argmax(dim=1))
    assert plain.probs is None


def test_a_torchscript_file_answers_as_its_model_does(tmp_path):
    teacher, data = (
        local(script(network(), tmp_path / "n.pt"), input=NORMALISE).build(SHAPE),
        images(9),
    )
    assert torch.allclose(teacher.answer(data).probs, directly(network(), data), atol=1e-6)
    assert (teacher.num_classes, teacher.metered, teacher.image_shape) == (3, False, None)


def test_a_program_may_take_pixels_and_give_probabilities(tmp_path):
    path = script(network(Uint8Probabilities), tmp_path / "p.pt")
    teacher, data = local(path, input={"pixels": "uint8"}, outputs="probabilities").build(SHAPE), images(9)
    assert torch.allclose(teacher.answer(data).probs, directly(network(), data), atol=1e-6)
    with pytest.raises(TeacherError, match=r"gives probabilities, not logits: set teacher\.outputs to probabilities$"):
        local(path, input={"pixels": "uint8"}).build(SHAPE).answer(data)  # their softmax would be nearly uniform


def save_zoo(path: Path, seed: int = 0, classes: tuple[str, ...] | None = ("a", "b", "c")) -> nn.Module:
    """kdray's own file of a small-cnn; returns the model."""
    model = build_model("small-cnn", SHAPE, 3, seed=seed, mean=[0.4], std=[0.3]).eval()
    save_model(path, model, ModelCard(model="small-cnn", image_shape=SHAPE, num_classes=3, classes=classes))
    return model


def test_kdrays_own_weights_bring_their_normalisation_and_classes(tmp_path):
    path, data = tmp_path / "own.safetensors", images(9)
    model = save_zoo(path)
    before = torch.get_rng_state()
    config = local(path, model="small-cnn", classes=None)
    teacher = config.build(SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        assert torch.allclose(teacher.answer(data).probs, model(data).softmax(dim=1), atol=1e-6)
    assert (teacher.num_classes, teacher.image_shape) == (3, SHAPE)
    assert config.class_names() == ("a", "b", "c")
    assert local(path, model="small-cnn", classes=["x", "y", "z"]).class_names() == ("x", "y", "z")


def test_a_plain_state_dict_of_the_zoo_needs_classes_and_takes_normalisation(tmp_path):
    path, data = tmp_path / "plain.safetensors", images(9)
    model = build_model("small-cnn", SHAPE, 3, seed=1).eval()
    save_file(model.network.state_dict(), path)
    teacher = local(path, model="small-cnn", input=NORMALISE).build(SHAPE)
    assert torch.allclose(teacher.answer(data).probs, directly(model.network, data), atol=1e-6)
    plain = local(path, model="small-cnn", classes=["x", "y", "z"]).build(SHAPE)
    assert torch.allclose(plain.answer(data).probs, directly(model.network, data, 0.5, 0.25), atol=1e-6)
    with pytest.raises(TeacherError, match=r"teacher.classes is missing, and .*plain\.safetensors does not say"):
        local(path, model="small-cnn", classes=None).build(SHAPE)


def test_torchvision_weights_answer_as_their_model_does(tmp_path):
    import torchvision

    shape, data = (3, 32, 32), images(5, (3, 32, 32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.resnet18(weights=None, num_classes=3).eval()
    path = tmp_path / "resnet18.safetensors"
    save_file(model.state_dict(), path)
    teacher = local(path, model="torchvision/resnet18").build(shape)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.allclose(teacher.answer(data).probs, directly(model, data, mean, std), atol=1e-6)
    own = local(path, model="torchvision/resnet18", input={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]})
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.allclose(own.build(shape).answer(data).probs, directly(model, data, mean, std), atol=1e-6)
    with pytest.raises(TeacherError, match=r"teacher\.classes is missing"):
        local(path, model="torchvision/resnet18", classes=None).build(shape)
    with pytest.raises(ModelError, match=r"fc.weight is \[3, 512\], the model has \[4, 512\]"):
        local(path, model="torchvision/resnet18", classes=4).build(shape)


def test_the_form_of_the_answers_is_kept(tmp_path):
    path, data = tmp_path / "own.safetensors", images(9)
    save_zoo(path)
    full = local(path, model="small-cnn").build(SHAPE).answer(data)
    for kind, decimals in [("hard", None), ("top2", None), ("soft", 1), ("top2", 1)]:
        config = local(path, model="small-cnn", answers=kind, decimals=decimals)
        expected, got = AnswerFormat(kind, decimals).apply(full.probs), config.build(SHAPE).answer(data)
        assert torch.equal(got.labels, expected.labels)
        assert (got.probs is None) == (expected.probs is None)
        assert got.probs is None or torch.equal(got.probs, expected.probs)


def test_another_model_or_form_is_another_identity_and_nothing_else_is(tmp_path):
    first, other, copy = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "sub" / "c.safetensors"
    save_zoo(first)
    save_zoo(other, seed=1)
    copy.parent.mkdir()
    shutil.copy(first, copy)
    name = lambda path, **changes: local(path, model="small-cnn", **changes).build(SHAPE).identity  # noqa: E731
    assert name(first) == name(copy) == name(first, batch_size=9) == name(first, classes=["x", "y", "z"])
    different = [
        name(first), name(other), name(first, answers="hard"), name(first, answers="top2"), name(first, answers="top1"),
        name(first, decimals=2), name(first, decimals=3), name(first, answers="top2", decimals=2),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert name(first).startswith("local:small-cnn:")


def test_how_a_program_is_fed_is_part_of_its_identity(exported):
    configs = [{}, {"input": NORMALISE}, {"input": {"mean": [0.4], "std": [0.31]}}]
    assert len({local(exported, **changes).build(SHAPE).identity for changes in configs}) == 3


def test_files_that_are_no_teacher_are_refused(tmp_path, exported):
    missing = tmp_path / "missing.pt"
    with pytest.raises(TeacherError, match=r"no file at .*missing\.pt; check the path"):
        local(missing).build(SHAPE)
    train = {"images": {"source": "digits"}}
    with pytest.raises(TeacherError, match="train it with 'kdray teacher train CONFIG'"):
        local(missing, model="small-cnn", train=train).build(SHAPE)
    for name in ("garbage.pt", "garbage.pt2"):
        (tmp_path / name).write_bytes(b"garbage " * 99)
        with pytest.raises(TeacherError, match=r"is neither TorchScript nor a torch.export file \(.pt2\)"):
            local(tmp_path / name).build(SHAPE)
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage " * 99)
    with pytest.raises(ModelError, match=r"garbage\.safetensors is not a readable safetensors file"):
        local(tmp_path / "garbage.safetensors", model="small-cnn").build(SHAPE)
    with pytest.raises(TeacherError, match="a saved program does not say how many classes it has"):
        local(exported, classes=None).build(SHAPE)
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(TeacherError, match=r"for plain safetensors set teacher\.model"):
        local(tmp_path / "plain.safetensors").build(SHAPE)


def test_misfits_show_when_a_zoo_teacher_is_built(tmp_path):
    path = tmp_path / "own.safetensors"
    save_zoo(path)
    with pytest.raises(ModelError, match=r"teacher.model is 'lenet5', but .* holds the weights of a 'small-cnn'"):
        local(path, model="lenet5").build(SHAPE)
    with pytest.raises(ModelError, match=r"gives 4 classes, but .* holds a model of 3"):
        local(path, model="small-cnn", classes=4).build(SHAPE)
    with pytest.raises(
        TeacherError, match=r"takes images of shape \(1, 12, 12\) .* but is asked about images of \(3, 12, 12\)"
    ):
        local(path, model="small-cnn").build((3, 12, 12))
    for kind in ("top4", "top5"):
        with pytest.raises(
            TeacherError, match=f"teacher.answers: {kind} of a teacher with 3 classes; use top3 at most"
        ):
            local(path, model="small-cnn", answers=kind).build(SHAPE)
    local(path, model="small-cnn", answers="top3").build(SHAPE)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(
        ModelError, match=r"own\.safetensors: the weights do not fit the model: .*1 unknown \(first: weight\)"
    ):
        local(path, model="small-cnn").build(SHAPE)


def test_misfits_show_when_a_program_is_built(tmp_path):
    path = script(network(), tmp_path / "n.pt")
    with pytest.raises(TeacherError, match=r"cannot answer images of shape \[1, 13, 13\]"):
        local(path).build((1, 13, 13))
    with pytest.raises(TeacherError, match=r"cannot answer images of shape \[3, 12, 12\]"):
        local(path).build((3, 12, 12))
    with pytest.raises(TeacherError, match=r"cannot answer images of shape \[1, 12, 12\]"):
        local(path, input={"pixels": "uint8"}).build(SHAPE)
    with pytest.raises(TeacherError, match=r"shape \[4, 3\]; expected \[4, 5\]: check teacher.classes"):
        local(path, classes=5).build(SHAPE)
    with pytest.raises(TeacherError, match="does it give logits"):
        local(path, outputs="probabilities").build(SHAPE)
    with pytest.raises(
        TeacherError, match="2 means and 2 standard deviations, but the teacher's images have 1 channel"
    ):
        local(path, input={"mean": [0.1, 0.2], "std": [1.0, 1.0]}).build(SHAPE)


def test_a_config_section_gives_its_kind_of_teacher(tmp_path, monkeypatch):
    path = tmp_path / "own.safetensors"
    save_zoo(path)
    assert isinstance(local(path, model="small-cnn").build(SHAPE), LocalTeacher)
    module(tmp_path, monkeypatch, "kdray_test_kinds", "def labels(images): return [0] * len(images)")
    assert isinstance(python("kdray_test_kinds:labels", answers="hard").build(SHAPE), FunctionTeacher)


# ---- functions


def function_teacher(function, kind: str = "soft", decimals: int | None = None) -> FunctionTeacher:
    return FunctionTeacher(function, identity="f", num_classes=3, form=AnswerFormat(kind, decimals))


GOOD = [0.25, 0.5, 0.25]


def brightness(data: np.ndarray) -> np.ndarray:
    """Probabilities that tell images apart, float64."""
    level = data.reshape(len(data), -1).mean(axis=1) / 255
    return np.stack([level / 2, (1 - level) / 2, np.full(len(data), 0.5)], axis=1)


def test_a_function_gets_the_pixels_and_its_probabilities_come_back():
    data, got = images(4), []
    answers = function_teacher(lambda x: got.append(x) or brightness(x)).answer(data)
    assert len(got) == 1
    assert isinstance(got[0], np.ndarray)
    assert got[0].dtype == np.uint8
    assert np.array_equal(got[0], data.numpy())
    assert torch.equal(answers.probs, torch.from_numpy(brightness(data.numpy()).astype(np.float32)))
    assert answers.labels.tolist() == [2] * 4


@pytest.mark.parametrize(
    "convert",
    [
        lambda p: p.tolist(),
        lambda p: p.astype(np.float32),
        np.asfortranarray,
        torch.from_numpy,
        lambda p: torch.from_numpy(p).float().requires_grad_(),
    ],
    ids=["list", "float32", "fortran", "torch", "torch-with-gradient"],
)
def test_any_array_of_probabilities_will_do(convert):
    data = images(4)
    answers = function_teacher(lambda x: convert(brightness(x))).answer(data)
    assert torch.allclose(answers.probs, torch.from_numpy(brightness(data.numpy())).float(), atol=1e-7)
    assert not answers.probs.requires_grad


def test_probabilities_are_cut_to_the_form():
    assert function_teacher(lambda x: [[0.26, 0.5, 0.24]], "top2", 1).answer(images(1)).probs.tolist() == exactly(
        [[0.3, 0.5, 0.0]]
    )
    hard = function_teacher(lambda x: [[0.26, 0.5, 0.24]], "hard").answer(images(1))
    assert (hard.probs, hard.labels.tolist()) == (None, [1])


@pytest.mark.parametrize("convert", [list, np.asarray, np.uint8, torch.tensor], ids=["list", "int64", "uint8", "torch"])
def test_labels_will_do_where_hard_answers_are_asked_for(convert):
    answers = function_teacher(lambda x: convert([2, 0, 1]), "hard").answer(images(3))
    assert (answers.probs, answers.labels.tolist(), answers.labels.dtype) == (None, [2, 0, 1], torch.int64)
    with pytest.raises(
        TeacherError, match=r"returned labels, but teacher\.answers is 'soft'; set teacher\.answers to hard"
    ):
        function_teacher(lambda x: convert([2, 0, 1])).answer(images(3))


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        ([[0.5, 0.5]] * 2, "soft", r"shape \[2, 2\]; expected \[2, 3\]: check teacher.classes"),
        ([[0.2, 0.3, 0.5]], "soft", r"shape \[1, 3\]; expected \[2, 3\]"),
        ([0.2, 0.8], "soft", r"shape \[2\]; expected \[2, 3\]"),
        ([0, 1, 2], "hard", "returned 3 labels for 2 images"),
        (
            ["cat", "dog"],
            "hard",
            r"returned <U3 of shape \[2\]; expected probabilities \[2, 3\] or integer labels \[2\]",
        ),
        ([[0], [1]], "hard", r"returned int64 of shape \[2, 1\]"),
        ([True, False], "hard", r"returned bool of shape \[2\]"),
        (None, "soft", r"returned object of shape \[\]"),
        ([[0.5, 0.5], [1.0]], "soft", "returned something that is no array"),
    ],
)
def test_what_is_no_answer_is_refused(reply, kind, message):
    with pytest.raises(TeacherError, match=message):
        function_teacher(lambda x: reply, kind).answer(images(2))


@pytest.mark.parametrize(
    ("reply", "kind", "bad"),
    [
        ([[2.0, -1.0, 0.0], GOOD], "soft", {0: "a negative probability (-1); does it give logits"}),
        ([GOOD, [3.0, 1.0, 2.0]], "soft", {1: "sum to 6, not 1; does it give logits"}),
        ([[3.0, 1.0, 2.0]] * 2, "hard", {0: "sum to 6", 1: "sum to 6"}),
        ([[math.nan, 0.5, 0.5], GOOD], "soft", {0: "hold NaN"}),
        ([[math.nan, 0.5, 0.5], GOOD], "hard", {0: "hold NaN"}),
        ([1, 3], "hard", {1: "answered label 3; labels lie in 0..2: check teacher.classes"}),
        ([-1, 1], "hard", {0: "answered label -1; labels lie in 0..2"}),
    ],
)
def test_a_row_that_makes_no_sense_is_named_and_costs_the_others_nothing(reply, kind, bad):
    answers = function_teacher(lambda x: reply, kind).answer(images(2))
    assert set(answers.bad) == set(bad)
    assert all(bad[row] in answers.bad[row] for row in bad)
    for row in {0, 1} - set(bad):
        assert answers.labels[row] == 1
        assert kind == "hard" or answers.probs[row].tolist() == GOOD


def test_what_a_function_raises_is_told_and_what_stops_the_user_is_not_caught():
    def broken(data):
        raise KeyError("no such endpoint")

    with pytest.raises(TeacherError, match="the teacher function failed: KeyError: 'no such endpoint'") as caught:
        function_teacher(broken).answer(images(1))
    assert isinstance(caught.value.__cause__, KeyError)

    def interrupted(data):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        function_teacher(interrupted).answer(images(1))


def module(folder: Path, monkeypatch, name: str, text: str) -> None:
    """A module of the user's, in the folder the command runs in; forgotten after the test."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, name)


def test_a_function_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    module(
        tmp_path, monkeypatch, "kdray_test_module",
        "class Client:\n    @staticmethod\n    def ask(images): return [[0.5, 0.25, 0.25]] * len(images)\n",
    )  # fmt: skip
    teacher = python("kdray_test_module:Client.ask", classes=["a", "b", "c"]).build((1, 8, 8))
    assert teacher.answer(images(2)).probs.tolist() == [[0.5, 0.25, 0.25]] * 2
    assert (teacher.num_classes, teacher.metered) == (3, True)
    assert not python("kdray_test_module:Client.ask", metered=False).build((1, 8, 8)).metered


def test_a_function_given_stands_in_for_the_import():
    teacher = python("nowhere:nothing", answers="hard").around(lambda x: [1] * len(x))
    assert teacher.answer(images(2)).labels.tolist() == [1, 1]


def test_a_function_is_known_by_its_name_and_form():
    name = lambda **changes: python(**changes).around(brightness).identity  # noqa: E731
    assert name() == "python:module:function:soft"
    assert name(name="my API, May") == "python:my API, May:soft"
    assert name(answers="top2", decimals=3) == "python:module:function:top2,decimals=3"


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("", "kdray_test_absent:ask", "cannot import kdray_test_absent:ask .*No module named 'kdray_test_absent'"),
        ("def ask(x): pass", "kdray_test_import:asks", "cannot import kdray_test_import:asks .*no attribute 'asks'"),
        ("def ask(x) pass", "kdray_test_import:ask", "cannot import kdray_test_import:ask"),
        ("import kdray_test_absent", "kdray_test_import:ask", "No module named 'kdray_test_absent'"),
        ("ask = 3", "kdray_test_import:ask", "teacher.function: kdray_test_import:ask is not callable"),
    ],
    ids=["no module", "no function", "syntax", "import inside", "not callable"],
)
def test_a_function_that_cannot_be_imported_is_named(text, function, message, tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, "kdray_test_import", text)
    with pytest.raises(TeacherError, match=message):
        python(function).build((1, 8, 8))


def test_a_function_cannot_show_more_than_all_classes():
    with pytest.raises(TeacherError, match="top5 of a teacher with 3 classes; use top3 at most, or soft"):
        python(answers="top5").around(brightness)


# ---- asking in this process


def test_the_pool_of_this_process_asks_in_order_when_it_is_collected():
    events: list[str] = []
    teacher = function_teacher(lambda x: events.append(f"asked {len(x)}") or brightness(x))
    pool = LocalTeacherPool(teacher)
    assert (pool.teacher, pool.slots, pool.collect(None)) == (teacher, 1, [])
    for key, count in (("a", 2), ("b", 3)):
        pool.send(key, images(count))
    assert events == []
    replies = [*pool.collect(None), *pool.collect(0.0)]
    assert events == ["asked 2", "asked 3"]
    assert [(reply.key, reply.fault, len(reply.answers)) for reply in replies] == [("a", None, 2), ("b", None, 3)]
    assert torch.equal(replies[0].answers.probs, teacher.answer(images(2)).probs)
    assert pool.collect(None) == []
    pool.close()


def test_what_a_teacher_here_refuses_has_failed_for_good():
    pool = LocalTeacherPool(function_teacher(lambda x: [[0.5, 0.5]]))
    pool.send("a", images(1))
    (reply,) = pool.collect(None)
    assert (reply.key, reply.answers, reply.fault.kind) == ("a", None, "failed")
    assert reply.fault.final and reply.fault.charged and "check teacher.classes" in reply.fault.message


def test_a_bad_row_is_no_fault_of_the_batch():
    pool = LocalTeacherPool(function_teacher(lambda x: [[9.0, 9.0, 9.0], GOOD]))
    pool.send("a", images(2))
    (reply,) = pool.collect(None)
    assert reply.fault is None and set(reply.answers.bad) == {0} and reply.answers.probs[1].tolist() == GOOD


def test_what_a_fault_means_for_money_and_for_asking_again():
    meaning = {kind: Fault(kind=kind, message="x") for kind in typing.get_args(FaultKind)}
    charged = {kind for kind, fault in meaning.items() if fault.charged}
    assert charged == {"lost", "malformed", "doubtful", "failed"}
    assert {kind for kind, fault in meaning.items() if fault.final} == {"refused", "failed"}
    assert set(meaning) - charged == {"refused", "throttled", "unsent", "declined", "oversized"}


def test_answers_with_a_gradient_are_kept_without_it():
    """A teacher of the user's own may forget torch.no_grad; what it answered is paid."""
    probs = torch.full((2, 3), 1 / 3, requires_grad=True) * 1.0
    reply = as_reply("key", Answers(probs=probs, labels=torch.tensor([0, 1]), num_classes=3))
    assert reply.key == "key" and not reply.answers.probs.requires_grad
    assert np.allclose(reply.answers.rows().probs, 1 / 3)
