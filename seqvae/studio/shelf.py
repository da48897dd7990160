"""The songs and blends of the studio's users, kept for a while: scores, piano rolls, sound.

Scope: what is kept, its size, and its keys. Out of scope: requests (studio/music.py), file formats (music/piece.py),
sound (music/synth.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from cachetools import LRUCache
from fastapi import HTTPException, Request
from pydantic import BaseModel, Field

from seqvae.music import piece as midi
from seqvae.music import synth, tune_books
from seqvae.music.pianoroll import in_seconds
from seqvae.music.piece import Piece
from seqvae.studio.jobs import Job
from seqvae.studio.reading import Reader

NOTES = 20_000  # most notes of a song
PIECES = 64 << 20  # bytes of songs kept, and again of blends
SOUND = 512 << 20  # bytes of sound kept on disk
MINUTES = 10  # longest sound


class Track(BaseModel):
    """The notes of one instrument."""

    name: str
    program: int = Field(description="of General MIDI, from 0; 128 for drums")
    colour: str = Field(description="#rrggbb, on white, from a palette for colour-blind people")
    notes: list[tuple[float, float, int, int]] = Field(description="start and length in seconds, pitch, velocity")


class Roll(BaseModel):
    """A piano roll."""

    id: str = Field(description="for /api/music/{id}.mid and .wav; of a song also for /api/music/blend")
    name: str
    bars: list[float] = Field(description="start of each bar and end of the last one, in seconds")
    seconds: float = Field(description="end of the last note, in seconds")
    tracks: list[Track]


@dataclass(frozen=True)
class Made:
    """A song that was read, or a blend, for download and sound."""

    name: str
    score: Any
    """A symusic Score."""
    roll: dict[str, Any]
    piece: Piece | None = None
    """The song that was read; None for a blend."""

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return 2000 + 100 * sum(len(track["notes"]) for track in self.roll["tracks"])

    @property
    def file(self) -> str:
        """A name for its files that is valid on every system, without suffix."""
        return re.sub(r"[^\w.+-]+", "-", self.name, flags=re.ASCII).strip("-.")[:80] or "piece"


class SoundFiles(LRUCache[str, Path]):
    """Sound files, deleted when they are dropped."""

    def popitem(self) -> tuple[str, Path]:
        """Drop the least recently used file."""
        key, path = super().popitem()
        path.unlink(missing_ok=True)
        return key, path


class Shelf:
    """The songs and blends of all users by a hash of their content; the least recently used go first."""

    def __init__(self) -> None:
        self._read: LRUCache[str, Piece] = LRUCache(PIECES, lambda piece: piece.notes.nbytes + 1000)
        self._made: LRUCache[str, Made] = LRUCache(PIECES, lambda made: made.size)
        self._folder = tempfile.TemporaryDirectory(prefix="seqvae-studio-")
        self._sound = SoundFiles(SOUND, lambda path: path.stat().st_size)
        self._lock = threading.Lock()  # held while one of the three is used
        self._reader = Reader()
        self._one = anyio.CapacityLimiter(1)  # sound uses at most one core

    def read(self, source: bytes | str, name: str, bars: int, job: Job) -> dict[str, Any]:
        """Piano roll of the first bars of a song, read if it is not cached; raises ReadError."""
        content = source if isinstance(source, bytes) else source.encode()
        key = key_of(name, content)
        with self._lock:
            piece = self._read.get(key)
        if piece is None:
            job.report(0.0, f"reading {name}")
            piece = self._reader.read(source, name, job.check)
            with self._lock, contextlib.suppress(ValueError):  # larger than the cache
                self._read[key] = piece
        piece = _first(piece, bars)
        score = midi.to_score(piece.notes, piece.frame, tracks=piece.tracks)
        title = tune_books.stem(Path(name)) if tune_books.suffix(Path(name)) in midi.SUFFIXES else name
        return self.keep(key_of(key, str(len(piece.bounds))), title, score, piece, piece)

    def keep(self, key: str, name: str, score: Any, frame: Piece, piece: Piece | None = None) -> dict[str, Any]:
        """Keep a score under a key; returns its piano roll."""
        made = Made(name, score, {"id": key, "name": name, **in_seconds(score, frame)}, piece)
        with self._lock:
            self._made[key] = made
        return made.roll

    def known(self, key: str) -> Made | None:
        """The song or blend under a key, or None."""
        with self._lock:
            return self._made.get(key)

    def find(self, key: str) -> Made:
        """The song or blend under a key; raises HTTPException where there is none."""
        found = self.known(key)
        if found is None:
            raise HTTPException(404, "this song is no longer kept; open it again")
        return found

    async def sound(self, key: str, mute: set[int], small: bool, request: Request) -> tuple[Path, str]:
        """A WAV file of a score without the muted tracks, and its name; raises SeqVAEError."""
        made = self.find(key)
        name = key_of(key, ",".join(map(str, sorted(mute))), str(small))
        if made.roll["seconds"] > 60 * MINUTES:
            raise HTTPException(413, f"longer than {MINUTES} minutes of sound; take fewer bars")
        async with self._one:  # a request that waited for the same sound finds it in the cache
            with self._lock:
                path = self._sound.get(name)
            if path is None and await request.is_disconnected():
                raise HTTPException(410, "the request was closed")
            if path is None:
                path = await anyio.to_thread.run_sync(self._render, name, made.score, mute, small)
        return path, f"{made.file}.wav"

    def _render(self, name: str, score: Any, mute: set[int], small: bool) -> Path:
        audible = score.copy()
        heard = [i for i, track in enumerate(audible.tracks) if len(track.notes)]  # as in the piano roll
        for i in sorted(mute.intersection(range(len(heard))), reverse=True):
            del audible.tracks[heard[i]]
        path = Path(self._folder.name) / f"{name}.wav"
        path.write_bytes(synth.render(audible, small=small))
        with self._lock:
            self._sound[name] = path
        return path

    def close(self) -> None:
        """End the reading process, and remove the files."""
        self._reader.close()
        self._folder.cleanup()


def key_of(*parts: str | bytes) -> str:
    """A hash of these parts, for use as a key."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:32]


def _first(piece: Piece, bars: int) -> Piece:
    """The first bars of a song, notes cut at their end; raises HTTPException for no notes or too many."""
    if len(piece.bounds) - 1 > bars:
        end = int(piece.bounds[bars])
        notes, tracks = piece.part(0, bars)
        notes[:, midi.DURATION] = np.minimum(notes[:, midi.DURATION], end - notes[:, midi.ONSET])
        piece = Piece(notes, piece.bounds[: bars + 1], piece.frame, piece.name, tracks)
    if not len(piece.notes):
        raise HTTPException(400, f"the first {bars} bars are silent; choose more bars")
    if len(piece.notes) > NOTES:
        raise HTTPException(413, f"more than {NOTES:,} notes in the first {bars} bars; choose fewer bars")
    return piece
