"""Native multi-token prediction: hybrid targets by chains, others by trees, as stock mlx-lm."""

import gc
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step

import mtp_files
from cases import broad, narrowed
from doubles import NoText
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.calibration.planners import Planners
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.mtp.extract import LocalCheckpoint, find_layer, write_layer
from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill
from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.mtp import MtpHead
from mlx_eagle.hub.head_choice import HeadChoice
from mlx_eagle.pairing import Pair, pair_up
from mlx_eagle.planner.policy import FixedShape
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.session.limits import bytes_per_row
from mlx_eagle.speculation import ON
from mlx_eagle.target.load import load_network
from mlx_eagle.target.target import rows_of
from mlx_eagle.tree import TreeShape

# With the answer more than the 256 rows that caches begin with.
PROMPT = [(7 * i + 3) % mtp_files.V for i in range(200)]


class Loaded(NamedTuple):
    """A target and the layer that its own folder holds, and what stock mlx-lm writes with it."""

    pair: Pair
    expected: list[int]


def load_pair(folder: Path, family: str, n_tokens: int) -> Loaded:
    """Convert the layer that is embedded in an MLX copy, as published, and pair it up."""
    model, layer = mtp_files.make_foresighted(family)
    target = mtp_files.save_target(folder / "target", family, model, layer)
    checkpoint = LocalCheckpoint(target, "target")
    write_layer(checkpoint, find_layer(checkpoint), folder / "layer")
    convert_head(folder / "layer", target, folder / "head", bits=None)
    steps = generate_step(mx.array(PROMPT), model, max_tokens=n_tokens)
    expected = [int(token) for token, _ in steps]
    network = load_network(target).network
    network.set_dtype(mx.float32)
    return Loaded(pair_up(network, HeadChoice(folder / "head", "mtp", is_named=True)), expected)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory, is_quick: bool) -> Loaded:
    return load_pair(tmp_path_factory.mktemp("hybrid"), "qwen3_5", 80 if is_quick else 256)


def decode(pair: Pair, shape: TreeShape, n_tokens: int) -> tuple[list[int], int]:
    """Tokens written with trees of a shape, and how many of them were drafted."""
    assert pair.head is not None
    drafter = make_drafter(pair.head, pair.target)
    selector = TokenSelector(SeededSampler())
    decoder = Decoder(pair.target, pair.target.make_cache(), drafter, selector)
    prefill(decoder, PROMPT)
    tokens, accepted = list[int](), 0
    for round_ in rounds(decoder, PROMPT[-1], FixedShape(shape)):
        tokens += round_.tokens
        accepted += round_.n_accepted
        assert drafter.rows >= len(PROMPT) - 1, "the prompt is observed"
        if len(tokens) >= n_tokens:
            break
    return tokens[:n_tokens], accepted


@pytest.mark.bitwise
@pytest.mark.parametrize("depth", narrowed([1, 2, 3, 4], [3]))
def test_chains_on_a_hybrid_target_write_what_stock_mlx_lm_writes(
    depth: int, hybrid: Loaded, is_quick: bool
) -> None:
    n = (80 if depth == 4 else 48) if is_quick else 256
    tokens, accepted = decode(hybrid.pair, TreeShape.chain(depth), n)
    assert tokens == hybrid.expected[:n]
    assert accepted > n / 4, "the layer foresees"
    assert (depth + 1) * (n - accepted) > 1.1 * n, "and not everything"


@pytest.mark.bitwise
@pytest.mark.parametrize("family", [broad("glm4_moe"), "glm4_moe_lite", "mimo"])
def test_trees_where_the_target_verifies_trees(family: str, tmp_path: Path) -> None:
    loaded = load_pair(tmp_path, family, 24)
    tokens, accepted = decode(loaded.pair, TreeShape(3, 3, 8), 24)
    assert tokens == loaded.expected
    assert accepted > 4


@pytest.mark.bitwise
@pytest.mark.parametrize("family", [broad("qwen3_5_moe"), "qwen3_next"])
def test_chains_on_hybrid_mixtures_of_experts(family: str, tmp_path: Path) -> None:
    loaded = load_pair(tmp_path, family, 24)
    tokens, accepted = decode(loaded.pair, TreeShape.chain(3), 24)
    assert tokens == loaded.expected
    assert accepted > 8


def test_a_layer_attends_to_all_tokens_and_a_window_is_refused_by_name(hybrid: Loaded) -> None:
    head: Any = hybrid.pair.head
    assert head.default_window == 0
    assert hybrid.pair.target.chains_only


