"""Tracks of a file without their notes: names, drum kits, controllers, pitch bends, lyrics; a file's title and markers.

Scope: symusic scores whose tracks have no notes; track names that mark a melody.
Out of scope: notes and the grid (music/piece.py), and the choice of notes that are kept (music/tracks.py).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import (
    ControlChangeTickList,
    PitchBendTickList,
    ScoreTick,
    TextMetaTick,
    TextMetaTickList,
    TrackTick,
)

CHANNELS = 15
"""Channels of a MIDI file beside the drum channel: the limit of tracks with a channel of their own."""
SUSTAIN = 64
"""Number of the controller that is the sustain pedal."""
_MANY = 5  # words in a name: a longer name is a remark
_BANKS = (0, 32)  # controllers that select the sound bank of a program

# fmt: off
_MELODY = frozenset({
    "melody", "melodies", "melodie", "melodia", "melodi", "vocal", "vocals", "vocalist", "vokal", "leadvocal",
    "leadvocals", "leadvox", "sing", "singer", "singing", "tune", "gesang", "singstimme", "canto", "cantante", "chant",
    "chanteur", "chanteuse", "voz", "voce", "voix", "zang", "мелодия", "вокал", "голос",
})
_OF_AN_INSTRUMENT = frozenset({"voice", "vox", "lead"})  # words that names of sounds contain too
_INSTRUMENTS = frozenset({
    "synth", "synthesised", "synthesized", "syn", "square", "sawtooth", "saw", "calliope", "chiff", "charang", "fifths",
    "guitar", "guitars", "gtr", "gtrs", "git", "guit", "guita", "guitarra", "guitare", "gitarre", "banjo", "fiddle",
    "violin", "string", "strings", "acoustic", "piano", "pno", "keys", "organ", "org", "sax", "alto", "tenor",
    "trumpet", "tpt", "trombone", "horn", "horns", "brass", "flute", "clarinet", "drum", "drums", "perc", "percussion",
})
_OTHER = frozenset({
    "pad", "pads", "back", "backs", "backing", "backings", "background", "backgrounds", "backup", "up", "bg", "bgv",
    "bgvs", "bv", "bvs", "bkg", "bkgnd", "bk", "choir", "choirs", "coro", "coros", "chor", "choeur", "choeurs",
    "chorus", "harmony", "harmonies", "harm", "counter", "ooh", "oohs", "aah", "aahs", "ahh", "ahhs", "ahs", "doo",
    "doos", "echo", "delay", "fx", "response", "second", "segunda", "doubled", "double", "doubling", "dbl", "support",
    "enhancing", "depth", "extra", "fill", "fills", "acc", "accomp", "accompaniment", "acompanamiento", "chord",
    "chords", "bass", "in", "out", "sheet", "fine", "auto", "unchained", "the", "that", "to", "of", "my", "your",
})
# fmt: on


@dataclass(frozen=True, eq=False)
class Tracks:
    """The tracks of a piece.

    Attributes:
        events: tracks without notes, those named as a melody first, and markers; `midi.TICKS_PER_BEAT` ticks per
            quarter note. The program of a drum track is its kit.
        home: (N,) int32, index of the track of each note of the piece; -1 for none.
        title: the name of the file's first track if that has no notes, which is the title of the song; else empty.
    """

    events: ScoreTick
    home: NDArray[np.int32]
    title: str = ""

    def part(self, rows: NDArray[Any], start: int, end: int) -> Tracks:
        """The tracks of the notes in a mask `(N,)` between two ticks; settings made before `start` carry over."""
        cut = ScoreTick(self.events.ticks_per_quarter)
        for track in self.events.tracks:
            bare = TrackTick(track.name, track.program, track.is_drum)
            controls = track.controls.numpy()
            bare.controls = ControlChangeTickList.from_numpy(*_between(controls, start, end, controls["number"]))
            bends = track.pitch_bends.numpy()
            bare.pitch_bends = PitchBendTickList.from_numpy(*_between(bends, start, end, 0 * bends["time"]))
            bare.lyrics = _texts([(x.time - start, x.text) for x in track.lyrics if start <= x.time < end])
            cut.tracks.append(bare)
        cut.markers = _texts([(x.time - start, x.text) for x in self.events.markers if start <= x.time < end])
        return Tracks(cut, self.home[rows], self.title)


def _between(
    values: Mapping[str, NDArray[Any]], start: int, end: int, keys: NDArray[Any]
) -> list[NDArray[Any]]:  # fmt: skip
    """Columns of events in [start, end); the last event of each key before `start` is moved to time 0."""
    time = values["time"]
    before = np.flatnonzero(time < start)
    last = len(before) - 1 - np.unique(keys[before][::-1], return_index=True)[1]
    rows = np.concatenate([before[np.sort(last)], np.flatnonzero((time >= start) & (time < end))])
    moved = np.maximum(time[rows] - start, 0).astype(np.int32)
    return [moved, *(column[rows] for name, column in values.items() if name != "time")]


def read(score: ScoreTick, ticks: int, beats: int) -> tuple[ScoreTick, list[int]]:
    """The `events` of a score at `ticks` per quarter, and the index there of each of its tracks, -1 without notes.

    Events after `beats` beats are left out. Lyrics of a track without notes go to the previous track if that has the
    same name (symusic reads the lyrics of a track into a track of their own), else to the melody or the first track.
    """
    per_quarter, last = score.ticks_per_quarter, beats * score.ticks_per_quarter
    tracks, out = list(score.tracks), ScoreTick(ticks)
    sounding = [i for i, track in enumerate(tracks) if len(track.notes)]
    order = sorted(sounding, key=lambda i: not is_melody(tracks[i].name))
    place = {i: number for number, i in enumerate(order)}
    homes = [place.get(i, -1) for i in range(len(tracks))]

    def on_grid(time: Any) -> Any:
        return (2 * ticks * time + per_quarter) // (2 * per_quarter)

    def columns(found: Any, low: int, high: int) -> list[NDArray[Any]]:
        time, *rest = found.numpy().values()
        inside = (time >= 0) & (time <= last) & (rest[-1] >= low) & (rest[-1] <= high) & (rest[0] <= max(high, 127))
        return [on_grid(time[inside].astype(np.int64)).astype(np.int32), *(column[inside] for column in rest)]

    lyrics: list[list[tuple[int, str]]] = [[] for _ in order]
    for i, track in enumerate(tracks):
        if order and len(track.lyrics):
            before = homes[i - 1] if i and tracks[i - 1].name == track.name else -1
            at = homes[i] if homes[i] >= 0 else max(0, before)
            lyrics[at] += [(on_grid(x.time), x.text) for x in track.lyrics if 0 <= x.time <= last]
    for i, texts in zip(order, lyrics, strict=True):
        track = TrackTick(tracks[i].name, tracks[i].program, tracks[i].is_drum)
        if len(tracks[i].controls):
            track.controls = ControlChangeTickList.from_numpy(*columns(tracks[i].controls, 0, 127))
        if len(tracks[i].pitch_bends):
            track.pitch_bends = PitchBendTickList.from_numpy(*columns(tracks[i].pitch_bends, -8192, 8191))
        if texts:
            track.lyrics = _texts(sorted(texts, key=lambda row: row[0]))
        out.tracks.append(track)
    out.markers = _texts([(on_grid(x.time), x.text) for x in score.markers if 0 <= x.time <= last])
    return out, homes


def _texts(rows: list[tuple[int, str]]) -> TextMetaTickList:
    return TextMetaTickList([TextMetaTick(at, text) for at, text in rows])


def title(score: ScoreTick) -> str:
    """The name of the first track of a score if it has neither notes nor lyrics, else empty."""
    first = score.tracks[0] if len(score.tracks) else None
    return "" if first is None or len(first.notes) or len(first.lyrics) else first.name.strip()


def is_melody(name: str) -> bool:
    """Whether the name of a track marks it as the melody: `Lead Vocal`, but not `backing vocals` or `Lead 1`.

    Names of sounds (`Voice Oohs`, `Lead 1 (square)`, `Lead Guitar`) and of songs do not.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = "".join(x for x in unicodedata.normalize("NFKD", spaced) if not unicodedata.combining(x))
    words = set(re.findall(r"[^\W\d_]+", plain.lower()))
    if words & _OTHER or len(words) > _MANY:
        return False
    of_sound = words & _INSTRUMENTS or re.search(r"lead \d+ *\(", plain.lower())
    return bool(words & _MELODY) or bool(words & _OF_AN_INSTRUMENT and not of_sound)


