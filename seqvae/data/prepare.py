"""From files to what is trained on: pieces read, spelled and written to token shards, once a run.

Knows: which files make pieces of which kind, what style and what group each belongs to, and where a run has its shards
and its tokenizer from, and keeps them. Refuses to know: models, losses, how a file is read (modality.py).
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
Source = tuple[str, str, Any]  # style, group and the piece itself
SPELLED = 1024  # pieces spelled at a time: many lines at once are several times faster than one by one
LEARNED = 1 << 27  # bytes of lines at most that a vocabulary of text is learned from: a million and more sentences


def prepare(
    recipe: Recipe, data: Sequence[str | Path], folder: Path, *, tokenizer: Path | None = None, report: Report = print,
    make_them: bool = True, anew: bool = False,
) -> tuple[TokenData, Tokenizer, list[ReadError]]:  # fmt: skip
    """The shards and the tokenizer of a run, made from `data` where they are not in `folder` yet; and what was skipped.

    `data` are folders with one folder a style, or files; of text and logs, each file is a style. Or it is one folder of
    shards made before, with the tokenizer in it, or such a folder's address (s3://...); then `folder` is not needed.
    `tokenizer` is the folder of one that is there already; else a kind that learns its vocabulary learns it from
    `data`. With `anew`, shards in `folder` are made again, those that are `data` excepted. Raises SeqVAEError where
    nothing can be read, ConfigError where the shards were made otherwise, and ReadError where another process was to
    make them, which is without `make_them`, and they cannot be seen.
    """
    skipped: list[ReadError] = []
    paths = [Path(one) for one in data]

    def pieces() -> Iterator[Source]:
        return modality(recipe.tokenizer.kind).read_sources(paths, skipped, report)

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
        spelled = make(recipe.tokenizer, lambda: evenly(known, LEARNED) if recipe.tokenizer.kind == "text" else known)
    if tokenizer is not None and ready and kept.exists() and spelling(load_tokenizer(kept)) != spelling(spelled):
        raise ConfigError(
            f"{tokenizer}: spells otherwise than the shards in {folder}; leave it out, or choose another --out"
        )
    if spelled.kind != recipe.tokenizer.kind:
        raise ConfigError(f"{tokenizer}: spells {spelled.kind}, and the recipe wants {recipe.tokenizer.kind}")
    new = not folder.exists()
    try:
        if made is None and not (ready and kept.exists()):  # what was left without an index counts for nothing
            spelled.save(kept)
        return tokenize(recipe, pieces(), spelled, folder), spelled, skipped
    except BaseException as error:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise SeqVAEError(f"{folder}: cannot be written ({error}); free some space or choose another --out") from error


def _made_before(data: Sequence[str | Path]) -> Path | None:
    """The folder of token shards that `data` is, fetched if it is elsewhere; None where `data` are files to read."""
    elsewhere = [one for one in data if isinstance(one, str) and "://" in one]
    if elsewhere and len(data) > 1:
        raise ConfigError(f"--data {elsewhere[0]}: an address of token shards stands alone; leave out the others")
    if elsewhere:
        return fetched(elsewhere[0], files.default_cache())
    return Path(data[0]) if len(data) == 1 and (Path(data[0]) / "index.json").is_file() else None


def evenly(lines: Iterable[str], most: int) -> list[str]:
    """Lines of `most` bytes together at most, drawn at random, each as likely as every other; all of fewer.

    To learn pieces from, which are all frequent: more lines of the same kind hardly change them, and the trainer keeps
    in memory what it learns from. At random and not every n-th, as corpora may alternate between languages or speakers.
    """
    rng = random.Random(0)  # the same lines, the same vocabulary
    kept: list[tuple[float, str]] = []
    share, size = 1.0, 0
    for line in lines:
        if (drawn := rng.random()) < share:
            kept.append((drawn, line))
            size += len(line) + 50  # what a line takes beside its letters
        while size > most and len(kept) > 1:
            share /= 2
            kept = [one for one in kept if one[0] < share]
            size = sum(len(line) + 50 for _, line in kept)
    return [line for _, line in kept]


def tokenize(recipe: Recipe, pieces: Iterable[Source], tokenizer: Tokenizer, folder: Path) -> TokenData:
    """Write (style, group, piece) to token shards in `folder`, unless they are there already."""
    about = {"tokenizer": to_dict(recipe.tokenizer)}
    if (folder / "index.json").exists():
        data = TokenData(folder)
        if from_dict(TokenizerConfig, data.index["tokenizer"], str(folder)) != recipe.tokenizer:
            raise ConfigError(f"{folder}: made with another tokenizer; choose another --out or delete that folder")
        return data
    writer = ShardWriter(folder, about)
    bar = iter(tqdm(pieces, unit="piece", disable=None, leave=False, desc="tokens"))
    encode_all = getattr(tokenizer, "encode_all", None)  # what is spelled in lines has one
    while some := list(islice(bar, SPELLED if encode_all else 1)):
        items = [piece for *_, piece in some]
        spelled = encode_all(items) if encode_all else map(tokenizer.encode, items)
        for (label, group, _), chunks in zip(some, spelled, strict=True):
            writer.add(chunks, label, group)
    if not writer.pieces:
        raise SeqVAEError(f"{folder.parent}: no piece could be read, nothing to train on; look at the reasons above")
    writer.close()
    return TokenData(folder)
