"""The released checkpoints: where they lie, and what their files tell without being loaded.

Knows folders, config.json and the header of a safetensors file. Refuses to know torch, which takes longer to import
than `seqvae models` may take.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqvae.errors import CheckpointError


@dataclass(frozen=True)
class Facts:
    """One released checkpoint, as `seqvae models` lists it."""

    name: str
    """What -m takes."""
    kind: str
    """Kind of sequence: midi."""
    megabytes: float
    """Size of the whole folder."""
    styles: list[str]
    """Styles it knows, by name."""


def released_folder() -> Path:
    """Where released checkpoints lie: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "checkpoints"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "checkpoints"


def released() -> list[Path]:
    """Folders of released checkpoints, by name."""
    return sorted(path.parent for path in released_folder().glob("*/config.json"))


def facts(folder: Path) -> Facts:
    """What a checkpoint's files tell of it; raises CheckpointError where they are broken."""
    try:
        kind = json.loads((folder / "config.json").read_text())["recipe"]["tokenizer"]["kind"]
        styles = folder / "styles.safetensors"
        names = sorted({*_metadata(styles)} - {"all"}) if styles.exists() else []
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: broken checkpoint ({error}); copy or train it again") from error
    return Facts(folder.name, kind, round(size / 1e6, 1), names)


def _metadata(path: Path) -> dict[str, Any]:
    """The text in the header of a safetensors file: eight bytes with its length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
    found: dict[str, Any] = header.get("__metadata__", {})
    return found
