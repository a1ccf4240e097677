"""A target on two ranks gives the tokens of one process, whatever is drafted.

float32 on the CPU wheel: two ranks add in one order, so what one row gives it gives in a tree too.
"""

import gc
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from cases import broad
from mlx_eagle.bench.metrics import Sample
from mlx_eagle.bench.text_comparison import judge_on_hosts
from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.model_cache import AnyCache
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.leader import LeadingCache, LeadingTarget
from mlx_eagle.cluster.messages import Drop, Order, Unload, encode_orders
from mlx_eagle.engine import Engine
from mlx_eagle.errors import CheckpointError, ClusterError, UnsupportedTargetError
from mlx_eagle.load_options import PIPELINE
from mlx_eagle.session.session import Session
from mlx_eagle.target.self_check import with_caches
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree, TreeShape
from pairs_on_hosts import PROMPT, Pair
from shards import lead, write_model, write_tiny
from tiny_models import SMALL


@pytest.fixture(scope="module")
def pair(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(cluster, tmp_path_factory.mktemp("turning"))


@pytest.mark.bitwise
@pytest.mark.parametrize(
    ("tree", "sampling"),
    [
        ("tree 8", "drawn"),
        ("planner", "greedy"),
        broad("plain", "greedy"),
        broad("plain", "drawn"),
        broad("chain 4", "greedy"),
        broad("chain 4", "drawn"),
        broad("tree 8", "greedy"),
        broad("planner", "drawn"),
        broad("tree 60", "greedy"),
        broad("tree 60", "drawn"),
    ],
)
def test_tokens_are_those_of_one_process_and_of_plain_decoding(
    tree: str, sampling: str, pair: Pair, is_quick: bool
) -> None:
    pair.agree(tree, sampling, 8 if is_quick else 256)


@pytest.mark.bitwise
def test_a_prompt_read_in_pieces_leaves_no_rank_behind(pair: Pair) -> None:
    """Rank 0 needs no output of the last layer then, and must evaluate its sums all the same."""
    pair.agree_on_pieces()


@pytest.mark.bitwise
def test_conversations_fork_go_back_and_are_asked_anew_as_alone(pair: Pair) -> None:
    def talk(engine: Engine) -> list[list[int]]:
        session, said = engine.session(), []
        options: dict[str, Any] = {"max_tokens": 4, "tree": TreeShape(3, 3, 6)}

        def ask(to: Session, ids: list[int]) -> None:
            said.append([response.token for response in to.stream_generate(ids, **options)])

        ask(session, PROMPT)
        twin = session.fork()
        ask(session, [*PROMPT, *said[0], 400, 401])
        ask(twin, [*PROMPT, *said[0], 500, 501])
        ask(session, PROMPT[:20])  # goes back
        stream = session.stream_generate([*PROMPT, 77], **options)
        next(stream)
        next(stream)
        stream.close()  # within an answer: a round that nobody reads is forgotten
        ask(session, [*PROMPT, 78])
        return said

    assert talk(pair.together) == talk(pair.alone)


def test_every_operation_of_a_cache_reaches_the_follower(pair: Pair) -> None:
    """Passes say on both sides how many rows there are, and logits show what is in them."""
    results = []
    for target in (pair.alone.target, pair.target):
        cache = target.make_cache()
        target.extend(mx.array(PROMPT), cache)
        cache.checkpoint()
        fork = cache.fork()
        tree = DraftTree.static(mx.array([8, 9, 10, 11, 12]), [0, 0, 0, 1, 3])
        target.verify(tree, cache)
        cache.commit([0, 1, 3, 4])
        cache.trim(32)
        fork.pad(5)
        last = [target.verify(DraftTree.chain(mx.array([5])), c).logits for c in (cache, fork)]
        cache.commit([])
        assert (cache.rows, fork.rows) == (32, 35)
        results.append(np.array(mx.concatenate(last)))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-4)
    pair.target.cluster.watch.check()


def test_a_pass_exchanges_two_sums_a_layer_and_a_canary(pair: Pair) -> None:
    """However many rows it has, and however many of them are accepted."""
    traffic, width = pair.target.cluster.rounds, SMALL["hidden_size"]
    cache = pair.target.make_cache()
    pair.target.extend(mx.array(PROMPT), cache)
    for n_rows, n_accepted in ((1, 1), (8, 1), (8, 8)):
        before = replace(traffic)
        pair.target.verify(DraftTree.chain(mx.arange(n_rows, dtype=mx.int32)), cache)
        cache.commit(range(n_accepted))
        assert traffic.passes - before.passes == 1
        assert traffic.sums - before.sums == 2 * 4 + 1
        assert traffic.nbytes - before.nbytes == 2 * 4 * n_rows * width * 4 + 2 * 4


