from __future__ import annotations

from seqvae.evaluation.style_classifier import LineClassifier


def test_an_empty_line_is_classified_as_no_style() -> None:
    lines = ["a horrible room", "a lovely room", "", " "]
    classifier = LineClassifier({"negative": ["a horrible room"] * 4, "positive": ["a lovely room"] * 4}, 0)
    targets, sources = ["negative", "negative", "negative", "positive"], ["positive"] * 3 + ["negative"]
    assert classifier.puts_in(lines, targets).tolist() == [1, 0, 0, 0]
    assert classifier.prefers(lines, targets, sources).tolist() == [1, 0, 0, 0]


def test_a_preferred_target_need_not_be_the_first_of_all_styles() -> None:
    styles = {
        "red": ["red red"] * 4,
        "blue": ["blue blue"] * 4,
        "rather red": ["red red", "red blue", "red sky", "sky"],
    }
    classifier = LineClassifier(styles, 0)
    assert classifier.puts_in(["red red"], ["rather red"]) == [0]
    assert classifier.prefers(["red red"], ["rather red"], ["blue"]) == [1]
