"""What a draft model proposes, against mlx-lm's own model and caches on every path by itself."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from cases import broad
from doubles import perturbed
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.cache.window import WindowKVCache
from mlx_eagle.decoding.prefill import prefill
from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.drafters.draft_model import DraftModelDrafter
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, TreeShape, check_structure
from tiny_models import build_target

FAMILIES = json.loads((Path(__file__).parents[1] / "data" / "families.json").read_text())
PROMPT = [5, 9, 17, 3, 44, 2, 61, 8]
# A model whose rows branch, one with a window of 8 positions, one whose layers are recurrent.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {},
    "lfm2": FAMILIES["recurrent"]["lfm2"],
}


def stock_log_probs(network: nn.Module, tokens: list[int]) -> np.ndarray:
    """Log-probabilities [V] of the token after `tokens`, by mlx-lm alone."""
    logits = network(mx.array([tokens]), cache=make_prompt_cache(network))[0, -1]
    return np.array(logits - mx.logsumexp(logits)).astype(np.float64)


def drafter_of(kind: str, target: Target, tokens: list[int], n: int) -> DraftModelDrafter:
    """A drafter that has read n tokens as a prompt gives them; the n-th is the root."""
    drafter = DraftModelDrafter(DraftModel(build_target(kind, **KINDS[kind])), target)
    decoder = Decoder(target, target.make_cache(), drafter, TokenSelector(SeededSampler()))
    prefill(decoder, tokens[:n])
    return drafter


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build_target("llama"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_what_mlx_lm_would_go_on_with(kind: str, target: Target) -> None:
    drafter = drafter_of(kind, target, PROMPT, len(PROMPT))
    tree = drafter.draft(mx.array(PROMPT[-1:]), TreeShape.chain(5))
    network = drafter.model.network
    steps = generate_step(mx.array(PROMPT), network, max_tokens=5)
    assert tree.tokens.tolist() == [PROMPT[-1], *(int(token) for token, _ in steps)]
    levels = list(drafter.greedy_path(3, 4))
    assert [tokens[0].item() for _, tokens in levels] == tree.tokens.tolist()[1:5]
    assert drafter.draft(mx.array([1]), PLAIN).n_nodes == 1
    assert drafter.cache.rows == len(PROMPT), "drafted rows are forgotten"


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_tree_holds_the_likeliest_paths(kind: str, target: Target) -> None:
    shape = TreeShape(3, 3, 9)
    drafter = drafter_of(kind, target, PROMPT, len(PROMPT))
    tree = drafter.draft(mx.array(PROMPT[-1:]), shape)
    network = drafter.model.network
    made: dict[tuple[int, ...], float] = {}
    frontier: list[tuple[int, ...]] = [()]
    for _ in range(shape.depth):
        level: dict[tuple[int, ...], float] = {}
        for path in frontier:
            scores = stock_log_probs(network, [*PROMPT, *path])
            best = np.argsort(-scores)[: shape.width]
            level |= {(*path, int(t)): made.get(path, 0.0) + scores[t] for t in best}
        made |= level
        frontier = sorted(level, key=lambda path: -level[path])[: shape.width]
    kept = sorted(made, key=lambda path: -made[path])[: shape.nodes]
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        paths.append((*paths[parent], token))
    assert set(paths[1:]) == set(kept)
    assert tree.depths.tolist() == check_structure(tree.parents.tolist())
    scores = [made[path] for path in paths[1:]]
    np.testing.assert_allclose(tree.log_probs.tolist()[1:], scores, rtol=1e-4, atol=1e-4)


def test_a_tree_of_more_rows_than_a_windows_slack_is_drafted_all_the_same(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every level is written beside the ones before, and all are forgotten together."""
    root, shape = mx.array(PROMPT[-1:]), TreeShape(4, 6, 20)
    want = drafter_of("gemma3_text", target, PROMPT, len(PROMPT)).draft(root, shape)
    mx.eval(want)
    for slack in (8, 5):  # fewer than all levels, and than one
        monkeypatch.setattr(WindowKVCache, "slack", slack)
        monkeypatch.setattr(WindowKVCache, "margin", 3)
        drafter = drafter_of("gemma3_text", target, PROMPT[:6], 6)
        for token in PROMPT[6:]:
            drafter.observe(None, mx.array([token]))
        for _ in range(2):
            found = drafter.draft(root, shape)
            assert found.tokens.tolist() == want.tokens.tolist()
            assert mx.allclose(found.log_probs, want.log_probs, atol=1e-4)


