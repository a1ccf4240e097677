"""Speed and texts of two checkouts in turns, for changes that should change neither.

Each checkout has an environment of its own, in which it is installed. Two processes load the same
pair once, one after the other (each measures its costs while it loads), and then answer the same
prompts, never both at a time, in alternating order: whatever else the machine does falls on both.
After `benchmarks/grow_pair.py`, as one line:

    python benchmarks/two_checkouts.py OLD/.venv/bin/python NEW/.venv/bin/python
        --model grown/target --head grown/converted-head --prompts prompts.jsonl

Printed are ratios of generation seconds, old by new: above 1 the new one is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TREES = {"plain": None, "chain of 4": (4, 1, 4), "tree of 7": (5, 2, 7), "planner": ()}


def serve(model: str, head: str) -> None:
    """Answer the requests on stdin, one JSON line for each; runs in either environment."""
    import mlx_eagle

    engine = mlx_eagle.load(model, head, dtype="float32")
    for line in sys.stdin:
        question, name, n_tokens = json.loads(line)
        sizes = TREES[name]
        options: dict[str, Any] = {"speculate": sizes is not None}
        if sizes:
            options["tree"] = mlx_eagle.TreeShape(*sizes)
        messages = [{"role": "user", "content": question}]
        result = engine.generate(messages, max_tokens=n_tokens, ignore_eos=True, **options)
        answer = {"tokens": result.tokens, "seconds": result.stats.generation_seconds}
        print(json.dumps(answer), flush=True)


class Checkout:
    """A process that answers with the package of one environment."""

    def __init__(self, python: str, pair: list[str], cache: Path) -> None:
        command = [python, os.path.abspath(__file__), "--serve", *pair]
        environment = os.environ | {"MLX_EAGLE_CACHE": str(cache)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=cache,
        )
        self.ask("Hello.", "plain", 1)  # Loaded: the other may begin.

    def ask(self, *request: Any) -> dict[str, Any]:
        """Return tokens and seconds of one answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def main() -> None:
    """Parse the command line, ask both, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs=2, metavar="PYTHON", help="of the old and the new one")
    parser.add_argument("--model", type=os.path.abspath, required=True)
    parser.add_argument("--head", type=os.path.abspath, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help='JSON Lines with "prompt"')
    parser.add_argument("--limit", type=int, default=16, help="prompts, spread over the file")
    parser.add_argument("-n", "--tokens", type=int, default=64)
    args = parser.parse_args()
    questions = [json.loads(line)["prompt"] for line in args.prompts.read_text().splitlines()]
    questions = questions[:: max(1, len(questions) // args.limit)][: args.limit]
    with tempfile.TemporaryDirectory() as old_cache, tempfile.TemporaryDirectory() as new_cache:
        caches, pair = map(Path, (old_cache, new_cache)), [args.model, args.head]
        old, new = (Checkout(p, pair, c) for p, c in zip(args.pythons, caches, strict=True))
        for name in TREES:
            old.ask(questions[0], name, 8), new.ask(questions[0], name, 8)
            compare(old, new, questions, name, args.tokens)


def compare(old: Checkout, new: Checkout, questions: list[str], name: str, n_tokens: int) -> None:
    """Ask both every question and print how they compare."""
    ratios, n_equal, totals = [], 0, [0.0, 0.0]
    for index, question in enumerate(questions):
        order = (old, new) if index % 2 else (new, old)
        found = {side: side.ask(question, name, n_tokens) for side in order}
        seconds = found[old]["seconds"], found[new]["seconds"]
        totals = [total + part for total, part in zip(totals, seconds, strict=True)]
        ratios.append(seconds[0] / seconds[1])
        n_equal += found[old]["tokens"] == found[new]["tokens"]
    print(
        f"{name:<12}{totals[0] / totals[1]:.3f} in all, median {statistics.median(ratios):.3f}; "
        f"{n_equal} of {len(questions)} texts equal"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
