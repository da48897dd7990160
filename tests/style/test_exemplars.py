"""Exemplars: pairs of pieces, and draws from them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from styles import D, noise
from torch import Tensor

from seqvae.style import exemplars
from seqvae.style.gaussian import Style, draw, fit


def test_exemplars_are_disjoint_pairs_of_pieces() -> None:
    pieces = [noise(5, D, seed=i) for i in range(21)]
    pairs, mean = exemplars.pair(pieces, torch.ones(D)), torch.ones(D)
    assert pairs is not None
    assert pairs.shape == (10, exemplars.ROW, D)
    parts = torch.stack([(z - mean)[: exemplars.ROW].flatten() for z in pieces]) / math.sqrt(2)
    used: list[int] = []
    for one in pairs.flatten(1):
        a, b = next((i, j) for i in range(21) for j in range(i) if torch.allclose(parts[i] + parts[j], one, atol=1e-4))
        used += [a, b]
    assert len(set(used)) == 20


def test_exemplars_of_many_pieces_are_limited_in_number_and_rank_and_keep_the_variance() -> None:
    axes = torch.linalg.qr(noise(200, 200))[0][:50]
    many = exemplars.pair([3 * noise(4, 50, seed=i) @ axes for i in range(2000)], torch.zeros(200))
    assert many is not None
    assert len(many) == exemplars.PAIRS
    assert many.std() == pytest.approx(3 * math.sqrt(50 / 200), rel=0.1), "no variance is lost in their subspace"
    full = exemplars.pair([noise(4, 200, seed=i) for i in range(2000)], torch.zeros(200))
    assert full is not None
    assert torch.linalg.matrix_rank(full.flatten(0, 1), rtol=1e-4) == exemplars.DIRECTIONS


def test_principal_directions_leave_the_least_residual() -> None:
    pairs = noise(30, 4, 20) * torch.linspace(5, 1, 20)
    weights, directions = exemplars.principal(pairs, 7)
    assert weights.shape == (30, 4, 7)
    torch.testing.assert_close(directions @ directions.T, torch.eye(7), atol=1e-5, rtol=0)
    left = (pairs - weights @ directions).square().sum()
    assert left == pytest.approx(float(torch.linalg.svdvals(pairs.flatten(0, 1))[7:].square().sum()), rel=1e-4)


def test_single_segments_and_few_pieces_have_no_exemplars() -> None:
    assert fit([noise(1, D, seed=i) for i in range(50)]).exemplars is None
    assert fit([noise(3, D, seed=i) for i in range(exemplars.FEW - 1)]).exemplars is None
    assert fit([noise(1 if i % 3 else 3, D, seed=i) for i in range(60)]).exemplars is None, (
        "sentences, some of them long"
    )
    short = fit([noise(2, D, seed=i) for i in range(exemplars.FEW)]).exemplars
    assert short is not None
    torch.testing.assert_close(short[:, :2], short[:, 2:], msg="a short piece begins again")


def test_a_draw_combines_two_exemplars_with_their_variance() -> None:
    s = replace(fit([noise(4, 200, seed=i) for i in range(80)]), mean=torch.full((200,), 5.0))
    assert s.exemplars is not None
    generator = torch.Generator().manual_seed(0)
    for z in (draw(s, 4, generator) for _ in range(20)):
        weights = torch.linalg.lstsq(s.exemplars.flatten(1).T, (z - s.mean).flatten()[:, None]).solution[:, 0]
        found, order = weights.sort(descending=True)
        low, high = (share / (1 - share) for share in exemplars.SHARE)
        assert low * 0.99 < float(found[1] / found[0]) < high * 1.01
        assert found[2:].abs().max() < 1e-2, order
    drawn = torch.stack([draw(s, 4, generator) for _ in range(300)]) - s.mean
    assert drawn.std() == pytest.approx(float(s.exemplars.std()), rel=0.05)


def test_a_long_draw_keeps_one_exemplar_and_changes_the_other() -> None:
    s = fit([noise(4, 200, seed=i) for i in range(80)])
    assert s.exemplars is not None
    z = draw(s, 10, torch.Generator().manual_seed(1)) - s.mean
    kept = [
        int(torch.linalg.lstsq(s.exemplars[:, 0].T, row[:, None]).solution[:, 0].argmax()) for row in (z[0], z[4], z[8])
    ]
    assert len(z) == 10
    assert len(set(kept)) == 1
    assert not torch.allclose(z[:4], z[4:8])


@pytest.mark.parametrize("count", [24, exemplars.PAIRS])
def test_consecutive_numbers_draw_without_replacement_and_with_random_weights(count: int) -> None:
    pairs = torch.eye(count)[:, None].repeat(1, exemplars.ROW, 1)
    s = Style(torch.zeros(count), torch.eye(count), 2 * count, exemplars=pairs)

    def drawn(number: int) -> Tensor:
        return draw(s, exemplars.ROW, torch.Generator().manual_seed(7 * number), number=number)[0]

    first = torch.stack([drawn(5 + number) for number in range(count)])
    assert sorted(first.argmax(1).tolist()) == list(range(count))
    assert len({round(float(row.sort().values[-2] / row.max()), 6) for row in first}) == count, "weights of their own"
    companions = first[:8].topk(2).indices[:, 1].tolist()
    assert not set(companions) & set(first[:8].argmax(1).tolist()), "companions of a draw are not in it"
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.allclose(drawn(3), drawn(3 + count)), "another round gives another song"
    assert drawn(3).argmax() == drawn(3 + count).argmax()
