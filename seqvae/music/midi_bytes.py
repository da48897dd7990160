"""Repair of MIDI bytes before a library reads them.

Scope: wrappers of a file (RIFF, MacBinary), chunks and their lengths, running status, messages other than music, notes
without a note-off, and patterns of type 2. Out of scope: notes on the grid, tempos and metres (music/piece.py).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from seqvae.errors import ReadError

MAX_EVENTS = 4_000_000
"""Limit of messages in a track; a million notes are two million messages."""
END_OF_TRACK = 4
"""Bytes of the end-of-track event; a file that lacks only these bytes has all its music."""

_ANOTHER_COPY = "get another copy of the file, or leave it out"
_HEADER = b"MThd\x00\x00\x00"
_WRAPPED = 4096
"""Limit of bytes before the header, except in RIFF files."""
_LAST_TICK = (1 << 31) - 1
_LONGEST_DELTA = (1 << 28) - 1
_WIRE = {0xF1: 1, 0xF2: 2, 0xF3: 1}
"""Data bytes of messages that are valid on a cable but not in a file."""

_KARAOKE = re.compile(rb"@[IKLTVW]|[\\/]\w")
"""Texts of karaoke files: marks such as `@LENGL`, and words on a new line or page."""

Event = tuple[int, bytes]
"""Ticks from the start of the track, and a message with its status byte."""


def tidy(content: bytes, label: str | Path, most_beats: int) -> bytes:
    """Rewrite a file for any reader: only header and tracks, a status for every message, a note-off for every note.

    Libraries trust lengths in a file, and a length beyond its end can crash the process, so they get checked files
    only. A note without a note-off lasts until the next note on its key, else to the end of its track. Patterns of
    type 2 follow one another.

    Raises:
        ReadError: `content` is not a MIDI file, is cut short or damaged, or has a note after `most_beats` quarters.
    """
    content = _unwrapped(content, label)
    if len(content) < 14:
        raise ReadError(label, "the file is cut short", _ANOTHER_COPY)
    size, kind, count, division = struct.unpack(">IHHH", content[4:14])
    if size < 6 or kind > 2 or division == 0:
        raise ReadError(label, "the MIDI header is damaged", _ANOTHER_COPY)
    if division >= 0x8000:
        raise ReadError(label, "its times are SMPTE film frames, not beats", "export it with ticks per quarter note")
    last = min(most_beats * division, _LAST_TICK)
    start, written = 0, []
    for track in _tracks(content, 8 + size, count, label):
        events, end = _bounded(*_events(track, label), last - start, last // division, label)
        written.append(_written(_ended(_sung(events), end), end, start))
        if kind == 2:
            start += end
    header = struct.pack(">4sIHHH", b"MThd", 6, min(kind, 1), len(written), division)
    return header + b"".join(b"MTrk" + len(track).to_bytes(4, "big") + track for track in written)


def title(content: bytes) -> str:
    """The name of the first track of a tidy file of type 1 if that track has no notes, else empty."""
    if content[8:10] != b"\x00\x01":
        return ""
    events = [message for _, message in _events(next(iter(_tracks(content, 14, 1, "")), b""), "")[0]]
    names = [message[_number(message, 2, "")[1] :] for message in events if message[:2] == b"\xff\x03"]
    return names[0].decode(errors="replace") if names and not any(0x80 <= x[0] < 0xA0 for x in events) else ""


def _unwrapped(content: bytes, label: str | Path) -> bytes:
    """The content from the MIDI header on, without the wrapper of another system."""
    if content[:4] == b"MThd":
        return content
    riff = content[:4] == b"RIFF" and content[8:12] == b"RMID"
    at = content.find(_HEADER, 0, len(content) if riff else _WRAPPED)
    if at < 0:
        raise ReadError(label, "it is not a MIDI file", "give a MIDI file, or a score with its own suffix")
    return content[at:]


def _tracks(content: bytes, at: int, count: int, label: str | Path) -> list[bytes]:
    """The events of at most `count` tracks, from the first chunk at `at` on."""
    tracks: list[bytes] = []
    while len(tracks) < count and at + 8 <= len(content):
        track = content[at : at + 4] == b"MTrk"  # the standard says to skip chunks of other kinds
        end = at + 8 + int.from_bytes(content[at + 4 : at + 8], "big")
        missing = end - len(content)
        if missing > (END_OF_TRACK if track else 0):
            reason = f"cut short, {missing:,} bytes are missing" if track else "damaged between its tracks"
            raise ReadError(label, f"the file is {reason}", _ANOTHER_COPY)
        if track:
            tracks.append(content[at + 8 : end])
        at = end
    return tracks


def _events(track: bytes, label: str | Path) -> tuple[list[Event], int]:
    """The messages of a track, and the tick of its end. Sysex and messages undefined in files are left out.

    Running status continues after sysex and meta events, as in players. A message cut short at the end is left out.
    """
    events: list[Event] = []
    at = time = status = 0
    while at < len(track):
        delta, at = _number(track, at, label)
        time += delta
        if at >= len(track):
            break
        byte = track[at]
        if byte >= 0x80:
            at += 1
        elif status:
            byte = status
        else:
            raise _damaged(label, f"an event without a status after {len(events):,} events")
        if byte < 0xF0:
            status, begin = byte, at
            at += 1 if 0xC0 <= byte < 0xE0 else 2
            if at <= len(track):
                events.append((time, bytes((byte,)) + track[begin:at]))
        elif byte == 0xFF:
            begin = at
            if track[at : at + 1] in (b"", b"\x2f"):
                break
            at = _after(track, at + 1, label)
            message = track[begin:at]
            events.append((time, b"\xff" + (message if message.isascii() else _text(message))))
        elif byte in (0xF0, 0xF7):
            at = _after(track, at, label)
        else:
            at += _WIRE.get(byte, 0)
        if len(events) > MAX_EVENTS:
            raise ReadError(label, f"a track has more than {MAX_EVENTS:,} events", "cut it into pieces first")
    return events, time


def _text(message: bytes) -> bytes:
    """A meta event without its status byte; text that is not UTF-8 is read as Latin-1 and written as UTF-8."""
    length, at = _number(message, 1, "")
    try:
        text = message[at:].decode().encode()
    except UnicodeDecodeError:
        text = message[at:].decode("latin-1").encode()
    if not 1 <= message[0] <= 15 or len(text) == length:
        return message
    return (
        message[:1]
        + bytes(0x80 | len(text) >> shift & 0x7F for shift in (21, 14, 7))
        + bytes((len(text) & 0x7F,))
        + text
    )


def _after(track: bytes, at: int, label: str | Path) -> int:
    """End of the data whose length is stored at `at`."""
    length, at = _number(track, at, label)
    if at + length > len(track):
        raise _damaged(label, "a message goes on beyond the end of its track")
    return at + length


def _number(track: bytes, at: int, label: str | Path) -> tuple[int, int]:
    """The variable-length number at `at`, up to four bytes of seven bits, and its end; 0 at the end of the track."""
    value = 0
    for end in range(at, min(at + 4, len(track))):
        byte = track[end]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, end + 1
    if at + 4 <= len(track):
        raise _damaged(label, "a number has more than four bytes")
    return 0, len(track)


def _damaged(label: str | Path, reason: str) -> ReadError:
    return ReadError(label, f"the MIDI data is damaged ({reason})", _ANOTHER_COPY)


def _bounded(
    events: list[Event], end: int, last: int, beats: int, label: str | Path
) -> tuple[list[Event], int]:  # fmt: skip
    """Drop events after the tick `last`; raises ReadError if there are notes among them."""
    if end <= last:
        return events, end
    if any(time > last and message[0] < 0xA0 for time, message in events):
        raise ReadError(label, f"it is longer than {beats:,} quarter notes", "cut it into pieces first")
    return [event for event in events if event[0] <= last], last


def _ended(events: list[Event], end: int) -> list[Event]:
    """Add missing note-offs: on keys that lack one, a note ends at the next note-on or note-off of the key."""
    sounding: dict[tuple[int, int], int] = {}
    loose: set[tuple[int, int]] = set()
    for _, message in events:
        kind = message[0] & 0xF0
        if kind in (0x80, 0x90):
            key = message[0] & 0x0F, message[1]
            count = sounding.get(key, 0)
            sounding[key] = count + 1 if kind == 0x90 and message[2] else max(0, count - 1)
        elif kind == 0xB0 and message[1] in (120, 123):  # all sound off, all notes off
            loose |= {key for key, count in sounding.items() if count and key[0] == message[0] & 0x0F}
    loose |= {key for key, count in sounding.items() if count}
    if not loose:
        return events
    found: list[Event] = []
    held: set[tuple[int, int]] = set()

    def stop(key: tuple[int, int], time: int) -> None:
        if key in held:
            held.remove(key)
            found.append((time, bytes((0x80 | key[0], key[1], 0))))

    for time, message in events:
        kind, key = message[0] & 0xF0, (message[0] & 0x0F, message[1])
        if kind in (0x80, 0x90) and key in loose:
            stop(key, time)
            if kind == 0x80 or not message[2]:
                continue
            held.add(key)
        elif kind == 0xB0 and message[1] in (120, 123):
            for other in sorted(held):
                if other[0] == key[0]:
                    stop(other, time)
        found.append((time, message))
    for key in sorted(held):
        stop(key, end)
    return found


def _sung(events: list[Event]) -> list[Event]:
    """The events of a karaoke track (.kar) with its texts as lyrics, by which readers know the words of a song."""
    texts = [message[_number(message, 2, "")[1] :] for _, message in events if message[:2] == b"\xff\x01"]
    if not any(_KARAOKE.match(text) for text in texts):
        return events
    return [(time, b"\xff\x05" + message[2:] if message[:2] == b"\xff\x01" else message) for time, message in events]


def _written(events: list[Event], end: int, start: int) -> bytes:
    """The bytes of a track whose time starts at the tick `start`."""
    track, before = bytearray(), -start
    for time, message in [*events, (end, b"\xff\x2f\x00")]:
        delta, before = time - before, time
        while delta > _LONGEST_DELTA:
            track += b"\xff\xff\xff\x7f\xff\x01\x00"  # an empty text divides a delta that is too long
            delta -= _LONGEST_DELTA
        if delta > 0x7F:
            shifts = (21, 14, 7) if delta >> 21 else (14, 7) if delta >> 14 else (7,)
            track += bytes(0x80 | delta >> shift & 0x7F for shift in shifts)
        track.append(delta & 0x7F)
        track += message
    return bytes(track)
