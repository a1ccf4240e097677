"""Every command of the chat on a pseudo-terminal, with the demo pair.

By default a smaller pair stands in its place.
"""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.cli.chat.commands import COMMANDS
from pseudo_terminal import Terminal

CHAT = """
import fcntl, json, sys, termios
from pathlib import Path
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mlx_eagle.cli import main
from mlx_eagle.hub import packaged
folders = {part: Path(folder) for part, folder in json.loads(sys.argv.pop()).items()}
packaged.TOY_PAIR = packaged.TOY_PAIR._replace(**folders)
main()
"""


@pytest.fixture(scope="module")
def screen(
    tmp_path_factory: pytest.TempPathFactory, is_quick: bool, request: pytest.FixtureRequest
) -> Iterator[Any]:
    """The chat with the demo pair; what is said to it in one test is known in the next."""
    folder, places = tmp_path_factory.mktemp("chat"), {}
    if is_quick:
        target, head = request.getfixturevalue("turning_folders")
        places = {"target": str(target), "head": str(head)}
    arguments = ["chat", "--no-calibrate", "--max-tokens", "12", json.dumps(places)]
    with contextlib.closing(Terminal(CHAT, *arguments, cwd=folder)) as terminal:
        terminal.wait_for("toy: it knows", 60)
        terminal.wait_for(">>>")
        yield terminal
        terminal.press("/exit\r")
        assert terminal.end() == 0


QUESTION = "What does zip do?"


def test_the_demo_pair_answers_again_and_forgets(screen: Any) -> None:
    screen.expect("/clear", "the conversation is forgotten")
    first = screen.expect(QUESTION, " tokens/s")
    assert "always the same" in screen.expect("/regen", " tokens/s")
    screen.expect("/temp 0.9", "temperature  0.9")
    assert re.search(r"seed \d+", screen.expect("/regen", " tokens/s"))
    screen.expect("/temp 0", "temperature  0.0")
    again = screen.expect(f"/edit {QUESTION}", " tokens/s")
    assert answer_in(again) == answer_in(first) != ""
    assert "messages     2" in screen.expect("/context", "messages     2")
    assert "this chat" in screen.expect("/stats", "this chat")
    screen.expect("/undo", f"forgotten: {QUESTION}")
    screen.expect("/undo", "nothing was asked yet")


