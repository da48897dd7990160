"""Tensors and text in .safetensors files: written atomically, read without pickle.

Scope: one file. Out of scope: folders of a model (checkpoint/folder.py), and names of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seqvae.errors import CheckpointError, SeqVAEError
from seqvae.io import files
from seqvae.io.untrusted import refuse_pickle


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text metadata of a .safetensors file; raises CheckpointError for any other file."""
    if path.is_file() or not path.exists():  # a pipe would never end
        refuse_pickle(path)
    else:
        raise CheckpointError(f"{path}: is not a file; name a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); write it again with seqvae") from error


def save_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, str], path: Path) -> None:
    """Write a .safetensors file atomically; raises SeqVAEError in one line if it cannot be written."""
    if path.exists() and not path.is_file():  # a folder or device must not be replaced
        raise SeqVAEError(f"{path}: exists and is not a file; choose another name")
    try:
        with files.whole(path, lasting=True) as part:
            write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, about, part)
    except (OSError, SafetensorError) as error:
        raise SeqVAEError(f"{path}: cannot be written ({error}); free some space or choose another folder") from error


def write_tensors(tensors: dict[str, Tensor], about: Mapping[str, str], path: Path) -> None:
    """Write a .safetensors file with sorted metadata, so that equal content gives equal bytes."""
    save_file(tensors, path, metadata=dict(about))
    if about:
        with path.open("r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) | {"__metadata__": dict(sorted(about.items()))}
            file.seek(8)
            file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))
