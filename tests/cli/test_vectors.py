from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import done
from conftest import SENTENCES

from seqvae import codec
from seqvae.checkpoint import folder as checkpoint

ODD = ["", "the food was good", "  ", "a\u2028b\x0bc\x85d", "\t", "naïve ☃ 食べ物", "the bar is new " * 20, "", "x"]


@pytest.fixture
def reconstructed(tiny_text: Path) -> Callable[[list[str]], list[str]]:
    """Reconstructions of lines one by one by the model, without the command."""
    loaded = codec.load(tiny_text)
    return lambda lines: [loaded.reconstruct(line) if line.strip() else "" for line in lines]


def test_encode_then_decode_is_reconstruct(
    tiny_text: Path, here: Path, reconstructed: Callable[[list[str]], list[str]]
) -> None:
    (here / "in.txt").write_bytes("".join(f"{line}\n" for line in ODD).encode())
    [printed] = done("encode", "@in.txt", "-m", tiny_text, "-o", "new/z.safetensors", "--json")
    tensors, about = checkpoint.load_tensors(Path("new/z.safetensors"))
    segments = tensors["segments"].tolist()
    assert [n == 0 for n in segments] == [not line.strip() for line in ODD]
    assert max(segments) > 1, "a long line has several"
    assert tensors["z"].shape == (sum(segments), 8)
    assert json.loads(printed) == {"lines": len(ODD), "segments": sum(segments), "output": "new/z.safetensors"}
    assert (about["kind"], json.loads(about["sources"])) == ("text", ["@in.txt"])
    assert done("decode", "new/z.safetensors", "-m", tiny_text) == reconstructed(ODD)


def test_latents_with_one_tensor_per_line_are_decoded_too(
    tiny_text: Path, here: Path, reconstructed: Callable[[list[str]], list[str]]
) -> None:
    lines = SENTENCES[:12]
    latents = dict(zip((f"{i:06}" for i in range(12)), codec.load(tiny_text).encode(lines), strict=True))
    checkpoint.save_tensors(latents, {}, here / "z.safetensors")
    assert done("decode", "z.safetensors", "-m", tiny_text, "-o", "out.txt") == []
    assert Path("out.txt").read_text().splitlines() == reconstructed(lines)
