"""Every figure that a model card quotes, measured on songs the model was not trained on.

Knows: the protocol: which songs, which amounts, which baselines, which intervals. Refuses to know: how anything is
trained or drawn. Songs are split as in training (`dataset.split_of` of the title); the judge is fitted on real notes of
the training songs alone, never on anything decoded, and figures are quoted on the test songs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae import collection, measures
from seqvae.codec import Codec
from seqvae.dataset import split_of
from seqvae.errors import SeqVAEError
from seqvae.midi import Piece
from seqvae.midi_tokenizer import MidiTokenizer
from seqvae.sampling import Sampling

Ints = NDArray[np.int32]
Report = Callable[[str], None]
AMOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SEGMENTS = 4  # of each song, consecutive, from a place drawn once
JUDGE_SONGS = 150  # training songs a style that the judge hears


@dataclass
class Song:
    """A stretch of a held-out song: SEGMENTS segments of notes, onsets from 0."""

    style: str
    piece: Piece
    z: Tensor
    kl: float
    """Nats a segment."""


def stretch(piece: Piece, chunks: int, rng: np.random.Generator) -> Piece | None:
    """`chunks` chunks in a row of a piece from a random place; None where there are hardly notes."""
    total = len(piece.bounds) - 1
    first = int(rng.integers(max(1, total - chunks + 1)))
    bounds = piece.bounds[first : first + chunks + 1]
    notes = piece.notes[(piece.notes[:, 0] >= bounds[0]) & (piece.notes[:, 0] < bounds[-1])].copy()
    notes[:, 0] -= bounds[0]
    return Piece(notes, bounds - bounds[0], piece.frame, piece.name) if len(notes) > 3 else None


class Judge:
    """A logistic regression over `measures.features` of two-bar stretches of real training songs."""

    def __init__(self, stretches: Sequence[tuple[str, Piece]], chunks: int, instruments: bool, seed: int) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.chunks, self.instruments = chunks, instruments
        x, y = [], []
        for style, piece in stretches:
            heard = self._hear(piece.notes, piece.bounds)
            x += heard
            y += [style] * len(heard)
        self.model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced", random_state=seed)
        )
        self.model.fit(np.array(x), np.array(y))
        self.styles: list[str] = list(self.model.classes_)

    def _hear(self, notes: Ints, bounds: Ints) -> list[NDArray[np.float64]]:
        cuts = [*range(0, len(bounds) - 1, self.chunks), len(bounds) - 1]
        out = []
        for a, b in pairwise(cuts):
            inside = notes[(notes[:, 0] >= bounds[a]) & (notes[:, 0] < bounds[b])].copy()
            if len(inside):
                inside[:, 0] -= bounds[a]
                out.append(measures.features(inside, int(bounds[b] - bounds[a]), self.instruments))
        return out

    def probability(self, notes: Ints, bounds: Ints) -> dict[str, float]:
        """Probability of each style, averaged over the two-bar stretches; silence is every style alike."""
        heard = self._hear(notes, bounds)
        if not heard:
            return dict.fromkeys(self.styles, 1 / len(self.styles))
        return dict(zip(self.styles, self.model.predict_proba(np.array(heard)).mean(0), strict=True))


def evaluate(
    codec: Codec, data: Path, *, pieces: int = 20, seed: int = 0, report: Report = lambda _: None
) -> dict[str, Any]:
    """All figures of a music model on the test songs of `data` (one folder a style).

    `pieces` bounds the test songs a style. Raises SeqVAEError where a style has no test song or no training song.
    """
    rng = np.random.default_rng(seed)
    files = collection.find([data])
    chunks = SEGMENTS * codec.chunks
    styles = sorted(set(codec.styles) - {"all"})
    if len(styles) < 2:
        raise SeqVAEError(
            f"{codec.name or 'the model'}: it has fewer than two styles to judge between; train or fit them"
        )
    train: dict[str, list[Piece]] = {style: [] for style in styles}
    test: dict[str, list[Piece]] = {style: [] for style in styles}
    wanted: list[tuple[Path, str, dict[str, list[Piece]]]] = []
    tested: set[str] = set()
    for i in rng.permutation(len(files)):
        style, title = files[i].relative_to(data).parts[0], collection.title(files[i])
        split = split_of(title)
        if style not in styles or split == "valid" or title in tested:
            continue  # of several versions of a test song one is enough
        # more than asked, for some cannot be read
        kept, most = (test, 2 * pieces) if split == "test" else (train, JUDGE_SONGS)
        if sum(one[1] == style and one[2] is kept for one in wanted) < most:
            wanted.append((files[i], style, kept))
            if split == "test":
                tested.add(title)
    found = collection.read_all([path for path, _, _ in wanted], cache=collection.default_cache())
    for (_, style, kept), (_, piece) in zip(wanted, found, strict=True):
        part = stretch(piece, chunks, rng) if isinstance(piece, Piece) else None
        if part is not None:
            kept[style].append(part)
    for style in styles:
        if not test[style] or not train[style]:
            raise SeqVAEError(f"{data}: no song of style '{style}' is held out there; add more songs or drop the style")
    report(f"{sum(map(len, test.values()))} test songs, judges on {sum(map(len, train.values()))} training songs")
    real = [(style, piece) for style in styles for piece in train[style]]
    judges = {name: Judge(real, codec.chunks, name == "judge", seed) for name in ("judge", "blind")}
    rankings = {style: measures.program_ranking([p.notes for p in train[style]]) for style in styles}
    songs = [song for style in styles for song in _songs(codec, style, test[style][:pieces])]
    result: dict[str, Any] = {
        "protocol": {"test_songs": {s: sum(x.style == s for x in songs) for s in styles}, "segments": SEGMENTS,
                     "seed": seed, "bars": chunks, "intervals": "95 %, songs drawn again", "decoding": "greedy, free"},
        "judge_accuracy": {name: _accuracy(judge, songs) for name, judge in judges.items()},
    }  # fmt: skip
    result["reconstruction"] = _reconstruction(codec, songs, rng, report)
    result["blend"] = _blends(codec, songs, judges, rankings, styles, rng, report)
    return result


def _songs(codec: Codec, style: str, pieces: Sequence[Piece]) -> list[Song]:
    out = []
    for piece in pieces:
        posterior = codec.posteriors(codec.segments(piece), refined=True)
        out.append(Song(style, piece, posterior.mean, float(posterior.kl().sum(1).mean())))
    return out


def _accuracy(judge: Judge, songs: Sequence[Song]) -> list[float]:
    """Share of test songs whose real notes the judge puts in their own style, with interval."""
    said = [judge.probability(song.piece.notes, song.piece.bounds) for song in songs]
    right = np.array([max(p, key=lambda s: p[s]) == song.style for p, song in zip(said, songs, strict=True)], float)
    return list(measures.interval(right))


def _decode(codec: Codec, songs: Sequence[Song], z: Sequence[Tensor]) -> list[Ints]:
    """Notes `(N, 4)` that each song's latents decode to, all songs side by side, greedily."""
    chunks = codec.write(torch.cat(list(z)), np.concatenate([_limits(codec, song) for song in songs]), Sampling())
    out, at = [], 0
    for song, latent in zip(songs, z, strict=True):
        mine = chunks[at : at + len(latent) * codec.chunks]
        at += len(latent) * codec.chunks
        out.append(_spell(codec, mine, song.piece))
    return out


