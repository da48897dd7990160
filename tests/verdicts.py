"""Calls of `detect score`, and detectors of synthetic sessions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from commands import done
from conftest import SESSIONS, session

HELD_OUT = [session(number) for number in range(1000, 1120)]
STRANGE = ["close close open sync sync", "read", "", "open melt check close", "open " + "write sync " * 30 + "close"]


def text_file(path: Path, content: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in content))
    return path


def fitted(folder: Path, model: Path) -> Path:
    """A detector with a false alarm rate of 1 in 20; normal sessions are written beside it."""
    text_file(folder / "known.txt", SESSIONS)  # the model's training sessions
    text_file(folder / "normal.txt", HELD_OUT)
    out, known = folder / "tiny.detector", f"--known=@{folder}/known.txt"
    done("detect", "fit", f"@{folder}/normal.txt", "-m", model, "-o", out, known, "--p-value", 0.05)
    return out


def rows(*args: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done("detect", "score", *args, "--json")]


def lowest(row: dict[str, Any]) -> list[str]:
    """The five least likely tokens of a piece, in order."""
    order = sorted(range(len(row["tokens"])), key=lambda i: row["tokens"][i]["log_prob"])[:5]
    return [row["tokens"][i]["token"] for i in sorted(order)]


def marks(line: str) -> list[str]:
    return re.findall(r"\[([^]]*)\]", line)
