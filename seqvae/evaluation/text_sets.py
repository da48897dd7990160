"""Public sets of sentences in a folder: lines to move between two styles, with references where there are any.

Scope: the files of the folder, their splits, and the form of their words. Out of scope: models and figures. Files:

- `yelp/`: reviews in lower case, with spaces between all tokens. `train.negative` and `train.positive` for training,
  `valid.txt` held out. Sets: `sentiment/100.neg` and `100.pos` (Shen et al. 2020); `human-dev/sentiment.test.*` with
  rewrites by people in `reference.*`, after a tab (Li et al. 2018); `tense/valid.past` and `valid.present`.
- `books/`: sentences of the authors that `books.tsv` names, one file a book.
- `bible/`: `kjv.txt`, `bbe.txt` and `web.txt`, line by line the same verse.

Lines of books and of tense are held out by a hash of their words, verses by their number, as in training.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqvae.data.dataset import split_of
from seqvae.errors import ReadError, SeqVAEError
from seqvae.evaluation import text_metrics
from seqvae.text import lines as text

Lines = dict[str, list[str]]
WORDS = (3, 40)  # least and most words of a line of a book or of the Bible
VERSIONS = {"archaic": "kjv", "plain": "bbe", "modern": "web"}
VERSES = (("archaic", "plain"), ("plain", "archaic"), ("archaic", "modern"))
AUTHORS = (
    ("jane-austen", "mark-twain"), ("charles-dickens", "lewis-carroll"), ("james-joyce", "charlotte-bronte"),
    ("herman-melville", "louisa-may-alcott"), ("bertrand-russell", "l-frank-baum"), ("thomas-hobbes", "oscar-wilde"),
)  # fmt: skip
"""Pairs of authors between whom lines are moved, both ways."""
AUTHOR_LINES = 1000  # most training lines of each author for the classifier


@dataclass(frozen=True)
class TransferSet:
    """Held-out lines of two styles, which are moved to each other, and training lines."""

    lines: Lines
    """Two styles, the second with no line if the lines of the first alone are moved."""
    train: Lines
    """Training lines for the classifier, of both styles and perhaps of others."""
    references: Lines = field(default_factory=dict)
    """Each line rewritten in the other style."""
    pairs: list[tuple[str, str]] = field(default_factory=list)
    """Training lines of the first style and the same in the second."""
    published: str = ""
    """Figures of others on this set or one like it."""

    def part(self, most: int, rng: np.random.Generator) -> TransferSet:
        """The set with at most `most` random lines of each style."""
        rows = {name: np.sort(rng.permutation(len(lines))[:most]) for name, lines in self.lines.items()}
        lines, references = (
            {name: [members[i] for i in rows[name]] for name, members in one.items()}
            for one in (self.lines, self.references)
        )
        return TransferSet(lines, self.train, references, self.pairs, self.published)


@dataclass(frozen=True)
class Corpus:
    """The lines of one kind of text in a folder."""

    train: list[str]
    held_out: list[str]
    sets: dict[str, TransferSet]
    """By name."""
    skipped: dict[str, str]
    """Sets that cannot be measured, with the reason."""
    natural: bool
    """Whether case and punctuation are as in print."""

    def tokenize(self, line: str) -> str:
        """A line with spaces between words and punctuation."""
        return text_metrics.tokenized(line) if self.natural else line


def read(folder: Path, styles: Collection[str]) -> Corpus:
    """The corpus for a model with these styles; raises SeqVAEError if the folder has none, ReadError as read_lines."""
    if (folder / "yelp").is_dir() and {"negative", "positive"} <= set(styles):
        return _reviews(folder / "yelp", styles)
    if (folder / "books").is_dir() and (folder / "bible").is_dir() and "archaic" in styles:
        return _prose(folder, styles)
    raise SeqVAEError(
        f"{folder}: has no lines for this model; it needs yelp/ for the styles negative and positive, or books/ and "
        "bible/ for authors and archaic; without a folder, give --data NAME=@FILE"
    )


def _lines(path: Path) -> list[str]:
    return [line for line in text.read_lines(path) if line.strip()]


# --- reviews ----------------------------------------------------------------------------------------------------------


def _reviews(folder: Path, styles: Collection[str]) -> Corpus:
    train = {name: _lines(folder / f"train.{name}") for name in ("negative", "positive")}
    makers = {"sentiment": _sentiment, "human references": _human, "tense": _tense}
    sets: dict[str, TransferSet] = {}
    skipped: dict[str, str] = {}
    for name, make in makers.items():
        try:
            made = make(folder, train)
        except ReadError as error:
            skipped[name] = str(error)
            continue
        if missing := sorted(set(made.lines) - set(styles)):
            skipped[name] = f"{', '.join(missing)} not among the styles of the model"
        else:
            sets[name] = made
    both = [line for lines in train.values() for line in lines]
    return Corpus(both, _lines(folder / "valid.txt"), sets, skipped, natural=False)


def _sentiment(folder: Path, train: Lines) -> TransferSet:
    lines = {"negative": _lines(folder / "sentiment/100.neg"), "positive": _lines(folder / "sentiment/100.pos")}
    published = "self-BLEU 18.2 at an accuracy of 73.6 %, 7.3 at 91.8 % (DAAE on 2,000 lines, Shen et al. 2020)."
    return TransferSet(lines, train, published=published)


def _human(folder: Path, train: Lines) -> TransferSet:
    lines: Lines = {}
    references: Lines = {}
    for number, style in enumerate(("negative", "positive")):
        pairs = [line.split("\t") for line in _lines(folder / f"human-dev/reference.{number}")]
        if any(len(pair) != 2 for pair in pairs):
            path = folder / f"human-dev/reference.{number}"
            raise ReadError(path, "a line has no rewrite after a tab", "give the source, a tab and the rewrite")
        lines[style], references[style] = [a for a, _ in pairs], [as_review(b) for _, b in pairs]
    published = "accuracy 77 %, self-BLEU 66, BLEU to reference 23 (NAST, all 1,000 lines, classifier of this kind)."
    return TransferSet(lines, train, references, published=published)


def _tense(folder: Path, _: Lines) -> TransferSet:
    lines: Lines = {}
    train: Lines = {}
    for style in ("past", "present"):
        found = _lines(folder / f"tense/valid.{style}")
        train[style] = [line for line in found if split_of(text.title(line)) == "train"]
        lines[style] = [line for line in found if split_of(text.title(line)) != "train"]
    published = "accuracy 50.3 %, self-BLEU 54.3 (DAAE on other lines, Shen et al. 2020)."
    return TransferSet(lines, train, published=published)


def as_review(line: str) -> str:
    """A line of natural text in the form of the reviews: lower case, spaces between all tokens, "do n't"."""
    line = re.sub(r"(\.\.\.|--|[.,](?!\d)|[!?;:()\"$&])", r" \1 ", line.lower().replace("\u2019", "'"))
    line = re.sub(r"(?<=\w)n't\b", " n't", line)
    line = re.sub(r"(?<=[^\W_])'(s|m|d|re|ve|ll)\b", r" '\1", line)
    return " ".join(line.split())


# --- books and verses -------------------------------------------------------------------------------------------------


def style_of(author: str) -> str:
    """The name of an author's style: ASCII letters and hyphens."""
    plain = unicodedata.normalize("NFKD", author).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"active .* b\.c\.|bishop of hippo saint|emperor of rome|graf ", "", plain)
    return re.sub(r"[^a-z]+", "-", plain).strip("-")


