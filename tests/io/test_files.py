"""Atomic writes: permissions, and the state after a power cut or a killed process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import files, song

from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint.folder import save_tensors, write_folder
from seqvae.data.dataset import ShardWriter
from seqvae.errors import SeqVAEError
from seqvae.io import files as places
from seqvae.music import piece as midi

Event = tuple[str, int, int]  # the call, its inode, and the size at that time


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every fsync and every move, in order."""
    seen: list[Event] = []
    sync, exchange = os.fsync, places._exchange

    def synced(handle: int) -> None:
        about = os.fstat(handle)
        seen.append(("sync", about.st_ino, about.st_size))
        sync(handle)

    def move(name: str) -> None:
        real = getattr(os, name)

        def moved(source: Any, target: Any, **named: Any) -> None:
            about = Path(source).stat()
            real(source, target, **named)
            seen.append(("move", about.st_ino, about.st_size))

        monkeypatch.setattr(os, name, moved)

    def exchanged(one: Path, other: Path) -> bool:
        about = one.stat()
        done = exchange(one, other)
        if done:
            seen.append(("move", about.st_ino, about.st_size))
        return done

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(places, "_exchange", exchanged)
    for name in ("rename", "replace"):
        move(name)
    return seen


def fill(part: Path) -> None:
    (part / "config.json").write_text("{}")
    (part / "tokenizer").mkdir()
    (part / "tokenizer" / "tokenizer.json").write_text("{ }")
    save_tensors({"x": torch.ones(9)}, {}, part / "model.safetensors")


def check_order(events: list[Event], place: Path) -> None:
    """Asserts that the content at `place` was synced before its move, and its folder after it."""
    (moved,) = [i for i, event in enumerate(events) if event[:2] == ("move", place.stat().st_ino)]
    held = [path for path in [place, *place.rglob("*")] if path.is_file()]
    assert held
    before = events[:moved]
    for path in held:
        assert ("sync", path.stat().st_ino, path.stat().st_size) in before, path
    for folder in {path.parent for path in held} - {place.parent}:
        assert ("sync", folder.stat().st_ino) in [event[:2] for event in before], folder
    assert ("sync", place.parent.stat().st_ino) in [event[:2] for event in events[moved:]]


def test_a_file_of_tensors_is_synced_before_it_is_moved(tmp_path: Path, events: list[Event]) -> None:
    for value in (1.0, 2.0):  # a new file, and its replacement
        events.clear()
        save_tensors({"x": torch.full((1000,), value)}, {}, tmp_path / "state.safetensors")
        check_order(events, tmp_path / "state.safetensors")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_synced_before_it_is_moved(
    tmp_path: Path, events: list[Event], exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(places, "_exchange", lambda *_: False)
    for _ in range(2):
        events.clear()
        write_folder(tmp_path / "best", fill)
        check_order(events, tmp_path / "best")


def test_shards_and_their_vocabulary_are_synced_before_their_index(tmp_path: Path, events: list[Event]) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    writer = ShardWriter(tmp_path, {})
    writer.add([torch.arange(3, dtype=torch.int32).numpy()], "style", "group")
    writer.close()
    check_order(events, tmp_path / "index.json")
    (moved,) = [i for i, (what, *_) in enumerate(events) if what == "move"]
    synced = [event[1] for event in events[:moved]]
    for name in files(tmp_path):
        assert (tmp_path / name).stat().st_ino in synced, name


def test_reproducible_outputs_are_not_synced(tmp_path: Path, events: list[Event]) -> None:
    song(tmp_path / "a.mid")
    assert [what for what, *_ in events] == ["move"]


def test_a_failed_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors({"x": torch.ones(1)}, {}, tmp_path / "a")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SeqVAEError, match="No space left"):
        save_tensors({"x": torch.zeros(1)}, {}, tmp_path / "a")
    assert files(tmp_path) == ["a"]
    assert float(checkpoint.load_tensors(tmp_path / "a")[0]["x"]) == 1


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, file: int, folder: int) -> None:
    before = os.umask(mask)
    try:
        write_folder(tmp_path / "best", fill)
        save_tensors({"x": torch.ones(1)}, {}, tmp_path / "a")
        song(tmp_path / "a.mid")
    finally:
        os.umask(before)
    names = ["a", "a.mid", "best/model.safetensors", "best/tokenizer/tokenizer.json"]
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names} == {file}
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("best", "best/tokenizer")} == {folder}


def test_files_of_a_command_killed_while_writing_music_are_cleaned_up(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from seqvae.music import piece as midi\n"
        "write = Path.write_bytes\n"
        "def half(path, content):\n"
        "    write(path, content[:10]); print('half', flush=True); time.sleep(100)\n"
        "Path.write_bytes = half\n"
        "midi.write_whole(Path(sys.argv[1]), bytes(20))"
    )
    place = song(tmp_path / "a.mid")
    before = place.read_bytes()
    with subprocess.Popen([sys.executable, "-c", script, str(place)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"half\n"
        other.kill()
    assert place.read_bytes() == before
    left = [name for name in files(tmp_path) if name != "a.mid"]
    assert len(left) == 1
    midi.write_whole(tmp_path / "b.mid", b"its neighbour")
    assert left[0] in files(tmp_path)
    midi.write_whole(place, b"new")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.mid", "b.mid"]
    assert place.read_bytes() == b"new"
