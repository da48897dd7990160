"""Seeds of music files for fuzzing: MIDI, MusicXML, compressed MusicXML, Humdrum and ABC.

Scope: valid, unusual and hostile files, made by our own code or written out below. Out of scope: their readers.
"""

from __future__ import annotations

from functools import cache

import fuzz_inputs as inputs
import numpy as np

from seqvae.music import piece as midi

_HEAD = "4d546864 00000006 0001 0001 01e0 "


def _track(events: str, head: str = _HEAD) -> bytes:
    data = bytes.fromhex(events)
    return bytes.fromhex(head) + b"MTrk" + len(data).to_bytes(4, "big") + data


EDGE_CASES = [
    _track("00 90 3c 40  60 3c 00  00 3e 40  60 3e 00  00 ff2f00"),  # running status
    _track("00 3c 40  00 ff2f00"),  # running status without a status before it
    _track("00 90 3c 40  60 80 3c 00  00 ff2f00", _HEAD.replace("01e0", "0000")),  # zero ticks per quarter note
    _track("00 90 3c 40  60 80 3c 00  00 ff2f00", _HEAD.replace("01e0", "e728")),  # SMPTE frames
    _track("00 90 3c 40  60 80 3c 00  00 ff2f00", _HEAD.replace("0001 0001", "0002 0001")),  # format 2
    _track("00 90 3c 40  60 80 3c 00  00 ff2f00", _HEAD.replace("0001 0001", "0000 ffff")),  # missing tracks
    _track("ffffff7f 90 3c 40  ffffff7f 80 3c 00  00 ff2f00"),  # the longest delta times
    _track("8080808080 00 90 3c 40  00 ff2f00"),  # a delta time of too many bytes
    _track("00 90 3c 40  10 90 3c 40  10 80 3c 00  10 80 3c 00  00 ff2f00"),  # a note within the same note
    _track("00 90 3c 40  00 90 40 40  60 ff2f00"),  # notes without an end
    _track("00 80 3c 40  60 80 3c 00  00 ff2f00"),  # ends without a note
    _track("00 90 3c 40  60 80 3c 00"),  # a track without an end
    _track("00 90 3c"),  # cut within an event
    _track("00 f0 05 7e 7f 09 01 f7  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # system exclusive
    _track("00 f0 03 43 12 00  81 48 f7 02 43 f7  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # the same in two parts
    _track("00 f0 ff ff ff 7f 00  00 ff2f00"),  # system exclusive longer than the file
    _track("00 ff 51 03 00 00 00  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # a quarter note of zero microseconds
    _track("00 ff 51 03 ff ff ff  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # the slowest tempo
    _track("00 ff 51 09 07 a1 20  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # a tempo of nine bytes
    _track("00 ff 58 04 00 00 00 00  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # 0/1
    _track("00 ff 58 04 ff ff ff ff  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # 255/2^255
    _track("00 ff 58 04 01 40 00 00  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # 1/2^64
    _track("00 ff 59 02 7f 07  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # 127 sharps, and neither major nor minor
    _track("00 c0 ff  00 90 ff ff  60 80 ff ff  00 ff2f00"),  # data bytes with the high bit
    _track("00 99 24 40  30 89 24 00  00 e0 00 40  00 b0 40 7f  00 ff2f00"),  # drums, a bend, a pedal
    _track("00 ff 03 05 ff fe 00 80 c0  00 90 3c 40  60 80 3c 00  00 ff2f00"),  # a track name that is not valid text
    _track("00 ff2f00")[:-2],  # lengths beyond the end
    _track("00 ff2f00") + b"MTrk\xff\xff\xff\xff",
    b"MThd\0\0\0\6\0\1\0\1\1\xe0XXXX\0\0\0\4abcd" + _track("00 90 3c 40 60 80 3c 00 00 ff2f00")[14:],  # unknown chunk
    b"RIFF\0\0\0\0RMIDdata\0\0\0\0" + _track("00 90 3c 40  60 80 3c 00  00 ff2f00"),
    b"MThd",
    b"MThd\xff\xff\xff\xff",
    b"",
]


@cache
def _piece() -> midi.Piece:
    """Synthetic music of two bars for three instruments."""
    rows = [[12 * i, 12, 48 + 5 * i % 24, 33, 80] for i in range(8)]
    rows += [[6 * i, 3, 60 + 7 * i % 24, 0, 60 + i] for i in range(16)]
    rows += [[12 * i, 1, 36 + 2 * (i % 2), midi.DRUMS, 100] for i in range(8)]
    frame = midi.make_frame(([(0, 500_000), (48, 400_000)], [(0, 4, 4), (48, 3, 4)], [(0, 1, 0)]))
    return midi.Piece(np.array(rows, np.int32), np.array([0, 48, 84, 96], np.int32), frame, "band")


def midi_seeds() -> list[bytes]:
    piece = _piece()
    return [midi.to_bytes(midi.to_score(piece.notes, piece.frame)), *EDGE_CASES]


_NOTE = "<note><pitch><step>{}</step><octave>4</octave></pitch><duration>{}</duration><voice>1</voice>{}</note>"
_TYPE = (
    '<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 4.0 Partwise//EN" "http://www.musicxml.org/x.dtd"{}>'
)
_SCORE = (
    '<?xml version="1.0" encoding="UTF-8"?>{}<score-partwise version="4.0"><part-list><score-part id="P1">'
    "<part-name>{}</part-name><score-instrument id='I1'><instrument-name>Oboe</instrument-name></score-instrument>"
    "<midi-instrument id='I1'><midi-channel>1</midi-channel><midi-program>69</midi-program></midi-instrument>"
    "</score-part></part-list><part id='P1'><measure number='1'><attributes><divisions>2</divisions><key><fifths>-1"
    "</fifths><mode>minor</mode></key><time><beats>3</beats><beat-type>4</beat-type></time><transpose><chromatic>-2"
    "</chromatic></transpose></attributes><direction><sound tempo='96'/></direction><barline location='left'><repeat "
    "direction='forward'/></barline>{}</measure><measure number='2'>{}<barline location='right'><repeat "
    "direction='backward' times='2'/></barline></measure></part></score-partwise>"
)
_LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(10))


def xml_seeds() -> list[bytes]:
    one = _NOTE.format("C", 2, "<tie type='start'/>") + _NOTE.format("E", 2, "<chord/>") + _NOTE.format("G", 4, "")
    two = _NOTE.format("C", 2, "<tie type='stop'/>") + "<backup><duration>2</duration></backup>"
    two += _NOTE.format(
        "A", 3, "<time-modification><actual-notes>3</actual-notes><normal-notes>2</normal-notes></time-modification>"
    )
    whole = _SCORE.format(_TYPE.format(""), "Oboe", one, two)
    kinds = ["<!ENTITY x SYSTEM 'file:///etc/passwd'>", "<!ENTITY % x SYSTEM 'http://localhost:9/x'> %x;", _LAUGHS]
    hostile = [
        _SCORE.format(_TYPE.format(f" [{kind}]"), name, one, two)
        for kind, name in zip(kinds, ("&x;", "x", "&l9;"), strict=True)
    ]
    return [page.encode() for page in [whole, *hostile]]


_CONTAINER = b"""<?xml version="1.0"?><container><rootfiles><rootfile full-path="score.xml"/></rootfiles></container>"""


def mxl_seeds() -> list[bytes]:
    score, *hostile = xml_seeds()
    good = {"META-INF/container.xml": _CONTAINER, "score.xml": score}
    return [
        *(inputs.packed(good | {"score.xml": page}) for page in [score, score, *hostile]),
        inputs.packed({"score.xml": score}),
        inputs.packed(good | {"META-INF/container.xml": _CONTAINER.replace(b"score.xml", b"../../../etc/passwd")}),
        inputs.packed({"../../../tmp/seqvae-fuzz-evil.xml": score}),
        inputs.packed(good | {"score.xml": score + b" " * 30_000_000}),  # compresses to a thousandth
    ]


HUMDRUM = [
    b'**kern\t**kern\n*Ivox\t*I"Violino 1\n*M4/4\t*M4/4\n*k[b-]\t*k[b-]\n*MM96\t*\n=1\t=1\n4c\t[8ee-\n4d 4f\t8ee-]\n'
    b"*^\t*\n4G\t4r\t4.c\n.\t.\t8d\n*v\t*v\t*\n=2:|!\t=2:|!\n1c;\t1g\n==\t==\n*-\t*-\n",
    b"!!!COM: Nobody\n**kern\n*>[A,A,B]\n*>A\n*M3/8\n=1\n8c\n12d\n12e\n12f\n*>B\n=2\nq8g\n4.a\n==\n*-\n",
]
ABC = [
    b"X:1\nT:Reel\nM:4/4\nL:1/8\nQ:1/4=120\nK:Gmix\n|:G2BG dGBG|(3ABc d2 [ceg]2 z2:|\n|1 ^f=g_a'b, | 2 A4- A4|]\n",
    b"X:1\nT:One\nM:6/8\nK:D\nDFA d3|\n\nX:2\nT:Two\nM:C|\nK:Am\nV:1\nA2 c>B|\nV:2 clef=bass\nA,2 E,2|\n",
]
