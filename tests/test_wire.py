"""What goes to a server and what comes back, for each protocol, without a network: exact bodies, every form of answer,
junk."""

import base64
import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import TeacherError
from kdray.images.png import decode_png
from kdray.teachers import Answers
from kdray.teachers.answers import UnknownClass
from kdray.teachers.http import HttpInput, HttpReply
from kdray.teachers.http import HttpTeacherConfig as HttpConfig
from kdray.teachers.http.malformed import MalformedReply
from kdray.teachers.http.parse import Reader
from kdray.teachers.http.paths import follow
from kdray.teachers.http.wires.json_wire import JsonWire
from kdray.teachers.http.wires.v2 import V2Wire

BASE = "http://host:1"
GREY, RGB = (1, 2, 3), (3, 2, 2)
NAMES = ("cat", "dog", "ray")
GOOD = [0.25, 0.5, 0.25]
OTHER = [0.125, 0.125, 0.75]


def images(n: int = 2, shape: tuple[int, int, int] = GREY) -> torch.Tensor:
    """Every pixel another number."""
    return torch.arange(n * math.prod(shape)).reshape(n, *shape).mul(7).remainder(256).to(torch.uint8)


def section(protocol: str, *, base: str = BASE, answers: str = "soft", **changes) -> HttpConfig:
    """A section with `changes`, unchecked: these tests also make what no config may say."""
    names, count = changes.pop("names", NAMES), changes.pop("num_classes", 3)
    classes = list(names) if names else count
    places = {key: changes.pop(key) for key in ("rows", "probabilities", "items", "label", "score") if key in changes}
    inside = {key: changes.pop(key) for key in ("pixels", "layout", "mean", "std", "encoding") if key in changes}
    if "input_name" in changes:
        inside["name"] = changes.pop("input_name")
    fields = {"outputs": "logits" if changes.pop("logits", False) else "probabilities", **changes}
    if protocol == "v2":
        fields["model"] = "m"
    return HttpConfig.model_construct(
        kind="http", protocol=protocol, url=base, classes=classes, answers=answers,
        input=HttpInput(**inside), reply=HttpReply.model_construct(**places), **fields,
    )  # fmt: skip


def reader(answers: str = "soft", decimals: int | None = None, **changes) -> Reader:
    return Reader(section("json", answers=answers, decimals=decimals, **changes))


def v2(*, shape=GREY, **changes) -> V2Wire:
    return V2Wire(section("v2", **changes), shape)


def plain(**changes) -> JsonWire:
    return JsonWire(section("json", **changes), GREY)


def through_json(value: Any) -> Any:
    """As it would arrive."""
    return json.loads(json.dumps(value))


def rows(answers: Answers) -> list:
    """Believable rows as they are, the others as None."""
    values = answers.labels if answers.probs is None else answers.probs
    return [None if k in answers.bad else value for k, value in enumerate(values.tolist())]


# ---- addresses


@pytest.mark.parametrize("base", ["http://host:1", "http://host:1/"])
def test_addresses_are_those_of_the_protocols(base):
    for version, path in ((None, "m"), ("3", "m/versions/3")):
        wire = v2(base=base, version=version)
        assert (wire.about, wire.url) == (f"{BASE}/v2/models/{path}", f"{BASE}/v2/models/{path}/infer")
    wire = plain(base=f"{base}?a=b")
    assert (wire.about, wire.url) == (None, f"{base}?a=b")


def test_a_query_stays_behind_the_path():
    wire = v2(base="http://host/base/?key=${K}")
    assert wire.about == "http://host/base/v2/models/m?key=${K}"
    assert wire.url == "http://host/base/v2/models/m/infer?key=${K}"


# ---- requests


@pytest.mark.parametrize(
    ("layout", "shape", "order"),
    [
        (layout, shape, order)
        for layout, order in (("nchw", (0, 1, 2, 3)), ("nhwc", (0, 2, 3, 1)))
        for shape in (GREY, RGB)
    ],
)
def test_a_v2_request_of_pixels(layout, shape, order):
    data = images(2, shape)
    body = through_json(v2(shape=shape, layout=layout).request(data))
    expected = data.permute(*order)
    assert body == {
        "inputs": [
            {
                "name": "input",
                "shape": list(expected.shape),
                "datatype": "UINT8",
                "data": expected.flatten().tolist(),
            }
        ]
    }
    assert all(type(number) is int for number in body["inputs"][0]["data"])


def test_a_v2_request_without_the_channel_of_grey_images():
    (tensor,) = v2(layout="nhw").request(images(2))["inputs"]
    assert tensor["shape"] == [2, 2, 3] and tensor["data"] == images(2).flatten().tolist()


def test_a_v2_request_of_normalised_floats():
    data = images(2, RGB)
    normalise = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 2.0]}
    (tensor,) = through_json(v2(shape=RGB, pixels="unit", **normalise).request(data))["inputs"]
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.25, 2.0]).view(1, 3, 1, 1)
    expected = (data.float() / 255 - mean) / std
    assert (tensor["datatype"], tensor["shape"]) == ("FP32", [2, 3, 2, 2])
    assert np.float32(tensor["data"]).tobytes() == expected.numpy().tobytes()
    (unit,) = through_json(v2(shape=RGB, pixels="unit", layout="nhwc").request(data))["inputs"]
    assert np.float32(unit["data"]).tobytes() == (data.float() / 255).permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    assert max(unit["data"]) <= 1


