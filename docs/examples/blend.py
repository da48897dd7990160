"""Half-way from classical to rock and on, with the melody as it was: python docs/examples/blend.py [SONG FOLDER]."""

import sys
from pathlib import Path

import seqvae
from seqvae.music import piece as midi

song, out = sys.argv[1:] or ("corpus:bach/bwv66.6", "out")
codec = seqvae.load("music")
for target in ("rock", "jazz"):
    for amount in (0.5, 1.0):
        score = codec.blend(song, source="classical", target=target, amount=amount, keep=["melody"])
        notes = len(midi.read(score).notes)
        print(midi.write(score, Path(out) / f"{target}-{amount}.mid"), f"{notes} notes")
