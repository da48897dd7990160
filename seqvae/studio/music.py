"""Routes of music: upload, blend, piano roll, MIDI and sound.

Scope: requests about music. Out of scope: songs and blends that are kept (studio/shelf.py), blending (codec.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from seqvae.music import piece as midi
from seqvae.music import tune_books
from seqvae.studio.answers import PROBLEMS, Desk, shapes
from seqvae.studio.jobs import Job
from seqvae.studio.models import Models
from seqvae.studio.shelf import Roll, Shelf, key_of

BARS = 128  # most bars of a song
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


def routes(desk: Desk, models: Models, shelf: Shelf) -> APIRouter:
    """Routes under /api/music."""
    router = APIRouter(prefix="/api/music", tags=["music"])

    @router.get("/corpus", responses=PROBLEMS)
    async def corpus() -> list[str]:
        """Some works of music21's corpus; others can be opened by name too."""
        return CORPUS

    @router.post("/corpus", responses=shapes(Roll), response_class=Response)
    async def open_corpus(body: FromCorpus) -> Response:
        """Open a work of music21's corpus."""
        name = midi.CORPUS + body.name
        return await desk.answer(lambda job: shelf.read(name, body.name, body.bars, job))

    @router.post("/pieces", responses=shapes(Roll), response_class=Response)
    async def open_file(
        file: Annotated[UploadFile, File(description=f"a file of music: {' '.join(midi.SUFFIXES)}")],
        bars: Annotated[int, Form(ge=1, le=BARS)] = 16,
        tune: Annotated[int, Form(ge=1, le=99_999, description="number of the tune in an ABC file")] = 1,
    ) -> Response:
        """Open a file of music, or one tune of an ABC file."""
        name = Path(file.filename or "piece").name[:120]
        if Path(name).suffix.lower() not in midi.SUFFIXES:
            raise HTTPException(415, f"'{name}' is not a known format of music; send {' '.join(midi.SUFFIXES)}")
        name += f"#{tune}" if tune > 1 and Path(name).suffix.lower() == tune_books.SUFFIX else ""
        content = await file.read()
        return await desk.answer(lambda job: shelf.read(content, name, bars, job))

    @router.post("/blend", responses=shapes(Roll), response_class=Response)
    async def blend(body: Blend) -> Response:
        """Move a song from one style toward another. It is encoded once, and decoded for each amount."""
        facts = models.find(body.model, "songs")
        made = shelf.find(body.piece)
        if made.piece is None:
            raise HTTPException(400, "this is a blend; give the id of a song that was opened")
        for style in filter(None, (body.source, body.target)):
            if style not in facts.styles:
                raise HTTPException(400, f"{body.model} has no style '{style}'; it has {', '.join(facts.styles)}")
        key = key_of(body.model_dump_json())
        piece = made.piece

        def work(job: Job) -> Any:
            if known := shelf.known(key):
                return known.roll
            codec = models.codec(body.model, job.report)
            # None is the codec's default, the melody, which is not copied where a song is not moved
            kept = None if body.keep == ["melody"] else tuple(dict.fromkeys(body.keep))
            score = codec.blend(piece, source=body.source, target=body.target, amount=body.amount, keep=kept)
            return shelf.keep(key, f"{made.name}-{body.target}-{body.amount:g}", score, piece)

        return await desk.answer(work, body.model)

    @router.get("/{key}.mid", response_class=Response, responses={200: {"content": {"audio/midi": {}}}, **PROBLEMS})
    async def as_midi(key: str) -> Response:
        """A song or a blend as a MIDI file."""
        made = shelf.find(key)
        named = {"Content-Disposition": f'attachment; filename="{made.file}.mid"'}
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
