"""The teacher's own input: what it sees of an image is what the ledger hashes; the student sees the image itself."""

import base64
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from aiohttp import web
from conftest import command, digits_config, examples, running
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kdray
from kdray.config.load import parse_config
from kdray.errors import ConfigError, TeacherError
from kdray.images.digits import _load
from kdray.images.png import decode_png
from kdray.ledger import Ledger, hash_images
from kdray.runs.directory import RunDirectory
from kdray.runs.policy import PurchasePolicy
from kdray.runs.purchase import buy
from kdray.runs.result import read_result
from kdray.runs.teachers import teacher_of_config
from kdray.teachers import input as own_input
from kdray.teachers.base import teachers
from kdray.teachers.function import FunctionTeacher
from kdray.teachers.http import HttpTeacherConfig
from kdray.teachers.input import TeacherInput
from kdray.teachers.local import LocalTeacherConfig
from kdray.teachers.pool import LocalTeacherPool


def grey(*rows: list[int]) -> torch.Tensor:
    """One grey image [1, 1, H, W]."""
    return torch.tensor([[rows]], dtype=torch.uint8)


# What the teacher sees, by hand


@pytest.mark.parametrize(
    ("resize", "size", "image", "expected"),
    [
        ("area", 1, grey([0, 10], [20, 30]), [[15]]),
        ("area", 1, grey([0, 1], [0, 1]), [[1]]),  # 0.5 is rounded up
        ("area", [1, 2], grey([0, 10, 100, 200], [20, 30, 100, 200]), [[15, 150]]),
        ("nearest", [1, 2], grey([1, 2, 3, 4]), [[2, 4]]),
        ("nearest", 2, grey([7]), [[7, 7], [7, 7]]),
        # Two pixels to four: their centres lie at -1/4, 1/4, 3/4 and 5/4 of the way from one to the other.
        ("bilinear", [1, 4], grey([0, 100]), [[0, 25, 75, 100]]),
        # Four to two, antialiased: a triangle two pixels wide each way, weights 3/7, 3/7, 1/7 of those inside.
        ("bilinear", [1, 2], grey([0, 70, 140, 210]), [[50, 160]]),
    ],
)
def test_sizes_by_hand(resize, size, image, expected):
    seen = TeacherInput(size=size, resize=resize).view(image)
    assert seen.dtype == torch.uint8 and seen[0, 0].tolist() == expected


def test_colours_by_hand():
    rgb = torch.tensor([[[[255, 0]], [[0, 255]], [[0, 100]]]], dtype=torch.uint8)  # a red pixel, and green with blue
    assert TeacherInput(colour="bgr").view(rgb)[0, :, 0].tolist() == [[0, 100], [0, 255], [255, 0]]
    assert TeacherInput(colour="rgb").view(rgb) is rgb
    # ITU-R 601: 0.299 * 255 = 76.2; 0.587 * 255 + 0.114 * 100 = 161.1
    assert TeacherInput(colour="grey").view(rgb)[0, :, 0].tolist() == [[76, 161]]
    for colour in ("rgb", "bgr"):
        assert TeacherInput(colour=colour).view(grey([3, 4]))[0, :, 0].tolist() == [[3, 4]] * 3
    # Both at once: converted, then resized.
    assert TeacherInput(colour="grey", size=1, resize="area").view(rgb).tolist() == [[[[119]]]]  # of 76 and 161: 118.5
    assert TeacherInput(colour="bgr", size=1, resize="area").view(rgb).flatten().tolist() == [50, 128, 128]


def test_where_nothing_changes_nothing_is_copied():
    for view, image in (
        (TeacherInput(), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)),
        (TeacherInput(size=[4, 5], colour="rgb", resize="bicubic"), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)),
        (TeacherInput(size=4, colour="grey"), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)),
    ):
        assert view.view(image) is image and not view.changes(image.shape[1:])
        assert view.shape(image.shape[1:]) == tuple(image.shape[1:]) and view.hashes(image) == hash_images(image)


