"""Any line is restored, the grammar allows only valid Unicode, and segment borders do not divide words."""

from __future__ import annotations

import pickle
import random
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqvae.errors import TokenizerError
from seqvae.protocols import BOS, EOS, MASK, PAD
from seqvae.text.tokenizer import LEAST, SPACE, TextGrammar, TextTokenizer

Ints = NDArray[np.int32]

WORDS = ["the", "food", "was", "not", "very", "good", "but", "service", "great", "and", "we", "will", "be", "back"]
CORPUS = [" ".join(random.Random(i).choices(WORDS, k=9)) + " ." for i in range(200)] + [
    "déjà vu in the <unk> café <bos> , N $ 3.50",
    "汉字 и слова",
]
# Characters with a meaning to SentencePiece, UTF-8 or line splitting, beside ordinary words
TROUBLE = [
    *(" ", "  ", "\t", "\n", "\r", "\0", "\x85", SPACE, "\u2028", "\u2585", "\u2047", "\ufeff", "\ufffd", "e\u0301"),
    *("<pad>", "<bos>", "<eos>", "<unk>", "<mask>", "<s>", "<0x41>", f"<mask{SPACE}>", f"<bos{SPACE}>"),
    *("\u07ff", "\u0800", "\uffff", "\U00010000", "\U0010ffff", "👍🏽", "é", "汉", "the", "good", " food", "ﬁ"),
]  # fmt: skip
lines = st.one_of(
    st.text(max_size=40),
    st.lists(st.one_of(st.sampled_from(TROUBLE), st.text(max_size=3)), max_size=12).map("".join),
    st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join),
)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def text(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer.train(CORPUS, 400, request.param)


def short(tokenizer: TextTokenizer, max_tokens: int) -> TextTokenizer:
    return TextTokenizer(tokenizer.model, max_tokens)


# --- spelling ---------------------------------------------------------------------------------------------------------


@given(line=lines)
@example(line="")
@example(line=" ")
@example(line=SPACE)
@example(line=f" {SPACE} ")
@example(line=f"{SPACE}{SPACE}a{SPACE}")
@example(line="<bos><pad><mask><eos>")
@example(line=f"<mask{SPACE}>")
@settings(deadline=None)
def test_any_line_is_restored(text: TextTokenizer, line: str) -> None:
    chunks = text.encode(line)
    assert text.decode_text(chunks) == line
    for chunk in chunks:
        assert chunk.dtype == np.int32
        assert chunk[-1] == EOS
        assert not {PAD, BOS, EOS, MASK} & set(chunk[:-1].tolist()), "no text spells a special token"


@pytest.mark.parametrize("sign", TROUBLE)
def test_special_characters_are_restored_at_any_position(text: TextTokenizer, sign: str) -> None:
    for line in (sign, f"{sign}the", f"the{sign}", f" {sign} ", f"the {sign} food", sign * 3):
        assert text.decode_text(text.encode(line)) == line


@given(line=lines, max_tokens=st.integers(5, 12))
@settings(deadline=None)
def test_a_line_divided_into_chunks_is_restored(text: TextTokenizer, line: str, max_tokens: int) -> None:
    whole = text.encode(line)
    tokenizer = short(text, max_tokens)
    chunks = tokenizer.encode(line)
    assert tokenizer.decode_text(chunks) == line
    assert all(1 < len(chunk) <= max_tokens for chunk in chunks) or line == ""
    if len(whole) == 1:
        assert [i for chunk in chunks for i in chunk[:-1].tolist()] == whole[0][:-1].tolist(), (
            "truncated, not tokenized again"
        )
    assert not any(0x80 <= text.byte_of[chunk[0]] < 0xC0 for chunk in chunks), "never inside a character"


def test_chunks_begin_before_a_word(text: TextTokenizer) -> None:
    line = " ".join(WORDS * 4)
    tokenizer = short(text, 16)
    chunks = tokenizer.encode(line)
    assert len(chunks) >= 4
    texts = [tokenizer.decode_text([chunk]) for chunk in chunks]
    assert all(set(part.split()) <= set(WORDS) for part in texts)
    assert " ".join(texts) == line


def test_tokens_fill_one_chunk_and_one_more_makes_two(text: TextTokenizer) -> None:
    line = "the food was not very good"
    [chunk] = text.encode(line)
    assert len(short(text, len(chunk)).encode(line)) == 1
    assert len(short(text, len(chunk) - 1).encode(line)) == 2


def test_the_empty_line_is_eos_alone(text: TextTokenizer) -> None:
    assert [chunk.tolist() for chunk in text.encode("")] == [[EOS]]
    assert text.decode_text(text.encode("")) == ""
    assert text.decode_text([]) == ""


@given(several=st.lists(lines, max_size=6))
@settings(deadline=None)
def test_many_lines_are_tokenized_as_each_alone(text: TextTokenizer, several: list[str]) -> None:
    together = [[chunk.tolist() for chunk in chunks] for chunks in text.encode_all(several)]
    assert together == [[chunk.tolist() for chunk in text.encode(line)] for line in several]


def test_the_first_word_is_tokenized_like_any_other(text: TextTokenizer) -> None:
    first, second = text.encode("food food")[0][:-1].reshape(2, -1)
    assert first.tolist() == second.tolist()


def test_known_words_are_pieces() -> None:
    # byte pairs: with so few lines the unigram algorithm keeps little more than the letters
    text = TextTokenizer.train(CORPUS, 400)
    [chunk] = text.encode("the food was good")
    assert [text.token_text(i) for i in chunk.tolist()] == [" the", " food", " was", " good", "<eos>"]


@pytest.mark.parametrize("line", ["a\ud83d", "\udc00", "long " * 50 + "\udfff"])
def test_half_a_character_is_an_error_that_names_it(text: TextTokenizer, line: str) -> None:
    with pytest.raises(TokenizerError, match=rf"U\+{ord(line[-1]):04X}"):
        text.encode(line)
    with pytest.raises(TokenizerError, match="surrogate"):
        TextTokenizer.train([line], 400)


@pytest.mark.parametrize("unit", ["a", "the food ", SPACE, "汉"])
def test_a_line_of_a_megabyte_takes_little_time(text: TextTokenizer, unit: str) -> None:
    line = unit * (1_000_000 // len(unit.encode()))
    started = time.process_time()
    chunks = text.encode(line)
    assert time.process_time() - started < 10
    assert max(map(len, chunks)) <= text.max_tokens
    assert text.decode_text(chunks) == line


def test_invalid_bytes_are_replaced_and_padding_is_skipped(text: TextTokenizer) -> None:
    lead = int(np.flatnonzero(text.byte_of == 0xE2)[0])
    [food] = text.encode("food")
    ids = [*food[:-1].tolist(), lead, EOS, PAD, lead]
    assert text.decode_text([np.array(ids, np.int32)]) == "food\ufffd"


@pytest.mark.parametrize("token", [-1, 10_000])
def test_tokens_of_another_vocabulary_are_an_error(text: TextTokenizer, token: int) -> None:
    with pytest.raises(TokenizerError, match=str(token)):
        text.decode_text([np.array([token], np.int32)])


def test_tokens_can_be_shown_one_by_one(text: TextTokenizer) -> None:
    [chunk] = text.encode("the food é 👍")
    shown = [text.token_text(int(i)) for i in chunk]
    assert shown[-1] == "<eos>"
    assert shown[-5:-1] == ["<0xF0>", "<0x9F>", "<0x91>", "<0x8D>"]
    assert "".join(shown[:-5]) == " the food é "
    assert [text.token_text(i) for i in (PAD, BOS, MASK)] == ["<pad>", "<bos>", "<mask>"]


def test_it_can_be_pickled_to_another_process(text: TextTokenizer) -> None:
    again = pickle.loads(pickle.dumps(text))
    assert again.encode("the food")[0].tolist() == text.encode("the food")[0].tolist()


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char"])
def test_the_same_lines_give_the_same_tokenizer(algorithm: str) -> None:
    one, other = (TextTokenizer.train(iter(CORPUS), 400, algorithm) for _ in range(2))
    assert one.model == other.model
    assert TextTokenizer.train(CORPUS[1:], 400, algorithm).model != one.model


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char"])
@given(corpus=st.lists(lines, min_size=1, max_size=8), vocab_size=st.integers(LEAST, 500))
@example(corpus=[""], vocab_size=LEAST)
@example(corpus=["a"], vocab_size=LEAST)
@example(corpus=["\u2585"], vocab_size=300)
@example(corpus=["a^-]\\b"], vocab_size=LEAST + 2)
@example(corpus=["ab" * 40_000], vocab_size=300)
@settings(deadline=None, max_examples=50)
def test_few_lines_make_a_smaller_vocabulary(algorithm: str, corpus: list[str], vocab_size: int) -> None:
    tokenizer = TextTokenizer.train(corpus, vocab_size, algorithm)
    assert LEAST <= tokenizer.vocab_size <= vocab_size
    for line in (*corpus, "something else"):
        assert tokenizer.decode_text(tokenizer.encode(line)) == line


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char"])
def test_letters_beyond_the_vocabulary_are_spelled_in_bytes(algorithm: str) -> None:
    many = ["".join(map(chr, range(start, start + 50))) + " 汉字" * 3 for start in range(0x5000, 0x6000, 50)]
    tokenizer = TextTokenizer.train(many, 300, algorithm)
    assert tokenizer.vocab_size <= 300
    assert all(tokenizer.decode_text(tokenizer.encode(line)) == line for line in many)
    assert len(tokenizer.encode("汉")[0]) < len(tokenizer.encode("\u5050")[0]), "the frequent ones are learned"


def test_characters_are_a_token_each() -> None:
    tokenizer = TextTokenizer.train(["get /a?b=c", "post /a?b=d"], 400, "char")
    [chunk] = tokenizer.encode("get  /aaa?")
    assert [tokenizer.token_text(i) for i in chunk.tolist()] == [*" get  /aaa?", "<eos>"]
    [chunk] = tokenizer.encode("a<")
    assert [tokenizer.token_text(i) for i in chunk.tolist()] == [" ", "a", "<0x3C>", "<eos>"]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char"])
def test_names_of_special_tokens_are_learned_like_words(algorithm: str) -> None:
    tokenizer = TextTokenizer.train(["the <unk> of <eos> and <bos>"] * 50, 340, algorithm)
    [chunk] = tokenizer.encode("<unk> <eos> <bos>")
    assert not {PAD, BOS, MASK} & set(chunk.tolist())
    assert tokenizer.byte_of[chunk].max() == -1, "no letter was skipped"


def test_no_lines_or_no_room_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="no lines"):
        TextTokenizer.train([], 400)
    with pytest.raises(TokenizerError, match="260"):
        TextTokenizer.train(["a"], 260)
    with pytest.raises(TokenizerError, match="4"):
        TextTokenizer.train(["a"], 400, max_tokens=4)


def test_its_tokens_have_no_position_fields_and_nearly_all_are_allowed(text: TextTokenizer) -> None:
    tokens = np.zeros((2, 1, 7), np.int32)
    rng = np.random.default_rng(0)
    assert text.field_sizes == ()
    assert text.position_fields(tokens).shape == (2, 1, 7, 0)
    assert text.allowed(tokens) is None
    assert text.binding_depth.tolist() == [0] * text.vocab_size
    assert text.mix(tokens, tokens + 1, rng).tolist() == tokens.tolist()  # chunks without words stay


# --- grammar ----------------------------------------------------------------------------------------------------------


@given(several=st.lists(lines, min_size=1, max_size=4))
@settings(deadline=None)
def test_the_grammar_allows_every_line(text: TextTokenizer, several: list[str]) -> None:
    spoken = [line.replace("\n", "").replace("\r", "") for line in several]
    chunks = [chunk for found in short(text, 12).encode_all(spoken) for chunk in found]
    tokens = np.full((len(chunks), 12 + 1), PAD, np.int32)
    for row, chunk in zip(tokens, chunks, strict=True):
        row[: len(chunk)] = chunk
    grammar = text.grammar()
    state = grammar.start(len(tokens))
    for t in range(tokens.shape[1]):
        allowed = grammar.allowed(state)
        assert allowed[np.arange(len(tokens)), tokens[:, t]].all()
        ended = (tokens[:, :t] == EOS).any(1)
        assert (allowed[ended].sum(1) == 1).all(), "only padding after the end"
        assert not allowed[:, [BOS, MASK]].any()
        assert not allowed[~ended, PAD].any()
        assert grammar.position_fields(state).shape == (len(tokens), 0)
        state = grammar.advance(state, tokens[:, t])


@given(seed=st.integers(0, 2**32 - 1), byte_share=st.sampled_from([0.05, 0.5, 1.0]))
@settings(deadline=None)
def test_a_random_sequence_of_allowed_tokens_is_one_line_of_text(
    text: TextTokenizer, seed: int, byte_share: float
) -> None:
    rng = np.random.default_rng(seed)
    grammar = text.grammar()
    state = grammar.start(6)
    weight = np.where(text.byte_of >= 0x80, 1.0, 1 - byte_share + 1e-9)
    walks = np.zeros((6, 30), np.int32)
    for t in range(30):
        p = grammar.allowed(state) * weight
        assert (p.sum(1) > 0).all(), "every row can continue"
        walks[:, t] = [rng.choice(len(row), p=row / row.sum()) for row in p]
        state = grammar.advance(state, walks[:, t])
    for walk in walks.tolist():
        whole = walk
        if EOS not in walk:  # truncated to the last possible end
            state, last = grammar.start(1), 0
            for t, token in enumerate(walk):
                last = t if grammar.allowed(state)[0, EOS] else last
                state = grammar.advance(state, np.array([token], np.int32))
            whole = walk[:last]
        data = b"".join(
            bytes([text.byte_of[i]]) if text.byte_of[i] >= 0 else text.token_text(i).encode()
            for i in (whole[: whole.index(EOS)] if EOS in whole else whole)
        )
        line = text.decode_text([np.array(whole, np.int32)])
        assert line == data.decode().removeprefix(" "), "valid UTF-8, strictly"
        assert not {"\n", "\r"} & set(line)
        assert text.decode_text(text.encode(line)) == line


def test_the_grammar_allows_exactly_the_bytes_of_unicode(text: TextTokenizer) -> None:
    """All characters of two bytes, and the ends of every longer range, against Python's decoder."""
    token = [int(np.flatnonzero(text.byte_of == byte)[0]) for byte in range(256)]
    grammar = text.grammar()
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE1, 0xFF]
    after: dict[bytes, Ints] = {b"": grammar.start(1)}
    for length in range(1, 5):
        longer: dict[bytes, Ints] = {}
        for prefix, state in after.items():
            allowed = grammar.allowed(state)[0]
            for byte in range(256) if length <= 2 else edges:
                spelled = prefix + bytes([byte])
                assert allowed[token[byte]] == (_begins_a_character(spelled) and byte not in b"\r\n"), spelled
                if allowed[token[byte]]:
                    now = grammar.advance(state, np.array([token[byte]], np.int32))
                    complete = bool(grammar.allowed(now)[0, EOS])
                    assert complete == _is_text(spelled)
                    if not complete:
                        assert set(np.flatnonzero(grammar.allowed(now)[0])) <= set(token), "only bytes"
                        longer[spelled] = now
        after = longer
    assert not after


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _begins_a_character(data: bytes) -> bool:
    """Whether these bytes can be completed to one character."""
    tails = (b"", b"\x80", b"\xbf", b"\x80\x80", b"\xbf\xbf", b"\x80\x80\x80", b"\xbf\xbf\xbf")
    return any(_is_text(data + tail) and len((data + tail).decode()) == 1 for tail in tails)


def test_tokens_with_a_line_end_are_never_allowed() -> None:
    tokenizer = TextTokenizer.train(["one\r\ntwo", "one\ntwo\r"] * 20, 300)
    allowed = TextGrammar(tokenizer).allowed(tokenizer.grammar().start(1))[0]
    for i in np.flatnonzero(allowed).tolist():
        assert not {"\n", "\r"} & set(tokenizer.decode_text([np.array([i], np.int32)]))
    assert tokenizer.decode_text(tokenizer.encode("one\r\ntwo\n")) == "one\r\ntwo\n"


def test_the_grammar_is_cheap(text: TextTokenizer) -> None:
    grammar = text.grammar()
    state = grammar.start(500)
    started = time.process_time()
    for _ in range(100):
        grammar.allowed(state)
        state = grammar.advance(state, np.full(500, 300, np.int32))
    assert time.process_time() - started < 1
