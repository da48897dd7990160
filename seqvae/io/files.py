"""Files and folders that are there whole or not at all, whenever whoever writes them is killed.

Knows: how something is written beside its place and put there in one move, how what a killed process has left is told
from what is still being written, and what a power cut must not take. Refuses to know: what is written, and how errors
are told.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: what a killed process leaves there stays
    fcntl = None  # type: ignore[assignment]


def default_cache() -> Path:
    """Where what was read or fetched is kept between runs: `seqvae` in the user's cache folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqvae"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "seqvae"


@contextlib.contextmanager
def whole(place: Path, folder: bool = False, lasting: bool = False) -> Iterator[Path]:
    """Where to write a file, or an empty folder to fill; unless an error comes it is put at `place`, in one move.

    Readers find what was there or what is new, and never half of it; if it is `lasting`, after a power cut too. What
    killed processes have left beside `place` is removed first. Raises OSError.
    """
    place = place.resolve()  # a link stays one
    if folder and place.exists() and not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    _tidy(place)
    part, lock = _begin(place)
    # a file too is written in a folder: a library may write beside it first, and leave that when it is killed
    new = part if folder else part / place.name
    try:
        yield new
        mode = _mode(part)
        for path in [new, *new.rglob("*")]:
            path.chmod(mode if path.is_dir() else mode & 0o666)
        if lasting:
            sync(new)  # before the move: a disk may do the later of the two first
        if not folder:
            new.replace(place)
        elif not place.exists():
            part.rename(place)
        elif not _exchange(part, place):
            old = part.with_suffix(".old")
            place.rename(old)
            try:
                part.rename(place)
            except BaseException:
                old.rename(place)
                raise
            _remove(old)
        if lasting:
            _sync(place.parent)
    finally:
        _remove(part)  # what was there before, or what was not finished
        if lock is not None:
            os.close(lock)


def sync(place: Path) -> None:
    """Have the disk itself hold a file, or a folder with all that is in it, before this returns. Raises OSError."""
    for path in [*place.rglob("*"), place]:
        _sync(path)


def _sync(path: Path) -> None:
    """The same for one file, or for the names in one folder where the system can."""
    folder = path.is_dir()
    with contextlib.suppress(OSError) if folder else contextlib.nullcontext():  # Windows opens no folder
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _mode(part: Path) -> int:
    """Who may read a new folder, as the user has set; the one that is written in is for its owner alone."""
    probe = part / ".mode"
    probe.mkdir()
    mode = probe.stat().st_mode & 0o777
    probe.rmdir()
    return mode


def _begin(place: Path) -> tuple[Path, int | None]:
    """A new folder beside `place`, and the lock that says that it is being written in."""
    while True:
        part = Path(tempfile.mkdtemp(".part", f".{place.name}-", place.parent))
        lock = _lock(part, wait=True)
        if part.exists():  # else another process took it for a killed one's, in the moment before it was locked
            return part, lock
        if lock is not None:
            os.close(lock)


def _lock(part: Path, wait: bool = False) -> int | None:
    """A lock that goes with its process, however that ends; None where there are none, and where another has it."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(part, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return handle
    except OSError:
        if handle is not None:
            os.close(handle)
        return None


def _tidy(place: Path) -> None:
    """Remove what killed processes have left beside `place`; put back what one has left in the middle of its moves."""
    name = f".{glob.escape(place.name)}-????????"
    for old in place.parent.glob(f"{name}.old"):
        with contextlib.suppress(OSError):  # another process was quicker
            _remove(old) if place.exists() else old.rename(place)
    for part in place.parent.glob(f"{name}.part"):
        if (lock := _lock(part)) is not None:
            _remove(part)
            os.close(lock)


def _remove(folder: Path) -> None:
    """Whatever can be removed of it."""
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one move; False where the system or the disk cannot."""
    try:
        move = ctypes.CDLL(None).renameat2  # Linux
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return bool(move(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