@examples(60)
@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    size=st.none() | st.tuples(st.integers(1, 12), st.integers(1, 12)),
    resize=st.sampled_from(sorted(own_input._FILTERS)),
    colour=st.sampled_from([None, "rgb", "bgr", "grey"]),
)
def test_an_image_is_seen_the_same_alone_and_in_any_batch_and_hashed_as_it_is_seen(seed, shape, size, resize, colour):
    section = TeacherInput(size=size, resize=resize, colour=colour)
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (5, *shape), dtype=np.uint8))
    seen = section.view(images)
    assert tuple(seen.shape) == (5, *section.shape(shape)) and seen.dtype == torch.uint8
    assert torch.equal(seen, torch.cat([section.view(images[k : k + 1]) for k in range(5)]))
    order = torch.tensor([3, 0, 4, 4, 1])
    assert torch.equal(section.view(images[order]), seen[order])  # of an image whose memory is elsewhere
    assert section.hashes(images) == hash_images(seen)
    # The plain way, in Pillow alone.
    picture = Image.fromarray(images[2, 0].numpy() if shape[0] == 1 else images[2].permute(1, 2, 0).numpy())
    picture = picture.convert({None: picture.mode, "grey": "L"}.get(colour, "RGB"))
    if size is not None:
        picture = picture.resize(size[::-1], Image.Resampling[own_input._FILTERS[resize]])
    plain = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
    assert np.array_equal(plain[::-1] if colour == "bgr" else plain, seen[2].numpy())


def test_converted_images_are_held_a_part_at_a_time(monkeypatch):
    section, held = TeacherInput(size=4), []
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 1, 2, 2).contiguous()
    whole = hash_images(section.view(images))
    monkeypatch.setattr(own_input, "_PART_BYTES", 3 * 16)
    monkeypatch.setattr(own_input, "hash_images", lambda part: held.append(len(part)) or hash_images(part))
    assert section.hashes(images) == whole and held == [3, 3, 1]
    monkeypatch.setattr(own_input, "_PART_BYTES", 1)
    assert section.hashes(images) == whole  # one image at least


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"size": 0}, "teacher.input.size.0: input should be greater than or equal to 1, got 0"),
        ({"size": [8, 8, 8]}, "teacher.input.size: "),
        ({"colour": "gray"}, "teacher.input.colour: input should be 'rgb', 'bgr' or 'grey', got 'gray'"),
        ({"resize": "cubic"}, "teacher.input.resize: input should be 'bilinear', 'nearest', 'bicubic', 'area' or"),
        ({"sise": 8}, "unknown key 'teacher.input.sise'; did you mean 'size'"),
        (16, "teacher.input: input should be a mapping"),
    ],
)
def test_a_wrong_field_is_named(field, message):
    teacher = {"kind": "python", "function": "module:function", "classes": 2, "input": field}
    with pytest.raises(ConfigError) as error:
        parse_config({"images": {"source": "digits"}, "teacher": teacher, "budget": {"queries": 10}})
    assert str(error.value).startswith(f"config: {message}")


# Identities


def test_without_an_input_of_its_own_a_teacher_keeps_its_name_in_the_ledger(tmp_path):
    """The names that ledgers held before there was `teacher.input.size`."""
    v2 = {"kind": "http", "url": "http://host:1", "model": "m", "classes": 3}
    name = lambda **fields: HttpTeacherConfig(**fields).build((1, 2, 3)).identity  # noqa: E731
    assert name(**v2) == "http:http://host:1/m:d35464561ab9:soft"
    numbers = {"pixels": "unit", "mean": [0.5], "std": [0.25], "layout": "nhwc", "name": "x"}
    assert name(**v2, input=numbers) == "http:http://host:1/m:549f332ab9de:soft"
    png = {"protocol": "json", "input": {"encoding": "png"}, "request": {"$each": "$image"}}
    assert name(kind="http", url="http://host:1", classes=3, **png) == "http:http://host:1:290fdecf41b9:soft"
    # Size and colour are in the pixels that are hashed.
    assert name(**v2, input={"size": 16, "colour": "grey"}) == name(**v2)
    weights = tmp_path / "weights"
    weights.write_bytes(b"weights")
    for fields, digest in (
        ({}, "f556174aea81079ac470df01"),
        ({"input": {"pixels": "uint8"}}, "1efa58911cd9d723c3ed0878"),
        ({"input": {"mean": [0.5], "std": [0.25]}}, "d1eaa64cc3ca5f423bb13d25"),
        ({"input": {"size": 9, "colour": "bgr", "resize": "area"}}, "f556174aea81079ac470df01"),
        ({"model": "small-cnn"}, "41399f888f310fd9d350f492"),
    ):
        assert LocalTeacherConfig(weights=str(weights), classes=3, **fields)._digest(weights) == digest


# Buying


