"""Folders of music: finding files, reading them in parallel behind a cache, and song titles.

Scope: folders, worker processes, the cache on disk, and names of music files. Out of scope: file formats
(`midi.read`). A file that cannot be read, hangs or crashes the process that reads it costs only that file.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from seqvae.errors import ReadError
from seqvae.io import files
from seqvae.music import piece as midi
from seqvae.music import track_events, tune_books
from seqvae.music.piece import Piece

default_cache = files.default_cache

READER_VERSION = 5
"""Increase when `midi.read` changes its result for the same file; older cache entries are then read again."""
_MIDI_VERSION = 2  # the same for MIDI files alone, which are read again in milliseconds
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
    files = list(paths)
    count = max(1, min(workers or os.cpu_count() or 1, len(files)))
    crew = _Crew(time_limit)
    threads = ThreadPoolExecutor(count, thread_name_prefix="read")
    ahead: deque[tuple[Path, Future[Piece | ReadError]]] = deque()  # bounded, because the caller may be slow
    rest = map(Path, files)
    try:
        with _Progress(len(files), progress) as bar:
            while True:
                while len(ahead) < 32 * count and (path := next(rest, None)) is not None:
                    ahead.append((path, threads.submit(_read_cached, path, cache, crew)))
                if not ahead:
                    return
                path, future = ahead.popleft()
                result = future.result()
                bar.step(skipped=isinstance(result, ReadError))
                yield path, result
    finally:  # also when the caller stops early, so that no reading goes on in the background
        threads.shutdown(wait=False, cancel_futures=True)
        crew.close()
        threads.shutdown()


def _read_cached(path: Path, cache: Path | None, crew: _Crew) -> Piece | ReadError:
    """Read a file from the cache, or with a worker and then cache it; runs in a thread."""
    kept: Path | None = None
    if cache is not None:
        try:
            kept = cache / f"{_digest(midi.resolve(path), tune_books.divided(path)[1])}.npz"
            return unpack(kept.read_bytes(), _name(path))
        except ReadError as error:
            return error
        except (OSError, ValueError):  # missing or damaged: read the file itself
            pass
    answer = crew.read(path)
    if isinstance(answer, ReadError):
        return answer
    if kept is not None:
        with contextlib.suppress(OSError):  # a full disk or read-only cache only makes this slow
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(answer)  # a partial write is damaged, so it is read and written again
    return unpack(answer, _name(path))


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


class _Crew:
    """One worker process for each reading thread.

    A worker is this module in a fresh interpreter, connected by pipes. A process pool would run the caller's script
    again in each worker, cannot give up on one file, and fails as a whole when one process dies.
    """

    def __init__(self, time_limit: float) -> None:
        self.time_limit = time_limit
        self.own = threading.local()
        self.all: list[subprocess.Popen[bytes]] = []
        self.closed = False

    def read(self, path: Path) -> bytes | ReadError:
        """The packed piece in `path`, or the error."""
        worker: subprocess.Popen[bytes] | None = getattr(self.own, "worker", None)
        if worker is None or worker.poll() is not None:
            worker = self.own.worker = self._start()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            worker.kill()

        watch = threading.Timer(self.time_limit, give_up)
        watch.start()
        try:
            return _ask(worker, path)
        except (OSError, EOFError):
            worker.kill()
            worker.wait()
            if late.is_set():
                reason, advice = f"it took more than {self.time_limit:g} seconds", "convert it to MIDI first"
            else:
                reason, advice = "the process that read it ended (out of memory, or a bug in a library)", "leave it out"
            return ReadError(path, reason, advice)
        finally:
            watch.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        home = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.insert(0, {home!r}); from seqvae.music import library; library._serve()"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        worker = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.all.append(worker)
        if self.closed:
            worker.kill()
        return worker

    def close(self) -> None:
        """Kill every worker."""
        self.closed = True
        for worker in self.all:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _ask(worker: subprocess.Popen[bytes], path: Path) -> bytes | ReadError:
    """Send a path and wait for the answer; raises EOFError or OSError if the worker dies first."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    _send(worker.stdin, b"P", os.fsencode(path))
    kind, body = _receive(worker.stdout)
    if kind == b"E":
        return ReadError(path, *body.decode().split("\0"))
    return body


