"""Routes of sentences: interpolation between two, and sums of style vectors.

Scope: requests about sentences. Out of scope: the arithmetic (style/translation.py, style/interpolation.py) and tokens.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from seqvae.studio.answers import Desk, shapes
from seqvae.studio.jobs import Job
from seqvae.studio.models import Models
from seqvae.style.choice import Choice
from seqvae.style.translation import compose

Sentence = Annotated[str, Field(max_length=1000, pattern=r"\S", description="with at least one word")]


class Walk(BaseModel):
    """Two sentences."""

    model: str = "reviews"
    a: Sentence
    b: Sentence
    steps: int = Field(9, ge=2, le=33, description="both ends included")


class Step(BaseModel):
    """A sentence between the two."""

    amount: float = Field(description="share of the steps, 0 at the start and 1 at the end")
    text: str


class Move(BaseModel):
    """From one style toward another."""

    source: str | None = Field(None, description="style to start from; null for the sentence itself")
    target: str
    amount: float = Field(ge=-3, le=3, description="how far; with `until`, the farthest that is tried")


class Moved(BaseModel):
    """A sentence and moves, which are added."""

    model: str = "reviews"
    text: Sentence
    moves: list[Move] = Field(max_length=16)
    until: float | None = Field(
        None, gt=0, lt=1,
        description="move only until the classifier of the styles gives the target this probability, and keep words "
        "that need no change; null for the whole amounts",
    )  # fmt: skip


class Result(BaseModel):
    """The moved sentence."""

    text: str
    unmoved: str = Field(description="the sentence as decoded without a move")
    amounts: list[float] = Field(description="of each move")
    probability: float | None = Field(description="of the target style by the classifier, the least of several moves")


def routes(desk: Desk, models: Models) -> APIRouter:
    """Routes under /api/text."""
    router = APIRouter(prefix="/api/text", tags=["text"])

    @router.post("/steps", responses=shapes(list[Step]), response_class=Response)
    async def steps(body: Walk) -> Response:
        """Different sentences from one to the other, both included.

        Of sessions, the ends are as the model decodes them.
        """
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

        path = [(move.source, move.target, move.amount) for move in body.moves]
        starts = [(source, target, amount) for source, target, amount in path if source]
        if body.until is not None and len(starts) < len(path):
            raise HTTPException(400, "until compares two styles: name the style that each move starts from")

        def work(job: Job) -> Any:
            codec = models.codec(body.model, job.report)
            if body.until is not None and starts:
                [chosen] = codec.blend_until([body.text], starts, Choice(until=body.until))
                text, amounts = chosen.line, [round(chosen.share * far, 4) for _, _, far in starts]
                return _result(text, codec.reconstruct(body.text), amounts, round(chosen.probability, 4))
            moves = [codec.translate(target, source, amount) for source, target, amount in path]
            segments = [codec.segments(body.text)]
            latents = codec.means(segments)
            [moved], [unmoved] = (
                codec.transform([body.text], move, segments=segments, latents=latents)
                for move in (compose(moves), lambda z: z)
            )
            return _result(moved, unmoved, [amount for _, _, amount in path], None)

        return await desk.answer(work, body.model)

    return router


def _result(text: str, unmoved: str, amounts: list[float], probability: float | None) -> dict[str, Any]:
    return {"text": text, "unmoved": unmoved, "amounts": amounts, "probability": probability}
