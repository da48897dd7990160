"""How to add a modality, a backbone and an objective: one of each, in the training loop of the real ones.

docs/extending.md explains this file. A modality is an entry in the registry of modalities. For a backbone
and an objective, the test patches the lines that an addition would change.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from commands import done, error_line, seqvae
from conftest import SENTENCES
from fastapi.testclient import TestClient
from studios import HOME, refusal, result
from torch import Tensor, nn

from seqvae import codec
from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig
from seqvae.data.dataset import split_of
from seqvae.errors import TokenizerError
from seqvae.evaluation import style_effect
from seqvae.events.tokenizer import EventGrammar
from seqvae.modality import MODALITIES, Modality, register
from seqvae.nn import decoder, encoder
from seqvae.nn import loss as objective
from seqvae.nn import posterior as latent
from seqvae.nn.kernels import Packing
from seqvae.nn.model import SequenceVAE
from seqvae.protocols import EOS, Ints, NoPositionFields
from seqvae.studio.models import Models
from seqvae.studio.server import application
from seqvae.text.lines import title
from seqvae.train import loop as train

RECIPE = Recipe(
    name="toy",
    tokenizer=TokenizerConfig(kind="text", vocab_size=320, max_tokens=24),
    model=ModelConfig(chunks=1, latent=8, width=32, hidden=32, previous=True),
    objective=ObjectiveConfig(beta=0.05, anneal_steps=20, word_dropout=0.3),
    train=TrainConfig(
        steps=60, batch_tokens=1024, learning_rate=1e-2, warmup_steps=5, evaluate_every=20, save_every=60,
        precision="fp32",
    ),
)  # fmt: skip


def validations(run: Path) -> list[dict[str, Any]]:
    """The validation records of a run."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "valid"]


# --- a tokenizer ------------------------------------------------------------------------------------------------------


class DnaTokenizer(NoPositionFields):
    """Strands of DNA, one per line, with one token per base, in segments of `max_tokens`."""

    kind = "dna"
    overlap = 0
    bases = "ACGT"

    def __init__(self, max_tokens: int = 16) -> None:
        self.max_tokens = max_tokens
        self.vocab_size = 5 + len(self.bases)  # five special ones, as EventGrammar has them
        self.binding_depth: Ints = np.zeros(self.vocab_size, np.int32)

    def encode(self, piece: Any) -> list[Ints]:
        """Token ids of every segment, each ending in EOS."""
        if unknown := set(piece) - set(self.bases):
            raise TokenizerError(f"'{unknown.pop()}' is no base; write A, C, G and T")
        ids = [5 + self.bases.index(base) for base in piece]
        room = self.max_tokens - 1
        return [np.array([*ids[at : at + room], EOS], np.int32) for at in range(0, max(1, len(ids)), room)]

    def decode_text(self, chunks: Sequence[Ints]) -> str:
        """The strand that segments spell."""
        return "".join(self.token_text(token) for chunk in chunks for token in chunk.tolist() if token >= 5)

    def token_text(self, token: int) -> str:
        return self.bases[token - 5] if token >= 5 else f"<{token}>"

    def grammar(self) -> EventGrammar:
        """Any base after any other, until the end."""
        return EventGrammar(self.vocab_size)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps({"kind": self.kind, "max_tokens": self.max_tokens}))

    @classmethod
    def make(cls, config: TokenizerConfig, pieces: Callable[[], Iterable[Any]]) -> DnaTokenizer:
        return cls(config.max_tokens)

    @classmethod
    def load(cls, folder: Path, **settings: Any) -> DnaTokenizer:
        return cls(**settings)


@pytest.fixture(scope="module")
def dna() -> Iterator[Modality]:
    """The registry entry of the new modality; strands are lines, with the defaults of lines."""
    entry = Modality(
        kind="dna",
        tokenizer=f"{__name__}:DnaTokenizer",
        adapter="seqvae.text.adapter:LineAdapter",
        sources="seqvae.text.lines:sources",
        commands="seqvae.cli.text_io",
        content="sentences",
        vocabulary="fixed",
        chunk="segment",
    )
    register(entry)
    yield entry
    del MODALITIES["dna"]


def strand(number: int) -> str:
    """Two codons, each repeated, so that a model has to remember few letters."""
    draw = np.random.default_rng(number)
    one, two = ("".join(draw.choice(list("ACGT"), 3)) for _ in range(2))
    return 2 * one + 2 * two


@pytest.fixture(scope="module")
def strands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dna") / "strands.txt"
    path.write_text("".join(f"{strand(i)}\n" for i in range(400)))
    return path


@pytest.fixture(scope="module")
def best(dna: Modality, strands: Path) -> Path:
    """A model of strands, trained for some seconds."""
    recipe = replace(RECIPE, tokenizer=replace(RECIPE.tokenizer, kind=dna.kind, max_tokens=16))
    recipe = replace(recipe, train=replace(recipe.train, steps=150, evaluate_every=50, save_every=150))
    return train.train_from(recipe, [strands], strands.with_name("run"), report=lambda _: None)[0]


