"""Results on a GPU equal those on the processor but for rounding; skipped without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seqvae import codec
from seqvae.anomaly import evidence as anomaly
from seqvae.codec import Codec
from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig
from seqvae.music.piece import Piece
from seqvae.train.loop import train_from

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")

LINES = ["the soup was good", "the bread was not good", "we will be back", "the bar is new and not very good"]


def pair(folder: Path) -> tuple[Codec, Codec]:
    """The same model on the processor and on the GPU."""
    here, there = codec.load(folder), codec.load(folder)
    there.model.cuda()
    return here, there


@pytest.mark.parametrize("decoder", ["recurrent", "transformer"])
def test_a_run_on_the_gpu_learns_and_its_checkpoint_loads_anywhere(tmp_path: Path, decoder: str) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"{line} {i}\n" for i in range(200) for line in LINES))
    recipe = Recipe(
        tokenizer=TokenizerConfig(kind="text", vocab_size=320, max_tokens=32),
        model=ModelConfig(chunks=1, latent=8, width=64, hidden=64, decoder=decoder, heads=4, dropout=0.1),  # type: ignore[arg-type]
        objective=ObjectiveConfig(beta=0.1, anneal_steps=50),
        train=TrainConfig(steps=60, batch_tokens=2048, learning_rate=1e-2, evaluate_every=30, save_every=30),
    )
    reports: list[str] = []
    best, _ = train_from(recipe, [tmp_path / "lines.txt"], tmp_path / "run", report=reports.append)
    assert any("on cuda" in line for line in reports)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in reports if line.startswith("valid")]
    assert losses[-1] < losses[0]
    assert codec.load(best).reconstruct(LINES[0])


def test_latents_and_log_probabilities_equal_those_of_the_processor(tiny_text: Path) -> None:
    here, there = pair(tiny_text)
    for a, b in zip(here.encode(LINES), there.encode(LINES), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=1e-2)
    for one, two in zip(anomaly.examine(here, LINES, 4), anomaly.examine(there, LINES, 4), strict=True):
        assert two.log_prob == pytest.approx(one.log_prob, abs=0.1)  # in bf16


def test_decoded_pieces_equal_those_of_the_processor(tiny_text: Path, tiny_music: Path, bach: Piece) -> None:
    here, there = pair(tiny_text)
    z = here.encode(LINES)
    same = [a == b for a, b in zip(here.decode(z), there.decode(z), strict=True)]
    assert sum(same) >= len(LINES) - 1, "ties aside"
    here, there = pair(tiny_music)
    notes = [sum(len(track.notes) for track in model.reconstruct(bach).tracks) for model in (here, there)]
    assert notes[1] == pytest.approx(notes[0], rel=0.1)


def test_a_song_model_on_the_gpu_equals_that_on_the_processor(song_model: Path, bach: Piece) -> None:
    here, there = pair(song_model)
    for a, b in zip(here.encode([bach]), there.encode([bach]), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=1e-2)
    notes = [sum(len(track.notes) for track in model.reconstruct(bach).tracks) for model in (here, there)]
    assert notes[1] == pytest.approx(notes[0], rel=0.1, abs=5)
    assert len(there.sample(2, "calm", segments=8)) == 2
