"""Targets that are not plain: the tokens of mlx-lm for every family, with trees or with chains.

Tiny random float32 models of mlx-lm's own code; windows, sparse attention and prefill chunks are
much shorter than the texts. `data/families.json` holds what each family needs beyond `SMALL` of
tiny_models.py: "trees" verify trees, "recurrent" chains because of their states, "sequential"
chains because branches break their code.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from cases import broad, narrowed
from doubles import Cycle, ScriptedDrafter, always_right, always_wrong
from mlx_eagle.cache.recurrent import RecurrentCache
from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill_steps
from mlx_eagle.decoding.rounds import Decoder, Round
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.planner import CHILDREN, Planner
from mlx_eagle.planner.policy import Policy
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.target.self_check import check_tree_verification
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape

KINDS = json.loads((Path(__file__).parents[1] / "data" / "families.json").read_text())
FAMILIES = {name: config for kind in KINDS.values() for name, config in kind.items()}
# Two or three of every kind of state, of what breaks branches, of experts and of windows.
FEW = {
    *("mamba", "qwen3_5", "lfm2", "longcat_flash_ngram", "minimax_m3_vl", "gpt2"),
    "mixture of experts (qwen3_moe)",
    "mixture of experts, latent attention (deepseek_v3)",
    "sliding windows, attention sinks, experts (gpt_oss)",
    "sliding windows (gemma3_text)",
    "sliding windows, keys shared by layers (gemma4_text)",
    "tied embeddings (llama)",
}
N_TOKENS, VOCABULARY = 20, 128
PROMPT = [(37 * i + 11) % VOCABULARY for i in range(36)]
CHAINS = [TreeShape.chain(n) for n in (1, 4, 2, 0, 0, 7, 3)]
TREES = [*CHAINS, TreeShape(4, 4, 8), TreeShape(6, 4, 16)]
FREE = Costs((0,), dict.fromkeys(range(1, 9), (1.0,)), (1.0,), (0.01,) * 8, 0.0)
Build = Callable[..., nn.Module]


def scripted(name: str, truth: list[int]) -> ScriptedDrafter:
    random = np.random.default_rng(5)
    rules = {"oracle": always_right, "always wrong": always_wrong}
    n_right = rules.get(name, lambda position: int(random.integers(0, 5)))
    return ScriptedDrafter(truth, n_right, VOCABULARY)


def awake(model: nn.Module) -> nn.Module:
    """Give weights that mlx-lm leaves at zero or one random values, so that nothing is idle."""
    mx.random.seed(2)
    idle = [(n, w) for n, w in tree_flatten(model.parameters()) if w.size > 1 and not w.var()]
    model.load_weights([(n, w + 0.3 * mx.random.normal(w.shape)) for n, w in idle], strict=False)
    return model


def fresh(tokens: mx.array, logits: mx.array) -> mx.array:
    """A logits processor: none of the newest eight tokens again, or random models repeat one."""
    logits[..., tokens[-8:]] = -mx.inf
    return logits


@pytest.fixture(scope="module")
def loaded(tiny_target: Build) -> Callable[[str], tuple[Target, list[int]]]:
    """A family's target, checked, and what mlx-lm decodes with it after the prompt."""

    @cache
    def load(family: str) -> tuple[Target, list[int]]:
        architecture = re.sub(r".*\((\w+)\)", r"\1", family)
        model = awake(tiny_target(architecture, **FAMILIES[family]))
        options = {"max_tokens": N_TOKENS + 9, "logits_processors": [fresh]}
        expected = [int(t) for t, _ in generate_step(mx.array(PROMPT), model, **options)]
        target = Target(model)
        check_tree_verification(target)
        assert target.chains_only == (family not in KINDS["trees"])
        return target, expected

    return load


def decode(target: Target, drafter: ScriptedDrafter, policy: Policy) -> tuple[list[Round], Decoder]:
    selector = TokenSelector(SeededSampler(), [fresh], history=PROMPT[:-1])
    decoder = Decoder(target, target.make_cache(), drafter, selector)
    for _ in prefill_steps(decoder, PROMPT, 16):
        pass
    made: list[Round] = []

    def is_end(tokens: Sequence[int]) -> bool:
        return sum(len(r.tokens) for r in made) + len(tokens) >= N_TOKENS

    for round_ in rounds(decoder, PROMPT[-1], policy, is_end):
        is_last = is_end(round_.tokens)
        made.append(round_)
        if is_last:
            break
    return made, decoder