def _suitable(line: str) -> bool:
    return WORDS[0] <= len(line.split()) <= WORDS[1]


def _prose(folder: Path, styles: Collection[str]) -> Corpus:
    train, test = _books(folder / "books")
    verses = [list(text.read_lines(folder / f"bible/{version}.txt")) for version in VERSIONS.values()]
    if len(set(map(len, verses))) > 1:
        raise ReadError(folder / "bible", "the versions differ in lines", "give the same verse on each line of all")
    rows = [
        (split_of(f"verse {i}"), dict(zip(VERSIONS, row, strict=True)))
        for i, row in enumerate(zip(*verses, strict=True))
        if all(map(_suitable, row))
    ]
    learned, new = ([row for split, row in rows if split == wanted] for wanted in ("train", "test"))
    sets: dict[str, TransferSet] = {}
    for a, b in VERSES:
        sets[f"verses, {a} to {b}"] = TransferSet(
            {a: [row[a] for row in new], b: []},
            {style: [row[style] for row in learned] for style in (a, b)},
            {a: [row[b] for row in new], b: []},
            [(row[a], row[b]) for row in learned],
        )
    few = {name: lines[:: -(-len(lines) // AUTHOR_LINES)] for name, lines in train.items() if name in styles}
    for a, b in AUTHORS:
        sets[f"authors, {a} and {b}"] = TransferSet({name: test.get(name, []) for name in (a, b)}, few)
    skipped = {
        name: f"{', '.join(missing)} not among the styles of the model"
        for name, one in sets.items()
        if (missing := sorted(set(one.lines) - set(styles)))
    }
    every = [line for lines in train.values() for line in lines] + [line for row in learned for line in row.values()]
    held_out = [line for lines in test.values() for line in lines]
    return Corpus(every, held_out, {k: one for k, one in sets.items() if k not in skipped}, skipped, natural=True)


def _books(folder: Path) -> tuple[Lines, Lines]:
    """Training and test lines by the style of their author."""
    path = folder / "books.tsv"
    books = list(csv.DictReader(text.read_lines(path), delimiter="\t"))
    if not books or not {"file", "author"} <= set(books[0]):
        raise ReadError(path, "it has no columns file and author", "name each book's file, without .txt, and author")
    train: Lines = {}
    test: Lines = {}
    for book in books:
        name = style_of(book["author"])
        for line in filter(_suitable, _lines(folder / f"{book['file']}.txt")):
            split = split_of(text.title(line))
            if split != "valid":
                (train if split == "train" else test).setdefault(name, []).append(line)
    return train, test
