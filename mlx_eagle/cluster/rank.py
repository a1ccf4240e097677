"""Which of the processes of `mlx.launch` this one is; the command line asks before it loads MLX."""

import os
from collections.abc import Mapping

RANK = "MLX_RANK"


def launched_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the rank that `mlx.launch` gave to this process; None if it was not started so."""
    said = environment.get(RANK, "")
    return int(said) if said.isdecimal() else None
