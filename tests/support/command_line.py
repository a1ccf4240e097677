"""The command line in the process of the tests, which need not import everything anew."""

import contextlib
import io
from typing import NamedTuple

from mlx_eagle.cli.main import run


class Finished(NamedTuple):
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: str) -> Finished:
    """Run `mlx-eagle` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(list(arguments))
    return Finished(status, out.getvalue(), err.getvalue())
