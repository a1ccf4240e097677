"""The chat on a pseudo-terminal, with a stub of an engine, which waits for what the tests allow."""

import contextlib
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pseudo_terminal import Terminal

STUB = """
import fcntl, sys, termios, time, types
from pathlib import Path
from types import SimpleNamespace
from mlx_eagle.answers.sections import Kind, Span

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C on this terminal reaches this process
FOLDER = Path(sys.argv.pop())  # the files in it say what may go on

def wait_for(name):
    while not (FOLDER / name).exists():
        time.sleep(0.01)

class Session:
    system = None
    def __init__(self, system):
        self.messages, self.is_cancelled = [], False
    def usage(self):
        return SimpleNamespace(max_context=2048)
    def cancel(self):
        self.is_cancelled = True
        (FOLDER / "cancelled").touch()
    def ask(self, text, **options):
        self.messages.append(text)
        self.is_cancelled = False
        if text == "slow":  # to be read, which is not interrupted
            wait_for("read")
            print("the step is over")
            if self.is_cancelled:
                return
        for n in range(10_000 if text == "long" else 1):
            time.sleep(0.01)
            is_last = self.is_cancelled
            yield SimpleNamespace(
                text=f"[{len(self.messages)}.{n}] ", from_draft=False, generation_tokens=n + 1,
                generation_tps=10.0, finish_reason="cancelled" if is_last else None, stats=None,
                tree=None, spans=[Span(f"[{len(self.messages)}.{n}] ", Kind.SAID, False)],
            )
            if is_last:
                return

def load(*args, **options):
    wait_for("loaded")
    info = SimpleNamespace(
        target="toy", target_precision="8-bit", head="", head_precision="", speculation="on",
        device="CPU", hosts="", is_demo=True, remarks=(),
        head_remarks=(), recommended={},
    )
    return SimpleNamespace(
        info=info, head=None, session=Session, await_calibration=lambda: None,
        target=SimpleNamespace(lost=""),
    )

loading = types.ModuleType("mlx_eagle.loading")
loading.load = load
sys.modules["mlx_eagle.loading"] = loading
tree = types.ModuleType("mlx_eagle.tree")
tree.TreeShape = tuple
sys.modules["mlx_eagle.tree"] = tree
sys.argv = ["mlx-eagle", "chat"]

from mlx_eagle.cli import main
main()
"""


def chat(folder: Path, *allowed: str) -> AbstractContextManager[Terminal]:
    """Start the chat; what it waits for beyond what is allowed already are files in the folder."""
    for name in allowed:
        (folder / name).touch()
    return contextlib.closing(Terminal(STUB, str(folder)))


def test_ctrl_c_on_a_terminal_stops_the_answer_and_keeps_the_conversation(tmp_path: Path) -> None:
    with chat(tmp_path, "loaded") as screen:
        screen.wait_for(">>>")
        screen.press("long\r")
        screen.wait_for("[1.20]")
        screen.press("\x03")
        screen.wait_for("stopped · ")
        screen.wait_for(">>>")
        screen.press("short\r")
        screen.wait_for("[2.0]")
        screen.wait_for(">>>")
        screen.press("\x04")
        assert screen.end() == 0


@pytest.mark.parametrize("n_times", [1, 2])
def test_ctrl_c_while_the_prompt_is_read_stops_that(n_times: int, tmp_path: Path) -> None:
    """The first one waits for the engine to end its step, the second one does not."""
    with chat(tmp_path, "loaded") as screen:
        screen.wait_for("toy · 8-bit")
        screen.wait_for(">>>")
        screen.press("slow\r")
        screen.wait_for("reading the prompt")
        for _ in range(n_times):
            screen.press("\x03")
            time.sleep(0.1)
        ends = time.monotonic() + 20
        while not (tmp_path / "cancelled").exists() and time.monotonic() < ends:
            time.sleep(0.01)
        if n_times == 1:
            (tmp_path / "read").touch()
        shown = screen.wait_for("stopped · no tokens")
        assert ("the step is over" in shown) == (n_times == 1)
        (tmp_path / "read").touch()
        screen.wait_for(">>>")
        screen.press("short\r")
        screen.wait_for("[2.0]")


def test_the_prompt_is_there_while_the_model_loads_and_a_message_waits_for_it(
    tmp_path: Path,
) -> None:
    with chat(tmp_path) as screen:
        assert "toy" not in screen.wait_for(">>>") + screen.wait_for("loading the model")
        screen.press("short\r")
        time.sleep(0.3)  # seconds, in which the message is taken from the keyboard
        (tmp_path / "loaded").touch()
        screen.wait_for("toy · 8-bit")
        screen.wait_for("[1.0]")
        screen.wait_for(">>>")
        screen.press("\x04")
        assert screen.end() == 0


def test_the_banner_appears_above_what_is_being_typed(tmp_path: Path) -> None:
    with chat(tmp_path) as screen:
        screen.wait_for(">>>")
        screen.press("sho")
        screen.wait_for("sho")
        (tmp_path / "loaded").touch()
        screen.wait_for("toy · 8-bit")
        screen.wait_for("sho")
        screen.press("rt\r")
        screen.wait_for("[1.0]")


def test_leaving_does_not_wait_for_a_model_that_still_loads(tmp_path: Path) -> None:
    with chat(tmp_path) as screen:
        screen.wait_for(">>>")
        screen.press("\x04")
        assert screen.end() == 0, "it would wait for ever"


def test_ctrl_c_while_a_message_waits_for_the_model_returns_to_the_prompt(tmp_path: Path) -> None:
    with chat(tmp_path) as screen:
        screen.wait_for(">>>")
        screen.press("short\r")
        screen.wait_for("loading ")
        time.sleep(0.5)  # seconds: the key must not reach the line editor
        screen.press("\x03")
        screen.wait_for("stopped")
        screen.wait_for(">>>")
        screen.press("\x04")
        assert screen.end() == 0


def test_no_color_means_no_color(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dim text and a moving cursor are no colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    with chat(tmp_path, "loaded") as screen:
        shown = screen.wait_for("toy · 8-bit") + screen.wait_for(">>>")
        screen.press("\x04")
        screen.end()
        shown += screen.screen
    assert re.findall(r"\x1b\[[0-9;]*(?:3[0-7]|4[0-7]|9[0-7])m", shown) == []
