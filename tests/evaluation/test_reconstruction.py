"""Reconstruction in three columns: a mean without noise, and samples with the noise of the posterior behind each KL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Trained, groove

import seqvae
from seqvae.evaluation import reconstruction as evaluate_reconstruction
from seqvae.evaluation import test_songs
from seqvae.music.piece import Piece


def test_samples_have_the_noise_of_the_posterior_of_each_kl(trained: Trained) -> None:
    codec = seqvae.load(trained.best)
    songs = [song for i in (2, 4) for song in test_songs.encode(codec, "even", [groove(i)])]
    still = [replace(song, logvar=torch.full_like(song.z, -200.0)) for song in songs]  # e^-100 of noise
    loud = [replace(song, logvar=torch.full_like(song.z, 8.0)) for song in songs]
    found = {
        name: evaluate_reconstruction.reconstruction(codec, some, 4, np.random.default_rng(0), lambda _: None)["all"]
        for name, some in (("still", still), ("loud", loud))
    }
    assert found["still"]["note_f1_sample"] == found["still"]["note_f1"] == found["loud"]["note_f1"]
    assert found["loud"]["note_f1_sample"][0] < found["loud"]["note_f1"][0]
    own = codec.posteriors([segment for song in songs for segment in codec.segments(song.piece)])
    assert found["still"]["kl_bits_encoder"][0] == pytest.approx(float(own.kl().sum(1).mean()) / np.log(2), rel=1e-5)
    searched = np.concatenate([song.kl for song in songs])
    assert found["still"]["kl_bits"][0] == pytest.approx(searched.mean() / np.log(2), rel=1e-5)


def test_an_unrelated_song_is_fitted_into_the_bars_of_the_song() -> None:
    notes = np.array([[0, 12, 60, 0, 80], [40, 12, 62, 0, 80], [50, 12, 64, 0, 80]], np.int32)
    piece = Piece(notes, np.array([0, 48, 96], np.int32), groove(0).frame)
    moved = evaluate_reconstruction.refit(piece, np.array([0, 36, 72], np.int32))
    assert moved.tolist() == [[0, 12, 60, 0], [38, 12, 64, 0]], "notes after the end of the shorter bar are left out"
