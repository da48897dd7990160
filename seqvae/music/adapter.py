"""Music adapter of the codec: from a song to segments, and from decoded tokens to a song.

Scope: reading, lengths of bars, harmony and band of a piece, a piece without notes, and a score from decoded bars.
Out of scope: models, latent vectors, files of the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqvae.music import accents, band, progressions
from seqvae.music import note_metrics as measures
from seqvae.music.band import Ensemble
from seqvae.music.notes import STEPS_PER_BEAT
from seqvae.protocols import Given, Guidance

if TYPE_CHECKING:
    from seqvae.music.piece import Piece
    from seqvae.music.tokenizer import MidiTokenizer

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


STRAY = 0.04  # share of the notes that may lie beyond a shorter bar and are then left out: sampled pieces are inexact


class MusicAdapter:
    """Adapter of music: tempo, metre, key and the loudness of each bar come from the original."""

    def __init__(self, tokenizer: MidiTokenizer) -> None:
        self.tokenizer = tokenizer

    def read(self, source: Any) -> Piece:
        """As `midi.read`."""
        from seqvae.music import piece as midi

        return midi.read(source)

    def limits(self, piece: Piece) -> Ints:
        """Chunk lengths in steps."""
        return np.diff(piece.bounds).astype(np.int32)

    def conditions(self, piece: Piece) -> Given:
        """As `song_bars.conditions`."""
        from seqvae.music.song_bars import conditions, song_bars

        return conditions(song_bars(piece, self.tokenizer))

    def blank(self, chunks: int) -> Piece:
        """Bars of 4/4 at 110 beats a minute."""
        return self._empty(chunks, 4)

    def _empty(self, chunks: int, beats: int) -> Piece:
        """`chunks` bars of `beats` quarters each."""
        from seqvae.music import piece as midi

        frame = midi.make_frame(([(0, 60_000_000 // 110)], [(0, beats, 4)], []))
        bounds = np.arange(chunks + 1, dtype=np.int32) * beats * midi.STEPS_PER_BEAT
        return midi.Piece(np.zeros((0, 5), np.int32), bounds, frame)

    def template(self, chunks: list[Ints]) -> Piece:
        """As `blank`, but in 2/4 or 3/4 if hardly any note of the decoded chunks lies beyond such a bar.

        The metre of a new piece follows from its notes; in bars of 4/4 a waltz would have a silent beat per bar.
        """
        from seqvae.music import piece as midi

        longest = np.arange(len(chunks) + 1, dtype=np.int32) * midi.MAX_CHUNK_STEPS
        onsets = self.tokenizer.decode_notes(chunks, longest)[:, midi.ONSET] % midi.MAX_CHUNK_STEPS
        beyond = {beats: (onsets >= beats * midi.STEPS_PER_BEAT).mean() for beats in (2, 3) if len(onsets)}
        return self._empty(len(chunks), next((beats for beats, share in beyond.items() if share < STRAY), 4))

    def parts(self, names: Sequence[str | int] | None, moved: bool = True) -> frozenset[int]:
        """As `tracks.named`: melody, drums and instruments; None means the melody."""
        from seqvae.music import tracks

        return tracks.named(("melody",) if moved else ()) if names is None else tracks.named(names)

    def harmony(self, piece: Piece) -> Floats:
        """As `MidiTokenizer.harmony`."""
        return self.tokenizer.harmony(piece)

    def roots(self, piece: Piece) -> Floats:
        """As `MidiTokenizer.roots`."""
        return self.tokenizer.roots(piece)

    def chroma_guidance(self, harmony: Floats, strength: float) -> Guidance:
        """As `MidiTokenizer.chroma_guidance`."""
        return self.tokenizer.chroma_guidance(harmony, strength)

    def ensemble(self, pieces: Iterable[list[Ints]], read: Iterable[Piece] = ()) -> Ensemble:
        """As `band.ensemble`; the length of a bar in whole beats follows from the latest onset in any bar.

        Accents come from the velocities of songs as `read`, since tokens have none; chords from the tokens.
        """
        songs = []
        for chunks in pieces:
            notes, bounds = self._longest(chunks)
            beats = int((notes[:, 0] % self.tokenizer.max_steps).max(initial=0)) // STEPS_PER_BEAT + 1
            bar = notes[:, 0] // self.tokenizer.max_steps
            notes[:, 0] += bar * (beats * STEPS_PER_BEAT - self.tokenizer.max_steps)
            songs.append((notes, bounds // self.tokenizer.max_steps * beats * STEPS_PER_BEAT))
        table = accents.accents((piece.notes, piece.bounds) for piece in read)
        return replace(band.ensemble(songs), accents=table, chords=progressions.transitions(songs))

    def _longest(self, chunks: list[Ints]) -> tuple[Ints, Ints]:
        """Notes and bars of decoded chunks, all chunks as long as the longest."""
        bounds = np.arange(len(chunks) + 1, dtype=np.int32) * self.tokenizer.max_steps
        return self.tokenizer.decode_notes(chunks, bounds), bounds

    def apart(self, a: list[Ints], b: list[Ints]) -> list[float]:
        """As `note_metrics.distances`, with all chunks as long as the longest."""
        return list(measures.distances(*(self._longest(chunks)[0] for chunks in (a, b))))

    def assemble(self, chunks: list[Ints], like: Piece, keep: frozenset[int] = frozenset(), again: bool = False) -> Any:
        """A `symusic.Score`; kept instruments, or everything if unchanged (`again`), get their original tracks."""
        from seqvae.music import piece as midi
        from seqvae.music import tracks

        notes = self.notes(chunks, like)
        notes = tracks.keep(notes, like, keep) if keep else notes
        parts = frozenset(range(midi.DRUMS + 1)) if again else keep
        line = tracks.named_melody(like) if tracks.MELODY in keep else None
        return midi.to_score(notes, like.frame, tracks=tracks.homes(notes, like, parts, line))

    def notes(self, chunks: list[Ints], like: Piece) -> Ints:
        """Notes `(N, 5)` of decoded chunks; loudness as in `like`, see `accents.velocities`."""
        notes = self.tokenizer.decode_notes(chunks, like.bounds, self.tokenizer.shift(like))
        return np.column_stack([notes, accents.velocities(notes, like.notes, like.bounds)])
