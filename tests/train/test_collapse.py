"""Settings against posterior collapse in training: each has the effect stated in its paper."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from torch import Tensor

from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig
from seqvae.data import prepare as shards
from seqvae.data.dataset import TokenData
from seqvae.protocols import Tokenizer
from seqvae.train.loop import train
from seqvae.train.trainer import Run

RECIPE = Recipe(
    name="tiny",
    tokenizer=TokenizerConfig(kind="text", vocab_size=320, max_tokens=24),
    model=ModelConfig(chunks=1, latent=8, width=32, hidden=32, encoder="recurrent", heads=4),
    objective=ObjectiveConfig(schedule="constant", beta=1.0),
    train=TrainConfig(
        steps=150, batch_tokens=1024, learning_rate=1e-2, warmup_steps=10, evaluate_every=50, save_every=50,
        precision="fp32",
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenData, Tokenizer]:
    folder = tmp_path_factory.mktemp("lines")
    (folder / "all.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    data, tokenizer, _ = shards.prepare(RECIPE, [folder / "all.txt"], folder / "data", report=lambda _: None)
    return data, tokenizer


def after(
    prepared: tuple[TokenData, Tokenizer], folder: Path, recipe: Recipe = RECIPE, /, **changes: Any
) -> dict[str, float]:
    """The last validation of a run with changed settings of the objective."""
    recipe = replace(recipe, objective=replace(recipe.objective, **changes))
    train(recipe, *prepared, folder, resume=False, report=lambda _: None)
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figures: dict[str, float] = [line for line in found if line["kind"] == "valid"][-1]
    return figures


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_kl_reaches_its_target_or_floor(prepared: tuple[TokenData, Tokenizer], tmp_path: Path) -> None:
    bits = 1 / np.log(2)
    plain = after(prepared, tmp_path / "plain", beta=4.0)["kl_bits"]
    assert plain < 1.0 * bits, "a large beta and a strong decoder: z is not used"
    for name, changes in {
        "target": {"target_kl": 6.0},
        "total": {"free_bits_total": 6.0},
        "each": {"free_bits": 0.75},  # of eight dimensions
    }.items():
        held = after(prepared, tmp_path / name, beta=4.0, **changes)["kl_bits"]
        if name == "target":
            assert held == pytest.approx(6.0 * bits, rel=0.4)
        else:  # the KL below a floor has no cost
            assert plain + 1.0 * bits < held < 8.0 * bits, name


def test_after_pretraining_the_decoder_is_reset_and_the_encoder_stays(
    prepared: tuple[TokenData, Tokenizer], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, objective=replace(RECIPE.objective, pretrain_steps=5))
    run = Run(recipe, *prepared, tmp_path, print)
    batches = run.batches.resume(0, 0)
    for _ in range(5):
        run.progress.epoch, run.progress.position, tokens = next(batches)
        result = run.step(tokens)
        assert result.beta == 0, "a plain autoencoder"
    before = weights(run.model)
    run.restart_decoder()
    for name, now in weights(run.model).items():
        kept = torch.equal(now, before[name])
        constant = not now.any() or bool((now == 1).all())  # a bias, or the gain of a norm
        if name.startswith(("encoder.", "decoder.binding.")):
            assert kept, name
        elif not constant:
            assert not kept, name
    assert run.step(next(batches)[2]).beta == 1


def test_an_aggressive_encoder_is_trained_alone_while_mutual_information_rises(
    prepared: tuple[TokenData, Tokenizer], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, objective=replace(RECIPE.objective, aggressive=20))
    run = Run(recipe, *prepared, tmp_path, print)
    before = weights(run.model)
    run.lead()
    moved = {name for name, now in weights(run.model).items() if not torch.equal(now, before[name])}
    assert moved
    assert all(name.startswith("encoder.") for name in moved)
    run.progress.settled = True
    before = weights(run.model)
    run.lead()
    assert all(torch.equal(now, before[name]) for name, now in weights(run.model).items())
    short = replace(RECIPE, train=replace(RECIPE.train, steps=50))
    figures = after(prepared, tmp_path / "run", short, aggressive=10)
    assert figures["mutual_information"] >= 0
    about = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert about["step"] == short.train.steps
