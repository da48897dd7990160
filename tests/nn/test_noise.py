"""Noise: that of a part of a batch equals that of its rows in the whole batch; deletion of tokens."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from seqvae.config import ModelConfig, ObjectiveConfig
from seqvae.nn import noise
from seqvae.nn.blocks import LockedDropout
from seqvae.nn.loss import dropped, loss
from seqvae.nn.model import SequenceVAE
from seqvae.parallel import Part
from seqvae.protocols import EOS, PAD

CPU = torch.device("cpu")


@pytest.mark.parametrize(("begin", "count"), [(0, 4), (4, 6), (10, 0)])
def test_the_noise_of_a_part_equals_that_of_its_rows_in_the_batch(begin: int, count: int) -> None:
    part = Part(begin, count, 10, 0.5)
    locked, layer = LockedDropout(0.3), noise.Dropout(0.3)

    def draw(rows: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [
            noise.uniform(torch.Size([rows, 2]), CPU), noise.normal((rows, 3), CPU), locked(torch.ones(2 * rows, 3, 4)),
            layer(torch.ones(2 * rows, 3, 4)), noise.uniform((rows,), CPU),
        ]  # fmt: skip

    everything = draw(10)
    with noise.of(part):
        mine = draw(max(1, count))
    after = torch.rand(1)
    draw(10)
    assert torch.equal(after, torch.rand(1)), "the generator ends as after drawing all"
    for all_rows, some in zip(everything, mine, strict=True):
        each = len(all_rows) // 10
        assert torch.equal(some, all_rows[each * part.rows.start : each * part.rows.stop])
    layer.eval()
    with noise.of(part):
        assert layer(torch.ones(3)).tolist() == [1, 1, 1], "not necessarily rows without random numbers"


def test_dropout_equals_torch_and_the_context_ends_after_an_error() -> None:
    layer, x = noise.Dropout(0.3), torch.ones(4, 5)
    with pytest.raises(ZeroDivisionError), noise.of(Part(0, 2, 4, 0.5)):
        raise ZeroDivisionError
    torch.manual_seed(0)
    own = layer(x)
    torch.manual_seed(0)
    assert torch.equal(own, torch.nn.functional.dropout(x, 0.3))


@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
def test_the_losses_of_parts_sum_to_that_of_the_batch(kind: Literal["recurrent", "transformer"]) -> None:
    torch.manual_seed(0)
    shape = ModelConfig(
        chunks=1, latent=8, width=16, hidden=16, encoder=kind, decoder=kind, heads=2, dropout=0.3,
        without=0.4,
    )  # fmt: skip
    model = SequenceVAE(shape, (5,), torch.randint(0, 2, (20,)))
    tokens = torch.randint(4, 20, (6, 1, 7))
    tokens[..., -1] = EOS
    fields = torch.randint(0, 5, (*tokens.shape, 1))
    config = ObjectiveConfig(word_dropout=0.3, denoise=0.3, track_dropout=0.9, bag=0.5)

    def total(begin: int, count: int) -> tuple[float, float]:
        torch.manual_seed(1)
        part = Part(begin, count, 6, count / 6)
        with noise.of(part):
            found = loss(model, tokens[part.rows], fields[part.rows], config, 3000)
        return float(found.total.detach()), float(torch.rand(()))

    (whole, after), (first, one), (second, other) = total(0, 6), total(0, 2), total(2, 4)
    assert after == one == other, "the generator ends in the same state"
    assert first / 3 + second * 2 / 3 == pytest.approx(whole, rel=1e-5)


def test_the_dropped_share_is_the_requested_one() -> None:
    tokens = torch.full((1, 1000, 41), 7)
    tokens[..., -1] = EOS
    left = (dropped(tokens, 0.3, torch.Generator().manual_seed(0)) == 7).float().mean() * 41 / 40
    assert float(left) == pytest.approx(0.7, abs=0.01)
    assert torch.equal(dropped(tokens, 0.0), tokens)


def test_deletion_keeps_the_order_of_many_tokens_too() -> None:
    tokens = torch.arange(4, 2004).expand(3, -1)
    out = dropped(tokens, 0.3, torch.Generator().manual_seed(0))
    for row in out:
        words = row[row != PAD]
        assert 1300 < len(words) < 1500
        assert (words.diff() > 0).all()
