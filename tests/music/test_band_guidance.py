"""Guidance weights of a band: instruments that may enter, instruments that are due, and drum hits."""

from __future__ import annotations

import numpy as np
import pytest

from seqvae.music import band_guidance
from seqvae.music.band_guidance import Plan
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.protocols import EOS


def state(program: int, position: int = -1) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """The grammar's state after a note of a program."""
    return np.array([[4, program, position, 60, 48]], np.int32)


def test_only_the_band_enters_and_due_instruments_are_not_skipped(tokenizer: MidiTokenizer) -> None:
    weigh = band_guidance.band_guidance(tokenizer, Plan([0, 33, 128], [33, 128]), np.array([True, False]))
    programs = tokenizer.ids("program")
    columns, (weights,) = weigh(np.array([0]), state(0, 12))
    assert columns.tolist() == list(range(tokenizer.vocab_size))
    assert weights[programs[33]] == band_guidance.ENTER
    assert weights[programs[34]] <= band_guidance.NEVER
    assert weights[programs[128]] < 0, "the bass comes first"
    assert weights[EOS] < 0
    _, (free,) = weigh(np.array([1]), state(0, 12))  # a bar that is not full
    assert free[programs[128]] == band_guidance.ENTER
    assert free[EOS] == 0
    _, (last,) = weigh(np.array([0]), state(128, 12))
    assert last[EOS] == 0


def test_a_hit_weighs_by_its_share_of_bars(tokenizer: MidiTokenizer) -> None:
    hits = np.zeros((48, 128))
    hits[0, 36], hits[12, 38] = 1.0, band_guidance.USUAL
    weigh = band_guidance.band_guidance(tokenizer, Plan([128], [], hits), np.array([False]))
    positions, drums = tokenizer.ids("position"), tokenizer.ids("drum")
    _, (weights,) = weigh(np.array([0]), state(128, 0))
    assert weights[positions[0]] == pytest.approx(band_guidance.KIT * np.log(1.03 / 0.53))
    assert weights[positions[12]] == pytest.approx(0, abs=1e-6)
    assert weights[positions[13]] == pytest.approx(band_guidance.KIT * np.log(0.03 / 0.53))
    assert weights[drums[36]] == pytest.approx(band_guidance.KIT * np.log(1.03 / 0.53))
    assert weights[drums[38]] == pytest.approx(band_guidance.KIT * np.log(0.03 / 0.53)), "a snare, but not here"
    _, (piano,) = weigh(np.array([0]), state(0, 0))
    assert not piano[positions].any()


def test_drums_skip_no_beat_of_the_kit(tokenizer: MidiTokenizer) -> None:
    hits = np.zeros((48, 128))
    hits[0, 36], hits[30, 42], hits[36, 38] = 1.0, 1.0, band_guidance.BEATS
    weigh = band_guidance.band_guidance(tokenizer, Plan([128], [128], hits), np.array([True]))
    positions = tokenizer.ids("position")
    _, (weights,) = weigh(np.array([0]), state(128, 12))
    assert weights[positions[36]] > band_guidance.NEVER / 2
    assert weights[positions[37]] < band_guidance.NEVER, "a hit on the fourth beat comes first"
    assert weights[EOS] < band_guidance.NEVER / 2
    _, (last,) = weigh(np.array([0]), state(128, 36))
    assert last[EOS] == 0
    assert last[positions[37]] > band_guidance.NEVER / 2


def test_a_bass_enters_where_the_harmony_changes_and_near_its_middle(tokenizer: MidiTokenizer) -> None:
    changes = np.array([[True, False, True, False]])
    weigh = band_guidance.band_guidance(tokenizer, Plan([0, 33], [33], None, 38.0, 33), np.array([True]), changes)
    positions, pitches = tokenizer.ids("position"), tokenizer.ids("pitch")
    _, (weights,) = weigh(np.array([0]), state(33, 0))
    assert weights[positions[24]] == 0
    assert weights[positions[25]] == band_guidance.NEVER, "the third beat comes first"
    assert weights[EOS] == band_guidance.NEVER
    assert weights[pitches[38]] == weights[pitches[44]] == 0
    assert weights[pitches[47]] == -3 * band_guidance.REGISTER
    _, (piano,) = weigh(np.array([0]), state(0, 0))
    assert not piano[pitches].any()


def test_chords_begin_with_the_half_bars_that_change(tokenizer: MidiTokenizer) -> None:
    changes = np.array([[True, True, True, False]])
    plan = Plan([25, 33], [25, 33], None, None, 33, 25)
    weigh = band_guidance.band_guidance(tokenizer, plan, np.array([True]), changes)
    positions, pitches = tokenizer.ids("position"), tokenizer.ids("pitch")
    rows = np.array([[4, 25, 0, 64, 48], [2, 25, 0, -1, 48], [4, 25, 0, 50, 48], [2, 25, 6, -1, 48]], np.int32)
    _, (after, first, low, later) = weigh(np.zeros(4, np.int64), rows)
    assert after[positions[24]] == 0
    assert after[positions[25]] == band_guidance.NEVER, "the third beat comes first, the second need not"
    assert first[pitches[50]] == 0
    assert first[pitches[47]] == first[pitches[60]] == band_guidance.NEVER
    assert low[positions[24]] == band_guidance.NEVER, "a chord is more than one note"
    assert not low[pitches].any()
    assert not later[pitches].any()


def test_the_substitute_of_a_bass_begins_low(tokenizer: MidiTokenizer) -> None:
    weigh = band_guidance.band_guidance(
        tokenizer, Plan([0], [0], None, 38.0, 0), np.array([True]), np.array([[True, *[False] * 3]])
    )
    pitches = tokenizer.ids("pitch")
    chord = np.array([[2, 0, 0, -1, 48], [4, 0, 0, 36, 48], [2, 0, 6, -1, 48]], np.int32)
    _, (first, second, later) = weigh(np.zeros(3, np.int64), chord)
    assert first[pitches[60]] == -16 * band_guidance.REGISTER
    assert not second[pitches].any()
    assert not later[pitches].any()


def test_low_notes_favour_the_root_without_a_bass(tokenizer: MidiTokenizer) -> None:
    sounding, roots = np.zeros((1, 4, 12)), np.zeros((1, 4, 12))
    sounding[0, :, [0, 4, 7]], roots[0, :, 4] = 1 / 3, 1.0
    _, (weights,) = tokenizer.chroma_guidance(sounding, 1.5, roots, 48)(np.array([0]), state(0, 0))
    assert weights[40] > weights[43] + 3, "E and G below C3"
    assert weights[64] == weights[67]


def test_a_bass_favours_the_lowest_pitch_class(tokenizer: MidiTokenizer) -> None:
    sounding, roots = np.zeros((1, 4, 12)), np.zeros((1, 4, 12))
    sounding[0, :, [0, 4, 7]], roots[0, :, 4] = 1 / 3, 1.0
    weigh = tokenizer.chroma_guidance(sounding, 1.5, roots)
    for program, highest in ((33, [4]), (0, [0, 4, 7])):
        _, (weights,) = weigh(np.array([0]), state(program, 0))
        best = np.flatnonzero(np.isclose(weights, weights.max())) % 12
        assert sorted(set(best.tolist())) == highest
