#!/usr/bin/env bash
# Reads sentences, one on each line, and prints the point half-way between each two neighbouring ones.
# `encode` writes vectors, any program that reads safetensors can change them, and `decode` reads them again.
#
#   docs/examples/average-neighbours.sh < in.txt > out.txt
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

grep . | seqvae encode -m reviews -o "$folder/z.safetensors" > /dev/null # no empty lines: they have no vector
python - "$folder" << 'PYTHON'
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
tensors = load_file(folder / "z.safetensors")
first = tensors["segments"].cumsum(0) - tensors["segments"]  # a very long line has several vectors: take its first
z = tensors["z"].float()[first]
half = (z[1:] + z[:-1]) / 2
save_file({"z": half, "segments": torch.ones(len(half), dtype=torch.int64)}, folder / "half.safetensors")
PYTHON
seqvae decode "$folder/half.safetensors" -m reviews
