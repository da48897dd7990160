"""Inference for the jobs of one model: posteriors are cached, progress is reported, decoding shares batches.

Scope: a wrapper of `BatchInference` for each job, and the state that the jobs of a model share. Out of scope: models,
routes, jobs. For each model one job at a time encodes and one decodes, as more would slow each other and need more
memory.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from cachetools import LRUCache
from torch import Tensor

from seqvae.nn.batches import joined
from seqvae.nn.inference import BatchInference, Ints
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.nn.segments import Segment, context
from seqvae.protocols import Given, Guide
from seqvae.style.moves import ChromaGuide

Report = Callable[[float, str], None]
"""(progress of a step from 0 to 1, the step's name); raises an error to stop the work."""
REMEMBERED = 64 << 20  # bytes of posteriors kept for each model
SEGMENTS = 8  # segments encoded between two reports of progress
CHUNKS = 32  # chunks decoded between two reports of progress


@dataclass(eq=False)
class Order:
    """Arguments of a call of `Inference.generate_tokens` by a job."""

    z: Tensor
    given: Given | None
    sampling: Sampling
    guides: Sequence[ChromaGuide]
    chunks: list[Ints] | None = None
    """The decoded chunks."""

    def joins(self, other: Order) -> bool:
        """Whether one batch of both gives the same result; random draws depend on the row number."""
        return (
            self.sampling.temperature == 0
            and replace(self.sampling, first_row=0) == replace(other.sampling, first_row=0)
            and [guide.strength for guide in self.guides] == [guide.strength for guide in other.guides]
        )


def _bytes(posterior: tuple[Tensor, Tensor]) -> int:
    return sum(part.nbytes for part in posterior)


@dataclass(eq=False)
class Shared:
    """The state that the jobs of one model share."""

    known: LRUCache[bytes, tuple[Tensor, Tensor]] = field(default_factory=lambda: LRUCache(REMEMBERED, _bytes))
    """Mean and log-variance `(D,)` of segments, by a digest of their tokens."""
    looking: threading.Lock = field(default_factory=threading.Lock)
    """Held while `known` is used."""
    orders: list[Order] = field(default_factory=list)
    """Orders that wait to be decoded."""
    encoding: threading.Lock = field(default_factory=threading.Lock)
    decoding: threading.Lock = field(default_factory=threading.Lock)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, tuple[Tensor, Tensor]]:
        """Those of some posteriors that are cached, now the most recently used."""
        with self.looking:
            return {key: self.known[key] for key in keys if key in self.known}

    def keep(self, posteriors: dict[bytes, tuple[Tensor, Tensor]]) -> None:
        """Cache posteriors."""
        with self.looking:
            self.known.update(posteriors)


@dataclass(frozen=True, eq=False)
class JobInference:
    """The inference of one job: as that of the model, with reports of progress, which may stop the work."""

    inner: BatchInference
    shared: Shared
    report: Report

    def posteriors(self, segments: Sequence[Segment], refined: bool = False) -> Posterior:
        """As `Inference.posteriors`, with cached posteriors reused."""
        keys = [_digest(segment, refined) for segment in segments]
        found = self.shared.find(keys)
        new = [(key, i) for key, i in {key: i for i, key in enumerate(keys)}.items() if key not in found]
        for at in range(0, len(new), SEGMENTS):
            with self.shared.encoding if refined else nullcontext():  # only refinement takes long
                self.report(at / len(new), "encoding")
                part = new[at : at + SEGMENTS]
                found |= self.shared.find([key for key, _ in part])  # another job may have encoded the same
                missing = [(key, i) for key, i in part if key not in found]
                if not missing:
                    continue
                made = self.inner.posteriors([segments[i] for _, i in missing], refined)
                # copies, as views would keep the whole batch
                rows = [(mean.clone(), logvar.clone()) for mean, logvar in zip(made.mean, made.logvar, strict=True)]
                fresh = dict(zip((key for key, _ in missing), rows, strict=True))
                self.shared.keep(fresh)
                found |= fresh
        if not keys:
            return self.inner.posteriors([], refined)
        mean, logvar = (torch.stack(part) for part in zip(*(found[key] for key in keys), strict=True))
        return Posterior(mean, logvar)

    def token_log_probs(self, z: Tensor, segments: Sequence[Segment]) -> Tensor:
        """As `Inference.token_log_probs`."""
        return self.inner.token_log_probs(z, segments)

    def generate_tokens(
        self, z: Tensor, given: Given | None, sampling: Sampling, guides: Sequence[Guide] = ()
    ) -> list[Ints]:
        """As `Inference.generate_tokens`, part by part, each in one batch with the orders of other jobs.

        Alone and at once with a guide other than of harmony.
        """
        harmonies = [guide for guide in guides if isinstance(guide, ChromaGuide)]
        if len(harmonies) < len(guides):
            self.report(0.0, "decoding")
            with self.shared.decoding:
                return self.inner.generate_tokens(z, given, sampling, guides)
        chunks: list[Ints] = []
        size = self.inner.chunks
        each = max(1, CHUNKS // size)
        for at in range(0, len(z), each):
            self.report(at / len(z), "decoding")
            rows = slice(at * size, (at + each) * size)
            order = Order(
                z[at : at + each],
                None if given is None else given[rows],
                replace(sampling, first_row=sampling.first_row + rows.start),
                [replace(guide, harmony=guide.harmony[rows]) for guide in harmonies],
            )
            chunks += self._decoded(order)
        return chunks

    def _decoded(self, mine: Order) -> list[Ints]:
        """Decoded chunks of an order, by this thread or by another in its batch."""
        orders = self.shared.orders
        orders.append(mine)
        with self.shared.decoding:
            if mine.chunks is None:
                orders.remove(mine)
                batch = [mine, *(order for order in orders if order.joins(mine))]
                z = torch.cat([order.z for order in batch])
                given = joined([order.given for order in batch])
                chunks = iter(self.inner.generate_tokens(z, given, mine.sampling, _joined_guides(batch)))
                for order in batch:
                    order.chunks = list(islice(chunks, len(order.z) * self.inner.chunks))
                for order in batch[1:]:
                    orders.remove(order)
        assert mine.chunks is not None
        return mine.chunks


def _joined_guides(batch: Sequence[Order]) -> list[ChromaGuide]:
    """The guides of the first order, for the rows of all orders."""
    harmonies = [joined([guide.harmony for guide in guides]) for guides in zip(*(x.guides for x in batch), strict=True)]
    return [replace(guide, harmony=x) for guide, x in zip(batch[0].guides, harmonies, strict=True) if x is not None]


def _digest(segment: Segment, refined: bool) -> bytes:
    """A key for the posterior of a segment."""
    digest = hashlib.sha256((b"refined" if refined else b"") + context(segment))
    for chunk in segment:
        digest.update(len(chunk).to_bytes(8, "big") + chunk.tobytes())
    return digest.digest()
