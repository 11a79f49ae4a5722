"""Strategies that draw at random and make no forward passes. They are the baselines for all other strategies."""

from typing import ClassVar, Literal

import numpy as np

from kdray.pools.permutation import sample_without
from kdray.select.base import Selection, Strategy, Task, strategies


@strategies.register
class Random(Strategy):
    """Draws k pairs uniformly, each at the λ of the grid nearest 0.5 (Active Mixup, section 4.2.2). Drawn pairs leave
    the pool."""

    asks: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    prefix: ClassVar[str] = "always"

    strategy: Literal["random"] = "random"

    def choose(self, task: Task) -> Selection:
        """See `Strategy`."""
        groups = sample_without(task.pool.num_groups, task.k, task.taken_groups, task.generator)
        return Selection(ids=groups * task.pool.group_size + task.pool.middle())


@strategies.register
class Uniform(Strategy):
    """Draws k candidates uniformly (RAD's UNIFORM). Other candidates of the same pair stay in the pool."""

    per: ClassVar[Literal["group", "candidate"]] = "candidate"
    asks: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    prefix: ClassVar[str] = "always"

    strategy: Literal["uniform"] = "uniform"

    def choose(self, task: Task) -> Selection:
        """See `Strategy`."""
        ids = sample_without(len(task.pool), task.k, np.unique(task.taken), task.generator)
        return Selection(ids=ids)
