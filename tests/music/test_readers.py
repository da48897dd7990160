"""Sounding notes of ABC, MusicXML and Humdrum: one small input for each feature that is easily misread."""

from __future__ import annotations

import io
import zipfile
from fractions import Fraction
from pathlib import Path

import pytest

from seqvae.errors import ReadError
from seqvae.music import abc, abc_fields, bars, humdrum, musicxml
from seqvae.music import piece as midi
from seqvae.music.bars import Marks

HEAD = "X:1\nM:4/4\nL:1/4\n"


def read_abc(folder: Path, text: str | bytes) -> midi.Piece:
    path = folder / "a.abc"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return midi.read(path)


def sounds(piece: midi.Piece) -> list[tuple[int, int]]:
    """(onset in steps, pitch) of each note."""
    return [(int(row[midi.ONSET]), int(row[midi.PITCH])) for row in piece.notes]


def steps(*pitches: int, start: int = 0) -> list[tuple[int, int]]:
    """Successive quarter notes."""
    return [(start + 12 * index, pitch) for index, pitch in enumerate(pitches)]


@pytest.mark.parametrize(
    ("text", "pitches"),
    [
        ("K:C\n^C E C c|C E _B B|", [61, 64, 61, 73, 60, 64, 70, 70]),
        ("K:D\n=F F ^^F F|F", [65, 65, 67, 67, 66]),
        ("K:C\n|:E G|A2::c d|e2:|", [64, 67, 69, 64, 67, 69, 72, 74, 76, 72, 74, 76]),
        ("K:C\nE G:||:A B:|", [64, 67, 64, 67, 69, 71, 69, 71]),
        ("K:C\nE|F:|G|A:|", [64, 65, 64, 65, 67, 69, 67, 69]),
        ("K:C\n|:E|1F:|2G:|A", [64, 65, 64, 67, 69]),
        ("K:C\n|:E|[1,3F:|[2G:|A", [64, 65, 64, 67, 64, 65, 69]),
        ("K:C\n|:E|1-2F:|3G|]A", [64, 65, 64, 65, 64, 67, 69]),
        ("K:C\nF B|[K:Eb]E B|[K:Am]E B", [65, 71, 63, 70, 64, 71]),
        ("K:F bass\nB, F,|", [58, 53]),
        ("K:C clef=alto\nC E|", [60, 64]),
        ("K:C treble-8\nC E|", [48, 52]),
        ("K:C octave=1\nC E|", [72, 76]),
        ("K:C transpose=-3\nC E|", [57, 61]),
        ("K:HP\nC F G|", [61, 66, 67]),
        ("K:Bb Dor exp ^d\nB D|", [71, 63]),
        ("K:G mixolydian\nF|", [65]),
        ("K:C\n%%begintext\nA big bad cafe | abc |\n%%endtext\nE G|", [64, 67]),
        ("K:C\n%%text A bad cafe\nE % a bad G\nw: a bad\nG|\nW: cafe|", [64, 67]),
        ('K:C\n"Am"E {ag}!trill!G (FA) .B|', [64, 67, 65, 69, 71]),
        ("P:AAB\nK:C\nP:A\nE F|\nP:B\nG A|", [64, 65, 64, 65, 67, 69]),
        ("P:(AB)2A\nK:C\nP:A\n|:E:|\nP:B\nG|", [64, 64, 67, 64, 64, 67, 64, 64]),
        ("m: ~G = GAG\nK:C\nE ~G|", [64, 67, 69, 67]),
        ("K:C\nE|G !fine!|A !D.C.alfine!|", [64, 67, 69, 64, 67]),
    ],
)
def test_pitches_of_a_tune(tmp_path: Path, text: str, pitches: list[int]) -> None:
    assert [pitch for _, pitch in sounds(read_abc(tmp_path, HEAD + text))] == pitches


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("E F|Z3|G", [(0, 12, 64), (12, 12, 65), (168, 12, 67)]),
        ("E x y z2 X|G", [(0, 12, 64), (96, 12, 67)]),
        ("E>F G<<A|", [(0, 18, 64), (18, 6, 65), (24, 3, 67), (27, 21, 69)]),
        (
            "(3EFG (3:2:2A2B c/c//|",
            [*((4 * k * 2, 8, p) for k, p in enumerate((64, 65, 67))), (24, 16, 69), (40, 8, 71)],
        ),
        ("[EG]2 [C-E]F|", [(0, 24, 64), (0, 24, 67), (24, 12, 60), (24, 12, 64), (36, 12, 65)]),
        ("^F4-|F F2 z|", [(0, 60, 66), (60, 24, 65)]),
        ("E4-|[EG]4|", [(0, 96, 64), (48, 48, 67)]),
        ("E4 & C2 D2|G", [(0, 24, 60), (0, 48, 64), (24, 24, 62), (48, 12, 67)]),
        ("E [L:1/8] F G [M:2/4]|A4|", [(0, 12, 64), (12, 6, 65), (18, 6, 67), (24, 24, 69)]),
    ],
)
def test_times_of_a_tune(tmp_path: Path, text: str, notes: list[tuple[int, int, int]]) -> None:
    found = [tuple(map(int, row[:3])) for row in read_abc(tmp_path, HEAD + "K:C\n" + text).notes]
    assert found[: len(notes)] == notes


