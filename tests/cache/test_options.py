"""Targets that remember less: mlx-lm's caches of the same kind, and plain decoding, as oracles."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models import cache as stock
from mlx_lm.utils import load_model

from cases import broad, narrowed
from mlx_eagle.cache.attention_sinks import SinkKVCache
from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.cache.quantized import QuantizedKVCache
from mlx_eagle.cache.window import WindowKVCache
from mlx_eagle.decoding.accept import accept
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.errors import EagleError, UnsupportedTargetError
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import load_head
from mlx_eagle.target.self_check import check_kv_options
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree, TreeShape

Build = Callable[..., nn.Module]

# gpt-oss and gemma2 have attention of their own, which cannot read quantized rows.
READ_QUANTIZED = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma3_text",
    "phi3",
    "cohere",
    "olmo2",
    "glm4",
    "granite",
    "smollm3",
]
PICKY = ["gpt_oss", "gemma2"]
BITS = [KVOptions(bits=8, group_size=32), KVOptions(bits=4, group_size=32)]
SIZES = [KVOptions(max_size=16), KVOptions(max_size=25)]
FEW = [
    ("llama", BITS[0]),
    ("llama", SIZES[0]),
    ("qwen3_moe", SIZES[1]),
    ("gpt_oss", SIZES[1]),
]
ALL = [*product(READ_QUANTIZED, (BITS[0], SIZES[1])), *((name, SIZES[1]) for name in PICKY)]
CASES = [*FEW, broad("llama", BITS[1]), *(broad(*case) for case in ALL if case not in FEW)]
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43]
PARENTS = [0, 0, 0, 1, 1, 2, 3, 3, 6]
PATHS = [[0, 1, 4], [0, 2, 5], [0, 1, 3, 7], [0, 1, 3, 6, 8]]


def label(value: Any) -> str:
    if isinstance(value, TreeShape):
        return f"{value.depth}x{value.width}to{value.nodes}"
    if not isinstance(value, KVOptions):
        return str(value)
    return f"{value.bits}bits" if value.bits else f"max{value.max_size}"


def tried_with(model: nn.Module, kv: KVOptions) -> Target:
    target = Target(model)
    target.kv = kv
    return target


def stock_cache(target: Target) -> list[Any]:
    """mlx-lm's own caches of the kind that the target is told to have."""
    return [target.kv.stock_layer(layer) for layer in stock.make_prompt_cache(target.model)]


