"""Reading, refusing and writing music. MIDI files are given as commented hex."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic.core import NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from seqvae.errors import ReadError, SeqVAEError
from seqvae.music import piece as midi


def hexa(text: str) -> bytes:
    """The bytes of a commented dump."""
    return bytes.fromhex(" ".join(line.partition("#")[0] for line in text.splitlines()))


def file_of(*tracks: str, kind: int = 1, division: int = 480) -> bytes:
    """A MIDI file with these tracks, each a dump of its events."""
    chunks = [hexa(track) for track in tracks]
    head = b"MThd" + struct.pack(">IHHH", 6, kind, len(chunks), division)
    return head + b"".join(b"MTrk" + struct.pack(">I", len(chunk)) + chunk for chunk in chunks)


def rows(piece: midi.Piece) -> list[tuple[int, ...]]:
    """(onset, duration, pitch, program) of every note."""
    return [tuple(row[:4]) for row in piece.notes.tolist()]


NOTE = """
00 90 3C 50     # C4 on, velocity 80
83 60 80 3C 00  # 480 ticks later off
"""
END = "00 FF 2F 00"

WHOLE = hexa("""
4D 54 68 64  # MThd
00 00 00 06  # chunk size
00 00        # type 0
00 01        # one track
01 E0        # 480 ticks a quarter
4D 54 72 6B  # MTrk
00 00 00 17  # chunk size
00 99 24 64  # bass drum
00 90 3C 50  # C4 on, velocity 80
83 60 40 50  # 480 ticks later E4 on, running status
83 60 3C 00  # C4 off by velocity 0
00 40 00     # E4 off
00 FF 2F 00  # end of track
""")


def test_a_file_becomes_a_piece_on_the_grid() -> None:
    piece = midi.read(WHOLE, name="three")
    assert rows(piece) == THREE  # the drum has no note-off and lasts to the end of the track
    assert piece.notes.dtype == np.int32
    assert piece.notes[:, midi.VELOCITY].tolist() == [80, 100, 80]
    assert piece.bounds.tolist() == [0, 48]
    assert (piece.name, len(piece.frame.tracks)) == ("three", 0)
    assert piece.frame.ticks_per_quarter == midi.STEPS_PER_BEAT


THREE: list[tuple[int, ...]] = [(0, 24, 60, 0), (0, 24, 36, midi.DRUMS), (12, 12, 64, 0)]
READABLE: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {
    "no end of track": (file_of(NOTE), [(0, 12, 60, 0)]),
    "an empty track": (file_of("", END, NOTE + END), [(0, 12, 60, 0)]),
    "fewer tracks than the header says": (WHOLE[:11] + b"\x05" + WHOLE[12:], THREE),
    "a chunk of another kind": (WHOLE[:14] + b"XFIH\0\0\0\2ab" + WHOLE[14:], THREE),
    "junk after the last track": (WHOLE + b"\x1a" * 20, THREE),
    "a longer header": (WHOLE[:7] + b"\x08" + WHOLE[8:14] + b"zz" + WHOLE[14:], THREE),
    "Windows' RIFF": (b"RIFF" + struct.pack("<I", 67) + b"RMIDdata" + struct.pack("<I", len(WHOLE)) + WHOLE, THREE),
    "a note of no length": (file_of("00 90 3C 50  00 80 3C 00" + END), [(0, 1, 60, 0)]),
    "overlapping notes of one pitch": (
        file_of("00 90 3C 50  78 90 3C 60  78 80 3C 00  78 80 3C 00" + END),
        [(0, 6, 60, 0), (3, 6, 60, 0)],
    ),
    "a note off that was never on": (file_of("00 80 3D 00" + NOTE + END), [(0, 12, 60, 0)]),
    "two programs in a track": (
        file_of("00 C0 05" + NOTE + "00 C0 06" + NOTE + END),
        [(0, 12, 60, 5), (12, 12, 60, 6)],
    ),
    "drums": (file_of("00 99 24 64  78 89 24 00" + END), [(0, 3, 36, midi.DRUMS)]),
    "a system message": (file_of("00 F0 05 7E 7F 09 01 F7" + NOTE + END), [(0, 12, 60, 0)]),
    "a name that is not UTF-8": (file_of("00 FF 03 04 63 61 66 E9" + NOTE + END), [(0, 12, 60, 0)]),
    "a velocity over 127": (file_of("00 90 3C C8  83 60 80 3C 00" + END), [(0, 12, 60, 0)]),
    "one tick a quarter": (file_of("00 90 3C 50  02 80 3C 00" + END, division=1), [(0, 24, 60, 0)]),
}


@pytest.mark.parametrize("case", READABLE)
def test_odd_files_are_read(case: str) -> None:
    content, expected = READABLE[case]
    assert rows(midi.read(content)) == expected


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"hello, this is no music at all", "not a MIDI file"),
    "six bytes": (WHOLE[:6], "cut short"),
    "a header alone": (file_of(), "not a single note"),
    "the last 5 bytes missing": (WHOLE[:-5], "cut short, 5 bytes are missing"),
    "a length that goes on for ever": (WHOLE[:18] + b"\xff" + WHOLE[19:], "bytes are missing"),
    "a byte lost between tracks": (file_of(NOTE + END, NOTE + END)[:35] + file_of("", NOTE + END)[23:], "damaged"),
    "an event without a status": (file_of("00 3C 50" + END), "the MIDI data is damaged"),
    "type 3": (file_of(NOTE + END, kind=3), "header is damaged"),
    "no ticks in a quarter": (file_of(NOTE + END, division=0), "header is damaged"),
    "film frames": (file_of(NOTE + END, division=0xE728), "SMPTE"),
    "no notes": (file_of("00 FF 03 02 68 69" + END), "not a single note"),
    "a score cut short": (b"<?xml version='1.0'?><score-partwise><part-list>", "music21 cannot read it"),
    "an archive cut short": (b"PK\x03\x04 and so on", "music21 cannot read it"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_bad_content_is_refused_in_one_line(case: str) -> None:
    content, reason = UNREADABLE[case]
    with pytest.raises(ReadError) as refused:
        midi.read(content, name="it")
    message = str(refused.value)
    assert reason in message
    assert "it" in message
    assert "\n" not in message
    assert refused.value.advice


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_piece_or_a_read_error(data: st.DataObject) -> None:
    content = bytearray(midi.to_bytes(band()))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=12)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        piece = midi.read(bytes(content[cut:] if data.draw(st.booleans()) else content[: len(content) - cut // 4]))
    except ReadError:
        return
    assert_lawful(piece)


def assert_lawful(piece: midi.Piece) -> None:
    """Assert the invariants of `Piece`."""
    notes, bounds = piece.notes, piece.bounds
    assert notes.dtype == bounds.dtype == np.int32
    assert (notes[:, midi.ONSET] >= 0).all()
    assert (notes[:, midi.DURATION] >= 1).all()
    assert ((notes[:, midi.PITCH] >= 0) & (notes[:, midi.PITCH] < 128)).all()
    assert ((notes[:, midi.PROGRAM] >= 0) & (notes[:, midi.PROGRAM] <= midi.DRUMS)).all()
    assert ((notes[:, midi.VELOCITY] >= 1) & (notes[:, midi.VELOCITY] < 128)).all()
    places = [(row[0], row[3], row[2]) for row in notes.tolist()]
    assert places == sorted(set(places))
    assert bounds[0] == 0
    assert bounds[-2] <= notes[-1, midi.ONSET] < bounds[-1]
    assert ((np.diff(bounds) > 0) & (np.diff(bounds) <= midi.MAX_CHUNK_STEPS)).all()
    assert len(piece.frame.tracks) == 0


def band() -> ScoreTick:
    """Three bars for piano, bass and drums."""
    notes = [(step, 6, 60 + step % 12, 0, 80) for step in range(0, 144, 6)]
    notes += [(step, 12, 40, 33, 90) for step in range(0, 144, 12)] + [(step, 1, 36, 128, 100) for step in (0, 24, 48)]
    return midi.to_score(np.array(notes, np.int32), midi.make_frame(([(0, 500_000)], [(0, 4, 4)], [(0, -2, 1)])))


def score_of(*notes: tuple[int, int, int], per_quarter: int = 480) -> ScoreTick:
    """A score with (time, duration, pitch) on one track."""
    score = ScoreTick(per_quarter)
    score.tracks.append(TrackTick("piano"))
    for time, duration, pitch in notes:
        score.tracks[0].notes.append(NoteTick(time, duration, pitch, 80))
    return score


def test_times_are_rounded_to_the_nearest_step_and_no_note_is_lost() -> None:
    piece = midi.read(score_of((0, 19, 60), (19, 20, 61), (21, 59, 62), (100, 1, 63)))
    assert rows(piece) == [(0, 1, 60, 0), (0, 1, 61, 0), (1, 1, 62, 0), (3, 1, 63, 0)]


def test_the_longest_of_equal_notes_stays() -> None:
    assert rows(midi.read(score_of((0, 40, 60), (3, 400, 60), (0, 80, 60)))) == [(0, 10, 60, 0)]


def test_every_kind_of_source_gives_the_same_notes(tmp_path: Path) -> None:
    score = band()
    expected = rows(midi.read(score))
    path = midi.write(score, tmp_path / "band.mid")
    sources: list[Any] = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), score.to("quarter")]
    sources += [score.to("second"), pretty_midi.PrettyMIDI(str(path)), midi.to_music21(score), midi.read(path)]
    for source in sources:
        piece = midi.read(source)
        assert rows(piece) == expected, type(source)
        assert_lawful(piece)
    assert midi.read(path).name == "band"


def test_an_invalid_source_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="music is read from"):
        midi.read(3)


def test_metre_and_tempo_may_change_anywhere() -> None:
    score = score_of(*((beat * 480, 480, 60) for beat in range(20)))
    for time, numerator, denominator in (
        (0, 3, 4),
        (1440, 7, 8),
        (1440 + 1680 + 240, 12, 8),
        (9000, 0, 4),
        (9000, 4, 0),
    ):
        score.time_signatures.append(TimeSignatureTick(time, numerator, denominator))
    for time, mspq in ((700, 300_000), (0, 0), (130, 1), (0, 500_000)):
        score.tempos.append(TempoTick(time, mspq=mspq))
    piece = midi.read(score)
    # 3/4, one bar of 7/8, a 7/8 cut short by the next metre, and 12/8 in halves
    assert piece.bounds.tolist() == [0, 36, 78, 84, 120, 156, 192, 228, 264]
    tempos, metres, _ = midi.frame_rows(piece.frame)
    assert tempos == [(0, 500_000), (3, 60_000), (18, 300_000)]
    assert metres == [(0, 3, 4), (36, 7, 8), (84, 12, 8)]


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        (4, 4, [0, 48, 96]),
        (2, 4, [0, 24, 48, 72, 96]),
        (5, 4, [0, 36, 60, 96]),
        (6, 8, [0, 36, 72, 108]),
        (9, 8, [0, 36, 54, 90, 108]),
        (3, 2, [0, 36, 72, 108]),
        (1, 64, [0, *range(1, 95)][::1]),
    ],
)
def test_bars_longer_than_four_beats_are_cut_on_beats(numerator: int, denominator: int, expected: list[int]) -> None:
    bounds = midi.chunk_bounds([(0, numerator, denominator)], 90).tolist()
    if denominator != 64:
        assert bounds == [bound for bound in expected if bound < 90] + [min(b for b in expected if b >= 90)]
    assert bounds[-1] >= 90


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(1, 255), st.sampled_from([1, 2, 4, 8, 16, 32, 64])), max_size=6
    ),
    st.integers(1, 600),
)
def test_chunks_cover_the_piece_and_are_never_too_long(metres: list[tuple[int, int, int]], end: int) -> None:
    bounds = midi.chunk_bounds(metres, end)
    assert bounds[0] == 0
    assert bounds[-2] < end <= bounds[-1]
    assert ((np.diff(bounds) >= 1) & (np.diff(bounds) <= midi.MAX_CHUNK_STEPS)).all()
    assert {step for step, _, _ in metres if step < end} <= set(bounds.tolist())


def test_absurd_lengths_are_refused() -> None:
    hours = 3600 * 2 * 480  # ticks at 120 beats per minute
    midi.read(score_of((0, 480, 60), (4 * hours, 480, 60)))
    for score, reason in (
        (score_of((0, 480, 60), (10 * hours, 480, 60)), "it lasts 10.0 hours, and the limit is 5"),
        (score_of((0, 10 * hours, 60)), "it lasts 10.0 hours"),
        (score_of((0, 480, 60), (2**31 - 500, 480, 60)), "longer than 100,000 quarter notes"),
        (score_of((-480, 480, 60)), "longer than"),
    ):
        with pytest.raises(ReadError, match=reason):
            midi.read(score)


def test_too_many_notes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(midi, "MAX_NOTES", 3)
    with pytest.raises(ReadError, match="it has 4 notes, and the limit is 3"):
        midi.read(score_of(*((0, 480, pitch) for pitch in range(4))))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere.mid", "there is no such file"),
        (".", "it is a folder"),
        ("song.mp3", "'.mp3' is not a kind of music file known here"),
        ("song", "has no suffix"),
        ("empty.mid", "the file is empty"),
        ("corpus:bach/nope", "music21's corpus has no such work"),
        ("cover.xml", "music21 cannot read it"),
        ("silence.abc", "not a single note"),
    ],
)
def test_bad_files_are_refused_by_name(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"song.mp3": "ID3", "song": "x", "empty.mid": "", "cover.xml": "<html></html>"}.items():
        Path(name).write_text(text)
    Path("silence.abc").write_text("X:1\nT:Silence\nM:4/4\nL:1/4\nK:C\nz4|z4|]\n")
    with pytest.raises(ReadError, match=reason) as refused:
        midi.read(source)
    assert str(refused.value).startswith(f"cannot read {source}: ")


@st.composite
def notes_without_overlap(draw: st.DrawFn) -> midi.Notes:
    """(N, 5) notes without overlaps in one program and pitch."""
    found = []
    for program, pitch in draw(st.sets(st.tuples(st.integers(0, 128), st.integers(0, 127)), min_size=1, max_size=12)):
        step = draw(st.integers(0, 100))
        for gap, duration in draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 200)), min_size=1, max_size=6)):
            found.append((step + gap, duration, pitch, program, draw(st.integers(1, 127))))
            step += gap + duration
    notes = np.array(found, np.int32)
    return notes[np.lexsort((notes[:, midi.PITCH], notes[:, midi.PROGRAM], notes[:, midi.ONSET]))]


frames = st.builds(
    lambda tempos, metres, keys: midi.make_frame((sorted(tempos), metres, keys)),
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(60_000, 15_000_000)),
        unique_by=(lambda row: row[0], lambda row: row[1]),
        max_size=4,
    ),
    st.lists(st.tuples(st.just(0), st.integers(1, 30), st.sampled_from([1, 2, 4, 8, 16, 32])), max_size=1),
    st.lists(st.tuples(st.just(0), st.integers(-7, 7), st.integers(0, 1)), max_size=1),
)


@settings(max_examples=100, deadline=None)
@given(notes_without_overlap(), frames)
def test_written_music_is_read_back(notes: midi.Notes, frame: ScoreTick) -> None:
    piece = midi.read(midi.to_bytes(midi.to_score(notes, frame)))
    assert piece.notes.tolist() == notes.tolist()
    assert midi.frame_rows(piece.frame) == midi.frame_rows(frame)
    assert_lawful(piece)


def three_readers(path: Path) -> list[list[tuple[int, ...]]]:
    """(onset, duration in steps, pitch, program) as read by symusic, pretty_midi and music21, sorted."""
    from music21 import converter

    one = midi.read(ScoreTick(path))
    two = midi.read(pretty_midi.PrettyMIDI(str(path)))
    three = midi.read(converter.parse(path, forceSource=True, storePickle=False, quarterLengthDivisors=(12,)))
    return [sorted(rows(piece)) for piece in (one, two, three)]


@pytest.mark.parametrize("case", ["band", "twenty programs", "overlapping", "one note", "fast repeats"])
def test_three_readers_find_the_same_notes_in_a_written_file(case: str, tmp_path: Path) -> None:
    notes = {
        "band": midi.read(band()).notes.tolist(),
        "twenty programs": [(12 * n, 12, 40 + n, n, 80) for n in range(20)],
        "overlapping": [(0, 48, 60, 0, 80), (12, 12, 60, 0, 80), (12, 48, 60, 5, 80), (6, 90, 61, 0, 80)],
        "one note": [(0, 12, 60, 0, 80)],
        "fast repeats": [(n, 5, 38, midi.DRUMS, 80) for n in range(48)],
    }[case]
    frame = midi.make_frame(([(0, 500_000)], [(0, 4, 4)], [(0, 0, 0)]))
    path = midi.write(midi.to_score(np.array(notes, np.int32), frame), tmp_path / "written.mid")
    first, second, third = three_readers(path)
    assert len(first) == len({(note[0], note[2], note[3]) for note in notes})
    assert first == second
    assert first == third


def test_a_score_without_notes_is_a_valid_file(tmp_path: Path) -> None:
    frame = midi.make_frame(([(5, 600_000), (1, 400_000)], [(24, 3, 4)], [(12, 3, 0)]))
    path = midi.write(midi.to_score(np.zeros((0, 5), np.int32), frame), tmp_path / "silence.mid")
    again = ScoreTick(path).resample(midi.STEPS_PER_BEAT)
    assert sorted(midi.frame_rows(again)[0]) == [(1, 400_000), (5, 600_000)]
    assert midi.frame_rows(again)[1:] == ([(24, 3, 4)], [(12, 3, 0)])
    assert len(pretty_midi.PrettyMIDI(str(path)).instruments) == 0


def test_a_written_score_is_laid_out_for_listeners() -> None:
    score = band()
    assert [(track.name, track.program, track.is_drum) for track in score.tracks] == [
        ("Acoustic Grand Piano", 0, False),
        ("Electric Bass (finger)", 33, False),
        ("Drums", 0, True),
    ]
    assert score.ticks_per_quarter == midi.TICKS_PER_BEAT
    notes = midi.read(score).notes
    soft = midi.read(midi.to_score(notes, ScoreTick(midi.STEPS_PER_BEAT), velocity=40)).notes
    assert set(soft[:, midi.VELOCITY].tolist()) == {40}


def test_a_score_round_trips_through_other_libraries() -> None:
    score = band()
    assert rows(midi.read(midi.to_pretty_midi(score))) == rows(midi.read(score))
    stream = midi.to_music21(score)
    piece = midi.read(stream)
    assert piece.notes.tolist() == midi.read(score).notes.tolist()
    assert midi.frame_rows(piece.frame) == midi.frame_rows(midi.read(score).frame)
    assert len(stream.parts[0].makeNotation().getElementsByClass("Measure")) == 3


def test_a_file_is_written_completely_with_ordinary_permissions(tmp_path: Path) -> None:
    path = midi.write(band(), tmp_path / "new" / "folder" / "band.mid")
    assert [p.name for p in path.parent.iterdir()] == ["band.mid"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_is_a_one_line_error_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    midi.write(band(), tmp_path / "old.mid")
    before = (tmp_path / "old.mid").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(SeqVAEError, match=r"cannot write .*old\.mid: no space left on device; .*free some space"):
        midi.write(band(), tmp_path / "old.mid")
    assert [p.name for p in tmp_path.iterdir()] == ["old.mid"]
    assert (tmp_path / "old.mid").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_device_is_written_to_and_not_replaced() -> None:
    with pytest.raises(SeqVAEError, match="no space left on device"):
        midi.write(band(), "/dev/full")
    midi.write(band(), "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_unwritable_paths_are_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mid").mkdir()
    for path in (tmp_path / "file" / "a.mid", tmp_path / "folder.mid"):
        with pytest.raises(SeqVAEError, match=r"cannot write .*choose another name or folder"):
            midi.write(band(), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mid"]