def brightness(images: np.ndarray) -> np.ndarray:
    bright = images.astype(np.float32).mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - bright, bright], axis=1)


def test_images_that_are_one_to_the_teacher_are_asked_about_once(tmp_path):
    asked = []
    teacher = FunctionTeacher(
        lambda images: asked.append(images.copy()) or brightness(images),
        identity="t", num_classes=2, form=kdray.teachers.AnswerFormat(),
    )  # fmt: skip
    images = torch.cat([grey([0, 10], [20, 30]), grey([30, 20], [10, 0]), grey([80, 80], [80, 80])])
    policy = PurchasePolicy(input=TeacherInput(size=1, resize="area"))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.open_account("", {"training": 2})
    bought = buy(images, teachers=LocalTeacherPool(teacher), ledger=ledger, batch_size=2, policy=policy)
    assert bought.positions.tolist() == [0, 1, 2] and (bought.charged, bought.reused, bought.short) == (2, 1, 0)
    assert [batch.tolist() for batch in asked] == [[[[[15]]]], [[[[80]]]]]
    assert torch.equal(bought.answers.probs[0], bought.answers.probs[1])
    assert len(ledger.lookup("t", hash_images(torch.cat([grey([15]), grey([80])])))) == 2
    again = buy(images, teachers=LocalTeacherPool(teacher), ledger=ledger, batch_size=2, policy=policy)
    assert len(asked) == 2 and torch.equal(again.answers.probs, bought.answers.probs)
    ledger.close()


# Every kind of teacher


