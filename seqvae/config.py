"""Settings: frozen dataclasses with a docstring under each field, read strictly from TOML and JSON.

Scope: names, types, defaults and ranges of settings; reading of settings files that may be untrusted. Out of scope: the
effect of settings.
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
from typing import Annotated, Any, Literal, TypeVar

from seqvae.errors import ConfigError

T = TypeVar("T")

MOST = 64 << 20  # bytes of a settings file at most; the largest of ours, a vocabulary of events, has some thousands
RENAMED = {"fade": "track_dropout"}  # settings by their names in earlier versions
RECIPES = {"hdfs": "logs-short", "syscalls": "logs-long"}  # recipes by theirs
GONE = {"steps_per_beat": 12}  # settings of earlier versions, each with the only value still accepted
UNUSED = {"transpose": 0}
"""Settings of training that made no difference and are gone, each with the value that changed nothing. A checkpoint may
have any value, since only its training depended on it; a recipe may not."""
REFINEMENT = {"refine": "steps", "refine_most": "most_steps", "refine_beta": "beta"}
"""Settings that earlier versions had in the section `objective`, by their names in `refine`."""


@dataclass(frozen=True)
class Range:
    """Limits of a number, both included; without one in its type, a setting has those of `Range()`."""

    low: float = 0
    high: float = sys.maxsize


Count = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class TokenizerConfig:
    """From songs, sentences or sessions to tokens."""

    kind: str = "midi"
    """Kind of sequence: midi, text, events, or another that `modality.register` has added."""
    max_steps: Count = 48
    """Music: longest chunk in steps (12 a beat): whole beats, from 48 to 384. Longer bars are split at beats."""
    common_key: bool = False
    """Music: transpose every song to C major or A minor before encoding, and back after decoding, so that a style is
    described in scale degrees and fits every key."""
    algorithm: Literal["unigram", "bpe", "char"] = "bpe"
    """Text: SentencePiece's training algorithm (unigram: Kudo 2018; BPE: Sennrich et al. 2016), or one token for each
    character (char)."""
    vocab_size: Count = 4000
    """Text and events: maximum number of tokens in the vocabulary; a small training set gives fewer."""
    max_tokens: Count = 128
    """Text and events: maximum tokens of a segment; a longer line is cut at spaces, a longer session into windows."""
    overlap: int = 0
    """Events: number of events that a window repeats from the window before it, as context that is not scored again."""


@dataclass(frozen=True)
class SongConfig:
    """Shape of the song model (nn/song_model.py), and how it decodes."""

    steps: Count = 48
    """Steps of the longest bar."""
    beats: Count = 4
    """Beats of the longest bar."""
    song: Count = 96
    """Dimensions of the song vector."""
    bar: Count = 1024
    """Dimensions of a bar vector and of bound tokens."""
    width: Count = 256
    """Width of the transformers."""
    heads: Count = 4
    """Attention heads."""
    queries: Count = 2
    """Attention-pooled vectors of a bar."""
    encoder_layers: Count = 3
    """Layers of the bar encoder."""
    decoder_layers: Count = 4
    """Layers of the decoder."""
    prior_width: Count = 192
    """Width of the prior."""
    prior_layers: Count = 2
    """Layers of the prior."""
    guidance: float = 1.0
    """Strength of harmony and melody in decoding (classifier-free guidance, Ho and Salimans 2022); 1 is the model's own
    distribution."""
    band: bool = True
    """Decode blends and new songs by one band (style/arranger.py); without, from the model alone."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the networks."""

    chunks: Count = 2
    """Chunks (bars) that one latent vector covers."""
    latent: Count = 256
    """Dimensions of the latent vector."""
    width: Count = 512
    """Width of token embeddings, keys and codes."""
    hidden: Count = 256
    """Width of recurrent and attention layers; with `pooled` and `memory`, of their feed-forward layers."""
    encoder: Literal["recurrent", "transformer", "set", "pooled"] = "set"
    """Encoder of a chunk: a bidirectional LSTM, a transformer, a sum over tokens bound to their positions (Zaheer et
    al. 2017), or a transformer with attention pooling (for tokens without position fields)."""
    decoder: Literal["recurrent", "transformer", "memory"] = "recurrent"
    """Decoder of a chunk; `memory` is a transformer that reads z at every layer, for tokens without position fields."""
    previous: bool = False
    """Bind each token to the one before it, so that the successor of a word can be retrieved from the latent vector;
    for tokens without position fields, as in sentences and logs."""
    layers: Count = 1
    """Recurrent or transformer layers, in the encoder and in the decoder."""
    heads: Count = 8
    """Attention heads of the transformers."""
    dropout: Share = 0.0
    """Dropout rate, inside the transformer layers or around the recurrence."""
    without: Share = 0.0
    """Share of training segments that are decoded without z, from one learned vector in its place, so that the decoder
    is a language model too and new sentences can be drawn from it; 0 for no such vector."""
    song: SongConfig | None = None
    """Music: a song model in place of encoder and decoder; a segment is one bar, and its latent vector is the song
    vector followed by the bar's own part."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss, and measures against posterior collapse."""

    autoencoder: bool = False
    """True for a plain autoencoder: z is the posterior mean and the loss has no KL term."""
    beta: float = 1.0
    """Final weight of the KL (Higgins et al. 2017)."""
    schedule: Literal["constant", "linear", "logistic", "cyclical"] = "linear"
    """Schedule of beta: constant, linear, logistic (Bowman et al. 2016) or cyclical (Fu et al. 2019)."""
    anneal_steps: int = 2000
    """Steps until beta is reached; for `cyclical`, the length of a cycle, whose first half rises."""
    free_bits: float = 0.0
    """Free bits: nats per dimension, on the average of a batch, that the KL term ignores (Kingma et al. 2016)."""
    free_bits_total: float = 0.0
    """Nats per segment that the KL term as a whole ignores: free bits of all dimensions as one group (Kingma et al.
    2016)."""
    target_kl: float = 0.0
    """Target of the KL in nats per segment; the loss has the distance from it (Burgess et al. 2018); 0 for none."""
    pretrain_steps: int = 0
    """Steps as a plain autoencoder first. Then the decoder is initialised again and the schedule begins, so that the
    encoder is informative before the decoder learns to do without it (Li et al. 2019)."""
    aggressive: int = 0
    """Maximum encoder updates before each joint update, while the mutual information of x and z still rises from one
    validation to the next, so that the posterior does not lag behind the decoder (He et al. 2019)."""
    word_dropout: Share = 0.0
    """Share of the decoder's input tokens that are masked, so that it must rely on z (Bowman et al. 2016)."""
    denoise: Share = 0.0
    """Share of the encoder's input tokens that are corrupted, so that similar sentences have similar latents (Shen et
    al. 2020)."""
    denoise_by: Literal["mask", "drop"] = "mask"
    """Corruption for `denoise`: mask tokens, or drop them, which shifts the rest. Tokens with position fields can only
    be masked."""
    track_dropout: Share = 0.0
    """Weaken the encoder's input from one instrument in one bar (in general: tokens with one value of the first
    position field) by a random share of at most this, so that the decoder learns to use weak inputs. Otherwise half of
    a style's mean would have no effect: a code with full strengths alone works as a switch."""
    bag: float = 0.0
    """Weight of the bag loss: each token predicted from the code and its position alone, without history (after Zhao et
    al. 2017)."""


