"""YAML files, and errors in them that a user can act on."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from kdray.errors import ConfigError
from kdray.utils.files import expand

_BUNDLED = ("examples", "tune_configs")  # folders of configs that come with kdray


def bundled(path: Path) -> Path:
    """Where a config is: `path`; or, if it is not there and names one that comes with kdray, such as
    examples/digits.yaml, the file that was installed."""
    if path.exists() or path.is_absolute() or path.parts[:1] == () or path.parts[0] not in _BUNDLED:
        return path
    package = Path(__file__).parents[1]
    for root in (package, package.parent):  # of a wheel; of a clone
        if (found := root / path).is_file():
            return found
    return path


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: there is no such file, or it is not readable YAML.
    """
    path = bundled(expand(path))
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the YAML file itself, or use 'kdray resume' for a run") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {_where_yaml_broke(error)}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


class _Loader(yaml.SafeLoader):
    """Refuses what YAML would read in silence as something else than was written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys differ. YAML would take the last of two."""
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                problem = f"the key {str(key)!r} is given twice, here and in line {lines[key]}; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            lines[key] = line
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number in decimal form. YAML would read 010 as 8, and 10:50 as 650."""
        number: int = super().construct_yaml_int(node)
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", text := self.construct_scalar(node)):
            problem = f"YAML reads {text} as {number}; put quotes around it if it is text, or write {number}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """What YAML text holds.

    Raises:
        yaml.YAMLError: it is not readable, gives a key twice, has a number that is not in decimal form, or has an alias
            within what that names.
    """
    try:
        data = yaml.load(text, _Loader)  # a SafeLoader
    except ValueError as error:  # of what looks like a date, such as 2024-13-05
        problem = f"a value looks like a date and is none ({error}); put quotes around it if it is text"
        raise yaml.constructor.ConstructorError(None, None, problem, None) from None
    _check_ends(data, (), set())
    return data


def _check_ends(value: Any, inside: tuple[int, ...], checked: set[int]) -> None:
    """Refuse a mapping or list that holds itself, by an alias."""
    if not isinstance(value, dict | list) or id(value) in checked:
        return
    if id(value) in inside:
        problem = "an alias stands within what it names, which has no end; write out what is meant"
        raise yaml.constructor.ConstructorError(None, None, problem, None)
    for part in value.values() if isinstance(value, dict) else value:
        _check_ends(part, (*inside, id(value)), checked)
    checked.add(id(value))


def _where_yaml_broke(error: Exception) -> str:
    """The reason and the place of the error, without the text of the line, which may contain a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"
    return str(error)
