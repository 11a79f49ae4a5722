"""One student trained by several processes, each on its rows of every batch, with `torch.distributed`.

The steps are those of one process, up to the order in which floats are added: the same batches and augmentation, the
mean gradient of the whole batch, and batch normalisation with the statistics of the whole batch. Only dropout differs:
each process draws the masks of its own rows.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdray.training.shard import Shard


class ProcessShard(Shard):
    """The share of this process in the default process group, which must be open; see `Shard`."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def wrap(self, model: nn.Module) -> nn.Module:
        """See `Shard.wrap`. The model's batch normalisations are replaced by such as share their statistics."""
        if next(model.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            share_statistics(model)
        with warnings.catch_warnings():  # the argument that replaces this one is not in torch 2.9
            warnings.simplefilter("ignore", FutureWarning)
            # Buffers are the same everywhere: running statistics follow those of the whole batch.
            return DistributedDataParallel(model, broadcast_buffers=False)

    def sum(self, value: Tensor) -> Tensor:
        """See `Shard.sum`."""
        value = value.clone()
        dist.all_reduce(value)
        return value

    def mean(self, loss_of: Callable[[slice], Tensor], count: int) -> float:
        """See `Shard.mean`."""
        rows = self.rows(count)
        share = rows.stop - rows.start
        loss = loss_of(rows if share else slice(0, 1))  # the mean of no row would be NaN
        return float(self.sum(loss.detach() * share)) / count


def share_statistics(module: nn.Module) -> None:
    """Replace the batch normalisations in `module` by `SharedBatchNorm`, which keeps their parameters and buffers."""
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm):
            setattr(module, name, SharedBatchNorm.of(child))
        else:
            share_statistics(child)


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation with the mean and variance over the rows of all processes. torch's `SyncBatchNorm` refuses
    tensors on CPUs.

    Each process hands round its own mean and its own sum of squared differences from it: sums of squares would lose
    digits.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SharedBatchNorm":
        """One with the parameters and buffers of `norm`."""
        shared = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        shared._parameters, shared._buffers = norm._parameters, norm._buffers
        return shared.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch normalisation takes [B, C, ...], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """float [B, C, ...] in and out; see `torch.nn.BatchNorm2d`."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        given = input.dtype
        input = input.float()  # as torch does: bfloat16 has too few digits for sums
        places = [0, *range(2, input.ndim)]
        across = (1, -1, *[1] * (input.ndim - 2))
        count = input.numel() // input.shape[1]
        own_mean = input.mean(places)
        own_spread = (input - own_mean.view(across)).square().sum(places)
        counts = torch.full_like(own_mean, count)
        table = input.new_zeros(dist.get_world_size(), 3, input.shape[1])
        table[dist.get_rank()] = torch.stack([counts, own_mean, own_spread])
        counts, means, spreads = _Sum.apply(table).unbind(1)  # [processes, C] each
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        spread = (spreads + counts * (means - mean).square()).sum(0)
        variance = spread / total
        self._follow(mean.detach(), (spread / (total - 1).clamp_min(1)).detach())
        output: Tensor = (input - mean.view(across)) * torch.rsqrt(variance + self.eps).view(across)
        if self.affine:
            output = output * self.weight.view(across) + self.bias.view(across)
        return output.to(given)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - factor).add_(mean, alpha=factor)
        self.running_var.mul_(1 - factor).add_(variance, alpha=factor)


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each one's loss depends on it, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient
