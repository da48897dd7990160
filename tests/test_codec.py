"""Pieces to latent vectors and back; other pieces change nothing, and what has no token comes from the original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakePiece, Trained, groove, rows
from torch import Tensor

import seqvae
from seqvae import codec
from seqvae.checkpoint import folder as checkpoint
from seqvae.codec import Codec
from seqvae.errors import CheckpointError, ReadError, StyleError, UsageError
from seqvae.music import arrangement, band
from seqvae.music import piece as midi
from seqvae.music.piece import Piece
from seqvae.nn import inference
from seqvae.nn.posterior import Posterior
from seqvae.nn.refine import refine
from seqvae.nn.sampling import Sampling
from seqvae.style import arranger, styles_file, translation
from seqvae.style import interpolation as interpolate
from seqvae.style.gaussian import Style

SHORT = Sampling(max_tokens=48)


def bars(score: Any, bounds: Any) -> list[int]:
    """Notes that begin in each bar."""
    ticks = midi.TICKS_PER_BEAT // midi.STEPS_PER_BEAT
    at = np.searchsorted(np.asarray(bounds) * ticks, [row[0] for row in rows(score)], side="right") - 1
    return [int(count) for count in np.bincount(at, minlength=len(bounds) - 1)]


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_each_piece_has_a_latent_vector_per_segment(small: Codec, song: Piece, bach: Piece) -> None:
    pieces = [song, groove(0), groove(1, bars=1), bach]
    latents = small.encode(pieces)
    assert [tuple(z.shape) for z in latents] == [(-(-(len(p.bounds) - 1) // 2), 16) for p in pieces]
    assert all(z.isfinite().all() for z in latents)
    assert small.encode([]) == []


def test_other_pieces_do_not_change_a_latent(
    small: Codec, song: Piece, bach: Piece, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, pieces = replace(small, exact=True), [bach, song, groove(4)]
    together = exact.encode(pieces)
    alone = [exact.encode([piece])[0] for piece in pieces]
    monkeypatch.setattr(inference, "BATCH_TOKENS", 64)
    in_small_batches = exact.encode(pieces)
    for a, b, c in zip(together, alone, in_small_batches, strict=True):
        assert torch.equal(b, a)
        assert torch.equal(c, a)
    assert (together[0][0] - together[0][1]).abs().max() > 0.1, "segments differ"


def test_every_kind_of_source_gives_the_same_music(small: Codec, song: Piece, tmp_path: Path) -> None:
    score = midi.to_score(song.notes, song.frame)
    path = midi.write(score, tmp_path / "song.mid")
    sources = [path, str(path), path.read_bytes(), score, midi.to_pretty_midi(score)]
    expected = small.encode([midi.read(path)])[0]
    for z in small.encode(sources):
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-5)


def test_an_unreadable_piece_is_an_error_in_one_line(small: Codec, tmp_path: Path) -> None:
    (tmp_path / "bad.mid").write_bytes(b"MThd")
    for call in (lambda p: small.encode([p]), small.reconstruct, lambda p: small.blend(p, target="odd")):
        with pytest.raises(ReadError, match=r"bad\.mid"):
            call(tmp_path / "bad.mid")


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_a_reconstruction_resembles_the_original(small: Codec) -> None:
    own = other = 0
    pieces = [groove(i) for i in range(0, 12, 3)]
    back = [{(row[0], row[2], row[3]) for row in rows(small.reconstruct(piece))} for piece in pieces]
    for i, piece in enumerate(pieces):
        true = {(row[0] * 40, row[2], row[3]) for row in piece.notes.tolist()}
        own += len(true & back[i])
        other += len(true & back[i - 1])
        assert 0.3 * len(true) < len(back[i]) < 2 * len(true)
    assert own > 1.2 * other, "even a model trained for some seconds follows its input"


def test_other_pieces_do_not_change_a_decoded_piece(small: Codec, song: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = replace(small, exact=True)
    latents = exact.encode([groove(0), song, groove(5)])
    for sampling in (None, Sampling(temperature=1.0, seed=3, max_tokens=60)):
        together = exact.decode(latents, sampling=sampling)
        for count in (1, 2):
            alone = exact.decode(latents[:count], sampling=sampling)
            assert [rows(score) for score in alone] == [rows(score) for score in together[:count]]
        if sampling is None:  # otherwise the samples of a piece also depend on its index
            assert [rows(exact.decode([z])[0]) for z in latents] == [rows(score) for score in together]
        with monkeypatch.context() as patch:
            patch.setattr(inference, "BATCH_CHUNKS", 4)
            assert [rows(score) for score in exact.decode(latents, sampling=sampling)] == [rows(s) for s in together]
        first = small.generate_tokens(latents[0], None, sampling or Sampling())
        part = small.generate_tokens(latents[0][:2], None, sampling or Sampling())
        assert [chunk.tolist() for chunk in part] == [chunk.tolist() for chunk in first[:4]]


def test_a_new_piece_has_bars_of_four_four(small: Codec) -> None:
    (score,) = small.decode([torch.zeros(3, 16)])
    assert [(s.time, s.numerator, s.denominator) for s in score.time_signatures] == [(0, 4, 4)]
    assert len(score.tempos) == 1
    assert max((row[0] for row in rows(score)), default=0) < 6 * 4 * midi.TICKS_PER_BEAT


def test_latents_of_another_size_are_refused(small: Codec) -> None:
    for z in (torch.zeros(2, 15), torch.zeros(16)):
        with pytest.raises(CheckpointError, match=r"\(segments, 16\)"):
            small.decode([z])


def frame(score: Any) -> Any:
    """Tempo, metre and keys, times in steps."""
    return midi.frame_rows(score.resample(midi.STEPS_PER_BEAT))


def test_tempo_metre_and_keys_come_from_the_original(small: Codec, song: Piece) -> None:
    moved = [small.reconstruct(song), small.blend(song, target="odd", source="even", sampling=SHORT)]
    moved += small.decode(small.encode([song]), like=[song])
    for score in moved:
        assert frame(score) == midi.frame_rows(song.frame)
        assert rows(score), "there is music in it"
        again = midi.read(midi.to_bytes(score))
        assert again.bounds.tolist() == song.bounds[: len(again.bounds)].tolist(), "the bars are unchanged"
        assert bars(score, song.bounds)[11:] == [], "and there are no more of them"


def test_empty_bars_stay_empty(small: Codec, song: Piece) -> None:
    before = np.bincount(np.searchsorted(song.bounds, song.notes[:, 0], side="right") - 1, minlength=11)
    assert np.flatnonzero(before == 0).tolist() == [1, 4, 6, 7]
    for score in (small.reconstruct(song), small.blend(song, target="odd", amount=1.5, sampling=SHORT)):
        after = bars(score, song.bounds)
        assert [after[bar] for bar in (1, 4, 6, 7)] == [0, 0, 0, 0]
        assert sum(after) > 0


def test_the_last_of_an_odd_number_of_bars_is_kept(small: Codec) -> None:
    for count in (1, 3):
        piece = groove(2, bars=count)
        assert len(small.segments(piece)) == (count + 1) // 2
        after = bars(small.reconstruct(piece), np.arange(count + 2) * 48)
        assert after[-1] == 0, "the padding of the last segment stays empty"
        assert after[count - 1] > 0


def test_a_bar_keeps_its_loudness(small: Codec, song: Piece) -> None:
    ticks = song.bounds * 40
    found = rows(small.reconstruct(song))
    for time, _, _, _, velocity in found:
        assert velocity == 40 + 5 * (int(np.searchsorted(ticks, time, side="right")) - 1)


def test_a_piece_without_notes_stays_empty(small: Codec, make_piece: MakePiece) -> None:
    silence = make_piece([], [0, 48, 96])
    for score in (small.reconstruct(silence), small.blend(silence, target="odd")):
        assert rows(score) == []


# --- moving -----------------------------------------------------------------------------------------------------------


def test_amount_0_is_the_reconstruction(small: Codec, song: Piece) -> None:
    expected = rows(small.reconstruct(song))
    assert rows(small.blend(song, target="odd", source="even", amount=0)) == expected
    assert rows(small.blend(song, target="odd", amount=0)) == expected
    assert rows(small.blend(song, target="odd", source="even", amount=0, method="transport")) == expected
    assert rows(small.blend(song, target="odd", source="odd", amount=3)) == expected


def test_a_blend_decodes_the_moved_latents(small: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = groove(2)
    z = small.encode([piece])[0]
    decoded: list[list[Tensor]] = []
    write = small.generate_tokens

    def keep(self: Codec, z: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        decoded[-1].append(z)
        return write(z, *arguments, **named)

    monkeypatch.setattr(Codec, "generate_tokens", keep)
    odd, even = small.styles["odd"], small.styles["even"]
    moves: list[dict[str, Any]] = [
        {"target": "odd", "source": "even", "amount": 0.5},
        {"target": odd, "amount": 0.25},
        {"target": "odd", "source": even, "amount": 0.75, "method": "transport"},
    ]
    for moved in moves:
        decoded.append([])
        small.blend(piece, **moved)
    expected = [  # entering parts are fully generated; the amount decides their number
        z + odd.mean - even.mean,
        z + odd.mean - z.mean(0),
        z + (translation.blend(z, even, odd, 0.75, "transport") - z) / 0.75,
    ]
    for (first, *farther), there in zip(decoded, expected, strict=True):
        torch.testing.assert_close(first, there, rtol=1e-4, atol=1e-4)
        for times, more in zip(arranger.FARTHER[1:], farther, strict=False):
            torch.testing.assert_close(more, z + times * (there - z), rtol=1e-4, atol=1e-4)


def test_an_unknown_style_lists_the_styles(small: Codec, song: Piece) -> None:
    for call in (
        lambda: small.blend(song, target="polka"),
        lambda: small.blend(song, target="odd", source="polka"),
        lambda: small.sample(1, style="polka"),
    ):
        with pytest.raises(StyleError, match="no style 'polka' in small; there are: even, odd"):
            call()


def test_transport_without_a_source_style_is_refused(small: Codec, song: Piece) -> None:
    with pytest.raises(StyleError, match="--from"):
        small.blend(song, target="odd", method="transport")


def test_a_style_is_fitted_on_pieces(small: Codec) -> None:
    pieces = [groove(0), groove(3, bars=3)]
    fitted = small.fit_style(pieces, "two grooves")
    expected = torch.stack([z.mean(0) for z in small.encode(pieces)]).mean(0)
    torch.testing.assert_close(fitted.mean, expected, rtol=1e-4, atol=1e-5)
    assert (fitted.count, fitted.source) == (2, "two grooves")
    with pytest.raises(StyleError):
        small.fit_style([])


def test_the_ends_of_an_interpolation_are_the_reconstructions(small: Codec, song: Piece) -> None:
    other = groove(7, bars=5)
    way = small.interpolate(song, other, steps=4)
    assert len(way) == 4
    assert rows(way[0]) == rows(small.reconstruct(song))
    assert rows(way[-1]) == rows(small.reconstruct(other))
    own = midi.frame_rows(song.frame), midi.frame_rows(other.frame)
    ways = [[own[0]] * near + [own[1]] * (4 - near) for near in (1, 2, 3)]
    assert [frame(score) for score in way] in ways, "the nearer end's frame, and steps are even in what is decoded"


def test_the_ends_of_an_interpolation_and_the_corners_of_a_grid_are_refined_once(
    small: Codec, song: Piece, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def counted(model: Any, tokens: Tensor, *rest: Any) -> Posterior:
        searched.append(len(tokens))
        return refine(model, tokens, *rest)

    monkeypatch.setattr(inference, "refine", counted)
    monkeypatch.setattr(small, "refinement", replace(small.refinement, steps=2))
    pieces = [song, groove(3), groove(7, bars=5), groove(2)]
    sizes = [len(small.segments(piece)) for piece in pieces]
    small.interpolate(pieces[0], pieces[1], steps=3)
    assert sum(searched) == sum(sizes[:2])
    searched.clear()
    small.grid(pieces, 2)
    assert sum(searched) == sum(sizes)


def test_an_interpolation_from_a_piece_to_itself_is_constant(small: Codec) -> None:
    piece = groove(7)
    expected = rows(small.reconstruct(piece))
    assert all(rows(score) == expected for score in small.interpolate(piece, piece, steps=3))


@pytest.mark.parametrize("kind", ["line", "slerp"])
def test_an_interpolation_uses_points_of_the_path_without_reversals(small: Codec, kind: str) -> None:
    a, b = small.encode([groove(0), groove(7)])
    z, decoded = small.walk(a, b, 5, kind)
    path = interpolate.path(a, b, 4 * codec.CANDIDATES + 1, kind)
    places = [int((path - one).flatten(1).norm(dim=1).argmin()) for one in z]
    assert torch.equal(z, path[places])
    assert (places[0], places[-1]) == (0, 4 * codec.CANDIDATES)
    assert sorted(set(places)) == places
    texts = [chunks for chunks, _ in decoded]
    assert [[x.tolist() for x in one] for one in texts] == [[x.tolist() for x in one] for one in small._spelled(
        list(z), [small.adapter.blank(len(a) * small.chunks)] * 5)]  # fmt: skip

    def back(points: list[int]) -> float:
        """Total change of the distances from both ends in the wrong direction."""
        pieces = small._spelled(list(path[points]), [small.adapter.blank(len(a) * small.chunks)] * len(points))
        there, left = (np.array([small.adapter.apart(pieces[end], one) for one in pieces]) for end in (0, -1))
        return float(np.maximum(-np.diff(there, axis=0), 0).sum() + np.maximum(np.diff(left, axis=0), 0).sum())

    assert back(places) <= back([i * codec.CANDIDATES for i in range(5)]) + 1e-9


def test_the_pieces_of_an_interpolation_are_those_of_its_path(small: Codec) -> None:
    a, b = groove(0), groove(7)
    pieces = small.interpolate(a, b, steps=3)
    za, zb = small.encode([a, b])
    _, decoded = small.walk(za, zb, 3, ends=[a, b])
    chunks, end = decoded[1]
    assert rows(pieces[1]) == rows(small.adapter.assemble(chunks, [a, b][end]))


def test_a_grid_has_four_corners_and_the_frames_of_the_nearest(small: Codec, song: Piece) -> None:
    corners = [song, groove(3), groove(7, bars=5), groove(2)]
    sheet = small.grid(corners, 4)
    assert [len(row) for row in sheet] == [4, 4, 4, 4]
    ends = [sheet[0][0], sheet[0][-1], sheet[-1][0], sheet[-1][-1]]
    assert [rows(score) for score in ends] == [rows(small.reconstruct(piece)) for piece in corners]
    assert frame(sheet[1][1]) == midi.frame_rows(song.frame)
    assert frame(sheet[1][2]) == midi.frame_rows(corners[1].frame)
    with pytest.raises(ValueError, match="four corners, not 3"):
        small.grid(corners[:3])


# --- several styles, and kept parts -----------------------------------------------------------------------------------


def test_weights_add_up_and_the_amount_scales_them(small: Codec) -> None:
    z = small.encode([groove(1)])[0]
    odd, even, source = (small.styles[name].mean for name in ("odd", "even", "all"))
    expected = z + 0.3 * (odd - source) + 0.5 * (even - source)
    torch.testing.assert_close(small.translate({"odd": 0.3, "even": 0.5}, "all")(z), expected, rtol=1e-4, atol=1e-5)
    doubled = small.translate({"odd": 0.6, "even": 1.0}, "all", amount=0.5)(z)
    torch.testing.assert_close(doubled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.translate({"odd": 0.7})(z), small.translate("odd", amount=0.7)(z))
    torch.testing.assert_close(small.translate({})(z), z)
    own = small.translate({"odd": 0.3, "even": 0.5})(z)
    torch.testing.assert_close(own, z + 0.3 * (odd - z.mean(0)) + 0.5 * (even - z.mean(0)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("keep", "program"), [("drums", 128), (33, 33), ("Acoustic Grand Piano", 0)])
def test_kept_parts_are_unchanged_and_the_rest_is_blended(small: Codec, keep: str | int, program: int) -> None:
    piece = groove(2)
    blended, kept = (rows(small.blend(piece, target="odd", amount=2, keep=parts)) for parts in ((), (keep,)))
    old = rows(midi.to_score(piece.notes, piece.frame))
    assert [row for row in kept if row[3] == program] == [row for row in old if row[3] == program]
    assert [row for row in kept if row[3] != program] == [row for row in blended if row[3] != program]


def test_a_kept_melody_stays_in_any_blend(small: Codec) -> None:
    piece = groove(2)
    kept = rows(small.blend(piece, target="odd", amount=2, keep=["melody"]))
    top = {at: pitch for at, _, pitch, program, _ in sorted(rows(midi.to_score(piece.notes, piece.frame)))
           if program == 0}  # fmt: skip
    assert all([row for row in kept if row[0] == at and row[3] == 0 and row[2] == pitch] for at, pitch in top.items())


def test_a_blend_is_arranged_for_one_band_with_the_melody_on_top(small: Codec) -> None:
    piece = groove(2)
    assert small.goal("odd", 0) is None
    assert small.goal({"odd": 0.3, "even": -0.1}) is None
    goal = small.goal({"odd": 0.3, "even": 0.1})
    assert goal is not None
    assert goal.amount == pytest.approx(0.4)
    for amount in (0.5, 1.0):
        blend = midi.read(small.blend(piece, target="odd", source="even", amount=amount))
        shares = arranger.program_shares(small, small.encode([piece])[0], None)
        assert shares is not None
        assert shares.sum() == pytest.approx(1, abs=1e-3)
        assert arrangement.top_line_heard(piece.notes, blend.notes) == 1
        assert len(np.unique(blend.notes[:, midi.PROGRAM])) <= band.MOST


def test_a_pickup_is_unchanged(small: Codec) -> None:
    whole = groove(2)
    notes = whole.notes[whole.notes[:, midi.ONSET] >= 30]
    piece = Piece(notes, whole.bounds, whole.frame, "pickup")
    blend = midi.read(small.blend(piece, target="odd", source="even", amount=1)).notes
    old = notes[(notes[:, midi.ONSET] < 48) & (notes[:, midi.PROGRAM] != midi.DRUMS)]
    first = blend[blend[:, midi.ONSET] < 48]
    assert sorted(first[:, [midi.ONSET, midi.PITCH]].tolist()) == sorted(old[:, [midi.ONSET, midi.PITCH]].tolist())
    assert len(blend) > len(first)


def test_an_unknown_part_is_refused(small: Codec) -> None:
    with pytest.raises(UsageError, match="no track 'theremin'"):
        small.blend(groove(0), target="odd", keep=["theremin"])


def test_a_blend_keeps_the_velocities_of_notes_that_stay_and_has_the_accents_of_the_style(small: Codec) -> None:
    piece = groove(3)
    piece.notes[:, 4] = 40 + 5 * (piece.notes[:, 0] % 12)
    even = small.styles["even"]
    assert even.ensemble is not None
    loud = replace(even, ensemble=replace(even.ensemble, accents=np.full((256, 16), 30.0)))
    plain, accented = (
        midi.read(small.blend(piece, target=one, source="odd", amount=1.0, keep=())).notes for one in (even, loud)
    )
    assert np.array_equal(plain[:, :4], accented[:, :4])
    own = {(row[0], row[2], row[3] == 128) for row in piece.notes.tolist()}
    stays = np.array([(row[0], row[2], row[3] == 128) in own for row in plain.tolist()])
    assert not stays.all()
    assert np.array_equal(plain[stays, 4], accented[stays, 4])
    assert (accented[~stays, 4] == np.minimum(plain[~stays, 4] + 30, 127)).all()


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_codec_is_loaded_with_its_styles(small: Codec, trained: Trained, tmp_path: Path) -> None:
    kept = checkpoint.load(trained.best)
    kept.styles, kept.about_styles = styles_file.pack(small.styles)
    checkpoint.save(kept, tmp_path / "with styles")
    again = seqvae.load(tmp_path / "with styles")
    assert again.styles.keys() == small.styles.keys()
    assert isinstance(again.style("odd"), Style)
    piece = groove(3)
    assert rows(again.blend(piece, target="odd", amount=0)) == rows(small.reconstruct(piece))


def test_a_codec_is_loaded_on_a_device_with_the_styles_of_a_file(
    small: Codec, trained: Trained, tmp_path: Path
) -> None:
    styles_file.save({"mine": small.styles["odd"]}, tmp_path / "my.styles")
    loaded = seqvae.load(trained.best, device="meta", styles=tmp_path / "my.styles")
    assert {part.device.type for part in loaded.model.parameters()} == {"meta"}
    assert loaded.styles.keys() == seqvae.load(trained.best).styles.keys() | {"mine"}
    torch.testing.assert_close(loaded.style("mine").mean, small.styles["odd"].mean)


def test_a_missing_model_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        seqvae.load(tmp_path)
    assert "\n" not in str(caught.value)
