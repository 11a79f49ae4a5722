"""Replies of real kinds of servers, each with the config that reads it and the right values; docs/teachers.md has the
same table."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from kdray.errors import TeacherError
from kdray.teachers import Answers
from kdray.teachers.answers import AnswerFormat, check_probabilities
from kdray.teachers.function import FunctionTeacher
from kdray.teachers.http import HttpTeacherConfig
from kdray.teachers.http.malformed import AmbiguousReply, MalformedReply
from kdray.teachers.http.parse import Reader
from kdray.teachers.http.paths import follow
from kdray.teachers.http.wires.json_wire import image_ids
from kdray.teachers.suspicion import LogitsCheck, no_logits, suspect

SHAPE = (1, 2, 3)
SOFT = [[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]
TOP = [[0.7, 0.2, 0.0], [0.05, 0.0, 0.9]]
NAMES = ["0", "180", "other"]


def wire(protocol: str, config: str = "", **changes: Any):
    """What reads the replies of a server: the fields of `config`, as a user writes them in YAML."""
    fields = {"kind": "http", "protocol": protocol, "url": "http://host:1", "classes": NAMES, "batch_size": 2}
    fields |= {"model": "m"} if protocol == "v2" else {}
    return HttpTeacherConfig(**(fields | (yaml.safe_load(config) or {}) | changes)).build(SHAPE)._wire


def images(count: int = 2) -> torch.Tensor:
    return torch.arange(count * 6).reshape(count, *SHAPE).to(torch.uint8)


def output(data: list, datatype: str = "FP32", shape: list[int] | None = None, name: str = "p") -> dict:
    return {"name": name, "datatype": datatype, "shape": shape or [2, 3], "data": data}


def values(answers: Answers) -> list:
    assert answers.bad == {}
    found = answers.labels if answers.probs is None else answers.probs
    return np.round(found.double().numpy(), 3).tolist()


CASES = {
    "percent": (
        "json", "{outputs: percent, reply: {rows: scores, probabilities: ''}}", {},
        {"scores": [[70.0, 20.0, 10.0], [5.0, 5.0, 90.0]]}, SOFT,
    ),
    "numbers as strings": (
        "json", "reply: {rows: probs, probabilities: ''}", {},
        {"probs": [["0.700", "0.200", "0.100"], ["0.05", "0.05", "0.9"]]}, SOFT,
    ),
    "percent strings": (
        "json", "reply: {rows: probs, probabilities: ''}", {},
        {"probs": [["70%", "20 %", "10%"], ["5%", "5%", "90%"]]}, SOFT,
    ),
    "spare dimensions": (
        "v2", "", {},
        {"outputs": [output([[[[0.7]], [[0.2]], [[0.1]]], [[[0.05]], [[0.05]], [[0.9]]]], shape=[2, 3, 1, 1])]}, SOFT,
    ),
    "spare leading dimension": (
        "v2", "", {},
        {"outputs": [output([[[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]], "FP64", [1, 2, 3])]}, SOFT,
    ),
    "spare dimensions of flat data": (
        "v2", "", {}, {"outputs": [output([0.7, 0.2, 0.1, 0.05, 0.05, 0.9], shape=[2, 1, 3, 1])]}, SOFT,
    ),
    "UINT8 scores with a scale of 1/255": (
        "v2", "scale: 1/255", {}, {"outputs": [output([179, 51, 25, 13, 13, 229], "UINT8", name="q")]},
        [[0.702, 0.2, 0.098], [0.051, 0.051, 0.898]],
    ),
    "INT8 scores with scale and zero point": (
        "v2", "{scale: 1/256, zero_point: -128}", {},
        {"outputs": [output([51, -77, -102, -115, -115, 102], "INT8", name="q")]},
        [[0.699, 0.199, 0.102], [0.051, 0.051, 0.898]],
    ),
    "classification strings": (
        "v2", "{answers: top2, classification: 2, output: c}", {},
        {"outputs": [output(
            ["0.700000:0:0", "0.200000:1:180", "0.900000:2:other", "0.050000:0:0"], "BYTES", [2, 2], name="c"
        )]},
        TOP,
    ),
    "classification strings without names": (
        "v2", "{answers: top2, classification: 2, output: c}", {"classes": 3},
        {"outputs": [output(["0.7:0", "0.2:1", "0.9:2", "0.05:0"], "BYTES", [2, 2], name="c")]}, TOP,
    ),
    "labels that are the class names as numbers": (
        "json", "{answers: hard, reply: {rows: angle, label: ''}}", {}, {"angle": [0, 180]}, [0, 1],
    ),
    "a name that is also a position": (
        "json", "{answers: hard, reply: {rows: digit, label: ''}}", {"classes": ["1", "2", "3"]},
        {"digit": [1, 3]}, [0, 2],
    ),
    "a position that is also a name": (
        "json", "{answers: hard, labels: positions, reply: {rows: digit, label: ''}}", {"classes": ["1", "2", "3"]},
        {"digit": [1, 2]}, [1, 2],
    ),
    "top-k as a mapping, one more key in it": (
        "json", "{answers: top2, reply: {rows: results, probabilities: '', ignore: [model]}}", {},
        {"results": [{"0": 0.7, "180": 0.2, "model": "v3"}, {"other": 0.9, "0": 0.05, "model": "v3"}]}, TOP,
    ),
    "parallel lists": (
        "json", "reply: {rows: results, label: labels, score: scores}", {},
        {"results": [
            {"labels": ["180", "0", "other"], "scores": [0.2, 0.7, 0.1]},
            {"labels": ["other", "0", "180"], "scores": [0.9, 0.05, 0.05]},
        ]},
        SOFT,
    ),
    "a single label and score": (
        "json", "{answers: top1, reply: {rows: '', label: label, score: score}}", {},
        [{"label": "0", "score": 0.7}, {"label": "Other.", "score": 0.9}], [[0.7, 0, 0], [0, 0, 0.9]],
    ),
    "a single label of a label and score": (
        "json", "{answers: hard, reply: {rows: '', label: label}}", {},
        [{"label": "0", "score": 0.7}, {"label": " OTHER", "score": 0.9}], [0, 2],
    ),
    "one sigmoid number for two classes": (
        "json", "{one_number: true, reply: {rows: p, probabilities: ''}}", {"classes": ["no", "yes"]},
        {"p": [0.3, 0.95]}, [[0.7, 0.3], [0.05, 0.95]],
    ),
    "one logit for two classes": (
        "json", "{one_number: true, outputs: logits, reply: {rows: p, probabilities: ''}}", {"classes": 2},
        {"p": [[0.0], [-1.3862943611]]}, [[0.5, 0.5], [0.8, 0.2]],
    ),
    "one number for two classes in v2": (
        "v2", "one_number: true", {"classes": 2}, {"outputs": [output([[0.3], [0.95]], shape=[2, 1])]},
        [[0.7, 0.3], [0.05, 0.95]],
    ),
    "ids in another order": (
        "json", "{request: {items: {$each: {id: $id, image: $image}}},"
        " reply: {rows: predictions, id: id, probabilities: probs}}", {},
        {"predictions": [{"id": "b", "probs": [0.05, 0.05, 0.9]}, {"id": "a", "probs": [0.7, 0.2, 0.1]}]}, SOFT,
    ),
    "a key with a dot": (
        "json", "reply: {rows: model.output, probabilities: ''}", {},
        {"model.output": [[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]}, SOFT,
    ),
    "a key with a dot as a list of steps": (
        "json", "reply: {rows: [model.output, 0], probabilities: ''}", {},
        {"model.output": [[[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]], "model": {"output": [3]}}, SOFT,
    ),
    "JSON inside text": (
        "json", "{answers: hard, batch_size: 1, request: {q: $image}, reply: {label: choices.0.message.content.label}}",
        {}, {"choices": [{"message": {"content": '{"label": "180"}'}}]}, [1],
    ),
    "a list of JSON inside fenced text": (
        "json", "{batch_size: 1, request: {q: $image}, reply: {probabilities: text}}", {},
        {"text": "Here it is:\n```json\n[0.7, 0.2, 0.1]\n```"}, SOFT[:1],
    ),
    "tiny negative": (
        "v2", "", {}, {"outputs": [output([0.7, 0.300000001, -1e-9, 0.05, 0.05, 0.9])]},
        [[0.7, 0.3, 0.0], [0.05, 0.05, 0.9]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_reply_means_what_its_server_means(name):
    protocol, config, changes, reply, means = CASES[name]
    answers = wire(protocol, config, **changes).answers(json.loads(json.dumps(reply)), len(means))
    assert values(answers) == means
    assert answers.probs is None or bool((answers.probs >= 0).all())


def why(reader, reply: Any) -> str:
    """The reason why a reply about one image holds no valid answer."""
    try:
        (reason,) = reader.answers(reply, 1).bad.values()
    except MalformedReply as error:
        return str(error)
    return reason


# ---- what cannot be taken, and numbers of another kind than the config says


@pytest.mark.parametrize(
    ("config", "row", "reason"),
    [
        ("", [0.9, 0.8, 0.1], "sum to 1.8, not 1; each lies in 0..1, so they look like scores of several labels at "
         "once (sigmoid), which no student can be trained on; kdray takes probabilities of one class among all, their "
         "logits, or one label an image"),
        ("", [70.0, 20.0, 10.0], "sum to 100, not 1; they look like percentages: set teacher.outputs to percent"),
        ("", [70.2, 20.1, 10.0], "they look like percentages: set teacher.outputs to percent"),
        ("", [179, 51, 25], "they look like probabilities as whole numbers of 0..255: set teacher.scale to 1/255"),
        ("", [51, -77, -102], "-128..127: set teacher.scale to 1/256 and teacher.zero_point to -128"),
        ("", [-0.3567, -1.6094, -2.3026], "they look like logarithms of probabilities: set teacher.outputs to logits"),
        ("", [4.0, -2.5, 1.0], "negative probability (-2.5); does it give logits? set teacher.outputs to logits"),
        ("", [4.0, 2.5, 1.0], "sum to 7.5, not 1; does it give logits? set teacher.outputs to logits"),
        ("", [0.5, 0.2, 0.1], "sum to 0.8, not 1; does it leave classes out? check teacher.classes, or set "),
        ("outputs: percent", [0.7, 0.2, 0.1], "numbers lie in 0..1 as they are: set teacher.outputs to probabilities"),
        ("scale: 1/255", [0.7, 0.2, 0.1], "numbers lie in 0..1 as they are: set teacher.scale to null"),
        ("outputs: percent", [60.0, 20.0, 10.0], "sum to 0.9, not 1; does it leave classes out?"),
        ("outputs: percent", [700.0, 200.0, 100.0], "sum to 10, not 1; does it give logits?"),
    ],
)  # fmt: skip
def test_a_hint_is_right_for_the_numbers_that_were_seen(config, row, reason):
    assert reason in why(wire("json", config), {"probabilities": [row]})
    good = [0.7, 0.2, 0.1] if config == "" else [70.0, 20.0, 10.0] if "percent" in config else [179, 51, 25]
    assert set(wire("json", config).answers({"probabilities": [good, row]}, 2).bad) == {1}


def test_numbers_of_another_kind_are_no_accident_of_one_image():
    """A first reply that is malformed stops the run after one query; a doubtful image is asked again."""
    for row in ([70.0, 20.0, 10.0], [179, 51, 25], [0.9, 0.8, 0.1], [-0.3567, -1.6094, -2.3026]):
        with pytest.raises(MalformedReply, match="look like"):
            wire("json").answers({"probabilities": [row, row]}, 2)
    with pytest.raises(MalformedReply, match=r"lie in 0\.\.1"):
        wire("json", "outputs: percent").answers({"probabilities": SOFT}, 2)
    assert set(wire("json").answers({"probabilities": [[7.0, 0.2, 0.1]]}, 1).bad) == {0}


def test_following_a_hint_gives_the_right_values():
    for row, config in (
        ([70.0, 20.0, 10.0], "outputs: percent"),
        ([178.5, 51.0, 25.5], "scale: 1/255"),
        ([-0.356675, -1.609438, -2.302585], "outputs: logits"),
    ):
        assert values(wire("json", config).answers({"probabilities": [row]}, 1)) == [[0.7, 0.2, 0.1]]


@pytest.mark.parametrize("row", [[0.7, 0.2, 0.1], [70.0, 20.0, 10.0]])
def test_probabilities_are_not_taken_for_logits(row):
    """Their softmax would be off by 0.4 and more."""
    wanted = "probabilities" if sum(row) < 2 else "percent"
    with pytest.raises(MalformedReply, match=f"not logits: set teacher.outputs to {wanted}$"):
        wire("json", "outputs: logits").answers({"probabilities": [row, row]}, 2)
    with pytest.raises(MalformedReply, match=r"not a logit: set teacher.outputs to probabilities"):
        wire("json", "outputs: logits").answers({"probabilities": [["70%", "20%", "10%"]]}, 1)


def test_logits_that_look_like_probabilities_in_some_rows_are_logits():
    assert no_logits(np.array([[0.7, 0.2, 0.1], [4.0, 1.0, -2.0]])) is None
    assert no_logits(np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])) == "probabilities"
    assert no_logits(np.array([[0.7, np.nan, 0.1]])) is None and no_logits(np.zeros((0, 3))) is None


def test_two_logits_that_sum_to_1_by_chance_are_an_answer():
    check, chance, other = LogitsCheck(), np.array([[0.304, 0.696]]), np.array([[2.0, -1.0]])
    assert [check.look(chance) for _ in range(4)] == [None, None, None, "probabilities"], (
        "of two classes four rows tell"
    )
    check = LogitsCheck()
    assert check.look(chance) is None and check.look(other) is None
    assert [check.look(chance) for _ in range(9)] == [None] * 9, "the teacher has given logits"
    assert LogitsCheck().look(np.array([[0.7, 0.2, 0.1, 0.0, 0.0]])) == "probabilities", "five numbers tell at once"
    check = LogitsCheck()
    assert check.look(np.array([[np.nan, 0.5]])) is None
    assert check.look(np.repeat(chance, 4, axis=0)) == "probabilities", "NaN says nothing"


def test_some_of_the_likeliest_in_percent_are_not_read_as_hundredths():
    top = wire("json", "{answers: top2, outputs: percent, reply: {rows: '', items: '', label: '0', score: '1'}}")
    assert values(top.answers([[["0", 70], ["180", 20]]], 1)) == TOP[:1]
    reason = why(top, [[["0", 0.7], ["180", 0.2]]])
    assert reason == "the teacher's numbers lie in 0..1 as they are: set teacher.outputs to probabilities"
    plain = wire("json", "{answers: top2, reply: {rows: '', items: '', label: '0', score: '1'}}")
    for numbers in ([70, 30], [70, 20], [4.5, 0.5]):
        reason = why(plain, [[list(pair) for pair in zip(["0", "180"], numbers, strict=True)]])
        assert "they look like percentages: set teacher.outputs to percent" in reason


@pytest.mark.parametrize("count", [3, 10, 1000])
def test_probabilities_themselves_are_never_suspect(count):
    many = np.random.default_rng(0).dirichlet(np.full(count, 0.1), 50)
    assert check_probabilities(torch.from_numpy(many), 50, count, 0.02) == {}
    assert {suspect(row * 100, 0.02) for row in many} == {"percent"}


def test_the_tolerance_holds_for_signs_too():
    rows = torch.tensor([[0.7, 0.3, -1e-9], [0.71, 0.3, -0.01], [0.75, 0.3, -0.05]])
    bad = check_probabilities(rows, 3, 3, 0.02)
    assert set(bad) == {2} and AnswerFormat().apply(rows, bad).probs[:2].min() == 0
    teacher = FunctionTeacher(lambda batch: rows[:1].numpy(), identity="f", num_classes=3, form=AnswerFormat())
    answers = teacher.answer(images(1))
    assert answers.bad == {} and answers.probs.tolist() == torch.tensor([[0.7, 0.3, 0.0]]).tolist()


@pytest.mark.parametrize("number", ["1_0", "٢", "0,7", "0x1", "", " ", "70 percent", "7%0", "--1", "1e", [0.7], {}])
def test_texts_that_are_no_numbers_are_not_read(number):
    (reason,) = wire("json").answers({"probabilities": [[number, 0.5, 0.5], *SOFT]}, 3).bad.values()
    assert reason.endswith("where a number belongs")


def test_one_number_where_two_belong_is_said_how_to_take():
    told = "; expected 2 numbers an image; if it is that of the second class, set teacher.one_number to true"
    for number in (0.3, [0.3]):
        with pytest.raises(MalformedReply, match=f"{told}$"):
            wire("json", classes=2).answers({"probabilities": [number]}, 1)
    with pytest.raises(MalformedReply, match=r"expected one number an image, as teacher.one_number says"):
        wire("json", "one_number: true", classes=2).answers({"probabilities": [[0.3, 0.7]]}, 1)


# ---- names and positions


@pytest.mark.parametrize(
    ("classes", "labels", "given", "means"),
    [
        (["1", "2", "3", "4"], "auto", [1, 1.0, "1", 4, "4"], [0, 0, 0, 3, 3]),
        (["0", "180"], "auto", [180, 180.0, "180", "180.0", 0], [1, 1, 1, 1, 0]),
        (["01", "02"], "auto", [1, "2", "02"], [0, 1, 1]),
        (["cat", "dog"], "auto", [0, "1", "Cat", "DOG.", 1.0], [0, 1, 0, 1, 1]),
        (["false", "true"], "auto", [True, False, "True"], [1, 0, 1]),
        (["a", "A"], "auto", ["a", "A"], [0, 1]),
        (["2", "1"], "positions", [0, 1, "1", 1.0], [0, 1, 1, 1]),
        (["cat", "dog"], "positions", ["cat", 1], [0, 1]),
        (["cat", "dog"], "names", ["cat", "dog"], [0, 1]),
        (3, "auto", [0, "2", 1.0], [0, 2, 1]),
    ],
)
def test_a_name_comes_first_in_whatever_type_it_is_written(classes, labels, given, means):
    reader = wire("json", "{answers: hard, reply: {rows: '', label: ''}}", classes=classes, labels=labels)
    assert values(reader.answers(given, len(given))) == means


@pytest.mark.parametrize(
    ("classes", "labels", "given", "hint"),
    [
        (["1", "2", "3", "4"], "auto", 0, True),
        (["1", "2", "3", "4"], "auto", "0", True),
        (["0", "180"], "auto", 1, True),
        (["0", "180", "other"], "auto", 2, True),  # one name that is a number is enough
        (["cat", "dog"], "names", 1, True),
        (["cat", "dog"], "auto", 2, False),
        (["cat", "dog"], "auto", True, False),
        (["a", "A"], "auto", " a", False),  # which of the two?
        (["2", "1"], "positions", 2, False),
        (3, "auto", 3, False),
    ],
)
def test_a_number_that_could_be_either_is_refused(classes, labels, given, hint):
    reader = wire("json", "{answers: hard, reply: {rows: '', label: ''}}", classes=classes, labels=labels)
    with pytest.raises(MalformedReply) as error:
        reader.answers([given], 1)
    assert "which teacher.classes does not name" in str(error.value)
    assert str(error.value).endswith("so a number counts as a name: see teacher.labels") == hint


# ---- ids


def by_id(reply: str = "{rows: r, id: id, probabilities: p}"):
    return wire("json", f"{{request: {{$each: {{id: $id, image: $image}}}}, reply: {reply}}}")


def test_a_request_gives_each_image_its_id():
    assert [entry["id"] for entry in by_id().request(images(3))] == ["a", "b", "c"]
    ids = image_ids(4096)
    assert len(set(ids)) == 4096 and ids[25:28] == ["z", "aa", "ab"] and ids[701:703] == ["zz", "aaa"]
    listed = wire("json", "{request: {images: $images, ids: $ids}, reply: {rows: r, id: [id], probabilities: p}}")
    assert listed.request(images(2))["ids"] == ["a", "b"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "c"], "has the id 'c', which the request had not"),
        (["a", "a"], "has the id 'a' twice"),
        (["a", None], "has the id None, which the request had not"),
        (["a", ["b"]], r"has the id \['b'\], which the request had not"),
        (["a"], "gave 1 answer to 2 images"),
        (["a", "b", "a"], "gave 3 answers to 2 images"),
    ],
)
def test_unknown_missing_and_double_ids_are_malformed(ids, message):
    with pytest.raises(MalformedReply, match=message):
        by_id().answers({"r": [{"id": name, "p": SOFT[0]} for name in ids]}, 2)
    with pytest.raises(MalformedReply, match="has nothing at 'id'"):
        by_id().answers({"r": [{"p": SOFT[0]}] * 2}, 2)


# ---- outputs of v2, by name

AUX = {"name": "aux", "datatype": "FP32", "shape": [-1, 3]}
PROBS = {"name": "probs", "datatype": "FP32", "shape": [-1, 3]}
TWO = [output([0.1, 0.8, 0.1, 0.3, 0.3, 0.4], name="aux"), output(SOFT, name="probs")]
BOTH = "the model has several outputs that can hold the answer: 'aux', 'probs'; set teacher.output to the right one"


def test_two_outputs_that_fit_are_refused_before_anything_is_paid():
    with pytest.raises(TeacherError) as error:
        wire("v2").learn({"outputs": [AUX, PROBS]})
    assert str(error.value) == BOTH
    with pytest.raises(TeacherError, match="several outputs that can hold"):
        wire("v2").learn({"outputs": [AUX | {"shape": [-1, -1]}, PROBS]})
    with pytest.raises(TeacherError, match="several outputs that can hold"):
        wire("v2", "answers: hard").learn({"outputs": [{"name": n, "datatype": "INT64", "shape": [-1]} for n in "lm"]})


def test_two_outputs_that_fit_in_a_reply_are_refused_for_good():
    with pytest.raises(AmbiguousReply) as error:
        wire("v2").answers({"outputs": TWO}, 2)
    assert str(error.value) == BOTH


@pytest.mark.parametrize("how", ["config", "metadata", "first reply"])
def test_an_output_is_asked_for_by_name_and_found_by_name_ever_after(how):
    asked = wire("v2", "output: probs" if how == "config" else "")
    if how == "metadata":
        asked.learn({"outputs": [AUX | {"shape": [-1, 7]}, PROBS]})
    if how == "first reply":
        assert "outputs" not in asked.request(images())
        assert values(asked.answers({"outputs": [output([1.0] * 14, name="aux", shape=[2, 7]), TWO[1]]}, 2)) == SOFT
    assert asked.request(images())["outputs"] == [{"name": "probs"}]
    for outputs in (TWO, TWO[::-1], TWO[1:]):
        assert values(asked.answers({"outputs": outputs}, 2)) == SOFT
    with pytest.raises(MalformedReply, match=r"has no output 'probs': check teacher.output"):
        asked.answers({"outputs": TWO[:1]}, 2)


def test_every_process_chooses_the_same_output_whatever_the_order_in_the_metadata():
    """A run's workers, and the processes that resume it, each ask the server for its metadata."""
    wide = AUX | {"name": "features", "shape": [-1, 512]}
    for outputs in ([wide, PROBS], [PROBS, wide]):
        asked = wire("v2")
        asked.learn({"outputs": outputs})
        assert asked.request(images())["outputs"] == [{"name": "probs"}]