def test_a_v2_request_names_input_and_output_as_told():
    body = v2(input_name="x", output="p").request(images())
    assert body["inputs"][0]["name"] == "x" and body["outputs"] == [{"name": "p"}]
    assert "outputs" not in v2().request(images())


@pytest.mark.parametrize("shape", [GREY, RGB])
def test_a_png_decodes_to_the_same_pixels(shape):
    data = images(3, shape)
    body = through_json(plain(encoding="png", request={"$each": {"b64": "$image"}}).request(data))
    decoded = np.stack([decode_png(base64.b64decode(entry["b64"], validate=True)) for entry in body])
    assert np.array_equal(decoded, data.numpy())


PIXELS = images().permute(0, 2, 3, 1).tolist()


@pytest.mark.parametrize(
    ("template", "body"),
    [
        (None, {"images": PIXELS}),
        ("$images", PIXELS),
        ({"a": "$images", "b": {"c": [1, "x", None, "$images"]}}, {"a": PIXELS, "b": {"c": [1, "x", None, PIXELS]}}),
        ({"$each": "$image"}, PIXELS),
        ({"q": [{"$each": {"i": "$image", "k": 3}}]}, {"q": [[{"i": one, "k": 3} for one in PIXELS]]}),
        ({"$each": {"batch": "$images"}}, [{"batch": [one]} for one in PIXELS]),
        ({"first": "$image", "all": "$images"}, {"first": PIXELS[0], "all": PIXELS}),
    ],
    ids=str,
)  # fmt: skip
def test_templates_are_filled_and_what_is_no_mark_stays(template, body):
    before = json.dumps(template)
    assert plain(request=template).request(images()) == body
    assert json.dumps(template) == before


def test_a_png_may_stand_in_a_text():
    template = {"image_url": {"url": "data:image/png;base64,$image"}}
    url = plain(encoding="png", request=template).request(images(1))["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(decode_png(base64.b64decode(data, validate=True)), images(1)[0].numpy())


# ---- metadata of v2


def metadata(**changes) -> dict:
    entry = {"name": "x", "datatype": "UINT8", "shape": [-1, *GREY]}
    return {"name": "m", "versions": ["1"], "platform": "p", "inputs": [entry | changes], "outputs": []}


def giving(*outputs: dict) -> dict:
    return metadata() | {"outputs": list(outputs)}


def test_the_name_of_the_input_is_learnt():
    wire = v2()
    wire.learn(metadata())
    assert wire.batch_limit is None
    assert wire.request(images())["inputs"][0]["name"] == "x"
    told = v2(input_name="y")
    told.learn(
        metadata() | {"inputs": [*metadata()["inputs"], {"name": "y", "datatype": "UINT8", "shape": [-1, *GREY]}]}
    )
    assert told.request(images())["inputs"][0]["name"] == "y"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shape": list(GREY)},  # the batch left out
        {"shape": ["-1", "1", "2", "3"]},
        {"shape": [-1, -1, -1, -1]},
        {"shape": [8, 1, 2, 3]},
        {"shape": []},
        {"shape": None},
        {"shape": "[-1, 1, 2, 3]"},
        {"shape": [[1]]},
        {"datatype": None},
        {"datatype": "uint8"},
        {"datatype": "TYPE_UINT8"},
        {"datatype": 3},
        {"parameters": {"content_type": "np"}},
    ],
    ids=str,
)
def test_metadata_that_fits_or_says_nothing_is_taken(changes):
    wire = v2()
    wire.learn(metadata(**changes))
    assert wire.request(images())["inputs"][0]["name"] == "x"


@pytest.mark.parametrize(
    ("wire", "changes", "message"),
    [
        (v2(), {"datatype": "FP32"}, "teacher.input.pixels: the model takes FP32, kdray would send UINT8; set "
         "teacher.input.pixels to unit, or teacher.input.datatype to FP32 if it takes 0..255"),
        (v2(pixels="unit"), {}, "teacher.input.pixels: the model takes UINT8, kdray would send FP32; set "
         "teacher.input.pixels to uint8"),
        (v2(), {"datatype": "BYTES"}, "teacher.input.pixels: the model takes BYTES, kdray would send UINT8; it can "
         "send numbers only"),
        (v2(), {"shape": [-1, 1, 3, 2]}, r"the model takes images of shape [-1, 1, 3, 2], kdray would send "
         "[-1, 1, 2, 3]; set size, colour and layout of teacher.input to bring them together"),
        (v2(layout="nhwc"), {}, "the model takes images of shape [-1, 1, 2, 3], kdray would send "
         "[-1, 2, 3, 1]; set size, colour and layout of teacher.input to bring them together"),
        (v2(), {"shape": [-1, 6]}, "the model takes images of shape [-1, 6], kdray would send [-1, 1, 2, 3]; set "
         "size, colour and layout of teacher.input to bring them together"),
        (v2(input_name="y"), {}, "teacher.input.name: the model has no input 'y'; it has 'x'"),
    ],
)  # fmt: skip
def test_metadata_that_does_not_fit_is_refused_with_what_to_do(wire, changes, message):
    with pytest.raises(TeacherError) as error:
        wire.learn(metadata(**changes))
    assert str(error.value) == message


