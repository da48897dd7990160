"""Lines on the command line: which sentences the arguments name, and one line out for each of them, in their order.

Knows `@file`, `-`, standard input that is still being written, `-o`, and how the latents of many lines lie in one file.
Refuses to know models and tokens. cli/music_io.py is the same for kinds of pieces that come in files of their own.

An argument is a sentence itself, `@file` a file with one piece a line, `-` standard input, which is also read where
there is no argument. A line without a word has no content: it comes back empty, and has no latent vector.
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

from seqvae.errors import SeqVAEError, UsageError
from seqvae.text import lines as text

if TYPE_CHECKING:
    from torch import Tensor

FILES = False
"""Outputs are lines of one stream."""
SEGMENTS = 1
"""Segments of a new piece: one latent vector covers a sentence."""
BATCH = 512
"""Lines at once, where so many are there."""


@dataclass(frozen=True)
class Item:
    """A line to work on, or one to be made."""

    piece: str
    """The line that was read; "" for one without a word, and for one to be made."""
    facts: dict[str, Any]
    """What --json tells of it: its number over all arguments, from 0, and the line itself."""


# --- in ---------------------------------------------------------------------------------------------------------------


def read(inputs: Sequence[str]) -> Iterator[list[Item]]:
    """The lines that arguments name, as many at once as are there already, under a progress bar if they lie in files.

    Raises, before the first is asked for, UsageError where nothing is given and ReadError for a file that cannot be
    opened.
    """
    batches = _batches(inputs)
    files = _files(inputs)
    counted = bool(files) and "-" not in inputs and all(file.is_file() for file in files)
    return _numbered(batches, len(inputs) - len(files), files if counted else [])


def one(given: str) -> str:
    """The only line that an argument names; raises UsageError where there are others, or none."""
    found = list(islice(chain.from_iterable(_batches([given])), 2))
    if len(found) != 1:
        raise UsageError(f"{given}: holds {'several lines' if found else 'no line'}; one sentence is wanted here")
    return found[0]


def frame(given: str) -> str:
    """Refuse: all there is to a sentence is in its latent vector."""
    raise UsageError(f"--like {given}: is for music; a sentence has no tempo and no metre to be kept")


def members(paths: Sequence[str]) -> Iterator[str]:
    """The lines with a word in them of files, and of all files of folders; the @ before a name may be left out."""
    opened = [text.read_lines(path) for path in text.find(given.removeprefix("@") for given in paths)]
    return _with_words(chain.from_iterable(opened))


def _with_words(lines: Iterator[str]) -> Iterator[str]:
    with contextlib.closing(tqdm(lines, unit="line", disable=None, leave=False)) as bar:
        yield from (line for line in bar if line.strip())


def _files(inputs: Sequence[str]) -> list[Path]:
    return [Path(given[1:]) for given in inputs if given.startswith("@")]


def _batches(inputs: Sequence[str]) -> Iterator[list[str]]:
    """The lines of all arguments in batches; every file is opened before the first is asked for."""
    if not inputs and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("missing argument 'INPUT'; give a sentence, @FILE with one a line, or lines on standard input")
    streams: list[tuple[Iterator[str], Callable[[], bool]]] = []
    for given in inputs or ["-"]:
        if given == "-":
            arriving = _Arriving(sys.stdin.buffer)
            streams.append((text.read_lines(cast(BinaryIO, arriving)), arriving.ready))
        elif given.startswith("@"):
            streams.append((text.read_lines(given[1:]), _always))
        else:  # bytes that are no UTF-8 are treated as those of a file
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
    """Batches with the number of each line, under a bar if there are `files` and a terminal."""
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
    """The lines of a stream, in bytes, and whether the next one can be had without waiting for whoever writes it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._seen, self._ended = bytearray(), False
        try:
            self._file: int | None = stream.fileno()
        except OSError:  # no file of the system: all of it is there
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
        """Whether the next line is there already."""
        if self._file is None:
            return True
        while not self._ended and b"\n" not in self._seen:
            try:
                if not select.select([self._file], [], [], 0)[0]:
                    return False
            except (OSError, ValueError):  # a system that cannot tell: take lines one by one
                return False
            self._read()
        return bool(self._seen)

    def _read(self) -> None:
        assert self._file is not None
        part = os.read(self._file, 1 << 16)
        self._seen += part
        self._ended = not part


