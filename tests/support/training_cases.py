"""Tiny random heads and batches on which an objective and the PyTorch reference must agree."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_eagle.heads.config import HeadConfig, MedusaConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.training.batch import Batch

# One digit a token: its text. Texts end early, at the row's end, and after one token only.
TEXTS = ("1111111122200", "1233333333333")
# What EAGLE-3 heads can have, one after another.
FLAGS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": True, "norm_output": True, "fc_norm": True},
    {"num_hidden_layers": 2, "sliding_windows": (4, None), "norm_before_fc": True},
    {"qk_norm": True, "attention_bias": True, "fc_bias": True, "mlp_bias": True},
    {"rope_interleaved": True, "own_embedding": True, "attention_output_bias": True},
    {"sliding_windows": (3,), "double_norm": True, "rope_dims": 4},
    {"own_lm_head": False, "draft_vocab_size": 64, "num_key_value_heads": 4},
    {"fuse_taps": False, "taps": (5,), "hidden_norm": False},
]
# What makes an EAGLE-1 head of the tiny EAGLE-3 one.
EAGLE: dict[str, Any] = {
    "algorithm": "eagle",
    "taps": (5,),
    "fuse_taps": False,
    "draft_vocab_size": 64,
    "own_lm_head": False,
    "input_layernorm": False,
    "hidden_norm": False,
    "final_norm": False,
    "fc_bias": True,
}


class TinyTarget(NamedTuple):
    """What an objective asks of a target: its table, and its output layer as a function."""

    embedding: nn.Embedding
    output: nn.Linear

    @property
    def unembed(self) -> nn.Linear:
        return self.output


def tiny_target(vocab: int = 64, width: int = 32) -> TinyTarget:
    """Return a random table and output layer, spread so that distributions are not flat."""
    mx.random.seed(3)
    target = TinyTarget(nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False))
    target.embedding.weight = 3 * target.embedding.weight
    target.output.weight = 4 * target.output.weight
    return target


def shaken(head: Any, amount: float = 0.2) -> Any:
    """Return the head with noise on its norms and biases, which start as constants."""
    arrays: Any = tree_flatten(head.parameters())
    noisy = [
        (n, v + amount * mx.random.normal(v.shape))
        for n, v in arrays
        if v.ndim == 1 and v.dtype == mx.float32
    ]
    head.load_weights(noisy, strict=False)
    mx.eval(head.parameters())
    return head


def eagle_head(config: HeadConfig, **flags: Any) -> EagleHead:
    """Return a random head; its draft ids leave out the smallest ids of the target."""
    config = replace(config, **flags)
    mx.random.seed(1)
    head: EagleHead = shaken(EagleHead(config))
    first = config.target_vocab_size - config.draft_vocab_size
    head.draft_to_target = mx.arange(config.draft_vocab_size, dtype=mx.int32) + first
    return head


def medusa_head(**flags: Any) -> MedusaHead:
    """Return random Medusa heads for `tiny_target`."""
    config: dict[str, Any] = {
        "algorithm": "medusa",
        "hidden_size": 32,
        "target_hidden_size": 32,
        "target_vocab_size": 64,
        "draft_vocab_size": 48,
        "num_heads": 3,
        "num_layers": 2,
        "block_bias": True,
        "own_lm_heads": True,
        "taps": (5,),
    }
    mx.random.seed(1)
    head: MedusaHead = shaken(MedusaHead(MedusaConfig(**config | flags)))
    n_draft = head.config.draft_vocab_size
    head.draft_to_target = mx.arange(n_draft, dtype=mx.int32) + (64 - n_draft)
    return head


def random_batch(config: Any, target: TinyTarget, texts: tuple[str, ...] = TEXTS) -> Batch:
    """Return a batch of the given texts; heads that read one final state get it as their tap."""
    random = np.random.default_rng(7)
    shape, width = (len(texts), len(texts[0])), config.target_hidden_size
    final = mx.array(random.standard_normal((*shape, width), dtype=np.float32))
    n_taps = len(config.taps)
    taps = mx.array(random.standard_normal((*shape, n_taps * width), dtype=np.float32))
    return Batch(
        tokens=mx.array(random.integers(0, config.target_vocab_size, shape, dtype=np.int32)),
        taps=final if config.taps == (5,) else taps,
        final=final,
        choices=mx.argmax(target.unembed(final), axis=-1).astype(mx.int32),
        texts=mx.array([[int(digit) for digit in row] for row in texts], dtype=mx.int32),
        trained=mx.array(random.random(shape) < 0.75),
    )


def drafting(target: TinyTarget) -> Any:
    """Return what a drafter asks of a target."""
    return SimpleNamespace(embedding=target.embedding, unembed=target.unembed)
