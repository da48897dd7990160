"""Uploaded music, read in a separate process with a time limit.

Scope: the time limit, and requests that nobody waits for any more. Out of scope: file formats (music/piece.py), the
process (io/workers.py). A file may keep a parser busy for minutes or crash its process; only its sender gets an error.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait

from seqvae.errors import ReadError
from seqvae.io.workers import Workers
from seqvae.music import library
from seqvae.music.piece import Piece

SECONDS = 20.0  # time limit for one file; the first also imports music21


class Reader:
    """A process that reads one file at a time, started at the first call."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._workers = Workers(1)

    def read(self, source: bytes | str, name: str, check: Callable[[], None] = lambda: None) -> Piece:
        """As `midi.read`; `check` is called many times a second, and an exception from it ends the reading."""
        answer = self._workers.call(self.seconds, library.read_packed, source, name)
        try:
            while wait([answer], 0.05).not_done:
                check()
        finally:
            answer.cancel()  # without effect on a call that has ended
        try:
            found = answer.result()
        except TimeoutError as error:
            raise ReadError(name, f"it takes longer than {self.seconds:g} s", "give a shorter song") from error
        except (OSError, RuntimeError) as error:
            raise ReadError(name, "it crashed the process that read it", "get another copy of the file") from error
        if isinstance(found, ReadError):
            raise found
        return library.unpack(*found)

    def close(self) -> None:
        """End the process."""
        self._workers.close()