@pytest.mark.parametrize(
    "body",
    [
        "K:C\n[V:1]EF|GA|\n[V:2]C,D,|E,F,|",
        "V:1\nV:2\nK:C\nV:1\nEF|GA|\nV:2\nC,D,|E,F,|",
        "V:1\nV:2 octave=-1\nK:C\nV:1\nEF|\nV:2\nCD|\nV:1\nGA|\nV:2\nEF|",
        "K:C\nV:1\nEF|GA|\nV:2 clef=bass\nC,D,|E,F,|",
    ],
)
def test_voices_sound_together(tmp_path: Path, body: str) -> None:
    piece = read_abc(tmp_path, f"X:1\nM:2/4\nL:1/4\n{body}")
    assert sounds(piece) == sorted(steps(64, 65, 67, 69) + steps(48, 50, 52, 53))


@pytest.mark.parametrize(
    ("text", "tempos"),
    [
        ("Q:1/4=90\nK:C\nCDEF|[Q:1/4=45]CDEF|", [(0, 666_667), (48, 1_333_333)]),
        ("Q:1/4 = 144\nK:C\nC|", [(0, 416_667)]),
        ("Q:3/8=80\nK:C\nC|", [(0, 500_000)]),
        ('Q:"Lively" 1/4=120 "ish"\nK:C\nC|', [(0, 500_000)]),
        ("Q:60\nK:C\nC|", [(0, 1_000_000)]),
        ('Q:"Adagio"\nK:C\nC|', [(0, 1_016_949)]),
        ("K:C\nCDEF|\nQ:1/2=60\nCDEF|", [(0, 600_000), (48, 500_000)]),
    ],
)
def test_tempos_of_a_tune(tmp_path: Path, text: str, tempos: list[tuple[int, int]]) -> None:
    assert midi.frame_rows(read_abc(tmp_path, HEAD + text).frame)[0] == tempos


@pytest.mark.parametrize(
    ("text", "programs"),
    [
        ("%%MIDI program 40\nK:C\nC", {40}),
        ("K:C\n%%MIDI program 1 73\nC", {73}),
        ("K:C\nC[I:MIDI program 12]D", {0, 12}),
        ("V:1\n%%MIDI program 40\nV:2\n%%MIDI program 41\nK:C\nV:1\nC|\nV:2\nE|", {40, 41}),
        ("K:C\n%%MIDI channel 10\nC,", {midi.DRUMS}),
    ],
)
def test_programs_of_a_tune(tmp_path: Path, text: str, programs: set[int]) -> None:
    assert {int(program) for program in read_abc(tmp_path, HEAD + text).notes[:, midi.PROGRAM]} == programs


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig", "utf-16"])
def test_a_tune_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = f"X:1\nT:Näcken på ön\n{HEAD[4:]}K:C\nEG|\n"
    assert sounds(read_abc(tmp_path, text.encode(encoding))) == steps(64, 67)


def test_a_book_contains_its_tunes_without_text() -> None:
    book = (
        "A bad book\nM:3/4\nL:1/4\n\nabc | a preface |\n\nX:1\nT:One\nK:C\nEFG|\n\nA fade |\n\nX:2\nT:Two\nK:C\nA3|\r\n"
    )
    found = abc.tunes(book.encode())
    assert [[note.pitch for track in tune.tracks for note in track.notes] for tune in found] == [[64, 65, 67], [69]]
    assert [metre.numerator for tune in found for metre in tune.time_signatures] == [3, 3]


