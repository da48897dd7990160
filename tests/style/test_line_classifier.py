"""The classifier of lines by style, and the words that two lines share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from styles import random_style

from seqvae.errors import StyleError
from seqvae.style import choice, line_classifier, styles_file

GOOD = [line for line in SENTENCES if line.split()[3] == "good"]
BAD = [line for line in SENTENCES if line.split()[3] == "bad"]


def test_lines_outside_the_fit_are_told_apart() -> None:
    weights = line_classifier.fit({"good": GOOD[::2], "bad": BAD[::2]})
    test = [*GOOD[1::2], *BAD[1::2]]
    p = line_classifier.probability(test, weights["bad"], weights["good"])
    assert (p[: len(GOOD[1::2])] > 0.8).all() and (p[len(GOOD[1::2]) :] < 0.2).all()
    np.testing.assert_allclose(line_classifier.probability(test, weights["good"], weights["bad"]), 1 - p, atol=1e-6)


def test_a_style_with_more_lines_is_not_more_probable() -> None:
    weights = line_classifier.fit({"good": GOOD, "bad": BAD[:3]})
    [p] = line_classifier.probability(["zzz"], weights["bad"], weights["good"])
    assert 0.2 < p < 0.8


def test_a_blank_line_has_no_style() -> None:
    weights = line_classifier.fit({"good": GOOD, "bad": BAD})
    assert line_classifier.probability(["", "  "], weights["bad"], weights["good"]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [("a b c", "a b c", 1.0), ("a b", "c d", 0.0), ("A b.", "a b .", 1.0), ("a b c", "b c d", (2 / 3 + 1 / 2) / 2)],
)
def test_overlap_is_the_mean_f1_of_words_and_pairs(one: str, other: str, share: float) -> None:
    assert line_classifier.overlap(one, other) == pytest.approx(share)


def test_loops_are_repetitions_that_the_source_lacks() -> None:
    assert line_classifier.loops("great service and great service", "the service was bad")
    assert line_classifier.loops("very very good", "bad")
    assert not line_classifier.loops("very very good", "very very bad")
    assert not line_classifier.loops("the food and the service were good", "bad")


def test_a_file_keeps_the_classifier(tmp_path: Path) -> None:
    styles = choice.with_classifiers({"good": random_style(0), "bad": random_style(1)}, {"good": GOOD, "bad": BAD})
    styles_file.save(styles, tmp_path / "my.styles")
    for name, style in styles_file.load(tmp_path / "my.styles").items():
        kept, fitted = style.classifier, styles[name].classifier
        assert kept is not None and fitted is not None
        assert torch.equal(kept.weights, fitted.weights) and kept.among == fitted.among == ("good", "bad")


@pytest.mark.parametrize("damage", ["size", "nan", "names"])
def test_a_damaged_classifier_is_refused(damage: str) -> None:
    styles = choice.with_classifiers({"good": random_style(0), "bad": random_style(1)}, {"good": GOOD, "bad": BAD})
    tensors, about = styles_file.pack(styles)
    weights = tensors["good.classifier"]
    if damage == "size":
        tensors["good.classifier"] = weights[:-1]
    elif damage == "nan":
        weights[0] = torch.nan
    else:
        about["good"] = about["good"].replace('"good"', '"other"')
    with pytest.raises(StyleError, match="style 'good': its classifier is damaged; fit it again"):
        styles_file.unpack(tensors, about)


def test_the_weight_of_a_token_is_that_of_its_word() -> None:
    weights = line_classifier.fit({"good": GOOD, "bad": BAD})
    found = line_classifier.token_weights(
        [" good", " Bad", "good", " go od", " ", "<bos>"], weights["bad"], weights["good"]
    )
    assert found[0] > 0 > found[1]
    assert found[2:].tolist() == [0, 0, 0, 0]


def test_a_single_style_and_pieces_other_than_lines_have_no_classifier() -> None:
    alone = choice.with_classifiers({"good": random_style(0)}, {"good": GOOD})
    paths = choice.with_classifiers({"a": random_style(0), "b": random_style(1)}, {"a": [Path("x")], "b": [Path("y")]})
    assert [style.classifier for style in [*alone.values(), *paths.values()]] == [None, None, None]