def test_the_judge_of_differing_texts_asks_all_hosts(pair: Pair) -> None:
    tokens = pair.together.generate(PROMPT, max_tokens=3).tokens
    plain = Sample("plain", 0.0, 0, "c", 0, tokens, 3, 1.0, 1.0, {})
    judge = judge_on_hosts(pair.target, lambda *_: PROMPT, seed=0)
    assert judge(plain, 2, tokens[2], tokens[2]).gap == 0
    assert judge(plain, 2, tokens[2], tokens[2] + 1).gap > 0


def test_a_model_that_is_run_directly_would_wait_for_ever_and_says_so(pair: Pair) -> None:
    with pytest.raises(ClusterError, match="was run alone"):
        pair.target.model(mx.array([[1, 2]]))


def test_a_target_that_verifies_nothing_is_refused(pair: Pair) -> None:
    with pytest.raises(UnsupportedTargetError, match="one machine"):
        LeadingTarget(pair.target.cluster, pair.target.divided, speculate=False)


# From here on other targets take the place of the pair's.
SIZES = ("hidden_size", "intermediate_size", "moe_intermediate_size")


@pytest.mark.parametrize(
    ("architecture", "bits", "changes"),
    [
        ("llama", 8, {"intermediate_size": 128, "hidden_size": 128, "head_dim": 32}),
        ("qwen3_moe", None, {}),
        broad("qwen3", None, {}),
        broad("llama", None, {"tie_word_embeddings": True}),
        broad("qwen2", None, {}),
        broad("gpt_oss", None, {}),
        broad("qwen3_moe", 4, {"head_dim": 32} | dict.fromkeys(SIZES, 128)),
    ],
)
def test_logits_are_those_of_one_process(
    architecture: str, bits: int | None, changes: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    folder, model = write_tiny(tmp_path / architecture, architecture, bits, **changes)
    together, alone = lead(cluster, folder, (1, 2)), Target(model, (1, 2))
    results = []
    for target in (alone, together):
        cache = target.make_cache()
        target.extend(mx.array([3, 1, 4, 1, 5, 9]), cache)
        tree = DraftTree.static(mx.array([8, 9, 10, 11]), [0, 0, 0, 1])
        out = target.verify(tree, cache)
        results.append((np.array(out.logits), np.array(out.taps)))
    scale = np.abs(results[0][0]).max()
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=0, atol=1e-4)


def test_a_rank_holds_its_part_and_never_the_whole(cluster: Cluster, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12}
    folder, model = write_tiny(tmp_path / "deep", "llama", **sizes)
    whole = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    del model
    divided = cluster.load(folder, "deep", "float32")
    assert max(divided.weights) <= (0.5 + 0.05) * whole
    assert max(divided.peaks) <= max(divided.weights) + 3 * whole / 12


