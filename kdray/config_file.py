"""Config files: reading, overriding, writing and comparing them, and errors in words a user can act on."""

import difflib
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ValidationError

from kdray.config import Config
from kdray.errors import ConfigError


def parse_config(data: Any, *, origin: str = "config") -> Config:
    """A mapping, as YAML gives it, to a Config.

    Raises:
        ConfigError: one message that names every bad field, its value, and the nearest known name of an unknown one.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            f"{origin}: expected a mapping of sections (images, teacher, budget, ...), got {type(data).__name__}"
        )
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "\n  ".join(_explain_all(error.errors()))) from None


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML config and apply `key.sub=value` overrides; values are read as YAML."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the YAML file itself, or use 'kdray resume' for a run") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {_where_yaml_broke(error)}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return parse_config(apply_overrides(data, overrides), origin=str(path))


def _where_yaml_broke(error: Exception) -> str:
    """Reason and place, without the line itself: it may hold a key."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"
    return str(error)


def apply_overrides(data: Any, overrides: Iterable[str]) -> Any:
    """A copy of the mapping `data` with each `key.sub=value` set; sections that are missing are made."""
    for text in overrides:
        dotted, equals, value = text.partition("=")
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"override {text!r} is not of the form key.sub=value, for example budget.queries=2000")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"override {text!r}: {value!r} is not readable YAML") from None
        data = _assign(data, dotted.split("."), parsed)
    return data


def _assign(data: Any, keys: list[str], value: Any) -> dict:
    copy = dict(data) if isinstance(data, dict) else {}
    copy[keys[0]] = value if len(keys) == 1 else _assign(copy.get(keys[0]), keys[1:], value)
    return copy


def dump_config(config: Config) -> str:
    """The whole config as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differences(first: Config, second: Config) -> list[str]:
    """Fields in which two configs differ, as "key.sub: a -> b"."""

    def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(data, dict):
            return {prefix: data}
        return {
            key: value
            for name, part in data.items()
            for key, value in flatten(part, f"{prefix}.{name}".lstrip(".")).items()
        }

    a, b = flatten(first.model_dump(mode="json")), flatten(second.model_dump(mode="json"))
    keys = list(a) + [key for key in b if key not in a]
    return [f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in keys if a.get(key) != b.get(key)]


def _explain_all(problems: list[Any]) -> list[str]:
    """A line a field. Where a field may be several things (a number or "auto"), pydantic says why it is none of them,
    one problem each; they become one line."""
    lines: dict[str, str] = {}
    for problem in problems:
        line = _explain(problem)
        field, colon, reason = line.partition(": ")
        if colon and field in lines and "input should be" in reason:
            wanted = reason.removeprefix("input should be ").partition(", got ")[0]
            lines[field] = lines[field].replace(", got ", f", or {wanted}, got ", 1)
        else:
            lines.setdefault(field if colon else line, line)
    # Of "a mapping or a list", what is wrong inside the mapping says more than that it is no list.
    vague = {
        f for f, line in lines.items() if "input should be a" in line and any(g.startswith(f"{f}.") for g in lines)
    }
    return [line for field, line in lines.items() if field not in vague]


def _explain(problem: dict[str, Any]) -> str:
    """One validation problem as "field: what is wrong, which value, what to do"."""
    path, known = _resolve(problem["loc"])
    value = problem.get("input")
    kind = problem["type"]
    if kind == "extra_forbidden":
        name = path.rpartition(".")[2]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {path!r}; {hint}"
    if kind == "missing":
        return f"{path} is missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tag = problem["ctx"]["discriminator"].strip("'")
        given = (
            f"{value.get(tag)!r} is not one of"
            if isinstance(value, dict) and tag in value
            else "is missing; give one of"
        )
        return f"{path}.{tag}: {given} {problem['ctx'].get('expected_tags', _tags(path))}"
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        return f"{path}: {text}" if path else text
    text = problem["msg"][0].lower() + problem["msg"][1:]
    text = re.sub(r"a valid dictionary( or (instance of \w+|object to extract fields from))?", "a mapping", text)
    # What was meant for these fields may be a key.
    silent = isinstance(value, dict) or path.startswith(("teacher.headers", "teacher.url"))
    return f"{path}: {text}" + ("" if silent else f", got {value!r}")


def _tags(path: str) -> str:
    return "'local', 'python', 'http'" if path == "teacher" else "'parquet', 'folder', 'torchvision', 'digits'"


def _resolve(location: tuple) -> tuple[str, list[str]]:
    """A pydantic location to its dotted path, without union tags, and the keys known beside its last one."""
    names: list[str] = []
    models: list[type[BaseModel]] = [Config]
    siblings: list[str] = list(Config.model_fields)
    for part in location:
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        if part in fields:
            names.append(str(part))
            siblings = list(fields)
            models = _sections(fields[part].annotation)
            continue
        tagged = [m for m in models if part in (m.__name__, _tag(m))]
        if tagged:  # the tag of a union: chooses among models, is no key of the file
            models, siblings = tagged, list(tagged[0].model_fields)
        elif isinstance(part, int):
            names.append(str(part))
        elif not re.search(r"[\[\]()]|^(int|float|str|list|tuple|constrained-\w+|literal.*|function-.*)$", str(part)):
            names.append(str(part))
            siblings = list(fields)
    return ".".join(names), siblings


def _tag(model: type[BaseModel]) -> str | None:
    for name in ("source", "kind"):
        field = model.model_fields.get(name)
        if field is not None and typing.get_origin(field.annotation) is Literal:
            return typing.get_args(field.annotation)[0]
    return None


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The config sections an annotation may stand for."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return [model for part in typing.get_args(annotation) for model in _sections(part)]
    return []
