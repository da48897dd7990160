"""Lines of files and pipes: none is lost, each is available at once, and the style is in a file's name."""

from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqvae.errors import ReadError
from seqvae.text.lines import read_lines, style_of, title


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"one", ["one"]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\r\n\r\n", ["one", "two", ""]),
        (b"one\rtwo\r", ["one\rtwo\r"]),
        (b"one\r\r\n", ["one\r"]),
        (b" one \t\n\n two", [" one \t", "", " two"]),
        (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo", ["one", "\ufefftwo"]),  # only the first is a byte order mark
        (b"\xff one\n\xe2\x82\ntwo", ["\ufffd one", "\ufffd", "two"]),
        ("a\u2028b\x85c\x0bd\x0ce\u2029f\n".encode(), ["a\u2028b\x85c\x0bd\x0ce\u2029f"]),
        (b"a\0b\n", ["a\0b"]),
    ],
)
def test_lines_end_only_at_line_feeds(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data))
    assert list(read_lines(tmp_path / "a.txt")) == expected
    assert list(read_lines(str(tmp_path / "a.txt.gz"))) == expected
    assert list(read_lines(io.BytesIO(data))) == expected


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), max_size=8))
def test_written_lines_are_read_back(lines: list[str]) -> None:
    lines = [line.lstrip("\ufeff").rstrip("\r") for line in lines]
    data = "".join(f"{line}\n" for line in lines).encode()
    assert list(read_lines(io.BytesIO(data))) == lines


def test_a_line_of_a_pipe_is_available_at_once() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as pipe:
        lines = read_lines(stream)
        stuck = threading.Timer(10, pipe.close)  # a reader that waits for more would wait for ever
        stuck.start()
        pipe.write(b"one\ntw")
        assert next(lines) == "one"
        pipe.write(b"o\n")
        assert next(lines) == "two"
        assert not pipe.closed
        stuck.cancel()


def test_an_unreadable_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"none\.txt"):
        read_lines(tmp_path / "none.txt")
    with pytest.raises(ReadError, match="folder"):
        read_lines(tmp_path)


CUT = [gzip.compress(b"a line\n" * 9999, mtime=0)[:-30], gzip.compress(b"a", mtime=0)[:12]]


@pytest.mark.parametrize("data", [b"no archive\n", *CUT], ids=["none", "cut late", "cut early"])
def test_a_broken_archive_is_an_error_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(data)
    with pytest.raises(ReadError, match=r"a\.txt\.gz") as caught:
        list(read_lines(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("negative.txt", "negative"),
        ("train.negative", "negative"),
        ("train.negative.txt", "negative"),
        ("negative.txt.gz", "negative"),
        ("some/where/negative.TXT", "negative"),
        ("reviews of 2020.text", "reviews of 2020"),
        ("negative", "negative"),
        (".txt", "txt"),
        ("txt", "txt"),
        ("a..gz", "a"),
    ],
)
def test_the_name_of_a_file_gives_its_style(name: str, style: str) -> None:
    assert style_of(name) == style
    assert style_of(Path(name)) == style


def test_copies_have_one_title() -> None:
    assert title("  The  food\twas good .\n") == title("the food was GOOD .") == "the food was good ."
    assert title("") == title("  ") == ""
    assert title("good") != title("goods")
