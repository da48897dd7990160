"""Token shards on disk, memory-mapped: written once, read by window, split by song.

Knows: chunks of token ids, which piece and style each belongs to, batches by length, where in an epoch we are, and how
shards come here from a storage elsewhere.
Refuses to know: files of music or text, vocabularies, tensors of the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
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


def fetched(url: str, cache: Path) -> Path:
    """A local copy, below `cache`, of a folder of token shards at any address that fsspec knows; made once.

    Its name follows from the address and from the index there, so that shards made anew are fetched anew. Raises
    ReadError.
    """
    url = url.rstrip("/")
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(url)
        index = files.cat_file(f"{root}/index.json")
        folder = cache / "shards" / hashlib.sha256(url.encode() + index).hexdigest()[:16]
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as part:
                for path in files.find(root):
                    target = Path(part) / "data" / path.removeprefix(root).lstrip("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    files.get_file(path, str(target))
                TokenData(Path(part) / "data")  # all of it is there, and not still on its way to the storage
                with contextlib.suppress(OSError):  # another process was quicker
                    (Path(part) / "data").rename(folder)
        return folder
    except ImportError as error:
        advice = "`pip install 'seqvae[remote]'`, and the package for this storage that it names"
        raise ReadError(url, f"a package is missing ({error})", advice) from error
    except Exception as error:  # every storage has errors of its own
        advice = "give the address of a copy of a run's folder `data`"
        raise ReadError(url, f"no token shards there ({error})", advice) from error


class TokenData:
    """A collection of token shards, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        try:
            self.index = json.loads((folder / "index.json").read_text())
            self.rows = [Row(**row) for row in self.index["pieces"]]
            names = [folder / f"shard-{i:05d}" for i in range(self.index["shards"])]
            self.tokens = [np.load(f"{stem}.tokens.npy", mmap_mode="r") for stem in names]
            ends = [np.concatenate([[0], np.load(f"{stem}.ends.npy")]).astype(np.int64) for stem in names]
            # of all chunks of all shards in a row: where each begins in its shard, and how long it is
            self._begin = np.concatenate([e[:-1] for e in ends])
            self._length = np.concatenate([np.diff(e) for e in ends])
            base = np.concatenate([[0], np.cumsum([len(e) - 1 for e in ends])])
            self._shard = np.array([row.shard for row in self.rows], np.int64)
            self._base = base[self._shard]
            self._first = np.array([row.first for row in self.rows], np.int64)
            self._count = np.array([row.chunks for row in self.rows], np.int64)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ReadError(
                folder, f"no token shards ({error})", "delete it, and run `seqvae train` with --data to make them"
            ) from error

    def counts(self, pieces: Longs) -> Longs:
        """Chunks of each piece."""
        counts: Longs = self._count[pieces]
        return counts

    def windows(
        self, pieces: Longs, chunks: int, offsets: Longs | int = 0, max_tokens: int = sys.maxsize
    ) -> tuple[Longs, Longs, Longs]:
        """The segments of some pieces, each from its own offset on, without the empty and the too long.

        Gives the number of each one's piece, its first chunk (in the shard) and the tokens of its longest chunk.
        """
        offset = np.broadcast_to(offsets, pieces.shape)
        each = np.maximum(0, -(-(self._count[pieces] - offset) // chunks))
        owner = np.repeat(np.arange(len(pieces)), each)
        start = offset[owner] + chunks * (np.arange(len(owner)) - np.repeat(each.cumsum() - each, each))
        piece = pieces[owner]
        size = self._spans(piece, self._first[piece] + start, chunks)[1].max(1, initial=1)
        good = (size > 1) & (size <= max_tokens)
        return piece[good], (self._first[piece] + start)[good], size[good]

    def _spans(self, pieces: Longs, firsts: Longs, chunks: int) -> tuple[Longs, Longs]:
        """Where each chunk of segments begins in its shard, and its length: `(B, C)` each, 0 past a piece's end."""
        at = firsts[:, None] + np.arange(chunks)
        inside = at < (self._first + self._count)[pieces][:, None]
        place = np.where(inside, self._base[pieces][:, None] + at, 0)
        return self._begin[place] * inside, self._length[place] * inside

    def gather(self, row_ids: Longs, firsts: Longs, chunks: int) -> Ints:
        """Tokens `(B, C, T)` of segments, PAD at the end of chunks; past the end of a piece a chunk is just EOS."""
        starts, lengths = self._spans(row_ids, firsts, chunks)
        steps = np.arange(max(1, int(lengths.max())))
        valid = steps < lengths[..., None]
        out = np.zeros(valid.shape, np.int32)
        shards = self._shard[row_ids]
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
        self.row_ids: Longs = np.array([i for i, row in enumerate(data.rows) if split_of(row.group) == split], np.int64)

    def epoch(self, epoch: int) -> list[tuple[Longs, Longs]]:
        """The batches of one epoch: (rows of the index, first chunks), shuffled."""
        rng = np.random.default_rng([self.seed, epoch])
        if not len(self.row_ids):
            return []
        offsets = rng.integers(np.minimum(self.chunks, self.data.counts(self.row_ids)))
        rows, firsts, size = self.data.windows(self.row_ids, self.chunks, offsets, self.max_tokens)
        # of a piece with more than its share, a random part: rank its segments in a random order
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

    def strangers(self, count: int, rng: np.random.Generator) -> Ints:
        """Segments `(count, C, T)` of pieces drawn at random, each piece as likely as every other."""
        rows = rng.choice(self.row_ids, count)
        firsts = []
        for i in rows:
            found = self.data.windows(np.array([i]), self.chunks, 0, self.max_tokens)[1]
            firsts.append(rng.choice(found) if len(found) else self.data.rows[i].first)
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
