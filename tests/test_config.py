"""The config: defaults, overrides, files, what each wrong field is told, the λ grid and the queries of each round."""

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from copy import deepcopy
from fractions import Fraction
from typing import Annotated, Any

import annotated_types
import pytest
import yaml
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kdray.config.files import read_yaml
from kdray.config.load import apply_overrides, differences, dump_config, load_config, parse_config
from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.images.digits import DigitsImages
from kdray.images.folder import FolderImages
from kdray.images.parquet import ParquetImages
from kdray.images.torchvision import TorchvisionImages
from kdray.pools.endless import EndlessSection
from kdray.pools.mixup import LambdaGrid, MixupSection
from kdray.pools.procedural.crops import CropsSection
from kdray.pools.sources.drawn import DrawnImages
from kdray.runs.directory import RunDirectory, runs_folder
from kdray.sections.base import Section
from kdray.sections.registry import Registry, registry_of, sections_of
from kdray.select.schedule import evenly
from kdray.teachers.function import PythonTeacherConfig
from kdray.teachers.http import HttpTeacherConfig
from kdray.teachers.http.paths import Path as ReplyPath
from kdray.teachers.local import LocalTeacherConfig
from kdray.training.losses.cross_entropy import CrossEntropy
from kdray.training.losses.kl import KL

MINIMAL = {
    "images": {"source": "digits"},
    "teacher": {"kind": "local", "weights": "teacher.safetensors"},
    "budget": {"queries": 1000},
}
# Of each union, one valid section of every kind.
MEMBERS = {
    ParquetImages: {"source": "parquet", "path": "x"},
    FolderImages: {"source": "folder", "path": "x"},
    TorchvisionImages: {"source": "torchvision", "name": "MNIST", "root": "x"},
    DigitsImages: {"source": "digits"},
    CrossEntropy: {"kind": "cross-entropy"},
    KL: {"kind": "kl"},
    PythonTeacherConfig: {"kind": "python", "function": "module:function", "classes": 10},
    HttpTeacherConfig: {
        "kind": "http",
        "url": "http://127.0.0.1:8080",
        "model": "m",
        "classes": 10,
        "input": {"pixels": "unit", "mean": [0.5], "std": [0.5]},
        "reply": {"rows": "probabilities", "probabilities": ""},
    },
    LocalTeacherConfig: {
        "kind": "local",
        "weights": "x",
        "input": {"mean": [0.5], "std": [0.5]},
        "train": {"images": {"source": "digits"}},
    },
    DrawnImages: {"source": "drawn", "pool": "lines", "size": 8},
    MixupSection: {"kind": "mixup", "lambdas": {"min": 0.3, "max": 0.7, "step": 0.04}},
}
# Every optional section is there, so that any field can be set alone.
WHOLE = MINIMAL | {
    "test": {"source": "digits"},
    "teacher": MEMBERS[LocalTeacherConfig],
    "pool": MEMBERS[MixupSection],
    "student": {"early_stop": {}},
}


def parse(*overrides: str, data: Any = MINIMAL) -> Config:
    return parse_config(apply_overrides(data, overrides))


def refusal(*overrides: str, data: Any = MINIMAL) -> str:
    """What a config with these overrides is told, without where it comes from."""
    with pytest.raises(ConfigError) as error:
        parse(*overrides, data=data)
    assert str(error.value).startswith("config: ")
    return str(error.value).removeprefix("config: ")


# All fields, found in the models themselves: a new field is tested from its first day.


