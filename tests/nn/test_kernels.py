"""Each fast computation equals its plain reference; rows of products do not depend on the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import groove
from hypothesis import given
from hypothesis import strategies as st
from precision import needs_bf16
from torch import Tensor

from seqvae.codec import Codec
from seqvae.nn import kernels as products
from seqvae.nn.kernels import (
    DEPTH,
    ROWS,
    Packing,
    Steady,
    fused_cross_entropy,
    multiplies_bf16,
    plain_cross_entropy,
    plain_take,
    product,
    take,
)
from seqvae.nn.sampling import Sampling


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


seeds = st.integers(0, 2**31)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=[needs_bf16, pytest.mark.bf16])], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("depth", [20, DEPTH, 460, 1024, 4000])
@pytest.mark.parametrize("width", [20, 256, 1024])
def test_a_row_of_a_product_does_not_depend_on_the_batch_or_threads(dtype: torch.dtype, depth: int, width: int) -> None:
    x, weight, bias = (noise(*s, seed=i).to(dtype) for i, s in enumerate([(300, depth), (width, depth), (width,)]))
    for matrix in (weight.T, weight.T.contiguous()):
        torch.set_num_threads(1)
        whole, biased = product(x, matrix), product(x, matrix, bias)
        added = product(x, matrix, biased)
        for count in (1, 2):
            torch.set_num_threads(count)
            for rows in (1, 2, ROWS - 1, ROWS, 37, 64, 129, 300):
                assert torch.equal(product(x[:rows], matrix), whole[:rows])
                assert torch.equal(product(x[:rows], matrix, bias), biased[:rows])
                assert torch.equal(product(x[:rows], matrix, biased[:rows]), added[:rows])
            assert torch.equal(product(x[100:140], matrix), whole[100:140])


@pytest.mark.parametrize("depth", [3, DEPTH, DEPTH + 1, 700])
def test_a_product_equals_the_plain_product(depth: int) -> None:
    x, matrix, onto = noise(5, depth), noise(depth, 7, seed=1), noise(7, seed=2)
    expected = x.double() @ matrix.double()
    assert torch.allclose(product(x, matrix).double(), expected, atol=1e-4)
    assert torch.allclose(product(x, matrix, onto).double(), expected + onto, atol=1e-4)
    low = product(x.bfloat16(), matrix.bfloat16(), onto.bfloat16())
    assert low.dtype == torch.bfloat16
    exact = x.bfloat16().double() @ matrix.bfloat16().double() + onto.bfloat16()
    # one rounding for each part of the sum, whatever its length
    assert (low.double() - exact).abs().max() <= 2**-8 * (depth // DEPTH + 2) * (x.norm(dim=1).max() * 8)


def test_the_context_replaces_products_in_layers_and_gradients() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(700, 600), torch.nn.Tanh(), torch.nn.Linear(600, 500, bias=False))
    x = noise(40, 700)

    def values(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.clone().requires_grad_()
        out = layers(rows)
        (slope,) = torch.autograd.grad(out.square().sum(), rows)
        return out.detach(), slope

    plain = values(x)
    with Steady():
        whole, one = values(x), values(x[7:8])
        out = torch.empty(40, 3)
        torch.mm(x, x.T[:, :3], out=out)
    assert torch.equal(whole[0][7:8], one[0])
    assert torch.equal(whole[1][7:8], one[1])
    assert torch.equal(out, product(x, x.T[:, :3]))
    for steady, usual in zip(whole, plain, strict=True):
        assert torch.allclose(steady, usual, atol=1e-4)


@pytest.mark.bf16
@pytest.mark.parametrize("exact", [False, True])
def test_an_exact_codec_uses_batch_invariant_products(
    small: Codec, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def counted(a: Tensor, b: Tensor, onto: Tensor | None = None) -> Tensor:
        taken.append(len(a))
        return product(a, b, onto)

    monkeypatch.setattr(products, "product", counted)
    codec = replace(small, exact=exact)
    z = codec.encode([groove(1, 2)])
    for work in (
        lambda: codec.encode([groove(1, 2)]),
        lambda: codec.decode(z),
        lambda: codec.decode(z, sampling=Sampling(temperature=1, max_tokens=20)),
        lambda: codec.log_prob([groove(1, 2)], samples=1),
    ):
        taken.clear()
        work()
        assert bool(taken) == exact


# --- positions --------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(0, 3))
def test_merged_positions_keep_the_row_and_the_fields_of_each(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = (3, 5, 2)[:count]
    tokens = torch.randint(1, 9, (4, 6), generator=generator)
    columns = [torch.randint(0, size, (4, 6), generator=generator) for size in sizes]
    fields = torch.stack(columns, -1) if sizes else torch.zeros(4, 6, 0, dtype=torch.long)
    weight = torch.rand(4, 6, generator=generator) < 0.8
    weight[0, 0] = True
    packing = Packing.of(tokens, fields, sizes, weight)
    rows = torch.arange(4)[:, None].expand(4, 6)[weight]
    assert packing.rows is not None
    assert torch.equal(packing.rows, rows)
    assert torch.equal(packing.pack(tokens), tokens[weight])
    before = torch.arange(4)
    for (parent, values), index, field in zip(packing.tree, packing.indices[1:], columns, strict=True):
        assert index is not None and parent is not None
        assert torch.equal(values[index], field[weight])
        before = before[parent]
        assert torch.equal(before[index], rows)
    if sizes:
        found = torch.cat([rows[:, None], fields[weight]], 1)
        assert len(packing.tree[-1][1]) == len(torch.unique(found, dim=0)), "equal fields of a row are merged"


@given(seeds)
def test_row_sums_have_the_same_scale_for_full_and_empty_bars(seed: int) -> None:
    x = noise(3, 5, 4, seed=seed)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = torch.stack([x[0, :4].sum(0) / 8, x[1, 0] / 8, torch.zeros(4)])
    torch.testing.assert_close(Packing.of(mask, mask, (), mask).sums(x[mask]), expected)


# --- tables -----------------------------------------------------------------------------------------------------------


@given(seeds, st.booleans())
def test_table_rows_and_their_gradients_equal_those_of_indexing(seed: int, frozen: bool) -> None:
    table, index = noise(5, 3, seed=seed).requires_grad_(), torch.randint(0, 5, (4, 6))
    by = noise(4, 6, 3, seed=seed + 1)
    fast, plain = take(table, index, frozen), plain_take(table, index, frozen)
    assert torch.equal(fast, plain)
    (a,), (b,) = (torch.autograd.grad((rows * by).sum(), table) for rows in (fast, plain))
    torch.testing.assert_close(a, b)


# --- cross-entropy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer_rows", [0, 3], ids=["one outer row", "outer rows"])
@pytest.mark.parametrize("shared", [False, True], ids=["own rows", "shared rows"])
@given(seeds, st.booleans(), st.floats(0.1, 3))
def test_the_fused_cross_entropy_equals_the_plain_one(
    shared: bool, outer_rows: int, seed: int, closed: bool, by: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size, count = 70, (1 << 18) // 70 + 9  # more than one block of positions, and one that is not full
    index = torch.randint(0, 11, (count,), generator=generator) if shared else None
    outer_index = torch.randint(0, outer_rows, (count,), generator=generator) if outer_rows else None
    x, weight = noise(11 if shared else count, 16, seed=seed), noise(size, 16, seed=seed + 1) / 4
    outer = noise(outer_rows or 1, size, seed=seed + 2)
    targets = torch.randint(0, size, (count,), generator=generator)
    disallowed = None
    if closed:
        disallowed = (torch.rand(count, size, generator=generator) < 0.3).scatter(1, targets[:, None], False)
    learned = x.requires_grad_(), weight.requires_grad_(), outer.requires_grad_()
    fast = fused_cross_entropy(*learned, targets, disallowed, index, outer_index)
    plain = plain_cross_entropy(*learned, targets, disallowed, index, outer_index)
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-5, atol=1e-2)
    assert torch.equal(fast[1], plain[1])
    slopes = (torch.autograd.grad(nats * by, learned) for nats, _ in (fast, plain))
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# --- bf16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capable", [False, True])
@pytest.mark.parametrize(
    ("most", "allows"), [("", True), ("AVX512_CORE_BF16", True), ("AVX512_CORE", False), ("avx2", False)]
)
def test_bf16_is_used_only_if_supported_and_allowed(
    capable: bool, most: str, allows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capable)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert multiplies_bf16(torch.device("cpu")) == (capable and allows)