def wide(build: Build, architecture: str) -> nn.Module:
    """A tiny target whose attention heads can be cut into groups of 32."""
    return build(architecture, hidden_size=128, head_dim=32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are forgotten as often as can be."""
    monkeypatch.setattr(SinkKVCache, "slack", 5)
    monkeypatch.setattr(SinkKVCache, "margin", 2)


def random_tokens(n: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(1, 128, n).tolist()
    return tokens


def plain_logits(target: Target, cache: Any, tokens: list[int]) -> mx.array:
    """Logits [L, V] of tokens run one by one through our caches."""
    rows = []
    for token in tokens:
        rows.append(target.verify(DraftTree.chain(mx.array([token])), cache).logits)
        cache.commit([0])
    return mx.concatenate(rows)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("architecture", "kv"), CASES, ids=label)
def test_plain_decoding_gives_the_logits_of_mlx_lms_cache_of_that_kind(
    architecture: str, kv: KVOptions, tiny_target: Build
) -> None:
    target = tried_with(wide(tiny_target, architecture), kv)
    theirs, ours = stock_cache(target), target.make_cache()
    want = [target.model(mx.array([PROMPT]), cache=theirs)[0, -1]]
    got = [target.verify(DraftTree.chain(mx.array(PROMPT)), ours).logits[-1]]
    ours.commit(range(len(PROMPT)))
    for token in random_tokens(22):
        want.append(target.model(mx.array([[token]]), cache=theirs)[0, -1])
        got.append(plain_logits(target, ours, [token])[0])
    np.testing.assert_allclose(np.array(mx.stack(got)), np.array(mx.stack(want)), atol=3e-5)


@pytest.mark.bitwise
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("architecture", "kv"), CASES, ids=label)
def test_a_tree_gives_the_logits_of_its_paths(
    architecture: str, kv: KVOptions, tiny_target: Build
) -> None:
    target = tried_with(wide(tiny_target, architecture), kv)
    prompt, tokens = random_tokens(34), random_tokens(len(PARENTS), seed=1)
    cache = target.make_cache()
    target.extend(mx.array(prompt), cache)
    tree = DraftTree.static(mx.array(tokens), PARENTS)
    found = target.verify(tree, cache).logits
    read = target.make_cache()
    plain_logits(target, read, prompt)  # row by row, where the tree's prompt was one chunk
    for path in PATHS:
        plain = read.fork()
        want = plain_logits(target, plain, [tokens[node] for node in path])
        got = found[mx.array(path)]
        np.testing.assert_allclose(np.array(got), np.array(want), atol=3e-5)


@pytest.mark.bitwise
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kv", narrowed([*BITS, *SIZES], [BITS[0], SIZES[1]]), ids=label)
def test_rows_that_come_from_trees_are_those_of_plain_decoding_bit_for_bit(
    kv: KVOptions, tiny_target: Build
) -> None:
    """Rounding of one bit could make a quantized number another one."""
    target, random = tried_with(tiny_target("llama", head_dim=32), kv), np.random.default_rng(0)
    text = random_tokens(50)
    want = plain_logits(target, target.make_cache(), text)
    cache, got = target.make_cache(), []
    while cache.rows < len(text) - 4:
        nodes, parents, path = [text[cache.rows]], [0], [0]
        for depth in range(1, 4):
            for _ in range(int(random.integers(0, 3))):
                nodes, parents = [*nodes, int(random.integers(1, 128))], [*parents, path[-1]]
            nodes, parents = [*nodes, text[cache.rows + depth]], [*parents, path[-1]]
            path.append(len(nodes) - 1)
        logits = target.verify(DraftTree.static(mx.array(nodes), parents), cache).logits
        accepted = path[: int(random.integers(1, 5))]
        got.append(logits[mx.array(accepted)])
        cache.commit(accepted)
    assert mx.array_equal(mx.concatenate(got), want[: cache.rows])


def decode(target: Target, prompt: list[int], n: int) -> list[int]:
    """Decode n greedy tokens, one at a time."""
    cache, tokens = target.make_cache(), list(prompt)
    target.extend(mx.array(prompt[:-1]), cache)
    while len(tokens) < len(prompt) + n:
        tokens.append(plain_logits(target, cache, tokens[-1:]).argmax(-1).item())
    return tokens[len(prompt) :]


def speculate(
    target: Target, prompt: list[int], n: int, propose: Callable[[int], Any]
) -> tuple[list[int], int]:
    """Decode n or more tokens; return them and the rounds it took.

    `propose` gives drafted tokens and the parents of all nodes, for so many tokens decoded.
    """
    cache, tokens, rounds = target.make_cache(), list(prompt), 0
    target.extend(mx.array(prompt[:-1]), cache)
    while len(tokens) < len(prompt) + n:
        drafted, parents = propose(len(tokens) - len(prompt))
        nodes = [tokens[-1], *drafted]
        verified = target.verify(DraftTree.static(mx.array(nodes), parents), cache)
        path, token = accept(nodes, parents, verified.logits.argmax(-1).tolist())
        cache.commit(path)
        tokens += [*(nodes[node] for node in path[1:]), token]
        rounds += 1
    return tokens[len(prompt) :], rounds


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", [0, *map(broad, range(1, 8))])
@pytest.mark.parametrize("kv", narrowed([*BITS, *SIZES], [BITS[1], SIZES[0]]), ids=label)
def test_speculation_gives_the_tokens_of_plain_decoding(
    kv: KVOptions, seed: int, tiny_target: Build
) -> None:
    """Trees of any form, some of whose paths are what the target will say, up to a point."""
    target, random = tried_with(tiny_target("llama", head_dim=32), kv), np.random.default_rng(seed)
    want = decode(target, PROMPT, 36)
    said = [*want, *([0] * 20)]

    def propose(done: int) -> tuple[list[int], list[int]]:
        n = int(random.integers(0, 9))
        parents = [0, *(max(0, i - int(random.integers(0, 3))) for i in range(n))]
        depths = [0]
        for parent in parents[1:]:
            depths.append(depths[parent] + 1)
        wrong = (random.random(n) < 0.3).tolist()
        right = [said[done + depth - 1] for depth in depths[1:]]
        return [(token + off) % 128 for token, off in zip(right, wrong, strict=True)], parents

    tokens, rounds = speculate(target, PROMPT, 36, propose)
    assert tokens[:36] == want
    assert rounds < 28, "hardly anything was accepted"


@pytest.mark.parametrize(
    ("kv", "n"),
    [
        (BITS[0], 20),
        broad(BITS[0], 400),
        broad(BITS[1], 400),
        (KVOptions(max_size=64), 24),
        broad(KVOptions(max_size=64), 400),
    ],
    ids=label,
)
def test_mlx_lms_own_loop_generates_the_same_tokens(
    kv: KVOptions, n: int, tiny_target: Build
) -> None:
    target = tried_with(tiny_target("llama", head_dim=32), kv)
    # Of quantized rows mlx-lm and we begin with 256; both answers need more than there are.
    prompt = random_tokens(240 if kv.bits else 60)
    steps = generate_step(
        mx.array(prompt), target.model, prompt_cache=stock_cache(target), max_tokens=n
    )
    assert decode(target, prompt, n) == [token for token, _ in steps]


def test_a_bounded_cache_stays_small_and_a_quantized_one_is_small(tiny_target: Build) -> None:
    model = tiny_target("llama", head_dim=64)
    sizes = {}
    for kv in (WHOLE, KVOptions(max_size=64), KVOptions(bits=8), KVOptions(bits=4)):
        target = tried_with(model, kv)
        cache = target.make_cache()
        for _ in range(4):
            target.extend(mx.array(random_tokens(512)), cache)
        sizes[kv] = cache.nbytes
    whole = 4 * 2 * 2 * 2048 * 64 * 4  # layers, k and v, heads, rows, numbers, bytes
    assert sizes[WHOLE] == whole
    assert sizes[KVOptions(max_size=64)] <= whole / 4
    assert sizes[KVOptions(bits=8)] == whole * (8 + 1) / 32  # two float32 for every 64 numbers
    assert sizes[KVOptions(bits=4)] == whole * (4 + 1) / 32


@pytest.mark.parametrize("kv", [KVOptions(bits=8), KVOptions(max_size=64)], ids=label)
def test_layers_with_a_window_of_their_own_stay_as_they_are(
    kv: KVOptions, tiny_target: Build
) -> None:
    target = tried_with(tiny_target("gemma3_text"), kv)
    kind = QuantizedKVCache if kv.bits else SinkKVCache
    assert [type(layer) for layer in target.make_cache().layers] == [WindowKVCache, kind] * 2
    theirs = [stock.RotatingKVCache, type(stock_cache(target)[1])] * 2
    assert [type(layer) for layer in stock_cache(target)] == theirs
    target.kv = WHOLE
    assert [type(layer) for layer in target.make_cache().layers] == [WindowKVCache, KVCache] * 2


def test_targets_without_speculation_use_mlx_lms_caches_of_the_same_kind(
    tiny_target: Build,
) -> None:
    target = Target(tiny_target("llama", head_dim=32), speculate=False)
    for kv, kind in (
        (WHOLE, stock.KVCache),
        (KVOptions(bits=4, group_size=32), stock.QuantizedKVCache),
        (KVOptions(max_size=64), stock.RotatingKVCache),
    ):
        target.kv = kv
        layers = target.make_cache().layers
        assert {type(layer) for layer in layers} == {kind}
        check_kv_options(target)
    assert (layers[0].max_size, layers[0].keep) == (64, 4)


def test_models_that_cannot_read_quantized_rows_say_so_in_one_line(tiny_target: Build) -> None:
    target = tried_with(tiny_target("gpt_oss", head_dim=64), KVOptions(bits=8))
    with pytest.raises(UnsupportedTargetError) as raised:
        check_kv_options(target)
    assert str(raised.value) == (
        "mlx-lm's gpt_oss model cannot read the KV cache that kv_bits asks for "
        "(Quantized SDPA does not support attention sinks.); leave kv_bits out"
    )
    gemma = tried_with(tiny_target("gemma2", head_dim=64), KVOptions(bits=8))
    with pytest.raises(UnsupportedTargetError, match="gemma2 model cannot read"):
        check_kv_options(gemma)


def test_heads_that_cannot_be_cut_into_groups_are_refused(tiny_target: Build) -> None:
    target = tried_with(tiny_target("llama", head_dim=32), KVOptions(bits=8, group_size=64))
    with pytest.raises(UnsupportedTargetError, match="heads are 32 wide.*group size of 64"):
        check_kv_options(target)
    check_kv_options(tried_with(target.model, KVOptions(bits=8, group_size=32)))
    check_kv_options(tried_with(target.model, KVOptions(max_size=16)))
    check_kv_options(tried_with(target.model, WHOLE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "kv_bits is 3; it must be 4 or 8"),
        ({"bits": 8, "group_size": 48}, "kv_group_size is 48; it must be 32, 64 or 128"),
        ({"max_size": 15}, "max_kv_size is 15; it must be 16 or more"),
        ({"bits": 8, "max_size": 64}, "kv_bits and max_kv_size were both given"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(EagleError, match=message):
        KVOptions(**options)


@pytest.fixture(scope="module")
def pair(fixtures: Path, trained_head: Path) -> tuple[Target, EagleHead]:
    """The trained pair in float32, and nothing of the engine."""
    model, _ = load_model(fixtures / "pydoc-llama")
    model.set_dtype(mx.float32)
    head = load_head(trained_head)
    assert isinstance(head, EagleHead)
    head.set_dtype(mx.float32)
    return Target(model, head.config.taps), head


def answer(
    target: Target, drafter: EagleDrafter, prompt: list[int], n: int, shape: TreeShape
) -> list[int]:
    """Decode n or more greedy tokens with a real head."""
    cache, tokens = target.make_cache(), list(prompt)
    drafter.observe(target.extend(mx.array(prompt[:-1]), cache), mx.array(prompt[1:]))
    while len(tokens) < len(prompt) + n:
        tree = drafter.draft(mx.array(tokens[-1:]), shape)
        verified = target.verify(tree, cache)
        nodes, target_tokens = tree.tokens.tolist(), verified.logits.argmax(-1).tolist()
        path, token = accept(nodes, tree.parents.tolist(), target_tokens)
        cache.commit(path)
        new = [*(nodes[node] for node in path[1:]), token]
        assert verified.taps is not None
        drafter.observe(verified.taps[mx.array(path)], mx.array(new))
        tokens += new
    return tokens[len(prompt) :]


REAL: list[Any] = [
    broad(WHOLE, TreeShape(4, 3, 8), 32),
    broad(KVOptions(bits=8), TreeShape.chain(4), None),
    (KVOptions(bits=8), TreeShape(4, 3, 8), 32),
    broad(KVOptions(bits=4), TreeShape(5, 4, 16), None),
    broad(KVOptions(max_size=48), TreeShape(5, 4, 16), None),
    broad(KVOptions(max_size=48), TreeShape(4, 3, 8), 32),
    broad(KVOptions(max_size=48), TreeShape.chain(3), None),
]


@pytest.mark.parametrize(("kv", "shape", "window"), REAL, ids=label)
def test_a_real_head_changes_no_token_of_mlx_lms(
    kv: KVOptions,
    shape: TreeShape,
    window: int | None,
    pair: tuple[Target, EagleHead],
    fixtures: Path,
    is_quick: bool,
) -> None:
    """The loop of mlx-lm with its own cache of the same kind says what is right."""
    (target, head), n = pair, 10 if is_quick else 64
    prompt = json.loads((fixtures / "oracle-chain4.json").read_text())["runs"][2]["prompt_ids"]
    target.kv = kv
    steps = generate_step(
        mx.array(prompt), target.model, prompt_cache=stock_cache(target), max_tokens=n
    )
    want = [token for token, _ in steps]
    got = answer(target, EagleDrafter(head, target, window), prompt, n, shape)
    assert got[:n] == want
