"""Folders of music: finding files, and reading them in parallel behind a cache.

Scope: folders, reading in worker processes, and the cache on disk. Out of scope: file formats (`midi.read`), the
processes (io/workers.py), song titles (music/titles.py). A file that cannot be read, hangs or crashes the process that
reads it costs only that file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqvae.errors import ReadError
from seqvae.io import files
from seqvae.io.workers import Workers
from seqvae.music import piece as midi
from seqvae.music import track_events, tune_books
from seqvae.music.piece import Piece
from seqvae.music.titles import title

default_cache = files.default_cache

READER_VERSION = 5
"""Increase when `midi.read` changes its result for the same file; older cache entries are then read again."""
_MIDI_VERSION = 3  # the same for MIDI files alone, which are read again in milliseconds
_BY_SUFFIX = (".abc", ".krn")  # kinds that content does not tell apart
TIME_LIMIT = 60.0
"""Time limit of one file in seconds; music21 can take many minutes for one score."""


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Music files: the given files, and those in the given folders and below, each once.

    The arguments keep their order, and the files of a folder are sorted. In folders only known suffixes count and
    hidden files are skipped; a file given by name is taken with any suffix, and so is a `corpus:` name. An ABC file
    with several tunes is as many paths (music/tune_books.py).

    Raises:
        ReadError: a path does not exist.
    """
    found: dict[Path, None] = {}
    for source in paths:
        path = Path(source)
        if path.is_dir():
            music = sorted(p for p in _visible(path) if p.suffix.lower() in midi.SUFFIXES)
            found.update(dict.fromkeys(tune for file in music for tune in tune_books.tunes(file)))
        elif tune_books.divided(path)[0].exists() or path.as_posix().startswith(midi.CORPUS):
            found.update(dict.fromkeys(tune_books.tunes(path)))
        else:
            raise ReadError(path, "there is no such file or folder", "check the name")
    return list(found)


def require(paths: Iterable[str | Path]) -> list[Path]:
    """As `find`, and raises ReadError where there is no music at all."""
    paths = list(paths)
    if found := find(paths):
        return found
    there = passed_over(paths)
    advice = f"name a folder with files in {' '.join(midi.SUFFIXES)}; sentences and logs are for models of text"
    raise ReadError(" ".join(map(str, paths)), f"it holds no music{there and f' ({there})'}", advice)


def passed_over(paths: Iterable[str | Path]) -> str:
    """A sentence with the number of files in the given folders that `find` skips by suffix; empty if there are none."""
    inside = (file for path in map(Path, paths) if path.is_dir() for file in _visible(path))
    counts = Counter(file.suffix.lower() for file in inside if file.suffix.lower() not in midi.SUFFIXES)
    kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in counts.most_common())
    return f"files passed over: {counts.total()}, not music by their suffix ({kinds})" if counts else ""