def test_a_new_modality(best: Path) -> None:
    tokenizer = DnaTokenizer()
    assert tokenizer.decode_text(tokenizer.encode(strand(3) * 5)) == strand(3) * 5
    first, *_, last = validations(best.parent)
    assert last["loss"] < first["loss"]
    model = codec.load(best)
    assert isinstance(model.tokenizer, DnaTokenizer)
    held_out = [text for text in map(strand, range(400)) if split_of(title(text)) != "train"][:20]
    again = [model.reconstruct(text) for text in held_out]
    assert all(set(text) <= set("ACGT") for text in again)
    right = [a == b for x, y in zip(held_out, again, strict=True) for a, b in zip(x, y, strict=False)]
    assert np.mean(right) > 0.4, "by chance a quarter"
    assert done("reconstruct", held_out[0], "-m", best) == again[:1]


def test_a_fixed_vocabulary_is_not_copied_from_the_initial_model(best: Path, strands: Path) -> None:
    settings = ["train.steps=2", "train.evaluate_every=2", "train.save_every=2", "tokenizer.max_tokens=12"]
    recipe = json.loads((best / "config.json").read_text())["recipe"]
    toml = strands.with_name("dna.toml")
    toml.write_text(
        f'name = "dna"\n[tokenizer]\nkind = "dna"\n[model]\nchunks = 1\nlatent = {recipe["model"]["latent"]}\n'
        "width = 32\nhidden = 32\nprevious = true\n"
    )
    changes = [f"--set={one}" for one in settings]
    out = strands.with_name("started")
    [made] = done("train", toml, "--data", strands, "--out", out, "--start", best, *changes)
    assert codec.load(Path(made)).tokenizer.max_tokens == 12


def test_a_new_modality_is_evaluated_by_its_content(best: Path, strands: Path) -> None:
    options = ("--samples", 2, "--iw-lines", 2, "--json")
    [line] = done("evaluate", "-m", best, "--data", f"@{strands}", *options)
    assert json.loads(line)["protocol"]["lines"] == 400
    assert "is not a model of music" in error_line(
        seqvae("evaluate", "-m", best, "--data", strands, "--arrangement"), 2
    )


def test_tokens_of_a_new_modality_are_shown_with_their_chunk_numbers(best: Path, strands: Path) -> None:
    detector = strands.with_name("detector")
    done("detect", "fit", f"@{strands}", "-m", best, "-o", detector, "--samples", 2)
    result = seqvae("detect", "score", 2 * strand(3), "--detector", detector)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.findall(r"segment \d+:", result.stdout) == ["segment 1:", "segment 2:"]


def test_the_effect_of_a_style_of_a_new_modality_is_measured(best: Path) -> None:
    model = codec.load(best)
    pieces = {letter: [letter * 2 + strand(i) for i in range(200)] for letter in "AC"}
    model.styles = {name: model.fit_style(lines) for name, lines in pieces.items()}
    effects = style_effect.measure(model, pieces, songs=2)
    assert {name: list(found) for name, found in effects.items()} == {"A": ["C"], "C": ["A"]}
    assert list(effects["A"]["C"].kept) == ["bleu"]


def test_the_studio_has_pages_for_a_new_modality(best: Path) -> None:
    name = str(best)
    with TestClient(application(Models([name])), HOME) as client:
        [facts] = [one for one in client.get("/api/models").json() if one["name"] == name]
        assert (facts["kind"], facts["content"]) == ("dna", "sentences")
        steps = result(client, "/api/text/steps", {"model": name, "a": strand(1), "b": strand(2), "steps": 3})
        assert all(set(step["text"]) <= set("ACGT") for step in steps)
        found = result(client, "/api/map/decode", {"model": name, "x": 0, "y": 0})
        assert (found["roll"], set(found["text"]) - set("ACGT")) == (None, set())
        examples = result(client, "/api/anomalies/examples", {"model": name})
        assert len(examples) == 5
        blend = {"model": name, "piece": "0" * 32, "target": "all"}
        assert "is for dna; choose one for midi" in refusal(client.post("/api/music/blend", json=blend), 400)


# --- a backbone -------------------------------------------------------------------------------------------------------