def test_classes_in_another_order_than_the_servers_are_refused_before_anything_is_paid():
    def said(*names: str) -> dict:
        label = {
            "name": "label",
            "datatype": "INT64",
            "shape": [-1],
            "parameters": dict(zip("012", names, strict=True)),
        }
        return {"outputs": [PROBS, label]}

    wire("v2").learn(said("0", "180", "Other"))
    wire("v2").learn(said("zero", "half", "rest"))  # other words for the same
    wire("v2", classes=3).learn(said("180", "0", "other"))
    with pytest.raises(TeacherError) as error:
        wire("v2").learn(said("180", "0", "other"))
    assert str(error.value) == (
        "teacher.classes: class 0 of the server is '180', of teacher.classes '0'; "
        "list the classes in the server's order"
    )


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ([0.7, 0.05, 0.2, 0.05, 0.1, 0.9], [3, 2], r"shape \[3, 2\] for 2 images: they must come first"),
        ([[0.7, 0.05], [0.2, 0.05], [0.1, 0.9]], [3, 2], "gave 3 answers to 2 images"),
    ],
)
def test_a_tensor_with_the_classes_first_is_refused(data, shape, message):
    with pytest.raises(MalformedReply, match=message):
        wire("v2").answers({"outputs": [output(data, shape=shape)]}, 2)


