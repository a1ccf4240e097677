"""A small random target with states and with rows (Qwen3.5's layers), and a random head."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.heads.eagle import EagleHead
from tiny_models import build_target, tiny_head_config

FAMILIES = Path(__file__).parents[1] / "data" / "families.json"
FAMILY = "qwen3_5"


def make_recurrent_pair(n_tokens: int, words: list[int]) -> tuple[nn.Module, EagleHead]:
    """Return the target, in float32, and its head.

    Args:
        n_tokens: of the vocabulary.
        words: the tokens that the head drafts.
    """
    sizes = json.loads(FAMILIES.read_text())["recurrent"][FAMILY]["text_config"]
    model = build_target(FAMILY, text_config=sizes | {"vocab_size": n_tokens})
    size, n_layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    mx.random.seed(4)
    config = replace(
        tiny_head_config(),
        hidden_size=size,
        target_hidden_size=size,
        target_vocab_size=n_tokens,
        draft_vocab_size=len(words),
        taps=tuple(range(1, n_layers)),
    )
    head = EagleHead(config)
    head.draft_to_target = mx.array(words, dtype=mx.int32)
    mx.eval(model.parameters(), head.parameters())
    return model, head
