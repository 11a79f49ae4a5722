"""Writes docs/config.md and the tables in docs/choosing.md and docs/sweeps.md from the code: `make docs`."""

import re
from collections import deque
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
    return "\n".join([_HEAD, *_Tables(Config).lines(), _CHANGES, changes]) + "\n"


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


class _Tables:
    """The table of the fields of a section, then those of the sections below it. What several places may hold is told
    in one: at its shortest path, the first of several."""

    def __init__(self, model: type[Section], prefix: str = "") -> None:
        self._model, self._prefix = model, prefix
        self._homes = _homes(model, prefix)
        self._told: set[str] = set()

    def lines(self) -> list[str]:
        return self._section(self._model, self._prefix, self._model.model_fields)

    def _section(
        self, model: type[Section], prefix: str, names: Iterable[str], registry: Registry[Any] | None = None
    ) -> list[str]:
        """Args: registry: the one whose parts the section is the base of, which knows the default part."""
        rows, below = ["| field | default | meaning |", "|---|---|---|"], []
        meanings = model.meanings()
        for name in names:
            field, path, meaning = model.model_fields[name], f"{prefix}{name}", _one_line(meanings.get(name))
            for key in _below(field):
                if (home := self._homes[key]) != path:
                    meaning += f" Fields: those of [`{home}`](#{home.replace('.', '')})."
                elif key not in self._told:
                    self._told.add(key)
                    below += self._told_here(field, path)
            names_the_part = registry is not None and name == registry.tag and registry.default_name is not None
            default = f"`{registry.default_name}`" if names_the_part else _default(field)
            rows.append(f"| `{path}` | {default} | {meaning} |")
        return rows + below

    def _told_here(self, field: FieldInfo, path: str) -> list[str]:
        """The fields that all parts of a kind share, then each part with its own; or those of a section."""
        registry = registry_of(field.annotation, field.metadata)
        lines: list[str] = []
        for (model, names), *parts in _below(field).values():
            table = self._section(model, f"{path}.", names, registry)
            lines += ["", f"## `{path}`", "", _one_line(model.__doc__), "", *table]
            for part, own in parts:
                lines += ["", f"### `{path}.{registry.tag}: {part.model_fields[registry.tag].default}`", ""]
                lines += [_one_line(part.__doc__)]
                lines += ["", *self._section(part, f"{path}.", own)] if own else []
        return lines


def _homes(model: type[Section], prefix: str) -> dict[str, str]:
    """The path at which each kind of part and each section is told."""
    homes: dict[str, str] = {}
    tables = deque([(prefix, model, list(model.model_fields))])
    while tables:
        before, part, names = tables.popleft()
        for name in names:
            for key, below in _below(part.model_fields[name]).items():
                if key not in homes:
                    homes[key] = f"{before}{name}"
                    tables += [(f"{before}{name}.", *table) for table in below]
    return homes


def _below(field: FieldInfo) -> dict[str, list[tuple[type[Section], list[str]]]]:
    """The sections that a field may hold, by name, with the fields that their tables list; of a kind of parts all."""
    registry = registry_of(field.annotation, field.metadata)
    if registry is None:
        sections = sections_of(field.annotation, field.metadata)
        return {part.__name__: [(part, list(part.model_fields))] for part in sections}
    own = [(part, _own(part, registry)) for part in registry.parts().values()]
    return {registry.field: [(registry.base, list(registry.base.model_fields)), *own]}


def _own(part: type[Section], registry: Registry[Any]) -> list[str]:
    """The fields of a part that its kind does not share, or shares with another default."""
    shared = registry.base.model_fields
    return [
        name
        for name, field in part.model_fields.items()
        if name != registry.tag and (name not in shared or shared[name].default != field.default)
    ]


def _default(field: FieldInfo) -> str:
    registry = registry_of(field.annotation, field.metadata)
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
    lines = _Tables(SweepSection, "sweep.").lines()
    table = "\n".join(["<!-- sweep: made by `make docs` -->", *lines, "<!-- end -->"]).replace("## `", "#### `")
    return re.sub(r"<!-- sweep: .*?<!-- end -->", lambda match: table, text, flags=re.DOTALL)


if __name__ == "__main__":
    (_HERE / "config.md").write_text(config_page(), encoding="utf-8")
    for name, made in (("choosing.md", choosing_page), ("sweeps.md", sweeps_page)):
        page = _HERE / name
        page.write_text(made(page.read_text(encoding="utf-8")), encoding="utf-8")
