"""A target and its head put together: the head must fit, and the target must verify trees.

A head that does not work leaves nothing on the target.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.nn as nn

from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.drafters.make import check_fit
from mlx_eagle.errors import ClusterError, EagleError, UnsupportedTargetError
from mlx_eagle.heads.draft_model import DraftModel, load_draft_model
from mlx_eagle.heads.load import AnyHead, Head, load_head
from mlx_eagle.heads.ngram import JoinedHead, NgramHead
from mlx_eagle.hub.head_choice import HeadChoice
from mlx_eagle.speculation import ON, Speculation
from mlx_eagle.target.self_check import check_kv_options, check_tree_verification
from mlx_eagle.target.target import Target


class Pair(NamedTuple):
    """A target, perhaps a head for it, and whether there is speculation."""

    target: Target
    head: AnyHead | None
    status: Speculation


class Company(NamedTuple):
    """What a head that is a model itself must suit, and what becomes of the network.

    Attributes:
        tokenizer: the target's.
        dtype: in which the target computes, as `LoadOptions` has it.
        make_target: returns the target; takes what `Target` takes.
        max_context: tokens that a text may have, if the user says so.
    """

    tokenizer: Any = None
    dtype: str | None = None
    make_target: Callable[..., Target] = Target
    max_context: int | None = None


ALONE = Company()


def pair_up(
    network: nn.Module, choice: HeadChoice, kv: KVOptions = WHOLE, company: Company = ALONE
) -> Pair:
    """Return the target, and its head if there is one that works.

    A head that does not work leaves nothing on the target.

    Args:
        network: the target as mlx-lm loads it.
        choice: which head, and whether the user named it.
        kv: what the target's caches keep.
        company: for draft models, and how the target is made.

    Raises:
        EagleError: if a head that the user named does not work with the target, or the target not
            with such caches.
    """
    pair = _pair_up(network, choice, company)
    pair.target.kv = kv
    check_kv_options(pair.target)
    return pair


def pair_again(target: Target, choice: HeadChoice, company: Company = ALONE) -> Pair:
    """Return a target that is in use, and another head for it, which the user named.

    Args:
        target: with its hooks and caches, which it keeps.
        choice: which head.
        company: for draft models.

    Raises:
        EagleError: if there is none, or it does not work with the target.
    """
    if not choice.drafts:
        return Pair(target, None, Speculation.off(choice.reason))
    head = read_head(choice, company)
    twin = target.twin(head.config.taps)
    twin.kv = WHOLE  # in which trees are checked exactly
    twin = _checked(twin, head)
    twin.kv = target.kv
    check_kv_options(twin)
    return Pair(twin, head, ON)


def _pair_up(network: nn.Module, choice: HeadChoice, company: Company) -> Pair:
    """Do what `pair_up` does, with caches that keep everything."""
    if not choice.drafts:
        return Pair(_without_head(network, company), None, Speculation.off(choice.reason))
    try:
        head = read_head(choice, company)
        return Pair(_with_head(network, head, company), head, ON)
    except ClusterError:
        raise
    except EagleError as error:
        if choice.is_named:
            raise
        reason = f"{choice.name}: {error}"
        return Pair(_without_head(network, company), None, Speculation.off(reason))


def read_head(choice: HeadChoice, company: Company = ALONE) -> AnyHead:
    """Return what a choice drafts with.

    Args:
        choice: which is not to go without.
        company: for draft models.

    Raises:
        EagleError: if the folder holds no converted head, or no draft model for this company.
    """
    if choice.folder is None:
        return NgramHead()
    head: Head | DraftModel
    if choice.is_draft_model:
        asked = company.dtype, company.max_context
        head = load_draft_model(choice.folder, company.tokenizer, *asked)
    else:
        head = load_head(choice.folder)
    return JoinedHead(head) if choice.has_lookup else head


def _with_head(network: nn.Module, head: AnyHead, company: Company) -> Target:
    """Return the target, tapped for the head; a target that cannot verify trees is refused."""
    return _checked(company.make_target(network, head.config.taps), head)


def _checked(target: Target, head: AnyHead) -> Target:
    """Return a target that fits the head and verifies trees; another one is refused."""
    try:
        check_fit(head, target)
        check_tree_verification(target)
    except EagleError:
        target.release()
        raise
    return target


def _without_head(network: nn.Module, company: Company) -> Target:
    """Return the target for plain decoding, with mlx-lm's own caches where ours do not fit."""
    try:
        target = company.make_target(network)
    except UnsupportedTargetError:
        return company.make_target(network, speculate=False)
    try:
        check_tree_verification(target)
    except UnsupportedTargetError:
        target.release()
        return company.make_target(network, speculate=False)
    return target
