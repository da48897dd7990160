"""Binding: keys are their own inverse, and tokens are retrieved from a sum by position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from seqvae.nn.binding import Binding
from seqvae.nn.kernels import DISALLOWED

seeds = st.integers(0, 2**31)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SIZES = (5, 9, 7)  # values of three position fields
VOCAB = 60
WIDTH = 512


@pytest.fixture(scope="module")
def binding() -> Binding:
    """Tokens of binding depth 0 (ids 0..9), 1 (10..19), 2 (20..29) and 3 (30..59)."""
    torch.manual_seed(0)
    binding_depth = torch.arange(VOCAB).div(10, rounding_mode="floor").clamp(max=3)
    return Binding(binding_depth, SIZES, WIDTH)


def random_cues(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(1, size, (count,), generator=generator) for size in SIZES], -1)


@given(seeds)
@torch.no_grad()
def test_keys_are_their_own_inverse(binding: Binding, seed: int) -> None:
    fields = random_cues(20, seed)
    tokens = torch.randint(0, VOCAB, (20,), generator=torch.Generator().manual_seed(seed))
    x = binding.bind(tokens, fields)
    for field in range(3):
        counted = binding.binding_depth[tokens] > field
        x = x * binding.key(field, fields[:, field] * counted)
    assert torch.equal(x, binding.tokens(tokens))


@torch.no_grad()
def test_keys_are_plus_and_minus_one_and_the_empty_field_is_the_identity(binding: Binding) -> None:
    for field, size in enumerate(SIZES):
        keys = binding.key(field, torch.arange(size))
        assert torch.equal(keys.abs(), torch.ones(size, WIDTH))
        assert torch.equal(keys[0], torch.ones(WIDTH))
        # keys of different values are nearly orthogonal
        products = (keys[1:] @ keys[1:].T / WIDTH).fill_diagonal_(0)
        assert products.abs().max() < 0.25


@given(seeds)
@torch.no_grad()
def test_fields_beyond_the_binding_depth_do_not_matter(binding: Binding, seed: int) -> None:
    tokens = torch.arange(VOCAB)
    fields, others = random_cues(VOCAB, seed), random_cues(VOCAB, seed + 1)
    for field in range(3):
        changed = fields.clone()
        changed[:, field] = others[:, field] % (SIZES[field] - 1) + 1
        moved = changed[:, field] != fields[:, field]
        same = (binding.bind(tokens, changed) == binding.bind(tokens, fields)).all(-1)
        assert same[~moved | (binding.binding_depth <= field)].all()
        assert not same[moved & (binding.binding_depth > field)].any()


def test_the_key_of_the_empty_field_has_no_gradient(binding: Binding) -> None:
    binding.bind(torch.arange(VOCAB), torch.zeros(VOCAB, 3, dtype=torch.long)).square().sum().backward()  # type: ignore[no-untyped-call]
    for field in range(3):
        table = binding.keys[field]
        assert isinstance(table, torch.nn.Embedding)
        assert table.weight.grad is not None
        assert not table.weight.grad[0].any()
    binding.zero_grad()


@torch.no_grad()
def test_an_untrained_sum_of_bound_tokens_retrieves_the_token_at_each_position(binding: Binding) -> None:
    right = count = 0
    for seed in range(20):
        fields = torch.unique(random_cues(12, seed), dim=0)
        tokens = torch.randint(30, VOCAB, (len(fields),), generator=torch.Generator().manual_seed(seed))
        code = binding.bind(tokens, fields).sum(0)
        answers = code.expand(len(fields), -1)
        for field in range(3):
            answers = answers * binding.key(field, fields[:, field])
        right += int((binding.logits(answers).argmax(-1) == tokens).sum())
        count += len(fields)
    # without training; a random guess is right once in 60
    assert right / count > 0.9


@torch.no_grad()
def test_logits_of_a_subset_equal_columns_of_all_logits(binding: Binding) -> None:
    x, columns = noise(4, WIDTH), torch.tensor([3, 41, 7])
    torch.testing.assert_close(binding.logits(x, columns), binding.logits(x)[:, columns])


@pytest.mark.bf16
def test_binding_under_autocast_is_equal_within_its_precision(binding: Binding) -> None:
    tokens, fields = torch.arange(VOCAB), random_cues(VOCAB, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = binding.bind(tokens, fields)
    assert half.dtype == torch.bfloat16
    # an embedding is rounded to 8 bits, and its keys are +1 and -1
    torch.testing.assert_close(half.float(), binding.bind(tokens, fields).detach(), rtol=2**-8, atol=0.0)


@given(seeds, st.booleans(), st.floats(0.1, 3))
def test_the_blocked_cross_entropy_equals_that_of_the_logits(seed: int, some_closed: bool, by: float) -> None:
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
    expected = functional.cross_entropy(logits, targets, reduction="sum")
    given_, right = binding.cross_entropy(x, targets, disallowed)
    torch.testing.assert_close(given_, expected, rtol=1e-5, atol=1e-2)
    assert torch.equal(right, logits.argmax(1) == targets)
    learned = [x, binding.embed.weight, binding.bias, binding.scale]
    for a, b in zip(
        torch.autograd.grad(given_ * by, learned), torch.autograd.grad(expected * by, learned), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_sum_of_bound_pairs_retrieves_the_next_token() -> None:
    torch.manual_seed(0)
    binding = Binding(torch.zeros(1000, dtype=torch.long), (), 512, previous=True)
    sentence = torch.tensor([17, 400, 23, 901, 55, 2])
    memory = binding.bind(sentence, torch.zeros(6, 0, dtype=torch.long)).sum(0)
    before = torch.tensor([1, *sentence[:-1]])
    retrieved = binding.logits(memory * binding.after(before))
    assert torch.equal(retrieved.argmax(-1), sentence)
