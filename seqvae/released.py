"""Checkpoints from outside: how a name becomes a folder, which are released, and what files tell without being loaded.

Knows folders, the Hub, config.json and the header of a safetensors file. Refuses to know torch, which takes longer to
import than `seqvae models` may take.
"""

from __future__ import annotations

import json
import os
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
    """Kind of sequence: midi, text."""
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


def find(name: str | Path) -> Path:
    """The folder of a released name, a path, or a Hub id `owner/name` (fetched and kept by huggingface_hub).

    A bare word is a released name first; `./word` and a `Path` are paths and nothing else.
    """
    bare = isinstance(name, str) and not {"/", os.sep} & set(name)
    for folder in (released_folder() / name, Path(name)) if bare else (Path(name),):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).exists():
        raise CheckpointError(
            f"{name}: no checkpoint here (config.json is missing); name the folder that `seqvae train` wrote"
        )
    known = ", ".join(path.name for path in released()) or "none"
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name))
        except Exception as error:  # the Hub's client raises many kinds; each means that the name cannot be had
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{name}: no such folder and not to be had from the Hub ({reason}); released: {known}"
            ) from error
    raise CheckpointError(
        f"{name}: no such checkpoint; name a folder, a Hub id (owner/name) or a released one: {known}"
    )


def kind_of(folder: Path) -> str:
    """The kind of sequence that a checkpoint is made for; raises CheckpointError where its settings are broken."""
    try:
        return str(json.loads((folder / "config.json").read_text())["recipe"]["tokenizer"]["kind"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _broken(folder, error) from error


def facts(folder: Path) -> Facts:
    """What a checkpoint's files tell of it; raises CheckpointError where they are broken."""
    try:
        kind = kind_of(folder)
        styles = folder / "styles.safetensors"
        names = sorted({*_metadata(styles)} - {"all"}) if styles.exists() else []
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _broken(folder, error) from error
    return Facts(folder.name, kind, round(size / 1e6, 1), names)


def _broken(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder}: broken checkpoint ({error}); copy or train it again")


def _metadata(path: Path) -> dict[str, Any]:
    """The text in the header of a safetensors file: eight bytes with its length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
    found: dict[str, Any] = header.get("__metadata__", {})
    return found
