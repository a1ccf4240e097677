"""Two processes on loopback, started once: MLX lets a process be in one group only."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A follower and this process as rank 0; tests load their targets into it."""
    from mlx_eagle.cluster.hosts import loopback
    from mlx_eagle.cluster.launch import start_cluster
    from mlx_eagle.cluster.watch import Patience

    # A machine that is busy with other tests is no fault.
    started = start_cluster(loopback(2), Patience(start=300, silence=120, least=300, first=300))
    yield started
    started.close()
