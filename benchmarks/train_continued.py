#!/usr/bin/env python3
"""What a head is worth after its target was fine-tuned, and after the head was trained on.

    python benchmarks/train_continued.py --target ../shared/fixtures/pydoc-llama
        --head ../shared/fixtures/pydoc-eagle3 --data corpus/train.jsonl
        --prompts ../shared/fixtures/prompts.jsonl --out continued

The target is fine-tuned with mlx-lm's LoRA trainer on its data's answers in another style
(--style). Then `mlx-eagle train --from` goes on with the head: the fine-tuned target answers
--questions of the data's questions, and the head is trained on these answers for --updates. Printed
are tokens per round, of a chain and of trees, for the old head on the old target, for the old head
on the new target, and for the new head there. What is done is kept in --out: the same command goes
on; results of other options are refused. On Linux preload OpenBLAS (LD_PRELOAD; OPENBLAS_CORETYPE
where it does not know the CPU).
"""

import argparse
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
import numpy as np
from head_figures import (
    TREES,
    Loop,
    cells,
    load_engine,
    measure_lengths,
    read_prompts,
    table,
    tree_name,
)
from kept_settings import keep_settings
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from train_fixture import program

from mlx_eagle.target.load import load_target
from mlx_eagle.tree import TreeShape

# What the adapter and the trained head depend on; figures are measured anew.
SETTINGS = (
    *("target", "head", "data", "style", "lora_steps", "lora_batch", "lora_rate"),
    *("questions", "updates", "batch", "seed", "tokens", "more"),
)
LORA = {"rank": 16, "scale": 10.0, "dropout": 0.0}
LONGEST = 512  # tokens of a conversation that the target is tuned on


def quoted(text: str) -> str:
    """Return a text as mail quotes it."""
    return "\n".join(f"> {line}" for line in text.splitlines())


def numbered(text: str) -> str:
    """Return a text with its lines numbered."""
    return "\n".join(f"{n}. {line}" for n, line in enumerate(text.splitlines(), 1))


STYLES: dict[str, Callable[[str], str]] = {
    "quoted": quoted,
    "numbered": numbered,
    "upper": str.upper,
}


def conversations(file: Path) -> list[list[dict[str, str]]]:
    """Return the messages of each conversation of a file of JSON Lines."""
    return [json.loads(line)["messages"] for line in file.read_text().splitlines()]


def styled(tokenizer: Any, file: Path, style: str) -> list[tuple[list[int], int]]:
    """Return first turns as tokens, answered in another style, each with where its answer starts.

    Args:
        tokenizer: mlx-lm's wrapper.
        file: JSON Lines of conversations.
        style: of `STYLES`.
    """
    found = []
    for question, answer, *_ in conversations(file):
        said = {"role": "assistant", "content": STYLES[style](answer["content"])}
        tokens = tokenizer.apply_chat_template([question, said])
        start = len(tokenizer.apply_chat_template([question], add_generation_prompt=True))
        if len(tokens) <= LONGEST:
            found.append((tokens, start))
    return found


def tune_target(args: argparse.Namespace, adapter: Path) -> None:
    """Fine-tune the target with mlx-lm's trainer; the adapter goes into a folder."""
    loaded, tokenizer = load_target(args.target, "float32")
    network, texts = loaded.network, styled(tokenizer, args.data, args.style)
    mx.random.seed(args.seed)
    np.random.seed(args.seed)  # mlx-lm orders the texts by it
    network.freeze()
    n_layers = len(network.layers)
    linear_to_lora_layers(network, n_layers, LORA)
    adapter.mkdir(parents=True, exist_ok=True)
    config = {"fine_tune_type": "lora", "num_layers": n_layers, "lora_parameters": LORA}
    (adapter / "adapter_config.json").write_text(json.dumps(config) + "\n")
    file = adapter / "adapters.safetensors"
    training = TrainingArgs(
        batch_size=args.lora_batch,
        iters=args.lora_steps,
        steps_per_report=50,
        steps_per_save=args.lora_steps + 1,  # it saves at its end besides
        max_seq_length=LONGEST + 1,
        adapter_file=str(file.with_name("partial.safetensors")),
    )
    optimizer = mlx.optimizers.Adam(learning_rate=args.lora_rate)
    train(network, optimizer, texts, args=training)
    file.with_name("partial.safetensors").rename(file)


def write_questions(args: argparse.Namespace, file: Path) -> None:
    """Write the first questions of some conversations, spread over the data."""
    talks = conversations(args.data)
    chosen = islice(talks, 0, None, max(1, len(talks) // args.questions))
    rows = [{"messages": messages[:1]} for messages in islice(chosen, args.questions)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_on(args: argparse.Namespace, adapter: Path, out: Path) -> None:
    """Go on with the head on what the fine-tuned target answers, and say how long it took."""
    questions = args.out / "questions.jsonl"
    write_questions(args, questions)
    options = {
        "--model": args.target,
        "--adapter-path": adapter,
        "--from": args.head,
        "--data": questions,
        "--out": out,
        "--answers": "target",
        "--answer-tokens": args.tokens,
        "--answers-at-once": 32,
        "--length": 512,
        "--head-bits": "none",
        "--batch": args.batch,
        "--epochs": 1000,
        "--max-updates": args.updates,
        "--measure-every": max(1, args.updates // 4),
        "--seed": args.seed,
    }
    shared = [str(part) for option in options.items() for part in option]
    command = [program("mlx-eagle"), "train", *shared, *args.more]
    for part in (["--prepare"], []):
        print(shlex.join(command + part), flush=True)
        start = time.perf_counter()
        subprocess.run(command + part, check=True, env=os.environ)
        print(f"{(time.perf_counter() - start) / 60:.1f} min", flush=True)


def lengths(
    args: argparse.Namespace, head: Path, adapter: Path | None, trees: Sequence[TreeShape] = TREES
) -> list[float]:
    """Return the acceptance lengths of a head on the target, fine-tuned or not."""
    engine = load_engine(args.target, head, adapter)
    prompts = read_prompts(args.prompts, args.n)
    sample = engine.generate([{"role": "user", "content": prompts[0]}], max_tokens=48)
    print(f"{prompts[0]} {sample.text!r}", flush=True)
    return measure_lengths(engine, Loop(prompts, trees, args.tokens, until_end=True))


def main() -> None:
    """Parse the command line, tune, train, measure, print a table of three lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--target", "--head", "--data", "--prompts", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--style", choices=STYLES, default="quoted", help="of the tuned answers")
    parser.add_argument("--lora-steps", type=int, default=300)
    parser.add_argument("--lora-batch", type=int, default=4)
    parser.add_argument("--lora-rate", type=float, default=2e-4)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4, help="rows of 512 tokens in an update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-n", type=int, default=20, help="prompts")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer, at most")
    parser.add_argument("more", nargs="*", help="further options of mlx-eagle train")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    keep_settings(args.out, {name: getattr(args, name) for name in SETTINGS})
    adapter, trained = args.out / "adapter", args.out / "head"
    if not (adapter / "adapters.safetensors").exists():
        tune_target(args, adapter)
    if not (trained / "head").exists():
        train_on(args, adapter, trained)
    rows = {
        "old head, old target": lengths(args, args.head, None),
        "old head, fine-tuned target": lengths(args, args.head, adapter),
        "head trained on, fine-tuned target": lengths(args, trained, adapter),
    }
    titles = ["tokens per round", *map(tree_name, TREES)]
    print(table(titles, [[name, *cells(found, 2)] for name, found in rows.items()]))


if __name__ == "__main__":
    main()
