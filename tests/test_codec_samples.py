"""New pieces from `Codec.sample`: seeds, styles, chords, and files that other libraries read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import rows
from torch import Tensor

from seqvae.codec import Codec
from seqvae.music import chords
from seqvae.music import piece as midi
from seqvae.music.notes import without_drums
from seqvae.music.piece import Piece
from seqvae.nn.sampling import Sampling
from seqvae.style import arranger
from seqvae.style.gaussian import Style


def test_a_seed_gives_the_same_pieces(small: Codec) -> None:
    def pieces(count: int = 2, exact: bool = False, **named: Any) -> list[list[list[int]]]:
        sampling = Sampling(temperature=0.9, top_p=0.95, max_tokens=48)
        model = replace(small, exact=exact)
        return [rows(score) for score in model.sample(count, segments=2, sampling=sampling, **named)]

    first = pieces(style="odd", seed=1)
    assert pieces(style="odd", seed=1) == first
    two, three = (pieces(count, exact=True, style="odd", seed=1) for count in (2, 3))
    assert three[:2] == two, "asking for more changes none"
    assert pieces(style="odd", seed=2) != first
    assert first[0] != first[1]
    mixed = [pieces(count, exact=True, seed=1) for count in (2, 3)]
    assert mixed[1][:2] == mixed[0] != pieces(exact=True, style="all", seed=1), "each is of one style"
    assert pieces(style="even", seed=1) != first


def test_temperature_0_decodes_the_mean_of_a_style(small: Codec) -> None:
    one, two = (small.sample(1, style="odd", temperature=0, segments=2, seed=seed)[0] for seed in (0, 1))
    odd = small.styles["odd"]
    assert odd.ensemble is not None
    mean = odd.mean.expand(2, -1)
    blank = arranger.Stretch(small.adapter.blank(2 * small.chunks), [0, 1], small.chunks, None)
    expected = small.decode([mean], guide=arranger.improvised(small, mean, odd.ensemble, blank))[0]
    assert rows(one) == rows(two) == rows(expected)


@pytest.mark.parametrize("style", ["odd", "prior"])
def test_a_new_song_over_chords_has_their_key_their_length_and_their_notes(small: Codec, style: str) -> None:
    like = chords.song("Db | Gb | Ab | Db", 6, beats=3, tempo=90)

    def drawn(strength: float) -> Piece:
        return midi.read(small.sample(1, style, segments=3, seed=1, like=like, chroma_guidance=strength)[0])

    def fits(piece: Piece) -> float:
        pitched = without_drums(piece.notes)
        return float(np.isin(pitched[:, 2] % 12, [0, 1, 3, 5, 6, 8, 10]).mean())  # the scale of D flat major

    guided = drawn(6.0)
    assert len(guided.notes) and guided.notes[:, 0].max() < like.bounds[-1]
    assert [(x.numerator, x.denominator) for x in guided.frame.time_signatures] == [(3, 4)]
    assert round(guided.frame.tempos[0].qpm) == 90
    assert fits(guided) > max(0.9, fits(drawn(0.0)))


def test_a_bar_without_a_chord_has_drums_alone(small: Codec) -> None:
    like = chords.song("C | N.C.", 4)
    new = midi.read(small.sample(1, "odd", segments=2, seed=1, like=like)[0])
    pitched = without_drums(new.notes)
    assert len(pitched)
    assert set((pitched[:, 0] // 48).tolist()) <= {0, 2}


def test_any_decoded_score_is_a_file_for_any_reader(small: Codec) -> None:
    import music21
    from symusic.core import ScoreTick

    wild = replace(small.styles["all"], covariance=400 * small.styles["all"].covariance)
    sampling = Sampling(temperature=1.5, max_tokens=60)
    for score in small.sample(4, style=wild, segments=2, sampling=sampling):
        content = midi.to_bytes(score)
        notes = len(rows(score))
        assert sum(len(track.notes) for track in ScoreTick.from_midi(content).tracks) == notes
        assert sum(len(i.notes) for i in midi.to_pretty_midi(score).instruments) == notes
        parsed = music21.midi.translate.midiStringToStream(content)  # type: ignore[no-untyped-call]
        # a drum has no pitches, a chord of drums has notes
        count = sum(len(n.notes) if hasattr(n, "notes") else 1 for n in parsed.recurse().notes)
        assert count >= 0.5 * notes, "music21 rounds times, and merges"


def test_tokens_of_exemplars_are_the_most_likely_unless_requested_otherwise(
    small: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Sampling] = []

    def decode(self: Codec, z: list[Tensor], *, sampling: Sampling, **_: None) -> list[None]:
        chosen.append(sampling)
        return [None] * len(z)

    monkeypatch.setattr(Codec, "decode", decode)
    latent = small.model.config.latent
    mean, covariance = torch.zeros(latent), torch.eye(latent)
    pairs = torch.randn(3, 4, latent)
    for one, requested in (
        (Style(mean, covariance, 9, exemplars=pairs), None),
        (Style(mean, covariance, 9), None),
        (Style(mean, covariance, 9, exemplars=pairs), Sampling(temperature=2.0)),
    ):
        small.sample(2, one, 0.7, 4, 11, requested)
    assert [taken.temperature for taken in chosen] == [0, 0.7, 2.0]
    assert {taken.seed for taken in chosen} == {11}