def _spell(codec: Codec, chunks: Sequence[Ints], piece: Piece) -> Ints:
    """Notes `(N, 4)` of token ids by chunk."""
    assert isinstance(codec.tokenizer, MidiTokenizer)
    return codec.tokenizer.decode_notes(chunks, piece.bounds)


def _limits(codec: Codec, song: Song) -> Ints:
    """Chunk lengths of a song, the filling of its last segment included."""
    lengths = codec.form.limits(song.piece)
    assert lengths is not None
    return np.append(lengths, np.ones(len(song.z) * codec.chunks - len(lengths), np.int32)).astype(np.int32)


def kept(original: Ints, other: Ints, bounds: Ints) -> tuple[float, float]:
    """(chroma, groove) similarity averaged over the bars of a song that have notes in the original."""
    chromas, grooves = [], []
    pairs = zip(measures.bars(original, bounds), measures.bars(other, bounds), strict=True)
    for c, (a, b) in enumerate(pairs):
        if len(a):
            similarity = measures.chroma_similarity(a, b)
            if similarity is not None:
                chromas.append(similarity)
            grooves.append(measures.groove_similarity(a, b, int(bounds[c]), int(bounds[c + 1] - bounds[c])))
    return float(np.mean(chromas)) if chromas else float("nan"), float(np.mean(grooves))


