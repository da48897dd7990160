"""Token shards on disk: written once, memory-mapped, read by segment, split by song.

Scope: chunks of token ids, the piece and style of each, and downloads of shards from remote storage. Out of scope:
batches (data/sampler.py), files of music or text, vocabularies, the model's tensors.

Memory is bounded by one shard, however many there are: shards are written, mapped and sorted one at a time. A shard is
three arrays: its tokens, the ends of its chunks, and a record for each piece.
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
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import ReadError
from seqvae.io import files

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Numbers = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Split = Literal["train", "valid", "test"]
Half = Literal["choose", "final"]

SHARD_TOKENS = 1 << 26  # tokens of a shard: 128 MiB of uint16
# The record of a piece: the number of its group (for songs, the title; groups are never divided between splits), the
# number of its first chunk within the shard, its number of chunks, and the number of its style.
PIECE = np.dtype([("group", "<u8"), ("first", "<u4"), ("chunks", "<u4"), ("style", "<u4")])


def _number(group: str) -> int:
    """A group's number of 64 bits, which determines its split."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


def split_of(group: str, held_out: float = 0.1) -> Split:
    """The split of a group by a hash of its name; valid and test share `held_out`.

    It is the same in every collection, except very small ones; see `cuts`.
    """
    x = _number(group) / 2**64
    return "test" if x < held_out / 2 else "valid" if x < held_out else "train"


def half_of(group: str) -> Half | None:
    """The half of the held-out groups (valid and test) by a second hash; None for training groups.

    Settings are chosen on one half, final results are measured on the other.
    """
    if split_of(group) == "train":
        return None
    return "choose" if _number(f"half {group}") < 2**63 else "final"


SONG_MODELS = "song/"
"""Before the title in the groups of song models, whose training data are split anew (benchmarks/song_data.py)."""
CUTS = 0.05, 0.1
"""Groups with a hash below the first value are in the test split, between the two in the validation split."""


def in_split(groups: Numbers, split: Split, cuts: tuple[float, float] = CUTS) -> Bools:
    """True for groups, given by number, that are in a split; as `split_of` if `cuts` are CUTS."""
    x = groups / 2.0**64
    low, high = cuts
    return {"test": x < low, "valid": (x >= low) & (x < high), "train": x >= high}[split]


def cuts(groups: Numbers) -> tuple[float, float]:
    """CUTS, changed as little as gives a training and a validation split for two or more groups.

    The group nearest to an empty split moves into it. The training split gets the group with the highest hash; the
    validation split gets the lowest of the training groups if there are two, else the highest of the test groups.

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
    """Appends pieces to shards in `folder`; the shards are valid only after `close` has written the index."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.about = folder, about
        self.pieces = 0
        self._styles: dict[str, int] = {}
        self._content = hashlib.sha256()
        self._shard = 0
        self._clear()

    def _clear(self) -> None:
        # bytes, as on disk: an object for each chunk would take many times the memory
        self._tokens, self._pieces, self._ends = bytearray(), bytearray(), array("q")

    def add(self, chunks: list[Ints], style: str, group: str) -> None:
        """Add a piece: the token ids of its chunks, each ending in EOS."""
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
        """Write the last shard and then the index, in one move."""
        self._flush()
        # the digest distinguishes a copy of these shards from newly made ones
        about = {"version": 2, **self.about, "shards": self._shard, "styles": list(self._styles)}
        index = {**about, "sha256": self._content.hexdigest()}
        files.sync(self.folder)  # the index vouches for all files, even after a power cut
        with files.whole(self.folder / "index.json", lasting=True) as part:
            part.write_text(json.dumps(index))


