"""Several processes that work as one: who is first, which rows are whose, sums over all, weights in shards.

Knows torch.distributed, the variables that torchrun sets, and how a batch and its noise are divided so that many
processes compute what one would. Refuses to know: models, losses, files.

This is torch.distributed itself. accelerate (1.15) adds nothing that is needed, and does not fit: on processors it
passes over FSDP without a word, and it leaves only whole modules out of FSDP, where the one number that FSDP cannot
shard (`Binding.scale`) lives with the embeddings. Its averages, and those of DistributedDataParallel, are over
processes; the parts of a batch have different numbers of tokens, and what is wanted is a sum.
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
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from seqvae.errors import ConfigError, SeqVAEError

T = TypeVar("T")
R = TypeVar("R")
LARGE = 1 << 16  # numbers: to copy so many costs more than an exchange of their own
# While the first process reads a collection; of a step, the usual half an hour says that a process hangs.
PATIENCE = timedelta(days=1)


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """The processes that work together, and which of them this is."""

    rank: int = 0
    """Number 0 alone writes files and reports."""
    count: int = 1
    turn: int = 0
    """0 for the first of all, 1 for the first of another machine, 2 for the rest."""
    patient: dist.ProcessGroup | None = None
    """All of them again, for what may take hours."""

    def by_turns(self, work: Callable[[], T]) -> T:
        """`work` of the first process, then of the first of every other machine, then of the rest.

        So what one makes or fetches, the next finds. Where the work of one fails, SeqVAEError is raised in all.
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
            with _told():
                heard: list[str | None] = [None] * self.count
                dist.all_gather_object(heard, None if failure is None else str(failure), group=self.patient)
            if failure is not None:
                raise failure
            if said := [line for line in heard if line is not None]:
                raise SeqVAEError(said[0])
        return result

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, in all of them; where it fails, SeqVAEError is raised in all."""
        if self.count == 1:
            return make()
        box = self.by_turns(lambda: [make()] if self.rank == 0 else [None])
        with _told():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put in place of every tensor its sum over all processes; all are of one type.

        Large ones are exchanged where they lie, the others together in one copy.
        """
        if self.count == 1:
            return
        large = [tensor for tensor in tensors if tensor.numel() >= LARGE and tensor.is_contiguous()]
        rest = [tensor for tensor in tensors if not (tensor.numel() >= LARGE and tensor.is_contiguous())]
        flat = torch.cat([tensor.flatten() for tensor in rest]) if rest else torch.zeros(0)
        with _told():
            # what is empty here is so in all processes
            under_way = [dist.all_reduce(tensor, async_op=True) for tensor in [*large, flat] if tensor.numel()]
            for exchange in under_way:
                exchange.wait()
        for tensor, total in zip(rest, torch.split(flat, [tensor.numel() for tensor in rest]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Put in place of every tensor that of the first process."""
        for tensor in tensors if self.count > 1 else ():
            with _told():
                dist.broadcast(tensor.detach(), src=0)

    def in_rounds(self, items: Iterable[T], work: Callable[[T], Iterable[R]]) -> Iterator[R]:
        """All that `work` makes of the items, in their order: in the first process, and nothing in the others.

        Every process goes through the same items and works on every `count`-th. What it makes goes to the first after
        each round of `count` items, so that no more is held. Where the work of one fails, SeqVAEError is raised in all.
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
            with _told():
                dist.all_gather_object(heard, None if failure is None else str(failure), group=self.patient)
            if failure is not None:
                raise failure
            if said := [line for line in heard if line is not None]:
                raise SeqVAEError(said[0])
            with _told():
                dist.gather_object(made, shares, group=self.patient)
            for share in shares or []:
                yield from share

    def mine(self, items: Iterable[T]) -> Iterator[T]:
        """This process's share of what all of them go through: every `count`-th item."""
        return islice(items, self.rank, None, self.count)

    def in_order(self, results: Sequence[T]) -> list[T]:
        """What all made of their shares, in the first process and in the order of the items; nothing in the others."""
        if self.count == 1:
            return list(results)
        shares: list[list[T]] | None = [[]] * self.count if self.rank == 0 else None
        with _told():
            dist.gather_object(list(results), shares, group=self.patient)
        return _merged(shares or [])

    def divided(self, items: Iterable[T], work: Callable[[T], R]) -> list[R]:
        """What `work` makes of each item, in their order and in every process, each of which works on its share."""
        made = [work(item) for item in self.mine(items)]
        if self.count == 1:
            return made
        shares: list[list[R]] = [[]] * self.count
        with _told():
            dist.all_gather_object(shares, made, group=self.patient)
        return _merged(shares)

    def leave(self) -> None:
        """Wait for all, and part: the last thing to do, and only where nothing went wrong."""
        if self.count > 1:
            with _told():
                dist.barrier(group=self.patient)
            dist.destroy_process_group()


def _merged(shares: Sequence[Sequence[T]]) -> list[T]:
    """The results of all items in their order, of which process r made those of item r and of every `count`-th then."""
    none = object()
    rounds = zip_longest(*shares, fillvalue=none)
    return [result for one in rounds for result in one if result is not none]  # type: ignore[misc]


@functools.cache
def join() -> Ranks:
    """This process's place among those that torchrun started; where it started one alone, or none, there is no group.

    Each process takes the GPU of its place on the machine. Raises SeqVAEError where there are too few, and where the
    others cannot be found.
    """
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if count == 1:
        return Ranks()
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise SeqVAEError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs; start one a GPU"
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
def _told() -> Iterator[None]:
    """Say in plain words that another process has gone; gloo and nccl raise nothing more special."""
    try:
        yield
    except RuntimeError as error:
        raise SeqVAEError(
            f"another process has ended or does not answer ({str(error)[:200]}); its own message says why"
        ) from error


# --- parts of a batch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Rows of a batch that are computed together: in one process, and at one time."""

    begin: int
    count: int
    of: int
    """Rows of the whole batch."""
    share: float
    """Of the batch's tokens."""

    @property
    def rows(self) -> slice:
        """What is computed: where there are no rows the first stands in, for all processes go through every step."""
        return slice(self.begin, self.begin + self.count) if self.count else slice(0, 1)

    def noise(self) -> contextlib.AbstractContextManager[object]:
        """Within it, whatever is random about these rows is what it would be if the whole batch were computed."""
        return contextlib.nullcontext() if self.count == self.of else _Noise(self)


def divide(sizes: NDArray[np.int64], count: int) -> list[Part]:
    """Rows of so many tokens in `count` runs of about as many tokens each.

    Each begins at an even row, so that noise that goes by pairs of rows keeps its pairs. A run may be empty.
    """
    ends = np.concatenate([[0], np.cumsum(sizes)])
    middle = np.interp(ends[-1] * np.arange(1, count) / count, ends, np.arange(len(ends)))
    cuts = [0, *np.minimum(2 * np.round(middle / 2).astype(int), len(sizes)).tolist(), len(sizes)]
    return [
        Part(begin, end - begin, len(sizes), float((ends[end] - ends[begin]) / ends[-1]))
        for begin, end in pairwise(cuts)
    ]


class _Noise(TorchFunctionMode):
    """Draws for every row of the whole batch, and hands out those of a part.

    So every process draws the same numbers, whichever rows it computes, and is left with the same state of its
    generator: that of one process, which a run may be taken up with in any number of them. What is drawn is small
    beside what is computed, but for the dropout of transformer layers.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part, self.rows = part, part.rows

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            sizes = tuple(args[0]) if isinstance(args[0], Sequence) else args
            return self._mine(sizes[0], lambda rows: func(rows, *sizes[1:], **kwargs))
        if func is functional.dropout and kwargs["training"]:
            x, share = args[0], kwargs["p"]
            return x * self._mine(len(x), lambda rows: functional.dropout(x.new_ones(rows, *x.shape[1:]), share))
        return func(*args, **kwargs)

    def _mine(self, rows: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Of what is drawn for the whole batch, that of a part; a row of the batch may be several in a row here."""
        each, rest = divmod(rows, self.rows.stop - self.rows.start)
        assert rest == 0, "noise that does not go by rows of the batch cannot be divided"
        return draw(each * self.part.of)[each * self.rows.start : each * self.rows.stop]


# --- weights in shards ------------------------------------------------------------------------------------------------


def shard(model: nn.Module, blocks: type[nn.Module]) -> None:
    """Give every process its shard of the weights, and so of gradients and of what an optimizer keeps (FSDP).

    The weights of each of `blocks` are put together only while it works, the rest for the length of a step.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        # it warns of writing into what a module returns, which nothing here does
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
        for module in model.modules():
            if isinstance(module, blocks):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if p.ndim == 0})
        for module in model.modules():
            if isinstance(module, FSDPModule):  # the sum over processes, and not the average
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"train.shard: torch {torch.__version__} cannot ({error}); install 2.13, or set false"
        ) from error


def sharded(tensor: Tensor) -> bool:
    """Whether a process holds but its shard of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece; all processes must ask for it together."""
    return tensor.full_tensor() if sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A copy of a `tensor` in one piece where `pattern` is, and in shards where that is."""
    if not sharded(pattern):
        return tensor.to(pattern.device, copy=True)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)


CLOSE = 1e-5  # what torch adds to a norm before it divides by it, and more


def clip(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale gradients down to a norm of `limit` at most, over all shards; returns the norm they had."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [kind for b in (False, True) if (kind := [p for p in found if sharded(p) == b])]
    norms = [whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    size = float(norm)
    if not size <= limit - CLOSE:  # else all would be multiplied by 1
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return size
