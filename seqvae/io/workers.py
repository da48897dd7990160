"""Worker processes that call functions with a time limit, by pebble.

Scope: start and end of the processes, and the time limit. Out of scope: the functions.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MANY_OBJECTS = 100_000  # objects since the last collection, above which a worker collects before its next call


class Workers:
    """Processes that start with the first call and end with `close`, or as a context.

    Functions and their arguments and results are pickled. A function that crashes its process, or is given up, costs
    only its own call: another process takes the place.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: Any = None  # pebble is imported with the first call

    def call(self, seconds: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """The result of a function as a future; cancelling it ends the call.

        The future raises TimeoutError after `seconds`, counted from the start of the call in a process, and another
        OSError or a RuntimeError if the process ends first.
        """
        if self._pool is not None and not self._pool.active:  # pebble gives up if a process without a call ends
            self.close()
        if self._pool is None:
            from pebble import ProcessPool

            self._pool = ProcessPool(self._count, initializer=_prepare, context=_Context())
        answer: Future[R] = self._pool.schedule(_call, (function, args, kwargs), timeout=seconds)
        return answer

    def close(self) -> None:
        """End the processes, and the calls in progress."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Process(SpawnProcess):
    """A fresh interpreter: a fork would inherit locks that torch's threads hold.

    The caller's script is not run in it: the script may lack a guard by `__name__`, or import torch in each process.
    """

    _starting = threading.Lock()

    def start(self) -> None:
        with self._starting:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = script

    def terminate(self) -> None:
        """End the process at once: a signal that Python handles would wait for a library's C code."""
        self.kill()


class _Context(SpawnContext):
    Process = _Process


def _prepare() -> None:
    """Prepare a new process, before its first call imports numpy."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    os.dup2(2, 1)  # prints of libraries must not mix with a command's output
    gc.disable()  # a score is a million objects: collecting between files instead saves a quarter of the time


def _call(function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    if gc.get_count()[0] > MANY_OBJECTS:
        gc.collect()
    return function(*args, **kwargs)
