"""A user's own teacher: named as module:Class, checked, built and asked like those of kdray; and an own wire format."""

import pickle
import sys

import numpy as np
import pytest
import yaml

import kdray
from kdray.config.load import dump_config, parse_config
from kdray.errors import ConfigError, TeacherError
from kdray.ledger.limits import Limits
from kdray.ledger.store import LEASE_S, Ledger
from kdray.runs.policy import PurchasePolicy
from kdray.teachers.async_pool import AsyncTeacherPool
from kdray.teachers.base import teachers
from kdray.teachers.faults import fault_of
from kdray.teachers.function import PythonTeacherConfig
from kdray.teachers.http import HttpTeacherConfig, wire
from kdray.teachers.local import LocalTeacherConfig
from kdray.teachers.pool import LocalTeacherPool, make_pool
from kdray.teachers.retry import RetryPolicy

OWN = """
import asyncio
import os
from collections import Counter
from typing import ClassVar

import torch

import kdray
from kdray.errors import TeacherError
from kdray.teachers import AnswerFormat, Answers, TeacherSection
from kdray.teachers.faults import Fault

CALLS = Counter()


class Teacher:
    num_classes = 2

    def __init__(self, threshold, form, metered):
        self.threshold, self.form, self.metered = threshold, form, metered
        self.identity = f"bright:{threshold}:{form}"

    def answer(self, images):
        CALLS["answered"] += len(images)
        bright = (images.float().mean(dim=(1, 2, 3)) > self.threshold).float()
        return self.form.apply(torch.stack([1 - bright, bright], dim=1))


class Bright(TeacherSection):
    local: ClassVar[bool] = True
    path_fields: ClassVar[tuple[str, ...]] = ("file",)

    threshold: int = 100
    file: str = "here"
    fails: bool = False

    def build(self, image_shape, *, folder="", secrets=None):
        CALLS["built"] += 1
        return Teacher(self.threshold, self.form, metered=False)

    def class_names(self):
        return ("dark", "bright")

    def prepare(self, image_shape, labelled, observer):
        CALLS["prepared"] += 1

    def check(self, teacher):
        CALLS["checked"] += 1
        if self.fails:
            raise TeacherError("it is not well today")


class Session:
    async def close(self):
        CALLS["closed"] += 1


class Many(Teacher):
    busy = most = 0

    def session(self):
        return Session()

    async def ask(self, session, images):
        self.busy += 1
        CALLS["most at once"] = max(CALLS["most at once"], self.busy)
        await asyncio.sleep(0.02)
        self.busy -= 1
        return self.answer(images)

    def fault(self, kind, message, wait_s=None):
        return Fault(kind=kind, message=message, wait_s=wait_s)


class BrightServer(TeacherSection):
    threshold: int = 100

    def build(self, image_shape, *, folder="", secrets=None):
        return Many(self.threshold, self.form, metered=True)


class Odd(TeacherSection):
    # Does what `how` says when it is asked for the first time.
    how: str

    def build(self, image_shape, *, folder="", secrets=None):
        return OddTeacher(self.how, self.form)


class OddTeacher(Teacher):
    def __init__(self, how, form):
        super().__init__(100, form, metered=True)
        self.how, self.times = how, 0

    def answer(self, images):
        self.times += 1
        good = super().answer(images)
        if self.times > 1:
            return good
        if self.how == "busy":
            raise kdray.TeacherBusy("not now", wait_s=0.01)
        if self.how == "declined":
            raise kdray.ImageDeclined("too dark")
        if self.how == "raises":
            raise KeyError("bug")
        if self.how == "exits":
            raise SystemExit(1)
        if self.how == "labels":
            return Answers(probs=None, labels=torch.full((len(images),), 2), num_classes=2)
        if self.how == "classes":
            return Answers(probs=None, labels=good.labels, num_classes=3)
        return None


class OddServer(Odd):
    def build(self, image_shape, *, folder="", secrets=None):
        return OddMany(self.how, self.form)


class OddMany(OddTeacher):
    def session(self):
        if self.how == "no session":
            raise OSError("no such file")
        return Session()

    async def ask(self, session, images):
        if self.how == "cancelled":
            raise asyncio.CancelledError
        return self.answer(images)

    def fault(self, kind, message, wait_s=None):
        return Fault(kind=kind, message=message, wait_s=wait_s)


class NoBuild(TeacherSection):
    threshold: int = 100


class NoSection:
    pass
"""