def test_a_fixed_tree_holds_the_ranked_tokens_after_every_path(target: Target) -> None:
    fixed = StaticTree.of([(1, 0, 1), (0, 1)])
    drafter = drafter_of("llama", target, PROMPT, len(PROMPT))
    tree = drafter.draft_static(mx.array(PROMPT[-1:]), fixed)
    found = dict(zip([(), *fixed.paths], tree.tokens.tolist(), strict=True))
    for path in fixed.paths:
        above = [found[path[:depth]] for depth in range(1, len(path))]
        ranked = np.argsort(-stock_log_probs(drafter.model.network, [*PROMPT, *above]))
        assert found[path] == ranked[path[-1]]


@pytest.mark.parametrize("kind", KINDS)
def test_after_any_way_back_it_drafts_as_one_that_never_went_on(kind: str, target: Target) -> None:
    """Also where a window or a recurrent state has forgotten what it needs: it is read again."""
    rng = np.random.default_rng(3)
    text = [int(t) for t in rng.integers(0, 128, 60)]
    drafter = drafter_of(kind, target, text, 40)
    for n in (37, 6):
        drafter.observe(None, mx.array(text[drafter.rows + 1 : drafter.rows + 4]))
        drafter.trim(n)
        assert drafter.rows == n
        twin = drafter.fork()
        twin.observe(None, mx.array([1, 2]))
        drafter.observe(None, mx.array(text[n + 1 : n + 3]))
        fresh = drafter_of(kind, target, text, n + 3)
        for shape in (TreeShape.chain(3), TreeShape(2, 1, 2)):
            found, want = (d.draft(mx.array(text[n + 2 : n + 3]), shape) for d in (drafter, fresh))
            assert found.tokens.tolist() == want.tokens.tolist()
            assert mx.allclose(found.log_probs, want.log_probs, atol=1e-4)


def test_a_recurrent_model_goes_back_to_its_prompt_after_any_answer(target: Target) -> None:
    """Also where many tokens of the answer were observed at once, after plain rounds."""
    rng = np.random.default_rng(3)
    text = [int(t) for t in rng.integers(0, 128, 220)]
    drafter = drafter_of("lfm2", target, text, 100)
    drafter.checkpoint()
    for end in (140, 180, 220):
        drafter.observe(None, mx.array(text[drafter.rows + 1 : end]))
    drafter.trim(99)
    assert drafter.cache.rows == 100, "nothing of the prompt is read again"
    drafter.observe(None, mx.array(text[100:102]))
    fresh = drafter_of("lfm2", target, text, 102)
    found, want = (d.draft(mx.array(text[101:102]), TreeShape.chain(3)) for d in (drafter, fresh))
    assert found.tokens.tolist() == want.tokens.tolist()


