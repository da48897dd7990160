"""Style and content of songs that are moved between styles, with baselines, controls, intervals and tests.

Scope: the sweep of amounts, baselines and controls, intervals and tests. Out of scope: the choice of test songs, and
the features of the style classifier. Figures are measured per song, then averaged over songs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import CHROMA_GUIDANCE, Codec
from seqvae.evaluation import controls, statistics, test_songs
from seqvae.evaluation.style_classifier import StyleClassifier
from seqvae.evaluation.test_songs import Song
from seqvae.music import note_metrics as measures
from seqvae.music.notes import by_bar
from seqvae.music.piece import Piece

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Report = Callable[[str], None]
AMOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0)
# kind of vector, its amount, and the strength of chroma guidance; `own` starts from the mean of the song's own
# segments, as without --from; amount 0 is the reconstruction
MOVES: dict[str, tuple[str, float, float]] = {
    **{f"amount {a:g}": ("style", a, CHROMA_GUIDANCE) for a in (0.5, 1.0)},
    **{f"own {a:g}": ("own", a, CHROMA_GUIDANCE) for a in (0.5, 1.0)},
    **{f"amount {a:g}, harmony 0": ("style", a, 0.0) for a in (0.5, 1.0)},
    **{f"own {a:g}, harmony 0": ("own", a, 0.0) for a in (0.5, 1.0)},
}
CONDITIONS: dict[str, tuple[str, float, float]] = {
    **{f"amount {a:g}": ("style", a, CHROMA_GUIDANCE if a else 0.0) for a in AMOUNTS},
    **MOVES,
    "programs swapped": ("programs", 0.0, 0.0),
    **{f"random {a:g}": ("random", a, CHROMA_GUIDANCE) for a in (0.5, 1.0)},
    # without the song: another song's latents moved alike, and the target's mean in place of all latents
    **{f"another song, {name}": (f"{kind} of another", a, guidance) for name, (kind, a, guidance) in MOVES.items()},
    "target mean": ("target", 1.0, CHROMA_GUIDANCE),
    "target mean, harmony 0": ("target", 1.0, 0.0),
}
KEPT = ("chroma", "groove", "melody", "bass", "rhythm", "chroma_fidelity", "groove_fidelity")
CYCLE_SONGS, CYCLE_SEGMENTS = 8, 2  # per style and per song; few, because every blend is encoded with a search
DRAWS = 2000


def kept(original: Ints, other: Ints, bounds: Ints) -> dict[str, float]:
    """Each figure of KEPT, averaged over the bars with notes in the original; nan where there are none."""
    found: dict[str, list[float]] = {name: [] for name in KEPT}
    pairs = zip(by_bar(original, bounds), by_bar(other, bounds), strict=True)
    for c, (a, b) in enumerate(pairs):
        if not len(a):
            continue
        start, length = int(bounds[c]), int(bounds[c + 1] - bounds[c])
        values = {
            "chroma": measures.chroma_similarity(a, b),
            "groove": measures.groove_similarity(a, b, start, length),
            "melody": measures.line_f1(a, b),
            "bass": measures.line_f1(a, b, highest=False),
            "rhythm": measures.rhythm_f1(a, b),
            "chroma_fidelity": measures.chroma_fidelity(a, b),
            "groove_fidelity": measures.groove_fidelity(a, b, start, length),
        }
        for name, value in values.items():
            if value is not None:
                found[name].append(value)
    return {name: float(np.mean(x)) if x else float("nan") for name, x in found.items()}


def blends(
    codec: Codec,
    songs: Sequence[Song],
    classifiers: Mapping[str, StyleClassifier],
    rankings: Mapping[str, Sequence[int]],
    rng: np.random.Generator,
    report: Report,
) -> dict[str, Any]:
    """Move every test song to every other style by every amount, with baselines and controls."""
    styles = sorted(rankings)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    another = [songs[i] for i in controls.others([song.style for song in songs], rng)]
    figures = [*classifiers, *KEPT]
    # (song, target style, figure); nan where the song is already of that style
    rows = {c: np.full((len(songs), len(styles), len(figures)), np.nan) for c in CONDITIONS}
    for t, target in enumerate(styles):
        numbers = [i for i, song in enumerate(songs) if song.style != target]
        moved = [songs[i] for i in numbers]
        ways = _ways(codec, moved, [another[i] for i in numbers], target, styles, generator)
        for condition, (kind, amount, guidance) in CONDITIONS.items():
            if kind == "programs":
                decoded = [measures.swap_programs(song.piece.notes[:, :4], rankings[target]) for song in moved]
            else:
                there = [x + amount * way for x, way in zip(*ways[kind], strict=True)]
                decoded = test_songs.decode(codec, moved, there, guidance)
            for i, song, notes in zip(numbers, moved, decoded, strict=True):
                bounds = song.piece.bounds
                probability = [classifier.probability(notes, bounds)[target] for classifier in classifiers.values()]
                rows[condition][i, t] = [*probability, *kept(song.piece.notes[:, :4], notes, bounds).values()]
        report(f"blended to {target}")
    own = np.array([song.style for song in songs])
    # in "all" a song counts once: the mean over its target styles
    out: dict[str, Any] = {"all": {c: _summary(_over_targets(x), figures) for c, x in rows.items()}}
    out["pairs"] = {
        f"{source} to {target}": {c: _summary(x[own == source, t], figures) for c, x in rows.items()}
        for source in styles for t, target in enumerate(styles) if source != target
    }  # fmt: skip
    out |= _margins({c: x[..., 0] for c, x in rows.items()}, own, styles)
    out["beyond"] = _beyond({c: x[..., len(classifiers) :] for c, x in rows.items()})
    for name, differences in out["beyond"].items():
        report(f"{name}: figures above both controls: {', '.join(controls.shown(differences)) or 'none'}")
    return out


def _ways(
    codec: Codec, moved: Sequence[Song], another: Sequence[Song], target: str, styles: Sequence[str],
    generator: torch.Generator,
) -> dict[str, tuple[Sequence[Tensor], Sequence[Tensor]]]:  # fmt: skip
    """Latents and the vectors added to them, by kind of CONDITIONS; `another` are the songs of the controls."""
    mean = codec.styles[target].mean
    z = [song.z for song in moved]
    other = [controls.as_long(song.z, len(x)) for song, x in zip(another, z, strict=True)]
    vectors = [mean - codec.styles[song.style].mean for song in moved]
    lengths = [float(v.norm()) for v in vectors]
    random = controls.random_vectors([codec.styles[name] for name in styles], lengths, generator)
    return {
        "style": (z, vectors),
        "own": (z, [mean - x.mean(0) for x in z]),
        "random": (z, list(random)),
        "style of another": (other, [mean - codec.styles[song.style].mean for song in another]),
        "own of another": (other, [mean - x.mean(0) for x in other]),
        "target": ([torch.zeros_like(x) for x in z], [mean] * len(z)),
    }


def _beyond(kept_: Mapping[str, Floats]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Paired differences over songs of each figure `(songs, targets, KEPT)`, by move and control."""
    by_song = {name: _over_targets(x) for name, x in kept_.items()}
    out: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in MOVES:
        without = f"target mean{', harmony 0' if 'harmony 0' in name else ''}"
        out[name] = {
            against: {
                figure: [round(x, 4) for x in controls.beyond(own, control)]
                for figure, own, control in zip(KEPT, by_song[name].T, by_song[other].T, strict=True)
            }
            for against, other in (("another song", f"another song, {name}"), ("target mean", without))
        }
    return out


