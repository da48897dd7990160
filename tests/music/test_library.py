"""Scores and folders of music: reading each format, and reading many files.

Small scores are given as text in their format.
"""

from __future__ import annotations

import io
import multiprocessing
import time
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import music21
import numpy as np
import pytest

from seqvae.errors import ReadError
from seqvae.io.workers import Workers
from seqvae.music import library as collection
from seqvae.music import piece as midi

m21: Any = music21  # only partly typed
CORPUS_PIECE = "corpus:bach/bwv66.6"


def rows(piece: midi.Piece) -> list[tuple[int, ...]]:
    """(onset, duration, pitch, program) of every note."""
    return [tuple(row[:4]) for row in piece.notes.tolist()]


def test_the_corpus_is_read() -> None:
    piece = midi.read(CORPUS_PIECE)
    assert (piece.name, len(piece.notes)) == ("bwv66.6", 154)
    assert piece.bounds[:3].tolist() == [0, 12, 60]  # a pickup, then bars of 4/4


MUSICXML = """<?xml version="1.0"?><score-partwise version="3.1"><part-list>
<score-part id="P1"><part-name>Clarinet in Bb</part-name><score-instrument id="I1">
<instrument-name>Clarinet</instrument-name></score-instrument>
<midi-instrument id="I1"><midi-program>72</midi-program></midi-instrument></score-part>
<score-part id="P2"><part-name>Drumset</part-name><score-instrument id="I36">
<instrument-name>Bass Drum</instrument-name></score-instrument>
<midi-instrument id="I36"><midi-channel>10</midi-channel><midi-unpitched>37</midi-unpitched>
</midi-instrument></score-part></part-list>
<part id="P1">
<measure number="0" implicit="yes"><attributes><divisions>2</divisions><key><fifths>2</fifths></key><time>
<beats>3</beats><beat-type>4</beat-type></time><transpose><diatonic>-1</diatonic><chromatic>-2</chromatic></transpose></attributes>
<direction><direction-type><metronome><beat-unit>quarter</beat-unit><per-minute>90</per-minute></metronome>
</direction-type></direction>
<note><pitch><step>D</step><octave>5</octave></pitch><duration>2</duration><type>quarter</type></note></measure>
<measure number="1"><barline location="left"><repeat direction="forward"/></barline>
<harmony><root><root-step>C</root-step></root><kind>major</kind></harmony>
<note><grace/><pitch><step>A</step><octave>5</octave></pitch><type>eighth</type></note>
<note><pitch><step>E</step><octave>5</octave></pitch><duration>6</duration><tie type="start"/><type>half</type><dot/>
</note><backup><duration>6</duration></backup>
<note><pitch><step>G</step><octave>4</octave></pitch><duration>6</duration><voice>2</voice><type>half</type><dot/></note>
</measure>
<measure number="2"><barline location="left"><ending number="1" type="start"/></barline>
<note><pitch><step>E</step><octave>5</octave></pitch><duration>2</duration><tie type="stop"/><type>quarter</type></note>
<note><rest/><duration>4</duration></note>
<barline location="right"><ending number="1" type="stop"/><repeat direction="backward"/></barline></measure>
<measure number="3"><barline location="left"><ending number="2" type="start"/></barline>
<note><pitch><step>D</step><octave>5</octave></pitch><duration>6</duration><type>half</type><dot/></note>
<barline location="right"><ending number="2" type="stop"/></barline></measure></part>
<part id="P2">
<measure number="0" implicit="yes"><attributes><divisions>2</divisions><time><beats>3</beats><beat-type>4</beat-type>
</time></attributes><note><rest/><duration>2</duration></note></measure>
<measure number="1"><note><unpitched><display-step>F</display-step><display-octave>4</display-octave></unpitched>
<duration>2</duration><instrument id="I36"/><type>quarter</type></note><note><rest/><duration>4</duration>
</note></measure>
<measure number="2"><note><rest measure="yes"/><duration>6</duration></note></measure>
<measure number="3"><note><rest measure="yes"/><duration>6</duration></note></measure></part></score-partwise>"""


