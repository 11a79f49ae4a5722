"""The base class of config sections, and types that several sections use."""

import ast
import difflib
import functools
import inspect
import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kdray.errors import ConfigError
from kdray.sections.classes import refuse_twice
from kdray.utils.files import expand


class Section(BaseModel):
    """A section of the config. It refuses unknown keys, and it is immutable.

    The docstring of a field is its meaning in docs/config.md. A default is written in its section and nowhere else.
    """

    # A schema is built when a section is first used: a command uses few of them.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    path_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that hold file paths. A run directory stores them as absolute paths."""

    resumable_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that may change when a run goes on: they decide how an answer is fetched or shown, and not what is chosen
    or learned. A field that is a section stands for all of it. Those of base classes count too."""

    @model_validator(mode="before")
    @classmethod
    def _paths_of_the_user(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        paths = {name: data[name] for name in cls.path_fields if isinstance(data.get(name), str)}
        try:
            whole = {name: str(expand(path)) for name, path in paths.items()}
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return {**data, **{name: path for name, path in whole.items() if paths[name].startswith("~")}}

    @classmethod
    def resumable(cls) -> tuple[str, ...]:
        """`resumable_fields` of the class and its bases."""
        found = [name for base in reversed(cls.__mro__) for name in vars(base).get("resumable_fields", ())]
        return tuple(dict.fromkeys(found))

    def resumable_paths(self, prefix: str = "") -> list[str]:
        """Dotted paths of all such fields, of the sections below too."""
        paths = [f"{prefix}{name}" for name in self.resumable()]
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Section) and f"{prefix}{name}" not in paths:
                paths += value.resumable_paths(f"{prefix}{name}.")
        return paths

    def with_absolute_paths(self) -> dict[str, Any]:
        """This section as a mapping; the files that it and the sections in it name, by their absolute paths."""
        data = self.model_dump(mode="json")
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Section):
                data[name] = value.with_absolute_paths()
            elif isinstance(value, list):
                inner = (one.with_absolute_paths() if isinstance(one, Section) else None for one in value)
                data[name] = [old if new is None else new for old, new in zip(data[name], inner, strict=True)]
            elif name in self.path_fields and value:
                data[name] = os.path.abspath(value)
        return data

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """The docstring of each field that has one, read from the source.

        pydantic could read them too, but would do so whenever a class is made, which every command would pay for.
        """
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            if issubclass(base, Section) and base is not Section:
                found |= _own_meanings(base)
        return {name: found[name] for name in cls.model_fields if name in found}


@functools.cache
def _own_meanings(section: type[Section]) -> dict[str, str]:
    """`Section.meanings` of the fields that this very class declares."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            doc = text.value if isinstance(text, ast.Expr) else None
            if isinstance(doc, ast.Constant) and isinstance(doc.value, str):
                found[field.target.id] = inspect.cleandoc(doc.value)
    return found


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"{value!r} is not a device; use auto, cpu, cuda or cuda:N")
    return value


def _square(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


_Side = Annotated[int, Field(ge=1, le=1 << 14)]
Size = Annotated[tuple[_Side, _Side], BeforeValidator(_square)]
"""[height, width], or one number squared."""


def _names_as_text(value: Any) -> Any:
    """Class names that YAML reads as whole numbers are text again; what it reads as something else cannot be undone."""
    if not isinstance(value, list | tuple):
        return value
    for name in value:
        if name is None or isinstance(name, bool | float) or not isinstance(name, str | int):
            raise ValueError(f"YAML reads a name as {name!r}; put quotes around it")
    return [str(name) for name in value]


def _names_differ(value: int | list[str]) -> int | list[str]:
    if isinstance(value, list):
        refuse_twice(value, "the list")
    return value


ClassNames = Annotated[list[str], Field(min_length=1), BeforeValidator(_names_as_text), AfterValidator(_names_differ)]
"""Names of classes, in order."""
Classes = Annotated[
    Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)],
    BeforeValidator(_names_as_text),
    AfterValidator(_names_differ),
]
"""Number of classes, or their names."""
Threads = Annotated[int, Field(ge=1)] | Literal["auto"]
"""CPU threads."""
Device = Annotated[str, AfterValidator(_known_device)]
"""auto, cpu, cuda or cuda:N."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?" for the known name nearest to `name`; empty if no name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""
