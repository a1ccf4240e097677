#!/usr/bin/env python3
"""What a training would take on a machine that is not there: memory, disk and hours, estimated.

    python benchmarks/train_estimate.py --recompute
    python benchmarks/train_estimate.py --config my-model/config.json --tokens 1e6 --tflops 9.2

It counts: floating point operations of the products (the target's once per token; the head's
forward and twice that backward, for every step, forward once more with --recompute; Muon's
iterations in every update), bytes of the features, and memory as `mlx-eagle train` does before it
starts. Hours follow from operations per second that are published for a chip,
of which a share is assumed to be reached (--reached). Nothing is run or measured.

Without --config the target is an 8B Llama (sizes as published in its configuration).
"""

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import mlx.core as mx

from mlx_eagle.heads.load import Head
from mlx_eagle.training.memory import estimate_memory
from mlx_eagle.training.new_head import TargetSizes, make_head, unfreeze_weights
from mlx_eagle.training.objectives.eagle3 import STEPS
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions
from mlx_eagle.training.run.checkpoint import trained_arrays

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}
FEATURE_BYTES = 2
READ_ONCE = ("q_proj", "k_proj", "v_proj")  # half of each reads tokens, once for all steps
TEACHER = 3  # products with the output layer for the teacher's distribution and its gradient
MUON_ITERATIONS = 5
HOUR = 3600


class Work(NamedTuple):
    """Operations per token.

    Attributes:
        target: one forward pass, which gives features, or a token of an answer.
        head: all steps, forward and backward, with its share of an update.
    """

    target: float
    head: float


def target_operations(config: dict[str, Any]) -> float:
    """Return operations of a dense target for one token, without those of attention's scores."""
    h, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or h // heads
    attention = 2 * h * heads * head_dim + 2 * h * config["num_key_value_heads"] * head_dim
    layer = attention + 3 * h * config["intermediate_size"]
    return 2 * (config["num_hidden_layers"] * layer + h * config["vocab_size"])


def head_operations(shapes: dict[str, tuple[int, ...]], steps: int, recompute: bool) -> float:
    """Return operations of training an EAGLE-3 head on one token, forward and backward.

    Args:
        shapes: of its weights, by name.
        steps: of training-time test.
        recompute: whether steps are computed again for their gradients.
    """
    total = 0.0
    for name, shape in shapes.items():
        if len(shape) != 2:
            continue
        times: float = 1 if name.startswith("fc") else steps
        if any(part in name for part in READ_ONCE):
            times = (steps + 1) / 2
        is_output, is_again = "lm_head" in name, recompute and not name.startswith("fc")
        passes = 3 + (is_again and not is_output)  # forward, backward twice as much
        total += 2 * math.prod(shape) * (times * passes + TEACHER * is_output)
    return total


def muon_operations(shapes: dict[str, tuple[int, ...]]) -> float:
    """Return operations of Muon's iterations in one update; it leaves the output layer to AdamW."""
    total = 0.0
    for name, shape in shapes.items():
        if len(shape) == 2 and "lm_head" not in name:
            small, large = sorted(shape)
            total += MUON_ITERATIONS * 2 * (2 * small**2 * large + small**3)
    return total


def new_head(config: dict[str, Any], options: HeadOptions, n_draft: int) -> Head:
    """Return a head for a target of these sizes; its weights are never computed."""
    sizes = TargetSizes(
        config["hidden_size"], config["vocab_size"], config["num_hidden_layers"], config
    )
    absent = SimpleNamespace(weight=lambda ids: mx.zeros((ids.size, config["hidden_size"])))
    head = make_head(options, sizes, mx.arange(n_draft), cast(Teacher, absent))
    unfreeze_weights(head)
    return head


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="config.json of a dense target")
    parser.add_argument("--tokens", type=float, default=4e6, help="of the texts (4e6)")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--steps", type=int, default=STEPS["eagle3"])
    parser.add_argument("--draft-vocab", type=int, default=32000)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--accumulate", type=int, default=8, help="rows of an update (8)")
    parser.add_argument("--recompute", action="store_true", help="as of mlx-eagle train")
    parser.add_argument("--bits", type=float, default=4.5, help="of a weight of the target (4.5)")
    parser.add_argument("--tflops", type=float, nargs="+", default=[9.2, 18.4, 28.0])
    parser.add_argument("--reached", type=float, default=0.5, help="share of them (0.5)")
    return parser.parse_args()


def main() -> None:
    """Count and print."""
    args = parse()
    config = json.loads(args.config.read_text()) if args.config else LLAMA_8B
    options = HeadOptions(steps=args.steps)
    head = new_head(config, options, args.draft_vocab)
    shapes = {name: weight.shape for name, weight in trained_arrays(head).items()}
    work = Work(
        target_operations(config),
        head_operations(shapes, args.steps, args.recompute)
        + muon_operations(shapes) / (args.accumulate * args.length),
    )
    row = FEATURE_BYTES * config["hidden_size"] * (len(head.config.taps) + 1)
    n_weights = sum(math.prod(shape) for shape in shapes.values())
    print(f"head: {n_weights / 1e6:.0f} million weights")
    print(f"operations per token: target {work.target / 1e9:.1f} G, head {work.head / 1e9:.1f} G")
    print(f"features: {row / 1e3:.1f} kB per token, {row * args.tokens / 1e9:.0f} GB in all")
    print(
        f"target: {work.target / 2 * args.bits / 8 / 1e9:.1f} GB with {args.bits:g} bits a weight"
    )
    loop = LoopOptions(batch=1, accumulate=args.accumulate, recompute=args.recompute)
    data = DataOptions(length=args.length)
    memory = estimate_memory(head.config, shapes, data, options, loop, FEATURE_BYTES)
    print(f"memory besides: {memory.total / 1e9:.1f} to {memory.most / 1e9:.1f} GB")
    for tflops in args.tflops:
        rate = tflops * 1e12 * args.reached
        features = work.target * args.tokens / rate / HOUR
        training = work.head * args.tokens * args.epochs / rate / HOUR
        print(
            f"{tflops:g} TFLOPS, {args.reached:.0%} reached: answers or features {features:.1f} h "
            f"each, training {training:.1f} h"
        )


if __name__ == "__main__":
    main()
