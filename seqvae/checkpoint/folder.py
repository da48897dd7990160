"""Checkpoint folders: written atomically, read without pickle.

Scope: the files of a checkpoint. Out of scope: training, decoding, the use of styles, and names of folders
(checkpoint/hub.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqvae.checkpoint.hub import find
from seqvae.config import ModelConfig, Recipe, from_dict, read, to_dict
from seqvae.errors import CheckpointError, ConfigError, SeqVAEError
from seqvae.io import files
from seqvae.io.tensors import load_tensors, save_tensors, write_tensors
from seqvae.io.untrusted import own, refuse_pickle
from seqvae.modality import load_tokenizer
from seqvae.music.notes import STEPS_PER_BEAT
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.latent import LatentModel
from seqvae.nn.model import SequenceVAE
from seqvae.nn.song_vae import SongVAE
from seqvae.protocols import Tokenizer

FORMAT = 1
SUMMED = ("model.safetensors", "styles.safetensors", "tokenizer/tokenizer.json", "tokenizer/sentencepiece.model")
"""Files whose SHA-256 is in config.json, if they exist; README.md has none, since people edit it."""
FILES = (*SUMMED, "config.json", "metrics.json", "README.md")
"""All files that are read."""
WEIGHTS = {"I8", "F16", "BF16", "F32", "F64"}
"""Number types that weights may have."""
ROW_SCALE = ".row_scale"
"""End of the name of the scales of a matrix in 8 bits."""

STORED = (
    ("decoder.answer.", "decoder.direct_head."),
    ("decoder.place.", "decoder.field_embeddings."),
    ("decoder.writer.told.", "decoder.autoregressive_head.code_input."),
    ("decoder.writer.", "decoder.autoregressive_head."),
    ("encoder.reader.", "encoder.token_encoder."),
)
"""How names of weights begin in files, and in the model. Files keep those of format 1."""


@dataclass
class Checkpoint:
    """The content of a checkpoint folder."""

    recipe: Recipe
    model: LatentModel
    tokenizer: Tokenizer
    styles: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of styles.safetensors; style/styles_file.py defines their names."""
    about_styles: dict[str, str] = field(default_factory=dict)
    """Text metadata in the same file: count and source of each style."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The output of `seqvae evaluate`."""
    card: str = ""
    """The model card, README.md."""


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder beside `folder` and move it there: readers see the old folder or the new, never a part.

    Raises SeqVAEError in one line if it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(folder, folder=True, lasting=True) as part:
            fill(part)
    except (OSError, SafetensorError) as error:
        raise SeqVAEError(f"{folder}: cannot be written ({error}); free some space or choose another folder") from error


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint folder, replacing an existing one; if the weights are the same, its other files are kept."""

    def fill(part: Path) -> None:
        model = checkpoint.model
        config = {
            "format": FORMAT,
            "recipe": to_dict(checkpoint.recipe),
            "vocab_size": model.vocab_size,
            "cue_sizes": list(model.field_sizes),
        }
        weights: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            weights |= _packed(stored(name), tensor.detach().cpu(), isinstance(model, SongVAE))
        write_tensors(weights, {"format": "pt"}, part / "model.safetensors")
        checkpoint.tokenizer.save(part / "tokenizer")
        if checkpoint.styles:
            styles = {name: tensor.contiguous() for name, tensor in checkpoint.styles.items()}
            write_tensors(styles, checkpoint.about_styles, part / "styles.safetensors")
        (part / "metrics.json").write_text(json.dumps(checkpoint.metrics, indent=1) + "\n")
        (part / "README.md").write_text(checkpoint.card)
        sums = {name: _sum(part / name) for name in SUMMED if (part / name).exists()}
        (part / "config.json").write_text(json.dumps(config | {"sha256": sums}, indent=1) + "\n")
        before = folder / "model.safetensors"
        if before.is_file() and _sum(before) == sums["model.safetensors"]:  # a detector, pictures in the card
            ours = {Path(file).parts[0] for file in FILES}
            for other in folder.iterdir():
                if other.name not in ours:
                    (shutil.copytree if other.is_dir() else shutil.copy2)(other, part / other.name)

    write_folder(folder, fill)


def load(name: str | Path) -> Checkpoint:
    """Read a checkpoint by name.

    It may be untrusted: no pickle and no file outside the folder is opened, and sizes are checked before memory is
    allocated. Raises CheckpointError in one line if anything is missing, invalid, changed or of another kind.
    """
    folder = find(name)
    refuse_pickle(folder)
    for file in FILES:
        own(folder, file)
    try:
        config = read(folder / "config.json")
        if config["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: format {config['format']}, this version reads {FORMAT}; install another seqvae"
            )
        recipe = from_dict(Recipe, config["recipe"], f"{folder}/config.json")
        for file, digest in config.get("sha256", {}).items():  # older ones have none
            if _sum(own(folder, file)) != digest:
                raise CheckpointError(f"{folder}: {file} is not the file that was saved; copy the whole folder again")
        tokenizer = load_tokenizer(folder / "tokenizer")
        if (config["vocab_size"], tuple(config["cue_sizes"])) != (tokenizer.vocab_size, tokenizer.field_sizes):
            raise CheckpointError(f"{folder}: tokenizer and model do not belong together; copy the whole folder again")
        weights = _weights(folder / "model.safetensors", recipe.model, tokenizer)
        model = restored(recipe.model, tokenizer)
        model.load_state_dict(weights)
        styles, about = (
            load_tensors(folder / "styles.safetensors") if (folder / "styles.safetensors").exists() else ({}, {})
        )
        metrics = read(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
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


def stored(name: str) -> str:
    """The name in files of a weight of the model."""
    return next((old + name.removeprefix(new) for old, new in STORED if name.startswith(new)), name)


def loaded(name: str) -> str:
    """The name in the model of a weight in a file."""
    return next((new + name.removeprefix(old) for old, new in STORED if name.startswith(old)), name)


def _packed(name: str, weights: Tensor, in_bytes: bool) -> dict[str, Tensor]:
    """Tensors in a file for `weights (...)`: in half precision, which changes no metric of a card in its third digit.

    Weights above 65,504 are stored unchanged. With `in_bytes`, matrices `(M, N)` have 8 bits a weight and a scale
    `(M, 1)` for each row, whose largest weight is 127. Scales have the eight bits of bf16, so that a product with 127
    is exact and weights that are read and saved again do not change.
    """
    if in_bytes and weights.ndim == 2:
        scale = (weights.abs().amax(1, keepdim=True) / 127).bfloat16().float()
        whole = (weights / scale.clamp(min=1e-30)).round().clamp(-127, 127)
        return {name: whole.to(torch.int8), name + ROW_SCALE: scale.bfloat16()}
    half = weights.half()
    return {name: (half if bool(half.isfinite().all()) else weights).contiguous()}


def _unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in single precision of the `tensors` of a file; the inverse of `_packed`."""
    out = {}
    for name, x in tensors.items():
        if x.dtype == torch.int8:
            scale = tensors[name + ROW_SCALE]
            if scale.shape != (len(x), 1):
                raise ValueError(f"{name}: {tuple(scale.shape)} scales of {len(x)} rows")
            x = x * scale.float()
        if name.removesuffix(ROW_SCALE) == name:
            out[loaded(name)] = x.float()
    return out


