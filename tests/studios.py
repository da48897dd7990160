"""The studio in tests: small models, and requests that wait for their job."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from commands import done
from conftest import SESSIONS
from fastapi.testclient import TestClient

HOME = "http://localhost"


def with_detector(checkpoint: Path, folder: Path) -> Path:
    """A copy of a model of logs with a detector in its folder."""
    copied = folder / "watchful"
    shutil.copytree(checkpoint, copied)
    lines = folder / "normal.txt"
    lines.write_text("".join(f"{line}\n" for line in SESSIONS))
    done("detect", "fit", f"@{lines}", "-m", copied, "-o", copied / "detector", "--samples", 2)
    return copied


def result(client: TestClient, path: str, body: Any = None, **more: Any) -> Any:
    """The result of a job."""
    response = client.post(path, json=body, **more) if body is not None else client.post(path, **more)
    while response.status_code == 202:
        response = client.get(f"/api/jobs/{response.json()['job']}")
    assert response.status_code == 200, response.text
    assert response.json()["state"] == "done"
    return response.json()["result"]


def refusal(response: Any, status: int) -> str:
    """The one-line error of a refused request."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    line: str = body["error"]
    assert line and "\n" not in line
    return line


def notes(roll: dict[str, Any]) -> list[list[float]]:
    """All notes of a piano roll with their programs."""
    return sorted([track["program"], *note] for track in roll["tracks"] for note in track["notes"])


def wait(client: TestClient, response: Any) -> Any:
    """The final response of a job that may fail."""
    while response.status_code == 202:
        response = client.get(f"/api/jobs/{response.json()['job']}")
    return response
