"""All figures of music, and anomaly scores, on a song model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import done
from conftest import groove

import seqvae
from seqvae.codec import Codec
from seqvae.data.dataset import half_of
from seqvae.evaluation import arrangement as ruler
from seqvae.evaluation import music as evaluate
from seqvae.evaluation.arrangement import Excerpts
from seqvae.music import piece as midi
from seqvae.music import titles

pytestmark = pytest.mark.slow
NAMES = ("even", "odd")


@pytest.fixture(scope="module")
def codec(song_model: Path) -> Codec:
    codec = seqvae.load(song_model)
    codec.styles = {name: codec.fit_style([groove(i) for i in range(at, 20, 2)]) for at, name in enumerate(NAMES)}
    return codec


def test_figures_of_a_card(codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for parity, name in enumerate(NAMES):
        found = {None: 0, "final": 0, "choose": 0}
        for i in range(2000):
            title = f"{name}{i:04d}"
            half = half_of(titles.title(f"{title}.mid"))
            if found[half] < {None: 8, "final": 3, "choose": 1}[half]:
                found[half] += 1
                piece = groove(2 * i + parity)
                midi.write(midi.to_score(piece.notes, piece.frame), tmp_path / "songs" / name / f"{title}.mid")
    found_ = evaluate.evaluate(codec, tmp_path / "songs", pieces=2, samples=4, pairs=3)
    # the song vector counts once: a row has at least the nats of its residual, and not those of the song again
    bits = found_["reconstruction"]["all"]
    assert bits["kl_bits_whole"][0] == pytest.approx(8 * bits["kl_bits"][0], rel=1e-4)
    assert set(found_["interpolation"]) >= {"walk", "slerp"}


@pytest.mark.parametrize("band", [True, False])
def test_figures_of_arrangements(codec: Codec, band: bool) -> None:
    real = {name: [groove(i, 16) for i in range(at, 24, 2)] for at, name in enumerate(NAMES)}
    test = {name: [groove(40 + at, 16), groove(42 + at, 16)] for at, name in enumerate(NAMES)}
    codec.model.band = band
    move, controls = ruler.codec_moves(codec, test)
    found = ruler.arrangements(move, controls, Excerpts(real, test), pairs=[NAMES], amounts=(0.5, 1.0))
    assert {"amount 0.5", "amount 1", "another song", "target mean"} <= set(found["all"])
    codec.model.band = True


def test_a_detector_of_songs(song_model: Path, here: Path) -> None:
    for i in range(24):
        piece = groove(i, 4)
        midi.write(midi.to_score(piece.notes, piece.frame), here / "normal" / f"{i}.mid")
    odd = groove(1, 4)
    rng = np.random.default_rng(0)
    notes = odd.notes.copy()
    notes[:, 2] = rng.integers(20, 100, len(notes))
    midi.write(midi.to_score(notes, odd.frame), here / "odd.mid")
    made = ("--detector", "songs.detector", "-m", song_model)
    done("detect", "fit", "normal", "-m", song_model, "-o", "songs.detector", "--p-value", "0.2")
    scored = [json.loads(line) for line in done("detect", "score", "odd.mid", "normal/1.mid", *made, "--json")]
    assert scored[0]["score"] < scored[1]["score"]
    done("detect", "score", "odd.mid", *made)  # which tokens surprise, and which were expected
