"""Files that may be untrusted: no pickle, and no file outside their folder.

Scope: names, links and first bytes of files. Out of scope: their content (io/tensors.py, checkpoint/folder.py).
"""

from __future__ import annotations

from pathlib import Path

from seqvae.errors import CheckpointError

PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"}


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
