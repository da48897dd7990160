"""Preparation of a run: files are read, tokenized and written to token shards, once.

Scope: files of each kind, the style and group of each piece, the shards and tokenizer of a run. Out of scope: models,
losses, the reading of files (modality.py).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seqvae.config import Recipe, TokenizerConfig, from_dict, to_dict
from seqvae.data.dataset import ShardWriter, TokenData, fetched
from seqvae.errors import ConfigError, ReadError, SeqVAEError
from seqvae.io import files
from seqvae.modality import load_tokenizer, make, modality
from seqvae.protocols import Tokenizer, spelling

Report = Callable[[str], None]
Source = tuple[str, str, Any]  # style, group and piece
SPELLED = 1024  # lines tokenized at once, several times faster than one by one
LEARNED = 1 << 27  # maximum bytes of lines for learning a text vocabulary: over a million sentences


def prepare(
    recipe: Recipe, data: Sequence[str | Path], folder: Path, *, tokenizer: Path | None = None, report: Report = print,
    make_them: bool = True, anew: bool = False,
) -> tuple[TokenData, Tokenizer, list[ReadError]]:  # fmt: skip
    """The shards and the tokenizer of a run, made from `data` if `folder` does not have them; and the skipped files.

    `data` are folders with a subfolder for each style, or files; for text and logs each file is a style. Or `data` is
    one folder of existing shards with their tokenizer, or the address of one (s3://...); then `folder` is not used.
    `tokenizer` is the folder of an existing tokenizer; without it, a kind with a learned vocabulary learns it from
    `data`. With `anew`, the shards in `folder` are made again, unless they are `data`. Raises SeqVAEError if nothing
    can be read, ConfigError if the shards were made with another tokenizer, and ReadError if `make_them` is False and
    the shards made by another process are not visible.
    """
    skipped: list[ReadError] = []
    paths = [Path(one) for one in data]
    entry = modality(recipe.tokenizer.kind)

    def pieces() -> Iterator[Source]:
        return entry.read_sources(paths, skipped, report)

    made = _made_before(data)
    folder = folder if made is None else made
    if anew and made is None:
        (folder / "index.json").unlink(missing_ok=True)
    if not make_them and not (folder / "index.json").exists():
        raise ReadError(
            folder,
            "the first process has made token shards there, and this machine does not see them",
            "let all machines see one file system, or give the address of a copy of that folder as --data",
        )
    kept, ready = folder / "tokenizer", (folder / "index.json").exists()
    if tokenizer is not None:
        spelled = load_tokenizer(tokenizer)
    elif ready:
        spelled = load_tokenizer(kept)
    else:
        known = (piece for *_, piece in pieces())
        spelled = make(recipe.tokenizer, lambda: evenly(known, LEARNED) if entry.vocabulary == "sample" else known)
    if tokenizer is not None and ready and kept.exists() and spelling(load_tokenizer(kept)) != spelling(spelled):
        raise ConfigError(
            f"{tokenizer}: is not the tokenizer of the shards in {folder}; leave it out, or choose another --out"
        )
    if spelled.kind != recipe.tokenizer.kind:
        raise ConfigError(f"{tokenizer}: is for {spelled.kind}, and the recipe for {recipe.tokenizer.kind}")
    new = not folder.exists()
    try:
        if made is None and not (ready and kept.exists()):  # files without an index are not valid
            spelled.save(kept)
        return tokenize(recipe, pieces(), spelled, folder), spelled, skipped
    except BaseException as error:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise SeqVAEError(f"{folder}: cannot be written ({error}); free some space or choose another --out") from error


def _made_before(data: Sequence[str | Path]) -> Path | None:
    """The folder of existing token shards in `data`, downloaded if remote; None if `data` are files to read."""
    elsewhere = [one for one in data if isinstance(one, str) and "://" in one]
    if elsewhere and len(data) > 1:
        raise ConfigError(f"--data {elsewhere[0]}: an address of token shards excludes other --data; leave them out")
    if elsewhere:
        return fetched(elsewhere[0], files.default_cache())
    return Path(data[0]) if len(data) == 1 and (Path(data[0]) / "index.json").is_file() else None


def evenly(lines: Iterable[str], most: int) -> list[str]:
    """A random sample of lines, at most `most` bytes in all, with equal probability for each line.

    For learning a vocabulary, whose entries are all frequent: more lines of the same kind hardly change it, and the
    trainer keeps its lines in memory. Random, not every n-th line, since corpora may alternate languages or speakers.
    """
    rng = random.Random(0)  # equal lines give equal vocabularies
    kept: list[tuple[float, str]] = []
    share, size = 1.0, 0
    for line in lines:
        if (drawn := rng.random()) < share:
            kept.append((drawn, line))
            size += len(line) + 50  # memory of a line besides its letters
        while size > most and len(kept) > 1:
            share /= 2
            kept = [one for one in kept if one[0] < share]
            size = sum(len(line) + 50 for _, line in kept)
    return [line for _, line in kept]


def tokenize(recipe: Recipe, pieces: Iterable[Source], tokenizer: Tokenizer, folder: Path) -> TokenData:
    """Write (style, group, piece) to token shards in `folder`, unless they exist."""
    about = {"tokenizer": to_dict(recipe.tokenizer)}
    if (folder / "index.json").exists():
        data = TokenData(folder)
        if from_dict(TokenizerConfig, data.index["tokenizer"], str(folder)) != recipe.tokenizer:
            raise ConfigError(f"{folder}: made with another tokenizer; choose another --out or delete that folder")
        return data
    writer = ShardWriter(folder, about)
    bar = iter(tqdm(pieces, unit="piece", disable=None, leave=False, desc="tokens"))
    encode_all = getattr(tokenizer, "encode_all", None)  # tokenizers of lines have one
    while some := list(islice(bar, SPELLED if encode_all else 1)):
        items = [piece for *_, piece in some]
        spelled = encode_all(items) if encode_all else map(tokenizer.encode, items)
        for (label, group, _), chunks in zip(some, spelled, strict=True):
            writer.add(chunks, label, group)
    if not writer.pieces:
        raise SeqVAEError(f"{folder.parent}: no training data could be read; see the reasons above")
    writer.close()
    return TokenData(folder)