def _over_targets(values: Floats) -> Floats:
    """Mean over the target styles of a song: `(songs, targets, ...)` to `(songs, ...)`; nan without a target."""
    count = (~np.isnan(values)).sum(1)
    means: Floats = np.where(count > 0, np.nansum(values, 1) / np.maximum(count, 1), np.nan)
    return means


def _margins(probability: Mapping[str, Floats], own: NDArray[np.str_], styles: Sequence[str]) -> dict[str, Any]:
    """Gain of the target probability `(songs, targets)` over baselines, with intervals and p-values over songs.

    The p-value over both baselines is the larger one, because both have to be beaten (Berger 1982).
    """
    margin: dict[str, Any] = {}
    chance: dict[str, Any] = {}
    for moved_by in ("amount 0.5", "amount 1", "own 0.5", "own 1"):
        amount = moved_by.split()[1]
        for baseline in ("programs swapped", f"random {amount}"):
            by_pair = probability[moved_by] - probability[baseline]
            gained = np.nanmean(by_pair, 1)
            name = f"{moved_by} over {baseline}"
            by_style = {s: list(measures.interval(gained[own == s])) for s in styles}
            margin[name] = {**by_style, "all": list(measures.interval(gained))}
            chance[name] = {"all": statistics.flipped(gained)}
            for source in styles:
                chance[name][source] = statistics.flipped(gained[own == source])
                for t, target in enumerate(styles):
                    if target != source:
                        chance[name][f"{source} to {target}"] = statistics.flipped(by_pair[own == source, t])
        ps = [chance[f"{moved_by} over {baseline}"] for baseline in ("programs swapped", f"random {amount}")]
        chance[f"{moved_by} over both"] = {key: max(p[key] for p in ps) for key in ps[0]}
    return {"margin": margin, "p_values": chance}


