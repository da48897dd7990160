"""Mutators of inputs for benchmarks/fuzz.py: bytes, text, JSON, MIDI, containers and requests.

Scope: mutations that keep a format's checksums and lengths valid, since a wrong one hides the content behind it. Out of
scope: the readers. All randomness comes from the given generator, so a number reproduces an input.
"""

from __future__ import annotations

import copy
import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

Mutator = Callable[[random.Random, Sequence[bytes]], bytes]

LIMIT = 1 << 18  # bytes of an input, except for long lines
SCORE = 6000  # bytes of a score: music21's time grows quadratically, to ten seconds for about 10 KB
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
NUMBERS = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "2147483648",
    "-9223372036854775809",
    "1000000000000",
    "1e308",
    "1e-320",
    "0.1",
    "NaN",
    "Infinity",
    "-Infinity",
    "9" * 400,
    "00",
    "1/0",
    "3/0",
    "0x10",
]
WORDS = [
    b"\0",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"%s%n",
    b"../",
    b"/etc/passwd",
    b"\x1b[31m",
    b"'\"",
    b"\\",
    b"<",
    b">",
    b"&",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    -(2**63),
    10**12,
    10**30,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0",
    "midi",
    "text",
    "events",
    "../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "\ud800",
    "é" * 300,
    [],
    {},
    [[]],
    [0] * 300,
    ["a", "a"],
    {"": 0},
    [None],
    [1.5, "x"],
]


def plane(rng: random.Random) -> str:
    """A character of any plane of Unicode, except surrogates."""
    while True:
        code = rng.randrange(17) << 16 | rng.randrange(1 << rng.choice([7, 8, 12, 16]))
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def spoil(rng: random.Random, content: bytes, words: Sequence[bytes] = (), others: Sequence[bytes] = ()) -> bytes:
    """Mutate bytes in one to eight places: flip, cut, repeat, move, or insert words and numbers."""
    out = bytearray(content)
    for _ in range(min(8, 1 + int(rng.expovariate(0.6)))):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + int(rng.expovariate(1 / rng.choice([2, 8, 64, 512]))))
        kind = rng.randrange(11)
        if kind == 0 and out:
            out[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at - 1] = rng.choice(EDGES) & 0xFF
        elif kind == 2:
            size = rng.choice([1, 2, 4])
            edge = (rng.choice(EDGES) & (1 << 8 * size) - 1).to_bytes(size, "big")
            out[at : at + size] = edge if rng.random() < 0.5 else edge[::-1]
        elif kind == 3:
            del out[at:end]
        elif kind == 4:
            out[at:at] = bytes(out[at:end]) * rng.choice([1, 1, 2, 10, 300])
        elif kind == 5:
            out[at : rng.choice([at, end])] = rng.choice([*words, *words, *WORDS])
        elif kind == 6 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at:end] = other[start : start + rng.choice([8, 64, 4096])]
        elif kind == 7:
            found = list(re.finditer(rb"\d+", out))
            if found:
                one = rng.choice(found)
                out[one.start() : one.end()] = rng.choice(NUMBERS).encode()
        elif kind == 8:
            out[at:at] = "".join(plane(rng) for _ in range(rng.choice([1, 3, 40]))).encode()
        elif kind == 9 and rng.random() < 0.3:
            del out[at:]
        elif kind == 10:
            piece = bytes(out[at:end])
            del out[at:end]
            back = rng.randrange(len(out) + 1)
            out[back:back] = piece
        del out[LIMIT:]
    return bytes(out)


def plain(*words: bytes, most: int = LIMIT) -> Mutator:
    """A mutator of bytes and text without structure, with `words` that the reader knows."""
    return lambda rng, seeds: spoil(rng, rng.choice(seeds), words, seeds)[:most]


_LEAF = re.compile(rb"<(\w[\w-]*)[^<>]*(?:/>|>[^<>]*</\1>)")
_BRANCH = re.compile(rb"<(note|measure|attributes|part|direction|barline)\b.*?</\1>", re.DOTALL)
_TEXT = re.compile(rb"(?<=>)[^<>]+(?=<)|(?<=['\"])[^<>'\"]*(?=['\"])")


def markup(*words: bytes) -> Mutator:
    """A mutator of XML: half of the results stay well formed, with texts and elements changed, removed or repeated."""

    def mutate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
        out = rng.choice(seeds)
        if rng.random() < 0.5:
            return spoil(rng, out, words, seeds)[:SCORE]
        for _ in range(rng.choice([1, 1, 2, 5])):
            found = list(re.finditer(_LEAF if rng.random() < 0.7 else _BRANCH, out))
            if not found:
                break
            one, other = rng.choice(found), rng.choice(found)
            kind, strange = rng.randrange(4), "".join(plane(rng) for _ in range(3))
            word = rng.choice([*NUMBERS, strange]).encode()
            new = [
                b"",
                one[0] * rng.choice([2, 50]),
                other[0],
                re.sub(_TEXT, word.replace(b"\\", rb"\\"), one[0], count=1),
            ][kind]
            out = out[: one.start()] + new + out[one.end() :]
        return out[:SCORE]

    return mutate


