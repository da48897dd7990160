"""What every request must pass: the right host, no page of another site behind it, no more bytes than allowed.

Knows headers and sizes. Refuses to know what is asked. A page of another site can send requests to this machine, and a
name of its own that points here (DNS rebinding) makes the answers readable to it; both are refused before all else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LIMIT = 4 << 20  # bytes of a request
SECONDS = 30.0  # until all of it must have come
SAFE = {"GET", "HEAD", "OPTIONS"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Refusal:
    """Why a request gets no further."""

    status: int
    reason: str


TOO_LARGE = Refusal(413, f"more than {LIMIT >> 20} MB; send less at once")


class Guard:
    """ASGI around the application."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] = (), forms: Collection[str] = ()) -> None:
        """`hosts` are names that this server may be called by, besides localhost and addresses in digits.

        `forms` are the paths that take multipart forms; all others that take anything take JSON.
        """
        self._app, self._hosts, self._forms = app, {"localhost", *(host.lower() for host in hosts)}, set(forms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with the reason why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, started = _Body(receive), False

        async def sending(message: Message) -> None:
            nonlocal started
            if body.refused and not started:
                return  # what the application makes of half a body is of no interest
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope, Headers(scope=scope))
        if refused is None:
            await self._app(scope, body.receive, sending)
            refused = body.refused
        if refused and not started:
            if refused.status == 413:
                await body.drain()
            await _tell(send, refused)

    def _refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Why a request gets no further, by its head."""
        host, method = headers.get("host", ""), scope["method"]
        if not self._known(host):
            return Refusal(
                400, f"this server is not called '{host[:80]}'; open it as localhost, or start it with --host"
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and origin not in (f"http://{host}", f"https://{host}")
        # a link from elsewhere may open the page; scripts and forms from elsewhere may do nothing
        link = method in SAFE and headers.get("sec-fetch-mode") == "navigate"
        if foreign or (site not in ("none", "same-origin") and not link):
            return Refusal(403, "pages of other sites may not use this server; open its own page")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LIMIT:
            return TOO_LARGE
        wanted = "multipart/form-data" if scope["path"] in self._forms else "application/json"
        given = headers.get("content-type", "").partition(";")[0].strip().lower()
        if (length != "0" or "transfer-encoding" in headers) and given != wanted:
            return Refusal(415, f"'{given[:80]}' is not taken here; send {wanted}")
        return None

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)  # whoever writes digits was not led here by a name
        except ValueError:
            return False
        return True


class _Body:
    """A body that comes; one that is larger than it said, or too slow, ends as if the client had left."""

    def __init__(self, receive: Receive) -> None:
        self.refused: Refusal | None = None
        self._receive, self._size, self._whole = receive, 0, False
        self._until = asyncio.get_running_loop().time() + SECONDS

    async def receive(self) -> Message:
        if self._whole:  # what comes now is only that the client has left
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            self.refused = Refusal(408, f"the request took more than {SECONDS:g} s to come; send it again")
            return {"type": "http.disconnect"}
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > LIMIT:
            self.refused = TOO_LARGE
            return {"type": "http.disconnect"}
        return message

    async def drain(self) -> None:
        """Throw away what still comes, within bounds: many a client reads no answer before it has sent everything."""
        left = 16 * LIMIT
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._until):
                while left > 0 and not self._whole:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._whole = not message.get("more_body", False)


async def _tell(send: Send, refused: Refusal) -> None:
    body = json.dumps({"error": refused.reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is still to come of the request is not read
        *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
