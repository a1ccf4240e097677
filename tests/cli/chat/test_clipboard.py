"""Copying, by a program or by the terminal."""

import base64
import io
import os
from pathlib import Path

import pytest

from mlx_eagle.cli.chat import clipboard


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is all of PATH, so that what is not there is not found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, name: str, status: int = 0) -> Path:
    """Make a program that keeps what it is given."""
    kept = folder / f"{name}.kept"
    program = folder / name
    program.write_text(f"#!/bin/sh\nexec /bin/cat > {kept}; exit {status}\n".replace("exec ", ""))
    program.chmod(0o755)
    return kept


def test_a_program_of_this_machine_takes_the_text(programs: Path) -> None:
    kept = install(programs, "pbcopy")
    screen = io.StringIO()
    assert clipboard.copy("naïve", screen, {}) == "copied with pbcopy"
    assert kept.read_text() == "naïve"
    assert screen.getvalue() == ""


def test_a_program_is_asked_only_where_it_has_a_clipboard(programs: Path) -> None:
    kept = install(programs, "wl-copy")
    clipboard.copy("a", io.StringIO(), {})
    assert not kept.exists()
    assert clipboard.copy("a", io.StringIO(), {"WAYLAND_DISPLAY": "w"}) == "copied with wl-copy"


@pytest.mark.parametrize("case", ["nothing", "failing", "remote"])
def test_else_the_terminal_is_asked(case: str, programs: Path) -> None:
    if case != "nothing":
        install(programs, "pbcopy", status=1 if case == "failing" else 0)
    known = {"SSH_TTY": "/dev/pts/1"} if case == "remote" else {}
    screen = io.StringIO()
    assert clipboard.copy("naïve", screen, known).startswith("sent to the terminal")
    code = screen.getvalue().removeprefix("\x1b]52;c;").removesuffix("\x07")
    assert base64.b64decode(code).decode() == "naïve"


def test_what_many_terminals_drop_is_said_to_be_long(programs: Path) -> None:
    assert "it is long" in clipboard.copy("x" * 60_000, io.StringIO(), {})


def test_this_process_knows_its_own_environment(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(programs, "xsel")
    for name in (*clipboard.REMOTE, "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert clipboard.copy("a", io.StringIO()) == "copied with xsel"
    assert "DISPLAY" in os.environ
