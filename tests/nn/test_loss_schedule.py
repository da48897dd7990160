"""The weight of the KL at known points."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqvae.config import ObjectiveConfig
from seqvae.nn.loss import beta_at


@pytest.mark.parametrize(("schedule", "step", "expected"), [
    ("constant", 0, 0.4), ("constant", 10**6, 0.4),
    ("linear", 0, 0.0), ("linear", 50, 0.2), ("linear", 100, 0.4), ("linear", 1000, 0.4),
    ("logistic", 50, 0.2), ("logistic", 0, 0.4 / (1 + math.exp(6))), ("logistic", 100, 0.4 / (1 + math.exp(-6))),
    ("logistic", 10**6, 0.4),
    ("cyclical", 0, 0.0), ("cyclical", 25, 0.2), ("cyclical", 50, 0.4), ("cyclical", 99, 0.4),
    ("cyclical", 100, 0.0), ("cyclical", 325, 0.2), ("cyclical", 375, 0.4),
])  # fmt: skip
def test_beta_at_known_points(schedule: Any, step: int, expected: float) -> None:
    assert beta_at(ObjectiveConfig(beta=0.4, schedule=schedule, anneal_steps=100), step) == pytest.approx(expected)


@pytest.mark.parametrize("anneal", [0, 1])
def test_without_annealing_the_first_step_has_the_full_beta(anneal: int) -> None:
    assert beta_at(ObjectiveConfig(beta=0.4, schedule="linear", anneal_steps=anneal), 1) == 0.4


@given(
    st.sampled_from(["constant", "linear", "logistic", "cyclical"]),
    st.integers(0, 5000),
    st.integers(0, 10**7),
    st.floats(0, 5),
)
def test_beta_stays_between_0_and_its_final_value(schedule: Any, anneal: int, step: int, beta: float) -> None:
    config = ObjectiveConfig(beta=beta, schedule=schedule, anneal_steps=anneal)
    assert 0 <= beta_at(config, step) <= beta
    assert beta_at(replace(config, autoencoder=True), step) == 0
    if schedule != "cyclical":
        assert beta_at(config, step + 1) >= beta_at(config, step)
