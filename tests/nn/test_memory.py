"""Invariants of the sentence model: independent rows, sensitivity to order, and steps equal to whole rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint.folder import Checkpoint
from seqvae.cli.notices import of_draws
from seqvae.codec import Codec
from seqvae.codec import load as load_codec
from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig
from seqvae.errors import ConfigError
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.binding import shifted
from seqvae.nn.loss import loss
from seqvae.nn.memory import positions
from seqvae.nn.model import SequenceVAE
from seqvae.nn.sampling import Sampling
from seqvae.protocols import EOS, PAD
from seqvae.style import styles_file
from seqvae.text.tokenizer import TextTokenizer
from seqvae.train.loop import train_from

LINES = ["the cat sat on the mat", "a dog saw the cat", "the dog sat", "a cat saw a dog on the mat"]
CONFIG = ModelConfig(
    chunks=1, latent=24, width=32, hidden=48, layers=2, heads=4, encoder="pooled", decoder="memory"
)  # fmt: skip

WITHOUT = replace(CONFIG, without=0.5)


@pytest.fixture(scope="module")
def words() -> TextTokenizer:
    return TextTokenizer.train(LINES * 20, 290, "unigram", 64)


@pytest.fixture
def model(words: TextTokenizer) -> SequenceVAE:
    torch.manual_seed(0)
    return checkpoint.build(CONFIG, words).eval()


def spelled(words: TextTokenizer, lines: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens `(B, 1, T)` and position fields of lines."""
    rows = [torch.from_numpy(words.encode(line)[0]).long() for line in lines]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)[:, None]
    return tokens, tokens.new_zeros(*tokens.shape, 0)


