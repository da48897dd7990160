"""The commands on music files that are bad, missing or cannot be written: one line, and no files left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import error_line, files, last_error_line, seqvae, song
from symusic.core import ScoreTick

from seqvae.music import piece as midi

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["blend", "text.mid", "--to", "wild"], "cannot read text.mid: it is not a MIDI file; give a MIDI file"),
        (["blend", "empty.mid", "--to", "wild"], "cannot read empty.mid: the file is empty"),
        (["blend", "silent.mid", "--to", "wild"], "cannot read silent.mid: there is not a single note in it"),
        (["blend", "long.mid", "--to", "wild"], "cannot read long.mid: it lasts 10.0 hours, and the limit is 5"),
        (["blend", "gone.mid", "--to", "wild"], "cannot read gone.mid: there is no such file or folder; check"),
        (["blend", "a.mid", "gone.mid", "--to", "wild", "-o", "out"], "cannot read gone.mid: there is no such file"),
        (["blend", "song.wav", "--to", "wild"], "cannot read song.wav: '.wav' is not a kind of music file"),
        (["blend", "corpus:bach/none", "--to", "wild"], "music21's corpus has no such work"),
        (["blend", "a.mid", "--to", "rokc"], "no style 'rokc' in"),
        (["blend", "a.mid", "--from", "rokc", "--to", "wild"], "there are: calm, wild"),
        (["blend", "a.mid", "--to", "wild", "-m", "gone"], "gone: no such checkpoint; name a folder"),
        (["blend", "a.mid", "--to", "wild", "-m", "."], "no checkpoint here (config.json is missing)"),
        (["blend", "a.mid", "--to", "wild", "-m", "nobody/nothing"], "not available from the Hub"),
        (["blend", "a.mid", "--to", "wild", "-o", "a.mid"], "a.mid: is an input and would be overwritten"),
        (["reconstruct", "twins/1/a.mid", "twins/2/a.mid", "-o", "out"], "both outputs would be called 'a'"),
        (["reconstruct", "a.mid", "-o", "a.mid/b.mid"], "cannot write a.mid/b.mid: "),
        (["reconstruct", "a.mid", "-o", "/dev/full"], "cannot write /dev/full: no space left on device"),
        (["encode", "a.mid", "-o", "/dev/full"], "/dev/full: exists and is not a file"),
        (["encode", "a.mid", "-o", "a.mid/z.safetensors"], "a.mid: file exists"),
        (["generate", "--style", "rokc"], "no style 'rokc'"),
        (["interpolate", "a.mid", "twins", "-o", "out"], "cannot read twins: it is a folder; name a file in it"),
        (["style", "show", "rokc"], "no style 'rokc'"),
        (["style", "list", "--styles", "a.mid"], "a.mid: cannot be read as safetensors"),
        (["style", "fit", "x=empty.mid", "-o", "my.styles"], "cannot read empty.mid: the file is empty"),
        (["train", "polka", "--data", "twins", "--out", "run"], "polka: no such recipe; name a .toml file"),
        (["train", "music", "--data", "twins", "--out", "run", "--set", "a.b=1"], "unknown setting 'a'"),
    ],
)  # fmt: skip
def test_bad_input_is_a_one_line_error_and_leaves_no_files(
    bad: Path, tiny_music: Path, args: list[str], line: str
) -> None:
    before = files(bad)
    chosen = [] if "-m" in args or args[0] == "train" else ["-m", str(tiny_music)]
    assert line in error_line(seqvae(*args, *chosen))
    assert files(bad) == before


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["blend", "a.mid", "--to", "wild", "--amount", "abc"], "'--amount': Input should be a valid number"),
        (["blend", "a.mid", "--to", "wild", "--amount", "nan"], "nan is not finite"),
        (["blend", "a.mid", "--to", "wild", "--amount", "-inf"], "-inf is not finite"),
        (["blend", "a.mid", "--to", "wild", "--temperature", "-1"], "--temperature"),
        (["blend", "a.mid", "--to", "wild", "--temperature", "nan"], "--temperature"),
        (["blend", "a.mid", "--to", "wild", "--seed", "-1"], "--seed"),
        (["blend", "a.mid"], "missing option '--to'"),
        (["blend", "--to", "wild"], "missing argument 'INPUT'"),
        (["blend", "a.mid", "--to", "wild", "--method", "magic"], "is not one of 'mean', 'discriminant', 'transport'"),
        (["blend", "a.mid", "--to", "wild", "--method", "transport"], "add --from"),
        (["blend", "a.mid", "--to", "wild", "--method", "discriminant"], "add --from"),
        (["blend", "a.mid", *["--to", "wild"] * 3, *["--from", "calm"] * 2], "3 --to, 2 --from and 0 --amount do"),
        (["blend", "a.mid", "--to", "wild", "--amount", "1", "--amount", "2"], "1 --to, 0 --from and 2 --amount do"),
        (["blend", "a.mid", "--to", "wild", "--amount", "1", "--amount", "nan"], "nan is not finite"),
        (["interpolate", "a.mid", "a.mid"], "missing option '--out'"),
        (["interpolate", "a.mid", "a.mid", "a.mid", "-o", "out"], "give two, or four with --grid"),
        (["interpolate", "a.mid", "a.mid", "--grid", "3", "-o", "out"], "missing argument 'C'"),
        (["blend", "a.mid", "--to", "wild=much"], "'much' is not a number"),
        (["blend", "a.mid", "--to", "wild", "--keep", "theremin"], "no track 'theremin'"),
        (["style", "effect", "calm=a.mid"], "name at least two"),
        (["blend", "twins", "--to", "wild"], "need -o FOLDER"),
        (["blend", "twins", "--to", "wild", "-o", "out.mid"], "several outputs need a folder"),
        (["blend", "a.mid", "--to", "wild", "-o", "out.wav"], "music is written as .mid or .midi"),
        (["blend", "a.mid", "--to", "wild", "-o", "song.wav"], "music is written as .mid or .midi"),
        (["generate", "-n", "0"], "--count"),
        (["generate", "--top-p", "0"], "--top-p"),
        (["generate", "-n", "2", "-o", "out.mid"], "several outputs need a folder"),
        (["interpolate", "a.mid", "a.mid", "--steps", "1", "-o", "out"], "--steps"),
        (["style", "fit", "twins", "-o", "my.styles"], "write NAME=PATH"),
        (["style", "fit", "all=twins", "-o", "my.styles"], "any NAME but all"),
        (["style", "fit", "prior=twins", "-o", "my.styles"], "any NAME but all and prior"),
        (["blnd"], "blend"),
    ],
)  # fmt: skip
def test_wrong_usage_exits_2_before_any_model_is_loaded(bad: Path, args: list[str], word: str) -> None:
    before = files(bad)
    assert word in error_line(seqvae(*args), 2)
    assert files(bad) == before


@pytest.fixture
def bad(here: Path) -> Path:
    """A folder with one song and many files that are not songs."""
    song(here / "a.mid")
    song(here / "twins" / "1" / "a.mid")
    song(here / "twins" / "2" / "a.mid")
    (here / "text.mid").write_text("la la la")
    (here / "empty.mid").touch()
    (here / "song.wav").write_bytes(b"RIFF")
    midi.write(ScoreTick(480), here / "silent.mid")
    slow = midi.make_frame(([(0, 15_000_000)], [], []))
    rows = np.array([[12 * (4 * 600 - 1), 12, 60, 0, 80]], np.int32)
    midi.write(midi.to_score(rows, slow), here / "long.mid")
    return here


def test_a_full_disk_leaves_no_half_written_file(tiny_music: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        song(here / "in" / f"{name}.mid")
    write, room = Path.write_bytes, iter([True, False])

    def fill(path: Path, content: Any) -> int:
        if "out" not in path.parts or next(room):
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", fill)
    result = seqvae("reconstruct", "in", "-m", tiny_music, "-o", "out")
    assert (result.exit_code, result.stdout) == (1, "out/a.mid\n")
    assert last_error_line(result).startswith("seqvae: cannot write out/b.mid: no space left on device; ")
    assert result.stderr.count("\n") == 2, "one line reports the losses of the first song"
    assert files(here / "out") == ["a.mid"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only folder")
def test_a_read_only_folder_is_a_one_line_error(tiny_music: Path, here: Path) -> None:
    (here / "locked").mkdir(mode=0o555)
    line = error_line(seqvae("reconstruct", song(here / "a.mid"), "-m", tiny_music, "-o", "locked/b.mid"))
    assert "cannot write locked/b.mid: permission denied" in line
