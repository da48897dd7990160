"""Responses: a result at once if it is quick, otherwise a job to poll; errors in one line.

Scope: HTTP and jobs. Out of scope: the work itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Generic, TypeVar

from cachetools import LRUCache
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from seqvae.errors import SeqVAEError
from seqvae.studio.jobs import AbandonedError, FullError, Job, State, Worker

QUICK = 0.5  # seconds before a response is a job
WAIT = 2.0  # most seconds that a request for a job waits
JOBS = 256  # most jobs kept
TOGETHER = 16  # jobs of one model at a time: they take turns and share batches of decoding

T = TypeVar("T")


class Answer(BaseModel, Generic[T]):
    """A job with its progress, or its result."""

    job: str = Field(description="id to poll at /api/jobs/{job} until the state is done")
    state: State
    progress: float = Field(description="progress of the present step, from 0 to 1")
    message: str = Field(description="the present step")
    result: T | None = Field(None, description="present when the state is done")


class Problem(BaseModel):
    """Body of every error."""

    error: str = Field(description="what is wrong and what to do, in one line")


WORDS = {
    404: "there is nothing at this address; see /api.html",
    405: "this address does not accept this method; see /api.html",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "bad request"},
    403: {"model": Problem, "description": "request from a page of another site"},
    404: {"model": Problem, "description": "not found, or no longer kept"},
    413: {"model": Problem, "description": "too large"},
    415: {"model": Problem, "description": "unsupported content type"},
    422: {"model": Problem, "description": "a field is missing or out of its range"},
    503: {"model": Problem, "description": "too many jobs; Retry-After says when to try again"},
}


def shapes(result: Any) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a route with this type of result."""
    shape = {"model": Answer[result]}
    return {200: {**shape, "description": "done"}, 202: {**shape, "description": "not yet"}, **PROBLEMS}


class Jobs(LRUCache[str, Job]):
    """Jobs by their ids, cancelled when they are dropped."""

    def popitem(self) -> tuple[str, Job]:
        """Drop the least recently polled job."""
        name, job = super().popitem()
        job.cancel()
        return name, job


class Desk:
    """Jobs of all requests, and their workers."""

    def __init__(self) -> None:
        self._workers: dict[str | None, Worker] = {}
        self._jobs, self._lock = Jobs(JOBS), threading.Lock()

    async def answer(self, work: Callable[[Job], Any], model: str | None = None) -> Response:
        """Queue work for a model (or for reading) and respond when it is done, or after QUICK seconds."""
        if model not in self._workers:
            self._workers[model] = Worker(f"seqvae-{model}" if model else "seqvae-reading", TOGETHER if model else 1)
        worker = self._workers[model]
        try:
            job = worker.submit(Job(lambda job: _json(work(job))))
        except FullError:
            raise HTTPException(503, "too many jobs are waiting; try again soon", {"Retry-After": "5"}) from None
        with self._lock:
            self._jobs[job.id] = job
        return await self.look(job, QUICK)

    async def look(self, job: Job, seconds: float) -> Response:
        """State of a job, as soon as it has ended or `seconds` have passed."""
        job.poll()
        waiting = asyncio.wrap_future(job.future)
        waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # raised below
        await asyncio.wait([waiting], timeout=seconds)
        job.poll()
        ended = job.future.done()
        if ended and (error := job.future.exception()) is not None:
            raise error
        message = job.message
        if job.state == "waiting" and (ahead := max(worker.ahead(job) for worker in self._workers.values())):
            message = f"waiting, jobs ahead: {ahead}"
        facts = {"job": job.id, "state": job.state, "progress": round(job.progress, 3), "message": message}
        head = json.dumps(facts)[:-1].encode()
        body = head + b', "result": ' + (job.future.result() if ended else b"null") + b"}"
        return Response(body, 200 if ended else 202, media_type="application/json")

    def find(self, name: str) -> Job:
        """A job by its id; raises HTTPException where it is unknown."""
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            raise HTTPException(404, "this job is unknown or no longer kept; send its request again")
        return job

    def close(self) -> None:
        """End all threads."""
        for worker in self._workers.values():
            worker.close()


def _json(result: Any) -> bytes:
    """Result as JSON, made in the worker's thread, as a long one would block other requests."""
    if isinstance(result, bytes):
        return result
    return json.dumps(result, allow_nan=False, separators=(",", ":")).encode()


def routes(desk: Desk) -> APIRouter:
    """Routes under /api/jobs."""
    router = APIRouter(prefix="/api/jobs", tags=["jobs"])

    @router.get("/{job}", responses=shapes(Any), response_class=Response)
    async def look(job: str, wait: Annotated[float, Query(ge=0, le=WAIT, description="seconds")] = 1.0) -> Response:
        """State of a job. A job that is not polled for ten seconds is cancelled."""
        return await desk.look(desk.find(job), wait)

    @router.delete("/{job}", status_code=204, responses={404: PROBLEMS[404]})
    async def cancel(job: str) -> None:
        """Cancel a job."""
        desk.find(job).cancel()

    return router


def errors_in_words(app: FastAPI) -> None:
    """Turn every error into {"error": one line}."""

    def refusal(status: int, reason: str, headers: Any = None) -> Response:
        line = " ".join(reason.split())
        return Response(json.dumps({"error": line}), status, headers=headers, media_type="application/json")

    @app.exception_handler(SeqVAEError)
    async def _(_: Request, error: SeqVAEError) -> Response:
        return refusal(400, str(error))

    @app.exception_handler(AnyHTTPException)
    async def _(_: Request, error: AnyHTTPException) -> Response:
        reason = WORDS.get(error.status_code, "") if error.detail == HTTPStatus(error.status_code).phrase else ""
        return refusal(error.status_code, reason or str(error.detail), error.headers)

    @app.exception_handler(AbandonedError)
    async def _(_: Request, error: AbandonedError) -> Response:
        return refusal(410, "the job was cancelled; send its request again")

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        if first["type"] == "json_invalid" or not where:
            return refusal(422, "the body is not a JSON object; see /api.html")
        return refusal(422, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}; see /api.html")

    @app.exception_handler(Exception)
    async def _(_: Request, error: Exception) -> Response:
        logging.getLogger("seqvae.studio").error("a bug", exc_info=error)
        return refusal(500, "internal error of the studio; see its terminal")
