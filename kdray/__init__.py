"""kdray: distil a black-box image classifier with as few paid queries as possible."""

import os
from typing import TYPE_CHECKING, Any

from kdray.errors import ImageDeclined, KdrayError, TeacherBusy

# Before torch is imported, or it has no effect: idle OpenMP threads sleep. By default they spin, and as soon as another
# process wants a core, a small network on two threads trains ten times slower than on one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from kdray.api import distil
    from kdray.models.checkpoint import load_student
    from kdray.sweeps.api import sweep, trainable

__version__ = "0.1.0"
__all__ = ["ImageDeclined", "KdrayError", "TeacherBusy", "distil", "load_student", "sweep", "trainable"]


def __getattr__(name: str) -> Any:
    # All bring torch, which takes seconds; `kdray --help` does not need it.
    if name == "distil":
        from kdray.api import distil

        return distil
    if name == "load_student":
        from kdray.models.checkpoint import load_student

        return load_student
    if name in ("sweep", "trainable"):
        from kdray.sweeps import api

        return getattr(api, name)
    raise AttributeError(f"module 'kdray' has no attribute {name!r}")
