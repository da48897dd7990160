"""Precisions of tests: bf16 where the processor supports it."""

from __future__ import annotations

import pytest
import torch

from seqvae.nn.kernels import multiplies_bf16

needs_bf16 = pytest.mark.skipif(
    not multiplies_bf16(torch.device("cpu")),
    reason="computed in fp32 here: the processor, or ONEDNN_MAX_CPU_ISA, leaves no instruction for bf16",
)
