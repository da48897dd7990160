"""Calibration of anomaly scores on normal pieces: scores on one scale, and valid p-values.

Scope: anomaly scores from evidence, normal latents, split-conformal calibration, the folder of a detector. Out of
scope: computing evidence, scikit-learn (anomaly/detector.py), the command line.

The normal pieces, which should not be in the model's training set, are divided into three parts: latents from which
distances are measured, scores whose tails are estimated, and scores to compare new ones with. A new normal piece and
those of the last part are then exchangeable, so the probability of p <= a for a new normal piece is at most a, whatever
the data, the model and the score (Vovk et al. 2005; Bates et al. 2023).

A detector's folder holds `detector.json` and `calibration.safetensors`, and names its model, which stays in its place.
A released checkpoint can contain a detector, in `detector/`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.anomaly import conformal, faults
from seqvae.anomaly import odds as learning
from seqvae.anomaly.evidence import Evidence, Ints
from seqvae.anomaly.odds import Odds
from seqvae.anomaly.score_names import Score as Score
from seqvae.anomaly.tails import DIGITS, Tail, pareto_surprise
from seqvae.checkpoint.folder import find, load_tensors, save_tensors, write_folder
from seqvae.config import read
from seqvae.errors import CheckpointError, SeqVAEError
from seqvae.io.untrusted import own, refuse_pickle
from seqvae.modality import counted
from seqvae.style.mixture import shrinkage

Doubles = NDArray[np.float64]
COLUMNS: tuple[Score, ...] = (
    "probability", "error", "elbo", "importance", "worst", "familiar", "sum", "quantile", "novelty", "latent",
)  # fmt: skip
ADDED = "sum", "quantile", "novelty"  # columns that detectors of FORMAT 1 do not have
COMBINED: dict[Score, float] = {"worst": 1.0, "familiar": 0.6, "novelty": 0.6, "latent": 0.6}
"""Scores with the exponents of their p-values; chosen by faults put into normal sessions."""
EVIDENT: tuple[Score, ...] = (*COMBINED, "error")
"""Scores from which the odds of artificial faults are computed."""
_EVIDENT = [COLUMNS.index(name) for name in EVIDENT]
OTHERS = 0.6
"""Exponent of the merged p-values beside the odds: for faults of other kinds."""
FEWEST = 100  # minimum tails for learning the odds
FISHER: tuple[Score, ...] = ("elbo", "worst", "latent")
LOW = 0.1  # the quantile of `quantile`
TAILS = 250  # maximum pieces for estimating the tails
RANK = 128  # principal directions of the latent space used for distances
LATENTS = 1 << 19  # maximum numbers in the stored latents
GRAMS = 1 << 19  # maximum stored n-grams, the most frequent ones
RUN = 64  # length in tokens of the window of `familiar`
MOST_SAMPLES = 1 << 16  # maximum draws that a detector's folder may request
LEAST = 6  # minimum pieces for calibration


def figures(evidence: Evidence) -> Doubles:
    """`(8,)`: all COLUMNS except the last two, in nats a token, and `sum` in nats.

    `worst` is that of the least likely token. `familiar` is the largest mean over RUN consecutive tokens: it is low if
    no part of a long piece resembles the training data. `quantile` is that of a tenth of the tokens.
    """
    log_prob = evidence.log_prob.astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(log_prob)])
    run = min(RUN, len(log_prob))
    found = np.array(
        [
            log_prob.mean(),
            evidence.error.mean(),
            evidence.elbo / evidence.read,
            evidence.importance / evidence.read,
            log_prob.min(),
            (sums[run:] - sums[:-run]).max() / run,
            log_prob.sum(),
            np.quantile(log_prob, LOW),
        ]
    )
    return np.round(found, DIGITS)


def _grams(tokens: Ints) -> NDArray[np.int64]:
    """`(3, N)`: the n-grams of 1, 2 and 3 tokens that end at each of `tokens (N,)`, each as one number."""
    ids = np.concatenate([[1, 1], tokens.astype(np.int64) + 2])  # 1 is before the first token, 0 is no token
    pairs = ids[1:-1] << 20 | ids[2:]
    return np.stack([ids[2:], pairs, ids[:-2] << 40 | pairs])


def _known_grams(pieces: Iterable[Ints]) -> Tensor:
    """`(G,)`: the distinct n-grams of pieces, sorted; the most frequent ones if there are many."""
    every = [_grams(tokens).ravel() for tokens in pieces]
    found, counts = np.unique(np.concatenate(every) if every else np.zeros(0, np.int64), return_counts=True)
    if len(found) > GRAMS:
        found = np.sort(found[np.argsort(-counts, kind="stable")[:GRAMS]])
    return torch.from_numpy(found)


@dataclass(frozen=True)
class Calibration:
    """The reference of normal pieces for scores and p-values."""

    score: Score
    """The score that is compared."""
    centre: Tensor
    """`(D,)`: the mean of normal latents."""
    axes: Tensor
    """`(D, R)`: whitening matrix; `(z - centre) @ axes` of normal latents has variance 1 in each of R directions."""
    latents: Tensor
    """`(M, R)`: whitened normal latents."""
    grams: Tensor
    """`(G,)`: n-grams of normal pieces, sorted."""
    tails: Doubles
    """`(n, 10)`: the COLUMNS of normal pieces, each column sorted."""
    normal: Doubles
    """`(N,)`: scores of normal pieces, sorted; p-values are computed from these alone."""
    odds: Odds = field(default_factory=lambda: learning.none(len(EVIDENT), len(COLUMNS)))
    """Odds of artificial faults, from the surprises of EVIDENT and from all COLUMNS."""

    _seen: WeakKeyDictionary[Evidence, dict[Score, float]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    """Cached scores of evidence that is still referenced, since logs repeat sessions."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}  # weak references do not copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _seen=WeakKeyDictionary())

    def distance(self, means: NDArray[np.float32]) -> float:
        """Distance from the posterior means `(S, D)` to the nearest normal latent, averaged over segments.

        In standard deviations of normal latents (Mahalanobis). If the encoder sums over tokens, distance 0 means that
        token counts are those of a normal piece.
        """
        z = ((torch.from_numpy(means) - self.centre).double() @ self.axes.double()).float()
        nearest = [_nearest(part, self.latents) for part in torch.split(z, 1024)]
        return round(float(torch.cat(nearest).mean()), DIGITS)

    def novelty(self, tokens: Ints) -> float:
        """Number of n-grams of 1 to 3 tokens that no normal piece has, divided by the number of tokens."""
        grams, known = _grams(tokens).ravel(), self.grams.numpy()
        place = np.searchsorted(known, grams)
        seen = (known[np.minimum(place, len(known) - 1)] == grams).sum() if len(known) else 0
        return round(float(len(grams) - seen) / len(tokens), DIGITS)

    def scores(self, evidence: Evidence) -> dict[Score, float]:
        """All scores of a piece; low is anomalous.

        Without `odds`, `combined` is minus log sum_i p_i^(-c_i), with p_i the share of normal pieces whose i-th score
        is as low and c_i its exponent in COMBINED. As in the harmonic mean of p-values (Wilson 2019), the smallest
        p-value decides, and no other score can compensate for it. Exponents below 1 keep the rare extremes of scores
        other than `worst` from taking up the few false alarms that a small p-value allows.

        With `odds`, `combined` is minus log(sum_k o_k + h^OTHERS), with h the sum above and o_k the ratio of the
        densities of artificial faults of kind k and of normal pieces. The ratio is the most powerful test of one kind,
        and the sum that of a mixture of all (Neyman and Pearson 1933); h stands for kinds that are not among them.

        `fisher` is minus the sum of the surprises of the FISHER scores (Fisher 1925): the log-probability that a normal
        piece has scores as low, if they were independent.
        """
        if evidence not in self._seen:
            self._seen[evidence] = self._scores(self._row(evidence))
        return self._seen[evidence]

    @cached_property
    def _ends(self) -> list[tuple[Tail, Tail]]:
        """Both tails of each of the COLUMNS."""
        return learning.ends(self.tails)

    def _row(self, evidence: Evidence) -> Doubles:
        return np.append(figures(evidence), [-self.novelty(evidence.tokens), -self.distance(evidence.means)])

    def _scores(self, row: Doubles) -> dict[Score, float]:
        out = dict(zip(COLUMNS, row.tolist(), strict=True))
        columns = {name: self.tails[:, i] for i, name in enumerate(COLUMNS)}
        evident = np.array([self._ends[i][0].surprise(float(row[i])) for i in _EVIDENT])
        merged = float(np.logaddexp.reduce(evident[: len(COMBINED)] * list(COMBINED.values())))
        if len(self.odds):
            log_odds = self.odds.log(evident, learning.two_sided(self._ends, row))
            merged = float(np.logaddexp.reduce([*log_odds, OTHERS * merged]))
        fisher = sum(pareto_surprise(columns[name], out[name]) for name in FISHER)
        return {"combined": -merged, **out, "fisher": -fisher}

    def p_value(self, score: float, uniform: float | None = None) -> float:
        """(1 + number of normal pieces with a score as low) / (N + 1); with `uniform` ties are broken at random.

        See `conformal.smoothed`.
        """
        if uniform is not None:
            return conformal.smoothed(self.normal, score, uniform)
        return (1 + int(np.searchsorted(self.normal, score, side="right"))) / (len(self.normal) + 1)

    def threshold(self, p_value: float, confidence: float | None = None) -> float:
        """The score threshold for a p-value: lower scores have at most this p-value; -inf if no score can be so low.

        At most a share `p_value` of new normal pieces is below it: on average over calibrations, or, with a
        `confidence`, in that share of calibrations. It needs `conformal.sample_size` normal pieces.
        """
        rank = conformal.rank(p_value, len(self.normal), confidence)
        if rank < 1:
            return -math.inf
        return float(self.normal[rank - 1]) if rank <= len(self.normal) else math.inf

    def bound(self, threshold: float, p_value: float | None, confidence: float | None = None) -> float:
        """Upper confidence bound on the share of new normal pieces below a threshold.

        `p_value` and `confidence` are those of `threshold`; without a confidence the bound holds with 95 %. Without a
        p-value, the rank is the largest that the threshold can have. See `conformal.bound`.
        """
        if p_value is None:
            below, to = (int(np.searchsorted(self.normal, threshold, side)) for side in ("left", "right"))
            rank = max(below + 1, to)
        else:
            rank = conformal.rank(p_value, len(self.normal), confidence)
        return conformal.bound(rank, len(self.normal), confidence or conformal.CONFIDENCE)

    def quantile(self, contamination: float) -> float:
        """The threshold with a share `contamination` of the normal pieces below it."""
        return float(np.quantile(self.normal, contamination))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of calibration.safetensors."""
        return {
            "centre": self.centre,
            "axes": self.axes,
            "latents": self.latents,
            "grams": self.grams,
            "tails": torch.from_numpy(self.tails),
            "normal": torch.from_numpy(self.normal),
            **(
                {"odds": torch.from_numpy(self.odds.weights), "landmarks": torch.from_numpy(self.odds.landmarks)}
                if len(self.odds)
                else {}
            ),
        }


def _nearest(z: Tensor, latents: Tensor) -> Tensor:
    """Distance of each of `z (S, D)` to the nearest of `latents (M, D)`, by differences: equal points have 0."""
    return torch.cdist(z, latents, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def fit(
    evidence: Iterable[Evidence], score: Score = "combined", known: Sequence[Tensor] = (), seed: int = 0,
    tokens: Sequence[Ints] = (), kind: str = "", faulty: faults.Faulty | None = None,
) -> Calibration:  # fmt: skip
    """Calibrate on the evidence of normal pieces that the model was not trained on.

    Latent distances are measured from `known`, posterior means `(S, D)` of other normal pieces such as the training
    set, and novelty from their `tokens`; without them, from a third of the given pieces. With `faulty`, `combined`
    learns odds from faults in the pieces of the tails, if these are FEWEST or more. Raises SeqVAEError for fewer than
    LEAST pieces, which it calls by the noun of their `kind` of sequence.
    """
    if score not in get_args(Score):
        raise SeqVAEError(f"unknown score '{score}'; choose from {', '.join(get_args(Score))}")
    given = [(figures(one), one.means, one.tokens) for one in evidence]
    if len(given) < LEAST:
        few = counted(len(given), kind, "normal ") if kind else f"{len(given)} normal pieces"
        raise SeqVAEError(f"{few} are too few to calibrate on; give {LEAST} or more, 300 or more for p-values of 0.01")
    order = np.random.default_rng(seed).permutation(len(given)).tolist()
    third = len(given) // 3
    near, order = ([], order) if len(known) else (order[:third], order[third:])
    points = torch.cat([*known, *(torch.from_numpy(given[i][1]) for i in near)])
    centre, axes, latents = _reference(points, seed)
    grams = _known_grams([*tokens, *(given[i][2] for i in near)])
    empty = Calibration(score, centre, axes, latents, grams, np.zeros((0, len(COLUMNS))), np.zeros(0))
    rows = [np.append(given[i][0], [-empty.novelty(given[i][2]), -empty.distance(given[i][1])]) for i in order]
    tail_count = min(TAILS, third)
    tails = np.stack(rows[:tail_count])
    half = replace(empty, tails=np.sort(tails, 0))
    if faulty is not None and score == "combined" and tail_count >= FEWEST:
        found = [[empty._row(one) for one in kind] for kind in faulty(order[:tail_count])]
        half = replace(half, odds=learning.learn(tails, found, _EVIDENT, seed))
    return replace(half, normal=np.sort([half._scores(row)[score] for row in rows[tail_count:]]))


def _reference(points: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, axes and distinct points of `points (M, D)`; a random subset if there are many."""
    centre = points.mean(0)
    moved = (points - centre).double()
    covariance = moved.T @ moved / len(points)
    share = shrinkage(covariance, len(points))  # few points do not span all directions
    spread, axes = torch.linalg.eigh(covariance)
    spread = (1 - share) * spread + share * spread.mean()
    # equal points differ only by the encoder's rounding, which must not count as distance
    widest = max(float(spread.max()), float(points.double().square().mean()), 1e-12)
    axes = (axes / spread.clamp(min=1e-6 * widest).sqrt()).float()[:, -RANK:].contiguous()
    different = torch.unique(((points - centre).double() @ axes.double()).float(), dim=0)
    most = max(1, LATENTS // axes.shape[1])
    if len(different) > most:
        chosen = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed))[:most]
        different = different[chosen.sort().values]
    return centre, axes, different.contiguous()