def fetched(url: str, cache: Path) -> Path:
    """A local copy, below `cache`, of a folder of token shards at any address that fsspec supports.

    The copy is named after the address and the index there, so newly made shards are downloaded again. Raises
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
                TokenData(Path(part) / "data")  # raises if the remote folder is incomplete
                with contextlib.suppress(OSError):  # another process was faster
                    (Path(part) / "data").rename(folder)
        return folder
    except ImportError as error:
        advice = "`pip install 'seqvae[remote]'`, and the package for this storage that it names"
        raise ReadError(url, f"a package is missing ({error})", advice) from error
    except Exception as error:  # every storage has its own errors
        advice = "give the address of a copy of a run's folder `data`"
        raise ReadError(url, f"no token shards there ({error})", advice) from error


@dataclass(frozen=True, eq=False)
class Shard:
    """One shard, memory-mapped."""

    begin: int
    """Index of its first piece in the collection."""
    tokens: NDArray[np.uint16]
    ends: Longs
    """End of each chunk in `tokens`."""
    pieces: NDArray[np.void]
    """Records of type PIECE."""

    def check(self, styles: int) -> int:
        """The number of pieces; raises ValueError if the three arrays do not fit together."""
        tokens, ends, pieces = self.tokens, self.ends, self.pieces
        if not (tokens.dtype == np.uint16 and ends.dtype == np.int64 and pieces.dtype == PIECE) or not (
            tokens.ndim == ends.ndim == pieces.ndim == 1
        ):
            raise ValueError("arrays of the wrong type or shape")
        if len(ends) and not (ends[0] >= 0 and (ends[1:] >= ends[:-1]).all() and ends[-1] <= len(tokens)):
            raise ValueError("chunks that end beyond the tokens")
        last = pieces["first"].astype(np.int64) + pieces["chunks"]
        if len(pieces) and not (
            last.max() <= len(ends) and pieces["chunks"].min() > 0 and pieces["style"].max() < styles
        ):
            raise ValueError("pieces with missing chunks or styles")
        return len(pieces)

    def spans(self, pieces: Longs, firsts: Longs, chunks: int) -> tuple[Longs, Longs]:
        """Start and length of each chunk of segments, `(B, C)` each; length 0 past the end of a piece."""
        at = firsts[:, None] + np.arange(chunks)
        local = pieces - self.begin
        ends = self.pieces["first"][local].astype(np.int64) + self.pieces["chunks"][local]
        inside = at < ends[:, None]
        place = np.where(inside, at, 0)
        begin = np.where(place > 0, self.ends[place - 1], 0)
        return begin * inside, (self.ends[place] - begin) * inside


class TokenData:
    """A collection of token shards; one shard is mapped at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._old: list[NDArray[np.void]] | None = None
        try:
            if (folder / "index.json").exists() and not (folder / "index.json").is_file():
                raise ValueError("index.json is not a regular file")
            self.index = json.loads((folder / "index.json").read_text())
            if self.index["version"] not in (1, 2):
                raise ValueError(f"version {self.index['version']}, and this seqvae reads 1 and 2")
            if self.index["version"] == 1:
                self._read_old(self.index.pop("pieces"))
            self.styles: list[str] = self.index["styles"]
            # index of each shard's first piece, and the number of all pieces
            self.begins: Longs = np.zeros(1, np.int64)
            for number in range(self.index["shards"]):  # checks all shards, to report missing files at once
                pieces = self._map(number).check(len(self.styles))
                self.begins = np.append(self.begins, self.begins[-1] + pieces)
            if not self.begins[-1]:
                raise ValueError("the shards are empty")
            self._mapped = -1, self._map(0)
            self.cuts = self._cuts()
        except Exception as error:  # NumPy raises many kinds of errors for invalid files
            raise ReadError(
                folder, f"no token shards ({error})", "delete it, and run `seqvae train` with --data to make them"
            ) from error

    def _read_old(self, rows: list[dict[str, Any]]) -> None:
        """Read the records of an index of version 1, which has them in JSON."""
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
        """`cuts` of all groups; reads no more shards than needed to see that no split is empty."""
        groups: list[Numbers] = []
        for number in range(self.index["shards"]):
            groups.append(np.unique(self.shard(number).pieces["group"]))
            if all(any(in_split(some, split).any() for some in groups) for split in ("train", "valid")):
                return CUTS
        return cuts(np.concatenate(groups))

    def __len__(self) -> int:
        """Number of pieces."""
        return int(self.begins[-1])

    def in_split(self, groups: Numbers, split: Split) -> Bools:
        """True for groups of this collection that are in a split."""
        return in_split(groups, split, self.cuts)

    def record(self, piece: int) -> np.void:
        """The record of one piece."""
        shard = self.shard(int(np.searchsorted(self.begins, piece, side="right")) - 1)
        record: np.void = shard.pieces[piece - shard.begin]
        return record

    def shard(self, number: int) -> Shard:
        """A shard; the last one stays mapped, since pages of a file count as memory while it is mapped."""
        if self._mapped[0] != number:
            self._mapped = number, self._map(number)
        return self._mapped[1]

    def _shards(self, pieces: Longs) -> Iterator[tuple[Shard, Longs]]:
        """The shards that hold some pieces, and the indices of these in `pieces`."""
        shards = np.searchsorted(self.begins, pieces, side="right") - 1
        for number in np.unique(shards).tolist():
            yield self.shard(number), np.flatnonzero(shards == number)

    def counts(self, pieces: Longs) -> Longs:
        """Number of chunks of each piece."""
        counts: Longs = np.zeros(len(pieces), np.int64)
        for shard, places in self._shards(pieces):
            counts[places] = shard.pieces["chunks"][pieces[places] - shard.begin]
        return counts

    def windows(
        self, pieces: Longs, chunks: int, offsets: Longs | int = 0, max_tokens: int = sys.maxsize
    ) -> tuple[Longs, Longs, Longs]:
        """The segments of some pieces, each from its own offset on, without empty and too long ones.

        Returns the piece of each segment, its first chunk (in the shard) and the length of its longest chunk; shard by
        shard, within a shard in the order of `pieces`.
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
        """Tokens `(B, C, T)` of segments, padded with PAD; chunks past the end of a piece are EOS alone."""
        parts = [(shard, at, *shard.spans(pieces[at], firsts[at], chunks)) for shard, at in self._shards(pieces)]
        steps = np.arange(max(1, *(int(lengths.max()) for *_, lengths in parts)))
        out = np.zeros((len(pieces), chunks, len(steps)), np.int32)
        for shard, at, starts, lengths in parts:
            valid = steps < lengths[..., None]
            tokens = shard.tokens[(starts[..., None] + steps) * valid] * valid
            tokens[..., 0][lengths == 0] = 2  # EOS
            out[at] = tokens
        return out
