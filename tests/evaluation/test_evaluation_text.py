"""The protocol of a text model's card, on a toy model with known likelihood, styles and paths."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import Codec
from seqvae.errors import SeqVAEError
from seqvae.evaluation import ngram, published, sentence_walks, text_report
from seqvae.evaluation import text as evaluate_text
from seqvae.evaluation import text_metrics as text
from seqvae.evaluation import text_transfer as evaluate_transfer
from seqvae.evaluation.style_classifier import LineClassifier, chooser
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.style import choice, gaussian, translation
from seqvae.style.gaussian import Style

Ints = NDArray[np.int32]
SLOTS = (
    ("the", "a"),
    ("lovely", "horrible"),
    ("staff", "waiter"),
    ("was", "is"),
    ("great", "awful"),
    ("here", "there"),
)
SLOPE = 8.0
# encoder output for the two words of each slot; the second ones differ, so that words change one by one along a line
PLACES = torch.tensor([[1.0, -(0.4 + 0.3 * k)] for k in range(len(SLOTS))])


class Toy:
    """Six words, each one of two and determined by one latent dimension: p(first | z) = 1 / (1 + e^(-SLOPE z)).

    By symmetry every line has p(x) = 2^-6. The encoder alone ignores the last word; refinement recovers it.
    """

    def __init__(self, refine: int = 1) -> None:
        self.refinement = SimpleNamespace(steps=refine)
        self.model = SimpleNamespace(config=SimpleNamespace(latent=len(SLOTS)))
        self.styles: dict[str, Style] = {}
        self.calls: list[tuple[str, int]] = []
        self.evaluated: list[tuple[str, int]] = []  # calls of the evaluation of the fixture `result` alone

    def segments(self, line: str) -> list[list[Ints]]:
        choices = [pair.index(word) for pair, word in zip(SLOTS, line.split(), strict=True)]
        return [[np.array(choices, np.int32)]]

    def posteriors(self, segments: Sequence[list[Ints]], refined: bool = False) -> Posterior:
        choices = torch.tensor(np.array([segment[0] for segment in segments])).long()
        mean = PLACES.expand(len(choices), -1, -1).gather(2, choices[..., None])[..., 0].clone()
        logvar = torch.full_like(mean, math.log(0.7))  # wide enough for weights with finite variance
        if not refined:
            mean[:, -1], logvar[:, -1] = 0.05, 0.0
        return Posterior(mean, logvar)

    def encode(self, pieces: Iterable[str]) -> list[Tensor]:
        segments = [self.segments(piece)[0] for piece in pieces]
        self.calls.append(("encode", len(segments)))
        return list(self.posteriors(segments, refined=True).mean[:, None])

    def decode(self, z: Sequence[Tensor], *, sampling: Sampling | None = None) -> list[str]:
        self.calls.append(("decode", len(z)))
        if not z:
            return []
        first = torch.cat(list(z)) > 0
        return [" ".join(p[0] if f else p[1] for p, f in zip(SLOTS, row, strict=True)) for row in first.tolist()]

    def token_log_probs(self, z: Tensor, segments: Sequence[list[Ints]]) -> Tensor:
        choices = torch.tensor(np.array([segment[0] for segment in segments]))
        return torch.nn.functional.logsigmoid(SLOPE * z * (1 - 2 * choices))[:, :, None]  # (L, S, C, T)

    def sample(self, count: int, *, seed: int = 0, sampling: Sampling | None = None, **_: Any) -> list[str]:
        return self.decode(list(torch.randn(count, 1, 6, generator=torch.Generator().manual_seed(seed))))

    def blend_until(self, lines: Sequence[str], path: Sequence[choice.Step], settings: Any = None) -> list[Any]:
        """The words of the target in place of the source's, for limits above one half; else the lines as they are."""
        _, target, _ = path[0]
        new = (
            {"horrible": "lovely", "awful": "great"}
            if target == "positive"
            else {"lovely": "horrible", "great": "awful"}
        )
        moved = settings is not None and settings.until > 0.5
        return [
            SimpleNamespace(line=" ".join(new.get(word, word) if moved else word for word in line.split()))
            for line in lines
        ]


EVERY = [" ".join(words) for words in product(*SLOTS)]
NEGATIVE = [line for line in EVERY if "horrible" in line and "awful" in line]
POSITIVE = [line for line in EVERY if "lovely" in line and "great" in line]


