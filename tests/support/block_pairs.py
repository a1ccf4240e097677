"""Targets with heads that draft blocks, for the tests of what is drafted with them."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_eagle.heads.block import BlockHead
from mlx_eagle.heads.config import BlockConfig
from tiny_models import tiny_head_config
from turning_pair import SHARPNESS, SIZE, embeddings, make_turning_pair, rotation

N_TOKENS = 192
WORDS = list(range(8, N_TOKENS))
PROMPT = [(11 * i + 5) % len(WORDS) + 8 for i in range(30)]


def block_config(**changes: Any) -> BlockConfig:
    """The facts of a tiny head: two layers, one with a window, a block of five rows."""
    facts = tiny_head_config().to_dict() | {
        "algorithm": "dflash",
        "hidden_size": SIZE,
        "target_hidden_size": SIZE,
        "target_vocab_size": N_TOKENS,
        "draft_vocab_size": N_TOKENS,
        "num_hidden_layers": 2,
        "sliding_windows": [6, None],
        "qk_norm": True,
        "own_lm_head": False,
        "mask_token_id": 3,
        "taps": [1, 2, 4],
        "block_size": 5,
        "root_predicts": False,
        "causal_layers": [True, False],
        "window_from_root": False,
        "attention_sinks": False,
        "markov": "none",
        "markov_rank": None,
    }
    return BlockConfig.from_dict(facts | changes)


KINDS: dict[str, dict[str, Any]] = {
    "dflash": {},
    "dflash, first row": {"root_predicts": True, "causal_layers": [False, False]}
    | {"window_from_root": True},
    "dflash, causal": {"causal_layers": [True, True], "attention_sinks": True},
    "dspark": {"algorithm": "dspark", "markov": "vanilla", "markov_rank": 8},
    "dspark, gated": {"algorithm": "dspark", "markov": "gated", "markov_rank": 8},
    "dspark, rnn": {"algorithm": "dspark", "markov": "rnn", "markov_rank": 8}
    | {"root_predicts": True},
}


def random_block_head(name: str, **changes: Any) -> BlockHead:
    """A random head of one kind."""
    mx.random.seed(6)
    head = BlockHead(block_config(**KINDS[name] | changes))
    if head.config.attention_sinks:
        for layer in head.layers:
            layer.self_attn.attention_sink_bias = mx.random.normal((4,))
    if "markov_head" in head:  # what follows from a token, and from all before it, must show
        for name, layer in head.markov_head.children().items():
            layer.weight = layer.weight * (3.0 if name.startswith("markov") else 6.0)
    mx.eval(head.parameters())
    return head


def turning_dspark() -> tuple[nn.Module, BlockHead]:
    """The target of `turning_pair`, and a head whose bias knows the order of its words."""
    model, _ = make_turning_pair(N_TOKENS, WORDS)
    rng = np.random.default_rng(5)
    turn = rotation(rng)
    table = embeddings(turn, N_TOKENS, WORDS, rng)
    config = block_config(**KINDS["dspark"] | {"markov_rank": SIZE, "root_predicts": True})
    mx.random.seed(6)
    head = BlockHead(config)
    head.norm.weight = mx.full((SIZE,), 0.05)  # what the rows say hardly matters
    head.markov_head.markov_w1.weight = mx.array(table, dtype=mx.float32)
    output = np.zeros_like(table)
    output[WORDS] = (table @ turn)[WORDS] * SHARPNESS
    head.markov_head.markov_w2.weight = mx.array(output, dtype=mx.float32)
    mx.eval(head.parameters())
    return model, head


def with_few_tokens(head: BlockHead, tokens: list[int]) -> BlockHead:
    """The same head with an output layer of its own for a few tokens."""
    config = replace(head.config, draft_vocab_size=len(tokens), own_lm_head=True)
    few = BlockHead(config)
    few.update({name: head[name] for name in ("fc", "hidden_norm", "layers", "norm")})
    few.draft_to_target = mx.array(tokens, dtype=mx.int32)
    return few
