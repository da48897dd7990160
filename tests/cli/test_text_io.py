"""Batches of lines: all available lines, without waiting for more. The commands are in test_commands_on_lines.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seqvae.cli import text_io as lines
from seqvae.errors import ReadError, UsageError


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The writing end of standard input."""
    read, write = os.pipe()
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield write


def pieces(batch: list[lines.Item]) -> list[str]:
    return [item.piece for item in batch]


def test_a_batch_is_the_lines_already_available(pipe: int) -> None:
    batches = lines.read([])
    os.write(pipe, b"a\n\nb\nhal")
    assert pieces(next(batches)) == ["a", "", "b"], "an incomplete line is not a line"
    os.write(pipe, b"f\r\n")
    assert pieces(next(batches)) == ["half"]
    os.write(pipe, b"no end")
    os.close(pipe)
    last = next(batches)
    assert [item.facts for item in last] == [{"index": 4, "input": "no end"}]
    assert list(batches) == []


def test_a_batch_is_no_longer_than_the_batch_size_of_the_model(pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BATCH", 3)
    os.write(pipe, b"x\n" * 8)
    os.close(pipe)
    assert [len(batch) for batch in lines.read(["-"])] == [3, 3, 2]


def test_a_sentence_in_another_encoding_is_read_like_a_file() -> None:
    [[item]] = lines.read([os.fsdecode(b"caf\xe9")])
    assert item.piece == "caf\ufffd"


def test_files_are_opened_before_the_first_line_is_requested(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="gone"):
        lines.read(["a", f"@{tmp_path}/gone"])
    with pytest.raises(ReadError, match="gone"):
        lines.members([f"@{tmp_path}/gone"])


def test_a_single_line_is_one_batch(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("only\n")
    (tmp_path / "none.txt").touch()
    assert (lines.one("a"), lines.one(f"@{tmp_path}/one.txt")) == ("a", "only")
    with pytest.raises(UsageError, match="holds no line"):
        lines.one(f"@{tmp_path}/none.txt")
