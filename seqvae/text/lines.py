r"""Reading of sentences: lines of a file or a stream, one sentence a line, and the style in a file's name.

Scope: lines, their bytes and line ends. Out of scope: tokens, latent vectors, and the use of lines. Only ``\n`` ends a
line, alone or after ``\r``. Other line separators of Unicode are part of the sentence, so that there are as many lines
of output as of input.
"""

from __future__ import annotations

import csv
import gzip
import io
import shlex
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path, PurePath
from typing import BinaryIO

from seqvae.errors import ReadError

_BOM = b"\xef\xbb\xbf"
LONGEST = 16 << 20
"""Maximum bytes of a line: a compressed file with a longer one is not text."""
_ENDINGS = {"txt", "text", "gz"}  # parts of a file's name that do not name its style
MUSIC = {".mid", ".midi", ".kar", ".rmi", ".smf", ".mxl", ".musicxml", ".krn", ".abc"}
"""Suffixes of music, which is no text here even where it is written in letters."""
_TABLES = {".csv", ".tsv"}
_HEAD, _ROWS = 1 << 14, 50  # bytes and rows of a file that decide what it is
_SHOWN, _WIDE = 8, 80  # names of columns in a message, and their letters
_MARKS = {",": "", ";": ", delimiter=';'", "\t": ", delimiter='\\t'"}  # arguments of csv.reader


def read_lines(source: str | PathLike[str] | BinaryIO) -> Iterator[str]:
    """The lines of a text file (also `.gz`) or a binary stream, without line ends, each as soon as it is complete.

    Invalid UTF-8 becomes U+FFFD. Raises ReadError at once for a file that cannot be opened, and while reading for a
    truncated file or a line of more than LONGEST bytes.
    """
    if not isinstance(source, (str, PathLike)):
        return _lines(source, "the stream")
    path = Path(source)
    try:
        file = path.open("rb")
    except IsADirectoryError as error:
        raise ReadError(path, "it is a folder", "name the files in it") from error
    except OSError as error:
        raise ReadError(path, error.strerror or str(error), "check the name and the permissions") from error
    return _closing(file, path)


def _closing(file: BinaryIO, path: Path) -> Iterator[str]:
    """The lines of a file, which is closed afterwards."""
    with file:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield from _lines(unpacked, path)  # type: ignore[arg-type]  # a binary stream of another class
        else:
            yield from _lines(file, path)


def _lines(stream: BinaryIO, name: str | PathLike[str]) -> Iterator[str]:
    """The lines of a binary stream; `name` is used in errors."""
    first = True
    file = isinstance(stream, io.IOBase)  # other streams iterate over lines themselves
    try:
        for line in iter(partial(stream.readline, LONGEST + 1), b"") if file else stream:
            if len(line) > LONGEST:
                raise ReadError(name, f"a line of more than {LONGEST >> 20} MB", "split it, one sentence a line")
            if first:
                line, first = line.removeprefix(_BOM), False
            if line.endswith(b"\n"):
                line = line[:-1].removesuffix(b"\r")
            yield line.decode(errors="replace")
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(name, str(error), "copy the file again") from error


def check(path: Path) -> None:
    """Raise ReadError for a file of music, another file that is not text, or a table (.csv or .tsv)."""
    if not path.is_file():  # a pipe is read once
        return
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:  # reading names the reason
        return
    if suffixes & MUSIC or head.startswith((b"MThd", b"RIFF")):
        advice = "give files in UTF-8 with one sentence a line; for music take the model, or the recipe, music"
        raise ReadError(path, "it is not text but music", advice)
    if b"\0" in head.split(b"\n")[0]:
        raise ReadError(path, "it is not text", "give files in UTF-8 with one sentence a line")
    if suffixes & _TABLES:
        raise _table(path, head)


def _table(path: Path, head: bytes) -> ReadError:
    """The refusal of a table, with a command that writes its column with the longest texts to a file of lines."""
    text = head.decode(errors="replace").removeprefix("\ufeff")
    mark = max(",;\t", key=text.partition("\n")[0].count)
    rows = [row for row in csv.reader(text.splitlines()[:_ROWS], delimiter=mark) if row]
    names = rows[0] if rows else []
    length = [sum(len(row[i]) for row in rows[1:] if i < len(row)) for i in range(len(names))]
    column = length.index(max(length)) if length else 0
    code = f"import csv, sys; [print(*row[{column}].split()) for row in list(csv.reader(sys.stdin{_MARKS[mark]}))[1:]]"
    shown = safe(", ".join(names[:_SHOWN]))[:_WIDE]
    called = f", for column '{safe(names[column])[:_WIDE]}'" if names else ""
    return ReadError(
        path,
        f"it is a table ({shown}), not one sentence a line",
        f'write one column to a file{called}: python -c "{code}" < {shlex.quote(path.name)} > lines.txt',
    )


def find(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    """The named files, and all files in named folders, sorted; raises ReadError for an empty folder, and as `check`."""
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if not inside:
            raise ReadError(path, "there is no file in it", "name files with one sentence a line")
        found += inside
    for path in found:
        check(path)
    return found


def style_of(path: str | PathLike[str]) -> str:
    """The style of a file by its name: `negative.txt`, `train.negative` and `negative.txt.gz` are all `negative`."""
    name = PurePath(path).name
    parts = [part for part in name.split(".") if part]
    while len(parts) > 1 and parts[-1].lower() in _ENDINGS:
        parts.pop()
    return parts[-1] if parts else name


def title(line: str) -> str:
    """The key for the split of a line: its words in lower case, so that all copies are in one split."""
    return " ".join(line.lower().split())


def safe(text: str) -> str:
    """Text with control characters and line ends escaped, so that a log cannot control the terminal."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text
    )


def sources(
    data: Sequence[Path], skipped: list[ReadError], report: Callable[[str], None]
) -> Iterator[tuple[str, str, str]]:
    """As `Modality.read_sources`: the style is from a file's name, the group is a line's `title`; none is skipped."""
    for path in find(data):
        for line in read_lines(path):
            if line.strip():
                yield style_of(path), title(line), line
