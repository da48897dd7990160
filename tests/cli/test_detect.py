"""The anomaly commands: one verdict for each piece, in order, with its surprising tokens."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import done, error_line, files, seqvae
from conftest import SESSIONS, session
from verdicts import HELD_OUT, STRANGE, fitted, rows, text_file

from seqvae import codec
from seqvae.anomaly import calibration, conformal
from seqvae.anomaly import evidence as anomaly
from seqvae.anomaly.calibration import Calibration
from seqvae.checkpoint import folder as checkpoint
from seqvae.cli import detect, marks
from seqvae.cli import text_io as lines

pytestmark = pytest.mark.usefixtures("here")

Typed = Callable[[str], None]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, tiny_events: Path) -> Path:
    return fitted(tmp_path_factory.mktemp("detect"), tiny_events)


@pytest.fixture(scope="module")
def folder(detector: Path) -> Path:
    """Files of normal sessions: the training sessions of the model, and others."""
    return detector.parent


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Put text on standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


# --- fit --------------------------------------------------------------------------------------------------------------


def test_fit_calibrates_on_the_given_sessions(folder: Path, tiny_events: Path, here: Path) -> None:
    fit = ["detect", "fit", f"@{folder}/normal.txt", "-m", tiny_events, "-o", "new/d", "--samples", 3, "--seed", 5]
    fit += ["--reference", f"@{folder}/known.txt", "--score", "worst", "--p-value", 0.1]
    [line] = done(*fit, "--json")
    model = codec.load(tiny_events)
    near = anomaly.latents(model, SESSIONS)
    expected = calibration.fit(anomaly.examine(model, HELD_OUT, 3, 5), "worst", near, 5)
    assert json.loads(line) == {
        "model": str(tiny_events), "pieces": 120, "compared": len(expected.normal), "score": "worst",
        "threshold": expected.threshold(0.1), "p_value": 0.1, "confidence": None, "contamination": None,
        "bound": expected.bound(expected.threshold(0.1), 0.1), "output": "new/d",
    }  # fmt: skip
    assert files(here) == ["new/d/calibration.safetensors", "new/d/detector.json"]
    found, settings = calibration.load(here / "new" / "d")
    assert np.array_equal(found.normal, expected.normal)
    assert (settings.model, settings.samples, settings.seed) == (str(tiny_events.resolve()), 3, 5)
    assert str(folder / "normal.txt") in settings.about
    [output] = done(*fit)
    assert output.startswith("120 normal sessions, anomalous below "), "it may be fitted again"
    assert output.endswith("(p-value 0.1), in new/d")


def test_false_alarms_are_bounded_with_confidence(folder: Path, tiny_events: Path, here: Path) -> None:
    fit = ["detect", "fit", f"@{folder}/normal.txt", "-m", tiny_events, "-o", "d", "--samples", 2]
    [row] = map(json.loads, done(*fit, "--p-value", 0.2, "--confidence", 0.9, "--json"))
    found, settings = calibration.load(here / "d")
    assert (settings.p_value, settings.confidence, row["confidence"]) == (0.2, 0.9, 0.9)
    assert row["threshold"] == settings.threshold == found.threshold(0.2, 0.9) < found.threshold(0.2)
    assert row["bound"] <= 0.2
    [output] = done(*fit, "--p-value", 0.2, "--confidence", 0.9)
    assert f"with 0.9 confidence at most {row['bound']:.2%} of new normal ones (p-value 0.2), in d" in output
    assert rows("open", "--detector", "d")[0]["bound"] == row["bound"]
    tight = rows("open", "--detector", "d", "--p-value", 0.3)[0]["bound"]
    assert row["bound"] < tight <= 0.3, "its confidence is kept"
    line = error_line(seqvae(*fit, "--p-value", 0.01, "--confidence", 0.95))
    assert "too few for a p-value of 0.01 with 0.95 confidence, which needs 823;" in line
    line = error_line(seqvae("detect", "score", "open", "--detector", "d", "--p-value", 0.01, "--confidence", 0.95))
    assert "needs 299 calibration scores and there are 40, for which the lowest is 0.073" in line


def test_contamination_is_a_share_of_the_pieces_given(folder: Path, tiny_events: Path, here: Path) -> None:
    fit = ["detect", "fit", f"@{folder}/normal.txt", "-m", tiny_events, "-o", "d", "--samples", 2]
    [row] = map(json.loads, done(*fit, "--contamination", 0.25, "--json"))
    found, settings = calibration.load(here / "d")
    assert row["threshold"] == settings.threshold == np.quantile(found.normal, 0.25)
    assert (row["p_value"], settings.p_value, row["contamination"]) == (None, None, 0.25)


def test_normal_lines_are_read_from_standard_input_too(
    folder: Path, tiny_events: Path, here: Path, typed: Typed
) -> None:
    def fitted(*inputs: object) -> tuple[Calibration, int]:
        [line] = done(
            "detect", "fit", *inputs, "-m", tiny_events, "-o", "d", "--samples", 2, "--p-value", 0.1, "--json"
        )
        return calibration.load(here / "d")[0], json.loads(line)["pieces"]

    whole, _ = fitted(f"@{folder}/normal.txt")
    text_file(here / "first.txt", HELD_OUT[:50])
    for inputs, rest in (([], HELD_OUT), (["-"], HELD_OUT), (["first.txt", "-"], HELD_OUT[50:])):
        typed("".join(f"{line}\n\n" for line in rest))
        found, pieces = fitted(*inputs)
        assert pieces == 120, "empty lines are skipped"
        assert np.array_equal(found.normal, whole.normal)


@pytest.mark.parametrize("known", [False, True])
def test_too_few_sessions_are_refused_with_the_required_number(
    folder: Path, tiny_events: Path, here: Path, known: bool
) -> None:
    fit = ["detect", "fit", "@in.txt", "-m", tiny_events, "-o", "d", "--samples", 1, "--p-value", 0.1]
    fit += ["--reference", f"@{folder}/known.txt"] if known else []
    text_file(here / "in.txt", HELD_OUT[:12] if known else HELD_OUT[:24])
    line = error_line(seqvae(*fit))
    assert "normal sessions are too few for a p-value of 0.1" in line
    assert files(here) == ["in.txt"]
    [enough] = map(int, re.findall(r"which needs (\d+)", line))
    assert enough == (13 if known else 25)
    text_file(here / "in.txt", HELD_OUT[:enough])
    done(*fit)
    [least] = re.findall(r"a --p-value of (\S+) or more", line)
    text_file(here / "in.txt", HELD_OUT[: 12 if known else 24])
    done(*fit, "--p-value", least)


@pytest.mark.parametrize("p_value", [0.3, 0.05, 0.01, 0.001, 1e-4])
@pytest.mark.parametrize("known", [False, True])
def test_the_required_number_is_right_for_any_rate(p_value: float, known: bool) -> None:
    enough = detect._enough(p_value, known, calibration.TAILS)

    def reached(pieces: int) -> bool:
        third = pieces // 3
        left = pieces - (0 if known else third) - min(calibration.TAILS, third)
        return (left + 1) * p_value > 1 - 1e-9

    assert all(reached(n) for n in range(enough, enough + 10))
    assert not reached(enough - 1)


# --- score ------------------------------------------------------------------------------------------------------------


def test_json_has_all_results_of_each_session_in_order(detector: Path, tiny_events: Path, here: Path) -> None:
    given = [*HELD_OUT[:5], "", *STRANGE, "  "]
    text_file(here / "in.txt", given)
    found, settings = calibration.load(detector)
    told_ = rows("@in.txt", HELD_OUT[7], "--detector", detector)
    assert [row["index"] for row in told_] == list(range(len(given) + 1))
    assert [row["input"] for row in told_] == [*given, HELD_OUT[7]]
    pieces = [*(line.strip() and line for line in given), HELD_OUT[7]]
    for row, line, one in zip(told_, pieces, anomaly.examine(codec.load(tiny_events), pieces), strict=True):
        assert list(row) == ["index", "input", "score", "p_value", "anomalous", "bound", "log_prob", "tokens"]
        assert row["score"] == found.scores(one)["combined"]
        assert row["p_value"] == found.p_value(row["score"])
        assert row["anomalous"] is (row["score"] < settings.threshold)
        assert row["bound"] == found.bound(settings.threshold, 0.05) > 0.05
        words = ["<unk>" if word == "melt" else word for word in line.split()]
        assert [token["token"] for token in row["tokens"]] == [*words, "<eos>"]
        nats = [token["log_prob"] for token in row["tokens"]]
        assert nats == pytest.approx(one.log_prob, abs=1e-4)
        assert row["log_prob"] == pytest.approx(one.log_prob.sum(), abs=1e-4)


def test_strange_sessions_are_anomalous_and_normal_ones_are_not(detector: Path, here: Path) -> None:
    new = [session(number) for number in range(2000, 2100)]
    text_file(here / "in.txt", [*new, *STRANGE])
    lines_ = done("detect", "score", "@in.txt", "--detector", detector)
    verdicts = [line.split()[1] for line in lines_]
    assert set(verdicts) == {"normal", "anomalous"}
    assert verdicts[:100].count("anomalous") <= 10
    assert verdicts[100:] == ["anomalous"] * len(STRANGE)
    assert [float(line.split()[0]) for line in lines_] == pytest.approx(
        [row["p_value"] for row in rows("@in.txt", "--detector", detector)], rel=1e-2
    )


def test_results_do_not_depend_on_batches_and_parts(
    detector: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_file(here / "in.txt", [*HELD_OUT[:9], *STRANGE])
    shown, whole = done("detect", "score", "@in.txt", "--detector", detector), rows("@in.txt", "--detector", detector)
    monkeypatch.setattr(lines, "BATCH", 4)
    monkeypatch.setattr(marks, "PART", 3)
    assert done("detect", "score", "@in.txt", "--detector", detector) == shown
    for one, other in zip(rows("@in.txt", "--detector", detector), whole, strict=True):
        for token, same in zip(one.pop("tokens"), other.pop("tokens"), strict=True):
            assert token == {"token": same["token"], "log_prob": pytest.approx(same["log_prob"], abs=2e-4)}
        assert one.pop("log_prob") == pytest.approx(other.pop("log_prob"), abs=2e-4)
        assert one == other


def test_a_long_session_is_written_in_small_parts(tiny_events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "PART", 10)
    model = codec.load(tiny_events)
    [one] = anomaly.examine(model, ["open " + "read check " * 200 + "close"], 1)
    parts = ['{"index": 0', *marks.rest_of_json(model.tokenizer, one)]
    assert len(parts) > 40
    assert max(map(len, parts)) < 600
    assert len(json.loads("".join(parts))["tokens"]) == 403


def test_another_p_value_moves_the_threshold(detector: Path, here: Path) -> None:
    text_file(here / "in.txt", [session(number) for number in range(3000, 3060)])
    counts = []
    for p_value in (0.02, 0.2, 0.7):
        scored = rows("@in.txt", "--detector", detector, "--p-value", p_value)
        assert all(row["anomalous"] is (row["p_value"] <= p_value) for row in scored)
        counts.append(sum(row["anomalous"] for row in scored))
    assert counts[0] < counts[1] < counts[2]
    default = rows("@in.txt", "--detector", detector)
    assert [row["anomalous"] for row in default] == [row["p_value"] <= 0.05 for row in default]


def test_each_line_is_processed_before_the_next_is_written(detector: Path) -> None:
    command = [sys.executable, "-m", "seqvae", "detect", "score", "--detector", str(detector)]
    given = [HELD_OUT[0], "", "naïve", STRANGE[0]]
    expected = done("detect", "score", *given[:1], "@/dev/null", *given[2:], "--detector", detector)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin
        assert process.stdout
        answers = io.BufferedReader(process.stdout)  # type: ignore[type-var]  # a raw file, with bufsize=0
        output = []
        for line in given:
            for part in (line[:3], f"{line[3:]}\n"):  # a line may arrive in parts
                process.stdin.write(part.encode())
            output.append(answers.readline().decode())
        assert [*output[:1], *output[2:]] == [f"{line}\n" for line in expected]
        assert output[1].split()[1:] == ["anomalous", "[<eos>]"]
        process.stdin.close()
        assert answers.read() == b""
        assert process.wait(60) == 0


def test_the_output_is_utf8_whatever_the_locale(detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    command = [sys.executable, "-m", "seqvae", "detect", "score", "☃ " * 50, "--detector", str(detector)]
    output = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert "…" in output
    assert "[☃]" in output


# --- a batch ----------------------------------------------------------------------------------------------------------


def test_discoveries_are_made_in_the_batch_as_a_whole(detector: Path, here: Path) -> None:
    text_file(here / "in.txt", [*HELD_OUT[:20], *STRANGE[:4]])
    plain, found = rows("@in.txt", "--detector", detector), rows("@in.txt", "--detector", detector, "--fdr", 0.2)
    assert [row["index"] for row in found] == list(range(24))
    expected = conformal.discoveries([row["p_value"] for row in plain], 0.2).tolist()
    assert [row.pop("discovery") for row in found] == expected
    assert expected[20:] == [True] * 4
    by_score = sorted(range(24), key=lambda i: plain[i]["score"])
    assert sorted(range(24), key=lambda i: found[i].pop("rank")) == by_score, "also where p-values tie"
    assert found == plain
    first = done("detect", "score", "@in.txt", "--detector", detector, "--fdr", 0.2, "--worst-first")
    shown = done("detect", "score", "@in.txt", "--detector", detector)
    assert [line[21:] for line in first] == [shown[i][21:] for i in by_score]
    assert [line.split()[1] == "anomalous" for line in first] == [expected[i] for i in by_score]


def test_a_batch_too_large_for_discoveries_is_reported(detector: Path, here: Path) -> None:
    n = len(calibration.load(detector)[0].normal)
    text_file(here / "in.txt", [*HELD_OUT[:30], STRANGE[0]])
    result = seqvae("detect", "score", "@in.txt", "--detector", detector, "--fdr", 0.01)
    least = conformal.least_discoveries(31, n, 0.01)
    assert f"no discovery at --fdr 0.01: calibrated on {n} normal ones, at least {least} of 31" in result.stderr
    assert result.stdout.count("anomalous") == 0


def test_ties_are_drawn_at_random_by_the_seed(detector: Path) -> None:
    given = [*HELD_OUT[:5], *STRANGE]
    plain = rows(*given, "--detector", detector)
    drawn = rows(*given, "--detector", detector, "--random-ties")
    assert drawn == rows(*given, "--detector", detector, "--random-ties")
    assert all(one["p_value"] < other["p_value"] for one, other in zip(drawn, plain, strict=True))
    assert len({row["p_value"] for row in drawn[5:]}) == len(STRANGE)
    assert all(row["anomalous"] is (row["p_value"] <= 0.05) for row in drawn)
    assert {row["bound"] for row in drawn} == {None}


# --- drift ------------------------------------------------------------------------------------------------------------


def test_drift_is_reported_and_the_detector_recalibrated(detector: Path, here: Path) -> None:
    shutil.copytree(detector, "d")
    before, settings = calibration.load(here / "d")
    text_file(here / "same.txt", HELD_OUT[:60])
    assert "warning" not in seqvae("detect", "score", "@same.txt", "--detector", "d").stderr
    text_file(here / "new.txt", [f"{session(number)} {session(number + 1)}" for number in range(4000, 4120)])
    result = seqvae("detect", "score", "@new.txt", "--detector", "d")
    assert re.search(
        r"warning: \d+% of \d+ are as strange as the strangest \d+% of the normal ones; normal may", result.stderr
    )
    assert "`seqvae detect update d INPUT --replace`" in result.stderr
    assert result.stderr.count("warning") == 1
    warned = seqvae("detect", "update", "d", "@new.txt", "--json")
    assert "only with --replace" in warned.stderr
    row = json.loads(warned.stdout)
    after, changed = calibration.load(here / "d")
    assert (row["pieces"], row["compared"]) == (120, len(before.normal) + 120) == (120, len(after.normal))
    assert set(before.normal) <= set(after.normal)
    assert changed.threshold == after.threshold(0.05) == row["threshold"]
    assert changed.about == f"{settings.about}; @new.txt"
    [line] = done("detect", "update", "d", "@new.txt", "--replace")
    assert line.startswith("120 more normal sessions, 120 to compare with, anomalous below")
    fresh = rows("@new.txt", "--detector", "d")
    assert sum(row["anomalous"] for row in fresh) <= 6
    assert np.array_equal(calibration.load(here / "d")[0].normal, sorted(row["score"] for row in fresh))


def test_recalibration_on_too_few_sessions_leaves_the_detector_unchanged(detector: Path, here: Path) -> None:
    shutil.copytree(detector, "d")
    text_file(here / "few.txt", HELD_OUT[:18])
    line = error_line(seqvae("detect", "update", "d", "@few.txt", "--replace"))
    assert "a p-value of 0.05 needs 19 calibration scores and there are 18" in line
    text_file(here / "none.txt", [])
    assert "there is nothing to calibrate on" in error_line(seqvae("detect", "update", "d", "@none.txt"))
    assert np.array_equal(calibration.load(here / "d")[0].normal, calibration.load(detector)[0].normal)


# --- which detector ---------------------------------------------------------------------------------------------------


def test_a_moved_model_can_be_named_to_its_detector(
    folder: Path, tiny_events: Path, tiny_text: Path, here: Path
) -> None:
    shutil.copytree(tiny_events, "model")
    fit = ["detect", "fit", f"@{folder}/normal.txt", "-m", "model", "-o", "d", "--p-value", 0.1, "--samples", 2]
    done(*fit)
    before = rows(*HELD_OUT[:3], "--detector", "d")
    Path("model").rename("moved")
    line = error_line(seqvae("detect", "score", "x", "--detector", "d"))
    assert "d: its model has moved; give its place with -m" in line
    assert str(here / "model") in line
    assert rows(*HELD_OUT[:3], "--detector", "d", "-m", "moved") == before
    assert "was fitted with another model" in error_line(
        seqvae("detect", "score", "x", "--detector", "d", "-m", tiny_text)
    )


def test_a_model_folder_may_contain_its_detector(folder: Path, tiny_events: Path, here: Path) -> None:
    shutil.copytree(tiny_events, "model")
    assert "model: has no detector; " in (line := error_line(seqvae("detect", "score", "x", "-m", "model")))
    assert "`seqvae detect fit NORMAL -m model -o FOLDER`" in line
    fit = ["detect", "fit", f"@{folder}/normal.txt", "-m", "model", "-o", "model/detector", "--p-value", 0.1]
    done(*fit, "--samples", 2)
    before = rows(*HELD_OUT[:3], "-m", "model")
    Path("model").rename("moved")
    assert rows(*HELD_OUT[:3], "-m", "moved") == before
    assert rows(*HELD_OUT[:3], "--detector", "moved/detector") == before


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["fit", "@few.txt", "-o", "d"], "3 normal sessions are too few to calibrate on"),
        (["fit", "@gone.txt", "-o", "d"], "cannot read gone.txt: "),
        (["fit", "@few.txt", "--reference", "gone.txt", "-o", "d"], "cannot read gone.txt: "),
        (["fit", "@few.txt", "-o", "mine"], "mine: exists and is not a detector's folder; choose another -o"),
        (["fit", "@few.txt", "-o", "."], "is not a detector's folder"),
        (["fit", "@few.txt", "-o", "few.txt"], "is not a detector's folder"),
        (["score", "@gone.txt", "--detector", "{detector}"], "cannot read gone.txt: "),
        (["score", "x", "--detector", "mine"], "mine: no detector can be read here"),
        (["score", "x", "--detector", "{detector}", "--p-value", "0.0001"], "the lowest is 0.013"),
        (["score", "x", "-m", "./gone"], "gone"),
    ],
)
def test_bad_input_is_a_one_line_error_and_leaves_no_files(
    here: Path, detector: Path, tiny_events: Path, args: list[str], line: str
) -> None:
    text_file(here / "few.txt", HELD_OUT[:3])
    (here / "mine").mkdir()
    text_file(here / "mine" / "thesis.txt", ["precious"])
    before = files(here)
    model = ["-m", str(tiny_events)] if args[0] == "fit" else []
    assert line in error_line(seqvae("detect", *(arg.format(detector=detector) for arg in args), *model))
    assert files(here) == before


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["fit", "x", "-o", "d", "--p-value", "0.1", "--contamination", "0.1"], "give one of them"),
        (["fit", "x", "-o", "d", "--confidence", "0.9", "--contamination", "0.1"], "give one of them"),
        (["score", "x", "--detector", "{detector}", "--confidence", "0.9", "--random-ties"], "give one of the two"),
        (["score", "x", "--detector", "{detector}", "--fdr", "1"], "1.0 is not between 0 and 1"),
        (["fit", "x", "-o", "d", "--p-value", "0"], "0.0 is not between 0 and 1"),
        (["fit", "x", "-o", "d", "--contamination", "1"], "1.0 is not between 0 and 1"),
        (["fit", "x", "-o", "d", "--score", "feeling"], "'feeling' is not one of"),
        (["fit", "x"], "missing option '--out'"),
        (["fit", "-o", "d", "-m", "music"], "missing argument 'INPUT'; name a file of music"),
        (["score", "x"], "missing option '--detector'"),
        (["score", "x", "--detector", "{detector}", "--p-value", "nan"], "nan is not between 0 and 1"),
    ],
)
def test_wrong_usage_exits_2(
    here: Path, detector: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], line: str
) -> None:
    monkeypatch.setattr(codec, "load", None)
    assert line in error_line(seqvae("detect", *(arg.format(detector=detector) for arg in args)), 2)
    assert files(here) == []


def test_a_terminal_without_an_argument_is_wrong_usage(
    detector: Path, tiny_events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(codec, "load", None)
    for args in (["score", "--detector", detector], ["fit", "-m", tiny_events, "-o", "d"]):
        assert "missing argument 'INPUT'" in error_line(seqvae("detect", *args), 2)


def test_a_broken_detector_is_one_line(detector: Path, here: Path) -> None:
    shutil.copytree(detector, "d")
    tensors, about = checkpoint.load_tensors(here / "d" / "calibration.safetensors")
    (here / "d" / "calibration.safetensors").unlink()  # the tensors are still in the old file
    (here / "d" / "calibration.safetensors").write_bytes(b"")
    assert "d/calibration.safetensors: cannot be read" in error_line(seqvae("detect", "score", "x", "--detector", "d"))
    del tensors["centre"]
    checkpoint.save_tensors(tensors, about, here / "d" / "calibration.safetensors")
    assert "fit it again" in error_line(seqvae("detect", "score", "x", "--detector", "d"))


def test_neither_scikit_learn_nor_matplotlib_is_needed(detector: Path) -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        f"from seqvae.cli.app import main; main(['detect', 'score', 'open close', '--detector', {str(detector)!r}])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_lines_that_are_not_event_ids_get_a_warning(folder: Path, detector: Path, typed: Typed) -> None:
    typed("open read check close\nJan 01 00:00:01 box app[17]: user anna logged in\nopen close\n")
    result = seqvae("detect", "score", "--detector", detector)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    [warning] = [line for line in result.stderr.splitlines() if "warning" in line]
    assert re.match(r"warning: 69% of the events are unknown to best.*`seqvae detect learn`", warning)
    assert "warning" not in seqvae("detect", "score", f"@{folder}/normal.txt", "--detector", detector).stderr
