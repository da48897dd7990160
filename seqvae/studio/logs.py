"""Routes of raw logs: learn a detector from a log, and verdicts on the sessions of another.

Scope: requests with raw lines, and the folders of learned detectors, which are kept until the studio ends. Out of
scope: headers, templates and sessions (events/), learning (anomaly/log_detector.py), the verdicts on lines that are
sessions themselves (studio/anomalies.py).
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from seqvae.anomaly import explain
from seqvae.errors import SeqVAEError
from seqvae.studio.anomalies import Token, Verdict
from seqvae.studio.answers import Desk, shapes
from seqvae.studio.jobs import Job
from seqvae.studio.models import Models

CHARACTERS = 3_000_000  # most characters of a log
MINUTES = 0.5  # training time
LEARNED = 20  # most detectors learned
SHOWN = 400  # most lines shown of an anomalous session
FEW = 3  # most lines shown of a normal session
BATCH = 64  # sessions between two reports of progress
END = "the session ends"


class Log(BaseModel):
    """Raw lines of a log of normal operation."""

    text: str = Field(min_length=1, max_length=CHARACTERS)


class Scored(Log):
    """Raw lines of a log, and a detector of raw logs."""

    model: str


class Learned(BaseModel):
    """A detector learned from a log."""

    model: str = Field(description="its name in requests, until the studio ends")
    sessions: int
    templates: int
    grouping: str = Field(description="what makes lines a session")
    p_value: float = Field(description="largest p-value of an anomaly")
    checked: int = Field(description="held-out sessions")
    alarms: int = Field(description="of these, sessions called anomalous")


class Session(Verdict):
    """Verdict on one session; its tokens are lines, and its end."""

    name: str
    tokens: list[Token] = Field(description=f"the first {SHOWN} lines, of a normal session {FEW}")


class Sessions(BaseModel):
    """Verdicts on all sessions of a log."""

    p_value: float | None = Field(description="largest p-value of an anomaly; null for another rule")
    unknown: float = Field(description="share of lines that match no known template")
    strange: bool = Field(description="whether so many do not that the log seems to be from another source")
    sessions: list[Session]


def routes(desk: Desk, models: Models, folder: tempfile.TemporaryDirectory[str]) -> APIRouter:
    """Routes under /api/logs; detectors are learned into `folder`."""
    router = APIRouter(prefix="/api/logs", tags=["anomalies"])
    numbers, one = count(1), threading.Lock()

    @router.post("/learn", responses=shapes(Learned), response_class=Response)
    async def learn(body: Log) -> Response:
        """Learn a detector from a log; lines become sessions by an identifier in them, or twenty in a row."""

        def work(job: Job) -> Any:
            number = next(numbers)
            if number > LEARNED:
                raise SeqVAEError(f"{LEARNED} detectors were learned already; start the studio again for more")
            name = f"log {number}"
            job.report(0.0, "waiting for another training")
            with one:
                return {"model": name, **_learned(job, body.text, models, name, Path(folder.name) / name)}

        return await desk.answer(work, "logs")

    @router.post("", responses=shapes(Sessions), response_class=Response)
    async def score(body: Scored) -> Response:
        """Score the sessions of a log, and mark their most surprising lines."""
        models.find(body.model, "sessions")
        return await desk.answer(lambda job: _scored(job, body.text, models, body.model), body.model)

    return router


def _lines(text: str) -> Iterator[str]:
    return (line.removesuffix("\r") for line in text.split("\n"))


def _learned(job: Job, text: str, models: Models, name: str, folder: Path) -> dict[str, Any]:
    """Learn a detector and add it to the models."""
    from seqvae.anomaly import log_detector
    from seqvae.events import session_keys
    from seqvae.events.lines import LogReader
    from seqvae.events.sessions import Grouping

    reader = LogReader()
    records = list(reader.records(_lines(text), "log"))
    keys = session_keys.suggest(records)
    grouping = Grouping(keys[0].pattern) if keys else Grouping()
    sessions = list(grouping.sessions(records))
    job.report(0.0, f"training for {60 * MINUTES:.0f} s on half of {len(sessions)} sessions")
    found = log_detector.learn(
        sessions, reader, grouping, folder, minutes=MINUTES, report=lambda message: job.report(0.5, message)
    )
    models.add(name, folder)
    by = f"by {grouping.key}" if grouping.key else f"{grouping.lines} lines in a row"
    facts = {"sessions": found.sessions, "templates": found.templates, "grouping": by, "p_value": found.p_value}
    return {**facts, "checked": found.checked, "alarms": found.alarms}


def _scored(job: Job, text: str, models: Models, name: str) -> dict[str, Any]:
    """Verdicts on the sessions of a log."""
    from seqvae.anomaly import log_detector

    found = models.log(name)
    codec = models.codec(name, lambda progress, _: job.check())
    records = found.reader().records(_lines(text), "log")
    sessions = found.grouping.sessions(records)
    rows: list[dict[str, Any]] = []
    unknown = total = 0
    while batch := list(islice(sessions, BATCH)):
        job.report(0.0, f"scoring, {len(rows)} sessions done")
        new, of = found.unknown(batch)
        unknown, total = unknown + new, total + of
        settings = found.settings
        evidences = log_detector.evidence(codec, batch, found.templates, settings.samples, settings.seed)
        for session, evidence in zip(batch, evidences, strict=True):
            value = found.calibration.scores(evidence)[found.calibration.score]
            anomalous = value < settings.threshold
            pointed = explain.pointed(evidence)
            texts = [*(record.text for record in session.records), END]
            nats = evidence.log_prob.round(explain.DIGITS).astype("float64").tolist()
            lines = [
                {"text": texts[i], "log_prob": nats[i], "marked": i in pointed}
                for i in range(min(SHOWN if anomalous else FEW, len(texts)))
            ]
            rows.append(
                {
                    "name": session.name,
                    "p_value": found.calibration.p_value(value),
                    "anomalous": anomalous,
                    "score": value,
                    "tokens": lines,
                    "length": len(texts),
                }
            )
    if not rows:
        raise SeqVAEError("no line of this log belongs to a session as the detector knows them; learn another from it")
    share = unknown / total
    strange = share > log_detector.STRANGE
    return {"p_value": found.settings.p_value, "unknown": share, "strange": strange, "sessions": rows}
