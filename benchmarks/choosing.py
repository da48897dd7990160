"""Accuracy and self-BLEU of lines moved by `blend --until`, by a judge that has no part in the choice.

    python benchmarks/choosing.py negative=100.neg positive=100.pos --judge train.negative train.positive --until 0.9

The judge (TF-IDF of one to three words) is fitted on at most 20,000 of the lines 2, 4, 6, ... of each file of --judge;
the stored classifiers of `reviews` are fitted on the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from seqvae.codec import load
from seqvae.evaluation import text_metrics as text
from seqvae.evaluation.statistics import resampled, with_interval
from seqvae.evaluation.style_classifier import LineClassifier
from seqvae.style.choice import Choice
from seqvae.text.lines import read_lines

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sets", nargs=2, metavar="STYLE=FILE")
parser.add_argument("--judge", nargs=2, type=Path, required=True, metavar="FILE")
parser.add_argument("--model", "-m", default="reviews")
parser.add_argument("--until", type=float, default=0.9)
parser.add_argument("--farthest", type=float, default=2.5)
given = parser.parse_args()

names = [one.partition("=")[0] for one in given.sets]
judge = LineClassifier(
    {name: list(read_lines(file))[1::2][:20000] for name, file in zip(names, given.judge, strict=True)}, 0
)
codec = load(given.model)
lines: list[str] = []
moved: list[str] = []
targets: list[str] = []
for one, source, target in zip(given.sets, names, names[::-1], strict=True):
    own = list(read_lines(Path(one.partition("=")[2])))
    found = codec.blend_until(own, [(source, target, given.farthest)], Choice(until=given.until))
    lines, moved, targets = lines + own, moved + [x.line for x in found], targets + [target] * len(own)
    for line, x in zip(own[:8], found[:8], strict=False):
        print(f"{line}  ->  {x.line}  ({given.farthest * x.share:g}, {x.probability:.2f})")
rows = np.column_stack([judge.puts_in(moved, targets), np.ones(len(lines)), text.bleu_statistics(moved, lines)])
total, drawn = rows.sum(0), resampled(rows)
accuracy = with_interval(float(text.share_of(total[:2])), text.share_of(drawn[:, :2]))
bleu = with_interval(float(text.bleu_of(total[2:])), text.bleu_of(drawn[:, 2:]))
print("accuracy {:.3f} [{:.3f}, {:.3f}], self-BLEU {:.1f} [{:.1f}, {:.1f}]".format(*accuracy, *bleu))
