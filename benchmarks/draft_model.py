#!/usr/bin/env python3
"""A small draft model for a target: a llama of few channels with the target's own tokenizer.

    python benchmarks/draft_model.py --target ../shared/fixtures/pydoc-llama
        --data corpus/train.jsonl --out draft-model

It is trained from random weights on the conversations of JSON Lines, in the target's chat template,
to foresee the next token (no target is run). `--head draft:FOLDER` drafts with it. One epoch; what
is left over after the last full batch is not used.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.utils import load_tokenizer

LENGTH = 256  # tokens of a row
ROWS = 4  # of a batch
RATE = 3e-3
WARMUP = 20  # updates
FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def draft_config(target: Path, args: argparse.Namespace) -> dict[str, object]:
    """Return the configuration of the draft model: the target's, with fewer layers and channels."""
    config: dict[str, object] = json.loads((target / "config.json").read_text())
    return config | {
        "hidden_size": args.hidden,
        "intermediate_size": 3 * args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // 32,
        "num_key_value_heads": args.hidden // 64,
        "head_dim": 32,
        "tie_word_embeddings": True,
    }


def batches(target: Path, data: Path, n: int) -> Iterator[mx.array]:
    """Yield [ROWS, LENGTH + 1] int32: the first n conversations, one after the other, in rows."""
    tokenizer, tokens = load_tokenizer(target), list[int]()
    lines = data.read_text().splitlines()[:n]
    random.Random(0).shuffle(lines)
    for line in lines:
        tokens += tokenizer.apply_chat_template(json.loads(line)["messages"])
        while len(tokens) > ROWS * LENGTH:
            taken, tokens = tokens[: ROWS * LENGTH + 1], tokens[ROWS * LENGTH :]
            rows = [taken[at : at + LENGTH + 1] for at in range(0, ROWS * LENGTH, LENGTH)]
            yield mx.array(rows, dtype=mx.int32)


def loss_of(model: Model, rows: mx.array) -> mx.array:
    """Return the mean cross-entropy of the next tokens of rows [B, L + 1]."""
    return nn.losses.cross_entropy(model(rows[:, :-1]), rows[:, 1:], reduction="mean")


def train(model: Model, rows: list[mx.array]) -> None:
    """Train a model on all batches once."""
    rise = optim.linear_schedule(0.0, RATE, WARMUP)
    fall = optim.cosine_decay(RATE, max(1, len(rows) - WARMUP))
    schedule = optim.join_schedules([rise, fall], [WARMUP])
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.95])
    step = nn.value_and_grad(model, loss_of)
    start = time.perf_counter()
    for at, batch in enumerate(rows):
        loss, gradients = step(model, batch)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state)
        if at % 50 == 0:
            seconds = time.perf_counter() - start
            print(f"{at} of {len(rows)}: {loss.item():.3f}, {seconds:.0f} s", flush=True)


def main() -> None:
    """Train, and write a folder that mlx-lm loads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--target", "--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("-n", type=int, default=3000, help="conversations")
    parser.add_argument("--hidden", type=int, default=128, help="channels, a multiple of 64")
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    mx.random.seed(0)
    config = draft_config(args.target, args)
    model = Model(ModelArgs.from_dict(config))
    train(model, list(batches(args.target, args.data, args.n)))
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {name: array.astype(mx.float16) for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(args.out / "model.safetensors"), weights, metadata={"format": "mlx"})
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    for name in FILES:
        shutil.copy(args.target / name, args.out / name)
    print(f"{args.out}: {sum(array.size for array in weights.values())} weights")


if __name__ == "__main__":
    main()
