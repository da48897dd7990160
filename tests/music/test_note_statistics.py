"""Statistics of an excerpt against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from seqvae.music import note_statistics as figures

Ints = NDArray[np.int32]
BAR = np.array([0, 48], np.int32)
TWO = np.array([0, 48, 96], np.int32)


def notes(*rows: tuple[int, int, int, int]) -> Ints:
    """Rows (onset, duration, pitch, program)."""
    return np.array(rows, np.int32).reshape(-1, 4)


# C and E together for a beat, G for half a beat at beat 2, the C above for a whole one at beat 3; a kick
TUNE = notes((0, 12, 60, 0), (0, 12, 64, 0), (12, 6, 67, 0), (24, 12, 72, 5), (0, 1, 36, 128))


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("pitch count", 4),
        ("note count", 5),  # in one bar, the kick too
        ("pitch-class entropy", -(0.5 * math.log2(0.5) + 2 * 0.25 * math.log2(0.25))),  # C twice, E, G
        ("pitch range", 12),
        ("pitch interval", ((67 - 64) + (72 - 67)) / 2),
        ("inter-onset interval", 1),
        ("note length", (1 + 1 + 0.5 + 1) / 4),
        ("polyphony", (2 * 12 + 1 * 6 + 1 * 12) / 30),
    ],
)
def test_each_statistic_by_hand(name: str, by_hand: float) -> None:
    assert figures.STATISTICS[name](TUNE, BAR) == pytest.approx(by_hand)


def test_there_are_eight_statistics_in_order() -> None:
    assert len(figures.STATISTICS) == 8
    found = figures.statistics(TUNE, BAR)
    assert found == [figure(TUNE, BAR) for figure in figures.STATISTICS.values()]


@pytest.mark.parametrize("rows", [notes(), notes((0, 1, 36, 128))])
def test_statistics_without_pitches_are_nan(rows: Ints) -> None:
    found = dict(zip(figures.STATISTICS, figures.statistics(rows, BAR), strict=True))
    assert found.pop("pitch count") == 0
    assert found.pop("note count") == len(rows)
    assert all(math.isnan(x) for x in found.values())


def test_notes_per_bar() -> None:
    assert figures.note_count(TUNE, TWO) == 2.5


def test_entropy_is_a_mean_over_windows_of_bars() -> None:
    # bar 1: C and E (1 bit); bar 2: C alone (0 bits); together C 2/3, E 1/3
    rows = notes((0, 1, 60, 0), (3, 1, 64, 0), (48, 1, 48, 9))
    together = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert figures.pitch_class_entropy(rows, TWO, 1) == pytest.approx(0.5)
    assert figures.pitch_class_entropy(rows, TWO, 2) == pytest.approx(together)
    assert figures.pitch_class_entropy(rows, TWO, 4) == pytest.approx(together), "no longer than the excerpt"
    assert figures.pitch_class_entropy(rows, TWO) == pytest.approx(together)
    longer = np.append(TWO, 144).astype(np.int32)
    assert figures.pitch_class_entropy(rows, longer, 1) == pytest.approx(0.5), "an empty bar is not a window"


def test_grooving_similarity_is_a_mean_over_pairs_of_bars() -> None:
    # onsets at 0; at 0 and 6; at 6: two pairs differ in one place of 48, one pair in two
    rows = notes((0, 1, 60, 0), (48, 1, 60, 0), (54, 1, 40, 128), (54, 1, 60, 1), (102, 1, 60, 0))
    bounds = np.array([0, 48, 96, 144], np.int32)
    assert figures.grooving_similarity(rows, bounds) == pytest.approx(1 - (1 + 1 + 2) / 3 / 48)
    assert figures.grooving_similarity(rows[:1], TWO) == pytest.approx(1 - 1 / 48), "an empty bar is a pattern too"
    assert math.isnan(figures.grooving_similarity(TUNE, BAR))
