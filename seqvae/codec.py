"""Codec: a tokenizer and a model together. Pieces to latent vectors, and back; what most users call.

Knows: segments, batches, and how a decoded piece takes its frame from another. Refuses to know: training, figures, the
command line. One `Form` per kind of sequence holds what differs between kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae import checkpoint, interpolate, midi, style
from seqvae.checkpoint import Checkpoint
from seqvae.config import ObjectiveConfig
from seqvae.errors import CheckpointError, StyleError
from seqvae.latent import Posterior
from seqvae.model import PAD, shifted
from seqvae.objective import CLOSED, refine
from seqvae.sampling import EOS, Sampling
from seqvae.style import Style
from seqvae.tokenizer import MidiTokenizer, Tokenizer

Ints = NDArray[np.int32]
BATCH_TOKENS = 16384  # tokens encoded or scored at once: bounds memory, not results
BATCH_CHUNKS = 512  # chunks decoded side by side


class Form(Protocol):
    """What the codec needs to know of one kind of piece."""

    def read(self, source: Any) -> Any:
        """Any accepted source as a piece; raises ReadError in one line."""

    def limits(self, piece: Any) -> Ints | None:
        """Length of each chunk where the grammar wants one, `(C,)`."""

    def blank(self, chunks: int) -> Any:
        """A piece without content to decode into: what a new piece looks like."""

    def join(self, chunks: list[Ints], like: Any) -> Any:
        """The user's kind of object from decoded chunks, with everything tokens do not hold taken from `like`."""