def _visible(folder: Path) -> Iterator[Path]:
    """The files in a folder and below, without hidden files."""
    for path in folder.rglob("*"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file():
            yield path


def read_all(
    paths: Iterable[str | Path],
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    time_limit: float = TIME_LIMIT,
) -> Generator[tuple[Path, Piece | ReadError], None, None]:
    """Read every file of `paths` (as from `find`) in order; a failure is yielded as the error.

    Args:
        paths: files and `corpus:` names; a folder is an error.
        cache: folder for read pieces, keyed by file content and reader version; created if missing.
        workers: reading processes, by default the number of processors. They start with the first file that is not in
            the cache and end with the iteration.
        progress: show a bar on a terminal, otherwise an occasional line on standard error.
        time_limit: seconds after which a file is given up.

    Yields:
        (path, piece) or (path, ReadError); a bad file never raises.
    """
    files = list(map(Path, paths))
    count = max(1, min(workers or os.cpu_count() or 1, len(files)))
    ahead: deque[tuple[Path, Callable[[], Piece | ReadError]]] = deque()  # bounded, because the caller may be slow
    rest = iter(files)
    with Workers(count) as crew, _Progress(len(files), progress) as bar:
        while True:
            while len(ahead) < 32 * count and (path := next(rest, None)) is not None:
                ahead.append((path, _begin(path, cache, crew, time_limit)))
            if not ahead:
                return
            path, finish = ahead.popleft()
            result = finish()
            bar.step(skipped=isinstance(result, ReadError))
            yield path, result


def _begin(path: Path, cache: Path | None, crew: Workers, time_limit: float) -> Callable[[], Piece | ReadError]:
    """Read a file from the cache, or begin to read it in a worker; returns a function that waits for the result."""
    kept: Path | None = None
    if cache is not None:
        try:
            kept = cache / f"{_digest(midi.resolve(path), tune_books.divided(path)[1])}.npz"
            found: Piece | ReadError = unpack(kept.read_bytes(), _name(path))
            return lambda: found
        except ReadError as error:
            found = error
            return lambda: found
        except (OSError, ValueError):  # missing or damaged: read the file itself
            pass
    answer = crew.call(time_limit, read_packed, path)

    def finish() -> Piece | ReadError:
        try:
            read = answer.result()
        except TimeoutError:
            return ReadError(path, f"it took more than {time_limit:g} seconds", "convert it to MIDI first")
        except (OSError, RuntimeError):
            reason = "the process that read it ended (out of memory, or a bug in a library)"
            return ReadError(path, reason, "leave it out")
        if isinstance(read, ReadError):
            return ReadError(path, read.reason, read.advice)
        if kept is not None:
            with contextlib.suppress(OSError):  # a full disk or read-only cache only makes this slow
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(read[0])  # a partial write is damaged, so it is read and written again
        return unpack(read[0], _name(path))

    return finish


def _name(path: Path) -> str:
    """The name of the piece in a file, the title of a tune, or the name of a work in the corpus."""
    if tune_books.divided(path)[1]:
        return tune_books.title(path)
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in midi.SUFFIXES else path.name


def _digest(file: Path, tune: int = 0) -> str:
    """Cache key of `file` or of a tune in it, from its content, its kind and the reader version."""
    suffix = file.suffix.lower()
    version = f"{READER_VERSION}.{_MIDI_VERSION}" if suffix in midi.MIDI_SUFFIXES else f"{READER_VERSION}"
    part = f"#{tune} " if tune else ""
    key = hashlib.blake2b(f"{version} {suffix} {part}".encode(), digest_size=16)
    key.update(file.read_bytes())
    return key.hexdigest()


def pack(piece: Piece) -> bytes:
    """A piece without its name as the content of an .npz file."""
    tempos, metres, keys = (np.array(rows, np.int64) for rows in midi.frame_rows(piece.frame))
    buffer = io.BytesIO()
    more: dict[str, Any] = {} if piece.tracks is None else track_events.arrays(piece.tracks)
    more["rounding"] = np.array(piece.rounding)
    np.savez(buffer, notes=piece.notes, bounds=piece.bounds, tempos=tempos, metres=metres, keys=keys, **more)
    return buffer.getvalue()


def unpack(content: bytes, name: str) -> Piece:
    """Inverse of `pack`; raises ValueError for other content."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            frame = midi.make_frame(tuple(stored[rows].tolist() for rows in ("tempos", "metres", "keys")))
            # files packed by older versions have no tracks
            tracks = track_events.from_arrays(stored, midi.TICKS_PER_BEAT) if "home" in stored else None
            off, joined = stored["rounding"].tolist() if "rounding" in stored else (0.0, 0.0)
            return Piece(stored["notes"], stored["bounds"], frame, name, tracks, (off, joined))
    except Exception as error:  # zipfile and numpy raise many kinds of errors for damaged files
        raise ValueError("not a packed piece") from error


def read_packed(source: Path | bytes | str, name: str = "") -> tuple[bytes, str] | ReadError:
    """The packed piece in `source` and its name, or the error; `name` as in `midi.read`. Called in worker processes.

    Bytes of an ABC or Humdrum file have its suffix in `name`, as in `book.abc#3`.
    """
    try:
        by_suffix = tune_books.suffix(Path(name)) in _BY_SUFFIX
        piece = _from_upload(source, name) if isinstance(source, bytes) and by_suffix else midi.read(source, name=name)
        return pack(piece), piece.name
    except ReadError as error:
        return error
    except Exception as error:  # a bug here or in a library costs only this file
        reason = f"reading it failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        return ReadError(name or str(source)[:100], reason, "please report this file")


def _from_upload(content: bytes, name: str) -> Piece:
    """The piece in the content of a file called `name`; of an ABC file the tune that `name` ends with, or the first."""
    file, tune = tune_books.divided(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"content{file.suffix.lower()}"
        path.write_bytes(content)
        book = path.suffix == tune_books.SUFFIX
        try:
            return midi.read(f"{path}#{tune or 1}" if book else path, name=name)
        except ReadError as error:
            raise ReadError(name, error.reason, error.advice) from error


class _Progress:
    """A bar on a terminal; elsewhere a line every half minute and one at the end."""

    def __init__(self, total: int, shown: bool) -> None:
        self.total, self.shown = total, shown
        self.done = self.skipped = 0
        self.said = time.monotonic()
        self.bar = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc="reading", unit="file", leave=False)

    def __enter__(self) -> _Progress:
        return self

    def step(self, *, skipped: bool) -> None:
        """Count one more file."""
        self.done += 1
        self.skipped += skipped
        if self.bar is not None:
            self.bar.update()
            self.bar.set_postfix(skipped=self.skipped)
        elif self.shown and (time.monotonic() - self.said > 30 or self.done == self.total):
            self.said = time.monotonic()
            print(f"read {self.done} of {self.total} files, {self.skipped} skipped", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


# --- for training -----------------------------------------------------------------------------------------------------


def sources(
    data: Sequence[Path], skipped: list[ReadError], report: Callable[[str], None]
) -> Iterator[tuple[str, str, Piece]]:
    """As `Modality.read_sources`: the style is the name of a folder, the group the title of a song."""
    found = require(data)
    if said := passed_over(data):
        report(said)
    for path, piece in read_all(found, cache=default_cache()):
        if isinstance(piece, ReadError):
            skipped.append(piece)
            report(f"skipped: {piece}")
        else:
            yield _style(path, data), title(path), piece


def _style(path: Path, roots: Sequence[Path]) -> str:
    """Name of the folder directly below the root that holds `path`, or the root's own name if there is none between.

    A tune of an ABC file that was given by its name has the name of the file.
    """
    for root in roots:
        if tune_books.divided(path)[0] == root and path != root:
            return root.stem
        if path.is_relative_to(root) and path != root:
            parts = path.relative_to(root).parts
            return parts[0] if len(parts) > 1 else root.name
    return path.parent.name
