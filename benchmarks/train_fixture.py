#!/usr/bin/env python3
"""A head for the fixture's target, trained and measured beside the fixture's own.

    python benchmarks/train_fixture.py corpus --fixtures ../shared/fixtures --out corpus
    python benchmarks/train_fixture.py run --target ../shared/fixtures/pydoc-llama
        --data corpus/train.jsonl --heldout corpus/heldout.jsonl --out trained
    python benchmarks/train_fixture.py measure --target ../shared/fixtures/pydoc-llama
        --head ../shared/fixtures/pydoc-eagle3 --head trained
        --heldout corpus/heldout.jsonl --prompts ../shared/fixtures/prompts.jsonl

`corpus` runs the fixture's own script over Python 3.11's standard library. `run` prints and times
two commands: the features, in one process, then the training, in two (--processes) that each have
one BLAS thread; what follows -- is given to `mlx-eagle train`. On Linux preload OpenBLAS for both
(LD_PRELOAD; OPENBLAS_CORETYPE where it does not know the CPU). `measure` prints tables, with ratios
to the first head.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from head_figures import (
    JOINED_ROWS,
    STEPS,
    TREES,
    Loop,
    cells,
    joined_rows,
    load_engine,
    measure_lengths,
    measure_n_alpha,
    read_prompts,
    separate_texts,
    table,
    tree_name,
)
from ring import Ring

TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)
PARTS = {"train": "train.jsonl", "heldout": "heldout.jsonl"}


class HeadFigures(NamedTuple):
    """What was measured of a head.

    Attributes:
        apart: n-alpha on the held-out texts, none of which sees another.
        joined: n-alpha as the fixture's trainer measures it.
        lengths: acceptance lengths, tree by tree.
    """

    apart: tuple[float, ...]
    joined: tuple[float, ...]
    lengths: list[float]


def messages_of(text: str) -> list[dict[str, str]]:
    """Return a conversation in ChatML as messages.

    Raises:
        ValueError: if the messages would not give that text again.
    """
    messages = [{"role": role, "content": said} for role, said in TURN.findall(text)]
    again = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    if again != text:
        raise ValueError(f"not a conversation in ChatML: {text[:80]!r}")
    return messages


def write_corpus(fixtures: Path, out: Path) -> None:
    """Make the fixture's corpus, and write it as JSON Lines of conversations."""
    if sys.version_info[:2] != (3, 11):
        print("the fixture's corpus is Python 3.11's library; this is another", file=sys.stderr)
    script = (fixtures / "train" / "corpus.py").resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, script], cwd=scratch, check=True, stdout=sys.stderr)
        corpus = json.loads(Path(scratch, "corpus.json").read_text())
    for part, name in PARTS.items():
        lines = [json.dumps({"messages": messages_of(text)}) + "\n" for text in corpus[part]]
        (out / name).write_text("".join(lines))
        print(f"{out / name}: {len(lines)} conversations")


