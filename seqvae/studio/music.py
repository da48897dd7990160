"""Routes of music: upload, blend, piano roll, MIDI and sound.

Scope: requests about music. Out of scope: file formats (music/piece.py), sound (music/synth.py) and blending
(codec.py).
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import numpy as np
from fastapi import APIRouter, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from seqvae.music import piece as midi
from seqvae.music import synth
from seqvae.music.pianoroll import in_seconds
from seqvae.music.piece import Piece
from seqvae.studio.answers import PROBLEMS, Desk, shapes
from seqvae.studio.cache import Cache
from seqvae.studio.jobs import Job
from seqvae.studio.models import Models
from seqvae.studio.reading import Reader

BARS = 128  # most bars of a song
NOTES = 20_000  # most notes of a song
PIECES = 64 << 20  # bytes of songs kept, and again of blends
SOUND = 512 << 20  # bytes of sound kept on disk
MINUTES = 10  # longest sound
CORPUS = [
    "bach/bwv66.6",
    "bach/bwv269",
    "beethoven/opus18no1/movement1",
    "corelli/opus3no1/1grave",
    "handel/rinaldo",
    "haydn/opus74no1/movement1",
    "joplin/maple_leaf_rag",
    "leadSheet/berlinAlexandersRagtime",
    "leadSheet/fosterBrownHair",
    "mozart/k458/movement1",
    "palestrina/Kyrie_1",
    "schubert/lindenbaum",
    "schumann_robert/opus48no2",
    "verdi/laDonnaEMobile",
]

Keep = Literal["melody", "drums"]
Bars = Annotated[int, Field(ge=1, le=BARS, description="number of bars from the start")]


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


class FromCorpus(BaseModel):
    """A work in music21's corpus."""

    name: str = Field(pattern=r"^[\w.\-/]{1,100}$", examples=["bach/bwv66.6"])
    bars: Bars = 16


class Blend(BaseModel):
    """A song and its move."""

    model: str = "music"
    piece: str = Field(max_length=64, description="id of a song")
    source: str | None = Field(None, description="style to start from; null for the song itself")
    target: str = Field(description="style to move toward")
    amount: float = Field(0.5, ge=0, le=1.5, description="0 stays, 0.5 is half-way, 1 all the way")
    keep: list[Keep] = Field(["melody"], max_length=2, description="tracks that stay as they are")


@dataclass(frozen=True)
class Made:
    """A song that was read, or a blend, for download and sound."""

    name: str
    score: Any
    """A symusic Score."""
    roll: dict[str, Any]
    piece: Piece | None = None
    """The song that was read; None for a blend."""


class Shelf:
    """The songs and blends of all users by a hash of their content; the least recently used go first."""

    def __init__(self) -> None:
        self._read: Cache[Piece] = Cache(PIECES)
        self._made: Cache[Made] = Cache(PIECES)
        self._folder = tempfile.TemporaryDirectory(prefix="seqvae-studio-")
        self._sound: Cache[Path] = Cache(SOUND, lambda path: path.unlink(missing_ok=True))
        self._reader = Reader()
        self._one = anyio.CapacityLimiter(1)  # sound uses at most one core

    def read(self, source: bytes | str, name: str, bars: int, job: Job) -> dict[str, Any]:
        """Piano roll of the first bars of a song, read if it is not cached; raises ReadError."""
        content = source if isinstance(source, bytes) else source.encode()
        key = key_of(name, content)
        piece = self._read.get(key)
        if piece is None:
            job.tell(0.0, f"reading {name}")
            piece = self._reader.read(source, name, job.check)
            self._read.put(key, piece, piece.notes.nbytes + 1000)
        piece = _first(piece, bars)
        score = midi.to_score(piece.notes, piece.frame, tracks=piece.tracks)
        title = Path(name).stem if Path(name).suffix.lower() in midi.SUFFIXES else name
        return self.keep(key_of(key, str(len(piece.bounds))), title, score, piece, piece)

    def keep(self, key: str, name: str, score: Any, frame: Piece, piece: Piece | None = None) -> dict[str, Any]:
        """Keep a score under a key; returns its piano roll."""
        roll = {"id": key, "name": name, **in_seconds(score, frame)}
        size = 2000 + 100 * sum(len(track["notes"]) for track in roll["tracks"])
        return self._made.put(key, Made(name, score, roll, piece), size).roll

    def known(self, key: str) -> Made | None:
        """The song or blend under a key, or None."""
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
            path = self._sound.get(name)
            if path is None and await request.is_disconnected():
                raise HTTPException(410, "the request was closed")
            if path is None:
                path = await anyio.to_thread.run_sync(self._render, name, made.score, mute, small)
        return path, f"{_safe(made.name)}.wav"

    def _render(self, name: str, score: Any, mute: set[int], small: bool) -> Path:
        heard = score.copy()
        for i in sorted(mute.intersection(range(len(heard.tracks))), reverse=True):
            del heard.tracks[i]
        content = synth.render(heard, small=small)
        path = Path(self._folder.name) / f"{name}.wav"
        path.write_bytes(content)
        return self._sound.put(name, path, len(content))

    def close(self) -> None:
        """End the reading process, and remove the files."""
        self._reader.close()
        self._folder.cleanup()


