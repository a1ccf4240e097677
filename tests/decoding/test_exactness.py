"""The promise: whatever is drafted, the tokens are those of stock mlx-lm, and so is the cache.

float32 on the CPU wheel, whose products are bitwise independent of the number of rows. By default
every policy meets one drafter, and some of them the real head as well; `--exactness` asks for all
drafters, more prompts and more tokens.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load as stock_load
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from cases import broad
from doubles import ScriptedDrafter, always_right, always_wrong
from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill
from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.drafters.base import Drafter, Lookup
from mlx_eagle.drafters.block import BlockDrafter
from mlx_eagle.drafters.draft_model import DraftModelDrafter
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.joined import JoinedDrafter
from mlx_eagle.drafters.markov import MarkovDrafter
from mlx_eagle.drafters.ngram import NgramDrafter
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.heads.config import BlockConfig
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.lookup_planner import LookupPlanner
from mlx_eagle.planner.planner import Planner
from mlx_eagle.planner.policy import FixedShape, Policy
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.tree import TreeShape

SHAPES: dict[str, TreeShape] = {f"chain of {n}": TreeShape.chain(n) for n in range(1, 8)} | {
    "tree of 8": TreeShape(4, 4, 8),
    "tree of 16": TreeShape(6, 4, 16),
    "tree of 60": TreeShape(6, 10, 60),
}
# Seconds to verify rows and to draft levels that make a planner draft a lot, and now and then.
FREE = dict.fromkeys(range(1, 17), (1.0,))
MACHINES = {
    "planner, rows free": Costs((0,), FREE, (1.0,), (0.01,) * 8, 0.0),
    "planner, rows dear": Costs.published(),
    "planner, waits dear": Costs((0,), FREE, (1.0,), tuple(0.4 * d for d in range(1, 9)), 0.39),
}
POLICIES = (*SHAPES, *MACHINES)
# In an order by which default combinations have lookup both with chains and with planners.
DRAFTERS = (
    "real head",
    "random head",
    "n-gram",
    "head and n-gram",
    "draft model and n-gram",
    "random block",
    "always wrong",
    "oracle",
    "draft model",
    "biased block",
)
# Prompts that policies share by default: each is decoded by mlx-lm once.
N_PROMPTS = 2
WITH_REAL_HEAD = ("tree of 16", "tree of 60", "planner, rows free")
MOST_TOKENS = 12
VOCABULARY = 4096


def make_policy(name: str, *, has_head: bool = True, has_lookup: bool = False) -> Policy:
    if name in SHAPES:
        return FixedShape(SHAPES[name])
    costs, depth = LiveCosts(MACHINES[name]), 8 * has_head
    if has_lookup:
        return LookupPlanner(costs, Acceptance(), Acceptance(), depth)
    return Planner(costs, Acceptance(), depth)


@pytest.fixture(scope="module")
def plain(fixtures: Path) -> Callable[..., Any]:
    """Stock mlx-lm on its own copy of the target: tokens, and the final cache."""
    model, _ = stock_load(str(fixtures / "pydoc-llama"))
    model.set_dtype(mx.float32)

    @cache
    def decode(prompt: tuple[int, ...], n: int) -> tuple[list[int], list[Any]]:
        state = make_prompt_cache(model)
        steps = generate_step(mx.array(prompt), model, max_tokens=n, prompt_cache=state)
        return [int(token) for token, _ in steps], state

    return decode


@pytest.fixture(scope="module")
def random_head(engine: Any) -> EagleHead:
    mx.random.seed(7)
    head = EagleHead(engine.head.config)
    ids = mx.array(mx.random.permutation(VOCABULARY)[: head.draft_to_target.size], dtype=mx.int32)
    head.draft_to_target = mx.sort(ids)
    return head


@pytest.fixture(scope="module")
def draft_model(fixtures: Path) -> DraftModel:
    """The target's own first layers, which often say what all of them say."""
    model, _ = stock_load(str(fixtures / "pydoc-llama"))
    model.set_dtype(mx.float32)
    model.model.layers = model.model.layers[:6]
    return DraftModel(model)


