"""Running statistics of batch norms, computed anew over many batches with the weights held still.

What batch norms keep while training are averages over weights that change. Wu & Johnson, "Rethinking 'Batch' in
BatchNorm", https://arxiv.org/abs/2105.07576, section 3: the population's statistics in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, distributed, nn

from detkit.engine.distributed import is_distributed

__all__ = ["training_batch_norms", "update_bn_stats"]


def training_batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Batch norms that normalise by their batch now, and keep statistics; frozen ones are not among them."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.running_mean is not None
    }


@torch.no_grad()
def update_bn_stats(
    model: nn.Module,
    batches: Iterable[Any],
    num_iters: int = 200,
    forward: Callable[[Any], Any] | None = None,
) -> list[str]:
    """Set the running statistics of all batch norms to those of their inputs over ``num_iters`` batches.

    Mean and (biased) variance are those of all values of a channel over all batches, images and positions, however
    these are split into batches, and over all processes. Nothing else of the model changes: not its weights, momenta,
    modes nor other buffers; after an error nothing at all.

    Args:
        model: Not wrapped for several processes. Batch norms in evaluation mode stay as they are.
        batches: At least ``num_iters``; no more are drawn.
        num_iters: How many.
        forward: What is done with a batch; None calls ``model(batch)``.

    Returns:
        The names of the layers set.

    Raises:
        ValueError: There are fewer batches, or ``num_iters`` is less than 1.
    """
    if num_iters < 1:
        raise ValueError(f"num_iters must be at least 1, got {num_iters}")
    layers = training_batch_norms(model)
    if not layers:
        return []
    moments = {name: _Moments(layer) for name, layer in layers.items()}
    done = 0
    with _unchanged(model), _eager(), _watched(layers, moments):
        for batch in islice(batches, num_iters):
            (forward or model)(batch)
            done += 1
        if done < num_iters:
            raise ValueError(f"statistics over {num_iters} batches were asked for, and there are {done}")
    return _set_statistics(layers, moments)


class _Moments:
    """Sums over what a layer is given: number of values per channel, their sum, the sum of their squares.

    Summed up in double precision from the mean and variance of each batch: the plain sum of squares of floats would
    lose a small variance beside a large mean.
    """

    def __init__(self, layer: Any) -> None:
        self.count = 0
        shape, device = layer.running_mean.shape, layer.running_mean.device
        self.total = torch.zeros(2, *shape, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor) -> None:
        """Take in a layer's input, (N, C, ...)."""
        values = inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
        variance, mean = torch.var_mean(values, dim=[0, *range(2, values.ndim)], correction=0)
        count = values.numel() // values.shape[1]
        variance, mean = variance.double(), mean.double()
        self.total += count * torch.stack([mean, variance + mean.square()])
        self.count += count


@contextmanager
def _watched(layers: dict[str, nn.Module], moments: dict[str, _Moments]) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: moments[name].add(inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give every buffer its value back: losses keep statistics there too, and batch norms count their batches."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    slots = [(module._buffers, dict(module._buffers)) for module in model.modules() if module._buffers]
    try:
        yield
    finally:
        for place, buffers in slots:
            place.update(buffers)
        for buffer, value in kept:
            buffer.copy_(value)


def _eager() -> AbstractContextManager[Any]:
    """Compiled code does not see the hooks of its modules."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6 and later
    return set_stance("force_eager") if set_stance is not None else nullcontext()


def _set_statistics(layers: dict[str, Any], moments: dict[str, _Moments]) -> list[str]:
    if is_distributed():
        device = next(iter(moments.values())).total.device
        counts = torch.tensor([one.count for one in moments.values()], dtype=torch.float64, device=device)
        flat = torch.cat([counts, *(one.total.flatten() for one in moments.values())])
        distributed.all_reduce(flat)
        sizes = [one.total.numel() for one in moments.values()]
        totals = flat[len(counts) :].split(sizes)
        for one, count, total in zip(moments.values(), flat[: len(counts)].tolist(), totals, strict=True):
            one.count, one.total = int(count), total.view_as(one.total)
    named = []
    for name, layer in layers.items():
        if moments[name].count == 0:  # the batches did not pass through it
            continue
        mean, square = moments[name].total / moments[name].count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((square - mean.square()).clamp(min=0))
        named.append(name)
    return named
