"""Parts of the studio in isolation: caches, jobs, the reading process, the map's plane, slow clients."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import song

from seqvae.errors import ReadError
from seqvae.music import piece as midi
from seqvae.studio import guard, jobs
from seqvae.studio.answers import Jobs
from seqvae.studio.guard import Guard
from seqvae.studio.jobs import AbandonedError, FullError, Job, Worker
from seqvae.studio.reading import Reader
from seqvae.studio.shelf import SoundFiles
from seqvae.style.gaussian import Style, fit
from seqvae.style.lda import plane

# --- caches -----------------------------------------------------------------------------------------------------------


def test_sound_files_take_bounded_space_and_the_least_recently_used_is_deleted(tmp_path: Path) -> None:
    files = SoundFiles(20, lambda path: path.stat().st_size)
    for name, size in (("a", 8), ("b", 8)):
        (tmp_path / name).write_bytes(bytes(size))
        files[name] = tmp_path / name
    assert files["a"] == tmp_path / "a"
    (tmp_path / "c").write_bytes(bytes(8))
    files["c"] = tmp_path / "c"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files) == ["a", "c"]


def test_the_job_polled_longest_ago_is_cancelled_for_a_new_one() -> None:
    made, kept = [Job(lambda _: b"") for _ in range(3)], Jobs(2)
    for job in made[:2]:
        kept[job.id] = job
    assert kept[made[0].id] is made[0]
    kept[made[2].id] = made[2]
    assert [job.left for job in made] == [False, True, False]
    assert set(kept) == {made[0].id, made[2].id}


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker() -> Any:
    made = Worker("test")
    yield made
    made.close()


def test_jobs_run_in_order_in_one_thread(worker: Worker) -> None:
    threads: list[tuple[int, int]] = []

    def work(number: int) -> Callable[[Job], bytes]:
        def noted(job: Job) -> bytes:
            threads.append((number, threading.get_ident()))
            return b"%d" % number

        return noted

    made = [worker.submit(Job(work(i))) for i in range(20)]
    assert [job.future.result(5) for job in made] == [b"%d" % i for i in range(20)]
    assert [number for number, _ in threads] == list(range(20))
    assert len({thread for _, thread in threads}) == 1
    assert {job.state for job in made} == {"done"}


def test_a_failure_is_kept_and_the_thread_continues(worker: Worker) -> None:
    def fails(job: Job) -> bytes:
        raise ZeroDivisionError

    broken = worker.submit(Job(fails))
    with pytest.raises(ZeroDivisionError):
        broken.future.result(5)
    assert broken.state == "failed"
    assert worker.submit(Job(lambda _: b"fine")).future.result(5) == b"fine"


def test_a_cancelled_job_stops_at_its_next_check_and_a_waiting_one_never_starts(worker: Worker) -> None:
    started, ran = threading.Event(), threading.Event()

    def goes_on(job: Job) -> bytes:
        started.set()
        for i in range(10_000):
            job.report(i / 10_000, "on and on")
            time.sleep(0.001)
        return b""

    first = worker.submit(Job(goes_on))

    def runs(job: Job) -> bytes:
        ran.set()
        return b""

    second = worker.submit(Job(runs))
    assert started.wait(5)
    assert worker.ahead(second) == 0
    second.cancel()
    first.cancel()
    for job in (first, second):
        with pytest.raises(AbandonedError):
            job.future.result(5)
        assert job.state == "cancelled"
    assert not ran.is_set()


def test_a_job_that_is_not_polled_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.05)
    job = Job(lambda _: b"")
    job.check()
    time.sleep(0.06)
    with pytest.raises(AbandonedError):
        job.check()
    job.poll()
    job.check()


def test_jobs_that_are_not_polled_yield_to_others(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    order: list[str] = []
    at_hand = worker.submit(Job(lambda _: b"x" if free.wait(5) else b""))

    def noted(name: str) -> Job:
        def notes(job: Job) -> bytes:
            order.append(name)
            return b""

        return worker.submit(Job(notes))

    while at_hand.state == "waiting":
        time.sleep(0.001)
    made = [noted(name) for name in "abcd"]
    for job in made[:2]:
        job.seen -= jobs.DOUBT + 1
    free.set()
    for job in made:
        job.future.result(5)
    assert order == ["c", "d", "a", "b"]


def test_closing_ends_the_current_job(worker: Worker) -> None:
    started = threading.Event()

    def goes_on(job: Job) -> bytes:
        started.set()
        while True:
            job.check()
            time.sleep(0.001)

    job = worker.submit(Job(goes_on))
    waits = worker.submit(Job(lambda _: b""))
    assert started.wait(5)
    worker.close()
    assert job.state == waits.state == "cancelled"
    assert not [thread for thread in worker._threads if thread.is_alive()]


def test_a_queue_has_a_limit(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "QUEUE", 3)
    free = threading.Event()
    at_hand = worker.submit(Job(lambda _: b"x" if free.wait(5) else b""))
    while at_hand.state == "waiting":
        time.sleep(0.001)
    waiting = [worker.submit(Job(lambda _: b"")) for _ in range(3)]
    with pytest.raises(FullError):
        worker.submit(Job(lambda _: b""))
    assert [worker.ahead(job) for job in waiting] == [0, 1, 2]
    waiting[1].cancel()
    last = worker.submit(Job(lambda _: b"last"))
    free.set()
    assert last.future.result(5) == b"last"
    with pytest.raises((AbandonedError, CancelledError)):
        waiting[1].future.result(5)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_reading_process_gives_the_same_result(tmp_path: Path) -> None:
    reader, others = Reader(), set(multiprocessing.active_children())  # of earlier tests in this process
    content = song(tmp_path / "a.mid", 2).read_bytes()
    try:
        here, there = midi.read(content, name="a"), reader.read(content, "a")
        assert (here.notes == there.notes).all() and (here.bounds == there.bounds).all() and there.name == "a"
        assert midi.frame_rows(here.frame) == midi.frame_rows(there.frame)
        with pytest.raises(ReadError, match="not a MIDI file"):
            reader.read(b"nothing", "b")

        (process,) = set(multiprocessing.active_children()) - others
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)  # no answer before it is killed, as in a parser's crash
        threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL)).start()
        with pytest.raises(ReadError, match="crashed the process"):
            reader.read(content, "c")
        assert len(reader.read(content, "a").notes) == len(here.notes)  # another process has replaced it
        (last,) = set(multiprocessing.active_children()) - others
    finally:
        reader.close()
    assert last is not process
    assert not last.is_alive()


def test_reading_ends_after_the_time_limit_or_without_a_waiting_client(tmp_path: Path) -> None:
    content, others = song(tmp_path / "a.mid", 2).read_bytes(), set(multiprocessing.active_children())
    reader = Reader(seconds=0.01)  # music21 takes longer to import
    try:
        with pytest.raises(ReadError, match=r"longer than 0.01 s"):
            reader.read("corpus:bach/bwv66.6", "a")
        job = Job(lambda _: b"")
        job.cancel()
        with pytest.raises(AbandonedError):
            reader.read("corpus:bach/bwv66.6", "a", job.check)
        reader.seconds = 20.0
        assert len(reader.read(content, "a").notes)
    finally:
        reader.close()
    assert set(multiprocessing.active_children()) <= others


# --- the plane --------------------------------------------------------------------------------------------------------


def styles(count: int, size: int = 6) -> dict[str, Style]:
    generator = torch.Generator().manual_seed(count)
    widths = torch.linspace(0.5, 3, size)
    clouds = [torch.randn(80, size, generator=generator) * widths + 2 * k * torch.eye(size)[k] for k in range(count)]
    return {f"style {k}": fit([row[None] for row in cloud]) for k, cloud in enumerate(clouds)}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_plane_is_that_of_fisher(count: int) -> None:
    found = plane(known := styles(count))
    within = torch.stack([one.covariance.double() for one in known.values()]).mean(0)
    assert torch.allclose(found.axes.T @ within @ found.axes, torch.eye(2, dtype=torch.float64), atol=1e-4)
    if count == 2:  # Fisher's direction is S^-1 (m_1 - m_0)
        first, second = known.values()
        fisher = torch.linalg.solve(within, (second.mean - first.mean).double())
        cosine = torch.nn.functional.cosine_similarity(fisher, found.axes[:, 0], dim=0)
        assert abs(float(cosine)) > 0.9999
    if count > 2:  # none of 200 random planes separates the means as much
        means = torch.stack([one.mean.double() for one in known.values()])
        means = means - means.mean(0)
        generator = torch.Generator().manual_seed(0)
        root = torch.linalg.inv(torch.linalg.cholesky(within)).T
        reached = float((means @ found.axes).square().sum())
        for _ in range(200):
            other = root @ torch.linalg.qr(torch.randn(len(root), 2, generator=generator, dtype=torch.float64)).Q
            assert float((means @ other).square().sum()) <= reached + 1e-6


def test_latents_drawn_at_a_point_project_onto_it() -> None:
    found = plane(styles(3))
    for at in (torch.tensor([0.3, -1.2]), torch.tensor([8.0, 8.0])):
        for spread, seed in ((0.0, 0), (0.5, 1), (1.0, 2)):
            z = found.draw(at.double(), spread, seed)
            assert torch.allclose(z.double() @ found.axes, at.double(), atol=1e-4)
        assert not torch.equal(found.draw(at.double(), 1.0, 1), found.draw(at.double(), 1.0, 2))
        assert torch.equal(found.draw(at.double(), 0.0, 1), found.draw(at.double(), 0.0, 2))


def test_the_latent_at_the_position_of_a_style_is_its_mean() -> None:
    known = styles(4)
    found = plane(known)
    for name, one in known.items():
        at, _ = found.place(one)
        shares = found.shares(at)
        assert sum(shares.values()) == pytest.approx(1)
        if max(shares, key=shares.__getitem__) == name:
            assert torch.allclose(found.draw(at, 0.0, 0), one.mean, atol=1e-4)


def test_draws_at_full_spread_have_the_variance_of_the_style() -> None:
    [one] = (known := styles(1)).values()
    found = plane(known)
    mean, spread = found.place(one)
    generator = torch.Generator().manual_seed(1)
    places = mean + torch.randn(1000, 2, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(spread).T
    z = torch.stack([found.draw(at, 1.0, i) for i, at in enumerate(places)])
    white = torch.linalg.inv(torch.linalg.cholesky(one.covariance))
    assert torch.allclose(white @ torch.cov(z.T) @ white.T, torch.eye(6), atol=0.2)


# --- slow clients -----------------------------------------------------------------------------------------------------


def test_a_slow_body_is_refused_and_delays_no_other_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.2)
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
        seen.append(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask(pause: float) -> list[Any]:
        async def receive() -> Any:
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": b" ", "more_body": pause > 0}

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-length", b"9"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        await Guard(app)(scope, receive, send)
        return sent

    async def both() -> tuple[list[Any], list[Any], float]:
        slow = asyncio.create_task(ask(0.05))
        began = time.monotonic()
        quick = await ask(0.0)
        return await slow, quick, time.monotonic() - began

    slow, quick, _ = asyncio.run(both())
    assert quick[0]["status"] == 200 and seen == [1]
    assert slow[0]["status"] == 408
    assert "send it again" in json.loads(slow[1]["body"])["error"]
