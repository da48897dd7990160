"""Errors: one line with what, where and what to do, which survives pickling between processes."""

from __future__ import annotations

import pickle

import pytest

from seqvae import errors
from seqvae.errors import ReadError, SeqVAEError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SeqVAEError)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not ReadError])
def test_a_message_of_several_lines_becomes_one(kind: type[SeqVAEError]) -> None:
    assert str(kind("a.mid: broken\n  at byte 3;\r\nget another copy")) == "a.mid: broken   at byte 3; get another copy"


def test_a_read_error_names_the_file_the_fault_and_the_remedy() -> None:
    error = ReadError("a.mid", "the file is\ncut short", "get another copy")
    assert str(error) == "cannot read a.mid: the file is cut short; get another copy"
    assert (error.path, error.reason, error.advice) == ("a.mid", "the file is\ncut short", "get another copy")


def test_a_read_error_is_pickled_completely() -> None:
    error = ReadError("a.mid", "it is empty", "get another copy")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ReadError
    assert str(again) == str(error)
    assert again.reason == error.reason


@pytest.mark.parametrize("kind", KINDS)
def test_one_except_clause_catches_every_error_and_no_bug(kind: type[SeqVAEError]) -> None:
    assert issubclass(kind, SeqVAEError)
    assert not issubclass(kind, (ValueError, OSError, RuntimeError))