def _reconstruction(codec: Codec, songs: Sequence[Song], rng: np.random.Generator, report: Report) -> dict[str, Any]:
    """Note F1, chroma, groove and KL at amount 0 for every style, and what a random pair of bars shares."""
    decoded = _decode(codec, songs, [song.z for song in songs])
    rows: dict[str, list[tuple[float, ...]]] = {}
    dropped = total = 0
    for song, notes in zip(songs, decoded, strict=True):
        spelled = _spell(codec, codec.tokenizer.encode(song.piece), song.piece)
        total += len(song.piece.notes)
        dropped += len(song.piece.notes) - len(spelled)
        other = songs[int(rng.integers(len(songs)))]
        while other is song:
            other = songs[int(rng.integers(len(songs)))]
        stranger = _refit(other.piece, song.piece.bounds)
        chroma, groove = kept(spelled, notes, song.piece.bounds)
        random_chroma, random_groove = kept(spelled, stranger, song.piece.bounds)
        f1 = measures.note_f1(spelled, notes)
        rows.setdefault(song.style, []).append((f1, chroma, groove, song.kl / np.log(2), random_chroma, random_groove))
    names = ("note_f1", "chroma", "groove", "kl_bits", "random_chroma", "random_groove")
    out: dict[str, Any] = {"dropped_by_tokenizer": dropped / max(1, total)}
    for style in [*sorted(rows), "all"]:
        table = np.array(rows[style] if style != "all" else [row for one in rows.values() for row in one])
        out[style] = {
            name: list(measures.interval(column[~np.isnan(column)]))
            for name, column in zip(names, table.T, strict=True)
        }
        report(f"{style}: note F1 {out[style]['note_f1'][0]:.3f}, chroma {out[style]['chroma'][0]:.3f}")
    return out


def _refit(piece: Piece, bounds: Ints) -> Ints:
    """A piece's notes bar by bar inside other bounds: the stranger of a random pair."""
    out = []
    for c, notes in enumerate(measures.bars(piece.notes, piece.bounds)[: len(bounds) - 1]):
        moved = notes[:, :4].copy()
        moved[:, 0] += bounds[c] - piece.bounds[c]
        out.append(moved[moved[:, 0] < bounds[c + 1]])
    return np.concatenate(out) if out else np.zeros((0, 4), np.int32)


