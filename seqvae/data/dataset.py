"""Token shards on disk, memory-mapped: written once, read by window, split by song.

Knows: chunks of token ids, which piece and style each belongs to, batches by length, where in an epoch we are, and how
shards come here from a storage elsewhere.
Refuses to know: files of music or text, vocabularies, tensors of the model.

Memory is bounded by one shard, however many there are: one is written, mapped and put in order at a time. A shard is
three arrays: its tokens, where its chunks end, and a record for each piece.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import ReadError, SeqVAEError
from seqvae.io import files

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Numbers = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Split = Literal["train", "valid", "test"]
Half = Literal["choose", "final"]

SHARD_TOKENS = 1 << 26  # 128 MiB of uint16 a shard
BLOCK = 4096  # pieces that are counted together, so that any piece of a split can be found among a billion
# Of a piece: the number of its group (what is never divided between splits: a song's title), the number of its first
# chunk within the shard, how many it has, and the number of its style.
PIECE = np.dtype([("group", "<u8"), ("first", "<u4"), ("chunks", "<u4"), ("style", "<u4")])


def _number(group: str) -> int:
    """A group's number, of 64 bits: from it follows the split."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


def split_of(group: str, held_out: float = 0.1) -> Split:
    """The split of a group by a hash of its name; valid and test share `held_out`.

    The same in every collection but the smallest, see `cuts`.
    """
    x = _number(group) / 2**64
    return "test" if x < held_out / 2 else "valid" if x < held_out else "train"


def half_of(group: str) -> Half | None:
    """The half of the held-out tenth, valid and test, that a group is in by a second hash; None in training.

    On one half settings are chosen, on the other final figures are measured.
    """
    if split_of(group) == "train":
        return None
    return "choose" if _number(f"half {group}") < 2**63 else "final"


CUTS = 0.05, 0.1
"""Groups whose hash is below the first are in the test split, and those between the two in the validation split."""


def in_split(groups: Numbers, split: Split, cuts: tuple[float, float] = CUTS) -> Bools:
    """Whether each of some groups, by their numbers, is in a split; as `split_of` says, where `cuts` are CUTS."""
    x = groups / 2.0**64
    low, high = cuts
    return {"test": x < low, "valid": (x >= low) & (x < high), "train": x >= high}[split]


def cuts(groups: Numbers) -> tuple[float, float]:
    """CUTS, moved as little as makes a training and a validation split of two groups and more.

    The group nearest to an empty split comes into it: into that for training the one of the highest hash, into that for
    validation the lowest of those for training if there are two, else the highest of those for the test.

    >>> cuts(np.array([1 << 62, 3 << 62], np.uint64))
    (0.05, 0.75)
    """
    low, high = CUTS
    x = np.unique(groups / 2.0**64)
    if len(x) < 2:
        return CUTS
    high = min(high, float(x[-1]))
    if not ((x >= low) & (x < high)).any():
        if (x >= high).sum() > 1:
            high = float(x[x >= high][1])
        else:
            low = float(x[-2])
    return low, high


