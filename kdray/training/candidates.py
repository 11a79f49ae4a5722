"""Makes the candidates of a round where students are trained, for a pool that makes them anew each time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kdray.utils.devices import cpu_threads, resolve_device

if TYPE_CHECKING:
    from kdray.pools.remade import Basis, Made, RemadePool
    from kdray.training.fitting import StudentSpec


def make_candidates(spec: StudentSpec, pool: RemadePool, basis: Basis) -> Made:
    """The candidates of a round, made on the device on which the student is trained, and with as many threads.

    Raises:
        PoolExhausted: there are none.
    """
    device = resolve_device(spec.recipe.device, "student.device")
    with cpu_threads(spec.threads):
        return pool.make(replace(basis, device=device))
