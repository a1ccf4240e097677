"""Text to the clipboard: by a program of this machine, or by the terminal itself (OSC 52)."""

import base64
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import IO

# The command, and the variable without which it has no clipboard to write to.
PROGRAMS = (
    (("pbcopy",), ""),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
)
REMOTE = ("SSH_TTY", "SSH_CONNECTION")  # then this machine's clipboard is not the user's
UTF_8 = {"LC_CTYPE": "UTF-8"}  # by which pbcopy reads, which has no locale over ssh
PATIENCE = 5.0  # seconds
LONG = 74_000  # characters of OSC 52 beyond which terminals drop it


def copy(text: str, screen: IO[str], environment: Mapping[str, str] | None = None) -> str:
    """Put text on the clipboard; returns what was done, in words.

    Args:
        text: what to copy.
        screen: the terminal.
        environment: variables that tell which clipboard there is; None for this process's.
    """
    known = os.environ if environment is None else environment
    if not any(known.get(name) for name in REMOTE):
        for command, needed in PROGRAMS:
            if (not needed or known.get(needed)) and _run(command, text):
                return f"copied with {command[0]}"
    code = base64.b64encode(text.encode(errors="replace")).decode()
    screen.write(f"\x1b]52;c;{code}\x07")
    screen.flush()
    doubt = "; it is long, and many drop that" if len(code) > LONG else ""
    return f"sent to the terminal, which copies it if it knows OSC 52{doubt}"


def _run(command: tuple[str, ...], text: str) -> bool:
    """Give text to a program, if there is one; returns whether it took it."""
    program = shutil.which(command[0])
    if program is None:
        return False
    try:
        done = subprocess.run(
            [program, *command[1:]],
            input=text.encode(errors="replace"),
            env=os.environ | UTF_8,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