# --- out --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def given(
    inputs: Sequence[str], out: str | None, ending: str, as_json: bool, also: Collection[str] = ()
) -> Iterator[Desk]:
    """The lines that arguments name, with their results going to `out`, else to standard output; `ending` is not used.

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
    """As many new lines as there are names, which lines do not need."""
    _nothing_else(also)
    with _output(out) as send:
        desk = Desk(_blank(len(names)), send, as_json)
        yield desk
        desk.flush()


def _nothing_else(also: Collection[str]) -> None:
    """Lines have no other form: UsageError where one is wanted."""
    for kind in also:
        raise UsageError(f"--{kind} is for music, and this model's pieces are lines; leave it out, or choose -m music")


def _blank(count: int) -> Iterator[list[Item]]:
    with tqdm(total=count, unit="line", disable=None if count > BATCH else True, leave=False) as bar:
        for first in range(0, count, BATCH):
            batch = [Item("", {"index": i}) for i in range(first, min(count, first + BATCH))]
            yield batch
            bar.update(len(batch))


class Desk:
    """The lines of one command, and where their results go."""

    def __init__(self, batches: Iterator[list[Item]], send: Callable[[list[str]], None], as_json: bool) -> None:
        self._batches, self._send, self._as_json = batches, send, as_json
        self._done: list[str] = []

    def batches(self) -> Iterator[list[Item]]:
        """Lines, as many at once as are there; the results of a batch go out before the next is asked for."""
        for batch in self._batches:
            yield batch
            self.flush()

    def write(self, item: Item, result: str, facts: Mapping[str, Any]) -> None:
        """Take one result, in the order in which the lines came."""
        self._done.append(json.dumps({**item.facts, "output": result, **facts}) if self._as_json else result)

    def flush(self) -> None:
        """Send what was taken."""
        if self._done:
            self._send(self._done)
            self._done = []


@contextlib.contextmanager
def _output(out: str | None) -> Iterator[Callable[[list[str]], None]]:
    """What sends lines on their way, in UTF-8: to standard output, a device, or a file that is there when all is done.

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
            path = path.resolve()  # a link stays one
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
        with contextlib.suppress(OSError):  # what was refused is refused once more
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
    """How latents of lines lie in a file: the tensors, where they are from, and what to tell of them.

    `z (S, D)` holds the vectors of all lines in a row, and `segments (N,)` how many of them each line has: one, but for
    lines without a word, which have none, and very long ones. A tensor for each of a million lines would not do.
    """
    import torch

    own = [z if item.piece else z[:0] for item, z in zip(items, latents, strict=True)]
    sizes = torch.tensor([len(z) for z in own], dtype=torch.int32)
    z = torch.cat(own) if own else torch.zeros(0, 0)
    facts = {"lines": len(own), "segments": len(z), "output": str(out)}
    return {"z": z, "segments": sizes}, list(inputs) or ["-"], [(f"{len(own)} lines, in {out}", facts)]


def unpack(tensors: Mapping[str, Tensor], path: Path) -> list[tuple[str, Tensor]]:
    """Latents `(S, D)` of every line with its number: from a file that `pack` made, or one with a tensor a line.

    Tensors of other names are taken in the order of these names. Raises SeqVAEError where the parts do not fit.
    """
    import torch

    if "segments" not in tensors or "z" not in tensors:
        return [(name, tensors[name]) for name in sorted(tensors)]
    z, sizes = tensors["z"], tensors["segments"].tolist()
    if tensors["segments"].ndim != 1 or min(sizes, default=0) < 0 or sum(sizes) != len(z):
        raise SeqVAEError(f"{path}: z and segments do not belong together; write it again with `seqvae encode`")
    return [(str(i), part) for i, part in enumerate(torch.split(z, sizes))]
