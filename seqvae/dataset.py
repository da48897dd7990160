"""Token shards on disk, memory-mapped: written once, read by window, split by song.

Knows: chunks of token ids, which piece and style each belongs to, batches by length, and where in an epoch we are.
Refuses to know: files of music or text, vocabularies, tensors of the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import ReadError, SeqVAEError

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Split = Literal["train", "valid", "test"]

SHARD_TOKENS = 1 << 26  # 128 MiB of uint16 a shard


@dataclass(frozen=True)
class Row:
    """One piece of the collection."""

    name: str
    style: str
    group: str
    """What is never divided between splits: the song's title."""
    shard: int
    first: int
    """Number of its first chunk within the shard."""
    chunks: int


def split_of(group: str, held_out: float = 0.1) -> Split:
    """The split of a group by a hash of its name, the same in every collection; valid and test share `held_out`."""
    x = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    return "test" if x < held_out / 2 else "valid" if x < held_out else "train"


class ShardWriter:
    """Appends pieces to shards in `folder`; nothing counts until `close` has written the index."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.about = folder, about
        self.rows: list[Row] = []
        self._shard = 0
        self._chunks: list[Ints] = []
        self._tokens = 0

    def add(self, chunks: list[Ints], name: str, style: str, group: str) -> None:
        """One piece: the token ids of its chunks, each ending in EOS."""
        if self._tokens + sum(map(len, chunks)) > SHARD_TOKENS and self._chunks:
            self._flush()
        self.rows.append(Row(name, style, group, self._shard, len(self._chunks), len(chunks)))
        self._chunks += chunks
        self._tokens += sum(map(len, chunks))

    def _flush(self) -> None:
        stem = self.folder / f"shard-{self._shard:05d}"
        flat = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int32)
        np.save(f"{stem}.tokens.npy", flat.astype(np.uint16))
        np.save(f"{stem}.ends.npy", np.cumsum([len(c) for c in self._chunks], dtype=np.int64))
        self._shard, self._chunks, self._tokens = self._shard + 1, [], 0

    def close(self) -> None:
        """Write the last shard and the index, the index last and in one move."""
        self._flush()
        index = {"version": 1, **self.about, "shards": self._shard, "pieces": [asdict(row) for row in self.rows]}
        part = self.folder / "index.json.part"
        part.write_text(json.dumps(index))
        part.replace(self.folder / "index.json")


class TokenData:
    """A collection of token shards, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        try:
            self.index = json.loads((folder / "index.json").read_text())
            self.rows = [Row(**row) for row in self.index["pieces"]]
            names = [folder / f"shard-{i:05d}" for i in range(self.index["shards"])]
            self.tokens = [np.load(f"{stem}.tokens.npy", mmap_mode="r") for stem in names]
            self.ends = [np.concatenate([[0], np.load(f"{stem}.ends.npy")]).astype(np.int64) for stem in names]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReadError(
                folder, f"no token shards ({error})", "delete it, and run `seqvae train` with --data to make them"
            ) from error

    def chunk_lengths(self, row: Row) -> Longs:
        """Tokens in each chunk of a piece, `(chunks,)`."""
        lengths: Longs = np.diff(self.ends[row.shard][row.first : row.first + row.chunks + 1])
        return lengths

    def windows(self, row: Row, chunks: int, offset: int, max_tokens: int) -> Longs:
        """First chunks (in the shard) of a piece's segments from `offset` on, without the empty and the too long."""
        lengths = self.chunk_lengths(row)
        starts = np.arange(offset, row.chunks, chunks)
        padded = np.append(lengths, np.ones(chunks, np.int64))
        size = np.stack([padded[starts + c] for c in range(chunks)], 1)
        good = (size.max(1) > 1) & (size.max(1) <= max_tokens)
        first: Longs = row.first + starts[good]
        return first

    def gather(self, row_ids: Longs, firsts: Longs, chunks: int) -> Ints:
        """Tokens `(B, C, T)` of segments, PAD at the end of chunks; past the end of a piece a chunk is just EOS."""
        starts = np.zeros((len(firsts), chunks), np.int64)
        lengths = np.zeros((len(firsts), chunks), np.int64)
        for i, (row_id, first) in enumerate(zip(row_ids, firsts, strict=True)):
            row = self.rows[row_id]
            ends = self.ends[row.shard]
            for c in range(min(chunks, row.first + row.chunks - first)):
                starts[i, c], lengths[i, c] = ends[first + c], ends[first + c + 1] - ends[first + c]
        steps = np.arange(max(1, int(lengths.max())))
        valid = steps < lengths[..., None]
        out = np.zeros(valid.shape, np.int32)
        shards = np.array([self.rows[r].shard for r in row_ids])
        for shard in np.unique(shards):
            rows = shards == shard
            places = (starts[rows][..., None] + steps) * valid[rows]
            out[rows] = self.tokens[shard][places] * valid[rows]
        out[..., 0][lengths == 0] = 2  # EOS
        return out


