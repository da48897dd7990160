"""Odd and damaged MIDI bytes: repair and refusal. The files are commented hex, as in test_piece.py."""

from __future__ import annotations

from typing import Any

import pytest
from symusic.core import NoteTick, ScoreSecond, ScoreTick, TempoTick, TrackTick
from test_piece import END, NOTE, file_of, rows

from seqvae.errors import ReadError
from seqvae.music import midi_bytes
from seqvae.music import piece as midi

ONE: list[tuple[int, ...]] = [(0, 12, 60, 0)]
TWO: list[tuple[int, ...]] = [(0, 12, 60, 0), (12, 12, 62, 0)]
ON, OFF = "00 90 3C 50", "83 60 3C 00"  # running status: note-off 480 ticks later
SECOND = "00 3E 50  83 60 3E 00"  # D4 without a status byte
PLAIN = file_of(NOTE + END)

READ: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {
    "running status after sysex": (file_of(ON + OFF + "00 F0 03 7E 09 F7" + SECOND + END), TWO),
    "running status after an escape": (file_of(ON + OFF + "00 F7 02 F3 01" + SECOND + END), TWO),
    "running status after a text": (file_of(ON + OFF + "00 FF 01 02 68 69" + SECOND + END), TWO),
    "running status after an undefined byte": (file_of(ON + OFF + "00 F4" + SECOND + END), TWO),
    "a song position and a tune request": (file_of(ON + "00 F2 10 20  00 F6" + OFF + SECOND + END), TWO),
    "clock, active sensing and the like": (file_of("00 F8  00 FE  00 F5  00 FD" + NOTE + END), ONE),
    "undefined bytes with much behind": (file_of("00 F4" + NOTE + 200 * "00 B0 07 64" + END), ONE),
    "the last byte missing": (PLAIN[:-1], ONE),
    "the end of the track missing": (PLAIN[:-4], ONE),
    "the last byte missing, and the length true": (file_of(NOTE + "00 FF 2F"), ONE),
    "a last message cut short": (file_of("00 90 3C 50  83 60 80 3C"), ONE),
    "MacBinary": (bytes(128).replace(b"\0", b"\0\4song", 1) + PLAIN + bytes(77), ONE),
    "bytes before the header": (b"\r\n" + PLAIN, ONE),
    "RIFF with pictures first": (b"RIFF" + bytes(4) + b"RMID" + b"DISP" + 9000 * b"x" + PLAIN, ONE),
    "two patterns": (file_of(NOTE + END, "00 C0 05" + NOTE + END, kind=2), [(0, 12, 60, 0), (12, 12, 60, 5)]),
    "a pattern after silence": (file_of(NOTE + "83 60 FF 2F 00", NOTE + END, kind=2), [*ONE, (24, 12, 60, 0)]),
    "a note never ended": (file_of(ON + "83 60 3E 50  83 60 3E 00" + END), [(0, 24, 60, 0), TWO[1]]),
    "a note that the end of its track ends": (file_of(ON + "83 60 FF 2F 00"), ONE),
    "drums without any end": (
        file_of("00 99 24 64  83 60 24 64  83 60 24 64" + END),
        [(0, 12, 36, midi.DRUMS), (12, 12, 36, midi.DRUMS), (24, 1, 36, midi.DRUMS)],
    ),
    "struck twice, ended once": (file_of(ON + "83 60 3C 50" + OFF + "83 60 FF 2F 00"), [*ONE, (12, 12, 60, 0)]),
    "all notes off": (file_of(ON + "83 60 B0 7B 00  83 60 FF 2F 00"), ONE),
    "all sound off on another channel": (file_of(ON + "83 60 B1 78 00  83 60 FF 2F 00"), [(0, 24, 60, 0)]),
    "a tempo in another age": (
        file_of("00 90 3C 40  01 80 3C 00  D5 EA AA 00 FF 51 03 07 A1 20" + END, division=1),
        ONE,
    ),
    "silence for ever": (file_of(NOTE + 40 * "FF FF FF 7F FF 01 00" + END), ONE),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_odd_bytes_are_repaired(case: str) -> None:
    content, expected = READ[case]
    assert rows(midi.read(content)) == expected


REFUSED: dict[str, tuple[bytes, str]] = {
    "more than the end of the track missing": (PLAIN[:-5], "cut short, 5 bytes are missing"),
    "a text beyond its track": (file_of(NOTE + "00 FF 01 7F 68"), "the MIDI data is damaged (a message goes on"),
    "a sysex beyond its track": (file_of(NOTE + "00 F0 7F 01"), "the MIDI data is damaged (a message goes on"),
    "a time of five bytes": (file_of("FF FF FF FF 7F" + NOTE[6:] + END), "a number has more than four bytes"),
    "no status": (file_of("00 FF 01 00  00 3C 50" + END), "an event without a status after 1 events"),
    "a note in another age": (file_of(9 * "FF FF FF 7F FF 01 00" + NOTE + END), "longer than 100,000 quarter notes"),
    "a note where 32 bits wrap round": (
        file_of(16 * "FF FF FF 7F FF 01 00" + NOTE + END, division=0x7FFF),
        "longer than 65,538 quarter notes",
    ),
    "patterns that are too long together": (
        file_of(*3 * ["8B DC 60" + NOTE[3:] + "FF FF FF 7F FF 2F 00"], kind=2, division=3000),
        "longer than 100,000 quarter notes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_irreparable_bytes_are_refused(case: str) -> None:
    content, reason = REFUSED[case]
    with pytest.raises(ReadError) as refused:
        midi.read(content)
    assert reason in str(refused.value)


def test_events_without_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(midi_bytes, "MAX_EVENTS", 50)
    assert rows(midi.read(file_of(NOTE + 48 * "00 B0 07 64" + END))) == ONE
    with pytest.raises(ReadError, match="a track has more than 50 events"):
        midi.read(file_of(NOTE + 49 * "00 B0 07 64" + END))


def test_correct_bytes_are_unchanged() -> None:
    long = "00 C0 05  00 E0 00 40  00 FF 03 02 68 69  00 90 3C 50  81 80 00 80 3C 00  00 FF 2F 00"
    content = file_of(long, NOTE + END)
    assert midi_bytes.tidy(content, "it", 1000) == content


def test_long_silence_between_events_keeps_its_length() -> None:
    content = midi_bytes.tidy(file_of(2 * "FF FF FF 7F F8" + NOTE + END, division=0x7FFF), "it", 100_000)
    [track] = ScoreTick.from_midi(content).tracks
    assert [note.time for note in track.notes] == [2 * (2**28 - 1)]


def score_with_tempo(time: int, division: int) -> ScoreTick:
    """One note, and a tempo at some tick."""
    score = ScoreTick(division)
    score.tracks.append(TrackTick("piano"))
    score.tracks[0].notes.append(NoteTick(0, division or 1, 60, 80))
    score.tempos.append(TempoTick(time, mspq=400_000))
    return score


def timeless() -> ScoreSecond:
    """A score in seconds with a time of nan."""
    score = score_with_tempo(0, 480).to("second")
    assert isinstance(score, ScoreSecond)
    score.tracks[0].notes[0].time = float("nan")
    return score


@pytest.mark.parametrize("time", [180_000_001, 2**31 - 1, -5])
def test_times_of_a_score_are_bounded_before_arithmetic(time: int) -> None:
    piece = midi.read(score_with_tempo(time, 1))
    assert (rows(piece), midi.frame_rows(piece.frame)[0]) == (ONE, [])


@pytest.mark.parametrize("score", [score_with_tempo(0, 0), timeless()])
def test_a_score_with_invalid_times_is_refused(score: Any) -> None:
    with pytest.raises(ReadError):
        midi.read(score)


def test_a_prettymidi_that_cannot_be_written_is_refused() -> None:
    import pretty_midi

    song = pretty_midi.PrettyMIDI()
    song.instruments.append(pretty_midi.Instrument(0))
    song.instruments[0].notes.append(pretty_midi.Note(80, 60, 0.0, float("nan")))
    with pytest.raises(ReadError, match="pretty_midi cannot write it"):
        midi.read(song)