def _summary(values: Floats, figures: Sequence[str]) -> dict[str, list[float]]:
    """Mean and interval over songs of each column of `values (songs, figures)`."""
    return {
        name: [round(x, 4) for x in measures.interval(column[~np.isnan(column)])]
        for name, column in zip(figures, values.T, strict=True)
    }


def strength(
    codec: Codec,
    songs: Sequence[Song],
    classifier: StyleClassifier,
    rng: np.random.Generator,
    report: Report,
    amount: float = 1.0,
) -> dict[str, Any]:
    """Transfer strength (Brunner et al. 2018) between every two styles, there and back through notes.

    S_A = mean over songs x of A of ((P(A|x) - P(A|x')) + (P(A|x'') - P(A|x'))) / 2, where x' is x moved to B and x'' is
    x' moved back. S = (S_A + S_B) / 2. P is the classifier's probability of A, given A or B. x' is encoded from its
    notes alone. Measured on CYCLE_SONGS songs per style, CYCLE_SEGMENTS segments each.
    """
    styles = sorted({song.style for song in songs})
    by_style = {s: [x.front(CYCLE_SEGMENTS, codec.chunks) for x in songs if x.style == s][:CYCLE_SONGS] for s in styles}
    values: dict[tuple[str, str], Floats] = {}
    for source in styles:
        for target in styles:
            if source != target:
                values[source, target] = _cycle(codec, by_style[source], target, classifier, amount)
        report(f"transfer strength measured from {source}")
    pairs = [(a, b) for i, a in enumerate(styles) for b in styles[i + 1 :]]
    drawn = []
    for _ in range(DRAWS):
        picks = {s: rng.integers(len(by_style[s]), size=len(by_style[s])) for s in styles}
        drawn.append([(values[a, b][picks[a]].mean() + values[b, a][picks[b]].mean()) / 2 for a, b in pairs])
    table = np.array(drawn)
    out: dict[str, Any] = {"amount": amount, "songs": {s: len(x) for s, x in by_style.items()}, "pairs": {}}
    means = [(values[a, b].mean() + values[b, a].mean()) / 2 for a, b in pairs]
    for (a, b), mean, column in zip(pairs, means, table.T, strict=True):
        out["pairs"][f"{a} and {b}"] = [float(mean), *np.percentile(column, [2.5, 97.5]).tolist()]
    out["all"] = [float(np.mean(means)), *np.percentile(table.mean(1), [2.5, 97.5]).tolist()]
    report(f"transfer strength {out['all'][0]:.3f}")
    return out


def _cycle(codec: Codec, songs: Sequence[Song], target: str, classifier: StyleClassifier, amount: float) -> Floats:
    """The term of each song of one style in S_A, `(songs,)`."""
    source = songs[0].style
    vector = amount * (codec.styles[target].mean - codec.styles[source].mean)
    there = test_songs.decode(codec, songs, [song.z + vector for song in songs], CHROMA_GUIDANCE)
    moved = [
        Piece(np.column_stack([notes, np.full(len(notes), 80, np.int32)]), song.piece.bounds, song.piece.frame)
        for song, notes in zip(songs, there, strict=True)
    ]
    again = test_songs.encode(codec, target, moved)
    back = test_songs.decode(codec, again, [song.z - vector for song in again], CHROMA_GUIDANCE)
    return np.array(
        [
            strength_of(
                *(classifier.between(notes, song.piece.bounds, source, target) for notes in (song.piece.notes, x, y))
            )
            for song, x, y in zip(songs, there, back, strict=True)
        ]
    )


def strength_of(before: float, moved: float, back: float) -> float:
    """((P - P') + (P'' - P')) / 2: the source's probability before the move, after it, and after the way back."""
    return ((before - moved) + (back - moved)) / 2
