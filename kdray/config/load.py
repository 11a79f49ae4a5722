"""Config files: reading, overriding, writing and comparing them, and error messages that say what to change."""

import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kdray.config.files import parse_yaml, read_yaml
from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.sections.base import Section, did_you_mean
from kdray.sections.registry import registry_of, sections_of

S = TypeVar("S", bound=Section)


def parse_config(data: Any, *, origin: str = "config") -> Config:
    """Convert a mapping, as read from YAML, to a Config.

    Raises:
        ConfigError: the message names every invalid field, its value, and the nearest known name of an unknown field.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            f"{origin}: expected a mapping of sections (images, teacher, budget, ...), got {type(data).__name__}"
        )
    return parse_section(Config, data, origin=origin)


def parse_section(section: type[S], data: dict[str, Any], *, origin: str) -> S:
    """Convert a mapping to a section, such as a whole config; errors as `parse_config`."""
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "\n  ".join(_explain_all(error.errors(), data, section))) from None


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML config and apply `key.sub=value` overrides; values are read as YAML."""
    return parse_config(apply_overrides(read_yaml(path), overrides), origin=str(path))


def apply_overrides(data: Any, overrides: Iterable[str]) -> Any:
    """A copy of the mapping `data` with each `key.sub=value` set. Missing sections are added.

    Raises:
        ConfigError: not of this form, not readable as YAML, or a key that is given twice.
    """
    given: set[str] = set()
    for text in overrides:
        dotted, equals, value = text.partition("=")
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"override {text!r} is not of the form key.sub=value, for example budget.queries=2000")
        try:
            parsed = parse_yaml(value)
        except yaml.reader.ReaderError:  # bytes that are not UTF-8, as the name of a file may have them
            parsed = value
        except yaml.constructor.ConstructorError as error:
            raise ConfigError(f"override {text!r}: {error.problem}") from None
        except yaml.YAMLError:
            raise ConfigError(f"override {text!r}: {value!r} is not readable YAML") from None
        sets = _leaves(parsed, dotted)
        for key in given:
            if _within(key, dotted) or any(_within(key, mine) or _within(mine, key) for mine in sets):
                raise ConfigError(f"{key} is given twice on the command line; keep one of the two")
        given.update(sets)
        data = _assign(data, dotted.split("."), parsed)
    return data


def _leaves(value: Any, dotted: str) -> list[str]:
    """The keys that an override sets, with dots."""
    if not isinstance(value, dict) or not value:
        return [dotted]
    return [leaf for key, part in value.items() for leaf in _leaves(part, f"{dotted}.{key}")]


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _assign(data: Any, keys: list[str], value: Any) -> dict[str, Any]:
    copy = dict(data) if isinstance(data, dict) else {}
    copy[keys[0]] = value if len(keys) == 1 else _assign(copy.get(keys[0]), keys[1:], value)
    return copy


