"""Files of styles: tensors and JSON, without pickle.

Scope: styles to tensors and back, with checks of their sizes and numbers. Out of scope: fitting and moves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqvae.checkpoint.folder import load_tensors, save_tensors
from seqvae.errors import StyleError
from seqvae.music.band import Ensemble
from seqvae.style.exemplars import principal
from seqvae.style.gaussian import Effect, Level, Style
from seqvae.style.line_classifier import BUCKETS, LineWeights

RANK = 128  # directions of a covariance stored on disk
MOST = 1 << 28  # maximum numbers in all covariances of one file


def pack(styles: Mapping[str, Style], rank: int = RANK) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text for styles.safetensors.

    A covariance is stored as its `rank` largest directions and the remaining variances, `F F^T + diag(v)`, as in factor
    analysis. This keeps the diagonal and takes a tenth of the space. Of dimensions that are not shared, which have the
    moments of the prior, only the number is stored. Sums are stored as `principal` returns them, probabilities of
    chords as their roots in 255ths.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, str] = {}
    for name, style in styles.items():
        own = style.shared or len(style.mean)  # the other dimensions have no covariances
        values, vectors = torch.linalg.eigh(style.covariance[:own, :own].double())
        factors = (vectors * values.clamp(min=0).sqrt())[:, -rank:].half()
        left = (style.covariance.diagonal()[:own] - factors.float().square().sum(1)).clamp(min=0)
        mean = style.mean[:own].float().clone()  # a file may not hold a tensor twice, and a style may have two names
        tensors |= {f"{name}.mean": mean, f"{name}.factors": factors, f"{name}.variances": left.float()}
        tensors |= {} if style.offset is None else {f"{name}.offset": style.offset.half()}
        if style.exemplars is not None:
            weights, directions = principal(style.exemplars.double())
            tensors |= {f"{name}.coefficients": weights.half(), f"{name}.directions": directions.half()}
        if style.ensemble is not None:
            for part in fields(Ensemble):
                kept = torch.from_numpy(getattr(style.ensemble, part.name))
                if part.name == "chords":
                    kept = (255 * kept.sqrt()).round().byte()
                else:
                    kept = kept.half() if part.name in ("hits", "accents") else kept.float()
                tensors[f"{name}.{part.name}"] = kept
        facts: dict[str, Any] = {"count": style.count, "source": style.source, "persistence": style.persistence}
        facts |= {"shared": style.shared, "dimensions": len(style.mean)} if style.shared else {}
        facts |= {"level": asdict(style.level)} if style.level else {}
        if style.classifier is not None:
            tensors[f"{name}.classifier"] = style.classifier.weights.half()
            facts["among"] = style.classifier.among
        effects = {source: asdict(effect) for source, effect in style.effects.items()}
        about[name] = json.dumps(facts | {"effects": effects} if effects else facts)
    return tensors, about


def unpack(tensors: Mapping[str, Tensor], about: Mapping[str, str], dimensions: int | None = None) -> dict[str, Style]:
    """Styles from the result of `pack`.

    Raises StyleError for missing tensors, NaN, or another number of dimensions. Sizes are checked before a covariance
    is computed, since it is far larger than its stored form.
    """
    try:
        known = {name: json.loads(facts) for name, facts in about.items()}
        sizes = [int(facts.get("dimensions", tensors[f"{name}.mean"].numel())) for name, facts in known.items()]
        if sum(size**2 for size in sizes) > MOST:
            raise StyleError(
                f"{len(sizes)} styles of {max(sizes):,} dimensions are too large; write fewer into one file"
            )
        return {name: _style(name, tensors, facts, dimensions) for name, facts in known.items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StyleError(f"not a styles file ({error}); write one with `seqvae style fit`") from error


def _style(name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dimensions: int | None) -> Style:
    """One style of a file."""
    shared = _shared(name, facts)
    mean, factors, variances = _moments(name, tensors, dimensions, shared, facts.get("dimensions"))
    return Style(
        mean,
        factors @ factors.T + variances.diag(),
        facts["count"],
        facts["source"],
        facts["persistence"],
        _exemplars(name, tensors, len(mean)),
        _ensemble(name, tensors),
        {source: _effect(effect) for source, effect in facts.get("effects", {}).items()},
        _classifier(name, tensors, facts.get("among", ())),
        shared,
        _level(name, facts.get("level")),
        _offset(name, tensors, len(mean)),
    )


def _level(name: str, facts: Mapping[str, Any] | None) -> Level | None:
    """The level of a style, None if there is none; raises StyleError for numbers that are none."""
    if facts is None:
        return None
    level = Level(**facts)
    if not all(math.isfinite(x) for x in (level.mean, level.low, level.high, level.crowded)):
        raise StyleError(f"style '{name}': its {level.attribute} is not finite; fit it again")
    return level


def _offset(name: str, tensors: Mapping[str, Tensor], dimensions: int) -> Tensor | None:
    """The offset of a style, None if there is none; raises StyleError for a damaged one."""
    offset = tensors.get(f"{name}.offset")
    if offset is None:
        return None
    if offset.shape != (dimensions,) or not bool(offset.isfinite().all()):
        raise StyleError(f"style '{name}': its offset is damaged; fit it again")
    return offset.float()


def _shared(name: str, facts: Mapping[str, Any]) -> int:
    """The shared dimensions of a style; raises StyleError for an impossible number."""
    shared = facts.get("shared", 0)
    if type(shared) is not int or shared < 0:
        raise StyleError(f"style '{name}': {shared!r} shared dimensions; fit it again")
    return shared


def _moments(
    name: str, tensors: Mapping[str, Tensor], dimensions: int | None, shared: int, whole: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `(D,)`, factors `(D, R)` and remaining variances `(D,)` of a style; raises StyleError for damaged ones.

    The file has the `shared` dimensions alone, where there are such: the others, up to the `whole` number, are those of
    the prior. Files of earlier versions have mean and variances of all.
    """
    mean, factors, variances = (tensors[f"{name}.{part}"].float() for part in ("mean", "factors", "variances"))
    if whole is not None and mean.shape == variances.shape == (shared,):
        mean = torch.nn.functional.pad(mean, (0, whole - shared))
        variances = torch.nn.functional.pad(variances, (0, whole - shared), value=1.0)
    if dimensions is not None and mean.shape != (dimensions,):
        raise StyleError(
            f"style '{name}' has {mean.numel()} dimensions, the model {dimensions}; fit it with this model"
        )
    if mean.ndim == 1 and factors.ndim == 2 and 0 < len(factors) == shared <= len(mean):
        factors = torch.nn.functional.pad(factors, (0, 0, 0, len(mean) - shared))
    if factors.shape[:-1] != mean.shape or variances.shape != mean.shape or mean.ndim != 1:
        raise StyleError(f"style '{name}': mean and covariance differ in size; fit it again")
    if not (all(part.isfinite().all() for part in (mean, factors, variances)) and (variances >= 0).all()):
        raise StyleError(f"style '{name}': holds NaN, infinity or a negative variance; fit it again")
    return mean, factors, variances


