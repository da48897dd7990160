"""A job in a child process that is killed at a chosen moment.

Scope: forking, counting calls that write, and killing. Out of scope: the jobs (crash_works.py) and their states.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

WRITING = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}


class Rooted(Protocol):
    """The attributes of a job that a child uses."""

    root: Path


def watch(root: Path, at: int, held: bool, bell: int) -> Callable[[], int]:
    """Write a byte to `bell` at the `at`-th call that writes below `root`, and pause there if `held`.

    Returns a function that gives the number of such calls so far.
    """
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in WRITING or not str(args[0]).startswith(str(root)):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        seen += 1
        if seen == at:
            os.write(bell, b"!")
            while held:
                signal.pause()

    sys.addaudithook(hook)
    return lambda: seen


def in_child(
    work: Rooted, act: Callable[[], None], wait: Callable[[int], float | None] | None = None, at: int = 0,
    held: bool = False,
) -> tuple[int, int, float]:  # fmt: skip
    """Run `act` in a child and kill it when `wait` returns: exit code, number of calls that wrote, and seconds."""
    reader, bell = os.pipe()
    counted, count = os.pipe()
    began = time.monotonic()
    if (child := os.fork()) == 0:
        code = 1
        try:
            with (work.root.parent / f"{work.root.name}.log").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            seen = watch(work.root, at, held, bell)
            act()
            os.write(count, seen().to_bytes(4, "big"))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(bell)
    os.close(count)
    if wait is not None:
        wait(reader)
        os.kill(child, signal.SIGKILL)  # no effect on a child that has ended: it is still a zombie
    ended = os.waitpid(child, 0)[1]
    calls = int.from_bytes(os.read(counted, 4), "big")
    os.close(reader)
    os.close(counted)
    return os.waitstatus_to_exitcode(ended), calls, time.monotonic() - began
