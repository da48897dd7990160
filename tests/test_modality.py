"""Modalities: tokenizers made from recipes, loaded from folders, and errors in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from seqvae.config import TokenizerConfig
from seqvae.errors import CheckpointError, ConfigError, TokenizerError
from seqvae.events.tokenizer import EventTokenizer
from seqvae.modality import MODALITIES, load_tokenizer, make
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.protocols import BOS, EOS, MASK, PAD, Tokenizer
from seqvae.text.tokenizer import MODEL, TextTokenizer

LINES = ["a line of words", "and a second line , with other words"]
KINDS = list(MODALITIES)


@pytest.fixture(scope="module")
def text() -> Tokenizer:
    return make(TokenizerConfig(kind="text", vocab_size=300, max_tokens=32), lambda: LINES)


@pytest.mark.parametrize("kind", KINDS)
def test_every_modality_is_made_with_the_common_interface(kind: str) -> None:
    made = make(TokenizerConfig(kind=kind, vocab_size=300), lambda: LINES)
    assert made.kind == kind
    assert made.binding_depth.shape == (made.vocab_size,)
    assert 0 <= made.overlap < made.max_tokens
    assert [made.token_text(token) for token in (PAD, BOS, EOS, MASK)] == ["<pad>", "<bos>", "<eos>", "<mask>"]
    assert len({made.token_text(token) for token in range(made.vocab_size)}) == made.vocab_size
    tokens = np.full((2, 3, 5), 2, np.int32)
    assert made.position_fields(tokens).shape == (2, 3, 5, len(made.field_sizes))
    allowed = made.allowed(tokens)
    assert allowed is None or allowed.shape == (2, 3, 5, made.vocab_size)
    grammar = made.grammar()
    state = grammar.start(4)
    assert grammar.allowed(state).shape == (4, made.vocab_size)
    assert grammar.position_fields(state).shape == (4, len(made.field_sizes))
    assert grammar.advance(state, np.full(4, 2, np.int32)).shape == state.shape


def test_an_unknown_modality_of_a_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="midi, text, events"):
        make(TokenizerConfig(kind="smoke"), lambda: LINES)


def test_a_music_tokenizer_reads_no_pieces() -> None:
    def pieces() -> Iterator[str]:
        raise AssertionError("pieces were requested")

    made = make(TokenizerConfig(max_steps=96, common_key=True), pieces)
    assert isinstance(made, MidiTokenizer)
    assert (made.max_steps, made.common_key) == (96, True)


def test_a_text_tokenizer_is_learned_with_the_settings(text: Tokenizer) -> None:
    assert isinstance(text, TextTokenizer)
    assert text.max_tokens == 32
    assert text.vocab_size <= 300
    unigram = make(TokenizerConfig(kind="text", algorithm="unigram", vocab_size=300), lambda: LINES)
    assert isinstance(unigram, TextTokenizer)
    assert unigram.model != text.model


def test_an_event_tokenizer_is_learned_with_the_settings() -> None:
    events = make(TokenizerConfig(kind="events", vocab_size=7, max_tokens=9, overlap=2), lambda: [*LINES, *LINES])
    assert isinstance(events, EventTokenizer)
    assert (events.window, events.overlap, events.vocab_size) == (9, 2, 7)
    assert events.symbols == ["a", "line"], "the most frequent"
    with pytest.raises(TokenizerError, match="windows of 9"):
        make(TokenizerConfig(kind="events", max_tokens=9, overlap=8), lambda: LINES)


@pytest.mark.parametrize("lines", [[], ["each symbol only once"]])
def test_events_without_a_symbol_seen_twice_are_an_error(lines: list[str]) -> None:
    with pytest.raises(TokenizerError, match="occurs twice"):
        make(TokenizerConfig(kind="events"), lambda: lines)


def test_text_without_lines_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="no lines"):
        make(TokenizerConfig(kind="text"), lambda: [])


def test_a_saved_music_tokenizer_is_loaded(tokenizer: MidiTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert isinstance(again, MidiTokenizer)
    assert again.vocabulary == tokenizer.vocabulary
    assert again.field_sizes == tokenizer.field_sizes


def test_a_saved_text_tokenizer_is_loaded(text: Tokenizer, tmp_path: Path) -> None:
    assert isinstance(text, TextTokenizer)
    text.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert isinstance(again, TextTokenizer)
    assert (again.model, again.max_tokens, again.vocab_size) == (text.model, text.max_tokens, text.vocab_size)
    for line in (*LINES, "a thïrd"):
        assert [chunk.tolist() for chunk in again.encode(line)] == [chunk.tolist() for chunk in text.encode(line)]


def test_a_saved_event_tokenizer_is_loaded(tmp_path: Path) -> None:
    events = make(TokenizerConfig(kind="events", max_tokens=5, overlap=2), lambda: LINES)
    assert isinstance(events, EventTokenizer)
    events.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert isinstance(again, EventTokenizer)
    assert (again.symbols, again.window, again.overlap) == (events.symbols, 5, 2)
    for line in (*LINES, "a line of another kind"):
        assert [chunk.tolist() for chunk in again.encode(line)] == [chunk.tolist() for chunk in events.encode(line)]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "{}", '{"kind": "smoke"}'])
def test_a_folder_without_a_tokenizer_is_an_error_in_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_an_unknown_modality_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"kind": "smoke"}')
    with pytest.raises(CheckpointError, match="smoke") as caught:
        load_tokenizer(tmp_path)
    assert all(kind in str(caught.value).partition("knows")[2] for kind in KINDS)


@pytest.mark.parametrize("steps", [12, 6])
def test_music_of_an_earlier_version_uses_the_remaining_grid(tmp_path: Path, steps: int) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "midi", "steps_per_beat": steps, "max_steps": 48}))
    if steps == 12:
        assert load_tokenizer(tmp_path).vocab_size == MidiTokenizer().vocab_size
    else:
        with pytest.raises(CheckpointError, match="steps_per_beat"):
            load_tokenizer(tmp_path)


def test_settings_of_another_version_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "midi", "steps_per_beat": 12, "colour": 3}))
    with pytest.raises(CheckpointError, match="colour"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("broken", [None, b"", b"not a model", "half", "foreign"])
def test_a_broken_sentencepiece_model_is_an_error_in_one_line(
    text: Tokenizer, tmp_path: Path, broken: bytes | str | None
) -> None:
    assert isinstance(text, TextTokenizer)
    text.save(tmp_path)
    if broken is None:
        (tmp_path / MODEL).unlink()
    else:
        # "foreign" has lost the name of one of its bytes
        pieces = {"half": text.model[: len(text.model) // 2], "foreign": text.model.replace(b"<0x41>", b"<bx41>")}
        (tmp_path / MODEL).write_bytes(pieces[broken] if isinstance(broken, str) else broken)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path)
    assert MODEL in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("max_tokens", ["many", 3, None, True])
def test_a_wrong_setting_of_text_is_an_error(text: Tokenizer, tmp_path: Path, max_tokens: object) -> None:
    text.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "text", "max_tokens": max_tokens}))
    with pytest.raises(CheckpointError, match="max_tokens"):
        load_tokenizer(tmp_path)
