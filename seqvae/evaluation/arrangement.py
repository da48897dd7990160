"""Evaluation of arrangements: excerpts moved between styles, compared with real songs and with a rule.

Scope: choice of excerpts, figures of each, and means with intervals over songs. A move is any callable from
a piece to a piece, so that models and rules are measured alike. Out of scope: the statistics of one excerpt
(music/arrangement.py), the rule (evaluation/rule_baseline.py), tables (evaluation/arrangement_report.py), and how a
model moves. Definitions: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import CHROMA_GUIDANCE, Codec
from seqvae.data.dataset import Half
from seqvae.errors import SeqVAEError
from seqvae.evaluation import test_songs
from seqvae.evaluation.rule_baseline import Rule
from seqvae.evaluation.style_classifier import StyleClassifier
from seqvae.music import arrangement, tracks
from seqvae.music import note_metrics as measures
from seqvae.music import piece as midi
from seqvae.music.notes import STEPS_PER_BEAT
from seqvae.music.piece import Piece
from seqvae.nn.inference import Inference
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.protocols import Given, Guide
from seqvae.style.arranger import Goal

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Report = Callable[[str], None]
Move = Callable[[Piece, str, str, float], Piece]
"""(piece, source, target, amount) to the moved piece, with the same bars."""

PAIRS = (("classical", "rock"), ("folk", "rock"), ("pop", "jazz"), ("rock", "jazz"), ("jazz", "classical"))
AMOUNTS = (0.25, 0.5, 0.75, 1.0)
BARS, BAR = 16, 4 * STEPS_PER_BEAT
FILLED = 12  # least number of bars of an excerpt that hold a note
REAL = 100  # training songs per style for the ranges, the classifier and the rule
READ = 4  # songs read per song measured, because three of four may have no sixteen bars of 4/4
CLASSIFIER_BARS = 2
DRAWS = 2000
FOLDS = 5

ALONE = (*arrangement.STATISTICS, "inside the target's range", "notes a bar inside", "target probability")
BESIDE = (
    "top line there", "top line heard", "new notes", "30 to 70 % new", "bass agrees", "chroma kept", "notes kept",
)  # fmt: skip
FIGURES = (*ALONE, *BESIDE)
KIT = ("kit repeated", "drum switches")  # measured if the target style has drums
DOSE = ("new notes", "target probability")  # expected to rise with the amount
KEPT = ("chroma kept", "notes kept")  # compared with the controls


# --- excerpts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Excerpts:
    """Sixteen bars of each song, by style."""

    real: dict[str, list[Piece]]
    """Excerpts of training songs, which define a style."""
    test: dict[str, list[Piece]]
    """Excerpts of held-out songs, which are moved."""


def excerpt(piece: Piece, rng: np.random.Generator) -> Piece | None:
    """BARS consecutive bars of 4/4, at least FILLED of them with notes, from a random place; None if there are none.

    Onsets count from 0; a note that sounds beyond the end is not cut.
    """
    whole = np.diff(piece.bounds) == BAR
    filled = np.bincount(np.searchsorted(piece.bounds, piece.notes[:, midi.ONSET], "right") - 1, minlength=len(whole))
    places = [
        at for at in range(len(whole) - BARS + 1)
        if whole[at : at + BARS].all() and (filled[at : at + BARS] > 0).sum() >= FILLED
    ]  # fmt: skip
    if not places:
        return None
    start, end = piece.bounds[(at := int(rng.choice(places)))], piece.bounds[at + BARS]
    notes, parts = piece.part(at, at + BARS)
    tempos, _, keys = midi.frame_rows(piece.frame)
    # the last event before the excerpt counts
    tempo, key = ({max(0, row[0] - int(start)): row[1:] for row in rows if row[0] < end} for rows in (tempos, keys))
    frame = midi.make_frame(
        ([(at, *row) for at, row in tempo.items()], [(0, 4, 4)], [(at, *row) for at, row in key.items()])
    )
    return Piece(notes, np.arange(BARS + 1, dtype=np.int32) * BAR, frame, piece.name, parts)


def excerpts(
    data: Path, styles: Sequence[str], songs: int, *, real: int = REAL, half: Half = "final", seed: int = 0,
    group: str = "",
) -> Excerpts:  # fmt: skip
    """Excerpts of at most `songs` held-out and `real` training songs per style in `data`, one folder per style.

    `group` is the `test_songs.groups` of a model. Raises SeqVAEError for a style without a song of either kind that has
    sixteen bars of 4/4.
    """
    rng = np.random.default_rng(seed)
    entire = 1 << 30
    found = test_songs.gather(
        data, styles, train=READ * real, test=READ * songs, train_chunks=entire, test_chunks=entire, rng=rng,
        half=half, group=group,
    )  # fmt: skip
    cut = []
    for pieces, most in ((found.train, real), (found.test, songs)):
        parts = {style: [part for piece in pieces[style] if (part := excerpt(piece, rng))][:most] for style in styles}
        cut.append(parts)
        for style, cuts in parts.items():
            if not cuts:
                raise SeqVAEError(f"{data}: no song of style '{style}' has 16 bars of 4/4; add songs or drop the style")
    return Excerpts(*cut)


# --- figures ----------------------------------------------------------------------------------------------------------


class Ruler:
    """Statistic ranges, style classifier and rules of the styles, all from real training songs."""

    def __init__(self, real: Mapping[str, Sequence[Piece]], seed: int = 0) -> None:
        rows = {
            style: np.array([arrangement.statistics(piece.notes, piece.bounds) for piece in pieces])
            for style, pieces in real.items()
        }
        self.statistics: dict[str, Floats] = rows
        self.ranges = {style: arrangement.Range.of(x) for style, x in rows.items()}
        at = list(arrangement.STATISTICS).index("bars with drums")
        self.has_drums = {style: bool((x[:, at] > 0).mean() >= 0.5) for style, x in rows.items()}
        self.rules = {style: Rule.of(pieces) for style, pieces in real.items()}
        self.rankings = {style: measures.program_ranking([p.notes for p in pieces]) for style, pieces in real.items()}
        stretches = [(style, piece) for style, pieces in real.items() for piece in pieces]
        self.classifier = StyleClassifier(stretches, CLASSIFIER_BARS, True, seed)

    def rule(self, piece: Piece, source: str, target: str, amount: float) -> Piece:
        """The baseline `rule`, which ignores `amount`; see evaluation/rule_baseline.py."""
        return self.rules[target](piece)

    def swap(self, piece: Piece, source: str, target: str, amount: float) -> Piece:
        """The baseline `programs swapped`, which ignores `amount`; see `measures.swap_programs`."""
        notes = measures.swap_programs(piece.notes, self.rankings[target])
        return Piece(notes, piece.bounds, piece.frame, piece.name)

    def measure(self, piece: Piece, target: str, original: Piece | None = None) -> Floats:
        """FIGURES of a piece as an arrangement in the target style; nan for figures that do not apply."""
        notes, bounds = piece.notes, piece.bounds
        row = arrangement.statistics(notes, bounds)
        inside = self.ranges[target].inside(row)
        names = list(arrangement.STATISTICS)
        alone = [inside.mean(), inside[names.index("notes a bar")], self.classifier.probability(notes, bounds)[target]]
        beside = np.full(len(BESIDE), np.nan)
        if original is not None:
            old, line = original.notes, tracks.named_melody(original)
            new = arrangement.new_notes(old, notes)
            low, high = arrangement.HALF_NEW
            beside[:] = [
                arrangement.top_line_there(old, notes, line), arrangement.top_line_heard(old, notes, line),
                new, np.nan if np.isnan(new) else low <= new <= high,
                arrangement.bass_agreement(old, notes, bounds), arrangement.chroma_kept(old, notes, bounds, line),
                arrangement.notes_kept(old, notes, line),
            ]  # fmt: skip
        return np.concatenate([row, alone, beside])


def unmoved(piece: Piece, source: str, target: str, amount: float) -> Piece:
    """The piece unchanged: real songs of the source style."""
    return piece


@dataclass(frozen=True)
class CachedPosteriors:
    """Inference that encodes a song once, however often it is moved."""

    inner: Inference
    found: dict[tuple[bool, bytes], Posterior]

    def posteriors(self, segments: Sequence[list[Ints]], refined: bool = False) -> Posterior:
        """As `Inference.posteriors`."""
        key = refined, b"|".join(chunk.tobytes() for segment in segments for chunk in segment)
        if key not in self.found:
            self.found[key] = self.inner.posteriors(segments, refined)
        return self.found[key]

    def token_log_probs(self, z: Tensor, segments: Sequence[list[Ints]]) -> Tensor:
        """As `Inference.token_log_probs`."""
        return self.inner.token_log_probs(z, segments)

    def generate_tokens(
        self, z: Tensor, given: Given | None, sampling: Sampling, guides: Sequence[Guide] = ()
    ) -> list[Ints]:
        """As `Inference.generate_tokens`."""
        return self.inner.generate_tokens(z, given, sampling, guides)


def codec_moves(codec: Codec, test: Mapping[str, Sequence[Piece]]) -> tuple[Move, dict[str, Move]]:
    """The move of a codec with its defaults, and controls with the piece's harmony and bars but other latents.

    "another song" moves the latents of the next test song of the source style; "target mean" decodes the mean of the
    target style, whatever the amount.
    """
    found: dict[tuple[bool, bytes], Posterior] = {}
    once = replace(codec, wrap=lambda inner: CachedPosteriors(inner, found))
    following = {id(piece): songs[i - 1] for songs in test.values() for i, piece in enumerate(songs)}

    def blend(piece: Piece, source: str, target: str, amount: float) -> Piece:
        return midi.read(once.blend(piece, source=source, target=target, amount=amount))

    def written(piece: Piece, z: Tensor, target: str, amount: float) -> Piece:
        goal = once.goal(target, amount)
        (score,) = once.transform(
            [piece], lambda own: z[np.arange(len(own)) % len(z)], keep=None, chroma_guidance=CHROMA_GUIDANCE,
            goal=replace(goal, calibrated=False) if isinstance(goal, Goal) else goal,
        )  # fmt: skip
        return midi.read(score)

    def another(piece: Piece, source: str, target: str, amount: float) -> Piece:
        (z,) = once.encode([following[id(piece)]])
        return written(piece, once.translate(target, source, amount)(z), target, amount)

    def mean(piece: Piece, source: str, target: str, amount: float) -> Piece:
        return written(piece, once.style(target).mean[None], target, amount)

    return blend, {"another song": another, "target mean": mean}


# --- over songs -------------------------------------------------------------------------------------------------------


def arrangements(
    move: Move, controls: Mapping[str, Move], found: Excerpts, pairs: Sequence[tuple[str, str]] = PAIRS,
    amounts: Sequence[float] = AMOUNTS, seed: int = 0, report: Report = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """All figures of a move on held-out excerpts, with those of real songs, baselines and controls.

    `found` has the styles of `pairs` (source, target). Every condition is measured on the same songs. A figure is
    measured per song, then averaged over songs with a 95 % interval (`summary`).
    """
    ruler = Ruler(found.real, seed)
    songs = [(style, piece) for style in sorted(found.test) for piece in found.test[style]]
    own = np.array([style for style, _ in songs])
    targets = sorted({target for _, target in pairs})
    conditions: dict[str, tuple[Move, float]] = {
        "source songs": (unmoved, 0.0), "rule": (ruler.rule, 1.0), "programs swapped": (ruler.swap, 1.0),
        **{f"amount {amount:g}": (move, amount) for amount in amounts},
        **{name: (control, 1.0) for name, control in controls.items()},
    }  # fmt: skip
    values = _measured(ruler, songs, conditions, pairs, targets, report)
    rows = {c: x[..., : len(arrangement.STATISTICS)].copy() for c, x in values.items()}
    for x in values.values():
        for name in KIT:
            x[:, [not ruler.has_drums[target] for target in targets], FIGURES.index(name)] = np.nan
    # a target song counts as often as its style is a target
    weight = {"target songs": np.array([[sum(pair[1] == t for pair in pairs) for t in targets]] * len(songs), float)}
    result: dict[str, Any] = {
        "protocol": {
            "pairs": [f"{a} to {b}" for a, b in pairs], "songs": {s: len(x) for s, x in found.test.items()},
            "real_songs": {s: len(x) for s, x in found.real.items()}, "bars": BARS, "amounts": list(amounts),
            "seed": seed, "classifier_accuracy": _accuracy(ruler.classifier, songs),
        },
        "all": {c: _figures(x, weight.get(c)) for c, x in values.items()},
        "pairs": {
            f"{a} to {b}": {
                c: _figures(x[own == (b if c == "target songs" else a)][:, [targets.index(b)]])
                for c, x in values.items()
            }
            for a, b in pairs
        },
    }  # fmt: skip
    named = [f"amount {amount:g}" for amount in amounts]
    over = [*((c, "rule") for c in named), *((named[-1], control) for control in controls)]
    result["differences"] = {f"{a} less {b}": _figures(values[a] - values[b]) for a, b in over}
    result["dose"] = _dose(values, named, amounts)
    compared = {c: rows[c] for c in (named[-1], "rule", "programs swapped", "target songs")}
    result["real_or_blend"] = _real_or_blend(ruler, compared, targets, named[-1], seed)
    return result


def _measured(
    ruler: Ruler, songs: Sequence[tuple[str, Piece]], conditions: Mapping[str, tuple[Move, float]],
    pairs: Sequence[tuple[str, str]], targets: Sequence[str], report: Report,
) -> dict[str, Floats]:  # fmt: skip
    """FIGURES by condition, `(songs, targets, FIGURES)`; nan where a song is not moved to a target."""
    own = np.array([style for style, _ in songs])
    values = {c: np.full((len(songs), len(targets), len(FIGURES)), np.nan) for c in [*conditions, "target songs"]}
    for source, target in pairs:
        t = targets.index(target)
        for i in np.flatnonzero(own == source).tolist():
            piece = songs[i][1]
            for name, (by, amount) in conditions.items():
                values[name][i, t] = ruler.measure(by(piece, source, target, amount), target, piece)
        report(f"moved {source} to {target}: {(own == source).sum()} songs")
    for t, target in enumerate(targets):
        for i in np.flatnonzero(own == target).tolist():
            values["target songs"][i, t] = ruler.measure(songs[i][1], target)
    return values


def summary(values: Floats, weights: Floats | None = None, seed: int = 0) -> list[float]:
    """Mean of `values (songs, targets)` without nan, and a 95 % bootstrap interval over songs: [mean, low, high].

    A song counts once per value, or with its `weights (songs, targets)`; nan without values.
    """
    known = ~np.isnan(values)
    weighed = known if weights is None else known * weights
    sums = np.stack([(weighed * np.where(known, values, 0.0)).sum(1), weighed.sum(1).astype(float)], 1)
    sums = sums[sums[:, 1] > 0]
    picks = np.random.default_rng(seed).integers(max(1, len(sums)), size=(DRAWS, len(sums)))
    if not len(sums):
        return [float("nan")] * 3
    drawn = sums[picks].sum(1)
    total = sums.sum(0)
    return [float(total[0] / total[1]), *np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5]).tolist()]


def _figures(values: Floats, weights: Floats | None = None) -> dict[str, list[float]]:
    """`summary` of each of FIGURES in `values (songs, targets, FIGURES)`; figures without values are left out."""
    figures = {name: _rounded(summary(values[..., k], weights)) for k, name in enumerate(FIGURES)}
    return {name: figure for name, figure in figures.items() if not np.isnan(figure[0])}


def _rounded(figure: Sequence[float]) -> list[float]:
    return [round(x, 4) for x in figure]


def _accuracy(classifier: StyleClassifier, songs: Sequence[tuple[str, Piece]]) -> list[float]:
    """Share of held-out songs that the classifier assigns to their own style."""
    rows = [classifier.probability(piece.notes, piece.bounds) for _, piece in songs]
    right = [max(p, key=lambda s: p[s]) == style for p, (style, _) in zip(rows, songs, strict=True)]
    return _rounded(measures.interval(np.array(right, float)))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation, with the mean rank for ties; 0 if either variable is constant."""
    ranks = []
    for values in (np.asarray(x, float), np.asarray(y, float)):
        _, at, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[at])
    a, b = (r - r.mean() for r in ranks)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else 0.0