# ---- Triton's classification strings


def test_classification_is_asked_for_by_the_name_of_the_output():
    asked = wire("v2", "{answers: top2, classification: 2}")
    asked.learn({"inputs": [{"name": "x"}], "outputs": [PROBS]})
    assert asked.request(images())["outputs"] == [{"name": "probs", "parameters": {"classification": 2}}]
    with pytest.raises(TeacherError, match=r"names no output to classify; set teacher.output"):
        wire("v2", "{answers: top2, classification: 2}").learn({"inputs": [{"name": "x"}]})


def test_classification_strings_that_make_no_sense_are_a_bad_row():
    asked = wire("v2", "{answers: top2, classification: 2, output: c}")
    for text, reason in (
        ("dog", "not number:position"),
        ("0.7:7:cow", "class 'cow', which"),
        ("x:0", "where a number"),
    ):
        (found,) = asked.answers({"outputs": [output([["0.7:0:0"], [text]], "BYTES", name="c")]}, 2).bad.values()
        assert reason in found
    hard = wire("v2", "{answers: hard, classification: 1, output: c}")
    assert values(hard.answers({"outputs": [output(["0.7:1:180", "0.9:2:other"], "BYTES", [2, 1], "c")]}, 2)) == [1, 2]


@pytest.mark.parametrize("answers", ["top2", "soft", "hard"])
@pytest.mark.parametrize("data", [[1, 2], [[1], [2]], ["1", "2"]])
def test_labels_of_a_server_that_does_not_classify_are_no_probabilities(answers, data):
    """A server that does not know the extension sends the output as it is."""
    asked = wire("v2", f"{{answers: {answers}, classification: 3, output: c}}", classes=["cat", "dog", "ray"])
    reply = {"outputs": [output(data, "INT64", [2], "c")]}
    if answers == "hard":
        assert asked.answers(reply, 2).probs is None and values(asked.answers(reply, 2)) == [1, 2]
        return
    with pytest.raises(MalformedReply, match=r"does not give the texts of teacher.classification; leave that out, and"):
        asked.answers(reply, 2)


