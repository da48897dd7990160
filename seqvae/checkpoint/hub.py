"""Lookup of checkpoints: names to folders, the released models, and facts from files without loading them.

Scope: folders, the Hub, config.json, headers of safetensors files. Out of scope: torch, whose import takes longer than
`seqvae models` may take.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqvae.config import read
from seqvae.errors import CheckpointError
from seqvae.io.untrusted import refuse_pickle

WANTED = ["*.json", "*.safetensors", "*.model", "*.md", "*.png"]
"""Files that are downloaded from the Hub, all that a checkpoint can contain."""


RENAMED = {"music-free": "music"}
"""Released models of earlier versions, and the models that replace them."""


@dataclass(frozen=True)
class Facts:
    """One released checkpoint, as `seqvae models` lists it."""

    name: str
    """Its name for the option -m."""
    kind: str
    """Kind of sequence: midi, text, events."""
    megabytes: float
    """Size of the whole folder in MB."""
    styles: list[str]
    """Names of its styles."""


def released_folder() -> Path:
    """The folder of released checkpoints: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parents[1] / "checkpoints"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "checkpoints"


def released() -> list[Path]:
    """Folders of released checkpoints, sorted by name."""
    return sorted(path.parent for path in released_folder().glob("*/config.json"))


def find(name: str | Path) -> Path:
    """The folder of a released name, a path, or a Hub id `owner/name` (downloaded and cached by huggingface_hub).

    A bare word is a released name first, perhaps one of RENAMED; `./word` and a `Path` are paths only. Raises
    CheckpointError.
    """
    bare = isinstance(name, str) and not {"/", os.sep} & set(name)
    for folder in (released_folder() / RENAMED.get(str(name), name), Path(name)) if bare else (Path(name),):
        if (folder / "config.json").is_file():
            return folder
    refuse_pickle(Path(name))
    if Path(name).exists():
        raise CheckpointError(
            f"{name}: no checkpoint here (config.json is missing); name the folder that `seqvae train` wrote"
        )
    known = ", ".join(path.name for path in released()) or "none"
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=WANTED))
        except Exception as error:  # the Hub's client raises many kinds of errors
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{name}: no such folder, and not available from the Hub ({reason}); released: {known}"
            ) from error
    raise CheckpointError(
        f"{name}: no such checkpoint; name a folder, a Hub id (owner/name) or a released one: {known}"
    )


def kind_of(folder: Path) -> str:
    """The kind of sequence of a checkpoint; raises CheckpointError if its settings are invalid."""
    try:
        return str(read(folder / "config.json")["recipe"]["tokenizer"]["kind"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _broken(folder, error) from error


def facts(folder: Path) -> Facts:
    """Facts from a checkpoint's files; raises CheckpointError if they are invalid."""
    try:
        kind = kind_of(folder)
        styles = folder / "styles.safetensors"
        names = sorted({*_metadata(styles)} - {"all"}) if styles.is_file() else []
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _broken(folder, error) from error
    return Facts(folder.name, kind, round(size / 1e6, 1), names)


def _broken(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder}: broken checkpoint ({error}); copy or train it again")


def _metadata(path: Path) -> dict[str, Any]:
    """The text metadata in the header of a safetensors file: eight bytes with its length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
        except RecursionError:
            raise ValueError(f"{path.name} has a header nested too deeply") from None
    found: dict[str, Any] = header.get("__metadata__", {})
    return found
