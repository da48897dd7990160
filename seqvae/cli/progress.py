"""A progress bar with time left while the segments of a long song are encoded.

Scope: a wrapper of `BatchInference` for `Codec.wrap`. Out of scope: bars over files (cli/music_io.py) and over lines
(cli/text_io.py), and the studio's reports (studio/inference.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from seqvae.nn.inference import BatchInference, Ints
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.nn.segments import Segment
from seqvae.protocols import Given, Guide

SEGMENTS = 16  # segments encoded between two updates of the bar


@dataclass(frozen=True)
class ShownInference:
    """The inference of a model, with a progress bar on a terminal during refinement."""

    inner: BatchInference

    def posteriors(self, segments: Sequence[Segment], refined: bool = False) -> Posterior:
        """As `Inference.posteriors`."""
        if not refined or not segments:
            return self.inner.posteriors(segments, refined)
        parts = []
        with tqdm(total=len(segments), desc="encoding", unit="segment", disable=None, leave=False) as bar:
            for at in range(0, len(segments), SEGMENTS):
                parts.append(self.inner.posteriors(segments[at : at + SEGMENTS], refined))
                bar.update(len(parts[-1].mean))
        return Posterior(torch.cat([part.mean for part in parts]), torch.cat([part.logvar for part in parts]))

    def token_log_probs(self, z: Tensor, segments: Sequence[Segment]) -> Tensor:
        """As `Inference.token_log_probs`."""
        return self.inner.token_log_probs(z, segments)

    def generate_tokens(
        self, z: Tensor, given: Given | None, sampling: Sampling, guides: Sequence[Guide] = ()
    ) -> list[Ints]:
        """As `Inference.generate_tokens`."""
        return self.inner.generate_tokens(z, given, sampling, guides)