def from_tensors(score: Score, tensors: Mapping[str, Tensor]) -> Calibration:
    """The calibration from its `tensors`; raises SeqVAEError for missing or inconsistent parts."""
    try:
        centre, axes, latents = (tensors[name].float() for name in ("centre", "axes", "latents"))
        grams = tensors["grams"].long()
        tails, normal = (tensors[name].double().numpy() for name in ("tails", "normal"))
        none = learning.none(len(EVIDENT), len(COLUMNS))
        odds = Odds(
            tensors["odds"].double().numpy() if "odds" in tensors else none.weights,
            tensors["landmarks"].double().numpy() if "landmarks" in tensors else none.landmarks,
        )
    except KeyError as error:
        raise SeqVAEError(f"a detector without {error}; fit it again") from error
    d = len(centre)
    fits = axes.ndim == 2 and len(axes) == d and latents.shape[1:] == axes.shape[1:] and len(latents) and len(tails)
    fits = fits and grams.ndim == 1 and odds.landmarks.shape[1:] == (len(COLUMNS),)
    fits = fits and odds.weights.shape[1:] == (len(EVIDENT) + len(odds.landmarks) + 1,)
    if not (fits and tails.shape[1:] == (len(COLUMNS),) and normal.ndim == 1 and score in get_args(Score)):
        raise SeqVAEError("a detector whose parts do not fit together; fit it again")
    return Calibration(score, centre, axes, latents, grams.sort().values, np.sort(tails, 0), np.sort(normal), odds)


