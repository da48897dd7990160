"""`Codec`: a tokenizer and a model. Pieces to latent vectors and back; the main interface for users.

Scope: the functions that users call, and loading. Out of scope: inference in batches (nn/inference.py), moves of pieces
(style/), training, metrics, kinds of pieces (modality.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae import _aliases
from seqvae.checkpoint import folder as checkpoint
from seqvae.config import RefineConfig
from seqvae.errors import CheckpointError, StyleError
from seqvae.modality import adapter_of, modality
from seqvae.nn import batches
from seqvae.nn.inference import BatchInference, Inference, padded
from seqvae.nn.latent import LatentModel
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import TEMPERATURE, TOP_P, Sampling
from seqvae.nn.segments import no_melody, on_the_way, segmented, song_segments, without_melody
from seqvae.parallel import Ranks
from seqvae.protocols import Adapter, Given, Guide, Tokenizer
from seqvae.style import (
    arranger,
    choice,
    form,
    gaussian,
    interpolation,
    mixture,
    moves,
    offsets,
    sentences,
    styles_file,
    translation,
)
from seqvae.style.arranger import Goal, Stretch
from seqvae.style.attribute_vector import AttributeGoal
from seqvae.style.gaussian import Style, choose, draw, standard
from seqvae.style.mixture import Mixture
from seqvae.style.moves import ChromaGuide

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
CHROMA_GUIDANCE = 1.5
"""Default strength of harmony guidance in a blend; see `Codec.blend`."""
SEGMENTS = 4  # of a new piece
CANDIDATES = 6  # points decoded per step of an interpolation; with 2, a tenth of the paths in music go backward


@_aliases.renamed(mover="translate", told="token_log_probs", write="generate_tokens", harmony="chroma_guidance")
@dataclass
class Codec:
    """A model ready for use; see `seqvae.load`."""

    tokenizer: Tokenizer
    model: LatentModel
    styles: dict[str, Style] = field(default_factory=dict)
    name: str = ""
    refinement: RefineConfig = field(default_factory=RefineConfig)
    """How posterior means are refined."""
    mixture: Mixture | None = None
    """A mixture fitted to the segments of all training pieces, for sampling."""
    ranks: Ranks = field(default_factory=Ranks)
    """Processes that call the same functions with the same arguments: each does a part, all get all results."""
    exact: bool = False
    """True for results that are bit-identical in any batch and on any number of threads, at lower speed."""
    wrap: Callable[[BatchInference], Inference] | None = None
    """Makes the inference that is used from that of the model: to cache posteriors, report progress or stop."""
    adapter: Adapter = field(init=False)

    def __post_init__(self) -> None:
        self.adapter = adapter_of(self.tokenizer)
        self.model.eval().requires_grad_(False)  # gradients are needed for latents, not for weights
        self.chunks: int = self.model.config.chunks

    @property
    def _batched(self) -> BatchInference:
        return BatchInference(self.model, self.tokenizer, self.refinement, self.ranks, self.exact)

    @property
    def inference(self) -> Inference:
        """Inference with the present settings, wrapped by `wrap`."""
        return self._batched if self.wrap is None else self.wrap(self._batched)

    # --- encoding -----------------------------------------------------------------------------------------------------

    def segments(self, piece: Any) -> list[list[Ints]]:
        """Token ids of a piece by segment and chunk; the last segment is padded with empty chunks."""
        return self._segmented(self.tokenizer.encode(piece), self.given(piece))

    def _segmented(self, chunks: Sequence[Ints], given: Given | None) -> list[list[Ints]]:
        """Segments of chunks `(N,)` with the conditions `given (N,)`."""
        return song_segments(chunks, given) if self.model.conditioned else segmented(chunks, self.chunks)

    def given(self, piece: Any) -> Given | None:
        """Known of each chunk of a piece, `(C,)`: its length, or all conditions of a model that has such."""
        return self.adapter.conditions(piece) if self.model.conditioned else self.adapter.limits(piece)

    def posteriors(self, segments: Sequence[list[Ints]], refined: bool = False) -> Posterior:
        """Posteriors `(S, D)` of segments; `refined` means are for decoding."""
        return self.inference.posteriors(segments, refined)

    def encode(self, pieces: Iterable[Any]) -> list[Tensor]:
        """Refined posterior means: one `(S, D)` a piece of S segments. Raises ReadError for unreadable pieces."""
        return self.means([self.segments(self.adapter.read(piece)) for piece in pieces])

    def means(self, split: Sequence[Sequence[list[Ints]]], refined: bool = True) -> list[Tensor]:
        """As `encode`, from the segments of each piece."""
        means = self.posteriors([segment for piece in split for segment in piece], refined).mean
        return list(torch.split(means, [len(piece) for piece in split]))

    def log_prob(self, pieces: Iterable[Any], samples: int = 16, seed: int = 0) -> list[float]:
        """Reconstruction probability of each piece in nats (An and Cho 2015): **low** is anomalous.

        The log-probability of the tokens under the decoder, averaged over `samples` draws from the posterior and summed
        over segments.
        """
        return [float(self.token_log_prob(self.adapter.read(piece), samples, seed)[0].sum()) for piece in pieces]

    @torch.no_grad()
    def token_log_prob(self, piece: Any, samples: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Log-probability of every token, averaged over draws: `(S, C, T)` in nats, 0 at padding; and the tokens."""
        segments = self.segments(piece)
        posterior, generator = self.posteriors(segments), torch.Generator().manual_seed(seed)
        draws = torch.stack([posterior.sample(generator) for _ in range(samples)])
        tokens = torch.from_numpy(padded(segments, self.chunks)).long()
        return self.token_log_probs(draws, segments).mean(0), tokens

    def token_log_probs(self, z: Tensor, segments: Sequence[list[Ints]]) -> Tensor:
        """Log-probability of every token given L vectors a segment, `z (L, S, D)`: `(L, S, C, T)` in nats, 0 at PAD."""
        return self.inference.token_log_probs(z, segments)

    def tensors(self, segments: Sequence[list[Ints]], even: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens `(B, C, T)` and position fields `(B, C, T, K)` of segments; see `BatchInference.tensors`."""
        return self._batched.tensors(segments, even)

    # --- decoding -----------------------------------------------------------------------------------------------------

    def generate_tokens(
        self, z: Tensor, given: Given | None, sampling: Sampling, harmony: Floats | None = None, strength: float = 0.0,
        guide: Guide | None = None,
    ) -> list[Ints]:  # fmt: skip
        """Token ids of the S * C chunks of `z (S, D)` under the conditions `given (S * C,)`; see `protocols.Given`.

        Notes are guided toward the `harmony (S * C, B, 12)` with a `strength` (`Adapter.chroma_guidance`), tokens by
        `guide`. Raises SeqVAEError for a vector with NaN or infinity in it.
        """
        guides: list[Guide] = [] if harmony is None else [ChromaGuide(self.adapter, harmony, strength)]
        guides += [] if guide is None else [guide]
        return self.inference.generate_tokens(z, given, sampling, guides)

    def decode(
        self, z: Sequence[Tensor], *, like: Sequence[Any] | None = None, sampling: Sampling | None = None,
        guide: Guide | None = None, given: Sequence[Given | None] | None = None,
    ) -> list[Any]:  # fmt: skip
        """Pieces from latent vectors, one for each tensor `(S, D)`; for music, `symusic.Score`.

        `like` are pieces (any accepted source) that give tempo, metre and key of music; without them the metre is
        inferred from the notes. `sampling` by default takes the most likely tokens; `guide` as in `generate_tokens`.
        `given (C,)` are the conditions of the chunks of each piece, by default those of `like`; without either, a
        song model decodes without harmony and melody. Raises CheckpointError for vectors of the wrong
        shape.
        """
        latent = self.model.config.latent
        for x in z:
            if x.ndim != 2 or x.shape[1] != latent:
                raise CheckpointError(
                    f"latents of shape {tuple(x.shape)}: this model needs (segments, {latent}); "
                    "encode with the same model"
                )
        if not z:
            return []
        if like is None:
            templates = [self.adapter.blank(len(x) * self.chunks) for x in z]
        else:
            templates = [self.adapter.read(x) for x in like]
        chunks = self._spelled(z, templates, sampling or Sampling(), guide, given)
        if like is None:
            templates = [self.adapter.template(one) for one in chunks]
        return [self.adapter.assemble(one, template) for one, template in zip(chunks, templates, strict=True)]

    def _spelled(
        self, z: Sequence[Tensor], like: Sequence[Any], sampling: Sampling | None = None, guide: Guide | None = None,
        given: Sequence[Given | None] | None = None,
    ) -> list[list[Ints]]:  # fmt: skip
        """Token ids of the chunks of each piece with latents `z (S, D)`, as many chunks as its frame has.

        `given (C,)` are the conditions of the chunks of each, by default those of its frame.
        """
        known = map(self.given, like) if given is None else given
        filled = [batches.filled(one, len(x) * self.chunks) for x, one in zip(z, known, strict=True)]
        chunks = self.generate_tokens(torch.cat(list(z)), batches.joined(filled), sampling or Sampling(), guide=guide)
        out, at = [], 0
        for x, template in zip(z, like, strict=True):
            mine = chunks[at : at + len(x) * self.chunks]
            out.append(mine[: batches.unpadded(self.adapter.limits(template), len(mine))])
            at += len(mine)
        return out

    def _sizes(self, like: Sequence[Any], segments: int) -> list[int]:
        """The number of the first of `segments` segments that belong to each piece."""
        return [-(-batches.unpadded(self.adapter.limits(one), segments * self.chunks) // self.chunks) for one in like]

    def reconstruct(self, piece: Any) -> Any:
        """Encode and decode a piece without moving it."""
        return self.transform([piece], lambda z: z)[0]

    def blend(
        self,
        piece: Any,
        *,
        target: str | Style | Mapping[str, float],
        source: str | Style | None = None,
        amount: float | None = None,
        method: translation.Method = "mean",
        keep: Sequence[str | int] | None = None,
        chroma_guidance: float = CHROMA_GUIDANCE,
        sampling: Sampling | None = None,
    ) -> Any:
        """Move a piece from one style toward another: half-way at amount 0.5, all the way at 1.

        Without `source` the move starts at the mean of the piece's own segments, or at the other end of the target's
        attribute; from end to end it goes as far as the attribute needs (style/attribute_vector.py). Several targets
        have weights, `{"rock": 0.3, "jazz": 0.5}`: z + amount * sum_t w_t (mean_t - mean_s). By default `amount` is 0.5
        for one target and 1 for weighted ones. Bars without notes stay empty. In music, the parts named in `keep` stay:
        melody (the default), drums, or instruments by General MIDI name or program (0 to 127).

        If the target knows the ensembles of its songs, music is arranged for one band; see style/arranger.py. New notes
        are guided toward the harmony of the song: a pitch's probability is multiplied by the strength of its pitch
        class around that beat in the original, to the power `chroma_guidance` (a product of experts, Hinton 2002).

        Raises StyleError for an unknown style, ReadError for a piece that cannot be read, and UsageError for a part
        that this kind of piece does not have.
        """
        move = self.translate(target, source, amount, method)
        goal = self.goal(target, amount, source)
        return self.transform([piece], move, sampling, keep, chroma_guidance, goal=goal)[0]

    def blend_until(
        self,
        lines: Sequence[str],
        path: Sequence[choice.Step],
        settings: choice.Choice | None = None,
        method: translation.Method = "mean",
        latents: Sequence[Tensor] | None = None,
    ) -> list[choice.Chosen]:
        """Move each line only as far as the styles' classifier asks, and keep the rest; see `style.choice.choose`.

        `path` has a source, a target and the farthest amount for each move. Known `latents (S, D)` of the lines are not
        computed again. Raises StyleError for styles that were not
        fitted together, and for kinds other than lines.
        """
        return choice.choose(self, lines, path, settings or choice.Choice(), method, latents)

    def goal(
        self, target: str | Style | Mapping[str, float], amount: float | None = None, source: str | Style | None = None
    ) -> Goal | AttributeGoal | None:
        """The goal of `blend`, for `transform`: an attribute's value, or an ensemble where the model has a band."""
        return moves.goal(self, target, amount, source)

    def translate(
        self,
        target: str | Style | Mapping[str, float],
        source: str | Style | None = None,
        amount: float | None = None,
        method: translation.Method = "mean",
    ) -> Callable[[Tensor], Tensor]:
        """The map that `blend` applies to the latent vectors `(S, D)` of one piece, for `transform`."""
        return moves.translate(self, target, source, amount, method)

    def transform(
        self,
        pieces: Iterable[Any],
        move: Callable[[Tensor], Tensor],
        sampling: Sampling | None = None,
        keep: Sequence[str | int] | None = (),
        chroma_guidance: float = 0.0,
        segments: Sequence[list[list[Ints]]] | None = None,
        latents: Sequence[Tensor] | None = None,
        goal: Goal | AttributeGoal | None = None,
    ) -> list[Any]:
        """Encode pieces, move the latent vectors of each, decode all together; in their order.

        `move` maps `(S, D)` to `(S, D)`, with one row for each segment that has content. Chunks without content stay
        empty, and the parts named in `keep` stay unchanged (None: the melody of pieces that move). `chroma_guidance` is
        as in `blend`. With a `goal`, pieces that move are arranged for one band, or reach an attribute's value. Known
        `segments` and `latents (S, D)` of each piece can be given to save computing them again.
        """
        read = [self.adapter.read(piece) for piece in pieces]
        moved = moves.encode_and_move(self, read, move, segments, latents)
        return moves.decode(self, moved, sampling or Sampling(), keep, chroma_guidance, goal)

    def interpolate(self, a: Any, b: Any, steps: int = 7, kind: str | None = None) -> list[Any]:
        """`steps` pieces from `a` to `b` along an arc (slerp, the default) or a line.

        Without a `kind`, sentences are chosen around both paths, different ones that change evenly and are fluent, and
        the ends are the given ones; see `sentences.between`. Otherwise the ends are the model's reconstructions.
        Segment k of one goes to segment k of the other; the shorter one is repeated. Tempo, metre and all else that is
        not in tokens come from the nearer end. Steps are perceptually even; see `walk`.
        """
        if kind is None and modality(self.tokenizer.kind).content == "sentences":
            a, b = self.adapter.read(a), self.adapter.read(b)
            return list(sentences.between(self, a, b, self.encode([a, b]), steps))
        ends, (za, zb), (first, last) = self._ends([a, b])
        chunks = self.walk(za, zb, steps, kind or "slerp", ends)[1]
        return [first, *(self.adapter.assemble(one, ends[end]) for one, end in chunks[1:-1]), last]

    def _ends(self, pieces: Sequence[Any]) -> tuple[list[Any], list[Tensor], list[Any]]:
        """Pieces as read, their latents at equal length, and their reconstructions; no melody is given."""
        read = [self.adapter.read(piece) for piece in pieces]
        split = [without_melody(self.segments(piece)) for piece in read]
        latents = self.means(split)
        return read, interpolation.aligned(latents), self.transform(read, lambda z: z, segments=split, latents=latents)

    def walk(
        self, a: Tensor, b: Tensor, steps: int = 7, kind: str = "slerp", ends: Sequence[Any] = ()
    ) -> tuple[Tensor, list[tuple[list[Ints], int]]]:
        """Latents `(steps, S, D)` from `a` to `b (S, D)`; and the decoded chunks of each, with its nearer end (0 or 1).

        Decoded content jumps at some points of a path and stands still at others. CANDIDATES points are decoded for
        each step. Those are chosen whose distances from the ends change evenly and never in the wrong direction, by
        `Adapter.apart` and by the latent vectors of the decoded chunks (`interpolation.even`).
        """
        way = interpolation.path(a, b, CANDIDATES * (steps - 1) + 1, kind, self.model.shared)
        nearer = [int(2 * i >= len(way)) for i in range(len(way))]
        like = [*ends] or [self.adapter.blank(len(a) * self.chunks)] * 2
        sizes = self._sizes(like, len(a))
        first, last = map(self.given, like)
        rows = [np.arange(sizes[e] * self.chunks) for e in nearer]
        known = on_the_way(first, last, rows, self.model.conditioned)
        points = [z[: sizes[e]] for z, e in zip(way, nearer, strict=True)]
        chunks = self._spelled(points, [like[e] for e in nearer], given=known)
        latents = self.means([self._segmented(*one) for one in zip(chunks, known, strict=True)], refined=False)
        there, back = (interpolation.apart(self.adapter, chunks, latents, end) for end in (0, -1))
        chosen = interpolation.even(there, back, steps)
        return way[chosen], [(chunks[i], nearer[i]) for i in chosen]

    def grid(self, corners: Sequence[Any], size: int = 5, kind: str = "slerp") -> list[list[Any]]:
        """`size` rows of `size` pieces between four corners: top left, top right, bottom left, bottom right.

        Corners are the model's reconstructions; between them, see `interpolation.grid`. Segments and frames are as in
        `interpolate`. Raises ValueError for another number of corners.
        """
        if len(corners) != 4:
            raise ValueError(f"a grid needs four corners, not {len(corners)}")
        read, z, again = self._ends(corners)
        corners_z = torch.stack(z).view(2, 2, *z[0].shape)
        sheet = interpolation.grid(corners_z, size, size, kind, self.model.shared).flatten(0, 1)
        near = [2 * int(2 * row >= size) + int(2 * column >= size) for row in range(size) for column in range(size)]
        templates = [read[corner] for corner in near]
        sizes = self._sizes(templates, len(z[0]))
        known = [no_melody(self.given(template)) for template in templates]
        pieces = self.decode([x[:n] for x, n in zip(sheet, sizes, strict=True)], like=templates, given=known)
        for piece, at in zip(again, (0, size - 1, size * (size - 1), size * size - 1), strict=True):
            pieces[at] = piece
        return [pieces[at : at + size] for at in range(0, size * size, size)]

    def sample(
        self, count: int, style: str | Style | None = None, temperature: float | None = None,
        segments: int | None = None, seed: int = 0, sampling: Sampling | None = None, like: Any | None = None,
        chroma_guidance: float = CHROMA_GUIDANCE, best_of: int | None = None,
    ) -> list[Any]:  # fmt: skip
        """New pieces of `segments` segments each (4; 16 bars of a song model), drawn from a style; see `style.draw`.

        Without a style this is the mixture over all training pieces if the model has one and `segments` is 1, else a
        style for each piece if styles know their ensembles, else all styles together. `style="prior"` draws from N(0,
        I). A model that also decodes without z (`ModelConfig.without`) draws no z: its decoder writes the piece (one
        segment by default), which is then moved from all styles to a given one by amount 1. A sentence is the best of
        `best_of` such draws (8; `style.sentences.drawn`). `temperature` (.9, of a song model 1) scales the spread of
        the latent draw (0 is a style's mean) and the decoder's draws; if the style has exemplars, the decoder takes the
        most likely tokens. Music is played by one band if the style knows its ensembles. `like` is a song (any accepted
        source; `music.chords.song` makes one of chord symbols) that gives new ones their tempo, metre, key and length;
        notes are guided toward its harmony as in `blend`. New pieces of a song model have a form with repeats and,
        without `like`, chords of the style, which guide less (style/form.py).
        """
        usual_temperature, usual_top_p = form.SAMPLING if self.model.shared else (TEMPERATURE, TOP_P)
        temperature = usual_temperature if temperature is None else temperature
        if self.model.config.without and like is None and style != "prior":
            top_p, usual = (sentences.TOP_P, sentences.BEST_OF) if self.tokenizer.kind == "text" else (TOP_P, 1)
            drawn = replace(sampling or Sampling(temperature=temperature, top_p=top_p), seed=seed)
            new = sentences.drawn(self, count, self.model.absent.expand(segments or 1, -1), drawn, best_of or usual)
            return new if style is None else self.transform(new, self.translate(style, self.styles.get("all"), 1.0))
        frame = None if like is None else self.adapter.read(like)
        segments = segments or (form.BARS if self.model.shared else SEGMENTS)
        z, styles = self._drawn(count, style, temperature, segments, seed)
        if sampling is None and styles and all(one.exemplars is not None for one in styles):
            sampling = Sampling()
        sampling = replace(sampling or Sampling(temperature=temperature, top_p=usual_top_p), seed=seed)
        frames, repeats = [frame] * len(z), None if frame is None else np.arange(segments)
        if self.model.shared and frame is None:
            frames = [form.chords(one.ensemble, segments, (seed, i)) for i, one in enumerate(styles)]
            chroma_guidance *= form.LOOSER
        if all(one.ensemble is None for one in styles) or not self.model.band:
            return self._plain(z, sampling, frames, chroma_guidance)
        made = []
        for i, (x, one) in enumerate(zip(z, styles, strict=True)):
            own = replace(sampling, first_row=i * segments * self.chunks)
            if one.ensemble is None:
                made += self._plain([x], own, frames[i : i + 1], chroma_guidance)
            else:
                made.append(
                    arranger.improvise(self, x, self.chunks, one.ensemble, own, frames[i], chroma_guidance, repeats)
                )
        return made

    def _plain(
        self, z: list[Tensor], sampling: Sampling, frames: Sequence[Any | None], chroma_guidance: float
    ) -> list[Any]:
        """New pieces without a band, with their frames and the harmony of these."""
        if self.model.shared:
            for i, (x, one) in enumerate(zip(z, frames, strict=True)):
                given = self.adapter.conditions(one or self.adapter.blank(len(x)))
                z[i] = form.composed(self, x, given, replace(sampling, first_row=sampling.first_row + i * len(x)))[0]
            sampling = Sampling(max_tokens=sampling.max_tokens)
        if all(like is None for like in frames):
            return self.decode(z, sampling=sampling)
        if any(like is None for like in frames):
            alone = zip(z, frames, strict=True)
            return [piece for x, like in alone for piece in self._plain([x], sampling, [like], chroma_guidance)]
        stretches = [Stretch(like, list(range(len(x))), self.chunks, None) for x, like in zip(z, frames, strict=True)]
        harmony = batches.joined([one.harmony(self.adapter) for one in stretches])
        guide = None if harmony is None else ChromaGuide(self.adapter, harmony, chroma_guidance)
        known = [no_melody(self.given(like)) for like in frames]
        return self.decode(z, sampling=sampling, like=frames, guide=guide, given=known)

    def _drawn(
        self, count: int, style: str | Style | None, temperature: float, segments: int, seed: int
    ) -> tuple[list[Tensor], list[Style]]:
        """Latents `(segments, D)` of new pieces, and the style of each; no style for draws from the mixture."""
        generator = torch.Generator().manual_seed(seed)
        if style is None and self.mixture is not None and segments == 1:
            return list(torch.split(mixture.draw(self.mixture, count, generator, temperature), 1)), []
        if style is None:
            styles = choose(self.styles, count, seed) or [self.style("all")] * count
        else:
            styles = [
                standard(self.model.config.latent, self.model.shared) if style == "prior" else self.style(style)
            ] * count
        return [draw(one, segments, generator, temperature, seed + i) for i, one in enumerate(styles)], styles

    # --- styles -------------------------------------------------------------------------------------------------------

    def style(self, name: str | Style) -> Style:
        """A style by name; raises StyleError with the known names."""
        if isinstance(name, Style):
            return name
        if name not in self.styles:
            known = ", ".join(sorted(set(self.styles) - {"all"})) or "none"
            raise StyleError(
                f"no style '{name}' in {self.name or 'this model'}; there are: {known} (`seqvae style fit` adds more)"
            )
        return self.styles[name]

    def fit_style(self, pieces: Iterable[Any], source: str = "") -> Style:
        """A style from pieces (any accepted sources); raises StyleError if there is none."""
        read = [self.adapter.read(piece) for piece in pieces]
        split = list(map(self.segments, read))
        fitted = gaussian.fit(self.means(split, False), source, self.model.shared)
        songs = ([chunk for segment in piece for chunk in segment] for piece in split)
        return replace(fitted, ensemble=self.adapter.ensemble(songs, read))

    def fit_styles(self, sets: Mapping[str, tuple[Sequence[Any], str]]) -> dict[str, Style]:
        """A style from the pieces and the source of each name; see `offsets.fitted_together` for styles of lines."""
        fitted = {name: self.fit_style(pieces, source) for name, (pieces, source) in sets.items()}
        return offsets.fitted_together(self, fitted, {name: pieces for name, (pieces, _) in sets.items()})


def from_checkpoint(kept: checkpoint.Checkpoint, name: str = "", exact: bool = False) -> Codec:
    """The codec of a loaded checkpoint."""
    styles = styles_file.unpack(kept.styles, kept.about_styles, kept.recipe.model.latent)
    mixed = mixture.unpack(kept.styles)
    return Codec(kept.tokenizer, kept.model, styles, name, kept.recipe.refine, mixed, exact=exact)


def load(
    name: str | Path, *, device: str | torch.device = "cpu", styles: Path | None = None, exact: bool = False
) -> Codec:
    """A codec by released name, folder or Hub id; `exact` as in `Codec`.

    `device` is a device of torch, or "auto" for the GPU if there is one. `styles` is a file of `style fit` whose styles
    are added. Raises CheckpointError or StyleError in one line.
    """
    codec = from_checkpoint(checkpoint.load(name), str(name), exact)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    codec.model.to(device)
    if styles is not None:
        codec.styles.update(styles_file.load(styles, codec.model.config.latent))
    return codec
