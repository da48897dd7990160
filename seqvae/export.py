"""A model as three ONNX graphs, for programs without torch, and the check that they say what torch says.

Knows: which parts of a model an encoder and one step of decoding need, how ONNX is told that their sizes vary, and the
folder that is written. Refuses to know: what tokens mean, how a token is chosen (docs/export.md shows that in numpy).

`encoder` takes tokens and cues `(B, C, T)` and `(B, C, T, K)` to mean and logvar `(B, D)`; `start` takes z `(B, D)` to
the codes of its chunks `(N, W)`, N = B C, and their first cache; `step` takes code, last tokens `(N,)`, cues of the
next `(N, K)` and cache to logits `(N, V)` and the next cache. In all that goes from one to the next rows come first, so
that those that have ended are left out alike, whatever the decoder keeps. Of a kind without cues no graph takes any.
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
from seqvae.nn.decoder import Decoder, RecurrentWriter
from seqvae.nn.layers import shifted
from seqvae.nn.memory import MemoryDecoder
from seqvae.nn.model import SequenceVAE
from seqvae.nn.sampling import Sampling, decode
from seqvae.protocols import EOS, PAD, Tokenizer

Ints = NDArray[np.int32]
OPSET = 17  # the first with layer normalisation as one operation; onnxruntime has read it since 1.12
MOST = 1e-3  # by which a graph may differ from torch: rounding makes some 1e-5 of it, and any mistake more than 1
SEGMENTS = 64  # that are checked
LONGEST = 128  # tokens of a chunk that is checked, at most
BESIDES = ("config.json", "README.md")  # of the checkpoint: its shape, and the licences of what it learned from


@dataclass(frozen=True)
class Differences:
    """The largest difference between torch and onnxruntime over some segments."""

    encoder: float
    """Of means and log-variances."""
    decoder: float
    """Of logits, token by token, each step from the cache of the step before."""

    @property
    def small(self) -> bool:
        """Whether both are rounding; not so where one is no number."""
        return self.encoder <= MOST and self.decoder <= MOST


def export_model(
    name: str | Path, out: Path, segments: int = SEGMENTS, seed: int = 0
) -> tuple[Checkpoint, Differences]:
    """Write a checkpoint's graphs, tokenizer and settings to the folder `out`, and say how well they were met.

    They are checked on random `segments` before the folder takes its place. Raises CheckpointError where they differ
    from torch, and SeqVAEError where `out` holds something else or a package is missing.
    """
    _need("onnx", "onnxruntime")
    source = find(name)
    kept = load(source)
    parts = _parts(kept.model)
    ours = {*BESIDES, "tokenizer", *(f"{graph}.onnx" for graph in parts)}
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - ours):
        raise SeqVAEError(f"{out}: is there and is no folder of an exported model alone; choose another -o")
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
                f"{name}: what was written for {out} differs from torch by {found.encoder:.1g} (encoder) and "
                f"{found.decoder:.1g} (decoder), more than {MOST:g}, and was not kept; "
                "install other versions of torch and onnxruntime"
            )

    write_folder(out, fill)
    return kept, found


def _need(*packages: str) -> None:
    """Import what only this module needs, or say how to get it."""
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

    def forward(self, tokens: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(tokens.long(), cues.long())
        return posterior.mean, posterior.logvar


class _Start(nn.Module):
    """Codes and first caches, rows first."""

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
        # For each outer scope the column of every token, and for tokens of other scopes the column after the last:
        # gathered and not added in place, for which the exporter wants sizes that never change.
        self.columns: list[Tensor] = []
        for _, tokens in self.decoder.levels:
            column = torch.full((model.vocab_size,), len(tokens))
            column[tokens] = torch.arange(len(tokens))
            self.columns.append(column)

    def forward(self, code: Tensor, tokens: Tensor, cues: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        before = [part.transpose(0, self.axis) for part in cache]
        told, _, after = self.decoder(code, tokens.long()[:, None], cues.long()[:, None], before)
        logits = told.binding.logits(told.x)
        for column, outer in zip(self.columns, told.outer, strict=True):
            logits = logits + torch.cat([outer.part, torch.zeros_like(outer.part[:, :1])], -1)[:, column]
        return logits, *(part.transpose(0, self.axis) for part in after)


def _grows(decoder: Decoder | MemoryDecoder) -> bool:
    """Whether a cache holds keys and values, of one step more after each step."""
    return not (isinstance(decoder, Decoder) and isinstance(decoder.writer, RecurrentWriter))


@dataclass(frozen=True)
class _Part:
    """What makes a graph."""

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: dict[str, dict[int, str]]
    """Names, in order, and of each the axes whose size is not the model's."""
    outputs: dict[str, dict[int, str]]