def pairs() -> Iterator[Any]:
    """(family, drafter): few families with one drafter, the first of each kind with two."""
    first = {next(iter(kind)) for kind in KINDS.values()}
    for family, name in product(FAMILIES, ("now and then right", "oracle", "always wrong")):
        is_few = name == "now and then right" and family in first | FEW
        is_few |= name == "oracle" and family in first
        yield (family, name) if is_few else broad(family, name)


@pytest.mark.parametrize(("family", "name"), list(pairs()))
def test_tokens_and_states_are_those_of_mlx_lm(family: str, name: str, loaded: Any) -> None:
    target, expected = loaded(family)
    drafter = scripted(name, [*PROMPT, *expected])
    made, decoder = decode(target, drafter, Cycle(CHAINS if target.chains_only else TREES))
    tokens = [token for round_ in made for token in round_.tokens]
    assert tokens[:N_TOKENS] == expected[:N_TOKENS]
    assert len(set(tokens)) > 8
    accepted = sum(round_.n_accepted for round_ in made)
    assert accepted == 0 if name == "always wrong" else accepted > 6
    state = make_prompt_cache(target.model)
    target.model(mx.array([[*PROMPT, *tokens][: decoder.cache.rows]]), cache=state)
    stock = [part for layer in state for part in getattr(layer, "caches", [layer])]
    for ours, theirs in zip(decoder.cache.parts, stock, strict=True):
        for index in range(len(getattr(theirs, "cache", []))):
            np.testing.assert_allclose(ours[index], theirs[index], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_5", "minimax_m3_vl", "mixture of experts (qwen3_moe)"])
def test_a_planner_makes_chains_where_only_chains_are_verified(family: str, loaded: Any) -> None:
    target, expected = loaded(family)
    drafter = scripted("now and then right", [*PROMPT, *expected])
    n_children = 1 if target.chains_only else CHILDREN
    planner = Planner(LiveCosts(FREE), Acceptance(), 8, n_children)
    made, _ = decode(target, drafter, planner)
    tokens = [token for round_ in made for token in round_.tokens]
    assert tokens[:N_TOKENS] == expected[:N_TOKENS]
    assert max(round_.n_drafted for round_ in made) > 2
    assert all(round_.tree.is_chain for round_ in made) == target.chains_only


@pytest.mark.parametrize("family", narrowed(KINDS["recurrent"], FEW))
def test_a_state_that_does_not_go_back_is_noticed_at_load(
    family: str, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so the state of every family matters to its logits."""
    target, _ = loaded(family)
    go_back = RecurrentCache.commit

    def keep_all(self: RecurrentCache, path: Sequence[int]) -> None:
        self._updates = []
        go_back(self, path)

    monkeypatch.setattr(RecurrentCache, "commit", keep_all)
    with pytest.raises(UnsupportedTargetError, match=f"mlx-lm's {family} model.*rejected"):
        check_tree_verification(target)


def test_a_state_that_is_updated_out_of_sight_is_refused_by_name(tiny_target: Build) -> None:
    """Its convolution lies in attention that has two caches, which cannot be run again alone."""
    sizes = {"sliding_window": 8, "sliding_window_layers": [1, 3], "conv_window": 2}
    model = awake(tiny_target("baichuan_m1", **sizes))
    with pytest.raises(UnsupportedTargetError, match="mlx-lm's baichuan_m1 model.*rejected"):
        check_tree_verification(Target(model))


def test_rejected_tokens_cost_no_further_forward(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, expected = loaded("qwen3_5")
    passes, forward = list[int](), type(target.model).__call__

    def count(self: nn.Module, tokens: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        passes.append(tokens.shape[1])
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(type(target.model), "__call__", count)
    drafter = scripted("now and then right", [*PROMPT, *expected])
    made, _ = decode(target, drafter, Cycle([TreeShape.chain(4)]))
    assert passes == [16, 16, 3, 1] + [5] * (len(made) - 1)
    assert len(made) < 0.6 * N_TOKENS, "the drafter is right now and then"


@pytest.mark.parametrize(
    "family", narrowed(["qwen3_5", "rwkv7", "falcon_h1", "lfm2_moe"], ["qwen3_5", "rwkv7"])
)
def test_quantized_targets_with_states_verify_chains(family: str, tiny_target: Build) -> None:
    model = awake(tiny_target(family, **FAMILIES[family]))
    nn.quantize(model, 32, 4, class_predicate=lambda _, m: can_quantize(m))
    assert any(isinstance(m, nn.QuantizedLinear) for _, m in model.named_modules())
    check_tree_verification(Target(model))


def can_quantize(module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0
