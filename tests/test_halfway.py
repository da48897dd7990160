"""Figures for the faults that readers of piano rolls found, against values computed by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from seqvae.music.piece import DRUMS

BOUNDS = np.arange(5, dtype=np.int32) * 48
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "halfway.py"


@pytest.fixture(scope="module")
def halfway() -> ModuleType:
    spec = importlib.util.spec_from_file_location("halfway", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notes(*rows: tuple[int, int, int, int]) -> NDArray[np.int32]:
    """Rows of onset, duration, pitch and program, with a velocity."""
    return np.array([(*row, 80) for row in rows], np.int32).reshape(-1, 5)


def test_splinters_are_isolated_bars(halfway: ModuleType) -> None:
    song = notes(*((48 * bar, 6, 60, 0) for bar in range(4)), (48, 6, 60, 40), (0, 6, 60, 41), (48, 6, 60, 41))
    assert halfway.splinters(song, BOUNDS) == pytest.approx(1 / 7), "of 4 + 1 + 2 bars the violin's"
    assert np.isnan(halfway.splinters(song[:0], BOUNDS))


def test_holes_and_leaps_of_the_bass(halfway: ModuleType) -> None:
    song = notes((0, 96, 60, 0), (0, 24, 40, 33), (36, 12, 28, 33), (60, 12, 30, 33))
    assert halfway.bass_holes(song, BOUNDS) == pytest.approx(4 / 8), "beats 3, 5, 7 and 8 of eight that sound"
    assert halfway.bass_leaps(song, BOUNDS) == pytest.approx(1 / 2)
    assert np.isnan(halfway.bass_holes(song[:1], BOUNDS))
    assert np.isnan(halfway.bass_leaps(song[:2], BOUNDS))


def test_drums_that_stop_before_the_last_beat(halfway: ModuleType) -> None:
    song = notes((0, 1, 36, DRUMS), (36, 1, 38, DRUMS), (48, 1, 36, DRUMS), (48 + 35, 1, 38, DRUMS))
    assert halfway.short_drums(song, BOUNDS) == 1 / 2
    assert np.isnan(halfway.short_drums(song[:0], BOUNDS))


def test_parts_are_whole_broken_or_gone(halfway: ModuleType) -> None:
    old = notes(*((12 * i, 12, 60 + p, p) for p in range(3) for i in range(10)), (0, 1, 36, DRUMS))
    new = notes(*((12 * i, 12, 60, 7) for i in range(10)), *((12 * i, 12, 61, 1) for i in range(5)))
    assert halfway.broken_parts(old, new) == pytest.approx(1 / 3), "the first is played by another, the third is gone"