def dump_config(config: Config) -> str:
    """The whole config as YAML, including defaults."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def differences(first: Section, second: Section) -> list[str]:
    """Fields in which two configs, or two sections of a kind, differ, as "key.sub: a -> b"."""

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


def _explain_all(problems: list[Any], data: Any, root: type[BaseModel]) -> list[str]:
    """One line for each invalid field.

    If a field has several types (a number or "auto"), pydantic reports one problem per type. They become one line.
    """
    lines: dict[str, str] = {}
    for problem in problems:
        line = _explain(problem, data, root)
        field, colon, reason = line.partition(": ")
        if colon and field in lines and "input should be" in reason:
            wanted = reason.removeprefix("input should be ").partition(", got ")[0]
            lines[field] = lines[field].replace(", got ", f", or {wanted}, got ", 1)
        else:
            lines.setdefault(field if colon else line, line)
    # If a field is "a mapping or a list", an error inside the mapping is more helpful than "it is not a list"; and a
    # list whose only entry is wrong is not also too short.
    vague = {
        f
        for f, line in lines.items()
        if ("input should be a" in line or "should have at least" in line) and any(g.startswith(f"{f}.") for g in lines)
    }
    return [line for field, line in lines.items() if field not in vague]


def _explain(problem: dict[str, Any], data: Any, root: type[BaseModel]) -> str:
    """One validation problem as "field: what is wrong, which value, what to do"."""
    path, known = _locate(problem["loc"], data, root)
    value = problem.get("input")
    kind = problem["type"]
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tag = problem["ctx"]["discriminator"].strip("'")
        given = (
            f"{value.get(tag)!r} is not one of"
            if isinstance(value, dict) and tag in value
            else "is missing; give one of"
        )
        tags = problem["ctx"].get("expected_tags", "'local', 'python', 'http'")
        return f"{path}.{tag}: {given} {tags}"
    if kind == "extra_forbidden":
        key = path.rpartition(".")[2]
        near = _in_a_section(key, root) if path == key else did_you_mean(key, known)
        hint = near or f"known here: {', '.join(known)}"
        return f"unknown key {path!r}; {hint}"
    if kind == "missing":
        return f"{path} is missing"
    if kind == "part":  # an error of a registry; if it concerns the whole section, its message names the field
        message = str(problem["ctx"]["message"])
        return message.replace("{field}", path) if message.startswith("{field}.") else f"{path}: {message}"
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        entry = re.match(r"\d+(\.\w+)*: ", text)  # of a list
        return f"{path}{'.' if entry else ': '}{text}" if path else text
    text = problem["msg"][0].lower() + problem["msg"][1:]
    text = re.sub(r"a valid dictionary( or (instance of \w+|object to extract fields from))?", "a mapping", text)
    # The values of these fields may contain a secret.
    silent = isinstance(value, dict) or path.startswith(("teacher.headers", "teacher.url"))
    return f"{path}: {text}" + ("" if silent else f", got {value!r}")


def _in_a_section(key: str, root: type[BaseModel]) -> str:
    """What an unknown top key may mean: the field of that name of a section, else the top key nearest to it."""
    within = [
        f"{name}.{key}"
        for name, field in root.model_fields.items()
        if any(key in part.model_fields for part in sections_of(field.annotation, field.metadata))
    ]
    return f"did you mean {' or '.join(map(repr, within))}?" if within else did_you_mean(key, root.model_fields)


def _locate(location: tuple[str | int, ...], data: Any, root: type[BaseModel]) -> tuple[str, list[str]]:
    """A pydantic location as a dotted path, without pydantic's entries for unions, and the known keys at that place.

    Args:
        data: the validated mapping, which names the part of each section.
        root: the section that it was validated as.
    """
    names: list[str] = []
    models: list[type[BaseModel]] = [root]
    siblings: list[str] = list(root.model_fields)
    field: FieldInfo | None = None  # the last that was entered, for the sections of a list
    for part in location:
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        if part in fields:
            names.append(str(part))
            siblings = list(fields)
            data, field = data.get(part) if isinstance(data, dict) else None, fields[str(part)]
            models = _sections(field, data)
        elif isinstance(part, int):
            names.append(str(part))
            if isinstance(data, list) and part < len(data) and field is not None:
                data = data[part]
                models = _sections(field, data)
                siblings = [name for model in models for name in model.model_fields]
        elif tagged := [model for model in models if part == _tag(model)]:
            models, siblings = tagged, list(tagged[0].model_fields)
        elif part not in {model.__name__ for model in models} and not _OF_A_UNION.search(part):
            names.append(part)
            siblings = list(fields)
    return ".".join(names), siblings


_OF_A_UNION = re.compile(r"[\[\]()]|^(int|float|str|list|tuple|constrained-\w+|literal.*|function-.*)$")


def _sections(field: FieldInfo, data: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold, given the user's value of it."""
    registry = registry_of(field.annotation, field.metadata)
    if registry is None:
        return sections_of(field.annotation)
    try:
        return [registry.named(data)]
    except LookupError:
        return []


def _tag(model: type[BaseModel]) -> str | None:
    for name in ("source", "kind"):
        field = model.model_fields.get(name)
        if field is not None and typing.get_origin(field.annotation) is typing.Literal:
            return str(typing.get_args(field.annotation)[0])
    return None