@contextlib.contextmanager
def picky_server(got: list[np.ndarray], keys: list[str]) -> Iterator[str]:
    """A JSON server that takes lists of 16x16 BGR images, channels last, and nothing else: it notes their bytes."""

    async def infer(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        images = np.asarray(body["images"])
        if images.shape[1:] != (16, 16, 3) or images.min() < 0 or images.max() > 255:
            return web.json_response({"error": f"16x16 BGR only, not {images.shape[1:]}"}, status=400)
        got.append(images.astype(np.uint8))
        keys.append(request.headers["Idempotency-Key"])
        return web.json_response({"probabilities": brightness(images).tolist()})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/", infer)
    with running(app) as url:
        yield f"{url}/"


SMALL = {"select": {"rounds": 1, "strategy": "rad-pairs", "m": "estimate", "estimate_queries": 5},
         "pool": {"lambdas": [0.5]}, "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
         "resources": {"trainer": {"threads": 1}}}  # fmt: skip


def digits(count: int = 20, start: int = 0) -> np.ndarray:
    return _load()[0][start : start + count]


def test_a_server_is_asked_about_its_own_size_and_colour_and_the_ledger_has_the_bytes_it_got(tmp_path):
    got, keys = [], []
    with picky_server(got, keys) as url:
        teacher = {"kind": "http", "protocol": "json", "url": url, "classes": 2, "batch_size": 8,
                   "input": {"size": 16, "colour": "bgr"}}  # fmt: skip
        test = digits(12, start=500)
        result = kdray.distil(
            teacher, digits(), {"queries": 40, "evaluation": 12}, test=(test, np.arange(12) % 2),
            out=tmp_path / "run", local=True, progress=False, **SMALL,
        )  # fmt: skip
    received = np.concatenate(got).transpose(0, 3, 1, 2)
    receipt = result.receipt
    assert len(received) == 52  # 20 images, 5 for m, 15 pairs, 12 test images
    assert (receipt.queries, receipt.estimate_queries, receipt.evaluation_queries) == (35, 5, 12)
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    hashes = hash_images(torch.from_numpy(received.copy()))
    assert len(ledger.lookup(receipt.teachers[0], hashes)) == len(set(hashes)) == 52
    ledger.close()
    assert len(set(keys)) == len(keys)
    # The student, the rounds and the exported set have the images as they were given.
    assert result.student.image_shape == (1, 8, 8)
    (first, *_) = result.labelled
    assert first.images[:, 0].numpy().tolist() == digits().tolist()
    (exported,) = (tmp_path / "run" / "labelled").glob("*000*.parquet")
    cell = pq.read_table(exported).column("image")[0].as_py()
    assert np.array_equal(decode_png(cell["bytes"])[0], digits()[0])
    # What the server got of an image is its view.
    expected = np.asarray(Image.fromarray(digits()[3]).resize((16, 16), Image.Resampling.BILINEAR))
    assert any((image == expected).all() for image in received)


def test_a_png_holds_what_the_teacher_sees():
    section = HttpTeacherConfig(
        url="http://host", protocol="json", classes=2, request={"$each": "$image"},
        input={"encoding": "png", "size": 4, "colour": "grey"},
    )  # fmt: skip
    rgb = torch.arange(3 * 64, dtype=torch.uint8).view(1, 3, 8, 8)
    seen = section.input.view(rgb)
    (text,) = section.build(section.input.shape((3, 8, 8)))._wire.request(seen)
    assert np.array_equal(decode_png(base64.b64decode(text)), seen[0].numpy()) and seen.shape == (1, 1, 4, 4)


def test_numbers_are_normalised_in_the_order_of_the_channels_that_are_sent():
    section = HttpTeacherConfig(
        url="http://host", model="m", classes=2,
        input={"colour": "bgr", "layout": "nhwc", "pixels": "unit", "mean": [0.0, 0.2, 0.4], "std": [1.0, 2.0, 4.0]},
    )  # fmt: skip
    red = torch.tensor([255, 51, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    (tensor,) = section.build((3, 1, 1))._wire.request(section.input.view(red))["inputs"]
    assert tensor["shape"] == [1, 1, 1, 3]
    assert tensor["data"] == pytest.approx([0.0, (0.2 - 0.2) / 2, (1.0 - 0.4) / 4])


def test_a_teacher_in_colour_can_be_asked_about_grey_images_and_the_reverse():
    nhw = {"url": "http://host", "model": "m", "classes": 2, "input": {"layout": "nhw"}}
    with pytest.raises(TeacherError, match=r"nhw is for grey images.* set teacher\.input\.colour to grey"):
        HttpTeacherConfig(**nhw).build((3, 8, 8))
    section = HttpTeacherConfig(**nhw | {"input": {"layout": "nhw", "colour": "grey"}})
    (tensor,) = section.build(section.input.shape((3, 8, 8)))._wire.request(
        section.input.view(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    )["inputs"]
    assert tensor["shape"] == [2, 8, 8]


def test_a_function_sees_its_own_input_from_the_first_query_on(tmp_path):
    """Without `classes` the first image is asked about alone: it is the same question as in round 0."""
    asked = []

    def teacher(images: np.ndarray) -> np.ndarray:
        asked.append(images.copy())
        return brightness(images)

    result = kdray.distil(
        teacher, digits(), 40, teacher_options={"input": {"size": [4, 6], "colour": "rgb", "resize": "area"}},
        test=(digits(9, start=300), np.arange(9) % 2), out=tmp_path / "run", local=True, progress=False, **SMALL,
    )  # fmt: skip
    assert {batch.shape[1:] for batch in asked} == {(3, 4, 6)} and len(asked[0]) == 1
    assert result.receipt.paid == 40 == sum(map(len, asked)) and result.num_classes == 2
    assert result.student.image_shape == (1, 8, 8)


def test_a_local_teacher_of_another_size_answers_the_students_images(teacher_weights, tmp_path):
    """The shared teacher takes 16x16 images; the student takes 8x8."""
    data = digits_config(teacher_weights, teacher__input={"size": 16, "resize": "nearest"})
    for section in ("images", "test"):
        data[section].pop("size")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    plan = command("plan", path, cwd=tmp_path)
    assert plan.returncode == 0 and "the teacher is asked about 16x16 grey" in plan.stdout, plan.stderr
    done = command("run", path, "--local", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = read_result(RunDirectory(tmp_path / "run"))
    part = result.labelled[-1]
    twice = part.images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)  # by `nearest`
    direct = parse_config(data).teacher.build((1, 16, 16)).answer(twice)
    assert part.images.shape[1:] == (1, 8, 8) and torch.equal(part.answers.probs, direct.probs)
    assert result.history[-1].teacher_accuracy > 0.5
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    assert len(ledger.lookup(result.receipt.teachers[0], hash_images(twice))) == len(set(hash_images(twice)))
    assert not ledger.lookup(result.receipt.teachers[0], hash_images(part.images))
    ledger.close()


def test_a_local_teacher_is_trained_measured_and_served_with_its_own_input(tmp_path):
    train = {"images": {"source": "digits", "rows": "0:300"}, "epochs": 3}
    data = digits_config(tmp_path / "own.safetensors", teacher__train=train)
    data["teacher"]["input"] = {"size": 12, "colour": "rgb"}
    for section in ("images", "test"):
        data[section].pop("size")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    done = command("teacher", "train", path, cwd=tmp_path)
    assert done.returncode == 0 and "accuracy on the test set" in done.stdout, done.stderr
    assert done.stderr.splitlines()[0] == "training"
    assert kdray.load_student(tmp_path / "own.safetensors").image_shape == (3, 12, 12)
    teacher, shape, _ = teacher_of_config(parse_config(data))
    assert shape == (3, 12, 12) and len(teacher.answer(torch.zeros(2, *shape, dtype=torch.uint8))) == 2
    # The same weights are trained where a run finds none.
    (tmp_path / "own.safetensors").rename(tmp_path / "first.safetensors")
    done = command("run", path, "--local", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (kdray.load_student(tmp_path / f"{name}.safetensors").state_dict() for name in ("first", "own"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_mean_for_weights_that_have_their_own_is_refused(teacher_weights):
    section = digits_config(teacher_weights)["teacher"] | {"input": {"mean": [0.5], "std": [0.2]}}
    with pytest.raises(TeacherError, match=r"teacher\.input\.mean: .* has a mean and std of its own; leave them out"):
        teachers.parse(section).build((1, 16, 16))


def test_whole_numbers_are_for_whole_programs():
    teacher = {"kind": "local", "weights": "x", "model": "lenet5", "input": {"pixels": "uint8"}}
    with pytest.raises(ConfigError, match=r"teacher: input\.pixels: uint8 is for a whole program \(model: null\)"):
        parse_config({"images": {"source": "digits"}, "teacher": teacher, "budget": {"queries": 10}})


OWN = """
from kdray.teachers import AnswerFormat, TeacherSection
from kdray.teachers.function import FunctionTeacher

SEEN = []


class Own(TeacherSection):
    def build(self, image_shape, *, folder="", secrets=None):
        SEEN.append(tuple(image_shape))

        def ask(images):
            SEEN.append(images.shape[1:])
            return [[0.25, 0.75]] * len(images)

        return FunctionTeacher(ask, identity="own", num_classes=2, form=AnswerFormat())
"""


def test_a_users_own_teacher_has_the_same_fields(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"own_input_{tmp_path.name}"
    Path(f"{name}.py").write_text(OWN)
    teacher = {"kind": f"{name}:Own", "input": {"size": 5, "colour": "rgb"}}
    kdray.distil(
        teacher, digits(), 40, out=tmp_path / "run", local=True, progress=False, **SMALL | {"select": {"rounds": 1}}
    )
    assert set(sys.modules[name].SEEN) == {(3, 5, 5)}
    del sys.modules[name]


# The page about it


def page_blocks(language: str) -> list[str]:
    """The code blocks of the section of docs/teachers.md."""
    text = (Path(__file__).parents[1] / "docs" / "teachers.md").read_text(encoding="utf-8")
    section = text.split("## What the teacher sees\n")[1].split("\n## ")[0]
    return [block.split("```")[0] for block in section.split(f"```{language}\n")[1:]]


def test_the_config_on_the_page_asks_a_48x192_teacher_for_a_24x96_student():
    config = parse_config(yaml.safe_load(page_blocks("yaml")[0]) | {"budget": {"queries": 10}})
    section = config.teacher
    seen = section.input.view(torch.zeros(2, 1, *config.images.size, dtype=torch.uint8))
    body = section.build(section.input.shape((1, *config.images.size)))._wire.request(seen)
    assert np.asarray(body["images"]).shape == (2, 3, 48, 192) and body["images"][0][0][0][0] == -1.0  # (0 - 0.5) / 0.5


def test_the_network_on_the_page_halves_what_the_student_sees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"halved_{tmp_path.name}"
    head = "from torch import nn\n\nfrom kdray.models.classifier import build_network\n\n\n"
    Path(f"{name}.py").write_text(head + page_blocks("python")[0])
    result = kdray.distil(
        brightness, np.kron(digits(), np.ones((2, 2), np.uint8)), 30, classes=2, local=True, progress=False,
        out=tmp_path / "run", **SMALL | {"select": {"rounds": 1}, "student": {"model": f"{name}:halved", "epochs": 1}},
    )  # fmt: skip
    assert result.student.image_shape == (1, 16, 16)
    assert type(result.student.network[0]).__name__ == "AvgPool2d"
    del sys.modules[name]
