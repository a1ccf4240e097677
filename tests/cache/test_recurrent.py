"""States of recurrent layers: always that of the committed rows, wherever rounds and turns end."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.generate import generate_step

from cases import broad
from doubles import ScriptedDrafter, always_right, make_session, wrong_every
from mlx_eagle.cache.recurrent import RecurrentCache
from mlx_eagle.calibration import measure as calibration
from mlx_eagle.calibration.planners import Planners
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.target.hooks import note_updates
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree, TreeShape

CONFIGS = json.loads((Path(__file__).parents[1] / "data" / "families.json").read_text())[
    "recurrent"
]


class Hashing(nn.Module):
    """A state that no two texts share: three times the one before, plus the new row."""

    def __init__(self, slot: int = 0) -> None:
        super().__init__()
        self.slot = slot

    def __call__(self, x: mx.array, cache: RecurrentCache) -> mx.array:
        state = cache[self.slot]
        seen = []
        for row in range(x.shape[1]):
            state = (0 if state is None else 3 * state) + x[:, row]
            seen.append(state)
        cache[self.slot] = state
        return mx.stack(seen, axis=1)


class Twice(nn.Module):
    """Two modules that update parts of a state, as in RWKV, in one that only passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Hashing(0), Hashing(1)

    def __call__(self, x: mx.array, cache: RecurrentCache) -> mx.array:
        return self.second(self.first(x, cache) + 1, cache=cache)


def state(cache: RecurrentCache) -> list[int]:
    return [part.item() for part in cache.cache if part is not None]


def after(module: nn.Module, rows: list[int]) -> list[int]:
    """The state after rows one by one, without anything that goes back."""
    cache = RecurrentCache(2)
    for row in rows:
        module(mx.array([[[row]]], dtype=mx.int64), cache)
    return state(cache)


steps = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 6), st.sampled_from(["go on", "mark", "back"])),
    max_size=12,
)


@given(steps, st.sampled_from([Hashing, Twice]))
def test_the_state_is_always_that_of_the_committed_rows(
    plan: list[tuple[int, int, str]], kind: type[nn.Module]
) -> None:
    module, plain, cache = kind(), kind(), RecurrentCache(2)
    note_updates(module, [])
    kept, made = list[int](), 0
    for n, wanted, then in plan:
        new = list(range(made, made + n))
        made += n
        module(mx.array(new, dtype=mx.int64).reshape(1, n, 1), cache)
        assert cache.pending == n
        accepted = min(n, wanted)
        cache.commit(range(accepted))
        kept += new[:accepted]
        if then == "mark":
            cache.checkpoint()
        if then == "back":
            rows = min(at for at in range(len(kept) + 1) if at == len(kept) or cache.can_trim(at))
            cache.trim(rows)
            del kept[rows:]
        assert cache.rows == len(kept) and cache.pending == 0
        twin = cache.fork()
        module(mx.array([[[77]]], dtype=mx.int64), twin)
        twin.commit([0])
    assert state(cache) == after(plain, kept)


def run(module: nn.Module, cache: RecurrentCache, n: int, accepted: int) -> None:
    module(mx.ones((1, n, 1), dtype=mx.int64), cache)
    cache.commit(range(accepted))


def restore_points(cache: RecurrentCache) -> list[int]:
    return [at for at in range(cache.rows + 2) if cache.can_trim(at)]


def test_newest_rows_and_checkpoints_can_be_gone_back_to_and_nothing_else() -> None:
    module, cache = Hashing(), RecurrentCache(1)
    note_updates(module, [])
    for n in (1, 2, 3):
        run(module, cache, n, n)
        cache.checkpoint()
    run(module, cache, 1, 1)
    run(module, cache, 5, 3)
    assert cache.rows == 10
    assert restore_points(cache) == [3, 6, 7, 8, 9, 10]
    cache.trim(8)
    assert state(cache) == after(Hashing(), [1] * 8)
    assert restore_points(cache) == [3, 6, 7, 8]
    run(module, cache, 4, 0)
    assert state(cache) == after(Hashing(), [1] * 8)
    assert restore_points(cache) == [3, 6, 7, 8]
    cache.trim(3)
    assert state(cache) == after(Hashing(), [1] * 3)
    assert restore_points(cache) == [3]


def test_a_fork_has_checkpoints_of_its_own() -> None:
    module, cache = Hashing(), RecurrentCache(1)
    note_updates(module, [])
    for _ in range(2):
        run(module, cache, 3, 3)
        cache.checkpoint()
    run(module, cache, 2, 2)
    before = restore_points(cache)
    assert before == [3, 6, 7, 8]
    twin = cache.fork()
    for _ in range(3):
        run(module, twin, 1, 1)
        twin.checkpoint()
    assert restore_points(cache) == before
    cache.trim(3)
    assert state(cache) == after(Hashing(), [1] * 3)


def test_prefill_is_not_remembered_row_by_row_and_old_states_are_let_go() -> None:
    module, cache = Hashing(), RecurrentCache(1)
    note_updates(module, [])
    for _ in range(4):
        run(module, cache, cache.most_rows + 1, cache.most_rows + 1)
        cache.checkpoint()
    assert restore_points(cache) == [3 * 257, 4 * 257]
    assert cache.nbytes == 2 * 8


def test_only_the_first_rows_of_a_chain_can_be_accepted() -> None:
    module, cache = Hashing(), RecurrentCache(1)
    note_updates(module, [])
    module(mx.ones((1, 3, 1), dtype=mx.int64), cache)
    with pytest.raises(AssertionError, match="chains"):
        cache.commit([0, 2])


