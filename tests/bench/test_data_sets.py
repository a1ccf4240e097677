"""`mlx-eagle bench --data`: the papers' figures with the demo pair, and runs that are stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.bench import contestants
from mlx_eagle.bench.contestants import Contestant, Run, Setting
from mlx_eagle.bench.draft_scores import STEPS
from mlx_eagle.bench.kept import FILE
from mlx_eagle.cli.main import run
from mlx_eagle.speculation import Speculation

SHORT = ["-n", "8", "--warmup", "0", "--compare", "chain:2", "--compare", "mlx-lm"]
ROWS = {
    "mt_bench": [
        {"category": "math", "turns": ["What does zip do?", "And what does os.walk do?"]},
        {"category": "stem", "turns": ["What does sorted do?", "How is it implemented?"]},
    ],
    "gsm8k": [{"category": "math", "turns": ["What is the signature of os.walk?"]}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two data sets as they are published, which the demo pair can answer."""
    folder = tmp_path / "sets"
    folder.mkdir()
    for name, rows in ROWS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def loaded(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo pair in the place of what `load` would load: the same, but sooner."""
    monkeypatch.setattr("mlx_eagle.loading.load", lambda *args, **options: demo)


@pytest.fixture
def asked(loaded: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Setting, list[int]]]:
    """Everybody answers at once, by the prompt alone; notes who is asked what."""
    make, noted = contestants.make_contestant, list[tuple[str, Setting, list[int]]]()

    def make_quick(spec: Any, *args: Any) -> Contestant:
        real = make(spec, *args)

        def run(prompt: list[int], setting: Setting) -> Run:
            noted.append((spec.name, setting, prompt))
            answer = [100 + sum(prompt) % 50, 101 + int(setting.temperature), 102]
            stats = {"drafted": 2, "n_accepted_per_round": [1]} if spec.shape else {}
            return Run(answer, 2, 0.25 if spec.shape else 0.5, 0.125, stats)

        return Contestant(real.name, run, real.same_draws, real.engine)

    def score(_: Any, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        assert len(prompt) > 10
        return [1] * STEPS, [len(answer)] * STEPS

    monkeypatch.setattr("mlx_eagle.bench.contestants.make_contestant", make_quick)
    monkeypatch.setattr("mlx_eagle.bench.draft_scores._score", score)
    return noted


def test_data_sets_are_measured_as_papers_do_greedy_and_sampled_over_all_turns(
    asked: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--data", str(folder), *SHORT, "--repeats", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["trial"]["temperatures"] == [0.0, 1.0] and not report["trial"]["ignore_eos"]
    assert report["prompts"]["source"] == f"mt-bench, gsm8k ({folder})"
    counts = {"mt-bench: math": 1, "mt-bench: stem": 1, "gsm8k": 1}
    assert report["prompts"]["categories"] == counts
    # 5 turns, 2 temperatures, 2 repeats, 3 contestants, who all read the same prompts.
    assert len(report["samples"]) == len(asked) == 5 * 2 * 2 * 3
    assert len({(s.temperature, s.seed, tuple(ids)) for _, s, ids in asked}) == 5 * 2
    assert report["equality"]["n_bugs"] == 0
    rows = {(r["temperature"], r["contestant"], r["group"]): r for r in report["data_sets"]}
    chain = rows[0.0, "chain:2", "mt-bench"]
    assert (chain["n_answers"], chain["acceptance_length"]) == (4, 2.0)
    assert chain["over_plain"] == chain["over_stock"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    names = {r["group"] for r in report["categories"]}
    assert names == {"mt-bench: math", "mt-bench: stem", "mean"}
    assert {r["contestant"] for r in report["slowest"]} == {"chain:2", "mlx-lm"}
    alphas = {(a["temperature"], a["category"]): a for a in report["n_alpha"]}
    assert {name for _, name in alphas} == {"mt-bench", *counts, "all"}
    assert all(len(a["values"]) == 6 for a in alphas.values())
    assert alphas[0.0, "all"]["n_rounds"] == 5 * 3, "one answer of three tokens a turn"
    assert alphas[1.0, "mt-bench"]["values"] == [1 / 3] * STEPS


def test_the_papers_table_comes_first_and_categories_after_it(
    asked: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "--dataset", "mt-bench", "--data", str(folder), *SHORT]
    assert run(args) == 0
    out = capsys.readouterr().out
    parts = ["## Data sets", "| decoding ", "## Categories", "## Speed, greedy", "5-alpha"]
    assert [out.index(part) for part in parts] == sorted(out.index(part) for part in parts)
    assert "- chain:2, greedy: in no category below 2.00 times plain decoding (mt-bench: " in out
    assert "teacher-forced on plain decoding's answers" in out
    assert "gsm8k" not in out


def test_second_turns_are_answered_alike_by_everybody(
    turning: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mlx_eagle.loading.load", lambda *args, **options: turning)
    (folder / "mt_bench.jsonl").write_text(json.dumps(ROWS["mt_bench"][0]))
    args = ["bench", "--dataset", "mt-bench", "--data", str(folder), "-n", "4", "--warmup", "0"]
    assert run([*args, "--compare", "chain:2", "--temp", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["equality"] == {"n_compared": 2, "n_bugs": 0, "differences": []}
    assert [s["tokens"] for s in report["samples"]] == [4] * 4


def test_a_run_that_was_stopped_goes_on_with_what_is_left(
    demo: Any,
    asked: Any,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    args = ["bench", "--data", str(folder), *SHORT, "--temp", "0", "--no-plots"]
    args += ["--out", str(out)]
    assert run(args) == 0
    whole, n_all = json.loads((out / "report.json").read_text()), len(asked)
    lines = (out / FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 + 5 + 5, "settings, a start, answers, and scores of the head"
    # Stopped in the second turn of the second question.
    (out / FILE).write_bytes(b"".join(lines[:5]) + lines[5][:40])
    (out / "report.json").unlink()
    asked.clear()
    # What is expected of speculation is measured anew.
    otherwise = demo.info._replace(status=Speculation.off("it would give 2.1 for 3.4"))
    monkeypatch.setattr(demo, "info", otherwise)
    assert run(args) == 0
    assert len(asked) == n_all * 2 // 5
    again = json.loads((out / "report.json").read_text())
    key = ("contestant", "prompt_id", "tokens")
    assert [[s[k] for k in key] for s in again["samples"]] == [
        [s[k] for k in key] for s in whole["samples"]
    ]
    assert again["samples"][:9] == whole["samples"][:9]
    assert [a["values"] for a in again["n_alpha"]] == [a["values"] for a in whole["n_alpha"]]
    assert len(again["starts"]) == 2
    assert "taken up again" in (out / "report.md").read_text()
    monkeypatch.setattr("mlx_eagle.bench.draft_scores._score", None)  # all scores are kept
    assert run(args) == 0
    asked.clear()
    capsys.readouterr()
    assert run([*args, "--seed", "1"]) == 1
    assert "other values of seed: give the same" in capsys.readouterr().err
    # A head that was trained anew has the same name.
    monkeypatch.setitem(vars(demo), "identity", demo.identity | {"head": "another"})
    assert run(args) == 1
    assert "other values of weights: give the same" in capsys.readouterr().err
    assert asked == []


def test_questions_that_do_not_fit_are_left_out_and_counted(
    asked: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"turns": ["Sum up: " + "word " * 3000]}, {"turns": ["What does zip do?"]}]
    (folder / "sum.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["bench", "--dataset", "cnn-dm", "--data", str(folder), *SHORT, "--temp", "0", "--json"]
    assert run(args) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["prompts"]["left_out"] == {"cnn-dm": 1}
    assert report["prompts"]["categories"] == {"cnn-dm": 1}
    (folder / "sum.jsonl").write_text(json.dumps(rows[0]))
    assert run(args) == 1
    err = capsys.readouterr().err
    assert "none of the 1 questions fits" in err and err.count("\n") == 1