def routes(desk: Desk, models: Models, shelf: Shelf) -> APIRouter:
    """Routes under /api/music."""
    router = APIRouter(prefix="/api/music", tags=["music"])

    @router.get("/corpus", responses=PROBLEMS)
    async def corpus() -> list[str]:
        """Some works of music21's corpus; others can be opened by name too."""
        return CORPUS

    @router.post("/corpus", responses=shapes(Roll), response_class=Response)
    async def open_corpus(asked: FromCorpus) -> Response:
        """Open a work of music21's corpus."""
        name = midi.CORPUS + asked.name
        return await desk.answer(lambda job: shelf.read(name, asked.name, asked.bars, job))

    @router.post("/pieces", responses=shapes(Roll), response_class=Response)
    async def open_file(
        file: Annotated[UploadFile, File(description=f"a file of music: {' '.join(midi.SUFFIXES)}")],
        bars: Annotated[int, Form(ge=1, le=BARS)] = 16,
    ) -> Response:
        """Open a file of music."""
        name = Path(file.filename or "piece").name[:120]
        if Path(name).suffix.lower() not in midi.SUFFIXES:
            raise HTTPException(415, f"'{name}' is not a known format of music; send {' '.join(midi.SUFFIXES)}")
        content = await file.read()
        return await desk.answer(lambda job: shelf.read(content, name, bars, job))

    @router.post("/blend", responses=shapes(Roll), response_class=Response)
    async def blend(asked: Blend) -> Response:
        """Move a song from one style toward another. It is encoded once, and decoded for each amount."""
        facts = models.find(asked.model, "songs")
        made = shelf.find(asked.piece)
        if made.piece is None:
            raise HTTPException(400, "this is a blend; give the id of a song that was opened")
        for style in filter(None, (asked.source, asked.target)):
            if style not in facts.styles:
                raise HTTPException(400, f"{asked.model} has no style '{style}'; it has {', '.join(facts.styles)}")
        key = key_of(asked.model_dump_json())
        piece = made.piece

        def work(job: Job) -> Any:
            if known := shelf.known(key):
                return known.roll
            codec = models.codec(asked.model, job.tell)
            # None is the codec's default, the melody, which is not copied where a song is not moved
            kept = None if asked.keep == ["melody"] else tuple(dict.fromkeys(asked.keep))
            score = codec.blend(piece, source=asked.source, target=asked.target, amount=asked.amount, keep=kept)
            return shelf.keep(key, f"{made.name}-{asked.target}-{asked.amount:g}", score, piece)

        return await desk.answer(work, asked.model)

    @router.get("/{key}.mid", response_class=Response, responses={200: {"content": {"audio/midi": {}}}, **PROBLEMS})
    async def as_midi(key: str) -> Response:
        """A song or a blend as a MIDI file."""
        made = shelf.find(key)
        named = {"Content-Disposition": f'attachment; filename="{_safe(made.name)}.mid"'}
        return Response(midi.to_bytes(made.score), media_type="audio/midi", headers=named)

    @router.get("/{key}.wav", response_class=FileResponse, responses={200: {"content": {"audio/wav": {}}}, **PROBLEMS})
    async def as_wav(
        request: Request,
        key: str,
        mute: Annotated[list[Annotated[int, Field(ge=0, le=999)]] | None, Query(max_length=200)] = None,
        small: Annotated[bool, Query(description="a quarter of the size, for playing at once")] = False,
    ) -> Response:
        """The sound of a song or a blend; `mute` are indices of tracks to leave out, from 0."""
        path, name = await shelf.sound(key, set(mute or []), small, request)
        return FileResponse(path, media_type="audio/wav", filename=name)

    return router


def key_of(*parts: str | bytes) -> str:
    """A hash of these parts, for use as a key."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:32]


def _safe(name: str) -> str:
    """A file name that is valid on every system."""
    return re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip("-.")[:80] or "piece"


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
