"""A playlist that drifts from classical to rock over eight songs: the first stays, the last goes all the way.

    python docs/examples/playlist.py                             # eight chorales by Bach, into playlist/
    python docs/examples/playlist.py -o drift/ --wav songs/*.mid # your own files, in the given order

Writes 01-NAME.mid to 08-NAME.mid and playlist.m3u, which players open; with --wav it lists sound instead of MIDI.
"""

import argparse
from pathlib import Path

import seqvae
from seqvae.music import piece as midi
from seqvae.music import synth as sound

CHORALES = [f"corpus:bach/bwv{number}" for number in ("66.6", "269", "253", "378", "255", "256", "264", "267")]

parser = argparse.ArgumentParser(description="A playlist that drifts from classical to rock.")
parser.add_argument("songs", nargs="*", default=CHORALES, help="at least two files; eight chorales without any")
parser.add_argument("-o", "--out", type=Path, default=Path("playlist"), help="folder to write")
parser.add_argument("--wav", action="store_true", help="render sound too")
args = parser.parse_args()
if len(args.songs) < 2:
    parser.error("one song does not drift; name two or more")

codec = seqvae.load("music")
lines = ["#EXTM3U"]
for number, song in enumerate(args.songs):
    # 0, 1/49, 4/49, ... 1: a song takes guitars and drums early, at a tenth to a third of the way
    amount = (number / (len(args.songs) - 1)) ** 2
    piece = midi.read(song)
    score = codec.blend(piece, source="classical", target="rock", amount=amount)
    path = midi.write(score, args.out / f"{number + 1:02}-{piece.name}.mid")
    if args.wav:
        path = path.with_suffix(".wav")
        path.write_bytes(sound.render(score))
    lines += [f"#EXTINF:{sound.seconds(score):.0f},{piece.name}, {amount:.0%} rock", path.name]
    print(f"{path} {amount:.2f}")
(args.out / "playlist.m3u").write_text("\n".join(lines) + "\n")