def held(lines: Sequence[str]) -> list[str]:
    """Every third line; the others are for training."""
    return list(lines[::3])


def rest(lines: Sequence[str]) -> list[str]:
    return [line for i, line in enumerate(lines) if i % 3]


@pytest.fixture(scope="module")
def toy() -> Toy:
    made = Toy()
    both = {"negative": NEGATIVE, "positive": POSITIVE}
    made.styles = {name: gaussian.fit(made.encode(rest(lines))) for name, lines in both.items()}
    made.styles["all"] = gaussian.fit(made.encode(EVERY))
    return made


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(toy: Toy, reports: list[str]) -> dict[str, Any]:
    toy.calls.clear()
    found = evaluate_text.evaluate_text(
        cast(Codec, toy),
        held(EVERY),
        styles={"negative": held(NEGATIVE), "positive": held(POSITIVE)},
        train={"negative": rest(NEGATIVE) * 3, "positive": rest(POSITIVE) * 3},
        corpus=rest(EVERY) * 5,
        generated=100,
        samples=200,
        iw_lines=15,
        report=reports.append,
    )
    toy.evaluated = list(toy.calls)
    return found


# --- likelihood -------------------------------------------------------------------------------------------------------


def test_importance_weighting_finds_the_known_likelihood(result: dict[str, Any]) -> None:
    likelihood = result["likelihood"]
    assert likelihood["importance"]["nll"][0] == pytest.approx(6 * math.log(2), abs=0.1)
    assert likelihood["importance"]["perplexity"][0] == pytest.approx(2 ** (6 / 7), rel=0.02), "six words and an end"
    assert likelihood["importance"]["lines"] == likelihood["elbo_of_the_same"]["lines"] == 15
    assert likelihood["elbo"]["nll"][0] > 6 * math.log(2) + 0.1, "an upper bound on the NLL, and a loose one"
    assert likelihood["importance"]["perplexity"][0] < likelihood["elbo"]["perplexity"][0]


def test_the_weighted_bound_is_never_below_the_elbo(toy: Toy) -> None:
    lines = evaluate_text.split(cast(Codec, toy), EVERY)
    weights = evaluate_text.log_weights(cast(Codec, toy), lines, 20, torch.Generator().manual_seed(3))
    assert weights.shape == (20, len(EVERY))
    assert (np.logaddexp.reduce(weights, 0) - math.log(20) >= weights.mean(0)).all()


def test_many_weights_find_it_exactly(toy: Toy) -> None:
    lines = evaluate_text.split(cast(Codec, toy), EVERY[:4])
    weights = evaluate_text.log_weights(cast(Codec, toy), lines, 5000, torch.Generator().manual_seed(0))
    bound = np.logaddexp.reduce(weights, 0) - math.log(5000)
    assert bound == pytest.approx(np.full(4, -6 * math.log(2)), abs=0.1)


