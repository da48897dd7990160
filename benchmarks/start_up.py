"""Start-up time of commands in a new process: the help, the list of models, and a blend.

    python benchmarks/start_up.py

The commands run in turns, each in its own process with one thread, and the fastest run counts, since other load can
only add time. Processor time is that of the process itself, without waiting.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import processor

TURNS = 7
COMMANDS = {
    "--help": 0.3,
    "models": 0.3,
    "blend corpus:bach/bwv66.6 -m music --from classical --to rock -o blend.mid": 4.0,
}


def run(command: str, folder: str) -> tuple[float, float]:
    """Seconds on the clock, and seconds of processor time."""
    started, before = time.perf_counter(), os.times()
    words = [sys.executable, "-m", "seqvae", *command.split()]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, used


def main() -> None:
    """Print the table."""
    found: dict[str, list[tuple[float, float]]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(TURNS):
            for command in COMMANDS:
                found[command].append(run(command, folder))
    print(f"{processor.described(1)}, turns: {TURNS}\n")
    print("| seqvae | seconds | of processor time | target |\n|---|---|---|---|")
    for command, times in found.items():
        wall, used = (min(column) for column in zip(*times, strict=True))
        print(f"| `{command}` | {wall:.2f} | {used:.2f} | {COMMANDS[command]} |")


if __name__ == "__main__":
    main()
