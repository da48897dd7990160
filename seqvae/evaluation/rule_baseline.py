"""The baseline `rule`: an arrangement without a model, for comparison with models.

The song stays as it is, with a drum loop of the target style instead of its drums, and a bass on its lowest notes
instead of its bass. Scope: pieces. Out of scope: models, files and figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqvae.music import arrangement
from seqvae.music.notes import DRUMS, ONSET, PITCH, PROGRAM, STEPS_PER_BEAT, by_bar, skyline
from seqvae.music.piece import Piece

Ints = NDArray[np.int32]
BASSES = range(32, 40)  # the bass programs of General MIDI
LOWEST = 28  # E1, the lowest string of a bass guitar
LOUD = 80
Loop = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Rule:
    """Drum loop and bass taken from real songs of the target style."""

    loop: Loop
    """(step in the bar, pitch) of drum hits; empty if fewer than half of the songs have drums."""
    bass: int
    """The bass (programs 32 to 39) of most songs; if fewer than half have one, the most frequent lowest instrument."""

    @classmethod
    def of(cls, songs: Sequence[Piece]) -> Rule:
        """The rule of a style.

        The candidates are the most frequent drum bar of each song. The loop is the candidate most similar to the others
        (highest mean Jaccard index).
        """
        bars, basses, lowest = [], Counter[int](), Counter[int]()
        for song in songs:
            patterns = Counter(loop for loop in _loops(song) if loop)
            bars += [loop for loop, _ in patterns.most_common(1)]
            basses.update(set(BASSES).intersection(song.notes[:, PROGRAM].tolist()))
            lowest.update(program for program, _ in Counter(_lowest_programs(song)).most_common(1))
        loop: Loop = frozenset()
        if bars and 2 * len(bars) >= len(songs):
            loop = max(bars, key=lambda one: sum(len(one & other) / len(one | other) for other in bars))
        with_bass = sum(bool(np.isin(song.notes[:, PROGRAM], BASSES).any()) for song in songs)
        counted = basses if 2 * with_bass >= len(songs) else lowest
        return cls(loop, max(counted, key=lambda program: (counted[program], -program), default=BASSES[1]))

    def __call__(self, song: Piece) -> Piece:
        """Arrange a song; in bars shorter than the loop its end is cut."""
        rows = [row for row in song.notes.tolist() if row[PROGRAM] != DRUMS and row[PROGRAM] not in BASSES]
        for start, end in zip(song.bounds[:-1].tolist(), song.bounds[1:].tolist(), strict=True):
            rows += [[start + step, 1, pitch, DRUMS, LOUD] for step, pitch in self.loop if start + step < end]
        beats = np.concatenate(
            [np.arange(a, b, STEPS_PER_BEAT) for a, b in zip(song.bounds[:-1], song.bounds[1:], strict=True)]
        )
        sounds = arrangement.sounding(song.notes, beats)
        for beat in np.flatnonzero(sounds.any(1)).tolist():
            pitch = LOWEST + (int(sounds[beat].argmax()) - LOWEST) % 12
            rows.append([int(beats[beat]), STEPS_PER_BEAT, pitch, self.bass, LOUD])
        notes = np.array(rows, np.int32).reshape(-1, 5)
        _, first = np.unique(notes[:, [ONSET, PROGRAM, PITCH]], axis=0, return_index=True)
        return Piece(notes[first], song.bounds, song.frame, song.name)


def _loops(song: Piece) -> list[Loop]:
    """The drum hits of each bar."""
    drums = song.notes[song.notes[:, PROGRAM] == DRUMS]
    bars = zip(by_bar(drums, song.bounds), song.bounds.tolist(), strict=False)
    return [frozenset((row[ONSET] - start, row[PITCH]) for row in bar.tolist()) for bar, start in bars]


def _lowest_programs(song: Piece) -> list[int]:
    programs: list[int] = skyline(song.notes, highest=False)[:, PROGRAM].tolist()
    return programs