def names(piece: midi.Piece) -> list[tuple[str, int, int]]:
    """Name, program and number of notes of each track."""
    assert piece.tracks is not None
    count = [int((piece.tracks.home == i).sum()) for i in range(len(piece.tracks.events.tracks))]
    return [(one.name, one.program, n) for one, n in zip(piece.tracks.events.tracks, count, strict=True)]


def test_voices_are_tracks_by_name(tmp_path: Path) -> None:
    text = 'V:1 clef=bass snm="x" name="Low Whistle"\nV:Fiddle\nV:3\nK:C\n[V:1]CDEF|\n[V:Fiddle]GABc|\n[V:3]z2 ab|\n'
    assert names(read_abc(tmp_path, HEAD + text)) == [("Low Whistle", 0, 4), ("Fiddle", 0, 4), ("", 0, 2)]


def test_a_metre_that_midi_cannot_express_is_ignored(tmp_path: Path) -> None:
    assert sounds(read_abc(tmp_path, "X:1\nM:300/8\nL:1/4\nK:C\nE|G|")) == steps(64, 67)


@pytest.mark.parametrize(
    "text", ["P:(A9999)9999\nK:C\nP:A\nC|", "K:C\nC" + "|Z9999" * 11, "K:C\nZ9999|" + "[M:200/1]Z999|" * 3 + "C"]
)
def test_more_bars_than_any_tune_has_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ReadError, match=r"more than 1?00?,000|later than 200,000"):
        read_abc(tmp_path, HEAD + text)


def test_keys_of_tunes() -> None:
    names = {"C": (0, 0), "F#m": (3, 1), "Bb": (-2, 0), "D dorian": (0, 0), "EMIN": (1, 1), "Cb": (-7, 0)}
    found = {name: abc_fields.key(name) for name in names}
    assert {name: (key.sharps, key.minor) for name, key in found.items() if key is not None} == names
    assert abc_fields.key("clef=bass") is None


@pytest.mark.parametrize(
    ("marks", "order"),
    [
        ([Marks(), Marks(times=2), Marks(), Marks(times=2)], [0, 1, 0, 1, 2, 3, 2, 3]),
        ([Marks(forward=True, times=3), Marks()], [0, 0, 0, 1]),
        ([Marks(forward=True), Marks()], [0, 1]),
        ([Marks(), Marks(signs=frozenset({"fine"})), Marks(jump="capo", until="fine")], [0, 1, 2, 0, 1]),
        (
            [
                Marks(),
                Marks(signs=frozenset({"segno", "to coda"})),
                Marks(jump="segno", until="coda"),
                Marks(signs=frozenset({"coda"})),
            ],
            [0, 1, 2, 1, 3],
        ),
        ([Marks(), Marks(endings=frozenset({1})), Marks(endings=frozenset({2}))], [0, 1, 2]),
    ],
)
def test_the_order_of_bars(marks: list[Marks], order: list[int]) -> None:
    assert bars.unfold(marks) == order


def test_a_tie_goes_past_another_voice() -> None:
    def sound(start: int, length: int, tie: str) -> bars.Sound:
        return bars.Sound(Fraction(start), Fraction(length), 60, 0, 80, tie)

    found = bars.joined([sound(0, 4, "start"), sound(2, 1, ""), sound(4, 4, "stop")])
    assert [(int(each.start), int(each.length)) for each in found] == [(0, 8), (2, 1)]


TIME = "<time><beats>4</beats><beat-type>4</beat-type></time>"


def note(pitch: str, length: int = 4, extra: str = "") -> str:
    written = f"<pitch><step>{pitch[0]}</step><octave>{pitch[1]}</octave></pitch>"
    return f"<note>{written}<duration>{length}</duration>{extra}<voice>1</voice></note>"


def attributes(extra: str = "", fifths: int = 0) -> str:
    key = f"<key><fifths>{fifths}</fifths></key>"
    return f"<attributes><divisions>4</divisions>{key}{TIME}{extra}</attributes>"


def transpose(diatonic: int, chromatic: int) -> str:
    return f"<transpose><diatonic>{diatonic}</diatonic><chromatic>{chromatic}</chromatic></transpose>"