def zipped(text: str) -> bytes:
    """The content of an .mxl file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("score.xml", text)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".musicxml", ".xml", ".mxl", ".MXL", "bytes", "zip"])
def test_musicxml(suffix: str, tmp_path: Path) -> None:
    content = zipped(MUSICXML) if suffix.lower() in (".mxl", "zip") else MUSICXML.encode()
    path = tmp_path / f"piece{suffix}"
    path.write_bytes(content)
    piece = midi.read(path if suffix.startswith(".") else content)
    # pickup; bar 1 and first ending; bar 1 and second ending; sounding a tone lower; a tie only inside the repeat
    clarinet = [(0, 12, 72), (12, 48, 74), (12, 36, 65), (84, 36, 74), (84, 36, 65), (120, 36, 72)]
    drum = [(12, 12, 36, midi.DRUMS), (84, 12, 36, midi.DRUMS)]
    assert sorted(rows(piece)) == sorted([(*note, 71) for note in clarinet] + drum)
    assert midi.frame_rows(piece.frame) == ([(0, 666_667)], [(0, 1, 4), (12, 3, 4)], [(0, 0, 0)])  # the sounding key
    assert piece.bounds.tolist() == [0, 12, 48, 84, 120, 156]


def test_drums_are_distinguished_by_their_position_on_the_staff() -> None:
    kick = "<note><unpitched><display-step>F</display-step>"
    hat = "<note><unpitched><display-step>G</display-step><display-octave>5</display-octave></unpitched>"
    rest = "<note><rest/><duration>4</duration>\n</note></measure>"
    kit = MUSICXML.replace(kick, f"{hat}<duration>2</duration><type>quarter</type></note>{kick}")
    piece = midi.read(kit.replace(rest, rest.replace("4", "2")).encode())
    drums = [row for row in rows(piece) if row[3] == midi.DRUMS]
    assert [row[::2] for row in drums] == [(12, 42), (24, 36), (84, 42), (96, 36)]


def test_humdrum(tmp_path: Path) -> None:
    columns = [
        ("**kern", "**kern"),
        ("*I:Violoncello", "*I:Violino"),
        ("*M2/4", "*M2/4"),
        ("*k[b-]", "*k[b-]"),
        ("=1", "=1"),
        ("[4F", "8a"),
        (".", "8cc"),
        ("4F]", "4ff"),
        ("=2:|!", "=2:|!"),
        ("2C", "2ee"),
        ("==", "=="),
        ("*-", "*-"),
    ]
    path = tmp_path / "duo.krn"
    path.write_text("".join("\t".join(row) + "\n" for row in columns))
    piece = midi.read(path)
    first = [(0, 24, 53, 42), (0, 6, 69, 40), (6, 6, 72, 40), (12, 12, 77, 40)]
    again = [(onset + 24, *rest) for onset, *rest in first]
    assert sorted(rows(piece)) == sorted([*first, *again, (48, 24, 48, 42), (48, 24, 76, 40)])
    assert midi.frame_rows(piece.frame) == ([(0, 600_000)], [(0, 2, 4)], [(0, -1, 0)])


def test_abc_with_two_tunes(tmp_path: Path) -> None:
    path = tmp_path / "tunes.abc"
    path.write_text("X:1\nT:One\nM:3/4\nL:1/4\nK:G\nD|:GBd|1 g3:|2 G3|]\n\nX:2\nT:Two\nM:2/4\nL:1/4\nK:C\nCE|GE|]\n")
    one = [(0, 12, 62), (12, 12, 67), (24, 12, 71), (36, 12, 74), (48, 36, 79)]
    one += [(84, 12, 67), (96, 12, 71), (108, 12, 74), (120, 36, 67)]
    two = [(156, 12, 60), (168, 12, 64), (180, 12, 67), (192, 12, 64)]
    piece = midi.read(path)
    assert [row[:3] for row in rows(piece)] == one + two
    assert midi.frame_rows(piece.frame)[1][-1] == (156, 2, 4)


def test_any_kind_of_stream_is_read() -> None:
    chord, note, stream, tie = m21.chord, m21.note, m21.stream, m21.tie
    measure = stream.Measure([m21.meter.TimeSignature("3/4"), chord.Chord("C4 E4", quarterLength=2), note.Note("G4")])
    notes = [(0, 24, 60, 0), (0, 24, 64, 0), (24, 12, 67, 0)]
    part = stream.Part([measure])
    for source in (measure, part, stream.Score([part]), part.flatten(), stream.Opus([stream.Score([part])])):
        piece = midi.read(source)
        assert (rows(piece), piece.bounds.tolist()) == (notes, [0, 36]), type(source)
    held = chord.Chord("C4 E4")
    held.tie = tie.Tie("start")
    freed = chord.Chord("C4 E4", quarterLength=3)
    freed.tie = tie.Tie("stop")
    across = stream.Part([stream.Measure([note.Rest(quarterLength=3), held]), stream.Measure([freed, note.Rest()])])
    assert rows(midi.read(across)) == [(36, 48, 60, 0), (36, 48, 64, 0)]
    with pytest.raises(ReadError, match="not a single note"):
        midi.read(stream.Score())


def test_a_da_capo_stays_in_its_movement() -> None:
    bar, repeat, stream = m21.bar, m21.repeat, m21.stream

    def measure(number: int, pitch: str, *marks: Any) -> Any:
        result = stream.Measure([m21.note.Note(pitch, quarterLength=4), *marks])
        result.number = number
        return result

    first = [measure(1, "C4"), measure(2, "D4")]
    minuet = [measure(1, "E4"), measure(2, "F4", repeat.Fine()), measure(3, "G4", repeat.DaCapoAlFine())]
    first[-1].rightBarline = bar.Barline("final")
    minuet[1].rightBarline = bar.Barline("final")  # ends the minuet, not the movement, because the trio follows
    piece = midi.read(stream.Part([*first, *minuet]))
    assert piece.notes[:, midi.PITCH].tolist() == [60, 62, 64, 65, 67, 64, 65]


def test_repeats_that_music21_cannot_expand_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "bad.musicxml"
    path.write_text(MUSICXML.replace('<repeat direction="backward"/>', ""))  # opened and never closed
    assert len(midi.read(path).notes) == 5


TUNE = "X:1\nT:Tune\nM:3/4\nL:1/4\nK:G\nGBd|g3|]\n"


def write_scale(path: Path, program: int = 0, length: int = 8) -> Path:
    """Write a MIDI file with a scale; creates its folder."""
    notes = [(6 * step, 6, 60 + step, program, 80) for step in range(length)]
    frame = midi.make_frame(([(0, 500_000)], [(0, 3, 4)], [(0, -2, 1)]))
    return midi.write(midi.to_score(np.array(notes, np.int32), frame), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Music in three formats, a file that is not music, and ignored files."""
    root = tmp_path / "music"
    write_scale(root / "b.mid")
    write_scale(root / "a" / "deep.MIDI", program=5)
    (root / "a" / "broken.mid").write_bytes(b"MThd and no more")
    (root / "a" / "tune.abc").write_text(TUNE)
    for name in ("cover.png", "a/.hidden.mid", ".git/x.mid", "a/notes.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_find_returns_named_files_and_the_music_in_folders(folder: Path) -> None:
    inside = [folder / "a" / "broken.mid", folder / "a" / "deep.MIDI", folder / "a" / "tune.abc", folder / "b.mid"]
    assert collection.find([folder]) == inside
    named: list[str | Path] = [folder / "b.mid", CORPUS_PIECE, folder / "cover.png", folder]
    assert collection.find(named) == [folder / "b.mid", Path(CORPUS_PIECE), folder / "cover.png", *inside[:3]]
    with pytest.raises(ReadError, match="no such file or folder"):
        collection.find([folder / "nowhere"])


def test_other_files_of_a_folder_are_counted(folder: Path) -> None:
    (folder / "a" / "LICENSE").touch()
    (folder / "more.PNG").touch()
    message = "files passed over: 4, not music by their suffix (2 .png, 1 "
    assert collection.passed_over([folder, folder / "b.mid", CORPUS_PIECE]).startswith(message)
    assert collection.passed_over([folder / "b.mid"]) == ""


def test_every_suffix_of_a_midi_file_is_music(tmp_path: Path) -> None:
    content = write_scale(tmp_path / "scale.mid").read_bytes()
    for suffix in ("midi", "kar", "rmi", "smf", "KAR"):
        (tmp_path / f"{suffix}.{suffix}").write_bytes(content)
    found = list(collection.read_all(collection.find([tmp_path]), progress=False))
    assert [piece.name for _, piece in found if isinstance(piece, midi.Piece)] == [path.stem for path, _ in found]
    assert (len(found), collection.passed_over([tmp_path])) == (6, "")


def test_a_folder_is_read_in_order_and_only_bad_files_are_skipped(folder: Path) -> None:
    paths = [*collection.find([folder]), Path(CORPUS_PIECE), folder, folder / "gone.mid"]
    results = list(collection.read_all(paths, workers=2, progress=False))
    assert [path for path, _ in results] == paths
    names = [result.name if isinstance(result, midi.Piece) else result.reason for _, result in results]
    assert names[1:4] == ["deep", "tune", "b"]
    assert names[4] == "bwv66.6"
    assert "header is damaged" in names[0] or "cut short" in names[0]
    assert names[5:] == ["it is a folder", "there is no such file"]
    for path, result in results[1:5]:
        assert isinstance(result, midi.Piece)
        again = midi.read(path)
        assert result.notes.tolist() == again.notes.tolist()
        assert result.bounds.tolist() == again.bounds.tolist()
        assert midi.frame_rows(result.frame) == midi.frame_rows(again.frame)


def no_worker(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a worker was started")


def test_files_read_before_come_from_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [folder / "b.mid", folder / "a" / "tune.abc"]
    first = list(collection.read_all(paths, cache=tmp_path / "cache", workers=1, progress=False))
    renamed = [path.rename(path.with_name(f"other{path.suffix}")) for path in paths]
    with monkeypatch.context() as patch:
        patch.setattr(Workers, "call", no_worker)
        second = list(collection.read_all(renamed, cache=tmp_path / "cache", workers=1, progress=False))
    for (_, one), (_, two) in zip(first, second, strict=True):
        assert isinstance(one, midi.Piece)
        assert isinstance(two, midi.Piece)
        assert two.name == "other"  # the cache is keyed by content, not by name
        assert one.notes.tolist() == two.notes.tolist()
        assert midi.frame_rows(one.frame) == midi.frame_rows(two.frame)
    for kept in (tmp_path / "cache").iterdir():
        kept.write_bytes(kept.read_bytes()[:50])
    third = list(collection.read_all(renamed, cache=tmp_path / "cache", workers=1, progress=False))
    assert all(isinstance(piece, midi.Piece) for _, piece in third)
    monkeypatch.setattr(collection, "READER_VERSION", collection.READER_VERSION + 1)
    monkeypatch.setattr(Workers, "call", no_worker)
    with pytest.raises(AssertionError, match="a worker was started"):
        list(collection.read_all(renamed, cache=tmp_path / "cache", workers=1, progress=False))


def test_an_unwritable_cache_is_ignored(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    [(_, piece)] = collection.read_all([folder / "b.mid"], cache=tmp_path / "file" / "cache", progress=False)
    assert isinstance(piece, midi.Piece)


def test_a_file_that_takes_too_long_is_abandoned(folder: Path) -> None:
    paths = [Path(CORPUS_PIECE), folder / "b.mid"]
    [(_, slow), _] = collection.read_all(paths, workers=1, progress=False, time_limit=0.05)
    assert isinstance(slow, ReadError)  # music21 takes longer to import
    assert "it took more than 0.05 seconds" in str(slow)


def test_a_reader_that_dies_loses_only_its_file(folder: Path) -> None:
    paths = [folder / "b.mid", Path(CORPUS_PIECE), folder / "b.mid"]
    reading = collection.read_all(paths, workers=1, progress=False)
    results = [next(reading)[1]]
    time.sleep(0.1)  # the worker now imports music21, which takes longer
    (worker,) = multiprocessing.active_children()
    worker.kill()
    results += [result for _, result in reading]
    assert [type(result) for result in results] == [midi.Piece, ReadError, midi.Piece]
    assert "the process that read it ended" in str(results[1])


def test_workers_end_when_the_caller_stops(folder: Path) -> None:
    reading = collection.read_all([folder / "b.mid"] * 5 + [folder / "a" / "tune.abc"] * 60, workers=2, progress=False)
    next(reading)
    started = multiprocessing.active_children()
    before = time.monotonic()
    reading.close()
    assert time.monotonic() - before < 5
    assert len(started) == 2
    assert not any(worker.is_alive() for worker in started)


def test_progress_off_a_terminal_is_a_plain_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(collection.read_all([folder / "b.mid", folder / "a" / "broken.mid"], workers=1))
    assert capsys.readouterr().err == "read 2 of 2 files, 1 skipped\n"
    list(collection.read_all([folder / "b.mid"], workers=1, progress=False))
    list(collection.read_all([]))
    assert capsys.readouterr().err == ""