@pytest.fixture
def own(own) -> str:
    """The user's module."""
    return own(OWN)


def images(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


def distil(teacher: dict, tmp_path, **changes):
    sections = {
        "pool": "images",
        "select": {"rounds": 1, "first": 20},
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
    }
    sections |= {"resources": {"trainer": {"threads": 1}}}
    out = tmp_path / "run"
    return kdray.distil(teacher, images(), 30, out=out, local=True, progress=False, **sections, **changes)


def config(**teacher) -> dict:
    return {"images": {"source": "digits"}, "teacher": teacher, "budget": {"queries": 10}}


def test_an_own_teacher_is_prepared_checked_and_asked(own, tmp_path):
    result = distil({"kind": f"{own}:Bright", "threshold": 128, "answers": "hard"}, tmp_path)
    calls = sys.modules[own].CALLS
    assert calls == {"prepared": 1, "built": 1, "checked": 1, "answered": 30}
    assert result.receipt.teachers == ["bright:128:hard"] and result.receipt.queries == 30
    section = result.config.teacher
    assert (section.kind, section.threshold, section.limits) == (f"{own}:Bright", 128, Limits())
    assert section.file == str(tmp_path / "here")  # `path_fields` are kept absolute
    again = parse_config(yaml.safe_load(dump_config(result.config)))
    assert again == result.config and type(again.teacher).__name__ == "Bright"
    distil({"kind": f"{own}:Bright", "threshold": 128, "answers": "hard"}, tmp_path)
    assert calls["answered"] == 30  # it is finished: nothing is asked again


def test_an_own_teacher_that_fails_its_check_costs_nothing(own, tmp_path):
    with pytest.raises(TeacherError, match="not well today"):
        distil({"kind": f"{own}:Bright", "fails": True}, tmp_path)
    assert sys.modules[own].CALLS["answered"] == 0
    assert not (tmp_path / "run" / "ledger.sqlite").exists() or Ledger(tmp_path / "run" / "ledger.sqlite").spent() == 0


def test_an_own_teacher_that_takes_several_requests_gets_them_at_once(own, tmp_path):
    section = {"kind": f"{own}:BrightServer", "batch_size": 1, "limits": {"in_flight": 5}}
    result = distil(section, tmp_path)
    calls = sys.modules[own].CALLS
    assert 1 < calls["most at once"] <= 5 and calls["closed"] == 1
    assert result.receipt.queries == 30


@pytest.mark.parametrize("kind", ["Odd", "OddServer"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "the teacher failed: KeyError: 'bug'"),
        ("exits", "the teacher failed: SystemExit: 1"),
        ("nothing", "the teacher gave NoneType, not kdray.teachers.Answers; see docs/extending.md"),
        ("labels", "the teacher answered label 2; labels lie in 0..1"),
        ("classes", "the teacher gave answers of 3 classes, and says that it has 2"),
    ],
)
def test_a_bug_in_an_own_teacher_costs_one_image_and_is_told(kind, how, message, own, tmp_path):
    section = {"kind": f"{own}:{kind}", "how": how, "batch_size": 16, "retry": {"tries": 1}, "answers": "hard"}
    with pytest.raises(TeacherError) as error:
        distil(section, tmp_path)
    assert message in str(error.value)
    assert f"go on with: kdray.distil with the same arguments and out={str(tmp_path / 'run')!r}" in str(error.value)
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    assert ledger.spent() == 1 and ledger.read("SELECT count(*) FROM claims") == [(0,)]
    ledger.close()


