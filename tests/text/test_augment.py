"""Augmentation of lines: words that a vocabulary lacks reach the model as bytes."""

from random import Random

import numpy as np
import pytest

from seqvae.protocols import EOS, PAD
from seqvae.text.augment import augmented
from seqvae.text.tokenizer import TextTokenizer

LINES = ["the food was good", "we had to wait for a table", "great service"] * 20


def test_variants_differ_and_are_lines() -> None:
    rng = Random(0)
    variants = {augmented("the food was good", rng) for _ in range(500)}
    assert len(variants) > 400
    assert not any({"\n", "\r", "\0"} & set(variant) for variant in variants)
    assert all(variant.strip() for variant in variants)
    assert "THE FOOD WAS GOOD" in variants
    letters = {ord(char) for variant in variants for char in variant}
    for first, last in ((0x1F300, 0x1F64F), (0x0410, 0x044F), (0x4E00, 0x9FFF)):  # emoji, Cyrillic, Chinese
        assert any(first <= letter <= last for letter in letters)


def test_a_blank_line_has_no_variant() -> None:
    with pytest.raises(ValueError, match="blank"):
        augmented(" ", Random(0))


def test_mixed_segments_hold_bytes_and_end_where_they_should() -> None:
    tokenizer = TextTokenizer.train(LINES, 300, max_tokens=32)
    encoded = [tokenizer.encode(line)[0] for line in LINES]
    tokens = np.full((len(LINES), 1, max(map(len, encoded))), PAD, np.int32)
    for row, chunk in zip(tokens, encoded, strict=True):
        row[0, : len(chunk)] = chunk
    mixed = tokenizer.mix(tokens, tokens, np.random.default_rng(0))
    assert mixed.shape[:2] == tokens.shape[:2]
    assert mixed.shape[2] <= tokenizer.max_tokens
    assert ((mixed == EOS).sum(-1) == 1).all()
    high = tokenizer.byte_of[mixed] >= 0x80
    assert high.any((1, 2)).sum() > len(LINES) // 4, "no bytes to train"
    again = tokenizer.mix(tokens, tokens, np.random.default_rng(0))
    assert np.array_equal(mixed, again), "a resumed run must repeat its batches"


def test_blank_chunks_stay() -> None:
    tokenizer = TextTokenizer.train(LINES, 300)
    blank = np.array([[[EOS, PAD]]], np.int32)
    assert np.array_equal(tokenizer.mix(blank, blank, np.random.default_rng(0)), blank)