def models_in(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections a field may hold: of a registry, all its parts. Those of a list have no dotted path."""
    if typing.get_origin(field.annotation) is list:
        return []
    return sections_of(field.annotation, field.metadata)


def member(part: type[BaseModel], field: FieldInfo) -> dict[str, Any]:
    """A valid section of one of the kinds a field may hold."""
    if part in MEMBERS:
        return MEMBERS[part]
    registry = registry_of(field.annotation, field.metadata)
    assert registry is not None, f"MEMBERS lacks {part.__name__}"
    return {registry.tag: part.model_fields[registry.tag].default}


def within(parts: frozenset[Registry], field: FieldInfo) -> frozenset[Registry] | None:
    """The registries that a field's sections are in; None where one is in itself, which would go on without end, also
    where it has another default there."""
    registry = registry_of(field.annotation, field.metadata)
    if registry is None:
        return parts
    return None if any(registry.base is one.base for one in parts) else parts | {registry}


def walk(
    model: type[BaseModel] = Config, path: str = "", data: dict = WHOLE, parts: frozenset[Registry] = frozenset()
) -> Iterator[tuple]:
    """Every field as (dotted path, field, a valid config in which that path can be set, fields beside it)."""
    for name, field in model.model_fields.items():
        inner = f"{path}.{name}".lstrip(".")
        yield inner, field, data, list(model.model_fields)
        deeper = within(parts, field)
        found = models_in(field) if deeper is not None else []
        for part in found:
            if path and name == "pool" and not (issubclass(part, EndlessSection) and part is not CropsSection):
                continue  # of images that are drawn: these pools are made of images
            fresh = apply_overrides(data, [f"{inner}={json.dumps(member(part, field))}"]) if len(found) > 1 else data
            yield from walk(part, inner, fresh, deeper)


def without_meaning(
    model: type[Section] = Config, path: str = "", parts: frozenset[Registry] = frozenset()
) -> Iterator[str]:
    """Fields without a docstring, as dotted paths."""
    meanings = model.meanings()
    for name, field in model.model_fields.items():
        inner = f"{path}.{name}".lstrip(".")
        if name not in meanings:
            yield inner
        if (deeper := within(parts, field)) is not None:
            for part in models_in(field):
                yield from without_meaning(part, inner, deeper)


def limits(field: FieldInfo) -> list[tuple[str, float]]:
    """Values just outside what a field allows, as (which limit, value)."""
    union = typing.get_origin(field.annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(field.annotation) if union else ()
    inner = [extra for part in parts if typing.get_origin(part) is Annotated for extra in part.__metadata__]
    rules = field.metadata + [rule for extra in inner if isinstance(extra, FieldInfo) for rule in extra.metadata]
    outside = {
        annotated_types.Ge: lambda rule: ("greater than or equal to", rule.ge - 1),
        annotated_types.Gt: lambda rule: ("greater than", rule.gt),
        annotated_types.Le: lambda rule: ("less than or equal to", rule.le + 1),
        annotated_types.Lt: lambda rule: ("less than", rule.lt),
    }
    return [outside[type(rule)](rule) for rule in rules if type(rule) in outside]


def by_section(cases: Iterable[tuple]) -> list[Any]:
    """Cases (path, data, ...) as a test for each section and kind of it: one for each field would be thousands."""
    found: dict[str, list[tuple]] = {}
    for path, data, *rest in cases:
        section: Any = data
        *names, _ = path.split(".")
        for name in names:
            section = section.get(name) or {}
        kind = section.get("source") or section.get("kind") or section.get("strategy")
        found.setdefault(".".join(names) + (f"[{kind}]" if kind else ""), []).append((path, data, *rest))
    return [pytest.param(rows, id=name or "top") for name, rows in found.items()]


FIELDS = list(walk())
HIDDEN = ("teacher.url", "teacher.headers")  # what is given there may be a key, and is not repeated
LEAVES = [(path, field, data) for path, field, data, _ in FIELDS if not models_in(field)]


def test_the_walk_finds_the_fields_and_the_configs_it_makes_are_valid():
    paths = {path for path, *_ in FIELDS}
    assert {"seed", "images.root", "teacher.function", "teacher.train.images.split", "pool.lambdas.step"} <= paths
    assert {"student.early_stop.patience", "resources.trainer.gpus", "teacher.input.std"} <= paths
    assert {"teacher.limits.in_flight", "teacher.retry.max_bad_share", "ledger.queries"} <= paths
    assert {"teacher.url", "teacher.input.mean", "teacher.reply.score"} <= paths
    for _, _, data, _ in FIELDS:
        parse(data=data)


@pytest.mark.parametrize(
    "cases", by_section((path, data, *bound) for path, field, data in LEAVES for bound in limits(field))
)
def test_a_value_out_of_range_is_told_field_limit_and_value(cases):
    for path, data, limit, value in cases:
        first = refusal(f"{path}={value}", data=data).splitlines()[0]
        assert first.startswith(f"{path}: input should be {limit} ") and first.endswith(f", got {value}")


@pytest.mark.parametrize(
    "cases",
    by_section(
        (path, data, 3 if field.annotation in (str, str | None, ReplyPath | None) else "abc")
        for path, field, data in LEAVES
        if field.annotation is not Any and path not in HIDDEN
    ),
)
def test_a_value_of_the_wrong_type_is_told_field_and_value(cases):
    for path, data, value in cases:
        first = refusal(f"{path}={value}", data=data).splitlines()[0]
        assert first.startswith(f"{path}: ") and repr(value) in first


@pytest.mark.parametrize("cases", by_section((path, data) for path, _, data, _ in FIELDS))
def test_a_misspelt_key_is_told_the_nearest_known_one(cases):
    for path, data in cases:
        name = path.rpartition(".")[2]
        lines = refusal(f"{path}{name[-1]}=1", data=data).splitlines()
        assert f"unknown key '{path}{name[-1]}'; did you mean '{name}'?" in [line.strip() for line in lines]


@pytest.mark.parametrize("cases", by_section((path, data, known) for path, _, data, known in FIELDS))
def test_a_key_like_no_other_is_told_all_that_are_known(cases):
    path, data, known = cases[0]
    wrong = f"{path.rpartition('.')[0]}.zzzzzz".lstrip(".")
    assert f"unknown key {wrong!r}; known here: {', '.join(known)}" in refusal(f"{wrong}=1", data=data)


@pytest.mark.parametrize("cases", by_section((path, data) for path, field, data, _ in FIELDS if field.is_required()))
def test_a_required_field_that_is_missing_is_named(cases):
    for path, data in cases:
        left = deepcopy(data)
        *sections, name = path.split(".")
        section = left
        for part in sections:
            section = section[part]
        del section[name]
        first = refusal(data=left).splitlines()[0]
        assert first == f"{path} is missing" or first.startswith(f"{path}: is missing; give one of '")


# What single fields are told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "images.source=nope",
            "images.source: 'nope' is not one of 'digits', 'drawn', 'folder', 'parquet', 'torchvision', nor "
            "module:object",
        ),
        (
            "teacher={kind: local, weights: x, model: lenet5, train: {images: {source: digit}}}",
            "teacher.train.images.source: 'digit' is not one of 'digits', 'drawn', 'folder', 'parquet', 'torchvision', "
            "nor module:object; did you mean 'digits'?",
        ),
        (
            "test={source: digits, split: test}",
            "test.split belongs to source parquet and torchvision; with source = digits leave it out",
        ),
        ("images=[3]", "images: input should be a mapping, got [3]"),
        (
            "student.loss={smoothing: 0.1}",
            "student.loss.smoothing is set, but means nothing to kl, the default; leave it out, or set "
            "student.loss.kind to cross-entropy",
        ),
        (
            "teacher={kind: local, weights: x, train: {loss: {temperature: 4}}}",
            "teacher.train.loss.temperature is set, but means nothing to cross-entropy, the default; leave it out, or "
            "set teacher.train.loss.kind to kl",
        ),
        (
            "student.loss={kind: cross-entropy, temperature: 4}",
            "student.loss.temperature belongs to kind kl and mix-kd; with kind = cross-entropy leave it out",
        ),
        (
            "student.loss=focal",
            "student.loss.kind: 'focal' is not one of 'kl', 'cross-entropy', 'mix-kd', 'rescaled', nor module:object",
        ),
        (
            "student.loss={kind: kl, temperature: 0}",
            "student.loss.temperature: input should be greater than 0, got 0",
        ),
        ("teacher.kind=nope", "teacher.kind: 'nope' is not one of 'http', 'local', 'python', nor module:object"),
        ("images={}", "images.source: is missing; give one of 'digits', 'drawn', 'folder', 'parquet', 'torchvision'"),
        ("images.colour=blue", "images.colour: input should be 'grey' or 'rgb', got 'blue'"),
        ("images.size=[8, 0]", "images.size.1: input should be greater than or equal to 1, got 0"),
        (
            "images.rows='5:5'",
            "images.rows: rows = '5:5' is empty or negative; write it as start:stop with 0 <= start < stop",
        ),
        ("images.rows='7'", "images.rows: rows = '7' is not a range; write it as start:stop, for example 0:1000"),
        (
            "teacher.answers=top0",
            "teacher.answers: 'top0' is not a kind of answer; use soft, hard or topK (top5, for example)",
        ),
        ("budget=5", "budget: input should be a mapping, got 5"),
        ("budget.evaluation=-1", "budget.evaluation: input should be greater than or equal to 0, or 'auto', got -1"),
        ("select={strategy: rad, w: 1.5}", "select.w: input should be less than or equal to 1, or 'auto', got 1.5"),
        (
            "select={strategy: rad, m: 1.5}",
            "select.m: input should be 'estimate', a whole number of candidates, or a share of them in [0, 1], got 1.5",
        ),
        (
            "select={strategy: rad-pairs, m: -2}",
            "select.m: input should be 'estimate', a whole number of candidates, or a share of them in [0, 1], got -2",
        ),
        (
            "pool.kind=cutmix",
            "pool.kind: 'cutmix' is not one of 'mixup', 'auto', 'boundary', 'contours', 'crops', 'fractals', "
            "'generator', 'images', 'leaves', 'lines', 'mixture', 'noise', 'pairs', 'shaders', 'spectrum', nor "
            "module:object",
        ),
        (
            "pool={kind: images, lambdas: [0.5]}",
            "pool.lambdas belongs to kind mixup; with kind = images leave it out",
        ),
        (
            "select.strategy=margins",
            "select.strategy: 'margins' is not one of 'cluster-margin', 'active-mixup', 'coreset', 'entropy', "
            "'margin', 'rad', 'rad-pairs', 'random', 'uniform', 'unixkd', 'vanilla', "
            "nor module:object; did you mean 'margin'?",
        ),
        (
            "select.m=0.1",
            "select.m is set, but means nothing to cluster-margin, the default; leave it out, or set select.strategy "
            "to rad",
        ),
        ("pool.lambdas=[]", "pool.lambdas: the grid is empty; give at least one λ in [0, 1]"),
        ("pool.lambdas={min: 1, max: 0, step: 0.1}", "pool.lambdas: the grid is empty; give at least one λ in [0, 1]"),
        (
            "pool.lambdas={min: 0.3, max: 0.7, step: 1e-320}",
            "pool.lambdas: too many values of λ; give a step that makes 10,000 at most",
        ),
        (
            "pool.lambdas={min: 0.3, max: 0.7, step: 1e-6}",
            "pool.lambdas: 400,001 values of λ; give a step that makes 10,000 at most",
        ),
        ("pool.lambdas=[0.5, 1.5]", "pool.lambdas: λ = 1.5 lies outside [0, 1]; every λ must lie in [0, 1]"),
        ("pool.lambdas=[-0.1]", "pool.lambdas: λ = -0.1 lies outside [0, 1]; every λ must lie in [0, 1]"),
        ("pool.lambdas=[.nan]", "pool.lambdas.0: input should be a finite number, got nan"),
        (
            "pool.lambdas={min: 0.5, max: 1.5, step: 0.4}",
            "pool.lambdas: λ = 1.3 lies outside [0, 1]; every λ must lie in [0, 1]",
        ),
        ("pool.lambdas=[0.5, 0.3, 0.5]", "pool.lambdas: a λ is given twice; every λ of the grid must differ"),
        ("student.device=gpu", "student.device: 'gpu' is not a device; use auto, cpu, cuda or cuda:N"),
        ("images.shuffle=3", 'images: shuffle = 3 is an order for rows to count in; give rows, such as "0:1000"'),
        (
            "select={rounds: 0, per_round: 5}",
            "select.per_round is set, but select.rounds is 0; set select.rounds to at least 1",
        ),
        (
            "teacher={kind: python, function: f, classes: 3}",
            "teacher.function: 'f' is not of the form module:function",
        ),
        (
            "teacher={kind: local, weights: x, model: lenet5, train: {epochs: 3}}",
            "teacher.train.images is missing, and there is no labelled set: say what the teacher is trained on",
        ),
    ],
)
def test_what_a_wrong_field_is_told(override, message):
    assert refusal(override) == message


# A teacher behind HTTP

V2 = MINIMAL | {"teacher": {"kind": "http", "url": "http://127.0.0.1:8080", "model": "m", "classes": 3}}
JSON = MINIMAL | {"teacher": {"kind": "http", "protocol": "json", "url": "http://127.0.0.1/predict", "classes": 3}}


def test_a_teacher_behind_http_gets_the_documented_defaults():
    teacher = parse(data=V2).teacher
    assert (teacher.protocol, teacher.version, teacher.name, teacher.output, teacher.ca) == ("v2", *[None] * 4)
    assert (teacher.headers, teacher.outputs, teacher.tolerance, teacher.request) == ({}, "probabilities", 0.02, None)
    assert (teacher.batch_size, teacher.timeout_s, teacher.metered, teacher.answers) == (32, 60.0, True, "soft")
    assert teacher.input.model_dump() == {
        "size": None, "resize": "bilinear", "colour": None, "pixels": "uint8", "mean": None, "std": None,
        "name": None, "layout": None, "encoding": "array", "datatype": None,
    }  # fmt: skip
    assert teacher.reply.model_dump() == {
        "rows": "probabilities", "id": None, "probabilities": "", "ignore": (), "items": None, "label": None,
        "score": None,
    }  # fmt: skip
    assert teacher.limits.model_dump() == {
        "requests_per_s": None, "requests_per_minute": None, "burst": 1, "in_flight": 8, "queries_per_day": None,
    }  # fmt: skip
    assert teacher.retry.model_dump() == {
        "tries": 5, "give_up_after_s": 300.0, "backoff_s": 0.5, "max_backoff_s": 60.0, "max_wait_s": 300.0,
        "max_bad_share": 0.05,
    }  # fmt: skip
    assert parse(data=V2).ledger.model_dump() == {"path": None, "queries": None}
    # What a path of a reply leaves out is not taken from the default of the whole section.
    assert parse("teacher.reply={probabilities: p}", "teacher.batch_size=1", data=JSON).teacher.reply.rows is None


@pytest.mark.parametrize("url", ["x", "http:/host/x", "ftp://host", "http://", "http://:80", "http://host:99999",
                                 "http://host:0", "http://[::1", "http://host:port", "host:8080", ""])  # fmt: skip
def test_what_is_no_address_is_refused(url):
    message = refusal(f"teacher.url={json.dumps(url)}", data=V2)
    assert message == f"teacher.url: {url!r} is not an address; write it as http://HOST:PORT or https://HOST/PATH"


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1", "https://host:8443/a/b?c=d", "http://[::1]:80/", "http://${HOST}:${PORT}/x",
     "http://host/p?key=${KEY}&sig=${SIG}", "http://host/monkeys?sky=blue"],
)  # fmt: skip
def test_an_address_may_have_a_path_a_query_and_variables(url):
    assert parse(f"teacher.url={json.dumps(url)}", data=V2).teacher.url == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://joe:s3cret@host/", "the address holds a user name or password; send it as a header: see "
         "teacher.headers"),
        ("http://s3cret@host/", "the address holds a user name or password; send it as a header: see teacher.headers"),
        ("http//joe:s3cret@host/", "this is not an address; write it as http://HOST:PORT or https://HOST/PATH"),
        ("http:/host/?key=s3cret", "'http:/host/' is not an address; write it as http://HOST:PORT or https://HOST/PATH"),
        ("http://host/#s3cret", "the address holds a '#'; what follows it is never sent, so leave it out"),
        *[(f"http://host/?a=b&{name}=s3cret", f"the address holds {name!r} in clear; write {name}=${{VARIABLE}} and "
           "export VARIABLE") for name in ("key", "api_key", "access_token", "apiKey", "sig", "code", "password")],
    ],
)  # fmt: skip
def test_an_address_with_a_secret_in_clear_is_refused_without_repeating_it(url, message):
    assert refusal(f"teacher.url={json.dumps(url)}", data=V2) == f"teacher.url: {message}"
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "name",
    ["Authorization", "authorization", "Proxy-Authorization", "X-Api-Key", "api-key", "Ocp-Apim-Subscription-Key",
     "X-Auth-Token", "Cookie", "X-Amz-Signature", "Client-Secret", "X-Password"],
)  # fmt: skip
def test_a_header_with_a_secret_in_clear_is_refused_without_repeating_it(name):
    for value in ("s3cret", "Bearer s3cret", "$s3cret", "{s3cret}", "${}s3cret"):
        message = refusal(f"teacher.headers={json.dumps({'Accept': 'x', name: value})}", data=V2)
        assert message == (
            f"teacher.headers: {name} is written in clear, and the config goes into the run directory; "
            f'write {name}: "${{VARIABLE}}" and export VARIABLE'
        )
    for value in ("${MY_KEY}", "Bearer ${MY_KEY}", "key=${A};${B}"):
        assert parse(f"teacher.headers={json.dumps({name: value})}", data=V2).teacher.headers == {name: value}


def test_a_header_that_says_nothing_secret_may_be_in_clear():
    headers = {"Accept": "application/json", "X-Region": "eu-1", "User-Agent": "kdray"}
    assert parse(f"teacher.headers={json.dumps(headers)}", data=V2).teacher.headers == headers


NO_HEADER = "is not a header: a name of letters, digits and '-', a value in one line"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"a b": "s3cret"}, f"teacher.headers: 'a b' {NO_HEADER}"),
        ({"A": "s3cret\nB: c"}, f"teacher.headers: 'A' {NO_HEADER}"),
        ({"A": "s3cret\0"}, f"teacher.headers: 'A' {NO_HEADER}"),
        ({"Authorization": ["s3cret"]}, "teacher.headers.Authorization: input should be a valid string"),
        ("Authorization s3cret", "teacher.headers: input should be a mapping"),
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused_without_repeating_it(headers, message):
    assert refusal(f"teacher.headers={json.dumps(headers)}", data=V2) == message


def test_an_address_of_the_wrong_type_is_not_repeated_either():
    assert refusal("teacher.url=[s3cret]", data=V2) == "teacher.url: input should be a valid string"


def test_a_broken_file_is_told_the_place_and_not_what_stands_there(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\nteacher:\n  headers: {Authorization: Bearer: s3cret: x\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path} is not readable YAML: ") and "line 3" in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "overrides", "message"),
    [
        (V2, ["model=null"], "teacher: model is missing: the name of the model on the server, for v2"),
        (V2, ["request=$images"], "teacher: request and reply belong to json; v2 says itself how they look"),
        (V2, ["reply={rows: a, label: b}"], "teacher: request and reply belong to json; v2 says itself how they look"),
        (V2, ["input.encoding=png"], "teacher: input.encoding: png is for json; v2 takes arrays"),
        (V2, ["input={mean: [0.5], std: [1]}"], "teacher.input: mean and std need pixels: unit"),
        (V2, ["input={pixels: unit, mean: [0.5]}"], "teacher.input: mean and std belong together: give both, or none"),
        (V2, ["classes=[a, b, a]"],
         "teacher.classes: the list has two classes named 'a'; names must differ"),
        *[
            (JSON, [f"{field}=x"],
             "teacher: model, version and output belong to v2; with json the url says it all")
            for field in ("model", "version", "output")
        ],
        (JSON, ["input.name=x"],
         "teacher: input.name and input.datatype belong to v2; with json the request says it all"),
        (JSON, ["reply={rows: a, label: b}"], "teacher: the reply gives labels alone; set answers to hard"),
        (JSON, ["reply={probabilities: a}"],
         "teacher: without reply.rows a reply is about one image; set batch_size to 1"),
        (JSON, ["reply={rows: a}"], "teacher.reply: say where the answer is: probabilities, or label and score (with "
         "items or without), or label alone"),
        (JSON, ["reply={label: a, score: b}"],
         "teacher: without reply.rows a reply is about one image; set batch_size to 1"),
        (JSON, ["reply={items: a, label: b}"],
         "teacher.reply: items needs label and score: where an item has its class and its probability"),
        (JSON, ["reply={probabilities: a, items: b, label: c, score: d}"],
         "teacher.reply: give probabilities alone, or label and score (with items or without), or label alone"),
        (JSON, ["request={a: 1}"],
         'teacher: request holds no "$image", "$images" or {$each: ...}: where does the image belong?'),
        (JSON, ["request={$images: 1}"],
         'teacher: request holds no "$image", "$images" or {$each: ...}: where does the image belong?'),
        (JSON, ["request={a: $image}"],
         'teacher: request takes one "$image"; set batch_size to 1, or use "$images" or {$each: ...}'),
        (JSON, ["request={$each: {a: 1}}"], 'teacher: request: {$each: ...} holds no "$image"'),
        (JSON, ["request={$each: $image, a: 1}"],
         "teacher: request: $each stands alone: {$each: ...} is a list, and can have no other keys"),
        (JSON, ["request={a: '$images!'}"],
         "teacher: request: '$images!' has text around an image; only \"$image\" with input.encoding: png may"),
        (JSON, ["request={a: 'data:,$image'}", "batch_size=1"],
         "teacher: request: 'data:,$image' has text around an image; only \"$image\" with input.encoding: png may"),
        (JSON, ["request={a: $images, day: 2024-01-01}"], "teacher: request cannot be written as JSON (Object of type "
         "date is not JSON serializable); put quotes around dates and the like"),
        (JSON, ["request={a: $images, b: .nan}"], "teacher: request cannot be written as JSON (Out of range float "
         "values are not JSON compliant); put quotes around dates and the like"),
        *[
            (JSON, [f"input={{encoding: png, {other}}}"],
             "teacher: input.encoding: png sends the image as it is; leave input.pixels and input.layout out")
            for other in ("pixels: unit", "layout: nhwc")
        ],
        (JSON, ["input={encoding: png, colour: bgr}"],
         "teacher: input.colour: bgr is for arrays; a PNG says itself which channel is which: use rgb"),
        (MINIMAL | {"ledger": {"queries": 5}}, [],
         "ledger: ledger.queries is set, but ledger.path is null; give the file that is shared"),
    ],
)  # fmt: skip
def test_fields_that_do_not_fit_each_other_are_refused(data, overrides, message):
    told = refusal(*[f"teacher.{text}" for text in overrides], data=data)
    assert told.replace("compliant: nan", "compliant") == message  # newer Pythons name the number


@pytest.mark.parametrize(
    "overrides",
    [
        ["request={a: [{b: $images}], c: 1}"],
        ["request={a: {$each: {b: $image, c: 1}}}"],
        ["request={$each: $images}"],
        ["request={a: $image}", "batch_size=1"],
        ["request={a: 'data:image/png;base64,$image'}", "batch_size=1", "input.encoding=png"],
        ["request={$each: {a: 'x,$image'}}", "input.encoding=png"],
        ["reply={label: a}", "answers=hard", "batch_size=1"],
        ["reply={rows: '', items: a.b, label: '0', score: '1'}"],
    ],
)
def test_bodies_and_replies_that_make_sense_are_taken_and_dumped_whole(overrides, tmp_path):
    config = parse(*[f"teacher.{text}" for text in overrides], data=JSON)
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "a.yaml") == config


@pytest.mark.parametrize("field", ["student.model", "teacher.model"])
def test_an_unknown_model_is_told_the_nearest_and_all(field):
    message = refusal(f"{field}=lenet6")
    assert message.startswith(f"{field}: no model named 'lenet6'; did you mean 'lenet5'?")
    for model in ("alexnet", "lenet5", "resnet18", "small-cnn", "vgg16"):
        assert model in message
    unlike = refusal(f"{field}=zzz")
    assert unlike.startswith(f"{field}: no model named 'zzz'") and "did you mean" not in unlike


@pytest.mark.parametrize("field", ["student", "teacher"])
def test_a_network_of_torchvisions_is_written_by_its_full_name(field):
    given = {"resnet50": "torchvision/resnet50", "resnet18": "resnet18", "torchvision/resnet18": "torchvision/resnet18"}
    given["torchvision:vit_b_16"] = "torchvision/vit_b_16"
    for name, full in given.items():
        config = parse(f"{field}.model={name}")
        assert getattr(config, field).model == full
        assert parse(f"{field}.model={full}") == config
    message = refusal(f"{field}.model=torchvision/resnet19")
    assert message.startswith(f"{field}.model: torchvision has no classifier named 'resnet19'; did you mean 'resnet1")


def test_all_problems_are_told_at_once_one_a_line():
    lines = refusal("sed=1", "budgt.queries=3", "images.count=0", "student.epochs=x").splitlines()
    assert sorted(line.strip() for line in lines) == [
        "images.count: input should be greater than or equal to 1, got 0",
        "student.epochs: input should be a valid integer, unable to parse string as an integer, got 'x'",
        "unknown key 'budgt'; did you mean 'budget'?",
        "unknown key 'sed'; did you mean 'seed'?",
    ]


@pytest.mark.parametrize(("data", "name"), [(None, "NoneType"), ([1], "list"), ("text", "str"), (3, "int")])
def test_what_is_no_mapping_is_refused(data, name):
    with pytest.raises(ConfigError) as error:
        parse_config(data, origin="my.yaml")
    assert str(error.value) == (f"my.yaml: expected a mapping of sections (images, teacher, budget, ...), got {name}")


@pytest.mark.parametrize(
    ("override", "strategy"),
    [("select.m=0.1", "rad"), ("select.w=0.5", "rad"), ("select.score=margin", "active-mixup")],
)
def test_what_the_default_choice_would_pass_over_is_refused(override, strategy):
    field = override.partition("=")[0]
    told = refusal(override)
    assert f"{field} is set, but means nothing to cluster-margin" in told and f"select.strategy to {strategy}" in told
    assert parse(override, "select.strategy=random").select.strategy == "random"  # named, as a sweep over choices does


# Defaults


def test_a_minimal_config_gets_the_documented_defaults():
    config = parse()
    assert (config.seed, config.test) == (0, None)
    assert (config.images.rows, config.images.count, config.images.size, config.images.colour) == (None,) * 4
    assert config.pool.kind == "mixup" and len(config.pool.grid()) == 11
    assert (config.select.strategy, config.select.rounds, config.select.per_round) == ("cluster-margin", 1, None)
    assert (config.student.model, config.student.steps, config.student.early_stop) == ("small-cnn", "auto", None)
    assert config.student.augment.kind == "auto"
    assert (config.teacher.answers, config.teacher.decimals) == ("soft", None)
    assert (config.budget.evaluation, config.budget.price_per_query) == ("auto", None)
    resources = config.resources
    assert (resources.scoring_workers, resources.teacher_workers, resources.trainer.threads) == ("auto",) * 3


def test_nothing_is_downloaded_or_free_of_charge_unless_asked():
    config = parse("images={source: torchvision, name: MNIST, root: x}")
    assert config.images.download is False and config.images.split == "train"
    assert parse("teacher={kind: python, function: 'm:f', classes: 3}").teacher.metered is True


def test_a_parsed_config_cannot_be_changed():
    config = parse()
    for section, name in ((config, "seed"), (config.budget, "queries"), (config.student.augment, "flip")):
        with pytest.raises(ValidationError):
            setattr(section, name, 7)


def test_every_field_says_what_it_means():
    assert list(without_meaning()) == []


# Overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=7", lambda c: c.seed == 7),
        ("budget.queries=2000", lambda c: c.budget.queries == 2000),
        ("images.count=10", lambda c: c.images.count == 10),
        ("images.rows=100:200", lambda c: c.images.rows == "100:200"),
        ("images.size=16", lambda c: c.images.size == (16, 16)),
        ("images.size=[8, 9]", lambda c: c.images.size == (8, 9)),
        ("pool.lambdas=[0.1, 0.9]", lambda c: c.pool.grid() == (0.1, 0.9)),
        ("pool.lambdas={min: 0, max: 1, step: 0.5}", lambda c: c.pool.grid() == (0.0, 0.5, 1.0)),
        ("student.augment.flip=true", lambda c: c.student.augment.flip is True),
        ("student.early_stop.patience=3", lambda c: c.student.early_stop.patience == 3),
        ("student.lr=1e-3", lambda c: c.student.lr == 0.001),
        ("test.source=digits", lambda c: c.test.source == "digits"),
        ("teacher.weights=a=b.safetensors", lambda c: c.teacher.weights == "a=b.safetensors"),
        ("teacher.classes=[cat, dog]", lambda c: c.teacher.classes == ["cat", "dog"]),
        ("resources.trainer.threads=2", lambda c: c.resources.trainer.threads == 2),
        ("resources={chunk: 64}", lambda c: c.resources.chunk == 64 and c.resources.teacher_workers == "auto"),
    ],
)
def test_an_override_sets_its_field_and_nothing_else(override, read):
    changed = parse(override)
    assert read(changed) and differences(parse(), changed)
    section = override.partition("=")[0].split(".")[0]
    assert all(line.startswith(section) for line in differences(parse(), changed))


def test_an_override_replaces_what_the_file_says_and_the_data_stays_as_it_was():
    data = deepcopy(MINIMAL)
    changed = apply_overrides(data, ["budget.queries=6", "select.rounds=2", "seed="])
    assert changed == MINIMAL | {"seed": None, "budget": {"queries": 6}, "select": {"rounds": 2}}
    assert data == MINIMAL


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["budget.queries=5", "budget.queries=5"], "budget.queries"),
        (["budget.queries=5", "budget={evaluation: 3}"], "budget.queries"),
        (["budget={queries: 5, evaluation: 3}", "budget.evaluation=4"], "budget.evaluation"),
        (["seed=1", "test.source=digits", "seed.sub=2"], "seed"),
    ],
)
def test_an_override_given_twice_is_refused(overrides, key):
    with pytest.raises(ConfigError) as error:
        apply_overrides(MINIMAL, overrides)
    assert str(error.value) == f"{key} is given twice on the command line; keep one of the two"


def test_overrides_of_one_section_go_together():
    changed = apply_overrides(MINIMAL, ["budget={evaluation: 3}", "budget.queries=5"])
    assert changed["budget"] == {"evaluation": 3, "queries": 5}


@pytest.mark.parametrize("text", ["budget", "=3", ".seed=3", "budget.=3", "budget..queries=3", "", "nonsense here"])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(ConfigError) as error:
        apply_overrides(MINIMAL, [text])
    assert str(error.value) == (f"override {text!r} is not of the form key.sub=value, for example budget.queries=2000")


@pytest.mark.parametrize("value", ["[", "{a", "'", "a: b: c"])
def test_an_override_that_is_no_yaml_is_refused(value):
    text = f"budget.queries={value}"
    with pytest.raises(ConfigError) as error:
        apply_overrides(MINIMAL, [text])
    assert str(error.value) == f"override {text!r}: {value!r} is not readable YAML"


# Files

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85"), max_size=20)
paths = texts.filter(lambda text: not text.startswith("~"))  # which would be a home folder
configs = st.fixed_dictionaries(
    {
        "images": st.one_of(
            st.fixed_dictionaries(
                {"source": st.sampled_from(["parquet", "folder"]), "path": paths},
                optional={"count": st.integers(1, 10**9), "colour": st.sampled_from(["grey", "rgb", None])},
            ),
            st.fixed_dictionaries(
                {"source": st.just("digits")},
                optional={
                    "size": st.one_of(st.integers(1, 500), st.tuples(st.integers(1, 500), st.integers(1, 500))),
                    "rows": st.builds(lambda a, b: f"{a}:{a + b}", st.integers(0, 70), st.integers(1, 70)),
                },
            ),
        ),
        "teacher": st.one_of(
            st.fixed_dictionaries(
                {"kind": st.just("local"), "weights": paths},
                optional={"decimals": st.integers(0, 10), "classes": st.lists(texts, min_size=2, unique=True)},
            ),
            st.just(MEMBERS[PythonTeacherConfig]),
        ),
        "budget": st.fixed_dictionaries(
            {"queries": st.integers(1, 10**12)},
            optional={"price_per_query": st.floats(0, 1e6), "currency": texts, "evaluation": st.just("auto")},
        ),
    },
    optional={
        "seed": st.integers(0, 2**70),
        "pool": st.fixed_dictionaries({"lambdas": st.lists(st.floats(0, 1), min_size=1, max_size=5, unique=True)}),
        "student": st.fixed_dictionaries({"lr": st.floats(1e-12, 1e6, exclude_min=True)}),
        "select": st.fixed_dictionaries({"rounds": st.integers(0, 9)}),
    },
)


@given(configs)
@examples(60)
def test_a_dumped_config_loads_to_the_same_config(tmp_path_factory, data):
    config = parse_config(data)
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    loaded = load_config(path)
    assert loaded == config and differences(config, loaded) == []
    assert dump_config(loaded) == dump_config(config)


def test_a_dumped_config_holds_every_field_as_plain_yaml():
    config = parse(data=WHOLE)
    data = yaml.safe_load(dump_config(config))
    assert data == config.model_dump(mode="json")
    assert data["resources"]["chunk"] == "auto" and data["images"]["count"] is None
    assert list(data)[:5] == ["seed", "images", "labelled", "validation", "test"]


def test_load_config_reads_a_file_and_applies_overrides(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("images: {source: digits}\nteacher: {kind: local, weights: ä.safetensors}\nbudget: {queries: 5}\n")
    config = load_config(path, ["budget.queries=6", "select.rounds=0"])
    assert (config.budget.queries, config.select.rounds, config.teacher.weights) == (6, 0, "ä.safetensors")
    assert load_config(str(path)).budget.queries == 5


def test_messages_about_a_file_begin_with_its_path(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | {"sed": 1}))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"{path}: unknown key 'sed'; did you mean 'seed'?"


@pytest.mark.parametrize(
    "content", [b"a: [1\nb: }", b"\tx: 1", b"\xff\xfe\x00", b"a: b: c", b"x: !!python/name:os.getcwd"]
)
def test_a_file_that_is_no_yaml_is_refused(tmp_path, content):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path} is not readable YAML: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("seed: 1\nbudget: {queries: 20}\nbudget: {queries: 40}\n",
         "the key 'budget' is given twice, here and in line 2; keep one of them (line 3, column 1)"),
        ("budget:\n  queries: 20\n  queries: 40\n",
         "the key 'queries' is given twice, here and in line 2; keep one of them (line 3, column 3)"),
        ("teacher:\n  request:\n  - {a: 1, b: {c: 1, c: 2}}\n",
         "the key 'c' is given twice, here and in line 3; keep one of them (line 3, column 22)"),
        ("teacher: {classes: [001, 010]}\n",
         "YAML reads 001 as 1; put quotes around it if it is text, or write 1 (line 1, column 21)"),
        ("images: {rows: 10:50}\n",
         "YAML reads 10:50 as 650; put quotes around it if it is text, or write 650 (line 1, column 16)"),
        ("images: {path: 2024-13-05}\n",
         "a value looks like a date and is none (month must be in 1..12); put quotes around it if it is text"),
        ("pool: &b {kind: mixture, of: [*b, lines]}\n",
         "an alias stands within what it names, which has no end; write out what is meant"),
    ],
)  # fmt: skip
def test_what_yaml_would_read_in_silence_as_something_else_is_refused(content, problem, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"{path} is not readable YAML: {problem}"


def test_a_key_that_a_merge_brings_may_be_given_anew(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    assert read_yaml(path)["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("given", "names"),
    [("[0, 180]", ["0", "180"]), ("[cat, 7]", ["cat", "7"]), ("['yes', 'no']", ["yes", "no"])],
)
def test_class_names_that_are_whole_numbers_are_text(given, names):
    assert parse(f"teacher.classes={given}").teacher.classes == names


@pytest.mark.parametrize(
    ("given", "read"), [("[no, yes]", False), ("[a, null]", None), ("[1.5, 2]", 1.5), ("[a, 2024-01-01]", None)]
)
def test_class_names_that_yaml_reads_as_something_else_need_quotes(given, read):
    message = refusal(f"teacher.classes={given}")
    assert message.startswith("teacher.classes: YAML reads a name as ") and "put quotes around it" in message
    assert read is None or repr(read) in message


@pytest.mark.parametrize("kind", ["local", "python", "http"])
def test_two_classes_of_one_name_are_refused(kind):
    teachers = {"local": MINIMAL["teacher"], "python": {"kind": "python", "function": "m:f"}, "http": V2["teacher"]}
    data = MINIMAL | {"teacher": teachers[kind] | {"classes": ["a", "b", 1, "1"]}}
    assert refusal(data=data) == "teacher.classes: the list has two classes named '1'; names must differ"


def test_headers_that_differ_in_case_alone_are_refused():
    message = refusal("teacher.headers={X-Region: a, x-region: b}", data=V2)
    assert message == "teacher.headers: X-Region and x-region are one header to a server; keep one of them"


def test_a_home_folder_is_written_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse("images={source: folder, path: ~/images}", "ledger.path=~/ledger.sqlite")
    assert config.images.path == f"{tmp_path}/images" and config.ledger.path == f"{tmp_path}/ledger.sqlite"
    assert refusal("ledger.path=~nobody-of-this-name/x").startswith("ledger: ~nobody-of-this-name/x: there is no such")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(MINIMAL))
    assert load_config("~/config.yaml") == parse()
    monkeypatch.setenv("KDRAY_RUNS", "~/runs")
    assert runs_folder() == tmp_path / "runs"
    assert RunDirectory("~/runs/a").path == tmp_path / "runs" / "a"


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "no.yaml")
    assert str(error.value) == f"no config file at {tmp_path / 'no.yaml'}"
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path} is a folder; give the YAML file itself")


# Differences


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["seed=0", "select.rounds=1"], []),  # what the defaults say anyway
        (["seed=4"], ["seed: 0 -> 4"]),
        (
            ["student.augment.shift=2"],
            [
                "student.augment.kind: 'auto' -> 'crop'",
                "student.augment.flip: True -> False",
                "student.augment.shift: None -> 2",
            ],
        ),
        (["budget.queries=7", "seed=1"], ["seed: 0 -> 1", "budget.queries: 1000 -> 7"]),
        (["student.loss=kl"], []),
        (["student.loss.temperature=2"], ["student.loss.temperature: 4.0 -> 2.0"]),
        (
            ["student.loss={kind: cross-entropy, smoothing: 0.1}"],
            [
                "student.loss.kind: 'kl' -> 'cross-entropy'",
                "student.loss.temperature: 4.0 -> None",
                "student.loss.smoothing: None -> 0.1",
            ],
        ),
        (["images.size=8"], ["images.size: None -> [8, 8]"]),
        (["images={source: folder, path: p}"], ["images.source: 'digits' -> 'folder'", "images.path: None -> 'p'"]),
        (
            ["student.early_stop.patience=3"],
            ["student.early_stop.holdout: None -> 0.1", "student.early_stop.patience: None -> 3"],
        ),
        (
            ["pool.lambdas=[0.5]"],
            [
                "pool.lambdas.min: 0.3 -> None",
                "pool.lambdas.max: 0.7 -> None",
                "pool.lambdas.step: 0.04 -> None",
                "pool.lambdas: None -> [0.5]",
            ],
        ),
    ],
)
def test_differences_name_field_and_both_values(overrides, expected):
    assert differences(parse(), parse(*overrides)) == expected


# The λ grid


def test_the_default_grid_is_the_papers_eleven_values():
    expected = (0.30, 0.34, 0.38, 0.42, 0.46, 0.50, 0.54, 0.58, 0.62, 0.66, 0.70)
    assert LambdaGrid(min=0.30, max=0.70, step=0.04).values() == expected
    assert MixupSection().grid() == expected and 0.5 in MixupSection().grid() and 0.7 in MixupSection().grid()


@pytest.mark.parametrize(
    ("low", "high", "step", "expected"),
    [
        (0.0, 1.0, 0.1, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        (0.0, 1.0, 0.3, (0.0, 0.3, 0.6, 0.9)),
        (0.5, 0.5, 0.1, (0.5,)),
        (0.2, 0.25, 0.1, (0.2,)),
        (0.0, 1.0, 2.0, (0.0,)),
        (0.7, 0.3, 0.1, ()),
    ],
)
def test_the_grid_runs_from_min_in_steps_and_never_past_max(low, high, step, expected):
    assert LambdaGrid(min=low, max=high, step=step).values() == expected


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000))
def test_grid_values_are_the_nearest_floats_to_exact_decimals(low, high, step):
    values = LambdaGrid(min=low / 1000, max=high / 1000, step=step / 1000).values()
    assert values == tuple(float(Fraction(k, 1000)) for k in range(low, high + 1, step))


def test_a_list_of_lambdas_keeps_its_order():
    assert parse("pool.lambdas=[0.7, 0.3, 0.5]").pool.grid() == (0.7, 0.3, 0.5)


# The queries of each round


@pytest.mark.parametrize(
    ("budget", "images", "rounds", "per_round", "expected"),
    [
        (24_000, 2_000, 1, None, [2_000, 22_000]),
        (1_000, 100, 3, None, [100, 300, 300, 300]),
        (107, 100, 3, None, [100, 3, 2, 2]),
        (108, 100, 3, None, [100, 3, 3, 2]),
        (103, 100, 3, None, [100, 1, 1, 1]),
        (100, 100, 0, None, [100]),
        (500, 100, 0, None, [100]),
        (500, 100, 2, 50, [100, 50, 50]),
        (200, 100, 2, 50, [100, 50, 50]),
    ],
)
def test_the_schedule_by_hand(budget, images, rounds, per_round, expected):
    assert evenly(budget, images, rounds, per_round) == expected


@given(st.integers(1, 10**6), st.integers(1, 60), st.integers(0, 10**6))
def test_the_schedule_spends_the_whole_budget_evenly(images, rounds, extra):
    budget = images + rounds + extra
    queries = evenly(budget, images, rounds, None)
    assert queries[0] == images and len(queries) == rounds + 1 and sum(queries) == budget
    assert min(queries[1:]) >= 1 and max(queries[1:]) - min(queries[1:]) <= 1
    assert queries[1:] == sorted(queries[1:], reverse=True)


@given(st.integers(0, 10**5), st.integers(1, 10**5), st.integers(0, 40), st.none() | st.integers(1, 10**4))
@examples(300)
def test_the_schedule_never_passes_the_budget_and_refuses_only_what_cannot_be_paid(budget, images, rounds, per_round):
    needed = images + rounds * (per_round or 1)
    if budget < needed:
        with pytest.raises(ConfigError, match=r"^budget\.queries: .* raise budget\.queries to at least ") as error:
            evenly(budget, images, rounds, per_round)
        if per_round is None:
            enough = int(re.search(r"at least ([\d,]+)", str(error.value))[1].replace(",", ""))
            assert len(evenly(enough, images, rounds, per_round)) == rounds + 1
    else:
        queries = evenly(budget, images, rounds, per_round)
        assert sum(queries) <= budget and len(queries) == rounds + 1 and queries[0] == images
        assert per_round is None or set(queries[1:]) <= {per_round}


def test_a_budget_that_is_too_small_is_told_the_one_that_is_enough():
    with pytest.raises(ConfigError) as error:
        evenly(1_999, 2_000, 3, None)
    assert str(error.value) == (
        "budget.queries: 1,999 queries do not pay for round 0, which asks for 2,000 images; "
        "raise budget.queries to at least 2,003, lower select.first, or give fewer images (images.count)"
    )
    with pytest.raises(ConfigError) as error:
        evenly(2_029, 2_000, 3, 10)
    assert str(error.value) == (
        "budget.queries: after round 0 29 of 2,029 queries are left, too few for select.rounds = 3 rounds of 10; "
        "raise budget.queries to at least 2,030, or lower select.per_round to 9"
    )
    with pytest.raises(ConfigError, match=r"raise budget\.queries to at least 2,030$"):
        evenly(2_002, 2_000, 3, 10)  # three rounds share two queries
    assert evenly(2_030, 2_000, 3, 10) == [2_000, 10, 10, 10]
