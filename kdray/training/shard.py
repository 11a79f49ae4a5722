"""The part of each batch that this process trains on: all of it, unless several processes train one student."""

from collections.abc import Callable

from torch import Tensor, nn


class Shard:
    """All the work, done by one process; `kdray.training.distributed.ProcessShard` is the share of one of several.

    Every process draws the same random numbers and sees the same batches, and computes its own rows of each.
    """

    rank = 0
    """Number of this process, from 0."""
    size = 1
    """Number of processes."""

    def rows(self, count: int) -> slice:
        """This process's rows of `count`. Each row belongs to one process; the parts differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def weight(self, rows: int, count: int) -> float:
        """Factor of the mean loss of `rows` of `count` rows, such that the mean over all processes is the batch's."""
        return rows * self.size / count

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call while training. A backward pass through it leaves the mean of all processes' gradients."""
        return model

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all processes' values, on each of them."""
        return value

    def mean(self, loss_of: Callable[[slice], Tensor], count: int) -> float:
        """The mean loss of `count` rows, the same on each process; `loss_of` gives that of some of them."""
        return float(loss_of(slice(0, count)))