@pytest.mark.parametrize(
    ("how", "spent", "message"), [("no session", 0, "OSError: no such file"), ("cancelled", 1, "CancelledError")]
)
def test_a_server_class_that_breaks_off_stops_the_run_and_does_not_hang(how, spent, message, own, tmp_path):
    with pytest.raises(TeacherError, match=message):
        distil({"kind": f"{own}:OddServer", "how": how}, tmp_path)
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    assert ledger.spent() == spent
    ledger.close()


@pytest.mark.parametrize("kind", ["Odd", "OddServer"])
@pytest.mark.parametrize("how", ["busy", "declined"])
def test_an_own_teacher_may_say_that_nothing_is_charged(kind, how, own, tmp_path):
    result = distil({"kind": f"{own}:{kind}", "how": how}, tmp_path)
    assert result.receipt.queries == 30 and result.receipt.uncertain == result.receipt.rejected == 0
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    reason = {"busy": "not now", "declined": "too dark"}[how]
    released = "SELECT queries, reason FROM reservations WHERE state = 'released'"
    assert ledger.read(released) == [(1, reason)]
    ledger.close()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (2.5, 2.5),
        ("20", 20.0),
        (None, None),
        ("Wed, 21 Oct", None),
        (-1, None),
        (float("nan"), None),
        (10**400, None),
        ([], None),
    ],
)
def test_what_a_teacher_says_of_waiting_is_taken_as_seconds_where_it_is_some(given, seconds):
    assert fault_of(kdray.TeacherBusy("later", given)).wait_s == seconds


@pytest.mark.parametrize("error", [kdray.TeacherBusy("later", 2.5), kdray.TeacherBusy(), kdray.ImageDeclined("dark")])
def test_what_a_teacher_raises_survives_a_pickle(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_the_pool_is_chosen_by_what_the_teacher_can_do(own):
    one, many = teachers.parse({"kind": f"{own}:Bright"}), teachers.parse({"kind": f"{own}:BrightServer"})
    assert isinstance(make_pool(one.build((1, 8, 8)), 4), LocalTeacherPool)
    pool = make_pool(many.build((1, 8, 8)), 4)
    assert isinstance(pool, AsyncTeacherPool) and pool.slots == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoBuild", "teacher.kind: {} lacks build(); see docs/extending.md"),
        (
            "NoSection",
            "teacher.kind: {} is not a subclass of kdray.teachers.base.TeacherSection; see docs/extending.md",
        ),
        ("Missing", "teacher.kind: cannot import {} (AttributeError: "),
    ],
)
def test_what_is_no_teacher_is_refused_with_the_config(own, name, message):
    with pytest.raises(ConfigError) as error:
        parse_config(config(kind=f"{own}:{name}"))
    assert str(error.value).startswith("config: " + message.format(f"{own}:{name}"))


def test_a_wrong_field_of_an_own_teacher_is_named_by_its_path(own):
    with pytest.raises(ConfigError, match=r"teacher\.threshold: input should be a valid integer"):
        parse_config(config(kind=f"{own}:Bright", threshold="high"))
    with pytest.raises(ConfigError, match=r"unknown key 'teacher\.treshold'; did you mean 'threshold'"):
        parse_config(config(kind=f"{own}:Bright", treshold=3))


DERIVED = """
from kdray.teachers.function import PythonTeacherConfig
from kdray.teachers.local import LocalTeacherConfig


def ask(images):
    raise AssertionError


class Louder(PythonTeacherConfig):
    kind: str
    gain: int = 1


class Local(LocalTeacherConfig):
    kind: str
    gain: int = 1
"""


