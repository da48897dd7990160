"""Every figure that a model card quotes, measured on songs the model was not trained on.

Knows: the protocol: which songs, how long a stretch of each, in which order what is measured, and how it is told.
Refuses to know: how anything is trained or drawn, and the parts, each in a file of its own: blends (evaluate_blend.py),
samples (evaluate_samples.py), interpolation (evaluate_paths.py). Songs are split as in training (`dataset.split_of` of
the title); the judge is fitted on real notes of the training songs alone, never on anything decoded, and figures are
quoted on the test songs. Formulas: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqvae import evaluate_blend, evaluate_paths, evaluate_samples, held_out, measures
from seqvae.codec import Codec
from seqvae.errors import SeqVAEError
from seqvae.held_out import Song
from seqvae.judge import Judge
from seqvae.midi import Piece

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Report = Callable[[str], None]
SEGMENTS = 4  # of each song that are blended, and of each sample; the first of the next
LONG = 8  # segments of each song that are reconstructed, consecutive, from a place drawn once
JUDGE_SONGS = 150  # training songs a style that the judge hears
COMPARED = 10  # times `pieces` test songs a style at most that samples are compared with
PARTS = ("melody", "bass", "drums")


def evaluate(
    codec: Codec,
    data: Path,
    *,
    pieces: int = 20,
    samples: int = 200,
    pairs: int = 200,
    seed: int = 0,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """All figures of a music model on the test songs of `data` (one folder a style).

    `pieces` bounds the test songs a style that are reconstructed and blended, `samples` is how many pieces are drawn,
    `pairs` how many ways between songs are walked. Raises SeqVAEError where a style has no test song or no training
    song.
    """
    rng = np.random.default_rng(seed)
    styles = sorted(set(codec.styles) - {"all"})
    if len(styles) < 2:
        raise SeqVAEError(
            f"{codec.name or 'the model'}: it has fewer than two styles to judge between; train or fit them"
        )
    short = SEGMENTS * codec.chunks
    found = held_out.gather(
        data, styles, train=JUDGE_SONGS, test=COMPARED * pieces, train_chunks=short, test_chunks=LONG * codec.chunks,
        rng=rng,
    )  # fmt: skip
    real = [(style, piece) for style in styles for piece in found.train[style]]
    judges = {name: Judge(real, codec.chunks, name == "judge", seed) for name in ("judge", "blind")}
    rankings = {style: measures.program_ranking([p.notes for p in found.train[style]]) for style in styles}
    measured = {style: found.test[style][:pieces] for style in styles}
    report(f"{sum(map(len, measured.values()))} test songs, judges on {len(real)} training songs")
    songs: list[Song] = []
    for style in styles:
        songs += held_out.encode(codec, style, measured[style])
        report(f"encoded {style}: {len(songs)} of {sum(map(len, measured.values()))} songs")
    fronts = [song.front(SEGMENTS, codec.chunks) for song in songs]
    result: dict[str, Any] = {
        "protocol": {"test_songs": {s: len(x) for s, x in measured.items()}, "segments": LONG, "seed": seed,
                     "bars": LONG * codec.chunks, "blended_bars": short, "intervals": "95 %, songs drawn again",
                     "decoding": "greedy, free"},
        "judge_accuracy": {name: _accuracy(judge, fronts) for name, judge in judges.items()},
    }  # fmt: skip
    result["reconstruction"] = _reconstruction(codec, songs, rng, report)
    result["interpolation"] = evaluate_paths.paths(codec, songs, pairs, rng, report)
    result["samples"] = evaluate_samples.samples(
        codec, {s: [held_out.front(p, short) for p in x] for s, x in found.test.items()}, found.train, found.trained,
        samples, SEGMENTS, seed, report,
    )  # fmt: skip
    result["blend"] = evaluate_blend.blends(codec, fronts, judges, rankings, rng, report)
    result["strength"] = evaluate_blend.strength(codec, fronts, judges["judge"], rng, report)
    return result


def _accuracy(judge: Judge, songs: Sequence[Song]) -> list[float]:
    """Share of test songs whose real notes the judge puts in their own style, with interval."""
    said = [judge.probability(song.piece.notes, song.piece.bounds) for song in songs]
    right = np.array([max(p, key=lambda s: p[s]) == song.style for p, song in zip(said, songs, strict=True)], float)
    return list(measures.interval(right))


def _reconstruction(codec: Codec, songs: Sequence[Song], rng: np.random.Generator, report: Report) -> dict[str, Any]:
    """What comes back at amount 0 for every style: notes, parts, chroma, groove; KL; what a random pair of bars shares.

    Every segment is decoded from its own z and knows nothing of the one before. note_f1_segment is the mean over
    segments, note_f1 and the parts are of the whole stretch, joined.
    """
    decoded = held_out.decode(codec, songs, [song.z for song in songs])
    rows: dict[str, list[dict[str, float]]] = {}
    dropped = total = 0
    for song, notes in zip(songs, decoded, strict=True):
        spelled = held_out.spell(codec, codec.tokenizer.encode(song.piece), song)
        total += len(song.piece.notes)
        dropped += len(song.piece.notes) - len(spelled)
        other = songs[int(rng.integers(len(songs)))]
        while other is song:
            other = songs[int(rng.integers(len(songs)))]
        random = evaluate_blend.kept(spelled, _refit(other.piece, song.piece.bounds), song.piece.bounds)
        parts = measures.part_f1(spelled, notes)
        cuts = song.piece.bounds[:: codec.chunks]
        cuts = cuts if cuts[-1] == song.piece.bounds[-1] else np.append(cuts, song.piece.bounds[-1])
        by_segment = zip(measures.bars(spelled, cuts), measures.bars(notes, cuts), strict=True)
        rows.setdefault(song.style, []).append(
            {
                "note_f1": measures.note_f1(spelled, notes),
                "note_f1_segment": float(np.mean([measures.note_f1(a, b) for a, b in by_segment if len(a)])),
                **evaluate_blend.kept(spelled, notes, song.piece.bounds),
                "kl_bits": float(song.kl.mean() / np.log(2)),
                "kl_bits_whole": float(song.kl.sum() / np.log(2)),
                "random_chroma": random["chroma"],
                "random_groove": random["groove"],
                **{name: np.nan if (x := parts[name]) is None else x for name in PARTS},
                "full_length": float(len(song.z) == LONG),
            }
        )
    out: dict[str, Any] = {"dropped_by_tokenizer": dropped / max(1, total)}
    for style in [*sorted(rows), "all"]:
        chosen = rows[style] if style != "all" else [row for one in rows.values() for row in one]
        columns = {name: np.array([row[name] for row in chosen]) for name in chosen[0]}
        out[style] = {name: list(measures.interval(x[~np.isnan(x)])) for name, x in columns.items()}
        told = ", ".join(f"{name} {out[style][name][0]:.3f}" for name in ("note_f1", *PARTS, "chroma"))
        report(f"{style}: {told}")
    return out


def _refit(piece: Piece, bounds: Ints) -> Ints:
    """A piece's notes bar by bar inside other bounds: the stranger of a random pair."""
    out = []
    for c, notes in enumerate(measures.bars(piece.notes, piece.bounds)[: len(bounds) - 1]):
        moved = notes[:, :4].copy()
        moved[:, 0] += bounds[c] - piece.bounds[c]
        out.append(moved[moved[:, 0] < bounds[c + 1]])
    return np.concatenate(out) if out else np.zeros((0, 4), np.int32)


