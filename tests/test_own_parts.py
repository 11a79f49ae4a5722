"""A user's own loss, model and image source: named as module:object, checked, and used like those of kdray."""

import subprocess
import sys

import pytest
import torch

from kdray.config.load import dump_config, load_config, parse_config
from kdray.errors import ConfigError, ImageSetError, ModelError
from kdray.images.base import read_images, sources
from kdray.models.base import find_model
from kdray.models.checkpoint import ModelCard, load_student, model_bytes, save_model
from kdray.models.classifier import build_model
from kdray.runs.student_check import check_student
from kdray.training.fitting import StudentSpec, fit
from kdray.training.loop import train
from kdray.training.losses.base import check_loss, losses
from kdray.training.recipe import Recipe, StudentSection
from kdray.utils.seeds import numpy_generator

SHAPE = (1, 6, 5)


def config(**changes) -> dict:
    return {
        "images": {"source": "digits"},
        "teacher": {"kind": "local", "weights": "teacher.safetensors"},
        "budget": {"queries": 10},
        **changes,
    }


def refusal(**changes) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(config(**changes))
    return str(error.value).removeprefix("config: ")


# Losses

LOSS = """
from kdray.training.losses.base import Loss

class Brier(Loss):
    weight: float = 1.0

    def __call__(self, logits, targets):
        return self.weight * (logits.softmax(dim=1) - targets).square().sum(dim=1).mean()

class NoCall(Loss):
    pass

class PerImage(Loss):
    def __call__(self, logits, targets):
        return (logits - targets).square().sum(dim=1)

class Detached(Loss):
    def __call__(self, logits, targets):
        return (logits - targets).detach().sum()

class Number(Loss):
    def __call__(self, logits, targets):
        return (logits - targets).sum().item()

class Broken(Loss):
    def __call__(self, logits, targets):
        return logits @ targets

class Mixes(Brier):
    labels_mixes = True

class SoftOnly(Loss):
    def __call__(self, logits, targets):
        return (targets * (targets.log() - logits.log_softmax(dim=1))).sum(dim=1).mean()

function = len
"""


def test_a_loss_of_the_users_own_is_trained_with_and_written_into_the_run(own, tmp_path):
    name = own(LOSS)
    parsed = parse_config(config(student={"loss": {"kind": f"{name}:Brier", "weight": 2.0}}))
    assert parsed.student.loss.model_dump() == {"kind": f"{name}:Brier", "weight": 2.0}
    (tmp_path / "dumped.yaml").write_text(dump_config(parsed))
    assert load_config(tmp_path / "dumped.yaml") == parsed
    assert parse_config(config(student={"loss": f"{name}:Brier"})).student.loss.weight == 1.0
    images, targets = torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.full((8, 2), 0.5)
    reported = []
    for weight in (1.0, 2.0):
        recipe = Recipe(epochs=1, device="cpu", loss=losses.parse({"kind": f"{name}:Brier", "weight": weight}))
        model = build_model("small-cnn", (1, 16, 16), 2, seed=0)
        reported += train(model, images, targets, recipe, seed=0, threads=1).losses
    assert reported[0] > 0 and reported[1] == pytest.approx(2 * reported[0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("NoCall", "student.loss.kind: {}:NoCall lacks __call__(); see docs/extending.md"),
        ("function", "student.loss.kind: {}:function is not a subclass of kdray.training.losses.base.Loss; see docs"),
        ("Nothing", "student.loss.kind: cannot import {}:Nothing (AttributeError: "),
    ],
)
def test_what_is_no_loss_is_refused_with_the_config(own, kind, message):
    name = own(LOSS)
    assert refusal(student={"loss": f"{name}:{kind}"}).startswith(message.format(name))