def _sum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights(path: Path, config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights of a model in single precision; ValueError if `config` describes a far larger model.

    The check reads the header alone: every model has matrices of at least these sizes, so a model that passes takes at
    most a small multiple of the file's size. Exact shapes are checked when weights are loaded.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        parts = {name: file.get_slice(name) for name in names}
        types = {part.get_dtype() for part in parts.values()}
        if not types <= WEIGHTS:
            raise ValueError(f"weights of type {', '.join(sorted(types - WEIGHTS))}")
        held = sum(math.prod(part.get_shape()) for part in parts.values())
        least, layers = _least(config, tokenizer.vocab_size + sum(tokenizer.field_sizes))
        if least > held or layers > len(names):
            raise ValueError(f"the settings need at least {least:,} weights, and the file has {held:,} of them")
        return _unpacked({name: file.get_tensor(name) for name in names})


def _least(config: ModelConfig, symbols: int) -> tuple[int, int]:
    """Fewest weights and layers of a model with so many tokens and position fields."""
    if config.song is None:
        least = (config.width + config.latent * config.chunks + symbols) * config.width
        return least + config.layers * config.hidden**2, config.layers
    song = config.song
    layers = song.encoder_layers + song.decoder_layers + song.prior_layers
    least = (song.song + song.steps + 24 * song.beats + symbols) * song.bar
    least += (song.encoder_layers + song.decoder_layers) * song.width**2 + song.prior_layers * song.prior_width**2
    return least + (song.queries + song.beats + song.song) * song.width + song.bar * song.prior_width, layers


def restored(config: ModelConfig, tokenizer: Tokenizer) -> LatentModel:
    """A model of any kind for stored weights; raises ConfigError for sizes that do not fit together."""
    if config.song is None:
        return build(config, tokenizer)
    if not isinstance(tokenizer, MidiTokenizer) or config.song.steps != tokenizer.max_steps:
        raise ConfigError(f"model.song: needs music in bars of at most {config.song.steps} steps; choose kind = midi")
    if config.song.steps != STEPS_PER_BEAT * config.song.beats:
        raise ConfigError(f"model.song: {config.song.beats} beats have {STEPS_PER_BEAT} steps each; correct steps")
    try:
        return SongVAE(config, torch.from_numpy(tokenizer.token_types), torch.from_numpy(tokenizer.token_values))
    except ValueError as error:
        raise ConfigError(f"model.song: {error}; choose other sizes") from error


def build(config: ModelConfig, tokenizer: Tokenizer) -> SequenceVAE:
    """A model with initial weights for a tokenizer, to be trained by `seqvae train`.

    Raises ConfigError for sizes that do not fit together, and for a song model, which has a training of its own.
    """
    if config.song is not None:
        raise ConfigError("model.song: benchmarks/train_songs.py trains song models; leave the section out here")
    try:
        return SequenceVAE(config, tokenizer.field_sizes, torch.from_numpy(tokenizer.binding_depth).long())
    except ValueError as error:
        raise ConfigError(f"model: {error}; choose other sizes") from error


__all__ = [
    "Checkpoint",
    "build",
    "find",
    "load",
    "load_tensors",
    "loaded",
    "save",
    "save_tensors",
    "stored",
    "write_folder",
]
