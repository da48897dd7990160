"""Readability of generated MIDI files: shares that symusic, pretty_midi and music21 read, over seeds and temperatures.

    python benchmarks/generated_files.py --files 10000

Samples songs of one segment from every style in turn, at temperatures from 0.5 to 1.5, writes each song and reads it
with all three libraries. Prints a line every 1,000 files and a table at the end. The exit code is 1 if a file was
refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import music21
import pretty_midi
import symusic

import seqvae
from seqvae.music import piece as midi
from seqvae.nn.sampling import Sampling

READERS = {
    "symusic": lambda path: symusic.Score(path),
    "pretty_midi": lambda path: pretty_midi.PrettyMIDI(str(path)),
    "music21": lambda path: music21.midi.translate.midiFilePathToStream(path),
}


def main() -> int:
    """Generate, write, read; the number of refusals decides the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="music")
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    codec = seqvae.load(options.model)
    styles = sorted(codec.styles)
    refused: Counter[str] = Counter()
    done = notes = 0
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        while done < options.files:
            count = min(250, options.files - done)
            step = done // 250
            temperature = (0.5, 0.8, 1.0, 1.2, 1.5)[step % 5]
            sampling = Sampling(temperature=temperature, top_p=1.0)
            style = styles[step % len(styles)]
            for score in codec.sample(count, style, temperature, 1, options.seed + step, sampling):
                path = midi.write(score, Path(folder) / "generated.mid")
                notes += score.note_num()
                for name, read in READERS.items():
                    try:
                        read(path)
                    except Exception as error:  # any exception is a refusal
                        refused[name] += 1
                        print(f"file {done}, {style} at {temperature}: {name}: {error!r}", file=sys.stderr)
                done += 1
            if done % 1000 < count:
                print(f"{done} files, {sum(refused.values())} refusals", flush=True)
    print("\n| reader | files | readable |\n|---|---|---|")
    for name in READERS:
        print(f"| {name} | {done} | {done - refused[name]} |")
    print(f"\n{notes / done:.1f} notes per file")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
