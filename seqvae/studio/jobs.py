"""Jobs: worker threads, a bounded queue, progress and cancellation.

Scope: jobs and whether a client still polls them. Out of scope: the work itself, and HTTP.

A closed page stops polling. After `DOUBT` seconds without a poll other jobs go first; after `PATIENCE` seconds the job
counts as cancelled: the queue skips it, and it stops at its next `check`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

State = Literal["waiting", "working", "done", "failed", "cancelled"]
Work = Callable[["Job"], bytes]
PATIENCE = 10.0  # seconds without a poll before a job counts as cancelled
DOUBT = 4.0  # seconds without a poll before other jobs go first; longer than a poll lasts
QUEUE = 100  # most jobs waiting
ENDING = 5.0  # seconds that `close` waits for running jobs


class AbandonedError(Exception):
    """The job was cancelled, or no client polls it any more."""


class FullError(Exception):
    """The queue is full."""


class Job:
    """One job. Its thread calls `check` and `report`; other threads read its state."""

    def __init__(self, work: Work) -> None:
        self.id = secrets.token_urlsafe(12)
        self.work = work
        self.future: Future[bytes] = Future()
        self.state: State = "waiting"
        self.progress = 0.0
        self.message = ""
        self.seen = time.monotonic()
        self._cancelled = False

    @property
    def left(self) -> bool:
        """Whether it was cancelled, or not polled for PATIENCE seconds."""
        return self._cancelled or time.monotonic() - self.seen > PATIENCE

    @property
    def doubtful(self) -> bool:
        """Whether it was not polled for DOUBT seconds."""
        return time.monotonic() - self.seen > DOUBT

    def check(self) -> None:
        """Raise AbandonedError if the job is cancelled or no longer polled."""
        if self.left:
            raise AbandonedError

    def report(self, progress: float, message: str) -> None:
        """Set the progress, from 0 to 1, and the present step; raises as `check`."""
        self.check()
        self.progress, self.message = progress, message

    def poll(self) -> None:
        """Record a poll."""
        self.seen = time.monotonic()

    def cancel(self) -> None:
        """Cancel; the work stops at its next `check`."""
        self._cancelled = True

    def run(self) -> None:
        """Do the work, and put its result or exception into `future`."""
        try:
            self.check()
            self.state = "working"
            result = self.work(self)
        except AbandonedError as error:
            self.state = "cancelled"
            self.future.set_exception(error)
        except BaseException as error:  # raised again for the client; the thread goes on
            self.state = "failed"
            self.future.set_exception(error)
        else:
            self.state, self.progress = "done", 1.0
            self.future.set_result(result)


class Worker:
    """Threads that run jobs in order, with polled jobs first."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._waiting: deque[Job] = deque()
        self._begun: set[Job] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Job:
        """Put a job at the end of the queue; raises FullError where the queue is full."""
        with self._changed:
            if len(self._waiting) >= QUEUE:
                self._drop()
            if len(self._waiting) >= QUEUE:
                raise FullError
            self._waiting.append(job)
            self._changed.notify()
        return job

    def ahead(self, job: Job) -> int:
        """Number of jobs waiting ahead of this one."""
        with self._changed:
            return self._waiting.index(job) if job in self._waiting else 0

    def close(self) -> None:
        """Cancel all jobs and end the threads; a running job ends at its next check."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._begun):
                job.cancel()
            self._changed.notify_all()
        until = time.monotonic() + ENDING
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _drop(self) -> None:
        """Remove abandoned jobs from the queue."""
        for job in [job for job in self._waiting if job.left]:
            self._waiting.remove(job)
            job.run()  # ends at once, as cancelled

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                job = min(self._waiting, key=lambda job: job.doubtful)  # the first in the queue among equals
                self._waiting.remove(job)
                self._begun.add(job)
            job.run()
            with self._changed:
                self._begun.remove(job)
