"""What chooses the tokens of an answer, made from its options: sampler, processors, grammar."""

from typing import TYPE_CHECKING

from mlx_lm.sample_utils import make_logits_processors

from mlx_eagle.sampling.grammar import Constraint, Grammar
from mlx_eagle.sampling.options import MATCH, RATIO, TYPICAL
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.sampling.samplers import Sampler, SeededSampler, StockSampler
from mlx_eagle.sampling.token_selector import LogitsProcessor
from mlx_eagle.sampling.typical import TypicalSampler
from mlx_eagle.session.options import GenerationOptions

if TYPE_CHECKING:
    from mlx_eagle.engine import Engine


def make_sampler(options: GenerationOptions) -> Sampler:
    """Return what chooses tokens from logits."""
    if options.sampler is not None:
        return StockSampler(options.sampler)
    kinds = {MATCH: SeededSampler, RATIO: RatioSampler, TYPICAL: TypicalSampler}
    return kinds[options.rule](**options.sampling)


def make_processors(options: GenerationOptions) -> list[LogitsProcessor]:
    """Return what changes the logits before: mlx-lm's own penalties, then the caller's."""
    own: list[LogitsProcessor] = make_logits_processors(
        dict(options.logit_bias) or None,
        options.repetition_penalty,
        options.repetition_context_size,
        options.presence_penalty,
        options.presence_context_size,
        options.frequency_penalty,
        options.frequency_context_size,
    )
    return [*own, *options.logits_processors]


def make_constraint(options: GenerationOptions, engine: "Engine") -> Constraint | None:
    """Return which tokens may follow in an answer, or None where all may."""
    grammar = make_grammar(options)
    return None if grammar is None else engine.vocabulary.constraint(grammar)


def make_grammar(options: GenerationOptions) -> Grammar | None:
    """Return what constrains the answer, or None."""
    if options.json_schema is not None:
        return Grammar.json_schema(options.json_schema)
    return None if options.regex is None else Grammar.regex(options.regex)
