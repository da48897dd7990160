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

PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"}
WANTED = ["*.json", "*.safetensors", "*.model", "*.md", "*.png"]
"""Files that are downloaded from the Hub, all that a checkpoint can contain."""


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

    A bare word is a released name first; `./word` and a `Path` are paths only. Raises CheckpointError.
    """
    bare = isinstance(name, str) and not {"/", os.sep} & set(name)
    for folder in (released_folder() / name, Path(name)) if bare else (Path(name),):
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


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError, with the reason, for a pickle, or a folder that has its weights only in a pickle."""
    if path.is_dir():
        inside = [] if (path / "model.safetensors").exists() else sorted(path.iterdir())
        found = next((one for one in inside if one.suffix.lower() in PICKLES), None)
    else:
        found = path if path.is_file() and (path.suffix.lower() in PICKLES or _is_pickle(path)) else None
    if found is not None:
        raise CheckpointError(
            f"{found}: is a pickle, which may run any program when it is opened, and is never read; "
            "ask its author for .safetensors and JSON"
        )


def _is_pickle(path: Path) -> bool:
    """True if a file begins like a pickle, or like the zip of `torch.save`."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return False
    if head.startswith(b"PK\3\4"):
        return True
    # the length at the start of .safetensors ends in zeros; so does a pickle's frame, after its own opcode byte
    return head[:1] == b"\x80" and (head[2:3] == b"\x95" or not head.endswith(b"\0\0\0\0"))


def own(folder: Path, name: str) -> Path:
    """The path of a file in a folder that may be untrusted, whether or not the file exists.

    Raises CheckpointError for a path outside the folder, by its name or by a link, and for anything but a regular file.
    The Hub's cache has links from `snapshots` into `blobs` beside it; no other link may lead outside.
    """
    home, path = folder.resolve(), folder / name
    homes = [home, *(parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots")]
    try:
        found = path.resolve()
    except RuntimeError:  # a link to itself
        found = Path()
    if not any(found.is_relative_to(one) for one in homes) or (found.exists() and not found.is_file()):
        raise CheckpointError(f"{path}: is not a regular file within {folder}; copy the whole folder, without links")
    return path


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
