"""Protocol of the modules for input and output, and loading of a model.

Scope: the protocol that cli/music_io.py (files of music) and cli/text_io.py (lines of text) share, so that each command
is written once. Out of scope: their work, and the choice between them (modality.py). The kind of a model is read from
its config.json before torch is imported, so that wrong usage is reported at once.
"""

from __future__ import annotations

import gc
import os
import stat
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from seqvae.checkpoint import hub
from seqvae.cli.console import report
from seqvae.modality import commands
from seqvae.text.lines import MUSIC

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.codec import Codec


TEXT = "reviews"
"""The model of sentences where none is named."""
ALSO = ("wav", "png", "html")
"""Suffixes of files that a command can write beside its output: sound, picture, page."""


class Item(Protocol):
    """One input of a command, or one output to generate."""

    @property
    def piece(self) -> Any:
        """The piece that was read."""

    @property
    def facts(self) -> dict[str, Any]:
        """Entries of the output of --json."""


class Desk(Protocol):
    """The inputs of one command and the destinations of its results."""

    def batches(self) -> Iterator[Sequence[Any]]:
        """Batches of items; the results of one batch are written before the next is read."""

    def write(self, item: Any, result: Any, facts: Mapping[str, Any]) -> None:
        """Write the result of an item, with further facts for --json."""


class Kind(Protocol):
    """Module for one modality. All functions raise SeqVAEError, and UsageError for arguments that do not fit."""

    FILES: bool
    """Whether outputs are files; otherwise they are lines of one stream."""
    SEGMENTS: int
    """Default number of segments of a generated piece."""

    def read(self, inputs: Sequence[str]) -> Iterator[Sequence[Any]]:
        """Items named by the arguments, in batches, for `pack`."""

    def given(
        self, inputs: Sequence[str], out: str | None, ending: str, as_json: bool, also: Collection[str] = ()
    ) -> AbstractContextManager[Desk]:
        """Items named by the arguments; outputs are complete when the context is left without an error.

        `also` are suffixes from `ALSO` of further files for each output.
        """

    def new(
        self, names: Sequence[str], out: str | None, as_json: bool, also: Collection[str] = ()
    ) -> AbstractContextManager[Desk]:
        """Items to generate."""

    def one(self, given: str) -> Any:
        """The single piece named by an argument."""

    def template(self, given: str) -> Any:
        """The piece that supplies tempo, metre and key, which a latent vector does not hold."""

    def losses(self, codec: Codec, item: Any, segments: Sequence[Any], result: Any | None = None) -> str:
        """A line on the losses of a piece in its tokens and, with a `result`, in the model; or nothing."""

    def members(self, paths: Sequence[str]) -> Iterator[Any]:
        """All pieces in files and folders."""

    def pack(
        self, inputs: Sequence[str], items: Sequence[Any], latents: Sequence[Tensor], out: Path
    ) -> tuple[dict[str, Tensor], Any, list[tuple[str, dict[str, Any]]]]:
        """Tensors of a file of latents, their sources, and lines to print with facts for --json."""

    def unpack(self, tensors: Mapping[str, Tensor], path: Path) -> list[tuple[str, Tensor]]:
        """Names and latents `(S, D)` of the pieces in a file of latents, in order."""


def kind_of(model: str) -> Kind:
    """The module for a model's modality; raises CheckpointError where there is no model."""
    module: Kind = commands(hub.kind_of(hub.find(model)))
    return module


def chosen(model: str | None, inputs: Sequence[str]) -> tuple[str, Kind]:
    """The model named, and its kind; without a name a model of the inputs' kind: music, or TEXT for sentences.

    Sentences are `@FILE`, `-`, words with a space that are no path, and without any input a pipe or `< FILE`.
    """
    if model is None:
        written = any(x[:1] == "@" or x == "-" or (" " in x.strip() and not _is_path(x)) for x in inputs)
        model = TEXT if written or (not inputs and _is_piped()) else "music"
        if model == TEXT:
            report(f"text without -m: taken by the model {TEXT}")
    return model, kind_of(model)


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # there is none
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _is_path(name: str) -> bool:
    try:
        return Path(name).exists() or Path(name).suffix.lower() in MUSIC
    except OSError:  # too long for a name
        return False


def also(*wanted: bool) -> list[str]:
    """Entries of ALSO selected by one truth value each."""
    return [kind for kind, yes in zip(ALSO, wanted, strict=True) if yes]


def load(model: str, styles: Path | None = None, exact: bool = False) -> Codec:
    """A codec on the GPU if there is one, with the styles of a file added; see `codec.load`."""
    gc.disable()  # imported and loaded objects stay: collecting garbage among them takes a sixth of the time
    try:
        from seqvae import codec

        return codec.load(model, device="auto", styles=styles, exact=exact)
    finally:
        gc.freeze()
        gc.enable()