def _blends(
    codec: Codec, songs: Sequence[Song], judges: dict[str, Judge], rankings: dict[str, list[int]], styles: list[str],
    rng: np.random.Generator, report: Report,
) -> dict[str, Any]:  # fmt: skip
    """Every test song toward every other style by every amount, beside both baselines."""
    conditions = [f"amount {a:g}" for a in AMOUNTS]
    # as without --from: starting at the mean of the song's own segments
    conditions += ["own 0.5", "own 1", "programs swapped", "random 0.5", "random 1"]
    figures = [*judges, "chroma", "groove"]
    # (song, target style, figure); NaN where the song already is of that style
    rows = {c: np.full((len(songs), len(styles), len(figures)), np.nan) for c in conditions}
    for t, target in enumerate(styles):
        numbers = [i for i, song in enumerate(songs) if song.style != target]
        moved = [songs[i] for i in numbers]
        vectors = [codec.styles[target].mean - codec.styles[song.style].mean for song in moved]
        noise = torch.from_numpy(rng.standard_normal((len(moved), len(vectors[0])))).float()
        own_vectors = [codec.styles[target].mean - song.z.mean(0) for song in moved]
        random = [n / n.norm() * v.norm() for n, v in zip(noise, vectors, strict=True)]
        for condition in conditions:
            kind, _, number = condition.partition(" ")
            if kind == "programs":
                decoded = [measures.swap_programs(song.piece.notes[:, :4], rankings[target]) for song in moved]
            else:
                steps = {"amount": vectors, "own": own_vectors, "random": random}[kind]
                decoded = _decode(codec, moved, [s.z + float(number) * v for s, v in zip(moved, steps, strict=True)])
            for i, song, notes in zip(numbers, moved, decoded, strict=True):
                said = [judge.probability(notes, song.piece.bounds)[target] for judge in judges.values()]
                rows[condition][i, t] = [*said, *kept(song.piece.notes[:, :4], notes, song.piece.bounds)]
        report(f"blended toward {target}")
    own = np.array([song.style for song in songs])
    out: dict[str, Any] = {"all": {}, "pairs": {}, "margin": {}}
    for condition, values in rows.items():
        # a song counts once: the mean over the styles it was moved to
        out["all"][condition] = _summary(np.nanmean(values, 1), figures)
        for source in styles:
            for t, target in enumerate(styles):
                if source != target:
                    pair = out["pairs"].setdefault(f"{source} to {target}", {})
                    pair[condition] = _summary(values[own == source, t], figures)
    for moved_by in ("amount 0.5", "amount 1", "own 0.5", "own 1"):
        for baseline in ("programs swapped", f"random {moved_by.split()[1]}"):
            gained = np.nanmean(rows[moved_by][..., 0] - rows[baseline][..., 0], 1)
            by_style = {s: list(measures.interval(gained[own == s])) for s in styles}
            out["margin"][f"{moved_by} over {baseline}"] = {**by_style, "all": list(measures.interval(gained))}
    return out


def _summary(values: NDArray[np.float64], figures: Sequence[str]) -> dict[str, list[float]]:
    """Mean and interval over songs of each column of `values (songs, figures)`."""
    return {
        name: [round(x, 4) for x in measures.interval(column[~np.isnan(column)])]
        for name, column in zip(figures, values.T, strict=True)
    }


def table(result: dict[str, Any]) -> str:
    """The figures as text, for people and model cards (Markdown)."""

    def cell(x: Sequence[float], digits: int = 2) -> str:
        return f"{x[0]:.{digits}f} [{x[1]:.{digits}f}, {x[2]:.{digits}f}]"

    def rows(first: str, columns: Sequence[str], body: dict[str, list[str]]) -> list[str]:
        lines = [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in body.items()), ""]

    kept_names = ("note_f1", "chroma", "random_chroma", "groove", "random_groove")
    reconstruction = {k: v for k, v in result["reconstruction"].items() if isinstance(v, dict)}
    blend = result["blend"]
    songs = ", ".join(f"{n} {style}" for style, n in result["protocol"]["test_songs"].items())
    accuracy = {name: cell(x) for name, x in result["judge_accuracy"].items()}
    lines = [
        f"Test songs: {songs}; {result['protocol']['bars']} bars of each, means with 95 % intervals over songs. The "
        f"tokenizer drops {100 * result['reconstruction']['dropped_by_tokenizer']:.2f} % of the notes.",
        "",
        *rows(
            "reconstruction",
            ["note F1", "chroma kept", "of a random pair", "groove", "of a random pair", "KL, bits a segment"],
            {s: [*(cell(r[k]) for k in kept_names), cell(r["kl_bits"], 0)] for s, r in reconstruction.items()},
        ),
        f"The judge hears instruments and drums (accuracy on real test songs {accuracy['judge']}); the blind one "
        f"neither ({accuracy['blind']}).",
        "",
        *rows(
            "blend, all pairs", ["judge's target probability", "of the blind judge", "chroma kept", "groove"],
            {c: [cell(r[k]) for k in ("judge", "blind", "chroma", "groove")] for c, r in blend["all"].items()},
        ),
        *rows(
            "target probability", list(blend["all"]),
            {pair: [f"{r['judge'][0]:.2f}" for r in by.values()] for pair, by in blend["pairs"].items()},
        ),
        *rows(
            "probability gained, by source style", list(next(iter(blend["margin"].values()))),
            {name: [cell(x) for x in by.values()] for name, by in blend["margin"].items()},
        ),
    ]  # fmt: skip
    return "\n".join(lines).rstrip()