def test_what_reads_labels_never_takes_them_for_probabilities():
    """Whatever a wire thinks that it has found."""
    reader = Reader(HttpTeacherConfig(kind="http", url="http://host:1", model="m", classes=3, answers="top2"))
    with pytest.raises(MalformedReply, match=r"gives labels, teacher.answers is top2: set it to hard"):
        reader.labels([0, 1])


# ---- the input's datatype


@pytest.mark.parametrize(
    ("config", "said", "sent", "first"),
    [
        ("", None, "UINT8", 5),
        ("", "UINT8", "UINT8", 5),
        ("", "INT32", "INT32", 5),
        ("", "INT64", "INT64", 5),
        ("input: {pixels: unit}", "FP16", "FP16", float(np.float16(5 / 255))),
        ("input: {pixels: unit}", "BF16", "BF16", float(np.float32(5) / np.float32(255))),
        ("input: {pixels: unit}", "FP64", "FP64", float(np.float32(5) / np.float32(255))),
        ("input: {datatype: FP32}", "FP32", "FP32", 5.0),
        ("input: {datatype: FP16}", None, "FP16", 5.0),
        ("input: {datatype: INT8}", "INT8", "INT8", -123),
        ("input: {datatype: INT64}", None, "INT64", 5),
    ],
)
def test_an_input_has_the_datatype_that_the_model_takes(config, said, sent, first):
    asked = wire("v2", config)
    asked.learn({"inputs": [{"name": "x"} | ({"datatype": said} if said else {})]})
    (tensor,) = json.loads(json.dumps(asked.request(images())))["inputs"]
    assert (tensor["datatype"], tensor["data"][5]) == (sent, first) and type(tensor["data"][5]) is type(first)


