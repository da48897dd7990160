"""The studio as an application and a server.

Scope: assembly of the routes, static files, and the socket. Out of scope: the routes themselves.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from seqvae.errors import SeqVAEError
from seqvae.modality import Content
from seqvae.studio import anomalies, answers, logs, map, music, text
from seqvae.studio.answers import PROBLEMS, Desk
from seqvae.studio.guard import Guard
from seqvae.studio.models import Models
from seqvae.studio.shelf import Shelf

STATIC = Path(__file__).parent / "static"
CONNECTIONS = 1000  # most at once; others get status 503
ABOUT = """Blend, interpolate and sample music and sentences, and find anomalies. Long work returns a job (202):
poll it at /api/jobs/{job} until its state is "done". Every error is {"error": "..."}, in one line."""


class Model(BaseModel):
    """A model available to requests."""

    name: str
    kind: str
    content: Content = Field(description="what its pieces are")
    styles: list[str]
    detector: bool
    raw: bool = Field(description="whether it takes raw lines of a log")


def application(models: Models, hosts: Sequence[str] = ()) -> ASGIApp:
    """The page and the API; `hosts` are accepted host names."""
    desk, shelf = Desk(), Shelf()
    learned = tempfile.TemporaryDirectory(prefix="seqvae-logs-")

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()
        shelf.close()
        learned.cleanup()

    # FastAPI's own documentation pages load scripts from other sites; ours is static/api.html
    app = FastAPI(title="seqvae studio", description=ABOUT, docs_url=None, redoc_url=None, lifespan=life)
    answers.errors_in_words(app)

    @app.get("/api/models", tags=["models"], responses={403: PROBLEMS[403]})
    async def list_models() -> list[Model]:
        """The models available to requests."""
        return [Model(**asdict(facts)) for facts in models.facts]

    app.include_router(music.routes(desk, models, shelf))
    app.include_router(text.routes(desk, models))
    app.include_router(map.routes(desk, models, shelf))
    app.include_router(anomalies.routes(desk, models))
    app.include_router(logs.routes(desk, models, learned))
    app.include_router(answers.routes(desk))

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)

    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return Guard(app, hosts, {"/api/music/pieces"})


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises SeqVAEError where it cannot be opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise SeqVAEError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from error


def serve(models: Models, listening: socket.socket, hosts: Sequence[str] = ()) -> None:
    """Serve until interrupted."""
    config = uvicorn.Config(
        application(models, hosts),
        log_level="warning",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[listening])
