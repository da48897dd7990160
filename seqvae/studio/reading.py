"""Uploaded music, read in a separate process with a time limit.

Scope: that process. Out of scope: file formats (music/piece.py). A file may keep a parser busy for minutes or crash its
process; here only its sender gets an error.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from seqvae.errors import ReadError, SeqVAEError
from seqvae.music import library
from seqvae.music import piece as midi
from seqvae.music.piece import Piece

SECONDS = 20.0  # time limit for one file; the first also imports music21


class Reader:
    """A process that reads one file at a time, started at the first call."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: Any = None
        self._pipe: Any = None

    def read(self, source: bytes | str, name: str, check: Callable[[], None] = lambda: None) -> Piece:
        """As `midi.read`; `check` is called many times a second, and an exception from it ends the reading."""
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")  # a fork would take torch's threads' locks along
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), name="seqvae-reader", daemon=True)
            self._process.start()
            theirs.close()
        until = time.monotonic() + self._seconds
        try:
            self._pipe.send((source, name))
            while not self._pipe.poll(0.05):
                check()
                if time.monotonic() > until:
                    raise ReadError(name, f"it takes longer than {self._seconds:g} s", "give a shorter song")
            found = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise ReadError(name, "it crashed the process that read it", "get another copy of the file") from error
        except BaseException:
            self.close()
            raise
        if isinstance(found, Exception):
            raise found
        return library.unpack(*found)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Connection) -> None:
    """The reading process: answer until the pipe is closed."""
    while True:
        try:
            source, name = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            piece = midi.read(source, name=name)
            pipe.send((library.pack(piece), piece.name))
        except SeqVAEError as error:
            pipe.send(error)
        except KeyboardInterrupt:
            return
