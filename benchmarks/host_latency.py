#!/usr/bin/env python3
"""Speculative against plain decoding on two processes whose sums take longer: measured here.

    python benchmarks/host_latency.py --model path/to/target --head path/to/head
    python benchmarks/host_latency.py --latency 0.2 --latency 1

Both processes are on this machine; before each sum rank 0 waits, as a link would let it. So the
ratios tell how drafting gains by latency, and the speeds nothing of several machines. The default
is the toy pair, whose target is small: the head takes much of a round.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

import mlx_eagle
from mlx_eagle.tree_shape import TreeShape

LATENCIES = (0.0, 0.05, 0.2, 1.0)  # milliseconds
PROMPT = "What is the signature of shutil.copyfile?"
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"speculate": False},
    "chain of 4": {"tree": TreeShape.chain(4)},
    "tree of 8": {"tree": TreeShape(4, 4, 8)},
}


@contextmanager
def delayed(milliseconds: float) -> Iterator[None]:
    """Let rank 0 wait before each sum inside."""
    plain: Callable[..., mx.array] = mx.distributed.all_sum

    def wait_and_sum(x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        mx.eval(x)
        time.sleep(milliseconds / 1e3)
        return plain(x, *args, **kwargs)

    if milliseconds:
        mx.distributed.all_sum = wait_and_sum
    try:
        yield
    finally:
        mx.distributed.all_sum = plain


def loopback_file(folder: Path) -> Path:
    """Write a hosts file of two processes on this machine."""
    file = folder / "hosts.json"
    file.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    return file


def speeds(engine: "mlx_eagle.Engine", n_tokens: int, repeats: int) -> dict[str, float]:
    """Return the best tokens per second of each way to decode; all give the same tokens."""
    found: dict[str, float] = dict.fromkeys(WAYS, 0.0)
    options = {"max_tokens": n_tokens, "ignore_eos": True}
    texts = set()
    for _ in range(repeats):
        for name, way in WAYS.items():
            answer = engine.generate([{"role": "user", "content": PROMPT}], **options, **way)
            found[name] = max(found[name], answer.stats.generation_tps)
            texts.add(answer.text)
    assert len(texts) == 1, "drafts have changed the text"
    return found


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--head")
    parser.add_argument("--latency", type=float, action="append", help="milliseconds")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hosts = loopback_file(Path(folder))
        engine = mlx_eagle.load(
            args.model or "demo", args.head, hosts=hosts, dtype="float32", calibrate=False
        )
    print("| ms before each sum | " + " | ".join(f"{name}, tok/s" for name in WAYS), end=" | ")
    print(" | ".join(f"{name} / plain" for name in WAYS if name != "plain") + " |")
    print("|---" * (2 * len(WAYS)) + "|")
    for latency in args.latency or LATENCIES:
        with delayed(latency):
            found = speeds(engine, args.tokens, args.repeats)
        ratios = [f"{found[n] / found['plain']:.2f}" for n in WAYS if n != "plain"]
        cells = [f"{latency:g}", *(f"{rate:.2f}" for rate in found.values()), *ratios]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