# --- for people -------------------------------------------------------------------------------------------------------


def table(result: Mapping[str, Any]) -> str:
    """The figures as text, for people and model cards (Markdown)."""
    blend, seen = result["blend"], result["protocol"]
    songs = ", ".join(f"{n} {style}" for style, n in seen["test_songs"].items())
    accuracy = {name: _cell(x) for name, x in result["judge_accuracy"].items()}
    said = result["reconstruction"]
    reconstruction = {k: v for k, v in said.items() if isinstance(v, dict)}
    kept_names = ("note_f1", "chroma", "random_chroma", "groove", "random_groove")
    long = {s: r for s, r in reconstruction.items() if "melody" in r}
    parts = ("note_f1_segment", *PARTS)
    lines = [
        f"Test songs: {songs}; {seen['bars']} bars of each at most, means with 95 % intervals over songs. The "
        f"tokenizer drops {100 * said['dropped_by_tokenizer']:.2f} % of the notes.",
        "",
        *_rows(
            "reconstruction",
            ["note F1", "chroma kept", "of a random pair", "groove", "of a random pair", "KL, bits a segment"],
            {s: [*(_cell(r[k]) for k in kept_names), _cell(r["kl_bits"], 0)] for s, r in reconstruction.items()},
        ),
        *_rows(
            "note F1", ["a segment", *(f"{part}, whole stretch" for part in PARTS), "KL of the stretch, bits"],
            {s: [*(_cell(r[k]) for k in parts), _cell(r["kl_bits_whole"], 0)] for s, r in long.items()},
        ),
        f"The judge hears instruments and drums (accuracy on real test songs {accuracy['judge']}); the blind one "
        f"neither ({accuracy['blind']}).",
        "",
        *_rows(
            "blend, all pairs",
            ["judge's target probability", "of the blind judge", "chroma kept", "groove", *_fidelity(blend)],
            {c: [_cell(r[k]) for k in ("judge", "blind", "chroma", "groove", *_fidelity(blend).values())]
             for c, r in blend["all"].items()},
        ),
        *_rows(
            "target probability", list(blend["all"]),
            {pair: [f"{r['judge'][0]:.2f}" for r in by.values()] for pair, by in blend["pairs"].items()},
        ),
        *_rows(
            "chroma kept", list(blend["all"]),
            {pair: [f"{r['chroma'][0]:.2f}" for r in by.values()] for pair, by in blend["pairs"].items()},
        ),
        *_rows(
            "probability gained, by source style", list(next(iter(blend["margin"].values()))),
            {name: [_cell(x) for x in by.values()] for name, by in blend["margin"].items()},
        ),
    ]  # fmt: skip
    if chance := blend.get("p_values"):
        both = {name: by for name, by in chance.items() if name.endswith("over both")}
        lines += _rows(
            "p over both baselines", list(next(iter(both.values()))),
            {name: [f"{p:.1g}" for p in by.values()] for name, by in both.items()}, sideways=True,
        )  # fmt: skip
    if strength := result.get("strength"):
        lines += [
            f"Transfer strength by {strength['amount']:g} there and back (Brunner et al. 2018), all pairs: "
            f"{_cell(strength['all'])}; "
            + ", ".join(f"{pair} {_cell(x)}" for pair, x in strength["pairs"].items())
            + ".",
            "",
        ]
    if drawn := result.get("samples"):
        lines += _samples_table(drawn)
    if between := result.get("interpolation"):
        lines += _paths_table(between)
    return "\n".join(lines).rstrip()


