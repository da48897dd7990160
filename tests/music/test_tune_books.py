"""Tunes of an ABC file as pieces of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from seqvae.errors import ReadError
from seqvae.music import library, tune_books
from seqvae.music import piece as midi

BOOK = """M:3/4
L:1/4

Notes by a collector, about the tunes.

X:7
T:The Kesh: a jig % also Kincora
T:Another Name
K:G
GBd|

X:9
T:Nothing Is Written
K:C
"Am"z3|
w:a b c

X:8
K:C
EFG|

X:7
T:Michelle
K:C
c3|
"""


def written(path: Path, text: str = BOOK) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return written(tmp_path / "tunes" / "my book.abc")


def pitches(source: Any) -> list[int]:
    found: list[int] = midi.read(source).notes[:, midi.PITCH].tolist()
    return found


def test_each_tune_with_notes_has_a_path(book: Path) -> None:
    tunes = [book.with_name(f"my book.abc#{number}") for number in (1, 2, 3)]
    one = written(book.with_name("a.abc"), "X:5\nT:Alone\nL:1/4\nK:C\nCDE|\n\nX:6\nT:Empty\nK:C\n")
    assert library.find([book.parent]) == [one, *tunes]
    assert library.find([book, tunes[1]]) == tunes
    assert [pitches(path) for path in tunes] == [[67, 71, 74], [64, 65, 67], [72]]
    assert pitches(book) == [67, 71, 74, 64, 65, 67, 72]
    assert [midi.read(path).name for path in [*tunes, one]] == ["The Kesh a jig", "my book-2", "Michelle", "a"]
    assert midi.resolve(tunes[2]) == book


def test_a_missing_tune_is_an_error(book: Path) -> None:
    for number, reason in ((0, "there is no such file"), (4, "the file has 3 tunes; name one")):
        with pytest.raises(ReadError, match=reason):
            midi.read(f"{book}#{number}")
    with pytest.raises(ReadError, match="no such file or folder"):
        library.find([book.with_name("other.abc#1")])


def test_a_file_whose_name_has_a_number_sign(tmp_path: Path) -> None:
    odd = written(tmp_path / "song #2.abc", "L:1/4\nK:C\nCDE|\n")
    odder = written(tmp_path / "b.abc#1", "L:1/4\nK:C\nCDE|\n")
    assert library.find([odd, odder]) == [odd, odder]
    assert tune_books.divided(odder) == (odder, 0)
    assert pitches(odd) == [60, 62, 64]


def test_titles_are_read_again_from_a_changed_file(book: Path) -> None:
    assert tune_books.title(f"{book}#3") == "Michelle"
    about = book.stat()
    written(book, BOOK.replace("Michelle", "Yesterday"))
    os.utime(book, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert tune_books.title(f"{book}#3") == "Yesterday"


def test_the_cache_contains_tunes(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = library.find([book])
    first = list(library.read_all(paths, cache=tmp_path / "cache", workers=1, progress=False))
    assert len(list((tmp_path / "cache").iterdir())) == 3

    def no_worker(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(subprocess, "Popen", no_worker)
    again = list(library.read_all(paths, cache=tmp_path / "cache", workers=1, progress=False))
    for (_, one), (_, two), path in zip(first, again, paths, strict=True):
        assert isinstance(one, midi.Piece)
        assert isinstance(two, midi.Piece)
        assert (one.name, two.name) == (midi.read(path).name,) * 2
        assert one.notes.tolist() == two.notes.tolist() == midi.read(path).notes.tolist()


def test_a_tune_s_title_decides_its_split(book: Path) -> None:
    written(book.with_name("The Beatles - Michelle.abc"), "L:1/4\nK:C\nCDE|\n")
    found = {group: style for style, group, _ in library.sources([book.parent], [], lambda _: None)}
    assert found == {"kesh": "tunes", "book": "tunes", "michell": "tunes"}
    found = {group: style for style, group, _ in library.sources([book], [], lambda _: None)}
    assert found == {"kesh": "my book", "book": "my book", "michell": "my book"}