def test_a_model_of_several_inputs_needs_the_name_of_the_images():
    two = {"inputs": [{"name": "x"}, {"name": "y"}]}
    with pytest.raises(TeacherError) as error:
        v2().learn(two)
    assert str(error.value) == "the model has several inputs: 'x', 'y'; set teacher.input.name to the image's"
    v2(input_name="y").learn(two)


SOFT = {"name": "p", "datatype": "FP32", "shape": [-1, 3]}
LABEL = {"name": "l", "datatype": "INT64", "shape": [-1]}


@pytest.mark.parametrize(
    ("wire", "outputs", "message"),
    [
        (v2(), [SOFT | {"shape": [-1, 4]}], "output 'p' of the model has shape [-1, 4], teacher.classes says 3: check "
         "teacher.classes and teacher.output"),
        (v2(), [LABEL, SOFT | {"shape": ["-1", "1000"]}], "output 'p' of the model has shape [-1, 1000], "
         "teacher.classes says 3: check teacher.classes and teacher.output"),
        (v2(), [SOFT | {"shape": [4]}], "output 'p' of the model has shape [4], teacher.classes says 3: check "
         "teacher.classes and teacher.output"),
        (v2(output="q"), [SOFT, SOFT | {"name": "q", "shape": [-1, 64]}], "output 'q' of the model has shape [-1, 64], "
         "teacher.classes says 3: check teacher.classes and teacher.output"),
        (v2(answers="hard"), [SOFT | {"shape": [-1, 4]}], "output 'p' of the model has shape [-1, 4], teacher.classes "
         "says 3: check teacher.classes and teacher.output"),
        (v2(), [LABEL], "the teacher gives no probabilities; set teacher.answers to hard for labels"),
        (v2(output="l"), [LABEL, SOFT], "output 'l' of the teacher gives no probabilities; set teacher.answers to hard "
         "for labels"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit_are_refused_before_anything_is_paid(wire, outputs, message):
    with pytest.raises(TeacherError) as error:
        wire.learn(giving(*outputs))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("wire", "outputs"),
    [
        (v2(), [SOFT]),
        (v2(), [LABEL, SOFT]),
        (v2(), [SOFT | {"shape": [3]}]),
        (v2(), [SOFT | {"shape": [8, 3]}]),
        (v2(), [SOFT | {"shape": [-1, 3, 1, 1]}]),
        (v2(), [SOFT | {"shape": [-1, -1]}]),
        (v2(), [SOFT | {"shape": [-1]}]),
        (v2(), [SOFT | {"shape": None}]),
        (v2(), [SOFT, SOFT | {"name": "features", "shape": [-1, 512]}]),
        (v2(), [{"name": "p"}]),
        (v2(answers="hard"), [LABEL, SOFT | {"shape": [-1, 4]}]),
        (v2(output="more"), [LABEL]),  # some servers give more than they say
    ],
)
def test_outputs_that_fit_or_say_nothing_are_taken(wire, outputs):
    wire.learn(giving(*outputs))


# ---- answers: v2


def infer(*outputs: dict) -> dict:
    return {"model_name": "m", "model_version": "1", "id": "a", "outputs": [*outputs]}


def tensor(data: list, datatype: str = "FP32", name: str = "p", shape: list | None = None) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape or [2, 3], "data": data, "parameters": {}}


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "BF16", "fp32"])
@pytest.mark.parametrize("data", [[*GOOD, *OTHER], [GOOD, OTHER]], ids=["flat", "nested"])
def test_v2_probabilities_flat_and_nested(data, datatype):
    answers = v2().answers(through_json(infer(tensor(data, datatype))), 2)
    assert answers.probs.tolist() == [GOOD, OTHER] and answers.labels.tolist() == [1, 2] and answers.bad == {}
    assert answers.probs.dtype == torch.float32


def test_v2_takes_the_first_output_that_can_hold_the_answer():
    label, soft = tensor([1, 2], "INT64", "l", [2]), tensor([GOOD, OTHER])
    words = tensor(["dog", "ray"], "BYTES", "w", [2])
    features = tensor([[1.0] * 5] * 2, name="f", shape=[2, 5])
    assert rows(v2().answers(infer(label, words, soft, features), 2)) == [GOOD, OTHER]
    assert rows(v2(output="p").answers(infer(features, soft), 2)) == [GOOD, OTHER]
    for outputs in ([label, soft], [soft, label], [words], [soft, words], [soft]):
        assert rows(v2(answers="hard").answers(infer(*outputs), 2)) == [1, 2]
    assert rows(v2(answers="hard", output="p").answers(infer(label, tensor([OTHER, GOOD])), 2)) == [2, 1]


@pytest.mark.parametrize(
    ("data", "datatype"),
    [([1, 2], "INT64"), ([[1], [2]], "INT32"), (["dog", "ray"], "BYTES"), (["1", "2"], "BYTES"), ([1.0, 2.0], "INT64")],
)
def test_v2_labels_numbers_and_names(data, datatype):
    answers = v2(answers="hard").answers(infer(tensor(data, datatype)), 2)
    assert answers.probs is None and rows(answers) == [1, 2]


