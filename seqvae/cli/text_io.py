"""Lines of text on the command line: inputs from arguments, and one output line for each, in the same order.

Scope: `@file`, `-`, standard input while it is being written, `-o`, and the layout of a file of latents. Out of scope:
models and tokens. cli/music_io.py is its counterpart for files of music.

An argument is a sentence or session, `@file` a file with one on each line, `-` standard input, which is also read
without arguments. A blank line gives a blank line, and has no latent vector.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from tqdm import tqdm

from seqvae.cli import console
from seqvae.errors import SeqVAEError, UsageError
from seqvae.text import lines as text

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.codec import Codec

FILES = False
"""Outputs are lines of one stream."""
SEGMENTS = 1
"""Default number of segments of a generated line: one latent vector covers a sentence."""
BATCH = 512
"""Most lines in a batch."""
_NAME = 250  # letters that the name of a file can have


@dataclass(frozen=True)
class Item:
    """A line that was read, or one to generate."""

    piece: str
    """The line; "" for a blank one and for one to generate."""
    facts: dict[str, Any]
    """Entries of the output of --json: the line, and its number over all arguments, from 0."""


# --- input ------------------------------------------------------------------------------------------------------------


def read(inputs: Sequence[str]) -> Iterator[list[Item]]:
    """Lines named by the arguments, in batches of those already there, under a progress bar for files.

    Raises, before the first line is read, UsageError where there is no input and ReadError for a file that cannot be
    opened.
    """
    batches = _batches(inputs)
    files = _files(inputs)
    counted = bool(files) and "-" not in inputs and all(file.is_file() for file in files)
    return _numbered(batches, len(inputs) - len(files), files if counted else [])


def one(given: str) -> str:
    """The single line named by an argument; raises UsageError where there are several or none."""
    found = list(islice(chain.from_iterable(_batches([given])), 2))
    if len(found) != 1:
        raise UsageError(f"{given}: holds {'several lines' if found else 'no line'}; give one sentence")
    return found[0]


def losses(codec: Codec, item: Item, segments: Sequence[Any], result: Any | None = None) -> str:
    """Nothing: a line is written beside its input."""
    return ""


def template(given: str) -> str:
    """Raise UsageError: the latent vector of a sentence holds all of it."""
    raise UsageError(f"--like {given}: is for music; a sentence has no tempo or metre")


def members(paths: Sequence[str]) -> Iterator[str]:
    """Lines of files and folders, without blank ones; the @ before a name is optional."""
    opened = [text.read_lines(path) for path in text.find(given.removeprefix("@") for given in paths)]
    return _with_words(chain.from_iterable(opened))


def _with_words(lines: Iterator[str]) -> Iterator[str]:
    with contextlib.closing(tqdm(lines, unit="line", disable=None, leave=False)) as bar:
        yield from (line for line in bar if line.strip())


def _files(inputs: Sequence[str]) -> list[Path]:
    return [Path(given[1:]) for given in inputs if given.startswith("@")]


def _batches(inputs: Sequence[str]) -> Iterator[list[str]]:
    """Lines of all arguments in batches; every file is opened before the first line is read."""
    if not inputs and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError(
            "missing argument 'INPUT'; give a sentence, @FILE with one on each line, or lines on standard input"
        )
    streams: list[tuple[Iterator[str], Callable[[], bool]]] = []
    for given in inputs or ["-"]:
        if given == "-":
            arriving = _Arriving(sys.stdin.buffer)
            streams.append((text.read_lines(cast(BinaryIO, arriving)), arriving.ready))
        elif given.startswith("@"):
            text.check(Path(given[1:]))
            streams.append((text.read_lines(given[1:]), _always))
        elif len(given) < _NAME and Path(given).suffix.lower() in text.MUSIC and Path(given).exists():
            raise UsageError(f"{given}: is a file of music, and the model is of text; choose a model of music with -m")
        else:  # bytes that are not UTF-8 are read as in a file
            if len(given) < _NAME and "\0" not in given and Path(given).is_file():
                console.report(f"'{given}' is taken as the text itself; to read the file of that name, write @{given}")
            streams.append((iter([os.fsencode(given).decode(errors="replace")]), _always))

    def batches() -> Iterator[list[str]]:
        batch: list[str] = []
        for lines, ready in streams:
            for line in lines:
                batch.append(line)
                if len(batch) == BATCH or not ready():
                    yield batch
                    batch = []
        if batch:
            yield batch

    return batches()


def _always() -> bool:
    return True


def _numbered(batches: Iterator[list[str]], sentences: int, files: Sequence[Path]) -> Iterator[list[Item]]:
    """Batches with line numbers, under a progress bar where there are `files` and a terminal."""
    shown = bool(files) and sys.stderr is not None and sys.stderr.isatty()
    total = sentences + sum(1 for file in files for _ in text.read_lines(file)) if shown else None
    index = 0
    with tqdm(total=total, unit="line", disable=not shown, leave=False) as bar:
        for batch in batches:
            yield [
                Item(line if line.strip() else "", {"index": i, "input": line}) for i, line in enumerate(batch, index)
            ]
            index += len(batch)
            bar.update(len(batch))


class _Arriving:
    """Lines of a stream as bytes, and whether the next one can be read without waiting."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._seen, self._ended = bytearray(), False
        try:
            self._file: int | None = stream.fileno()
        except OSError:  # an object in memory: all of it is there
            self._file = None

    def __iter__(self) -> Iterator[bytes]:
        if self._file is None:
            yield from self._stream
            return
        while True:
            while not self._ended and b"\n" not in self._seen:
                self._read()
            end = self._seen.find(b"\n") + 1 or len(self._seen)
            if not end:
                return
            line = bytes(self._seen[:end])
            del self._seen[:end]
            yield line

    def ready(self) -> bool:
        """Whether the next line can be read without waiting."""
        if self._file is None:
            return True
        while not self._ended and b"\n" not in self._seen:
            try:
                if not select.select([self._file], [], [], 0)[0]:
                    return False
            except (OSError, ValueError):  # select does not work on this stream: read lines one by one
                return False
            self._read()
        return bool(self._seen)

    def _read(self) -> None:
        assert self._file is not None
        part = os.read(self._file, 1 << 16)
        self._seen += part
        self._ended = not part