class ShardWriter:
    """Appends pieces to shards in `folder`; nothing counts until `close` has written the index."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.about = folder, about
        self.pieces = 0
        self._styles: dict[str, int] = {}
        self._content = hashlib.sha256()
        self._shard = 0
        self._clear()

    def _clear(self) -> None:
        # bytes, as they will lie on disk: an object for each chunk would take many times as much
        self._tokens, self._pieces, self._ends = bytearray(), bytearray(), array("q")

    def add(self, chunks: list[Ints], style: str, group: str) -> None:
        """One piece: the token ids of its chunks, each ending in EOS."""
        written = len(self._tokens) // 2
        if written + sum(map(len, chunks)) > SHARD_TOKENS and written:
            self._flush()
        number = self._styles.setdefault(style, len(self._styles))
        self._pieces += np.array((_number(group), len(self._ends), len(chunks), number), PIECE).tobytes()
        for chunk in chunks:
            self._tokens += chunk.astype("<u2").tobytes()
            self._ends.append(len(self._tokens) // 2)
        self.pieces += 1

    def _flush(self) -> None:
        stem = self.folder / f"shard-{self._shard:05d}"
        for part in (self._tokens, self._ends, self._pieces):
            self._content.update(part)
        np.save(f"{stem}.tokens.npy", np.frombuffer(self._tokens, "<u2"))
        np.save(f"{stem}.ends.npy", np.array(self._ends, np.int64))
        np.save(f"{stem}.pieces.npy", np.frombuffer(self._pieces, PIECE))
        self._shard += 1
        self._clear()

    def close(self) -> None:
        """Write the last shard and the index, the index last and in one move."""
        self._flush()
        # by the digest of its content a copy elsewhere is told from shards made anew
        about = {"version": 2, **self.about, "shards": self._shard, "styles": list(self._styles)}
        index = {**about, "sha256": self._content.hexdigest()}
        files.sync(self.folder)  # an index counts for all of it, after a power cut too
        with files.whole(self.folder / "index.json", lasting=True) as part:
            part.write_text(json.dumps(index))


def fetched(url: str, cache: Path) -> Path:
    """A local copy, below `cache`, of a folder of token shards at any address that fsspec knows; made once.

    Its name follows from the address and from the index there, so that shards made anew are fetched anew. Raises
    ReadError.
    """
    url = url.rstrip("/")
    try:
        from fsspec.core import url_to_fs

        storage, root = url_to_fs(url)
        index = storage.cat_file(f"{root}/index.json")
        folder = cache / "shards" / hashlib.sha256(url.encode() + index).hexdigest()[:16]
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as part:
                for path in storage.find(root):
                    target = Path(part) / "data" / path.removeprefix(root).lstrip("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    storage.get_file(path, str(target))
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


@dataclass(frozen=True, eq=False)
class Shard:
    """One shard, memory-mapped."""

    begin: int
    """Number of its first piece in the collection."""
    tokens: NDArray[np.uint16]
    ends: Longs
    """Where each chunk ends in `tokens`."""
    pieces: NDArray[np.void]
    """A record of each piece: PIECE."""

    def check(self, styles: int) -> int:
        """How many pieces there are; raises ValueError where the three arrays do not belong together."""
        tokens, ends, pieces = self.tokens, self.ends, self.pieces
        if not (tokens.dtype == np.uint16 and ends.dtype == np.int64 and pieces.dtype == PIECE) or not (
            tokens.ndim == ends.ndim == pieces.ndim == 1
        ):
            raise ValueError("arrays of other numbers than token shards have")
        if len(ends) and not (ends[0] >= 0 and (ends[1:] >= ends[:-1]).all() and ends[-1] <= len(tokens)):
            raise ValueError("chunks that end where there are no tokens")
        last = pieces["first"].astype(np.int64) + pieces["chunks"]
        if len(pieces) and not (
            last.max() <= len(ends) and pieces["chunks"].min() > 0 and pieces["style"].max() < styles
        ):
            raise ValueError("pieces of chunks or styles that are not there, or of none")
        return len(pieces)

    def spans(self, pieces: Longs, firsts: Longs, chunks: int) -> tuple[Longs, Longs]:
        """Where each chunk of segments begins, and its length: `(B, C)` each, 0 past a piece's end."""
        at = firsts[:, None] + np.arange(chunks)
        local = pieces - self.begin
        ends = self.pieces["first"][local].astype(np.int64) + self.pieces["chunks"][local]
        inside = at < ends[:, None]
        place = np.where(inside, at, 0)
        begin = np.where(place > 0, self.ends[place - 1], 0)
        return begin * inside, (self.ends[place] - begin) * inside


