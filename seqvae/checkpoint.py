"""Checkpoint folders: written whole or not at all, read without pickle.

Knows: the files of a checkpoint (section 5 of the design). Here the data column and the model column meet. Refuses to
know: training, decoding, what a style is for, and how a name becomes a folder (released.py).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seqvae.config import ModelConfig, Recipe, from_dict, to_dict
from seqvae.errors import CheckpointError, ConfigError, SeqVAEError
from seqvae.model import SequenceVAE
from seqvae.released import find
from seqvae.tokenizer import load_tokenizer
from seqvae.vocabulary import Tokenizer

FORMAT = 1


@dataclass
class Checkpoint:
    """Everything a released folder holds."""

    recipe: Recipe
    model: SequenceVAE
    tokenizer: Tokenizer
    styles: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of styles.safetensors; style.py knows their names."""
    about_styles: dict[str, str] = field(default_factory=dict)
    """Text metadata beside them: count and source of each style."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What `seqvae evaluate` printed."""
    card: str = ""
    """The model card, README.md."""


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder beside `folder` and move it there: readers see the old folder or the new one, never half.

    Raises SeqVAEError in one line when the disk is full or may not be written.
    """
    part: Path | None = None
    old: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        fill(part)
        part.chmod(0o755)
        if folder.exists():
            old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
            folder.rename(old)
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        raise SeqVAEError(f"{folder}: cannot be written ({error}); free some space or choose another folder") from error
    finally:
        if part is not None and part.exists():
            shutil.rmtree(part, ignore_errors=True)
        if old is not None and old.exists():
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:  # stopped between the two moves
                old.rename(folder)


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint folder, replacing one that is there."""

    def fill(part: Path) -> None:
        model = checkpoint.model
        config = {
            "format": FORMAT,
            "recipe": to_dict(checkpoint.recipe),
            "vocab_size": model.vocab_size,
            "cue_sizes": list(model.cue_sizes),
        }
        (part / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        # half precision: half the size, and no figure of a model card changes in its third digit
        weights = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        checkpoint.tokenizer.save(part / "tokenizer")
        if checkpoint.styles:
            styles = {name: tensor.contiguous() for name, tensor in checkpoint.styles.items()}
            save_file(styles, part / "styles.safetensors", metadata=checkpoint.about_styles)
        (part / "metrics.json").write_text(json.dumps(checkpoint.metrics, indent=1) + "\n")
        (part / "README.md").write_text(checkpoint.card)

    write_folder(folder, fill)


def load(name: str | Path) -> Checkpoint:
    """Read a checkpoint by name; raises CheckpointError in one line for whatever is missing, broken or foreign."""
    folder = find(name)
    try:
        config = json.loads((folder / "config.json").read_text())
        if config["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: format {config['format']}, this version reads {FORMAT}; install another seqvae"
            )
        recipe = from_dict(Recipe, config["recipe"], f"{folder}/config.json")
        tokenizer = load_tokenizer(folder / "tokenizer")
        if (config["vocab_size"], tuple(config["cue_sizes"])) != (tokenizer.vocab_size, tokenizer.cue_sizes):
            raise CheckpointError(f"{folder}: tokenizer and model do not belong together; copy the whole folder again")
        model = build(recipe.model, tokenizer)
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        styles, about = (
            load_tensors(folder / "styles.safetensors") if (folder / "styles.safetensors").exists() else ({}, {})
        )
        metrics = json.loads((folder / "metrics.json").read_text()) if (folder / "metrics.json").exists() else {}
        card = (folder / "README.md").read_text() if (folder / "README.md").exists() else ""
    except ConfigError as error:
        where = "" if str(error).startswith(str(folder)) else f"{folder}: "
        raise CheckpointError(f"{where}{error}") from error
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{folder}: broken checkpoint ({reason}); copy or train it again") from error
    model.eval()
    return Checkpoint(recipe, model, tokenizer, styles, about, metrics, card)


def build(config: ModelConfig, tokenizer: Tokenizer) -> SequenceVAE:
    """A model with fresh weights that fits a tokenizer; raises ConfigError for sizes that do not go together."""
    try:
        return SequenceVAE(config, tokenizer.cue_sizes, torch.from_numpy(tokenizer.scope).long())
    except ValueError as error:
        raise ConfigError(f"model: {error}; choose other sizes") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text metadata of a .safetensors file; raises CheckpointError if it is none."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); write it again with seqvae") from error


def save_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, str], path: Path) -> None:
    """Write a .safetensors file in one move; raises SeqVAEError in one line when it cannot be written."""
    part: Path | None = None
    if path.exists() and not path.is_file():  # a folder, or a device, which a file must not replace
        raise SeqVAEError(f"{path}: is there and is no file; choose another name")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        part = Path(name)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=dict(about))
        part.chmod(0o644)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise SeqVAEError(f"{path}: cannot be written ({error}); free some space or choose another folder") from error
    finally:
        if part is not None and part.exists():
            part.unlink()


__all__ = [
    "Checkpoint",
    "build",
    "find",
    "load",
    "load_tensors",
    "save",
    "save_tensors",
    "write_folder",
]
