"""What differs between kinds of pieces when they are decoded: what is read, and what comes out.

Knows: which sources make a piece, the length of its chunks, what a piece without content looks like, and how decoded
chunks become the user's kind of object. Refuses to know: models, latents, files on the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import ReadError
from seqvae.vocabulary import Tokenizer

if TYPE_CHECKING:
    from seqvae.event_tokenizer import EventTokenizer
    from seqvae.midi import Piece
    from seqvae.midi_tokenizer import MidiTokenizer
    from seqvae.text_tokenizer import TextTokenizer

# The readers of a kind are imported when its form is asked for: no sentence should wait for a synthesizer.

Ints = NDArray[np.int32]


class Form(Protocol):
    """What the codec needs to know of one kind of piece."""

    def read(self, source: Any) -> Any:
        """Any accepted source as a piece; raises ReadError in one line."""

    def limits(self, piece: Any) -> Ints | None:
        """Length of each chunk where the grammar wants one, `(C,)`."""

    def blank(self, chunks: int) -> Any:
        """A piece without content to decode into: what a new piece looks like."""

    def join(self, chunks: list[Ints], like: Any) -> Any:
        """The user's kind of object from decoded chunks, with everything tokens do not hold taken from `like`."""


class MusicForm:
    """Music: tempo, metre, key and the loudness of each bar come from the original."""

    def __init__(self, tokenizer: MidiTokenizer) -> None:
        self.tokenizer = tokenizer

    def read(self, source: Any) -> Piece:
        """As `midi.read`."""
        from seqvae import midi

        return midi.read(source)

    def limits(self, piece: Piece) -> Ints:
        """Chunk lengths in steps."""
        return np.diff(piece.bounds).astype(np.int32)

    def blank(self, chunks: int) -> Piece:
        """Bars of 4/4 at 110 beats a minute."""
        from seqvae import midi

        frame = midi.make_frame(([(0, 60_000_000 // 110)], [(0, 4, 4)], []))
        bounds = np.arange(chunks + 1, dtype=np.int32) * midi.MAX_CHUNK_STEPS
        return midi.Piece(np.zeros((0, 5), np.int32), bounds, frame)

    def join(self, chunks: list[Ints], like: Piece) -> Any:
        """A `symusic.Score`."""
        from seqvae import midi

        notes = self.tokenizer.decode_notes(chunks, like.bounds)
        bar = np.clip(np.searchsorted(like.bounds, notes[:, midi.ONSET], side="right") - 1, 0, len(like.bounds) - 2)
        home = np.clip(
            np.searchsorted(like.bounds, like.notes[:, midi.ONSET], side="right") - 1, 0, len(like.bounds) - 2
        )
        total = np.bincount(home, weights=like.notes[:, midi.VELOCITY], minlength=len(like.bounds) - 1)
        count = np.bincount(home, minlength=len(like.bounds) - 1)
        usual = total.sum() / count.sum() if count.sum() else 80
        loud = np.where(count > 0, total / np.maximum(count, 1), usual)
        velocity = np.clip(np.round(loud[bar]), 1, 127).astype(np.int32)
        return midi.to_score(np.column_stack([notes, velocity]), like.frame)


class LineForm:
    """Sentences and sessions: all there is to say is in the tokens."""

    def __init__(self, tokenizer: TextTokenizer | EventTokenizer) -> None:
        self.tokenizer = tokenizer

    def read(self, source: Any) -> str:
        """A line itself; raises ReadError for anything else, above all for a path, which is no line."""
        if not isinstance(source, str):
            kind = "a path" if isinstance(source, Path) else f"a {type(source).__name__}"
            raise ReadError(str(source)[:80], f"{kind} is no line", "give each line as a str")
        return source

    def limits(self, piece: str) -> None:
        """A line may have any length."""

    def blank(self, chunks: int) -> str:
        """The empty line."""
        return ""

    def join(self, chunks: list[Ints], like: str) -> str:
        """The line that the chunks spell."""
        return self.tokenizer.decode_text(chunks)


def form_of(tokenizer: Tokenizer) -> Form:
    """The form of a tokenizer's kind."""
    form: Form = _FORMS[tokenizer.kind](tokenizer)
    return form


_FORMS: dict[str, Any] = {"midi": MusicForm, "text": LineForm, "events": LineForm}
