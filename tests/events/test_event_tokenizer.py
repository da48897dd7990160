"""Known sessions are restored, windows hold every event once apart from the overlap, unknown events share a token."""

from __future__ import annotations

import json
import pickle
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from seqvae.errors import CheckpointError, TokenizerError
from seqvae.events.tokenizer import SPECIAL, UNKNOWN, EventTokenizer
from seqvae.modality import load_tokenizer
from seqvae.nn.sampling import Sampling, decode
from seqvae.protocols import BOS, EOS, MASK, PAD

Ints = NDArray[np.int32]

# Numbers, codes, characters with a meaning elsewhere, and the names of the special tokens
SYMBOLS = [
    *("5", "22", "E11", "open", "<unk>", "<pad>", "</s>", '"', "\\n", "\0"),
    *("▁", "é", "e\u0301", "汉字", "👍🏽", "\udc80"),
]
sessions = st.lists(st.sampled_from(SYMBOLS), max_size=60)
windows = st.integers(2, 20).flatmap(lambda most: st.tuples(st.just(most), st.integers(0, most - 2)))


def tokenizer_of(window: tuple[int, int]) -> EventTokenizer:
    return EventTokenizer(SYMBOLS, *window)


def tokens_of(session: list[str]) -> list[int]:
    """Token ids of a session in one window, computed without the tokenizer."""
    return [len(SPECIAL) + SYMBOLS.index(symbol) for symbol in session] + [EOS]


# --- spelling ---------------------------------------------------------------------------------------------------------


@given(session=sessions, window=windows)
@example(session=[], window=(2, 0))
@example(session=SYMBOLS, window=(128, 32))
def test_any_known_session_is_restored_with_single_spaces(session: list[str], window: tuple[int, int]) -> None:
    events = tokenizer_of(window)
    wild = "\t".join(session).join((" ", "\u2003\r\n"))  # with any white space between them
    assert events.decode_text(events.encode(wild)) == " ".join(session)


@given(several=st.lists(sessions.map(" ".join), max_size=5), window=windows)
def test_many_sessions_are_tokenized_as_each_alone(several: list[str], window: tuple[int, int]) -> None:
    events = tokenizer_of(window)
    together = [[chunk.tolist() for chunk in chunks] for chunks in events.encode_all(several)]
    assert together == [[chunk.tolist() for chunk in events.encode(line)] for line in several]


def test_an_event_without_a_token_is_unknown_and_shown_as_unknown() -> None:
    events = EventTokenizer(["a", "b"])
    [chunk] = events.encode("a x b x")
    assert chunk.tolist() == [5, UNKNOWN, 6, UNKNOWN, EOS]
    assert events.decode_text([chunk]) == "a <unk> b <unk>"
    assert [events.token_text(token) for token in range(events.vocab_size)] == [*SPECIAL, "a", "b"]


@pytest.mark.parametrize("name", SPECIAL)
def test_a_symbol_with_the_name_of_a_special_token_is_another_token(name: str) -> None:
    assert EventTokenizer(["a"]).encode(name)[0].tolist() == [UNKNOWN, EOS], "no log spells a special token"
    events = EventTokenizer(["a", name])
    assert events.encode(name)[0].tolist() == [6, EOS]
    assert events.decode_text(events.encode(f"a {name} a")) == f"a {name} a"


@pytest.mark.parametrize("nothing", ["", " ", "\t\u2003\n"])
def test_the_empty_session_is_eos_alone(nothing: str) -> None:
    events = EventTokenizer(["a"], 4, 2)
    assert [chunk.tolist() for chunk in events.encode(nothing)] == [[EOS]]
    assert events.decode_text(events.encode(nothing)) == ""
    assert events.decode_text([]) == ""