class MusicForm:
    """Music: tempo, metre, key and the loudness of each bar come from the original."""

    def __init__(self, tokenizer: MidiTokenizer) -> None:
        self.tokenizer = tokenizer

    def read(self, source: Any) -> midi.Piece:
        """As `midi.read`."""
        return midi.read(source)

    def limits(self, piece: midi.Piece) -> Ints:
        """Chunk lengths in steps."""
        return np.diff(piece.bounds).astype(np.int32)

    def blank(self, chunks: int) -> midi.Piece:
        """Bars of 4/4 at 110 beats a minute."""
        frame = midi.make_frame(([(0, 60_000_000 // 110)], [(0, 4, 4)], []))
        bounds = np.arange(chunks + 1, dtype=np.int32) * midi.MAX_CHUNK_STEPS
        return midi.Piece(np.zeros((0, 5), np.int32), bounds, frame)

    def join(self, chunks: list[Ints], like: midi.Piece) -> Any:
        """A `symusic.Score`."""
        notes = self.tokenizer.decode_notes(chunks, like.bounds)
        bar = np.clip(np.searchsorted(like.bounds, notes[:, midi.ONSET], side="right") - 1, 0, len(like.bounds) - 2)
        home = np.clip(
            np.searchsorted(like.bounds, like.notes[:, midi.ONSET], side="right") - 1, 0, len(like.bounds) - 2
        )
        total = np.bincount(home, weights=like.notes[:, midi.VELOCITY], minlength=len(like.bounds) - 1)
        count = np.bincount(home, minlength=len(like.bounds) - 1)
        usual = total.sum() / count.sum() if count.sum() else 80
        loud = np.where(count > 0, total / np.maximum(count, 1), usual)
        velocity = np.clip(np.round(loud[bar]), 1, 127).astype(np.int32)
        return midi.to_score(np.column_stack([notes, velocity]), like.frame)


@dataclass
class Codec:
    """A released or trained model, ready to use; see `seqvae.load`."""

    tokenizer: Tokenizer
    model: Any
    styles: dict[str, Style] = field(default_factory=dict)
    name: str = ""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """How posteriors are refined; see `ObjectiveConfig.refine`."""
    form: Form = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.tokenizer, MidiTokenizer)
        self.form = MusicForm(self.tokenizer)
        self.model.eval()
        self.chunks: int = self.model.config.chunks

    # --- there --------------------------------------------------------------------------------------------------------

    def segments(self, piece: Any) -> list[list[Ints]]:
        """Token ids of a piece by segment and chunk; the last segment is filled with empty chunks."""
        chunks = self.tokenizer.encode(piece)
        chunks += [np.array([EOS], np.int32)] * (-len(chunks) % self.chunks)
        return [chunks[i : i + self.chunks] for i in range(0, len(chunks), self.chunks)]

    @torch.no_grad()
    def posteriors(self, segments: Sequence[list[Ints]], refined: bool = False) -> Posterior:
        """Posterior `(S, D)` of segments, computed in batches of similar length; refined where it is to be decoded."""
        longest = np.array([max(map(len, segment)) for segment in segments])
        mean = torch.zeros(len(segments), self.model.config.latent)
        logvar = torch.zeros_like(mean)
        for rows in _batches(longest, BATCH_TOKENS // self.chunks):
            tokens, cues = self._tensors([segments[i] for i in rows])
            posterior = self.model.encode(tokens, cues)
            if refined and self.objective.refine:
                posterior = refine(self.model, tokens, cues, self._allowed(tokens), posterior, self.objective)
            mean[rows], logvar[rows] = posterior.mean.cpu(), posterior.logvar.cpu()
        return Posterior(mean, logvar)

    def encode(self, pieces: Iterable[Any]) -> list[Tensor]:
        """Posterior means, refined: one `(S, D)` a piece, S segments. Raises ReadError for one that cannot be read."""
        split = [self.segments(self.form.read(piece)) for piece in pieces]
        means = self.posteriors([segment for piece in split for segment in piece], refined=True).mean
        return list(torch.split(means, [len(piece) for piece in split]))

    @torch.no_grad()
    def log_prob(self, pieces: Iterable[Any], samples: int = 16, seed: int = 0) -> list[float]:
        """Reconstruction probability of each piece in nats (An and Cho 2015): **low** is anomalous.

        The log-probability of the tokens under the decoder, averaged over `samples` draws from the posterior and summed
        over segments.
        """
        return [float(self.token_log_prob(self.form.read(piece), samples, seed)[0].sum()) for piece in pieces]

    @torch.no_grad()
    def token_log_prob(self, piece: Any, samples: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Log-probability of every token, a mean over draws: `(S, C, T)` in nats, 0 at padding; and the tokens."""
        segments = self.segments(piece)
        posterior, generator = self.posteriors(segments), torch.Generator().manual_seed(seed)
        draws = [posterior.sample(generator) for _ in range(samples)]
        every = self._tensors(segments)[0].cpu()
        total = torch.zeros(every.shape)
        for rows in _batches(np.array([max(map(len, segment)) for segment in segments]), BATCH_TOKENS // self.chunks):
            tokens, cues = self._tensors([segments[i] for i in rows])
            closed = ~self._allowed(tokens)
            for z in draws:
                logits, _ = self.model.decode(z[rows].to(tokens.device), shifted(tokens), cues)
                told = logits.masked_fill(closed, CLOSED).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
                total[rows, :, : tokens.shape[-1]] += told.cpu()
        return total.masked_fill(every == PAD, 0.0) / samples, every

    def _allowed(self, tokens: Tensor) -> Tensor:
        """`(B, C, T, V)`: what the grammar allows at each step of `tokens (B, C, T)`."""
        return torch.from_numpy(self.tokenizer.allowed(tokens.cpu().numpy())).to(tokens.device)

    def _tensors(self, segments: Sequence[list[Ints]]) -> tuple[Tensor, Tensor]:
        """Tokens `(B, C, T)` and cues `(B, C, T, K)` of segments, padded."""
        longest = max(len(chunk) for segment in segments for chunk in segment)
        tokens = np.full((len(segments), self.chunks, longest), PAD, np.int32)
        for i, segment in enumerate(segments):
            for c, chunk in enumerate(segment):
                tokens[i, c, : len(chunk)] = chunk
        device = next(self.model.parameters()).device
        cues = self.tokenizer.cues(tokens)
        return torch.from_numpy(tokens).long().to(device), torch.from_numpy(cues).long().to(device)

    # --- and back -----------------------------------------------------------------------------------------------------

    def write(self, z: Tensor, limits: Ints | None, sampling: Sampling) -> list[Ints]:
        """Token ids of the S * C chunks of `z (S, D)`; `limits (S * C,)` are their lengths where the kind has one."""
        grammar = self.tokenizer.grammar()
        chunks: list[Ints] = []
        each = max(1, BATCH_CHUNKS // self.chunks)
        for first in range(0, len(z), each):
            part = z[first : first + each].to(next(self.model.parameters()).device)
            rows = len(part) * self.chunks
            lengths = None if limits is None else limits[first * self.chunks :][:rows]
            written = self.model.write(
                part, grammar, grammar.start(rows, lengths), replace(sampling, first_row=first * self.chunks)
            )
            chunks += [chunk for segment in written for chunk in segment]
        return chunks

    def decode(
        self, z: Sequence[Tensor], *, like: Sequence[Any] | None = None, sampling: Sampling | None = None
    ) -> list[Any]:
        """Pieces from latent vectors: one a tensor `(S, D)`; a `symusic.Score` for music.

        `like` are pieces (any accepted source) whose frame is kept: tempo, metre and key of music. `sampling` takes the
        most likely token each time by default.
        """
        latent = self.model.config.latent
        for x in z:
            if x.ndim != 2 or x.shape[1] != latent:
                raise CheckpointError(
                    f"latents of shape {tuple(x.shape)}: this model wants (segments, {latent}); "
                    "encode with the same model"
                )
        if not z:
            return []
        blank = [self.form.blank(len(x) * self.chunks) for x in z]
        frames = blank if like is None else [self.form.read(x) for x in like]
        limits = [self._filled(self.form.limits(frame), len(x)) for x, frame in zip(z, frames, strict=True)]
        chunks = self.write(torch.cat(list(z)), _joined(limits), sampling or Sampling())
        out, at = [], 0
        for x, frame in zip(z, frames, strict=True):
            mine = chunks[at : at + len(x) * self.chunks]
            out.append(self.form.join(mine[: self._size(frame, len(mine))], frame))
            at += len(mine)
        return out

    def _filled(self, limits: Ints | None, segments: int) -> Ints | None:
        """Chunk lengths for every chunk of `segments` segments: the filling of the last has length 1."""
        if limits is None:
            return None
        count = segments * self.chunks
        return np.append(limits[:count], np.ones(max(0, count - len(limits)), np.int32))

    def _size(self, piece: Any, chunks: int) -> int:
        """How many of `chunks` decoded chunks belong to a piece, the filling left out."""
        limits = self.form.limits(piece)
        return chunks if limits is None else min(chunks, len(limits))

    def reconstruct(self, piece: Any) -> Any:
        """A piece through the latent space and back, unmoved."""
        return self._moved(self.form.read(piece), lambda z: z)

    def blend(
        self,
        piece: Any,
        *,
        target: str | Style,
        source: str | Style | None = None,
        amount: float = 0.5,
        method: style.Method = "mean",
        sampling: Sampling | None = None,
    ) -> Any:
        """A piece moved from one style toward another: half-way at amount 0.5, all the way at 1.

        Without `source` it starts from where the piece itself lies: the mean of its own segments. Bars without notes
        stay so. Raises StyleError for a style that is not there, and ReadError for a piece that cannot be read.
        """  # fmt: skip
        goal = self.style(target)
        start = self.style(source) if source is not None else None

        def move(z: Tensor) -> Tensor:
            return style.blend(z, start if start is not None else z.mean(0), goal, amount, method)

        return self._moved(self.form.read(piece), move, sampling)

    def _moved(self, piece: Any, move: Any, sampling: Sampling | None = None) -> Any:
        segments = self.segments(piece)
        full = [i for i, segment in enumerate(segments) if max(map(len, segment)) > 1]
        out = [chunk for segment in segments for chunk in segment]
        if full:
            z = move(self.posteriors([segments[i] for i in full], refined=True).mean)
            places = [i * self.chunks + c for i in full for c in range(self.chunks)]
            limits = self._filled(self.form.limits(piece), len(segments))
            chunks = self.write(z, None if limits is None else limits[places], sampling or Sampling())
            for place, chunk in zip(places, chunks, strict=True):
                if len(out[place]) > 1:
                    out[place] = chunk
        return self.form.join(out[: self._size(piece, len(out))], piece)

    def interpolate(self, a: Any, b: Any, steps: int = 7, kind: str = "slerp") -> list[Any]:
        """`steps` pieces on the way from `a` to `b`, both ends included as the model reconstructs them.

        Segment k of one goes to segment k of the other, the shorter one repeated. The frame is that of the nearer end.
        """
        ends = [self.form.read(a), self.form.read(b)]
        za, zb = self.encode(ends)
        longest = max(len(za), len(zb))
        za, zb = za[torch.arange(longest) % len(za)], zb[torch.arange(longest) % len(zb)]
        out = []
        for i, z in enumerate(interpolate.path(za, zb, steps, kind)):
            if i in (0, steps - 1):
                out.append(self.reconstruct(ends[i > 0]))
                continue
            frame = ends[0] if 2 * i < steps else ends[1]
            out.append(self.decode([z[: -(-len(self.tokenizer.encode(frame)) // self.chunks)]], like=[frame])[0])
        return out

    def sample(
        self,
        count: int,
        style: str | Style | None = None,
        temperature: float = 0.9,
        segments: int = 4,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> list[Any]:
        """New pieces of `segments` segments each, drawn from a style's Gaussian, or from that of all styles together.

        `temperature` scales both the spread of the latent draw and the decoder's choices; 0 decodes a style's mean.
        """
        where = self.style(style if style is not None else "all")
        generator = torch.Generator().manual_seed(seed)
        z = [_draw(where, segments, generator, temperature) for _ in range(count)]
        if sampling is None:
            sampling = Sampling(temperature=temperature, top_p=0.95)
        return self.decode(z, sampling=replace(sampling, seed=seed))

    # --- styles -------------------------------------------------------------------------------------------------------

    def style(self, name: str | Style) -> Style:
        """A style by name; raises StyleError with the names there are."""
        if isinstance(name, Style):
            return name
        if name not in self.styles:
            known = ", ".join(sorted(set(self.styles) - {"all"})) or "none"
            raise StyleError(
                f"no style '{name}' in {self.name or 'this model'}; there are: {known} (`seqvae style fit` adds more)"
            )
        return self.styles[name]

    def fit_style(self, pieces: Iterable[Any], source: str = "") -> Style:
        """A style from pieces (any accepted sources); raises StyleError where none is left."""
        split = [self.segments(self.form.read(piece)) for piece in pieces]
        means = self.posteriors([segment for piece in split for segment in piece]).mean
        return style.fit(torch.split(means, [len(piece) for piece in split]), source)


_draw = style.draw  # `Codec.sample` has an argument of the module's name


def _joined(limits: Sequence[Ints | None]) -> Ints | None:
    """Chunk lengths of several pieces in a row; None for a kind that has none."""
    parts = [part for part in limits if part is not None]
    return np.concatenate(parts) if parts else None


def _batches(lengths: NDArray[np.int64], tokens: int) -> list[list[int]]:
    """Row numbers sorted by length and cut so that rows times longest stays within `tokens`; at least one a batch."""
    batches: list[list[int]] = [[]]
    for i in np.argsort(lengths, kind="stable"):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > tokens:
            batches.append([])
        batches[-1].append(int(i))
    return [batch for batch in batches if batch]


def from_checkpoint(kept: Checkpoint, name: str = "") -> Codec:
    """The codec of a checkpoint in memory."""
    styles = style.unpack(kept.styles, kept.about_styles)
    return Codec(kept.tokenizer, kept.model, styles, name, kept.recipe.objective)


def load(name: str | Path) -> Codec:
    """A codec by released name, folder or Hub id; raises CheckpointError in one line."""
    return from_checkpoint(checkpoint.load(name), str(name))
