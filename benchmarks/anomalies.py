r"""Detection of anomalies by a model and by baselines: AUROC, F1 and false alarms at fixed p-values.

    python benchmarks/anomalies.py logs --model hdfs --train TRAIN --known TRAIN --calibrate CAL --normal NORMAL \
        --anomalous ANOMALOUS [--autoencoder RUN_FOLDER] [--score worst] [--characters]
    python benchmarks/anomalies.py pieces --model reviews --calibrate <(head -n 2000 LINES) \
        --normal <(sed -n 2001,3000p LINES) --anomalous <(sed -n 3001,4000p LINES) --shuffle
    python benchmarks/anomalies.py false-alarms --of hdfs CAL NORMAL TRAIN --of music CALIBRATE_FOLDER NORMAL_FOLDER

Prints a Markdown table, then the sizes of the sets and the comparisons of the baselines with our --score. A file holds
one session or sentence a line; songs come as files and folders. With --characters the baselines use characters as
events. "Piece" below is a session, a sentence or a song.

All scores of our detector come from one pass. `--autoencoder` adds the reconstruction error, in nats per token, of a
model trained with objective.autoencoder=true. The baselines for logs (log_baselines.py) are fitted on --train. All
thresholds are split-conformal and come from --calibrate alone: a piece is called anomalous if its p-value is at most
--level. Our detector uses a part of these pieces for other estimates than p-values; the baselines use all of them for
p-values. The figures are given twice: over all pieces (`every`), and over distinct pieces (`once`). Both use the same
thresholds, so the guarantee on false alarms holds for all pieces only.

Speed is measured on --normal with --threads threads, from lines or notes in memory to scores. Our detector scores equal
pieces of one call once, so speed is also measured without duplicates. Definitions of the figures: detection_figures.py.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from detection_figures import Doubles, Ints, Scores, comparison, figures, markdown, promise, share_interval, table
from log_baselines import baselines, counter

from seqvae.anomaly import calibration
from seqvae.anomaly import evidence as anomaly
from seqvae.anomaly.calibration import Calibration, Score
from seqvae.checkpoint import folder as checkpoint
from seqvae.cli import inputs as kinds
from seqvae.codec import Codec
from seqvae.errors import SeqVAEError

Scorer = Callable[[Sequence[Any]], Mapping[str, Doubles]]  # scores of pieces by method, low is anomalous
LEVEL, STRICT = 0.01, 0.002  # STRICT only with enough calibration pieces
BOTH = (0.01, 0.05)  # levels of `false-alarms`
OURS = "seqvae, {}"
COMBINED = OURS.format("combined")


# --- scores -----------------------------------------------------------------------------------------------------------


def detector(
    codec: Codec, calibrate: Sequence[Any], known: Sequence[Any], samples: int, seed: int
) -> tuple[Scorer, dict[str, Calibration]]:
    """All scores of our detector, and the calibration of each."""
    near, tokens = anomaly.reference(codec, known) if known else ([], [])
    evidence = list(anomaly.examine(codec, calibrate, samples, seed))
    fitted = {OURS.format(score): calibration.fit(evidence, score, near, seed, tokens) for score in get_args(Score)}
    combined = fitted[COMBINED]  # the calibrations differ only in the score that is compared

    def score(pieces: Sequence[Any]) -> dict[str, Doubles]:
        rows = [combined.scores(one) for one in anomaly.examine(codec, pieces, samples, seed)]
        return {OURS.format(name): np.array([row[name] for row in rows]) for name in get_args(Score)}

    return score, fitted


def autoencoder(folder: Path) -> Scorer:
    """Minus the reconstruction error of a plain autoencoder in nats: mean over tokens, and of the worst token."""
    folder = folder / "best" if (folder / "best").is_dir() else folder
    codec = kinds.load(str(folder))
    if not checkpoint.load(folder).recipe.objective.autoencoder:
        raise SystemExit(f"{folder}: was not trained with objective.autoencoder=true")

    def score(pieces: Sequence[Any]) -> dict[str, Doubles]:
        # the reconstruction error uses the posterior mean; `examine` needs at least one sample, which is ignored
        found = [(one.error.mean(), one.error.min()) for one in anomaly.examine(codec, pieces, samples=1)]
        mean, worst = np.array(found, np.float64).T
        return {"plain autoencoder, error": mean, "plain autoencoder, worst": worst}

    return score


def alone(name: str, score: Callable[[Sequence[Any]], Doubles]) -> Scorer:
    """A scorer of one method."""
    return lambda pieces: {name: score(pieces)}


@dataclass(frozen=True)
class Pieces:
    """Normal and anomalous pieces, and the rows that each way of counting includes."""

    normal: list[Any]
    anomalous: list[Any]
    rows: dict[str, tuple[Ints, Ints]]
    """Indices of normal and of anomalous pieces, by way of counting (`every`, `once`)."""


def pieces_of(codec: Codec, normal: list[Any], anomalous: list[Any]) -> Pieces:
    """All pieces, with the first of each group of equal ones in `once`."""

    def key(piece: Any) -> Any:
        if isinstance(piece, str):
            return tuple(piece.split())  # not the tokens: different unknown words have one token
        return b"|".join(chunk.tobytes() for segment in codec.segments(codec.adapter.read(piece)) for chunk in segment)

    def first(pieces: Sequence[Any]) -> Ints:
        seen: dict[Any, int] = {}
        for i, piece in enumerate(pieces):
            seen.setdefault(key(piece), i)
        return np.array(list(seen.values()), np.int64)

    if not normal or not anomalous:
        raise SystemExit(
            f"the {'anomalous' if normal else 'normal'} files have no session, sentence or song; give others"
        )
    every = np.arange(len(normal)), np.arange(len(anomalous))
    return Pieces(normal, anomalous, {"every": every, "once": (first(normal), first(anomalous))})


def measured(
    score: Scorer, calibrations: Mapping[str, Calibration], pieces: Pieces, levels: Sequence[float]
) -> list[Scores]:
    """Scores of all pieces, thresholds, and pieces per second on the normal ones."""
    score(pieces.normal[:16])  # warm-up
    rates: dict[str, float] = {}
    normal: Mapping[str, Doubles] = {}
    for counted, (rows, _) in pieces.rows.items():
        if counted == "once" and len(rows) == len(pieces.normal):
            rates[counted] = rates["every"]  # no duplicates
            continue
        some = [pieces.normal[i] for i in rows]
        begin = time.perf_counter()
        found = score(some)
        rates[counted] = len(some) / (time.perf_counter() - begin)
        normal = normal or found
    anomalous = score(pieces.anomalous)
    return [
        Scores(name, normal[name], anomalous[name], {level: one.threshold(level) for level in levels}, rates)
        for name, one in calibrations.items()
    ]


# --- modes ------------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> None:
    """The modes `logs` and `pieces`."""
    logs = options.mode == "logs"
    noun = "sessions" if logs else "pieces"
    codec, read = kinds.load(options.model), kinds.kind_of(options.model).members
    calibrate, normal, anomalous, known = (
        list(read(given)) if given else []
        for given in (options.calibrate, options.normal, options.anomalous, options.known)
    )
    if options.shuffle:
        anomalous = shuffled(anomalous, options.seed)
    pieces = pieces_of(codec, normal, anomalous)
    ours, fitted = detector(codec, calibrate, known, options.samples, options.seed)
    baseline = {"": autoencoder(options.autoencoder)} if options.autoencoder else {}
    train = list(read(options.train)) if logs else []
    if logs:
        events = characters if options.characters else list
        given = events(train)
        for name, fit in baselines(options.seed).items():
            baseline[name] = alone(name, after(events, fit(given)))
    sizes = {"seqvae": len(fitted[COMBINED].normal), **({"baselines": len(calibrate)} if baseline else {})}
    levels = options.level or [LEVEL, *([STRICT] if STRICT * (min(sizes.values()) + 1) >= 1 else [])]
    scores = measured(ours, fitted, pieces, levels)
    for score in baseline.values():
        # our calibration with the baseline's scores, so that one rule computes all thresholds
        theirs = {name: replace(fitted[COMBINED], normal=np.sort(x)) for name, x in score(calibrate).items()}
        scores += measured(score, theirs, pieces, levels)
    duplicates = any(
        len(once) < len(every) for once, every in zip(pieces.rows["once"], pieces.rows["every"], strict=True)
    )
    found = {
        counted: figures(scores, counted, rows, options.seed)
        for counted, rows in pieces.rows.items()
        if counted == "every" or duplicates
    }
    once = [len(rows) for rows in pieces.rows["once"]]
    about = [
        f"{len(normal)} normal {noun} ({once[0]} distinct), {len(anomalous)} anomalous ({once[1]} distinct), "
        f"{len(calibrate)} normal for calibration."
    ]
    if logs:
        about += [seen(train, normal, "normal"), seen(train, anomalous, "anomalous")]
    about += comparison(
        found, OURS.format(options.score), [one.method for one in scores if one.method not in fitted], noun
    )
    about += [f"{who}: {promise(level, size, len(normal))}" for level in levels for who, size in sizes.items()]
    about.append(f"{options.samples} draws; {setting(codec)}.")
    if options.json:
        rows = [one.facts(counted) for counted, methods in found.items() for one in methods]
        print(json.dumps({"methods": rows, "about": about}, indent=1))
    else:
        print("\n\n".join([table(found, noun), *about]))


def after(
    events: Callable[[Sequence[str]], Sequence[str]], score: Callable[[Sequence[str]], Doubles]
) -> Callable[[Sequence[str]], Doubles]:
    """`score` applied to the lines that `events` returns."""
    return lambda lines: score(events(lines))


def characters(lines: Sequence[str]) -> list[str]:
    """Lines as sessions with characters as events, for the baselines."""
    return [" ".join(line.replace(" ", "\u2423")) for line in lines]


def seen(train: Sequence[str], lines: Sequence[str], label: str) -> str:
    """Shares of `lines` whose event sequence, and whose event counts, occur in `train`, as a sentence."""
    counts = counter(train)
    whole, vectors = {tuple(line.split()) for line in train}, {row.tobytes() for row in counts(train)}
    same = np.mean([tuple(line.split()) in whole for line in lines])
    alike = np.mean([row.tobytes() in vectors for row in counts(lines)])
    return (
        f"{100 * same:.1f} % of the {label} sessions occur in --train with the same event sequence, "
        f"{100 * alike:.1f} % with the same event counts."
    )


def shuffled(lines: Sequence[Any], seed: int) -> list[str]:
    """Lines with their words in another order, without lines that have no other order."""
    rng = np.random.default_rng(seed)
    out = []
    for line in lines:
        if not isinstance(line, str):
            raise SystemExit("--shuffle: songs have no words to shuffle; give lines of text")
        words = line.split()
        if len(set(words)) > 1:
            mixed = words
            while mixed == words:
                mixed = [words[i] for i in rng.permutation(len(words))]
            out.append(" ".join(mixed))
    return out


def false_alarms(options: argparse.Namespace) -> None:
    """The mode `false-alarms`."""
    levels = options.level or BOTH
    found, about = [], []
    for given in options.of:
        if not 3 <= len(given) <= 4:
            raise SystemExit(f"--of {' '.join(given)}: give MODEL CALIBRATE NORMAL and, optionally, KNOWN")
        codec, read = kinds.load(given[0]), kinds.kind_of(given[0]).members
        calibrate, normal = (list(read([place])) for place in given[1:3])
        known = list(read(given[3:])) if given[3:] else []
        score, fitted = detector(codec, calibrate, known, options.samples, options.seed)
        for name, scores in score(normal).items():
            for level in levels:
                hits = int((scores < fitted[name].threshold(level)).sum())
                share = (hits / len(normal), *share_interval(hits, len(normal)))
                size = len(fitted[name].normal)
                found.append({"model": given[0], "method": name, "calibrated": size, "normal": len(normal),
                              "level": level, "false_alarms": share})  # fmt: skip
        about += [f"{given[0]}: {promise(level, size, len(normal))}" for level in levels]
    if options.json:
        print(json.dumps({"false_alarms": found, "about": about}, indent=1))
        return
    head = ["model", "method", "normal pieces", *(f"called anomalous at {level:g}" for level in levels)]
    rows = [head]
    for at in range(0, len(found), len(levels)):
        shares = ["{:.2f} % [{:.2f}, {:.2f}]".format(*(100 * x for x in one["false_alarms"]))
                  for one in found[at : at + len(levels)]]  # fmt: skip
        rows.append([found[at]["model"], found[at]["method"], str(found[at]["normal"]), *shares])
    print("\n\n".join([markdown(rows), *about]))


def setting(codec: Codec) -> str:
    """Version of torch, device, threads and machine load, as text."""
    device = next(codec.model.parameters()).device
    return f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--level", type=float, action="append", help="p-value below which a piece is anomalous")
    common.add_argument("--samples", type=int, default=16, help="draws from the posterior")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--threads", type=int, default=os.cpu_count())
    common.add_argument("--json", action="store_true")
    two = argparse.ArgumentParser(add_help=False)
    two.add_argument("--model", required=True)
    for name in ("calibrate", "normal", "anomalous"):
        two.add_argument(f"--{name}", nargs="+", required=True, metavar="PATH")
    two.add_argument("--known", nargs="+", metavar="PATH", help="the model's training data, for distances")
    two.add_argument("--score", choices=get_args(Score), default="combined", help="our score in the comparison")
    two.add_argument("--autoencoder", type=Path, metavar="FOLDER", help="folder of a run or of a checkpoint")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    logs = modes.add_parser("logs", parents=[two, common], help="sessions of event ids, with baselines")
    logs.add_argument("--train", nargs="+", required=True, metavar="PATH", help="training data of the baselines")
    logs.add_argument("--characters", action="store_true", help="use characters as events, for requests")
    logs.set_defaults(shuffle=False)
    pieces = modes.add_parser("pieces", parents=[two, common], help="sentences or songs")
    pieces.add_argument("--shuffle", action="store_true", help="shuffle the words of the anomalous lines")
    alarms = modes.add_parser("false-alarms", parents=[common], help="share of normal pieces called anomalous")
    alarms.add_argument(
        "--of",
        nargs="+",
        action="append",
        required=True,
        metavar="PLACE",
        help="MODEL CALIBRATE NORMAL and, optionally, KNOWN; repeatable",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        (false_alarms if options.mode == "false-alarms" else compare)(options)
    except SeqVAEError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
