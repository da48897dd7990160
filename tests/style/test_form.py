"""The form of new songs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
        asked.append(rows.start)
        return []

    rows, bars = form.composed(songs, z, given, Sampling(temperature=1.0, max_tokens=60), guide)
    assert asked == [0, 1, 2, 3, 7, 8, 9, 10, 11, 15], "a guide sees each new bar once"
    assert (rows[:, :shared] == z[0, :shared]).all()
    for first, again in ((0, 4), (0, 12)):
        assert all(np.array_equal(bars[first + i], bars[again + i]) for i in range(3))
        assert torch.equal(rows[first : first + 3], rows[again : again + 3])
        assert not np.array_equal(bars[first + 3], bars[again + 3])
    assert not np.array_equal(bars[0], bars[8])
    on_end = form.composed(songs, z, given, Sampling(temperature=1.0, max_tokens=60), repeats=np.arange(16))[1]
    assert len({bar.tobytes() for bar in on_end}) > 12
