"""Segments of a piece: the tokens of their chunks, and in songs the context that their latent vectors depend on.

Scope: segments as lists of token ids, their conditions and the rest of their song. Out of scope: tensors, models, and
the tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seqvae.protocols import EOS, Given

Ints = NDArray[np.int32]
Segment = list[Ints]
"""Token ids of the chunks of a segment, each ending in EOS."""


class SongSegment(list[Ints]):
    """A segment of one chunk for a model with conditions: its latent vector depends on its record and on its song."""

    def __init__(self, song: Sequence[Ints], number: int, given: Given) -> None:
        """Chunk `number` of a `song`, with its condition `given (1,)`."""
        super().__init__(song[number : number + 1])
        self.song, self.number, self.given = song, number, given


def song_segments(chunks: Sequence[Ints], given: Given | None) -> list[Segment]:
    """The segments of a song of C chunks with the conditions `given (C,)`."""
    assert given is not None
    return [SongSegment(chunks, i, given[i : i + 1]) for i in range(len(chunks))]


def without_melody(segments: list[Segment]) -> list[Segment]:
    """All segments of a piece under conditions without the melody; segments without conditions as they are."""
    given = no_melody(conditions(segments))
    first = segments[0] if segments else None
    return song_segments(first.song, given) if isinstance(first, SongSegment) else segments


def no_melody(given: Given | None) -> Given | None:
    """What is given, but for the melody; lengths alone as they are."""
    if given is None or given.dtype.names is None:
        return given
    out = given.copy()
    out["melody"], out["has_melody"] = 0, 0
    return out


def between(first: Given | None, last: Given | None, way: float) -> Given | None:
    """What is given on the way from one song to another of as many chunks, from 0 to 1, without melody.

    The pitch classes are those of both songs in proportion; length and bass are those of the nearer song, and so is
    the harmony where one song has none. Lengths alone are those of the nearer.
    """
    nearer = no_melody(first if way < 0.5 else last)
    if nearer is None or first is None or last is None or nearer.dtype.names is None:
        return nearer
    both = (first["has_harmony"] * last["has_harmony"] > 0)[:, None, None]
    mixed = (1 - way) * first["harmony"][..., :12] + way * last["harmony"][..., :12]
    nearer["harmony"][..., :12] = np.where(both, mixed, nearer["harmony"][..., :12])
    return nearer


def on_the_way(
    first: Given | None, last: Given | None, rows: Sequence[NDArray[np.int64]], mixed: bool
) -> list[Given | None]:
    """What is given at each of P points from one piece to another; point i has the chunks `rows[i]`, repeated.

    It is that of the nearer piece, or, where `mixed`, between both.
    """
    if first is None or last is None:
        return [None] * len(rows)
    ways = np.linspace(0, 1, len(rows))
    if not mixed:
        return [first if way < 0.5 else last for way in ways]
    return [between(first[i % len(first)], last[i % len(last)], way) for i, way in zip(rows, ways, strict=True)]


def segmented(chunks: Sequence[Ints], size: int) -> list[Segment]:
    """The chunks of a piece in segments of `size` chunks; the last segment is padded with empty chunks."""
    filled = [*chunks, *[np.array([EOS], np.int32)] * (-len(chunks) % size)]
    return [filled[at : at + size] for at in range(0, len(filled), size)]


def conditions(segments: Sequence[Segment]) -> Given | None:
    """The records of some segments, `(S,)`; None for segments without conditions."""
    given = [segment.given for segment in segments if isinstance(segment, SongSegment)]
    return np.concatenate(given) if given and len(given) == len(segments) else None


def in_context(segments: Sequence[Segment]) -> tuple[list[Segment], list[int], Given | None, list[int]]:
    """All segments of the songs to which some belong; the number of the song of each; what is given of each.

    At last the index of each of `segments` among them. A segment without a song is one by itself.
    """
    known = conditions(segments)
    if known is None:
        return list(segments), list(range(len(segments))), None, list(range(len(segments)))
    records: list[Given] = []
    every: list[Segment] = []
    songs: list[int] = []
    starts: dict[int, int] = {}
    for segment in segments:
        assert isinstance(segment, SongSegment)
        if id(segment.song) not in starts:
            starts[id(segment.song)] = len(every)
            songs += [len(starts) - 1] * len(segment.song)
            every += [[chunk] for chunk in segment.song]
            records.append(np.zeros(len(segment.song), known.dtype))
        songs_own = records[songs[starts[id(segment.song)]]]
        songs_own[segment.number] = segment.given[0]
    at = [starts[id(segment.song)] + segment.number for segment in segments if isinstance(segment, SongSegment)]
    return every, songs, np.concatenate(records), at


def song_length(segment: Segment) -> int:
    """The number of segments that share a segment's song vector; 1 without a song."""
    return len(segment.song) if isinstance(segment, SongSegment) else 1


def context(segment: Segment) -> bytes:
    """A digest of what a segment's latent vector depends on besides its own tokens; empty without a song."""
    if not isinstance(segment, SongSegment):
        return b""
    digest = hashlib.sha256(segment.given.tobytes())
    for chunk in segment.song:
        digest.update(len(chunk).to_bytes(8, "big") + chunk.tobytes())
    return digest.digest()
