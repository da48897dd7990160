"""Public sets of sentences: files, splits, forms of words; and the table of word substitutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqvae.data.dataset import split_of
from seqvae.errors import ReadError, SeqVAEError
from seqvae.evaluation import text_metrics, text_sets
from seqvae.evaluation.word_table import WordTable


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """Two books and forty verses in three versions."""
    (tmp_path / "books").mkdir()
    (tmp_path / "bible").mkdir()
    books = ["file\tauthor\ttitle", "emma\tJane Austen\tEmma", "tom\tMark Twain\tTom Sawyer"]
    (tmp_path / "books/books.tsv").write_text("\n".join(books) + "\n")
    for name in ("emma", "tom"):
        lines = [f"Sentence {i} of {name}, no more." for i in range(200)]
        (tmp_path / f"books/{name}.txt").write_text("\n".join([*lines, "Too short."]) + "\n")
    for version, word in (("kjv", "thou"), ("bbe", "you"), ("web", "you all")):
        lines = [f"And {word} went to place {i}." for i in range(100)]
        (tmp_path / f"bible/{version}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_verses_are_split_by_number_and_keep_their_counterparts(prose: Path) -> None:
    corpus = text_sets.read(prose, {"archaic", "plain", "modern"})
    verses = corpus.sets["verses, archaic to plain"]
    numbers = [int(line.rstrip(".").split()[-1]) for line in verses.lines["archaic"]]
    assert numbers == [i for i in range(100) if split_of(f"verse {i}") == "test"] != []
    assert verses.references["archaic"] == [f"And you went to place {i}." for i in numbers]
    assert verses.lines["plain"] == []
    assert verses.pairs[0][0].replace("thou", "you") == verses.pairs[0][1]
    assert not set(verses.train["archaic"]) & set(verses.lines["archaic"])
    part = corpus.sets["verses, archaic to plain"].part(2, np.random.default_rng(0))
    assert len(part.lines["archaic"]) == 2
    for line, reference in zip(part.lines["archaic"], part.references["archaic"], strict=True):
        assert line.replace("thou", "you") == reference


def test_authors_are_moved_where_the_model_has_them(prose: Path) -> None:
    corpus = text_sets.read(prose, {"archaic", "plain", "jane-austen", "mark-twain"})
    authors = corpus.sets["authors, jane-austen and mark-twain"]
    assert set(authors.lines) == set(authors.train) == {"jane-austen", "mark-twain"}
    assert {split_of(line.lower()) for lines in authors.lines.values() for line in lines} == {"test"}
    assert {split_of(line.lower()) for lines in authors.train.values() for line in lines} == {"train"}
    assert "Too short." not in [*corpus.train, *corpus.held_out]
    assert corpus.skipped["verses, archaic to modern"] == "modern not among the styles of the model"
    assert set(corpus.sets) == {
        "verses, archaic to plain", "verses, plain to archaic", "authors, jane-austen and mark-twain",
    }  # fmt: skip
    assert corpus.tokenize("\u201cNo,\u201d she said.") == '" No , " she said .'


def test_a_folder_without_lines_for_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SeqVAEError, match="it needs yelp/ for the styles negative and positive"):
        text_sets.read(tmp_path, {"negative", "positive"})


def test_files_of_another_form_are_refused(prose: Path) -> None:
    (prose / "bible/web.txt").write_text("And you all went to place 0.\n")
    with pytest.raises(ReadError, match="the versions differ in lines"):
        text_sets.read(prose, {"archaic"})
    (prose / "books/books.tsv").write_text("name\nemma\n")
    with pytest.raises(ReadError, match="no columns file and author"):
        text_sets.read(prose, {"archaic"})


@pytest.mark.parametrize(
    ("natural", "review"),
    [
        ("She said she'd be back, and didn't disappear.", "she said she 'd be back , and did n't disappear ."),
        ('The staff\u2019s "free" dessert (hot).', 'the staff \'s " free " dessert ( hot ) .'),
        ("it is n't perfect , but it 's good .", "it is n't perfect , but it 's good ."),
        ("5-10 minutes for $5.50... wow!", "5-10 minutes for $ 5.50 ... wow !"),
    ],
)
def test_references_get_the_form_of_the_reviews(natural: str, review: str) -> None:
    assert text_sets.as_review(natural) == review


def test_names_of_authors() -> None:
    assert text_sets.style_of("Charlotte Bront\u00eb") == "charlotte-bronte"
    assert text_sets.style_of("active 6th century B.C. Sunzi") == "sunzi"


def test_content_words() -> None:
    assert text_metrics.content_words("The food wasn't GOOD, it was 7 times ok.") == {"food", "good", "times"}
    counts = text_metrics.content_statistics(["food and drink", ""], ["the good food", "an egg"])
    assert counts.tolist() == [[1, 2], [0, 1]]


def test_words_are_replaced_by_their_most_frequent_counterpart() -> None:
    table = WordTable(
        [("thou art here", "you are here"), ("thou art", "you are"), ("thou wast", "thou wast there now")]
    )
    assert table.substitute("and thou art here") == "and you are here"
    assert table.substitute("thou wast") == "you wast", "two words in the place of none are no substitution"
