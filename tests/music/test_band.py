"""Bands: ensembles of styles, the band between a song and a style, and the notes of an arrangement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqvae.music import arrangement, band
from seqvae.music.band import Ensemble
from seqvae.music.piece import DRUMS, DURATION, ONSET, PITCH, PROGRAM

Ints = NDArray[np.int32]
BOUNDS = np.arange(5, dtype=np.int32) * 48


def notes(*rows: tuple[int, int, int, int]) -> Ints:
    """Rows of onset, duration, pitch and program, with a velocity."""
    return np.array([(*row, 80) for row in rows], np.int32).reshape(-1, 5)


def ensemble(programs: dict[int, float], size: float = 4, density: float = 20.0) -> Ensemble:
    """Programs with the share of bars in which they play."""
    shares = np.zeros(DRUMS + 1)
    shares[list(programs)] = list(programs.values())
    return Ensemble(shares, np.zeros((48, 128)), np.full(3, size), np.full(3, density))


ROCK = ensemble({DRUMS: 0.9, 33: 0.5, 25: 0.4, 29: 0.3, 0: 0.2}, size=5)
PIANO = band.presence(notes((0, 12, 60, 0), (48, 12, 60, 0)), BOUNDS)
small_rows = st.lists(
    st.tuples(st.integers(0, 191), st.integers(1, 60), st.integers(30, 90), st.sampled_from([0, 25, 33, DRUMS])),
    max_size=40,
)


# --- instruments ------------------------------------------------------------------------------------------------------


def test_presence_is_over_bars_with_notes() -> None:
    shares = band.presence(notes((0, 12, 60, 0), (50, 12, 40, 33), (60, 12, 60, 0)), BOUNDS)
    assert shares[0] == 1
    assert shares[33] == 0.5
    assert shares.sum() == 1.5


def test_hits_are_over_bars_with_drums() -> None:
    found = band.hits(notes((0, 1, 36, DRUMS), (48, 1, 36, DRUMS), (60, 1, 38, DRUMS), (96, 1, 60, 0)), BOUNDS)
    assert found[0, 36] == 1
    assert found[12, 38] == 0.5
    assert found.sum() == 1.5


def test_an_ensemble_is_the_mean_over_songs_without_drum_hits_of_few_songs() -> None:
    one, other = notes((0, 12, 60, 0), (0, 1, 36, DRUMS)), notes((0, 12, 60, 0), (12, 12, 60, 0), (24, 12, 62, 0))
    found = band.ensemble([(one, BOUNDS), (other, BOUNDS), (one[:0], BOUNDS)])
    assert found.programs[0] == 1
    assert found.programs[DRUMS] == 0.5
    assert found.size[1] == 1.5
    assert found.notes[1] == 2.5
    assert not found.hits.any(), "drum hits of one song would copy that song"
    many = band.ensemble([(one, BOUNDS)] * band.FEW)
    assert many.hits[0, 36] == 1


def test_the_ensemble_between_two_is_their_mean() -> None:
    found = band.mixed([(ROCK, 0.25), (ensemble({0: 1.0}, size=1, density=12), 0.75)])
    assert found.programs[0] == pytest.approx(0.8)
    assert found.size[1] == pytest.approx(2)
    assert found.notes[1] == pytest.approx(14)


def test_instruments_enter_and_leave_with_the_amount() -> None:
    assert band.choose(PIANO, ROCK, 0.0) == [0]
    half, whole = band.choose(PIANO, ROCK, 0.5), band.choose(PIANO, ROCK, 1.0)
    assert {0, 33, DRUMS} < {*whole}
    assert 0 in half
    assert DRUMS in half
    assert len(half) == 3
    assert len(whole) == 5


def test_an_instrument_entering_half_way_is_of_another_family() -> None:
    jazz = ensemble({DRUMS: 0.9, 32: 0.6, 4: 0.5, 26: 0.3}, size=6)
    assert band.choose(PIANO, jazz, 0.5) == [0, 26, 32, DRUMS]


def test_a_band_has_one_bass_two_of_a_family_and_no_more_than_seven() -> None:
    crowd = ensemble({DRUMS: 1.0, **dict.fromkeys(range(64), 0.5)}, size=20)
    chosen = band.choose(np.zeros(DRUMS + 1), crowd, 1.0)
    families = [program // 8 for program in chosen if program != DRUMS]
    assert len(chosen) == band.MOST
    assert families.count(4) == 1
    assert max(families.count(f) for f in families) <= 2


def test_the_decoder_influences_the_choice_of_the_band() -> None:
    shares = np.zeros(DRUMS + 1)
    shares[29] = 1.0
    free = ensemble({DRUMS: 0.9, 25: 0.4, 29: 0.3}, size=2)
    assert band.choose(np.zeros(DRUMS + 1), free, 1.0) == [25, DRUMS]
    assert band.choose(np.zeros(DRUMS + 1), free, 1.0, shares) == [29, DRUMS]


# --- notes ------------------------------------------------------------------------------------------------------------


def test_the_melody_is_the_audible_top_line() -> None:
    song = notes((0, 24, 72, 0), (0, 24, 48, 0), (12, 12, 60, 0), (24, 12, 64, 40))
    assert band.tune(song)[:, PITCH].tolist() == [72, 64], "60 begins under 72, which still sounds"


def test_the_melody_of_a_missing_instrument_goes_to_the_nearest() -> None:
    line = notes((0, 12, 60, 40), (12, 12, 62, 0), (24, 12, 64, 26))
    played = band.players(line, [0, 25, 33, DRUMS], PIANO)
    assert played[:, PROGRAM].tolist() == [0, 0, 25], "a piano is there, and a guitar is nearer to a guitar"


@given(small_rows, small_rows)
def test_no_note_sounds_above_the_melody(
    new: list[tuple[int, int, int, int]], old: list[tuple[int, int, int, int]]
) -> None:
    line, rest = band.tune(notes(*old)), notes(*new)
    found = band.under(rest, line)
    pitched = found[found[:, PROGRAM] != DRUMS]
    sounds = arrangement.sounding(pitched, line[:, ONSET])
    assert all(not sounds[i, pitch:].any() for i, pitch in enumerate(line[:, PITCH].tolist()))
    assert not len(line) or pitched[:, PITCH].max(initial=0) <= line[:, PITCH].max(), "nor while it rests"
    assert (found[:, DURATION] > 0).all()
    assert np.count_nonzero(found[:, PROGRAM] == DRUMS) == np.count_nonzero(rest[:, PROGRAM] == DRUMS)


def test_the_notes_rarest_over_bars_are_removed_first() -> None:
    often, once = [(48 * bar, 6, 60, 0) for bar in range(4)], [(6, 6, 60, 0), (54 + 9, 6, 60, 0)]
    song = notes(*often, *once)
    assert band.thinned(song, BOUNDS, 4).tolist() == notes(*often).tolist()
    assert band.thinned(song, BOUNDS, 6).tolist() == song.tolist()
    assert not len(band.thinned(song, BOUNDS, -1))
    assert not len(band.thinned(song[:0], BOUNDS, -1))


def test_a_thinned_drum_part_keeps_its_length() -> None:
    beat = [
        (48 * bar + at, 1, pitch, DRUMS) for bar in range(4) for at, pitch in ((0, 36), (12, 38), (24, 36), (36, 38))
    ]
    hats = [(48 * bar + 6 * at, 1, 42, DRUMS) for bar in range(4) for at in range(8)]
    found = band.thinned(notes(*beat, *hats), BOUNDS, 18)
    assert set(beat) < set(map(tuple, found[:, :4].tolist())), "the fourth beat stays"
    assert set((found[found[:, PITCH] == 42, ONSET] % 12).tolist()) == {0}, "hats between the beats leave"


def test_one_drum_pattern_per_song() -> None:
    kick, snare = [(48 * bar, 1, 36, DRUMS) for bar in range(4)], [(48 * bar + 36, 1, 38, DRUMS) for bar in (0, 2)]
    found = band.grooved(notes(*kick, *snare, (60, 1, 49, DRUMS)), BOUNDS)
    hits = {(onset % 48, pitch) for onset, _, pitch, *_ in found.tolist()}
    assert hits == {(0, 36), (36, 38), (12, 49)}
    assert np.count_nonzero(found[:, PITCH] == 38) == 4, "in half of the bars before, now in all"
    assert np.count_nonzero(found[:, PITCH] == 49) == 1


def test_parts_are_kept_whole_up_to_the_share_of_the_song() -> None:
    piano, flute = [(12 * i, 12, 72, 0) for i in range(16)], [(12 * i, 12, 84, 73) for i in range(8)]
    song = notes(*piano, *flute, (0, 1, 36, DRUMS))
    assert band.whole_parts(song, BOUNDS, [0, 33, 73, DRUMS], 10.0, 0.5) == [0], "16 of 20, and 24 is no nearer"
    assert band.whole_parts(song, BOUNDS, [0, 33, 73, DRUMS], 11.0, 0.5) == [0, 73], "16 and 24 of 22: nearer"
    assert band.whole_parts(song, BOUNDS, [0, 33, 73, DRUMS], 9.0, 0.25) == [0, 73, DRUMS]
    assert band.whole_parts(song, BOUNDS, [0, 33, 73], 10.0, 1.0) == []
    assert band.whole_parts(song, BOUNDS, [0], 10.0, 0.5) == [], "one instrument must be generated"


def test_one_lead_plays_the_melody() -> None:
    song = notes(*((12 * i, 12, 72, 73) for i in range(15)), (180, 12, 74, 40))
    shares = band.presence(song, BOUNDS)
    assert set(band.voice(band.tune(song), [0, 40, 73], [], shares)[:, PROGRAM].tolist()) == {73}
    assert band.voice(band.tune(song), [0, 40, 73], [40], shares)[-1, PROGRAM] == 40, "a whole part is unchanged"


def test_no_instrument_plays_in_a_single_bar() -> None:
    steady, once = [(48 * bar, 6, 60, 25) for bar in range(4)], [(0, 6, 60, 4), (96, 6, 60, 4)]
    assert band.settled(notes(*steady, *once), BOUNDS).tolist() == notes(*steady).tolist()


def test_a_kept_part_is_whole_and_the_band_plays_the_rest() -> None:
    song = notes(*((12 * i, 12, 72, 0) for i in range(16)), *((12 * i, 12, 48, 0) for i in range(16)))
    written = notes(*((6 * i, 6, 50, 25) for i in range(32)), *((12 * i, 12, 50, 0) for i in range(16)))
    line = band.voice(band.tune(song), [0, 25], [0], band.presence(song, BOUNDS))
    found = band.arranged(written, song, BOUNDS, [0, 25], 10.0, 0.5, line, [0])
    assert sorted(found[found[:, PROGRAM] == 0].tolist()) == sorted(song.tolist())
    assert np.count_nonzero(found[:, PROGRAM] == 25) == 32, "as many as the song's, though the bars are full"
    assert arrangement.top_line_heard(song, found) == 1
    alone = band.arranged(written, song, BOUNDS, [0, 25], 100.0, 1.0, song[:0])
    assert sorted(alone.tolist()) == sorted(written.tolist())


def test_a_part_has_one_rhythm_and_repeats_its_chords() -> None:
    steady = [(48 * bar, 6, 60, 25) for bar in range(4)] + [(48 * bar + 18, 6, 62, 25) for bar in (0, 2)]
    found = band.patterned(notes(*steady, (7, 3, 61, 25)), BOUNDS, np.array([0, 72]))
    written = {(onset, pitch) for onset, _, pitch, *_ in found.tolist()}
    often = {(0, 60), (48, 60), (96, 60), (144, 60), (18, 62), (114, 62)}
    assert written == often | {(66, 60), (162, 60), (72, 60)}, "step 18 in all bars, step 24 in some, step 7 in none"


def test_notes_last_until_the_next_or_the_end_of_the_bar() -> None:
    part = notes((0, 3, 60, 25), (0, 3, 64, 25), (18, 60, 62, 25), (60, 3, 60, 25))
    assert band.held(part, BOUNDS)[:, DURATION].tolist() == [18, 18, 30, 36]
    assert band.held(part, BOUNDS, 12)[:, DURATION].tolist() == [12, 12, 30, 12], "longer notes are not shortened"


@given(small_rows)
def test_a_bass_is_one_low_line_without_gaps(rows: list[tuple[int, int, int, int]]) -> None:
    part = notes(*((onset, duration, pitch, 33) for onset, duration, pitch, _ in rows))
    line = band.bass_line(part, BOUNDS, BOUNDS[:-1])
    onsets, ends = line[:, ONSET], line[:, ONSET] + line[:, DURATION]
    assert (np.diff(onsets) > 0).all(), "one note at a time"
    same = onsets[1:] // 48 == onsets[:-1] // 48
    assert (ends[:-1][same] == onsets[1:][same]).all()
    assert ((line[:, PITCH] >= band.LOWEST) & (line[:, PITCH] <= band.HIGHEST_BASS)).all()
    assert set((line[:, PITCH] % 12).tolist()) <= set((part[:, PITCH] % 12).tolist())


def test_one_instrument_enters_with_chords_and_one_is_low() -> None:
    shares = np.zeros(DRUMS + 1)
    shares[[29, 66]] = 0.2, 0.5
    assert band.accompanist([0, 25, 29, 33, 66, DRUMS], PIANO, shares) == 29, (
        "no bass, no wind, no instrument of the song"
    )
    assert band.accompanist([0, DRUMS], PIANO) is None
    assert band.lowest_player([0, 42, DRUMS]) == 42
    assert band.lowest_player([0, 32, 42]) == 32
    assert band.lowest_player([73]) is None
    strings = ensemble({41: 0.5, 40: 0.5, 0: 0.2}, size=2)
    assert 0 in band.choose(np.zeros(DRUMS + 1), strings, 1.0), "without a bass one instrument plays low"


def test_the_bass_at_amount_one_half_is_that_of_the_style() -> None:
    song = np.where(np.isin(np.arange(DRUMS + 1), [0, 33]), 1.0, 0.0)
    jazz = ensemble({DRUMS: 0.9, 32: 0.6, 66: 0.6, 26: 0.3}, size=6)
    assert band.choose(song, jazz, 0.5) == [0, 26, 32, DRUMS], "and a guitar enters rather than a saxophone"
    assert 33 in band.choose(song, jazz, 0.4)


def test_the_density_between_two_is_their_geometric_mean() -> None:
    song = notes(*((12 * i, 12, 60, 0) for i in range(4)))
    assert band.density(song, BOUNDS) == 4, "of four bars one has notes"
    assert band.between(song, BOUNDS, ensemble({0: 1.0}, density=36), 0.5) == pytest.approx(12)
