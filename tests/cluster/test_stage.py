"""A target as a pipeline of two ranks: the numbers of one process to the last bit, or a refusal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx_lm.models
import numpy as np
import pytest
from mlx.utils import tree_flatten

from cases import broad
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.leader import LeadingTarget
from mlx_eagle.cluster.shard import check_divisible
from mlx_eagle.cluster.stage import TRIED, Stage
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.load_options import PIPELINE
from mlx_eagle.target.load import load_network
from mlx_eagle.target.self_check import check_tree_verification
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree
from pairs_on_hosts import PROMPT, SAMPLING, SCHEMA, TREES, Pair
from shards import FAMILIES, architecture_of, lead, write_model, write_tiny
from tiny_models import SMALL

TAPS = (0, 1, 2, 3, 4)  # of four layers: what both ranks have, and what only one has
# A mixture of experts inherits from the family without them where it has no `pipeline()`.
STAGED = [
    family
    for family in FAMILIES
    if {(kind := architecture_of(family)), kind.removesuffix("_moe")} & TRIED
]


def staging_modules() -> set[str]:
    """The model files of mlx-lm with a class that has a `pipeline()`."""
    files = Path(mlx_lm.models.__path__[0]).glob("*.py")
    marks = ("(PipelineMixin", ", PipelineMixin", "def pipeline(")
    return {f.stem for f in files if any(m in f.read_text() for m in marks)} - {"pipeline"}


def results_of(target: Target) -> list[np.ndarray]:
    """Return logits and taps of a prompt, of drafts that are accepted in part, and after them."""
    cache, found = target.make_cache(), list[np.ndarray]()
    prompt = target.forward(mx.array([3, 1, 4, 1, 5, 9, 2, 6]), cache)
    first = target.verify(DraftTree.chain(mx.array([8, 9, 10, 11])), cache)
    cache.commit([0, 1])  # a state goes back
    rows = mx.array([7, 8, 9])
    tree = DraftTree.chain(rows) if target.chains_only else DraftTree.static(rows, [0, 0, 0])
    for out in (prompt, first, target.verify(tree, cache)):
        assert out.taps is not None
        found += [np.array(out.logits), np.array(out.taps)]
    return found


def test_what_was_tried_is_there_and_has_a_case() -> None:
    assert staging_modules() >= TRIED
    assert {architecture_of(family) for family in STAGED} >= TRIED


@pytest.mark.parametrize("kind", sorted(staging_modules() - TRIED))
def test_what_was_not_tried_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UnsupportedTargetError, match=f"the kind {kind} were not tried as a pipel"):
        check_divisible(tmp_path, 2, PIPELINE)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "llama"}, "no pipeline for .* llama; leave out parallel=pipeline"),
        ({"model_type": "gemma2"}, "no pipeline for .* gemma2; load it on one machine"),
        ({"model_type": "qwen2", "num_hidden_layers": 2}, "2 layers cannot be .* of 3 hosts"),
    ],
    ids=str,
)
def test_what_is_no_pipeline_is_told_what_would_do_instead(
    config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | config))
    with pytest.raises(UnsupportedTargetError, match=reason):
        check_divisible(tmp_path, 3, PIPELINE)


def test_what_a_pipeline_would_do_is_named_where_layers_are_not_divided(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "qwen3_next"}))
    with pytest.raises(UnsupportedTargetError, match="ask for parallel=pipeline"):
        check_divisible(tmp_path, 2)


def test_rank_0_hands_out_whatever_stream_it_has() -> None:
    stage = Stage(1, (6, 3, 0), cast(mx.distributed.Group, None))
    assert stage.start == 3
    assert [stage.owner(b) for b in range(11)] == [2, 2, 2, 1, 1, 1, 0, 0, 0, 0, 0]
    assert stage.elsewhere((2, 5, 9)) == [2, 5]


@pytest.mark.bitwise
@pytest.mark.parametrize(
    ("family", "taps"),
    [("qwen2", (*TAPS, 5)), *(broad(family, TAPS) for family in STAGED)],
)
def test_logits_and_taps_are_those_of_one_process(
    family: str, taps: tuple[int, ...], cluster: Cluster, tmp_path: Path
) -> None:
    changes = FAMILIES.get(family, {})
    folder, _ = write_tiny(tmp_path / "model", architecture_of(family), **changes)
    assert_same_numbers(folder, taps, cluster)


@pytest.mark.bitwise
@pytest.mark.broad
@pytest.mark.parametrize("order", [(True, False), (False, True)], ids=["rank 1", "rank 0"])
def test_windows_that_one_rank_alone_has_are_those_of_one_process(
    order: tuple[bool, bool], cluster: Cluster, tmp_path: Path
) -> None:
    """Rank 1 runs the first two of four layers."""
    kinds = [("full", "sliding")[windowed] for windowed in order for _ in range(2)]
    changes = {"layer_types": [f"{kind}_attention" for kind in kinds]}
    config = FAMILIES["ministral3"] | changes
    folder, _ = write_tiny(tmp_path / "model", "ministral3", **config)
    assert_same_numbers(folder, TAPS, cluster)
    together, alone = lead(cluster, folder, TAPS, PIPELINE), Target(load_network(folder).network)
    ids, found = mx.array([n % 90 for n in range(300)]), []
    for target in (together, alone):
        cache = target.make_cache()
        target.forward(ids, cache)
        assert [cache.can_trim(rows) for rows in (300, 236, 100)] == [True, True, False]
        cache.trim(280)
        found.append(np.array(target.forward(ids[:5], cache).logits))
    np.testing.assert_array_equal(*found)


@pytest.mark.bitwise
@pytest.mark.broad
def test_logits_of_another_type_than_the_layers_are_checked_alike(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU leaves them, which keeps the types that are stored."""
    folder, model = write_tiny(tmp_path / "mixed", "qwen2", tie_word_embeddings=False)
    model.model.set_dtype(mx.bfloat16)
    write_model(folder, model, json.loads((folder / "config.json").read_text()))
    monkeypatch.setattr("mlx_eagle.cluster.cluster.compute_type", lambda name: None)
    check_tree_verification(LeadingTarget(cluster, cluster.load(folder, "m", parallel=PIPELINE)))