class ConvolutionReader(nn.Module):
    """Encodes a chunk by two convolutions: every token sees four neighbours on each side."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(config.width, config.width, 5, padding=2) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x (N, T, W)`, `mask (N, T)` to `(N, T, W)`; padding must not change the result."""
        for layer in self.layers:
            mixed: Tensor = layer((x * mask.unsqueeze(-1)).transpose(1, 2))
            x = x + mixed.transpose(1, 2).relu()
        return x


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    (tmp_path / "all.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    return tmp_path / "all.txt"


def test_a_backbone(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "RecurrentEncoder", ConvolutionReader)
    recipe = replace(RECIPE, model=replace(RECIPE.model, encoder="recurrent"))
    best, _ = train.train_from(recipe, [lines], tmp_path / "run", report=lambda _: None)
    first, *_, last = validations(tmp_path / "run")
    assert last["loss"] < 0.8 * first["loss"]
    model = codec.load(best).model
    assert isinstance(model, SequenceVAE)
    assert isinstance(model.encoder.token_encoder, ConvolutionReader)
    # an invariant of every backbone: padding does not change the result
    tokens = torch.tensor([[[9, 8, 7, EOS]]])
    padded = torch.cat([tokens, torch.zeros_like(tokens)], -1)
    short, long = (model.encode(x, torch.zeros(*x.shape, 0, dtype=torch.long)).mean for x in (tokens, padded))
    assert torch.allclose(short, long, atol=1e-5)


class GatedWriter(nn.Module):
    """Decodes a chunk by gated units (Cho et al. 2014) with a first state computed from the code."""

    batch_axis = 1  # of the state (1, N, H)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.first = nn.Linear(config.width, config.hidden)
        self.enter = nn.Linear(2 * config.width, config.hidden)
        self.units = nn.GRU(config.hidden, config.hidden, batch_first=True)
        self.leave = nn.Linear(config.hidden, config.width)

    def start(self, code: Tensor) -> list[Tensor]:
        """The state before the first token of rows `code (N, W)`."""
        return [self.first(code).tanh()[None]]

    def forward(
        self, tokens: Tensor, side: decoder.HeadInput, code: Tensor, cache: list[Tensor], packing: Packing
    ) -> tuple[Tensor, list[Tensor]]:
        """Embedded `tokens (M, W)` at `packing` to `(M, W)`, and the state after the last step."""
        out, state = self.units(packing.unpack(side.enter(tokens, self.enter)), cache[0])
        return self.leave(packing.pack(out)), [state]


def test_a_decoder_backbone(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "RecurrentHead", GatedWriter)
    best, _ = train.train_from(RECIPE, [lines], tmp_path / "run", report=lambda _: None)
    first, *_, last = validations(tmp_path / "run")
    assert last["loss"] < 0.8 * first["loss"]
    model = codec.load(best).model
    assert isinstance(model, SequenceVAE)
    assert isinstance(model.decoder.autoregressive_head, GatedWriter)
    # the invariant: single steps, with rows left out on the way, equal one pass over many
    code = model.decoder.codes(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))[:, 0]
    inputs, fields = torch.tensor([[1, 9, 8, 7], [1, 5, 6, 7]]), torch.zeros(2, 4, 0, dtype=torch.long)
    at_once = model.decoder(code, inputs, fields, model.decoder.start(code))[0].logits().view(2, 4, -1)
    rows, cache = torch.tensor([0, 1]), model.decoder.start(code)
    for t in range(4):
        if t == 2:
            rows, cache = rows[1:], model.decoder.select(cache, torch.tensor([1]))
        outputs, cache = model.decoder.step(code[rows], inputs[rows, t : t + 1], fields[rows, t : t + 1], cache)
        assert torch.allclose(outputs.logits(), at_once[rows, t], atol=1e-4)


def test_the_page_names_existing_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    named = re.findall(r"`(\w+(?:\.\w+)+)(?:\(([\w, ]+)\))?`", page)
    checked = 0
    for name, arguments in named:
        if name.endswith((".py", ".toml")):
            continue
        found: Any = resolve_name(f"seqvae.{name}")
        if arguments:
            assert [one for one in inspect.signature(found).parameters if one != "self"] == arguments.split(", "), name
            checked += 1
    writers = re.findall(r"`(start|forward)\(([\w, ]+)\)`", page)
    assert [method for method, _ in writers] == ["start", "forward"]
    for method, arguments in writers:
        for writer in (decoder.RecurrentHead, decoder.TransformerHead, GatedWriter):
            assert list(inspect.signature(getattr(writer, method)).parameters)[1:] == arguments.split(", ")
    assert checked == 3


# --- an objective -----------------------------------------------------------------------------------------------------


def steep_kl(kl: Tensor, config: ObjectiveConfig) -> Tensor:
    """K + 10 (K - 2)^2 above two nats a segment: a wall, where `target_kl` is a slope on both sides."""
    total = latent.floored_kl(kl, config.free_bits)
    return total + 10.0 * (total - 2.0).clamp(min=0).square()


def test_an_objective(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bits(name: str) -> float:
        train.train_from(RECIPE, [lines], tmp_path / name, report=lambda _: None)
        return float(validations(tmp_path / name)[-1]["kl_bits"])

    free = bits("free")
    charged: Callable[[Tensor, ObjectiveConfig], Tensor] = steep_kl
    monkeypatch.setattr(objective, "charged_kl", charged)
    held = bits("held")
    assert held < 0.7 * free
    assert held < 6
