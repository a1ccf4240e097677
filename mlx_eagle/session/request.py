"""A request, checked before anything runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mlx_eagle.calibration.planners import Planners
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.token_selector import TokenSelector, TreeConstraint
from mlx_eagle.session.limits import Budget, Limits
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.prefix import Context
from mlx_eagle.session.prompt import Prompt, check_ids, encode, is_messages, turns_dropped
from mlx_eagle.session.selector import make_processors, make_sampler
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape


class Resources(NamedTuple):
    """What the conversations of an engine share.

    Attributes:
        target: the target.
        tokenizer: mlx-lm's wrapper of its tokenizer.
        make_drafter: makes a drafter with an empty cache; None if there is no head.
        speculation: "on", or "off: reason".
        planners: what plans the trees.
        limits: how long conversations may become.
        constrain: returns what constrains an answer, by its options; None: nothing can.
        identity: returns what a saved conversation must agree with, in words by what they are of.
    """

    target: Target
    tokenizer: Any
    make_drafter: Callable[[], Drafter] | None
    speculation: str
    planners: Planners
    limits: Limits = Limits()
    constrain: Callable[[GenerationOptions], TreeConstraint | None] | None = None
    identity: Callable[[], dict[str, str]] | None = None


class Request(NamedTuple):
    """A checked request: the token ids of its prompt, its options, and how many tokens it may take.

    `n_dropped` messages were left out because they did not fit.
    """

    ids: list[int]
    options: GenerationOptions
    budget: Budget | None
    n_dropped: int
    selector: TokenSelector


def check_request(
    resources: Resources, context: Context, prompt: Prompt, options: GenerationOptions
) -> Request:
    """Return a request that can be answered.

    Args:
        resources: of the engine.
        context: in which it will be answered; not changed.
        prompt: a string or token ids, used as they are, or chat messages for the template.
        options: how to answer.

    Raises:
        EagleError: if the prompt is empty, of another kind or too long, or something that was
            asked for cannot be done.
    """
    target, tokenizer = resources.target, resources.tokenizer
    budget = resources.limits.budget(0 if context.is_shared else context.cache.rows)
    ids, n_dropped = encode(tokenizer, prompt), 0
    can_drop = is_messages(prompt) and any(turns_dropped(prompt))
    if budget is not None and can_drop and options.overflow == "truncate":
        # An answer should fit, but a high limit must not cost the conversation.
        most = budget.tokens - min(options.max_tokens, budget.tokens // 4)
        candidates = turns_dropped(prompt) if len(ids) > most else iter(())
        for kept in candidates:
            n_dropped, ids = len(prompt) - len(kept), encode(tokenizer, kept)
            if len(ids) <= most:
                break
    check_ids(ids, target.vocab_size)
    if budget is not None:
        budget.check(len(ids), can_drop and options.overflow == "refuse")
    if options.tree is not None and context.drafter is not None:
        target.check_shape(options.tree)
        _check_tree(options.tree, context.drafter)
    if target.vocab_size is not None:
        options.check_bias(target.vocab_size)
    constraint = resources.constrain(options) if resources.constrain else None
    sampler, processors = make_sampler(options), make_processors(options)
    selector = TokenSelector(sampler, processors, constraint, ids[:-1])
    return Request(ids, options, budget, n_dropped, selector)


def _check_tree(tree: TreeShape, drafter: Drafter) -> None:
    """Refuse trees that the drafter cannot make."""
    if tree.width > drafter.max_width:
        raise EagleError(
            f"a tree of width {tree.width} was asked for, but the head proposes among "
            f"{drafter.max_width} tokens"
        )
    if tree.depth > drafter.max_depth:
        raise EagleError(
            f"a tree of depth {tree.depth} was asked for, but the head proposes "
            f"{drafter.max_depth} tokens in a row"
        )
