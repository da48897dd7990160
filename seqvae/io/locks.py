"""Locks on files and folders, which the system releases when the process that holds them ends.

Scope: locks between processes. Out of scope: the meaning of a lock, and error messages.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor


def lock(path: Path, wait: bool = False) -> int | None:
    """A descriptor of an existing file or folder, locked until it is closed.

    None if another process has the lock, and on systems that cannot lock `path`, such as a folder on Windows.
    """
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY)
        if lock_descriptor(handle, blocking=wait):
            return handle
    except OSError:
        pass
    if handle is not None:
        os.close(handle)
    return None


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[bool]:
    """Create a file and hold its lock, then remove it; yields False if another process has the lock.

    Raises OSError if the file cannot be created.
    """
    path.touch()
    handle = lock(path)
    if handle is None:
        yield False
        return
    try:
        # the last holder may have removed the file just before it was locked here
        held = path.exists() and os.path.samestat(os.fstat(handle), path.stat())
        try:
            yield held
        finally:
            if held:
                with contextlib.suppress(OSError):  # Windows does not remove open files
                    path.unlink()
    finally:
        os.close(handle)
