"""Every family of mlx-lm that divides: two ranks give the logits of one process, or say no."""

import json
import pkgutil
from pathlib import Path

import mlx.core as mx
import mlx_lm.models
import numpy as np
import pytest

from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.leader import LeadingTarget
from mlx_eagle.cluster.shard import TRIED, check_divisible
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.target.load import load_network
from mlx_eagle.target.self_check import check_tree_verification
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree
from shards import FAMILIES, architecture_of, lead, write_tiny


def dividing_modules() -> set[str]:
    """The model files of mlx-lm that have a `shard()` of their own."""
    folder = Path(mlx_lm.models.__path__[0])
    names = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return {name for name in names if "def shard(" in (folder / f"{name}.py").read_text()}


# A mixture of experts inherits from the family without them where it has no `shard()` of its own.
DIVIDED = [
    family
    for family in FAMILIES
    if {(kind := architecture_of(family)), kind.removesuffix("_moe")} & TRIED
]


def test_what_was_tried_is_there_and_has_a_case() -> None:
    assert dividing_modules() >= TRIED
    assert {architecture_of(family) for family in DIVIDED} >= TRIED


@pytest.mark.parametrize("kind", sorted(dividing_modules() - TRIED))
def test_what_was_not_tried_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UnsupportedTargetError, match=f"of the kind {kind} were not tried"):
        check_divisible(tmp_path, 2)


@pytest.mark.broad
@pytest.mark.parametrize("family", DIVIDED)
def test_logits_are_those_of_one_process(family: str, cluster: Cluster, tmp_path: Path) -> None:
    folder, _ = write_tiny(tmp_path / "model", architecture_of(family), **FAMILIES[family])
    alone, together = Target(load_network(folder).network), lead(cluster, folder)
    check_tree_verification(alone)
    assert alone.chains_only == together.chains_only
    found = []
    for target in (alone, together):
        cache = target.make_cache()
        target.extend(mx.array([3, 1, 4, 1, 5, 9, 2, 6]), cache)
        first = target.verify(DraftTree.chain(mx.array([8, 9, 10, 11])), cache).logits
        cache.commit([0, 1])  # a state goes back
        siblings = DraftTree.static(mx.array([7, 8, 9]), [0, 0, 0])
        chain = DraftTree.chain(mx.array([7, 8, 9]))
        second = target.verify(chain if alone.chains_only else siblings, cache).logits
        found.append(np.array(mx.concatenate([first, second])))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5 * np.abs(found[0]).max())


@pytest.mark.broad
def test_an_output_layer_that_is_divided_is_not_lent(cluster: Cluster, tmp_path: Path) -> None:
    """After `shard()` it is no linear layer any more: the embedding would be taken in its place."""
    folder, _ = write_tiny(tmp_path / "model", "qwen3_5", **FAMILIES["qwen3_5"])
    divided = cluster.load(folder, "tiny", "float32")
    target, ids = LeadingTarget(cluster, divided), mx.array([1, 2])
    after_norm = len(divided.shard.loaded.network.layers) + 1
    for borrow in (
        lambda: target.unembed,
        lambda: target.output_rows(ids),
        lambda: LeadingTarget(cluster, divided, (after_norm,)),
    ):
        with pytest.raises(UnsupportedTargetError, match="divides this target's output layer"):
            borrow()
