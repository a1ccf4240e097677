#!/usr/bin/env python3
"""Heads that draft blocks against their publishers' own code; a command, not a test.

    git clone https://github.com/z-lab/dflash
    git clone https://github.com/deepseek-ai/DeepSpec
    pip install torch transformers
    python benchmarks/check_block_heads.py --dflash dflash --deepspec DeepSpec

No GPU and, once this is there, no network is needed. The publishers' classes make tiny random heads
and save them; the saved files are converted, and both sides compute the logits of three successive
blocks after a prompt, theirs with the whole context anew, ours with its cache. Each line gives the
largest difference, relative to the largest logit; above 1e-4 the command fails.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from transformers import Qwen3Config

from mlx_eagle.convert.heads import convert_head
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.heads.load import load_head

LIMIT = 1e-4
VOCABULARY, HIDDEN, LAYERS, ROWS, MASK = 96, 32, 8, 6, 95
TAPS = [1, 4, 6]  # layers whose output is read
CONTEXTS = (11, 12, 16)  # tokens before each block
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 48}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
SIZES |= {"num_hidden_layers": 3, "tie_word_embeddings": False, "attention_bias": False}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
SLIDING |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 64}
DFLASH: dict[str, dict[str, Any]] = {
    "dflash": {},
    "dflash, windows": SLIDING,
    "dflash, windows, not causal": SLIDING | {"is_causal": False},
    "dflash, causal": {"is_causal": True},
    "dflash, yarn": {"rope_parameters": YARN},
}
DSPARK = {"dflash of DeepSpec": "", "dspark": "vanilla", "dspark, gated": "gated"}
DSPARK |= {"dspark, rnn": "rnn"}


def main() -> int:
    """Compare every kind of head; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dflash", type=Path, help="a checkout of z-lab/dflash")
    parser.add_argument("--deepspec", type=Path, help="a checkout of deepseek-ai/DeepSpec")
    options = parser.parse_args()
    worst = 0.0
    if options.dflash:
        sys.path.insert(0, str(options.dflash))
        for name, changes in DFLASH.items():
            worst = max(worst, report(name, make_dflash(changes)))
    if options.deepspec:
        sys.path.insert(0, str(options.deepspec))
        for name, kind in DSPARK.items():
            worst = max(worst, report(name, make_dspark(kind)))
    return int(worst > LIMIT)


def make_dflash(changes: dict[str, Any]) -> Any:
    """Return a random head of z-lab's class."""
    from dflash.model import DFlashDraftModel

    settings = {"target_layer_ids": TAPS, "mask_token_id": MASK, "block_size": ROWS}
    config = Qwen3Config(**SIZES | changes, dflash_config=settings, num_target_layers=LAYERS)
    config.block_size = ROWS
    return randomized(DFlashDraftModel(config))


def make_dspark(kind: str) -> Any:
    """Return a random head of DeepSpec's class, with a bias of one kind or none."""
    from deepspec.modeling.dspark.qwen3.modeling import Qwen3DSparkModel

    config = Qwen3Config(**SIZES, architectures=["Qwen3DSparkModel"])
    facts = {"target_layer_ids": TAPS, "mask_token_id": MASK, "block_size": ROWS}
    facts |= {"num_anchors": 4, "markov_rank": 8 if kind else 0, "markov_head_type": kind}
    facts |= {"enable_confidence_head": bool(kind), "confidence_head_with_markov": bool(kind)}
    for key, value in facts.items():
        setattr(config, key, value)
    config._attn_implementation = "sdpa"
    return randomized(Qwen3DSparkModel(config))


def randomized(model: Any) -> Any:
    """Return a model whose norms are random too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else 0.2 * noise)
    return model.eval()


def report(name: str, model: Any) -> float:
    """Print and return the largest difference of one head."""
    rng = np.random.default_rng(3)
    taps = rng.standard_normal((max(CONTEXTS), len(TAPS) * HIDDEN)).astype(np.float32)
    embedding, output = rng.standard_normal((2, VOCABULARY, HIDDEN)).astype(np.float32)
    path = rng.integers(VOCABULARY, size=ROWS).tolist()  # root, then what the bias follows
    with tempfile.TemporaryDirectory() as scratch:
        head = converted(model, Path(scratch))
    found = ours(head, (taps, embedding, output), path)
    expected = theirs(model, (taps, embedding, output), path)
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f"{name:27} {worst:.1e}")
    return worst


def converted(model: Any, folder: Path) -> BlockHead:
    """Save a head as its publisher does, and convert it."""
    model.save_pretrained(folder / "published")
    target = {"model_type": "qwen3", "num_hidden_layers": LAYERS, **{k: SIZES[k] for k in _TARGET}}
    (folder / "target").mkdir()
    (folder / "target" / "config.json").write_text(json.dumps(target))
    convert_head(folder / "published", folder / "target", folder / "head", bits=None)
    head = load_head(folder / "head")
    assert isinstance(head, BlockHead), "that is what was made"
    mx.eval(head.parameters())
    return head


_TARGET = ("hidden_size", "vocab_size")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # taps, embedding, output layer


def ours(head: BlockHead, arrays: Arrays, path: list[int]) -> np.ndarray:
    """Return our logits [blocks * depth, W], with one cache for all blocks."""
    taps, embedding, output = (mx.array(array) for array in arrays)
    cache, found, depth = head.make_cache(), [], head.max_depth
    for length in CONTEXTS:
        new = taps[None, cache.rows : length]
        head.keep_context(new, cache)
        cache.commit(range(new.shape[1]))
        block = head.block(mx.array(path[:1], dtype=mx.int32), depth)
        states = head(embedding[block], cache, depth)[0]
        cache.commit([])
        logits = states @ output.T
        if head.config.markov != "none":
            state, rows = head.markov_head.start(mx.float32), []
            for i, token in enumerate(path[:depth]):
                row, state = head.markov_head(mx.array([token]), states[i : i + 1], state)
                rows.append(row)
            logits = logits + mx.concatenate(rows)
        found.append(logits)
    return np.array(mx.concatenate(found))


@torch.inference_mode()
def theirs(model: Any, arrays: Arrays, path: list[int]) -> np.ndarray:
    """Return the publisher's logits [blocks * depth, W], with the whole context for each block."""
    taps, embedding, output = (torch.from_numpy(array) for array in arrays)
    is_dspark = hasattr(model, "markov_head")
    found = []
    for length in CONTEXTS:
        tokens = torch.tensor([path[0], *[MASK] * (ROWS - 1)])
        inputs = {"noise_embedding": embedding[tokens][None]}
        inputs["position_ids"] = torch.arange(length + ROWS)[None]
        if is_dspark:
            run = model._forward_backbone
            hidden = run(**inputs, target_hidden_states=taps[None, :length])[0]
        else:
            hidden = model(**inputs, target_hidden=taps[None, :length])[0, 1:]
        logits = hidden @ output.T
        if is_dspark and model.markov_head is not None:
            before = torch.tensor(path)[None, None]
            logits = model.markov_head.apply_block_logits(
                logits[None, None], token_ids=before, hidden_states=hidden[None, None]
            )[0, 0]
        found.append(logits)
    return torch.cat(found).numpy()


if __name__ == "__main__":
    sys.exit(main())