def test_draws_do_not_depend_on_the_batch_size(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = evaluate_text.split(cast(Codec, toy), EVERY[:4])
    at_once = evaluate_text.log_weights(cast(Codec, toy), lines, 7, torch.Generator().manual_seed(0))
    monkeypatch.setattr(evaluate_text, "DRAWN_TOKENS", 3 * 4 * 6)
    assert np.allclose(evaluate_text.log_weights(cast(Codec, toy), lines, 7, torch.Generator().manual_seed(0)), at_once)


def test_kl_is_the_closed_form_and_bounds_the_information(result: dict[str, Any], toy: Toy) -> None:
    likelihood = result["likelihood"]
    q = toy.posteriors([toy.segments(line)[0] for line in held(EVERY)])
    assert likelihood["kl"][0] == pytest.approx(float(q.kl().sum(1).mean()), abs=1e-3)
    assert 0 <= likelihood["mutual_information"] <= likelihood["kl"][0]
    assert (
        likelihood["mutual_information"]
        <= likelihood["mutual_information_at_most"]
        == pytest.approx(math.log(22), abs=1e-3)
    )
    assert (likelihood["active_units"], likelihood["latent"]) == (5, 6)


def test_the_figures_of_a_line_are_sums_over_its_segments() -> None:
    lines = evaluate_text.Lines(["a", "b", "c"], [[np.array([i])] for i in range(6)], [2, 1, 3])
    assert lines.by_line(torch.arange(6.0)).tolist() == [1, 2, 12]
    part = lines.pick([0, 2])
    assert part.lines == ["a", "c"]
    assert [int(s[0][0]) for s in part.segments] == [0, 1, 3, 4, 5]
    assert part.by_line(torch.ones(5)).tolist() == [2, 3]


# --- reconstruction, samples, interpolation ---------------------------------------------------------------------------


def test_reconstruction_is_reported_with_and_without_refinement(result: dict[str, Any]) -> None:
    right = {"bleu": [100] * 3, "exact": [1] * 3, "edit_distance": [0] * 3, "kl_bits": None}
    assert result["reconstruction"]["searched mean"] == right, "a point estimate has no KL"
    by_length = result["reconstruction_by_length"]
    assert by_length == {most: {"lines": 22, **result["reconstruction"]} for most in ("15", "20", "40")}, (
        "every line has six words"
    )
    alone = result["reconstruction"]["encoder's mean"]
    assert 0.2 < alone["exact"][0] < 0.8, "the encoder alone assumes a constant last word"
    assert alone["bleu"][0] < 100


def test_without_refinement_there_is_one_reconstruction() -> None:
    result = evaluate_text.evaluate_text(cast(Codec, Toy(refine=0)), EVERY[:4], samples=2)
    assert list(result["reconstruction"]) == ["encoder's mean", "encoder's sample"]


def test_a_sample_has_the_noise_of_the_posterior_in_its_kl(toy: Toy) -> None:
    lines = EVERY * 40
    held_lines = evaluate_text.split(cast(Codec, toy), lines)
    found, _ = evaluate_text._reconstruction(cast(Codec, toy), held_lines, np.random.default_rng(0), lambda _: None)
    # a word comes back if its sample keeps the sign of its place m: with probability Phi(|m| / sigma), sigma^2 = .7
    kept = [0.5 * (1 + math.erf(abs(m) / math.sqrt(2 * 0.7))) for m in PLACES.flatten().tolist()]
    words = [(a + b) / 2 for a, b in zip(kept[::2], kept[1::2], strict=True)]
    assert found["searched sample"]["exact"][0] == pytest.approx(math.prod(words), abs=0.03)
    nats = sum((m * m + 0.7 - 1 - math.log(0.7)) / 2 for m in PLACES.flatten().tolist()) / 2
    assert found["searched sample"]["kl_bits"][0] == pytest.approx(nats / math.log(2), rel=1e-4)
    assert found["encoder's sample"]["kl_bits"][0] < found["searched sample"]["kl_bits"][0]


def test_samples_are_compared_with_real_lines(result: dict[str, Any]) -> None:
    samples = result["samples"]
    assert samples["sentences"] == 100
    assert set(samples) == {"sentences", "prior", "fitted", "training lines", "held-out lines"}
    assert samples["held-out lines"]["copies"] == [0, 0, 0]
    assert 0.4 < samples["prior"]["copies"][0] < 0.9, "two thirds of all possible lines"
    assert samples["prior"]["forward"][0] == pytest.approx(samples["held-out lines"]["forward"][0], rel=0.2)
    assert samples["prior"]["reverse"][0] == pytest.approx(samples["training lines"]["reverse"][0], rel=0.2)
    assert samples["training lines"]["forward"] is None, "the likelihood of its own training lines is not a measure"


def test_a_path_of_the_toy_model_changes_word_by_word(result: dict[str, Any]) -> None:
    assert result["interpolation"]["pairs"] == 11
    for kind in ("slerp", "line"):
        path = result["interpolation"][kind]
        assert path["ends_met"] == [1, 1, 1]
        assert path["perplexity_between"][0] < 10
    assert result["interpolation"]["line"]["monotone"] == [1, 1, 1]
    assert 1 / 6 <= result["interpolation"]["line"]["largest_step"][0] < 0.9


def test_the_chosen_walk_of_the_toy_model_is_distinct_and_the_control_is_not_even(result: dict[str, Any]) -> None:
    chosen, arc, control = (result["interpolation"][kind] for kind in ("chosen", "slerp", "random lines"))
    assert chosen["ends_met"] == [1, 1, 1]
    assert chosen["distinct_steps"][0] > arc["distinct_steps"][0]
    assert chosen["repeats"][0] < arc["repeats"][0]
    assert chosen["largest_step"][0] < control["largest_step"][0]
    ends = result["interpolation"]["perplexity_of_ends"][0]
    assert chosen["perplexity_ratio"][0] == pytest.approx(chosen["perplexity_between"][0] / ends, rel=1e-3)


def test_figures_of_a_path() -> None:
    jump = sentence_walks.walk(["a b", "a b", "c d"], "a b", "c d")
    assert jump == {
        "ends_met": 1, "monotone": 1, "largest_step": 1, "unevenness": 1, "length": 1, "neighbours_bleu": 50,
        "distinct_steps": 2, "repeats": 0.5,
    }  # fmt: skip
    astray = sentence_walks.walk(["a b", "x y", "a c"], "a b", "a c")
    assert (astray["monotone"], astray["largest_step"], astray["length"], astray["unevenness"]) == (0, 2, 4, 0)
    missed = sentence_walks.walk(["a b", "a b"], "a b", "c d")
    assert missed["ends_met"] == 0
    assert math.isnan(missed["largest_step"])
    assert math.isnan(missed["unevenness"])


# --- transfer ---------------------------------------------------------------------------------------------------------


def test_the_full_style_difference_swaps_the_words_of_the_style(result: dict[str, Any]) -> None:
    pair = result["transfer"]["negative/positive"]
    assert pair["classifier"] == [1, 1, 1]
    assert set(pair["methods"]) == set(get_args(translation.Method))
    both = pair["methods"]["mean"]["both"]
    assert [float(amount) for amount in both] == list(evaluate_transfer.AMOUNTS)
    assert both["0"]["accuracy"][0] == 0
    assert both["0"]["bleu"][0] == 100
    assert both["1"]["accuracy"][0] == 1
    assert both["1"]["bleu"][0] < 100
    forth = pair["methods"]["mean"]["negative to positive"]
    back = pair["methods"]["mean"]["positive to negative"]
    for amount, figures in both.items():
        assert figures["accuracy"][0] == pytest.approx((forth[amount]["accuracy"][0] + back[amount]["accuracy"][0]) / 2)


def test_preservation_is_compared_with_controls_without_the_line(result: dict[str, Any]) -> None:
    pair = result["transfer"]["negative/positive"]
    found = pair["controls"]
    assert list(found) == ["the line itself", "another line", "the target mean", "a random vector", "copying"]
    assert (found["copying"]["accuracy"][0], found["copying"]["bleu"][0]) == (0, 100)
    own = found["the line itself"]
    assert own["bleu"] == pair["methods"]["mean"]["both"]["1"]["bleu"]
    for name in ("another line", "the target mean"):
        value, low, high = found[name]["beyond"]
        assert value == pytest.approx(own["bleu"][0] - found[name]["bleu"][0], abs=1e-3)
        assert 0 < low <= value <= high, "four words of the line itself are kept"
    assert found["the target mean"]["accuracy"] == [1, 1, 1]
    assert own["geometric_mean"][0] == pytest.approx(math.sqrt(100 * own["accuracy"][0] * own["bleu"][0]), abs=1e-3)
    assert own["content_kept"][0] == pytest.approx(1 / 3, abs=1e-3), "staff or waiter, without both adjectives"


def test_bleu_is_interpolated_between_two_amounts(result: dict[str, Any]) -> None:
    for method in result["transfer"]["negative/positive"]["methods"].values():
        accuracy, bleu = (
            np.array([figures[name][0] for figures in method["both"].values()]) for name in ("accuracy", "bleu")
        )
        for at in (73.6, 91.8):
            value, low, high = method["bleu_at_accuracy"][f"{at:g}"]
            assert value == pytest.approx(text.crossing(100 * accuracy, bleu, at), abs=0.05)
            assert low <= value <= high


def test_a_setting_is_chosen_on_one_half_and_evaluated_on_the_other(result: dict[str, Any]) -> None:
    pair = result["transfer"]["negative/positive"]
    assert pair["lines"] == {"negative": 6, "positive": 6}
    assert pair["chosen"]["lines"] == 6
    assert pair["chosen"]["amount"] in evaluate_transfer.AMOUNTS
    assert pair["chosen"]["accuracy"][0] > 0, "amount 0 keeps every word, and is not chosen for it"


def test_an_accuracy_that_is_never_reached_has_no_bleu(toy: Toy) -> None:
    result = evaluate_text.evaluate_text(
        cast(Codec, toy), held(EVERY), styles={"negative": held(NEGATIVE), "positive": held(POSITIVE)},
        train={"negative": NEGATIVE, "positive": POSITIVE}, samples=2, generated=10, amounts=(0.0, 0.1),
    )  # fmt: skip
    for method in result["transfer"]["negative/positive"]["methods"].values():
        assert method["bleu_at_accuracy"] == {"73.6": None, "91.8": None}
    assert "- at 73.6 %" in text_report.table(result)


def test_lines_are_decoded_many_at_a_time(result: dict[str, Any], toy: Toy) -> None:
    amounts = len(get_args(translation.Method)) * len(evaluate_transfer.AMOUNTS)
    # two interpolations, three decodings of each chosen walk, four reconstructions, two kinds of samples, every amount
    # of each method, and four controls
    assert sum(what == "decode" for what, _ in toy.evaluated) <= amounts + 12 + 3 * 11
    assert ("decode", 12) in toy.evaluated, "both directions together"
    assert sum(what == "encode" for what, _ in toy.evaluated[: amounts + 10]) == 2


def test_outputs_are_compared_with_references_and_baselines() -> None:
    real = {"negative": NEGATIVE, "positive": POSITIVE}
    judge, model = LineClassifier(real, 0), ngram.NGram().fit(EVERY)
    line, right = "the horrible staff was awful here", "the lovely staff was great here"
    task = evaluate_transfer.Task(
        {"negative": [line], "positive": []}, judge, chooser(real, 0), model, {"negative": [right], "positive": []}
    )
    found = task.measure(task.statistics([right]))
    assert (found["accuracy"][0], found["reference_bleu"][0], found["reference_geometric_mean"][0]) == (1, 100, 100)
    assert found["content_kept"][0] == pytest.approx(1 / 3), "staff, of horrible, staff and awful"
    copied = task.measure(task.statistics([line]))
    assert (copied["accuracy"][0], copied["bleu"][0], copied["content_kept"][0]) == (0, 100, 1)
    assert copied["reference_bleu"][0] < 40
    assert "accuracy_of_all" not in found, "two styles alone"
    assert task.score(task.statistics([right])) > 0 == task.score(task.statistics([line]))


def test_movers_are_measured_as_moves_are(toy: Toy) -> None:
    real = {"negative": NEGATIVE, "positive": POSITIVE}
    task = evaluate_transfer.Task(real, LineClassifier(real, 0), chooser(real, 0), ngram.NGram().fit(EVERY))

    def swapped(lines: Sequence[str], source: str, target: str) -> list[str]:
        assert {source, target} == {"negative", "positive"}
        return POSITIVE if target == "positive" else NEGATIVE

    rng = np.random.default_rng(0)
    found = evaluate_transfer.transfer(cast(Codec, toy), task, (0.0,), rng, lambda _: None, {"swapped": swapped})
    assert found["movers"]["swapped"]["accuracy"][0] == found["movers"]["swapped"]["accuracy_by_characters"][0] == 1
    assert 0 < found["movers"]["swapped"]["bleu"][0] < 100


# --- public sets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of reviews of the toy model."""
    pairs = {0: (NEGATIVE, POSITIVE), 1: (POSITIVE, NEGATIVE)}
    files = {
        "train.negative": rest(NEGATIVE) * 3,
        "train.positive": rest(POSITIVE) * 3,
        "valid.txt": held(EVERY),
        "sentiment/100.neg": held(NEGATIVE),
        "sentiment/100.pos": held(POSITIVE),
        "tense/valid.past": EVERY,
        "tense/valid.present": EVERY,
    }
    for number, (lines, others) in pairs.items():
        files[f"human-dev/reference.{number}"] = ["\t".join(both) for both in zip(lines, others, strict=True)]
    for name, lines in files.items():
        path = tmp_path / "yelp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_sets_of_a_folder_are_measured(toy: Toy, folder: Path) -> None:
    alone = published.evaluate(cast(Codec, toy), folder, lines=4, samples=2, iw_lines=2, pairs=[("past", "present")])
    assert not alone["transfer"]
    found = published.evaluate(cast(Codec, toy), folder, lines=8, samples=2, iw_lines=2)
    assert found["protocol"]["lines"] == 8
    assert list(found["transfer"]) == ["sentiment", "human references"]
    assert found["skipped"] == {"tense": "past, present not among the styles of the model"}
    human = found["transfer"]["human references"]
    assert human["lines"] == {"negative": 8, "positive": 8}
    assert human["controls"]["the reference"]["reference_bleu"] == [100, 100, 100]
    assert human["controls"]["the reference"]["accuracy"][0] == 1
    assert (
        human["methods"]["mean"]["both"]["1"]["reference_bleu"][0] > human["controls"]["copying"]["reference_bleu"][0]
    )
    assert "reference_bleu" not in found["transfer"]["sentiment"]["controls"]["copying"]
    moved = {name: x["accuracy"][0] for name, x in found["transfer"]["sentiment"]["movers"].items()}
    assert moved == {"until 0.3": 0, "until 0.5": 0, "until 0.7": 1, "until 0.9": 1}
    table = text_report.table(json.loads(json.dumps(found)))
    assert "BLEU to reference" in table
    assert "Published: accuracy 77 %" in table
    chosen = {name: x["chosen"]["method"] for name, x in found["transfer"].items()}
    for name in ("mean", "discriminant", "transport"):
        assert (f"| sentiment by {name}, amount" in table) == (chosen["sentiment"] == name), "the others are in --json"
    assert table.index("| chosen on one half") < table.index("| sentiment by")
    (folder / "yelp/human-dev/reference.1").write_text("a line without a rewrite\n")
    for name in ("neg", "pos"):
        (folder / f"yelp/sentiment/100.{name}").write_text("")
    found = published.evaluate(cast(Codec, toy), folder, lines=4, samples=2, iw_lines=2)
    assert not found["transfer"]
    assert found["skipped"]["sentiment"] == "no held-out lines"
    assert "has no rewrite after a tab" in found["skipped"]["human references"]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_missing_parts_are_reported() -> None:
    bare = evaluate_text.evaluate_text(cast(Codec, Toy()), [*EVERY[:4], "", " "], samples=2)
    assert bare["protocol"]["lines"] == 4
    assert set(bare["skipped"]) == {"samples", "transfer"}
    assert "perplexity_between" not in bare["interpolation"]["line"]
    half = evaluate_text.evaluate_text(
        cast(Codec, Toy()), EVERY[:4], styles={"negative": NEGATIVE, "positive": []}, train={"negative": NEGATIVE},
        samples=2, generated=5,
    )  # fmt: skip
    assert "negative, positive not among the styles of the model" in half["skipped"]["transfer negative/positive"]
    assert "positive not among the labelled held-out lines" in half["skipped"]["transfer negative/positive"]
    assert "positive not among the training lines" in half["skipped"]["transfer negative/positive"]
    with pytest.raises(SeqVAEError, match="no line"):
        evaluate_text.evaluate_text(cast(Codec, Toy()), ["", " "])


def test_figures_are_inside_their_intervals_and_json(result: dict[str, Any]) -> None:
    def walk(value: Any) -> int:
        if isinstance(value, dict):
            return sum(walk(inner) for inner in value.values())
        if isinstance(value, list):
            figure, low, high = value
            assert low - 1e-3 <= figure <= high + 1e-3
            return 1
        return 0

    assert walk(result) > 200
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_same_seed_gives_the_same_figures(toy: Toy) -> None:
    first, second = (
        evaluate_text.evaluate_text(
            cast(Codec, toy), held(EVERY), train={"all": rest(EVERY)}, samples=3, generated=20, seed=5
        )
        for _ in range(2)
    )
    assert first == second


def test_the_table_has_every_part(result: dict[str, Any], reports: list[str]) -> None:
    table = text_report.table(result)
    for words in ("importance weighting", "mutual information", "searched sample", "another line", "slerp",
                  "held-out lines", "by transport", "Self-BLEU at the classifier's", "Chosen on one half"):  # fmt: skip
        assert words in table
    assert any("self-BLEU" in line for line in reports)
