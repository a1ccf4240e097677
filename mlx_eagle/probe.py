"""Does this target verify trees? A small tree against the same paths, at load time.

Model code is mlx-lm's and changes; what a cache or rope class does with a vector of positions
cannot be read off its name. So a loaded target is asked: every root-to-node path of a small tree
must give the logits that the path gives as a plain sequence with mlx-lm's own caches.
"""

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.target import Target
from mlx_eagle.tree import DraftTree

# Relative difference of the logits that rounding may explain; a visible sibling gives far more.
TOLERANCE = {mx.float32: 1e-3}
TOLERANCE_16_BIT = 5e-2

PREFIX = [1, 2, 3, 4, 5]
TOKENS = [6, 7, 8, 9]
PARENTS = [0, 0, 0, 2]  # two siblings; the second has a child
PATHS = ([0, 1], [0, 2, 3])


def check_tree_verification(target: Target) -> None:
    """Compare a tree of four nodes with its two paths.

    Raises:
        UnsupportedTargetError: if the target fails on a tree, or answers differently.
    """
    name = type(target.model).__module__.rsplit(".", 1)[-1]
    advice = "load it without a head to decode plainly"
    cache = target.make_cache()
    tree = DraftTree.static(mx.array(TOKENS, dtype=mx.int32), PARENTS)
    try:
        target.extend(mx.array(PREFIX, dtype=mx.int32), cache)
        found = target.verify(tree, cache).logits
        mx.eval(found)
    except Exception as error:  # model code may stumble over a vector of positions in any way
        raise UnsupportedTargetError(
            f"mlx-lm's {name} model uses the cache in a way that trees break ({error}); {advice}"
        ) from error
    worst = max(_difference(target, found, path) for path in PATHS)
    limit = TOLERANCE.get(found.dtype, TOLERANCE_16_BIT)
    if not worst <= limit:
        raise UnsupportedTargetError(
            f"mlx-lm's {name} model gives other logits for a tree than for its paths (relative "
            f"difference {worst:.2g}, at most {limit:.2g} expected); {advice}"
        )


def _difference(target: Target, found: mx.array, path: list[int]) -> float:
    """Return the relative difference of tree logits [N, V] and those of one path."""
    tokens = mx.array([PREFIX + [TOKENS[node] for node in path]], dtype=mx.int32)
    expected = target.model(tokens, cache=make_prompt_cache(target.model))[0, len(PREFIX) :]
    got, want = found[mx.array(path)].astype(mx.float32), expected.astype(mx.float32)
    scale = mx.sqrt(mx.mean((want - want.mean(axis=-1, keepdims=True)) ** 2))
    return float(mx.max(mx.sqrt(mx.mean((got - want) ** 2, axis=-1)) / scale))
