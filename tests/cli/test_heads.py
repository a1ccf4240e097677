"""`mlx-eagle heads`, and what other commands make of known heads."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.cli.chat.fetching import fetch_models
from mlx_eagle.cli.main import run
from mlx_eagle.cli.options import ModelSource
from mlx_eagle.cli.terminal.display import terminal
from mlx_eagle.errors import EagleError
from mlx_eagle.hub.known_heads import all_heads, known_heads

HEAVY = ["mlx", "mlx_lm", "transformers", "huggingface_hub", "numpy"]


def test_without_a_target_every_target_and_every_head_is_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["heads"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    for heads in all_heads():
        assert ", ".join(heads[0].targets) in lines
        assert all(any(line.startswith(f"  {head.repo} ") for line in lines) for head in heads)
    assert "collected in 2026-09, not checked since" in lines[-1]
    assert "\t" not in out and "\x1b" not in out
    assert err == ""


def test_with_a_target_its_heads_stand_in_columns_best_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["heads", "mlx-community/Qwen3-4B-4bit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Qwen/Qwen3-4B"
    heads = known_heads("Qwen/Qwen3-4B")
    assert [line.split()[0] for line in lines[1 : 1 + len(heads)]] == [h.repo for h in heads]
    assert lines[1].split()[:4] == [heads[0].repo, "AngelSlim", "recommended", "2.50"]
    assert lines[1].index(" AngelSlim ") == lines[2].index(" DeepSpec ")
    assert all(defect in lines[1] for defect in heads[0].defects)


def test_json_is_one_object_with_the_default_of_the_target(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["heads", "Qwen/Qwen3-8B", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["default"] == facts["heads"][0]["repo"]
    assert facts["collected"] == "2026-09"
    wanted = [head._asdict() for head in known_heads("Qwen/Qwen3-8B")]
    assert facts["heads"] == json.loads(json.dumps(wanted))
    assert run(["heads", "google/gemma-4-12B-it", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["default"] is None
    assert run(["heads", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["heads"]) == sum(map(len, all_heads()))


@pytest.mark.parametrize("target", ["somebody/model", "Qwen/Qwen3-8B-Base", "/no/such/folder"])
def test_an_unknown_target_is_one_line_that_says_what_to_do(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["heads", target]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: no published head is known for {target}: ")
    assert "--head" in err and "mlx-eagle convert" in err and "train" in err
    assert err.count("\n") == 1


def test_a_folder_is_a_target_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"_name_or_path": "Qwen/Qwen3-8B"}')
    assert run(["heads", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("Qwen/Qwen3-8B\n")


@pytest.mark.parametrize("columns", ["80", "160"])
def test_on_a_terminal_names_stay_whole_however_narrow_it_is(columns: str) -> None:
    code = "from mlx_eagle.cli.main import run; run(['heads'])"
    screen = read_terminal([sys.executable, "-c", code], {"COLUMNS": columns})
    assert "\x1b[1m" in screen
    lines = re.sub(r"\x1b\[[0-9;]*m", "", screen).splitlines()
    for head in (head for heads in all_heads() for head in heads):
        assert any(line.split()[:1] == [head.repo] for line in lines), head.repo
    assert max(map(len, lines)) <= int(columns)


def read_terminal(command: list[str], env: dict[str, str]) -> str:
    """Return what a command writes to a pseudo-terminal."""
    terminal, child = pty.openpty()
    process = subprocess.Popen(command, stdout=child, env=os.environ | {"TERM": "xterm"} | env)
    os.close(child)
    screen = b""
    with contextlib.suppress(OSError):  # Linux reports the closed terminal as an error
        while data := os.read(terminal, 65536):
            screen += data
    os.close(terminal)
    assert process.wait(timeout=20) == 0
    return screen.decode()


def test_listing_and_its_help_load_no_model_library() -> None:
    code = (
        "import sys; from mlx_eagle.cli.main import run; run(['heads', '--help']); run(['heads']);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("options", "head"),
    [
        (["--model", "a/b"], None),
        (["--model", "a/b", "--head", "none"], "none"),
        (["--model", "a/b", "--no-speculate"], "none"),
        (["--model", "a/b", "--no-speculate", "--head", "c/d"], "c/d"),
        (["--no-speculate"], None),
    ],
)
@pytest.mark.parametrize("command", [["generate", "x"], ["chat", "-p", "x"]])
def test_a_known_head_is_left_to_load_unless_nothing_will_be_drafted(
    monkeypatch: pytest.MonkeyPatch, command: list[str], options: list[str], head: str | None
) -> None:
    heads: list[str | None] = []

    def load(model: str | None, head: str | None, **options: Any) -> None:
        heads.append(head)
        raise EagleError("that was all")

    monkeypatch.setattr("mlx_eagle.loading.load", load)
    assert run([*command, *options]) == 1
    assert heads == [head]


def test_what_is_downloaded_is_told_on_stderr_without_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*args: Any, notify: Any, **options: Any) -> None:
        notify("fetching \x1b[31m[bold]a/b[/bold]: 5 MB")
        raise EagleError("that was all")

    monkeypatch.setattr("mlx_eagle.loading.load", load)
    run(["generate", "x", "--model", "a/b"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "fetching \u241b[31m[bold]a/b[/bold]: 5 MB"


@pytest.mark.parametrize(
    ("source", "fetched", "chosen"),
    [
        (ModelSource(None, None), [], []),
        (ModelSource(None, "none"), [], []),
        (ModelSource(None, "c/d"), ["c/d"], []),
        (ModelSource("a/b", None), ["a/b"], [("a/b", None)]),
        (ModelSource("a/b", "c/d"), ["a/b"], [("a/b", "c/d")]),
        (ModelSource("a/b", "none"), ["a/b"], [("a/b", "none")]),
    ],
)
def test_a_chat_fetches_target_and_head_before_its_prompt(
    monkeypatch: pytest.MonkeyPatch,
    source: ModelSource,
    fetched: list[str],
    chosen: list[tuple[str, str | None]],
) -> None:
    names: list[str] = []
    choices: list[tuple[str, str | None]] = []
    monkeypatch.setattr("mlx_eagle.hub.download.fetch", lambda name, **_: names.append(name))
    monkeypatch.setattr(
        "mlx_eagle.hub.head_choice.choose_head",
        lambda model, head, folder, **options: choices.append((model, head)),
    )
    fetch_models(source, terminal())
    assert (names, choices) == (fetched, chosen)
