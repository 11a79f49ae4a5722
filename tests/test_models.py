"""Networks by name: kdray's zoo and its page, torchvision's classifiers, and weights that a student starts from."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command, copy_run, digits_config
from safetensors.torch import load_file, save_file
from test_students import images, recipe, same, soft_targets, weights
from torch import nn

from kdray.config.load import load_config, parse_config
from kdray.errors import ModelError, RunDirectoryError, TeacherError
from kdray.models.base import find_model, known_model, model_names
from kdray.models.checkpoint import ModelCard, load_student, read_own_card, save_model
from kdray.models.classifier import build_model, build_network
from kdray.models.features import head
from kdray.models.start import load_start, start_weights, with_digest
from kdray.models.torchvision import build_torchvision, torchvision_names
from kdray.pools.images import ImagePool
from kdray.runs.directory import RunDirectory
from kdray.runs.run import resume, run
from kdray.teachers.local import LocalTeacherConfig
from kdray.teachers.recipe import train_teacher
from kdray.training.loop import train
from kdray.training.recipe import StudentSection
from kdray.training.trainer import StudentSpec, fit

GREY, RGB = (1, 28, 28), (3, 32, 32)
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text()
LISTED = {
    name: (int(count.replace(",", "")), int(side))
    for name, count, side in re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| (\d+) \|", PAGE, flags=re.MULTILINE)
}
"""Networks on the page: parameters, and least side of images."""
PUBLISHED = {
    "resnet20": 0.27, "resnet32": 0.46, "resnet56": 0.85, "resnet110": 1.7,  # He et al. (2016), table 6
    "wrn16-1": 0.18, "wrn16-2": 0.7, "wrn40-1": 0.57, "wrn40-2": 2.2, "wrn28-10": 36.5,  # Zagoruyko et al. (2016)
    "vgg8": 3.96, "vgg13": 9.46, "resnet8x4": 1.2, "resnet32x4": 7.4,  # Tian et al. (2020), with 100 classes
    "resnet18": 11.2, "resnet34": 21.3, "mobilenetv2": 2.3, "shufflenetv2": 1.3, "lenet5": 0.0617, "mlp": 0.267,
}  # fmt: skip
"""Millions of parameters that the papers and their codes report."""
ONE_OF_EACH_FAMILY = (
    "alexnet", "lenet5", "mlp", "mobilenetv2", "resnet20", "shufflenetv2", "small-cnn", "vgg8", "wrn16-1",
)  # fmt: skip


def on_meta(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network whose tensors have shapes and no values: building it and running it takes next to no time."""
    with torch.device("meta"):
        return build_network(name, shape, classes)


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


# kdray's own


def test_the_page_lists_every_network_with_its_size():
    assert sorted(LISTED) == model_names()
    for name, (count, _) in LISTED.items():
        small = name in ("lenet5", "mlp")
        assert parameters(on_meta(name, GREY if small else RGB, 10 if small else 100)) == count, name


def test_networks_have_the_parameters_that_were_published():
    assert sorted(PUBLISHED.keys() | {"alexnet", "small-cnn", "vgg16"}) == model_names()
    for name, millions in PUBLISHED.items():
        assert LISTED[name][0] / 1e6 == pytest.approx(millions, rel=0.06), name
    assert parameters(on_meta("resnet20", RGB, 10)) == 269_722  # of option A: the shortcuts have none
    assert parameters(on_meta("wrn16-2", RGB, 100)) == 703_284
    assert parameters(on_meta("resnet18", RGB, 10)) == 11_173_962
    assert parameters(on_meta("mobilenetv2", RGB, 1000)) == 3_504_872  # torchvision's: no layer was dropped


