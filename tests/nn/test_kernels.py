"""Products of matrices whose rows know nothing of one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import groove
from precision import needs_bf16
from torch import Tensor

from seqvae.codec import Codec
from seqvae.nn import kernels as products
from seqvae.nn.kernels import DEPTH, ROWS, Steady, product
from seqvae.nn.sampling import Sampling


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=[needs_bf16, pytest.mark.bf16])], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("depth", [20, DEPTH, 460, 1024, 4000])
@pytest.mark.parametrize("width", [20, 256, 1024])
def test_a_row_is_the_same_alone_among_others_and_with_two_threads(dtype: torch.dtype, depth: int, width: int) -> None:
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
def test_a_product_is_the_product(depth: int) -> None:
    x, matrix, onto = noise(5, depth), noise(depth, 7, seed=1), noise(7, seed=2)
    wanted = x.double() @ matrix.double()
    assert torch.allclose(product(x, matrix).double(), wanted, atol=1e-4)
    assert torch.allclose(product(x, matrix, onto).double(), wanted + onto, atol=1e-4)
    low = product(x.bfloat16(), matrix.bfloat16(), onto.bfloat16())
    assert low.dtype == torch.bfloat16
    exact = x.bfloat16().double() @ matrix.bfloat16().double() + onto.bfloat16()
    # one rounding for every part of the sum, however long it is
    assert (low.double() - exact).abs().max() <= 2**-8 * (depth // DEPTH + 2) * (x.norm(dim=1).max() * 8)


def test_layers_and_their_slopes_are_made_of_them_while_it_is_entered() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(700, 600), torch.nn.Tanh(), torch.nn.Linear(600, 500, bias=False))
    x = noise(40, 700)

    def told(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.clone().requires_grad_()
        out = layers(rows)
        (slope,) = torch.autograd.grad(out.square().sum(), rows)
        return out.detach(), slope

    plain = told(x)
    with Steady():
        whole, one = told(x), told(x[7:8])
        out = torch.empty(40, 3)
        torch.mm(x, x.T[:, :3], out=out)
    assert torch.equal(whole[0][7:8], one[0])
    assert torch.equal(whole[1][7:8], one[1])
    assert torch.equal(out, product(x, x.T[:, :3]))
    for steady, usual in zip(whole, plain, strict=True):
        assert torch.allclose(steady, usual, atol=1e-4)


@pytest.mark.bf16
@pytest.mark.parametrize("exact", [False, True])
def test_a_codec_multiplies_by_them_where_exactness_is_asked_for(
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