@pytest.mark.parametrize("kind", ["llama", broad("lfm2")])
def test_where_its_context_is_full_it_reads_and_drafts_no_more(kind: str, target: Target) -> None:
    network = build_target(kind, **KINDS[kind])
    drafter = DraftModelDrafter(DraftModel(network, max_context=12), target)
    free = DraftModelDrafter(DraftModel(build_target(kind, **KINDS[kind])), target)
    text = [(7 * i + 3) % 128 for i in range(20)]
    fixed, sampler = StaticTree.of([(0, 0)]), RatioSampler(temperature=1.0, seed=3)
    for each in (drafter, free):
        each.begin(mx.array(text[:1]))
        each.observe(None, mx.array(text[1:10]))
    for n, depth in ((10, 3), (11, 2), (12, 1), (13, 0), (14, 0)):
        root = mx.array(text[n - 1 : n])
        for levels in (1, 2, 3):
            found, want = (d.draft(root, TreeShape.chain(levels)) for d in (drafter, free))
            n_kept = levels + 1 if levels <= depth else 1
            assert found.tokens.tolist() == want.tokens.tolist()[:n_kept]
        assert len(list(drafter.greedy_path(2, 3))) == depth
        for drawn in (drafter.draft_static(root, fixed), drafter.draw(root, fixed, sampler)):
            assert drawn.num_draft_tokens == (2 if depth >= 2 else 0)
        assert drafter.cache.rows == min(n, 12) and drafter.rows == n - 1
        for each in (drafter, free):
            each.observe(None, mx.array(text[n : n + 1]))
    twin = DraftModelDrafter(drafter.model, target)
    twin.restore({name: mx.array(a) for name, a in drafter.arrays().items()}, drafter.rows)
    for each in (twin, drafter):
        each.trim(10)
        each.observe(None, mx.array(text[11:12]))
        assert each.draft(mx.array(text[11:12]), TreeShape.chain(1)).num_draft_tokens == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_goes_on_as_if_nothing_had_happened(kind: str, target: Target) -> None:
    drafter = drafter_of(kind, target, PROMPT, len(PROMPT) - 2)
    drafter.trim(3)  # in a recurrent model rows are missing now
    held = {name: mx.array(array) for name, array in drafter.arrays().items()}
    twin = DraftModelDrafter(drafter.model, target)
    twin.restore(held, drafter.rows)
    for each in (twin, drafter):
        each.observe(None, mx.array(PROMPT[4:]))
    shape = TreeShape.chain(4)
    found, want = (each.draft(mx.array(PROMPT[-1:]), shape) for each in (twin, drafter))
    assert found.tokens.tolist() == want.tokens.tolist()
    for damaged in ({}, {**held, "tokens": held["tokens"][:, :, :-1]}):
        with pytest.raises(ValueError, match="no tokens for 3 rows"):
            DraftModelDrafter(drafter.model, target).restore(damaged, 3)


def test_a_model_whose_rows_cannot_branch_says_so(target: Target) -> None:
    drafter = drafter_of("lfm2", target, PROMPT, 4)
    assert drafter.max_width == 1
    assert drafter_of("llama", target, PROMPT, 4).max_width == 128


def test_ids_that_the_target_does_not_know_are_not_proposed(tiny_target: Any) -> None:
    target = Target(tiny_target("llama"))
    draft = tiny_target("llama", vocab_size=200)
    draft.lm_head.weight[128:] = 100 * draft.lm_head.weight[128:]
    drafter = DraftModelDrafter(DraftModel(draft), target)
    drafter.begin(mx.array([1]))
    drafter.observe(None, mx.array([2, 3]))
    tree = drafter.draft(mx.array([3]), TreeShape(2, 4, 12))
    assert mx.max(tree.tokens).item() < 128


def test_other_caches_are_tried_once(tiny_target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = DraftModel(tiny_target("llama", head_dim=32)), list[int]()
    run = type(model.network).__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(model.network), "__call__", counted)
    model.make_cache(KVOptions(bits=8, group_size=32))
    assert calls, "whether the model's code can read it is tried"
    calls.clear()
    held = model.make_cache(KVOptions(bits=8, group_size=32)), model.make_cache()
    assert not calls and held[0] is not held[1]
    assert len(list(model.named_modules())) == len(list(model.network.named_modules())) + 1


def test_its_cache_is_quantized_where_the_targets_is(tiny_target: Any) -> None:
    target = Target(tiny_target("llama", head_dim=32))
    model = DraftModel(perturbed(tiny_target("llama", head_dim=32), 0.1))
    sizes = []
    for bits in (None, 4):
        target.kv = KVOptions(bits=bits, group_size=32)
        drafter = DraftModelDrafter(model, target)
        drafter.begin(mx.array([1]))
        drafter.observe(None, mx.array([2, 3]))
        assert drafter.draft(mx.array([3]), TreeShape(2, 2, 4)).n_nodes == 5
        sizes.append(drafter.nbytes)
    assert sizes[1] < 0.4 * sizes[0]
