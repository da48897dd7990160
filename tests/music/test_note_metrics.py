"""Metrics of notes against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from seqvae.music import note_metrics as measures
from seqvae.music.notes import by_bar, chroma, skyline

Ints = NDArray[np.int32]


def notes(*rows: tuple[int, int, int, int]) -> Ints:
    """Rows (onset, duration, pitch, program)."""
    return np.array(rows, np.int32).reshape(-1, 4)


C, E, KICK = (0, 12, 60, 0), (0, 12, 64, 0), (0, 1, 36, 128)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (notes(C, E), notes(C, E), 1.0),
        (notes(C, E), notes(C), 2 / 3),
        (notes(C), notes((0, 3, 60, 0)), 1.0),  # the duration does not count
        (notes(C), notes((0, 12, 60, 1)), 0.0),
        (notes(C), notes((1, 12, 60, 0)), 0.0),
        (notes(C), notes(), 0.0),
        (notes(), notes(), 1.0),
    ],
)
def test_note_f1(a: Ints, b: Ints, expected: float) -> None:
    assert measures.note_f1(a, b) == pytest.approx(expected)
    assert measures.note_f1(b, a) == pytest.approx(expected)


def test_chroma_counts_the_time_of_pitch_classes_and_no_drums() -> None:
    both = notes(C, (0, 6, 72, 5), E, KICK)
    assert chroma(both).tolist() == [18, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0]


def test_chroma_similarity() -> None:
    assert measures.chroma_similarity(notes(C), notes((24, 3, 48, 9))) == pytest.approx(1)
    assert measures.chroma_similarity(notes(C), notes(C, E)) == pytest.approx(1 / math.sqrt(2))
    assert measures.chroma_similarity(notes(C), notes(E)) == pytest.approx(0)
    assert measures.chroma_similarity(notes(C), notes(KICK)) == 0.0, "everything is lost"
    assert measures.chroma_similarity(notes(KICK), notes(C)) is None, "there was nothing to keep"


def test_groove_counts_steps_with_onsets() -> None:
    a, b = notes((48, 1, 36, 128), (54, 1, 60, 0)), notes((48, 9, 40, 7), (59, 1, 60, 0))
    assert measures.groove_similarity(a, b, 48, 12) == pytest.approx(10 / 12)
    assert measures.groove_similarity(a, a, 48, 12) == 1.0
    assert measures.groove_similarity(notes(), notes(), 0, 12) == 1.0


def test_bars_contain_the_notes_that_begin_in_them() -> None:
    rows = notes((0, 99, 60, 0), (47, 1, 61, 0), (48, 1, 62, 0))
    first, second = by_bar(rows, np.array([0, 48, 96], np.int32))
    assert first[:, 2].tolist() == [60, 61]
    assert second[:, 2].tolist() == [62]


def test_programs_are_swapped_by_rank_and_drums_stay() -> None:
    rows = notes(C, E, (0, 12, 67, 40), KICK)
    swapped = measures.swap_programs(rows, [29, 33])
    assert swapped[:, 3].tolist() == [29, 29, 33, 128]
    assert swapped[:, :3].tolist() == rows[:, :3].tolist()
    assert rows[0, 3] == 0, "the argument is unchanged"


def test_the_ranking_counts_pieces_and_not_notes() -> None:
    loud = notes(*[(i, 1, 60, 7) for i in range(9)])
    assert measures.program_ranking([loud, notes(C, KICK), notes(E)]) == [0, 7]
    assert measures.program_ranking([notes(KICK)]) == [0], "a piano without notes"


def test_the_classifier_without_instruments_ignores_programs_and_drums() -> None:
    band = notes(C, E, (12, 6, 67, 33), KICK, (24, 1, 38, 128))
    other = np.array([[o, d, p, 19] for o, d, p, program in band.tolist() if program != 128], np.int32)
    assert measures.features(band, 48, instruments=False).tolist() == measures.features(other, 48, False).tolist()
    assert measures.features(band, 48).tolist() != measures.features(other, 48).tolist()


@pytest.mark.parametrize("instruments", [True, False])
def test_features_have_one_length_and_are_finite(instruments: bool) -> None:
    lengths = {len(measures.features(rows, 96, instruments)) for rows in (notes(), notes(KICK), notes(C, E, KICK))}
    assert len(lengths) == 1
    assert np.isfinite(measures.features(notes(KICK), 96, instruments)).all()


def test_rhythm_is_in_the_features() -> None:
    straight = notes(*[(6 * i, 3, 60, 0) for i in range(8)])
    swung = notes(*[(12 * (i // 2) + 8 * (i % 2), 3, 60, 0) for i in range(8)])
    assert not np.allclose(measures.features(straight, 48, False), measures.features(swung, 48, False))


def test_an_interval_holds_the_mean_and_narrows_with_songs() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.normal(3, 1, 10), rng.normal(3, 1, 1000)
    mean, low, high = measures.interval(many)
    assert mean == pytest.approx(many.mean())
    assert low < 3 < high
    # the standard error of a thousand draws with deviation 1 is 0.032, and an interval is 3.92 times as wide
    assert high - low == pytest.approx(3.92 / math.sqrt(1000), rel=0.15)
    wide = measures.interval(few)
    assert wide[2] - wide[1] > high - low
    assert measures.interval(np.full(5, 2.0)) == (2, 2, 2)


def test_chroma_fidelity_counts_notes_and_ignores_durations() -> None:
    long, short = notes((0, 48, 60, 0), (0, 1, 64, 0)), notes((0, 1, 72, 3), (5, 30, 40, 2))
    assert measures.chroma_fidelity(long, short) == pytest.approx(1)
    assert measures.chroma_fidelity(notes(C, C, E), notes(C)) == pytest.approx(2 / math.sqrt(5))
    assert measures.chroma_fidelity(notes(C), notes(KICK)) == 0
    assert measures.chroma_fidelity(notes(KICK), notes(C)) is None


def test_groove_fidelity_smooths_by_one_four_one() -> None:
    # (4, 1, 0, ...) and (1, 4, 1, 0, ...): 8 / sqrt(17 * 18)
    a, b = notes((48, 1, 60, 0)), notes((49, 1, 36, 128))
    assert measures.groove_fidelity(a, b, 48, 12) == pytest.approx(8 / math.sqrt(17 * 18))
    assert measures.groove_fidelity(a, a, 48, 12) == pytest.approx(1)
    assert measures.groove_fidelity(a, notes(), 48, 12) == 0
    assert measures.groove_fidelity(notes(), a, 48, 12) is None


def test_the_skyline_is_the_highest_note_of_each_onset() -> None:
    rows = notes(E, C, (12, 3, 50, 7), KICK, (12, 3, 40, 7))
    assert skyline(rows)[:, 2].tolist() == [64, 50]
    assert skyline(rows, highest=False)[:, 2].tolist() == [60, 40]
    assert skyline(notes(KICK)).tolist() == []


def test_parts_are_measured_apart() -> None:
    def flute(at: int, pitch: int) -> tuple[int, int, int, int]:
        return (at, 6, pitch, 73)

    def bass(at: int, pitch: int) -> tuple[int, int, int, int]:
        return (at, 12, pitch, 33)

    song = notes(flute(0, 80), flute(12, 82), (0, 12, 60, 0), bass(0, 36), bass(12, 38), KICK, (12, 1, 38, 128))
    # melody: one of two notes and a wrong one; the whole bass; one of two drums; the piano belongs to no part
    other = notes(flute(0, 80), flute(12, 83), bass(0, 36), bass(12, 38), (12, 1, 38, 128))
    assert measures.part_f1(song, other) == {
        "melody": pytest.approx(1 / 2),
        "bass": pytest.approx(1),
        "drums": pytest.approx(2 / 3),
    }
    alone = measures.part_f1(notes(C, E), notes(E))
    assert alone == {"melody": 1, "bass": 0, "drums": None}, "one instrument has both lines: E on top, C at the bottom"
    assert measures.part_f1(notes(KICK), notes(KICK)) == {"melody": None, "bass": None, "drums": 1}


def test_a_line_is_kept_by_onset_and_pitch_on_any_instrument() -> None:
    song = np.array([[0, 12, 72, 0], [0, 12, 48, 32], [12, 12, 74, 0], [24, 12, 76, 0], [0, 6, 36, 128]], np.int32)
    # first note of the tune on another instrument, the second below a higher note, the third unchanged
    other = np.array([[0, 3, 72, 26], [12, 12, 74, 0], [12, 12, 79, 0], [24, 12, 76, 0], [36, 12, 60, 0]], np.int32)
    # top lines: 72, 74, 76 and 72, 79, 76, 60: two notes in common, of 3 and 4
    assert measures.line_f1(song, other) == pytest.approx(2 * 2 / (3 + 4))
    # bottom lines: 48, 74, 76 and 72, 74, 76, 60
    assert measures.line_f1(song, other, highest=False) == pytest.approx(2 * 2 / (3 + 4))
    # onsets at 0, 12 and 24, and at 0, 12, 24 and 36
    assert measures.rhythm_f1(song, other) == pytest.approx(2 * 3 / (3 + 4))
    assert measures.line_f1(song[-1:], other) is None, "drums are not a line"
    assert measures.line_f1(song, other[:0]) == 0
