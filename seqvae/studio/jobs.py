"""Work that takes a while: few threads, a queue with an end, progress, and no work for those who have left.

Knows jobs and whether somebody still waits for them. Refuses to know what is worked on, and HTTP.

A job is wanted as long as somebody asks for it. Whoever closes the page stops asking: after `DOUBT` seconds others go
first, and after `PATIENCE` the job counts as cancelled: it is passed over in the queue, and stops at its next `check`.
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
PATIENCE = 10.0  # seconds without a question before a job counts as left
DOUBT = 4.0  # seconds without a question before others go first; more than a question lasts
QUEUE = 100  # jobs that may wait
ENDING = 5.0  # seconds that closing waits for jobs at hand


class AbandonedError(Exception):
    """Nobody waits for this work any more."""


class FullError(Exception):
    """So many jobs wait already that another one would wait too long."""


class Job:
    """One piece of work. Its thread calls `check` and `tell`, and others look."""

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
        """Whether it was cancelled, or nobody has asked for it for PATIENCE seconds."""
        return self._cancelled or time.monotonic() - self.seen > PATIENCE

    @property
    def doubtful(self) -> bool:
        """Whether nobody has asked for it for DOUBT seconds."""
        return time.monotonic() - self.seen > DOUBT

    def check(self) -> None:
        """Raise AbandonedError where nobody waits."""
        if self.left:
            raise AbandonedError

    def tell(self, progress: float, message: str) -> None:
        """Say how far the work is, from 0 to 1, and with what; raises as `check`."""
        self.check()
        self.progress, self.message = progress, message

    def ask(self) -> None:
        """Somebody waits."""
        self.seen = time.monotonic()

    def cancel(self) -> None:
        """Nobody waits; the work stops when it next checks."""
        self._cancelled = True

    def run(self) -> None:
        """Work, and keep the result or what went wrong in `future`."""
        try:
            self.check()
            self.state = "working"
            result = self.work(self)
        except AbandonedError as error:
            self.state = "cancelled"
            self.future.set_exception(error)
        except BaseException as error:  # whoever asked is told; the thread lives on
            self.state = "failed"
            self.future.set_exception(error)
        else:
            self.state, self.progress = "done", 1.0
            self.future.set_result(result)


class Worker:
    """Threads that begin jobs in their order, those that somebody asks for first."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._waiting: deque[Job] = deque()
        self._begun: set[Job] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Job:
        """Put a job at the end of the queue; raises FullError where it is as long as it may be."""
        with self._changed:
            if len(self._waiting) >= QUEUE:
                self._drop()
            if len(self._waiting) >= QUEUE:
                raise FullError
            self._waiting.append(job)
            self._changed.notify()
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs wait before one."""
        with self._changed:
            return self._waiting.index(job) if job in self._waiting else 0

    def close(self) -> None:
        """Cancel all jobs, and let the threads end; a job at hand ends at its next check."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._begun):
                job.cancel()
            self._changed.notify_all()
        until = time.monotonic() + ENDING
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _drop(self) -> None:
        """Take jobs that nobody waits for out of the queue."""
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
                job = min(self._waiting, key=lambda job: job.doubtful)  # the first of those
                self._waiting.remove(job)
                self._begun.add(job)
            job.run()
            with self._changed:
                self._begun.remove(job)
