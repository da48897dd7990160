"""A detector learned from a raw log in the studio, and another log scored with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import session
from fastapi.testclient import TestClient
from studios import HOME, refusal, result, wait

pytest.importorskip("drain3", reason="pip install 'seqvae[logs]'")

from seqvae.studio import logs
from seqvae.studio.models import Models
from seqvae.studio.server import application


def log(numbers: range, changed: dict[int, list[str]] | None = None) -> str:
    """The raw lines of interleaved sessions."""
    rows = []
    for number in numbers:
        for i, event in enumerate((changed or {}).get(number, session(number).split())):
            line = f"Dec 10 06:{number % 60:02}:00 box app[{number}]: {event} of file {number + i}"
            rows.append((number + i / 10, line))
    return "\n".join(line for _, line in sorted(rows))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(application(Models()), base_url=HOME) as opened:
        yield opened


@pytest.fixture(scope="module")
def learned(client: TestClient) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "MINUTES", 0.15)
        return result(client, "/api/logs/learn", {"text": log(range(300))})


def test_a_learned_log_becomes_a_model(client: TestClient, learned: Any) -> None:
    assert learned["sessions"] == 300
    assert learned["grouping"].startswith("by app")
    assert learned["alarms"] <= learned["checked"] == 45
    [row] = [row for row in client.get("/api/models").json() if row["name"] == learned["model"]]
    assert row["raw"] and row["detector"]


def test_sessions_of_another_log_get_verdicts_with_their_lines(client: TestClient, learned: Any) -> None:
    text = log(range(400, 420), {405: ["open", "melted down", "close"]})
    answer = result(client, "/api/logs", {"model": learned["model"], "text": text})
    assert [one["name"] for one in answer["sessions"]] == [str(number) for number in range(400, 420)]
    assert answer["p_value"] == learned["p_value"] and not answer["strange"]
    odd = answer["sessions"][5]
    assert odd["anomalous"] and odd["length"] == 4
    marked = [line["text"] for line in odd["tokens"] if line["marked"]]
    assert any("melted down" in line for line in marked)
    assert [line["text"] for line in odd["tokens"]][-1] == logs.END
    usual = [one for one in answer["sessions"] if not one["anomalous"]]
    assert len(usual) >= 15 and all(len(one["tokens"]) == logs.FEW for one in usual)


def test_a_log_of_another_source_is_reported(client: TestClient, learned: Any) -> None:
    text = "\n".join(f"Dec 10 06:00:00 box app[{n}]: quite another message" for n in range(5))
    assert result(client, "/api/logs", {"model": learned["model"], "text": text})["strange"]


def test_an_unusable_log_is_a_one_line_error(client: TestClient, learned: Any) -> None:
    few = wait(client, client.post("/api/logs/learn", json={"text": "one line\nand another"}))
    assert "too few to learn from" in refusal(few, 400)
    other = wait(client, client.post("/api/logs", json={"model": "hdfs", "text": "a line"}))
    assert "was not learned from a raw log" in refusal(other, 400)
    none = wait(client, client.post("/api/logs", json={"model": learned["model"], "text": "a line"}))
    assert "no line of this log belongs to a session" in refusal(none, 400)
    refusal(client.post("/api/logs", json={"model": learned["model"], "text": ""}), 422)


def test_learned_detectors_are_removed_with_the_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with TestClient(application(Models()), base_url=HOME):
        assert len(list(tmp_path.glob("seqvae-logs-*"))) == 1
    assert list(tmp_path.iterdir()) == []
