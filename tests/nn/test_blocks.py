"""Blocks: a cache changes nothing, attention is causal, positions are relative, dropout keeps the mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqvae.nn.blocks import Attention, LockedDropout, Residual, TransformerLayer, _rotate

seeds = st.integers(0, 2**31)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(16, 4).eval()


@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=5))
@torch.no_grad()
def test_steps_with_a_cache_equal_one_full_pass(attention: Attention, seed: int, parts: list[int]) -> None:
    x = noise(3, sum(parts), 16, seed=seed)
    whole, kept = attention(x, None)
    steps, cache = [], None
    for part in x.split(parts, dim=1):  # type: ignore[no-untyped-call]
        out, cache = attention(part, None, cache)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)
    assert cache is not None
    for a, b in zip(cache, kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@given(seeds, st.integers(0, 6))
@torch.no_grad()
def test_attention_is_causal(attention: Attention, seed: int, at: int) -> None:
    x = noise(2, 8, 16, seed=seed)
    changed = x.clone()
    changed[:, at + 1 :] += 1
    before, after = attention(x, None)[0], attention(changed, None)[0]
    assert torch.equal(before[:, : at + 1], after[:, : at + 1])
    assert not torch.allclose(before[:, at + 1 :], after[:, at + 1 :], atol=1e-3)


@given(seeds)
@torch.no_grad()
def test_masked_positions_are_ignored(attention: Attention, seed: int) -> None:
    x = noise(2, 6, 16, seed=seed)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    changed = torch.where(mask[..., None], x, x + 5)
    before, after = attention(x, mask[:, None])[0], attention(changed, mask[:, None])[0]
    assert torch.equal(before[mask], after[mask])
    # and unmasked positions matter in both directions
    changed = x.clone()
    changed[:, 2] += 1
    assert not torch.allclose(attention(changed, mask[:, None])[0][:, 0], before[:, 0], atol=1e-3)


@torch.no_grad()
def test_each_head_mixes_values_by_the_softmax_of_its_products(attention: Attention) -> None:
    x = noise(1, 5, 16)
    q, k, v = attention.qkv(x).view(5, 3, 4, 4).permute(1, 2, 0, 3)  # heads, steps, 4
    q, k = _rotate(q[None], 0)[0], _rotate(k[None], 0)[0]
    rows = []
    for t in range(5):
        heads = [(q[h, t] @ k[h, : t + 1].T / 2).softmax(-1) @ v[h, : t + 1] for h in range(4)]
        rows.append(torch.cat(heads))
    torch.testing.assert_close(attention(x, None)[0][0], attention.out(torch.stack(rows)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "heads"), [(30, 4), (12, 4), (4, 4)])
def test_heads_of_odd_size_are_refused(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"{width} does not divide into {heads}"):
        Attention(width, heads)


@torch.no_grad()
def test_a_layer_with_a_cache_equals_one_full_pass() -> None:
    torch.manual_seed(1)
    layer = TransformerLayer(16, 2, dropout=0.5).eval()
    x = noise(2, 7, 16)
    whole, _ = layer(x, None)
    first, cache = layer(x[:, :3], None)
    rest, _ = layer(x[:, 3:], None, cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-4, atol=1e-5)


# --- rotary positions -------------------------------------------------------------------------------------------------


@given(seeds, st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_attention_products_depend_only_on_the_distance(seed: int, i: int, j: int, shift: int) -> None:
    q, k = noise(2, 1, 1, 1, 8, seed=seed).double()
    here = (_rotate(q, i) * _rotate(k, j)).sum()
    there = (_rotate(q, i + shift) * _rotate(k, j + shift)).sum()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


@given(seeds, st.integers(0, 1000))
def test_rotation_keeps_norms_and_does_not_change_the_first_step(seed: int, past: int) -> None:
    x = noise(1, 2, 5, 8, seed=seed)
    torch.testing.assert_close(_rotate(x, past).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(_rotate(x[:, :, :1], 0), x[:, :, :1])
    torch.testing.assert_close(_rotate(x, past)[:, :, 3:], _rotate(x[:, :, 3:], past + 3))


# --- residual blocks and dropout --------------------------------------------------------------------------------------


@given(seeds)
@torch.no_grad()
def test_a_residual_block_is_nearly_the_identity_at_first(seed: int) -> None:
    torch.manual_seed(seed)
    block, x = Residual(64), noise(10, 64, seed=seed)
    moved = block(x) - x
    assert 0 < float(moved.norm() / x.norm()) < 0.2


def test_locked_dropout_drops_a_feature_at_every_step_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout = LockedDropout(0.3)
    out = dropout(torch.ones(200, 5, 100))
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    x = torch.randn(2, 3, 4)
    assert torch.equal(dropout.eval()(x), x)
