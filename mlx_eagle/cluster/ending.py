"""How a process ends that waits in MLX, which nothing can interrupt: one line, and status 1.

Some waits of MLX (0.32.4) hold the interpreter's lock, so that no thread of Python can look at a
clock; that of `faulthandler` can, but writes a traceback. Its first line is read by a shell, which
says instead what is wrong, puts the terminal right and kills what this process has started.
"""

import faulthandler
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from mlx_eagle.files.quoting import one_line

FAREWELL = r"""
IFS= read -r _ || exit 0
if [ -t 1 ]; then stty sane <&1; printf '\033[?25h\033[J\033[?2004l\n'; fi
printf 'error: %s\n' "$0" >&2
[ $# -eq 0 ] || kill -KILL "$@" 2>/dev/null
"""  # the terminal: its modes, the cursor, nothing below the line, pastes as they are
FAREWELL_SECONDS = 5.0
REASON_CHARACTERS = 2000


@contextmanager
def deadline(seconds: float, reason: str, processes: Sequence[int] = ()) -> Iterator[None]:
    """End the process if what is inside takes longer, even if it holds the interpreter's lock.

    Args:
        seconds: that it may take.
        reason: what is said then.
        processes: ids of those that are killed then.
    """
    with _farewell(reason, processes) as shell:
        assert shell.stdin is not None, "it was started with one"
        faulthandler.dump_traceback_later(seconds, exit=True, file=shell.stdin)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def end_now(reason: str, processes: Sequence[int] = ()) -> None:
    """End the process at once; arguments are those of `deadline`."""
    with suppress(Exception):  # whatever is wrong, the end comes
        _farewell(reason, processes).communicate(b"\n", FAREWELL_SECONDS)
    os._exit(1)


def _farewell(reason: str, processes: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Start the shell; it ends without a word if nothing is written to it."""
    words = [one_line(reason, REASON_CHARACTERS), *map(str, processes)]
    return subprocess.Popen(
        ["/bin/sh", "-c", FAREWELL, *words],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C does not reach it
    )
