"""The door to the tokenizers: the one that a recipe asks for, and the one that a folder holds.

Knows: which kinds of sequence there are, one module each. Refuses to know how any of them spells a piece: that is said
in music/tokenizer.py, text/tokenizer.py and events/tokenizer.py, and what they share in protocols.py. A new kind is a
line in each function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from seqvae.config import TokenizerConfig, present, read
from seqvae.errors import CheckpointError, TokenizerError
from seqvae.protocols import Tokenizer

# The modules are imported where they are needed: music does not wait for SentencePiece.


def make(config: TokenizerConfig, pieces: Callable[[], Iterable[Any]]) -> Tokenizer:
    """A fresh tokenizer; kinds that learn their vocabulary learn it from `pieces()`, the others do not call it.

    Raises TokenizerError where the pieces or the settings make no vocabulary.
    """
    if config.kind == "midi":
        from seqvae.music.tokenizer import MidiTokenizer

        return MidiTokenizer(config.max_steps, config.common_key)
    if config.kind == "events":
        from seqvae.events.tokenizer import EventTokenizer

        return EventTokenizer.train(pieces(), config.vocab_size, config.max_tokens, config.overlap)
    from seqvae.text.tokenizer import TextTokenizer

    return TextTokenizer.train(pieces(), config.vocab_size, config.algorithm, config.max_tokens)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `save` wrote to `folder`; raises CheckpointError where there is none that we know."""
    path = folder / "tokenizer.json"
    try:
        settings = present(dict(read(path)))
        kind = settings.pop("kind")
        if kind == "midi":
            from seqvae.music.tokenizer import MidiTokenizer

            return MidiTokenizer(**settings)
        if kind == "text":
            from seqvae.text.tokenizer import TextTokenizer

            return TextTokenizer.load(folder, **settings)
        if kind == "events":
            from seqvae.events.tokenizer import EventTokenizer

            return EventTokenizer(**settings)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, TokenizerError) as error:
        raise CheckpointError(
            f"{path}: no tokenizer can be read here ({error}); copy the whole checkpoint folder"
        ) from error
    raise CheckpointError(f"{path}: unknown kind of tokenizer '{kind}'; this version knows midi, text and events")
