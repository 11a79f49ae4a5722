"""`kdray export`: every format answers as the student does, in batches of any size, and what does not is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import command, copy_run, digits_config
from test_cli_errors import everything, refused
from torch import nn

from kdray.cli.export import _of_int8
from kdray.config.load import parse_config
from kdray.errors import ExportError
from kdray.export.base import (
    BATCHES,
    About,
    Deployed,
    Format,
    find_format,
    format_names,
    largest_difference,
    register_format,
)
from kdray.export.hub import Student, model_card
from kdray.export.int8 import Int8, compare, quantise
from kdray.models.checkpoint import ModelCard, load_student, save_model
from kdray.models.classifier import build_model
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run

pytestmark = pytest.mark.xdist_group("test_export")  # an exporter takes seconds to be imported

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".pt", "hf": "", "safetensors": ".safetensors", "web": ""}
NAMES = ("ant", "bee", "cat", "dög")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "run"
    changes = {"student": {"model": "lenet5", "steps": 30, "augment": "none"}, "select__rounds": 1}
    run(parse_config(digits_config(teacher_weights, **changes)), RunDirectory(folder), local=True)
    return folder


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def about(model: str, shape: tuple[int, int, int] = (1, 16, 16), temperature: float = 1.0) -> About:
    card = ModelCard(model=model, image_shape=shape, num_classes=len(NAMES), classes=NAMES)
    return About(card=card, names=NAMES, temperature=temperature, figures={"queries": "7 of the teacher"})


def deployed(model: str, shape: tuple[int, int, int] = (1, 16, 16), temperature: float = 1.0) -> Deployed:
    student = build_model(model, shape, len(NAMES), seed=1, mean=[0.4] * shape[0], std=[0.3] * shape[0])
    return Deployed(student, temperature).eval()


def test_the_formats():
    assert format_names() == sorted(SUFFIXES)
    assert {name: find_format(name).suffix for name in SUFFIXES} == SUFFIXES


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("lenet5", (1, 16, 16)),
        pytest.param("resnet20", (3, 32, 32), marks=pytest.mark.storm),
        pytest.param("torchvision/mobilenet_v3_small", (3, 64, 64), marks=[pytest.mark.storm, pytest.mark.long]),
    ],
)
@pytest.mark.parametrize("name", [name for name in SUFFIXES if name != "safetensors"])
def test_every_format_answers_as_the_student_does(name, model, shape, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9") if name in ("pt2", "torchscript") else tmp_path  # not UTF-8
    folder.mkdir(exist_ok=True)
    graph, kind, path = deployed(model, shape, temperature=2.5), find_format(name), folder / f"student{SUFFIXES[name]}"
    with torch.no_grad():  # logits that differ
        graph.student.network(torch.randn(2, *shape))
        list(graph.student.parameters())[-1].mul_(20).add_(torch.arange(len(NAMES)))
    kind.write(graph, about(model, shape, 2.5), path)
    run = kind.load(path)
    for count in (*BATCHES, 16):
        some = images(count, shape, seed=count)
        with torch.no_grad():
            expected, got = (graph.student(some) / 2.5).softmax(dim=1), run(some)
        assert got.dtype == torch.float32 and torch.allclose(got, expected, atol=1e-5)
    if name == "onnx":
        says_what_goes_in_and_what_comes_out(path, shape, model)


def test_safetensors_are_kdrays_own_file(tmp_path):
    graph, kind = deployed("lenet5"), find_format("safetensors")
    kind.write(graph, about("lenet5"), tmp_path / "a.safetensors")
    some = images(3, (1, 16, 16))
    assert torch.equal(load_student(tmp_path / "a.safetensors")(some), graph.student(some))
    with pytest.raises(ExportError, match="--temperature: a safetensors file gives logits"):
        kind.write(deployed("lenet5", temperature=2.0), about("lenet5"), tmp_path / "b.safetensors")


def says_what_goes_in_and_what_comes_out(path: Path, shape: tuple[int, ...], model: str) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", list(shape))
    assert isinstance(given.shape[0], str), "the batch is not frozen"
    assert (gives.name, gives.type, gives.shape[1:]) == ("probabilities", "tensor(float)", [4])
    kept = session.get_modelmeta().custom_metadata_map
    assert kept["classes"].split("\n") == list(NAMES) and kept["model"] == model
    onnx.checker.check_model(path, full_check=True)


@pytest.mark.storm
@pytest.mark.parametrize(
    ("name", "opens"), [("pt2", "torch.export.load({!r}).module()"), ("torchscript", "torch.jit.load({!r})")]
)
def test_torch_opens_it_without_kdray(name, opens, tmp_path):
    graph, path = deployed("lenet5"), tmp_path / f"a{SUFFIXES[name]}"
    find_format(name).write(graph, about("lenet5"), path)
    some = images(5, (1, 16, 16))
    np.save(tmp_path / "in.npy", some.numpy())
    code = (
        f"import sys, numpy, torch; model = {opens.format(str(path))}\n"
        "images = torch.from_numpy(numpy.load('in.npy')); numpy.save('out.npy', model(images).detach())\n"
        "assert 'kdray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.allclose(np.load(tmp_path / "out.npy"), graph(some).detach(), atol=1e-5)


def test_the_folder_of_the_hub(tmp_path):
    graph = deployed("small-cnn", temperature=2.0)
    find_format("hf").write(graph, about("small-cnn", temperature=2.0), tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["label_names"] == list(NAMES) and config["model"] == "small-cnn" and config["temperature"] == 2.0
    assert {"model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "hub").iterdir()}
    opened = Student.from_pretrained(str(tmp_path / "hub"))
    assert opened.label_names == list(NAMES)
    some = images(3, (1, 16, 16))
    assert torch.allclose(opened.eval()(some), graph(some))
    card = (tmp_path / "hub" / "README.md").read_text()
    for text in ("license: other", "ant, bee, cat, dög", "7 of the teacher", "## Limits", "uint8 [batch, 1, 16, 16]"):
        assert text in card, text


def test_many_classes_are_not_all_listed():
    names = tuple(f"class {k}" for k in range(1000))
    card = ModelCard(model="lenet5", image_shape=(1, 16, 16), num_classes=1000, classes=names)
    assert "class 19 and 980 more" in model_card(About(card=card, names=names))


# ---- the check


class Frozen(nn.Module):
    """As an exporter that has frozen the batch."""

    def __init__(self, graph: nn.Module, batch: int, way: str) -> None:
        super().__init__()
        self.graph, self.batch, self.way = graph, batch, way

    def forward(self, images):
        answers = self.graph(images)
        if len(images) != self.batch:
            if self.way == "fails":
                raise RuntimeError("Got: 7 Expected: 2\nand pages more")
            return answers[:1].expand(self.batch, -1) if self.way == "cut" else answers.roll(1, dims=0)
        return answers


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("fails", r"fails on 1 images at once \(Got: 7 Expected: 2\)$"),
        ("cut", r"answers 1 images in the shape \[2, 4\], the student in \[1, 4\]"),
        ("rolled", "differs from the student by .* in a probability of one of 7 images"),
    ],
)
def test_a_batch_that_was_frozen_is_found_out(way, message):
    graph = deployed("lenet5")
    with torch.no_grad():
        list(graph.student.parameters())[-2].mul_(50)
    with pytest.raises(ExportError, match=message):
        largest_difference(Frozen(graph, 2, way), graph, images(20, (1, 16, 16)))


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_the_check_takes_few_images_and_gives_the_largest_difference(count):
    graph = deployed("lenet5")
    assert largest_difference(graph, graph, images(count, (1, 16, 16))) == 0
    shift = lambda batch: graph(batch) + torch.tensor([0.0, 5e-4, 0.0, -2e-4])  # noqa: E731
    assert largest_difference(shift, graph, images(count, (1, 16, 16))) == pytest.approx(5e-4, rel=1e-3)
    with pytest.raises(ExportError, match="differs from the student by nan"):
        largest_difference(lambda batch: graph(batch) * float("nan"), graph, images(count, (1, 16, 16)))


def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it():
    class Missing(Format):
        name: ClassVar[str] = "missing"
        suffix: ClassVar[str] = ".x"
        extra: ClassVar[str] = "onnx"
        needs: ClassVar[tuple[str, ...]] = ("json", "nobody_has_this")

        def write(self, graph, about, path): ...

        def load(self, path): ...

    with pytest.raises(ExportError, match=r"--format missing needs nobody_has_this, .*: pip install 'kdray\[onnx\]'"):
        Missing().check_installed()


def test_no_two_formats_have_one_name():
    with pytest.raises(ValueError, match="two formats are named 'onnx'"):
        register_format(type(find_format("onnx")))


# ---- the command


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.storm) if name in ("onnx", "web") else name for name in SUFFIXES]
)
def test_a_run_is_exported_and_checked_on_what_it_bought(name, finished, tmp_path):
    out = tmp_path / "new" / "folder" / f"mine{SUFFIXES[name]}"
    done = command("export", finished, "--format", name, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"{out}: " in done.stdout and "on 64 images that were bought, 1, 2 and 7 at a time" in done.stdout
    some = images(9, (1, 16, 16))
    with torch.no_grad():
        expected = load_student(finished)(some).softmax(dim=1)
        assert torch.allclose(find_format(name).load(out)(some), expected, atol=1e-4)
    assert [path.name for path in out.parent.iterdir()] == [out.name], "nothing else is left"


def test_a_model_card_has_the_figures_of_the_run(finished, tmp_path):
    assert command("export", finished, "--format", "hf", "--out", tmp_path / "hub").returncode == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    last = json.loads((finished / "rounds" / "001" / "metrics.json").read_text())
    for text in (f"{last['student_accuracy']:.2%}", f"{last['agreement']:.2%}", "of the teacher, in 2 rounds", "mixup"):
        assert text in card, text


@pytest.mark.storm
def test_without_a_name_it_lies_beside_the_student(finished, tmp_path):
    own = copy_run(finished, tmp_path / "run")
    assert command("export", own).returncode == 0 and (own / "student.onnx").is_file()
    before = everything(own)
    done = command("export", own)
    assert done.returncode == 2 and f"{own}/student.onnx is there already, and nothing is overwritten" in done.stderr
    assert everything(own) == before
    model = shutil.copy(own / "student.safetensors", tmp_path / "m.safetensors")
    done = command("export", model, "--format", "torchscript", "--temperature", 2)
    assert done.returncode == 0 and "on 8 images of random pixels" in done.stdout and (tmp_path / "m.pt").is_file()
    assert command("export", model, "--format", "hf").returncode == 0 and (tmp_path / "m-hf" / "config.json").is_file()


@pytest.mark.parametrize(
    "state", ["stopped", *(pytest.param(k, marks=pytest.mark.storm) for k in ("failed", "running"))]
)
def test_a_run_that_is_not_finished_is_not_exported(state, finished, tmp_path):
    own = copy_run(finished, tmp_path / "run")
    status = json.loads((own / "status.json").read_text())
    (own / "status.json").write_text(json.dumps(status | {"state": state}))
    done = command("export", own)
    assert done.returncode == 2 and "and not finished; go on with: kdray resume" in done.stderr
    assert not (own / "student.onnx").exists()
    assert command("export", own / "student.safetensors", "--format", "pt2").returncode == 0


def test_a_finished_run_of_a_sweep_is_exported_without_a_status_of_its_own(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = copy_run(finished, tmp_path / "run")
    (own / "status.json").unlink()
    assert command("export", own, "--format", "safetensors", "--out", tmp_path / "m.safetensors").returncode == 0
    (own / "rounds" / "001" / "metrics.json").unlink()
    message = refused("export", own, "--format", "safetensors", "--out", tmp_path / "n.safetensors")
    assert "is stopped, and not finished; go on with: kdray resume" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--format", "onx"], "--format: 'onx' is not one of hf, onnx, pt2, safetensors, torchscript, web"),
        (["nothing"], "nothing is not there; give a run directory, or a model file of kdray's"),
        (["folder"], "folder is a folder that holds no run"),
        (["text.safetensors"], "text.safetensors is not a readable safetensors file"),
        (["RUN", "--temperature", "0"], "--temperature: got 0; give a number above 0"),
        (["RUN", "--temperature", "nan"], "--temperature: got nan; give a number above 0"),
        (["RUN", "--out", "mine.bin"], "--out: mine.bin is no name for --format onnx; it must end in .onnx"),
        (["RUN", "--out", "text.safetensors/mine.onnx"], "--out: cannot write"),
        (["RUN", "--format", "safetensors", "--out", "a.safetensors", "--temperature", "2"], "--temperature: a"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_by_name(arguments, message, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.safetensors").write_text("a text")
    paths = {"RUN": finished}
    found = refused("export", *(paths.get(text, text) for text in arguments), unchanged=(finished,))
    assert message in found


@pytest.mark.parametrize("kind", ["pt2", pytest.param("onnx", marks=pytest.mark.storm)])
def test_a_network_that_cannot_be_exported_is_refused_and_leaves_nothing(kind, own, tmp_path):
    name = own(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self, image_shape, num_classes):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(256, num_classes)\n"
        "    def forward(self, x):\n"
        "        flat = x.flatten(1)\n"
        "        return self.layer(flat) * (2.0 if float(flat.sum()) > 1e6 else 1.0)\n"
    )
    model = build_model(f"{name}:Odd", (1, 16, 16), 4, seed=0)
    card = ModelCard(model=f"{name}:Odd", image_shape=(1, 16, 16), num_classes=4)
    save_model(tmp_path / "odd.safetensors", model, card)
    before = everything(tmp_path)
    done = command("export", tmp_path / "odd.safetensors", "--format", kind)
    assert done.returncode == 2 and f"{name}:Odd cannot be exported" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and everything(tmp_path) == before


# ---- what was bought


def test_what_was_bought_opens_as_a_data_set_of_the_hub_with_images(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    data = load_dataset(str(finished / "labelled"), cache_dir=str(tmp_path))["train"]
    directory = RunDirectory(finished)
    parts = [directory.read_labelled(number, 10) for number in (0, 1)]
    assert len(data) == sum(len(part) for part in parts) and data.features["label"].num_classes == 10
    whole = torch.cat([part.images for part in parts])
    for row in (0, 39, 40, len(data) - 1):
        assert np.array_equal(np.asarray(data[row]["image"]), whole[row, 0])
    labels = torch.cat([part.answers.labels for part in parts])
    assert data["label"][:] == labels.tolist()
    assert np.allclose(data[40]["probs"], parts[1].answers.probs[0])


# ---- 8 bits


def test_8_bits_are_measured_beside_32_bits(finished, tmp_path):
    done = command("export", finished, "--int8", "--out", tmp_path / "small.onnx")
    assert done.returncode == 0, done.stderr
    assert "before it was brought to 8 bits" in done.stdout and "of 100 images; accuracy" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    assert (tmp_path / "small.onnx").stat().st_size < 0.75 * (finished / "student.safetensors").stat().st_size
    types = {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= types
    some = images(7, (1, 16, 16))
    got = find_format("onnx").load(tmp_path / "small.onnx")(some)
    assert torch.allclose(got, load_student(finished)(some).softmax(dim=1), atol=0.1)


@pytest.mark.storm
def test_8_bits_by_hand(tmp_path):
    """A student that sums pixels is no worse with 8 bits, and one beside another is told by how much."""
    for number in (1, 2):
        graph = deployed("lenet5")
        with torch.no_grad():
            list(graph.student.parameters())[-2].mul_(20.0 if number == 1 else -20.0)
        find_format("onnx").write(graph, about("lenet5"), tmp_path / f"{number}.onnx")
    some = images(40, (1, 16, 16))
    quantise(tmp_path / "1.onnx", tmp_path / "q.onnx", some[:20])
    run = find_format("onnx").load(tmp_path / "1.onnx")
    labels = run(some[20:]).argmax(dim=1)
    found = compare(tmp_path / "1.onnx", tmp_path / "q.onnx", some[20:], labels)
    assert found.images == 20 and found.float_accuracy == 1.0 and found.accuracy == found.agreement >= 0.8
    assert found.faster > 0 and found.faster_in_batches > 0
    other = compare(tmp_path / "1.onnx", tmp_path / "2.onnx", some[20:], None)
    assert (other.accuracy, other.float_accuracy) == (None, None) and other.agreement < 0.5


@pytest.mark.parametrize(("factor", "slow"), [(0.4, True), (1.7, False)])
def test_who_is_slower_is_said(factor, slow):
    told = _of_int8(
        Int8(images=9, agreement=1, accuracy=None, float_accuracy=None, faster=1.2, faster_in_batches=factor)
    )
    assert "same class on 100.00% of 9 images; 1.20 times as fast with one image" in told
    assert ("8 bits are slower" in told) is slow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--format", "pt2"], "--int8 is for --format onnx, not pt2; leave it out"),
        (["MODEL"], "--int8 needs a run, whose bought images set the ranges, and"),
    ],
)
def test_8_bits_that_cannot_be_made_are_refused(arguments, message, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"RUN": finished, "MODEL": finished / "student.safetensors"}
    arguments = [paths.get(text, text) for text in arguments]
    assert message in refused("export", *arguments, "--int8", unchanged=(finished,))


def test_a_folder_of_the_hub_needs_a_path_that_its_libraries_read(tmp_path):
    place = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(ExportError, match=r"caf\\xe9: the libraries of the Hub read no path that is not UTF-8"):
        find_format("hf").write(deployed("lenet5", (1, 16, 16)), about("lenet5", (1, 16, 16)), place)
    assert not place.exists()
