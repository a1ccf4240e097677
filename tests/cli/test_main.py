"""The command line: what it imports, where its output goes, how it ends."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest

import mlx_eagle
from command_line import run_here
from mlx_eagle.answers.sections import Kind, Span
from mlx_eagle.cli.generate import read_stdin
from mlx_eagle.cli.main import COMMANDS, group, run
from mlx_eagle.decoding.stats import GenerationStats
from mlx_eagle.engine import EngineInfo
from mlx_eagle.errors import CheckpointError
from mlx_eagle.session.responses import GenerationResponse
from mlx_eagle.speculation import ON
from mlx_eagle.tree_shape import TreeShape

HEAVY = ["mlx", "mlx_lm", "transformers", "huggingface_hub", "numpy", "rich", "prompt_toolkit"]
WORDS = ["It ", "joins ", "\x1b[31mpaths", "."]
INFO = EngineInfo("toy", "8-bit, group 64", "head", "4-bit, group 64", ON, "CPU", True)


def responses() -> Iterator[GenerationResponse]:
    """Yield a token per word: the first by the prompt, then rounds of two."""
    stats = GenerationStats(prompt_tokens=3, generation_tokens=4, generation_seconds=0.5)
    for n, word in enumerate(WORDS, start=1):
        last = n == len(WORDS)
        if n % 2 == 0:
            stats.add_round(depth=1, n_drafted=1, n_accepted=1)
        yield GenerationResponse(
            text=word,
            token=n,
            logprobs=None,
            from_draft=n % 2 == 0,
            prompt_tokens=3,
            prompt_tps=30.0,
            generation_tokens=n,
            generation_tps=8.0,
            peak_memory=0.1,
            finish_reason="stop" if last else None,
            n_accepted=n // 2,
            tree=None,
            stats=stats if last else None,
            spans=(Span(word, Kind.SAID, n % 2 == 0),),
            message={"role": "assistant", "content": "".join(WORDS)} if last else None,
        )


class FakeEngine:
    """Answers anything with WORDS and remembers what it was asked."""

    def __init__(self) -> None:
        self.info = INFO
        self.asked: list[Any] = []
        self.options: dict[str, Any] = {}

    def stream_generate(self, prompt: Any, **options: Any) -> Iterator[GenerationResponse]:
        self.asked.append(prompt)
        self.options = options
        return responses()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """A fake engine in the place of the one that `load` would return."""
    fake = FakeEngine()
    monkeypatch.setattr("mlx_eagle.loading.load", lambda *args, **options: fake)
    return fake


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mlx_eagle.cli.main import run; run(['--help']);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"


@pytest.mark.parametrize("command", ["chat", "generate", "explain"])
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    code = (
        f"import sys; from mlx_eagle.cli.main import run; run([{command!r}, '--help']);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"
    assert f"mlx-eagle {command} " in result.stdout


def test_help_imports_few_modules_besides_click() -> None:
    """So it is there at once: four modules of ours, and what tells the version."""
    code = (
        "import sys, click; before = set(sys.modules);"
        "from mlx_eagle.cli.main import run; run(['--help']);"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    names = result.stderr.split()
    ours = [name for name in names if name.startswith("mlx_eagle")]
    assert ours == ["mlx_eagle", "mlx_eagle.cli", "mlx_eagle.cli.main", "mlx_eagle.errors"]
    assert len(names) < 100


def test_help_names_every_command_and_shows_examples() -> None:
    out = run_here("--help").stdout
    assert all(f"  {name} " in out for name in COMMANDS)
    assert "mlx-eagle chat --model" in out


def test_every_command_of_the_table_exists() -> None:
    context = click.Context(group)
    for name in COMMANDS:
        assert isinstance(group.get_command(context, name), click.Command)


def test_version_names_the_libraries_that_texts_depend_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--version"]) == 0
    own, mlx, mlx_lm = map(metadata.version, ("mlx-eagle", "mlx", "mlx-lm"))
    assert capsys.readouterr().out == f"mlx-eagle {own} (mlx {mlx}, mlx-lm {mlx_lm})\n"


@pytest.mark.parametrize(
    "args",
    [
        ["frobnicate"],
        ["generate", "--frobnicate"],
        ["generate", "a", "--prompt", "b"],
        ["generate", "  "],
        ["generate", "a", "--raw", "--system", "b"],
        ["generate", "a", "--temp", "-1"],
        ["generate", "a", "--temp", "nan"],
        ["generate", "a", "--temp", "inf"],
        ["generate", "a", "--top-p", "0"],
        ["generate", "a", "--max-tokens", "0"],
        ["generate", "a", "--nodes", "8"],
        ["generate", "a", "--depth", "2", "--nodes", "99", "--width", "2"],
        ["generate", "a", "--depth", "2", "--no-speculate"],
        ["generate", "a", "--tree", "2", "--no-speculate"],
        ["generate", "a", "--tree", "4x1x9"],
        ["generate", "a", "--tree", "wide"],
        ["generate", "a", "--tree", "4x2x8", "--depth", "4"],
        ["generate", "a", "--dtype", "int4"],
        ["generate", "a", "--json-schema", "/nowhere/schema.json"],
        ["generate", "a", "--json-schema", str(Path(__file__))],
        ["generate", "a", "--repetition-penalty", "0"],
        ["generate", "a", "--overflow", "drop"],
        ["generate", "a", "--kv-bits", "5"],
        ["generate", "a", "--memory", "0"],
        ["chat", "-p", ""],
    ],
)
def test_wrong_usage_ends_with_status_two_and_nothing_on_stdout(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")


def test_a_failure_is_one_line_on_stderr_with_status_one(tmp_path: Path) -> None:
    result = run_here("generate", "a", "--model", str(tmp_path / "none"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: there is no folder")
    assert result.stderr.count("\n") == 1


def test_an_error_cannot_send_escape_sequences_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise CheckpointError("unknown tensor \x1b]0;evil\x07\nand \x9bmore")

    monkeypatch.setattr("mlx_eagle.loading.load", load)
    assert run(["generate", "a"]) == 1
    assert capsys.readouterr().err.endswith("error: unknown tensor ?]0;evil? and ?more\n")


def test_generate_writes_the_answer_and_nothing_else_to_stdout(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "What does join do?", "--system", "Be brief."]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(WORDS) + "\n"
    assert err == ""
    assert engine.asked == [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What does join do?"},
        ]
    ]


def test_verbose_puts_statistics_on_stderr(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["generate", "a", "-v"])
    out, err = capsys.readouterr()
    assert out == "".join(WORDS) + "\n"
    assert err == "4 tokens · 8.0 tokens/s · acceptance length 2.00 · 2 rounds\n"


def test_raw_prompts_reach_the_engine_as_strings(engine: FakeEngine) -> None:
    run(["generate", "--raw", "def f("])
    assert engine.asked == ["def f("]


def test_options_reach_the_engine_under_its_names(engine: FakeEngine) -> None:
    line = (
        "generate a --max-tokens 7 --temp 0.5 --top-p 0.9 --top-k 5 --min-p 0.1 --seed 3 "
        "--repetition-penalty 1.1 --presence-penalty 0.2 --frequency-penalty -0.3 --regex a+ "
        "--stop x --stop y --thinking-budget 9 --overflow truncate --depth 4 --width 2 --nodes 8"
    )
    run(line.split())
    tree, progress = engine.options.pop("tree"), engine.options.pop("progress")
    assert callable(progress)
    assert (tree.depth, tree.width, tree.nodes) == (4, 2, 8)
    assert engine.options == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 3,
        "template_args": None,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "json_schema": None,
        "regex": "a+",
        "thinking_budget": 9,
        "overflow": "truncate",
        "stop": ("x", "y"),
        "ignore_eos": False,
        "speculate": True,
        "acceptance": "match",
    }
    run(["generate", "a", "--ignore-eos"])  # a grammar and this exclude each other
    assert engine.options["ignore_eos"] is True


@pytest.mark.parametrize(
    ("line", "sizes"),
    [
        ("--tree 4x2x8", (4, 2, 8)),
        ("--tree 4x2", (4, 2, 8)),
        ("--tree 4", (4, 1, 4)),
        ("--depth 4", (4, 1, 4)),
        ("--depth 4 --nodes 8", (4, 2, 8)),
    ],
)
@pytest.mark.parametrize("command", ["generate a", "chat -p a"])
def test_both_forms_of_a_tree_mean_the_same(
    line: str, sizes: tuple[int, int, int], command: str, engine: FakeEngine
) -> None:
    assert run([*command.split(), *line.split()]) == 0
    assert engine.options["tree"] == TreeShape(*sizes)


def test_help_shows_one_spelling_of_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    run(["generate", "--help"])
    out = capsys.readouterr().out
    assert "--tree DxWxN" in out
    assert "--depth" not in out
    run(["chat", "--help"])
    assert "--ignore-eos" not in capsys.readouterr().out


def test_a_schema_is_read_from_its_file(engine: FakeEngine, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "boolean"}')
    assert run(["generate", "a", "--json-schema", str(file)]) == 0
    assert engine.options["json_schema"] == '{"type": "boolean"}'
    assert run(["generate", "a", "--json-schema", str(file), "--regex", "a"]) == 2


def test_options_of_loading_reach_the_engine_under_its_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def load(*args: Any, **options: Any) -> FakeEngine:
        asked.update(options)
        return FakeEngine()

    monkeypatch.setattr("mlx_eagle.loading.load", load)
    line = "chat -p a --kv-bits 8 --head-window 64 --max-context 512 --memory 1.5"
    run(line.split())
    assert asked["kv_bits"] == 8
    assert (asked["head_window"], asked["max_context"]) == (64, 512)
    assert asked["memory_limit"] == 1_500_000_000


def test_what_the_user_should_know_of_an_answer_is_said_on_stderr(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(prompt: Any, **options: Any) -> Iterator[GenerationResponse]:
        for response in responses():
            if response.stats:
                response.stats.ended_by = "the context of 9 tokens is full"
            yield response

    monkeypatch.setattr(engine, "stream_generate", full)
    run(["chat", "-p", "a"])
    out, err = capsys.readouterr()
    assert out == "".join(WORDS) + "\n"
    assert err == "ended here: the context of 9 tokens is full\n"


def test_json_is_one_object_with_text_tokens_and_statistics(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["generate", "a", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["text"] == "".join(WORDS)
    assert result["tokens"] == [1, 2, 3, 4]
    assert result["finish_reason"] == "stop"
    assert result["n_accepted_per_round"] == [1, 1]
    assert {"rounds", "drafted", "accepted", "acceptance_length", "speculation"} <= set(result)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_pipe_is_a_prompt(
    command: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(group, [command], input="two\nlines\n")
    assert result.stdout == "".join(WORDS) + "\n"
    assert engine.asked == [[{"role": "user", "content": "two\nlines"}]]


def test_a_pipe_that_is_not_text_is_wrong_usage(engine: FakeEngine) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(group, ["generate"], input=b"\xff\xfe\x00")
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr


def test_chat_with_a_prompt_answers_once(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["chat", "-p", "What?"]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(WORDS) + "\n"
    assert err == ""
    assert engine.options["max_tokens"] == 2048


def test_ctrl_c_ends_a_command_quietly_with_status_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_eagle.cli", "generate"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.0)  # seconds: it waits for its prompt
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == ""


def test_a_reader_that_leaves_early_is_not_a_traceback() -> None:
    code = (
        "import sys, time; from mlx_eagle.cli.main import group, main\n"
        "import click\n"
        "@click.command()\n"
        "def command():\n"
        "    for _ in range(100_000): click.echo('a line of text')\n"
        "group.get_command = lambda ctx, name: command\n"
        "sys.argv = ['mlx-eagle', 'chat']\n"
        "main()\n"
    )
    reader = f'{sys.executable} -c "$CODE" | head -n 1'
    result = subprocess.run(
        reader, shell=True, env=os.environ | {"CODE": code}, capture_output=True, text=True
    )
    assert result.stdout == "a line of text\n"
    assert result.stderr == ""


@pytest.mark.usefixtures("small_toy_pair")
def test_log_probabilities_are_in_the_json_as_the_library_gives_them() -> None:
    """A real answer: every token with its log-probability, and the likeliest ones with theirs."""
    options = ["-n", "6", "--json", "--logprobs", "3", "--no-calibrate"]
    done = run_here("generate", "Explain io.", *options)
    answer = json.loads(done.stdout)
    messages = [{"role": "user", "content": "Explain io."}]
    pair = mlx_eagle.load(calibrate=False)
    want = list(pair.stream_generate(messages, max_tokens=6, logprobs=True))
    assert answer["tokens"] == [r.token for r in want]
    assert [row["logprob"] for row in answer["logprobs"]] == pytest.approx(
        [r.logprob for r in want], abs=1e-4
    )
    for row, token in zip(answer["logprobs"], answer["tokens"], strict=True):
        assert len(row["top"]) == 3
        assert row["top"][0] == [token, row["logprob"]]
    refused = run_here("generate", "a", "--logprobs", "3")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--json" in refused.stderr


def test_a_grammar_with_ignore_eos_is_a_wrong_command_line(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "a", "--regex", "b", "--ignore-eos"]) == 2
    assert "an answer under a grammar ends with it" in capsys.readouterr().err
    assert engine.asked == []


def test_b11_a_byte_order_mark_and_line_ends_of_windows_are_no_part_of_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = io.TextIOWrapper(io.BytesIO("\ufeffWhat?\r\nWhy?\r\n".encode()))
    monkeypatch.setattr(sys, "stdin", given)
    assert read_stdin() == "What?\nWhy?"


def test_c9_without_a_head_nobody_is_sent_to_the_doctor() -> None:
    assert mlx_eagle.load(head="none", calibrate=False).info.remedy == ""
