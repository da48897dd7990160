"""Every setting of seqvae: frozen dataclasses, a docstring under each field, read strictly from TOML and JSON.

Knows: names, types, defaults and ranges, and how a file of either is read that may come from a stranger. Refuses to
know: what the settings do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from seqvae.errors import ConfigError

T = TypeVar("T")

# Numbers are never negative; these are never 0 either, and the others never above 1.
COUNTS = {
    "max_steps", "chunks", "latent", "width", "hidden", "layers", "heads", "vocab_size", "max_tokens",
    "steps", "batch_tokens", "accumulate", "max_windows", "evaluate_every", "validation_segments", "save_every",
}  # fmt: skip
MOST = 64 << 20  # bytes of a file of settings; the longest of ours, a vocabulary of events, has some thousands
GONE = {"steps_per_beat": 12}  # settings of earlier versions, with the one value that they still may have
SHARES = {"dropout", "word_dropout", "denoise", "fade", "mix", "final_rate"}


@dataclass(frozen=True)
class TokenizerConfig:
    """How pieces become tokens."""

    kind: str = "midi"
    """Kind of sequence: midi, text, events, or another that `modality.register` has added."""
    max_steps: int = 48
    """Music: the longest chunk in steps, of which a beat has 12: whole beats, from 48 to 384. Longer bars are cut on
    beats."""
    common_key: bool = False
    """Music: whether every piece is moved to C major or A minor to be encoded, and back when it is decoded, so that a
    style is told in degrees of the scale and fits every key."""
    algorithm: Literal["unigram", "bpe"] = "bpe"
    """Text: how SentencePiece learns its pieces (Kudo 2018; Sennrich et al. 2016)."""
    vocab_size: int = 4000
    """Text and events: tokens in the vocabulary at most; few lines make fewer."""
    max_tokens: int = 128
    """Text and events: tokens of a segment at most; a longer line is cut at spaces, a longer session into windows."""
    overlap: int = 0
    """Events: how many a window repeats of the one before it, to be read and not to be counted again."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the networks."""

    chunks: int = 2
    """Chunks (bars) that one latent vector covers."""
    latent: int = 256
    """Dimensions of the latent vector."""
    width: int = 512
    """Width of token embeddings, keys and codes."""
    hidden: int = 256
    """Width of recurrent and attention layers; of the feed-forward part of `pooled` and `memory`."""
    encoder: Literal["recurrent", "transformer", "set", "pooled"] = "set"
    """What reads a chunk: a bidirectional LSTM, a transformer, a sum over tokens bound to their cues (Zaheer et al.
    2017), or a transformer with attention pooling, for tokens without cues."""
    decoder: Literal["recurrent", "transformer", "memory"] = "recurrent"
    """What writes a chunk; `memory` is a transformer that asks z at every layer, for tokens without cues."""
    previous: bool = False
    """Bind each token to the one before it, so that the latent vector can be asked what follows a word: for kinds whose
    tokens have no cues, such as sentences and logs."""
    layers: int = 1
    """Recurrent or transformer layers in each of the two."""
    heads: int = 8
    """Attention heads of the transformer."""
    dropout: float = 0.0
    """Share of activations dropped, inside the transformer layers or around the recurrence."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss and what keeps the posterior from collapsing."""

    autoencoder: bool = False
    """True: z is the posterior mean and the KL is not charged, the plain autoencoder."""
    beta: float = 1.0
    """Final weight of the KL (Higgins et al. 2017)."""
    schedule: Literal["constant", "linear", "logistic", "cyclical"] = "linear"
    """How beta rises: at once, in a line, a logistic curve (Bowman et al. 2016), or cycles (Fu et al. 2019)."""
    anneal_steps: int = 2000
    """Steps until beta is reached; for `cyclical`, the length of one cycle, of which the first half rises."""
    free_bits: float = 0.0
    """Nats a dimension that the KL does not charge for, on the average of a batch (Kingma et al. 2016)."""
    free_bits_total: float = 0.0
    """Nats a segment that the KL as a whole does not charge for, whichever dimensions hold them."""
    target_kl: float = 0.0
    """Nats a segment that the KL is held at, by charging its distance from there (Burgess et al. 2018); 0 for none."""
    pretrain_steps: int = 0
    """Steps as a plain autoencoder, after which the decoder starts afresh and the schedule begins: the encoder has
    something to say before the decoder has learned to do without (Li et al. 2019)."""
    aggressive: int = 0
    """Encoder updates at most before each update of all, as long as the mutual information of x and z still rises from
    one validation to the next: the posterior no longer lags behind (He et al. 2019)."""
    word_dropout: float = 0.0
    """Share of the decoder's input tokens that are masked, so that it must ask z (Bowman et al. 2016)."""
    denoise: float = 0.0
    """Share of the encoder's input tokens that are spoilt, so that near texts lie near each other (Shen et al.
    2020)."""
    denoise_by: Literal["mask", "drop"] = "mask"
    """How: each masked in its place, or left out, which moves what follows. Tokens with cues can only be masked."""
    fade: float = 0.0
    """What the encoder reads of one instrument in one bar (in general: under one value of the first cue field) is
    weakened by a random share up to this, so that the decoder learns to hear what is faint: half of a style's mean then
    sounds, where a code of full strengths alone would be a switch."""
    refine: int = 0
    """Steps by which a posterior mean is improved for its own piece when that is to be decoded again: the encoder's
    answer is where the search begins (semi-amortized inference, Kim et al. 2018). Training and styles do without."""
    refine_most: int = 0
    """Steps at most for those that do not come back token by token yet: a sentence with one wrong word is another."""
    refine_beta: float = 0.1
    """Weight of the KL in those steps. The shorter a vector that still says the piece, the more a difference of styles
    moves it; too short, and any vector does."""
    bag: float = 0.0
    """Weight of the bag loss: each token told from the code and its cue alone, no history (after Zhao et al. 2017)."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 20000
    """Optimizer steps; where `minutes` are given, those that warm-up, annealing and validations are planned by."""
    minutes: float = 0.0
    """Minutes of training, instead of `steps`; 0 for none. A run that has used a third of them has the learning rate
    and the beta of a third of the steps."""
    batch_tokens: int = 4096
    """Tokens in a batch, padding included: of one step, over all processes."""
    accumulate: int = 1
    """Passes that each process computes its share of a batch in, one after the other, to need less memory at a time."""
    shard: bool = False
    """Of several processes, each keeps its shard of weights, gradients and optimizer (FSDP), and not all of them."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises from 0."""
    final_rate: float = 0.05
    """Learning rate at the last step as a share of the peak; a cosine leads there."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices; vectors are not decayed."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    transpose: int = 0
    """Music: transpose each training segment by a random number of semitones up to this many either way."""
    mix: float = 0.0
    """Music: share of the training batches whose segments get tracks of other segments besides their own, so that the
    latent space learns to add: what is heard together need never have been together in one song."""
    max_windows: int = 48
    """Segments an epoch takes of one piece, so that long pieces do not drown short ones."""
    evaluate_every: int = 1000
    """Steps between validations."""
    validation_segments: int = 1024
    """Segments of the validation split that are used each time."""
    save_every: int = 500
    """Steps between saved training states."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 autocast or not; `auto` takes bf16 where the processor multiplies it in hardware."""
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = 0
    """Seed of weights, data order and noise."""