@pytest.mark.parametrize(
    ("config", "said", "message"),
    [
        ("", "FP32", "set teacher.input.pixels to unit, or teacher.input.datatype to FP32 if it takes 0..255"),
        ("", "INT8", "set teacher.input.datatype to INT8 if it takes pixel - 128"),
        ("input: {pixels: unit}", "INT32", "set teacher.input.pixels to uint8"),
        ("input: {datatype: INT32}", "INT64", "kdray would send INT32; set teacher.input.datatype to INT64"),
    ],
)
def test_a_datatype_that_would_change_the_pixels_is_refused_and_never_guessed(config, said, message):
    with pytest.raises(TeacherError, match=message):
        wire("v2", config).learn({"inputs": [{"name": "x", "datatype": said}]})


# ---- paths


def test_paths_find_keys_with_dots_and_json_in_text():
    value = {"a.b": 1, "a": {"b": 2, "c.d": {"e": 3}}, "t": '{"x": [4, {"y": "[5]"}]}', "f": '```\n{"z": 6}\n```'}
    assert [follow(value, path) for path in ("a.b", ["a", "b"], "a.c.d.e", ["a", "c.d", "e"])] == [1, 2, 3, 3]
    assert [follow(value, path) for path in ("t.x.0", "t.x.1.y.0", "f.z", ["t", "x", -2])] == [4, 5, 6, 4]
    for path in ("t.y", ["a.c", "d"], "a.c", ["a", 0]):
        with pytest.raises(MalformedReply, match="has nothing at"):
            follow(value, path)


