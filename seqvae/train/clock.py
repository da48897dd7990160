"""The time of a training run: how much is used and left, and whether somebody asks the run to end.

Knows: seconds, the signals that end a process, and how several processes agree on both. Refuses to know: steps of a
model, files, what is done when the time is over (train/loop.py).
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
VALIDATING = 0.1  # of the time of a run with a budget at most, but for the last validation


class Clock:
    """The seconds of a run: those of the first process, which all of them hear of at the same steps."""

    def __init__(self, minutes: float, used: float, ranks: Ranks, interrupted: Callable[[], bool]) -> None:
        """`minutes` are the whole budget, 0 for none, of which `used` seconds have gone in earlier calls."""
        self.budget, self.used, self.ranks = 60 * minutes, used, ranks
        self.interrupted = False
        """Whether some process was asked to end."""
        self._interrupted, self._zero = interrupted, now() - used
        self._steps, self._first = 0, used
        self._last = 0.0  # seconds of the last step
        self._reserve, self._rested = 0.0, 0.0  # seconds of the longest validation, and when the next may begin

    def read(self) -> float:
        """Look at the time; gives the seconds since it was looked at before."""
        before = self.used
        heard = torch.tensor([0.0 if self.ranks.rank else now() - self._zero, self._interrupted()], dtype=torch.float64)
        self.ranks.add([heard])
        self.used, asked = heard.tolist()
        self.interrupted = asked > 0
        return self.used - before

    def step(self) -> float:
        """Note the end of a step; gives its seconds."""
        self._last = self.read()
        self._steps += 1
        if self._steps == 1:  # the first prepares what the others find
            self._first = self.used
        return self._last

    def validated(self) -> float:
        """Note the end of a validation; gives its seconds."""
        seconds = self.read()
        self._reserve = max(self._reserve, seconds)
        self._rested = self.used + seconds * (1 / VALIDATING - 1)
        return seconds

    @property
    def share(self) -> float:
        """Of the budget, the last validation left out, how much is used."""
        return min(1.0, self.used / max(self.budget - self._reserve, 1e-9))

    @property
    def over(self) -> bool:
        """Whether another step, and the last validation, would not fit into the budget."""
        return self.budget > 0 and self.used + self._last + self._reserve > self.budget

    @property
    def may_validate(self) -> bool:
        """Whether a validation on the way keeps to its part of a budget, and leaves time for the last one."""
        return not self.budget or (
            self.used >= self._rested and self.used + self._last + 2 * self._reserve <= self.budget
        )

    def left(self, steps: int) -> str:
        """How long the run still takes, in words: the rest of the budget, or the time of so many `steps` more.

        A step is taken to last as long as those so far, but for the first of them, and the validations between.
        """
        if self.budget:
            return span(self.budget - self.used)
        return span(steps * (self._last if self._steps < 2 else (self.used - self._first) / (self._steps - 1)))


def span(seconds: float) -> str:
    """A length of time in words.

    >>> span(42.1), span(200), span(9000)
    ('42 s', '3 min', '2 h 30 min')
    """
    if seconds < 100:
        return f"{max(0, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Within it SIGINT and SIGTERM do not end the process but are noted, each once; gives what tells whether one came.

    Outside of the main thread no signal can be caught, and nothing is noted; nor is a signal that the process ignores.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def note(number: int, _: object) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])  # a second one ends the process at once

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
