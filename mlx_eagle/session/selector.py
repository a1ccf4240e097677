"""What chooses the tokens of an answer, made from its options: sampler, processors, grammar."""

from typing import TYPE_CHECKING

from mlx_lm.sample_utils import make_logits_processors

from mlx_eagle.answers.answer_format import AnswerFormat
from mlx_eagle.answers.sections import Kind
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.grammar import REMEDIES, Grammar
from mlx_eagle.sampling.options import MATCH, RATIO, TYPICAL
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.sampling.samplers import Sampler, SeededSampler, StockSampler
from mlx_eagle.sampling.thought_budget import ThoughtBudget
from mlx_eagle.sampling.token_selector import LogitsProcessor, TreeConstraint
from mlx_eagle.sampling.tool_grammar import Mode, Plan, StagedConstraint
from mlx_eagle.sampling.typical import TypicalSampler
from mlx_eagle.session.forced_calls import find_marks
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


def make_constraint(
    options: GenerationOptions, engine: "Engine", begun: str = ""
) -> TreeConstraint | None:
    """Return which tokens may follow in an answer, or None where all may.

    Args:
        options: of the answer.
        engine: that makes it.
        begun: what the answer continues, see `AnswerFormat.begun`.

    Raises:
        EagleError: if a grammar cannot be followed, or thoughts of this model cannot be ended.
    """
    constraint = _make_grammars(options, engine, begun)
    if options.thinking_budget is None:
        return constraint
    form, marks = engine.answer_format, find_marks(engine.answer_format)
    if marks.thought_start is None or marks.thought_end is None:
        raise EagleError(
            "thinking_budget was given, but this model has no marks around thoughts that are "
            "single tokens; leave it out"
        )
    return ThoughtBudget(
        options.thinking_budget,
        (marks.thought_start, marks.thought_end),
        engine.target.n_logits,
        is_open=bool(begun) and begun in _thought_starts(form),
        inner=constraint,
    )


def _make_grammars(
    options: GenerationOptions, engine: "Engine", begun: str
) -> TreeConstraint | None:
    """Return what the answer's grammars allow; None where it has none."""
    has_schema = options.json_schema is not None
    if (options.tools and options.tool_choice) or (has_schema and options.thinks_first):
        return _make_staged(options, engine, begun)
    grammar = make_grammar(options)
    return None if grammar is None else engine.vocabulary.constraint(grammar)


def _make_staged(options: GenerationOptions, engine: "Engine", begun: str) -> TreeConstraint | None:
    """Return a constraint that holds in parts of an answer; None where no grammar can."""
    forced = engine.call_grammars.find(options)
    grammar = make_grammar(options)
    if grammar is None and forced is None:
        return None
    vocabulary, marks = engine.vocabulary, find_marks(engine.answer_format)
    calls, schema = forced.matcher if forced is not None else None, None
    if grammar is not None:
        schema = vocabulary.compile(grammar.source(), grammar.kind, REMEDIES[grammar.kind])
    is_forced = options.tool_choice not in (None, "auto")
    must = Mode.CALL if is_forced else Mode.FREE if schema is None else Mode.SCHEMA
    begin = must
    if begun and begun in _thought_starts(engine.answer_format):
        begin = Mode.THINKING
    elif must is not Mode.FREE:
        begin = Mode.FIRST
    if not options.thinks_first:
        marks = marks._replace(thought_start=None)
    after = Mode.FREE if options.parallel_tool_calls and schema is None else Mode.END
    return StagedConstraint(vocabulary, marks, Plan(begin, must, after), calls=calls, schema=schema)


def _thought_starts(form: AnswerFormat) -> list[str]:
    return [mark.start for mark in form.marks if mark.kind is Kind.THOUGHT]


def make_grammar(options: GenerationOptions) -> Grammar | None:
    """Return what constrains the answer, or None."""
    if options.json_schema is not None:
        return Grammar.json_schema(options.json_schema)
    return None if options.regex is None else Grammar.regex(options.regex)
