"""Routes of the map: the styles of a model in the plane that separates them best, and decoding of its points.

Scope: requests about maps. Out of scope: the plane (style/lda.py) and decoding (codec.py).
"""

from __future__ import annotations

from typing import Any

import torch
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from seqvae.codec import Codec
from seqvae.modality import modality
from seqvae.music.pianoroll import shade
from seqvae.studio.answers import Desk, shapes
from seqvae.studio.jobs import Job
from seqvae.studio.models import Models
from seqvae.studio.shelf import Roll, Shelf, key_of
from seqvae.style.lda import Plane, plane

POINTS = 60  # samples of each style in the map


# --- requests ---------------------------------------------------------------------------------------------------------


class Named(BaseModel):
    """A model."""

    model: str = "music"


class Place(BaseModel):
    """A style in the plane."""

    name: str
    mean: tuple[float, float]
    covariance: tuple[tuple[float, float], tuple[float, float]]
    colour: str = Field(description="#rrggbb, on white")
    points: list[tuple[float, float]] = Field(description="samples of its Gaussian")


class Map(BaseModel):
    """The styles of a model in the plane that separates them best."""

    styles: list[Place]


class At(BaseModel):
    """A point of a model's map."""

    model: str = "music"
    x: float = Field(ge=-100, le=100)
    y: float = Field(ge=-100, le=100)
    spread: float = Field(0.7, ge=0, le=1, description="0 is the mean latent vector at this point, 1 a full sample")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="another seed gives another result at the same point")


class Found(BaseModel):
    """A decoded point of the map."""

    shares: dict[str, float] = Field(description="probability of each style at the point")
    text: str | None = Field(None, description="for a model of text")
    roll: Roll | None = Field(None, description="for a model of music")


class Maps:
    """The planes of models, computed at first use."""

    def __init__(self) -> None:
        self._planes: dict[str, Plane] = {}

    def of(self, model: str, codec: Codec, job: Job) -> Plane:
        """A model's plane."""
        if model not in self._planes:
            job.report(0.0, "finding the plane that separates the styles")
            styles = {name: style for name, style in sorted(codec.styles.items()) if name != "all"}
            self._planes[model] = plane(styles or {"prior": codec.style("all")})
        return self._planes[model]


def routes(desk: Desk, models: Models, shelf: Shelf) -> APIRouter:
    """Routes under /api/map."""
    router = APIRouter(prefix="/api/map", tags=["map"])
    maps = Maps()

    @router.post("", responses=shapes(Map), response_class=Response)
    async def show(body: Named) -> Response:
        """The styles of a model in two dimensions."""
        models.find(body.model)

        def work(job: Job) -> Any:
            found = maps.of(body.model, models.codec(body.model, job.report), job)
            generator = torch.Generator().manual_seed(0)
            places = []
            for i, (name, style) in enumerate(found.styles.items()):
                mean, spread = found.place(style)
                noise = torch.randn(POINTS, 2, generator=generator, dtype=torch.float64)
                points = mean + noise @ torch.linalg.cholesky(spread).T
                numbers = {"mean": mean, "covariance": spread, "points": points}
                plain = {key: value.tolist() for key, value in numbers.items()}
                places.append({"name": name, "colour": shade(i), **plain})
            return {"styles": places}

        return await desk.answer(work, body.model)

    @router.post("/decode", responses=shapes(Found), response_class=Response)
    async def decode(body: At) -> Response:
        """Decode a point of the map to a sentence, a session, or one segment of music."""
        models.find(body.model)

        def work(job: Job) -> Any:
            codec = models.codec(body.model, job.report)
            found = maps.of(body.model, codec, job)
            at = torch.tensor([body.x, body.y], dtype=torch.float64)
            [piece] = codec.decode([found.draw(at, body.spread, body.seed)[None]])
            shares = {name: round(share, 4) for name, share in found.shares(at).items()}
            if modality(codec.tokenizer.kind).content != "songs":
                return {"shares": shares, "text": piece, "roll": None}
            near = max(shares, key=shares.__getitem__)
            key = key_of(body.model_dump_json())
            roll = shelf.keep(key, f"{near} {body.x:.2f} {body.y:.2f}", piece, codec.adapter.blank(codec.chunks))
            return {"shares": shares, "text": None, "roll": roll}

        return await desk.answer(work, body.model)

    return router