def _dose(values: Mapping[str, Floats], named: Sequence[str], amounts: Sequence[float]) -> dict[str, list[float]]:
    """`rank_correlation` of the amount and each of DOSE, per song; amount 0 is the song itself."""
    out = {}
    for name in DOSE:
        curves = np.stack([values[c][..., FIGURES.index(name)] for c in ("source songs", *named)], -1)
        rho = np.full(curves.shape[:2], np.nan)
        for at in zip(*np.nonzero(~np.isnan(curves).any(-1)), strict=True):
            rho[at] = rank_correlation([0.0, *amounts], curves[at])
        if not np.isnan(rho).all():
            out[name] = _rounded(summary(rho))
    return out


def separation(real: Floats, other: Floats, seed: int = 0) -> tuple[Floats, Floats]:
    """Cross-validated classifier scores of `real (N, K)` and `other (M, K)`; high means `other`.

    A logistic regression (C = 0.1, balanced classes) on the statistics, standardised by the real rows, and on their
    squares. A missing statistic is replaced by the real mean and marked in a column of its own. Each row is scored by
    a fit on the other folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([real, other])
    missing = np.isnan(x)
    known = ~missing[: len(real)].all(0)
    mean, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
    mean[known], spread[known] = np.nanmean(real[:, known], 0), np.nanstd(real[:, known], 0)
    z = np.where(missing, 0.0, (x - mean) / np.where(spread > 0, spread, 1.0))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"))
    folds = StratifiedKFold(min(FOLDS, len(real), len(other)), shuffle=True, random_state=seed)
    y = np.repeat([0, 1], [len(real), len(other)])
    scores = cross_val_predict(model, np.hstack([z, z**2, missing]), y, cv=folds, method="decision_function")
    return scores[: len(real)], scores[len(real) :]


def _real_or_blend(
    ruler: Ruler, rows: Mapping[str, Floats], targets: Sequence[str], first: str, seed: int
) -> dict[str, list[float]]:
    """Area under the ROC curve of `separation` from real training songs of the target, averaged over targets.

    `rows` are statistics `(songs, targets, 13)` by condition. 0.5 means indistinguishable, 1 fully separable.
    Intervals are from a bootstrap over real songs and test songs. "A less B" is the `first` condition minus another,
    on the same draws.
    """
    rng = np.random.default_rng(seed)
    count = len(rows[first])
    drawn = np.concatenate([np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), DRAWS)])
    areas: dict[str, list[Floats]] = {name: [] for name in rows}
    for t, target in enumerate(targets):
        real = ruler.statistics[target]
        n = len(real)
        again = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), DRAWS)])
        for name, values in rows.items():
            there = ~np.isnan(values[:, t]).all(1)
            if min(there.sum(), n) < 2:
                continue
            own, other = separation(real, values[there, t], seed)
            above = (other[:, None] > own) + 0.5 * (other[:, None] == own)
            mine = drawn[:, there]
            with np.errstate(invalid="ignore"):  # a draw may have no song with this target
                areas[name].append(((mine @ above) * again).sum(1) / (mine.sum(1) * again.sum(1)))
    with np.errstate(invalid="ignore"):
        known = {name: np.nansum(x, 0) / (~np.isnan(x)).sum(0) for name, x in areas.items() if x}
    if first in known:
        known |= {f"{first} less {name}": known[first] - x for name, x in known.items() if name != first}
    return {name: _rounded([float(x[0]), *np.nanpercentile(x[1:], [2.5, 97.5])]) for name, x in known.items()}


def pairs_of(codec: Codec, every: bool = False) -> list[tuple[str, str]]:
    """PAIRS if the codec has these styles and not `every` pair is requested; else all ordered pairs of its styles."""
    styles = sorted(set(codec.styles) - {"all"})
    usual = not every and {style for pair in PAIRS for style in pair} <= {*styles}
    return list(PAIRS) if usual else list(permutations(styles, 2))


def evaluate(
    codec: Codec, data: Path, *, songs: int = 16, pairs: Sequence[tuple[str, str]] | None = None,
    amounts: Sequence[float] = AMOUNTS, half: Half = "final", seed: int = 0, report: Report = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """`arrangements` of a codec with its defaults, on at most `songs` held-out songs per style in `data`.

    Moves between the `pairs` (source, target), by default `pairs_of(codec)`. Raises StyleError for a style that the
    codec does not have, SeqVAEError for a style without songs and for fewer than two styles.
    """
    pairs = pairs_of(codec) if pairs is None else pairs
    styles = sorted({style for pair in pairs for style in pair})
    if len(styles) < 2:
        raise SeqVAEError(
            f"{codec.name or 'the model'}: there are no two styles to move between; take a model that has them, or "
            "name two of its styles"
        )
    for style in styles:
        codec.style(style)
    found = excerpts(data, styles, songs, half=half, seed=seed, group=test_songs.groups(codec))
    move, controls = codec_moves(codec, found.test)
    return arrangements(move, controls, found, pairs, amounts, seed, report)