def _from_format_1(score: Any, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Score and tensors of a detector from before `novelty`: its `combined` is `fisher` now."""
    tails = tensors.get("tails", torch.zeros(0))
    if tails.ndim == 2 and tails.shape[1] == len(COLUMNS) - len(ADDED):
        old = iter(tails.T)
        columns = [torch.zeros(len(tails), dtype=tails.dtype) if name in ADDED else next(old) for name in COLUMNS]
        tensors = {**tensors, "tails": torch.stack(columns, 1)}
    return "fisher" if score == "combined" else score, {"grams": torch.zeros(0, dtype=torch.long), **tensors}


# --- the folder of a detector -----------------------------------------------------------------------------------------

FORMAT = 4  # with odds; without them a detector is written as 2, which earlier versions read. 3 has no landmarks


@dataclass(frozen=True)
class Settings:
    """The settings of a detector besides its calibration."""

    model: str
    """A released name, a Hub id, or the path of a checkpoint."""
    threshold: float
    """Scores below it are anomalous."""
    p_value: float | None
    """The p-value of the threshold; None if the threshold is a quantile of scores (contamination)."""
    samples: int
    """Number of draws from the posterior."""
    seed: int
    """Seed of the draws."""
    about: str = ""
    """Description of the pieces it was fitted on."""
    confidence: float | None = None
    """Confidence with which the rate of false alarms is at most `p_value`; None if it holds on average."""


def recalibrated(
    found: Calibration, settings: Settings, scores: Sequence[float], about: str, *, alone: bool = False
) -> tuple[Calibration, Settings]:
    """Add the scores of new normal pieces, or replace the old ones if `alone`, and compute a new threshold.

    Scores are computed as before, so old and new ones are comparable. Added, p-values are valid if the new pieces are
    from the same source; alone, they are valid for the source of the new pieces (split-conformal prediction with the
    new calibration set). Raises SeqVAEError for too few pieces.
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
    """The message for a threshold that needs more normal pieces than there are."""
    surely = "" if confidence is None else f" with {confidence:.4g} confidence"
    return (
        f"a p-value of {p_value:g}{surely} needs {conformal.sample_size(p_value, confidence)} calibration "
        f"scores and there are {compared}, for which the lowest is "
        f"{conformal.least_share(compared, confidence):.2g}; choose that, or calibrate on more"
    )


def refuse(folder: Path) -> None:
    """Raise SeqVAEError for an existing path other than a detector's folder: it may be the model's."""
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and (
        not folder.is_dir() or not folder.name or files - {"detector.json", "calibration.safetensors"}
    ):
        raise SeqVAEError(f"{folder}: exists and is not a detector's folder; choose another -o")


def save(calibration: Calibration, settings: Settings, folder: Path, called: str | None = None) -> None:
    """Write a detector's folder, replacing an existing one; raises SeqVAEError if it cannot be written.

    The folder names its model as `called`, by default as the settings do. See `refuse` for a folder with other content.
    """
    refuse(folder)
    weights = _weights(settings.model)
    facts = {
        "format": FORMAT if len(calibration.odds) else 2,
        "weights": weights,
        "score": calibration.score,
        **settings.__dict__,
    }
    facts["model"] = called or settings.model
    if settings.confidence is None:
        del facts["confidence"]  # earlier versions do not know it
    if not math.isfinite(settings.threshold):
        facts["threshold"] = None  # JSON has no infinity

    def fill(part: Path) -> None:
        (part / "detector.json").write_text(json.dumps(facts, indent=1) + "\n")
        save_tensors(calibration.tensors(), {}, part / "calibration.safetensors")

    write_folder(folder, fill)


def load(folder: Path, model: str | None = None) -> tuple[Calibration, Settings]:
    """Read a detector's folder; `model` replaces the stored path of its model.

    Raises CheckpointError in one line for an unreadable folder, a missing model, or a model with other weights.
    """
    refuse_pickle(folder)
    try:
        facts: dict[str, Any] = read(own(folder, "detector.json"))
        version = facts.pop("format")
        if version not in (1, 2, 3, FORMAT):
            raise CheckpointError(f"{folder}: a detector of another version; fit it again with `seqvae detect fit`")
        weights, score = facts.pop("weights"), facts.pop("score")
        beside = folder.parent if (folder.parent / "config.json").is_file() else None  # inside its checkpoint
        settings = Settings(**{**facts, "model": str(model or beside or facts["model"])})
        tensors = load_tensors(own(folder, "calibration.safetensors"))[0]
        if version == 1:
            score, tensors = _from_format_1(score, tensors)
        calibration = from_tensors(score, tensors)
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
            raise ValueError(f"settings {numbers} are not all numbers")
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
    """The name of a model in a detector: a full path, or a released name or Hub id unchanged."""
    folder = find(model)
    return str(model) if isinstance(model, str) and not Path(model).exists() else str(folder.resolve())


def _weights(model: str) -> str:
    """SHA-256 of a model's weights; raises CheckpointError if they cannot be read."""
    path = find(model) / "model.safetensors"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); copy the whole checkpoint folder") from error