def test_a_wrong_field_of_a_users_own_loss_is_named_by_its_path(own):
    name = own(LOSS)
    told = refusal(student={"loss": {"kind": f"{name}:Brier", "weight": "x", "wieght": 1}}).splitlines()
    assert told[0].startswith("student.loss.weight: input should be a valid number")
    assert told[1].strip() == "unknown key 'student.loss.wieght'; did you mean 'weight'?"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("PerImage", r"gave a tensor of shape \[2\] with a gradient; it must give a scalar with one"),
        ("Detached", r"gave a tensor of shape \[\] without a gradient; it must give a scalar with one"),
        ("Number", "gave a float; it must give a scalar tensor"),
        ("SoftOnly", "gave nan for logits of 0 and targets of which one is a hard label; it must give a finite number"),
        ("Broken", r"failed on logits \[2, 3\] \(RuntimeError: "),
        ("Mixes", r"failed on logits \[2, 3\] \(TypeError: .*'distil'"),
    ],
)
def test_a_loss_that_gives_something_else_is_refused_before_training(own, kind, message):
    name = own(LOSS)
    loss = losses.parse(f"{name}:{kind}")
    with pytest.raises(ConfigError, match=f"student.loss: {name}:{kind} {message}"):
        check_loss(loss, 3, "student.loss")
    images, targets = torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.full((2, 3), 1 / 3)
    with pytest.raises(ConfigError, match=message):
        train(build_model("lenet5", (1, 16, 16), 3, seed=0), images, targets, Recipe(loss=loss), seed=0)


def test_a_run_refuses_such_a_loss_before_anything_is_paid(own, make_config):
    from kdray.runs.inputs import read_inputs

    name = own(LOSS)
    with pytest.raises(ConfigError, match=rf"student.loss: {name}:PerImage gave a tensor of shape \[2\]"):
        read_inputs(make_config(student__loss=f"{name}:PerImage", resources__trainer__threads=1))


# Models

MODEL = """
import torch
from torch import nn

def mlp(image_shape, classes):
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 4), nn.Dropout(0.5), nn.Linear(4, classes))

def ten(image_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 10))

def text(image_shape, classes):
    return "a network"

def nothing(image_shape):
    return mlp(image_shape, 2)

def wide(image_shape, classes):
    return nn.Linear(99, classes)

def fixed(image_shape, classes):
    network = mlp(image_shape, classes)
    return network.requires_grad_(False)

def spare(image_shape, classes):
    network = mlp(image_shape, classes)
    network.spare = nn.Parameter(torch.zeros(3))
    network.forward = lambda x: nn.Sequential.forward(network, x)
    return network

class Pair(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return (self.inner(x), x) if self.training else self.inner(x)

def pair(image_shape, classes):
    return Pair(mlp(image_shape, classes))

class Linear(nn.Module):
    # named arguments, in any order, with or without defaults

    def __init__(self, num_classes=7, *, image_shape, bias=True):
        super().__init__()
        channels, height, width = image_shape
        self.layer = nn.Linear(channels * height * width, num_classes, bias=bias)

    def forward(self, x):
        return self.layer(x.flatten(1))

class Convolution(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Conv2d(1, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Positional(Linear):
    def __init__(self, shape, num_classes):
        super().__init__(image_shape=shape, num_classes=num_classes)

class TooMany(Linear):
    def __init__(self, image_shape, num_classes, depth):
        super().__init__(num_classes, image_shape=image_shape)

class Wrong(Linear):
    def __init__(self, num_classes, image_shape):
        super().__init__(num_classes + 1, image_shape=image_shape)

class Tied(nn.Sequential):
    def __init__(self, image_shape, num_classes):
        first, second = nn.Linear(30, 30), nn.Linear(30, 30)
        second.weight = first.weight
        super().__init__(nn.Flatten(), first, nn.ReLU(), second, nn.Linear(30, num_classes))

class Lazy(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(num_classes))

class Skips(nn.Module):
    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.first, self.some, self.last = nn.Linear(30, 8), nn.Linear(8, 8), nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.first(x.flatten(1))
        if not self.training or torch.rand(()) < 0.5:
            x = x + self.some(x)
        return self.last(x)

class Normalised(nn.Sequential):
    def __init__(self, image_shape, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(30, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))

network = Convolution(3)
number = 3
"""


@pytest.mark.parametrize("name", ["Linear", "Convolution", "Positional"])
def test_a_class_of_the_users_own_is_a_model_too(own, name):
    model = build_model(f"{own(MODEL)}:{name}", SHAPE, 3, seed=0)
    assert type(model.network).__name__ == name
    assert model(torch.zeros(2, *SHAPE, dtype=torch.uint8)).shape == (2, 3)