@dataclass(frozen=True)
class Recipe:
    """Everything needed to train one checkpoint again."""

    name: str = "music"
    """Name of the checkpoint."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """See TokenizerConfig."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """See ModelConfig."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """See ObjectiveConfig."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """See TrainConfig."""


def present(values: dict[str, Any]) -> dict[str, Any]:
    """Settings without those of earlier versions, where they have the one value that is left."""
    return {name: value for name, value in values.items() if name not in GONE or value != GONE[name]}


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Build a settings dataclass; an unknown name or a value of the wrong type is a ConfigError that names it."""
    hints = typing.get_type_hints(cls)
    values = present(values)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where}: unknown setting '{unknown[0]}'; choose from {', '.join(hints)}")
    return cls(**{name: _checked(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _checked(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or a ConfigError."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table of settings, found {value!r}")
        return from_dict(hint, value, where)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if isinstance(hint, types.UnionType):
        return None if value is None else _checked(typing.get_args(hint)[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.maxsize else math.inf  # some whole numbers are too large for one
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    if hint in (int, float):
        name = where.rpartition(".")[2]
        low, high = (1 if name in COUNTS else 0), (1 if name in SHARES else sys.maxsize)
        if not low <= value <= high:  # true of NaN too
            raise ConfigError(f"{where}: {value!r} is out of range; choose a number from {low} to {high}")
    return value


def read(path: Path) -> Any:
    """What a TOML (by its suffix) or JSON file holds.

    Raises OSError for a file that cannot be read, and ValueError for one that is no plain file (a pipe or a device
    would never end), is larger than MOST, or is no TOML or JSON, or so deep that nothing of ours has written it.
    """
    if not path.is_file() and path.exists():
        raise ValueError("no plain file")
    with path.open("rb") as file:
        content = file.read(MOST + 1)
    if len(content) > MOST:
        raise ValueError(f"more than {MOST >> 20} MB")
    try:
        text = content.decode()
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def to_dict(settings: Any) -> dict[str, Any]:
    """The plain dictionary that `from_dict` reads."""
    return dataclasses.asdict(settings)


def load_recipe(source: str | Path, changes: typing.Sequence[str] = ()) -> Recipe:
    """A recipe by name (from seqvae/recipes) or by path (.toml or .json), with `section.name=value` changes on top.

    Raises ConfigError with the name of what is wrong and the choices there are.
    """
    path = Path(source)
    if path.suffix not in (".toml", ".json"):
        path = Path(__file__).parent / "recipes" / f"{source}.toml"
    try:
        values = read(path)
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in (Path(__file__).parent / "recipes").glob("*.toml")))
        raise ConfigError(f"{source}: no such recipe; name a .toml file or one of {known}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); mend the line it names") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected tables of settings, found {values!r}")
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write section.name=value, for example model.width=384")
        table = values
        *sections, leaf = name.split(".")
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {change}: '{section}' is no section of a recipe")
        try:
            table[leaf] = json.loads(value)
        except ValueError:
            table[leaf] = value
    return from_dict(Recipe, values, str(source))