# --- output -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def given(
    inputs: Sequence[str], out: str | None, ending: str, as_json: bool, also: Collection[str] = ()
) -> Iterator[Desk]:
    """Lines named by the arguments, with results written to `out` or standard output; `ending` is not used.

    Raises as `read`, and SeqVAEError where an input would be overwritten or `out` cannot be written.
    """
    _nothing_else(also)
    if out is not None and any(Path(out).resolve() == file.resolve() for file in _files(inputs)):
        raise SeqVAEError(f"{out}: is an input and would be overwritten; choose another -o")
    batches = read(inputs)
    with _output(out) as send:
        desk = Desk(batches, send, as_json)
        yield desk
        desk.flush()


@contextlib.contextmanager
def new(names: Sequence[str], out: str | None, as_json: bool, also: Collection[str] = ()) -> Iterator[Desk]:
    """Lines to generate, one for each name."""
    _nothing_else(also)
    with _output(out) as send:
        desk = Desk(_blank(len(names)), send, as_json)
        yield desk
        desk.flush()


def _nothing_else(also: Collection[str]) -> None:
    """Raise UsageError for a requested sound, picture or page."""
    for kind in also:
        raise UsageError(f"--{kind} is for music, and this model is for text; leave it out, or choose -m music")


def _blank(count: int) -> Iterator[list[Item]]:
    with tqdm(total=count, unit="line", disable=None if count > BATCH else True, leave=False) as bar:
        for first in range(0, count, BATCH):
            batch = [Item("", {"index": i}) for i in range(first, min(count, first + BATCH))]
            yield batch
            bar.update(len(batch))


