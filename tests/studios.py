"""A studio for tests: small models, and requests that wait for their job."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from commands import done
from conftest import SESSIONS
from fastapi.testclient import TestClient

HOME = "http://localhost"


def with_detector(checkpoint: Path, folder: Path) -> Path:
    """A copy of a model of logs that carries a detector."""
    copied = folder / "watchful"
    shutil.copytree(checkpoint, copied)
    lines = folder / "normal.txt"
    lines.write_text("".join(f"{line}\n" for line in SESSIONS))
    done("detect", "fit", f"@{lines}", "-m", copied, "-o", copied / "detector", "--samples", 2)
    return copied


def result(client: TestClient, path: str, body: Any = None, **more: Any) -> Any:
    """What a job comes to."""
    told = client.post(path, json=body, **more) if body is not None else client.post(path, **more)
    while told.status_code == 202:
        told = client.get(f"/api/jobs/{told.json()['job']}")
    assert told.status_code == 200, told.text
    assert told.json()["state"] == "done"
    return told.json()["result"]


def refusal(told: Any, status: int) -> str:
    """The one line that a refused request gets."""
    assert told.status_code == status, told.text
    body = told.json()
    assert list(body) == ["error"]
    line: str = body["error"]
    assert line and "\n" not in line
    return line


def notes(roll: dict[str, Any]) -> list[list[float]]:
    """All notes of a roll with the program of each."""
    return sorted([track["program"], *note] for track in roll["tracks"] for note in track["notes"])


def wait(client: TestClient, told: Any) -> Any:
    """The last answer of a job that may fail."""
    while told.status_code == 202:
        told = client.get(f"/api/jobs/{told.json()['job']}")
    return told