@dataclass(frozen=True)
class RefineConfig:
    """Refinement of a posterior mean for its own input by gradient steps, when the input will be decoded again.

    Semi-amortized inference (Kim et al. 2018); the search starts at the encoder's mean. Training and styles use none.
    """

    steps: int = 0
    """Gradient steps, by Adam; 0 for no refinement."""
    most_steps: int = 0
    """Maximum steps for segments that are not yet reconstructed token by token, by L-BFGS after `steps`: a sentence
    with a wrong word is a different sentence."""
    beta: float = 0.1
    """Weight of the KL in those steps. The shorter a vector that still encodes the segment, the more a style vector
    moves it; if it is too short, any vector moves it."""
    bag: float = 0.0
    """Weight of the bag loss in those steps, as `objective.bag` in training."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: Count = 20000
    """Optimizer steps. With `minutes`, only for planning warm-up, annealing and validations."""
    minutes: float = 0.0
    """Minutes of training instead of `steps`; 0 for none. After a third of the minutes, learning rate and beta are
    those of a third of the steps."""
    batch_tokens: Count = 4096
    """Tokens in the batch of one step, padding included, over all processes."""
    accumulate: Count = 1
    """Consecutive passes in which each process computes its share of a batch, to need less memory."""
    shard: bool = False
    """Shard weights, gradients and optimizer state over processes (FSDP) instead of a copy in each."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises from 0."""
    final_rate: Share = 0.05
    """Learning rate at the last step as a share of the peak, reached by a cosine."""
    weight_decay: float = 0.01
    """AdamW's weight decay, for matrices only."""
    clip: float = 1.0
    """Maximum norm of the gradient."""
    mix: Share = 0.0
    """Music: share of training batches whose segments get additional tracks from other segments, so that addition in
    the latent space works for combinations that no single song contains. Text: share of training batches whose lines
    get words outside of the vocabulary, another script or case, so that byte tokens are trained (text/augment.py)."""
    max_windows: Count = 48
    """Maximum segments of one song per epoch, so that long songs do not dominate."""
    evaluate_every: Count = 1000
    """Steps between validations."""
    validation_segments: Count = 1024
    """Segments of the validation split used in each validation."""
    save_every: Count = 500
    """Steps between saved training states."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision: `auto` is bf16 autocast where the processor has instructions for it, else fp32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = 0
    """Seed of weights, data order and noise."""


@dataclass(frozen=True)
class Recipe:
    """All settings for training one checkpoint."""

    name: str = "music"
    """Name of the checkpoint."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """See TokenizerConfig."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """See ModelConfig."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """See ObjectiveConfig."""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """See RefineConfig."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """See TrainConfig."""


def present(values: dict[str, Any]) -> dict[str, Any]:
    """`values` without settings of earlier versions that are gone, unless their value is no longer accepted."""
    kept = {name: value for name, value in values.items() if name not in UNUSED}
    return {name: value for name, value in kept.items() if name not in GONE or value != GONE[name]}


def _refinement(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's `values`, with the settings of refinement moved from `objective` to a section of their own.

    Earlier versions had no weight of the bag loss for refinement alone: it was that of training.
    """
    objective, refine = values.get("objective"), values.get("refine", {})
    if not (isinstance(objective, dict) and isinstance(refine, dict) and REFINEMENT.keys() & objective.keys()):
        return values
    moved = {new: objective[old] for old, new in REFINEMENT.items() if old in objective}
    bag = {"bag": objective["bag"]} if "bag" in objective else {}
    objective = {name: value for name, value in objective.items() if name not in REFINEMENT}
    return {**values, "objective": objective, "refine": {**bag, **refine, **moved}}


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Build a settings dataclass.

    Raises ConfigError with the name and the choices for an unknown name or a value of the wrong type or out of range.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    values = _refinement(values) if cls is Recipe else values
    values = {RENAMED.get(name, name): value for name, value in present(values).items()}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where}: unknown setting '{unknown[0]}'; choose from {', '.join(hints)}")
    return cls(**{name: _checked(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _checked(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, within its range, or a ConfigError."""
    limits = Range()
    if typing.get_origin(hint) is Annotated:
        hint, limits = typing.get_args(hint)
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
        value = float(value) if abs(value) <= sys.maxsize else math.inf  # some integers are too large for a float
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    if hint in (int, float) and not limits.low <= value <= limits.high:  # also rejects NaN
        raise ConfigError(f"{where}: {value!r} is out of range; choose a number from {limits.low} to {limits.high}")
    return value


def read(path: Path) -> Any:
    """The content of a JSON or TOML file (TOML by its suffix).

    Raises OSError for a file that cannot be read. Raises ValueError for a file that is not a regular file (a pipe or a
    device would never end), is larger than MOST, does not parse, or is nested too deeply.
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
    """The dictionary form of settings, for `from_dict`."""
    return dataclasses.asdict(settings)


def load_recipe(source: str | Path, changes: typing.Sequence[str] = ()) -> Recipe:
    """A recipe by name (from seqvae/recipes) or path (.toml or .json), with changes `section.name=value` applied.

    Raises ConfigError with the name of the wrong setting and the choices.
    """
    path = Path(source)
    if path.suffix not in (".toml", ".json"):
        path = Path(__file__).parent / "recipes" / f"{RECIPES.get(str(source), source)}.toml"
    try:
        values = read(path)
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in (Path(__file__).parent / "recipes").glob("*.toml")))
        raise ConfigError(f"{source}: no such recipe; name a .toml file or one of {known}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); correct the line named there") from error
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
                raise ConfigError(f"--set {change}: '{section}' is not a section of a recipe")
        try:
            table[leaf] = json.loads(value)
        except ValueError:
            table[leaf] = value
    for section, table in values.items():
        for name in UNUSED.keys() & table.keys() if isinstance(table, dict) else ():
            if table[name] != UNUSED[name]:
                raise ConfigError(f"{source}.{section}.{name}: made no difference and is gone; leave it out")
    return from_dict(Recipe, values, str(source))
