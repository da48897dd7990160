"""Export of a model as three ONNX graphs, for programs without torch, and a comparison with torch.

Scope: the parts of a model for encoding and for one step of decoding, their dynamic axes in ONNX, the exported folder.
Out of scope: the meaning of tokens, sampling (docs/export.md shows it in numpy).

`encoder` maps tokens `(B, C, T)` and their position fields `(B, C, T, K)` to mean and logvar `(B, D)`. `start` maps z
`(B, D)` to the codes of its chunks `(N, W)`, N = B C, and their first cache. `step` maps code, last tokens `(N,)`,
position fields of the next token `(N, K)` and cache to logits `(N, V)` and the next cache. Rows are the first axis of
every tensor between graphs, so that ended rows can be removed in the same way for every decoder. Kinds without position
fields have no such inputs.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqvae.checkpoint.folder import Checkpoint, find, load, write_folder
from seqvae.errors import CheckpointError, SeqVAEError
from seqvae.nn.binding import shifted
from seqvae.nn.decoder import Decoder, RecurrentHead
from seqvae.nn.memory import MemoryDecoder
from seqvae.nn.model import SequenceVAE
from seqvae.nn.sampling import Sampling, decode
from seqvae.protocols import EOS, PAD, Tokenizer

Ints = NDArray[np.int32]
OPSET = 17  # the first with a layer normalisation operator; supported by onnxruntime since 1.12
MOST = 1e-3  # maximum difference from torch: rounding gives about 1e-5, a mistake more than 1
SEGMENTS = 64  # segments in the comparison
LONGEST = 128  # maximum tokens of a chunk in the comparison
BESIDES = ("config.json", "README.md")  # copied from the checkpoint: settings, and licences of the training data


@dataclass(frozen=True)
class Differences:
    """The largest difference between torch and onnxruntime over some segments."""

    encoder: float
    """Maximum difference of means and log-variances."""
    decoder: float
    """Maximum difference of logits, token by token, each step from the cache of the step before."""

    @property
    def small(self) -> bool:
        """True if both are at most MOST; False for NaN."""
        return self.encoder <= MOST and self.decoder <= MOST


def export_model(
    name: str | Path, out: Path, segments: int = SEGMENTS, seed: int = 0
) -> tuple[Checkpoint, Differences]:
    """Write a checkpoint's graphs, tokenizer and settings to the folder `out`; returns their differences from torch.

    The graphs are compared on random `segments` before the folder is moved to `out`. Raises CheckpointError if they
    differ from torch, and SeqVAEError if `out` has other content or a package is missing.
    """
    _need("onnx", "onnxruntime")
    source = find(name)
    kept = load(source)
    if not isinstance(kept.model, SequenceVAE):
        raise SeqVAEError(f"{kept.recipe.name}: a song model has no ONNX graphs; export another model")
    parts = _parts(kept.model)
    ours = {*BESIDES, "tokenizer", *(f"{graph}.onnx" for graph in parts)}
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - ours):
        raise SeqVAEError(f"{out}: exists and is not an exported model's folder; choose another -o")
    found = Differences(0.0, 0.0)

    def fill(folder: Path) -> None:
        nonlocal found
        for graph, part in parts.items():
            _write(part, folder / f"{graph}.onnx")
        shutil.copytree(source / "tokenizer", folder / "tokenizer")
        for file in BESIDES:
            if (source / file).exists():
                shutil.copyfile(source / file, folder / file)
        found = compare(kept, folder, segments, seed)
        if not found.small:
            raise CheckpointError(
                f"{name}: the graphs for {out} differ from torch by {found.encoder:.1g} (encoder) and "
                f"{found.decoder:.1g} (decoder), more than {MOST:g}, and were not saved; "
                "install other versions of torch and onnxruntime"
            )

    write_folder(out, fill)
    return kept, found


def _need(*packages: str) -> None:
    """Import optional packages; raises SeqVAEError with the command to install them."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise SeqVAEError(
                f"{package} is not installed, and exporting needs it; `pip install 'seqvae[export]'`"
            ) from error


