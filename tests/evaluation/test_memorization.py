"""The longest run that a piece shares with a collection, against an exhaustive search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqvae.evaluation import memorization as copying

Ints = NDArray[np.int32]


def tune(rng: np.random.Generator, count: int, programs: int = 3) -> Ints:
    """Random notes with few pitches and times, so that short runs are often shared."""
    onset, pitch = np.sort(rng.integers(0, 4 * count, count)), rng.integers(40, 50, count)
    return np.stack([onset, np.full(count, 3), pitch, rng.integers(0, programs, count)], 1).astype(np.int32)


def steps(notes: Ints) -> list[list[tuple[int, ...]]]:
    """(time, semitones) from note to note of each instrument."""
    out = []
    for program in np.unique(notes[notes[:, 3] != 128, 3]):
        rows = notes[notes[:, 3] == program]
        rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
        out.append([tuple(x) for x in np.diff(rows[:, [0, 2]], axis=0).tolist()])
    return out


def searched(piece: Ints, collection: list[Ints]) -> int:
    """The same by exhaustive search."""
    best = 0
    for a in steps(piece):
        for b in (one for other in collection for one in steps(other)):
            for i in range(len(a)):
                for j in range(len(b)):
                    k = 0
                    while i + k < len(a) and j + k < len(b) and a[i + k] == b[j + k]:
                        k += 1
                    best = max(best, k)
    return best + 1 if best else 0


def test_runs_equal_those_of_an_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    collection = [tune(rng, 40) for _ in range(6)]
    pieces = [tune(rng, n) for n in (1, 2, 3, 30, 30, 30)]
    copied = collection[2][8:33].copy()
    pieces += [copied, collection[4]]
    expected = [searched(piece, collection) for piece in pieces]
    assert copying.longest_shared(pieces, copying.runs(collection)) == expected
    assert expected[-1] > max(expected[:6]), "otherwise the test could not fail"


def test_shared_runs_of_eight_notes_by_hand() -> None:
    tune_ = np.array([[12 * i, 12, p, 0] for i, p in enumerate([60, 62, 64, 65, 67, 69, 71, 72])], np.int32)
    moved = tune_ + np.array([480, 0, -7, 40], np.int32)  # later, lower, on another instrument
    assert copying.longest_shared([moved], copying.runs([tune_])) == [8]
    bent = moved.copy()
    bent[5, 2] += 1  # the sixth note; the five before it remain a run
    assert copying.longest_shared([bent], copying.runs([tune_])) == [5]
    slower = moved.copy()
    slower[:, 0] *= 2
    assert copying.longest_shared([slower], copying.runs([tune_])) == [0], "time counts"


def test_no_run_crosses_pieces_or_instruments() -> None:
    long = np.array([[12 * i, 12, 60 + i, 0] for i in range(8)], np.int32)
    halves = [long[:4], long[4:]]
    assert copying.longest_shared([long], copying.runs(halves)) == [4]
    two = long.copy()
    two[4:, 3] = 1
    assert copying.longest_shared([two], copying.runs([long])) == [4]


def test_drums_and_silence_share_nothing() -> None:
    drums = np.array([[6 * i, 1, 36, 128] for i in range(8)], np.int32)
    empty = np.zeros((0, 4), np.int32)
    assert copying.longest_shared([drums, empty], copying.runs([drums, empty])) == [0, 0]
    assert copying.longest_shared([], copying.runs([])) == []
