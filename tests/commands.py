"""Calls of the command line for tests, and songs as their input."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqvae.cli.app import main
from seqvae.errors import LENGTH, CheckpointError, SeqVAEError


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


def seqvae(*args: object) -> Result:
    """Run the command in this process; bugs raise their exceptions."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    assert isinstance(ended.value.code, int | None)
    return Result(ended.value.code or 0, out.getvalue(), err.getvalue())


def done(*args: object) -> list[str]:
    """Output lines of a command that must succeed."""
    result = seqvae(*args)
    assert result.exit_code == 0, result.stderr
    return result.stdout.split("\n")[:-1]


def error_line(result: Result, code: int = 1) -> str:
    """The one-line error of a failed command."""
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("seqvae: ")
    return line


def shell(*args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "seqvae", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def last_error_line(result: Result) -> str:
    """The error line of a command that fails after its reports."""
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("seqvae: ")
    return line


def song(path: Path, number: int = 0, bars: int = 4) -> Path:
    """A MIDI file with a tune, a bass and drums."""
    from seqvae.music import piece as midi

    rows = []
    for at in range(0, 48 * bars, 12):
        tune = 60 + (number * at // 12 + number) % 12
        rows += [[at, 12, tune, 0, 70], [at, 6, 36 + number % 12, 33, 80], [at + 6, 1, 38, midi.DRUMS, 90]]
    frame = midi.make_frame(([(0, 400_000)], [(0, 4, 4)], []))
    return midi.write(midi.to_score(np.array(rows, np.int32), frame), path)


def files(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def one_line(call: Callable[[], object], kind: type[SeqVAEError] = CheckpointError) -> str:
    """The one-line message of the error that a call raises."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message and len(message.splitlines()) == 1 and len(message) <= LENGTH
    return message
