"""The same call with the same seed gives identical files; in exact mode also on more threads and in larger batches."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import done, shell
from conftest import groove

import seqvae
from seqvae.anomaly.evidence import examine
from seqvae.codec import Codec
from seqvae.nn.sampling import Sampling

SENTENCES = [
    "the food was great and the staff is very friendly .",
    "i will never go back .",
    "it took an hour to get our drinks , and then they were wrong !",
    "good .",
]


def by_command(threads: int, folder: Path, *arguments: str) -> list[bytes]:
    """The files and the output of a command."""
    folder.mkdir()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with contextlib.chdir(folder):
            printed = done(*arguments)
    finally:
        torch.set_num_threads(before)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.read_bytes() for path in files] or [line.encode() for line in printed]


@pytest.mark.parametrize(
    ("model", "options"),
    [("music", ["--style", "rock", "-n", "3", "-o", "songs"]), ("reviews", ["-n", "60"]), ("hdfs", ["-n", "30"])],
)
def test_samples_do_not_depend_on_the_number_of_threads(model: str, options: list[str], tmp_path: Path) -> None:
    one, two = (
        by_command(n, tmp_path / str(n), "generate", "--exact", "-m", model, *options, "--seed", "5") for n in (1, 2)
    )
    assert len(one) == int(options[options.index("-n") + 1])
    assert len(set(one)) > 1
    assert one == two


def test_translations_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    song = str(tmp_path / "song.mid")
    codec = seqvae.load("music")
    codec.adapter.assemble(codec.tokenizer.encode(groove(1, 4)), groove(1, 4)).dump_midi(song)
    lines = str(tmp_path / "lines.txt")
    Path(lines).write_text("\n".join(SENTENCES))
    songs = [str(tmp_path / f"{i}.mid") for i in range(6)]
    for i, path in enumerate(songs):
        codec.adapter.assemble(codec.tokenizer.encode(groove(i, 2)), groove(i, 2)).dump_midi(path)
    fitting = ("detect", "fit", "--exact", *songs, "-m", "music", "--score", "elbo", "--p-value", "0.5", "-o")
    done(*fitting, str(tmp_path / "detector"))
    for name, *command in (
        ("blend", "blend", "--exact", song, "--to", "jazz", "-o", "out.mid"),
        ("vectors", "encode", "--exact", song, "-o", "z.safetensors"),
        ("sentences", "reconstruct", "--exact", lines, "-m", "reviews"),
        ("scores", "detect", "score", "--exact", song, "--detector", str(tmp_path / "detector"), "--json"),
    ):
        one, two = (by_command(n, tmp_path / f"{name}-{n}", *command) for n in (1, 2))
        assert one
        assert one == two, name


@pytest.mark.bf16
def test_the_same_call_gives_the_same_result_in_any_process(tiny_text: Path) -> None:
    call = ["generate", "-m", tiny_text, "-n", 30, "--seed", 5]
    first = done(*call)
    assert len(set(first)) > 3
    assert done(*call) == first
    assert shell(*call).stdout.splitlines() == first


@pytest.fixture(scope="module")
def reviews() -> Codec:
    return seqvae.load("reviews", exact=True)


def test_a_latent_vector_does_not_depend_on_other_pieces(reviews: Codec) -> None:
    for codec, pieces in (
        (reviews, SENTENCES),
        (seqvae.load("music", exact=True), [groove(bars, bars) for bars in (2, 5, 8)]),
    ):
        together = codec.encode(pieces)
        for piece, z in zip(pieces, together, strict=True):
            assert torch.equal(codec.encode([piece])[0], z)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8)], ids=["likeliest", "drawn"])
def test_a_decoded_piece_does_not_depend_on_other_pieces(reviews: Codec, sampling: Sampling) -> None:
    z = torch.randn(40, reviews.model.config.latent, generator=torch.Generator().manual_seed(3))
    together = reviews.generate_tokens(z, None, sampling)
    for i in (0, 1, 17, 39):
        alone = reviews.generate_tokens(z[i : i + 1], None, replace(sampling, first_row=i))
        assert [list(ids) for ids in alone] == [list(together[i])]


def test_a_score_does_not_depend_on_other_pieces(reviews: Codec) -> None:
    for codec, pieces in (
        (reviews, SENTENCES),
        (seqvae.load("hdfs", exact=True), ["E5 E22 E5", "E11", "E9 E26 E3 E5 E5 E21 E23 E11"]),
        (seqvae.load("music", exact=True), [groove(bars, bars) for bars in (2, 5, 8)]),
    ):
        for piece, together in zip(pieces, examine(codec, pieces, 3), strict=True):
            (alone,) = examine(codec, [piece], 3)
            assert (alone.elbo, alone.importance) == (together.elbo, together.importance)
            for name in ("log_prob", "error", "means"):
                assert np.array_equal(getattr(alone, name), getattr(together, name)), name