def lines(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Mutate text; sometimes characters of all planes, and once in a thousand a line of ten million bytes."""
    draw = rng.random()
    if draw < 0.001:
        unit = rng.choice([b"a", b" ", b"word ", "é".encode(), "\U0001f600".encode(), b"\0", b"\xff", b"E5 E22 "])
        return unit * (10_000_000 // len(unit))
    if draw < 0.3:
        return "".join(plane(rng) for _ in range(rng.randrange(200))).encode()
    return spoil(rng, rng.choice(seeds), (), seeds)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [pair for key in keys for pair in [(value, key), *_nodes(value[key])]]


def spoil_json(rng: random.Random, content: bytes) -> bytes:
    """Mutate JSON: values of other types and sizes, keys removed and added; sometimes as bytes, or very deep."""
    if rng.random() < 0.25:
        return spoil(rng, content, [b"null", b"1e999", b'"":', b"[" * 3000, b"true"])
    if rng.random() < 0.02:
        return rng.choice([b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000])
    try:
        whole = {"": json.loads(content)}
        _nodes(whole)
    except (ValueError, RecursionError):
        return spoil(rng, content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        holder, key = rng.choice(_nodes(whole))
        kind = rng.randrange(6)
        if kind == 0 and isinstance(holder, dict) and key != "":
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(["x", "format", "kind", "sha256", "", "name"])] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 2:
            other, where = rng.choice(_nodes(whole))
            holder[key] = json.loads(json.dumps(other[where]))
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(whole.get("", 0)).encode()


def tables(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Mutate a JSON file."""
    return spoil_json(rng, rng.choice(seeds))


# --- MIDI -------------------------------------------------------------------------------------------------------------


def _length(value: int) -> bytes:
    """A number as MIDI's variable-length quantity."""
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def _event(rng: random.Random) -> bytes:
    """An event of a track with its delta time, nearly valid."""
    delta = _length(rng.choice([0, 0, 1, 10, 96, 480, 0x7F, 0x3FFF, 0x0FFFFFFF, 1 << 34]))
    kind = rng.randrange(8)
    data = bytes((rng.randrange(128), rng.choice([0, 1, 64, 127, 128, 255])))
    if kind < 4:
        return delta + bytes([rng.choice([0x80, 0x90, 0x90, 0x90, 0xA0, 0xB0, 0xE0]) | rng.randrange(16)]) + data
    if kind == 4:
        return delta + bytes([rng.choice([0xC0, 0xD0]) | rng.randrange(16), data[0]])
    if kind == 5:
        return delta + data  # running status, possibly without a status before it
    if kind == 6:
        meta = rng.choice([0x01, 0x03, 0x2F, 0x51, 0x54, 0x58, 0x59, 0x7F, rng.randrange(128)])
        body = bytes(rng.choice(EDGES) & 0xFF for _ in range(rng.choice([0, 1, 2, 3, 4, 5])))
        return delta + bytes([0xFF, meta]) + _length(rng.choice([len(body)] * 4 + [0, 0x0FFFFFFF])) + body
    return delta + bytes([rng.choice([0xF0, 0xF7, 0xF1, 0xF4, 0xF8])]) + _length(rng.choice([2, 2, 0, 9999])) + data


def midi(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Mutate MIDI files, mostly with corrected track lengths, or make tracks of random events."""
    if rng.random() < 0.3:
        tracks = [b"".join(_event(rng) for _ in range(rng.randrange(40))) for _ in range(rng.choice([0, 1, 1, 2, 4]))]
        tracks = [track + b"\0\xff\x2f\0" * rng.choice([1, 1, 1, 0]) for track in tracks]
        kind, count = rng.choice([0, 1, 1, 2, 3]), rng.choice([len(tracks)] * 4 + [0, 0xFFFF])
        division = rng.choice([480, 96, 1, 12, 0, 0x7FFF, 0xE728])
        head = struct.pack(">4sIHHH", b"MThd", 6, kind, count, division)
        return head + b"".join(b"MTrk" + len(track).to_bytes(4, "big") + track for track in tracks)
    words = (
        b"MTrk",
        b"MThd\0\0\0\6",
        b"\xff\x51\3\0\0\0",
        b"\xff\x58\4\0\x40\0\0",
        b"\xff\x2f\0",
        b"\xf0\x05",
        b"\x90",
    )
    out = bytearray(spoil(rng, rng.choice([*seeds, *[seeds[0]] * 20]), words, seeds))
    if rng.random() < 0.9:
        starts = [match.start() for match in re.finditer(b"MTrk", bytes(out))]
        for start, end in pairwise([*starts, len(out)]):
            if end >= start + 8:
                out[start + 4 : start + 8] = (end - start - 8).to_bytes(4, "big")
    return bytes(out)


# --- containers -------------------------------------------------------------------------------------------------------


def packed(files: dict[str, bytes]) -> bytes:
    """Files by name as one input: a zip, which is also the format of .mxl."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def unpacked(content: bytes) -> dict[str, bytes]:
    """The files of a packed input; none if it is not a zip or is too large."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(one.file_size for one in archive.infolist()) > 64 << 20:
                return {}
            return {one.filename: archive.read(one) for one in archive.infolist()}
    except Exception:  # atheris mutates zips too, and zipfile raises many types
        return {}


def spoil_tensors(rng: random.Random, content: bytes) -> bytes:
    """Mutate a safetensors file: its header as JSON with a corrected length, its numbers, or the file as bytes."""
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.4 or size + 8 > len(content):
        return spoil(rng, content, [b'"F16"', b'"F64"', b'"BOOL"', b"[0,0]", b"[1000000,1000000]"])
    header, body = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.4:
        other = rng.choice([b'"I64"', b'"F16"', b'"BOOL"', b'"F8_E4M3"', b'"C64"'])
        header = re.sub(rb'"(F16|F32|F64|I32|I64)"', other, header)
        header = header if rng.random() < 0.5 else spoil_json(rng, header)
    elif rng.random() < 0.3:  # special numbers
        count = max(1, len(body) // 4)
        special = struct.pack("<f", rng.choice([float("nan"), float("inf"), -1e38, 0.0]))
        at = 4 * rng.randrange(count)
        body = body[:at] + special + body[at + 4 :] if rng.random() < 0.5 else (special * (count + 1))[: len(body)]
    else:
        header = spoil_json(rng, header)
    return len(header).to_bytes(8, "little") + header + body


def _member(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".json"):
        return spoil_json(rng, content)
    if name.endswith(".safetensors"):
        return spoil_tensors(rng, content)
    return spoil(rng, content, [b"\x93NUMPY\1\0", b"'<u2'", b"'|O'", b"True", b"(0,)", b"(99999999999,)"])


def folder(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Mutate a folder: one or two of its files mutated, removed, empty, swapped, or a symbolic link."""
    files = unpacked(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 1, 2])):
        name = rng.choice(list(files) or ["config.json"])
        kind = rng.randrange(20)
        if kind == 0:
            files.pop(name, None)
        elif kind == 1:
            files[name] = rng.choice([b"", b"\x80\x04\x95\0", b"PK\3\4", rng.choice(list(files.values()) or [b""])])
        elif kind == 2:
            files.pop(name, None)
            files[name + "@"] = rng.choice([b"/etc/passwd", b"/dev/zero", b"..", b"nowhere", name.encode()])
        else:
            files[name] = _member(rng, name, files.get(name, b""))
    return packed(files)