def test_a_field_that_a_subclass_adds_is_part_of_the_identity(own, tmp_path, teacher_weights):
    with open(tmp_path / f"{own}.py", "a") as file:
        file.write(DERIVED)
    python = {"kind": f"{own}:Louder", "function": f"{own}:ask", "classes": 2}
    local = {"kind": f"{own}:Local", "model": "small-cnn", "weights": str(teacher_weights)}
    for section, shape in ((python, (1, 8, 8)), (local, (1, 16, 16))):
        identities = [teachers.parse(section | {"gain": gain}).build(shape).identity for gain in (1, 1, 2)]
        assert identities[0] == identities[1] != identities[2]
    plain = teachers.parse(python | {"kind": "python"}).build((1, 8, 8))
    assert plain.identity == f"python:{own}:ask:soft", "kdray's own kinds have nothing added"


@pytest.mark.parametrize("identity", ["", "  ", None])
def test_a_teacher_without_an_identity_is_refused(identity, own, tmp_path):
    with open(tmp_path / f"{own}.py", "a") as file:
        file.write("class Nameless(Bright):\n")
        file.write("    def build(self, image_shape, *, folder='', secrets=None):\n")
        file.write("        teacher = super().build(image_shape)\n")
        file.write(f"        teacher.identity = {identity!r}\n        return teacher\n")
    with pytest.raises(TeacherError, match=r"^teacher\.kind: .*:Nameless made a teacher whose identity is"):
        distil({"kind": f"{own}:Nameless"}, tmp_path)


# How a kind of teacher is asked


def test_the_policy_of_each_kind():
    url = {"url": "http://host", "model": "m", "classes": 3, "timeout_s": 7.0}
    retry = RetryPolicy(tries=2)
    http = HttpTeacherConfig(**url, retry=retry)
    python = PythonTeacherConfig(function="module:function", classes=3)
    local = LocalTeacherConfig(weights="x")
    policy = PurchasePolicy.of(http, metered=True)
    assert (policy.limits, policy.lease_s, policy.probe) == (Limits(), 44.0, True)  # metadata, the request, 30 s
    json = HttpTeacherConfig(url="http://host", protocol="json", classes=3, timeout_s=7.0)
    assert PurchasePolicy.of(json, metered=True).lease_s == 37.0
    assert policy.retry.policy is retry
    assert PurchasePolicy.of(http, metered=False).probe is False
    policy = PurchasePolicy.of(python, metered=True)
    assert (policy.limits, policy.lease_s, policy.probe) == (Limits(), LEASE_S, True)
    assert PurchasePolicy.of(local, metered=False).limits is None  # it costs nothing: there is nothing to count
    slow = LocalTeacherConfig(weights="x", limits={"requests_per_s": 2})
    assert PurchasePolicy.of(slow, metered=False).limits is slow.limits


# Wire formats


def test_a_wire_is_a_value_of_the_protocol_once_it_is_registered(monkeypatch):
    assert list(wire.wires()) == ["v2", "json"]
    monkeypatch.setattr(wire, "_WIRES", dict(wire.wires()))
    section = {"kind": "http", "url": "http://host", "protocol": "lines", "classes": 3}
    refused = "teacher.protocol: input should be 'v2' or 'json', got 'lines'"
    with pytest.raises(ConfigError, match=refused):
        parse_config(config(**section))

    @wire.register("lines")
    class LinesWire(wire.Wire):
        def __init__(self, section, image_shape):
            self.url = section.url

        @classmethod
        def check(cls, section):
            if section.version is not None:
                raise ValueError("version means nothing to lines")

        def request(self, images): ...

        def answers(self, reply, batch): ...

    built = parse_config(config(**section)).teacher.build((1, 8, 8))
    assert isinstance(built._wire, LinesWire) and built.identity.startswith("http:http://host:")
    with pytest.raises(ConfigError, match="version means nothing to lines"):
        parse_config(config(**section, version="2"))
    with pytest.raises(ValueError, match="two wires are named 'lines'"):
        wire.register("lines")(type("Other", (LinesWire,), {}))