@pytest.mark.parametrize("count", [0, 1, 1_000_000])
def test_tokenizing_takes_little_time_for_any_length(count: int) -> None:
    events = EventTokenizer(SYMBOLS, 128, 32)
    session = " ".join((SYMBOLS * (count // len(SYMBOLS) + 1))[:count])
    started = time.process_time()
    chunks = events.encode(session)
    assert events.decode_text(chunks) == session
    assert time.process_time() - started < 4
    assert len(chunks) == max(1, -(-(count + 1 - 32) // 96))


# --- windows ----------------------------------------------------------------------------------------------------------


@given(session=sessions, window=windows)
def test_windows_are_full_repeat_the_overlap_and_only_the_last_has_eos(
    session: list[str], window: tuple[int, int]
) -> None:
    most, overlap = window
    chunks = [chunk.tolist() for chunk in tokenizer_of(window).encode(" ".join(session))]
    assert all(len(chunk) == most for chunk in chunks[:-1])
    assert 1 <= len(chunks[-1]) <= most
    assert chunks[-1][-1] == EOS
    assert sum(chunk.count(EOS) for chunk in chunks) == 1
    for before, after in pairwise(chunks):
        assert after[:overlap] == before[most - overlap :]
        assert len(after) > overlap, "each window has a new event"
    assert len(chunks) == 1 or len(session) + 1 > most, "a session that fits is one window"


@given(session=sessions, window=windows)
def test_without_the_overlap_each_event_is_in_one_window(session: list[str], window: tuple[int, int]) -> None:
    most, overlap = window
    chunks = tokenizer_of(window).encode(" ".join(session))
    joined = [token for i, chunk in enumerate(chunks) for token in chunk[overlap if i else 0 :].tolist()]
    assert joined == tokens_of(session)
    seen = 0  # events of earlier windows
    for i, chunk in enumerate(chunks):
        first = i * (most - overlap)
        assert chunk.tolist() == tokens_of(session)[first : first + most]
        assert first + (overlap if i else 0) == seen, "exactly the overlap is dropped"
        seen = first + len(chunk)
    assert seen == len(session) + 1


def test_one_event_more_than_fits_makes_another_window() -> None:
    events = EventTokenizer(["a"], 8, 3)
    assert [len(chunk) for chunk in events.encode("a " * 7)] == [8]
    assert [len(chunk) for chunk in events.encode("a " * 8)] == [8, 4]
    assert [len(chunk) for chunk in events.encode("a " * 12)] == [8, 8]
    assert [len(chunk) for chunk in events.encode("a " * 13)] == [8, 8, 4]


def test_a_window_that_ends_early_loses_no_event_of_the_next() -> None:
    events = EventTokenizer(["a", "b", "c"], 6, 2)
    early = [np.array([5, 6, EOS, PAD], np.int32), np.array([5, 6, 7, EOS, PAD, PAD], np.int32)]
    assert events.decode_text(early) == "a b c", "the two overlapping events of the next window are not repeated"


@given(session=sessions, window=windows)
def test_a_perfect_decoder_writes_the_session(session: list[str], window: tuple[int, int]) -> None:
    events = tokenizer_of(window)
    chunks = [chunk.tolist() for chunk in events.encode(" ".join(session))]
    at = 0

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        nonlocal at, chunks
        chunks = chunks if keep is None else [chunks[i] for i in keep.tolist()]
        expected = [chunk[at] if at < len(chunk) else EOS for chunk in chunks]
        at += 1
        return one_hot(torch.tensor(expected), events.vocab_size).float()

    grammar = events.grammar()
    settings = Sampling(max_tokens=events.max_tokens)
    written = decode(step, grammar, grammar.start(len(chunks)), settings, torch.device("cpu"))
    assert events.decode_text(written) == " ".join(session)


@pytest.mark.parametrize("token", [-1, 8, 10**6])
def test_tokens_of_another_vocabulary_are_an_error(token: int) -> None:
    events = EventTokenizer(["a", "b", "c"])
    with pytest.raises(TokenizerError, match="vocabulary of 8"):
        events.decode_text([np.array([5, token, 6, EOS], np.int32)])


# --- learning ---------------------------------------------------------------------------------------------------------


@given(lines=st.lists(sessions.map(" ".join), min_size=1, max_size=8), vocab_size=st.integers(6, 25))
def test_the_most_frequent_symbols_seen_twice_make_the_vocabulary(lines: list[str], vocab_size: int) -> None:
    counts = Counter(symbol for line in lines for symbol in line.split())
    often = sorted((count for count in counts.values() if count > 1), reverse=True)
    if not often:
        with pytest.raises(TokenizerError, match="occurs twice"):
            EventTokenizer.train(lines, vocab_size)
        return
    events = EventTokenizer.train(iter(lines), vocab_size)
    assert [counts[symbol] for symbol in events.symbols] == often[: vocab_size - len(SPECIAL)]
    assert events.vocab_size == len(SPECIAL) + len(events.symbols) == len(events.binding_depth) <= vocab_size


def test_symbols_seen_once_train_the_unknown_token() -> None:
    events = EventTokenizer.train(["go go rare", "go stop odd", "stop"])
    assert events.symbols == ["go", "stop"]
    assert events.encode("go rare stop odd new")[0].tolist() == [5, UNKNOWN, 6, UNKNOWN, UNKNOWN, EOS]


def test_the_vocabulary_does_not_depend_on_the_order_of_sessions() -> None:
    lines = ["b a", "c a b", "d c", "d"]
    assert EventTokenizer.train(lines).symbols == EventTokenizer.train(lines[::-1]).symbols == ["a", "b", "c", "d"]


@pytest.mark.parametrize("lines", [[], [""], ["a b c"], ["a", "b"]])
def test_sessions_without_a_symbol_seen_twice_are_an_error(lines: list[str]) -> None:
    with pytest.raises(TokenizerError, match="occurs twice"):
        EventTokenizer.train(lines)


@pytest.mark.parametrize("vocab_size", [0, 1, len(SPECIAL)])
def test_no_room_beside_the_special_tokens_is_an_error(vocab_size: int) -> None:
    with pytest.raises(TokenizerError, match=f"vocabulary of {vocab_size}"):
        EventTokenizer.train(["a a"], vocab_size)


# --- saving and loading -----------------------------------------------------------------------------------------------


@given(session=sessions, window=windows)
def test_it_can_be_pickled_to_another_process(session: list[str], window: tuple[int, int]) -> None:
    events = tokenizer_of(window)
    again = pickle.loads(pickle.dumps(events))
    line = " ".join(session)
    assert [chunk.tolist() for chunk in again.encode(line)] == [chunk.tolist() for chunk in events.encode(line)]


def test_loading_returns_the_saved_tokenizer_for_any_symbols(tmp_path: Path) -> None:
    events = EventTokenizer(SYMBOLS, 10, 4)
    events.save(tmp_path / "new" / "folder")
    again = load_tokenizer(tmp_path / "new" / "folder")
    assert isinstance(again, EventTokenizer)
    assert (again.symbols, again.window, again.overlap) == (SYMBOLS, 10, 4)
    assert (again.vocab_size, again.max_tokens) == (events.vocab_size, events.max_tokens)
    line = " ".join([*SYMBOLS, "new"] * 3)
    assert [chunk.tolist() for chunk in again.encode(line)] == [chunk.tolist() for chunk in events.encode(line)]


@pytest.mark.parametrize(("max_tokens", "overlap"), [
    (1, 0), (0, 0), (-5, 0), (8, 7), (8, 8), (8, -1), (8.0, 0), (8, 1.0), (True, 0), ("8", 0), (None, 0), (8, None),
])  # fmt: skip
def test_an_overlap_as_long_as_the_window_is_an_error(tmp_path: Path, max_tokens: object, overlap: object) -> None:
    with pytest.raises(TokenizerError, match="windows of"):
        EventTokenizer(["a"], max_tokens, overlap)  # type: ignore[arg-type]
    settings = {"kind": "events", "max_tokens": max_tokens, "overlap": overlap, "symbols": ["a"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="windows of"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("symbols", "reason"), [
    (["a", "b c"], "white space"), ([""], "white space"), (["a\n"], "white space"), (["a\x85"], "white space"),
    ([5], "white space"), ([None], "white space"), (["a", "b", "a"], "twice"),
])  # fmt: skip
def test_symbols_with_white_space_are_an_error(tmp_path: Path, symbols: list[object], reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        EventTokenizer(symbols)  # type: ignore[arg-type]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "events", "symbols": symbols}))
    with pytest.raises(CheckpointError, match=reason):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("settings", [
    {}, {"symbols": None}, {"symbols": 3}, {"symbols": "open"}, {"symbols": ["a"], "colour": 1},
])  # fmt: skip
def test_settings_of_another_version_are_an_error_in_one_line(tmp_path: Path, settings: dict[str, object]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "events", **settings}))
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- grammar ----------------------------------------------------------------------------------------------------------


def test_its_tokens_have_no_position_fields_and_all_are_allowed() -> None:
    events = EventTokenizer(SYMBOLS)
    tokens = np.zeros((2, 1, 7), np.int32)
    assert events.field_sizes == ()
    assert events.position_fields(tokens).shape == (2, 1, 7, 0)
    assert events.allowed(tokens) is None
    assert events.binding_depth.tolist() == [0] * events.vocab_size
    assert events.mix(tokens, tokens + 1, np.random.default_rng(0)) is tokens


@given(seed=st.integers(0, 2**32 - 1))
def test_a_random_sequence_of_allowed_tokens_is_a_session_of_known_symbols(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events = EventTokenizer(SYMBOLS, 128)
    grammar = events.grammar()
    state, walks = grammar.start(8), np.zeros((8, 40), np.int32)
    for t in range(40):
        allowed = grammar.allowed(state)
        ended = (walks[:, :t] == EOS).any(1)
        assert not allowed[:, [BOS, MASK, UNKNOWN]].any()
        assert (allowed[:, PAD] == ended).all(), "only padding after the end"
        assert (allowed.sum(1) == np.where(ended, 1, len(SYMBOLS) + 1)).all(), "otherwise every symbol or the end"
        assert (allowed[:, EOS] == ~ended).all()
        assert grammar.position_fields(state).shape == (8, 0)
        walks[:, t] = [rng.choice(np.flatnonzero(row)) for row in allowed]
        state = grammar.advance(state, walks[:, t])
    for walk in walks:
        text = events.decode_text([walk])
        assert set(text.split(" ")) <= {*SYMBOLS, ""}
        if EOS in walk.tolist():
            [chunk] = events.encode(text)
            assert chunk.tolist() == walk[: len(chunk)].tolist()