def _send(pipe: IO[bytes], kind: bytes, body: bytes) -> None:
    pipe.write(kind + struct.pack(">Q", len(body)) + body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[bytes, bytes]:
    head = pipe.read(9)
    body = pipe.read(struct.unpack(">Q", head[1:])[0]) if len(head) == 9 else b""
    if len(head) < 9 or len(body) < struct.unpack(">Q", head[1:])[0]:
        raise EOFError
    return head[:1], body


def _serve() -> None:
    """Main loop of a worker: read the file of each incoming path until the pipe closes."""
    gc.disable()  # a score is a million objects: collecting between files instead saves a quarter of the time
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of libraries must not mix with the answers
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            path = Path(os.fsdecode(_receive(sys.stdin.buffer)[1]))
            try:
                _send(answers, b"P", pack(midi.read(path)))
            except ReadError as error:
                _send(answers, b"E", f"{error.reason}\0{error.advice}".encode(errors="replace"))
            except Exception as error:  # a bug here or in a library costs only this file
                reason = f"reading it failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                _send(answers, b"E", f"{reason}\0please report this file".encode(errors="replace"))
            if path.suffix.lower() not in midi.MIDI_SUFFIXES:
                gc.collect()


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


_CATALOGUES = (
    re.compile(r"\b(bwv)\W*0*(\d+)"),
    re.compile(r"\b(k)v?\W*(\d{1,3})"),  # at most three digits: more belong to another number whose slash is lost
    re.compile(r"\b(op)\W*0*(\d+)(?:\W*(n)o?\W*0*(\d+))?"),
)
# fmt: off
_NO_TITLE = frozenset({
    "a", "an", "the", "and", "of", "in", "on", "to", "for", "from", "with", "at", "by", "as", "is", "it", "its",
    "i", "im", "ive", "id", "ill", "me", "my", "you", "your", "youre", "we", "be", "do", "dont", "if", "so", "no",
    "or", "this", "midi", "classical", "kern",
})
_FORMS = frozenset({
    "piano", "keyboard", "string", "sonata", "sonatas", "symphony", "concerto", "quartet", "quartets", "prelude",
    "preludes", "fugue", "etude", "etudes", "suite", "impromptu", "waltz", "minuet", "menuet", "rondo",
    "overture", "op",
})
_VERSIONS = frozenset({
    "live", "acoustic", "instrumental", "karaoke", "cover", "demo", "remix", "mix", "remaster", "remastered", "version",
    "edit", "medley", "solo", "piano", "guitar", "full", "original", "midi", "kar",
})
# fmt: on


def title(path: str | Path) -> str:
    """Key that files of one song or work share, for a split that keeps each song on one side.

    Names of files add anything after a song's title (arranger, artist, version) and after a work's number (movement,
    repeats), so only the beginning counts: the catalogue number if there is one, else the first distinctive word,
    with the next word or number after a musical form. A name in parts separated by ` - ` begins with the artist.
    `all-blues-dz`, `AllBlues` and `all-blues-miles-davis-bl` share a title. Different songs may share one as well,
    which does no harm to a split. A tune in an ABC file has its own title (`tune_books.title`).
    """
    if tune_books.divided(path)[1]:
        path = tune_books.title(path)
    text = path if isinstance(path, str) else path.as_posix()
    name = re.split(r"[/\\:]", text)[-1].replace("'", "")
    name = re.sub(r"(?i)\.(midi?|kar|rmi|smf|mxl|musicxml|xml|krn|abc)$", "", name)
    if re.fullmatch(r"[A-Za-z]*(-[a-z])?\d+", name):
        return name.lower()  # a number in a collection: `jigs104`, `reelsa-c12`, `001`
    for catalogue in _CATALOGUES:
        if found := catalogue.search(name.lower()):
            return "".join(part for part in found.groups() if part)
    name = _song(name)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    telling = [word for word in words if (word not in _NO_TITLE and len(word) > 1) or word.isdigit()]
    chosen: list[str] = []
    for word in telling:
        if re.fullmatch(r"[0-9a-f]{6,}", word) and not word.isalpha() and not word.isdigit():
            continue  # a checksum before the name
        word = re.sub(r"(?<=[a-z]{4})\d$", "", word)  # a version: `broadway2`
        chosen.append(word[:7] if word.isalpha() else word)  # only the first letters, because spellings differ later
        if word not in _FORMS:
            break
    return "-".join(chosen or words) or name.lower()


def _song(name: str) -> str:
    """The song in `artist - song`, `02 - artist - song - live` and similar names; other names unchanged.

    For `artist - work - movement` the work, and for `artist - album - song` the album; a coarser title does no harm.
    """
    parts = [part for part in re.split(r"\s+[-\u2013\u2014]\s+|_+[-\u2013\u2014]_+", name) if re.search(r"\w", part)]
    parts = [part for part in parts[:-1] if not re.fullmatch(r"\W*\d{1,3}\W*", part)] + parts[-1:]
    last = set(re.findall(r"[^\W_]+", parts[-1].lower())) if parts else set()
    if len(parts) > 1 and last & _VERSIONS and last <= _VERSIONS | _NO_TITLE:
        parts.pop()
    if not parts or _FORMS & set(re.findall(r"[a-z]+", parts[0].lower())):
        return name  # no artist: `Sonata No. 3 - Allegro`
    return parts[1] if len(parts) > 1 else parts[0]


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
