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

from seqvae.config import read
from seqvae.errors import CheckpointError

PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"}
WANTED = ["*.json", "*.safetensors", "*.model", "*.md", "*.png"]
"""What is fetched from the Hub: nothing else of a checkpoint is read."""


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
    inside = Path(__file__).parents[1] / "checkpoints"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "checkpoints"


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
        except Exception as error:  # the Hub's client raises many kinds; each means that the name cannot be had
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{name}: no such folder and not to be had from the Hub ({reason}); released: {known}"
            ) from error
    raise CheckpointError(
        f"{name}: no such checkpoint; name a folder, a Hub id (owner/name) or a released one: {known}"
    )


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError, with the reason, for a pickle, and for a folder with weights in nothing but one."""
    if path.is_dir():
        inside = [] if (path / "model.safetensors").exists() else sorted(path.iterdir())
        found = next((one for one in inside if one.suffix.lower() in PICKLES), None)
    else:
        found = path if path.is_file() and (path.suffix.lower() in PICKLES or _is_pickle(path)) else None
    if found is not None:
        raise CheckpointError(
            f"{found}: is a pickle, which may run any program when it is opened, and is never read here; "
            "ask whoever made it for .safetensors and JSON"
        )


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles do, or is the zip that `torch.save` makes around one."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return False
    if head.startswith(b"PK\3\4"):
        return True
    # the length that .safetensors begins with ends in zeros; so does the frame of a pickle, behind a byte of its own
    return head[:1] == b"\x80" and (head[2:3] == b"\x95" or not head.endswith(b"\0\0\0\0"))


def own(folder: Path, name: str) -> Path:
    """A file of a folder that may come from a stranger, whether it is there or not.

    Raises CheckpointError for one that is elsewhere, by its name or by a link, and for what is no plain file. The Hub's
    cache keeps files as links from `snapshots` into `blobs` beside it; no other link may lead out.
    """
    home, path = folder.resolve(), folder / name
    homes = [home, *(parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots")]
    try:
        found = path.resolve()
    except RuntimeError:  # a link to itself
        found = Path()
    if not any(found.is_relative_to(one) for one in homes) or (found.exists() and not found.is_file()):
        raise CheckpointError(f"{path}: is no plain file within {folder}; copy the whole folder, without links")
    return path


def kind_of(folder: Path) -> str:
    """The kind of sequence that a checkpoint is made for; raises CheckpointError where its settings are broken."""
    try:
        return str(read(folder / "config.json")["recipe"]["tokenizer"]["kind"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _broken(folder, error) from error


def facts(folder: Path) -> Facts:
    """What a checkpoint's files tell of it; raises CheckpointError where they are broken."""
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
    """The text in the header of a safetensors file: eight bytes with its length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
        except RecursionError:
            raise ValueError(f"{path.name} has a header nested too deeply") from None
    found: dict[str, Any] = header.get("__metadata__", {})
    return found
