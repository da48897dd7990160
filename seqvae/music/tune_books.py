"""Tunes of an ABC file by paths of their own: `book.abc#3` is the third tune of `book.abc`.

Scope: these paths, and the number and titles of the tunes in a file. Out of scope: ABC notation (music/abc.py). Tunes
without notes are not counted, and a file with one tune has only its own path.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

SUFFIX = ".abc"
_TUNE = re.compile(rf"(.+\{SUFFIX})#([1-9]\d{{0,5}})", re.IGNORECASE | re.DOTALL)
_LARGEST = 32 << 20  # bytes; reading refuses a larger file


def divided(path: str | Path) -> tuple[Path, int]:
    """The file and the number of a tune's path; the path itself and 0 for any other."""
    path = Path(path)
    found = _TUNE.fullmatch(path.name)
    return (path, 0) if found is None or path.exists() else (path.with_name(found[1]), int(found[2]))


def suffix(path: Path) -> str:
    """The suffix of the file, in lower case."""
    return divided(path)[0].suffix.lower()


def stem(path: Path) -> str:
    """The name of an output for a file or a tune: `book-3` for `book.abc#3`."""
    file, number = divided(path)
    return f"{file.stem}-{number}" if number else file.stem


def tunes(path: Path) -> list[Path]:
    """The path of each tune in an ABC file with several; of any other file its own path."""
    count = len(_titles(path)) if path.suffix.lower() == SUFFIX and path.is_file() else 1
    return [path.with_name(f"{path.name}#{number}") for number in range(1, count + 1)] if count > 1 else [path]


def title(path: str | Path) -> str:
    """The title of the tune that a path names, without slashes and colons; its `stem` for a tune without a title."""
    file, number = divided(path)
    found = _titles(file) if file.is_file() else []
    written = found[number - 1] if 0 < number <= len(found) else ""
    return " ".join(re.sub(r"[/\\:\x00-\x1f\x7f]", " ", written).split()) or stem(Path(path))


def _titles(file: Path) -> list[str]:
    try:
        about = file.stat()
        return _titles_of(file, about.st_mtime_ns, about.st_size) if about.st_size <= _LARGEST else []
    except OSError:  # reading names the reason
        return []


@lru_cache(maxsize=16)
def _titles_of(file: Path, _changed: int, _size: int) -> list[str]:
    from seqvae.music import abc

    return abc.titles(file.read_bytes())
