"""Training lines and tokenizers of the released sentence models, as files for a training machine.

    python benchmarks/sentence_corpora.py DATA OUT            # DATA/books, bible, captions, yelp

Writes, for `prose` and `reviews`, `NAME.json.bz2` (training and validation lines) and the folder `NAME.tokenizer`.
Lines of the test split are never written. Lines are split by their words, verses by their number (`dataset.split_of`).
"""

from __future__ import annotations

import bz2
import json
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from seqvae.data.dataset import split_of
from seqvae.data.prepare import evenly
from seqvae.text import lines as text
from seqvae.text.tokenizer import TextTokenizer

VERSIONS = ("kjv", "bbe", "web")
WORDS = (3, 40)  # least and most words of a line
VOCABULARY = {"prose": 6000, "reviews": 5000}
LEARNED = 8 << 20  # bytes of lines to learn a vocabulary from
VALIDATION = 2000  # lines
STRAIGHT = 0.3  # share of the lines with curly quotation marks that are added again with straight ones
NATURAL = 0.25  # share of the reviews that are added again with capitals and without spaces before punctuation
FOREIGN = 60_000  # short lines of prose that are added to `reviews`, so that copying is learned on more than reviews

Lines = dict[str, list[str]]


def is_suitable(line: str) -> bool:
    """Whether the number of words of a line is within WORDS."""
    return WORDS[0] <= len(line.split()) <= WORDS[1]


def divided(lines: Iterable[tuple[str, str]]) -> Lines:
    """Distinct suitable lines of (group, line), by the split of the group."""
    out: Lines = {"train": [], "valid": [], "test": []}
    seen: set[str] = set()
    for group, line in lines:
        if is_suitable(line) and line not in seen:
            seen.add(line)
            out[split_of(group)].append(line)
    return out


def prose(data: Path) -> Lines:
    """Books, captions and three versions of the Bible; a verse is in the same split in all of them."""
    books = ((text.title(line), line) for path in sorted(data.glob("books/*.txt")) for line in text.read_lines(path))
    captions = ((text.title(line), line) for line in text.read_lines(data / "captions/train.txt"))
    verses = (
        (f"verse {number}", line)
        for version in VERSIONS
        for number, line in enumerate(text.read_lines(data / f"bible/{version}.txt"))
    )
    parts = [divided(part) for part in (books, captions, verses)]
    return {split: [line for part in parts for line in part[split]] for split in parts[0]}


def reviews(data: Path) -> Lines:
    """Reviews: in lower case, with spaces between tokens."""
    paths = [data / "yelp/train.negative", data / "yelp/train.positive"]
    return divided((text.title(line), line) for path in paths for line in text.read_lines(path))


def natural(line: str) -> str:
    """A review with capitals and without spaces before punctuation."""
    line = re.sub(r" ([.,!?;:)'])", r"\1", line)
    line = re.sub(r" n't\b", "n't", line)
    line = re.sub(r"\bi\b", "I", line)
    line = re.sub(r"([.!?] )([a-z])", lambda match: match[1] + match[2].upper(), line)
    return line[:1].upper() + line[1:]


def straight(line: str) -> str:
    """A line with straight quotation marks."""
    return line.translate({0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'"})


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    rng = random.Random(0)
    corpora = {"prose": prose(data), "reviews": reviews(data)}
    for name, lines in corpora.items():
        train, valid = lines["train"], lines["valid"]
        more: list[str] = []
        if name == "prose":
            more += [straight(line) for line in train if "\u201c" in line and rng.random() < STRAIGHT]
        else:
            more += [natural(line) for line in train if rng.random() < NATURAL]
            short = [straight(line) for line in corpora["prose"]["train"] if len(line.split()) <= 15]
            more += rng.sample(short, min(FOREIGN, len(short)))
        tokenizer = TextTokenizer.train(evenly(train + more, LEARNED), VOCABULARY[name], "unigram", 64)
        tokenizer.save(out / f"{name}.tokenizer")
        rng.shuffle(valid)
        content = json.dumps({"train": train + more, "valid": valid[:VALIDATION]}, ensure_ascii=False)
        packed = bz2.compress(content.encode())
        (out / f"{name}.json.bz2").write_bytes(packed)
        encoded = tokenizer.encode_all(valid)
        words = sum(len(line.split()) for line in valid)
        print(
            f"{name}: {len(train):,} lines, {len(more):,} variants, {len(valid):,} for validation; "
            f"{sum(len(c) for line in encoded for c in line) / words:.2f} tokens per word; "
            f"{len(packed) / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
