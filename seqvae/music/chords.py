"""Chord symbols as a song of block chords: "C | Am7 | F G | Bb/D".

Scope: the symbols of lead sheets by bar, and the notes that they stand for. Out of scope: chords heard in notes (key.py
has the chroma), decoding. Chord qualities are pychord's, with the other usual spellings.

A new song over chords takes this song as its frame: metre, tempo, key and harmony are read from it as from any other.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import UsageError
from seqvae.music.piece import STEPS_PER_BEAT, Piece, make_frame

Ints = NDArray[np.int32]
SILENCE = ("N.C.", "NC", "-")
BASS, CHORD = 36, 60  # lowest pitches of the bass note and of the others
SPELLINGS = (  # other spellings of a quality, and pychord's
    (r"[()]", ""),
    (r"^(?:min|mi|-)", "m"),
    (r"^(?:ø|Ø|h)7?$", "m7-5"),
    (r"^(?:o|°)7$", "dim7"),
    (r"^(?:o|°)$", "dim"),
    (r"^(?:\+|aug)([79])$|^([79])(?:\+|aug)$", r"\1\2+5"),
    (r"^\+", "aug"),
    (r"[Δ∆△^](?=\d)", "maj"),
    (r"[Δ∆△^]", "maj7"),
    (r"^(?:M|Maj|MAJ)$", "maj"),
    (r"^(?:ma|Ma|MA|Maj|MAJ)(?=\d)", "maj"),
)


def bars(text: str) -> list[list[str]]:
    """The symbols of each bar; `%` repeats the bar before. Raises UsageError if there is none.

    Double bars and signs of repeats (`||`, `|:`, `:|`) are bar lines: nothing is repeated.
    """
    found: list[list[str]] = []
    for part in re.sub(r":?\|[|:\]]*", "|", text).strip().strip("|").split("|"):
        symbols = part.split()
        if symbols == ["%"] and found:
            symbols = found[-1]
        if not symbols:
            raise UsageError(f"chords '{text}': a bar without a chord; write N.C. for silence, % for the bar before")
        found.append(symbols)
    return found


def pitches(symbol: str) -> list[int]:
    """MIDI pitches of a chord, the bass first; none for N.C. Raises UsageError for an unknown symbol."""
    if symbol in SILENCE:
        return []
    from pychord import Chord  # type: ignore[import-untyped, unused-ignore]

    note = "[A-G](?:[#♯]{1,2}|[b♭]{0,2})"
    found = re.fullmatch(rf"({note})([^/]*)(?:/({note}))?", symbol.replace("6/9", "69"))
    if found is None:
        raise UsageError(f"chord '{symbol}': is no chord symbol; write such as C, F#m7, Bbmaj7, G7/B or N.C.")
    root, quality, bass = (part.replace("♯", "#").replace("♭", "b") for part in found.groups(default=""))
    for spelling, usual in SPELLINGS:
        quality = re.sub(spelling, usual, quality)
    try:
        tones = [tone % 12 for tone in Chord(root + quality).components(visible=False)]
        lowest = Chord(bass or root).components(visible=False)[0] % 12
    except ValueError:
        raise UsageError(
            f"chord '{symbol}': the quality '{found[2]}' is unknown; write such as m, 7, maj7, m7b5, dim, sus4, 6 or 9"
        ) from None
    return [BASS + lowest, *(CHORD + tone for tone in dict.fromkeys(tones))]


def song(text: str, count: int, beats: int = 4, tempo: float = 110.0) -> Piece:
    """`count` bars of `beats` quarters with the chords of `text`, again from the first after the last.

    Chords of one bar share its beats. `tempo` in quarters a minute. Raises UsageError for more chords than beats in a
    bar, and as `bars` and `pitches` do.
    """
    known = [[pitches(symbol) for symbol in symbols] for symbols in bars(text)]
    if max(map(len, known)) > beats:
        raise UsageError(f"chords '{text}': a bar has at most {beats} chords, one a beat; divide it by |")
    rows = []
    for bar in range(count):
        chords = known[bar % len(known)]
        cuts = np.arange(len(chords) + 1) * beats // len(chords) * STEPS_PER_BEAT + bar * beats * STEPS_PER_BEAT
        rows += [
            (begin, end - begin, pitch, 0, 80)
            for chord, begin, end in zip(chords, cuts[:-1], cuts[1:], strict=True)
            for pitch in sorted(chord)
        ]
    bounds = np.arange(count + 1, dtype=np.int32) * beats * STEPS_PER_BEAT
    frame = make_frame(([(0, round(60e6 / tempo))], [(0, beats, 4)], []))
    return Piece(np.array(rows, np.int32).reshape(-1, 5), bounds, frame)
