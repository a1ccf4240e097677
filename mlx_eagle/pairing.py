"""A target and the head for it: loaded, and checked against each other."""

from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer

from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.errors import CheckpointError, EagleError, UnsupportedTargetError
from mlx_eagle.heads.load import Head, load_head
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.hub.head_choice import HeadChoice
from mlx_eagle.target.self_check import check_kv_options, check_tree_verification
from mlx_eagle.target.target import Target

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Pair(NamedTuple):
    """A target, perhaps a head, and whether there is speculation, or why not."""

    target: Target
    head: Head | None
    speculation: str


def equip(network: nn.Module, choice: HeadChoice, kv: KVOptions = WHOLE) -> Pair:
    """Return the target, and its head if there is one that works.

    Args:
        network: the target as mlx-lm loads it.
        choice: which head, and whether the user named it.
        kv: what the target's caches keep.

    Raises:
        EagleError: if a head that the user named does not work with the target, or the target not
            with such caches.
    """
    pair = _equip(network, choice)
    pair.target.kv = kv
    check_kv_options(pair.target)
    return pair


def _equip(network: nn.Module, choice: HeadChoice) -> Pair:
    """Do what `equip` does, with caches that keep everything."""
    if choice.folder is None:
        return Pair(_without_head(network), None, f"off: {choice.reason}")
    try:
        head = load_head(choice.folder)
        return Pair(_with_head(network, head), head, "on")
    except EagleError as error:
        if choice.is_named:
            raise
        return Pair(_without_head(network), None, f"off: {choice.name}: {error}")


def _dtype(name: str | None) -> mx.Dtype | None:
    """Return the type to compute in; None keeps what is stored."""
    if name is None:
        return mx.float32 if mx.default_device() == mx.cpu else None
    if name not in DTYPES:
        raise EagleError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load_target(folder: Path, dtype: str | None = None) -> tuple[nn.Module, Any]:
    """Load model and tokenizer with mlx-lm's loader; remote code is refused.

    Args:
        folder: the model.
        dtype: as for `load`.

    Raises:
        EagleError: if mlx-lm cannot load it.
    """
    compute_type = _dtype(dtype)
    try:
        network, config = load_model(folder, lazy=True)
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as error:  # mlx-lm, transformers and the tokenizers share no error type
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{folder} is not a target that mlx-lm can load ({reason})"
        ) from error
    if compute_type is not None:
        network.set_dtype(compute_type)
    return network, tokenizer


def _with_head(network: nn.Module, head: Head) -> Target:
    """Return the target, tapped for the head; a target that cannot verify trees is refused."""
    target = Target(network, head.config.taps)
    check_fit(head, target)
    check_tree_verification(target)
    return target


def _without_head(network: nn.Module) -> Target:
    """Return the target for plain decoding, with mlx-lm's own caches where ours do not fit."""
    try:
        target = Target(network)
        check_tree_verification(target)
    except UnsupportedTargetError:
        return Target(network, speculate=False)
    return target


def check_fit(head: Head, target: Target) -> None:
    """Give the head the target's type, after checking that they belong together.

    Raises:
        CheckpointError: if sizes differ.
    """
    config, sample = head.config, target.embedding(mx.array([0]))
    vocab, hidden = target.vocab_size, sample.shape[-1]
    found = {"hidden size": (config.target_hidden_size, hidden)}
    found["vocabulary"] = (config.target_vocab_size, vocab)
    wrong = [f"{what} {a} (target: {b})" for what, (a, b) in found.items() if a != b]
    if config.hidden_size != hidden and _borrows(head):
        wrong.append(f"own hidden size {config.hidden_size} (target: {hidden})")
    if wrong:
        raise CheckpointError(
            f"the head was made for another target: {', '.join(wrong)}; "
            "give the target that the head was trained for"
        )
    head.set_dtype(sample.dtype)


def _borrows(head: Head) -> bool:
    """Say whether a head uses the target's embedding or output layer, which fix its width."""
    if isinstance(head, MedusaHead):
        return True
    return not (head.config.own_embedding and head.config.own_lm_head)


def precision(network: nn.Module) -> str:
    """Say how a network's weights are stored, e.g. "8-bit, group 64" or "float32"."""
    kinds = {
        f"{module.bits}-bit, group {module.group_size}"
        for _, module in network.named_modules()
        if isinstance(module, nn.QuantizedLinear)
    }
    if kinds:
        return " and ".join(sorted(kinds))
    largest = max(dict(tree_flatten(network.parameters())).values(), key=lambda array: array.size)
    return str(largest.dtype).removeprefix("mlx.core.")
