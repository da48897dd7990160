"""Tokens of music: one sequence for each set of notes, a grammar that allows no other, and position fields."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqvae.errors import ReadError, TokenizerError
from seqvae.modality import adapter_of
from seqvae.music import piece as midi
from seqvae.music.piece import Piece
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.protocols import BOS, EOS, MASK, PAD

Ints = NDArray[np.int32]
DRUMS = 128
# exact up to a bar of 4/4, then half beats up to sixteen beats
DURATIONS = [*range(1, 49), *range(54, 193, 6)]


@st.composite
def music(draw: st.DrawFn) -> tuple[Ints, Ints]:
    """Notes (N, 4) in random order, distinct in onset, pitch and program, and bounds that hold them."""
    lengths = draw(st.lists(st.integers(1, 48), min_size=1, max_size=4))
    bounds = np.cumsum([draw(st.integers(0, 500)), *lengths]).astype(np.int32)
    place = st.tuples(
        st.integers(int(bounds[0]), int(bounds[-1]) - 1),
        st.sampled_from([0, 24, 33, 127, DRUMS]),  # few, so that notes meet
        st.integers(0, 127) | st.sampled_from([60, 64]),
    )
    places = draw(st.lists(place, unique=True, max_size=24))
    rows = [
        [onset, 1 if program == DRUMS else draw(st.sampled_from(DURATIONS)), pitch, program]
        for onset, program, pitch in places
    ]
    return np.array(rows, np.int32).reshape(-1, 4), bounds


def as_set(notes: Ints) -> set[tuple[int, ...]]:
    return {tuple(row) for row in notes[:, :4].tolist()}


def padded(chunks: list[Ints], extra: int = 2) -> Ints:
    out = np.full((len(chunks), max(map(len, chunks)) + extra), PAD, np.int32)
    for row, chunk in zip(out, chunks, strict=True):
        row[: len(chunk)] = chunk
    return out


def name_of(tokenizer: MidiTokenizer) -> dict[int, str]:
    return {i: name for name, i in tokenizer.vocabulary.items()}


# --- spelling ---------------------------------------------------------------------------------------------------------


def test_a_bar_is_tokenized_as_documented(tokenizer: MidiTokenizer) -> None:
    notes = np.array([[12, 6, 60, 0], [0, 24, 67, 0], [0, 24, 64, 0], [0, 1, 36, DRUMS], [49, 1, 60, 5]], np.int32)
    names = name_of(tokenizer)
    spelled = [[names[i] for i in chunk.tolist()] for chunk in tokenizer.encode_notes(notes, np.array([0, 48, 60, 72]))]
    first = (
        "Program_0 Position_0 Pitch_64 Duration_2.0.12 Pitch_67 Duration_2.0.12 Position_12 Pitch_60 Duration_0.6.12"
    )
    drums = "Program_-1 Position_0 PitchDrum_36"
    second = "Program_5 Position_1 Pitch_60 Duration_0.1.12"
    assert [" ".join(chunk[:-1]) for chunk in spelled] == [f"{first} {drums}", second, ""]
    assert all(chunk[-1] == "EOS_None" for chunk in spelled)


def test_the_first_ids_are_shared_by_all_vocabularies(tokenizer: MidiTokenizer) -> None:
    names = name_of(tokenizer)
    assert [names[i] for i in (PAD, BOS, EOS, MASK)] == ["PAD_None", "BOS_None", "EOS_None", "MASK_None"]


@given(music())
def test_decoding_gives_back_every_note(tokenizer: MidiTokenizer, case: tuple[Ints, Ints]) -> None:
    notes, bounds = case
    chunks = tokenizer.encode_notes(notes, bounds)
    again = tokenizer.decode_notes(chunks, bounds)
    assert len(chunks) == len(bounds) - 1
    assert len(again) == len(notes)
    assert as_set(again) == as_set(notes)


@given(music(), st.randoms(use_true_random=False))
def test_the_order_of_notes_does_not_matter(tokenizer: MidiTokenizer, case: tuple[Ints, Ints], random: object) -> None:
    notes, bounds = case
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(notes))  # type: ignore[attr-defined]
    for a, b in zip(tokenizer.encode_notes(notes, bounds), tokenizer.encode_notes(notes[order], bounds), strict=True):
        assert a.tolist() == b.tolist()


@given(music(), st.randoms(use_true_random=False))
def test_the_longest_of_equal_notes_is_kept(tokenizer: MidiTokenizer, case: tuple[Ints, Ints], random: object) -> None:
    notes, bounds = case
    shorter = notes.copy()
    shorter[:, 1] = 1
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    both = rng.permutation(np.concatenate([notes, shorter]))
    assert as_set(tokenizer.decode_notes(tokenizer.encode_notes(both, bounds), bounds)) == as_set(notes)


@given(music())
def test_notes_outside_the_bounds_are_left_out(tokenizer: MidiTokenizer, case: tuple[Ints, Ints]) -> None:
    notes, bounds = case
    outside = np.array([[bounds[0] - 1, 6, 60, 0], [bounds[-1], 6, 60, 0], [bounds[-1] + 99, 1, 36, DRUMS]], np.int32)
    with_more = tokenizer.encode_notes(np.concatenate([outside, notes]), bounds)
    for a, b in zip(tokenizer.encode_notes(notes, bounds), with_more, strict=True):
        assert a.tolist() == b.tolist()


@given(st.integers(1, 400))
def test_a_duration_not_in_the_vocabulary_becomes_the_nearest(tokenizer: MidiTokenizer, duration: int) -> None:
    bounds = np.array([0, 48], np.int32)
    notes = np.array([[7, duration, 60, 0]], np.int32)
    decoded = int(tokenizer.decode_notes(tokenizer.encode_notes(notes, bounds), bounds)[0, 1])
    assert abs(decoded - duration) == min(abs(d - duration) for d in DURATIONS)


@given(st.lists(st.integers(0, 800), max_size=40), st.integers(0, 10))
def test_any_tokens_decode_to_notes(tokenizer: MidiTokenizer, ids: list[int], start: int) -> None:
    tokens = np.array(ids, np.int32) % tokenizer.vocab_size
    notes = tokenizer.decode_notes([tokens], np.array([start, start + 48], np.int32))
    assert notes.shape[1] == 4
    assert (notes >= [start, 1, 0, 0]).all()
    assert (notes <= [start + 47, 192, 127, DRUMS]).all()


# --- position fields and grammar --------------------------------------------------------------------------------------


@given(music())
def test_allowed_tokens_of_a_whole_sequence_equal_those_of_its_steps(
    tokenizer: MidiTokenizer, case: tuple[Ints, Ints]
) -> None:
    tokens = padded(tokenizer.encode_notes(*case))
    at_once = tokenizer.allowed(tokens)
    grammar = tokenizer.grammar()
    state = grammar.start(len(tokens))
    for t in range(tokens.shape[1]):
        assert (at_once[:, t] == grammar.allowed(state)).all()
        state = grammar.advance(state, tokens[:, t])
    assert (tokenizer.allowed(tokens[None]) == at_once).all(), "for any leading shape"


@given(music())
def test_the_grammar_allows_the_tokens_and_its_state_holds_the_position_fields(
    tokenizer: MidiTokenizer, case: tuple[Ints, Ints]
) -> None:
    notes, bounds = case
    tokens = padded(tokenizer.encode_notes(notes, bounds))
    fields = tokenizer.position_fields(tokens)
    grammar = tokenizer.grammar()
    state = grammar.start(len(tokens), np.diff(bounds).astype(np.int32))
    rows = np.arange(len(tokens))
    assert (fields.max((0, 1)) < tokenizer.field_sizes).all()
    for t in range(tokens.shape[1]):
        assert grammar.position_fields(state).tolist() == fields[:, t].tolist()
        allowed = grammar.allowed(state)
        assert allowed[rows, tokens[:, t]].all()
        ended = (tokens[:, :t] == EOS).any(1)
        assert (allowed[ended].sum(1) == 1).all(), "only padding after the end"
        state = grammar.advance(state, tokens[:, t])


def test_position_fields_are_program_position_and_pending_pitch(tokenizer: MidiTokenizer) -> None:
    notes = np.array([[0, 24, 64, 5], [12, 6, 60, 5], [3, 1, 36, DRUMS]], np.int32)
    tokens = tokenizer.encode_notes(notes, np.array([0, 48]))[0]
    # next token: program position pitch duration position pitch duration program position drum EOS
    expected = [
        [0, 0, 0], [6, 0, 0], [6, 1, 0], [6, 1, 65], [6, 1, 0], [6, 13, 0], [6, 13, 61], [6, 13, 0],
        [129, 0, 0], [129, 4, 0], [129, 4, 0],
    ]  # fmt: skip
    assert tokenizer.position_fields(tokens).tolist() == expected


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 48), min_size=1, max_size=6))
def test_a_random_sequence_of_allowed_tokens_is_the_encoding_of_its_notes(
    tokenizer: MidiTokenizer, seed: int, lengths: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    grammar = tokenizer.grammar()
    state = grammar.start(len(lengths), np.array(lengths, np.int32))
    walks: list[list[int]] = [[] for _ in lengths]
    for step in range(60):
        allowed = grammar.allowed(state)
        assert allowed.any(1).all(), "every row can continue"
        # token types differ in size: draw the type first, and EOS rarely
        weight = allowed / np.maximum(1, (allowed @ _kinds(tokenizer)) @ _kinds(tokenizer).T)
        weight[:, EOS] *= 0.2 if step < 40 else 1e6
        chosen = np.array([rng.choice(len(w), p=w / w.sum()) for w in weight], np.int32)
        for walk, token in zip(walks, chosen.tolist(), strict=True):
            walk.append(token)
        state = grammar.advance(state, chosen)
    bounds = np.cumsum([0, *lengths]).astype(np.int32)
    chunks = [np.array(walk[: walk.index(EOS) + 1], np.int32) for walk in walks]
    assert all(set(walk[len(chunk) :]) <= {PAD} for walk, chunk in zip(walks, chunks, strict=True))
    notes = tokenizer.decode_notes(chunks, bounds)
    for c, again in enumerate(tokenizer.encode_notes(notes, bounds)):
        assert again.tolist() == chunks[c].tolist()


def _kinds(tokenizer: MidiTokenizer) -> NDArray[np.float64]:
    """`(V, types)`: 1 for tokens of a type, by the first word of their name."""
    words = [name.partition("_")[0] for name in tokenizer.vocabulary]
    columns = sorted(set(words))
    table = np.zeros((tokenizer.vocab_size, len(columns)))
    for word, i in zip(words, tokenizer.vocabulary.values(), strict=True):
        table[i, columns.index(word)] = 1
    return table


def test_a_bar_of_one_step_has_one_position(tokenizer: MidiTokenizer) -> None:
    grammar = tokenizer.grammar()
    state = grammar.start(2, np.array([1, 48], np.int32))
    state = grammar.advance(state, np.full(2, tokenizer.vocabulary["Program_0"], np.int32))
    assert grammar.allowed(state).sum(1).tolist() == [1, 48]


@given(music())
def test_binding_depth_counts_the_position_fields_of_a_token(tokenizer: MidiTokenizer, case: tuple[Ints, Ints]) -> None:
    binding_depth = tokenizer.binding_depth
    assert binding_depth.shape == (tokenizer.vocab_size,)
    assert 0 <= binding_depth.min() <= binding_depth.max() <= len(tokenizer.field_sizes)
    notes, bounds = case
    tokens = padded(tokenizer.encode_notes(notes, bounds), 0)
    fields = tokenizer.position_fields(tokens)
    names = name_of(tokenizer)
    for token, cue in zip(tokens.ravel().tolist(), fields.reshape(-1, 3).tolist(), strict=True):
        kind = names[token].partition("_")[0]
        if kind in ("Position", "Pitch", "PitchDrum", "Duration"):
            assert cue[0] > 0, "all tokens except programs have a program"
        if kind in ("Pitch", "PitchDrum", "Duration"):
            assert cue[1] > 0, "notes have a position"
            assert binding_depth[token] >= 2
        assert (cue[2] > 0) == (kind == "Duration"), "only durations have a pending pitch"


# --- real music -------------------------------------------------------------------------------------------------------


def kept(tokenizer: MidiTokenizer, piece: Piece) -> tuple[int, int, int, int]:
    """Counts of notes, notes whose onset, pitch and program come back, pitched notes, and those with equal duration."""
    again = tokenizer.decode_notes(tokenizer.encode(piece), piece.bounds)
    durations = {(onset, pitch, program): duration for onset, duration, pitch, program in again.tolist()}
    before = {(o, pitch, program): d for o, d, pitch, program, _ in piece.notes.tolist()}
    found = before.keys() & durations.keys()
    pitched = [key for key in before if key[2] != DRUMS]
    for key in found & set(pitched):
        slack = 0 if before[key] <= 48 else 3 if before[key] <= 192 else before[key] - 192
        assert abs(before[key] - durations[key]) <= slack, "exact up to four beats, then to the nearest half beat"
    return len(before), len(found), len(pitched), sum(durations.get(key) == before[key] for key in pitched)


def test_a_chorale_is_restored_exactly(tokenizer: MidiTokenizer, bach: Piece) -> None:
    notes, found, pitched, exact = kept(tokenizer, bach)
    assert notes > 150
    assert found == notes
    assert exact == pitched


def test_real_files_keep_their_notes_on_the_grid(tokenizer: MidiTokenizer, music_folder: Path) -> None:
    files = sorted(path for path in music_folder.rglob("*.mid") if path.stat().st_size < 200_000)
    total = np.zeros(4, np.int64)
    read = 0
    for path in files[:: max(1, len(files) // 60)]:
        try:
            piece = midi.read(path)
        except ReadError:
            continue
        read += 1
        total += kept(tokenizer, piece)
    notes, found, pitched, exact = total.tolist()
    assert read >= 50
    assert found >= 0.995 * notes
    assert exact >= 0.97 * pitched


@pytest.mark.parametrize("max_steps", [0, 24, 50])
def test_a_chunk_is_a_bar_of_whole_beats(max_steps: int) -> None:
    with pytest.raises(TokenizerError, match=str(max_steps)):
        MidiTokenizer(max_steps=max_steps)


@pytest.mark.parametrize("beats", [4, 5, 16, 32])
def test_the_vocabulary_equals_that_of_miditok(beats: int) -> None:
    miditok = pytest.importorskip("miditok")
    settings = miditok.TokenizerConfig(
        pitch_range=(0, 127), drums_pitch_range=(0, 127), beat_res={(0, beats): 12, (beats, 16): 2},
        special_tokens=["PAD", "BOS", "EOS", "MASK"], use_velocities=False, use_time_signatures=False,
        use_programs=True, use_pitchdrum_tokens=True, use_note_duration_programs=list(range(128)),
    )  # fmt: skip
    theirs, ours = miditok.REMI(settings).vocab, MidiTokenizer(max_steps=12 * beats).vocabulary
    assert {name: token for name, token in ours.items() if token < len(theirs)} == theirs
    assert list(ours)[len(theirs) :] == [f"Position_{step}" for step in range(48, 12 * beats)]


# --- mixing -----------------------------------------------------------------------------------------------------------


@given(music(), music(), st.integers(0, 2**16))
def test_a_mix_has_all_notes_of_one_piece_and_whole_tracks_of_another(
    tokenizer: MidiTokenizer, one: tuple[Ints, Ints], other: tuple[Ints, Ints], seed: int
) -> None:
    bounds = np.array([0, 48, 96])
    mine, theirs = (
        {(int(n[0] - b[0]) % 96, int(n[1]), int(n[2]), int(n[3])) for n in notes} for notes, b in (one, other)
    )
    # duplicates may differ in duration: keep one of each
    mine, theirs = ({(n[0], n[2], n[3]): n for n in sorted(notes)}.values() for notes in (mine, theirs))  # type: ignore[assignment]
    segments = [
        padded(tokenizer.encode_notes(np.array(sorted(notes), np.int32).reshape(-1, 4), bounds))
        for notes in (mine, theirs)
    ]
    width = max(segment.shape[1] for segment in segments)
    a, b = (np.pad(segment, ((0, 0), (0, width - segment.shape[1])))[None] for segment in segments)
    mixed = tokenizer.mix(a, b, np.random.default_rng(seed))
    allowed = np.take_along_axis(tokenizer.allowed(mixed), mixed[..., None], -1)[..., 0]
    assert allowed[mixed != PAD].all()
    decoded = as_set(tokenizer.decode_notes(list(mixed[0]), bounds))
    assert set(mine) <= decoded
    own, more = {n[3] for n in mine}, decoded - set(mine)
    added = {n[3] for n in more}
    assert not own & added
    assert more == {n for n in theirs if n[3] in added}, "tracks are not divided"


def test_about_half_of_the_tracks_are_mixed_in(tokenizer: MidiTokenizer) -> None:
    bounds = np.array([0, 48])
    tracks = np.array([[0, 12, 60, program] for program in range(40)], np.int32)
    full = padded(tokenizer.encode_notes(tracks, bounds))[None].repeat(50, 0)
    empty = np.full_like(full, PAD)
    empty[..., 0] = EOS
    mixed = tokenizer.mix(empty, full, np.random.default_rng(0))
    counts = [len(tokenizer.decode_notes(list(row), bounds)) for row in mixed]
    assert np.mean(counts) == pytest.approx(20, abs=2)
    assert min(counts) < max(counts)


def test_a_note_beyond_its_bar_is_ignored(tokenizer: MidiTokenizer) -> None:
    notes = np.array([[0, 12, 60, 0], [30, 6, 62, 0], [40, 6, 64, 0], [48, 12, 65, 0]], np.int32)
    chunks = tokenizer.encode_notes(notes, np.array([0, 48, 96], np.int32))
    found = tokenizer.decode_notes(chunks, np.array([0, 36, 72], np.int32))
    assert as_set(found) == {(0, 12, 60, 0), (30, 6, 62, 0), (36, 12, 65, 0)}


@pytest.mark.parametrize(("beats", "stray", "expected"), [(2, 0, 2), (3, 0, 3), (4, 0, 4), (3, 1, 3), (3, 9, 4)])
def test_a_new_piece_has_the_metre_of_its_notes(
    tokenizer: MidiTokenizer, beats: int, stray: int, expected: int
) -> None:
    bars = 12
    rows = [[48 * bar + 12 * beat, 6, 60 + beat, 0] for bar in range(bars) for beat in range(beats)]
    rows += [[48 * bar + 42, 6, 70, 0] for bar in range(stray)]
    chunks = tokenizer.encode_notes(np.array(rows, np.int32), np.arange(bars + 1, dtype=np.int32) * 48)
    adapter = adapter_of(tokenizer)
    found = adapter.template(chunks)
    assert np.diff(found.bounds).tolist() == [12 * expected] * bars
    score = adapter.assemble(chunks, found)
    assert [(one.numerator, one.denominator) for one in score.time_signatures] == [(expected, 4)]
    again = midi.read(score).notes
    assert len(again) == len(rows) - (stray if expected < 4 else 0)
    assert np.diff(np.unique(again[:, 0])).max() <= (12 if stray < 9 else 24), "no gap between onsets"


def test_a_silent_piece_is_in_four_four(tokenizer: MidiTokenizer) -> None:
    assert np.diff(adapter_of(tokenizer).template([np.zeros(0, np.int32)] * 3).bounds).tolist() == [48] * 3
