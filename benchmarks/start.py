#!/usr/bin/env python3
"""How fast a conversation starts in a fresh process: ours beside stock mlx-lm.

    python benchmarks/start.py --model TARGET --head HEAD [--runs 5] [--tokens 32]

Every run is a new process that loads a model, is ready, and then times one prompt up to its first
token and up to the last. Contestants alternate. The machine is calibrated before the first run, as
a first conversation would; the processes that are timed must find that on record, and say so.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

PROMPT = "What does collections.ChainMap do, and which methods does it have?"


def run_stock(model: str, n_tokens: int) -> dict[str, Any]:
    """Time mlx-lm."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from mlx_eagle.hub.download import fetch
    from mlx_eagle.target.load import load_target

    start = time.perf_counter()
    (network, *_), tokenizer = load_target(fetch(model), "float32")
    mx.eval(network.parameters())
    loaded = time.perf_counter()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True
    )
    steps = generate_step(mx.array(ids), network, max_tokens=n_tokens)
    next(steps)
    first = time.perf_counter()
    for _ in steps:
        pass
    end = time.perf_counter()
    return {"load": loaded - start, "first token": first - loaded, "all": end - loaded}


def run_ours(model: str, head: str, n_tokens: int) -> dict[str, Any]:
    """Time a conversation of ours; `calibrated` says whether it had to measure anything."""
    from mlx_eagle import load  # what is imported is not timed, here and there

    measured = []
    start = time.perf_counter()
    engine = load(model, head, dtype="float32", progress=lambda phase, *_: measured.append(phase))
    loaded = time.perf_counter()
    stream = engine.session().ask(PROMPT, max_tokens=n_tokens, ignore_eos=True)
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    end = time.perf_counter()
    times = {"load": loaded - start, "first token": first - loaded, "all": end - loaded}
    return times | {"calibrated": "calibrate" in measured}


def main() -> None:
    """Parse the command line, run the processes, print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--as", dest="role", choices=["mlx-lm", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        ours = args.role == "ours"
        found = run_ours(args.model, args.head, args.tokens) if ours else None
        print(json.dumps(found or run_stock(args.model, args.tokens)))
        return
    print_medians(args)


def print_medians(args: argparse.Namespace) -> None:
    """Run every contestant in processes of its own, and compare."""

    def child(role: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--as", role],
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    print("first conversation measures the machine:", child("ours")["calibrated"])
    runs: dict[str, list[dict[str, Any]]] = {"mlx-lm": [], "ours": []}
    for turn in range(args.runs):
        for role in list(runs)[:: -1 if turn % 2 else 1]:
            runs[role].append(child(role))
    print("later ones do:", any(run["calibrated"] for run in runs["ours"]))
    for part in ("load", "first token", "all"):
        stock, ours = (statistics.median(run[part] for run in runs[role]) for role in runs)
        print(f"{part}: mlx-lm {stock:.3f} s, ours {ours:.3f} s, ratio {ours / stock:.2f}")


if __name__ == "__main__":
    main()
