"""Training with torch.compile equals training without it, but for rounding, for batches of any shape."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest
import torch

from seqvae.config import Recipe
from seqvae.data.dataset import TokenData
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.train.trainer import Run

BACKBONES = [("set", "recurrent"), ("transformer", "transformer")]
SHAPES = [(5, 0), (3, 2), (4, 7), (2, 1)]  # rows of a batch, and padding beyond its longest row


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))),
    reason="no C++ compiler here, and torch.compile needs one",
)
@pytest.mark.parametrize(("encoder", "decoder"), BACKBONES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_compiled_steps_equal_those_of_the_plain_model(
    encoder: str, decoder: str, collection: Path, tokenizer: MidiTokenizer, small_recipe: Recipe, tmp_path: Path
) -> None:
    model = replace(
        small_recipe.model, width=32, hidden=32, latent=16, heads=4, dropout=0.1,
        encoder=cast(Literal["set", "transformer"], encoder),
        decoder=cast(Literal["recurrent", "transformer"], decoder),
    )  # fmt: skip
    recipe = replace(
        small_recipe,
        model=model,
        objective=replace(small_recipe.objective, word_dropout=0.3, track_dropout=0.5, bag=0.5),
        train=replace(small_recipe.train, batch_tokens=512, precision="fp32"),
    )
    losses: list[list[float]] = []
    for compiled in (False, True):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        chosen = replace(recipe, train=replace(recipe.train, compile=compiled))
        run = Run(chosen, TokenData(collection), tokenizer, tmp_path, lambda _: None)
        run.model.train()
        run.compile()
        run.progress.epoch, run.progress.position, tokens = next(iter(run.batches))
        figures = []
        for rows, wider in SHAPES:
            result = run.step(np.pad(tokens[:rows], ((0, 0), (0, 0), (0, wider))))
            figures += [float(result.total.detach()), result.reconstruction, result.kl, result.accuracy]
        losses.append(figures)
        counted = torch._dynamo.utils.counters["stats"]["calls_captured"]
        assert (counted > 10) == compiled, "one model is compiled, the other is not"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
