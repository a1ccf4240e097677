"""A request, checked before anything runs, so that what is refused loses nothing."""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mlx_eagle.drafters.base import Drafter, DraftsStatic, Draws
from mlx_eagle.drafters.medusa import MedusaDrafter
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.options import RATIO
from mlx_eagle.sampling.samplers import Sampler, SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.session.limits import Budget
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.prefix import CachedPrefix
from mlx_eagle.session.prompt import (
    Prompt,
    Template,
    check_ids,
    encode,
    is_messages,
    messages_of,
    turns_dropped,
)
from mlx_eagle.session.selector import make_constraint, make_processors, make_sampler
from mlx_eagle.static_tree import MeasuredTree, Shape, StaticTree

if TYPE_CHECKING:
    from mlx_eagle.engine import Engine

ANSWER_SHARE = 4  # an answer should have room: at least one in so many tokens of the budget


class Request(NamedTuple):
    """A request that can be answered.

    Attributes:
        ids: token ids of its prompt.
        options: how to answer.
        budget: how many tokens it may take; None: unbounded.
        n_dropped: messages that were left out because they did not fit.
        selector: chooses the tokens of the answer.
        sampler: by which it draws them.
        seed: of the draws; None where nothing is drawn, or a sampler made for mlx-lm draws.
        begun: what the answer continues: an answer that the messages begin, or an opened thought.
    """

    ids: list[int]
    options: GenerationOptions
    budget: Budget | None
    n_dropped: int
    selector: TokenSelector
    sampler: Sampler
    seed: int | None
    begun: str


def check_request(
    engine: "Engine", prefix: CachedPrefix, prompt: Prompt, options: GenerationOptions
) -> Request:
    """Return a request that can be answered.

    Args:
        engine: which will answer it.
        prefix: of the conversation in which it will be answered; not changed.
        prompt: a string or token ids, used as they are, or chat messages for the template.
        options: how to answer.

    Raises:
        EagleError: if the prompt is empty, of another kind or too long, or something that was
            asked for cannot be done.
    """
    budget = engine.budget(0 if prefix.is_shared else prefix.cache.rows)
    ids, n_dropped = _fit(engine, prompt, options, budget)
    vocab_size = engine.target.vocab_size
    check_ids(ids, vocab_size)
    if budget is not None:
        budget.check(len(ids), _can_drop(prompt) and options.overflow == "refuse")
    options = check_drafting(engine, prefix.drafter, options)
    if vocab_size is not None:
        options.check_bias(vocab_size)
    begun = engine.answer_format.begun(ids, messages_of(prompt))
    constraint = make_constraint(options, engine, begun)
    sampler, processors = make_sampler(options), make_processors(options)
    selector = TokenSelector(sampler, processors, constraint, ids[:-1])
    return Request(ids, options, budget, n_dropped, selector, sampler, _seed(sampler), begun)


def check_drafting(
    engine: "Engine", drafter: Drafter | None, options: GenerationOptions
) -> GenerationOptions:
    """Return options whose tree and rule this engine can draft by.

    Args:
        engine: which will answer.
        drafter: of its head; None where nothing is drafted, so that nothing is refused.
        options: how to answer.

    Raises:
        EagleError: if the drafter does not make such trees, or the target cannot verify them.
    """
    if drafter is None:
        return options
    if isinstance(options.tree, MeasuredTree):
        _check_structure(options.tree, drafter)
        options = replace(options, tree=engine.planners.measured_tree(options.tree))
    if isinstance(options.tree, Shape):
        engine.target.check_shape(options.tree)
        _check_tree(options.tree, drafter)
    if options.speculate and options.rule == RATIO:
        check_draws(engine.info.head, drafter)
    return options


def _seed(sampler: Sampler) -> int | None:
    """Return the seed by which an answer is drawn, if it is."""
    if isinstance(sampler, SeededSampler) and sampler.temperature > 0:
        return sampler.seed
    return None


def _fit(
    engine: "Engine", prompt: Prompt, options: GenerationOptions, budget: Budget | None
) -> tuple[list[int], int]:
    """Return the token ids of a prompt, and how many messages were left out to make it fit.

    An answer should fit after it, but a high limit of tokens must not cost the conversation.
    """
    template = Template(options.template_args or {}, options.tools)
    ids, n_dropped = encode(engine.tokenizer, prompt, template), 0
    if budget is None or options.overflow != "truncate" or not is_messages(prompt):
        return ids, n_dropped
    most = budget.tokens - min(options.max_tokens, budget.tokens // ANSWER_SHARE)
    for kept in turns_dropped(prompt):
        if len(ids) <= most:
            break
        n_dropped, ids = len(prompt) - len(kept), encode(engine.tokenizer, kept, template)
    return ids, n_dropped


def _can_drop(prompt: Prompt) -> bool:
    """Say whether a prompt has turns that could be left out."""
    return is_messages(prompt) and any(turns_dropped(prompt))


def check_draws(name: str, drafter: Drafter | None) -> None:
    """Refuse the rule of ratios for drafts that are not drawn.

    Raises:
        EagleError: saying what to do instead.
    """
    if not isinstance(drafter, Draws):
        raise EagleError(
            f"acceptance is 'ratio', but the drafts of {name or 'this head'} are chosen, not "
            "drawn: give a draft model alone (--head draft:NAME), or accept by 'match'"
        )


def _check_structure(tree: StaticTree | MeasuredTree, drafter: Drafter) -> None:
    """Refuse trees of a fixed structure for drafters that make none, or none that is measured."""
    if not isinstance(drafter, DraftsStatic):
        raise EagleError(
            f"the tree {tree.text} has a fixed structure, which neither lookup nor a head that "
            "drafts a block at once fills; give sizes, such as 4x2x8"
        )
    if isinstance(tree, MeasuredTree) and not isinstance(drafter, MedusaDrafter):
        raise EagleError(
            f"the tree {tree.text} is built from how often each rank of Medusa heads is right, and "
            "this is no such head; give a published tree (eagle1), or sizes, such as 4x2x8"
        )


def _check_tree(tree: Shape, drafter: Drafter) -> None:
    """Refuse trees that the drafter cannot make."""
    if isinstance(tree, StaticTree):
        _check_structure(tree, drafter)
    if tree.width > drafter.max_width:
        most = f"among {drafter.max_width} tokens" if drafter.max_width > 1 else "chains only"
        raise EagleError(
            f"a tree of width {tree.width} was asked for, but the head proposes {most}"
        )
    if tree.depth > drafter.max_depth:
        raise EagleError(
            f"a tree of depth {tree.depth} was asked for, but the head proposes "
            f"{drafter.max_depth} tokens in a row"
        )
