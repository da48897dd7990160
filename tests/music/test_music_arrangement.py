"""Statistics of an arrangement against values computed by hand on a few notes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seqvae.music import arrangement
from seqvae.music.arrangement import Range
from seqvae.music.note_statistics import Statistic

PIANO, BASS, FLUTE, DRUMS = 0, 33, 73, 128
FOUR = np.array([0, 48, 96, 144, 192], np.int32)


def rows(*notes: tuple[int, int, int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """Notes of (onset, duration, pitch, program)."""
    return np.array(notes, np.int32).reshape(-1, 4)


# four bars: piano in the first three, bass in the first and third, drums in the second and third
SONG = rows(
    (0, 12, 60, PIANO), (0, 24, 64, PIANO), (24, 12, 40, BASS),
    (48, 12, 60, PIANO), (48, 1, 36, DRUMS), (72, 1, 38, DRUMS),
    (96, 48, 71, PIANO), (96, 1, 36, DRUMS), (108, 1, 42, DRUMS), (120, 12, 72, PIANO), (132, 12, 40, BASS),
)  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        (arrangement.instruments, 3),
        (arrangement.instruments_a_bar, (2 + 2 + 3) / 3),  # the empty bar does not count
        (arrangement.band, 1),  # piano, bass and drums in bars 1 and 2, and in bars 3 and 4
        (arrangement.presence, (3 / 4 + 2 / 4 + 2 / 4) / 3),
        (arrangement.drum_bars, 2 / 4),
        (arrangement.drum_switches, 2 / 3),  # drums begin in bar 2 and stop in bar 4
        (arrangement.kit_repeated, (0 + 1 / 3 + 0) / 3),  # the kick out of three hits; drums begin and stop
        (arrangement.onsets_repeated, (2 / 2 + 2 / 4 + 0 / 4) / 3),
        # pairs at onsets: 60 and 64 at 0; 71 and 72 at 120; 71 and 40 at 132: one of three is a semitone
        (arrangement.clashes, 1 / 3),
        # bars 1 and 2: (C 12, E 24 + 12) and (C 12); bars 2 and 3: C 12 and (B 48, C 12, E 12)
        (arrangement.chroma_repeated, (12 / math.hypot(12, 36) + 12 / math.sqrt(48**2 + 12**2 + 12**2)) / 2),
        (arrangement.low_pitch, 40),  # of 40 40 60 60 64 71 72: place .05 * 6 = .3
        (arrangement.high_pitch, 71 + 0.7),  # place .95 * 6 = 5.7
    ],
)
def test_statistics_by_hand(figure: Statistic, value: float) -> None:
    assert figure(SONG, FOUR) == pytest.approx(value)


def test_a_band_that_changes() -> None:
    # windows: {piano, bass}, {piano}, none, {flute}
    song = rows((0, 12, 60, PIANO), (48, 12, 40, BASS), (96, 12, 60, PIANO), (288, 12, 80, FLUTE))
    assert arrangement.band(song, np.arange(0, 385, 48, dtype=np.int32)) == pytest.approx((1 / 2 + 0 + 0) / 3)


def test_a_minor_ninth_clashes_and_a_tone_and_a_major_seventh_do_not() -> None:
    def chord(*pitches: int) -> float:
        return arrangement.clashes(rows(*((0, 12, pitch, PIANO) for pitch in pitches)), FOUR)

    assert (chord(60, 73), chord(60, 61), chord(60, 62), chord(60, 71), chord(60)) == (1, 1, 0, 0, 0)
    assert arrangement.clashes(rows((0, 12, 60, PIANO), (12, 12, 61, PIANO)), FOUR) == 0, "one after the other"


def test_there_are_thirteen_statistics_and_silence_has_none() -> None:
    nothing = arrangement.statistics(SONG[:0], FOUR)
    names = list(arrangement.STATISTICS)
    assert len(names) == 13
    known = {name: x for name, x in zip(names, nothing.tolist(), strict=True) if not math.isnan(x)}
    assert known == {"instruments": 0, "bars with drums": 0, "drum switches": 0, "notes a bar": 0}


def test_the_range_is_from_the_10th_to_the_90th_percentile() -> None:
    first = np.arange(11.0)  # 0 to 10: percentiles 1 and 9
    second = np.where(first < 2, np.nan, first)  # 2 of 11 have none
    third = np.full(11, np.nan)
    found = Range.of(np.column_stack([first, second, third]))
    assert found.low.tolist() == [1, pytest.approx(2.8), np.inf]
    assert found.high.tolist() == [9, pytest.approx(9.2), -np.inf]
    nan = math.nan
    assert found.inside(np.array([1, 3, nan])).tolist() == [True, True, True]
    assert found.inside(np.array([0.9, nan, 5])).tolist() == [False, True, False]
    assert found.inside(np.array([nan, 2, 0])).tolist() == [False, False, False], "all real songs have the first"


OLD = rows((0, 24, 72, FLUTE), (0, 24, 60, PIANO), (12, 12, 64, PIANO), (24, 24, 76, FLUTE), (24, 12, 48, BASS))


def test_the_top_line_is_present_and_audible() -> None:
    # the skyline is 72 at 0, 64 at 12 and 76 at 24; 64 is not audible as the top, because 72 sounds above it
    moved = rows((0, 12, 72, PIANO), (12, 36, 84, PIANO), (24, 12, 76, FLUTE), (0, 12, 60, PIANO))
    assert arrangement.top_line_there(OLD, moved) == pytest.approx(2 / 3)
    assert arrangement.top_line_heard(OLD, moved) == pytest.approx(1 / 2), "84 sounds above 76"
    assert arrangement.top_line_heard(OLD, OLD) == 1
    assert arrangement.top_line_there(OLD, OLD) == 1
    assert math.isnan(arrangement.top_line_there(OLD[:0], moved))
    drums = rows((0, 1, 72, DRUMS))
    assert arrangement.top_line_there(OLD, drums) == 0


def test_notes_are_new_if_onset_or_pitch_is_new() -> None:
    # the second has another instrument, the third is a drum, the fourth has another onset
    moved = rows((0, 3, 72, FLUTE), (0, 24, 60, FLUTE), (24, 12, 48, DRUMS), (36, 12, 76, FLUTE))
    assert arrangement.new_notes(OLD, moved) == 2 / 4
    assert math.isnan(arrangement.new_notes(OLD, OLD[:0]))


def test_the_bass_is_compared_on_half_bars() -> None:
    bounds = np.array([0, 48, 72], np.int32)  # the second bar is too short for a second half
    old = rows((0, 48, 48, BASS), (0, 48, 60, PIANO), (48, 12, 43, BASS))
    new = rows((0, 12, 36, BASS), (24, 12, 55, PIANO), (48, 24, 50, PIANO))
    # at 0 C and C, at 24 C and G, at 48 G and D
    assert arrangement.bass_agreement(old, new, bounds) == pytest.approx(1 / 3)
    assert arrangement.bass_agreement(new, old, bounds) == pytest.approx(1 / 3)
    assert arrangement.bass_agreement(old, new[:0], bounds) == 0
    assert math.isnan(arrangement.bass_agreement(old[:0], new, bounds))


def test_notes_copied_by_a_rule_do_not_count_as_kept() -> None:
    bounds = np.array([0, 48], np.int32)
    # the tune: 72 and 76 of the flute, and 64, the highest note that begins at 12
    assert arrangement.accompaniment(OLD, OLD).tolist() == [[0, 24, 60, PIANO], [24, 12, 48, BASS]]
    only_tune = rows((0, 24, 72, FLUTE), (24, 24, 76, FLUTE))
    assert arrangement.notes_kept(OLD, only_tune) == 0
    assert arrangement.chroma_kept(OLD, only_tune, bounds) == 0
    # doubled on another instrument it still is the tune; one of the two other notes is kept
    moved = rows((0, 12, 72, BASS), (0, 36, 60, BASS), (12, 12, 62, PIANO))
    assert arrangement.notes_kept(OLD, moved) == 1 / 2
    assert arrangement.chroma_kept(OLD, moved, bounds) == pytest.approx(36 / math.hypot(36, 12))
    assert math.isnan(arrangement.notes_kept(only_tune, OLD))
