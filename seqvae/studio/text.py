"""Routes of sentences: interpolation between two, and sums of style vectors.

Scope: requests about sentences. Out of scope: the arithmetic (style/vectors.py, style/interpolation.py) and tokens.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from seqvae.studio.answers import Desk, shapes
from seqvae.studio.jobs import Job
from seqvae.studio.models import Models
from seqvae.style import vectors as style

Sentence = Annotated[str, Field(max_length=1000, pattern=r"\S", description="with at least one word")]


class Walk(BaseModel):
    """Two sentences."""

    model: str = "reviews"
    a: Sentence
    b: Sentence
    steps: int = Field(9, ge=2, le=33, description="both ends included")


class Step(BaseModel):
    """A sentence between the two."""

    amount: float
    text: str


class Move(BaseModel):
    """From one style toward another."""

    source: str | None = Field(None, description="style to start from; null for the sentence itself")
    target: str
    amount: float = Field(ge=-3, le=3)


class Moved(BaseModel):
    """A sentence and moves, which are added."""

    model: str = "reviews"
    text: Sentence
    moves: list[Move] = Field(max_length=16)


class Result(BaseModel):
    """The moved sentence."""

    text: str
    unmoved: str = Field(description="the sentence as decoded without a move")


def routes(desk: Desk, models: Models) -> APIRouter:
    """Routes under /api/text."""
    router = APIRouter(prefix="/api/text", tags=["text"])

    @router.post("/steps", responses=shapes(list[Step]), response_class=Response)
    async def steps(body: Walk) -> Response:
        """Interpolate between two sentences; the ends are as the model decodes them."""
        models.find(body.model, "sentences", "sessions")

        def work(job: Job) -> Any:
            codec = models.codec(body.model, job.report)
            found = codec.interpolate(body.a, body.b, body.steps)
            return [{"amount": round(i / (body.steps - 1), 4), "text": text} for i, text in enumerate(found)]

        return await desk.answer(work, body.model)

    @router.post("/blend", responses=shapes(Result), response_class=Response)
    async def blend(body: Moved) -> Response:
        """Move a sentence by several styles at once."""
        facts = models.find(body.model, "sentences", "sessions")
        for name in {name for move in body.moves for name in (move.source, move.target) if name}:
            if name not in facts.styles:
                raise HTTPException(400, f"{body.model} has no style '{name}'; it has {', '.join(facts.styles)}")

        def work(job: Job) -> Any:
            codec = models.codec(body.model, job.report)
            moves = [codec.translate(move.target, move.source, move.amount) for move in body.moves]
            segments = [codec.segments(body.text)]
            latents = codec.means(segments)
            [moved], [unmoved] = (
                codec.transform([body.text], move, segments=segments, latents=latents)
                for move in (style.compose(moves), lambda z: z)
            )
            return {"text": moved, "unmoved": unmoved}

        return await desk.answer(work, body.model)

    return router