@pytest.mark.parametrize(
    ("wire", "reply", "message"),
    [
        (v2(), infer(), "the teacher gives no probabilities; set teacher.answers to hard for labels"),
        (v2(), infer(tensor([1, 2], "INT64")), "the teacher gives no probabilities; set teacher.answers to hard"),
        (v2(output="l"), infer(tensor([1, 2], "INT64", "l")), "output 'l' of the teacher gives no probabilities"),
        (v2(answers="top2", output="l"), infer(tensor([1, 2], "INT64", "l")), "output 'l' of the teacher gives no pro"),
        (v2(output="q"), infer(tensor([GOOD, OTHER])), "has no output 'q': check teacher.output"),
        (v2(), infer(tensor([GOOD])), "gave 1 answer to 2 images"),
        (v2(), infer(tensor([GOOD, GOOD, GOOD])), "gave 3 answers to 2 images"),
        (v2(), infer(tensor([*GOOD, 0.5])), "2 numbers for an image, teacher.classes says 3"),
        (v2(), infer(tensor([*GOOD, *GOOD, 0.5])), "gave 7 numbers for 2 images"),
        (v2(), infer(tensor([])), "gave 0 answers to 2 images"),
        (v2(), infer(tensor([[0.5, 0.5], [0.5, 0.5]])), "2 numbers for an image, teacher.classes says 3"),
        (v2(answers="hard"), infer(tensor([1], "INT64")), "gave 1 answer to 2 images"),
        (v2(answers="hard"), infer(tensor([1, 2, 0], "INT64")), "gave 3 answers to 2 images"),
        (v2(answers="hard"), infer(tensor(["cow", "hen"], "BYTES")), "class 'cow', which teacher.classes does not"),
        (v2(), {"error": "out of memory"}, "has no outputs: {'error': 'out of memory'}"),
        (v2(), infer({"name": "p", "datatype": "FP32", "shape": [2, 3]}), "output 'p' of the teacher's reply has no"),
    ],
)  # fmt: skip
def test_v2_replies_without_answers(wire, reply, message):
    with pytest.raises(MalformedReply) as error:
        wire.answers(reply, 2)
    assert message in str(error.value)


# ---- answers: json

MAPPING = [{"ray": 0.25, "cat": 0.25, "dog": 0.5}, {"dog": 0.125, "ray": 0.75, "cat": 0.125}]
ITEMS = [
    [{"name": "dog", "p": 0.5}, {"name": "cat", "p": 0.25}, {"name": "ray", "p": 0.25}],
    [{"name": "ray", "p": 0.75}, {"name": "cat", "p": 0.125}, {"name": "dog", "p": 0.125}],
]


@pytest.mark.parametrize(
    ("paths", "reply"),
    [
        ({"rows": "probabilities", "probabilities": ""}, {"probabilities": [GOOD, OTHER]}),
        ({"rows": "", "probabilities": ""}, [GOOD, OTHER]),
        ({"rows": "a.0.b", "probabilities": "c.d"}, {"a": [{"b": [{"c": {"d": GOOD}}, {"c": {"d": OTHER}}]}]}),
        ({"rows": "", "probabilities": "-1"}, [[0, GOOD], [0, OTHER]]),
        ({"rows": "r", "probabilities": "p"}, {"r": [{"p": row} for row in MAPPING]}),
        ({"rows": "", "items": "", "label": "name", "score": "p"}, ITEMS),
        ({"rows": "r", "items": "i", "label": "name", "score": "p"}, {"r": [{"i": row} for row in ITEMS]}),
        ({"rows": "", "items": "", "label": "0", "score": "1"}, [[[e["name"], e["p"]] for e in row] for row in ITEMS]),
    ],
)
def test_json_probabilities(paths, reply):
    answers = plain(**paths).answers(through_json(reply), 2)
    assert rows(answers) == [GOOD, OTHER] and answers.labels.tolist() == [1, 2]


def test_json_about_one_image():
    assert rows(plain(probabilities="a").answers({"a": GOOD}, 1)) == [GOOD]
    assert rows(plain(answers="hard", label="a.0").answers({"a": ["ray"]}, 1)) == [2]
    with pytest.raises(MalformedReply, match="gave 1 answer to 2 images"):
        plain(probabilities="a").answers({"a": GOOD}, 2)


@pytest.mark.parametrize("labels", [[1, 2], ["dog", "ray"], ["1", "2"], [1.0, 2.0], ["dog", 2]])
def test_json_labels(labels):
    reply = {"r": [{"l": label} for label in labels]}
    assert rows(plain(answers="hard", rows="r", label="l").answers(reply, 2)) == [1, 2]


