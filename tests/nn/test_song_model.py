from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import groove, teacher_forced
from torch import Tensor

from seqvae.config import SongConfig
from seqvae.music.grammar import POSITION
from seqvae.music.piece import Piece, make_frame
from seqvae.music.song_bars import beat_chroma, melody_grid, song_bars
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.binding import shifted
from seqvae.nn.posterior import Posterior
from seqvae.nn.song_model import Conditions, SongModel, gaussian_kl, in_order, melody_tables, place_fields

SMALL = SongConfig(
    song=4, bar=32, width=16, heads=2, queries=2, encoder_layers=1, decoder_layers=2, prior_width=16,
    prior_layers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> MidiTokenizer:
    return MidiTokenizer(max_steps=48, common_key=True)


@pytest.fixture(scope="module")
def model(tokenizer: MidiTokenizer) -> SongModel:
    torch.manual_seed(0)
    model = SongModel(SMALL, torch.from_numpy(tokenizer.token_types), torch.from_numpy(tokenizer.token_values)).eval()
    with torch.no_grad():  # an informative prior
        torch.nn.init.normal_(model.prior.out.weight)
        torch.nn.init.normal_(model.no_song)
    return model


def padded(bars: list[np.ndarray]) -> Tensor:
    out = torch.zeros(len(bars), max(map(len, bars)), dtype=torch.long)
    for row, bar in zip(out, bars, strict=True):
        row[: len(bar)] = torch.from_numpy(bar)
    return out


def conditions(bars: int) -> Conditions:
    torch.manual_seed(1)
    melody = torch.zeros(bars, 48, 2, dtype=torch.long)
    melody[:, ::12] = torch.tensor([61, 12])
    one = torch.ones(bars)
    return Conditions(torch.full((bars,), 48), torch.rand(bars, 4, 24), one, melody, one, one)


def test_position_fields_equal_those_of_the_grammar(model: SongModel, tokenizer: MidiTokenizer) -> None:
    tokens = padded(tokenizer.encode(groove(3, 6)))
    fields = place_fields(tokens, model.kind, model.value)
    expected = tokenizer.position_fields(tokens.numpy().astype(np.int32))
    assert np.array_equal(fields.numpy()[tokens.numpy() > 0], expected[tokens.numpy() > 0])


def test_stepwise_logits_equal_those_of_teacher_forcing(model: SongModel, tokenizer: MidiTokenizer) -> None:
    given = replace(conditions(3), has_bar=torch.tensor([1.0, 0.5, 0.0]))
    tokens = padded(tokenizer.encode(groove(1, 3)))
    z, song = torch.randn(3, 32), torch.randn(3, 4)
    with torch.no_grad():
        whole = model.logits(*teacher_forced(model, tokens, z, song, given))
        rest, prefix, tables = model.start(z, song, given, model.condition(given))
        caches, fields = model.prefill(prefix), place_fields(tokens, model.kind, model.value)
        inputs, place = shifted(tokens), torch.zeros(3, 1, 3, dtype=torch.long)
        for t in range(tokens.shape[1]):
            here = fields[:, t : t + 1]
            logits, rest, caches = model.step(
                inputs[:, t : t + 1], place, here, given.length, rest, given.has_bar, given.harmony, tables, caches
            )
            real = tokens[:, t] > 0
            torch.testing.assert_close(logits[real], whole[real, t], rtol=1e-4, atol=1e-4)
            place = here


def test_tokens_that_may_follow_are_those_of_the_grammar(model: SongModel, tokenizer: MidiTokenizer) -> None:
    tokens = padded(tokenizer.encode(groove(3, 6)))
    fields = place_fields(tokens, model.kind, model.value)
    place = torch.nn.functional.pad(fields[:, :-1], (0, 0, 1, 0))
    found = model.allowed(shifted(tokens), place, fields, torch.full((len(tokens),), 48))[..., model.rank].numpy()
    expected = tokenizer.allowed(tokens.numpy().astype(np.int32))
    assert np.array_equal(found[tokens.numpy() > 0], expected[tokens.numpy() > 0])
    short = model.allowed(shifted(tokens), place, fields, torch.full((len(tokens),), 36))[..., model.rank].numpy()
    late = (tokenizer.token_types == POSITION) & (tokenizer.token_values >= 36)
    assert not short[..., late].any() and np.array_equal(short[..., ~late], found[..., ~late])


def test_a_token_is_the_first_that_is_present() -> None:
    hazards, allowed = torch.tensor([0.0, 2.0, -1.0, 3.0]), torch.tensor([True, False, True, True])
    h = hazards.sigmoid()
    expected = torch.tensor([h[0], 0, (1 - h[0]) * h[2], (1 - h[0]) * (1 - h[2]) * h[3]])
    torch.testing.assert_close(in_order(hazards, allowed).exp(), expected)


def test_nats_are_those_of_the_logits(model: SongModel, tokenizer: MidiTokenizer) -> None:
    tokens = padded(tokenizer.encode(groove(2, 3)))
    with torch.no_grad():
        hidden, allowed = teacher_forced(model, tokens, torch.randn(3, 32), torch.randn(3, 4), conditions(3))
        nats, right = model.nats(hidden, tokens, allowed)
        logits = model.logits(hidden, allowed)
    real = tokens > 0
    torch.testing.assert_close(nats[real], -logits.gather(-1, tokens[..., None])[..., 0][real])
    assert torch.equal(right[real], (logits.argmax(-1) == tokens)[real])
    assert not nats[~real].any() and not right[~real].any()


def test_padding_changes_nothing(model: SongModel, tokenizer: MidiTokenizer) -> None:
    bars = tokenizer.encode(groove(2, 4))
    together = model.bar_features(padded(bars))
    for i, bar in enumerate(bars):
        torch.testing.assert_close(model.bar_features(padded([bar]))[0], together[i], rtol=1e-4, atol=1e-4)


def test_a_song_vector_depends_on_the_bars_and_not_on_their_order(model: SongModel) -> None:
    features, counts = torch.randn(1, 5, model.encoder.size), torch.tensor([[1.0, 1, 0, 1, 1]])
    first = model.song_posterior(features, counts)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(model.song_posterior(features[:, order], counts[:, order]).mean, first.mean)
    features[0, 2] += 5.0
    torch.testing.assert_close(model.song_posterior(features, counts).mean, first.mean)
    features[0, 3] += 5.0
    assert not torch.allclose(model.song_posterior(features, counts).mean, first.mean)


def test_the_prior_depends_on_earlier_bars_or_on_none(model: SongModel) -> None:
    condition = torch.randn(2, 4, 4 + 32 + 96)
    z, other = torch.randn(2, 4, 32), torch.randn(2, 4, 32)
    changed = torch.cat([z[:, :2], other[:, 2:]], 1)
    past = torch.tensor([1.0, 0.0])
    with torch.no_grad():
        (mean, logvar), (after, _) = model.prior(condition, z, past), model.prior(condition, changed, past)
        alone, _ = model.prior(condition[1:, 1:2], z[1:, :1], torch.zeros(1))
    torch.testing.assert_close(mean[:, :3], after[:, :3])
    assert not torch.allclose(mean[0, 3], after[0, 3])
    torch.testing.assert_close(mean[1], after[1])
    torch.testing.assert_close(mean[1, 1:2], alone[0])
    assert logvar.shape == mean.shape


def test_kl_equals_that_of_torch() -> None:
    q = Posterior(torch.randn(3, 5), torch.randn(3, 5))
    mean, logvar = torch.randn(3, 5), torch.randn(3, 5)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(q.mean, (q.logvar / 2).exp()), normal(mean, (logvar / 2).exp()))
    torch.testing.assert_close(gaussian_kl(q, mean, logvar), expected)


