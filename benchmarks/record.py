#!/usr/bin/env python3
"""Records what the fixture pair's head drafts at every position of its target's own text.

    python benchmarks/record.py --fixtures ../shared/fixtures --out benchmarks/traces/pydoc.npz

The target writes greedily, in float32. At every position the head drafts the likeliest children of
its likeliest token, level by level, and the candidates of EAGLE-2's tree at each width; the text
says which of them the target would have accepted. A drafter recomputes accepted rows from true taps
(`EagleDrafter`), so what it drafts at a position does not depend on the rounds that led there: any
policy can be replayed on these traces, and all of them see the same head. `replay.py` reads them.
Six minutes on two cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

import mlx_eagle
from mlx_eagle.decoding.prefill import prefill
from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.drafters.early_stop import draft_with_checks
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.hub.head_choice import prepare_head
from mlx_eagle.planner.planner import CHILDREN
from mlx_eagle.planner.policy import Level, Node
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.tree import DraftTree, TreeShape

DEPTH = 8  # levels that are drafted at every position
WIDTHS = (2, 3, 4)  # of EAGLE-2's trees
NONE = 255  # as a rank: the target's token is not among the candidates


class Position(NamedTuple):
    """What was drafted below one token of the text.

    Attributes:
        confidences: [DEPTH, CHILDREN] draft probability of each child of the likeliest node.
        hits: [DEPTH] int8, which of these children the target chose; -1 for none of them, and
            where the target has already left the likeliest path.
        ranks: [len(WIDTHS), DEPTH, DEPTH] uint8. Entry (w, k, d): how many candidates of a tree of
            depth d + 1 score above the one at level k that continues the target's text. So a tree
            of n nodes accepts it where the entry is below n.
    """

    confidences: np.ndarray
    hits: np.ndarray
    ranks: np.ndarray


class _Everything:
    """A check that drafts as deep as it may."""

    def deeper(self, level: Level) -> bool:
        """Ask for another level."""
        return True

    def choose(self) -> list[Node]:
        """Choose nothing: nothing is verified."""
        return []


def choose_prompts(fixtures: Path, per_category: int) -> list[dict[str, str]]:
    """Return the first prompts of every category, in the order of the file."""
    taken: dict[str, int] = {}
    chosen = []
    for line in (fixtures / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        taken[row["category"]] = taken.get(row["category"], 0) + 1
        if taken[row["category"]] <= per_category:
            chosen.append(row)
    return chosen


def record_prompt(engine: Any, prompt: list[int], n: int) -> list[Position]:
    """Return the first n positions of the target's answer."""
    text = engine.generate(prompt, max_tokens=n + DEPTH + 1, speculate=False, ignore_eos=True)
    drafter = make_drafter(engine.head, engine.target)
    cache = engine.target.make_cache()
    prefill(Decoder(engine.target, cache, drafter, TokenSelector(SeededSampler())), prompt)
    root, found = prompt[-1], []
    for at, token in enumerate(text.tokens[:n]):
        chain = DraftTree.chain(mx.array([root], dtype=mx.int32))
        taps = engine.target.verify(chain, cache).taps
        cache.commit([0])
        drafter.observe(taps, mx.array([token], dtype=mx.int32))
        root = token
        found.append(record_position(drafter, root, text.tokens[at + 1 : at + 1 + DEPTH]))
    return found


def record_position(drafter: Drafter, root: int, future: list[int]) -> Position:
    """Return what the drafter proposes below `root`, judged by the DEPTH tokens that follow it."""
    levels = draft_with_checks(drafter, _Everything(), DEPTH)
    hits = np.full(DEPTH, -1, dtype=np.int8)
    for depth, (level, token) in enumerate(zip(levels, future, strict=True)):
        tokens = list(level.tokens)
        hits[depth] = tokens.index(token) if token in tokens else -1
        if hits[depth] != 0:
            break
    ranks = []
    for width in WIDTHS:
        shape = TreeShape(DEPTH, width, TreeShape(DEPTH, width, 1).n_candidates)
        tree = drafter.draft(mx.array([root], dtype=mx.int32), shape)
        ranks.append(rank_hits(tree, future))
    confidences = np.array([level.confidences for level in levels], dtype=np.float16)
    assert confidences.shape == (DEPTH, CHILDREN), confidences.shape
    return Position(confidences, hits, np.stack(ranks))


def rank_hits(tree: DraftTree, future: list[int]) -> np.ndarray:
    """Return [DEPTH, DEPTH] uint8: the entries (k, d) of `Position.ranks` for one width."""
    tokens, parents, depths = (np.array(part) for part in (tree.tokens, tree.parents, tree.depths))
    order = np.argsort(-np.array(tree.log_probs)[1:], kind="stable") + 1  # ties: made first
    ranks = np.full((DEPTH, DEPTH), NONE, dtype=np.uint8)
    node = 0
    for level, token in enumerate(future):
        children = np.flatnonzero((parents == node) & (tokens == token) & (depths == level + 1))
        if not children.size:
            break
        node = children[0]
        above = depths[order[: np.flatnonzero(order == node)[0]]]
        for deepest in range(level, DEPTH):
            ranks[level, deepest] = np.count_nonzero(above <= deepest + 1)
    return ranks


def main() -> None:
    """Parse the command line, record, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of the trained pair")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--prompts", type=int, default=16, help="of every category")
    parser.add_argument("--tokens", type=int, default=64, help="positions of every prompt")
    args = parser.parse_args()
    target = args.fixtures / "pydoc-llama"
    head = prepare_head(args.fixtures / "pydoc-eagle3", target, bits=None)
    engine = mlx_eagle.load(target, head, dtype="float32")
    rows = choose_prompts(args.fixtures, args.prompts)
    recorded = []
    for done, row in enumerate(rows, start=1):
        prompt = engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True
        )
        recorded.append(record_prompt(engine, prompt, args.tokens))
        print(f"{done} of {len(rows)}", flush=True)
    columns = {"categories": np.array([row["category"] for row in rows])}
    for at, name in enumerate(Position._fields):
        columns[name] = np.array([[position[at] for position in text] for text in recorded])
    np.savez_compressed(args.out, allow_pickle=False, **columns)


if __name__ == "__main__":
    main()
