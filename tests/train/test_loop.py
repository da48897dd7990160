"""A run learns, resumes bit by bit after any interruption, and keeps its best checkpoint."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import SENTENCES, Trained, groove
from torch import Tensor

import seqvae
from seqvae.checkpoint import folder as checkpoint
from seqvae.config import Recipe, TokenizerConfig, TrainConfig
from seqvae.data import dataset
from seqvae.data import prepare as shards
from seqvae.data.dataset import TokenData, split_of
from seqvae.errors import ConfigError, ReadError, SeqVAEError
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn import loss as objective
from seqvae.nn.loss import Loss
from seqvae.style import gaussian
from seqvae.train import loop as train
from seqvae.train import trainer as run
from seqvae.train.fit_styles import fit_styles, pieces_of_styles
from seqvae.train.metrics import collapsed
from seqvae.train.state import rate_at
from seqvae.train.trainer import Run

Start = Callable[..., Path]


class StopError(Exception):
    """Ends a run in the middle, like a power cut."""


@pytest.fixture
def data(collection: Path) -> TokenData:
    return TokenData(collection)


@pytest.fixture
def short(small_recipe: Recipe) -> Recipe:
    """Thirty steps, with all settings that draw random numbers, and validations in between."""
    return replace(
        small_recipe,
        objective=replace(small_recipe.objective, word_dropout=0.3, denoise=0.1),
        train=replace(
            small_recipe.train, steps=30, batch_tokens=512, evaluate_every=10, save_every=15, validation_segments=32
        ),
    )


@pytest.fixture
def start(data: TokenData, tokenizer: MidiTokenizer, tmp_path: Path) -> Start:
    """Train in a folder of the given name."""

    def run(recipe: Recipe, name: str = "run", *, resume: bool = False, report: Any = lambda line: None) -> Path:
        train.train(recipe, data, tokenizer, tmp_path / name, resume=resume, report=report)
        return tmp_path / name

    return run


def state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, about = checkpoint.load_tensors(folder / "state.safetensors")
    return tensors, json.loads(about["progress"])


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def check_same(a: Path, b: Path) -> None:
    (one, progress), (two, other) = state(a), state(b)
    assert one.keys() == two.keys()
    assert any(name.startswith("optimizer.") and name.endswith("exp_avg_sq") for name in one)
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert different == []
    assert progress == other
    assert lines(a, "valid") == lines(b, "valid")[-len(lines(a, "valid")) :]


def records(data: TokenData) -> list[tuple[int, ...]]:
    """Metadata of every piece."""
    return [tuple(data.record(i).tolist()) for i in range(len(data))]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """End a run after a number of steps, without any clean-up."""
    step = Run.step

    def cut(self: Run, tokens: Any) -> Loss:
        if self.progress.step == steps:
            raise StopError
        return step(self, tokens)

    monkeypatch.setattr(Run, "step", cut)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_it_learns(trained: Trained) -> None:
    first, last = lines(trained.folder, "valid")
    assert last["loss"] < 0.75 * first["loss"]
    assert last["accuracy"] > first["accuracy"]
    (training,) = lines(trained.folder, "train")
    assert training["step"] == 100
    # far below the loss of uniform logits
    assert last["loss"] < 0.3 * 2 * 60 * math.log(400)


def test_the_figures_match_their_definitions(trained: Trained) -> None:
    for line in lines(trained.folder, "valid"):
        kl = line["kl_bits"] * math.log(2)
        reconstruction = -line["elbo"] - kl
        assert line["loss"] == pytest.approx(reconstruction + 0.1 * kl, rel=1e-4), "beta at its end, whatever the step"
        assert 0 <= line["mutual_information"] <= math.log(512)
        assert line["active_units"] in range(17)
        assert 0 < line["accuracy"] < 1
        assert 0 < line["free_running"] < 1


def test_a_run_reports_its_progress(trained: Trained) -> None:
    assert any("parameters, fp32" in line and "12 songs" in line for line in trained.reports)
    assert any(line.startswith("valid: loss") and "kl_bits" in line for line in trained.reports)
    assert any(line.startswith("step 100: loss") and "tokens/s" in line for line in trained.reports)
    assert not any("collapsing" in line for line in trained.reports)


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(
    start: Start, short: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = start(short, "straight")
    assert state(straight)[1]["step"] == 30
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(patch, 17)  # the state of step 15 lies on disk
        start(short, "cut")
    reports: list[str] = []
    cut = start(short, "cut", resume=True, report=reports.append)
    assert reports[0] == "resumed at step 15 of 30"
    check_same(straight, cut)
    for name, tensor in checkpoint.load(straight / "best").model.state_dict().items():
        assert torch.equal(tensor, checkpoint.load(cut / "best").model.state_dict()[name])


def test_aggressive_encoder_training_is_resumed_too(
    start: Start, short: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(
        short,
        objective=replace(short.objective, pretrain_steps=1, aggressive=2),
        train=replace(short.train, steps=6, evaluate_every=6, save_every=3),
    )
    straight = start(recipe, "straight")
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(patch, 4)
        start(recipe, "cut")
    check_same(straight, start(recipe, "cut", resume=True))


def test_validating_does_not_change_the_run(start: Start, short: Recipe) -> None:
    often = start(short, "often")
    seldom = start(replace(short, train=replace(short.train, evaluate_every=30)), "seldom")
    (one, _), (two, _) = state(often), state(seldom)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_seed_gives_another_run(start: Start, short: Recipe) -> None:
    one = start(replace(short, train=replace(short.train, steps=2)), "one")
    two = start(replace(short, train=replace(short.train, steps=2, seed=1)), "two")
    assert not torch.equal(state(one)[0]["model.encoder.mean.weight"], state(two)[0]["model.encoder.mean.weight"])


def test_a_run_may_be_made_longer(start: Start, short: Recipe) -> None:
    start(replace(short, train=replace(short.train, steps=10)), "run")
    longer = start(short, "run", resume=True)
    assert state(longer)[1]["step"] == 30


def test_resuming_a_finished_run_does_nothing(start: Start, short: Recipe) -> None:
    folder = start(short)
    before = (folder / "state.safetensors").read_bytes()
    start(short, resume=True)
    assert (folder / "state.safetensors").read_bytes() == before


def test_a_folder_with_a_run_is_not_overwritten(start: Start, short: Recipe) -> None:
    brief = replace(short, train=replace(short.train, steps=2))
    folder = start(brief)
    before = (folder / "state.safetensors").read_bytes()
    with pytest.raises(SeqVAEError, match="add --resume"):
        start(brief)
    assert (folder / "state.safetensors").read_bytes() == before


def test_a_run_is_not_resumed_with_another_model(start: Start, short: Recipe) -> None:
    start(replace(short, train=replace(short.train, steps=2)))
    with pytest.raises(ConfigError, match="another model"):
        start(replace(short, model=replace(short.model, width=48)), resume=True)


def test_a_damaged_state_is_an_error_in_one_line(start: Start, short: Recipe) -> None:
    folder = start(replace(short, train=replace(short.train, steps=2)))
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SeqVAEError, match=r"state\.safetensors"):
        start(short, resume=True)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_nan_stops_the_run_and_leaves_the_saved_state(
    start: Start, short: Recipe, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    recipe = replace(short, train=replace(short.train, save_every=5))
    calls = []
    true_loss = objective.loss

    def spoiled(model: Any, *arguments: Any, **named: Any) -> Loss:
        result = true_loss(model, *arguments, **named)
        calls.append(1)
        if len(calls) < 8 or not named.get("training", True):
            return result
        weight = model.encoder.mean.weight
        nothing = weight.sum() * math.nan if wrong == "loss" else (weight * 0).sqrt().sum()
        return replace(result, total=result.total + nothing)

    with monkeypatch.context() as patch:
        patch.setattr(run, "loss", spoiled)
        with pytest.raises(SeqVAEError) as caught:
            start(recipe)
    text = str(caught.value)
    assert "step 8" in text
    assert "at batch 8 of epoch 0" in text
    assert "nan" in text
    assert "train.learning_rate" in text
    folder = start(replace(recipe, train=replace(recipe.train, steps=6)), "run", resume=True)
    assert all(tensor.isfinite().all() for tensor in state(folder)[0].values())
    assert state(folder)[1]["step"] == 6, "resumed from the last good state, step 5"


def test_a_collapse_is_reported_with_the_settings_to_change(
    start: Start, short: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"loss": 1.0, "kl_bits": 9.0, "active_units": 9.0}
    brief = replace(short, train=replace(short.train, steps=1))
    for name, figures, warned in [
        ("good", good, False), ("bad", {**good, "kl_bits": 0.0}, True),
    ]:  # fmt: skip
        monkeypatch.setattr(Run, "validate", lambda self, figures=figures: figures)
        reports: list[str] = []
        start(brief, name, report=reports.append)
        assert any(line.startswith("warning") for line in reports) == warned
    autoencoder = replace(brief, objective=replace(brief.objective, autoencoder=True))
    start(autoencoder, "plain", report=reports.append)
    assert sum(line.startswith("warning") for line in reports) == 1, "the plain autoencoder has no KL to lose"


def test_a_posterior_without_information_has_collapsed() -> None:
    healthy = {"kl_bits": 40.0, "active_units": 30.0}
    assert collapsed(healthy, 64) is None
    for figures in ({**healthy, "kl_bits": 0.0}, {**healthy, "active_units": 1.0}):
        text = collapsed(figures, 64)
        assert text is not None
        assert "\n" not in text
        assert all(name in text for name in ("objective.beta", "objective.free_bits", "objective.anneal_steps"))
    copies = {**healthy, "active_units": 0.0}
    assert collapsed(copies, 64, alike=True) is None
    assert collapsed({**copies, "kl_bits": 0.0}, 64, alike=True) is not None


# --- the best ---------------------------------------------------------------------------------------------------------


def test_the_best_checkpoint_has_the_lowest_loss(start: Start, short: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    losses = iter([5.0, 2.0, 3.0])
    validate = Run.validate

    def validated(self: Run) -> dict[str, float]:
        weights.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return {**validate(self), "loss": next(losses)}

    monkeypatch.setattr(Run, "validate", validated)
    folder = start(short)
    kept = checkpoint.load(folder / "best").model.state_dict()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(tensor, weights[2][name], rtol=1e-2, atol=1e-3) for name, tensor in kept.items())
    assert state(folder)[1]["best"] == 2.0


def test_the_best_checkpoint_is_loaded_like_a_released_one(trained: Trained) -> None:
    codec = seqvae.load(trained.best)
    assert checkpoint.load(trained.best).recipe == trained.recipe
    (z,) = codec.encode([groove(3)])
    assert z.shape == (4, 16)


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_linearly_and_falls_by_half_a_cosine() -> None:
    config = TrainConfig(steps=1100, warmup_steps=100, learning_rate=2e-3, final_rate=0.1)
    rates = np.array([rate_at(config, step) for step in range(1, 1101)])
    assert rates[:100] == pytest.approx(2e-5 * np.arange(1, 101))
    assert rates.argmax() == 99
    assert (np.diff(rates[99:]) < 0).all()
    assert rate_at(config, 600) == pytest.approx(2e-3 * 0.55), "half-way down"
    assert rates[-1] == pytest.approx(2e-4)
    assert rate_at(config, 5000) == pytest.approx(2e-4), "it is constant after the end"


def test_without_a_warm_up_the_learning_rate_starts_at_its_maximum() -> None:
    config = TrainConfig(steps=100, warmup_steps=0, learning_rate=1.0)
    assert rate_at(config, 1) == pytest.approx(1, abs=1e-3)
    assert rate_at(TrainConfig(steps=10, warmup_steps=10, learning_rate=1.0), 10) == 1.0


# --- shards -----------------------------------------------------------------------------------------------------------


def test_existing_shards_are_not_made_again(tokenizer: MidiTokenizer, tmp_path: Path) -> None:
    def pieces() -> Any:
        yield "rock", "a", groove(1)

    def none() -> Any:
        raise AssertionError("read again")
        yield

    first = shards.tokenize(Recipe(), pieces(), tokenizer, tmp_path / "data")
    again = shards.tokenize(Recipe(), none(), tokenizer, tmp_path / "data")
    assert records(first) == records(again)
    with pytest.raises(ConfigError, match="another tokenizer"):
        shards.tokenize(Recipe(tokenizer=TokenizerConfig(max_steps=96)), none(), tokenizer, tmp_path / "data")


def test_prepared_shards_are_used_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_recipe: Recipe
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = replace(small_recipe, tokenizer=TokenizerConfig(kind="text", vocab_size=320))
    (tmp_path / "all.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    made, tokenizer, _ = shards.prepare(recipe, [tmp_path / "all.txt"], tmp_path / "made")
    url = f"memory://{tmp_path}/data"
    fsspec.filesystem("memory").put(f"{tmp_path}/made/", f"{tmp_path}/data", recursive=True)
    for data in (tmp_path / "made", str(tmp_path / "made"), url, f"{url}/"):
        again, same, skipped = shards.prepare(recipe, [data], tmp_path / "run")
        assert (records(again), same.vocab_size, skipped) == (records(made), tokenizer.vocab_size, [])
        assert isinstance(again.shard(0).tokens.base, np.memmap)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="excludes other --data"):
        shards.prepare(recipe, [url, tmp_path / "all.txt"], tmp_path / "run")
    with pytest.raises(ConfigError, match="another tokenizer"):
        shards.prepare(replace(recipe, tokenizer=TokenizerConfig(kind="text")), [url], tmp_path)


def test_a_vocabulary_is_learned_from_lines_drawn_evenly() -> None:
    lines = [f"line {i}" for i in range(10000)]
    assert shards.evenly(lines, shards.LEARNED) == lines, "all of few"
    drawn = shards.evenly(iter(lines), 60 * 1000)
    assert drawn == shards.evenly(iter(lines), 60 * 1000)
    numbers = [int(line.split()[1]) for line in drawn]
    assert 400 < len(numbers) <= 1100
    assert numbers == sorted(numbers)
    each = np.bincount([number // 1000 for number in numbers], minlength=10)
    assert np.abs(each - len(numbers) / 10).max() < 5 * math.sqrt(len(numbers) / 10)


def test_only_one_process_makes_the_shards(tmp_path: Path, small_recipe: Recipe) -> None:
    recipe = replace(small_recipe, tokenizer=TokenizerConfig(kind="text", vocab_size=320))
    (tmp_path / "all.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    with pytest.raises(ReadError, match="this machine does not see them"):
        shards.prepare(recipe, [tmp_path / "all.txt"], tmp_path / "made", make_them=False)
    assert not (tmp_path / "made").exists()
    made = shards.prepare(recipe, [tmp_path / "all.txt"], tmp_path / "made")[0]
    again = shards.prepare(recipe, ["gone"], tmp_path / "made", make_them=False)[0]
    assert records(again) == records(made)


def test_missing_input_is_an_error_in_one_line(tokenizer: MidiTokenizer, tmp_path: Path) -> None:
    with pytest.raises(SeqVAEError, match="no training data could be read"):
        shards.tokenize(Recipe(), [], tokenizer, tmp_path / "data")
    assert not (tmp_path / "data" / "index.json").exists()


OF_SHARDS_ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("symusic", "miditok", "pretty_midi", "music21"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from seqvae.cli.app import main
main(sys.argv[1:])
"""


