"""Jobs of the studio over HTTP: progress, cancellation, refusal, and concurrency."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import song
from fastapi.testclient import TestClient
from studios import HOME, refusal, result, wait

from seqvae import codec
from seqvae.music import piece as midi
from seqvae.nn.inference import BatchInference
from seqvae.studio import answers, jobs
from seqvae.studio.inference import JobInference, Shared
from seqvae.studio.models import Models
from seqvae.studio.server import application

# --- jobs over HTTP ---------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A studio that runs one job of a model at a time."""
    monkeypatch.setattr(answers, "TOGETHER", 1)
    with TestClient(application(Models([names["text"]])), HOME, raise_server_exceptions=False) as served:
        yield served


@pytest.fixture
def slow(narrow: TestClient, names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Start work that runs until it is released or abandoned; returns its job at once."""
    free = threading.Event()

    def until_free(self: Any, *args: Any, **kwargs: Any) -> list[str]:
        for i in range(1000):
            self.inference.report(i / 1000, "waiting for the test")
            if free.wait(0.01):
                break
        return ["done"]

    monkeypatch.setattr("seqvae.codec.Codec.interpolate", until_free)
    monkeypatch.setattr(answers, "QUICK", 0.05)
    body = {"model": names["text"], "a": "one", "b": "two", "steps": 2}
    yield lambda: narrow.post("/api/text/steps", json=body)
    free.set()


def ended(client: TestClient, job: str) -> Any:
    response = client.get(f"/api/jobs/{job}")
    until = time.monotonic() + 10
    while response.status_code == 202 and time.monotonic() < until:
        response = client.get(f"/api/jobs/{job}")
    return response


def test_long_work_reports_its_progress_and_can_be_cancelled(narrow: TestClient, slow: Callable[[], Any]) -> None:
    response = slow()
    assert response.status_code == 202
    first = response.json()
    time.sleep(0.2)
    then = narrow.get(f"/api/jobs/{first['job']}", params={"wait": 0}).json()
    assert then["state"] == "working" and then["message"] == "waiting for the test"
    assert then["progress"] > first["progress"]
    second = slow().json()
    third = slow().json()
    assert (second["state"], second["message"]) == ("waiting", "")
    assert (third["state"], third["message"]) == ("waiting", "waiting, jobs ahead: 1")
    assert narrow.delete(f"/api/jobs/{second['job']}").status_code == 204
    assert narrow.delete(f"/api/jobs/{first['job']}").status_code == 204
    assert narrow.delete(f"/api/jobs/{third['job']}").status_code == 204
    for job in (first, second, third):
        assert "was cancelled" in refusal(ended(narrow, job["job"]), 410)
    assert "this job is unknown" in refusal(narrow.get("/api/jobs/nothing"), 404)


def test_work_of_a_user_who_left_is_dropped(
    narrow: TestClient, slow: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.3)
    left = slow().json()["job"]
    time.sleep(0.6)
    monkeypatch.setattr(jobs, "PATIENCE", 10.0)
    assert "was cancelled" in refusal(ended(narrow, left), 410)


def test_work_beyond_the_queue_is_refused_and_abandoned_work_makes_room(
    narrow: TestClient, slow: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "QUEUE", 2)
    at_hand = slow().json()["job"]
    waiting = [slow().json()["job"] for _ in range(2)]
    full = slow()
    assert "try again" in refusal(full, 503) and full.headers["retry-after"]
    narrow.delete(f"/api/jobs/{waiting[0]}")
    another = slow()
    assert another.status_code == 202
    for job in (at_hand, waiting[1], another.json()["job"]):
        narrow.delete(f"/api/jobs/{job}")
        ended(narrow, job)


def test_a_bug_is_reported_with_a_message_and_the_next_request_is_served(
    client: TestClient, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": names["text"], "a": "one", "b": "two", "steps": 2}
    with monkeypatch.context() as broken:
        broken.setattr("seqvae.codec.Codec.interpolate", lambda *_: 1 / 0)
        assert "internal error of the studio" in refusal(client.post("/api/text/steps", json=body), 500)
    assert result(client, "/api/text/steps", body)


def test_no_files_are_left_behind(
    names: dict[str, str], tune: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(threading.enumerate())
    with TestClient(application(Models()), HOME) as served:
        roll = result(served, "/api/music/pieces", files={"file": (tune.name, tune.read_bytes())})
        assert served.get(f"/api/music/{roll['id']}.wav", params={"small": 1}).status_code == 200
        assert len(list(tmp_path.rglob("*.wav"))) == 1
    assert list(tmp_path.iterdir()) == []
    until = time.monotonic() + 5
    while (
        left := {t for t in set(threading.enumerate()) - before if t.name.startswith("seqvae-")}
    ) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


def test_a_cached_posterior_equals_a_computed_one(names: dict[str, str]) -> None:
    model = Models([names["text"]]).codec(names["text"], lambda *_: None)
    lines = ["the food was good and the bar is new", "the room is bad and the place is cold"]
    model.exact = True  # otherwise the last digits depend on the batch size
    [first], [again] = model.encode(lines[:1]), model.encode(lines[:1])
    both = model.encode(lines)
    assert torch.equal(first, again) and torch.equal(first, both[0])
    assert model.encode([]) == []


# --- concurrency ------------------------------------------------------------------------------------------------------


def shared_by(models: Models, name: str) -> Shared:
    """The shared state of the jobs of a model."""
    inference = models.codec(name, lambda *_: None).inference
    assert isinstance(inference, JobInference)
    return inference.shared


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Results of calls in threads of their own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(30) for future in [pool.submit(call) for call in calls]]


def test_concurrent_requests_are_decoded_in_one_batch_with_the_same_result(
    names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, alone = Models([names["music"]]), codec.load(names["music"])
    pieces = [midi.read(song(tmp_path / f"{seed}.mid", seed, bars=2 * seed)) for seed in (1, 2, 3)]
    jobs_of = [(piece, amount) for piece in pieces for amount in (0.0, 0.5, 1.0)]

    def moved(model: codec.Codec, piece: Any, amount: float) -> bytes:  # without a band, which is decoded separately
        [score] = model.transform([piece], model.translate("wild", None, amount), chroma_guidance=codec.CHROMA_GUIDANCE)
        return midi.to_bytes(score)

    expected = [moved(alone, *job) for job in jobs_of]
    rows: list[int] = []
    plain = BatchInference.generate_tokens

    def counted(self: BatchInference, z: Any, *more: Any) -> Any:
        rows.append(len(z))
        return plain(self, z, *more)

    monkeypatch.setattr(BatchInference, "generate_tokens", counted)
    shared = shared_by(models, names["music"])
    with shared.decoding:  # during one decoding the others queue up

        def blended(piece: Any, amount: float) -> bytes:
            return moved(models.codec(names["music"], lambda *_: None), piece, amount)

        pool = ThreadPoolExecutor(len(jobs_of))
        pending = [pool.submit(blended, *job) for job in jobs_of]
        until = time.monotonic() + 20
        while len(shared.orders) < len(jobs_of) and time.monotonic() < until:
            time.sleep(0.01)
    assert [one.result(30) for one in pending] == expected
    pool.shutdown()
    assert sorted(rows) == [6, 12]  # unmoved latents have no chroma guidance, and are decoded separately


def test_a_song_of_several_requests_is_encoded_once(
    names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, piece = Models([names["music"]]), midi.read(song(tmp_path / "a.mid", 7))
    encoded: list[int] = []
    plain = BatchInference.posteriors

    def counted(self: BatchInference, segments: Any, refined: bool = False) -> Any:
        encoded.append(len(segments))
        time.sleep(0.1)
        return plain(self, segments, refined)

    monkeypatch.setattr(BatchInference, "posteriors", counted)
    each = at_once(*[lambda: models.codec(names["music"], lambda *_: None).encode([piece])[0]] * 5)
    assert encoded == [2]
    assert all(torch.equal(z, each[0]) for z in each)


def test_samples_depend_on_their_seed_and_not_on_other_requests(names: dict[str, str]) -> None:
    models = Models([names["text"]])

    def drawn(seed: int) -> list[str]:
        one = models.codec(names["text"], lambda *_: None)
        one.exact = True
        return one.sample(3, seed=seed)

    alone = [drawn(seed) for seed in range(6)]
    assert at_once(*[lambda seed=seed: drawn(seed) for seed in range(6)]) == alone


def test_a_failing_request_of_a_batch_fails_alone(
    names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, piece = Models([names["music"]]), midi.read(song(tmp_path / "a.mid", 7))
    one = models.codec(names["music"], lambda *_: None)
    plain, broken = BatchInference.generate_tokens, iter([True])

    def once(self: BatchInference, *given: Any) -> Any:
        if next(broken, False):
            raise ZeroDivisionError
        return plain(self, *given)

    monkeypatch.setattr(BatchInference, "generate_tokens", once)
    shared = shared_by(models, names["music"])
    with ThreadPoolExecutor(4) as pool:
        with shared.decoding:
            pending = [pool.submit(one.transform, [piece], one.translate("wild", None, 1.0)) for _ in range(4)]
            while len(shared.orders) < 4:
                time.sleep(0.01)
        assert sorted(type(each.exception(30)).__name__ for each in pending) == ["NoneType"] * 3 + ["ZeroDivisionError"]
    assert shared.orders == []


def test_a_users_logs_do_not_wait_for_another_users_sentences(
    narrow: TestClient, slow: Callable[[], Any], names: dict[str, str]
) -> None:
    held = slow().json()
    assert held["state"] == "working"
    response = narrow.post("/api/map", json={"model": "hdfs"})
    assert wait(narrow, response).json()["state"] == "done"
    narrow.delete(f"/api/jobs/{held['job']}")


def test_a_later_failure_is_reported_to_the_client_and_not_on_the_terminal(
    narrow: TestClient, slow: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = slow().json()["job"]
    for _ in range(3):
        narrow.get(f"/api/jobs/{job}", params={"wait": 0})
    narrow.delete(f"/api/jobs/{job}")
    assert "was cancelled" in refusal(ended(narrow, job), 410)
    time.sleep(0.1)
    gc.collect()
    assert "never retrieved" not in caplog.text
