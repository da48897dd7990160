"""Hostile music and lines: archives, entities and numbers that exhaust memory or time."""

from __future__ import annotations

import gzip
import io
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from commands import one_line

from seqvae.errors import ReadError
from seqvae.music import piece as midi
from seqvae.music import readers as notation
from seqvae.text import lines as text
from seqvae.text import tokenizer as text_tokenizer
from seqvae.text.tokenizer import TextTokenizer


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


@pytest.mark.parametrize("given", ["file", "bytes"])
def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path, given: str) -> None:
    bomb = zipped(tmp_path / "a.mxl", score=b" " * (midi.MAX_BYTES + 1))
    assert bomb.stat().st_size < 100_000
    source: Any = bomb if given == "file" else bomb.read_bytes()
    assert "more than 32 MB" in one_line(lambda: midi.read(source), ReadError)


def test_paths_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    bomb = tmp_path / "a.mxl"
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("../../../evil.xml", b"<score-partwise/>")
        archive.writestr(
            "META-INF/container.xml",
            b'<container><rootfiles><rootfile full-path="/etc/passwd"/></rootfiles></container>',
        )
    message = one_line(lambda: midi.read(bomb), ReadError)
    assert "root:" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mxl"]


@pytest.mark.parametrize(
    "entities",
    [
        "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(10)),
        "<!ENTITY l9 SYSTEM 'file:///etc/passwd'>",
    ],
)
def test_entities_neither_multiply_nor_read_files(entities: str) -> None:
    score = (
        f"<?xml version='1.0'?><!DOCTYPE score-partwise [{entities}]><score-partwise><part-list>"
        "<score-part id='P1'><part-name>&l9;</part-name></score-part></part-list>"
        "<part id='P1'><measure/></part></score-partwise>"
    )
    started = time.monotonic()
    message = one_line(lambda: midi.read(score.encode()), ReadError)
    assert "root:" not in message
    assert time.monotonic() - started < 10


ABC = 'X:20240101\nT:Tune 1234567\nM:4/4\nL:1/8\nQ:1/4=120\nK:G\n%123456\n"^12345"GABc {}|\nw:12345\n'


@pytest.mark.parametrize("what", ["d2147483648", "z99999", "[M:65536/8] d", "d\nM:65536/8\nd", "d\nQ:1/4=99999"])
def test_a_length_with_too_many_bars_for_memory_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.abc"
    path.write_text(ABC.format(what))
    assert "a number of five digits" in one_line(lambda: midi.read(path), ReadError)


def test_numbers_in_the_words_of_a_tune_are_not_lengths(tmp_path: Path) -> None:
    (tmp_path / "a.abc").write_text(ABC.format("d4"))
    assert len(midi.read(tmp_path / "a.abc").notes) == 5


def test_an_endless_score_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """music21 steps through the circle of fifths for each sharp of a key."""
    monkeypatch.setattr(notation, "SECONDS", 0.5)
    score = (
        "<?xml version='1.0'?><score-partwise><part-list><score-part id='P1'><part-name>x</part-name></score-part>"
        "</part-list><part id='P1'><measure number='1'><attributes><divisions>1</divisions><key><fifths>1000000000000"
        "</fifths><mode>minor</mode></key></attributes><note><pitch><step>C</step><octave>4</octave></pitch><duration>4</duration></note>"
        "</measure></part></score-partwise>"
    )
    started = time.monotonic()
    assert "takes longer than 0.5 s" in one_line(lambda: midi.read(score.encode()), ReadError)
    assert time.monotonic() - started < 10
    monkeypatch.setattr(notation, "SECONDS", 60.0)
    assert len(midi.read(score.replace("1000000000000", "1").encode()).notes) == 1, "later code is not stopped"


@pytest.mark.parametrize("suffix", [".mid", ".krn"])
def test_a_file_of_a_terabyte_is_refused_and_not_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with path.open("wb") as file:
        file.truncate(10**12)
    assert "more than 32 MB" in one_line(lambda: midi.read(path), ReadError)


def test_music_from_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mid").symlink_to("/dev/zero")
    assert "no plain file" in one_line(lambda: midi.read(tmp_path / "a.mid"), ReadError)


def test_an_endlessly_unpacking_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"first\n" + b" " * (text.LONGEST + 1)))
    lines = text.read_lines(path)
    assert next(lines) == "first"
    assert "a line of more than 16 MB" in one_line(lambda: next(lines), ReadError)


def test_a_line_of_the_maximal_length_is_read() -> None:
    line = b"x" * (text.LONGEST - 1) + b"\n"
    assert [len(found) for found in text.read_lines(io.BytesIO(line + b"y"))] == [text.LONGEST - 1, 1]


def test_a_line_of_millions_of_letters_is_tokenized_in_seconds_and_little_memory() -> None:
    """One word is the slowest case: ten million letters took 15 s, and 3 GB at three bytes each."""
    tokenizer = TextTokenizer.train(["a few words to learn from"], 300, max_tokens=24)
    line = "\ufffd" * 3_000_000
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    [chunks] = tokenizer.encode_all([line])
    assert time.process_time() - started < 10
    assert tokenizer.decode_text(chunks) == line
    assert max(map(len, chunks)) <= 24
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 500 << 10


def test_a_long_line_tokenized_in_parts_has_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer.train(["a few words to learn from"], 300, max_tokens=24)
    line = " ".join(["few words to learn"] * 20)
    [whole] = tokenizer.encode_all([line])
    monkeypatch.setattr(text_tokenizer, "_LONG", 50)
    first, parts, last = tokenizer.encode_all(["a few", line, ""])
    assert tokenizer.decode_text(parts) == line
    assert [id for chunk in parts for id in chunk if id != 2] == [id for chunk in whole for id in chunk if id != 2]
    assert (tokenizer.decode_text(first), tokenizer.decode_text(last)) == ("a few", "")


def test_a_score_can_be_read_under_a_debugger(tmp_path: Path) -> None:
    """Restoring the trace function in vain, after the time limit of a score, made tracing loop for ever."""
    score = tmp_path / "a.abc"
    score.write_text("X:1\nT:a\nM:4/4\nL:1/4\nK:C\nCDEF|\n")
    script = (
        "import sys; from pathlib import Path; from seqvae.music import piece as midi\n"
        "sys.settrace(lambda *_: None)\n"
        "print(len(midi.read(Path(sys.argv[1])).notes), sum(i for i in range(1000)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(score)], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.split() == ["4", "499500"]
