"""A sheet for blind judgement: piano rolls of two arrangements of a song, by the model and by the rule, as A and B.

    python benchmarks/sheet.py DIR --model music --pairs 40 -o sheet/

DIR has one folder per style. Held-out excerpts are translated by the model and by the rule
(seqvae/evaluation/rule_baseline.py), as `seqvae evaluate --arrangement` measures them; pairs of styles and amounts
alternate. The output is `01.png` and so on, each with the original above and the two arrangements in random order;
`sheet.md`, the question and a row for each answer; and `key.json`, the meaning of the letters, which the reader must
not see. A file of answers with lines such as `01 A` is evaluated by:

    python benchmarks/sheet.py --answers answers.txt --key sheet/key.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seqvae import codec as codecs
from seqvae import plot
from seqvae.codec import Codec
from seqvae.evaluation import arrangement as ruler
from seqvae.evaluation import test_songs
from seqvae.music import note_metrics as measures
from seqvae.music import piece as midi

QUESTION = (
    "Each picture shows a song, and below it two arrangements, A and B, that move it toward another style, half-way or "
    "all the way. Which is the better arrangement of the original, as music that one band plays? Write A or B for each."
)
AMOUNTS = {0.5: "half-way to", 1.0: "all the way to"}


def draw(codec: Codec, data: Path, pairs: int, out: Path, seed: int) -> None:
    """Write the pictures, the sheet and the key to `out`."""
    ways = ruler.pairs_of(codec)
    each = -(-pairs // len(ways))
    styles = sorted({style for way in ways for style in way})
    found = ruler.excerpts(data, styles, 2 * each, seed=seed, group=test_songs.groups(codec))
    rules, (blend, _) = ruler.Ruler(found.real, seed), ruler.codec_moves(codec, found.test)
    rng = np.random.default_rng(seed)
    key: dict[str, Any] = {}
    lines = [QUESTION, "", "| picture | from | to | better |", "|---|---|---|---|"]
    amounts = list(AMOUNTS)
    songs = {style: iter(pieces) for style, pieces in found.test.items()}
    for number in range(pairs):
        name = f"{number + 1:02d}"
        source, target = ways[number % len(ways)]
        if (song := next(songs[source], None)) is None:
            print(f"{name}: left out, since {source} has no more songs", file=sys.stderr)
            continue
        amount = amounts[number // len(ways) % len(amounts)]
        made = {"model": blend(song, source, target, amount), "rule": rules.rule(song, source, target, amount)}
        order = ["model", "rule"] if rng.random() < 0.5 else ["rule", "model"]
        panels = [(f"{name}: original, {source}", song)]
        panels += [(f"{letter}: {AMOUNTS[amount]} {target}", made[by]) for letter, by in zip("AB", order, strict=True)]
        midi.write_whole(out / f"{name}.png", plot.png(plot.roll(panels, stacked=True)))
        key[name] = {**dict(zip("AB", order, strict=True)), "from": source, "to": target, "amount": amount}
        key[name]["song"] = song.name
        lines.append(f"| {name}.png | {source} | {AMOUNTS[amount]} {target} | |")
    midi.write_whole(out / "sheet.md", ("\n".join(lines) + "\n").encode())
    midi.write_whole(out / "key.json", (json.dumps(key, indent=1) + "\n").encode())


def count(answers: str, key: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Share of the answers (lines such as `01 A`) that prefer the model, with its interval, in total and by amount."""
    rows = [line.split()[:2] for line in answers.splitlines() if line.strip()]
    preferred = [(key[name]["amount"], float(key[name][letter.upper()] == "model")) for name, letter in rows]
    groups = {"all": [x for _, x in preferred]}
    for amount, x in preferred:
        groups.setdefault(f"amount {amount:g}", []).append(x)
    return {name: list(measures.interval(np.array(values))) for name, values in groups.items()}


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model", default="music")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, default=Path("sheet"))
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    if options.answers:
        key = json.loads(options.key.read_text(encoding="utf-8"))
        print(json.dumps(count(options.answers.read_text(encoding="utf-8"), key), indent=1))
        return
    if options.data is None:
        parser.error("give the folder of songs, or --answers and --key")
    draw(codecs.load(options.model), options.data, options.pairs, options.out, options.seed)


if __name__ == "__main__":
    main()
