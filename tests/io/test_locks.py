"""Locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqvae.io.locks import lock, lock_file

HOLD = "import sys, time; from pathlib import Path; from seqvae.io.locks import lock; lock(Path(sys.argv[1])); print()"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_process_holds_the_lock_until_it_is_killed(tmp_path: Path, kind: str) -> None:
    place = tmp_path
    if kind == "file":
        place = tmp_path / "lock"
        place.touch()
    command = [sys.executable, "-c", f"{HOLD}; sys.stdout.flush(); time.sleep(100)", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        assert lock(place) is None
        other.kill()
    handle = lock(place)
    assert handle is not None
    os.close(handle)


def test_the_file_of_a_lock_is_removed_only_by_its_holder(tmp_path: Path) -> None:
    place = tmp_path / "lock"
    with lock_file(place) as first:
        with lock_file(place) as second:
            assert (first, second) == (True, False)
        assert place.exists()
    assert not place.exists()
    place.touch()  # abandoned by a killed process
    with lock_file(place) as third:
        assert third
    assert not place.exists()
