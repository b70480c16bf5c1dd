"""Batch norm over the samples of all ranks, so that a batch that ranks share is normalised as one process would."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import process_group
from ..process_group import Group


def share_statistics(network: nn.Module, group: Group) -> None:
    """Let every batch norm of a network see the samples of all ranks; parameters and buffers stay the same objects."""
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            setattr(network, name, _shared(child, group))
        else:
            share_statistics(child, group)


def _shared(norm: _BatchNorm, group: Group) -> _BatchNorm:
    kind = nn.SyncBatchNorm if norm.weight.is_cuda else SharedBatchNorm
    shared = kind(norm.num_features, norm.eps, norm.momentum)
    shared.process_group = group
    shared.weight, shared.bias = norm.weight, norm.bias
    shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
    shared.num_batches_tracked = norm.num_batches_tracked
    return shared.train(norm.training)


class SharedBatchNorm(_BatchNorm):
    """What torch's SyncBatchNorm is on GPUs, for CPUs. Ranks may have any share of a batch, even none.

    It is affine and tracks running statistics, as every batch norm here; in evaluation mode it is a plain one.
    """

    process_group: Group = None

    def _check_input_dim(self, values: torch.Tensor) -> None:
        """Any shape [n, C, ...] will do."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(values)
        dims = [dim for dim in range(values.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(values.dim())]
        own_count = values.numel() // values.shape[1]
        own_mean = values.sum(dims) / max(1, own_count)
        own_variance = (values - own_mean.view(shape)).square().sum(dims) / max(1, own_count)
        own = torch.stack([own_mean, own_variance, torch.full_like(own_mean, own_count)]).double()
        means, variances, count = _GatherStatistics.apply(own, self.process_group).unbind(1)
        total = count.sum(0)
        mean = (count * means).sum(0) / total
        variance = (count * (variances + (means - mean).square())).sum(0) / total
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (total / (total - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt().to(values.dtype)
        centred = values - mean.to(values.dtype).view(shape)
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape))


class _GatherStatistics(torch.autograd.Function):
    """The tensors of all ranks as [R, ...]; a gradient is that of the sum of the losses of all ranks."""

    @staticmethod
    def forward(ctx, own: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return process_group.all_gather(own, group)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.contiguous()
        process_group.all_reduce(gradient, ctx.group)
        return gradient[process_group.rank(ctx.group)], None
