#!/usr/bin/env python3
"""Speculative against plain decoding, side by side in one run; a command, not a test.

    LD_PRELOAD=/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0 \
        python benchmarks/speed.py --fixtures ../shared/fixtures

The pair is grown by the fixtures' `grow.py` to the cost ratio of an 8B target and its head (needs
torch once, to read the published head). On Linux preload OpenBLAS as shown: mlx's own wheel links
the reference BLAS, in which a second row costs as much as the first (DESIGN.md, 2.4). Rounds of all
contestants alternate prompt by prompt, so that a slow minute of the machine hits them all alike.
Quote the ratios; the seconds belong to the machine.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

import mlx_eagle
from mlx_eagle.published import prepare_head
from mlx_eagle.tree import DraftTree, TreeShape

SHAPES = {
    **{f"chain of {n}": TreeShape.chain(n) for n in (1, 2, 3, 4, 5)},
    "tree of 4": TreeShape(3, 2, 4),
    "tree of 5": TreeShape(4, 2, 5),
    "tree of 6": TreeShape(4, 2, 6),
    "tree of 7": TreeShape(5, 2, 7),
    "tree of 8": TreeShape(4, 4, 8),
    "tree of 16": TreeShape(6, 4, 16),
    "tree of 59": TreeShape(6, 10, 59),
}
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 17, 20, 24, 28, 32, 40, 48, 60)


def grown_pair(fixtures: Path, work: Path) -> tuple[Path, Path]:
    """Return the folders of the grown target and head, made on first use."""
    if not (work / "target").is_dir():
        pair = (fixtures / "pydoc-llama", fixtures / "pydoc-eagle3")
        subprocess.run([sys.executable, fixtures / "grow.py", *pair, work], check=True)
    return work / "target", prepare_head(work / "head", work / "target", bits=None)


def read_prompts(fixtures: Path, n: int) -> list[str]:
    """Return n prompts, spread over the categories."""
    lines = (fixtures / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    return prompts[:: max(1, len(prompts) // n)][:n]


def time_stock(engine: Any, prompt: list[int], n: int) -> float:
    """Return mlx-lm's seconds per token after the first."""
    steps = generate_step(mx.array(prompt), engine.target.model, max_tokens=n)
    next(steps)
    start = time.perf_counter()
    rest = sum(1 for _ in steps)
    return (time.perf_counter() - start) / rest


