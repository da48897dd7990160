"""Checks of every request: host, origin, size and content type.

Scope: headers and sizes. Out of scope: routes. A page of another site can send requests to this machine, and a host
name of its own that points here (DNS rebinding) makes the responses readable to it; both are rejected first.
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

LIMIT = 4 << 20  # most bytes of a request
SECONDS = 30.0  # time limit for receiving a request
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
    """Status and reason of a rejected request."""

    status: int
    reason: str


TOO_LARGE = Refusal(413, f"more than {LIMIT >> 20} MB; send less at once")


class Guard:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] = (), forms: Collection[str] = ()) -> None:
        """`hosts` are accepted host names besides localhost and IP addresses.

        `forms` are the paths that accept multipart forms; all other paths accept JSON.
        """
        self._app, self._hosts, self._forms = app, {"localhost", *(host.lower() for host in hosts)}, set(forms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with the reason of its rejection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, started = _Body(receive), False

        async def sending(message: Message) -> None:
            nonlocal started
            if body.refused and not started:
                return  # drop the application's response to an incomplete body
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
            await _respond(send, refused)

    def _refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Reason for rejecting a request by its headers, or None."""
        host, method = headers.get("host", ""), scope["method"]
        if not self._known(host):
            return Refusal(
                400, f"'{host[:80]}' is not a name of this server; open it as localhost, or start it with --host"
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and origin not in (f"http://{host}", f"https://{host}")
        # a link of another site may open the page; its scripts and forms may do nothing
        link = method in SAFE and headers.get("sec-fetch-mode") == "navigate"
        if foreign or (site not in ("none", "same-origin") and not link):
            return Refusal(403, "pages of other sites may not use this server; open its own page")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LIMIT:
            return TOO_LARGE
        expected = "multipart/form-data" if scope["path"] in self._forms else "application/json"
        given = headers.get("content-type", "").partition(";")[0].strip().lower()
        if (length != "0" or "transfer-encoding" in headers) and given != expected:
            return Refusal(415, f"'{given[:80]}' is not accepted here; send {expected}")
        return None

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)  # an address in digits cannot be DNS rebinding
        except ValueError:
            return False
        return True


class _Body:
    """A request body; if it is too large or too slow, it ends as if the client had disconnected."""

    def __init__(self, receive: Receive) -> None:
        self.refused: Refusal | None = None
        self._receive, self._size, self._whole = receive, 0, False
        self._until = asyncio.get_running_loop().time() + SECONDS

    async def receive(self) -> Message:
        if self._whole:  # the only message left is the disconnect
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            self.refused = Refusal(408, f"the request took more than {SECONDS:g} s to arrive; send it again")
            return {"type": "http.disconnect"}
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > LIMIT:
            self.refused = TOO_LARGE
            return {"type": "http.disconnect"}
        return message

    async def drain(self) -> None:
        """Discard the rest of the body, within bounds: many clients read no response before they have sent all."""
        left = 16 * LIMIT
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._until):
                while left > 0 and not self._whole:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._whole = not message.get("more_body", False)


async def _respond(send: Send, refused: Refusal) -> None:
    body = json.dumps({"error": refused.reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the request is not read
        *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