def test_melody_tables_by_hand() -> None:
    melody = torch.zeros(1, 6, 2, dtype=torch.long)
    melody[0, 1] = torch.tensor([61, 2])  # pitch 60 at step 1 for two steps
    melody[0, 4] = torch.tensor([65, 9])
    sounding, upcoming, pitch = melody_tables(melody)[0].unbind(-1)
    assert sounding.tolist() == [0, 0, 61, 61, 0, 65, 65]  # after position 0, 1, 2 ...; first: none yet
    assert upcoming.tolist() == [2, 2, 5, 5, 5, 0, 0]
    assert pitch.tolist() == [61, 61, 65, 65, 65, 0, 0]


def test_harmony_and_melody_of_bars_by_hand() -> None:
    # C4 for a beat, E2 for two beats from beat 1 of a bar of four; a drum that does not count; then an empty bar
    notes = np.array([[0, 12, 60, 0, 80], [12, 24, 40, 33, 80], [12, 6, 60, 0, 80], [0, 1, 36, 128, 80]], np.int32)
    bounds = np.array([0, 48, 96], np.int32)
    chroma = beat_chroma(notes, bounds, 4)
    assert chroma.shape == (2, 4, 12)
    assert chroma[0, 0].tolist() == [15] + [0] * 11
    assert chroma[0, 1].tolist() == [8, 0, 0, 0, 15] + [0] * 7  # half as long
    assert chroma[0, 2].tolist() == [0, 0, 0, 0, 15] + [0] * 7
    assert not chroma[0, 3].any()
    assert not chroma[1].any()
    piece = Piece(notes, bounds, make_frame(([], [], [])))
    # a beat without a note has the bass of the beat before; a bar without notes has none
    assert song_bars(piece, MidiTokenizer(max_steps=48)).bass.tolist() == [[1, 5, 5, 5], [0, 0, 0, 0]]
    grid = melody_grid(notes[:1], bounds, 48)
    assert grid[0, 0].tolist() == [61, 12]
    assert not grid[0, 1:].any()
    assert not grid[1].any()