def score(*parts: list[str], listed: str = "") -> str:
    """A score of parts, each a list of measures."""
    names = "".join(
        f"<score-part id='P{index}'><part-name>P</part-name>{listed}</score-part>" for index in range(len(parts))
    )
    music = "".join(
        f"<part id='P{index}'>"
        + "".join(f"<measure number='{number}'>{measure}</measure>" for number, measure in enumerate(part, 1))
        + "</part>"
        for index, part in enumerate(parts)
    )
    return f"<?xml version='1.0'?><score-partwise><part-list>{names}</part-list>{music}</score-partwise>"


def test_a_pickup_beside_a_rest_of_the_measure() -> None:
    rests = [f"{attributes()}<note><rest measure='yes'/><duration>{length}</duration></note>" for length in (8, 16)]
    piece = midi.read(score(rests, [attributes() + note("A4") * 2, note("B4") * 4]).encode())
    assert sounds(piece) == steps(69, 69, 71, 71, 71, 71)


def test_both_staves_of_a_part_sound() -> None:
    staves = "<staves>2</staves>"
    measure = note("A4", 16, "<staff>1</staff>") + "<backup><duration>16</duration></backup>"
    measure += note("C3", 16, "<staff>2</staff>").replace("<voice>1", "<voice>5")
    measure = measure.replace("<staff>1</staff><voice>1</voice>", "<voice>1</voice><staff>1</staff>")
    assert sounds(midi.read(score([attributes(staves) + measure]).encode())) == [(0, 48), (0, 69)]


def test_a_second_repeat_without_its_beginning() -> None:
    back = "<barline location='right'><repeat direction='backward'/></barline>"
    measures = [attributes() + note("A4", 16) + back, note("B4", 16), note("C5", 16) + back]
    assert [pitch for _, pitch in sounds(midi.read(score(measures).encode()))] == [69, 69, 71, 72, 71, 72]


def test_a_transposition_that_changes() -> None:
    measures = [attributes(transpose(-4, -7), 1) + note("D5", 16)]
    measures += [f"<attributes>{transpose(1, 2)}</attributes>" + note("D5", 16), note("E5", 16)]
    piece = midi.read(score(measures).encode())
    assert sounds(piece) == [(0, 67), (48, 76), (96, 78)]
    assert midi.frame_rows(piece.frame)[2] == [(0, 0, 0)]


def test_the_key_is_that_of_the_first_part_with_a_key() -> None:
    drums = [f"<attributes><divisions>4</divisions>{TIME}</attributes>" + note("C4", 16)]
    lead = [attributes(transpose(-5, -9), 5) + note("A4", 16)]
    assert midi.frame_rows(midi.read(score(drums, lead).encode()).frame)[2] == [(0, 2, 0)]


@pytest.mark.parametrize(
    ("words", "sound", "tempo"),
    [
        ("ca. 80", "<sound tempo='80'/>", 750_000),
        ("96-104", "", 600_000),
        ("90 to 100", "<sound tempo='120'/>", 500_000),
    ],
)
def test_a_tempo_in_words(words: str, sound: str, tempo: int) -> None:
    mark = f"<metronome><beat-unit>quarter</beat-unit><per-minute>{words}</per-minute></metronome>"
    direction = f"<direction><direction-type>{mark}</direction-type>{sound}</direction>"
    piece = midi.read(score([attributes() + direction + note("A4", 16)]).encode())
    assert midi.frame_rows(piece.frame)[0] == [(0, tempo)]


def test_a_measure_with_a_gap_at_its_end_keeps_its_length() -> None:
    gap = note("A4") + "<forward><duration>12</duration></forward>"
    piece = midi.read(score([attributes() + gap, note("B4", 16)]).encode())
    assert sounds(piece) == [(0, 69), (48, 71)]
    assert midi.frame_rows(piece.frame)[1] == [(0, 4, 4)]


@pytest.mark.parametrize("number", [256, 2**31])
def test_impossible_numbers_allocate_no_memory(number: int) -> None:
    ending = f"<barline location='left'><ending number='1-{number}' type='start'/></barline>"
    times = attributes().replace("<beats>4", f"<beats>{number}")
    root = musicxml.plain(score([times + ending + note("A4", 16), attributes() + note("B4", 16)]).encode())
    assert [time.findtext("beats") for time in root.iter("time")] == ["4"]
    assert [ending.get("number") for ending in root.iter("ending")] == ["1"]
    piece = midi.read(score([times + ending + note("A4", 16), attributes() + note("B4", 16)]).encode())
    assert sounds(piece) == [(0, 69), (48, 71)]


