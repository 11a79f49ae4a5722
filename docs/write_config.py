"""Writes docs/config.md from kdray/config*.py, where every default lives. Run it after a change there."""

import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kdray.config import Config

_HEAD = """# The config

One YAML file an experiment. Any field can be set on the command line as `key.sub=value`, the value read as YAML:
`kdray run examples/digits.yaml select.rounds=5 'pool.lambdas=[0.4, 0.5, 0.6]'`. Unknown keys are refused. Paths are
taken from the folder kdray is started in.

Made by `python docs/write_config.py` from `kdray/config*.py`; a test keeps the two alike.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_section(Config, "")]) + "\n"


def _section(model: type[BaseModel], prefix: str) -> list[str]:
    lines = ["| field | default | meaning |", "|---|---|---|"]
    below: list[str] = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        models = _models(field.annotation)
        default = "required" if field.default is PydanticUndefined else _value(field.default)
        if models and isinstance(field.default, BaseModel):
            default = "see below"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{path}` | {default} | {meaning} |")
        for part in models:
            tag = _tag(part)
            title = f"`{path}`" + (f", {tag}" if tag else "")
            below += ["", f"## {title}", "", " ".join((part.__doc__ or "").split()), "", *_section(part, f"{path}.")]
    return lines + below


def _value(value: object) -> str:
    return "null" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _tag(model: type[BaseModel]) -> str | None:
    for name in ("source", "kind"):
        field = model.model_fields.get(name)
        if field is not None and field.default is PydanticUndefined:
            return f"`{name}: {typing.get_args(field.annotation)[0]}`"
    return None


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


if __name__ == "__main__":
    Path(__file__).with_name("config.md").write_text(page(), encoding="utf-8")
