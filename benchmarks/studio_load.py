"""A load test of the studio: concurrent users on loopback with mixed requests; errors, latencies and memory.

    python benchmarks/studio_load.py --users 50 --seconds 120

Starts `seqvae studio` in its own process. Every user performs actions in sequence: blend an encoded song, interpolate
sentences, score sessions, load the page and its files, play audio, upload a file that is too large, leave during a job,
send a request slowly. Prints counts, errors, latencies from request to result, and the server's memory. Expected
refusals (413 for a large file) are not errors. 503 is counted separately: the user retries after the seconds in its
header. Requests without a result at the end are cancelled and counted as waiting. The exit code is 1 after an error.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2

SENTENCES = [
    "the food was great .",
    "we had to wait for an hour .",
    "the staff is friendly .",
    "i will not come back .",
]
SESSIONS = [
    "E5 E5 E22 E5 E11 E9 E11 E9 E11 E9 E26 E26 E26 E23 E23 E23 E21 E21 E21",
    "E5 E22 E5 E5 E11 E9 E11 E9 E26 E11 E9 E26 E26 E4 E3 E2 E23 E23 E23 E21 E21 E21",
    "E5 E5 E22 E5 E21 E9 E11 E26 E11 E3 E26 E2 E26",
]


GRACE = 10.0  # seconds that users wait for their last result


class BusyError(Exception):
    """The server is busy; the message is the number of seconds to wait."""


class Load:
    """Actions and statistics of all users."""

    def __init__(self, base: str, seconds: float) -> None:
        self.base, self.until = base, time.monotonic() + seconds
        self.latencies: dict[str, list[float]] = collections.defaultdict(list)
        self.errors: collections.Counter[str] = collections.Counter()
        self.busy: collections.Counter[str] = collections.Counter()
        self.requests = self.late = 0
        self.served: set[int] = set()
        self.start = 0.0
        self.piece = ""

    def client(self) -> httpx2.AsyncClient:
        """A new client with its own connections."""
        return httpx2.AsyncClient(base_url=self.base, timeout=120, verify=False)  # saves loading certificates

    async def send(self, client: httpx2.AsyncClient, method: str, path: str, want: int, **more: Any) -> Any:
        """Send a request and return the response; RuntimeError unless its status is `want`, BusyError for 503."""
        self.requests += 1
        response = await client.request(method, path, **more)
        if response.status_code == 503:
            raise BusyError(response.headers.get("retry-after", "1"))
        if response.status_code != want and not (want == 200 and response.status_code == 202):
            raise RuntimeError(f"{method} {path.partition('?')[0]}: {response.status_code} {response.text[:120]}")
        return response

    async def job(self, client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> Any:
        """Send a request and poll its job until it is done; the job's result."""
        response = await self.send(client, "POST", path, 200, json=body)
        while response.status_code == 202:
            response = await self.send(client, "GET", f"/api/jobs/{response.json()['job']}?wait=1", 200)
        return response.json()["result"]

    # --- actions ------------------------------------------------------------------------------------------------------

    async def blend(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Move the slider."""
        amount = draw.randrange(0, 31) / 20
        body = {"piece": self.piece, "source": "classical", "target": draw.choice(["rock", "jazz"]), "amount": amount}
        await self.job(client, "/api/music/blend", body)

    async def steps(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Interpolate two sentences."""
        a, b = draw.sample(SENTENCES, 2)
        await self.job(client, "/api/text/steps", {"a": a, "b": b, "steps": 5})

    async def score(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Score sessions."""
        found = await self.job(client, "/api/anomalies", {"lines": draw.choices(SESSIONS, k=10)})
        assert len(found["sessions"]) == 10

    async def page(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Load the page."""
        for path in ("/", "/studio.css", "/studio.js", "/music.js", "/api/models"):
            await self.send(client, "GET", path, 200)

    async def sound(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Load audio."""
        mute = "&".join(f"mute={i}" for i in range(4) if draw.random() < 0.3)
        await self.send(client, "GET", f"/api/music/{self.piece}.wav?small=1&{mute}", 200)

    async def large(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Upload a file that is too large."""
        files = {"file": ("large.mid", b"0" * (5 << 20))}
        await self.send(client, "POST", "/api/music/pieces", 413, files=files)

    async def leave(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Send a request, and leave without its result."""
        body = {
            "text": " ".join(draw.sample(SENTENCES, 3)),
            "moves": [{"target": "positive", "amount": draw.random()}],
        }
        await self.send(client, "POST", "/api/text/blend", 200, json=body)

    async def drip(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Send a request slowly."""

        async def drops() -> Any:
            for part in (b'{"a": "the food",', b' "b": "the staff",', b' "model": "no such model"}'):
                yield part
                await asyncio.sleep(1)

        kind = {"Content-Type": "application/json"}
        await self.send(client, "POST", "/api/text/steps", 400, content=drops(), headers=kind)

    async def user(self, number: int) -> None:
        """One user with a random generator and a client of its own."""
        draw = random.Random(number)
        async with self.client() as client:
            await self.session(number, client, draw)

    async def session(self, number: int, client: httpx2.AsyncClient, draw: random.Random) -> None:
        """Random actions of a user until the time is over."""
        do: list[Callable[[httpx2.AsyncClient, random.Random], Awaitable[None]]]
        do = [self.blend, self.steps, self.score, self.page, self.sound, self.large, self.leave, self.drip]
        while time.monotonic() < self.until:
            action = draw.choices(do, [4, 3, 4, 4, 2, 1, 1, 1])[0]
            name, began = action.__name__, time.monotonic()
            try:
                await action(client, draw)
                self.latencies[name].append(time.monotonic() - began)
                if name in ("blend", "steps", "score"):
                    self.served.add(number)
            except BusyError as busy:
                self.busy[name] += 1
                await asyncio.sleep(float(str(busy)))
            except Exception as error:  # any error is counted
                self.errors[f"{name}: {type(error).__name__} {error}"[:200]] += 1
            await asyncio.sleep(draw.random())

    async def run(self, users: int, seconds: float, server: int) -> None:
        """Run all users concurrently against the process `server`."""
        async with self.client() as client:  # load models and song before the measurement
            self.piece = (await self.job(client, "/api/music/corpus", {"name": "bach/bwv66.6"}))["id"]
            for first in (self.blend, self.steps, self.score, self.sound):
                await first(client, random.Random(0))
        self.start = memory(server, "VmRSS")
        self.requests, self.until = 0, time.monotonic() + seconds
        tasks = [asyncio.create_task(self.user(i)) for i in range(users)]
        _, late = await asyncio.wait(tasks, timeout=seconds + GRACE)
        for task in late:
            task.cancel()
        self.late = len(late)


def memory(process: int, field: str) -> float:
    """Memory of a process in MB, from /proc; `VmRSS` is the resident size, `VmHWM` its maximum."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "seqvae", "studio", "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": temporary})
        try:
            assert server.stdout is not None
            base = server.stdout.readline().split()[0].rstrip("/")
            load = Load(base, args.seconds)
            began = time.monotonic()
            asyncio.run(load.run(args.users, args.seconds, server.pid))
            took = time.monotonic() - began
            peak, now = memory(server.pid, "VmHWM"), memory(server.pid, "VmRSS")
        finally:
            server.terminate()
            server.wait(20)
        left = [path.name for path in Path(temporary).iterdir()]
    print(f"{args.users} users, {took:.0f} s in all, {load.requests} requests")
    print(f"users with a result from a model: {len(load.served)}; users still waiting at the end: {load.late}")
    print(f"{'action':8} {'done':>6} {'busy':>6} {'p50 s':>7} {'p95 s':>7} {'max s':>7}")
    for name, times in sorted(load.latencies.items()):
        times.sort()
        at = [times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.95, 1)]
        print(f"{name:8} {len(times):6} {load.busy[name]:6} {at[0]:7.2f} {at[1]:7.2f} {at[2]:7.2f}")
    print(f"server's memory: {load.start:.0f} MB at the start, {now:.0f} MB at the end, {peak:.0f} MB at most")
    print(f"temporary files left: {left or 'none'}")
    print(f"errors: {sum(load.errors.values())}")
    for line, count in load.errors.most_common(20):
        print(f"  {count} x {line}")
    sys.exit(1 if load.errors or left else 0)


if __name__ == "__main__":
    main()