def test_each_note_of_a_kit_has_its_drum() -> None:
    listed = "".join(
        f"<score-instrument id='I{drum}'><instrument-name>x</instrument-name></score-instrument>"
        for drum in (36, 42, 49)
    ) + "".join(
        f"<midi-instrument id='I{drum}'><midi-channel>10</midi-channel><midi-unpitched>{drum + 1}</midi-unpitched>"
        "</midi-instrument>"
        for drum in (36, 42, 49)
    )
    place = "<unpitched><display-step>E</display-step><display-octave>4</display-octave></unpitched>"
    hit = f"<note>{{}}{place}<duration>4</duration><instrument id='I{{}}'/><voice>1</voice></note>"
    measure = hit.format("", 36) + hit.format("<chord/>", 49) + hit.format("", 42)
    piece = midi.read(score([attributes() + measure], listed=listed).encode())
    assert sounds(piece) == [(0, 36), (0, 49), (12, 42)]
    assert {int(program) for program in piece.notes[:, midi.PROGRAM]} == {midi.DRUMS}


def test_a_chord_is_tied_note_by_note() -> None:
    def chord(kind: str) -> str:
        return note("C4", 16, f"<tie type='{kind}'/>") + note("E4", 16).replace("<note>", "<note><chord/>")

    piece = midi.read(score([attributes() + chord("start"), chord("stop")]).encode())
    assert [tuple(map(int, row[:3])) for row in piece.notes] == [(0, 96, 60), (0, 48, 64), (48, 48, 64)]


def test_parts_are_tracks_by_name(tmp_path: Path) -> None:
    text = score([attributes() + note("A4", 8) * 2], [attributes() + note("A4", 8)], [attributes() + note("C4", 16)])
    for name in ("Violin I", "Violin\n II", "Gesang"):
        text = text.replace("<part-name>P<", f"<part-name>{name}<", 1)
    piece = midi.read(text.encode())
    assert [x[0] for x in names(piece)] == ["Gesang", "Violin I", "Violin II"], "the melody is the first"
    assert sounds(piece) == [(0, 60), (0, 69), (24, 69)]
    humdrum = tmp_path / "duo.krn"
    humdrum.write_text('**kern\t**kern\n*I"Cello\t*I"Violin I\n4C\t4c\n*-\t*-\n')
    assert {x[0] for x in names(midi.read(humdrum))} == {"Cello", "Violin I"}


def test_a_score_in_order_of_time() -> None:
    measures = "".join(f"<measure number='{k}'><part id='P0'>{text}</part></measure>" for k, text in enumerate(
        [attributes() + note("A4", 16), note("B4", 16)]))  # fmt: skip
    head = "<part-list><score-part id='P0'><part-name>P</part-name></score-part></part-list>"
    piece = midi.read(f"<?xml version='1.0'?><score-timewise>{head}{measures}</score-timewise>".encode())
    assert sounds(piece) == [(0, 69), (48, 71)]


@pytest.mark.parametrize("declared", ["UTF-16", "UTF-8"])
def test_utf_16_in_an_archive(declared: str) -> None:
    text = score([attributes() + note("A4", 16)]).replace("'1.0'?>", f"'1.0' encoding='{declared}'?>", 1)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("score.xml", text.encode("utf-16"))
    assert sounds(midi.read(packed.getvalue())) == [(0, 69)]


SPLIT = """**kern	**kern
*M4/4	*M4/4
=1	=1
*^	*
1C	2E	2c
*	*^	*
.	4G	4B	2d
.	4F	4A	.
*v	*v	*v	*
=2	=2
*	*^
1D	2e	2g
.	4f	2a
.	4d	.
*	*v	*v
==	==
*-	*-
"""


def test_spines_that_split_again_and_join_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.krn"
    path.write_text(SPLIT)
    first = [(0, 48), (0, 52), (0, 60), (24, 55), (24, 59), (24, 62), (36, 53), (36, 57)]
    second = [(48, 50), (48, 64), (48, 67), (72, 65), (72, 69), (84, 62)]
    assert sounds(midi.read(path)) == sorted(first + second)


def test_spines_that_do_not_split_stay_as_they_are() -> None:
    text = "**kern\n4c\n*-\n"
    assert humdrum.plain(text) == text
