"""Registries of parts by name. A part registers itself when its module is imported, so a new part needs one new file.

A part is a config section that also does the work: a strategy chooses candidates, a pool's section builds the pool, a
loss is called. A config may name a part as `module:object`, which is a class of the user's own.
"""

import copy
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from kdray.sections.base import Section, did_you_mean

S = TypeVar("S", bound=Section)


class Catalogue:
    """Imports the modules of a package, which then register their parts.

    Args:
        packages: names of the packages. Their modules are imported before the first look-up.
        skip: modules of a package that register nothing and are slow to import.
    """

    def __init__(self, *packages: str, skip: tuple[str, ...] = ()) -> None:
        self._packages, self._skip, self._loaded = packages, skip, False

    def load(self) -> None:
        """Import the modules of the package, if this has not been done."""
        if self._loaded:
            return
        self._loaded = True
        for package in self._packages:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                if module.name not in self._skip:
                    importlib.import_module(f"{package}.{module.name}")


class Registry(Generic[S]):
    """The parts of one kind. As pydantic metadata it validates a field: `pool: Annotated[PoolSection, pools]`.

    Args:
        base: the base class of all parts.
        field: name of the config field, for messages.
        tag: the key of the section that names the part.
        package: the package of the parts that come with kdray, or several. A module has one or more parts.
        skip: modules of the package that have no part.
        default: the part to use if the config names none; None means that the config must name one.
        lenient: whether a named part ignores the fields of other parts, so that a sweep over parts can set the fields
            of all parts.
    """

    def __init__(
        self,
        base: type[S],
        *,
        field: str,
        tag: str = "kind",
        package: str | tuple[str, ...],
        skip: tuple[str, ...] = (),
        default: str | None = None,
        lenient: bool = False,
    ) -> None:
        self.base, self.field, self.tag = base, field, tag
        self.default_name, self._lenient = default, lenient
        self._catalogue = Catalogue(*([package] if isinstance(package, str) else package), skip=skip)
        self._parts: dict[str, type[S]] = {}

    def register(self, part: type[S]) -> type[S]:
        """Register a part; a class decorator. The name of the part is the default of its tag."""
        name = part.model_fields[self.tag].default
        if self._parts.setdefault(name, part) is not part:
            raise ValueError(f"{self.field}.{self.tag}: two parts are named {name!r}")
        return part

    def parts(self) -> dict[str, type[S]]:
        """The parts that come with kdray, by name. The default part is the first."""
        self._catalogue.load()
        return dict(sorted(self._parts.items(), key=lambda item: (item[0] != self.default_name, item[0])))

    def get(self, name: str) -> type[S]:
        """The part of this name, or a class of the user's own, named `module:object`.

        Raises:
            LookupError: there is no such part; the message lists the known names.
        """
        if ":" in name:
            return self._users_own(name)
        parts = self.parts()
        if name not in parts:
            near = did_you_mean(name, parts)
            known = ", ".join(repr(known) for known in parts)
            raise LookupError(f"{name!r} is not one of {known}, nor module:object{'; ' + near if near else ''}")
        return parts[name]

    def with_default(self, name: str) -> "Registry[S]":
        """The same parts, of which this one is used if a config names none."""
        other = copy.copy(self)
        other.default_name = name
        return other

    def default(self) -> S:
        """A section of the default part, with the defaults of its fields."""
        return self.parse({})

    def parse(self, value: Any) -> S:
        """Build a section of the part that `value` names.

        Args:
            value: a mapping with the tag and the fields, or the name alone.

        Raises:
            ValidationError: there is no such part, or one of its fields is invalid.
        """
        if isinstance(value, self.base):
            return value
        if isinstance(value, str):
            value = {self.tag: value}
        if not isinstance(value, Mapping):
            raise self._problem((), f"input should be a mapping, got {value!r}", value)
        try:
            part = self.named(value)
        except LookupError as error:
            raise self._problem((self.tag,), str(error.args[0]), value) from None
        foreign = self._foreign(part, value)
        fields = {key: item for key, item in value.items() if key not in foreign}
        return part.model_validate({self.tag: self.default_name} | fields)

    def named(self, value: Any) -> type[S]:
        """The part that a mapping names, or the default part.

        Raises:
            LookupError: the mapping names no part and there is no default, or there is no such part.
        """
        name = value.get(self.tag, self.default_name) if isinstance(value, Mapping) else value or self.default_name
        if name is None:
            raise LookupError(f"is missing; give one of {', '.join(map(repr, self.parts()))}")
        return self.get(str(name))

    def _foreign(self, part: type[S], value: Mapping[str, Any]) -> list[str]:
        """Keys of `value` that are fields of other parts but not of `part`.

        Raises:
            ValidationError: there is such a key, and the registry does not ignore it.
        """
        name = part.model_fields[self.tag].default
        foreign = []
        for key in value:
            owners = [other for other, known in self.parts().items() if key in known.model_fields]
            if key in part.model_fields or not owners:
                continue
            if self.tag not in value:
                raise self._problem(
                    (),
                    f"{{field}}.{key} is set, but means nothing to {name}, the default; leave it out, or set "
                    f"{{field}}.{self.tag} to {owners[0]}",
                    value,
                )
            if not self._lenient:
                raise self._problem(
                    (),
                    f"{{field}}.{key} belongs to {self.tag} {' and '.join(owners)}; "
                    f"with {self.tag} = {value[self.tag]} leave it out",
                    value,
                )
            foreign.append(key)
        return foreign

    def _users_own(self, name: str) -> type[S]:
        part = import_object(name)
        if not (isinstance(part, type) and issubclass(part, self.base)):
            where = f"{self.base.__module__}.{self.base.__qualname__}"
            raise LookupError(f"{name} is not a subclass of {where}; see docs/extending.md")
        if get_origin(part.model_fields[self.tag].annotation) is Literal:
            raise LookupError(
                f"{name} inherits the name {part.model_fields[self.tag].default!r}; declare '{self.tag}: str' in it"
            )
        if missing := sorted(getattr(part, "__abstractmethods__", ())):
            raise LookupError(f"{name} lacks {', '.join(f'{method}()' for method in missing)}; see docs/extending.md")
        return part

    def _problem(self, location: tuple[str, ...], message: str, value: Any) -> ValidationError:
        """`message` as a pydantic error. "{field}" in it stands for the path of the section.

        It is replaced by `self.field` here; `kdray.config.load` replaces it by the true path.
        """
        text = message.replace("{field}", self.field)
        error = PydanticCustomError("part", "{text}", {"text": text, "message": message})
        return ValidationError.from_exception_data(
            self.field, [InitErrorDetails(type=error, loc=location, input=value)]
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda section, info: section.model_dump(mode=info.mode), info_arg=True
            ),
        )


def sections_of(annotation: Any, metadata: Iterable[Any] = ()) -> list[type[BaseModel]]:
    """The sections that an annotation allows. For a field with a registry, these are all its parts."""
    if (registry := registry_of(annotation, metadata)) is not None:
        return list(registry.parts().values())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in sections_of(part)]


def registry_of(annotation: Any, metadata: Iterable[Any] = ()) -> Registry[Any] | None:
    """The registry in an annotation, such as `Annotated[PoolSection, pools] | None`, or in a field's metadata."""
    found = [item for item in (*metadata, *getattr(annotation, "__metadata__", ())) if isinstance(item, Registry)]
    inner = (registry_of(part) for part in get_args(annotation))
    return found[0] if found else next((item for item in inner if item is not None), None)


def import_object(name: str, folder: str = "") -> Any:
    """Import the object that `module:object` names, from `folder` (default: the current one) or the Python path.

    Raises:
        LookupError: the module cannot be imported, or has no such object.
    """
    folder = folder or os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise LookupError(f"cannot import {name} ({type(error).__name__}: {error})") from None
    return found
