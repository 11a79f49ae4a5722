"""torch, imported at its first use.

Importing torch takes two CPU-seconds, and a command that only reads a config must not need them. So every module with a
config section, and every module that it imports, uses `from kdray.utils.lazy import torch`.
"""

import importlib
from typing import TYPE_CHECKING, Any


class LazyModule:
    """A stand-in for a module, which is imported at the first access to an attribute."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)  # later accesses do not call __getattr__
        return value


if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

__all__ = ["torch"]