def test_the_likeliest_few_may_stand_for_all():
    wire = plain(answers="top2", rows="", items="", label="0", score="1")
    answers = wire.answers([[["dog", 0.5], ["cat", 0.25]], [[2, 0.75]]], 2)
    assert rows(answers) == [[0.25, 0.5, 0], [0, 0, 0.75]] and answers.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([["dog", 0.75], ["cat", 0.5]], "sum to 1.25, not 1; each lies in 0..1, so they look like scores of several "),
        ([["dog", 0.5], ["cat", 0.25], ["ray", 0.0]], "sum to 0.75, not 1"),
        ([["dog", -0.5]], "a negative probability (-0.5); does it give logits? set teacher.outputs to logits"),
        ([["dog", None]], "hold NaN or infinity"),
        ([["dog", math.inf]], "hold NaN or infinity"),
        ([["dog", 0.1]], "sum to 0.1, not 1; does it leave classes out?"),  # the likeliest of three has a third
        ([["dog", 0.5], ["dog", 0.5]], "the teacher named class 'dog' twice"),
        ([["dog", 0.5], [1, 0.5]], "the teacher named class 1 twice"),
        ([["cow", 0.5]], "class 'cow', which teacher.classes does not name"),
        ([[3, 0.5]], "class 3, which teacher.classes does not name"),
        ([], "the teacher named no class"),
        ([["dog", "high"]], "answered 'high' where a number belongs"),
        ([["dog"]], "has nothing at '1'"),
        ("dog", "of the teacher's reply is no list: check teacher.reply.items"),
    ],
)
def test_items_that_make_no_sense_are_a_bad_row(row, reason):
    wire = plain(answers="top3", rows="", items="", label="0", score="1")
    answers = wire.answers(through_json([[["dog", 1]], row, [["ray", 1]]]), 3)
    assert rows(answers) == [[0, 1, 0], None, [0, 0, 1]] and reason in answers.bad[1]


def test_soft_answers_name_every_class():
    wire = plain(rows="", items="", label="0", score="1")
    whole = [["dog", 0.5], ["cat", 0.25], ["ray", 0.25]]
    answers = wire.answers([whole, [["dog", 0.75], ["cat", 0.25]]], 2)
    assert rows(answers) == [[0.25, 0.5, 0.25], None]
    assert answers.bad[1] == "the teacher named 2 of 3 classes; set teacher.answers to top2"


@pytest.mark.parametrize(
    ("wire", "reply", "message"),
    [
        (plain(rows="r", probabilities=""), {"x": 1}, "has nothing at 'r': {'x': 1}; check teacher.reply"),
        (
            plain(rows="r", probabilities=""),
            {"r": {"a": 1}},
            "'r' of the teacher's reply is no list: check teacher.reply.",
        ),
        (plain(rows="r", probabilities=""), {"r": [GOOD]}, "gave 1 answer to 2 images"),
        (
            plain(rows="r", probabilities="p"),
            {"r": [{"q": 1}] * 2},
            "has nothing at 'p': {'q': 1}; check teacher.reply",
        ),
        (plain(rows="", probabilities=""), [[0.5, 0.5]] * 2, "2 numbers for an image, teacher.classes says 3"),
        (plain(rows="", probabilities=""), [{"cow": 1}] * 2, "class 'cow', which teacher.classes does not name"),
        (plain(rows="", items="", label="0", score="1"), [[["cow", 1]]] * 2, "class 'cow', which teacher.classes does"),
        (plain(rows="", items="i", label="0", score="1"), [{"i": 3}] * 2, "'i' of the teacher's reply is no list"),
        (plain(answers="hard", rows="", label=""), ["cow", "hen"], "class 'cow', which teacher.classes does not name"),
        (plain(answers="hard", rows="", label=""), [3, -1], "class 3, which teacher.classes does not name"),
    ],
)
def test_json_replies_without_answers(wire, reply, message):
    with pytest.raises(MalformedReply) as error:
        wire.answers(reply, 2)
    assert message in str(error.value)


def test_paths_lead_through_keys_and_positions():
    value = {"a": [{"b": 1}, {"0": 2}], "": 3}
    assert [follow(value, path) for path in ("", "a.0.b", "a.1.0", "a.-1.0")] == [value, 1, 2, 2]
    for path in ("b", "a.2", "a.-3", "a.b", "a.0.b.c", "a.--1", "a.²", "a.1_0", "a.+1"):
        with pytest.raises(MalformedReply, match="has nothing at"):
            follow(value, path)


# ---- answers: numbers and names of any protocol


