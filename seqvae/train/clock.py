"""Time budget of a training run, and requests to stop it.

Scope: seconds, the signals that end a process, agreement of several processes on both. Out of scope: steps of a model,
files, the end of a run (train/loop.py).
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import torch

from seqvae.parallel import Ranks

now = time.monotonic
VALIDATING = 0.1  # maximum share of a time budget for validations, except the last


class Clock:
    """The seconds of a run by the first process's clock, shared with all processes at the same steps."""

    def __init__(self, minutes: float, used: float, ranks: Ranks, interrupted: Callable[[], bool]) -> None:
        """`minutes` is the whole budget, 0 for none; `used` seconds of it were spent by earlier calls."""
        self.budget, self.used, self.ranks = 60 * minutes, used, ranks
        self.interrupted = False
        """True if a process has received a signal to stop."""
        self._interrupted, self._zero = interrupted, now() - used
        self._steps, self._first = 0, used
        self._last = 0.0  # seconds of the last step
        self._reserve, self._rested = 0.0, 0.0  # seconds of the longest validation; earliest time of the next

    def read(self) -> float:
        """Read the clock; returns the seconds since the last reading."""
        before = self.used
        shared = torch.tensor(
            [0.0 if self.ranks.rank else now() - self._zero, self._interrupted()], dtype=torch.float64
        )
        self.ranks.add([shared])
        self.used, interrupted = shared.tolist()
        self.interrupted = interrupted > 0
        return self.used - before

    def step(self) -> float:
        """Record the end of a step; returns its seconds."""
        self._last = self.read()
        self._steps += 1
        if self._steps == 1:  # the first step includes preparation
            self._first = self.used
        return self._last

    def validated(self) -> float:
        """Record the end of a validation; returns its seconds."""
        seconds = self.read()
        self._reserve = max(self._reserve, seconds)
        self._rested = self.used + seconds * (1 / VALIDATING - 1)
        return seconds

    @property
    def share(self) -> float:
        """Used share of the budget, without the time for the last validation."""
        return min(1.0, self.used / max(self.budget - self._reserve, 1e-9))

    @property
    def over(self) -> bool:
        """True if another step and the last validation would exceed the budget."""
        return self.budget > 0 and self.used + self._last + self._reserve > self.budget

    @property
    def may_validate(self) -> bool:
        """True if a validation now keeps within its share of the budget and leaves time for the last one."""
        return not self.budget or (
            self.used >= self._rested and self.used + self._last + 2 * self._reserve <= self.budget
        )

    def left(self, steps: int) -> str:
        """The remaining time as text: the rest of the budget, or the time of `steps` more steps.

        A step is assumed to take as long as the steps so far without the first, validations between them included.
        """
        if self.budget:
            return span(self.budget - self.used)
        return span(steps * (self._last if self._steps < 2 else (self.used - self._first) / (self._steps - 1)))


def span(seconds: float) -> str:
    """A duration as text.

    >>> span(42.1), span(200), span(9000)
    ('42 s', '3 min', '2 h 30 min')
    """
    if seconds < 100:
        return f"{max(0, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """A context in which SIGINT and SIGTERM are recorded instead of ending the process; yields a test for a signal.

    Each signal is recorded once. Outside the main thread nothing is recorded, nor is a signal that the process ignores.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def note(number: int, _: object) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])  # a second signal ends the process at once

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
