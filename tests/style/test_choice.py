"""Lines moved only as far as a classifier asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SENTENCES
from numpy.typing import NDArray

from seqvae import codec
from seqvae.codec import Codec
from seqvae.errors import StyleError
from seqvae.nn.sampling import Sampling
from seqvae.style import choice, line_classifier
from seqvae.style.choice import Choice

BAD = [line for line in SENTENCES if line.split()[3] == "bad"]
PATH = [("bad", "good", 2.5)]


def _kept(moved: list[str]) -> NDArray[np.float64]:
    """The overlap of each line of BAD with its moved one."""
    return np.array([line_classifier.overlap(a, b) for a, b in zip(BAD, moved, strict=True)])


@pytest.fixture(scope="module")
def model(tiny_text: Path) -> Codec:
    return codec.load(tiny_text)


def test_training_fits_the_classifier_of_the_styles(model: Codec) -> None:
    found = [model.styles[name].classifier for name in ("good", "bad")]
    assert all(one is not None and one.among == ("bad", "good", "past", "present") for one in found)
    assert model.styles["all"].classifier is None


def test_every_line_is_moved_until_it_is_accepted(model: Codec) -> None:
    found = model.blend_until(BAD[:8], PATH, Choice(until=0.7))
    weights = [model.styles[name].classifier for name in ("bad", "good")]
    assert weights[0] is not None and weights[1] is not None
    p = line_classifier.probability([one.line for one in found], weights[0], weights[1])
    np.testing.assert_allclose([one.probability for one in found], p, atol=1e-6)
    assert (p >= 0.7).mean() > 0.5
    assert all(0 < one.share <= 1 for one in found)
    lines = ["good already", *BAD[:8]]  # latents of all lines, also of those that stay
    again = model.blend_until(lines, PATH, Choice(until=0.7), latents=model.encode(lines))
    assert [one.line for one in again[1:]] == [one.line for one in found]


def test_accepted_lines_and_blank_ones_stay(model: Codec) -> None:
    good = BAD[0].replace("bad", "good")
    [first, second] = model.blend_until([good, " "], PATH, Choice(until=0.6))
    assert (first.line, first.share, second.line, second.share) == (good, 0, " ", 0)


def test_choosing_keeps_more_than_one_amount_for_all(model: Codec) -> None:
    chosen = [one.line for one in model.blend_until(BAD, PATH, Choice(until=0.6))]
    far = model.translate("good", "bad", 2.5)
    fixed = model.transform(BAD, far)
    kept, lost = (
        np.mean([line_classifier.overlap(a, b) for a, b in zip(BAD, x, strict=True)]) for x in (chosen, fixed)
    )
    assert kept > lost


def test_without_an_accepted_candidate_the_most_probable_is_chosen(model: Codec) -> None:
    settings = Choice(until=0.999999, steps=4, restore=False)
    [one] = model.blend_until(BAD[:1], PATH, settings)
    [texts] = choice.candidates(model, BAD[:1], model.encode(BAD[:1]), PATH, settings)
    weights = [model.styles[name].classifier for name in ("bad", "good")]
    assert weights[0] is not None and weights[1] is not None
    sound = [text for text in texts if not line_classifier.loops(text, BAD[0])] or [*texts]
    p = line_classifier.probability(sound, weights[0], weights[1])
    assert one.line == sound[int(p.argmax())] and one.share == texts[one.line]


def test_a_bias_keeps_the_tokens_of_each_line(model: Codec) -> None:
    lines = ["zzz", "qq", *BAD[:3]]
    z = [model.styles["good"].mean[None]] * len(lines)
    plain = model.decode(z, sampling=Sampling())
    near = model.decode(z, guide=choice.favoured(model, lines, 50.0))
    assert len(set(plain)) == 1
    for line, text in zip(lines, near, strict=True):
        own = {int(token) for chunk in model.tokenizer.encode(line) for token in chunk}
        assert {int(token) for chunk in model.tokenizer.encode(text) for token in chunk} <= own


def test_words_of_the_target_style_are_favoured(model: Codec) -> None:
    """A weight of words alone turns lines whose latents stay; tokens of a line get negative weights alone."""
    z = model.encode(BAD[:6])
    words = np.zeros(model.tokenizer.vocab_size)
    [good] = {int(t) for c in model.tokenizer.encode("a good") for t in c} - {
        int(t) for line in ["a", "bad"] for c in model.tokenizer.encode(line) for t in c
    }
    words[good] = 100.0
    assert all("good" in line for line in model.decode(z, guide=choice.favoured(model, BAD[:6], 0.0, words)))
    lines = ["good"] * 6
    same = model.decode(z, guide=choice.favoured(model, lines, 0.0, words))
    assert same == model.decode(z)


def test_changed_words_are_put_back_in_every_combination() -> None:
    assert set(choice.restored("a b c", "x b z")) == {"x b z", "a b z", "x b c"}
    assert set(choice.restored("a b", "a b c")) == {"a b c"}
    long = [" ".join(f"{side}{i} same{i}" for i in range(9)) for side in "ab"]
    assert len(set(choice.restored(*long))) == 10  # the candidate, and each stretch alone


def test_words_put_back_are_chosen_where_the_style_allows_it(model: Codec) -> None:
    with_, without = (model.blend_until(BAD, PATH, Choice(until=0.6, restore=x, fluency=0)) for x in (True, False))
    assert (_kept([one.line for one in with_]) >= _kept([one.line for one in without])).all()


def test_styles_of_different_fits_have_no_classifier(model: Codec) -> None:
    other = Codec(model.tokenizer, model.model, dict(model.styles))
    other.styles |= other.fit_styles({"mine": (BAD[:4], ""), "yours": (SENTENCES[:4], "")})
    with pytest.raises(StyleError, match="no classifier tells 'bad' from 'mine'; fit both in one `seqvae style fit`"):
        other.blend_until(BAD[:1], [("bad", "mine", 1.0)])
    with pytest.raises(StyleError, match="no classifier tells 'all' from 'good'"):
        other.blend_until(BAD[:1], [("all", "good", 1.0)])


def test_several_moves_must_all_be_accepted(model: Codec) -> None:
    path = [("bad", "good", 2.5), ("past", "present", 2.5)]
    found = model.blend_until(BAD[:6], path, Choice(until=0.6))
    pairs = [(model.styles[a].classifier, model.styles[b].classifier) for a, b, _ in path]
    for one in found:
        each = [float(line_classifier.probability([one.line], a, b)[0]) for a, b in pairs if a and b]
        assert one.probability == pytest.approx(min(each), abs=1e-6)