def test_mlx_lms_own_caches_pass_through_noted_modules(tiny_target: Any) -> None:
    model = tiny_target("mamba", **CONFIGS["mamba"])
    want = model(mx.array([[1, 2, 3]]), cache=model.make_cache())
    Target(model)
    Target(model)  # noted twice
    cache = model.make_cache()
    assert mx.array_equal(model(mx.array([[1, 2, 3]]), cache=cache), want)
    assert type(model).__module__ == "mlx_lm.models.mamba"


@pytest.mark.parametrize("family", ["qwen3_5", "falcon_h1", "recurrent_gemma"])
def test_a_conversation_forks_is_restored_and_goes_back(family: str, tiny_target: Any) -> None:
    target = Target(tiny_target(family, **CONFIGS[family]))
    text = [(37 * i + 11) % 128 for i in range(60)]
    held = target.make_cache()
    target.extend(mx.array(text[:20]), held)
    held.checkpoint()
    target.extend(mx.array(text[20:45]), held)
    target.verify(DraftTree.chain(mx.array(text[45:52])), held)
    held.commit(range(5))
    assert (
        held.longest_restorable_prefix(50),
        held.longest_restorable_prefix(47),
        held.longest_restorable_prefix(44),
    ) == (50, 47, 20)
    assert held.longest_restorable_prefix(19) == 0

    def logits_after(cache: Any, rows: int) -> np.ndarray:
        return np.array(target.verify(DraftTree.chain(mx.array(text[rows : rows + 3])), cache)[0])

    def expected(rows: int) -> np.ndarray:
        whole = target.make_cache()
        target.extend(mx.array(text[:rows]), whole)
        return logits_after(whole, rows)

    copies = [held.fork(), target.make_cache()]
    copies[1].restore(held.arrays(), 50)
    for cache in (*copies, held):
        np.testing.assert_allclose(logits_after(cache, 50), expected(50), rtol=1e-3, atol=1e-4)
    for rows in (47, 20):
        held.trim(rows)
        np.testing.assert_allclose(logits_after(held, rows), expected(rows), rtol=1e-3, atol=1e-4)


def converse(
    model: nn.Module, turns: list[tuple[list[int], int]], speculate: bool = True
) -> list[int]:
    """Let one session answer prompts, each with some tokens; returns how many were reused."""
    truth, reused = list[int](), []
    drafter = partial(ScriptedDrafter, truth, wrong_every(5), 128)
    session = make_session(Target(model), drafter, Planners(chains_only=True))
    for prompt, n in turns:
        steps = generate_step(mx.array(prompt), model, max_tokens=n + 4)
        expected = [int(token) for token, _ in steps]
        truth[:] = [*prompt, *expected]
        options = {"max_tokens": n, "tree": TreeShape.chain(4), "prefill_step_size": 16}
        found = list(session.stream_generate(prompt, speculate=speculate, **options))
        assert [r.token for r in found] == expected[:n]
        reused.append(found[-1].stats.cached_tokens)
    return reused


@pytest.mark.parametrize(
    ("family", "speculate"),
    [
        ("qwen3_5", True),
        broad("qwen3_5", False),
        broad("falcon_h1", True),
        broad("longcat_flash_ngram", True),
    ],
)
def test_conversations_reuse_their_states_and_are_answered_as_by_mlx_lm(
    family: str, speculate: bool, tiny_target: Any
) -> None:
    model = tiny_target(family, **CONFIGS[family])
    first = [(7 * i + 3) % 128 for i in range(40)]
    steps = generate_step(mx.array(first), model, max_tokens=14)
    answer = [int(token) for token, _ in steps]
    second = [*first, *answer, 9, 8, 7, 6]
    turns = [
        (first, 14),
        (first, 14),  # the answer again
        (second, 6),  # on with the conversation
        (second, 6),
        ([*first, *answer[:7], 1, 2], 6),  # another answer was put in its place
        ([*second, 5], 6),
    ]
    # The newest token of the answer is run again; what is asked differently goes to a checkpoint.
    assert converse(model, turns, speculate) == [0, 39, 53, 57, 39, 39]


@pytest.mark.parametrize("n", [5, broad(6), broad(7), 8, broad(9)])
def test_an_answer_that_ends_inside_a_chain_is_gone_on_from_there(n: int, tiny_target: Any) -> None:
    model = tiny_target("qwen3_5", **CONFIGS["qwen3_5"])
    prompt = [(7 * i + 3) % 128 for i in range(30)]
    answer = [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=n)]
    second = [*prompt, *answer, 9, 8]
    assert converse(model, [(prompt, n), (second, 12)]) == [0, 29 + n]


def test_a_tree_that_branches_is_refused_before_anything_runs(tiny_target: Any) -> None:
    target = Target(tiny_target("lfm2", **CONFIGS["lfm2"]))
    drafter = partial(ScriptedDrafter, [], always_right, 128)
    session = make_session(target, drafter, Planners(chains_only=True))
    with pytest.raises(EagleError, match="width 2 was asked for.*verifies chains only"):
        session.stream_generate([1, 2], tree=TreeShape(4, 2, 8))


def test_a_head_on_a_hybrid_target_is_calibrated(
    tiny_target: Callable[..., nn.Module],
    head_config: HeadConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "CONTEXTS", (16, 64))
    monkeypatch.setattr(calibration, "MOST_SAMPLES", calibration.SAMPLES)
    monkeypatch.setattr(calibration, "_may_pay", lambda _: True)  # on a busy machine too
    sizes = {"hidden_size": 64, "target_hidden_size": 64, "target_vocab_size": 128}
    head = EagleHead(replace(head_config, **sizes))
    target = Target(tiny_target("qwen3_5", **CONFIGS["qwen3_5"]), taps=head.config.taps)
    costs = calibration.measure(target, EagleDrafter(head, target))
    assert costs.rows[:2] == [1, 2] and costs.contexts == (16, 64)
