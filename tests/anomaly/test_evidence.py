"""Evidence equals a plain computation of the model's log-probabilities, and does not depend on other pieces."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SENTENCES, SESSIONS, groove, session
from numpy.typing import NDArray
from precision import needs_bf16
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from seqvae import codec
from seqvae.anomaly import evidence as anomaly
from seqvae.anomaly.evidence import Evidence, examine, latents
from seqvae.codec import Codec
from seqvae.errors import ReadError
from seqvae.events.tokenizer import UNKNOWN
from seqvae.music.piece import Piece
from seqvae.nn import inference
from seqvae.nn.posterior import Posterior, log_prior
from seqvae.protocols import BOS, EOS

NEW = [session(number) for number in range(1000, 1020)]
ODD = ["", "close", "open sync close panic", "open " + "read check " * 20 + "close", "panic " * 30]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 a number can round differently in another batch, by up to a hundredth of itself."""
    monkeypatch.setattr(inference, "multiplies_bf16", lambda device: False)


@pytest.fixture(scope="module")
def events(tiny_events: Path) -> Codec:
    return codec.load(tiny_events)


def alone(model: Codec, piece: str | Piece, samples: int = 16, seed: int = 0) -> Evidence:
    [evidence] = examine(model, [piece], samples, seed)
    return evidence


def same(one: Evidence, other: Evidence, atol: float = 1e-4) -> None:
    """Equal but for the last digits."""
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.read == other.read
    for a, b in ((one.log_prob, other.log_prob), (one.error, other.error), (one.means, other.means)):
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)
    assert (one.elbo, one.importance) == pytest.approx((other.elbo, other.importance), abs=10 * atol, rel=1e-4)


# --- evidence by hand -------------------------------------------------------------------------------------------------


