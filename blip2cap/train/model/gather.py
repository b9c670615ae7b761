"""Tensors of all processes of a training, in the order of their ranks; without processes, those of this one."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def num_processes() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def first_row(num_rows: int) -> int:
    """Return the place of this process's first row among the gathered rows, with `num_rows` of each process."""
    return 0 if num_processes() == 1 else distributed.get_rank() * num_rows


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, the same number of each; gradients go back to the process that a row is from.

    Backward, every process gets the sum of all gradients of its rows. DistributedDataParallel divides by the number of
    processes: losses must be means over the rows of a process, as if it was alone.
    """
    if num_processes() == 1:
        return rows
    gathered: torch.Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def gather_padded(rows_BT: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, padded on the right with zeros to the longest."""
    if num_processes() == 1:
        return rows_BT
    length = torch.tensor(rows_BT.shape[1], device=rows_BT.device)
    distributed.all_reduce(length, distributed.ReduceOp.MAX)
    return gather(torch.nn.functional.pad(rows_BT, (0, int(length) - rows_BT.shape[1])))


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of a number without gradient."""
    if num_processes() > 1:
        value = value.clone()
        distributed.all_reduce(value)
        value = value / num_processes()
    return value


def draw(*shape: int, device: torch.device) -> torch.Tensor:
    """Return numbers from 0 to below 1, float64, the same in every process."""
    numbers = torch.rand(shape, dtype=torch.float64).to(device)  # from the generator that checkpoints hold
    if num_processes() > 1:
        distributed.broadcast(numbers, 0)
    return numbers


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(rows) for _ in range(num_processes())]
        distributed.all_gather(gathered, rows.contiguous())
        ctx.num_rows = len(rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous()
        distributed.all_reduce(total)
        start = first_row(ctx.num_rows)
        return total[start : start + ctx.num_rows]
