"""The same seed gives the same files, however many threads there are.

Not held: what is encoded and refined (`blend`, `reconstruct`), for the search in bf16 rounds otherwise with another
number of threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("model", "options"),
    [("music", ["--style", "rock", "-n", "3"]), ("reviews", ["-n", "60"]), ("hdfs", ["-n", "30"])],
)
def test_what_is_drawn_does_not_depend_on_the_number_of_threads(model: str, options: list[str], tmp_path: Path) -> None:
    found = []
    for threads in ("1", "2"):
        folder = tmp_path / threads
        folder.mkdir()
        place = ["-o", str(folder / "songs")] if model == "music" else []
        done = subprocess.run(
            [sys.executable, "-m", "seqvae", "generate", "-m", model, *options, *place, "--seed", "5"],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        found.append([path.read_bytes() for path in files] if place else done.stdout.splitlines())
    assert len(found[0]) == int(options[options.index("-n") + 1])
    assert len(set(found[0])) > 1
    assert found[0] == found[1]
