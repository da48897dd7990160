"""Requests to the studio as bytes: sending them, and seeds.

Scope: a request as an ASGI server would pass it on, and its answer. Out of scope: the models (fuzz_doors.py), and the
mutation of requests (fuzz_inputs.py).
"""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from typing import Any

import fuzz_scores as scores

from seqvae.errors import SeqVAEError


class RefusedError(SeqVAEError):
    """A refusal that is an answer instead of an exception."""


def request(runner: asyncio.Runner, app: Any, content: bytes) -> None:
    """Send a request; raises RefusedError with its message for a status from 400 to 499."""
    head, _, body = content.partition(b"\n\n")
    line, *rest = head.split(b"\n")
    method, _, target = line.partition(b" ")
    status, answer = runner.run(_answer(app, method, target, rest, body))
    for _ in range(40):
        if status != 202:
            break
        path = f"/api/jobs/{json.loads(answer)['job']}?wait=0.25".encode()
        status, answer = runner.run(_answer(app, b"GET", path, [], b""))
    else:  # a long job: cancel it, as a user who leaves
        runner.run(_answer(app, b"DELETE", path.partition(b"?")[0], [], b""))
    assert b"root:" not in answer
    if status >= 400:
        assert status < 500, f"{status}: {answer[:300]!r}"
        if method != b"HEAD":
            raise RefusedError(json.loads(answer)["error"])


async def _answer(app: Any, method: bytes, target: bytes, lines: list[bytes], body: bytes) -> tuple[int, bytes]:
    """Status and body of the application's answer to a request in ASGI."""
    path, _, query = target.partition(b"?")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    known = {name for name, _ in headers}
    headers += [(b"host", b"localhost")] * (b"host" not in known)
    headers += [(b"content-length", str(len(body)).encode())] * (b"content-length" not in known and bool(body))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": method.decode("latin-1").upper(),
        "path": urllib.parse.unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    pending = [{"type": "http.request", "body": body, "more_body": False}]
    status, answer = 0, b""

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop()
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, answer
        status = message.get("status", status)
        answer += message.get("body", b"")

    await app(scope, receive, send)
    return status, answer


def seeds() -> list[bytes]:
    bodies: dict[str, Any] = {
        "/api/text/steps": {"model": "text", "a": "the food was good", "b": "the bar is new", "steps": 3},
        "/api/text/blend": {
            "model": "text",
            "text": "the food",
            "moves": [{"source": None, "target": "calm", "amount": 0.5}],
        },
        "/api/map": {"model": "events"},
        "/api/map/decode": {"model": "events", "x": 0.5, "y": -0.5, "spread": 0.5, "seed": 1},
        "/api/anomalies": {"model": "events", "lines": ["open read check close", "open what"]},
        "/api/anomalies/examples": {"model": "events"},
        "/api/music/blend": {"model": "midi", "piece": "0" * 32, "target": "calm", "amount": 0.5, "keep": ["melody"]},
        "/api/music/corpus": {"name": "bach/../../x", "bars": 1},
    }
    posts = [
        f"POST {path}\ncontent-type: application/json\norigin: http://localhost\n\n{json.dumps(body)}".encode()
        for path, body in bodies.items()
    ]
    form = b'--x\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    upload = (
        form % (b"file", b'; filename="a.mid"', scores.midi_seeds()[0]) + form % (b"bars", b"", b"2") + b"--x--\r\n"
    )
    gets = [
        "/",
        "/api/models",
        "/api/jobs/x?wait=0.1",
        "/api/music/corpus",
        "/api/music/x.mid",
        "/api/music/x.wav?mute=1",
        "/../../../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/static/%00",
        "/api.html",
    ]
    return [
        *posts,
        *(f"GET {path}\n\n".encode() for path in gets),
        b"OPTIONS /\n\n",
        b"DELETE /api/jobs/x\n\n",
        b"POST /api/music/pieces\ncontent-type: multipart/form-data; boundary=x\n\n" + upload,
    ]
