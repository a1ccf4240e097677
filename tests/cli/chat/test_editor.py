"""The line editor, with fake keys in front."""

import stat
import sys
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlx_eagle.cli.chat.editor import (
    history_path,
    is_open,
    is_text,
    open_history,
    prompt_session,
    unfenced,
)


@pytest.mark.parametrize(
    ("text", "is_unfinished", "message"),
    [
        ("hello", False, "hello"),
        ('"""', True, '"""'),
        ('""""', True, '""""'),
        ('"""one\ntwo', True, '"""one\ntwo'),
        ('"""one\ntwo"""', False, "one\ntwo"),
        ('"""\none\n  two\n"""', False, "one\n  two"),
        ('  """one"""  ', False, "one"),
        ('say """one', False, 'say """one'),
        ("a\nb", False, "a\nb"),
    ],
)
def test_fences_hold_a_message_of_several_lines(
    text: str, is_unfinished: bool, message: str
) -> None:
    assert is_open(text) == is_unfinished
    assert unfenced(text) == message


def test_the_history_lies_where_the_platform_keeps_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLX_EAGLE_HISTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert history_path() == tmp_path / "mlx-eagle" / "history"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert history_path() == Path.home() / ".local" / "state" / "mlx-eagle" / "history"
    monkeypatch.setattr(sys, "platform", "darwin")
    library = Path.home() / "Library" / "Application Support"
    assert history_path() == library / "mlx-eagle" / "history"
    monkeypatch.setenv("MLX_EAGLE_HISTORY", str(tmp_path / "h"))
    assert history_path() == tmp_path / "h"
    monkeypatch.setenv("MLX_EAGLE_HISTORY", "")
    assert history_path() is None


def test_the_history_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    open_history(path).append_string("a secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "a secret" in path.read_text()


def test_a_history_that_cannot_be_written_is_kept_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    open_history(tmp_path / "file" / "history").append_string("x")
    assert "what you type is not kept" in capsys.readouterr().err


def typed(keys: str, history: Path | None = None) -> str:
    """Return the message that these keys enter."""
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        with create_app_session(input=keyboard, output=DummyOutput()):
            return prompt_session(history).prompt()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ('"""one\rtwo\r"""\r', '"""one\ntwo\n"""'),
        ("\x1b[200~one\ntwo\x1b[201~\r", "one\ntwo"),
        ("\x1b[200~one\r\ntwo\x1b[201~ three\r", "one\ntwo three"),
    ],
)
def test_keys_enter_a_message(keys: str, message: str) -> None:
    assert typed(keys) == message


def test_arrow_keys_recall_what_an_earlier_chat_heard(tmp_path: Path) -> None:
    typed("the first question\r", tmp_path / "history")
    typed('"""two\rlines"""\r', tmp_path / "history")
    assert typed("\x1b[A\r", tmp_path / "history") == '"""two\nlines"""'
    assert typed("\x1b[A\x1b[A\x1b[A\x1b[A\r", tmp_path / "history") == "the first question"


def test_bytes_that_are_no_text_are_told_apart() -> None:
    assert is_text("é 漢 🦅")
    assert not is_text(b"caf\xe9".decode("utf-8", "surrogateescape"))