def archive(words: Sequence[bytes]) -> Mutator:
    """A mutator of compressed scores: a file mutated, files with paths outside the archive, or the zip mutated."""

    def mutate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
        content = rng.choice(seeds)
        files = unpacked(content)
        draw = rng.random()
        if draw < 0.2 or not files:
            return spoil(rng, content)
        if draw < 0.3:
            files[rng.choice(["../../evil.xml", "/tmp/evil.xml", "META-INF/container.xml", "a\0b", "x/" * 200])] = (
                rng.choice(list(files.values()))
            )
        elif draw < 0.32:
            files[rng.choice(list(files))] = b"<a>" + b" " * 50_000_000
        else:
            name = rng.choice(list(files))
            files[name] = markup(*words)(rng, [files[name]])
        return packed(files)

    return mutate


def tensors(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Mutate a safetensors file."""
    return spoil_tensors(rng, rng.choice(seeds))


# --- requests ---------------------------------------------------------------------------------------------------------


def request(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Mutate a request (line and headers, an empty line, body); the body mostly as JSON."""
    head, _, body = rng.choice(seeds).partition(b"\n\n")
    words = (
        b"..%2f..%2f",
        b"//",
        b"host: evil.example",
        b"origin: null",
        b"content-length: -1",
        b"content-length: 99999999",
        b"transfer-encoding: chunked",
        b"content-type: text/plain",
        b"GET",
        b"DELETE",
        b"?wait=nan",
        b"mute=1&",
        b"bars=0",
    )
    draw = rng.random()
    if draw < 0.35 or not body:
        head = spoil(rng, head, words)
    if draw > 0.25 and body:
        body = spoil_json(rng, body) if body.startswith(b"{") else spoil(rng, body, [b"\r\n--x", b"filename="])
    return head + b"\n\n" + body