def assert_same_numbers(folder: Path, taps: tuple[int, ...], cluster: Cluster) -> None:
    """Compare a target as a pipeline with the same one in this process."""
    together = lead(cluster, folder, taps, PIPELINE)
    alone = Target(load_network(folder).network, taps)
    check_tree_verification(alone)
    assert alone.chains_only == together.chains_only
    for found, want in zip(results_of(together), results_of(alone), strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.fixture(scope="module")
def pair(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(cluster, tmp_path_factory.mktemp("turning"), "qwen2", PIPELINE)


@pytest.mark.bitwise
@pytest.mark.parametrize(
    ("tree", "sampling"),
    [
        ("tree 8", "drawn"),
        *(broad(tree, sampling) for tree in TREES for sampling in SAMPLING),
    ],
)
def test_tokens_are_those_of_one_process_and_of_plain_decoding(
    tree: str, sampling: str, pair: Pair, is_quick: bool
) -> None:
    pair.agree(tree, sampling, 6 if is_quick else 256)


@pytest.mark.bitwise
def test_a_prompt_read_in_pieces_leaves_no_rank_behind(pair: Pair) -> None:
    pair.agree_on_pieces()


@pytest.mark.bitwise
def test_an_answer_that_keeps_to_a_schema_is_that_of_one_process(pair: Pair) -> None:
    options = {"json_schema": SCHEMA, "max_tokens": 40}
    want = pair.alone.generate(PROMPT, **options, speculate=False)
    got = pair.together.generate(PROMPT, **options, **TREES["tree 8"])
    assert got.tokens == want.tokens
    assert json.loads(got.text)["n"] in ("one", "two")


def test_a_pass_hands_on_rows_once_and_gathers_them_with_the_taps(pair: Pair) -> None:
    """However many rows it has, and however many of them are accepted.

    Rank 0 receives a stream, gives its output and room for the taps of the others, and the canary.
    """
    traffic, width = pair.target.cluster.rounds, SMALL["hidden_size"]
    n_taps = len([boundary for boundary in pair.target.taps if boundary < 2])
    cache = pair.target.make_cache()
    pair.target.extend(mx.array(PROMPT), cache)
    for n_rows, n_accepted in ((1, 1), (8, 1), (8, 8)):
        before = replace(traffic)
        pair.target.verify(DraftTree.chain(mx.arange(n_rows, dtype=mx.int32)), cache)
        cache.commit(range(n_accepted))
        assert traffic.passes - before.passes == 1
        assert traffic.sums - before.sums == 4
        assert traffic.nbytes - before.nbytes == (2 + n_taps) * n_rows * width * 4 + 2 * 4


def test_a_quantized_cache_is_refused_and_nobody_is_lost(pair: Pair) -> None:
    with pytest.raises(UnsupportedTargetError, match="leave kv_bits out"):
        pair.together.with_kv(KVOptions(8, 32))
    assert pair.together.with_kv(KVOptions(max_size=64)).generate(PROMPT, max_tokens=1).tokens


def test_states_that_other_ranks_alone_keep_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Rank 0 would go back to tokens of which they hold no state."""
    changes = {"text_config": FAMILIES["qwen3_5"]["text_config"] | {"num_hidden_layers": 2}}
    folder, _ = write_tiny(tmp_path / "model", "qwen3_5", **changes)
    with pytest.raises(UnsupportedTargetError, match="one state for all tokens.*fewer hosts"):
        lead(cluster, folder, (), PIPELINE)
    cluster.watch.check()


def test_a_rank_reads_its_layers_and_no_others(cluster: Cluster, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "num_hidden_layers": 8}
    folder, model = write_tiny(tmp_path / "deep", "qwen2", **sizes, vocab_size=4096)
    nbytes = {name: array.nbytes for name, array in tree_flatten(model.parameters())}
    in_layers = sum(n for name, n in nbytes.items() if ".layers." in name)
    table = nbytes["model.embed_tokens.weight"]
    del model
    divided = cluster.load(folder, "deep", "float32", parallel=PIPELINE)
    assert divided.weights[0] == in_layers / 2 + 2 * table + nbytes["model.norm.weight"]
    assert divided.weights[1] == in_layers / 2 + table + nbytes["model.norm.weight"]
    assert divided.peaks[1] <= divided.weights[1] + 3 * in_layers / 8
