"""The loop with a GPU's rounding: where a text leaves plain decoding's, it was a near-tie.

Rows that run together round otherwise than alone there, so that the likelier of two tokens that are
all but equally likely may be the other one. Nothing else may change, and nothing may break.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from cases import broad
from doubles import Letters, make_engine
from mlx_eagle.tree_shape import TreeShape
from noisy import noise_on

N_TOKENS, FEW_TOKENS = 40, 24  # by default few
CHAIN, TREE = TreeShape.chain(3), TreeShape(3, 2, 6)
NEAR = 0.06  # of the spread of the logits: noise adds up over the layers
# Where experts are chosen by a near-tie, noise makes a larger difference, and only now and then.
NEAR_OF_EXPERTS, N_TRIES = 0.15, 12


def gap(model: Any, tokens: list[int], pair: tuple[int, int]) -> float:
    """Return how far apart two tokens are after these, in units of the spread of the logits.

    The model rounds otherwise every time.
    """
    logits = model(mx.array([tokens]), cache=make_prompt_cache(model))[0, -1]
    values = np.array(logits.astype(mx.float32))
    return float(abs(values[pair[0]] - values[pair[1]]) / values.std())


@pytest.mark.parametrize(
    ("tree", "architecture", "dtype"),
    [
        broad(CHAIN, "llama", mx.bfloat16),
        (TREE, "llama", mx.bfloat16),
        broad(CHAIN, "qwen3_moe", mx.float32),
        broad(TREE, "qwen3_moe", mx.float32),  # experts run in float32 only on this backend
        *(broad(tree, "llama", mx.float16) for tree in (CHAIN, TREE)),
        *(broad(tree, "gemma3_text", mx.bfloat16) for tree in (CHAIN, TREE)),
        *(broad(tree, "gemma3_text", mx.float16) for tree in (CHAIN, TREE)),
    ],
    ids=str,
)
def test_what_differs_from_plain_decoding_is_a_near_tie(
    tree: TreeShape,
    dtype: mx.Dtype,
    architecture: str,
    tiny_target: Callable[..., Any],
    head_config: Any,
    is_quick: bool,
) -> None:
    model = tiny_target(architecture)
    model.set_dtype(dtype)
    n_different = 0
    with noise_on(model):
        engine = make_engine(model, head_config, Letters())
        prompts, n = range(3, 5 if is_quick else 23), FEW_TOKENS if is_quick else N_TOKENS
        for first in prompts:
            prompt = [first, 40, 2 * first, 7]
            options: dict[str, Any] = {"max_tokens": n, "ignore_eos": True}
            plain = engine.generate(prompt, speculate=False, **options).tokens
            drafted = engine.generate(prompt, tree=tree, **options).tokens
            assert len(drafted) == len(plain) == n
            pairs = list(zip(plain, drafted, strict=True))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if at is not None:
                n_different += 1
                before = [*prompt, *plain[:at]]
                least = min(gap(model, before, pairs[at]) for _ in range(N_TRIES))
                assert least < (NEAR_OF_EXPERTS if architecture == "qwen3_moe" else NEAR)
    assert n_different < len(prompts), "some texts of random weights meet no near-tie"
