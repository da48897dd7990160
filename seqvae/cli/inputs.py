"""What a command needs to know of one kind of piece, and which kind a model is for.

Knows: the small protocol that cli/music_io.py (music, in files) and cli/text_io.py (sentences) share, so that every
command is written once. Refuses to know what either does, and which kind has which (modality.py). A model's kind is
told by its config.json, before torch is imported: wrong usage is answered at once.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from seqvae.checkpoint import hub as released
from seqvae.modality import commands

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.codec import Codec


ALSO = ("wav", "png", "html")
"""Endings of files that a command can put beside its output: sound, picture, page."""


class Item(Protocol):
    """One piece of a command, to be worked on or to be made."""

    @property
    def piece(self) -> Any:
        """What was read."""

    @property
    def facts(self) -> dict[str, Any]:
        """What --json tells of it."""


class Desk(Protocol):
    """The pieces of one command, and where their results go."""

    def batches(self) -> Iterator[Sequence[Any]]:
        """Items, as many at once as the kind allows; the results of some are written before the next are asked for."""

    def write(self, item: Any, result: Any, facts: Mapping[str, Any]) -> None:
        """Write the result of an item, with what else --json shall tell."""


class Kind(Protocol):
    """A module for one kind of piece. All raise SeqVAEError in one line, and UsageError for what does not fit."""

    FILES: bool
    """Whether outputs are files, or else lines of one stream."""
    SEGMENTS: int
    """Segments of a new piece."""

    def read(self, inputs: Sequence[str]) -> Iterator[Sequence[Any]]:
        """Items that arguments name, in batches, for `pack`."""

    def given(
        self, inputs: Sequence[str], out: str | None, ending: str, as_json: bool, also: Collection[str] = ()
    ) -> AbstractContextManager[Desk]:
        """Items that arguments name; the outputs are finished when the context is left without an error.

        `also` are kinds of files that are wanted beside each output: `ALSO`.
        """

    def new(
        self, names: Sequence[str], out: str | None, as_json: bool, also: Collection[str] = ()
    ) -> AbstractContextManager[Desk]:
        """Items to be made."""

    def one(self, given: str) -> Any:
        """The one piece that an argument names."""

    def frame(self, given: str) -> Any:
        """The piece from which a decoded one takes what no latent vector holds."""

    def members(self, paths: Sequence[str]) -> Iterator[Any]:
        """All pieces in files and folders."""

    def pack(
        self, inputs: Sequence[str], items: Sequence[Any], latents: Sequence[Tensor], out: Path
    ) -> tuple[dict[str, Tensor], Any, list[tuple[str, dict[str, Any]]]]:
        """Tensors of a file of latents, where they are from, and what to tell of them."""

    def unpack(self, tensors: Mapping[str, Tensor], path: Path) -> list[tuple[str, Tensor]]:
        """Names and latents `(S, D)` of the pieces in such a file, in order."""


def kind_of(model: str) -> Kind:
    """The module for a model's kind of piece; raises CheckpointError where there is no model."""
    module: Kind = commands(released.kind_of(released.find(model)))
    return module


def also(*wanted: bool) -> list[str]:
    """Those of ALSO that are wanted, given a truth value for each."""
    return [kind for kind, yes in zip(ALSO, wanted, strict=True) if yes]


def load(model: str, styles: Path | None = None, exact: bool = False) -> Codec:
    """The codec, on the GPU if there is one, with the styles of a file added."""
    gc.disable()  # what is imported and loaded here stays: looking through it for garbage takes a sixth of the time
    try:
        import torch

        from seqvae import codec
        from seqvae.style import vectors as style

        loaded = codec.load(model, exact=exact)
    finally:
        gc.freeze()
        gc.enable()
    if torch.cuda.is_available():
        loaded.model.cuda()
    if styles is not None:
        loaded.styles.update(style.load(styles, loaded.model.config.latent))
    return loaded