def program(name: str) -> str:
    """Return an installed command: beside this Python, or else wherever it is found."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which(name, path=beside)
    if found is None:
        raise SystemExit(f"error: {name} is not installed")
    return found


def training_options(args: argparse.Namespace) -> list[str]:
    """Return what `mlx-eagle train` is given, in one process or in several."""
    options = {
        "--model": args.target,
        "--data": args.data,
        "--heldout-data": args.heldout,
        "--out": args.out,
        "--train-on": "all",
        "--length": 512,
        "--head-bits": "none",
        "--batch": args.batch,
        "--steps": args.steps,
        "--epochs": args.epochs,
        "--max-updates": args.updates,
        "--measure-every": 200,
        "--save-every": 200,
    }
    if "--from" not in args.more:  # a head that is gone on with keeps its own
        options["--draft-vocab"] = 2048
    return [str(part) for option in options.items() for part in option] + list(args.more)


def run_ring(command: Sequence[str], n: int, n_threads: int) -> None:
    """Run a command in n processes that train together, as `mlx.launch -n` would.

    Raises:
        CalledProcessError: if one of them fails; the others are ended.
    """
    ring, shared = Ring(n), os.environ | {"OPENBLAS_NUM_THREADS": str(n_threads)}
    running = [subprocess.Popen(command, env=shared | rank) for rank in ring.environments]
    try:
        while any(process.poll() is None for process in running):
            for process in running:
                if process.poll():
                    raise subprocess.CalledProcessError(process.returncode, command)
            time.sleep(0.2)
    finally:
        for process in running:
            process.terminate()
            process.wait()


def timed(command: Sequence[str], n: int, n_threads: int) -> float:
    """Run a command in n processes, show it, and return how many seconds it took."""
    print(f"{n} x OPENBLAS_NUM_THREADS={n_threads} {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    run_ring(command, n, n_threads)
    return time.perf_counter() - start


def run_training(args: argparse.Namespace) -> None:
    """Compute features, train, and say how long it took of the time that was planned."""
    train = [program("mlx-eagle"), "train", *training_options(args)]
    prepared = timed([*train, "--prepare"], 1, args.processes)
    trained = timed(train, args.processes, 1)
    minutes = (prepared + trained) / 60
    print(
        f"features {prepared / 60:.1f} min, training {trained / 60:.1f} min: "
        f"{minutes:.1f} of {args.minutes:g} min"
    )


def measure_head(args: argparse.Namespace, head: Path, loop: Loop) -> HeadFigures:
    """Return the figures of a head."""
    engine = load_engine(args.target, head, args.adapter)
    apart = measure_n_alpha(engine, separate_texts(engine.tokenizer, args.heldout)).n_alpha
    joined = measure_n_alpha(engine, joined_rows(engine.tokenizer, args.heldout)).n_alpha
    return HeadFigures(apart, joined, measure_lengths(engine, loop))


def ratio_table(titles: list[str], numbers: dict[str, list[float]]) -> str:
    """Return the numbers of each head, with a row of ratios to those of the first."""
    first = next(iter(numbers.values()))
    rows = []
    for name, found in numbers.items():
        rows.append([name, *cells(found)])
        if found is not first:
            rows.append(["of the first", *cells(a / b for a, b in zip(found, first, strict=True))])
    return table(titles, rows)


def compare_heads(args: argparse.Namespace) -> None:
    """Measure heads and print what was found."""
    loop = Loop(read_prompts(args.prompts, args.n), TREES, args.tokens, args.until_end)
    figures = {str(head): measure_head(args, head, loop) for head in args.head}
    steps, trees = [f"n-alpha {i}" for i in range(STEPS)], [tree_name(tree) for tree in TREES]
    print(f"Texts apart; tokens per round over {len(loop.prompts)} prompts:\n")
    both = {name: [*found.apart, *found.lengths] for name, found in figures.items()}
    print(ratio_table(["head", *steps, *trees], both))
    print(f"\nAs the fixture's trainer measures, {JOINED_ROWS} rows of texts joined:\n")
    joined = {name: list(found.joined) for name, found in figures.items()}
    print(ratio_table(["head", *steps], joined))


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="make the texts")
    corpus.add_argument("--fixtures", type=Path, required=True, help="folder of the trained pair")
    corpus.add_argument("--out", type=Path, required=True, help="a folder")
    run = commands.add_parser("run", help="train; what follows -- is given to mlx-eagle train")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--updates", type=int, default=1200)
    run.add_argument("--steps", type=int, default=5, help="of training-time test")
    run.add_argument("--batch", type=int, default=2, help="rows, in each process")
    run.add_argument("--epochs", type=int, default=9, help="at most")
    run.add_argument("--processes", type=int, default=2)
    run.add_argument("--minutes", type=float, default=40, help="to compare with, no limit")
    run.add_argument("more", nargs="*", help="further options of mlx-eagle train")
    measure = commands.add_parser("measure", help="compare heads")
    measure.add_argument("--head", type=Path, action="append", required=True)
    measure.add_argument("--prompts", type=Path, required=True)
    measure.add_argument("--adapter", type=Path, help="LoRA adapter of the target")
    measure.add_argument("-n", type=int, default=20, help="prompts: the oracles' first")
    measure.add_argument("--tokens", type=int, default=128, help="of each answer")
    measure.add_argument("--until-end", action="store_true", help="stop where an answer ends")
    for command in (run, measure):
        command.add_argument("--target", type=Path, required=True)
        command.add_argument("--heldout", type=Path, required=True, help="JSON Lines")
    return parser.parse_args()


def main() -> None:
    """Do what the command line asks for."""
    args = parse()
    if args.command == "corpus":
        write_corpus(args.fixtures, args.out)
    elif args.command == "run":
        run_training(args)
    else:
        compare_heads(args)


if __name__ == "__main__":
    main()
