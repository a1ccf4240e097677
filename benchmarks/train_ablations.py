#!/usr/bin/env python3
"""What parts of EAGLE-3's training are worth: heads trained without them, side by side.

    python benchmarks/train_ablations.py --target ../shared/fixtures/pydoc-llama
        --data corpus/train.jsonl --heldout corpus/heldout.jsonl
        --prompts ../shared/fixtures/prompts.jsonl --out ablations --jobs 2

Every variant sees as many rows as the others, from the same seed, and is measured alike: n-alpha on
the held-out texts, drafting chains from its own states whatever it was trained for, and tokens per
round of the real loop with a chain of 4. `benchmarks/train_fixture.py corpus` makes the texts. What
is done is kept in --out: the same command goes on, and adds variants. Variants that read the same
taps share features. Results of other options are refused. Each is trained by one process with one
BLAS thread, --jobs at a time; on Linux preload OpenBLAS (LD_PRELOAD; OPENBLAS_CORETYPE where it
does not know the CPU).

EAGLE-1 and HASS heads draft with the target's own output layer and Medusa's with layers of their
own, from the whole vocabulary; the others from the 2048 most frequent tokens.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from head_figures import (
    Loop,
    cells,
    load_engine,
    measure_lengths,
    measure_n_alpha,
    read_prompts,
    separate_texts,
    table,
)
from kept_settings import keep_settings
from train_fixture import program

from mlx_eagle.files.json_files import read_json
from mlx_eagle.tree import TreeShape

# What trained heads and their figures depend on; the rest stands in the names of files.
SETTINGS = (
    *("target", "data", "heldout", "prompts", "answers"),
    *("updates", "batch", "seed", "train_on"),
)
CHAIN = TreeShape.chain(4)
SHOWN = 5  # steps of n-alpha in the table
FINAL_STATE = "final"


class Variant(NamedTuple):
    """One way to train.

    Attributes:
        what: its row's title.
        options: of `mlx-eagle train`, beside those that all share.
        features: name of the folder with its features; variants with the same taps share it.
        own_answers: the target's own answers take the place of the given ones.
    """

    what: str
    options: tuple[str, ...] = ()
    features: str = "three-taps"
    own_answers: bool = False


VARIANTS = {
    "eagle3": Variant("EAGLE-3, 7 steps, three taps"),
    "one-step": Variant("one step of training-time test", ("--steps", "1")),
    "one-tap": Variant("one tap, after the last layer", features="one-tap"),
    "own-answers": Variant("the target's own answers", (), "own-answers", own_answers=True),
    "feature-loss": Variant("with a loss of features", ("--feature-weight", "1")),
    "hass": Variant("HASS, 3 passes", ("--algorithm", "hass"), FINAL_STATE),
    "eagle1": Variant("EAGLE-1", ("--algorithm", "eagle"), FINAL_STATE),
    "medusa": Variant("Medusa, 5 heads", ("--algorithm", "medusa", "--layers", "5"), FINAL_STATE),
}

PUBLISHED = {
    "EAGLE-1, published (8B, MT-bench)": (0.78, 0.68, 0.64, 0.62, 0.60),
    "EAGLE-3, published (8B, MT-bench)": (0.80, 0.75, 0.73, 0.72, 0.71),
}


def train_command(args: argparse.Namespace, name: str) -> list[str]:
    """Return the command that trains a variant."""
    variant = VARIANTS[name]
    options = {
        "--model": args.target,
        "--data": own_answers(args) if variant.own_answers else args.data,
        "--heldout-data": args.heldout,
        "--out": args.out / name,
        "--features-in": args.out / "features" / variant.features,
        "--train-on": args.train_on,
        "--length": 512,
        "--draft-vocab": 2048,
        "--head-bits": "none",
        "--batch": args.batch,
        "--epochs": 1000,
        "--max-updates": args.updates,
        "--measure-every": args.updates,
        "--seed": args.seed,
    }
    if name == "one-tap":
        options["--taps"] = read_json(args.target / "config.json")["num_hidden_layers"]
    shared = [str(part) for option in options.items() for part in option]
    return [program("mlx-eagle"), "train", *shared, *variant.options]


def own_answers(args: argparse.Namespace) -> Path:
    """Return the file in which the target's own answers to the data's questions stand."""
    return Path(args.out / "own-answers.jsonl")


def run(command: list[str], log: Path) -> None:
    """Run a command with one BLAS thread; what it says goes into a file.

    Raises:
        SystemExit: with the end of that file, if the command fails.
    """
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    print(shlex.join(command), file=sys.stderr, flush=True)
    with log.open("a") as stream:
        code = subprocess.run(command, env=environment, stderr=stream, stdout=stream).returncode
    if code:
        end = "\n".join(log.read_text().splitlines()[-5:])
        raise SystemExit(f"error: this ended with status {code}: {shlex.join(command)}\n{end}")


def write_own_answers(args: argparse.Namespace) -> None:
    """Let the target answer the questions of the data, once.

    The answers become a file of conversations like the data, trained on likewise; one with an
    answer that was cut is left out, which would teach that answers end there.
    """
    if own_answers(args).exists():
        return
    folder = args.out / "answers"
    answers = args.answers or folder / "answers-train.jsonl"
    if args.answers is None:
        options = ["--answers", "target", "--answer-tokens", "256", "--features", "compute"]
        data = ["--model", args.target, "--data", args.data, "--heldout-data", args.heldout]
        command = [program("mlx-eagle"), "train", *data, "--out", folder, *options, "--prepare"]
        run([str(part) for part in command], args.out / "answers.log")
    asked = {first_question(line) for line in args.data.read_text().splitlines()}
    lines = [line for line in answers.read_text().splitlines() if first_question(line) in asked]
    rows = [json.loads(line) for line in lines]
    whole = [{"messages": row["messages"]} for row in rows if "length" not in row.get("finish", ())]
    own_answers(args).write_text("".join(json.dumps(row) + "\n" for row in whole))
    print(
        f"the target's own answers: {len(whole)} conversations; {len(rows) - len(whole)} with cut "
        "answers are left out",
        file=sys.stderr,
    )


def first_question(line: str) -> str:
    """Return what is asked first in a conversation."""
    messages = json.loads(line)["messages"]
    return next((m["content"] for m in messages if m["role"] == "user"), "")


def train_variant(args: argparse.Namespace, name: str) -> None:
    """Train a variant, unless that is done."""
    if not (args.out / name / "head").exists():
        run(train_command(args, name), args.out / f"{name}.log")


def train_all(args: argparse.Namespace, names: list[str]) -> None:
    """Train variants side by side, once the features that they share are there."""
    if any(VARIANTS[name].own_answers for name in names):
        write_own_answers(args)
    missing = [name for name in names if not (args.out / name / "head").exists()]
    first_with = {VARIANTS[name].features: name for name in reversed(missing)}
    with ThreadPoolExecutor(args.jobs) as pool:
        prepared = [
            pool.submit(run, [*train_command(args, name), "--prepare"], args.out / f"{name}.log")
            for name in first_with.values()
        ]
        for future in prepared:
            future.result()
        for future in [pool.submit(train_variant, args, name) for name in missing]:
            future.result()


def measured(args: argparse.Namespace, name: str) -> dict[str, list[float]]:
    """Return the figures of a variant, which are measured once."""
    prompts = read_prompts(args.prompts, args.n)
    until = "-end" if args.until_end else ""
    file = args.out / name / f"figures-{len(prompts)}-{args.tokens}{until}.json"
    if not file.exists():
        engine = load_engine(args.target, args.out / name)
        texts = separate_texts(engine.tokenizer, args.heldout, args.train_on)
        alpha = measure_n_alpha(engine, texts).n_alpha
        lengths = measure_lengths(engine, Loop(prompts, (CHAIN,), args.tokens, args.until_end))
        file.write_text(json.dumps({"n_alpha": list(alpha), "lengths": lengths}))
    found: dict[str, list[float]] = json.loads(file.read_text())
    return found


def write_table(args: argparse.Namespace, names: list[str]) -> None:
    """Print the figures of variants beside the published ones, and keep them in a file."""
    rows = []
    for name in names:
        found = measured(args, name)
        figures = cells(found["n_alpha"][:SHOWN]) + cells(found["lengths"])
        rows.append([VARIANTS[name].what, *figures])
    rows += [[name, *cells(alpha, 2), ""] for name, alpha in PUBLISHED.items()]
    titles = ["trained", *(f"n-alpha {i}" for i in range(SHOWN)), "tokens per round, chain of 4"]
    text = table(titles, rows)
    (args.out / "table.md").write_text(text + "\n")
    print(text)


def main() -> None:
    """Parse the command line, train what is missing, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--target", "--data", "--heldout", "--prompts", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4, help="rows of 512 tokens in an update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-on", choices=["all", "answers"], default="all")
    parser.add_argument("--answers", type=Path, help="answers of the target that are there already")
    parser.add_argument("--jobs", type=int, default=1, help="variants that train at a time")
    parser.add_argument("-n", type=int, default=20, help="prompts")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--until-end", action="store_true", help="stop where an answer ends")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    keep_settings(args.out, {name: getattr(args, name) for name in SETTINGS})
    train_all(args, args.variants)
    write_table(args, args.variants)


if __name__ == "__main__":
    main()