# --- graphs -----------------------------------------------------------------------------------------------------------


class _Encode(nn.Module):
    def __init__(self, model: SequenceVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(tokens.long(), fields.long())
        return posterior.mean, posterior.logvar


class _Start(nn.Module):
    """Codes and first caches, with rows as the first axis."""

    def __init__(self, model: SequenceVAE) -> None:
        super().__init__()
        self.decoder, self.config = model.decoder, model.config

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        config, decoder = self.config, self.decoder
        code = decoder.codes(z).flatten(0, 1)
        if not _grows(decoder):
            return code, *(part.transpose(0, decoder.batch_axis) for part in decoder.start(code))
        width = config.hidden if isinstance(decoder, Decoder) else config.width
        nothing = code.new_zeros(code.shape[0], config.heads, 0, width // config.heads)
        return code, *(nothing.clone() for _ in range(2 * config.layers))


class _Step(nn.Module):
    def __init__(self, model: SequenceVAE) -> None:
        super().__init__()
        self.decoder, self.axis = model.decoder, model.decoder.batch_axis
        # For each outer depth the column of every token, and for tokens of other depths the column after the last:
        # gathered rather than added in place, which the exporter supports only for fixed sizes.
        self.columns: list[Tensor] = []
        for _, tokens in self.decoder.levels:
            column = torch.full((model.vocab_size,), len(tokens))
            column[tokens] = torch.arange(len(tokens))
            self.columns.append(column)

    def forward(self, code: Tensor, tokens: Tensor, fields: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        before = [part.transpose(0, self.axis) for part in cache]
        output, _, after = self.decoder(code, tokens.long()[:, None], fields.long()[:, None], before)
        logits = output.binding.logits(output.x)
        for column, outer in zip(self.columns, output.outer, strict=True):
            logits = logits + torch.cat([outer.part, torch.zeros_like(outer.part[:, :1])], -1)[:, column]
        return logits, *(part.transpose(0, self.axis) for part in after)


def _grows(decoder: Decoder | MemoryDecoder) -> bool:
    """True if a cache holds keys and values, which grow with each step."""
    return not (isinstance(decoder, Decoder) and isinstance(decoder.autoregressive_head, RecurrentHead))


@dataclass(frozen=True)
class _Part:
    """The inputs of the exporter for one graph."""

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: dict[str, dict[int, str]]
    """Names of inputs in order, with the dynamic axes of each."""
    outputs: dict[str, dict[int, str]]


def _parts(model: SequenceVAE) -> dict[str, _Part]:
    """The graphs of a model, by name."""
    config, fields = model.config, len(model.field_sizes)
    # three segments of five tokens: a size of one would be exported as constant
    tokens = torch.full((3, config.chunks, 5), EOS, dtype=torch.int32)
    tokens[1:, :, 3:] = PAD
    position_fields = torch.zeros(*tokens.shape, fields, dtype=torch.int32)
    z = torch.zeros(3, config.latent)
    with torch.no_grad():
        code, *cache = _Start(model)(z)
        first = (code, tokens[..., 0].flatten(), position_fields[..., 0, :].flatten(0, 1))
        step = _Step(model)
        _, *cache = step(*first, *cache)  # a cache that is not empty
    rows, segments, grows = {0: "rows"}, {0: "segments"}, _grows(model.decoder)
    places = {0: "segments", 2: "places"}
    before, after = (
        {f"{name}_{i}": {0: "rows", 2: steps} if grows else rows for i in range(len(cache))}
        for name, steps in (("cache", "steps"), ("next", "more_steps"))
    )
    return {
        "encoder": _Part(
            _Encode(model),
            (tokens, position_fields),
            {"tokens": places, "fields": places},
            {"mean": segments, "logvar": segments},
        ),
        "start": _Part(_Start(model), (z,), {"z": segments}, {"code": rows, **before}),
        "step": _Part(
            step, (*first, *cache), {"code": rows, "tokens": rows, "fields": rows, **before}, {"logits": rows, **after}
        ),
    }


def _write(part: _Part, path: Path) -> None:
    """Write one graph.

    With the tracing exporter, not the one based on torch.export: in torch 2.13 that rejects the packed sequences of the
    recurrent encoder, takes ten times as long and needs another package. `compare` checks what the tracer warns of.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            part.module.eval(),  # the exporter restores the mode of all submodules to this
            part.example,
            path,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_axes={**part.inputs, **part.outputs},
            opset_version=OPSET,
            dynamo=False,
        )


# --- check ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def compare(kept: Checkpoint, folder: Path, segments: int, seed: int = 0) -> Differences:
    """Differences between graphs in `folder` and torch on random segments, in batches of 1 to 16, of all lengths."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # in such small steps more threads only wait for each other
    encoder, start, step = (
        onnxruntime.InferenceSession(str(folder / f"{part}.onnx"), options, providers=["CPUExecutionProvider"])
        for part in ("encoder", "start", "step")
    )
    rng = np.random.default_rng(seed)
    furthest = {"encoder": 0.0, "decoder": 0.0}

    def note(part: str, wanted: NDArray[np.float32], got: NDArray[np.float32]) -> None:
        apart = np.abs(wanted - got).max(initial=0.0)
        furthest[part] = float(np.maximum(furthest[part], apart))  # np.maximum keeps NaN

    model = kept.model
    assert isinstance(model, SequenceVAE)
    while segments > 0:
        rows = min(segments, int(rng.integers(1, 17)))
        segments -= rows
        tokens = random_tokens(kept.tokenizer, rows, model.config.chunks, rng)
        fields = kept.tokenizer.position_fields(tokens)
        long_tokens, long_fields = torch.from_numpy(tokens).long(), torch.from_numpy(fields).long()
        posterior = model.encode(long_tokens, long_fields)
        mean, logvar = _run(encoder, tokens=tokens, fields=fields)
        note("encoder", posterior.mean.numpy(), mean)
        note("encoder", posterior.logvar.numpy(), logvar)
        z, inputs = posterior.sample(torch.Generator().manual_seed(segments)), shifted(long_tokens)
        wanted = model.decode_logits(z, inputs, long_fields)[0].flatten(0, 1).numpy()
        code, *cache = _run(start, z=z.numpy())
        last, following = (part.flatten(0, 1).int().numpy() for part in (inputs, long_fields))
        counted = (tokens != PAD).reshape(len(last), -1)
        for t in range(tokens.shape[-1]):
            before = {f"cache_{i}": part for i, part in enumerate(cache)}
            logits, *cache = _run(step, code=code, tokens=last[:, t], fields=following[:, t], **before)
            note("decoder", wanted[counted[:, t], t], logits[counted[:, t]])
    return Differences(**furthest)


def _run(session: Any, **feed: NDArray[Any]) -> list[NDArray[np.float32]]:
    """A graph's outputs; unused inputs, such as the position fields of a kind without them, are omitted."""
    outputs: list[NDArray[np.float32]] = session.run(
        None, {given.name: feed[given.name] for given in session.get_inputs()}
    )
    return outputs


def random_tokens(tokenizer: Tokenizer, segments: int, chunks: int, rng: np.random.Generator) -> Ints:
    """Random segments `(B, C, T)` of tokens that the grammar allows, of random lengths, padded with PAD."""
    longest = int(rng.integers(1, min(tokenizer.max_tokens, LONGEST) + 1))

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        del fields, keep
        logits = torch.from_numpy(rng.random((len(tokens), tokenizer.vocab_size)))
        logits[torch.from_numpy(rng.random(len(tokens)) < 1 / longest), EOS] = 1.0
        return logits

    grammar = tokenizer.grammar()
    start = grammar.start(segments * chunks)
    rows: list[Any] = decode(step, grammar, start, Sampling(max_tokens=longest), torch.device("cpu"))
    tokens = np.full((len(rows), max(map(len, rows))), PAD, np.int32)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = row
    return tokens.reshape(segments, chunks, -1)
