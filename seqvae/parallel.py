"""Several processes that work as one: ranks, shares of work, sums over processes, sharded weights.

Scope: torch.distributed, torchrun's variables, and the division of a batch, so that many processes compute the
result of one. Out of scope: the noise of a part (nn/noise.py), models, losses, files.

This uses torch.distributed directly. accelerate (1.15) adds nothing that is needed, and does not fit: on CPUs it
silently skips FSDP, and it can exclude only whole modules from FSDP, but the one number that FSDP cannot shard
(`Binding.scale`) is in the module of the embeddings. Its averages, and those of DistributedDataParallel, are over
processes; the parts of a batch have different numbers of tokens, so a sum is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice, pairwise, zip_longest
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from seqvae.errors import ConfigError, SeqVAEError

T = TypeVar("T")
R = TypeVar("R")
LARGE = 1 << 16  # numbers: larger tensors are exchanged on their own, since a copy would cost more
# Timeout while the first process reads a collection; in a step, the usual half an hour shows that a process hangs.
PATIENCE = timedelta(days=1)


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """The group of processes, and the number of this one."""

    rank: int = 0
    """Only rank 0 writes files and reports."""
    count: int = 1
    turn: int = 0
    """0 for the first process of all, 1 for the first on each other machine, 2 for the rest."""
    patient: dist.ProcessGroup | None = None
    """The same processes with a long timeout, for work that may take hours."""

    def by_turns(self, work: Callable[[], T]) -> T:
        """`work` in the first process, then in the first of every other machine, then in the rest.

        So later processes find files that earlier ones made. If `work` fails in one, SeqVAEError is raised in all.
        """
        if self.count == 1:
            return work()
        for turn in range(3):
            failure: Exception | None = None
            if turn == self.turn:
                try:
                    result = work()
                except Exception as error:
                    failure = error
            with _plain_errors():
                heard: list[str | None] = [None] * self.count
                dist.all_gather_object(heard, None if failure is None else str(failure), group=self.patient)
            if failure is not None:
                raise failure
            if said := [line for line in heard if line is not None]:
                raise SeqVAEError(said[0])
        return result

    def broadcast(self, make: Callable[[], T]) -> T:
        """The result of `make` in the first process, in all processes; if it fails, SeqVAEError is raised in all."""
        if self.count == 1:
            return make()
        box = self.by_turns(lambda: [make()] if self.rank == 0 else [None])
        with _plain_errors():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over all processes; all have the same type.

        Large tensors are exchanged in place, the others together in one copy.
        """
        if self.count == 1:
            return
        large = [tensor for tensor in tensors if tensor.numel() >= LARGE and tensor.is_contiguous()]
        rest = [tensor for tensor in tensors if not (tensor.numel() >= LARGE and tensor.is_contiguous())]
        flat = torch.cat([tensor.flatten() for tensor in rest]) if rest else torch.zeros(0)
        with _plain_errors():
            # a tensor is empty in all processes or in none
            under_way = [dist.all_reduce(tensor, async_op=True) for tensor in [*large, flat] if tensor.numel()]
            for exchange in under_way:
                exchange.wait()
        for tensor, total in zip(rest, torch.split(flat, [tensor.numel() for tensor in rest]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by that of the first process."""
        for tensor in tensors if self.count > 1 else ():
            with _plain_errors():
                dist.broadcast(tensor.detach(), src=0)

    def in_rounds(self, items: Iterable[T], work: Callable[[T], Iterable[R]]) -> Iterator[R]:
        """All results of `work` on the items, in order, in the first process; nothing in the others.

        Every process iterates over the same items and works on every `count`-th. Results go to the first process after
        each round of `count` items, which bounds memory. If `work` fails in one, SeqVAEError is raised in all.
        """
        if self.count == 1:
            for item in items:
                yield from work(item)
            return
        source = iter(items)
        while some := list(islice(source, self.count)):
            failure: Exception | None = None
            made: list[R] = []
            try:
                made = [result for item in some[self.rank : self.rank + 1] for result in work(item)]
            except Exception as error:
                failure = error
            heard: list[str | None] = [None] * self.count
            shares: list[list[R]] | None = [[]] * self.count if self.rank == 0 else None
            with _plain_errors():
                dist.all_gather_object(heard, None if failure is None else str(failure), group=self.patient)
            if failure is not None:
                raise failure
            if said := [line for line in heard if line is not None]:
                raise SeqVAEError(said[0])
            with _plain_errors():
                dist.gather_object(made, shares, group=self.patient)
            for share in shares or []:
                yield from share

    def shard(self, items: Iterable[T]) -> Iterator[T]:
        """This process's share of items: every `count`-th."""
        return islice(items, self.rank, None, self.count)

    def gather(self, results: Sequence[T]) -> list[T]:
        """The results of all processes' shares in the order of items, in the first process; nothing in the others."""
        if self.count == 1:
            return list(results)
        shares: list[list[T]] | None = [[]] * self.count if self.rank == 0 else None
        with _plain_errors():
            dist.gather_object(list(results), shares, group=self.patient)
        return _merged(shares or [])

    def map_sharded(self, items: Iterable[T], work: Callable[[T], R]) -> list[R]:
        """The result of `work` on each item, in order, in every process; each process works on its share."""
        made = [work(item) for item in self.shard(items)]
        if self.count == 1:
            return made
        shares: list[list[R]] = [[]] * self.count
        with _plain_errors():
            dist.all_gather_object(shares, made, group=self.patient)
        return _merged(shares)

    def leave(self) -> None:
        """Wait for all processes and leave the group: the last call, only after success."""
        if self.count > 1:
            with _plain_errors():
                dist.barrier(group=self.patient)
            dist.destroy_process_group()


def _merged(shares: Sequence[Sequence[T]]) -> list[T]:
    """The results of all items in order, where process r has those of item r and every `count`-th after it."""
    none = object()
    rounds = zip_longest(*shares, fillvalue=none)
    return [result for one in rounds for result in one if result is not none]  # type: ignore[misc]


@functools.cache
def join() -> Ranks:
    """This process's rank among those that torchrun started; a single process has no group.

    Each process uses the GPU with its local rank. Raises SeqVAEError if there are too few GPUs, or if the other
    processes cannot be found.
    """
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if count == 1:
        return Ranks()
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise SeqVAEError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs; start one process per GPU"
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise SeqVAEError(
            f"WORLD_SIZE is {count}, and the other processes cannot be found ({error}); start all with torchrun"
        ) from error
    rank = dist.get_rank()
    return Ranks(rank, count, 0 if rank == 0 else 1 if local == 0 else 2, patient)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise SeqVAEError if another process has ended; gloo and nccl raise only RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise SeqVAEError(
            f"another process has ended or does not answer ({str(error)[:200]}); its own message says why"
        ) from error


# --- parts of a batch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Rows of a batch that are computed together, in one process and one pass."""

    begin: int
    count: int
    of: int
    """Number of rows in the whole batch."""
    share: float
    """Share of the batch's tokens."""

    @property
    def rows(self) -> slice:
        """The computed rows; the first row replaces an empty part, since all processes take part in every step."""
        return slice(self.begin, self.begin + self.count) if self.count else slice(0, 1)


def divide(sizes: NDArray[np.int64], count: int) -> list[Part]:
    """Divide rows with `sizes` tokens each into `count` runs of about equal tokens.

    Each run begins at an even row, so that noise drawn for pairs of rows keeps its pairs. A run may be empty.
    """
    ends = np.concatenate([[0], np.cumsum(sizes)])
    middle = np.interp(ends[-1] * np.arange(1, count) / count, ends, np.arange(len(ends)))
    cuts = [0, *np.minimum(2 * np.round(middle / 2).astype(int), len(sizes)).tolist(), len(sizes)]
    return [
        Part(begin, end - begin, len(sizes), float((ends[end] - ends[begin]) / ends[-1]))
        for begin, end in pairwise(cuts)
    ]


# --- weights in shards ------------------------------------------------------------------------------------------------


def shard(model: nn.Module, blocks: type[nn.Module]) -> None:
    """Shard the weights over processes, and with them gradients and optimizer state (FSDP).

    The weights of each of `blocks` are gathered only while it computes, the rest for a whole step.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        # it warns of in-place writes to a module's output, which do not occur here
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
        for module in model.modules():
            if isinstance(module, blocks):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if p.ndim == 0})
        for module in model.modules():
            if isinstance(module, FSDPModule):  # the sum over processes, not the average
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"train.shard: torch {torch.__version__} does not support it ({error}); install 2.13, or set it to false"
        ) from error


def sharded(tensor: Tensor) -> bool:
    """True if a process holds only its shard of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; all processes must call this together."""
    return tensor.full_tensor() if sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A copy of the whole `tensor` on the device of `pattern`, sharded if `pattern` is."""
    if not sharded(pattern):
        return tensor.to(pattern.device, copy=True)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)


CLOSE = 1e-5  # above the epsilon that torch adds to a norm before dividing


def clip(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale gradients to a norm of at most `limit`, over all shards; returns the norm before."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [kind for b in (False, True) if (kind := [p for p in found if sharded(p) == b])]
    norms = [whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    size = float(norm)
    if not size <= limit - CLOSE:  # else the factor would be 1
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return size
