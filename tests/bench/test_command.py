"""`mlx-eagle bench` with the demo pair: what it prints and writes, and how it ends."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.bench import contestants
from mlx_eagle.bench.contestants import Contestant, Run, Setting
from mlx_eagle.bench.markdown_table import as_table
from mlx_eagle.bench.metrics import Sample
from mlx_eagle.bench.plots import plot_costs
from mlx_eagle.bench.report import to_json
from mlx_eagle.bench.report_markdown import to_markdown
from mlx_eagle.bench.specs import parse_spec
from mlx_eagle.bench.text_comparison import judge_by
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.cli.main import run
from mlx_eagle.errors import EagleError
from mlx_eagle.hub import packaged
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.tree_shape import TreeShape

SHORT = ["-n", "6", "--warmup", "0", "--compare", "chain:2", "--no-calibrate"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two prompts that the demo pair can answer."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {"category": "signature", "prompt": "What is the signature of zip?"},
        {"category": "source", "prompt": "What does zip do?"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def loaded(turning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small pair in the place of what `load` would load."""
    monkeypatch.setattr("mlx_eagle.loading.load", lambda *args, **options: turning)


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chains lie in the fourth token of every answer."""
    make = contestants.make_contestant

    def make_liar(spec: Any, *args: Any) -> Contestant:
        honest = make(spec, *args)
        if spec.kind != "chain":
            return honest

        def lie(prompt: list[int], setting: Setting) -> Run:
            found = honest.run(prompt, setting)
            tokens = list(found.tokens)
            tokens[3] = (tokens[3] + 1) % 4096
            return found._replace(tokens=tokens)

        return Contestant(honest.name, lie, honest.same_draws, honest.engine)

    monkeypatch.setattr("mlx_eagle.bench.contestants.make_contestant", make_liar)


def test_json_is_one_object_with_everything_that_a_report_must_tell(
    turning: Any, loaded: None, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "--prompts", str(questions), *SHORT, "--temp", "0", "--temp", "0.8"]
    assert run([*args, "-n", "9", "--seed", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["command"].startswith(f"mlx-eagle bench --prompts {questions} -n 6")
    assert report["date"][:2] == "20"
    machine = {"chip", "system", "device", "python", "mlx", "mlx-lm", "mlx-eagle", "architecture"}
    assert machine <= set(report["machine"])
    assert report["models"]["target"] == turning.info.target
    assert report["prompts"]["categories"] == {"signature": 1, "source": 1}
    assert report["trial"]["seed"] == 3 and report["trial"]["ignore_eos"]
    assert report["equality"] == {"n_compared": 4, "n_bugs": 0, "differences": []}
    assert len(report["samples"]) == 2 * 2 * 2
    assert all(s["tokens"] == 9 and "rounds" in s["stats"] for s in report["samples"])
    rows = {(r["temperature"], r["category"], r["contestant"]): r for r in report["summary"]}
    assert len(rows) == 2 * 3 * 2
    chain = rows[0.0, "all", "chain:2"]
    assert chain["acceptance_length"] > 1 and len(chain["acceptance_by_depth"]) == 2
    assert chain["spread"]["low"] <= chain["spread"]["median"] <= chain["spread"]["high"]
    assert all(len(entry["values"]) == 5 for entry in report["n_alpha"])
    assert {entry["category"] for entry in report["n_alpha"]} == {"signature", "source", "all"}


@pytest.mark.usefixtures("small_toy_pair")
def test_every_kind_of_contestant_gives_plain_decodings_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = packaged.TOY_PAIR
    question = tmp_path / "question.jsonl"
    question.write_text(json.dumps({"category": "source", "prompt": "What does os.walk do?"}))
    names = ["auto", "tree:2x2x3", f"head:{pair.head}", f"draft-model:{pair.target}:3"]
    names.append(f"tree:eagle1:head:{pair.head}")
    compare = [word for name in [*names, "mlx-lm"] for word in ("--compare", name)]
    args = ["bench", "--prompts", str(question), *SHORT, "-n", "8", *compare, "--json"]
    assert run(args) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["contestants"] == ["plain", "chain:2", *names, "mlx-lm"]
    assert report["equality"]["n_compared"] == 7
    assert report["equality"]["differences"] == []
    rows = {r["contestant"]: r for r in report["summary"] if r["category"] == "all"}
    heads = report["heads"]
    assert heads["auto"] == heads["chain:2"] != heads[names[2]] == heads[names[4]]
    assert len(report["n_alpha"]) == 2 * 2, "each head once, and its only category and all"
    side_by_side = to_markdown(report).split("## Side by side, greedy")[1].split("##")[0]
    lines = [line.split("|") for line in side_by_side.splitlines() if line.startswith("| ")]
    assert {line[1].strip() for line in lines[1:]} >= {"chain:2", *names[1:]}
    alphas = {line[1].strip(): line[4:-1] for line in lines[1:]}
    assert alphas[names[2]] == alphas[names[4]] and "".join(alphas[names[4]]).strip()
    # The draft model is the target itself: all 3 drafts are accepted, in two rounds of 4 tokens.
    assert rows[names[3]]["acceptance_length"] == 4.0
    assert rows[names[3]]["acceptance_by_depth"] == [1.0, 1.0, 1.0]
    assert rows["mlx-lm"]["acceptance_length"] is None
    assert rows["mlx-lm"]["host_seconds"] is None


@pytest.mark.usefixtures("small_toy_pair")
def test_c10_another_head_is_loaded_beside_the_target_which_is_not_loaded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlx_eagle import loading

    first, head = loading.load(calibrate=False), packaged.TOY_PAIR.head
    assert head is not None

    def load_other(engine: Any, head: str) -> Any:
        return loading.load_with_head(engine, None, head, calibrate=False)

    monkeypatch.setattr(loading, "load_target", lambda *_, **__: pytest.fail("loaded again"))
    spec = parse_spec(f"head:{head}")
    before = mx.get_active_memory()
    made = contestants.make_contestant(spec, first, load_other, Path)
    other = made.engine
    assert other is not None and other.head is not first.head
    assert other.target.model is first.target.model
    n_head = sum(f.stat().st_size for f in head.iterdir())
    assert mx.get_active_memory() - before < 2 * n_head
    options = {"max_tokens": 8, "tree": TreeShape.chain(3)}
    question = [{"role": "user", "content": "What is the signature of shutil.copyfile?"}]
    plain = first.generate(question, max_tokens=8, speculate=False).tokens
    for engine in (first, other, first):  # each with taps of its own, in turns
        result = engine.generate(question, **options)
        assert result.tokens == plain
        assert result.stats.accepted > 0
    other.target.release()
    quantized = first.with_kv(KVOptions(bits=8))
    pair = loading.load_with_head(quantized, None, head, calibrate=False, kv_bits=8)
    assert pair.target.kv == quantized.target.kv
    assert pair.generate(question, **options).stats.drafted > 0
    pair.target.release()


def test_a_contestant_that_lies_is_a_bug_with_status_one(
    loaded: None, liar: None, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--prompts", str(questions), *SHORT]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("error: 2 of 2 texts differ")
    assert "**2 texts differ from plain decoding's: a BUG**" in out
    bugs = [line for line in out.splitlines() if line.startswith("| BUG ")]
    assert [line.split("|")[2:6] for line in bugs] == [
        [" chain:2    ", " 0           ", f" {i}      ", " 3        "] for i in (0, 1)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_judge_repeats_plain_decodings_choice_at_every_position(
    turning: Any, temperature: float
) -> None:
    """With the same seed and positions; of a prompt that is not the run's first."""
    ids = turning.tokenizer.encode("What does zip do?")
    options = {"max_tokens": 6, "temperature": temperature, "seed": 5, "ignore_eos": True}
    tokens = turning.generate(ids, speculate=False, **options).tokens
    plain = Sample("plain", temperature, 1, "c", 0, tokens, 5, 1.0, 1.0, {})
    judge = judge_by(turning.target.model, lambda *_: ids, seed=4)
    verdicts = [judge(plain, at, token, token) for at, token in enumerate(tokens)]
    assert verdicts == [(0.0, 0.001)] * 6
    assert judge(plain, 2, tokens[2], (tokens[2] + 1) % 4096).gap > 0.001


