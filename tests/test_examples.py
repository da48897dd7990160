"""The scripts in docs/examples run on small inputs, as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import files, song

from seqvae.music import piece as midi

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def run(folder: Path, name: str, *args: object, given: str = "") -> subprocess.CompletedProcess[str]:
    """A script, run in a folder with the commands of this Python first in the path."""
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    script = EXAMPLES / name
    command = [sys.executable if script.suffix == ".py" else "bash", str(script), *map(str, args)]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, input=given, capture_output=True, text=True, check=False
    )


def test_all_are_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    scripts = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")]
    assert len(scripts) == 4
    assert all(f"({name})" in listed for name in scripts)


@pytest.mark.slow
def test_a_folder_is_blended_at_each_amount(tmp_path: Path) -> None:
    for i in range(2):
        song(tmp_path / "songs" / f"{i}.mid", i, bars=2)
    result = run(tmp_path, "blend-folder.sh", "songs", "jazz", "out", 0, 1)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "out") == ["0/0.mid", "0/1.mid", "1/0.mid", "1/1.mid"]
    still, moved = (midi.read(tmp_path / "out" / amount / "0.mid").notes for amount in ("0", "1"))
    assert not np.array_equal(still, moved)


def test_the_folder_script_prints_its_usage(tmp_path: Path) -> None:
    result = run(tmp_path, "blend-folder.sh", "songs")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: ")


@pytest.mark.slow
def test_neighbours_are_averaged(tmp_path: Path) -> None:
    same = "the food was great ."
    result = run(tmp_path, "average-neighbours.sh", given=f"{same}\n\n{same}\nwe had to wait an hour\n")
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == same  # half-way between a sentence and itself
    assert second
    assert files(tmp_path) == []


@pytest.mark.slow
def test_fifteen_lines_blend_a_song(tmp_path: Path) -> None:
    assert len((EXAMPLES / "blend.py").read_text().splitlines()) == 15
    result = run(tmp_path, "blend.py", song(tmp_path / "song.mid", bars=2), "out")
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "out") == ["jazz-0.5.mid", "jazz-1.0.mid", "rock-0.5.mid", "rock-1.0.mid"]


@pytest.mark.slow
def test_a_playlist_drifts(tmp_path: Path) -> None:
    songs = [song(tmp_path / f"{i}.mid", i, bars=2) for i in range(3)]
    result = run(tmp_path, "playlist.py", *songs, "-o", "list", "--wav")
    assert result.returncode == 0, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["0.00", "0.25", "1.00"]
    names = ["01-0", "02-1", "03-2"]
    assert files(tmp_path / "list") == sorted(
        [f"{name}{end}" for name in names for end in (".mid", ".wav")] + ["playlist.m3u"]
    )
    listed = (tmp_path / "list" / "playlist.m3u").read_text().splitlines()
    assert listed[0] == "#EXTM3U"
    assert listed[2::2] == [f"{name}.wav" for name in names]
