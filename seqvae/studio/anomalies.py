"""Anomalies for the page: sessions in, p-values and the tokens that gave them away.

Knows requests about lines. Refuses to know how evidence is found and weighed (anomaly/scores.py,
anomaly/calibration.py).
"""

from __future__ import annotations

import random
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from seqvae.anomaly import explain
from seqvae.anomaly import scores as anomaly
from seqvae.studio.answers import Desk, shapes
from seqvae.studio.jobs import Job
from seqvae.studio.models import Models

LINES = 500  # at once
CHARACTERS = 200_000  # of all lines
SHOWN = 400  # tokens of a session
BATCH = 16  # sessions between two words about progress


class Sessions(BaseModel):
    """Sessions, or sentences, one a line."""

    model: str = "hdfs"
    lines: list[Annotated[str, Field(max_length=20_000)]] = Field(min_length=1, max_length=LINES)


class Token(BaseModel):
    """A token as it is written."""

    text: str = Field(description="with the space before it")
    log_prob: float = Field(description="how likely it is to the model, in nats")
    marked: bool = Field(description="whether it is among the least likely of its session")


class Verdict(BaseModel):
    """What a detector says of one session."""

    p_value: float = Field(description="share of normal sessions that are as strange")
    anomalous: bool
    score: float = Field(description="low is anomalous")
    tokens: list[Token] = Field(description=f"the first {SHOWN}")
    length: int = Field(description="tokens in all")


class Verdicts(BaseModel):
    """All sessions, in their order."""

    p_value: float | None = Field(description="what is called anomalous has at most this; None for another rule")
    sessions: list[Verdict]


class Asked(BaseModel):
    """A model."""

    model: str = "hdfs"


def routes(desk: Desk, models: Models) -> APIRouter:
    """What can be asked about anomalies."""
    router = APIRouter(prefix="/api/anomalies", tags=["anomalies"])

    @router.post("", responses=shapes(Verdicts), response_class=Response)
    async def score(asked: Sessions) -> Response:
        """Tell which sessions are not normal, and where."""
        models.find(asked.model, "text", "events")
        if sum(map(len, asked.lines)) > CHARACTERS:
            raise HTTPException(413, f"more than {CHARACTERS:,} characters; send fewer sessions at once")

        def work(job: Job) -> Any:
            found, settings = models.detector(asked.model)
            codec = models.codec(asked.model, lambda progress, _: job.check())
            rows: list[dict[str, Any]] = []
            for at in range(0, len(asked.lines), BATCH):
                job.tell(at / len(asked.lines), "scoring")
                lines = [line if line.strip() else "" for line in asked.lines[at : at + BATCH]]
                told = anomaly.examine(codec, lines, settings.samples, settings.seed)
                for line, evidence in zip(lines, told, strict=True):
                    value = found.scores(evidence)[found.score]
                    pointed = explain.pointed(evidence)
                    words = line.split() if codec.tokenizer.kind == "events" else []
                    places = range(min(SHOWN, len(evidence.tokens)))
                    tokens = [
                        {
                            "text": text,
                            "log_prob": round(float(evidence.log_prob[group].min()), 4),
                            "marked": not pointed.isdisjoint(group),
                        }
                        for group, text in explain.spelled(codec.tokenizer, evidence.tokens.tolist(), places, words)
                    ]
                    rows.append(
                        {
                            "p_value": found.p_value(value),
                            "anomalous": value < settings.threshold,
                            "score": value,
                            "tokens": tokens,
                            "length": len(evidence.tokens),
                        }
                    )
            return {"p_value": settings.p_value, "sessions": rows}

        return await desk.answer(work, asked.model)

    @router.post("/examples", responses=shapes(list[str]), response_class=Response)
    async def examples(asked: Asked) -> Response:
        """Sessions to try: some that the model draws, and one of them in another order."""
        models.find(asked.model, "text", "events")

        def work(job: Job) -> Any:
            lines = models.codec(asked.model, job.tell).sample(4, temperature=0.7, segments=1, seed=1)
            words = max(lines, key=len).split()
            random.Random(0).shuffle(words)
            return [*lines, " ".join(words)]

        return await desk.answer(work, asked.model)

    return router
