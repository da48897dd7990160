"""The form of new songs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seqvae
from seqvae.nn.sampling import Sampling
from seqvae.protocols import Guidance
from seqvae.style import form


def test_sections_come_again_but_for_their_last_bar(song_model: Path) -> None:
    songs = seqvae.load(song_model)
    shared = songs.model.shared
    assert form.order(8).tolist() == [0, 1, 0, 1, 4, 5, 0, 1]
    assert form.order(7).tolist() == list(range(7))
    z = torch.randn(16, 38, generator=torch.Generator().manual_seed(0))
    z[:, :shared] = z[0, :shared]
    given = songs.adapter.conditions(songs.adapter.blank(16))
    asked: list[int] = []

    def guide(rows: slice) -> list[Guidance]:
        asked.extend(range(rows.start, rows.stop))
        return []

    rows, bars = form.composed(songs, z, given, Sampling(temperature=1.0, max_tokens=60), guide)
    assert asked == [*range(16)] * 2, "both drafts are guided"
    assert (rows[:, :shared] == z[0, :shared]).all()
    for first, again in ((0, 4), (0, 12)):
        assert all(np.array_equal(bars[first + i], bars[again + i]) for i in range(3))
        assert torch.equal(rows[first : first + 3], rows[again : again + 3])
        assert not np.array_equal(bars[first + 3], bars[again + 3])
    assert not np.array_equal(bars[0], bars[8])
    on_end = form.composed(songs, z, given, Sampling(temperature=1.0, max_tokens=60), repeats=np.arange(16))[1]
    assert len({bar.tobytes() for bar in on_end}) > 12


def test_bars_of_a_section_have_a_part_of_its_theme(song_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert form.themes([1, 3, 1, 1, 1, 2, 1, 1]).tolist() == [1, 1, 1, 1, 5, 5, 1, 1]
    assert form.themes([1, 2, 1, 1, 3]).tolist() == [1, 1, 1, 1, 4]
    songs = seqvae.load(song_model)
    shared = songs.model.shared
    seen: list[tuple[torch.Tensor, np.ndarray]] = []
    decode = type(songs).generate_tokens

    def kept(self: Any, z: torch.Tensor, given: Any, *rest: Any, **named: Any) -> Any:
        seen.append((z.clone(), given["has_bar"].copy()))
        return decode(self, z, given, *rest, **named)

    monkeypatch.setattr(type(songs), "generate_tokens", kept)
    z = torch.randn(16, 38, generator=torch.Generator().manual_seed(0))
    given = songs.adapter.conditions(songs.adapter.blank(16))
    form.composed(songs, z, given, Sampling(temperature=1.0, max_tokens=60))
    (first, none), (second, part) = seen
    assert not none.any() and not first[:, shared:].any()
    assert sorted(set(part.tolist())) == [0.0, form.THEME]
    themes = np.flatnonzero(part == 0)
    assert len(themes) == 2, "one for A and one for B"
    assert not second[themes, shared:].any()
    others = second[np.setdiff1d(np.arange(16), themes), shared:]
    assert len({row.numpy().tobytes() for row in others}) == 2 and others.any()