class TokenData:
    """A collection of token shards, of which one is mapped at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._old: list[NDArray[np.void]] | None = None
        try:
            if (folder / "index.json").exists() and not (folder / "index.json").is_file():
                raise ValueError("index.json is no plain file")
            self.index = json.loads((folder / "index.json").read_text())
            if self.index["version"] not in (1, 2):
                raise ValueError(f"version {self.index['version']}, and this seqvae reads 1 and 2")
            if self.index["version"] == 1:
                self._read_old(self.index.pop("pieces"))
            self.styles: list[str] = self.index["styles"]
            # of each shard the number of its first piece, and of all pieces
            self.begins: Longs = np.zeros(1, np.int64)
            for number in range(self.index["shards"]):  # all are looked at: what is missing is to be told at once
                pieces = self._map(number).check(len(self.styles))
                self.begins = np.append(self.begins, self.begins[-1] + pieces)
            if not self.begins[-1]:
                raise ValueError("there is no piece in them")
            self._mapped = -1, self._map(0)
            self.cuts = self._cuts()
        except Exception as error:  # NumPy has many ways to say that a file is none of its own
            raise ReadError(
                folder, f"no token shards ({error})", "delete it, and run `seqvae train` with --data to make them"
            ) from error

    def _read_old(self, rows: list[dict[str, Any]]) -> None:
        """The records of an index of version 1, which had them in JSON."""
        names = {name: i for i, name in enumerate(dict.fromkeys(row["style"] for row in rows))}
        self.index["styles"] = list(names)
        pieces = np.array(
            [(_number(row["group"]), row["first"], row["chunks"], names[row["style"]]) for row in rows], PIECE
        )
        starts = np.searchsorted([row["shard"] for row in rows], np.arange(1, self.index["shards"]))
        self._old = np.split(pieces, starts)

    def _map(self, number: int) -> Shard:
        stem = self._folder / f"shard-{number:05d}"
        tokens, ends = (np.asarray(np.load(f"{stem}.{name}.npy", mmap_mode="r")) for name in ("tokens", "ends"))
        if self._old is not None:
            pieces = self._old[number]
        else:
            pieces = np.asarray(np.load(f"{stem}.pieces.npy", mmap_mode="r"))
        return Shard(int(self.begins[number]), tokens, ends, pieces)

    def _cuts(self) -> tuple[float, float]:
        """As `cuts` of all groups, of which no more is read than it takes to find that no split is empty."""
        groups: list[Numbers] = []
        for number in range(self.index["shards"]):
            groups.append(np.unique(self.shard(number).pieces["group"]))
            if all(any(in_split(some, split).any() for some in groups) for split in ("train", "valid")):
                return CUTS
        return cuts(np.concatenate(groups))

    def __len__(self) -> int:
        """Pieces."""
        return int(self.begins[-1])

    def in_split(self, groups: Numbers, split: Split) -> Bools:
        """Whether each of some groups of this collection is in a split."""
        return in_split(groups, split, self.cuts)

    def record(self, piece: int) -> np.void:
        """The record of one piece."""
        shard = self.shard(int(np.searchsorted(self.begins, piece, side="right")) - 1)
        record: np.void = shard.pieces[piece - shard.begin]
        return record

    def shard(self, number: int) -> Shard:
        """One shard; the last is kept, as pages of a file count as memory for as long as it is mapped."""
        if self._mapped[0] != number:
            self._mapped = number, self._map(number)
        return self._mapped[1]

    def _shards(self, pieces: Longs) -> Iterator[tuple[Shard, Longs]]:
        """The shards that hold some pieces, and the places of theirs in `pieces`."""
        shards = np.searchsorted(self.begins, pieces, side="right") - 1
        for number in np.unique(shards).tolist():
            yield self.shard(number), np.flatnonzero(shards == number)

    def counts(self, pieces: Longs) -> Longs:
        """Chunks of each piece."""
        counts: Longs = np.zeros(len(pieces), np.int64)
        for shard, places in self._shards(pieces):
            counts[places] = shard.pieces["chunks"][pieces[places] - shard.begin]
        return counts

    def windows(
        self, pieces: Longs, chunks: int, offsets: Longs | int = 0, max_tokens: int = sys.maxsize
    ) -> tuple[Longs, Longs, Longs]:
        """The segments of some pieces, each from its own offset on, without the empty and the too long.

        Gives the number of each one's piece, its first chunk (in the shard) and the tokens of its longest chunk; shard
        by shard, in the order of `pieces` within one.
        """
        offsets = np.broadcast_to(offsets, pieces.shape)
        found = [np.zeros((3, 0), np.int64)]
        for shard, places in self._shards(pieces):
            records, offset = shard.pieces[pieces[places] - shard.begin], offsets[places]
            each = np.maximum(0, -(-(records["chunks"].astype(np.int64) - offset) // chunks))
            owner = np.repeat(np.arange(len(places)), each)
            start = offset[owner] + chunks * (np.arange(len(owner)) - np.repeat(each.cumsum() - each, each))
            piece, first = pieces[places][owner], records["first"][owner] + start
            size = shard.spans(piece, first, chunks)[1].max(1, initial=1)
            found.append(np.stack([piece, first, size])[:, (size > 1) & (size <= max_tokens)])
        piece, first, size = np.concatenate(found, 1)
        return piece, first, size

    def gather(self, pieces: Longs, firsts: Longs, chunks: int) -> Ints:
        """Tokens `(B, C, T)` of segments, PAD at the end of chunks; past the end of a piece a chunk is just EOS."""
        parts = [(shard, at, *shard.spans(pieces[at], firsts[at], chunks)) for shard, at in self._shards(pieces)]
        steps = np.arange(max(1, *(int(lengths.max()) for *_, lengths in parts)))
        out = np.zeros((len(pieces), chunks, len(steps)), np.int32)
        for shard, at, starts, lengths in parts:
            valid = steps < lengths[..., None]
            tokens = shard.tokens[(starts[..., None] + steps) * valid] * valid
            tokens[..., 0][lengths == 0] = 2  # EOS
            out[at] = tokens
        return out


class Batches:
    """Batches of segments of similar length, in an order that follows from (seed, epoch) alone: it can be resumed.

    An epoch goes through the shards in a random order and draws its batches from one after another.
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
        # blocks of pieces: where each begins, and how many pieces of the split there are up to its end
        begins = [np.arange(begin, end, BLOCK) for begin, end in pairwise(data.begins.tolist())]
        self._begins: Longs = np.concatenate([np.zeros(0, np.int64), *begins])
        self._until: Longs = np.cumsum([len(self._within(begin, BLOCK)) for begin in self._begins.tolist()])

    def __len__(self) -> int:
        """Pieces of the split."""
        return int(self._until[-1]) if len(self._until) else 0

    def _within(self, begin: int, count: int) -> Longs:
        """The pieces of the split among `count` from `begin` on, at most to the end of their shard."""
        number = int(np.searchsorted(self.data.begins, begin, side="right")) - 1
        shard = self.data.shard(number)
        groups = shard.pieces["group"][begin - shard.begin : begin - shard.begin + count]
        return begin + np.flatnonzero(self.data.in_split(groups, self.split))

    def numbered(self, ranks: Longs) -> Longs:
        """The pieces that have some numbers within the split."""
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
        """Always the same batches of about so many pieces, drawn evenly from all shards; of one shard, all there are.

        Shards are as their files were: one alone may hold a single style.
        """
        if self.data.index["shards"] == 1 or len(self) <= pieces:
            return self.epoch(0)
        ranks = np.linspace(0, len(self) - 1, pieces).astype(np.int64)
        return iter(self._batches(self.numbered(ranks), np.random.default_rng([self.seed, 0])))

    def _batches(self, pieces: Longs, rng: np.random.Generator) -> list[tuple[Longs, Longs]]:
        """The batches of some pieces, shuffled."""
        if not len(pieces):
            return []
        offsets = rng.integers(np.minimum(self.chunks, self.data.counts(pieces)))
        rows, firsts, size = self.data.windows(pieces, self.chunks, offsets, self.max_tokens)
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
        pieces = self.numbered(rng.integers(len(self), size=count))
        firsts = []
        for i in range(count):
            found = self.data.windows(pieces[i : i + 1], self.chunks, 0, self.max_tokens)[1]
            firsts.append(rng.choice(found) if len(found) else self.data.record(int(pieces[i]))["first"])
        return self.data.gather(pieces, np.array(firsts), self.chunks)

    def __iter__(self) -> Iterator[tuple[int, int, Ints]]:
        return self.resume(0, 0)

    def resume(self, epoch: int, position: int) -> Iterator[tuple[int, int, Ints]]:
        """Endless (epoch, position of the next batch, tokens `(B, C, T)`), from a place in an epoch on.

        Raises SeqVAEError where one epoch after another has no segment.
        """
        empty = 0
        while True:
            i = 0
            for i, batch in enumerate(self.epoch(epoch), 1):
                if i > position:
                    yield epoch, i, self.data.gather(*batch, self.chunks)
            empty = 0 if i else empty + 1
            if empty == 20:  # a few epochs of a tiny collection may be empty by the chance of their offsets
                raise SeqVAEError(
                    f"no segment with content and at most {self.max_tokens} tokens a chunk; add more pieces"
                )
            epoch, position = epoch + 1, 0
