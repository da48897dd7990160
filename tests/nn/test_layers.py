"""The building blocks: a cache changes nothing, the future is not seen, positions are relative, binding is undone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from seqvae.nn.layers import (
    DISALLOWED,
    Attention,
    Binding,
    LockedDropout,
    Packing,
    Residual,
    TransformerLayer,
    _rotate,
    multiplies_bf16,
)

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
def test_steps_with_a_cache_are_the_whole_at_once(attention: Attention, seed: int, parts: list[int]) -> None:
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
def test_the_future_is_not_seen(attention: Attention, seed: int, at: int) -> None:
    x = noise(2, 8, 16, seed=seed)
    changed = x.clone()
    changed[:, at + 1 :] += 1
    before, after = attention(x, None)[0], attention(changed, None)[0]
    assert torch.equal(before[:, : at + 1], after[:, : at + 1])
    assert not torch.allclose(before[:, at + 1 :], after[:, at + 1 :], atol=1e-3)


@given(seeds)
@torch.no_grad()
def test_what_is_masked_is_not_seen(attention: Attention, seed: int) -> None:
    x = noise(2, 6, 16, seed=seed)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    changed = torch.where(mask[..., None], x, x + 5)
    before, after = attention(x, mask[:, None])[0], attention(changed, mask[:, None])[0]
    assert torch.equal(before[mask], after[mask])
    # and what is not masked is seen from both sides
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
def test_heads_of_no_even_size_are_refused(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"{width} does not divide into {heads}"):
        Attention(width, heads)


@torch.no_grad()
def test_a_layer_with_a_cache_is_the_layer_at_once() -> None:
    torch.manual_seed(1)
    layer = TransformerLayer(16, 2, dropout=0.5).eval()
    x = noise(2, 7, 16)
    whole, _ = layer(x, None)
    first, cache = layer(x[:, :3], None)
    rest, _ = layer(x[:, 3:], None, cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-4, atol=1e-5)


# --- rotary positions -------------------------------------------------------------------------------------------------


@given(seeds, st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_products_depend_on_the_distance_alone(seed: int, i: int, j: int, shift: int) -> None:
    q, k = noise(2, 1, 1, 1, 8, seed=seed).double()
    here = (_rotate(q, i) * _rotate(k, j)).sum()
    there = (_rotate(q, i + shift) * _rotate(k, j + shift)).sum()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


@given(seeds, st.integers(0, 1000))
def test_turning_keeps_lengths_and_the_first_step_is_not_turned(seed: int, past: int) -> None:
    x = noise(1, 2, 5, 8, seed=seed)
    torch.testing.assert_close(_rotate(x, past).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(_rotate(x[:, :, :1], 0), x[:, :, :1])
    torch.testing.assert_close(_rotate(x, past)[:, :, 3:], _rotate(x[:, :, 3:], past + 3))


# --- binding ----------------------------------------------------------------------------------------------------------

SIZES = (5, 9, 7)  # values of three fields of a cue
VOCAB = 60
WIDTH = 512


@pytest.fixture(scope="module")
def binding() -> Binding:
    """Tokens of scope 0 (ids 0..9), 1 (10..19), 2 (20..29) and 3 (30..59)."""
    torch.manual_seed(0)
    binding_depth = torch.arange(VOCAB).div(10, rounding_mode="floor").clamp(max=3)
    return Binding(binding_depth, SIZES, WIDTH)


def random_cues(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(1, size, (count,), generator=generator) for size in SIZES], -1)


@given(seeds)
@torch.no_grad()
def test_keys_undo_what_they_bound(binding: Binding, seed: int) -> None:
    fields = random_cues(20, seed)
    tokens = torch.randint(0, VOCAB, (20,), generator=torch.Generator().manual_seed(seed))
    x = binding.bind(tokens, fields)
    for field in range(3):
        counted = binding.binding_depth[tokens] > field
        x = x * binding.key(field, fields[:, field] * counted)
    assert torch.equal(x, binding.tokens(tokens))


@torch.no_grad()
def test_keys_are_plus_and_minus_one_and_nothing_said_changes_nothing(binding: Binding) -> None:
    for field, size in enumerate(SIZES):
        keys = binding.key(field, torch.arange(size))
        assert torch.equal(keys.abs(), torch.ones(size, WIDTH))
        assert torch.equal(keys[0], torch.ones(WIDTH))
        # keys of different values have next to nothing in common
        products = (keys[1:] @ keys[1:].T / WIDTH).fill_diagonal_(0)
        assert products.abs().max() < 0.25


@given(seeds)
@torch.no_grad()
def test_fields_beyond_a_token_s_scope_do_not_matter(binding: Binding, seed: int) -> None:
    tokens = torch.arange(VOCAB)
    fields, others = random_cues(VOCAB, seed), random_cues(VOCAB, seed + 1)
    for field in range(3):
        changed = fields.clone()
        changed[:, field] = others[:, field] % (SIZES[field] - 1) + 1
        moved = changed[:, field] != fields[:, field]
        same = (binding.bind(tokens, changed) == binding.bind(tokens, fields)).all(-1)
        assert same[~moved | (binding.binding_depth <= field)].all()
        assert not same[moved & (binding.binding_depth > field)].any()


def test_no_gradient_moves_the_key_that_says_nothing(binding: Binding) -> None:
    binding.bind(torch.arange(VOCAB), torch.zeros(VOCAB, 3, dtype=torch.long)).square().sum().backward()  # type: ignore[no-untyped-call]
    for field in range(3):
        table = binding.keys[field]
        assert isinstance(table, torch.nn.Embedding)
        assert table.weight.grad is not None
        assert not table.weight.grad[0].any()
    binding.zero_grad()


@torch.no_grad()
def test_a_sum_of_bound_tokens_tells_at_first_which_stands_where(binding: Binding) -> None:
    right = asked = 0
    for seed in range(20):
        fields = torch.unique(random_cues(12, seed), dim=0)
        tokens = torch.randint(30, VOCAB, (len(fields),), generator=torch.Generator().manual_seed(seed))
        code = binding.bind(tokens, fields).sum(0)
        answers = code.expand(len(fields), -1)
        for field in range(3):
            answers = answers * binding.key(field, fields[:, field])
        right += int((binding.logits(answers).argmax(-1) == tokens).sum())
        asked += len(fields)
    # with no training at all; a guess among the vocabulary is right once in 60
    assert right / asked > 0.9


@torch.no_grad()
def test_logits_of_some_columns_are_columns_of_the_logits(binding: Binding) -> None:
    x, columns = noise(4, WIDTH), torch.tensor([3, 41, 7])
    torch.testing.assert_close(binding.logits(x, columns), binding.logits(x)[:, columns])


@pytest.mark.parametrize("capable", [False, True])
@pytest.mark.parametrize(
    ("most", "allows"), [("", True), ("AVX512_CORE_BF16", True), ("AVX512_CORE", False), ("avx2", False)]
)
def test_bf16_is_for_a_processor_that_has_it_and_may_use_it(
    capable: bool, most: str, allows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capable)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert multiplies_bf16(torch.device("cpu")) == (capable and allows)


@pytest.mark.bf16
def test_under_autocast_binding_is_the_same_within_its_precision(binding: Binding) -> None:
    tokens, fields = torch.arange(VOCAB), random_cues(VOCAB, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = binding.bind(tokens, fields)
    assert half.dtype == torch.bfloat16
    # an embedding is rounded to 8 bits, and its keys are +1 and -1
    torch.testing.assert_close(half.float(), binding.bind(tokens, fields).detach(), rtol=2**-8, atol=0.0)


# --- the rest ---------------------------------------------------------------------------------------------------------


@given(seeds)
@torch.no_grad()
def test_a_residual_block_is_nearly_the_identity_at_first(seed: int) -> None:
    torch.manual_seed(seed)
    block, x = Residual(64), noise(10, 64, seed=seed)
    moved = block(x) - x
    assert 0 < float(moved.norm() / x.norm()) < 0.2


@given(seeds)
def test_a_sum_of_a_row_has_one_unit_for_full_and_empty_bars(seed: int) -> None:
    x = noise(3, 5, 4, seed=seed)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = torch.stack([x[0, :4].sum(0) / 8, x[1, 0] / 8, torch.zeros(4)])
    torch.testing.assert_close(Packing.of(mask, mask, (), mask).sums(x[mask]), expected)


# --- the loss of a large vocabulary, without its logits -------------------------------------------------------------


@given(seeds, st.booleans(), st.floats(0.1, 3))
def test_nats_are_the_cross_entropy_of_the_logits(seed: int, some_closed: bool, by: float) -> None:
    torch.manual_seed(seed)
    binding = Binding(torch.zeros(70, dtype=torch.long), (), 16)
    rows = (1 << 20) // 70 + 9  # more than one block of them, and one that is not full
    x = torch.randn(rows, 16, requires_grad=True)
    targets = torch.randint(0, 70, (rows,))
    disallowed = None
    if some_closed:
        disallowed = (torch.rand(rows, 70) < 0.3).scatter(1, targets[:, None], False)
    logits = binding.logits(x)
    logits = logits if disallowed is None else logits.masked_fill(disallowed, DISALLOWED)
    wanted = functional.cross_entropy(logits, targets, reduction="sum")
    given_, right = binding.cross_entropy(x, targets, disallowed)
    torch.testing.assert_close(given_, wanted, rtol=1e-5, atol=1e-2)
    assert torch.equal(right, logits.argmax(1) == targets)
    learned = [x, binding.embed.weight, binding.bias, binding.scale]
    for a, b in zip(torch.autograd.grad(given_ * by, learned), torch.autograd.grad(wanted * by, learned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_sum_of_pairs_tells_what_follows_a_token() -> None:
    torch.manual_seed(0)
    binding = Binding(torch.zeros(1000, dtype=torch.long), (), 512, previous=True)
    sentence = torch.tensor([17, 400, 23, 901, 55, 2])
    memory = binding.bind(sentence, torch.zeros(6, 0, dtype=torch.long)).sum(0)
    before = torch.tensor([1, *sentence[:-1]])
    told = binding.logits(memory * binding.after(before))
    assert torch.equal(told.argmax(-1), sentence)


def test_locked_dropout_drops_a_feature_at_every_step_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout = LockedDropout(0.3)
    out = dropout(torch.ones(200, 5, 100))
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    x = torch.randn(2, 3, 4)
    assert torch.equal(dropout.eval()(x), x)