def dress(track: TrackTick, like: TrackTick) -> None:
    """Copy name, kit, controllers, bends and lyrics of `like` to a `track` of notes."""
    if like.name.strip():
        track.name = like.name
    if track.is_drum and like.is_drum:
        track.program = like.program
    controls = like.controls.numpy()
    same = (track.program, track.is_drum) == (like.program, like.is_drum)
    rows = np.full(len(controls["time"]), True) if same else ~np.isin(controls["number"], _BANKS)
    track.controls = ControlChangeTickList.from_numpy(*(column[rows] for column in controls.values()))
    track.pitch_bends = like.pitch_bends.copy()
    track.lyrics = like.lyrics.copy()


def sustain(track: TrackTick, events: ScoreTick) -> None:
    """Copy the sustain pedal to a `track` of new notes, from the track of its instrument that uses the pedal most."""
    found: list[list[NDArray[Any]]] = []
    for like in events.tracks:
        if not track.is_drum and not like.is_drum and like.program == track.program:
            controls = like.controls.numpy()
            found.append([column[controls["number"] == SUSTAIN] for column in controls.values()])
    if found:
        track.controls = ControlChangeTickList.from_numpy(*max(found, key=lambda columns: len(columns[0])))


def joined(programs: NDArray[np.int32], home: NDArray[np.int32]) -> NDArray[np.int32]:
    """`home (N,)` of notes, reduced to one home per program if (program, home) pairs outnumber the channels."""
    pairs = np.unique(np.stack([programs, home]), axis=1)
    if np.count_nonzero(pairs[0] < 128) <= CHANNELS:
        return home
    found = home.copy()
    for program in np.unique(programs).tolist():
        mine = programs == program
        found[mine] = home[mine].max()
    return found


