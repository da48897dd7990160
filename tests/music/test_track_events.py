"""Tracks of a file: names that identify the melody, and events that stay with kept notes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import groove
from symusic.core import ControlChangeTick, NoteTickList, PitchBendTick, ScoreTick, TextMetaTick, TrackTick

from seqvae.codec import Codec
from seqvae.music import arrangement, band, midi_bytes, pianoroll, track_events, tracks
from seqvae.music import library as collection
from seqvae.music import piece as midi
from seqvae.music.piece import DRUMS, ONSET, PITCH, PROGRAM, Piece
from seqvae.studio.reading import Reader

TICKS = midi.TICKS_PER_BEAT


def track(name: str, program: int, notes: Sequence[Sequence[int]], drums: bool = False) -> TrackTick:
    """A track of notes [beat, beats, pitch], with its own volume and pan."""
    made = TrackTick(name, program, drums)
    columns = np.array(notes, np.int32).reshape(-1, 3)
    time, length = (np.ascontiguousarray(columns[:, i]) * TICKS for i in (0, 1))
    pitch = np.ascontiguousarray(columns[:, 2], np.int8)
    made.notes = NoteTickList.from_numpy(time, length, pitch, np.full(len(columns), 80, np.int8))
    made.controls.append(ControlChangeTick(0, 7, 60 + len(name)))
    made.controls.append(ControlChangeTick(0, 10, 30))
    return made


def song(voice: str = "Lead Vocal", bars: int = 8) -> ScoreTick:
    """Bars of 4/4: a voice under the right hand of a piano, whose left hand is another track, a bass and drums."""
    score = ScoreTick(TICKS)
    beats = range(4 * bars)
    sung = track(voice, 52, [[at, 1, 60 + at % 5] for at in beats if at % 8 < 6])
    sung.lyrics.append(TextMetaTick(TICKS, "la"))
    sung.pitch_bends.append(PitchBendTick(10, 1000))
    right = track("Right", 0, [[at, 1, pitch] for at in beats for pitch in (76, 79)])
    right.controls.append(ControlChangeTick(TICKS // 2 + 7, 64, 127))
    right.controls.append(ControlChangeTick(TICKS, 64, 0))
    left = track("Left", 0, [[at, 2, 48] for at in beats if at % 2 == 0])
    kit = track("Kit", 25, [[at, 1, 38] for at in beats], drums=True)
    for part in (right, left, sung, track("Bass", 33, [[at, 1, 36] for at in beats]), kit):
        score.tracks.append(part)
    score.markers.append(TextMetaTick(8 * TICKS, "Verse"))
    return score


def events_of(score: Any) -> dict[str, tuple[Any, ...]]:
    """Events of the tracks of a score other than notes, by name."""
    return {
        one.name: (
            one.program, one.is_drum, [(x.time, x.number, x.value) for x in one.controls],
            [(x.time, x.value) for x in one.pitch_bends], [(x.time, x.text) for x in one.lyrics],
        )
        for one in score.tracks
    }  # fmt: skip


def placed(notes: Any) -> set[tuple[int, ...]]:
    return set(map(tuple, notes[:, [ONSET, PITCH]].tolist()))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["Melody", "MELODY   ", "Lead Vocal", "LeadVocal", "Vocals", "Melodie", "Mélodie", "Gesang", "Canto", "Chant",
     "Voz", "voce", "Lead", "Voice 1 (Melody)", "vocal_lead", "04 Melody", "Guitar Melody", "Vox", "Singer", "Tune"],
)  # fmt: skip
def test_names_of_the_melody(name: str) -> None:
    assert track_events.is_melody(name)


@pytest.mark.parametrize(
    "name",
    ["vocal pad", "Backing Vocals", "BackVocals", "Back-up vocals", "BGV", "Vocal harmony", "lead-in", "Lead Guitar",
     "Lead 1 (square)", "Lead 6 (voice)", "Bass + Lead", "Lead Sheet", "Voice Oohs", "Voices", "Synth Voice",
     "Choir Aahs", "Melodic Tom", "Melodica", "Melody Echo", "Counter melody", "Tuned drums", "fine tune", "Leader",
     "Unchained Melody", "Sing Hallelujah to the Lord", "invoice", "Piano", ""],
)  # fmt: skip
def test_names_of_sounds_songs_and_accompaniment(name: str) -> None:
    assert not track_events.is_melody(name)


def test_no_general_midi_name_marks_a_melody() -> None:
    assert not [name for name in midi.general_midi() if track_events.is_melody(name)]


# --- the melody -------------------------------------------------------------------------------------------------------


def test_the_named_track_is_the_melody_though_it_is_not_on_top() -> None:
    score = song()
    piece = midi.read(score)
    expected = {(note.time // 40, note.pitch) for note in score.tracks[2].notes}
    line, program = tracks.melody(piece)
    assert (placed(line), program) == (expected, 52)
    assert placed(tracks.tune(piece)) == expected
    assert set(tracks.tune(midi.read(song("Choir")))[:, PITCH].tolist()) == {79}


def test_without_a_named_track_with_notes_the_melody_is_the_top_line() -> None:
    two = song()
    two.tracks.append(track("Melody", 73, [[0, 1, 50]]))
    drums = song("Choir")
    drums.tracks.append(track("Melody", 0, [[0, 1, 50]], drums=True))
    silent = replace(midi.read(song()), tracks=None)
    late = midi.read(song())
    notes, cut = late.part(1, 2)
    piece = Piece(notes[notes[:, PROGRAM] != 52], late.bounds[:2], late.frame)
    assert cut is not None
    piece = replace(piece, tracks=replace(cut, home=cut.home[notes[:, PROGRAM] != 52]))
    for one in (midi.read(two), midi.read(drums), silent, piece):
        assert tracks.named_melody(one) is None
        assert placed(tracks.tune(one)) == placed(band.tune(one.notes))
        assert set(tracks.melody(one)[0][:, PITCH].tolist()) == {79}


def test_a_note_shared_by_two_tracks_belongs_to_the_melody() -> None:
    score = ScoreTick(TICKS)
    for name, length in (("Piano", 3), ("Melody", 1)):
        score.tracks.append(track(name, 0, [[0, length, 60]]))
    piece = midi.read(score)
    assert piece.notes[:, midi.DURATION].tolist() == [36], "the longest stays"
    line = tracks.named_melody(piece)
    assert line is not None
    assert len(line) == 1


@pytest.mark.parametrize("amount", [0.5, 1.0])
def test_a_blend_keeps_the_named_melody_note_by_note_on_top(small: Codec, amount: float) -> None:
    piece = midi.read(song())
    line = tracks.named_melody(piece)
    assert line is not None
    score = small.blend(piece, target="odd", source="even", amount=amount)
    blend = midi.read(score)
    assert arrangement.top_line_heard(piece.notes, blend.notes, line) == 1
    (sung,) = [one for one in score.tracks if one.name == "Lead Vocal"]
    assert {(note.time // 40, note.duration // 40, note.pitch) for note in sung.notes} == set(
        map(tuple, line[:, :3].tolist())
    )
    assert [x.text for x in sung.lyrics] == ["la"]
    again = tracks.named_melody(blend)
    assert again is not None
    assert placed(again) == placed(line)
    assert [x.text for x in score.markers] == ["Verse"]
    assert "Kit" not in events_of(score), "drums are not kept"
    alone = small.blend(piece, target="odd", source="even", amount=amount, keep=())
    assert "Lead Vocal" not in events_of(alone)


def test_a_style_without_an_ensemble_keeps_the_melody_too(small: Codec) -> None:
    piece = midi.read(song())
    style = replace(small.style("odd"), ensemble=None)
    line = tracks.named_melody(piece)
    assert line is not None
    score = small.blend(piece, target=style, amount=1)
    blend = midi.read(score)
    assert arrangement.top_line_heard(piece.notes, blend.notes, line) == 1
    assert events_of(score)["Lead Vocal"] == events_of(song())["Lead Vocal"]


# --- events that tokens do not hold -----------------------------------------------------------------------------------


def test_at_amount_0_tracks_are_unchanged(small: Codec) -> None:
    score = song()
    for again in (small.reconstruct(score), small.blend(score, target="odd", amount=0)):
        held, old = events_of(again), events_of(score)
        assert {name: old[name] for name in held} == held
        assert {"Right", "Kit"} <= held.keys()
        assert [(x.time, x.text) for x in again.markers] == [(8 * TICKS, "Verse")]
    piece = midi.read(score)
    exact = midi.to_score(piece.notes, piece.frame, tracks=piece.tracks)
    assert events_of(exact) == events_of(score)
    written = midi.read(midi.to_bytes(exact))
    assert written.tracks is not None
    assert events_of(written.tracks.events) == events_of(score)
    counts = {one.name: len(one.notes) for one in exact.tracks}
    assert counts == {one.name: len(one.notes) for one in score.tracks}, "two hands are two tracks"


def test_the_pedal_of_an_instrument_stays_with_its_new_notes() -> None:
    piece = midi.read(song())
    assert piece.notes[piece.notes[:, PROGRAM] == 0][:, 1].max() == 24, "notes have their written durations"
    new = piece.notes.copy()
    new[:, PITCH] += 1
    found = tracks.homes(new, piece, frozenset([tracks.MELODY]), new[:0])
    score = midi.to_score(new, piece.frame, tracks=found)
    controls = {one.name: [(x.time, x.number, x.value) for x in one.controls] for one in score.tracks}
    assert controls.pop("Acoustic Grand Piano") == [(TICKS // 2 + 7, 64, 127), (TICKS, 64, 0)]
    assert sorted(controls) == ["Choir Aahs", "Drums", "Electric Bass (finger)"]
    assert not any(controls.values()), "another instrument has no pedal"


def test_kept_drums_and_instruments_are_unchanged(small: Codec) -> None:
    score = song()
    blend = small.blend(score, target="odd", source="even", amount=1, keep=["drums", 0])
    held, old = events_of(blend), events_of(score)
    assert {name: held[name] for name in ("Kit", "Right", "Left")} == {
        name: old[name] for name in ("Kit", "Right", "Left")
    }
    assert "Bass" not in held


def test_notes_do_not_depend_on_tracks() -> None:
    piece = midi.read(song())
    plain, dressed = (midi.read(midi.to_score(piece.notes, piece.frame, tracks=x)) for x in (None, piece.tracks))
    assert plain.notes.tolist() == dressed.notes.tolist() == piece.notes.tolist()


def test_more_tracks_than_channels_are_merged_by_program() -> None:
    score = ScoreTick(TICKS)
    for i in range(20):
        score.tracks.append(track(f"Part {i}", i % 4, [[i, 1, 60]]))
    piece = midi.read(score)
    assert len(midi.to_score(piece.notes, piece.frame, tracks=piece.tracks).tracks) == 4


def test_an_instrument_played_by_another_keeps_no_bank() -> None:
    like = track("Melody", 52, [[0, 1, 60]])
    like.controls.append(ControlChangeTick(0, 0, 8))
    for program, numbers in ((52, {0, 7, 10}), (0, {7, 10})):
        made = track("", program, [[0, 1, 60]])
        track_events.dress(made, like)
        assert {x.number for x in made.controls} == numbers


def test_an_excerpt_contains_the_settings_made_before_it() -> None:
    piece = midi.read(song())
    notes, cut = piece.part(2, 4)
    assert cut is not None
    held = events_of(cut.events)
    assert held["Right"] == (0, False, [(0, 7, 65), (0, 10, 30), (0, 64, 0)], [], [])
    assert held["Lead Vocal"] == (52, False, [(0, 7, 70), (0, 10, 30)], [(0, 1000)], [])
    assert [(x.time, x.text) for x in cut.events.markers] == [(0, "Verse")]
    assert len(cut.home) == len(notes)
    names = [one.name for one in cut.events.tracks]
    assert {names[i] for i in cut.home[notes[:, PROGRAM] == DRUMS]} == {"Kit"}
    assert notes[:, ONSET].min() == 0
    assert notes[:, ONSET].max() < 96


def test_lyrics_of_a_track_without_notes_go_to_the_melody() -> None:
    score = song()
    words = TrackTick("Words", 0, False)
    words.lyrics.append(TextMetaTick(0, "oh"))
    score.tracks.append(words)
    piece = midi.read(midi.to_bytes(score))
    assert piece.tracks is not None
    assert events_of(piece.tracks.events)["Lead Vocal"][-1] == [(0, "oh"), (TICKS, "la")]


def text(kind: int, words: str, after: int = 0) -> bytes:
    """A meta event `after` ticks (at most 127)."""
    return bytes((after, 0xFF, kind, len(words))) + words.encode()


def karaoke(first: str) -> bytes:
    """A file with a track of words, as in .kar, after a track that begins with a remark."""
    words = text(3, "Words") + text(1, first) + text(1, "\\Oh", 96) + text(1, " my", 48)
    music = text(1, "by somebody") + bytes.fromhex("00903c50 603c00")
    made = b"MThd" + bytes.fromhex("00000006 0001 0002 0060")
    for events in (music, words):
        made += b"MTrk" + (len(events) + 4).to_bytes(4, "big") + events + bytes.fromhex("00ff2f00")
    return made


@pytest.mark.parametrize("first", ["@KMIDI KARAOKE FILE", "@LENGL", "/A"])
def test_words_of_a_karaoke_file_are_lyrics(first: str) -> None:
    piece = midi.read(karaoke(first))
    assert piece.tracks is not None
    words = [(0, first), (TICKS, "\\Oh"), (TICKS + TICKS // 2, " my")]
    again = midi.read(midi.to_bytes(midi.to_score(piece.notes, piece.frame, tracks=piece.tracks)))
    assert again.tracks is not None
    for tracks_ in (piece.tracks, again.tracks):
        assert [[(x.time, x.text) for x in one.lyrics] for one in tracks_.events.tracks] == [words]


def test_remarks_are_not_lyrics() -> None:
    score = midi.read(karaoke("a remark").replace(b"\\Oh", b"/ o"))
    assert score.tracks is not None
    assert [len(one.lyrics) for one in score.tracks.events.tracks] == [0]


def test_a_name_in_latin_1_is_read() -> None:
    score = song("Melodie")
    content = midi.to_bytes(score).replace(b"Melodie", "Mélodie".encode("latin-1"))
    piece = midi.read(content)
    assert piece.tracks is not None
    assert piece.tracks.events.tracks[0].name == "Mélodie"
    assert tracks.named_melody(piece) is not None


# --- on disk ----------------------------------------------------------------------------------------------------------


def same_tracks(a: Piece, b: Piece) -> bool:
    assert a.tracks is not None
    assert b.tracks is not None
    assert [x.text for x in a.tracks.events.markers] == [x.text for x in b.tracks.events.markers]
    return events_of(a.tracks.events) == events_of(b.tracks.events) and a.tracks.home.tolist() == b.tracks.home.tolist()


def test_the_cache_and_the_studio_keep_tracks(tmp_path: Path) -> None:
    path = midi.write(song(), tmp_path / "song.mid")
    piece = midi.read(path)
    for _ in range(2):
        [(_, found)] = collection.read_all([path], cache=tmp_path / "cache", workers=1, progress=False)
        assert isinstance(found, Piece)
        assert same_tracks(found, piece)
    reader = Reader()
    try:
        assert same_tracks(reader.read(path.read_bytes(), "song"), piece)
    finally:
        reader.close()


def test_caches_of_older_versions_have_no_tracks() -> None:
    piece = groove(0)
    assert piece.tracks is None
    content = collection.pack(midi.read(song()))
    with np.load(io.BytesIO(content)) as stored:
        older = {name: stored[name] for name in ("notes", "bounds", "tempos", "metres", "keys")}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **older)
    found = collection.unpack(buffer.getvalue(), "song")
    assert found.tracks is None
    assert found.notes.tolist() == midi.read(song()).notes.tolist()


def test_the_title_of_a_song_stays_at_amount_0(small: Codec) -> None:
    score = song()
    score.tracks.insert(0, TrackTick("My Song"))
    content = midi.to_bytes(score)
    piece = midi.read(content)
    for made in (small.reconstruct(piece), small.blend(score, target="odd", amount=0)):
        assert made.tracks[0].name == "My Song"
        again = midi.read(midi.to_bytes(made)).tracks
        assert again is not None
        assert again.title == "My Song"
    packed = collection.unpack(collection.pack(piece), "")
    assert packed.tracks is not None
    assert packed.tracks.title == "My Song"
    roll = pianoroll.in_seconds(small.reconstruct(piece), piece)
    assert "My Song" not in [one["name"] for one in roll["tracks"]], "a piano roll has no silent track"


def test_only_a_track_without_notes_names_the_song() -> None:
    score = song()
    assert midi_bytes.title(midi.to_bytes(score)) == ""
    assert track_events.title(score) == ""
    words = TrackTick("Words")
    words.lyrics.append(TextMetaTick(0, "oh"))
    score.tracks.insert(0, words)
    assert track_events.title(score) == ""


def sounding(score: ScoreTick, program: int) -> set[tuple[int, int, int]]:
    """Start, audible end and pitch of the notes of a program in a written file: a note lasts to the pedal's end."""
    found = set()
    for one in ScoreTick.from_midi(midi.to_bytes(score)).tracks:
        pedal = [(x.time, x.value >= 64) for x in one.controls if x.number == track_events.SUSTAIN]
        for note in one.notes if one.program == program and not one.is_drum else []:
            before = [down for at, down in pedal if at <= note.end]
            ends = [at for at, down in pedal if at > note.end and not down] if before and before[-1] else []
            found.add((note.time, ends[0] if ends else note.end, note.pitch))
    return found


def test_a_sustained_piano_sounds_as_before_where_its_notes_are_kept(small: Codec) -> None:
    score = song()
    score.tracks[0] = track("Piano", 0, [[at, 1, 72 + at] for at in range(8)])
    for beat in (0, 4):
        score.tracks[0].controls.append(ControlChangeTick(beat * TICKS, 64, 127))
        score.tracks[0].controls.append(ControlChangeTick((beat + 4) * TICKS - 40, 64, 0))
    del score.tracks[1]  # the left hand
    piece = midi.read(midi.to_bytes(score))
    expected = sounding(score, 0)
    assert (0, 4 * TICKS - 40, 72) in expected, "the pedal lengthens a note of one beat"
    assert sounding(midi.to_score(piece.notes, piece.frame, tracks=piece.tracks), 0) == expected, "as at amount 0"
    kept = small.blend(piece, target="odd", source="even", amount=1, keep=[0])
    assert sounding(kept, 0) == expected