def answer_in(shown: str) -> str:
    """Return the first line after the question, without escape sequences."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    after = plain.partition(QUESTION)[2].partition("\n")[2]
    return next((line.strip() for line in after.splitlines() if line.strip()), "")


def test_every_command_says_something_when_nothing_follows_it(screen: Any) -> None:
    screen.expect("/clear", "the conversation is forgotten")
    answers = {
        "/regen": "error: ",
        "/edit": "nothing was asked yet",
        "/undo": "nothing was asked yet",
        "/system": "system prompt: none",
        "/save": " FILE",
        "/load": " FILE",
        "/copy": "there is no answer",
        "/model": "pydoc-llama (demo)",
        "/head": "pydoc-eagle3 (demo)",
        "/set": "max_context  ",
        "/show": "thinking     on",
        "/stats": "answer",
        "/context": "messages     0",
        "/help": "keep the conversation",
    }
    alone = {command.name: command.summary.partition(" ")[2] for command in COMMANDS}
    for name, setting in alone.items():
        if name not in ("/clear", "/exit"):
            screen.expect(name, answers.get(name, f"  {setting} "))
    screen.expect("/help set", "repetition_penalty")


def test_the_demo_pair_edits_a_question_at_the_prompt(screen: Any) -> None:
    screen.expect("/clear", "forgotten")
    screen.expect(QUESTION, " tokens/s")
    screen.press("/edit\r")
    screen.wait_for("editing the last question")
    screen.press("\x03")
    screen.wait_for("stays as it was")
    screen.wait_for(">>>")
    screen.press("/edit\r")
    screen.wait_for("editing the last question")
    screen.press(" Really?\r")
    screen.wait_for(" tokens/s")
    screen.expect("/undo", f"forgotten: {QUESTION} Really?")


def test_the_demo_pair_is_saved_loaded_and_copied(screen: Any) -> None:
    screen.expect("/clear", "forgotten")
    screen.expect("/system none", "system prompt: none")
    screen.expect("/copy", "there is no answer")
    screen.expect(QUESTION, " tokens/s")
    assert re.search(r"copied with|\x1b]52;c;", screen.expect("/copy", "copie"))
    screen.expect("/save ./a chat.mlx", "saved 2 messages to a chat.mlx")
    screen.expect("/clear", "forgotten")
    screen.expect("/load nothing", "error: ")
    screen.press("/load a\t")
    screen.wait_for("chat.mlx")  # a blank may be drawn as a step of the cursor
    screen.expect("", "loaded 2 messages from a chat.mlx")
    screen.expect("and sorted?", " tokens/s")
    screen.expect("/save", "saved 4 messages")


def test_the_demo_pair_changes_its_head_and_model(screen: Any) -> None:
    screen.expect("/clear", "forgotten")
    screen.expect(QUESTION, " tokens/s")
    screen.expect("/head none", "off: no head was wanted")
    screen.expect("/show tree on", "nothing is drafted")
    screen.expect("and sorted?", "speculation off")
    screen.expect("/head /nowhere", "the model in use stays")
    screen.expect("/model /nowhere", "the model in use stays")
    screen.expect("/set kv_bits 8", "kv_bits      8")
    screen.expect("/model demo", "head         pydoc-eagle3 (demo)")
    screen.expect("/set kv_bits none", "kv_bits      none")
    screen.expect("/show tree off", "tree         off")
    screen.expect("/context", "messages     4")


def test_the_demo_pair_shows_drafts_trees_and_markdown(screen: Any) -> None:
    screen.expect("/clear", "forgotten")
    screen.expect("/tree 3x2x6", "tree         3x2x6")
    screen.expect("/show drafts", "drafts       on")
    assert "\x1b[36m" in screen.expect(QUESTION, " tokens/s")
    screen.expect("/show tree", "tree         on")
    screen.expect("/regen", "of 6 drafted tokens accepted")
    screen.expect("/show markdown", "markdown     on")
    assert "\x1b[?25l" in screen.expect("/regen", "\x1b[?25h")
    for name in ("drafts", "tree", "markdown", "thinking", "stats"):
        screen.expect(f"/show {name} off", f"{name:<12} off")
    assert "tokens/s" not in screen.expect(QUESTION, "\r\n\r\n")
    screen.expect("/show stats on", "stats        on")
    screen.expect("/show thinking on", "thinking     on")
    screen.expect("/tree auto", "tree         auto")


def test_the_demo_pair_follows_a_pattern_and_a_schema(screen: Any, tmp_path: Path) -> None:
    screen.expect("/clear", "forgotten")
    screen.expect("/regex [0-9]{3}-[0-9]{4}", "regex        [0-9]{3}-[0-9]{4}")
    assert re.search(r"\d{3}-\d{4}\r\n", screen.expect(QUESTION, " tokens/s"))
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "boolean"}')
    assert "regex        none" in screen.expect(f"/schema {schema}", "none")
    assert re.search(r"(true|false)\r\n", screen.expect(QUESTION, " tokens/s"))
    screen.expect("/regex [", "regex        [")
    screen.expect(QUESTION, "error: ")
    screen.expect("/regex none", "regex        none")


def test_the_demo_pair_is_interrupted_and_resized(screen: Any) -> None:
    screen.expect("/clear", "forgotten")
    screen.expect("/tokens 2000", "max_tokens   2000")
    screen.expect("/regex [a-z ]{9000}", "regex        [a-z ]{9000}")  # it never ends
    screen.expect("/tree 3x2x6", "tree         3x2x6")  # a planner may draft nothing here
    screen.expect("/show tree on", "tree         on")
    for columns in (30, 120):
        screen.press(f"{QUESTION}\r")
        screen.wait_for("last round:")
        screen.resize(12, columns)
        screen.wait_for("last round:")
        screen.press("typed while it answers\x03")
        screen.wait_for("stopped · ")
        screen.wait_for(">>>")
    screen.resize(24, 80)
    screen.expect("/show tree off", "tree         off")
    screen.expect("/tree auto", "tree         auto")
    screen.expect("/regex none", "regex        none")
    screen.expect("/tokens 12", "max_tokens   12")
    screen.expect("/context", "messages     4")


def test_the_demo_pair_survives_pastes_and_bytes_that_are_no_text(screen: Any) -> None:
    screen.expect("/clear", "forgotten")
    lines = "".join(f"line {n} of what was pasted\n" for n in range(10_000))
    screen.press(f"\x1b[200~{lines}\x1b[201~")
    screen.expect("", "error: the prompt has ")
    screen.press(f"\x1b[200~{'word ' * 20_000}\x1b[201~")
    screen.expect("", "error: the prompt has ")
    screen.expect("caf\udce9 \udcff", "that holds bytes that are not UTF-8 text; nothing was sent")
    screen.expect("/context", "messages     0")


@pytest.mark.broad  # tests/cli/test_main.py has it for commands without a model
def test_what_a_reader_does_not_want_is_not_written() -> None:
    command = f"{sys.executable} -m mlx_eagle.cli chat --no-calibrate -n 12 -p zip | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert len(done.stdout) == 1
    assert done.stderr == ""
