"""Drafting with heads of blocks: naive trees, plain decoding, and a context that can go back."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step

import mtp_files
from block_pairs import (
    KINDS,
    N_TOKENS,
    PROMPT,
    WORDS,
    random_block_head,
    turning_dspark,
    with_few_tokens,
)
from cases import broad
from doubles import NoText, make_session
from mlx_eagle.calibration.planners import Planners
from mlx_eagle.drafters.block import BlockDrafter
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.drafters.markov import MarkovDrafter
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.session.session import Session
from mlx_eagle.speculation import ON
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, TreeShape, check_structure
from tiny_models import build_target
from turning_pair import SIZE

N = 9
SHAPES = [TreeShape.chain(1), TreeShape.chain(4), TreeShape(1, 4, 3), TreeShape(4, 4, 48)]


@pytest.fixture(scope="module")
def shared() -> Any:
    """What heads borrow of a target."""
    mx.random.seed(6)
    return SimpleNamespace(
        embedding=nn.Embedding(N_TOKENS, SIZE), unembed=nn.Linear(SIZE, N_TOKENS, bias=False)
    )


def observed(drafter: BlockDrafter, first: int, last: int) -> BlockDrafter:
    """Let a drafter observe rows `first` to `last` of a fixed text."""
    rng = np.random.default_rng(first)
    for row in range(first, last):
        rng = np.random.default_rng(row)
        taps = mx.array(rng.standard_normal((1, 3 * SIZE)).astype(np.float32))
        drafter.observe(taps, mx.array([row % 50 + 10], dtype=mx.int32))
    return drafter


def log_softmax(logits: mx.array) -> np.ndarray:
    found = np.array(logits).astype(np.float64)
    return found - np.log(np.exp(found).sum(-1, keepdims=True))


def naive_tree(head: BlockHead, shared: Any, context: Any, shape: TreeShape) -> dict[Any, float]:
    """The kept paths below the root 9 with their scores, every path followed by itself."""
    tokens = head.block(mx.array([9], dtype=mx.int32), shape.depth)
    states = head(shared.embedding(tokens), context, shape.depth)[0]
    context.commit([])

    def level(path: tuple[int, ...]) -> np.ndarray:
        logits = shared.unembed(states[len(path)])
        if head.config.markov != "none":
            state = head.markov_head.start(mx.float32)
            for depth, token in enumerate((9, *path)):
                row = states[depth : depth + 1]
                bias, state = head.markov_head(mx.array([token]), row, state)
            logits = logits + bias[0]
        return log_softmax(logits)

    made: dict[Any, float] = {}
    frontier: list[tuple[int, ...]] = [()]
    for _ in range(shape.depth):
        below = {}
        for path in frontier:
            scores = level(path)
            for token in np.argsort(-scores)[: shape.width]:
                below[(*path, int(token))] = made.get(path, 0.0) + scores[token]
        made |= below
        frontier = sorted(below, key=lambda path: -below[path])[: shape.width]
    return {path: made[path] for path in sorted(made, key=lambda p: -made[p])[: shape.nodes]}


def kind_and_shape() -> Iterator[Any]:
    for i, (name, (j, shape)) in enumerate(itertools.product(KINDS, enumerate(SHAPES))):
        is_first = j == len(SHAPES) - 1 or i % 4 == (i // 4) % 3
        yield pytest.param(name, shape) if is_first else broad(name, shape)


@pytest.mark.parametrize(("name", "shape"), list(kind_and_shape()))
def test_tree_is_the_naive_one(name: str, shape: TreeShape, shared: Any) -> None:
    head = random_block_head(name)
    drafter: Any = observed(make_drafter(head, shared), 0, N)
    tree = drafter.draft(mx.array([9], dtype=mx.int32), shape)
    expected = naive_tree(head, shared, drafter.cache, shape)
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))
    assert set(paths[1:]) == set(expected)
    assert tree.depths.tolist() == check_structure(parents)
    want = [expected[path] for path in paths[1:]]
    np.testing.assert_allclose(tree.log_probs.tolist()[1:], want, rtol=1e-4, atol=1e-4)
    assert drafter.rows == N


@pytest.mark.parametrize("name", ["dflash", "dspark, rnn"])
def test_a_greedy_path_is_the_chain_with_siblings(name: str, shared: Any) -> None:
    drafter = observed(make_drafter(random_block_head(name), shared), 0, N)
    root = mx.array([(N - 1) % 50 + 10], dtype=mx.int32)
    chain = drafter.draft(root, TreeShape.chain(4))
    levels = list(drafter.greedy_path(4, 4))
    assert [tokens[0].item() for _, tokens in levels] == chain.tokens.tolist()[1:]
    scores = np.cumsum([log_probs[0].item() for log_probs, _ in levels])
    np.testing.assert_allclose(scores, chain.log_probs.tolist()[1:], rtol=1e-5)
    assert drafter.draft(root, PLAIN).tokens.tolist() == root.tolist()


def drafted(drafter: BlockDrafter) -> tuple[list[int], list[float]]:
    tree = drafter.draft(mx.array([9], dtype=mx.int32), TreeShape(3, 4, 10))
    return tree.tokens.tolist(), tree.log_probs.tolist()


def same(one: BlockDrafter, other: BlockDrafter) -> None:
    (tokens, scores), (theirs, their_scores) = drafted(one), drafted(other)
    assert tokens == theirs
    np.testing.assert_allclose(scores, their_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 16])
def test_the_context_goes_back_forks_and_is_restored(window: int | None, shared: Any) -> None:
    head = random_block_head("dflash")
    fresh = partial(make_drafter, head, shared, window)
    drafter: Any = observed(fresh(), 0, 12)
    drafted(drafter)
    twin = drafter.fork()
    drafter.trim(7)
    assert drafter.rows == 7 and twin.rows == 12
    with pytest.raises(AssertionError, match="observe a token before drafting"):
        next(drafter.greedy_path(2, 2))
    observed(drafter, 7, 14)
    same(drafter, observed(fresh(), 0, 14))
    observed(twin, 12, 15)
    same(twin, observed(fresh(), 0, 15))
    same(drafter, observed(fresh(), 0, 14))
    restored: Any = fresh()
    restored.restore(drafter.arrays(), 14)
    same(observed(restored, 14, 16), observed(drafter, 14, 16))


def test_many_rows_at_once_are_those_of_one_by_one(shared: Any) -> None:
    head, taps = random_block_head("dspark"), mx.random.normal((N, 3 * SIZE))
    one: Any = make_drafter(head, shared)
    other: Any = make_drafter(head, shared)
    tokens = mx.arange(N, dtype=mx.int32)
    one.observe(taps, tokens)
    for row in range(N):
        other.observe(taps[row : row + 1], tokens[row : row + 1])
    same(one, other)


def test_a_window_bounds_the_context(shared: Any) -> None:
    head = random_block_head("dflash")
    drafter: Any = make_drafter(head, shared, 64)
    drafter.observe(mx.random.normal((600, 3 * SIZE)), mx.zeros((600,), dtype=mx.int32))
    before = drafter.nbytes
    drafter.observe(mx.random.normal((600, 3 * SIZE)), mx.zeros((600,), dtype=mx.int32))
    assert drafter.rows == 1200 and drafter.nbytes <= before
    assert len(drafted(drafter)[0]) == 11
    assert head.default_window == 512, "that of its configuration, which is below 4096"


QUICK = ("dflash on qwen3", "dspark, rnn on qwen3_moe", "dspark that foresees")


class Case(NamedTuple):
    model: nn.Module
    head: BlockHead


def cases() -> dict[str, Callable[[], Case]]:
    def random(name: str, architecture: str) -> Case:
        return Case(build_target(architecture, vocab_size=N_TOKENS), random_block_head(name))

    found = {
        f"{name} on {architecture}": partial(random, name, architecture)
        for name, architecture in zip(
            KINDS, ["qwen3", "llama", "gpt_oss", "qwen3", "gemma3_text", "qwen3_moe"], strict=True
        )
    }
    return found | {"dspark that foresees": lambda: Case(*turning_dspark())}


def session_of(case: Case, target: Target) -> Session:
    make = partial(make_drafter, case.head, target)
    return make_session(target, make, Planners(max_depth=case.head.max_depth))


@pytest.mark.bitwise
@pytest.mark.parametrize(
    "name", [name if name in QUICK else broad(name) for name in cases()], ids=str
)
def test_every_kind_leaves_the_text_as_it_is(name: str, is_quick: bool) -> None:
    case = cases()[name]()
    n, prompts = 64, [PROMPT, [*PROMPT, 9, 60, 61], PROMPT[:17], [5]]
    if is_quick:
        n, prompts = 8, prompts[2:]
    steps = [generate_step(mx.array(p), case.model, max_tokens=n) for p in prompts]
    want = [[int(token) for token, _ in step] for step in steps]
    target = Target(case.model, taps=case.head.config.taps)
    session, accepted = session_of(case, target), 0
    shapes = [TreeShape(3, 4, 9), None, TreeShape.chain(3)]
    for shape in shapes[:2] if is_quick else shapes:
        for prompt, tokens in zip(prompts, want, strict=True):
            found = list(session.stream_generate(prompt, max_tokens=n, tree=shape))
            assert [r.token for r in found] == tokens
            accepted += found[-1].stats.accepted
    assert accepted > 6 or "foresees" not in name


@pytest.mark.bitwise
def test_accepted_branches_of_a_dflash_tree_leave_the_text_as_it_is(is_quick: bool) -> None:
    n = 24 if is_quick else 96
    model = build_target("qwen3", vocab_size=N_TOKENS)
    steps = generate_step(mx.array(PROMPT), model, max_tokens=n)
    want = [int(token) for token, _ in steps]
    head = with_few_tokens(random_block_head("dflash"), sorted({*want, 1, 2, 3}))
    target = Target(model, taps=head.config.taps)
    session = session_of(Case(model, head), target)
    shape = TreeShape(3, min(6, head.config.draft_vocab_size), 40)
    found = list(session.stream_generate(PROMPT, max_tokens=n, tree=shape))
    assert [r.token for r in found] == want
    assert found[-1].stats.accepted > 4


def test_sessions_stats_files_and_refusals_are_as_with_other_heads(tmp_path: Path) -> None:
    model, head = turning_dspark()
    steps = generate_step(mx.array(PROMPT), model, max_tokens=48)
    want = [int(token) for token, _ in steps]
    target = Target(model, taps=head.config.taps)
    info = EngineInfo("turning", "float32", "dspark", "float32", ON, "cpu", False)
    engine = Engine(target, NoText(), head, info, Planners(max_depth=head.max_depth))
    session = engine.session()
    options: dict[str, Any] = {"max_tokens": 24, "tree": TreeShape(4, 2, 6)}
    found = list(session.stream_generate(PROMPT, **options))
    assert [r.token for r in found] == want[:24]
    stats = found[-1].stats
    assert stats.accepted > 4 and stats.speculation == "on"
    held = session.prefix
    assert held.nbytes == held.cache.nbytes + held.drafter.nbytes and held.drafter.nbytes > 0
    session.save(tmp_path / "talk")
    twin = session.fork()
    for other in (engine.load_session(tmp_path / "talk"), twin):
        more = list(other.stream_generate([*PROMPT, *want[:24]], **options))
        assert [r.token for r in more] == want[24:48]
        assert more[-1].stats.cached_tokens > 40
    with pytest.raises(EagleError, match="depth 6 was asked for, but the head proposes 5 tokens"):
        session.stream_generate(PROMPT, tree=TreeShape.chain(6))
    stranger = Engine(target, NoText(), random_block_head("dspark"), info, Planners())
    with pytest.raises(EagleError, match="saved with another head"):
        stranger.load_session(tmp_path / "talk")


@pytest.mark.bitwise
@pytest.mark.parametrize("name", ["dflash", "dspark"])
def test_hybrid_targets_verify_chains_of_blocks(name: str, is_quick: bool) -> None:
    n = 16 if is_quick else 64
    model, _ = mtp_files.make_foresighted("qwen3_5")
    sizes = {"target_vocab_size": mtp_files.V, "draft_vocab_size": mtp_files.V, "taps": [1, 2]}
    head = random_block_head(name, **sizes)
    prompt = [token % mtp_files.V for token in PROMPT]
    want = [int(t) for t, _ in generate_step(mx.array(prompt), model, max_tokens=n)]
    target = Target(model, taps=head.config.taps)
    session = session_of(Case(model, head), target)
    found = list(session.stream_generate(prompt, max_tokens=n, tree=TreeShape.chain(3)))
    assert [r.token for r in found] == want
    with pytest.raises(EagleError, match="verifies chains only"):
        session.stream_generate(prompt, tree=TreeShape(3, 3, 8))


@pytest.mark.bitwise
def test_sessions_that_go_back_or_fork_hold_the_context_of_their_own_text() -> None:
    model, head = turning_dspark()
    target = Target(model, taps=head.config.taps)
    info = EngineInfo("turning", "float32", "dspark", "float32", ON, "cpu", False)
    engine = Engine(target, NoText(), head, info, Planners(max_depth=head.max_depth))
    options: dict[str, Any] = {"max_tokens": 10, "tree": TreeShape(4, 2, 6)}

    def answer(session: Session, prompt: list[int]) -> list[int]:
        return [r.token for r in session.stream_generate(prompt, **options)]

    session = engine.session()
    first = answer(session, PROMPT)
    twin = session.fork()
    back, on = [*PROMPT[:20], 9, 50], [*PROMPT, *first, 12]
    for used, prompt in ((session, back), (twin, on), (session, on), (twin, PROMPT[:12])):
        fresh = engine.session()
        assert answer(used, prompt) == answer(fresh, prompt)
        ours, theirs = used.prefix.drafter, fresh.prefix.drafter
        assert isinstance(ours, BlockDrafter) and isinstance(theirs, BlockDrafter)
        n = min(ours.rows, theirs.rows)
        assert n >= len(prompt) - 1
        for name, rows in theirs.arrays().items():
            found = ours.arrays()[name][:, :, :n]
            np.testing.assert_allclose(found, rows[:, :, :n], rtol=1e-5, atol=1e-5)


def test_kind_of_drafter_follows_the_head(shared: Any) -> None:
    kinds = {name: type(make_drafter(random_block_head(name), shared)) for name in KINDS}
    assert set(kinds.values()) == {BlockDrafter, MarkovDrafter}
    assert all((kind is MarkovDrafter) == ("dspark" in name) for name, kind in kinds.items())
    assert WORDS[-1] == N_TOKENS - 1