# ---- configs


@pytest.mark.parametrize(
    ("protocol", "config", "message"),
    [
        ("json", "reply: {rows: r, id: id, probabilities: p}", 'reply.id needs "$id" or "$ids" in the request'),
        ("json", "{request: {i: $images, d: $id}}", 'one "$id" for all images'),
        ("json", "{batch_size: 1, request: {i: $image, d: $id}, reply: {id: d, probabilities: p}}", "id needs rows"),
        ("json", "reply: {rows: r, label: l, score: s, ignore: [m]}", "ignore names keys of the mapping"),
        ("json", "one_number: true", "one_number is for two classes"),
        ("json", "{outputs: percent, scale: 0.5}", "outputs: percent is a scale of 1/100"),
        ("json", "zero_point: 3", "zero_point is of no use without scale"),
        ("json", "{classes: 3, labels: names}", "labels: names needs the names in classes"),
        ("json", "classification: 2", "classification belongs to v2"),
        ("json", "input: {datatype: FP32}", "input.datatype belong to v2"),
        ("json", "scale: 1/0", "scale"),
        ("json", "scale: 0", "scale"),
        ("v2", "input: {pixels: unit, datatype: INT8}", "INT8 has no fractions; set input.pixels to uint8"),
        ("v2", "classification: 2", "classification shows 2 of 3 classes; set answers to top2"),
        ("v2", "{answers: top2, classification: 1}", "fewer than answers: top2; set it to 2"),
        ("v2", "reply: {rows: r, probabilities: ''}", "request and reply belong to json"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(protocol, config, message):
    with pytest.raises(ValidationError, match=message.replace("$", r"\$")):
        wire(protocol, config)


def test_new_fields_are_part_of_the_identity_only_where_they_are_set():
    def name(config: str = "", protocol: str = "json", **changes: Any) -> str:
        base = {"kind": "http", "protocol": protocol, "url": "http://host:1", "classes": 2, "answers": "hard"}
        base |= {"model": "m"} if protocol == "v2" else {}
        return HttpTeacherConfig(**(base | (yaml.safe_load(config) or {}) | changes)).build(SHAPE).identity

    same = ["", "labels: auto", "scale: null", "one_number: false", "poll: {status: s}", "reply: {rows: probabilities, "
            "probabilities: '', ignore: []}"]  # fmt: skip
    assert len({name(config) for config in same}) == 1
    different = ["", "labels: positions", "scale: 0.5", "{scale: 0.5, zero_point: 1}", "one_number: true",
                 "outputs: percent", "reply: {rows: probabilities, probabilities: '', ignore: [m]}",
                 "{request: {$each: {i: $image, d: $id}}, reply: {rows: r, probabilities: ''}}",
                 "{request: {$each: {i: $image, d: $id}}, reply: {rows: r, probabilities: '', id: d}}"]  # fmt: skip
    assert len({name(config) for config in different}) == len(different)
    v2 = ["", "classification: 1", "input: {datatype: FP32}"]
    assert len({name(config, "v2") for config in v2}) == len(v2)