class ByHand:
    """Reference for one window of a session without the codec: a batch of one, `torch.distributions`, no padding."""

    def __init__(self, model: Codec, window: NDArray[np.int32], noise: Tensor) -> None:
        tokens = torch.from_numpy(window).long()[None, None]
        posterior = model.model.encode(tokens, torch.zeros(*tokens.shape, 0).long())
        self.mean, deviation = posterior.mean[0], (posterior.logvar[0] / 2).exp()
        self.draws = self.mean + noise * deviation
        self.log_probs = torch.stack([self.token_log_probs(model, z, tokens) for z in self.draws])
        self.error = self.token_log_probs(model, self.mean, tokens)
        q, p = Normal(self.mean, deviation), Normal(torch.zeros(len(self.mean)), torch.ones(len(self.mean)))
        self.kl = float(kl_divergence(q, p).sum())
        outside = p.log_prob(self.draws) - q.log_prob(self.draws)  # type: ignore[no-untyped-call]
        self.weights = self.log_probs.sum(1) + outside.sum(1)

    @staticmethod
    def token_log_probs(model: Codec, z: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities `(T,)` of the tokens, in nats."""
        before = torch.tensor([[[BOS, *tokens[0, 0, :-1].tolist()]]])
        logits, _ = model.model.under(None).decode_logits(z[None], before, torch.zeros(*tokens.shape, 0).long())
        return torch.tensor([float(row.log_softmax(0)[i]) for row, i in zip(logits[0, 0], tokens[0, 0], strict=True)])


def by_hand(model: Codec, line: str, samples: int, seed: int = 0) -> list[ByHand]:
    noise = torch.randn(samples, model.model.config.latent, generator=torch.Generator().manual_seed(seed))
    return [ByHand(model, window, noise) for window in model.tokenizer.encode(line)]


@pytest.mark.parametrize("line", ["open read check close", *ODD[:3], max(NEW, key=len), ODD[3]])
def test_evidence_equals_the_reference_computation(events: Codec, line: str) -> None:
    evidence, windows = alone(events, line, samples=5, seed=3), by_hand(events, line, samples=5, seed=3)
    overlap = events.tokenizer.overlap
    first = [0] + [overlap] * (len(windows) - 1)  # start of the part that does not repeat the previous window
    average = torch.cat([one.log_probs.mean(0)[at:] for one, at in zip(windows, first, strict=True)])
    error = torch.cat([one.error[at:] for one, at in zip(windows, first, strict=True)])
    np.testing.assert_allclose(evidence.log_prob, average, atol=1e-4)
    np.testing.assert_allclose(evidence.error, error, atol=1e-4)
    np.testing.assert_allclose(evidence.means, torch.stack([one.mean for one in windows]), atol=1e-5)
    assert evidence.elbo == pytest.approx(sum(float(w.log_probs.sum(1).mean()) - w.kl for w in windows), abs=1e-3)
    importance = sum(float(w.weights.exp().mean().log()) for w in windows)
    assert evidence.importance == pytest.approx(importance, abs=1e-3)
    assert evidence.read == sum(w.log_probs.shape[1] for w in windows)


@pytest.mark.parametrize("line", [*ODD, *NEW[:8]])
def test_joined_windows_have_one_entry_per_event_and_one_for_the_end(events: Codec, line: str) -> None:
    evidence = alone(events, line, samples=2)
    assert evidence.log_prob.shape == evidence.error.shape == evidence.tokens.shape == (len(line.split()) + 1,)
    shown = [events.tokenizer.token_text(int(token)) for token in evidence.tokens]
    assert shown == [*(word if word != "panic" else "<unk>" for word in line.split()), "<eos>"]
    assert (evidence.log_prob <= 0).all()
    assert (evidence.error <= 0).all()
    windows = events.tokenizer.encode(line)
    assert len(evidence.means) == len(windows)
    assert evidence.read == sum(map(len, windows)) == len(evidence.tokens) + 3 * (len(windows) - 1)


def test_an_anomalous_event_has_the_lowest_log_probability(events: Codec) -> None:
    evidence = alone(events, "open read check write check close", samples=32)  # without the sync after write
    assert int(evidence.log_prob.argmin()) == int(evidence.error.argmin()) == 4
    usual = alone(events, "open read check write sync check close", samples=32)
    assert usual.log_prob.mean() > evidence.log_prob.mean() + 0.3
    panic = alone(events, "open read check panic check close")
    assert int(panic.log_prob.argmin()) == panic.tokens.tolist().index(UNKNOWN) == 3


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_the_elbo_never_exceeds_the_log_likelihood_of_the_tokens(events: Codec) -> None:
    for line, evidence in zip(NEW, examine(events, NEW), strict=True):
        total = sum(float(one.log_probs.sum(1).mean()) for one in by_hand(events, line, 16))
        assert evidence.elbo <= total + 1e-3
        if len(events.tokenizer.encode(line)) == 1:
            assert evidence.elbo < float(evidence.log_prob.sum()), "the latents of this model are informative"


def test_the_importance_weighted_bound_is_at_least_the_mean_log_weight(events: Codec) -> None:
    found = list(examine(events, NEW, 8))
    for line, evidence in zip(NEW, found, strict=True):
        assert evidence.importance >= sum(float(one.weights.mean()) for one in by_hand(events, line, 8)) - 1e-3
    many = [list(examine(events, NEW, 64, seed)) for seed in range(3)]
    elbo, importance = (np.mean([getattr(e, name) for one in many for e in one]) for name in ("elbo", "importance"))
    assert importance > elbo, "closer to the likelihood on average"
    few = [e.importance for seed in range(12) for e in examine(events, NEW, 1, seed)]
    assert importance > np.mean(few), "closer with more draws"


def test_the_importance_weighted_bound_of_one_sample_is_its_log_weight(events: Codec) -> None:
    for seed in range(4):
        for line, evidence in zip(NEW[:5], examine(events, NEW[:5], 1, seed), strict=True):
            [*weights] = (float(one.weights) for one in by_hand(events, line, 1, seed))
            assert evidence.importance == pytest.approx(sum(weights), abs=1e-3)


def test_draws_follow_the_seed(events: Codec) -> None:
    line = max(NEW, key=len)
    one, again, other = (alone(events, line, 4, seed) for seed in (1, 1, 2))
    assert (one.log_prob == again.log_prob).all()
    assert (one.log_prob != other.log_prob).any()
    assert (one.error == other.error).all(), "the mean of the posterior is not a sample"
    assert (one.means == other.means).all()


# --- independence of other pieces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [1, 3, 2048])
def test_evidence_does_not_depend_on_order_other_pieces_or_copies(
    events: Codec, monkeypatch: pytest.MonkeyPatch, windows: int
) -> None:
    expected = [alone(events, line, 4) for line in (*NEW, *ODD)]
    monkeypatch.setattr(anomaly, "WINDOWS", windows)
    order = np.random.default_rng(0).permutation(np.tile(np.arange(len(expected)), 2))
    found = list(examine(events, ((*NEW, *ODD)[i] for i in order), 4))
    assert len(found) == len(order)
    for i, evidence in zip(order, found, strict=True):
        same(evidence, expected[i])


def test_copies_in_one_call_get_identical_evidence(events: Codec) -> None:
    one, _, two = examine(events, [NEW[0], NEW[1], f"  {NEW[0]} "])
    assert (one.log_prob == two.log_prob).all()
    assert (one.elbo, one.importance) == (two.elbo, two.importance)


def test_equal_sessions_of_later_batches_are_not_examined_again(events: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "WINDOWS", 4)
    lines = ["open read check close", "open read close", "open check close", "open close"] * 3  # one window each
    kept = list(examine(events, lines))
    assert all(kept[i] is kept[i % 4] for i in range(12))
    monkeypatch.setattr(anomaly, "REMEMBERED", kept[3].read)
    again = list(examine(events, lines))
    assert again[7] is again[3] and again[4] is not again[0], "the earliest are forgotten"


def test_equal_windows_are_computed_once(events: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    compute = Codec.token_log_probs

    def counted(self: Codec, z: Tensor, segments: Sequence[list[NDArray[np.int32]]]) -> Tensor:
        counts.append(len(segments))
        return compute(self, z, segments)

    monkeypatch.setattr(Codec, "token_log_probs", counted)
    line = "sync " * 100  # every window but the last is the same
    assert len(events.tokenizer.encode(line)) > 9
    list(examine(events, [line] * 5, 2))
    assert counts == [2]


@needs_bf16
@pytest.mark.bf16
def test_bf16_gives_nearly_the_same_evidence(events: Codec, tiny_events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone(events, line) for line in NEW[:10]]
    monkeypatch.setattr(inference, "multiplies_bf16", lambda device: True)
    for one, other in zip(examine(codec.load(tiny_events), NEW[:10]), expected, strict=True):
        # a logit is off by up to 2^-8 of the largest, of about ten; a log-probability by twice as much
        same(one, other, atol=0.1)


# --- many pieces and no pieces ----------------------------------------------------------------------------------------


def test_an_endless_stream_is_scored_as_it_arrives(events: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "WINDOWS", 8)
    read: list[str] = []

    def stream() -> Iterable[str]:
        for line in itertools.cycle(SESSIONS):
            assert len(read) < 20 + 8, "at most one batch is read ahead"
            read.append(line)
            yield line

    found = list(itertools.islice(examine(events, stream(), 2), 20))
    assert len(found) == 20
    for line, evidence in zip(read, found, strict=False):
        assert len(evidence.tokens) == len(line.split()) + 1


def test_no_more_pieces_are_read_than_fit_a_batch(events: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "WINDOWS", 4)
    read: list[str] = []

    def stream() -> Iterable[str]:
        for _ in range(12):
            read.append("open read check close")  # one window each
            yield read[-1]

    assert [len(read) for _ in examine(events, stream(), 1)] == [4] * 4 + [8] * 4 + [12] * 4


def test_no_pieces_give_no_evidence(events: Codec) -> None:
    assert list(examine(events, [])) == []
    assert latents(events, []) == []


def test_latents_equal_those_in_the_evidence(events: Codec) -> None:
    for means, evidence in zip(latents(events, [*NEW, *ODD]), examine(events, [*NEW, *ODD], 1), strict=True):
        np.testing.assert_allclose(means, evidence.means, atol=1e-5)


def test_an_input_that_is_not_a_session_is_an_error_in_one_line(events: Codec) -> None:
    for call in (lambda x: list(examine(events, x)), lambda x: latents(events, x)):
        with pytest.raises(ReadError, match="a path is not a line") as caught:
            call([NEW[0], Path("sessions.txt")])
        assert "\n" not in str(caught.value)


MILLION = """
import resource, time
import numpy as np, torch
from seqvae import anomaly, checkpoint, codec
from seqvae.config import ModelConfig, Recipe
from seqvae.events.tokenizer import EventTokenizer

torch.set_num_threads(1)
tokenizer = EventTokenizer([str(i) for i in range(100)], 128, 32)
config = ModelConfig(chunks=1, latent=4, width=8, hidden=8)
model = codec.from_checkpoint(checkpoint.Checkpoint(Recipe(), checkpoint.build(config, tokenizer), tokenizer))
numbers = np.random.default_rng(0).integers(0, 100, 1_000_000)
line = " ".join(map(str, numbers))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
list(anomaly.examine(model, [line[:20_000]], 2))
before = peak()
[evidence] = anomaly.examine(model, [line], 1)
assert evidence.log_prob.shape == evidence.error.shape == (1_000_001,)
assert (evidence.tokens[:-1] == numbers + 5).all()
print(peak() - before)
"""


@pytest.mark.slow
def test_a_session_of_a_million_events_takes_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MILLION], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200, "MB; its logits alone would be 400"


# --- other modalities -------------------------------------------------------------------------------------------------


def test_sentences_have_evidence_too(tiny_text: Path) -> None:
    model = codec.load(tiny_text)
    for line, evidence in zip(SENTENCES[:5], examine(model, SENTENCES[:5], 4), strict=True):
        chunks = model.tokenizer.encode(line)
        assert evidence.tokens.tolist() == [token for chunk in chunks for token in chunk.tolist()]
        log_probs = model.token_log_probs(torch.from_numpy(evidence.means)[None], model.segments(line))
        assert evidence.error.sum() == pytest.approx(float(log_probs.sum()), abs=1e-3)
    salad = " ".join(sorted(SENTENCES[0].split()))
    assert alone(model, salad).log_prob.mean() < alone(model, SENTENCES[0]).log_prob.mean() - 1


def test_music_evidence_is_normalised_over_the_tokens_its_grammar_allows(tiny_music: Path) -> None:
    model = codec.load(tiny_music)
    piece = groove(3, bars=5)  # two bars a segment: the last is half empty
    evidence = alone(model, piece, 4)
    segments = model.segments(piece)
    chunks = [chunk for segment in segments for chunk in segment]
    assert evidence.tokens.tolist() == [token for chunk in chunks for token in chunk.tolist()]
    assert evidence.read == len(evidence.tokens)
    assert evidence.means.shape == (3, 16)
    rules = [model.tokenizer.allowed(chunk) for chunk in chunks]
    open_ = np.concatenate([one.sum(-1) for one in rules if one is not None])
    assert (evidence.log_prob[open_ == 1] == 0).all(), "a token without alternatives has log-probability 0"
    ends = evidence.log_prob[evidence.tokens == EOS]
    assert len(ends) == 6
    # an untrained model gives all allowed tokens similar probabilities
    assert (np.abs(evidence.log_prob + np.log(open_)) < 3 * math.log(10)).all()


# --- songs ------------------------------------------------------------------------------------------------------------


def test_bars_of_a_song_count_its_vector_once(song_model: Path) -> None:
    model, piece = codec.load(song_model), groove(2, 3)
    segments = model.segments(piece)
    q, shared = model.posteriors(segments), model.model.shared
    found = alone(model, piece, 4, seed=3)
    kl = q.kl()
    noise = torch.randn(4, model.model.config.latent, generator=torch.Generator().manual_seed(3))
    z = q.mean + (0.5 * q.logvar).exp() * noise[:, None]
    log_p = model.token_log_probs(z, segments).flatten(1).sum(1)
    rate = kl[0, :shared].sum() + kl[:, shared:].sum()
    assert found.elbo == pytest.approx(float(log_p.mean() - rate), rel=1e-4)
    own = Posterior(q.mean[..., None], q.logvar[..., None])  # of each dimension alone
    ratio = log_prior(z[..., None]) - own.log_prob(z[..., None])
    weights = log_p + ratio[:, 0, :shared].sum(-1) + ratio[..., shared:].flatten(1).sum(1)
    assert found.importance == pytest.approx(float(weights.logsumexp(0) - math.log(4)), rel=1e-4)


def test_equal_bars_of_different_songs_have_evidence_of_their_own(song_model: Path) -> None:
    model = codec.load(song_model)
    pieces = [groove(bars, bars) for bars in (2, 5, 8)]
    for piece, together in zip(pieces, examine(model, pieces, 3), strict=True):
        same(alone(model, piece, 3), together)