def _exemplars(name: str, tensors: Mapping[str, Tensor], dimensions: int) -> Tensor | None:
    """The sums of a style, None if there are none; raises StyleError for damaged ones."""
    if f"{name}.coefficients" in tensors:
        weights, directions = tensors[f"{name}.coefficients"].float(), tensors[f"{name}.directions"].float()
        if directions.ndim != 2 or weights.shape[2:] != directions.shape[:1]:
            raise StyleError(f"style '{name}': its sums of pieces and their directions differ in size; fit it again")
        if weights.shape[:2].numel() * directions.shape[1] > MOST:
            raise StyleError(f"style '{name}': its sums of pieces are too large; fit it again")
        exemplars = weights @ directions
    elif f"{name}.sums" in tensors:  # older files store them directly
        exemplars = tensors[f"{name}.sums"].float()
    else:
        return None
    if exemplars.ndim != 3 or len(exemplars) < 2 or not exemplars.shape[1] or exemplars.shape[2] != dimensions:
        raise StyleError(f"style '{name}': its sums of pieces and its mean differ in size; fit it again")
    if not exemplars.isfinite().all():
        raise StyleError(f"style '{name}': its sums of pieces hold NaN or infinity; fit it again")
    return exemplars


def _ensemble(name: str, tensors: Mapping[str, Tensor]) -> Ensemble | None:
    """The ensemble of a style, None if there is none; raises StyleError for a damaged one."""
    sizes = {"programs": (129,), "hits": (48, 128), "size": (3,), "notes": (3,)}
    found = {part: tensors[f"{name}.{part}"] for part in sizes if f"{name}.{part}" in tensors}
    if not found:
        return None
    if {part: tuple(x.shape) for part, x in found.items()} != sizes:
        raise StyleError(f"style '{name}': its ensemble is incomplete; fit it again")
    if not all(bool((x.isfinite() & (x >= 0)).all()) for x in found.values()):
        raise StyleError(f"style '{name}': its ensemble holds NaN, infinity or a negative number; fit it again")
    ensemble = Ensemble(**{part: x.double().numpy() for part, x in found.items()})
    for part in ("accents", "chords"):  # files of earlier versions have none
        table = tensors.get(f"{name}.{part}")
        if table is None:
            continue
        if table.shape != getattr(ensemble, part).shape or not bool(table.isfinite().all()):
            raise StyleError(f"style '{name}': its {part} are damaged; fit it again")
        values = table.double() if table.dtype.is_floating_point else (table.double() / 255).square()
        ensemble = replace(ensemble, **{part: values.numpy()})
    if (ensemble.chords < 0).any():
        raise StyleError(f"style '{name}': its chords have a negative probability; fit it again")
    return ensemble


def _classifier(name: str, tensors: Mapping[str, Tensor], among: Sequence[str]) -> LineWeights | None:
    """The classifier of a style, None if there is none; raises StyleError for a damaged one."""
    weights = tensors.get(f"{name}.classifier")
    if weights is None:
        return None
    if weights.shape != (BUCKETS + 1,) or not bool(weights.isfinite().all()) or name not in among:
        raise StyleError(f"style '{name}': its classifier is damaged; fit it again")
    return LineWeights(weights.float(), tuple(among))


def _effect(facts: Mapping[str, Any]) -> Effect:
    """An effect from JSON, with lists made tuples again."""
    figures = {name: tuple(facts[name]) for name in ("before", "after", "control")}
    names = [name for name in ("kept", "kept_of_another", "kept_of_none") if name in facts]
    kept = {of: {name: tuple(x) for name, x in facts[of].items()} for of in names}
    return Effect(**{**facts, **figures, **kept})


def save(styles: Mapping[str, Style], path: Path) -> None:
    """Write styles to one .safetensors file."""
    save_tensors(*pack(styles), path)


def load(path: Path, dimensions: int | None = None) -> dict[str, Style]:
    """Read styles that `save` wrote; raises StyleError if they have another number of dimensions."""
    tensors, about = load_tensors(path)
    try:
        return unpack(tensors, about, dimensions)
    except StyleError as error:
        raise StyleError(f"{path}: {error}") from error
