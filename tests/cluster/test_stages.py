"""A target as a pipeline of two ranks: the numbers of one process to the last bit, or a refusal."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.load_options import PIPELINE
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree
from shards import lead, write_tiny

TAPS = (0, 1, 2, 3, 4, 5)  # of four layers: all, those of the other rank and the final norm's


def results_of(target: Target) -> list[np.ndarray]:
    """Return logits and taps of a prompt, of drafts that are accepted in part, and after them."""
    cache, found = target.make_cache(), []
    prompt = target.forward(mx.array([3, 1, 4, 1, 5, 9, 2, 6]), cache)
    first = target.verify(DraftTree.chain(mx.array([8, 9, 10, 11])), cache)
    cache.commit([0, 1])  # a state goes back
    rows = mx.array([7, 8, 9])
    tree = DraftTree.chain(rows) if target.chains_only else DraftTree.static(rows, [0, 0, 0])
    for out in (prompt, first, target.verify(tree, cache)):
        found += [np.array(out.logits), *([np.array(out.taps)] if out.taps is not None else [])]
    return found


@pytest.mark.bitwise
@pytest.mark.parametrize("family", ["qwen2"])
def test_logits_and_taps_are_those_of_one_process(
    family: str, cluster: Cluster, tmp_path: Path
) -> None:
    folder, model = write_tiny(tmp_path / "model", family)
    alone, together = Target(model, TAPS), lead(cluster, folder, TAPS, PIPELINE)
    assert together.layers_before == 2
    for found, want in zip(results_of(together), results_of(alone), strict=True):
        np.testing.assert_array_equal(found, want)
