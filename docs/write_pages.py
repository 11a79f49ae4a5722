"""Writes docs/config.md and the tables in docs/choosing.md and docs/sweeps.md from the code: `make docs`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kdray.config.root import Config
from kdray.sections.base import Section
from kdray.sections.registry import Registry, registry_of, sections_of
from kdray.select.base import Strategy, strategies
from kdray.sweeps.config import SweepSection

_HERE = Path(__file__).parent
_HEAD = """# The config

One YAML file describes an experiment. Any field can be set on the command line as `key.sub=value`, the value read as
YAML: `kdray run examples/digits-mixup.yaml select.rounds=5 'pool.lambdas=[0.4, 0.6]'`. Unknown keys are refused, and
so is what is given twice. Paths are relative to the folder kdray is started in; `~` is the home folder. A part may
also be a class of your own, named `module:object`: [extending.md](extending.md). How classes are matched:
[teachers.md](teachers.md#classes).

This page is made from the code by `make docs`; a test keeps the two alike.
"""


_CHANGES = """
## What may change when a run goes on

These fields decide how answers are fetched, counted or shown. `kdray run CONFIG --out RUN key.sub=value` goes on with
the run in RUN and the new values, which RUN/config.yaml keeps. A change in any other field makes another experiment,
and is refused.
"""


def config_page() -> str:
    """docs/config.md: every field, its default, its meaning; and which may change."""
    changes = ", ".join(f"`{path}`" for path in dict.fromkeys(_resumable(Config, "")))
    return "\n".join([_HEAD, *_section(Config, "", Config.model_fields, set()), _CHANGES, changes]) + "\n"


def _resumable(model: type[Section], prefix: str, within: tuple[str, ...] = ()) -> list[str]:
    """Paths of the fields below a section that may change when a run goes on.

    Args:
        within: fields of the registries that it is a part of: parts of its own kind in it say nothing new.
    """
    paths = [f"{prefix}{name}" for name in model.resumable()]
    for name, field in model.model_fields.items():
        registry, path = registry_of(field.annotation, field.metadata), f"{prefix}{name}"
        if path not in paths and (registry is None or registry.field not in within):
            deeper = within if registry is None else (*within, registry.field)
            parts = sections_of(field.annotation, field.metadata) if registry is None else registry.parts().values()
            for part in parts:
                paths += _resumable(part, f"{path}.", deeper)
    return paths


def _section(model: type[Section], prefix: str, names: Iterable[str], told: set[str]) -> list[str]:
    """The table of some fields of a section, and the sections below them. What is told already is not told again."""
    lines = ["| field | default | meaning |", "|---|---|---|"]
    below: list[str] = []
    meanings = model.meanings()
    fields = {name: model.model_fields[name] for name in names}
    registries = {name: registry_of(field.annotation, field.metadata) for name, field in fields.items()}
    # What is told here is not told within a section that comes before it.
    here = {registry.field for registry in registries.values() if registry is not None} - told
    told |= here
    for name, registry in registries.items():
        field, path = fields[name], f"{prefix}{name}"
        lines.append(f"| `{path}` | {_default(field, registry)} | {_one_line(meanings.get(name))} |")
        if registry is not None and registry.field in here:
            here.remove(registry.field)
            below += _parts(registry, path, told)
        elif registry is None:
            for part in sections_of(field.annotation, field.metadata):
                if part.__name__ not in told:
                    told.add(part.__name__)
                    table = _section(part, f"{path}.", part.model_fields, told)
                    below += ["", f"## `{path}`", "", _one_line(part.__doc__), "", *table]
    return lines + below


def _parts(registry: Registry[Any], path: str, told: set[str]) -> list[str]:
    """The fields that all parts of a kind share, then each part with its own."""
    base, tag = registry.base, registry.tag
    lines = ["", f"## `{path}`", "", _one_line(base.__doc__), "", *_section(base, f"{path}.", base.model_fields, told)]
    for name, part in registry.parts().items():
        own = [field for field in part.model_fields if _is_own(part, base, field, tag)]
        lines += ["", f"### `{path}.{tag}: {name}`", "", _one_line(part.__doc__)]
        lines += ["", *_section(part, f"{path}.", own, told)] if own else []
    return lines


def _is_own(part: type[Section], base: type[Section], name: str, tag: str) -> bool:
    shared = base.model_fields.get(name)
    return name != tag and (shared is None or shared.default != part.model_fields[name].default)


def _default(field: FieldInfo, registry: Registry[Any] | None) -> str:
    if field.default is None:
        return "null"
    if registry is not None and field.default_factory is not None:
        if get_origin(field.annotation) is list:
            return "see right"
        return f"`{getattr(field.get_default(call_default_factory=True), registry.tag)}`"
    if isinstance(field.default, BaseModel):
        return "see below"
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def strategy_table() -> str:
    """The strategies, for docs/choosing.md: name, what each does, when k are the first k of more, its own fields."""
    lines = ["| `select.strategy` | what it chooses | a prefix | its own fields |", "|---|---|---|---|"]
    for name, part in strategies.parts().items():
        own = [field for field in part.model_fields if field not in Strategy.model_fields]
        what = _one_line((part.__doc__ or "").split("\n\n")[0])
        lines.append(f"| `{name}` | {what} | {part.prefix or 'no'} | {', '.join(f'`{field}`' for field in own)} |")
    return "\n".join(lines)


def choosing_page(text: str) -> str:
    """docs/choosing.md with the table between its markers made anew."""
    table = f"<!-- strategies: made by `make docs` -->\n{strategy_table()}\n<!-- end -->"
    return re.sub(r"<!-- strategies: .*?<!-- end -->", lambda match: table, text, flags=re.DOTALL)


def sweeps_page(text: str) -> str:
    """docs/sweeps.md with the table of the section `sweep` made anew."""
    lines = _section(SweepSection, "sweep.", SweepSection.model_fields, set())
    table = "\n".join(["<!-- sweep: made by `make docs` -->", *lines, "<!-- end -->"]).replace("## `", "#### `")
    return re.sub(r"<!-- sweep: .*?<!-- end -->", lambda match: table, text, flags=re.DOTALL)


if __name__ == "__main__":
    (_HERE / "config.md").write_text(config_page(), encoding="utf-8")
    for name, made in (("choosing.md", choosing_page), ("sweeps.md", sweeps_page)):
        page = _HERE / name
        page.write_text(made(page.read_text(encoding="utf-8")), encoding="utf-8")
