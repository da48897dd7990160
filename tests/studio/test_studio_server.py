"""`seqvae studio` as a process: its address, slow clients, memory, and files left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import song
from studios import notes

ROUND = 8  # blends with sound, 2.4 MB each, between two measurements of memory
GROWTH = 10  # MB of growth allowed meanwhile: half of the growth if sound stayed in memory


class Served:
    """A studio in a process of its own."""

    def __init__(self, model: Path, temporary: Path) -> None:
        self.model, self.temporary = str(model), temporary
        command = [sys.executable, "-m", "seqvae", "studio", self.model, "--port", "0"]
        environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[0].rstrip("/")
        self.port = int(self.address.rpartition(":")[2])
        self.client = httpx2.Client(base_url=self.address, timeout=60)

    def result(self, path: str, **more: Any) -> Any:
        """The result of a job."""
        response = self.client.post(path, **more)
        while response.status_code == 202:
            response = self.client.get(f"/api/jobs/{response.json()['job']}")
        assert response.status_code == 200, response.text
        return response.json()["result"]

    def opened(self, tune: Path) -> Any:
        """Open a song."""
        return self.result("/api/music/pieces", files={"file": (tune.name, tune.read_bytes())})

    def blend(self, piece: str, amount: float) -> Any:
        """A blend of it."""
        body = {"model": self.model, "piece": piece, "target": "wild", "amount": amount}
        return self.result("/api/music/blend", json=body)

    def end(self, how: signal.Signals) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(how)
        return self.process.wait(20)


@pytest.fixture
def served(tiny_music: Path, tmp_path: Path) -> Iterator[Served]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    made = Served(tiny_music, temporary)
    yield made
    made.client.close()
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait(20)
    assert made.process.stdout is not None
    made.process.stdout.close()


def half_sent(port: int, content: bytes) -> socket.socket:
    """A client that sends these bytes and then nothing."""
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(content)
    return client


def test_it_listens_only_to_this_machine_and_slow_clients_delay_no_others(served: Served, tmp_path: Path) -> None:
    assert served.address.startswith("http://127.0.0.1:")
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", served.port), timeout=2):
        pass  # it would answer there if it listened to all addresses
    host = f"Host: 127.0.0.1:{served.port}\r\n".encode()
    head = b"POST /api/text/steps HTTP/1.1\r\n" + host + b"Content-Type: application/json\r\nContent-Length: 50\r\n"
    slow = [half_sent(served.port, b"GET /api/mod") for _ in range(20)]
    slow += [half_sent(served.port, head) for _ in range(20)]
    slow += [half_sent(served.port, head + b'\r\n{"a": "half') for _ in range(20)]
    roll = served.opened(song(tmp_path / "tune.mid", 3))
    wav = f"GET /api/music/{roll['id']}.wav HTTP/1.1\r\n".encode() + host + b"\r\n"
    slow += [half_sent(served.port, wav) for _ in range(20)]  # and these read nothing of the response
    began = time.monotonic()
    for amount in (0.25, 0.5):
        assert notes(served.blend(roll["id"], amount))
        assert served.client.get("/api/models").status_code == 200
    assert time.monotonic() - began < 15  # a slow one is given 30 s
    for client in slow:
        client.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc to tell the memory")
def test_memory_is_bounded_and_no_files_are_left_after_the_end(served: Served, tmp_path: Path) -> None:
    def memory() -> float:
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{served.process.pid}/status").read_text())
        assert match is not None
        return int(match[1]) / 1024

    piece = served.opened(song(tmp_path / "tune.mid", 3))["id"]
    held = []
    for round_ in range(3):
        for i in range(ROUND):
            roll = served.blend(piece, round((round_ * ROUND + i) / 100, 2))
            assert served.client.get(f"/api/music/{roll['id']}.wav").status_code == 200
        held.append(memory())
    assert held[2] - held[1] < GROWTH
    assert len(list(served.temporary.rglob("*.wav"))) == 3 * ROUND
    served.end(signal.SIGTERM)
    assert list(served.temporary.iterdir()) == []


def test_an_interrupt_during_work_ends_it_at_once_without_leftovers(served: Served, tmp_path: Path) -> None:
    piece = served.opened(song(tmp_path / "tune.mid", 3, bars=64))["id"]
    body = {"model": served.model, "piece": piece, "target": "wild", "amount": 1.0}
    assert served.client.post("/api/music/blend", json=body).status_code in (200, 202)
    began = time.monotonic()
    assert served.end(signal.SIGINT) in (0, 130, -signal.SIGINT)
    assert time.monotonic() - began < 15
    assert list(served.temporary.iterdir()) == []
