"""The recorded chat: what a terminal shows of the sequences that it sends, and the picture."""

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.text import Text

from benchmark_modules import load_benchmark
from mlx_eagle.tree import TreeShape

terminal_screen = load_benchmark("terminal_screen")
chat_picture = load_benchmark("chat_picture")

CYAN = "color(6)"  # as rich names the sixth of the eight colours


def shown(text: str, width: int = 12, height: int = 4) -> list[str]:
    """The rows of a terminal after a text."""
    screen = terminal_screen.TerminalScreen(width, height)
    screen.feed(text)
    return [line.plain for line in screen.lines()]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("one\r\ntwo", ["one", "two"]),
        ("one\ntwo", ["one", "   two"]),
        ("one\rtwo", ["two"]),
        ("abc\b\bX", ["aXc"]),
        ("a\tb", ["a       b"]),
        ("0123456789abcd", ["0123456789ab", "cd"]),
        ("0123456789ab\r\nx", ["0123456789ab", "x"]),
        ("abcdef\x1b[4D\x1b[K", ["ab"]),
        ("abcdef\x1b[4D\x1b[1K", ["   def"]),
        ("abcdef\x1b[2K!", ["      !"]),
        ("a\r\nb\r\nc\x1b[2A\x1b[J", ["a"]),
        ("a\r\nb\x1b[A\x1b[3GX", ["a X", "b"]),
        ("a\r\nb\x1b[HX", ["X", "b"]),
        ("a\x1b7\r\nfoot\x1b8b", ["ab", "foot"]),
        ("a\x1bD\x1bDb", ["a", "", " b"]),
        ("1\r\n2\r\n3\r\n4\r\n5\x1b[HX", ["1", "X", "3", "4", "5"]),
        ("\x1b[?2004h\x1b[6n\x1b]0;title\x07a\x1b]8;;x\x1b\\b\x1b(Bc\x1b=", ["abc"]),
        ("日本\x1b[2DX", ["日X"]),
        ("0123456789a日", ["0123456789a", "日"]),
        ("e\u0301x", ["e\u0301x"]),
        ("a\r\n\r\n", ["a"]),
    ],
)
def test_a_terminal_shows_what_the_sequences_say(text: str, rows: list[str]) -> None:
    assert shown(text) == rows


def test_colours_last_until_they_are_ended() -> None:
    screen = terminal_screen.TerminalScreen(20, 3)
    screen.feed("a\x1b[36mb\x1b[1mc\x1b[0md\x1b[0;2me\x1b[mf")
    (line,) = screen.lines()
    styles = {line.plain[span.start : span.end]: str(span.style) for span in line.spans}
    assert line.plain == "abcdef"
    assert styles == {"b": CYAN, "c": f"bold {CYAN}", "e": "dim"}


def test_what_the_chat_writes_of_an_answer_is_shown_with_its_drafts_tinted(demo: Any) -> None:
    from io import StringIO

    from rich.console import Console

    from mlx_eagle.cli.terminal.views import Show, open_view

    class Tty(StringIO):
        def isatty(self) -> bool:
            return True

    file = Tty()
    console = Console(file=file, force_terminal=True, color_system="standard", width=200, height=20)
    view = open_view(console, Show(drafts=True))
    question = [{"role": "user", "content": "What is the signature of shutil.copyfile?"}]
    pieces = list(demo.stream_generate(question, max_tokens=30, tree=TreeShape.chain(3)))
    for piece in pieces:
        view.add(piece)
    view.close()
    screen = terminal_screen.TerminalScreen(200, 20)
    screen.feed(file.getvalue().replace("\n", "\r\n"))
    line = Text("").join(screen.lines())
    drafted = "".join(line.plain[s.start : s.end] for s in line.spans if CYAN in str(s.style))
    assert drafted == "".join(piece.text for piece in pieces if piece.from_draft) != ""
    assert line.plain == "".join(piece.text for piece in pieces)


def test_the_picture_is_whole_and_fetches_nothing() -> None:
    lines = [Text.from_ansi("\x1b[36m<b>\x1b[0m & x"), Text("second")]
    picture = chat_picture.draw(lines, 40, "mlx-eagle chat")
    text = " ".join(ElementTree.fromstring(picture).itertext()).replace("\xa0", " ")
    assert "<b>" in text and "& x" in text and "second" in text and "mlx-eagle chat" in text
    assert "font-face" not in picture and "url(http" not in picture


def test_the_last_question_of_the_chat_is_no_part_of_the_picture() -> None:
    rows = [Text(row) for row in (">>> a", "b", "", ">>> ", "")]
    assert [row.plain for row in chat_picture.without_last_prompt(rows)] == [">>> a", "b"]


@pytest.mark.broad
def test_a_conversation_with_the_demo_pair_becomes_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.svg"
    words = ["chat_picture.py", "--out", str(file), "--", "--no-calibrate", "--max-tokens", "16"]
    monkeypatch.setattr(sys, "argv", words)
    chat_picture.main()
    assert capsys.readouterr().out == f"{file}\n"
    text = " ".join(ElementTree.fromstring(file.read_text()).itertext()).replace("\xa0", " ")
    for words_shown in ("/show drafts", "shutil.copyfile", "tokens/s", "speculation"):
        assert words_shown in text