def measure(engine: Any, prompts: list[list[int]], n: int, repeats: int) -> dict[str, Any]:
    """Run every contestant on every prompt, alternating; return raw figures per contestant.

    Every other prompt they run in reverse, so that none always follows the same neighbour.
    """
    common = {"max_tokens": n, "ignore_eos": True}
    contestants: dict[str, Callable[[list[int]], Any]] = {
        "mlx-lm": lambda prompt: time_stock(engine, prompt, n),
        "plain": lambda prompt: engine.generate(prompt, speculate=False, **common).stats,
    }
    for name, shape in SHAPES.items():
        contestants[name] = partial(_time_shape, engine, shape, common)
    found: dict[str, Any] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for index, prompt in enumerate(prompts):
            for name in list(contestants)[:: -1 if index % 2 else 1]:
                found[name].append(contestants[name](prompt))
            progress = repeat * len(prompts) + index + 1
            print(f"\r{progress} of {repeats * len(prompts)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return found


def _time_shape(engine: Any, shape: TreeShape, common: dict[str, Any], prompt: list[int]) -> Any:
    """Return the statistics of one generation with a fixed tree."""
    return engine.generate(prompt, tree=shape, **common).stats


def seconds_per_token(entry: Any) -> float:
    """Return seconds per token after the first of one generation."""
    if isinstance(entry, float):
        return entry
    return entry.generation_seconds / (entry.generation_tokens - 1)


def summarise(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row of figures per contestant; speed-ups are means over whole runs."""
    base = sum(map(seconds_per_token, found["mlx-lm"]))
    rows = []
    for name, entries in found.items():
        total = sum(map(seconds_per_token, entries))
        row: dict[str, Any] = {
            "contestant": name,
            "tokens_per_second": len(entries) / total,
            "times_mlx_lm": base / total,
        }
        if name not in ("mlx-lm", "plain"):
            n_rounds = sum(s.rounds for s in entries)
            parts = [sum(getattr(s, f"{p}_seconds") for s in entries) for p in PARTS]
            row["acceptance_length"] = sum(s.accepted for s in entries) / n_rounds + 1
            row |= {f"{p}_ms": 1e3 * x / n_rounds for p, x in zip(PARTS, parts, strict=True)}
            row["host_share"] = parts[2] / sum(s.generation_seconds for s in entries)
        rows.append(row)
    return rows


PARTS = ("draft", "verify", "host")


def time_rows(engine: Any, prefix: list[int], repeats: int) -> dict[int, dict[str, float]]:
    """Return median seconds to verify N rows, as a chain and as a bush, per N."""
    cache = engine.target.make_cache()
    engine.target.extend(mx.array(prefix), cache)
    mx.eval(cache.buffers)
    samples: dict[int, dict[str, list[float]]] = {n: {"chain": [], "tree": []} for n in ROWS}
    for _ in range(repeats):
        for n in ROWS:
            tokens = mx.arange(5, 5 + n, dtype=mx.int32)
            trees = {"chain": DraftTree.chain(tokens)}
            trees["tree"] = DraftTree.static(tokens, [max(0, (i - 1) // 2) for i in range(n)])
            for kind, tree in trees.items():
                start = time.perf_counter()
                mx.eval(engine.target.verify(tree, cache).logits)
                samples[n][kind].append(time.perf_counter() - start)
    return {n: {k: statistics.median(v) for k, v in kinds.items()} for n, kinds in samples.items()}


def peak_memory(engine: Any, prompt: list[int], n: int) -> dict[str, int]:
    """Return peak bytes while decoding: mlx-lm, ours plain, ours with a tree of 8."""

    def peak(run: Callable[[], Any]) -> int:
        mx.clear_cache()
        mx.reset_peak_memory()
        run()
        return mx.get_peak_memory()

    model, common = engine.target.model, {"max_tokens": n, "ignore_eos": True}
    shape = SHAPES["tree of 8"]

    def stock() -> None:
        cache = make_prompt_cache(model)
        list(generate_step(mx.array(prompt), model, max_tokens=n, prompt_cache=cache))

    return {
        "mlx-lm": peak(stock),
        "plain": peak(lambda: engine.generate(prompt, speculate=False, **common)),
        "tree of 8": peak(lambda: engine.generate(prompt, tree=shape, **common)),
        "head": sum(v.nbytes for _, v in tree_flatten(engine.head.parameters())),
    }


def report(rows: list[dict[str, Any]], curve: dict[int, Any], memory: dict[str, int]) -> str:
    """Return the tables as Markdown."""
    lines = [f"measured on {platform.processor() or platform.machine()}, {mx.default_device()},"]
    lines += [f"mlx {mx.__version__}, float32; ratios to mlx-lm on the same target, one run", ""]
    lines += ["| contestant | tokens/s | x mlx-lm | acceptance | draft | verify | host ms | host |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for r in rows:
        cells = [r["contestant"], f"{r['tokens_per_second']:.1f}", f"{r['times_mlx_lm']:.2f}"]
        if "draft_ms" in r:
            cells += [f"{r['acceptance_length']:.2f}"]
            cells += [f"{r[f'{part}_ms']:.1f}" for part in PARTS] + [f"{r['host_share']:.1%}"]
        lines.append("| " + " | ".join(cells + [""] * (8 - len(cells))) + " |")
    one = curve[1]["chain"]
    lines += ["", f"verify N rows, relative to one ({one * 1e3:.1f} ms); chain / tree:", ""]
    lines += [
        ", ".join(f"{n}: {c['chain'] / one:.2f} / {c['tree'] / one:.2f}" for n, c in curve.items())
    ]
    lines += ["", "peak bytes: " + ", ".join(f"{k} {v:,}" for k, v in memory.items())]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of the trained pair")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "grown-pair")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    target, head = grown_pair(args.fixtures, args.work)
    engine = mlx_eagle.load(target, head, dtype="float32")
    prompts = [
        engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )
        for text in read_prompts(args.fixtures, args.prompts)
    ]
    engine.generate(prompts[0], max_tokens=16)
    rows = summarise(measure(engine, prompts, args.tokens, args.repeats))
    curve = time_rows(engine, [5 + i for i in range(64)], 7)
    memory = peak_memory(engine, prompts[0], args.tokens)
    print(report(rows, curve, memory))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "curve": curve, "memory": memory}))


if __name__ == "__main__":
    main()
