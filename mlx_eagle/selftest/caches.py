"""Whether caches hold after commits what plain decoding would have put there.

A tree is verified and a random path of it kept, several times; the tokens that follow must then get
the logits that they get after the same tokens run as one prompt.
"""

import random
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.target.self_check import with_caches
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

KINDS = {
    "whole": WHOLE,
    "8 bits": KVOptions(bits=8, group_size=32),
    "4 bits": KVOptions(bits=4, group_size=32),
    "48 rows": KVOptions(max_size=48),
}
TREE = [0, 0, 1, 0, 2, 1, 4, 0]  # parents
CHAIN = [max(node - 1, 0) for node in range(5)]
ROUNDS = 12
NEXT = 4  # tokens after the commits, of which the logits are compared
FLOOR, OVER_FLOOR = 1e-3, 4.0  # what may differ anyway, and how much more than rounding alone does


class CacheCheck(NamedTuple):
    """What became of one kind of cache.

    Attributes:
        kind: of the cache.
        difference: of the logits after commits, relative to their spread; None where the target's
            code cannot read such a cache.
        floor: the same between one prompt at once and in two parts, where nothing was committed.
        is_right: whether the difference is explained by rounding.
    """

    kind: str
    difference: float | None
    floor: float | None
    is_right: bool


def check_caches(target: Target) -> list[CacheCheck]:
    """Try every kind of cache on a target that verifies trees, or chains."""
    return [_check(target, kind, options) for kind, options in KINDS.items()]


def _check(target: Target, kind: str, options: KVOptions) -> CacheCheck:
    try:
        target = with_caches(target, options)
    except UnsupportedTargetError:
        return CacheCheck(kind, None, None, is_right=True)
    chance = random.Random(1)
    n_tokens = target.vocab_size or 1000
    tokens = [chance.randrange(3, n_tokens) for _ in range(24)]
    cache = target.make_cache()
    target.extend(mx.array(tokens), cache)
    for _ in range(ROUNDS):
        parents = CHAIN if target.chains_only else TREE
        drafted = [chance.randrange(3, n_tokens) for _ in parents]
        mx.eval(target.verify(DraftTree.static(mx.array(drafted), parents), cache).logits)
        path = _random_path(parents, chance)
        cache.commit(path)
        tokens += [drafted[node] for node in path]
    following = mx.array([chance.randrange(3, n_tokens) for _ in range(NEXT)])
    found = target.verify(DraftTree.chain(following), cache).logits
    expected = _logits(target, [tokens], following)
    half = len(tokens) // 2
    floor = _difference(_logits(target, [tokens[:half], tokens[half:]], following), expected)
    difference = _difference(found, expected)
    return CacheCheck(kind, difference, floor, difference <= max(FLOOR, OVER_FLOOR * floor))


def _random_path(parents: list[int], chance: random.Random) -> list[int]:
    """Return the nodes from the root to a random one."""
    path = [chance.randrange(len(parents))]
    while path[0]:
        path.insert(0, parents[path[0]])
    return path


def _logits(target: Target, parts: list[list[int]], following: mx.array) -> mx.array:
    """Return the logits [NEXT, V] of tokens that follow a text, which is run in these parts."""
    cache = target.make_cache()
    for part in parts:
        target.extend(mx.array(part), cache)
    return target.verify(DraftTree.chain(following), cache).logits


def _difference(found: mx.array, expected: mx.array) -> float:
    """Return the largest difference of logits, relative to the spread of what is expected."""
    got, want = (np.array(logits.astype(mx.float32)) for logits in (found, expected))
    difference: Any = np.abs(got - want).max() / want.std()
    return float(difference)