@pytest.mark.parametrize("number", ["NaN", "nan", "Infinity", "-inf", None, math.nan, math.inf, 1e300, 10**400])
def test_a_row_with_something_that_is_no_finite_number_is_bad(number):
    """Servers write NaN in all these ways."""
    answers = v2().answers(through_json(infer(tensor([[0.5, number, 0.5], GOOD]))), 2)
    assert rows(answers) == [None, GOOD] and answers.bad[0] == "the teacher's probabilities hold NaN or infinity"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1.5, -0.5, 0.0], "answered a negative probability (-0.5); does it give logits?"),
        ([0.5, 0.5, 0.5], "sum to 1.5, not 1; each lies in 0..1, so they look like scores of several labels at once"),
        ([0.0, 0.0, 0.0], "sum to 0, not 1"),
        ([0.5, 0.5], "answered 2 numbers for an image, teacher.classes says 3"),
        ([0.25, 0.25, 0.25, 0.25], "answered 4 numbers for an image, teacher.classes says 3"),
        ([[0.5], [0.5], [0.0]], "answered [0.5] where a number belongs"),
        ([0.5, "half", 0.0], "answered 'half' where a number belongs"),
        ([1, True, 0], "answered True where a number belongs"),
        ("dog", "answered 'dog'; expected 3 numbers an image"),
        (None, "answered None; expected 3 numbers an image"),
        ({"cat": 0.5, "dog": 0.5}, "named 2 of 3 classes: check teacher.classes"),
        ({"cat": 0.5, "dog": 0.25, "cow": 0.25}, "answered class 'cow', which teacher.classes does not name"),
        ({"cat": 0.5, "0": 0.0, "dog": 0.5}, "named class '0' twice"),
    ],
)
def test_a_row_that_makes_no_sense_is_bad_and_its_neighbours_are_not(row, reason):
    answers = plain(rows="", probabilities="").answers(through_json([GOOD, row, OTHER]), 3)
    assert rows(answers) == [GOOD, None, OTHER] and reason in answers.bad[1]
    hard = plain(answers="hard", rows="", probabilities="").answers(through_json([GOOD, row, OTHER]), 3)
    assert rows(hard) == [1, None, 2]
    if not isinstance(row, list) or len(row) != 3 or isinstance(row[0], list) or isinstance(row[1], str | bool):
        with pytest.raises(MalformedReply) as error:
            plain(rows="", probabilities="").answers(through_json([row, row]), 2)
        assert reason in str(error.value)


@pytest.mark.parametrize(
    "label",
    ["cow", "", 3, -1, "3", "-1", 1.5, True, [1, 2], {"a": 1}, 10**30, 1e300, "٢", "1.0", math.nan],
)
def test_a_label_that_names_no_class_is_bad_and_its_neighbours_are_not(label):
    wire = v2(answers="hard")
    answers = wire.answers(through_json(infer(tensor([1, label, "ray"], "BYTES"))), 3)
    assert rows(answers) == [1, None, 2] and "which teacher.classes does not name" in answers.bad[1]
    assert isinstance(answers.bad[1], UnknownClass)
    with pytest.raises(MalformedReply, match=r"which teacher\.classes does not name"):
        wire.answers(through_json(infer(tensor([label, label], "BYTES"))), 2)


@pytest.mark.parametrize("labels", [[None, "dog"], [None]])
def test_a_label_that_is_null_is_no_unknown_class(labels):
    answers = plain(answers="hard", rows="", label="").answers(labels, len(labels))
    assert answers.bad == {0: "the teacher answered null, not a class"}
    assert not isinstance(answers.bad[0], UnknownClass) and rows(answers)[1:] == [1, 1][: len(labels) - 1]


def test_names_go_before_numbers():
    """Classes may be named after other numbers. Then a number that is no name may be a mistake."""
    wire = plain(answers="hard", rows="", label="", names=("7", "1", "0"))
    assert rows(wire.answers(["7", "1", "0", "2", 2, 0, 7.0], 7)) == [0, 1, 2, None, None, 2, 0]
    nameless = plain(answers="hard", rows="", label="", names=None)
    assert rows(nameless.answers([0, "2", "cat"], 3)) == [0, 2, None]


def test_logits_become_probabilities():
    logits = [[1.0, 2.0, -3.0], [1000.0, 0.0, 999.0], [math.nan, 0.0, 0.0], [-50.0, -51.0, -52.0]]
    listed = {"rows": "", "probabilities": "", "logits": True}
    answers = plain(**listed).answers(logits, 4)
    expected = torch.tensor(logits, dtype=torch.float64).softmax(dim=1).float()
    assert answers.probs[[0, 1, 3]].tolist() == expected[[0, 1, 3]].tolist()
    assert answers.bad == {2: "the teacher's probabilities hold NaN or infinity"}
    many = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 9
    double = plain(**listed).answers(many.tolist(), 200).probs
    assert torch.equal(double, many.softmax(dim=1).float()) and not torch.equal(double, many.float().softmax(dim=1))
    hard = plain(**listed, answers="hard").answers(logits, 4)
    assert rows(hard) == [1, 0, None, 0]
    items = plain(logits=True, rows="", items="", label="0", score="1")
    some = items.answers([[["ray", -3.0], ["cat", 1.0], ["dog", 2.0]], [["dog", 2.0]]], 2)
    assert some.probs[0].tolist() == expected[0].tolist()
    assert "logits of 1 of 3 classes" in some.bad[1]


def test_the_tolerance_is_what_the_config_says():
    loose = [[0.5, 0.5, 0.015], [0.5, 0.5, 0.025], [0.5, 0.485, 0.0], [0.5, 0.475, 0.0]]
    items = [[[k, p] for k, p in enumerate(row)] for row in loose]
    for tolerance, bad in ((0.02, {1, 3}), (0.03, set()), (0.001, {0, 1, 2, 3})):
        listed = plain(tolerance=tolerance, rows="", probabilities="")
        wire = plain(tolerance=tolerance, rows="", items="", label="0", score="1")
        assert set(listed.answers(loose, 4).bad) == set(wire.answers(items, 4).bad) == bad