@pytest.mark.parametrize(
    "name",
    [
        *ONE_OF_EACH_FAMILY,
        *(pytest.param(name, marks=pytest.mark.storm) for name in model_names() if name not in ONE_OF_EACH_FAMILY),
    ],
)
def test_every_network_takes_its_images_and_trains_all_its_weights(name):
    for shape in (GREY, RGB):
        before = torch.get_rng_state()
        model = build_model(name, shape, 7, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        logits = model.train()(images(2, shape))
        assert (logits.shape, logits.dtype) == ((2, 7), torch.float32)
        logits[:, 0].sum().backward()
        idle = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
        assert idle == []
        with torch.inference_mode():
            logits = model.eval()(images(2, shape))
        assert bool(torch.isfinite(logits).all()) and not torch.equal(logits[0], logits[1])
        assert head(model).out_features == 7


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_wide_networks_fit_both_sizes_of_images(name):
    """A small version of the above: shapes are all that is computed."""
    for shape in (GREY, RGB):
        network = on_meta(name, shape, 7)
        for training in (True, False):
            assert network.train(training)(torch.zeros(2, *shape, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_weights_follow_from_the_seed_alone(name):
    first, other = (weights(build_model(name, RGB, 7, seed=seed)) for seed in (0, 1))
    torch.manual_seed(12345)  # the global state has no say
    assert same(weights(build_model(name, RGB, 7, seed=0)), first)
    matrices = [key for key, value in first.items() if value.ndim > 1 and key.startswith("network")]
    assert matrices and all(not torch.equal(first[key], other[key]) for key in matrices)


@pytest.mark.parametrize("name", [name for name, (_, side) in LISTED.items() if side > 1])
def test_images_too_small_for_a_network_are_refused(name):
    side = LISTED[name][1]
    with pytest.raises(ModelError, match=f"^{name} needs images of at least {side}x{side}, got {side - 1}x40; resize"):
        on_meta(name, (1, side - 1, 40), 3)


def test_the_smallest_images_a_network_takes_are_enough_to_train_on():
    for name in ("lenet5", "small-cnn", "mobilenetv2", "shufflenetv2", "vgg8", "resnet8x4", "wrn16-1", "mlp"):
        side = LISTED[name][1]
        model = build_model(name, (1, side, side), 3, seed=0)
        result = train(model, images(2, (1, side, side)), soft_targets(2), recipe(epochs=1), seed=0, threads=1)
        assert all(np.isfinite(result.losses)), name


def test_vgg_of_other_sizes_has_the_same_weights_by_name():
    assert set(on_meta("vgg16", GREY, 5).state_dict()) == set(on_meta("vgg16", (1, 224, 224), 5).state_dict())


def test_an_unknown_network_is_refused_with_the_nearest_name():
    with pytest.raises(ModelError, match=r"'lenet'; did you mean 'lenet5'\? There are: alexnet, lenet5"):
        build_model("lenet", GREY, 10, seed=0)
    with pytest.raises(ModelError, match=r"'densenet12'; did you mean 'densenet121'\?.*; and torchvision's classif"):
        find_model("densenet12")


# torchvision's


def test_the_zoo_comes_first_and_a_prefix_asks_for_torchvisions():
    both = set(model_names()) & set(torchvision_names())
    assert {"alexnet", "resnet18", "vgg16"} <= both
    for name in both:
        assert known_model(name) == name
        for asked in (f"torchvision/{name}", f"torchvision:{name}", f"torchvision.models:{name}"):
            assert known_model(asked) == f"torchvision/{name}"
    assert known_model("resnet50") == "torchvision/resnet50" and not find_model("resnet50").users_own
    assert build_network("torchvision/resnet18", RGB, 3).conv1.kernel_size == (7, 7)
    with pytest.raises(ModelError, match="torchvision has no classifier named 'fcn_resnet50'"):  # it segments
        find_model("torchvision/fcn_resnet50")


@pytest.mark.parametrize(("name", "channels"), [("squeezenet1_1", 1), ("squeezenet1_1", 3), ("mobilenet_v3_small", 4)])
def test_a_network_of_torchvisions_takes_any_number_of_channels(name, channels):
    shape = (channels, 64, 64)
    model = build_model(name, shape, 5, seed=0)
    assert same(weights(build_model(name, shape, 5, seed=0)), weights(model))
    logits = model.train()(images(2, shape))
    assert logits.shape == (2, 5)
    logits[:, 0].sum().backward()
    assert all(value.grad is not None for value in model.parameters())
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == channels and first.kernel_size == (3, 3)


_SMALL = [name for name in reversed(torchvision_names()) if not name.endswith(("b7", "16gf"))]
_FAMILIES = {re.split(r"\d|_", name)[0]: name for name in _SMALL}


@pytest.mark.storm
@pytest.mark.parametrize(
    "name",
    [  # one of each family in CI
        name if name in _FAMILIES.values() else pytest.param(name, marks=pytest.mark.long)
        for name in torchvision_names()
    ],
)
def test_every_classifier_of_torchvisions_gives_logits_in_training_too(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # regnets compute while they are built
        network = build_torchvision(name, (1, 224, 224), 3).to("meta")
    for training in (True, False):
        logits = network.train(training)(torch.zeros(2, 1, 224, 224, device="meta"))
        assert isinstance(logits, torch.Tensor) and logits.shape == (2, 3)


def test_classifiers_for_training_alone_are_left_out():
    with torch.device("meta"):
        network = build_torchvision("googlenet", (3, 64, 64), 3).train()
        assert isinstance(network(torch.zeros(2, 3, 64, 64)), torch.Tensor)
    assert not [key for key in network.state_dict() if key.startswith("aux")]


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("alexnet", RGB, "Output size is too small"),
        ("vit_b_32", GREY, "indivisible by patch size"),
        ("vit_b_32", (3, 32, 64), "Wrong image width"),  # it takes squares
    ],
)
def test_images_of_a_size_that_torchvisions_do_not_take_are_refused(name, shape, reason):
    size = f"{shape[1]}x{shape[2]}"
    with pytest.raises(ModelError, match=rf"^torchvision/{name} cannot take images of {size} \(.*{reason}.*resize"):
        on_meta(f"torchvision/{name}", shape, 3)


def test_a_vision_transformer_is_built_for_the_size_of_the_images():
    with torch.device("meta"):
        network = build_torchvision("vit_b_16", RGB, 3)
    assert network.encoder.pos_embedding.shape[1] == 1 + (32 // 16) ** 2


def test_a_teacher_of_torchvisions_is_trained_here_and_known_by_its_file(tmp_path):
    path = tmp_path / "teacher.safetensors"
    section = LocalTeacherConfig.model_validate(
        {
            "weights": str(path),
            "model": "shufflenet_v2_x0_5",
            "device": "cpu",
            "batch_size": 4,
            "train": {"images": {"source": "digits", "rows": "0:40", "size": 32}, "epochs": 1, "threads": 1},
        }
    )
    train_teacher(section)
    assert read_own_card(path).model == "torchvision/shufflenet_v2_x0_5"
    teacher = section.build((1, 32, 32))
    data = images(3, (1, 32, 32))
    with torch.inference_mode():
        expected = load_student(path)(data).softmax(dim=1)
    assert torch.allclose(teacher.answer(data).probs, expected, atol=1e-5)


def test_a_teacher_takes_files_with_classifiers_for_training_alone(tmp_path):
    import torchvision

    network = torchvision.models.googlenet(weights=None, num_classes=3, aux_logits=True, init_weights=False)
    save_file(network.state_dict(), tmp_path / "googlenet.safetensors")
    fields = {"weights": str(tmp_path / "googlenet.safetensors"), "model": "googlenet", "classes": 3, "batch_size": 2}
    section = LocalTeacherConfig.model_validate(fields | {"device": "cpu"})
    assert section.build((3, 64, 64)).answer(images(2, (3, 64, 64))).probs.shape == (2, 3)
    with pytest.raises(TeacherError, match="takes RGB images, the images are grey"):
        section.build((1, 64, 64))


# Weights to start from

SHAPE = (1, 16, 16)


def other(classes: int = 3, seed: int = 9, name: str = "small-cnn") -> nn.Module:
    return build_model(name, SHAPE, classes, seed=seed)


def written(folder: Path, kind: str, classes: int = 3) -> Path:
    """A file with the weights of `other`."""
    model = other(classes)
    path = folder / {"kdray": "own.safetensors", "safetensors": "plain.safetensors"}.get(kind, f"state.{kind}")
    if kind == "kdray":
        save_model(path, model, ModelCard(model="small-cnn", image_shape=SHAPE, num_classes=classes))
    elif kind == "safetensors":
        save_file(model.network.state_dict(), path)
    else:
        torch.save(model.state_dict() if kind == "pt" else model.network.state_dict(), path)
    return path


def started(path: Path, classes: int = 3) -> Mapping[str, torch.Tensor]:
    """The weights of a student that started from a file."""
    network = other(classes, seed=0).network
    load_start(network, start_weights(str(path), network, "small-cnn"))
    return network.state_dict()


@pytest.mark.parametrize("kind", ["kdray", "safetensors", "pt", "pth"])
def test_a_student_starts_from_the_weights_of_a_file(kind, tmp_path):
    path = written(tmp_path, kind)
    assert same(dict(started(path)), dict(other().network.state_dict()))
    before = path.read_bytes()
    wide = started(path, classes=5)
    fresh, theirs = other(5, seed=0).network.state_dict(), other().network.state_dict()
    for name, value in wide.items():
        expected = fresh if name.startswith("1.") else theirs  # 1 is the last layer
        assert torch.equal(value, expected[name]), name
    assert path.read_bytes() == before


def test_each_round_starts_anew_from_the_file(tmp_path):
    network = other(seed=0).network
    start = start_weights(str(written(tmp_path, "kdray")), network, "small-cnn")
    card = ModelCard(model="small-cnn", image_shape=SHAPE, num_classes=3)
    spec = StudentSpec(card=card, mean=[0.4], std=[0.3], recipe=recipe(epochs=1), seed=0, threads=1, start=start)
    data, targets = images(8, SHAPE), soft_targets(8)
    for number in (0, 3):
        by_hand = build_model("small-cnn", SHAPE, 3, seed=5, mean=[0.4], std=[0.3])
        by_hand.network.load_state_dict(other().network.state_dict())
        train(by_hand, data, targets, recipe(epochs=1), seed=0, round=number, threads=1)
        content, _ = fit(spec, data, targets, number)
        (tmp_path / "student.safetensors").write_bytes(content)
        assert same(weights(load_student(tmp_path)), weights(by_hand))


def test_students_that_label_start_from_the_file_too_if_it_is_of_their_network(tmp_path):
    network = other(seed=0).network
    start = start_weights(str(written(tmp_path, "kdray")), network, "small-cnn")
    card = ModelCard(model="small-cnn", image_shape=SHAPE, num_classes=3)
    data, targets = images(8, SHAPE), soft_targets(8)
    for name in (None, "lenet5"):
        fields = {"epochs": 1, "batch_size": 4, "device": "cpu", "unpaid": {"students": 1, "model": name}}
        spec = StudentSpec(
            card=card, mean=[0.4], std=[0.3], recipe=StudentSection(**fields), seed=0, threads=1, start=start,
            pool=ImagePool(images(6, SHAPE, seed=1)),
        )  # fmt: skip
        with_start, _ = fit(spec, data, targets, 0)
        without, _ = fit(replace(spec, start=None), data, targets, 0)
        assert with_start != without


def test_half_precision_and_missing_counts_are_taken(tmp_path):
    state = {key: value for key, value in other().network.state_dict().items() if not key.endswith("tracked")}
    halves = {key: value.half() for key, value in state.items()}
    save_file(halves, tmp_path / "half.safetensors")
    found = started(tmp_path / "half.safetensors")
    assert all(torch.equal(found[key], value.float()) for key, value in halves.items())


def test_tied_weights_and_pretrained_files_of_torchvisions_are_taken(tmp_path):
    import torchvision

    theirs = torchvision.models.googlenet(weights=None, num_classes=11, aux_logits=True, init_weights=False)
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    network = build_network("torchvision/googlenet", (3, 64, 64), 3)
    load_start(network, start_weights(str(tmp_path / "googlenet.pth"), network, "torchvision/googlenet"))
    assert torch.equal(network.conv1.conv.weight, theirs.conv1.conv.weight) and network.fc.out_features == 3
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    torch.save(tied.state_dict(), tmp_path / "tied.pt")
    fresh = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    load_start(fresh, start_weights(str(tmp_path / "tied.pt"), fresh, "tied"))
    assert torch.equal(fresh[0].weight, fresh[1].weight)


def changed(folder: Path, change) -> Path:
    tensors = dict(other().network.state_dict())
    change(tensors)
    save_file(tensors, folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("0.1.bias"), r"1 missing \(first: 0.1.bias\)"),
        (lambda t: t.update(more=torch.zeros(1)), r"1 unknown \(first: more\)"),
        (lambda t: t.update({"0.0.weight": torch.zeros(16, 3, 3, 3)}), r"0.0.weight is \[16, 3, 3, 3\], the model h"),
        (lambda t: t.update({"1.weight": torch.zeros(3, 7)}), r"1.weight is \[3, 7\], the model has \[3, 256\]"),
        (lambda t: [t.pop("1.weight"), t.pop("1.bias")], r"2 missing \(first: 1.weight\)"),
        (
            lambda t: t.update({"1.weight": torch.zeros(5, 256), "1.bias": torch.zeros(5), "0.1.bias": torch.zeros(2)}),
            r"0.1.bias is \[2\], the model has \[16\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    told = rf"^student.init: .*w\.safetensors: the weights do not fit small-cnn: {message}"
    with pytest.raises(ModelError, match=told):
        started(changed(tmp_path, change))


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    path = changed(tmp_path, lambda t: t.update({"1.bias": torch.tensor([0.0, float("nan"), 0.0])}))
    with pytest.raises(
        ModelError, match=r"^student.init: .*w\.safetensors has NaN or infinity in 1\.bias; give finite"
    ):
        started(path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("none.pt", lambda path: None, r"cannot read .*none\.pt \(No such file or directory\); check the path"),
        ("folder", lambda path: path.mkdir(), r"cannot read .*folder \(Is a directory\)"),
        ("junk.safetensors", lambda path: path.write_bytes(b"junk" * 9), "is not a readable safetensors file"),
        ("junk.pth", lambda path: path.write_bytes(b"junk" * 9), "is not a readable torch state dict"),
        ("code.pt", lambda path: torch.save(nn.Linear(2, 2), path), "is not a readable torch state dict"),
        ("list.pt", lambda path: torch.save([torch.zeros(1)], path), "holds a list, not a state dict; save model.stat"),
        (
            "nameless.pt",
            lambda path: torch.save({0: torch.zeros(1)}, path),
            "a tensor under 0, and names of weights are",
        ),
        ("all.pt", lambda path: torch.save({"epoch": 3}, path), "holds 'epoch', a int; save model.state_dict"),
    ],
)
def test_files_without_weights_are_refused(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ModelError, match=f"^student.init: .*{message}"):
        started(tmp_path / name)


def test_a_digest_says_which_content_was_meant(tmp_path):
    path = str(written(tmp_path, "pt"))
    full = with_digest(path)
    assert re.fullmatch(re.escape(path) + "#[0-9a-f]{24}", full) and with_digest(full) == full
    assert same(dict(started(full)), dict(started(path)))
    torch.save(other(seed=1).network.state_dict(), path)
    assert with_digest(path) != full and with_digest(full) == full
    with pytest.raises(ModelError, match=r"^student.init: .*state\.pt has changed, and the students of one run start"):
        started(full)
    Path(path).unlink()
    assert with_digest(path) == path and with_digest(path, full) == full
    assert with_digest(path, "/elsewhere#" + full[-24:]) == path


@pytest.fixture(scope="module")
def begun(tmp_path_factory, teacher_weights) -> tuple[Path, Path]:
    """A finished run whose students start from a file of two classes, and the file. Both only read."""
    folder = tmp_path_factory.mktemp("begun")
    init = written(folder, "kdray", classes=2)
    changes = {"student__init": str(init), "student__epochs": 1, "student__lr": 1e-9, "select__rounds": 1}
    changes["student__model"] = "small-cnn"
    config = parse_config(digits_config(teacher_weights, **changes, budget__queries=60))
    run(config, RunDirectory(folder / "run"), local=True)
    return folder / "run", init


def body(path: Path) -> dict[str, torch.Tensor]:
    """All that is trained of a student but its last layer."""
    tensors = load_file(path).items()
    return {key: value for key, value in tensors if key.startswith("network.0.") and value.ndim > 1}


def test_a_run_starts_every_student_from_the_file_and_keeps_its_digest(begun, tmp_path):
    folder, init = begun
    assert load_config(folder / "config.yaml").student.init == with_digest(str(init))
    theirs = body(init)
    for number in (0, 1):  # at a rate of next to nothing they stay where they began
        student = body(RunDirectory(folder).artefact(number, "train"))
        assert all(torch.allclose(student[key], value, atol=1e-6) for key, value in theirs.items())
    assert command("train", folder, "--out", tmp_path / "again").returncode == 0
    again = tmp_path / "again" / "60" / "student.safetensors"
    assert again.read_bytes() == (folder / "student.safetensors").read_bytes()
    done = command("train", folder, "student.init=null", "--out", tmp_path / "fresh")
    assert done.returncode == 0
    fresh = body(tmp_path / "fresh" / "60" / "student.safetensors")
    assert not any(torch.allclose(fresh[key], value, atol=1e-3) for key, value in theirs.items())


def test_a_run_goes_on_with_the_same_weights_alone(begun, tmp_path):
    folder, init = begun
    moved = copy_run(folder, tmp_path / "run")
    text, here = (moved / "config.yaml").read_text(), tmp_path / "here.safetensors"
    here.write_bytes(init.read_bytes())
    (moved / "config.yaml").write_text(text.replace(str(init), str(here)))
    config = load_config(moved / "config.yaml")
    user = config.model_copy(update={"student": config.student.model_copy(update={"init": str(here)})})
    RunDirectory(moved).artefact(1, "train").unlink()
    save_model(here, other(2, seed=4), ModelCard(model="small-cnn", image_shape=SHAPE, num_classes=2))
    with pytest.raises(ModelError, match=r"student.init: .*here\.safetensors has changed"):
        resume(RunDirectory(moved), local=True)
    with pytest.raises(RunDirectoryError, match=r"another config \(student.init: .*here.safetensors#"):
        run(user, RunDirectory(moved), local=True)
    here.unlink()
    with pytest.raises(ModelError, match=r"student.init: cannot read .*here\.safetensors"):
        run(user, RunDirectory(moved), local=True)
    here.write_bytes(init.read_bytes())
    run(user, RunDirectory(moved), local=True)
    assert (moved / "student.safetensors").read_bytes() == (folder / "student.safetensors").read_bytes()
    here.unlink()
    assert resume(RunDirectory(moved), local=True).history  # it is complete, and needs no file


def test_weights_that_do_not_fit_cost_nothing(config_file, tmp_path):
    path = changed(tmp_path, lambda tensors: tensors.update(more=torch.zeros(1)))
    done = command(
        "run", config_file(student__model="small-cnn", student__init=str(path)), "--out", tmp_path / "run", "--local"
    )
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    message = f"kdray: student.init: {path}: the weights do not fit small-cnn: 1 unknown (first: more)"
    assert done.stderr.strip().splitlines()[-1] == message
