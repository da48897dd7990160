"""What normal pieces are like, and how unlike them another one is: scores on one scale, and p-values that hold.

Knows: figures of evidence, where normal pieces lie in the latent space, split-conformal calibration, and the folder of
a detector. Refuses to know: how evidence is found, scikit-learn (anomaly/detector.py), the command line.

Three parts of the normal pieces are kept apart, none of which the model was trained on if it can be helped: latents to
measure distances from, figures whose tails tell how surprising a figure is, and scores to compare a new score with. A
new normal piece and those of the last part are then alike in all that happened to them, and so the chance that it gets
p <= a is at most a, whatever the data, the model and the score (Vovk et al. 2005; Bates et al. 2023).

A detector's folder holds `detector.json` and `calibration.safetensors`, and names its model, which stays where it is.
A released checkpoint carries one, in `detector/`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.anomaly import conformal
from seqvae.anomaly.scores import Evidence
from seqvae.checkpoint.folder import find, load_tensors, save_tensors, write_folder
from seqvae.checkpoint.hub import own, refuse_pickle
from seqvae.config import read
from seqvae.errors import CheckpointError, SeqVAEError
from seqvae.style.mixture import shrinkage

Score = Literal["combined", "probability", "error", "elbo", "importance", "worst", "familiar", "latent"]
Doubles = NDArray[np.float64]
COLUMNS: tuple[Score, ...] = ("probability", "error", "elbo", "importance", "worst", "familiar", "latent")
COMBINED: tuple[Score, ...] = ("elbo", "worst", "latent")  # each sees what the others do not
TAIL = 0.1  # share of the figures that are their tail
TAILS = 250  # pieces whose figures tell the tails, at most
RANK = 128  # directions of the latent space that distances are measured in, the widest
LATENTS = 1 << 19  # numbers of latents kept, at most
RUN = 64  # tokens in a row that `familiar` looks at
DIGITS = 3  # of a figure: whoever is the same comes out the same to a few last digits, which must not decide anything
MOST_SAMPLES = 1 << 16  # draws that a detector's folder may ask for
LEAST = 6  # pieces to calibrate on


def figures(evidence: Evidence) -> Doubles:
    """`(6,)`: all COLUMNS but the last, in nats a token.

    `worst` is of the least likely token, and `familiar` the mean of the likeliest RUN tokens in a row: it is low where
    nothing in a long piece is as the model knows it.
    """
    told = evidence.log_prob.astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(told)])
    run = min(RUN, len(told))
    found = np.array(
        [
            told.mean(),
            evidence.error.mean(),
            evidence.elbo / evidence.read,
            evidence.importance / evidence.read,
            told.min(),
            (sums[run:] - sums[:-run]).max() / run,
        ]
    )
    return np.round(found, DIGITS)


@dataclass(frozen=True)
class Calibration:
    """What normal pieces are like."""

    score: Score
    """Which score is compared."""
    centre: Tensor
    """`(D,)`: the mean of the latents of normal segments."""
    axes: Tensor
    """`(D, R)`: what `z - centre` is multiplied by, so that normal latents vary by 1 in each of R directions."""
    latents: Tensor
    """`(M, R)`: normal latents, less the centre and along the axes."""
    tails: Doubles
    """`(n, 7)`: the COLUMNS of normal pieces, each sorted."""
    normal: Doubles
    """`(N,)`: scores of normal pieces, sorted; the only part that p-values are counted from."""

    _seen: WeakKeyDictionary[Evidence, dict[Score, float]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    """Scores of evidence that is still held: logs repeat themselves."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}  # what is weak has no copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _seen=WeakKeyDictionary())

    def distance(self, means: NDArray[np.float32]) -> float:
        """From the posterior means `(S, D)` to the nearest normal latent, the mean over segments.

        In standard deviations of normal latents (Mahalanobis). Where a model sums over tokens, no distance means that
        their counts are those of a normal piece.
        """
        z = ((torch.from_numpy(means) - self.centre).double() @ self.axes.double()).float()
        nearest = [_nearest(part, self.latents) for part in torch.split(z, 1024)]
        return round(float(torch.cat(nearest).mean()), DIGITS)

    def scores(self, evidence: Evidence) -> dict[Score, float]:
        """Every score of a piece; low is anomalous.

        `combined` is minus the sum of how surprising each of COMBINED is: the log-probability that a normal piece has
        figures as low, were they independent.
        """
        if evidence not in self._seen:
            self._seen[evidence] = self._scores(self._row(evidence))
        return self._seen[evidence]

    def _row(self, evidence: Evidence) -> Doubles:
        return np.append(figures(evidence), -self.distance(evidence.means))

    def _scores(self, row: Doubles) -> dict[Score, float]:
        out = dict(zip(COLUMNS, row.tolist(), strict=True))
        surprise = (_surprise(self.tails[:, i], row[i]) for i, name in enumerate(COLUMNS) if name in COMBINED)
        return {"combined": -sum(surprise), **out}

    def p_value(self, score: float, uniform: float | None = None) -> float:
        """(1 + number of normal pieces with a score as low) / (N + 1); with a uniform number ties are random.

        See `conformal.smoothed`.
        """
        if uniform is not None:
            return conformal.smoothed(self.normal, score, uniform)
        return (1 + int(np.searchsorted(self.normal, score, side="right"))) / (len(self.normal) + 1)

    def threshold(self, p_value: float, confidence: float | None = None) -> float:
        """Scores below this have at most that p-value; minus infinity where no score can be so low.

        At most a share `p_value` of new normal pieces is below it: on the average over calibrations, or with a
        `confidence` in so many of them. It takes `conformal.sample_size` normal pieces.
        """
        rank = conformal.rank(p_value, len(self.normal), confidence)
        if rank < 1:
            return -math.inf
        return float(self.normal[rank - 1]) if rank <= len(self.normal) else math.inf

    def bound(self, threshold: float, p_value: float | None, confidence: float | None = None) -> float:
        """Upper confidence bound on the share of new normal pieces below a threshold.

        `p_value` and `confidence` are those that the threshold was found for; without a confidence the bound holds with
        95 %. Without a p-value the rank is the largest that the threshold may have. See `conformal.bound`.
        """
        if p_value is None:
            below, to = (int(np.searchsorted(self.normal, threshold, side)) for side in ("left", "right"))
            rank = max(below + 1, to)
        else:
            rank = conformal.rank(p_value, len(self.normal), confidence)
        return conformal.bound(rank, len(self.normal), confidence or conformal.CONFIDENCE)

    def quantile(self, contamination: float) -> float:
        """Scores below this are such a share of the normal pieces."""
        return float(np.quantile(self.normal, contamination))

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        return {
            "centre": self.centre,
            "axes": self.axes,
            "latents": self.latents,
            "tails": torch.from_numpy(self.tails),
            "normal": torch.from_numpy(self.normal),
        }