def test_a_posterior_does_not_depend_on_other_rows(model: SequenceVAE, words: TextTokenizer) -> None:
    together = model.encode(*spelled(words, LINES))
    for i, line in enumerate(LINES):
        alone = model.encode(*spelled(words, [line]))
        torch.testing.assert_close(alone.mean[0], together.mean[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.logvar[0], together.logvar[i], rtol=1e-4, atol=1e-5)


def test_the_posterior_depends_on_word_order(model: SequenceVAE, words: TextTokenizer) -> None:
    mean = model.encode(*spelled(words, ["the dog saw the cat", "the cat saw the dog"])).mean
    assert (mean[0] - mean[1]).norm() > 0.1 * mean[0].norm()


def test_positions_are_distinguished_by_products() -> None:
    keys = positions(0, 64, 512, torch.device("cpu"))
    products = keys @ keys.T / 512
    assert (products.diagonal() - 1).abs().max() < 0.15
    assert (products - products.diagonal().diag()).abs().max() < 0.8
    torch.testing.assert_close(keys[5:9], positions(5, 4, 512, torch.device("cpu")))


def test_steps_equal_whole_rows(model: SequenceVAE, words: TextTokenizer) -> None:
    tokens, fields = spelled(words, LINES)
    z = model.encode(tokens, fields).mean
    whole = model.decode_logits(z, shifted(tokens), fields)[0][:, 0]
    code = model.decoder.codes(z).flatten(0, 1)
    cache = model.decoder.start(code)
    for t in range(tokens.shape[-1]):
        outputs, cache = model.decoder.step(code, shifted(tokens)[:, 0, t : t + 1], fields[:, 0, t : t + 1], cache)
        torch.testing.assert_close(outputs.logits(), whole[:, t], rtol=1e-4, atol=1e-4)


def test_later_tokens_are_not_seen(model: SequenceVAE, words: TextTokenizer) -> None:
    tokens, fields = spelled(words, LINES[:1])
    z = model.encode(tokens, fields).mean
    inputs = shifted(tokens)
    other = inputs.clone()
    other[..., 4:] = EOS
    a, b = model.decode_logits(z, inputs, fields)[0], model.decode_logits(z, other, fields)[0]
    torch.testing.assert_close(a[..., :4, :], b[..., :4, :])
    assert not torch.allclose(a[..., 4:, :], b[..., 4:, :])


def learned(words: TextTokenizer, shape: ModelConfig, lines: list[str], steps: int) -> tuple[Recipe, SequenceVAE]:
    """A model of some lines after `steps` steps with all of them in one batch, and its recipe."""
    torch.manual_seed(0)
    model = checkpoint.build(shape, words)
    assert isinstance(model, SequenceVAE)
    tokens, fields = spelled(words, lines)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    config = ObjectiveConfig(beta=0.001, schedule="constant", word_dropout=0.3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, tokens, fields, config, step).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Recipe("lines", TokenizerConfig("text"), shape, config), model


def test_it_learns_its_lines_and_a_checkpoint_restores_them(words: TextTokenizer, tmp_path: Path) -> None:
    recipe, model = learned(words, CONFIG, LINES, 150)
    checkpoint.save(Checkpoint(recipe, model, words), tmp_path / "lines")
    codec: Codec = load_codec(tmp_path / "lines")
    assert [codec.reconstruct(line) for line in LINES] == LINES


@pytest.fixture(scope="module")
def drawing(words: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose decoder has learned LINES without z, with a style of cats among all."""
    recipe, model = learned(words, WITHOUT, LINES * 4, 200)
    codec = Codec(words, model)
    fitted = {"cats": codec.fit_style(LINES[-1:]), "all": codec.fit_style(LINES)}
    styles, about = styles_file.pack(fitted)
    folder = tmp_path_factory.mktemp("drawing") / "lines"
    checkpoint.save(Checkpoint(recipe, model, words, styles, about), folder)
    return folder


def test_lines_are_drawn_by_the_decoder_without_z(drawing: Path) -> None:
    codec, draw = load_codec(drawing), Sampling(temperature=0.8, top_p=0.95)
    drawn = codec.sample(12, seed=1, sampling=draw, best_of=1)
    assert len(set(drawn)) > 1
    assert set(drawn) <= set(LINES)
    assert codec.sample(12, seed=1, sampling=draw, best_of=1) == drawn
    assert codec.sample(12, seed=2, sampling=draw, best_of=1) != drawn
    assert codec.sample(12, "all", seed=1, sampling=draw, best_of=1) == [codec.reconstruct(line) for line in drawn]
    v = codec.styles["cats"].mean - codec.styles["all"].mean
    moved = codec.decode([z + v for z in codec.encode(drawn)])
    assert codec.sample(12, "cats", seed=1, sampling=draw, best_of=1) == moved != drawn
    assert set(codec.sample(6, seed=1)) <= set(LINES)
    assert not of_draws(codec)


def test_z_has_no_part_in_a_line_without_z(drawing: Path, words: TextTokenizer) -> None:
    model = checkpoint.load(drawing).model
    tokens, fields = spelled(words, LINES)

    def logits(source: Tensor, without: list[bool]) -> Tensor:
        out = model(tokens, fields, source, shifted(tokens), False, 0.0, torch.tensor(without))
        return out.autoregressive.logits()  # type: ignore[no-any-return]

    torch.testing.assert_close(logits(tokens, [True] * 4), logits(tokens.flip(0), [True] * 4))
    assert not torch.allclose(logits(tokens, [True] * 3 + [False]), logits(tokens.flip(0), [True] * 3 + [False]))


def test_a_model_that_always_had_z_has_no_vector_in_its_place(model: SequenceVAE, words: TextTokenizer) -> None:
    assert "absent" not in model.state_dict()
    assert [name for name in checkpoint.build(WITHOUT, words).state_dict() if name not in model.state_dict()] == [
        "absent"
    ]
    assert of_draws(Codec(words, model))


def test_a_run_from_a_checkpoint_goes_on_with_the_vector_or_begins_one(
    drawing: Path, model: SequenceVAE, words: TextTokenizer, tmp_path: Path
) -> None:
    old, lines = tmp_path / "old", tmp_path / "lines.txt"
    checkpoint.save(Checkpoint(Recipe("old", TokenizerConfig("text"), CONFIG), model, words), old)
    lines.write_text("".join(f"{line}\n" for line in LINES))
    settings = TrainConfig(steps=4, warmup_steps=1, learning_rate=1e-4)
    recipe = Recipe("lines", TokenizerConfig("text"), WITHOUT, train=settings)
    known = checkpoint.load(drawing).model.absent.detach()
    for start, before in ((drawing, known), (old, torch.zeros_like(known))):
        run = tmp_path / f"from-{start.name}"
        best, _ = train_from(recipe, [lines], run, tokenizer=start / "tokenizer", start=start, report=lambda _: None)
        moved = (checkpoint.load(best).model.absent.detach() - before).abs()
        assert 0 < moved.max() < 2e-3
    assert known.abs().max() > 0.1


@pytest.mark.parametrize("change", [{"previous": True}, {"chunks": 2}])
def test_unsupported_settings_are_refused(words: TextTokenizer, change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="chunk"):
        checkpoint.build(ModelConfig(**{**CONFIG.__dict__, **change}), words)


def test_music_is_refused(tokenizer: MidiTokenizer) -> None:
    with pytest.raises(ConfigError, match="without position fields"):
        checkpoint.build(CONFIG, tokenizer)