@pytest.mark.parametrize(
    ("answers", "decimals", "expected"),
    [
        ("soft", None, [[0.26, 0.5, 0.24], [0.115, 0.125, 0.76]]),
        ("soft", 1, [[0.3, 0.5, 0.2], [0.1, 0.1, 0.8]]),
        ("top1", None, [[0, 0.5, 0], [0, 0, 0.76]]),
        ("top2", 1, [[0.3, 0.5, 0], [0, 0.1, 0.8]]),
        ("hard", None, [1, 2]),
    ],
)
def test_answers_are_cut_to_the_form_that_was_asked_for(answers, decimals, expected):
    given_rows = [[0.26, 0.5, 0.24], [0.115, 0.125, 0.76]]
    wanted = expected if answers == "hard" else torch.tensor(expected, dtype=torch.float32).tolist()
    for wire, reply in (
        (v2(answers=answers, decimals=decimals), infer(tensor(given_rows))),
        (plain(answers=answers, decimals=decimals, rows="", probabilities=""), given_rows),
        (
            plain(answers=answers, decimals=decimals, rows="", items="", label="0", score="1"),
            [[[name, p] for name, p in zip(NAMES, row, strict=True)] for row in given_rows],
        ),
    ):
        assert rows(wire.answers(reply, 2)) == wanted


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2), min_size=1, max_size=5))
@examples(200)
def test_float32_probabilities_survive_json_to_the_bit(pairs):
    """However the server writes them: as the double they equal, or as the shortest float32 text."""
    probs = np.float32([[a / 2, b / 2, 0] for a, b in pairs])
    probs[:, 2] = np.float32(1) - probs[:, 0] - probs[:, 1]
    doubles = json.dumps(probs.astype(np.float64).tolist())
    shortest = "[" + ",".join("[" + ",".join(f"{x!s}" for x in row) + "]" for row in probs) + "]"
    for text in (doubles, shortest):
        for wire, reply in (
            (plain(rows="", probabilities=""), json.loads(text)),
            (v2(), infer(tensor(json.loads(text)))),
            (plain(rows="", items="", label="0", score="1"),
             [[[k, p] for k, p in enumerate(row)] for row in json.loads(text)]),
        ):  # fmt: skip
            answers = wire.answers(reply, len(pairs))
            assert answers.bad == {} and answers.probs.numpy().tobytes() == probs.tobytes()


# ---- junk

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
scalars |= st.sampled_from([*NAMES, "NaN", 10**400, 0.5])
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["p", "name", *NAMES]), inner, max_size=4)
    ),
    max_leaves=8,
)
keyed = st.dictionaries(
    st.sampled_from(["outputs", "predictions", "name", "datatype", "data", "shape", "inputs", "r", "p"]),
    junk | st.lists(st.dictionaries(st.sampled_from(["name", "datatype", "data", "shape", "state"]), junk, max_size=4)),
    max_size=4,
)
PATHS = [
    {"rows": "r", "probabilities": ""},
    {"rows": "", "probabilities": "p"},
    {"probabilities": ""},
    {"rows": "", "items": "", "label": "name", "score": "p"},
    {"rows": "r", "items": "p", "label": "0", "score": "1"},
]
WIRES = [
    *[v2(answers=answers, **more) for answers in ("soft", "hard", "top2")
      for more in ({}, {"output": "p"}, {"logits": True})],
    *[plain(answers=answers, **paths) for answers in ("soft", "hard", "top2") for paths in PATHS],
    *[plain(answers="hard", **paths) for paths in ({"rows": "r", "label": "p"}, {"label": ""})],
]  # fmt: skip


@given(junk | keyed, st.integers(1, 3))
@examples(150)
def test_no_reply_raises_anything_but_malformed(reply, batch):
    for wire in WIRES:
        with contextlib.suppress(MalformedReply):
            answers = wire.answers(reply, batch)
            assert len(answers) == batch and set(answers.bad) <= set(range(batch))
            assert bool(((answers.labels >= 0) & (answers.labels < 3)).all())


@given(junk | keyed)
@examples(150)
def test_no_metadata_raises_anything_but_a_teacher_error(reply):
    for wire in (v2(), v2(input_name="x", answers="hard"), v2(output="p"), plain()):
        with contextlib.suppress(TeacherError):
            wire.learn(reply)
            wire.request(images(1))


@given(st.lists(junk, max_size=3), st.lists(junk, max_size=3), st.sampled_from([GOOD, OTHER]))
@examples(150)
def test_a_good_row_survives_any_neighbours(before, after, good):
    batch, place = len(before) + len(after) + 1, len(before)
    items = [[name, p] for name, p in zip(NAMES, good, strict=True)]
    label = NAMES[int(np.argmax(good))]
    for wire, reply in (
        (plain(rows="", probabilities=""), [*before, good, *after]),
        (plain(rows="r", probabilities="p"), {"r": [*before, {"p": good}, *after]}),
        (plain(rows="", items="", label="0", score="1"), [*before, items, *after]),
        (plain(answers="hard", rows="", label=""), [*before, label, *after]),
        (v2(answers="hard"), infer(tensor([*before, label, *after], "BYTES", shape=[batch]))),
        (v2(), infer(tensor([*[[row] for row in before], good, *[[row] for row in after]]))),
    ):
        answers = wire.answers(reply, batch)
        assert place not in answers.bad and answers.labels[place] == int(np.argmax(good))
        assert answers.probs is None or answers.probs[place].tolist() == good


