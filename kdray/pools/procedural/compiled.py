"""Drawing that numba compiles: an extra, and slow to import, so a painter imports it when it is made."""

from __future__ import annotations

import importlib
from types import ModuleType

from kdray.errors import ConfigError


def drawing(kind: str) -> ModuleType:
    """The compiled drawing of a pool's kind.

    Raises:
        ConfigError: numba cannot be imported.
    """
    try:
        return importlib.import_module(f"kdray.pools.procedural.{kind}_numba")
    except ImportError as error:
        raise ConfigError(
            f"pool.kind: {kind} needs numba, which cannot be imported ({error}); pip install 'kdray[{kind}]', or take "
            "another kind"
        ) from None