def _parts(model: SequenceVAE) -> dict[str, _Part]:
    """The graphs of a model, by name."""
    config, fields = model.config, len(model.cue_sizes)
    # three segments of five tokens: sizes of one would be taken for sizes that are always one
    tokens = torch.full((3, config.chunks, 5), EOS, dtype=torch.int32)
    tokens[1:, :, 3:] = PAD
    cues = torch.zeros(*tokens.shape, fields, dtype=torch.int32)
    z = torch.zeros(3, config.latent)
    with torch.no_grad():
        code, *cache = _Start(model)(z)
        first = (code, tokens[..., 0].flatten(), cues[..., 0, :].flatten(0, 1))
        step = _Step(model)
        _, *cache = step(*first, *cache)  # a cache that holds something
    rows, segments, grows = {0: "rows"}, {0: "segments"}, _grows(model.decoder)
    places = {0: "segments", 2: "places"}
    before, after = (
        {f"{name}_{i}": {0: "rows", 2: steps} if grows else rows for i in range(len(cache))}
        for name, steps in (("cache", "steps"), ("next", "more_steps"))
    )
    return {
        "encoder": _Part(
            _Encode(model), (tokens, cues), {"tokens": places, "cues": places}, {"mean": segments, "logvar": segments}
        ),
        "start": _Part(_Start(model), (z,), {"z": segments}, {"code": rows, **before}),
        "step": _Part(
            step, (*first, *cache), {"code": rows, "tokens": rows, "cues": rows, **before}, {"logits": rows, **after}
        ),
    }


def _write(part: _Part, path: Path) -> None:
    """One graph.

    By the exporter that traces, and not the one over torch.export: of torch 2.13 that refuses the packed sequences of
    the recurrent encoder, takes ten times as long and needs a package more. What it warns of is checked in `compare`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            part.module.eval(),  # it is set back to what it is now, and all that it is made of with it
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
    """How far graphs in `folder` are from torch on random segments, in batches of 1 to 16 and of all lengths."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more than one only wait for each other in steps as small as these
    encoder, start, step = (
        onnxruntime.InferenceSession(str(folder / f"{part}.onnx"), options, providers=["CPUExecutionProvider"])
        for part in ("encoder", "start", "step")
    )
    rng = np.random.default_rng(seed)
    furthest = {"encoder": 0.0, "decoder": 0.0}

    def note(part: str, wanted: NDArray[np.float32], got: NDArray[np.float32]) -> None:
        apart = np.abs(wanted - got).max(initial=0.0)
        furthest[part] = float(np.maximum(furthest[part], apart))  # which keeps what is no number

    while segments > 0:
        rows = min(segments, int(rng.integers(1, 17)))
        segments -= rows
        tokens = random_tokens(kept.tokenizer, rows, kept.model.config.chunks, rng)
        cues = kept.tokenizer.cues(tokens)
        told, asked = torch.from_numpy(tokens).long(), torch.from_numpy(cues).long()
        posterior = kept.model.encode(told, asked)
        mean, logvar = _run(encoder, tokens=tokens, cues=cues)
        note("encoder", posterior.mean.numpy(), mean)
        note("encoder", posterior.logvar.numpy(), logvar)
        z, inputs = posterior.sample(torch.Generator().manual_seed(segments)), shifted(told)
        wanted = kept.model.decode(z, inputs, asked)[0].flatten(0, 1).numpy()
        code, *cache = _run(start, z=z.numpy())
        last, following = (part.flatten(0, 1).int().numpy() for part in (inputs, asked))
        counted = (tokens != PAD).reshape(len(last), -1)
        for t in range(tokens.shape[-1]):
            before = {f"cache_{i}": part for i, part in enumerate(cache)}
            logits, *cache = _run(step, code=code, tokens=last[:, t], cues=following[:, t], **before)
            note("decoder", wanted[counted[:, t], t], logits[counted[:, t]])
    return Differences(**furthest)


def _run(session: Any, **feed: NDArray[Any]) -> list[NDArray[np.float32]]:
    """A graph's outputs; inputs that it does without, as cues of a kind that has none, are left out."""
    outputs: list[NDArray[np.float32]] = session.run(
        None, {given.name: feed[given.name] for given in session.get_inputs()}
    )
    return outputs


def random_tokens(tokenizer: Tokenizer, segments: int, chunks: int, rng: np.random.Generator) -> Ints:
    """Segments `(B, C, T)` of tokens that the grammar allows, drawn evenly, of lengths drawn too, PAD at the end."""
    longest = int(rng.integers(1, min(tokenizer.max_tokens, LONGEST) + 1))

    def step(tokens: Tensor, cues: Tensor, keep: Tensor | None) -> Tensor:
        del cues, keep
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