def test_a_model_of_the_users_own_is_built_trained_saved_and_loaded(own, tmp_path):
    name = f"{own(MODEL)}:mlp"
    assert parse_config(config(student={"model": name})).student.model == name
    assert not find_model(name).light
    before = torch.get_rng_state()
    model = build_model(name, SHAPE, 3, seed=4)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    again = build_model(name, SHAPE, 3, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    card = ModelCard(model=name, image_shape=SHAPE, num_classes=3)
    images = torch.arange(60, dtype=torch.uint8).view(2, *SHAPE)
    spec = StudentSpec(card=card, mean=[0.5], std=[0.25], recipe=Recipe(epochs=2, device="cpu"), seed=0, threads=1)
    content, result = fit(spec, images, torch.full((2, 3), 1 / 3), 0)
    assert len(result.losses) == 2
    (tmp_path / "student.safetensors").write_bytes(content)
    student = load_student(tmp_path)
    assert student(images).shape == (2, 3) and model_bytes(student, card) == content


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.storm)])
@pytest.mark.parametrize("name", ["Tied", "Lazy", "Skips"])
def test_unusual_networks_are_trained_saved_and_loaded(name, optimizer, own, tmp_path):
    """Layers that share weights, that learn their shape from an image, and that are left out at random."""
    name = f"{own(MODEL)}:{name}"
    card = ModelCard(model=name, image_shape=SHAPE, num_classes=3)
    images = torch.arange(240, dtype=torch.uint8).view(8, *SHAPE)
    how = Recipe(steps=20, batch_size=4, optimizer=optimizer, device="cpu")
    for seed in range(3):
        spec = StudentSpec(card=card, mean=[0.5], std=[0.25], recipe=how, seed=seed, threads=1)
        content, _ = fit(spec, images, torch.full((8, 3), 1 / 3), 0)
        (tmp_path / "student.safetensors").write_bytes(content)
        student = load_student(tmp_path)
        assert model_bytes(student, card) == content == fit(spec, images, torch.full((8, 3), 1 / 3), 0)[0]
        assert student(images).isfinite().all()


def test_a_network_that_normalises_over_a_batch_needs_more_than_single_images(own):
    name = f"{own(MODEL)}:Normalised"
    check_student(StudentSection(model=name), SHAPE)
    with pytest.raises(ConfigError, match=r"student\.batch_size: .*Normalised cannot be trained on single images"):
        check_student(StudentSection(model=name, batch_size=1), SHAPE)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("ten", r"gives torch.float32 \[2, 10\] for two images and 3 classes; it must give float logits \[2, 3\]"),
        ("text", "gave a str, not a torch.nn.Module"),
        ("nothing", r"\(\(1, 6, 5\), 3\) failed \(TypeError: "),
        ("wide", r"cannot take float images \[2, 1, 6, 5\] \(RuntimeError: "),
        ("fixed", "has no parameters to train"),
        ("spare", "do not depend on its parameter spare; remove it"),
        ("pair", "gives a tuple for two images"),
        ("TooMany", r"\(\(1, 6, 5\), 3\) failed \(TypeError: .*'depth'"),
        ("Wrong", r"gives torch.float32 \[2, 4\] for two images and 3 classes; it must give float logits \[2, 3\]"),
        ("network", "is a network already; name its class, or a function that makes one"),
    ],
)
def test_a_function_that_makes_no_classifier_is_refused(own, function, message):
    name = own(MODEL)
    with pytest.raises(ModelError, match=rf"{name}:{function}.*{message}"):
        build_model(f"{name}:{function}", SHAPE, 3, seed=0)


@pytest.mark.parametrize(
    ("function", "message"),
    [("number", "it is a int, not a class or a function"), ("missing", "cannot import {}:missing (AttributeError: ")],
)
def test_what_is_no_model_is_refused_with_the_config(own, function, message):
    name = own(MODEL)
    told = refusal(student={"model": f"{name}:{function}"})
    assert told.startswith(f"student.model: no model '{name}:{function}': ") and message.format(name) in told


