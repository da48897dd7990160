"""NaN, infinity and extreme sizes: training stops before they do damage, and public calls refuse them.

Two processes also run this file as a script: `python tests/test_numbers.py FOLDER`, with RANK and the like set.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import done, error_line, last_error_line, seqvae, song
from conftest import SENTENCES, MakePiece, groove
from precision import needs_bf16

import seqvae as public
from seqvae import parallel as distributed
from seqvae.checkpoint import folder as checkpoint
from seqvae.codec import Codec
from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig
from seqvae.data import prepare as shards
from seqvae.data.dataset import TokenData
from seqvae.errors import CheckpointError, ConfigError, SeqVAEError, StyleError
from seqvae.events.tokenizer import EventTokenizer
from seqvae.modality import load_tokenizer
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn import loss as objective
from seqvae.nn.sampling import Sampling
from seqvae.text.tokenizer import TextTokenizer
from seqvae.train import loop as train
from seqvae.train import trainer as run
from seqvae.train.trainer import Run

RECIPE = Recipe(
    tokenizer=TokenizerConfig(kind="text", vocab_size=320, max_tokens=24),
    model=ModelConfig(chunks=1, latent=4, width=8, hidden=8, heads=2, previous=True),
    objective=ObjectiveConfig(beta=0.1, anneal_steps=10),
    train=TrainConfig(
        steps=8, batch_tokens=96, learning_rate=1e-2, warmup_steps=2, evaluate_every=4, save_every=2,
        validation_segments=16, precision="fp32",
    ),
)  # fmt: skip


def changed(**settings: Any) -> Recipe:
    return replace(RECIPE, train=replace(RECIPE.train, **settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SENTENCES and their shards."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "all.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    shards.prepare(RECIPE, [folder / "all.txt"], folder / "data", report=lambda _: None)
    return folder


def go(folder: Path, out: Path, recipe: Recipe = RECIPE, resume: bool = False) -> Path:
    data, tokenizer = TokenData(folder / "data"), load_tokenizer(folder / "data" / "tokenizer")
    return train.train(recipe, data, tokenizer, out, resume=resume, report=lambda _: None)


def saved(out: Path) -> int:
    """The step of the last saved state; asserts that its tensors are finite."""
    tensors, about = checkpoint.load_tensors(out / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    step: int = json.loads(about["progress"])["step"]
    return step


# --- in training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_batch_is_named_with_its_pieces(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """One sentence makes the loss NaN: the named batch contains it."""
    data, tokenizer = TokenData(folder / "data"), load_tokenizer(folder / "data" / "tokenizer")
    held = Run(RECIPE, data, tokenizer, tmp_path / "never", print).batches
    rows = [rows.tolist() for rows, _ in held.epoch(0)]
    assert len(rows) > 5
    expected = rows[5][0]
    first, bad = data.record(expected)["first"], np.array([expected])
    poison = data.gather(bad, np.array([first]), 1)[0, 0]
    true_loss = objective.loss

    def spoiled(model: Any, tokens: torch.Tensor, *arguments: Any, **named: Any) -> objective.Loss:
        result = true_loss(model, tokens, *arguments, **named)
        row = np.zeros(tokens.shape[-1], np.int64)
        row[: min(len(row), len(poison))] = poison[: len(row)]
        hit = (tokens.cpu().numpy()[:, 0] == row).all(1).any()
        return replace(result, total=result.total * value) if hit else result

    monkeypatch.setattr(run, "loss", spoiled)
    with pytest.raises(SeqVAEError) as caught:
        go(folder, tmp_path / "run")
    line = str(caught.value)
    assert "step 6: the loss is" in line
    assert "at batch 6 of epoch 0, which holds pieces " in line
    pieces = sorted(rows[5])
    assert line.split("pieces ")[1].startswith(", ".join(map(str, pieces[:10])))
    assert (f"and {len(pieces) - 10} more" in line) == (len(pieces) > 10)
    assert saved(tmp_path / "run") == 4
    monkeypatch.undo()
    go(folder, tmp_path / "run", resume=True)
    assert saved(tmp_path / "run") == 8


def test_nan_weights_are_not_saved_over_finite_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Run.step

    def spoiled(self: Run, tokens: Any) -> objective.Loss:
        result = step(self, tokens)
        if self.progress.step == 6:  # a finite gradient, and a step that is too large
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(math.inf)
        return result

    monkeypatch.setattr(Run, "step", spoiled)
    for name, recipe in {"saved": RECIPE, "validated": changed(evaluate_every=3)}.items():
        with pytest.raises(SeqVAEError, match="step 6: weights are NaN or infinite"):
            go(folder, tmp_path / name, recipe)
        assert saved(tmp_path / name) == 4
    assert checkpoint.load(tmp_path / "saved" / "best")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=[needs_bf16, pytest.mark.bf16])])
@pytest.mark.parametrize("aggressive", [0, 2])
def test_a_rate_that_is_far_too_high_overflows_and_stops(
    folder: Path, tmp_path: Path, precision: str, aggressive: int
) -> None:
    begun = changed(steps=4, precision=precision)
    go(folder, tmp_path / "run", begun)
    wild = replace(
        changed(steps=50, precision=precision, learning_rate=1e36, warmup_steps=0, save_every=50),
        objective=replace(RECIPE.objective, aggressive=aggressive),
    )
    with pytest.raises(SeqVAEError, match=r"lower train\.learning_rate"):
        go(folder, tmp_path / "run", wild, resume=True)
    assert saved(tmp_path / "run") == 4
    go(folder, tmp_path / "run", changed(precision=precision), resume=True)
    assert saved(tmp_path / "run") == 8


def test_bf16_is_refused_where_the_processor_cannot(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(ConfigError, match=r"train\.precision: .* set it to auto or fp32"):
        go(folder, tmp_path / "run", changed(precision="bf16"))
    assert saved(go(folder, tmp_path / "auto", changed(precision="auto")).parent) == 8


def test_large_weights_are_stored_without_overflow_of_half_precision(tiny_text: Path, tmp_path: Path) -> None:
    kept = checkpoint.load(tiny_text)
    name, weight = next((n, w) for n, w in kept.model.named_parameters() if w.ndim == 2)
    with torch.no_grad():
        weight[0, 0] = 1e6
    checkpoint.save(kept, tmp_path / "large")
    again = dict(checkpoint.load(tmp_path / "large").model.named_parameters())
    assert again[name][0, 0].item() == 1e6
    assert all(tensor.isfinite().all() for tensor in again.values())


@pytest.mark.parametrize("kind", ["text", "events", "midi"])
def test_batches_of_one_and_the_shortest_pieces(
    tmp_path: Path, kind: str, make_piece: MakePiece, tokenizer: MidiTokenizer
) -> None:
    """Half of the pieces have one token before EOS, and every batch has one segment."""
    pieces: list[tuple[str, str, Any]]
    if kind == "midi":
        note = make_piece([[0, 12, 60, 0, 80]], [0, 48])
        pieces = [("s", f"song {i}", note if i % 2 else groove(i, 1)) for i in range(150)]
        spelled: Any = tokenizer
    else:
        lines = [line if i % 2 else line.split()[0] for i, line in enumerate(SENTENCES)]
        pieces = [("s", f"line {i}", line) for i, line in enumerate(lines)]
        spelled = TextTokenizer.train(SENTENCES, 320) if kind == "text" else EventTokenizer.train(SENTENCES, 40)
    recipe = replace(
        changed(batch_tokens=1, steps=30, evaluate_every=30),
        tokenizer=TokenizerConfig(kind=kind, vocab_size=320),
        model=replace(RECIPE.model, previous=kind != "midi"),
    )
    data = shards.tokenize(recipe, pieces, spelled, tmp_path / "data")
    assert all(len(rows) == 1 for rows, _ in Run(recipe, data, spelled, tmp_path, print).batches.epoch(0))
    train.train(recipe, data, spelled, tmp_path / "run", resume=False, report=lambda _: None)
    assert saved(tmp_path / "run") == 30


def test_empty_pieces_alone_are_refused_by_training(tmp_path: Path) -> None:
    tokenizer = EventTokenizer.train(SENTENCES, 40)
    data = shards.tokenize(RECIPE, [("s", f"line {i}", "") for i in range(60)], tokenizer, tmp_path / "data")
    recipe = replace(RECIPE, tokenizer=TokenizerConfig(kind="events"))
    with pytest.raises(SeqVAEError, match="add more"):
        train.train(recipe, data, tokenizer, tmp_path / "run", resume=False, report=lambda _: None)


# --- vocabulary -------------------------------------------------------------------------------------------------------


def test_shards_of_another_vocabulary_are_refused(folder: Path, tmp_path: Path) -> None:
    smaller = EventTokenizer.train(SENTENCES, 8)
    with pytest.raises(SeqVAEError, match=r"shards hold token \d+, and the vocabulary has 8"):
        train.train(RECIPE, TokenData(folder / "data"), smaller, tmp_path, resume=False, report=lambda _: None)


def test_a_tokenizer_that_did_not_make_the_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    other = TextTokenizer.train([line[::-1] for line in SENTENCES], 320, max_tokens=24)
    other.save(tmp_path / "other")
    with pytest.raises(ConfigError, match="is not the tokenizer of the shards"):
        shards.prepare(RECIPE, [folder / "all.txt"], folder / "data", tokenizer=tmp_path / "other")
    same = shards.prepare(RECIPE, [folder / "all.txt"], folder / "data", tokenizer=folder / "data" / "tokenizer")
    assert len(same[0]) == len(SENTENCES)


@pytest.mark.parametrize("how", ["resume", "start"])
def test_weights_of_another_vocabulary_of_the_same_size_are_refused(folder: Path, tmp_path: Path, how: str) -> None:
    best = go(folder, tmp_path / "run")
    lines = [line[::-1] for line in SENTENCES]
    size = load_tokenizer(folder / "data" / "tokenizer").vocab_size
    other = TextTokenizer.train(lines, size, max_tokens=24)
    assert other.vocab_size == size, "otherwise the test shows nothing"
    data = shards.tokenize(RECIPE, [("s", line, line) for line in lines], other, tmp_path / "data")
    with pytest.raises(ConfigError, match=r"tokenizer|otherwise"):
        if how == "resume":
            train.train(RECIPE, data, other, tmp_path / "run", resume=True, report=lambda _: None)
        else:
            train.train(RECIPE, data, other, tmp_path / "new", resume=False, start=best, report=lambda _: None)


def test_a_checkpoint_with_another_tokenizer_is_refused_with_a_message(tiny_text: Path, tmp_path: Path) -> None:
    kept = checkpoint.load(tiny_text)
    kept.tokenizer = TextTokenizer.train(["a few other words"], 290)
    checkpoint.save(kept, tmp_path / "mixed")
    with pytest.raises(CheckpointError, match="tokenizer and model do not belong together"):
        checkpoint.load(tmp_path / "mixed")
    assert "do not belong together" in error_line(seqvae("reconstruct", "food", "-m", tmp_path / "mixed"))


@pytest.mark.parametrize("breakage", ["recipe", "progress", "weight", "shape", "random"])
def test_an_incomplete_state_is_a_one_line_error(folder: Path, tmp_path: Path, breakage: str) -> None:
    go(folder, tmp_path, changed(steps=2))
    tensors, about = checkpoint.load_tensors(tmp_path / "state.safetensors")
    name = next(name for name in tensors if name.startswith("model."))
    if breakage in about:
        del about[breakage]
    elif breakage == "weight":
        del tensors[name]
    elif breakage == "random":
        tensors["random"] = torch.zeros(3)
    else:
        tensors[name] = torch.zeros(3, 5, 7)
    checkpoint.save_tensors(tensors, about, tmp_path / "state.safetensors")
    with pytest.raises(ConfigError, match=r"state\.safetensors: is not a state of this run"):
        go(folder, tmp_path, resume=True)


# --- public calls -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["text", "events", "midi"])
def codec(request: pytest.FixtureRequest) -> Codec:
    fixture = {"text": "tiny_text", "events": "tiny_events", "midi": "tiny_music"}[request.param]
    return public.load(request.getfixturevalue(fixture))


def extremes(codec: Codec, make_piece: MakePiece) -> list[Any]:
    """Pieces without tokens, with one token, and with far more than a segment."""
    if codec.tokenizer.kind == "midi":
        many = [[t, 1, p, i, 80] for t in range(0, 96, 2) for p in range(30, 100, 5) for i in range(3)]
        one = [[0, 1, 60, 0, 80]]
        notes: list[tuple[list[list[int]], list[int]]] = [
            ([], [0]), ([], [0, 48]), (one, [0, 48]), (one, [0, 1]), (many, [0, 48, 96]),
        ]  # fmt: skip
        return [make_piece(rows, bounds) for rows, bounds in notes]
    word = SENTENCES[0].split()[0] if codec.tokenizer.kind == "text" else "open"
    return ["", word, "never-seen", " ".join([word] * 1000)]


def test_the_shortest_and_the_longest_pieces_are_accepted(codec: Codec, make_piece: MakePiece) -> None:
    pieces = extremes(codec, make_piece)
    latents = codec.encode(pieces)
    assert all(z.shape[1] == codec.model.config.latent and z.isfinite().all() for z in latents)
    assert len(latents[-1]) >= 1
    assert len(codec.decode(latents)) == len(pieces)
    scores = codec.log_prob(pieces, samples=2)
    assert all(math.isfinite(score) and score <= 0 for score in scores)
    first, last = sorted(codec.styles)[:2]
    for piece in pieces:
        moved = codec.blend(piece, target=first, amount=1.0)
        assert type(moved) is type(codec.reconstruct(piece))
        alone, together = codec.encode([piece])[0], codec.encode([piece, *pieces])[0]
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-3)
    assert codec.blend(pieces[1], target=last, amount=0.0) == codec.reconstruct(pieces[1])
    assert codec.encode([]) == codec.decode([]) == codec.log_prob([]) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_latents_are_not_decoded(codec: Codec, make_piece: MakePiece, value: float) -> None:
    z = torch.zeros(1, codec.model.config.latent)
    z[0, 0] = value
    for sampling in (None, Sampling(temperature=1.0), Sampling(beam=2)):
        with pytest.raises(SeqVAEError, match="NaN or infinity"):
            codec.decode([z], sampling=sampling)
    piece = groove(1) if codec.tokenizer.kind == "midi" else extremes(codec, make_piece)[1]
    with pytest.raises(SeqVAEError, match="NaN or infinity"):
        codec.blend(piece, target=sorted(codec.styles)[0], amount=value)
    for dtype in (torch.half, torch.double):
        assert codec.decode([torch.zeros(1, len(z[0]), dtype=dtype)]) == codec.decode([torch.zeros(1, len(z[0]))])
    with pytest.raises(StyleError):
        codec.fit_style([])


@pytest.mark.parametrize("kind", ["text", "midi"])
def test_nan_latents_are_a_one_line_error(kind: str, tiny_text: Path, tiny_music: Path, here: Path) -> None:
    model, piece = (tiny_text, SENTENCES[0]) if kind == "text" else (tiny_music, str(song(here / "a.mid")))
    done("encode", piece, "-m", model, "-o", "z.safetensors")
    tensors, about = checkpoint.load_tensors(here / "z.safetensors")
    name = next(name for name in tensors if name != "segments")
    tensors[name][0, 0] = math.nan
    checkpoint.save_tensors(tensors, about, here / "z.safetensors")
    result = seqvae("decode", "z.safetensors", "-m", model, "-o", "out.txt" if kind == "text" else "out.mid")
    assert "NaN or infinity" in error_line(result)
    assert not (here / "out.txt").exists()
    assert not (here / "out.mid").exists()


def test_the_shortest_and_the_longest_lines_are_scored(tiny_events: Path, here: Path) -> None:
    lines = ["", "open", "never-seen", " ".join(["open", "read"] * 2000)]
    (here / "in.txt").write_text("".join(f"{line}\n" for line in lines))
    normal = tiny_events.parent.parent / "normal.txt"
    done("detect", "fit", f"@{normal}", "-m", tiny_events, "-o", "det", "--p-value", 0.1)
    facts = [json.loads(line) for line in done("detect", "score", "@in.txt", "--detector", "det", "--json")]
    assert [one["index"] for one in facts] == [0, 1, 2, 3]
    assert all(math.isfinite(one["score"]) for one in facts)


def test_the_train_command_reports_it(here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_loss = objective.loss
    monkeypatch.setattr(
        run, "loss", lambda *a, **k: replace(true_loss(*a, **k), total=true_loss(*a, **k).total * math.nan)
    )
    (here / "tiny.json").write_text(json.dumps(RECIPE.__dict__, default=lambda x: x.__dict__))
    result = seqvae("train", "tiny.json", "--data", folder / "all.txt", "--out", "run")
    assert "step 1: the loss is nan" in last_error_line(result)
    assert not (here / "run" / "state.safetensors").exists()


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_infinite_gradient_in_one_of_two_processes_stops_both(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    root = str(Path(__file__).parent.parent)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(tmp_path / "run")],
            env={**os.environ, **place, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    lines = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for line in lines:
        assert math.isfinite(float(line.split("loss is ")[1].split(" ")[0])), "only its gradient is not"
        assert line.startswith("step 5: ")
        assert "at batch 5 of epoch 0, which holds pieces " in line
    assert saved(tmp_path / "run") == 4


def work(folder: Path, out: Path) -> None:
    """Train; in the second process the gradient of step 5 is infinite."""
    gradient: Callable[[Run, Any, Any, Any, Any], objective.Loss] = Run.part_loss

    def spoiled(self: Run, tokens: Any, part: Any, mean_kl: Any = None, again: bool = False) -> objective.Loss:
        result = gradient(self, tokens, part, mean_kl, again)
        if self.progress.step == 5 and self.ranks.rank == 1:
            weight = next(iter(self.model.parameters()))
            nothing = (weight - weight.detach()).sum()
            result = replace(result, total=result.total + nothing * 1e30 * 1e30)
        return result

    Run.part_loss = spoiled  # type: ignore[method-assign]
    try:
        go(folder, out)
    except SeqVAEError as error:
        print(error)
        distributed.join().leave()


if __name__ == "__main__":
    work(*map(Path, sys.argv[1:]))