class Batches:
    """Batches of segments of similar length, in an order that follows from (seed, epoch) alone: it can be resumed."""

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
        self.data, self.chunks, self.batch_tokens = data, chunks, batch_tokens
        self.max_windows, self.seed, self.max_tokens = max_windows, seed, max_tokens
        self.row_ids = [i for i, row in enumerate(data.rows) if split_of(row.group) == split]

    def epoch(self, epoch: int) -> list[tuple[Longs, Longs]]:
        """The batches of one epoch: (rows of the index, first chunks), shuffled."""
        rng = np.random.default_rng([self.seed, epoch])
        if not self.row_ids:
            return []
        rows, firsts, sizes = [], [], []
        for i in self.row_ids:
            row = self.data.rows[i]
            first = self.data.windows(
                row, self.chunks, int(rng.integers(min(self.chunks, row.chunks))), self.max_tokens
            )
            if len(first) > self.max_windows:
                first = rng.choice(first, self.max_windows, replace=False)
            padded = np.append(self.data.chunk_lengths(row), np.ones(self.chunks, np.int64))
            at = first - row.first
            sizes.append(np.stack([padded[at + c] for c in range(self.chunks)], 1).max(1))
            firsts.append(first)
            rows.append(np.full(len(first), i))
        row_ids, first_ids, size = (np.concatenate(x) for x in (rows, firsts, sizes))
        order = np.argsort(size + rng.uniform(0, 4, len(size)), kind="stable")
        batches, begin = [], 0
        while begin < len(order):
            end = begin + 1
            while (
                end < len(order)
                and (end + 1 - begin) * self.chunks * size[order[begin : end + 1]].max() <= self.batch_tokens
            ):
                end += 1
            batches.append((row_ids[order[begin:end]], first_ids[order[begin:end]]))
            begin = end
        return [batches[i] for i in rng.permutation(len(batches))]

    def strangers(self, count: int, rng: np.random.Generator) -> Ints:
        """Segments `(count, C, T)` of pieces drawn at random, each piece as likely as every other."""
        rows = rng.choice(self.row_ids, count)
        firsts = []
        for i in rows:
            row = self.data.rows[i]
            found = self.data.windows(row, self.chunks, 0, self.max_tokens)
            firsts.append(rng.choice(found) if len(found) else row.first)
        return self.data.gather(rows, np.array(firsts), self.chunks)

    def __iter__(self) -> Iterator[tuple[int, int, Ints]]:
        return self.resume(0, 0)

    def resume(self, epoch: int, position: int) -> Iterator[tuple[int, int, Ints]]:
        """Endless (epoch, position of the next batch, tokens `(B, C, T)`), from a place in an epoch on.

        Raises SeqVAEError where one epoch after another has no segment.
        """
        empty = 0
        while True:
            batches = self.epoch(epoch)
            empty = 0 if batches else empty + 1
            if empty == 20:  # a few epochs of a tiny collection may be empty by the chance of their offsets
                raise SeqVAEError(
                    f"no segment with content and at most {self.max_tokens} tokens a chunk; add more pieces"
                )
            for i in range(position, len(batches)):
                yield epoch, i + 1, self.data.gather(*batches[i], self.chunks)
            epoch, position = epoch + 1, 0