def test_a_student_of_a_module_that_is_not_here_says_so(own, tmp_path):
    name = f"{own(MODEL)}:mlp"
    path = tmp_path / "m.safetensors"
    save_model(path, build_model(name, SHAPE, 3, seed=0), ModelCard(model=name, image_shape=SHAPE, num_classes=3))
    module = name.partition(":")[0]
    sys.modules.pop(module)
    (tmp_path / f"{module}.py").unlink()
    with pytest.raises(ModelError, match=rf"m\.safetensors holds a '{name}', which cannot be built here: .*No module"):
        load_student(path)


# Image sources

SOURCE = """
from typing import ClassVar
import numpy as np
from PIL import Image
from kdray.images.base import ImageRows, ImageSource

class Ramp(ImageSource):
    path_fields: ClassVar[tuple[str, ...]] = ("file",)
    file: str
    steps: int = 4
    labels: str = "whole"

    def open(self, field):
        labels = {
            "whole": lambda rows: rows % 2,
            "halves": lambda rows: rows / 2,
            "few": lambda rows: rows[:1],
            "words": lambda rows: np.asarray(["a", "b"], dtype=np.int64),
            "none": None,
        }[self.labels]
        return ImageRows(
            name=self.file,
            rows=self.steps,
            decode=lambda row: Image.fromarray(np.full((2, 3), row, dtype=np.uint8)),
            where=lambda row: f"step {row}",
            labels=labels,
        )

class Arrays(Ramp):
    def open(self, field):
        rows = super().open(field)
        return ImageRows(name="a", rows=2, decode=lambda row: np.zeros((2, 2)), where=rows.where)

class NoRows(Ramp):
    def open(self, field):
        return [1, 2]

class NoOpen(ImageSource):
    pass
"""


def read(field: str = "images", with_labels: bool = False, **section):
    generator = numpy_generator(0, field)
    return read_images(sources.parse(section), generator=generator, field=field, with_labels=with_labels)


def test_an_image_source_of_the_users_own_is_read_like_any_other(own):
    name = own(SOURCE)
    parsed = parse_config(config(test={"source": f"{name}:Ramp", "file": "x", "count": 2})).test
    assert (parsed.source, parsed.steps, parsed.path_fields) == (f"{name}:Ramp", 4, ("file",))
    found = read(source=f"{name}:Ramp", file="x", rows="1:4", size=[2, 3], with_labels=True)
    assert found.images[:, 0, 0, 0].tolist() == [1, 2, 3] and found.labels.tolist() == [1, 0, 1]
    told = refusal(test={"source": f"{name}:Ramp", "stepz": 3}).splitlines()
    assert [line.strip() for line in told] == [
        "test.file is missing",
        "unknown key 'test.stepz'; did you mean 'steps'?",
    ]
    assert "test.source: " in refusal(test={"source": f"{name}:NoOpen"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"source": "Arrays"},
            "test: step 0 is not a readable image (it was decoded to a ndarray, not to a PIL image)",
        ),
        ({"source": "NoRows"}, "test.source: open() of {}:NoRows gave a list, not an ImageRows"),
        ({"source": "Ramp", "labels": "none"}, "test: x holds no labels; labels are needed here"),
        (
            {"source": "Ramp", "labels": "halves"},
            "test: the labels of x are float64 [4] for 4 images; one whole number an image is needed",
        ),
        (
            {"source": "Ramp", "labels": "few"},
            "test: the labels of x are int64 [1] for 4 images; one whole number an image is needed",
        ),
        ({"source": "Ramp", "labels": "words"}, "test: the labels of x cannot be read (invalid literal for int() "),
    ],
)
def test_a_source_that_gives_something_else_is_refused(own, section, message):
    name = own(SOURCE)
    labelled = section["source"] == "Ramp"
    with pytest.raises(ImageSetError) as error:
        read("test", with_labels=labelled, **section | {"source": f"{name}:{section['source']}", "file": "x"})
    assert str(error.value).startswith(message.format(name))


def test_nothing_that_the_sections_need_imports_torch_or_a_reader_of_images():
    code = (
        "import sys; import kdray.images, kdray.training.recipe as r; from kdray.images.base import sources\n"
        "from kdray.models.base import model_names\n"
        "sources.parts(); model_names(); r.StudentSection(loss={'kind': 'kl'})\n"
        "print([m for m in ('torch', 'torchvision', 'PIL', 'pyarrow', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
