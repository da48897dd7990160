"""Batches of training: segments of similar length, in an order that a resumed run goes on with.

Scope: the pieces and segments of each batch, and the position in an epoch. Out of scope: token shards
(data/dataset.py), and the model's tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from seqvae.data.dataset import Ints, Longs, Split, TokenData
from seqvae.errors import SeqVAEError

BLOCK = 4096  # pieces counted together, so that a piece of a split can be found among a billion


class Batches:
    """Batches of segments of similar length, in an order determined by (seed, epoch), so that training can resume.

    An epoch visits the shards in random order and draws its batches from one after the other.
    """

    def __init__(
        self,
        data: TokenData,
        split: Split,
        chunks: int,
        batch_tokens: int,
        max_windows: int,
        seed: int,
        max_tokens: int = 400,
    ) -> None:
        self.data, self.split, self.chunks, self.batch_tokens = data, split, chunks, batch_tokens
        self.max_windows, self.seed, self.max_tokens = max_windows, seed, max_tokens
        # blocks of pieces: first piece, and number of the split's pieces up to the end of the block
        begins = [np.arange(begin, end, BLOCK) for begin, end in pairwise(data.begins.tolist())]
        self._begins: Longs = np.concatenate([np.zeros(0, np.int64), *begins])
        self._until: Longs = np.cumsum([len(self._within(begin, BLOCK)) for begin in self._begins.tolist()])

    def __len__(self) -> int:
        """Number of pieces in the split."""
        return int(self._until[-1]) if len(self._until) else 0

    def _within(self, begin: int, count: int) -> Longs:
        """The split's pieces among the `count` from `begin` on, at most to the end of their shard."""
        number = int(np.searchsorted(self.data.begins, begin, side="right")) - 1
        shard = self.data.shard(number)
        groups = shard.pieces["group"][begin - shard.begin : begin - shard.begin + count]
        return begin + np.flatnonzero(self.data.in_split(groups, self.split))

    def numbered(self, ranks: Longs) -> Longs:
        """The pieces with the given ranks within the split."""
        blocks = np.searchsorted(self._until, ranks, side="right").tolist()
        found = [
            self._within(int(self._begins[block]), BLOCK)[rank - (self._until[block - 1] if block else 0)]
            for block, rank in zip(blocks, ranks.tolist(), strict=True)
        ]
        return np.array(found, np.int64)

    def epoch(self, epoch: int) -> Iterator[tuple[Longs, Longs]]:
        """The batches of one epoch: (pieces, first chunks), shuffled."""
        rng = np.random.default_rng([self.seed, epoch])
        for number in rng.permutation(self.data.index["shards"]).tolist():
            begin, end = self.data.begins[number : number + 2].tolist()
            yield from self._batches(self._within(begin, end - begin), rng)

    def some(self, pieces: int) -> Iterator[tuple[Longs, Longs]]:
        """The same batches at each call, of about `pieces` pieces spread evenly over all shards; all of a single shard.

        Shards are in the order of the files, so one shard may hold a single style.
        """
        if self.data.index["shards"] == 1 or len(self) <= pieces:
            return self.epoch(0)
        ranks = np.linspace(0, len(self) - 1, pieces).astype(np.int64)
        return iter(self._batches(self.numbered(ranks), np.random.default_rng([self.seed, 0])))

    def _batches(self, pieces: Longs, rng: np.random.Generator) -> list[tuple[Longs, Longs]]:
        """Shuffled batches of some pieces."""
        if not len(pieces):
            return []
        offsets = rng.integers(np.minimum(self.chunks, self.data.counts(pieces)))
        rows, firsts, size = self.data.windows(pieces, self.chunks, offsets, self.max_tokens)
        # a random subset of the segments of a long piece: rank them in random order
        order = np.lexsort((rng.random(len(rows)), rows))
        sorted_rows = rows[order]
        rank = np.arange(len(order)) - np.searchsorted(sorted_rows, sorted_rows)
        kept = order[rank < self.max_windows]
        rows, firsts, size = rows[kept], firsts[kept], size[kept]
        order = np.argsort(size + rng.uniform(0, 4, len(size)), kind="stable")
        batches, begin, longest = [], 0, 0
        for end, tokens in enumerate(size[order].tolist()):
            if end > begin and (end + 1 - begin) * self.chunks * max(longest, tokens) > self.batch_tokens:
                batches.append((rows[order[begin:end]], firsts[order[begin:end]]))
                begin, longest = end, 0
            longest = max(longest, tokens)
        if begin < len(order):
            batches.append((rows[order[begin:]], firsts[order[begin:]]))
        return [batches[i] for i in rng.permutation(len(batches))]

    def random_segments(self, count: int, rng: np.random.Generator) -> Ints:
        """Segments `(count, C, T)` of random pieces, with equal probability for each piece."""
        pieces = self.numbered(rng.integers(len(self), size=count))
        firsts = []
        for i in range(count):
            found = self.data.windows(pieces[i : i + 1], self.chunks, 0, self.max_tokens)[1]
            firsts.append(rng.choice(found) if len(found) else self.data.record(int(pieces[i]))["first"])
        return self.data.gather(pieces, np.array(firsts), self.chunks)

    def __iter__(self) -> Iterator[tuple[int, int, Ints]]:
        return self.resume(0, 0)

    def resume(self, epoch: int, position: int) -> Iterator[tuple[int, int, Ints]]:
        """Endless (epoch, position of the next batch, tokens `(B, C, T)`), from a position in an epoch on.

        Raises SeqVAEError if epoch after epoch has no segment.
        """
        empty = 0
        while True:
            i = 0
            for i, batch in enumerate(self.epoch(epoch), 1):
                if i > position:
                    yield epoch, i, self.data.gather(*batch, self.chunks)
            empty = 0 if i else empty + 1
            if empty == 20:  # with random offsets a few epochs of a tiny collection may be empty
                raise SeqVAEError(
                    f"no segment with content and at most {self.max_tokens} tokens a chunk; add more pieces"
                )
            epoch, position = epoch + 1, 0