def _cell(x: Sequence[float], digits: int = 2) -> str:
    return f"{x[0]:.{digits}f} [{x[1]:.{digits}f}, {x[2]:.{digits}f}]"


def _rows(first: str, columns: Iterable[str], body: Mapping[str, Sequence[str]], sideways: bool = False) -> list[str]:
    """A table, or nothing where there is no row; `sideways` makes rows of the columns."""
    if not body:
        return []
    head = list(columns)
    if sideways:
        head, body = list(body), {name: [cells[i] for cells in body.values()] for i, name in enumerate(head)}
    lines = [f"| {first} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in body.items()), ""]


def _fidelity(blend: Mapping[str, Any]) -> dict[str, str]:
    """Headings and names of the two figures that older results have not."""
    names = {"chroma fidelity": "chroma_fidelity", "groove fidelity": "groove_fidelity"}
    return {k: v for k, v in names.items() if all(v in row for row in blend["all"].values())}


def _samples_table(drawn: Mapping[str, Any]) -> list[str]:
    area, copies, far = drawn["overlapped_area"], drawn["copying"], drawn["frechet"]
    inside = {name: [_cell(x) for x in drawn[name].values()] for name in evaluate_samples.WITHIN}
    return [
        f"{drawn['samples']} samples at temperature {drawn['temperature']:g} beside {drawn['held_out']} held-out "
        f"songs, in their shares of styles; {100 * drawn['silent']:.1f} % are silent.",
        "",
        *_rows(
            "overlapped area with held-out songs", ["samples", "training songs"],
            {name: [_cell(by["samples"]), _cell(by["training"])] for name, by in area.items()},
        ),
        *_rows("of each piece", ["samples", "held-out songs"], inside),
        f"Fréchet distance in the latent space, {far['pieces']} pieces each: samples {_cell(far['samples'], 0)}, other "
        f"held-out songs {_cell(far['held_out'], 0)}.",
        "",
        f"Longest run of notes shared with any of {copies['training_songs']} training songs, transposed or not: "
        f"samples {_cell(copies['samples'], 1)}, held-out songs {_cell(copies['held_out'], 1)}; at most "
        f"{copies['samples_longest']} and {copies['held_out_longest']}. {_cell(copies['beyond'])} of the samples have "
        f"a longer one than 95 % of the held-out songs ({copies['held_out_95_percent']:.0f} notes).",
        "",
    ]  # fmt: skip


def _paths_table(between: Mapping[str, Any]) -> list[str]:
    columns = ["monotone", "rising_steps", "largest_step"]
    body = {
        f"{kind}, {name}": [_cell(by[name][c]) for c in columns]
        for kind, by in between.items()
        if isinstance(by, dict)
        for name in evaluate_paths.DISTANCES
    }
    return _rows(f"{between['pairs']} ways of {between['steps']} steps", [c.replace("_", " ") for c in columns], body)