def test_a_layer_whose_own_groups_would_be_cut_is_refused_by_name(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Half of 192 numbers are whole groups of 32, and one and a half of 64."""
    sizes = {"intermediate_size": 192, "hidden_size": 128, "head_dim": 32, "num_hidden_layers": 2}
    name = "model.layers.1.mlp.down_proj"
    folder, _ = write_tiny(tmp_path / "mixed", "llama", 8, {name: 64}, **sizes)
    with pytest.raises(UnsupportedTargetError, match=f"groups would be cut in {name}: "):
        cluster.load(folder, "mixed", "float32")
    cluster.measure(1)


def test_all_ranks_compute_in_the_type_that_rank_0_has_chosen(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it keeps what is stored, on a CPU it does not."""
    folder, model = write_tiny(tmp_path / "halves", "qwen2", num_hidden_layers=2)
    model.set_dtype(mx.bfloat16)
    write_model(folder, model, json.loads((folder / "config.json").read_text()))
    sizes = []
    for on_gpu in (False, True):
        with monkeypatch.context() as patch:
            if on_gpu:
                patch.setattr("mlx_eagle.cluster.cluster.compute_type", lambda name: None)
            sizes.append(cluster.load(folder, "halves").weights)
    assert sizes[0] == [2 * size for size in sizes[1]]
    assert sizes[0][0] == sizes[0][1]


def test_rank_0_goes_back_no_further_than_windows_of_other_ranks_do() -> None:
    silent = SimpleNamespace(note=lambda *_: None, new_number=lambda: 2)
    layer = KVCache()
    cache = LeadingCache([layer], cast(Cluster, silent), 1, 0, window=8)
    rows = mx.zeros((1, 1, 300, 4))
    layer.update_and_fetch(rows, rows)
    cache.commit(range(300))
    for held in (cache, cache.fork()):
        assert [held.can_trim(n) for n in (300, 236, 235)] == [True, True, False]
        held.trim(236)
        assert not held.can_trim(200), "others have dropped what comes before"
    assert LeadingCache([KVCache()], cast(Cluster, silent), 1, 0, window=8).can_trim(0)


def test_more_tokens_than_messages_hold_are_refused_by_name(
    cluster: Cluster, pair: Pair, tmp_path: Path
) -> None:
    folder, _ = write_tiny(tmp_path / "model", "llama", num_hidden_layers=1)
    with pytest.raises(ClusterError, match="max_context is 20,000,000; with hosts"):
        cluster.load(folder, "tiny", max_context=20_000_000)
    with pytest.raises(ClusterError, match="max_kv_size is 20,000,000; with hosts"):
        pair.together.with_kv(KVOptions(max_size=20_000_000)).generate(PROMPT, max_tokens=1)
    assert pair.together.generate(PROMPT, max_tokens=1).tokens


def test_costs_are_of_one_wiring(cluster: Cluster) -> None:
    want = {"ranks": "2", "link": "ring 127.0.0.1, 127.0.0.1: 127.0.0.1", "parallel": PIPELINE}
    assert cluster.identity(PIPELINE) == want


def refuse(*args: Any) -> None:
    raise CheckpointError("damaged here")


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def unchecked(cluster: Cluster, folder: Path) -> LeadingTarget:
    return LeadingTarget(cluster, cluster.load(folder, folder.name, "float32"))


def next_rows(target: Target, cache: AnyCache) -> np.ndarray:
    return np.array(target.forward(mx.array([1, 2]), cache).logits)


def test_a_target_goes_on_beside_another_one_and_after_one_that_was_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = unchecked(cluster, write_tiny(tmp_path / "first", "llama", num_hidden_layers=1)[0])
    caches = [first.make_cache() for _ in range(3)]
    want = next_rows(first, caches[0])
    other, _ = write_tiny(tmp_path / "second", "llama", num_hidden_layers=2)
    for fault, error in ((refuse, CheckpointError), (interrupt, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            patch.setattr("mlx_eagle.cluster.cluster.load_shard", fault)
            with pytest.raises(error):
                cluster.load(other, "second", "float32")
    np.testing.assert_array_equal(next_rows(first, caches[1]), want)
    second = unchecked(cluster, other)
    cache = second.make_cache()
    np.testing.assert_array_equal(next_rows(first, caches[2]), want)
    assert (next_rows(second, cache) != want).any()
    with pytest.raises(AssertionError, match="of another target"):
        second.extend(mx.array([1]), caches[2])
    cluster.watch.check()


def test_caches_that_cannot_be_read_are_refused_and_nobody_is_lost(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Heads of 16 numbers hold no group of 32; others do."""
    for head_dim, is_read in ((16, False), (32, True)):
        sizes = {"num_hidden_layers": 1, "head_dim": head_dim}
        target = lead(cluster, write_tiny(tmp_path / str(head_dim), "llama", **sizes)[0])
        with nullcontext() if is_read else pytest.raises(UnsupportedTargetError, match="leave kv_"):
            target = with_caches(target, KVOptions(8, 32))
        next_rows(target, target.make_cache())
    assert target.kv.bits == 8


def test_followers_forget_a_target_that_nobody_has_any_more(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done to its caches afterwards is no fault, and they are forgotten in turn."""
    folder, _ = write_tiny(tmp_path / "tiny", "llama", num_hidden_layers=1)
    target, told = unchecked(cluster, folder), list[Order]()
    cache, number = target.make_cache(), target.divided.number
    target.extend(mx.array([1, 2]), cache)

    def note(orders: Sequence[Order]) -> bytes:
        told.extend(orders)
        return encode_orders(orders)

    monkeypatch.setattr("mlx_eagle.cluster.cluster.encode_orders", note)
    monkeypatch.setattr("mlx_eagle.cluster.cluster.load_shard", refuse)
    with pytest.raises(CheckpointError):
        cluster.load(folder, "tiny")
    del target
    gc.collect()
    cache.trim(1)
    twin = cache.fork()
    cluster.measure(1)
    gone = [order.target for order in told if isinstance(order, Unload)]
    assert {number, number + 1} <= {*gone}
    del cache, twin
    cluster.measure(1)
    assert len([order for order in told if isinstance(order, Drop)]) >= 2
    cluster.watch.check()


def test_a_canary_that_does_not_come_out_is_the_end(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = lead(cluster, write_tiny(tmp_path / "llama", "llama")[0])
    cache, plain = target.make_cache(), mx.distributed.all_sum

    def off_by_one(x: mx.array, **kwargs: Any) -> mx.array:
        return plain(x, **kwargs) + int(x.dtype == mx.int32)

    with monkeypatch.context() as patch:
        patch.setattr(mx.distributed, "all_sum", off_by_one)
        with pytest.raises(ClusterError, match="did not run the same pass"):
            target.extend(mx.array([1, 2]), cache)
    with pytest.raises(ClusterError, match="did not run the same pass"):
        target.extend(mx.array([1, 2]), cache)
    cluster.watch._failure = ""  # the follower itself has done nothing wrong
