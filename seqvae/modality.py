"""The registry of modalities: music, sentences and event logs, one entry each.

Scope: for each kind of sequence, the tokenizer, the adapter between a user's pieces and tokens, the reader of training
files, the module that reads arguments of commands, and the properties in which kinds differ for programs. Codec,
training, commands and studio use this registry and compare no names, so a new kind is one more entry. Out of scope: how
a kind does these things. An entry names objects as `module:attribute`, which are imported at first use: music does not
load SentencePiece, and `seqvae --help` loads neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seqvae.config import TokenizerConfig, present, read
from seqvae.errors import CheckpointError, ConfigError, ReadError, TokenizerError

if TYPE_CHECKING:
    from seqvae.protocols import Adapter, Tokenizer


Content = Literal["songs", "sentences", "sessions"]
Vocabulary = Literal["fixed", "sample", "all"]


@dataclass(frozen=True)
class Modality:
    """One kind of sequence, by the names of its objects and its properties."""

    kind: str
    """Its name in recipes, `tokenizer.json` and latent files."""
    tokenizer: str
    """A class with `make(config, pieces)`, `load(folder, **settings)` and the methods of `protocols.Tokenizer`."""
    adapter: str
    """A class constructed from the tokenizer, with the methods of `protocols.Adapter`."""
    sources: str
    """A function with the signature of `read_sources`, for training."""
    commands: str
    """A module with the interface of `cli.inputs.Kind`: inputs of commands, and where their results go."""
    content: Content = "sentences"
    """What its pieces are: songs (`music.piece.Piece`), or lines of text, which are sentences or sessions."""
    vocabulary: Vocabulary = "fixed"
    """Whether its vocabulary is fixed, or learned from a random sample of the training lines, or from all pieces."""
    chunk: str = ""
    """Name of a chunk, where tokens are shown with the number of their chunk: "bar" for music."""

    def read_sources(
        self, paths: Sequence[Path], skipped: list[ReadError], report: Callable[[str], None]
    ) -> Iterator[tuple[str, str, Any]]:
        """Style, group and piece for everything in files and folders; unreadable files are appended to `skipped`.

        All pieces of one group, such as copies of a song, are in the training set, or all are held out.
        """
        yield from _named(self.sources)(paths, skipped, report)  # training on shards works without symusic


MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> None:
    """Add a kind of sequence, or replace the one with that name."""
    MODALITIES[modality.kind] = modality


register(
    Modality(
        kind="midi",
        tokenizer="seqvae.music.tokenizer:MidiTokenizer",
        adapter="seqvae.music.adapter:MusicAdapter",
        sources="seqvae.music.library:sources",
        commands="seqvae.cli.music_io",
        content="songs",
        chunk="bar",
    )
)
register(
    Modality(
        kind="text",
        tokenizer="seqvae.text.tokenizer:TextTokenizer",
        adapter="seqvae.text.adapter:LineAdapter",
        sources="seqvae.text.lines:sources",
        commands="seqvae.cli.text_io",
        vocabulary="sample",
    )
)
register(
    Modality(
        kind="events",
        tokenizer="seqvae.events.tokenizer:EventTokenizer",
        adapter="seqvae.text.adapter:LineAdapter",  # a session is a line as well
        sources="seqvae.text.lines:sources",
        commands="seqvae.cli.text_io",
        content="sessions",
        vocabulary="all",
    )
)


def modality(kind: str) -> Modality:
    """The entry of a kind; raises ConfigError with the known kinds."""
    if kind not in MODALITIES:
        raise ConfigError(f"tokenizer.kind: '{kind}' is not a kind of sequence; choose from {', '.join(MODALITIES)}")
    return MODALITIES[kind]


def make(config: TokenizerConfig, pieces: Callable[[], Iterable[Any]]) -> Tokenizer:
    """A new tokenizer; kinds with a learned vocabulary learn it from `pieces()`, others do not call it.

    Raises TokenizerError if no vocabulary can be made from the pieces and settings, ConfigError for an unknown kind.
    """
    made: Tokenizer = _named(modality(config.kind).tokenizer).make(config, pieces)
    return made


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`; raises CheckpointError if there is none of a known kind."""
    path = folder / "tokenizer.json"
    try:
        settings = present(dict(read(path)))
        kind = settings.pop("kind")
        if kind in MODALITIES:
            loaded: Tokenizer = _named(MODALITIES[kind].tokenizer).load(folder, **settings)
            return loaded
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, TokenizerError) as error:
        raise CheckpointError(
            f"{path}: no tokenizer can be read here ({error}); copy the whole checkpoint folder"
        ) from error
    raise CheckpointError(f"{path}: unknown kind of tokenizer '{kind}'; this version knows {', '.join(MODALITIES)}")


def adapter_of(tokenizer: Tokenizer) -> Adapter:
    """The adapter for a tokenizer's kind."""
    adapter: Adapter = _named(modality(tokenizer.kind).adapter)(tokenizer)
    return adapter


form_of = adapter_of  # its name in earlier versions


def commands(kind: str) -> Any:
    """The module that reads arguments of commands for a kind."""
    return import_module(modality(kind).commands)


def _named(name: str) -> Any:
    """The object named by `module:attribute`."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
