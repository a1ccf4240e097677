"""The keyboard while an answer comes.

Ctrl-C stops the answer, Ctrl-Z suspends the program, other keys wait unseen for the prompt.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from mlx_eagle.cli.terminal.footer import ERASE_BELOW, SHOW_CURSOR


@contextlib.contextmanager
def listening(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C call `stop`; a second one raises KeyboardInterrupt.

    Keys that are typed meanwhile do not show up in the answer, but at the next prompt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, interrupt)
        with _hidden_keys():
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _hidden_keys() -> Iterator[None]:
    """Keep the terminal from writing what is typed, but not while the program is suspended."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    modes = termios.tcgetattr(sys.stdin)
    quiet = list(modes)
    quiet[3] &= ~termios.ECHO

    def suspend(number: int, frame: FrameType | None) -> None:
        # Not through sys.stdout, which this may have interrupted.
        os.write(1, f"{SHOW_CURSOR}{ERASE_BELOW}\n".encode())
        _set_modes(modes)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, suspend)  # after `fg`
        _set_modes(quiet)

    before = signal.signal(signal.SIGTSTP, suspend)
    _set_modes(quiet)
    try:
        yield
    finally:
        _set_modes(modes)
        signal.signal(signal.SIGTSTP, before)


def _set_modes(modes: list[Any]) -> None:
    """Let the terminal treat keys in a certain way, unless it belongs to another job now."""
    import termios

    with contextlib.suppress(OSError, termios.error):
        if os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp():
            termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