@pytest.mark.bitwise
def test_its_cache_is_bounded_with_the_targets_and_counts_in_figures_of_memory(
    hybrid: Loaded,
) -> None:
    target, head = hybrid.pair.target, hybrid.pair.head
    assert isinstance(head, MtpHead)
    own, both = bytes_per_row(target), bytes_per_row(target, head)
    assert both == (*own, own[-1]), "its layer is like the target's"
    info = EngineInfo("hybrid", "float32", "mtp", "float32", ON, "cpu", False)
    whole = Engine(target, NoText(), head, info, Planners(chains_only=True))
    engine = whole.with_kv(KVOptions(max_size=16))
    assert engine.limits.cache_bytes(10**4) == engine.limits.cache_bytes(10**6)
    session, options = engine.session(), {"max_tokens": 40, "tree": TreeShape.chain(2)}
    prompt = [*PROMPT, *hybrid.expected, *PROMPT]  # more than rows are written between two moves
    list(session.stream_generate(prompt[:-30], max_tokens=8, tree=TreeShape.chain(2)))
    found = list(session.stream_generate(prompt, **options))
    want = engine.generate(prompt, max_tokens=40, speculate=False).tokens
    assert [r.token for r in found] == want
    drafter = session.prefix.drafter
    assert drafter is not None and drafter.rows > 400
    assert drafter.cache.parts[0].held < 16 + 64 + 256 + 1
    assert found[-1].stats.accepted > 4, "the layer foresees"


@pytest.mark.parametrize("bits", [None, 8])
def test_few_tokens_are_drafted_with_the_targets_own_rows(bits: int | None, hybrid: Loaded) -> None:
    target, head = hybrid.pair.target, hybrid.pair.head
    assert isinstance(head, MtpHead)
    layer = nn.Linear(mtp_files.H, mtp_files.V, bias=False)
    output = layer if bits is None else layer.to_quantized(group_size=32, bits=bits)
    ids, x = mx.array([5, 3, 100]), mx.random.normal((2, mtp_files.H))
    np.testing.assert_allclose(rows_of(output, ids)(x), output(x)[:, ids], rtol=1e-5, atol=1e-5)
    rows = target.output_rows(ids)
    assert rows is target.output_rows(ids) is target.twin().output_rows(ids)
    gone, other = weakref.ref(rows), mx.array([5, 3, 100])
    assert target.output_rows(other) is not rows
    del rows, ids
    gc.collect()
    assert gone() is None, "with the head that drafts them its rows go"


@pytest.mark.bitwise
def test_a_reduced_vocabulary_leaves_the_text_as_it_is(hybrid: Loaded) -> None:
    head = hybrid.pair.head
    assert isinstance(head, MtpHead)
    few = MtpHead(replace(head.config, draft_vocab_size=64))
    few.load_weights(list(tree_flatten(head.parameters())), strict=False)
    frequent = Counter(hybrid.expected).most_common(20)
    rest = [t for t in range(mtp_files.V) if t not in dict(frequent)]
    few.draft_to_target = mx.array(sorted([*dict(frequent), *rest[:44]]), dtype=mx.int32)
    tokens, accepted = decode(hybrid.pair._replace(head=few), TreeShape.chain(2), 64)
    assert tokens == hybrid.expected[:64] and accepted > 8


def test_sessions_stats_files_and_refusals_are_as_with_other_heads(
    hybrid: Loaded, tmp_path: Path
) -> None:
    target, head = hybrid.pair.target, hybrid.pair.head
    assert isinstance(head, MtpHead)
    info = EngineInfo("hybrid", "float32", "mtp", "float32", ON, "cpu", False)
    engine = Engine(target, NoText(), head, info, Planners(chains_only=True))
    session = engine.session()
    options = {"max_tokens": 24, "tree": TreeShape.chain(2)}
    found = list(session.stream_generate(PROMPT, **options))
    assert [r.token for r in found] == hybrid.expected[:24]
    stats = found[-1].stats
    assert stats.accepted > 0 and stats.speculation == "on"
    session.save(tmp_path / "talk")
    again = engine.load_session(tmp_path / "talk")
    more = list(again.stream_generate([*PROMPT, *hybrid.expected[:24]], **options))
    assert [r.token for r in more] == hybrid.expected[24:48]
    assert more[-1].stats.cached_tokens > 40
    with pytest.raises(EagleError, match="verifies chains only"):
        session.stream_generate(PROMPT, tree=TreeShape(3, 3, 8))
    other = MtpHead(head.config)
    stranger = Engine(target, NoText(), other, info, Planners(chains_only=True))
    with pytest.raises(EagleError, match="saved with another head"):
        stranger.load_session(tmp_path / "talk")
