"""The progress bar of a long song."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
from commands import song

from seqvae import codec
from seqvae.cli.progress import ShownInference


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_counts_segments_on_a_terminal_and_results_are_the_same(
    tiny_music: Path, here: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = codec.load(tiny_music)
    segments = tiny.segments(tiny.adapter.read(song(here / "a.mid", 1))) * 20
    expected = tiny.posteriors(segments, refined=True)
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    tiny.wrap = ShownInference
    found = tiny.posteriors(segments, refined=True)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.logvar, expected.logvar)
    assert (f"/{len(segments)} [" in shown.getvalue()) == terminal