def test_a_reply_of_very_many_levels_is_malformed():
    deep: Any = GOOD
    for _ in range(100_000):
        deep = [deep]
    for wire in WIRES:
        with pytest.raises(MalformedReply):
            wire.answers(deep, 2)


# ---- from the config


def teacher(**changes):
    fields = {"kind": "http", "url": BASE, "model": "m", "classes": list(NAMES), **changes}
    return HttpConfig(**fields).build(GREY)


def body(**changes) -> Any:
    """What a teacher of this config would send."""
    return teacher(**changes)._wire.request(images())


def test_a_config_decides_body_and_reading():
    assert body()["inputs"][0]["shape"] == [2, 1, 2, 3]
    assert body(input={"layout": "nhw"})["inputs"][0]["shape"] == [2, 2, 3]
    assert body(input={"pixels": "unit", "mean": [0.5], "std": [0.25]})["inputs"][0]["datatype"] == "FP32"
    json_config = {"protocol": "json", "model": None}
    assert body(**json_config) == {"images": PIXELS}
    assert body(**json_config, input={"layout": "nchw"}) == {"images": images().tolist()}
    png = body(**json_config, request={"$each": "$image"}, input={"encoding": "png"})
    assert [base64.b64decode(text)[:4] for text in png] == [b"\x89PNG"] * 2
    wire = teacher(**json_config)._wire
    assert rows(wire.answers({"probabilities": [GOOD]}, 1)) == [GOOD]
    wire = teacher(**json_config, reply={"rows": "", "label": "a"}, answers="hard")._wire
    assert rows(wire.answers([{"a": "ray"}], 1)) == [2]
    wire = teacher(**json_config, outputs="logits", answers="top1", decimals=2)._wire
    assert rows(wire.answers({"probabilities": [[0.0, 0.0, 9.0]]}, 1)) == [[0, 0, 1]]
    assert set(teacher(tolerance=0.6)._wire.answers(infer(tensor([[0.5, 0.5, 0.5]])), 1).bad) == set()


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"answers": "top4"}, GREY, "teacher.answers: top4 of a teacher with 3 classes; use top3 at most, or soft"),
        ({"input": {"layout": "nhw"}}, RGB, "teacher.input.layout: nhw is for grey images, these are in colour; use "
         "nhwc or nchw, or set teacher.input.colour to grey"),
        (
            {"input": {"pixels": "unit", "mean": [0.5], "std": [0.5]}},
            RGB,
            "teacher.input has 1 means and 1 standard deviations, but the teacher's images have 3 channels; give one "
            "number a channel, or set teacher.input.colour",
        ),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_the_images_is_refused(changes, shape, message):
    config = HttpConfig(**{"kind": "http", "url": BASE, "model": "m", "classes": 3, **changes})
    with pytest.raises(TeacherError) as error:
        config.build(shape)
    assert str(error.value) == message


def test_what_decides_an_answer_is_part_of_the_identity_and_nothing_else_is():
    name = lambda **changes: teacher(**changes).identity  # noqa: E731
    assert name().startswith(f"http:{BASE}/m:") and name().endswith(":soft")
    assert name(version="2").startswith(f"http:{BASE}/m@2:")
    assert name(name="mine", url="http://else:2", model="n") == name(name="mine")
    same = [
        {"url": f"{BASE}/"}, {"batch_size": 7}, {"timeout_s": 3}, {"headers": {"A": "b"}}, {"metered": False},
        {"limits": {"burst": 3}}, {"retry": {"tries": 2}}, {"tolerance": 0.1}, {"classes": 3},
    ]  # fmt: skip
    assert {name(**changes) for changes in same} == {name()}
    different = [
        {}, {"url": "http://host:2"}, {"model": "n"}, {"version": "1"}, {"name": "x"}, {"answers": "hard"},
        {"answers": "top2"}, {"decimals": 2}, {"input": {"pixels": "unit"}}, {"input": {"layout": "nhwc"}},
        {"output": "p"}, {"outputs": "logits"}, {"protocol": "json", "model": None},
    ]  # fmt: skip
    assert len({name(**changes) for changes in different}) == len(different)


def test_names_that_a_server_may_answer_in_are_part_of_the_identity():
    other = {"classes": ["dog", "cat", "ray"]}
    assert teacher(**other).identity == teacher().identity  # probabilities of v2 have no names
    for changes in (
        {"answers": "hard"},
        {"protocol": "json", "model": None, "reply": {"rows": "", "probabilities": ""}},
    ):
        assert teacher(**changes, **other).identity != teacher(**changes).identity


@pytest.mark.parametrize(
    ("changes", "identity"),
    [
        ({}, "http:http://host:1/m:d35464561ab9:soft"),
        ({"answers": "hard"}, "http:http://host:1/m:20a00ed16516:hard"),
        ({"outputs": "logits", "output": "p"}, "http:http://host:1/m:9d8a26d9c392:soft"),
        ({"protocol": "json", "model": None, "classes": 3}, "http:http://host:1:f4888b1f51ae:soft"),
    ],
)
def test_identities_stay_what_they_are_in_ledgers(changes, identity):
    """Answers that were bought are found by it: another one would buy them again."""
    assert teacher(**changes).identity == identity