def _nearest(z: Tensor, latents: Tensor) -> Tensor:
    """Distance of each of `z (S, D)` to the nearest of `latents (M, D)`, by differences: equal ones are at 0."""
    return torch.cdist(z, latents, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def _surprise(column: Doubles, value: float) -> float:
    """-log of the share of a sorted `column (n,)` of normal figures that are as low as `value`, in nats.

    Below the lowest tenth, k of n, it is k / n / (1 + (t - value) / m), with t the first figure above it and m the mean
    of t - figure in it: a Pareto tail of shape 1, for what lies beyond everything seen may lie anywhere.
    """
    n = len(column)
    k = max(1, round(TAIL * n))
    t = float(column[min(k, n - 1)])
    if value >= t:
        return -math.log((np.searchsorted(column, value, side="right") + 1) / (n + 1))
    mean = max(t - float(column[:k].mean()), 10.0**-DIGITS)
    return -math.log((k + 1) / (n + 1)) + math.log1p((t - value) / mean)


def fit(
    evidence: Iterable[Evidence], score: Score = "combined", known: Sequence[Tensor] = (), seed: int = 0
) -> Calibration:
    """Calibrate on the evidence of normal pieces that the model was not trained on.

    Distances are measured from `known`, posterior means `(S, D)` of other normal pieces such as those it was trained
    on; where there are none, from a third of the pieces given. Raises SeqVAEError for fewer than LEAST pieces.
    """
    if score not in get_args(Score):
        raise SeqVAEError(f"no score '{score}'; choose from {', '.join(get_args(Score))}")
    given = [(figures(one), one.means) for one in evidence]
    if len(given) < LEAST:
        raise SeqVAEError(
            f"{len(given)} normal pieces are too few to calibrate on; give {LEAST} or more, 300 or more for p-values "
            "of 0.01"
        )
    order = np.random.default_rng(seed).permutation(len(given)).tolist()
    third = len(given) // 3
    near, order = ([], order) if len(known) else (order[:third], order[third:])
    points = torch.cat([*known, *(torch.from_numpy(given[i][1]) for i in near)])
    centre, axes, latents = _reference(points, seed)
    empty = Calibration(score, centre, axes, latents, np.zeros((0, len(COLUMNS))), np.zeros(0))
    rows = [np.append(given[i][0], -empty.distance(given[i][1])) for i in order]
    some = min(TAILS, third)
    half = replace(empty, tails=np.sort(np.stack(rows[:some]), 0))
    return replace(half, normal=np.sort([half._scores(row)[score] for row in rows[some:]]))


def _reference(points: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, axes and the different ones of `points (M, D)`, a random part of them where they are many."""
    centre = points.mean(0)
    moved = (points - centre).double()
    covariance = moved.T @ moved / len(points)
    share = shrinkage(covariance, len(points))  # few points do not fill all directions
    spread, axes = torch.linalg.eigh(covariance)
    spread = (1 - share) * spread + share * spread.mean()
    # points that are all alike differ by the encoder's rounding, which is no distance
    widest = max(float(spread.max()), float(points.double().square().mean()), 1e-12)
    axes = (axes / spread.clamp(min=1e-6 * widest).sqrt()).float()[:, -RANK:].contiguous()
    different = torch.unique(((points - centre).double() @ axes.double()).float(), dim=0)
    most = max(1, LATENTS // axes.shape[1])
    if len(different) > most:
        chosen = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed))[:most]
        different = different[chosen.sort().values]
    return centre, axes, different.contiguous()


def from_tensors(score: Score, tensors: Mapping[str, Tensor]) -> Calibration:
    """What `tensors` made; raises SeqVAEError where parts are missing or do not fit together."""
    try:
        centre, axes, latents = (tensors[name].float() for name in ("centre", "axes", "latents"))
        tails, normal = (tensors[name].double().numpy() for name in ("tails", "normal"))
    except KeyError as error:
        raise SeqVAEError(f"a detector without {error}; fit it again") from error
    d = len(centre)
    fits = axes.ndim == 2 and len(axes) == d and latents.shape[1:] == axes.shape[1:] and len(latents) and len(tails)
    if not (fits and tails.shape[1:] == (len(COLUMNS),) and normal.ndim == 1 and score in get_args(Score)):
        raise SeqVAEError("a detector whose parts do not fit together; fit it again")
    return Calibration(score, centre, axes, latents, np.sort(tails, 0), np.sort(normal))


# --- the folder of a detector -----------------------------------------------------------------------------------------

FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """All that a detector is besides its calibration."""

    model: str
    """A released name, a Hub id, or the path of a checkpoint."""
    threshold: float
    """A score below it is anomalous."""
    p_value: float | None
    """What the threshold was found for; None where it is a share of the pieces (contamination)."""
    samples: int
    """Draws from the posterior."""
    seed: int
    """Of the draws."""
    about: str = ""
    """The pieces it was fitted on, in words."""
    confidence: float | None = None
    """With which the rate of false alarms is at most `p_value`; None where it is so on the average."""


def recalibrated(
    found: Calibration, settings: Settings, scores: Sequence[float], about: str, *, alone: bool = False
) -> tuple[Calibration, Settings]:
    """With scores of new normal pieces beside the old ones, or `alone` in their place, and a new threshold.

    How scores are computed does not change, so that old and new ones compare. Beside the old ones, p-values hold if the
    new pieces are from the same source; alone, they hold for the source of the new ones (split-conformal prediction
    with the new calibration set). Raises SeqVAEError where these are too few.
    """
    new = replace(found, normal=np.sort(np.concatenate([np.zeros(0) if alone else found.normal, scores])))
    if settings.p_value is None:
        threshold = new.quantile(float(np.mean(found.normal < settings.threshold)))
    else:
        threshold = new.threshold(settings.p_value, settings.confidence)
    if threshold == -math.inf:
        raise SeqVAEError(too_few(len(new.normal), settings.p_value or 0.0, settings.confidence))
    about = about if alone else f"{settings.about}; {about}"
    return new, replace(settings, threshold=threshold, about=about)


def too_few(compared: int, p_value: float, confidence: float | None) -> str:
    """What to say where a threshold takes more normal pieces than there are to compare with."""
    surely = "" if confidence is None else f" with {confidence:.4g} confidence"
    return (
        f"a p-value of {p_value:g}{surely} takes {conformal.sample_size(p_value, confidence)} normal pieces to compare "
        f"with and there are {compared}, with which none is lower than "
        f"{conformal.least_share(compared, confidence):.2g}; choose so much, or calibrate on more"
    )


def refuse(folder: Path) -> None:
    """Raise SeqVAEError for what is there and is no folder of a detector alone: it may be the model's."""
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and (
        not folder.is_dir() or not folder.name or files - {"detector.json", "calibration.safetensors"}
    ):
        raise SeqVAEError(f"{folder}: is there and is no folder of a detector alone; choose another -o")


def save(calibration: Calibration, settings: Settings, folder: Path, called: str | None = None) -> None:
    """Write a detector's folder, replacing one that is there; raises SeqVAEError if it cannot be written.

    The folder names its model as it is `called`, else as the settings do. A folder with anything else in it is refused;
    see `refuse`.
    """
    refuse(folder)
    weights = _weights(settings.model)
    facts = {"format": FORMAT, "weights": weights, "score": calibration.score, **settings.__dict__}
    facts["model"] = called or settings.model
    if settings.confidence is None:
        del facts["confidence"]  # readers before it knew of none
    if not math.isfinite(settings.threshold):
        facts["threshold"] = None  # JSON has no infinity

    def fill(part: Path) -> None:
        (part / "detector.json").write_text(json.dumps(facts, indent=1) + "\n")
        save_tensors(calibration.tensors(), {}, part / "calibration.safetensors")

    write_folder(folder, fill)


def load(folder: Path, model: str | None = None) -> tuple[Calibration, Settings]:
    """Read a detector's folder; its model may be named, where it is not where it was.

    Raises CheckpointError in one line for a folder that is none, a model that is not found, or another model.
    """
    refuse_pickle(folder)
    try:
        facts: dict[str, Any] = read(own(folder, "detector.json"))
        if facts.pop("format") != FORMAT:
            raise CheckpointError(f"{folder}: a detector of another version; fit it again with `seqvae detect fit`")
        weights, score = facts.pop("weights"), facts.pop("score")
        beside = folder.parent if (folder.parent / "config.json").is_file() else None  # inside its checkpoint
        settings = Settings(**{**facts, "model": str(model or beside or facts["model"])})
        calibration = from_tensors(score, load_tensors(own(folder, "calibration.safetensors"))[0])
        share = settings.p_value is None or 0 <= settings.p_value <= 1
        if not (share and type(settings.samples) is int and 1 <= settings.samples <= MOST_SAMPLES):
            raise ValueError(f"a p-value of {settings.p_value} with {settings.samples} samples")
        if settings.confidence is not None and not (settings.p_value and 0 < settings.confidence < 1):
            raise ValueError(f"a confidence of {settings.confidence}")
        if settings.threshold is None:
            threshold = calibration.threshold(settings.p_value or 0.0, settings.confidence)
            settings = replace(settings, threshold=threshold)
        numbers = (settings.threshold, settings.p_value or 0.0, settings.samples, settings.seed)
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"settings {numbers}, which are no numbers")
    except SeqVAEError as error:
        raise CheckpointError(f"{'' if str(error).startswith(str(folder)) else f'{folder}: '}{error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: no detector can be read here ({error}); name the folder that `seqvae detect fit` wrote"
        ) from error
    if _weights(settings.model) != weights:
        raise CheckpointError(f"{folder}: was fitted with another model than {settings.model}; fit it again")
    return calibration, settings


def named(model: str | Path) -> str:
    """How a detector names its model: a path in full, a released name or a Hub id as it is."""
    folder = find(model)
    return str(model) if isinstance(model, str) and not Path(model).exists() else str(folder.resolve())


def _weights(model: str) -> str:
    """A fingerprint of a model's weights; raises CheckpointError where there are none."""
    path = find(model) / "model.safetensors"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); copy the whole checkpoint folder") from error
