"""`serve`, `cache` and `launch` on the command line."""

import json
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import click
import pytest

from mlx_eagle.cli import launch
from mlx_eagle.cli.launch import claude, codex
from mlx_eagle.cli.main import run
from mlx_eagle.cli.serve import check_address, read_keys
from mlx_eagle.errors import EagleError

MODEL: dict[str, Any] = {"id": "toy", "context_length": 4096}


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::"])
def test_other_machines_need_a_key(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.UsageError, match="can be reached from other machines"):
        check_address(host, ())
    check_address(host, ("secret",))
    check_address("127.0.0.1", ())
    assert run(["serve", "--host", host]) == 2
    assert "--api-key-file" in capsys.readouterr().err


def test_a_key_is_a_line_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_EAGLE_API_KEY", " from outside ")
    assert read_keys(None) == ("from outside",)
    monkeypatch.setenv("MLX_EAGLE_API_KEY", "")
    assert read_keys(None) == ()
    file = tmp_path / "key"
    file.write_text("secret\n\n other\nsecret\n")
    assert read_keys(file) == ("secret", "other")
    for text in ("", "two words", "one\nsec\x00ret"):
        file.write_text(text)
        with pytest.raises(EagleError, match="does not hold a key"):
            read_keys(file)


def test_rows_on_disk_are_listed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    folder = tmp_path / "prefix" / "0123456789abcdef" / "ab"
    folder.mkdir(parents=True)
    (folder / "ab12.safetensors").write_bytes(b"x" * 2_000_000)
    assert run(["cache"]) == 0
    assert "0123456789abcdef  1 files  2.0 MB" in capsys.readouterr().out
    assert run(["cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["prefixes"]
    assert found == {"0123456789abcdef": {"files": 1, "bytes": 2_000_000}}
    assert run(["cache", "--clear"]) == 0
    assert not list(folder.iterdir())


def test_agents_are_told_where_the_model_is() -> None:
    made = claude("http://127.0.0.1:8080", MODEL, "none", ("--continue",))
    assert made.environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8080"
    assert made.environment["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "4096"
    assert made.words == ["claude", "--continue"]
    made = codex("http://127.0.0.1:8080", MODEL, "none", ())
    assert 'model_providers.mlx-eagle.wire_api="responses"' in made.words
    assert "model_context_window=4096" in made.words
    assert str(made).startswith("MLX_EAGLE_API_KEY=none")


def test_launch_says_what_it_would_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "served_model", lambda url, key: MODEL)
    assert run(["launch", "claude", "--print", "--", "-p", "hi there"]) == 0
    assert "claude -p 'hi there'" in capsys.readouterr().out


def test_launch_without_a_server_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "codex", "--url", "http://127.0.0.1:9"]) == 1
    assert "no model is served at http://127.0.0.1:9" in capsys.readouterr().err
    assert run(["launch", "codex", "--url", "file:///etc/passwd"]) == 1


def test_launch_says_that_a_server_loads_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Any, **_: Any) -> None:
        raise urllib.error.HTTPError(request.full_url, 503, "Service Unavailable", Message(), None)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(EagleError, match="loads its model"):
        launch.served_model("http://127.0.0.1:9", "")