@pytest.fixture(scope="module")
def block_heads(engine: Any) -> dict[str, BlockHead]:
    """Random heads that draft a block, without and with DSpark's bias."""
    facts = engine.head.config.to_dict() | {"algorithm": "dflash", "mask_token_id": 1}
    facts |= {"draft_vocab_size": VOCABULARY, "own_embedding": False, "own_lm_head": False}
    facts |= {"num_hidden_layers": 2, "sliding_windows": [16, None]}
    facts |= {"causal_layers": [True, False], "window_from_root": False, "attention_sinks": False}
    facts |= {"block_size": 11, "root_predicts": True, "markov": "none", "markov_rank": None}
    biased = {"algorithm": "dspark", "markov": "rnn", "markov_rank": 16}
    mx.random.seed(8)
    kinds = {"random block": facts, "biased block": facts | biased}
    return {name: BlockHead(BlockConfig.from_dict(kind)) for name, kind in kinds.items()}


def combinations(extent: str) -> Iterator[tuple[int, str, str]]:
    """(prompt, drafter, policy): each policy with one drafter or two, or all with all prompts."""
    if extent == "quick":
        for index, policy in enumerate(POLICIES):
            other = DRAFTERS[1 + index % (len(DRAFTERS) - 1)]
            if policy in WITH_REAL_HEAD:
                yield index % N_PROMPTS, DRAFTERS[0], policy
            if policy != "tree of 60":
                yield index % N_PROMPTS, other, policy
        return
    for index, (turn, drafter) in product(range(60), enumerate(DRAFTERS)):
        rotated = [POLICIES[(index + 3 * turn) % len(POLICIES)]]
        yield from ((index, drafter, name) for name in (POLICIES if extent == "full" else rotated))


def n_compared(drafter: str, policy: str, extent: str) -> int:
    """How many tokens are decoded: where nothing is accepted every one takes a round.

    A round of a large tree takes long.
    """
    if extent != "quick":
        return 256
    if policy == "tree of 60":
        return 6
    if drafter in ("real head", "oracle"):
        return MOST_TOKENS
    return 3 if policy == "tree of 16" else 6


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "combination" in metafunc.fixturenames:
        extent = metafunc.config.getoption("--exactness")
        metafunc.parametrize(
            "combination", list(combinations(extent)), ids=lambda c: "-".join(map(str, c))
        )


