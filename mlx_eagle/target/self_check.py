"""Whether a loaded target verifies trees, or chains only: tried with a few tokens.

Model code is mlx-lm's and changes. What a cache or rope class does with a vector of positions, or
whether the state of a layer can go back, cannot be read off its name. So it is tried at load time:
the path to the deepest node of a small tree must give the logits that it gives as a plain sequence
with mlx-lm's own caches. Where that fails, chains are tried: some of their tokens are rejected, and
the tokens after them must get the logits that they get after the accepted ones alone.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.target.positions import is_rope, rotates_rows_alike
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

# Relative difference of the logits that rounding may explain; a visible sibling gives far more.
TOLERANCE = 1e-3  # in float32 on a CPU
TOLERANCE_16_BIT = 5e-2  # and on a GPU, where float32 may be multiplied in fewer bits (TF32)
# How much more may differ than between the same tokens at once and one by one, with mlx-lm's own
# caches: experts of a mixture are chosen otherwise where rounding tips the scales.
OVER_FLOOR = 4
MOST = 0.25  # whatever the floor: a model that differs from itself by more is not to be judged

PREFIX = [1, 2, 3, 4, 5]
# A root, ten siblings below it, and a child of the last: where code would place the nodes in a row,
# that child stands nine positions too far on; where they saw their siblings, the last sees nine.
TOKENS = [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
PARENTS = [0] * 11 + [10]
PATH = [0, 10, 11]

# Chains and how many tokens of each are accepted: two in part, one whole.
CHAINS = (([6, 7, 8, 9], 2), ([10, 11, 12], 1), ([13, 14], 2), ([15, 16], 2))

ADVICE = "load it without a head to decode plainly"


def check_tree_verification(target: Target) -> None:
    """Find out whether the target verifies trees; where it does not, whether it verifies chains.

    A target that verifies chains only says so from then on.

    Raises:
        UnsupportedTargetError: if it fails on both, or answers differently.
        ClusterError: if another machine is lost meanwhile.
    """
    with target.checking():
        _check_verification(target)


def _check_verification(target: Target) -> None:
    """Do what `check_tree_verification` does."""
    if target.chains_only:
        _check_chains(target)
        return
    try:
        _check_tree(target)
    except UnsupportedTargetError as error:
        target.chains_only = True
        try:
            _check_chains(target)
        except UnsupportedTargetError:
            target.chains_only = False
            raise error from None


def check_kv_options(target: Target) -> None:
    """Try the caches that `target.kv` asks for.

    Raises:
        UnsupportedTargetError: if model code cannot read them.
    """
    if target.kv == WHOLE:
        return
    try:
        cache = target.make_cache()
        target.extend(mx.array(PREFIX, dtype=mx.int32), cache)
        chain = DraftTree.chain(mx.array(TOKENS, dtype=mx.int32))
        mx.eval(target.verify(chain, cache).logits)
    except UnsupportedTargetError:
        raise
    except target.foreign_errors:
        raise
    except Exception as error:  # model code may stumble over quantized rows in any way
        option = "kv_bits" if target.kv.bits is not None else "max_kv_size"
        raise UnsupportedTargetError(
            f"mlx-lm's {_name(target)} model cannot read the KV cache that {option} asks for "
            f"({error}); leave {option} out"
        ) from error


def with_caches(target: Target, kv: KVOptions) -> Target:
    """Return a target on the same model whose caches keep what `kv` says.

    Raises:
        UnsupportedTargetError: if model code cannot read such caches.
    """
    twin = target.twin()
    twin.kv = kv
    check_kv_options(twin)
    return twin


def _check_tree(target: Target) -> None:
    """Compare a tree with its longest path."""
    tree = DraftTree.static(mx.array(TOKENS, dtype=mx.int32), PARENTS)
    try:
        cache = target.make_cache()
        target.extend(mx.array(PREFIX, dtype=mx.int32), cache)
        found = target.verify(tree, cache).logits
        mx.eval(found)
    except target.foreign_errors:
        raise
    except Exception as error:  # model code may stumble over a vector of positions in any way
        raise UnsupportedTargetError(
            f"mlx-lm's {_name(target)} model uses the cache in a way that trees break ({error}); "
            f"{ADVICE}"
        ) from error
    path = [TOKENS[node] for node in PATH]
    expected = _plain_logits(target, [[*PREFIX, *path]])
    worst = _difference(found[mx.array(PATH)], expected)
    _compare(target, (worst, path), found.dtype, "for a tree than for its paths")


def _check_chains(target: Target) -> None:
    """Compare chains that are accepted in part with their accepted tokens alone."""
    if not all(rotates_rows_alike(m) for _, m in target.model.named_modules() if is_rope(m)):
        raise UnsupportedTargetError(
            f"mlx-lm's {_name(target)} model rotates keys by the length of the text (dynamic rope "
            f"scaling), so that they depend on how many tokens run at once; {ADVICE}"
        )
    cache, found = target.make_cache(), []
    try:
        target.extend(mx.array(PREFIX, dtype=mx.int32), cache)
        for tokens, n_accepted in CHAINS:
            tree = DraftTree.chain(mx.array(tokens, dtype=mx.int32))
            found.append(target.verify(tree, cache).logits[:n_accepted])
            cache.commit(range(n_accepted))
        mx.eval(found)
    except target.foreign_errors:
        raise
    except Exception as error:  # as above
        raise UnsupportedTargetError(
            f"mlx-lm's {_name(target)} model uses the cache in a way that chains break ({error}); "
            f"{ADVICE}"
        ) from error
    accepted = [[token] for tokens, n in CHAINS for token in tokens[:n]]
    worst = _difference(mx.concatenate(found), _plain_logits(target, [PREFIX, *accepted]))
    path = [token for step in accepted for token in step]
    what = "after part of a chain was rejected than without it"
    _compare(target, (worst, path), found[0].dtype, what)


def _compare(target: Target, found: tuple[float, list[int]], dtype: mx.Dtype, what: str) -> None:
    """Refuse a difference that rounding does not explain.

    Args:
        target: that was tried.
        found: the difference, and the tokens for which it was found.
        dtype: of the logits.
        what: when they differ.
    """
    worst, path = found
    is_exact = dtype == mx.float32 and mx.default_device() == mx.cpu
    if worst <= (TOLERANCE if is_exact else TOLERANCE_16_BIT):
        return
    floor = 0.0 if is_exact else _noise_floor(target, path)
    limit = TOLERANCE if is_exact else max(TOLERANCE_16_BIT, min(OVER_FLOOR * floor, MOST))
    if not worst <= limit:
        raise UnsupportedTargetError(
            f"mlx-lm's {_name(target)} model gives other logits {what} (relative difference "
            f"{worst:.2g}, at most {limit:.2g} expected); {ADVICE}"
        )


def _noise_floor(target: Target, path: list[int]) -> float:
    """Return how far mlx-lm's own model differs from itself: tokens at once, and one by one."""
    together = _plain_logits(target, [[*PREFIX, *path]])
    return _difference(_plain_logits(target, [PREFIX, *([token] for token in path)]), together)


def _name(target: Target) -> str:
    """Return what mlx-lm calls the model."""
    return type(target.model).__module__.rsplit(".", 1)[-1]


def _plain_logits(target: Target, steps: Sequence[Sequence[int]]) -> mx.array:
    """Return the logits [L, V] after the prefix, run in these steps with mlx-lm's own caches."""
    cache = make_prompt_cache(target.model)
    rows = [target.model(mx.array([step], dtype=mx.int32), cache=cache)[0] for step in steps]
    return mx.concatenate(rows)[len(PREFIX) :]


def _difference(found: mx.array, expected: mx.array) -> float:
    """Return the largest relative difference of rows of logits [L, V]."""
    got, want = found.astype(mx.float32), expected.astype(mx.float32)
    scale = mx.sqrt(mx.mean((want - want.mean(axis=-1, keepdims=True)) ** 2))
    return float(mx.max(mx.sqrt(mx.mean((got - want) ** 2, axis=-1)) / scale))