# --- on disk ----------------------------------------------------------------------------------------------------------


def arrays(tracks: Tracks) -> dict[str, NDArray[Any]]:
    """Tracks as integer arrays, for `from_arrays`."""
    names = [[track.name, track.program, bool(track.is_drum)] for track in tracks.events.tracks]
    lyrics = [[[x.time, x.text] for x in track.lyrics] for track in tracks.events.tracks]
    markers = [[x.time, x.text] for x in tracks.events.markers]
    about = {"title": tracks.title, "tracks": names, "lyrics": lyrics, "markers": markers}
    rows: dict[str, list[NDArray[Any]]] = {"controls": [], "bends": []}
    for i, track in enumerate(tracks.events.tracks):
        for name, found in (("controls", track.controls.numpy()), ("bends", track.pitch_bends.numpy())):
            columns = [np.full(len(found["time"]), i), found["time"], *([found["number"]] if "number" in found else [])]
            rows[name].append(np.stack([*columns, found["value"]], 1).astype(np.int32))
    return {
        "home": tracks.home,
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "controls": np.concatenate([np.zeros((0, 4), np.int32), *rows["controls"]]),
        "bends": np.concatenate([np.zeros((0, 3), np.int32), *rows["bends"]]),
    }


def from_arrays(stored: Mapping[str, NDArray[Any]], ticks: int) -> Tracks:
    """Inverse of `arrays`."""
    about = json.loads(stored["about"].tobytes())
    controls, bends = (
        np.split(rows, np.searchsorted(rows[:, 0], np.arange(1, len(about["tracks"]))))
        for rows in (stored["controls"], stored["bends"])
    )
    events = ScoreTick(ticks)
    for i, ((name, program, drums), lyrics) in enumerate(zip(about["tracks"], about["lyrics"], strict=True)):
        track = TrackTick(name, program, drums)
        _, time, number, value = controls[i].T
        track.controls = ControlChangeTickList.from_numpy(
            np.ascontiguousarray(time), number.astype(np.uint8), value.astype(np.uint8)
        )
        _, time, value = bends[i].T
        track.pitch_bends = PitchBendTickList.from_numpy(np.ascontiguousarray(time), np.ascontiguousarray(value))
        track.lyrics = _texts([(at, text) for at, text in lyrics])
        events.tracks.append(track)
    events.markers = _texts([(at, text) for at, text in about["markers"]])
    return Tracks(events, stored["home"], about.get("title", ""))