def test_two_tokens_that_the_target_finds_equally_good_are_a_near_tie(
    tiny_target: Callable[..., Any],
) -> None:
    model = tiny_target("llama")
    best = int(mx.argmax(model(mx.array([[3, 5, 7]]))[0, -1]).item())
    twin = (best + 1) % 128
    weight = model.lm_head.weight
    weight[twin] = weight[best] * (1 - 1e-6)
    plain = Sample("plain", 0.0, 0, "c", 0, [best], 0, 1.0, 1.0, {})
    verdict = judge_by(model, lambda *_: [3, 5, 7], seed=0)(plain, 0, best, twin)
    assert 0 <= verdict.gap < verdict.tolerance == 0.001


def test_markdown_on_stdout_names_every_part(
    loaded: None, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--prompts", str(questions), *SHORT, "--stop-at-eos"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    parts = ["# mlx-eagle bench", "## Speed, greedy", "## Time of a round, greedy"]
    for part in [*parts, "## Acceptance", "4-alpha", "## Equality", "## Conditions", "| chip "]:
        assert part in out
    assert "**chain:2**, greedy: " in out
    assert re.search(r"chain:2, greedy: in no category below \d\.\d\d times plain", out)
    assert "0 differ" in out
    assert "End tokens are ignored" not in out
    tables = [line for line in out.splitlines() if line.startswith("|")]
    assert not any(len(line) < 20 for line in tables)


def test_out_is_a_new_folder_with_report_and_pictures(
    loaded: None, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="install the plot extra")
    out = tmp_path / "new" / "out"
    assert run(["bench", "--prompts", str(questions), *SHORT, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.md'}\n"
    pictures = ["acceptance-temp-0.png", "speedup-temp-0.png"]
    found = sorted(path.name for path in out.iterdir())
    assert found == sorted([*pictures, "report.json", "report.md"])
    assert all((out / name).read_bytes().startswith(PNG) for name in pictures)
    report = json.loads((out / "report.json").read_text())
    text = (out / "report.md").read_text()
    assert all(f"({name})" in text for name in pictures)
    assert to_markdown(report, [out / "speedup-temp-0.png", out / "acceptance-temp-0.png"]) == text


def test_a_bug_is_in_the_files_too(
    loaded: None, liar: None, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "--prompts", str(questions), *SHORT, "--no-plots"]
    assert run([*args, "--out", str(tmp_path / "out")]) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {d["kind"] for d in report["equality"]["differences"]} == {"BUG"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.json", "report.md"]


def test_an_existing_folder_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("mlx_eagle.loading.load", load)
    assert run(["bench", "--no-plots", "--out", str(tmp_path)]) == 1
    assert "exists and is never overwritten" in capsys.readouterr().err


def test_a_run_that_fails_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise EagleError("no such thing")

    monkeypatch.setattr("mlx_eagle.loading.load", load)
    assert run(["bench", "--no-plots", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: no such thing\n"
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_plots_are_refused_in_one_line_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(["bench", "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert 'pip install "mlx-eagle[plot]"' in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--compare", "fast"], "there are plain, auto, chain:N, tree:DxWxN, head:HEAD"),
        (["--compare", "tree:1x1x5"], "there are plain"),
        (["--prompts", "a", "--dataset", "gsm8k"], "give one of them"),
        (["--data", "a"], "--dataset"),
        (["--dataset", "mmlu"], "mt-bench"),
        (["-n", "1"], "1 is not in the range"),
        (["--temp", "nan"], "not a finite number"),
        (["--cooldown", "-1"], "-1"),
        (["--limit", "0"], "0 is not in the range"),
    ],
)
def test_wrong_usage_ends_with_status_two(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]


def test_a_contestant_that_needs_a_head_says_so_where_there_is_none(
    questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--model", str(DEMO / "target"), "--head", "none"]
    assert run(["bench", "--prompts", str(questions), *SHORT, *target]) == 1
    assert "chain:2 drafts with a head, and there is none" in capsys.readouterr().err


def test_of_a_data_set_twenty_prompts_are_enough_unless_more_are_asked_for(
    loaded: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(json.dumps({"question": f"{i}?", "answer": ""}) + "\n" for i in range(40))
    (tmp_path / "test.jsonl").write_text(rows)
    args = ["bench", "--dataset", "gsm8k", "--data", str(tmp_path), "-n", "2", "--warmup", "0"]
    assert run([*args, "--compare", "plain", "--temp", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["prompts"] == {"source": f"gsm8k ({tmp_path})", "categories": {"gsm8k": 20}}
    assert report["n_alpha"] == []


def test_help_of_bench_imports_nothing_heavy() -> None:
    heavy = ["mlx", "mlx_lm", "numpy", "huggingface_hub", "rich", "matplotlib"]
    code = (
        "import sys; from mlx_eagle.cli.main import run; run(['bench', '--help']);"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"
    assert "tree:4x2x8" in result.stdout


def test_a_curve_of_costs_is_drawn_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="install the plot extra")
    file = plot_costs({2: 0.07, 1: 0.06, 8: 0.11}, tmp_path / "costs.png")
    assert file.read_bytes().startswith(PNG)


def test_what_is_no_finite_number_is_null_in_json() -> None:
    assert json.loads(to_json({"a": [math.inf, 1.5], "b": (math.nan,)})) == {
        "a": [None, 1.5],
        "b": [None],
    }


def test_a_table_lines_up_and_names_cannot_leave_their_cell() -> None:
    assert as_table([["a", "long"], ["x|\x1b", "y"]]) == (
        "| a    | long |\n| ---- | ---- |\n| x\\|? | y    |"
    )


def test_c2_a_temperature_that_no_draw_has_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["bench", "--temp", "1e-7", "--model", "/no/such/folder"]) == 2
    assert "--temp" in capsys.readouterr().err
