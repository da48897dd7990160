"""The song model behind the codec's interface: laws of its coordinates, its conditions, and its commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import done, song
from conftest import groove, teacher_forced

import seqvae
from seqvae.codec import Codec
from seqvae.config import ModelConfig, RefineConfig, SongConfig
from seqvae.errors import CheckpointError, ConfigError
from seqvae.music import progressions
from seqvae.music.chords import song as song_of_chords
from seqvae.music.progressions import SYMBOLS
from seqvae.nn.binding import shifted
from seqvae.nn.inference import BatchInference
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.nn.segments import between, conditions, no_melody, without_melody
from seqvae.nn.song_model import CHORD_SYMBOLS
from seqvae.nn.song_vae import KEPT, BarDecoder, SongVAE
from seqvae.protocols import BOS
from seqvae.studio.inference import JobInference, Shared
from seqvae.style import form, gaussian, interpolation, styles_file
from seqvae.style.arranger import program_shares

E = 6  # dimensions of the song vector


@pytest.fixture(scope="module")
def songs(song_model: Path) -> Codec:
    return seqvae.load(song_model)


def network(codec: Codec) -> SongVAE:
    assert isinstance(codec.model, SongVAE)
    return codec.model


def notes(score: Any) -> list[tuple[int, ...]]:
    return sorted((n.time, n.duration, n.pitch, t.program, t.is_drum) for t in score.tracks for n in t.notes)


# --- coordinates ------------------------------------------------------------------------------------------------------


def test_rows_of_a_song_share_the_song_vector_and_lead_back_to_the_bar_vectors(songs: Codec) -> None:
    model, piece = network(songs), groove(1, 5)
    segments = songs.segments(piece)
    q = songs.posteriors(segments)
    assert q.mean.shape == (5, 38)
    assert (q.mean[:, :E] == q.mean[0, :E]).all()
    tokens, _ = songs.tensors(segments)
    features = model.net.bar_features(tokens[:, 0])
    expected = model.net.bar_posterior(features)
    of_song = model.net.song_posterior(features[None], torch.ones(1, 5))
    torch.testing.assert_close(q.mean[0, :E], of_song.mean[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q.logvar[0, :E], of_song.logvar[0], rtol=1e-4, atol=1e-5)
    bars, _, given = BarDecoder(model, conditions(segments)).bars(q.mean)
    torch.testing.assert_close(bars, expected.mean, rtol=1e-4, atol=1e-4)
    # KL to N(0, I) in these coordinates is that to the learned prior
    mean, spread = model.prior(of_song.mean.expand(5, -1), given)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(
        normal(expected.mean, (expected.logvar / 2).exp()), normal(mean, spread)
    ).sum(1)
    torch.testing.assert_close(q.kl()[:, E:].sum(1), kl, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(q.kl_of_segments(E).sum(), q.kl()[0, :E].sum() + kl.sum(), rtol=1e-3, atol=1e-3)


def test_a_moved_song_keeps_its_residuals_in_units_of_the_prior(songs: Codec) -> None:
    model, segments = network(songs), songs.segments(groove(2, 3))
    (z,) = songs.means([segments], refined=False)
    move = songs.translate("wild", "calm", 0.7)
    moved = move(z)
    assert torch.equal(moved[:, E:], z[:, E:])
    torch.testing.assert_close(
        moved[:, :E] - z[:, :E], (0.7 * (songs.style("wild").mean - songs.style("calm").mean))[None, :E].expand(3, -1)
    )
    own = songs.translate("wild", amount=1.0)(z)  # without a source from the song's own vector
    assert torch.equal(own[:, E:], z[:, E:])
    torch.testing.assert_close(own[:, :E], songs.style("wild").mean[None, :E].expand(3, -1))
    decoder = BarDecoder(model, conditions(segments))
    (before, first, given), (after, second, _) = decoder.bars(z), decoder.bars(moved)
    (mean, spread), (to_mean, to_spread) = model.prior(first, given), model.prior(second, given)
    torch.testing.assert_close((after - to_mean) / to_spread, (before - mean) / spread, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("method", ["mean", "discriminant", "transport"])
def test_all_moves_are_finite_and_move_the_song_as_one(songs: Codec, method: Any) -> None:
    (z,) = songs.means([songs.segments(groove(2, 3))], refined=False)
    moved = songs.translate("wild", "calm", 1.0, method)(z)
    assert moved.isfinite().all()
    torch.testing.assert_close(moved[:, :E], moved[:1, :E].expand(3, -1))
    assert not torch.allclose(moved[:, :E], z[:, :E], atol=1e-4)
    torch.testing.assert_close(moved[:, E:], z[:, E:], rtol=1e-3, atol=1e-3)


def test_a_draw_without_history_is_from_the_prior(songs: Codec) -> None:
    model = network(songs)
    given = no_melody(songs.given(song_of_chords("C | F", 4)))
    z = torch.randn(4, 38, generator=torch.Generator().manual_seed(0))
    z[:, :E] = z[0, :E]
    bars, first, conditions_ = BarDecoder(model, given).bars(z)
    mean, spread = model.prior(first, conditions_)
    torch.testing.assert_close((bars - mean) / spread, z[:, E:], rtol=1e-4, atol=1e-4)


def test_a_bar_read_under_a_song_vector_has_the_row_of_its_song(songs: Codec) -> None:
    segments = songs.segments(groove(1, 3))
    rows = songs.posteriors(segments).mean
    found = network(songs).read(*songs.tensors(segments), rows, conditions(segments))
    torch.testing.assert_close(found, rows, rtol=1e-4, atol=1e-4)


def test_a_bar_is_decoded_differently_where_it_is_only_expected(songs: Codec) -> None:
    model, given = network(songs), songs.given(groove(1, 2))
    assert given is not None and (given["has_bar"] == 1).all()
    with torch.no_grad():
        model.net.absent[2] = 1.0
    ahead = given.copy()
    ahead["has_bar"] = 0.0
    z, (tokens, fields) = torch.randn(2, 38), songs.tensors(songs.segments(groove(1, 2)))
    one, other = (BarDecoder(model, x).decode_logits(z, shifted(tokens), fields)[0] for x in (given, ahead))
    assert not torch.allclose(one, other)
    with torch.no_grad():
        model.net.absent[2] = 0.0


# --- inference --------------------------------------------------------------------------------------------------------


def test_a_bar_is_encoded_with_its_song_whichever_bars_are_asked_for(songs: Codec) -> None:
    segments = songs.segments(groove(1, 4)) + songs.segments(groove(2, 3))
    together = songs.posteriors(segments).mean
    for i in (0, 2, 5):
        torch.testing.assert_close(songs.posteriors([segments[i]]).mean[0], together[i], rtol=1e-4, atol=1e-4)


def test_bars_without_notes_are_no_evidence_of_the_song(songs: Codec) -> None:
    piece = groove(1, 4)
    longer = replace(piece, bounds=np.append(piece.bounds, [240, 288]).astype(np.int32))
    short, long = (songs.posteriors(songs.segments(one)).mean for one in (piece, longer))
    assert len(long) == 6
    torch.testing.assert_close(short[0, :E], long[0, :E], rtol=1e-4, atol=1e-4)


def test_generated_tokens_are_the_most_likely_ones_under_the_same_conditions(songs: Codec) -> None:
    segments = songs.segments(groove(1, 3))
    z, given = songs.posteriors(segments).mean, conditions(segments)
    made = songs.generate_tokens(z, given, Sampling(max_tokens=24))
    tokens, fields = songs.tensors([[one] for one in made])
    logits = songs.model.under(given).decode_logits(z, shifted(tokens), fields)[0].float()
    allowed = songs.tokenizer.grammar().allowed
    state = songs.tokenizer.grammar().start(3, np.asarray(given["length"]))  # type: ignore[index]
    for t in range(min(map(len, made)) - 1):
        best = logits[:, 0, t].masked_fill(~torch.from_numpy(allowed(state)), -torch.inf).argmax(-1)
        assert best.tolist() == tokens[:, 0, t].tolist()
        state = songs.tokenizer.grammar().advance(state, tokens[:, 0, t].numpy().astype(np.int32))


def test_log_probabilities_are_those_of_the_song_model(songs: Codec) -> None:
    model, segments = network(songs), songs.segments(groove(1, 2))
    q = songs.posteriors(segments)
    found = songs.token_log_probs(torch.stack([q.mean, q.mean + 0.1]), segments)
    decoder = BarDecoder(model, conditions(segments))
    tokens, _ = songs.tensors(segments)
    bars, s, given = decoder.bars(q.mean)
    logits = model.net.logits(*teacher_forced(model.net, tokens[:, 0], bars, s, given)).float()
    allowed = songs.tokenizer.allowed(tokens.numpy().astype(np.int32))
    assert allowed is not None
    log_p = logits.masked_fill(~torch.from_numpy(allowed)[:, 0], -torch.inf).log_softmax(-1)
    expected = log_p.gather(-1, tokens[:, 0, :, None])[..., 0]
    there = tokens[:, 0] > 0
    torch.testing.assert_close(found[0, :, 0][there], expected[there], rtol=0.05, atol=0.1)  # bf16 where there is such
    assert not torch.allclose(found[0], found[1])


def test_a_search_moves_residuals_alone_and_finds_more_likely_tokens(song_model: Path) -> None:
    searching = seqvae.load(song_model)
    searching.refinement = RefineConfig(steps=8, most_steps=10, beta=0.01)
    segments = searching.segments(groove(1, 4))
    plain, found = searching.posteriors(segments).mean, searching.posteriors(segments, refined=True).mean
    assert torch.equal(plain[:, :E], found[:, :E])
    before, after = searching.token_log_probs(torch.stack([plain, found]), segments).sum((1, 2, 3))
    assert after > before + 1


def test_harmony_and_melody_reach_the_decoder(songs: Codec) -> None:
    segments = songs.segments(groove(1, 2))
    z = songs.posteriors(segments).mean
    tokens, fields = songs.tensors(segments)

    def logits(given: Any) -> torch.Tensor:
        return songs.model.under(given).decode_logits(z, shifted(tokens), fields)[0]

    full = conditions(segments)
    assert full is not None
    assert full["has_harmony"].all() and full["has_melody"].all()
    assert not torch.allclose(logits(full), logits(no_melody(full)), atol=1e-4)
    assert not torch.allclose(logits(no_melody(full)), logits(full["length"].astype(np.int32)), atol=1e-4)
    torch.testing.assert_close(logits(full["length"].astype(np.int32)), logits(None))  # bars of full length


def test_guidance_of_strength_0_is_a_decode_without_harmony_and_melody_but_the_same_bar(song_model: Path) -> None:
    codec = seqvae.load(song_model)
    model, segments = network(codec), codec.segments(groove(1, 3))
    z, given = codec.posteriors(segments).mean, conditions(segments)
    sampling = Sampling(max_tokens=16)
    full = codec.generate_tokens(z, given, sampling)
    model.guidance = 1.0 + 1e-6  # nearly the model itself, by the other way
    assert [one.tolist() for one in codec.generate_tokens(z, given, sampling)] == [one.tolist() for one in full]
    model.guidance = 0.0
    without = codec.generate_tokens(z, given, sampling)
    bars, s, conditions_ = BarDecoder(model, given).bars(z)
    tokens, _ = codec.tensors([[one] for one in without])
    logits = model.net.logits(*teacher_forced(model.net, tokens[:, 0], bars, s, conditions_.absent()))
    state = codec.tokenizer.grammar().start(3, np.full(3, 48, np.int32))
    allowed = torch.from_numpy(codec.tokenizer.grammar().allowed(state))
    assert logits[:, 0].masked_fill(~allowed, -torch.inf).argmax(-1).tolist() == tokens[:, 0, 0].tolist()


def test_conditions_between_two_songs(songs: Codec) -> None:
    first, last = songs.given(song_of_chords("C", 2)), songs.given(song_of_chords("F", 2, beats=3))
    assert first is not None and last is not None
    for way, nearer in ((0.25, first), (0.75, last)):
        there = between(first, last, way)
        assert there is not None
        assert (there["length"] == nearer["length"]).all() and not there["melody"].any()
        expected = (1 - way) * first["harmony"][..., :12] + way * last["harmony"][..., :12]
        np.testing.assert_allclose(there["harmony"][..., :12], expected, atol=1e-6)
        assert (there["harmony"][..., 12:] == nearer["harmony"][..., 12:]).all()


def test_segments_without_melody_have_other_latents_and_the_same_tokens(songs: Codec) -> None:
    segments = songs.segments(groove(1, 3))
    bare = without_melody(segments)
    assert [one[0].tolist() for one in bare] == [one[0].tolist() for one in segments]
    one, other = songs.posteriors(segments).mean, songs.posteriors(bare).mean
    torch.testing.assert_close(one[:, :E], other[:, :E])
    assert not torch.allclose(one[:, E:], other[:, E:], atol=1e-4)


# --- styles and new songs ---------------------------------------------------------------------------------------------


def test_a_style_is_a_gaussian_of_song_vectors_and_the_prior_of_residuals(songs: Codec, tmp_path: Path) -> None:
    latents = [torch.randn(4, 38) for _ in range(9)]
    for z in latents:
        z[:, :E] = z[0, :E]
    style = gaussian.fit(latents, "nine", E)
    alone = gaussian.fit([z[:1, :E] for z in latents])
    torch.testing.assert_close(style.mean, torch.cat([alone.mean, torch.zeros(32)]))
    torch.testing.assert_close(style.covariance[:E, :E], alone.covariance)
    assert torch.equal(style.covariance[E:, E:], torch.eye(32))
    assert not style.covariance[:E, E:].any()
    assert style.exemplars is None
    styles_file.save({"nine": style}, tmp_path / "nine.styles")
    again = styles_file.load(tmp_path / "nine.styles", 38)["nine"]
    assert again.shared == E
    torch.testing.assert_close(again.covariance, style.covariance, rtol=1e-2, atol=1e-2)
    drawn = gaussian.draw(again, 2000, torch.Generator().manual_seed(0))
    assert (drawn[:, :E] == drawn[0, :E]).all()
    torch.testing.assert_close(drawn[:, E:].std(0), torch.ones(32), rtol=0.1, atol=0.1)


def test_draws_differ_and_obey_their_seed(songs: Codec) -> None:
    first, again = (songs.sample(4, "calm", segments=8, seed=3) for _ in range(2))
    assert [notes(one) for one in first] == [notes(one) for one in again]
    assert len({str(notes(one)) for one in first}) == 4


def test_new_songs_have_chords_of_their_style(songs: Codec) -> None:
    known = songs.style("calm")
    assert known.ensemble is not None
    assert form.chords(known.ensemble, 8, (0, 0)) is None, "three songs are too few"
    table = np.zeros_like(known.ensemble.chords)
    table[-1, SYMBOLS.index("F")] = table[:-1, SYMBOLS.index("C")] = 1.0
    ensemble = replace(known.ensemble, chords=table)
    frame = form.chords(ensemble, 8, (0, 0))
    heard = [SYMBOLS[i] for i in progressions.chords(frame.notes, frame.bounds)]
    assert heard == ["F", "C", "F", "C", "C", "C", "F", "C"]
    asked: list[Any] = []
    codec = replace(songs, wrap=lambda inner: Listening(inner, asked))
    codec.sample(1, replace(known, ensemble=ensemble), segments=8)
    given = np.concatenate(asked)
    expected = no_melody(songs.given(frame))
    assert expected is not None
    assert given["harmony"].tobytes() == 2 * expected["harmony"].tobytes(), "both drafts"
    assert (given["has_harmony"] == CHORD_SYMBOLS).all() and not given["has_melody"].any()


@dataclass(frozen=True)
class Listening:
    """Inference that notes what is given of decoded chunks."""

    inner: BatchInference
    asked: list[Any]

    def posteriors(self, segments: Any, refined: bool = False) -> Posterior:
        return self.inner.posteriors(segments, refined)

    def token_log_probs(self, z: torch.Tensor, segments: Any) -> torch.Tensor:
        return self.inner.token_log_probs(z, segments)

    def generate_tokens(self, z: torch.Tensor, given: Any, sampling: Sampling, guides: Any = ()) -> Any:
        self.asked.append(given)
        return self.inner.generate_tokens(z, given, sampling, guides)


def test_jobs_of_the_studio_cache_bars_with_their_songs(songs: Codec) -> None:
    def report(share: float, step: str) -> None: ...

    job = replace(songs, wrap=lambda inner: JobInference(inner, shared, report))
    shared = Shared()
    segments = songs.segments(groove(1, 10))
    other = songs.segments(replace(groove(1, 10), notes=groove(1, 10).notes[:-40]))
    assert other[0][0].tolist() == segments[0][0].tolist(), "the same bar of another song"
    for _ in range(2):
        torch.testing.assert_close(job.posteriors(segments).mean, songs.posteriors(segments).mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(job.posteriors(other).mean, songs.posteriors(other).mean, rtol=1e-4, atol=1e-4)
    assert len(shared.known) == 4 + 5, "four bars that repeat; the other song has a shorter one"
    z, given = songs.posteriors(segments).mean, conditions(segments)
    sampling = Sampling(max_tokens=24)
    made, expected = (one.generate_tokens(z, given, sampling) for one in (job, songs))
    assert [chunk.tolist() for chunk in made] == [chunk.tolist() for chunk in expected]


# --- checkpoints and settings -----------------------------------------------------------------------------------------


def test_a_song_model_is_saved_and_loaded(songs: Codec, song_model: Path) -> None:
    again = seqvae.load(song_model)
    assert again.model.config.song == songs.model.config.song
    one, two = (codec.encode([groove(1, 3)])[0] for codec in (songs, again))
    assert torch.equal(one, two)
    assert again.styles["calm"].shared == E


def test_sizes_that_do_not_fit_are_refused(songs: Codec) -> None:
    from seqvae.checkpoint import folder as checkpoint

    shape = SongConfig(song=4, bar=6)
    for config in (ModelConfig(chunks=1, latent=11, song=shape), ModelConfig(chunks=2, latent=10, song=shape)):
        with pytest.raises(ConfigError, match="latent"):
            checkpoint.restored(config, songs.tokenizer)
    with pytest.raises(ConfigError, match="72 steps"):
        checkpoint.restored(ModelConfig(chunks=1, latent=10, song=replace(shape, steps=72)), songs.tokenizer)
    with pytest.raises(ConfigError, match="train_songs"):
        checkpoint.build(ModelConfig(chunks=1, latent=10, song=shape), songs.tokenizer)


@pytest.mark.parametrize("name", [field.name for field in fields(SongConfig) if field.type == "Count"])
def test_absurd_sizes_are_refused_before_memory_is_allocated(song_model: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "songs"
    shutil.copytree(song_model, folder)
    about = json.loads((folder / "config.json").read_text())
    about["recipe"]["model"]["song"][name] = 10**8
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError):
        seqvae.load(folder)


def test_a_path_keeps_the_song_vector_of_all_bars(songs: Codec) -> None:
    one, two = (songs.means([songs.segments(groove(i, 3))], refined=False)[0] for i in (1, 2))
    way = interpolation.path(one, two, 5, "slerp", E)
    assert (way[..., :E] == way[:, :1, :E]).all()
    assert torch.equal(way[0], one) and torch.equal(way[-1], two)
    torch.testing.assert_close(way[2, 0, :E], interpolation.slerp(one[0, :E], two[0, :E], 0.5))


def test_program_shares_are_those_that_the_song_vector_alone_has_under_the_conditions(songs: Codec) -> None:
    model, segments = network(songs), songs.segments(groove(1, 3))
    known = conditions(segments)
    assert known is not None
    (z,) = songs.means([segments])
    shares = program_shares(songs, z, known)
    assert shares is not None
    ahead, rows = known.copy(), z.clone()
    ahead["has_bar"], rows[:, E:] = 0.0, 0.0
    first = torch.full((3, 1, 1), BOS)
    logits, _ = BarDecoder(model, ahead).decode_logits(rows, first, torch.zeros(3, 1, 1, 3, dtype=torch.long))
    # from ordered probabilities to hazards: each is divided by the probability that no program before it comes
    ids = torch.from_numpy(songs.adapter.tokenizer.ids("program")).long()  # type: ignore[attr-defined]
    p = logits[:, 0, 0].double().exp()[:, ids]
    present = p / (1 - (p.cumsum(1) - p))
    expected = (present / present.sum(1, keepdim=True)).mean(0)
    np.testing.assert_allclose(shares, expected, rtol=1e-3, atol=1e-6)
    assert program_shares(songs, z[:0], known[:0]) is None


def test_a_bar_keeps_less_of_itself_the_farther_its_song_vector_moves(songs: Codec) -> None:
    model, known = network(songs), songs.given(groove(1, 3))
    (z,) = songs.encode([groove(1, 3)])
    rows, same = model.after_move(z, z, known)
    assert torch.equal(rows, z) and same is known
    kept = []
    for far in (0.5, 1.0, 4.0):
        moved = z.clone()
        moved[:, 0] += far
        rows, given = model.after_move(z, moved, known)
        assert given is not None and known is not None
        assert torch.equal(rows[:, :E], moved[:, :E])
        torch.testing.assert_close(rows[:, E:], torch.from_numpy(given["has_bar"])[:, None] * z[:, E:])
        assert (known["has_bar"] == 1).all()
        kept.append(float(given["has_bar"][0]))
    assert kept == pytest.approx([KEPT**0.5**0.5, KEPT, KEPT**2])


def test_a_model_without_a_band_arranges_nothing(song_model: Path) -> None:
    codec = seqvae.load(song_model)
    assert codec.goal("wild", 0.5) is not None
    codec.model.band = False
    assert codec.goal("wild", 0.5) is None


def test_posterior_rates_count_a_song_vector_once() -> None:
    q = Posterior(torch.ones(4, 3), torch.zeros(4, 3))
    torch.testing.assert_close(q.kl_of_segments(1), torch.full((4,), 0.5 / 4 + 1.0))
    torch.testing.assert_close(q.kl_of_segments(), q.kl().sum(1))


# --- pieces and commands ----------------------------------------------------------------------------------------------


def test_amount_0_is_the_reconstruction(songs: Codec) -> None:
    piece = groove(3, 4)
    assert notes(songs.blend(piece, source="calm", target="wild", amount=0.0)) == notes(songs.reconstruct(piece))


def test_interpolation_begins_and_ends_with_both_songs(songs: Codec) -> None:
    a, b = groove(1, 3), groove(2, 4)
    steps = songs.interpolate(a, b, steps=3)
    assert len(steps) == 3
    ends = [
        songs.transform([piece], lambda z: z, segments=[without_melody(songs.segments(piece))])[0] for piece in (a, b)
    ]
    assert notes(steps[0]) == notes(ends[0])
    assert notes(steps[-1]) == notes(ends[1])


def test_commands_run_on_a_song_model(song_model: Path, here: Path) -> None:
    one, two = str(song(here / "one.mid", 1, bars=4)), str(song(here / "two.mid", 2, bars=3))
    given = ["-m", str(song_model)]
    for command in (
        ["blend", one, "--from", "calm", "--to", "wild", "--amount", "0.5", "-o", "blend.mid"],
        ["blend", one, "--to", "wild", "--amount", "1", "--keep", "none", "-o", "plain.mid"],
        ["reconstruct", one, "-o", "again.mid"],
        ["interpolate", one, two, "--steps", "3", "-o", "steps"],
        ["generate", "--style", "calm", "-n", "2", "--segments", "8", "-o", "new"],
        ["generate", "--style", "wild", "--chords", "C | Am | F | G", "-o", "chords.mid"],
        ["encode", one, "-o", "latents.safetensors"],
        ["decode", "latents.safetensors", "--like", one, "-o", "decoded.mid"],
        ["style", "fit", f"mine={one}", f"theirs={two}", "-o", "my.styles"],
    ):
        done(*command, *given)
    for made in ("blend.mid", "plain.mid", "again.mid", "chords.mid", "decoded.mid", "steps/00.mid", "my.styles"):
        assert (here / made).stat().st_size, made
    assert len(list((here / "new").glob("*.mid"))) == 2
