#!/usr/bin/env python3
"""What a head accepts, and what drafting costs, as the conversation grows; with and without window.

    python benchmarks/long_context.py --target FIXTURES/pydoc-llama --head FIXTURES/pydoc-eagle3

Conversations about Python's standard library, with its own docstrings as the answers so far, are
made of about 256 to 8192 tokens. Then the target answers the prompts of the tests greedily, each
from a copy of that conversation, and the head drafts chains of 4. All heads see the same texts,
because none of them changes what the target says. Two columns for each window:
tokens per round, and milliseconds to take in what was accepted and draft.

The pair that is meant here was trained on texts of 512 tokens. `--max-kv-size` bounds the target's
cache, so that it sees no distances beyond them and goes on to write sense.
"""

import argparse
import importlib
import inspect
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

import mlx_eagle
from mlx_eagle.cache.attention_sinks import MovingSinkKVCache
from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill
from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.hub.head_choice import prepare_head
from mlx_eagle.planner.policy import FixedShape
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.tree import TreeShape

PROMPTS = Path(__file__).resolve().parents[1] / "tests" / "data" / "prompts.jsonl"
CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
WINDOWS = ("0", "2048", "512", "512-sinks", "256", "256-sinks")
MODULES = ("argparse", "collections", "datetime", "heapq", "json", "logging", "pathlib", "random")
CHUNK = 512  # tokens of the conversation that are run at a time
TOKENS = 64  # of an answer, at most


class Measured(NamedTuple):
    """One head after one conversation: tokens and rounds, seconds to draft and to verify."""

    tokens: int
    rounds: int
    draft: float
    verify: float


def turns() -> Iterator[list[dict[str, str]]]:
    """Yield questions about what has documentation, each with the documentation as the answer."""
    for name in MODULES:
        module = importlib.import_module(name)
        owners = [module, *(kind for _, kind in inspect.getmembers(module, inspect.isclass))]
        members = [
            each for owner in owners for each in inspect.getmembers(owner, inspect.isroutine)
        ]
        for member, value in members:
            text = inspect.getdoc(value) or ""
            if 40 < len(text) < 600 and not member.startswith("_"):
                asked = {"role": "user", "content": f"What does {name}.{member} do?"}
                yield [asked, {"role": "assistant", "content": text}]


def history_of(tokenizer: Any, length: int) -> list[dict[str, str]]:
    """Return the messages of whole turns, of `length` tokens together or a little fewer."""
    messages: list[dict[str, str]] = []
    held = 0
    for turn in turns():
        n = len(tokenizer.apply_chat_template(turn))
        if held + n <= length:
            messages, held = messages + turn, held + n
        if held > length - 20:
            break
    return messages


def make_drafter(engine: Any, window: str) -> EagleDrafter:
    """Return a drafter for a window as the command line names it: "512", or "512-sinks" without."""
    rows = int(window.removesuffix("-sinks"))
    drafter = EagleDrafter(engine.head, engine.target, rows)
    if window.endswith("-sinks"):
        ropes = [layer.self_attn.rope for layer in engine.head.layers]
        drafter.cache = TreeCache([MovingSinkKVCache(rope, rows, sinks=0) for rope in ropes])
    return drafter


def measure(decoder: Decoder, prompt: list[int], ends: set[int]) -> Measured:
    """Answer one prompt; `decoder` holds its beginning."""
    prefill(decoder, prompt)
    n_tokens, done, draft, verify = 0, [], [], []
    stream = rounds(decoder, prompt[-1], FixedShape(TreeShape.chain(4)))
    next(stream)  # plain, by design
    for each in stream:
        done.append(each)
        n_tokens += len(each.tokens)
        if ends & set(each.tokens) or n_tokens >= TOKENS:
            break
    stream.close()
    for each in done:
        assert each.times.draft is not None and each.times.verify is not None, "a CPU tells them"
        draft.append(each.times.draft)
        verify.append(each.times.verify)
    return Measured(n_tokens, len(done), statistics.median(draft), statistics.median(verify))


def measure_all(engine: Any, length: int, windows: Sequence[str], questions: list[str]) -> Any:
    """Return the tokens of a conversation, and for every window what was measured after it."""
    target, tokenizer = engine.target, engine.tokenizer
    history = history_of(tokenizer, length)
    ids = tokenizer.apply_chat_template(history)
    tokens = mx.array(ids, dtype=mx.int32)
    cache, drafters = target.make_cache(), [make_drafter(engine, window) for window in windows]
    for start in range(0, len(ids) - 1, CHUNK):
        end = min(start + CHUNK, len(ids) - 1)
        taps = target.extend(tokens[start:end], cache)
        for drafter in drafters:
            drafter.observe(taps, tokens[start + 1 : end + 1])
        mx.eval(cache.buffers, [drafter.buffers for drafter in drafters])
        mx.clear_cache()
    found: dict[str, list[Measured]] = {window: [] for window in windows}
    for question in questions:
        asked = [*history, {"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)
        assert prompt[: len(ids)] == ids, "a conversation begins as it did"
        for window, drafter in zip(windows, drafters, strict=True):
            decoder = Decoder(target, cache.fork(), drafter.fork(), TokenSelector(SeededSampler()))
            found[window].append(measure(decoder, prompt, set(tokenizer.eos_token_ids)))
    return len(ids), {window: _sum(parts) for window, parts in found.items()}


def _sum(parts: list[Measured]) -> Measured:
    """Return tokens and rounds of all answers, and the medians of their times."""
    return Measured(
        sum(part.tokens for part in parts),
        sum(part.rounds for part in parts),
        statistics.median(part.draft for part in parts),
        statistics.median(part.verify for part in parts),
    )


def choose_questions(n: int) -> list[str]:
    """Return n prompts of the tests, of all categories in turn."""
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    rows.sort(key=lambda row: row["category"])
    return [row["prompt"] for row in rows[:: max(1, len(rows) // n)]][:n]


def main() -> None:
    """Parse the command line, measure, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--head", type=Path, required=True, help="converted or as published")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--windows", nargs="+", default=WINDOWS, help="0: none; 512-sinks: without")
    parser.add_argument("--prompts", type=int, default=20, help="answered after every conversation")
    parser.add_argument("--max-kv-size", type=int, help="bounds the target's cache")
    args = parser.parse_args()
    head = prepare_head(args.head, args.target, bits=None)
    engine = mlx_eagle.load(args.target, head, dtype="float32", calibrate=False)
    engine.target.kv = KVOptions(max_size=args.max_kv_size)
    titles = [f"{window}: tokens | ms" for window in args.windows]
    print(f"| context | rounds | verify ms | {' | '.join(titles)} |")
    print("|" + "---|" * (3 + 2 * len(titles)))
    for length in args.contexts:
        n, found = measure_all(engine, length, args.windows, choose_questions(args.prompts))
        verify = 1000 * statistics.median(part.verify for part in found.values())
        cells = [f"{p.tokens / p.rounds:.2f} | {1000 * p.draft:.1f}" for p in found.values()]
        least = min(part.rounds for part in found.values())
        print(f"| {n} | {least} | {verify:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
