"""Routes of anomalies: p-values of sessions and their most surprising tokens.

Scope: requests with sessions or sentences. Out of scope: scores and calibration (anomaly/evidence.py,
anomaly/calibration.py).
"""

from __future__ import annotations

import random
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from seqvae.anomaly import evidence as anomaly
from seqvae.anomaly import explain
from seqvae.studio.answers import Desk, shapes
from seqvae.studio.jobs import Job
from seqvae.studio.models import Models

LINES = 500  # most lines in a request
CHARACTERS = 200_000  # most characters in a request
SHOWN = 400  # most tokens shown of a session
BATCH = 16  # sessions between two reports of progress


class Sessions(BaseModel):
    """Sessions or sentences, one on each line."""

    model: str = "hdfs"
    lines: list[Annotated[str, Field(max_length=20_000)]] = Field(min_length=1, max_length=LINES)


class Token(BaseModel):
    """A token."""

    text: str = Field(description="with the space before it, or a line of a raw log")
    log_prob: float = Field(description="log-probability in nats")
    marked: bool = Field(description="whether it is among the least likely of its session")


class Verdict(BaseModel):
    """Verdict of a detector on one session."""

    p_value: float = Field(description="share of normal sessions that are as strange")
    anomalous: bool
    score: float = Field(description="low is anomalous")
    tokens: list[Token] = Field(description=f"the first {SHOWN}")
    length: int = Field(description="number of all tokens")


class Verdicts(BaseModel):
    """Verdicts on all sessions, in their order."""

    p_value: float | None = Field(description="largest p-value of an anomaly; null for another rule")
    sessions: list[Verdict]


class Named(BaseModel):
    """A model."""

    model: str = "hdfs"


def routes(desk: Desk, models: Models) -> APIRouter:
    """Routes under /api/anomalies."""
    router = APIRouter(prefix="/api/anomalies", tags=["anomalies"])

    @router.post("", responses=shapes(Verdicts), response_class=Response)
    async def score(body: Sessions) -> Response:
        """Score sessions and mark their most surprising tokens."""
        models.find(body.model, "sentences", "sessions")
        if sum(map(len, body.lines)) > CHARACTERS:
            raise HTTPException(413, f"more than {CHARACTERS:,} characters; send fewer sessions at once")

        def work(job: Job) -> Any:
            found, settings = models.detector(body.model)
            codec = models.codec(body.model, lambda progress, _: job.check())
            rows: list[dict[str, Any]] = []
            for at in range(0, len(body.lines), BATCH):
                job.report(at / len(body.lines), "scoring")
                lines = [line if line.strip() else "" for line in body.lines[at : at + BATCH]]
                evidences = anomaly.examine(codec, lines, settings.samples, settings.seed)
                for line, evidence in zip(lines, evidences, strict=True):
                    value = found.scores(evidence)[found.score]
                    pointed = explain.marked(codec.tokenizer, evidence)
                    places = range(min(SHOWN, len(evidence.tokens)))
                    tokens = [
                        {
                            "text": text,
                            "log_prob": round(float(evidence.log_prob[group].min()), 4),
                            "marked": not pointed.isdisjoint(group),
                        }
                        for group, text in explain.spelled(codec.tokenizer, evidence.tokens.tolist(), places, line)
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

        return await desk.answer(work, body.model)

    @router.post("/examples", responses=shapes(list[str]), response_class=Response)
    async def examples(body: Named) -> Response:
        """Example sessions: four samples of the model, and the longest of them shuffled."""
        models.find(body.model, "sentences", "sessions")

        def work(job: Job) -> Any:
            lines = models.codec(body.model, job.report).sample(4, temperature=0.7, segments=1, seed=1)
            words = max(lines, key=len).split()
            random.Random(0).shuffle(words)
            return [*lines, " ".join(words)]

        return await desk.answer(work, body.model)

    return router