@pytest.mark.bitwise
def test_tokens_and_cache_are_those_of_mlx_lm(
    combination: tuple[int, str, str],
    engine: Any,
    plain: Callable[..., Any],
    random_head: EagleHead,
    draft_model: DraftModel,
    block_heads: dict[str, BlockHead],
    prompts: list[str],
    request: pytest.FixtureRequest,
) -> None:
    index, drafter_name, policy_name = combination
    n = n_compared(drafter_name, policy_name, request.config.getoption("--exactness"))
    message = [{"role": "user", "content": prompts[index]}]
    prompt = engine.tokenizer.apply_chat_template(message, add_generation_prompt=True)
    # mlx-lm runs one token ahead, so its cache covers every token that is compared.
    expected, state = plain(tuple(prompt), max(n, MOST_TOKENS))
    truth, expected = [*prompt, *expected], expected[:n]
    drafter: Drafter = {
        "real head": lambda: EagleDrafter(engine.head, engine.target),
        "random head": lambda: EagleDrafter(random_head, engine.target),
        "draft model": lambda: DraftModelDrafter(draft_model, engine.target),
        "always wrong": lambda: ScriptedDrafter(truth, always_wrong, VOCABULARY),
        "oracle": lambda: ScriptedDrafter(truth, always_right, VOCABULARY),
        "n-gram": lambda: NgramDrafter(VOCABULARY, 255),
        "head and n-gram": lambda: JoinedDrafter(EagleDrafter(engine.head, engine.target)),
        "draft model and n-gram": lambda: JoinedDrafter(
            DraftModelDrafter(draft_model, engine.target)
        ),
        "random block": lambda: BlockDrafter(block_heads["random block"], engine.target),
        "biased block": lambda: MarkovDrafter(block_heads["biased block"], engine.target),
    }[drafter_name]()
    decoder = Decoder(
        engine.target, engine.target.make_cache(), drafter, TokenSelector(SeededSampler())
    )
    prefill(decoder, prompt)
    tokens: list[int] = []
    accepted = 0
    sources = {"has_head": drafter_name != "n-gram", "has_lookup": isinstance(drafter, Lookup)}
    for round_ in rounds(decoder, prompt[-1], make_policy(policy_name, **sources)):
        tokens += round_.tokens
        accepted += round_.n_accepted
        if len(tokens) >= n:
            break
    assert tokens[:n] == expected
    held = min(decoder.cache.rows, len(prompt) + n - 1)
    for ours, theirs in zip(decoder.cache.layers, state, strict=True):
        assert mx.array_equal(ours.keys[..., :held, :], theirs.keys[..., :held, :])
        assert mx.array_equal(ours.values[..., :held, :], theirs.values[..., :held, :])
    if drafter_name == "always wrong":
        assert accepted == 0
    if drafter_name == "draft model" and policy_name in SHAPES:
        assert accepted > 0
    if drafter_name == "oracle":  # a planner may find on this machine that little of it pays
        assert accepted >= (n // 2 if policy_name in SHAPES else 1)


@pytest.mark.bitwise
@pytest.mark.parametrize("shape", ["tree of 16", *map(broad, ["chain of 3", *MACHINES])])
def test_the_cache_equals_plain_decoding_after_every_single_commit(
    shape: str, engine: Any, plain: Callable[..., Any], prompts: list[str], is_quick: bool
) -> None:
    n_rounds = 3 if is_quick else 20
    prompt = engine.tokenizer.encode(prompts[1])
    _, state = plain(tuple(prompt), 7 * n_rounds + 10)
    drafter = EagleDrafter(engine.head, engine.target)
    decoder = Decoder(
        engine.target, engine.target.make_cache(), drafter, TokenSelector(SeededSampler())
    )
    prefill(decoder, prompt)
    stream = rounds(decoder, prompt[-1], make_policy(shape))
    for _ in zip(range(n_rounds), stream, strict=False):
        held = decoder.cache.rows
        for ours, theirs in zip(decoder.cache.layers, state, strict=True):
            assert mx.array_equal(ours.keys[..., :held, :], theirs.keys[..., :held, :])
            assert mx.array_equal(ours.values[..., :held, :], theirs.values[..., :held, :])
    assert decoder.cache.rows >= len(prompt) - 1 + n_rounds


SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.0, "seed": 1, "top_p": 0.9},
    {"temperature": 0.7, "seed": 0},
    {"temperature": 1.3, "seed": 2, "top_k": 40, "min_p": 0.02},
]
CHAIN, TREE = SHAPES["chain of 3"], SHAPES["tree of 8"]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (SAMPLED[0], TREE),
        broad(SAMPLED[0], CHAIN),
        *(broad(options, shape) for options in SAMPLED[1:] for shape in (CHAIN, TREE)),
    ],
    ids=str,
)
def test_sampled_text_with_speculation_equals_sampled_text_without(
    options: dict[str, Any], shape: TreeShape, engine: Any, prompts: list[str], is_quick: bool
) -> None:
    message = [{"role": "user", "content": prompts[options["seed"]]}]
    options = options | {"max_tokens": 12 if is_quick else 100, "ignore_eos": True}
    want = engine.generate(message, speculate=False, **options).tokens
    result = engine.generate(message, tree=shape, **options)
    assert result.tokens == want
    assert result.stats.accepted > 0


def test_nothing_in_the_model_changed_but_its_classes(fixtures: Path, engine: Any) -> None:
    """The tapped target still holds the parameters that it was loaded with."""
    model, _ = stock_load(str(fixtures / "pydoc-llama"))
    model.set_dtype(mx.float32)
    want = dict(tree_flatten(model.parameters()))
    for name, value in tree_flatten(engine.target.model.parameters()):
        assert mx.array_equal(value, want[name]), name