def test_shards_of_music_are_trained_on_without_music_readers(
    collection: Path, tokenizer: MidiTokenizer, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(collection, tmp_path / "data"))
    tokenizer.save(data / "tokenizer")
    settings = ["model.latent=16", "model.width=32", "model.hidden=16", "train.batch_tokens=512", "train.steps=3"]
    command = ["train", "music", f"--data={data}", f"--out={tmp_path / 'run'}", "--set=tokenizer.common_key=false"]
    done = subprocess.run(
        [sys.executable, "-c", OF_SHARDS_ALONE, *command, *(f"--set={one}" for one in settings)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(seqvae.load(tmp_path / "run" / "best").styles) == {"all", "rock"}


# --- styles -----------------------------------------------------------------------------------------------------------


def test_styles_are_fitted_on_the_training_pieces(
    trained: Trained, tokenizer: MidiTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(trained.best, tmp_path / "best"))
    titles = [f"song {i}" for i in range(1000) if split_of(f"song {i}") == "train"][:12]
    pieces = [("jazz" if i < 6 else "rock", title, groove(i)) for i, title in enumerate(titles)]
    pieces += [("jazz", f"song {i}", groove(i)) for i in range(100) if split_of(f"song {i}") != "train"]
    monkeypatch.setattr(dataset, "SHARD_TOKENS", 500)
    data = shards.tokenize(Recipe(), pieces, tokenizer, tmp_path / "data")
    assert data.index["shards"] > 3
    fit_styles(folder, data, lambda line: None)
    codec = seqvae.load(folder)
    assert set(codec.styles) == {"all", "rock", "jazz"}
    assert [codec.styles[name].count for name in ("all", "jazz", "rock")] == [12, 6, 6]
    means = codec.encode([groove(i) for i in range(12)])
    expected = gaussian.fit(means[:6])
    torch.testing.assert_close(codec.styles["jazz"].mean, expected.mean, rtol=1e-3, atol=1e-3)
    weights, before = checkpoint.load(folder).model.state_dict(), checkpoint.load(trained.best).model.state_dict()
    assert all(torch.equal(weights[name], before[name]) for name in before), "the model is the same"


def test_a_limited_number_of_pieces_is_drawn_per_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SHARD_TOKENS", 200)
    writer = dataset.ShardWriter(tmp_path, {})
    for i in range(300):
        writer.add([np.array([5, 2], np.int32)], "rare" if i % 30 == 0 else "many", f"song {i}")
    writer.close()
    found = pieces_of_styles(TokenData(tmp_path), np.random.default_rng(0), 40)
    trained = [i for i in range(300) if split_of(f"song {i}") == "train"]
    assert found["rare"].tolist() == [i for i in trained if i % 30 == 0]
    many = found["many"].tolist()
    assert len(many) == 40 == len(set(many) & {i for i in trained if i % 30})
    assert many == sorted(many)
    assert many[0] < 40
    assert many[-1] > 260


def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, collection: Path, tokenizer: MidiTokenizer, small_recipe: Recipe
) -> None:
    script = (
        "import sys; from pathlib import Path; from seqvae.train import loop as train\n"
        "with train._alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SeqVAEError, match="another process"):
            train.train(small_recipe, TokenData(collection), tokenizer, tmp_path, resume=False, report=lambda _: None)
        other.kill()
    assert not (tmp_path / "state.safetensors").exists()
    with train._alone(tmp_path):  # a lock goes with its process
        pass


def test_tokens_with_position_fields_are_not_denoised_by_deletion(short: Recipe, start: Start) -> None:
    with pytest.raises(ConfigError, match="choose mask"):
        start(replace(short, objective=replace(short.objective, denoise=0.1, denoise_by="drop")))
