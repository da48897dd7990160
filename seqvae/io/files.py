"""Atomic writing of files and folders: they appear complete or not at all, even if the writing process is killed.

Scope: temporary folders that are moved into place, remains of killed processes, and durability
after a power cut. Out of scope: the content, and error messages.
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

from seqvae.io.locks import lock


def default_cache() -> Path:
    """The cache between runs: the folder `seqvae` in the user's cache folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqvae"
    except RuntimeError:  # a user without a home folder
        return Path(tempfile.gettempdir()) / "seqvae"


@contextlib.contextmanager
def whole(place: Path, folder: bool = False, lasting: bool = False) -> Iterator[Path]:
    """The path of a temporary file, or empty folder, that is moved to `place` in one step unless an error occurs.

    Readers see the old content or the new, never a part; if `lasting`, also after a power cut. Remains of killed
    processes beside `place` are removed first. Raises OSError.
    """
    place = place.resolve()  # a link is kept
    if folder and place.exists() and not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    _tidy(place)
    part, handle = _begin(place)
    # files also get a folder: libraries may write temporary files beside them, and leave them if killed
    new = part if folder else part / place.name
    try:
        yield new
        mode = _mode(part)
        for path in [new, *new.rglob("*")]:
            path.chmod(mode if path.is_dir() else mode & 0o666)
        if lasting:
            sync(new)  # before the move: a disk may reorder the two
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
        _remove(part)  # the old content, or an incomplete one
        if handle is not None:
            os.close(handle)


def sync(place: Path) -> None:
    """Flush a file, or a folder with all its content, to disk. Raises OSError."""
    for path in [*place.rglob("*"), place]:
        _sync(path)


def _sync(path: Path) -> None:
    """Flush one file, or the names in one folder if the system can."""
    folder = path.is_dir()
    with contextlib.suppress(OSError) if folder else contextlib.nullcontext():  # Windows cannot open folders
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _mode(part: Path) -> int:
    """The mode of a new folder under the user's umask; the temporary folder is private."""
    probe = part / ".mode"
    probe.mkdir()
    mode = probe.stat().st_mode & 0o777
    probe.rmdir()
    return mode


def _begin(place: Path) -> tuple[Path, int | None]:
    """A new folder beside `place`, and the descriptor of the lock that marks it as active."""
    while True:
        part = Path(tempfile.mkdtemp(".part", f".{place.name}-", place.parent))
        handle = lock(part, wait=True)
        if part.exists():  # else another process removed it as abandoned before it was locked
            return part, handle
        if handle is not None:
            os.close(handle)


def _tidy(place: Path) -> None:
    """Remove the remains of killed processes beside `place`; undo a replacement that one left half done."""
    name = f".{glob.escape(place.name)}-????????"
    for old in place.parent.glob(f"{name}.old"):
        with contextlib.suppress(OSError):  # another process was faster
            _remove(old) if place.exists() else old.rename(place)
    for part in place.parent.glob(f"{name}.part"):
        if (handle := lock(part)) is not None:
            _remove(part)
            os.close(handle)


def _remove(folder: Path) -> None:
    """Remove as much of a folder as possible."""
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False if the system or the disk cannot."""
    try:
        move = ctypes.CDLL(None).renameat2  # Linux
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return bool(move(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