class Desk:
    """The input lines of one command and the destination of its results."""

    def __init__(self, batches: Iterator[list[Item]], send: Callable[[list[str]], None], as_json: bool) -> None:
        self._batches, self._send, self._as_json = batches, send, as_json
        self._done: list[str] = []

    def batches(self) -> Iterator[list[Item]]:
        """Batches of lines; the results of a batch are written before the next is read."""
        for batch in self._batches:
            yield batch
            self.flush()

    def write(self, item: Item, result: str, facts: Mapping[str, Any]) -> None:
        """Add one result, in the order of the input lines."""
        self._done.append(json.dumps({**item.facts, "output": result, **facts}) if self._as_json else result)

    def flush(self) -> None:
        """Write the results added so far."""
        if self._done:
            self._send(self._done)
            self._done = []


@contextlib.contextmanager
def _output(out: str | None) -> Iterator[Callable[[list[str]], None]]:
    """A function that writes lines in UTF-8 to standard output, a device, or a file, which appears when complete.

    Raises UsageError for a folder and SeqVAEError for a file that cannot be written.
    """
    if out is None or out == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield _print
        return
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)):
        raise UsageError(f"-o {out}: is a folder; lines go into one file")
    part: Path | None = None
    try:
        if path.exists() and not path.is_file():  # a device or a pipe
            file: TextIO = path.open("w", encoding="utf-8", newline="\n")
        else:
            path = path.resolve()  # write through a link
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            part = Path(name)
            file = os.fdopen(handle, "w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise _refusal(out, error) from error

    def send(lines: list[str]) -> None:
        try:
            file.write("\n".join(lines) + "\n")
            file.flush()
        except OSError as error:
            raise _refusal(out, error) from error

    try:
        yield send
        file.close()
        if part is not None:
            part.chmod(0o644)
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a failed write fails again here
            file.close()
        if part is not None:
            part.unlink(missing_ok=True)


def _refusal(out: str, error: OSError) -> SeqVAEError:
    reason = (error.strerror or str(error)).lower()
    return SeqVAEError(f"cannot write {out}: {reason}; check the name, the free space and the permissions")


def _print(lines: list[str]) -> None:
    tqdm.write("\n".join(lines))  # above a progress bar, if one is shown
    sys.stdout.flush()


# --- latents ----------------------------------------------------------------------------------------------------------


def pack(
    inputs: Sequence[str], items: Sequence[Item], latents: Sequence[Tensor], out: Path
) -> tuple[dict[str, Tensor], Any, list[tuple[str, dict[str, Any]]]]:
    """Tensors of a file of latents, their sources, and lines to print with facts for --json.

    `z (S, D)` holds the vectors of all lines in order, and `segments (N,)` the number of vectors of each line: one, but
    none for a blank line and several for a very long one. A million lines would be too many tensors of their own.
    """
    import torch

    own = [z if item.piece else z[:0] for item, z in zip(items, latents, strict=True)]
    sizes = torch.tensor([len(z) for z in own], dtype=torch.int32)
    z = torch.cat(own) if own else torch.zeros(0, 0)
    facts = {"lines": len(own), "segments": len(z), "output": str(out)}
    return {"z": z, "segments": sizes}, list(inputs) or ["-"], [(f"{len(own)} lines, in {out}", facts)]


def unpack(tensors: Mapping[str, Tensor], path: Path) -> list[tuple[str, Tensor]]:
    """Numbers and latents `(S, D)` of all lines, from a file of `pack` or one with a tensor for each line.

    Tensors of other names are in the order of their names. Raises SeqVAEError where `z` and `segments` do not match.
    """
    import torch

    if "segments" not in tensors or "z" not in tensors:
        return [(name, tensors[name]) for name in sorted(tensors)]
    z, sizes = tensors["z"], tensors["segments"].tolist()
    if tensors["segments"].ndim != 1 or min(sizes, default=0) < 0 or sum(sizes) != len(z):
        raise SeqVAEError(f"{path}: z and segments do not match; write it again with `seqvae encode`")
    return [(str(i), part) for i, part in enumerate(torch.split(z, sizes))]
