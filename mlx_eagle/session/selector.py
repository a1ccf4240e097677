"""What chooses the tokens of an answer, made from its options: sampler, processors, grammar."""

from functools import lru_cache
from typing import TYPE_CHECKING

from mlx_lm.sample_utils import make_logits_processors

from mlx_eagle.answers.answer_format import AnswerFormat
from mlx_eagle.answers.call_layout import CallLayout
from mlx_eagle.answers.sections import Kind
from mlx_eagle.answers.tool_calls import tool_name, writes_json
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.call_grammar import json_grammar, keyed_grammar
from mlx_eagle.sampling.grammar import JSON_SCHEMA, REMEDIES, Grammar, Vocabulary
from mlx_eagle.sampling.options import MATCH, RATIO, TYPICAL
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.sampling.samplers import Sampler, SeededSampler, StockSampler
from mlx_eagle.sampling.thought_budget import ThoughtBudget
from mlx_eagle.sampling.token_selector import LogitsProcessor, TreeConstraint
from mlx_eagle.sampling.tool_grammar import Marks, Mode, Plan, StagedConstraint
from mlx_eagle.sampling.typical import TypicalSampler
from mlx_eagle.session.options import GenerationOptions

if TYPE_CHECKING:
    from llguidance import LLMatcher

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
    vocabulary, marks = engine.vocabulary, find_marks(engine.answer_format)
    grammar = make_grammar(options)
    schema = None
    if grammar is not None:
        schema = vocabulary.compile(grammar.source(), grammar.kind, REMEDIES[grammar.kind])
    layout = engine.answer_format.call_layout
    calls = _compile_calls(options, vocabulary, marks, layout) if options.tools else None
    if schema is None and calls is None:
        return None
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


def _compile_calls(
    options: GenerationOptions, vocabulary: Vocabulary, marks: Marks, layout: CallLayout | None
) -> "LLMatcher | None":
    """Return the grammar of the calls that may be made; None where none can be forced."""
    tools, choice = list(options.tools or ()), options.tool_choice
    if choice not in (None, "auto", "required"):
        tools = [tool for tool in tools if tool_name(tool) == choice]
    functions = [tool.get("function", tool) for tool in tools]
    is_strict = choice != "auto" or any(function.get("strict") for function in functions)
    if choice is None or not tools:
        return None
    if marks.call_start is None or marks.call_end is None:
        if not is_strict:
            return None
        raise EagleError(
            "calls of this model cannot be forced: it has no marks around calls that are single "
            "tokens, or writes calls in a way that its template does not show; leave out "
            '"strict", and let tool_choice be "auto"'
        )
    try:
        if layout is None:
            source = json_grammar(tools, marks.call_end)
        else:
            source = keyed_grammar(tools, marks.call_end, layout)
        return vocabulary.compile(source, "schema of a tool", REMEDIES[JSON_SCHEMA])
    except EagleError:
        if is_strict:
            raise
        return None


@lru_cache(maxsize=2)
def find_marks(form: AnswerFormat) -> Marks:
    """Return the tokens that set thoughts and calls apart, where a model has such.

    They are looked up once: tokenizers make their vocabulary, a large dict, anew for each question.

    Args:
        form: how the model writes its answers.
    """
    known = form.tokenizer.get_vocab()
    calls = [
        mark
        for mark in form.marks
        if mark.kind is Kind.TOOL
        and mark.start in known
        and mark.end in known
        and (form.call_layout is not None or writes_json(mark.start, form.tokenizer))
    ]
    thoughts = [m for m in form.marks if m.kind is Kind.THOUGHT and {m.start, m.end} <= set(known)]
    call = (known[calls[0].start], known[calls[0].end]) if calls else (None, None)
    thought = (known[thoughts[0].start], known[thoughts[0].end]) if thoughts else (None, None)
    return Marks(*call, *thought)


def _thought_starts(form: AnswerFormat) -> list[str]:
    return [mark.start for mark in form.marks if mark.kind is Kind.THOUGHT]


def make_grammar(options: GenerationOptions) -> Grammar | None:
    """Return what constrains the answer, or None."""
    if options.json_schema is not None:
        return Grammar.json_schema(options.json_schema)
    return None if options.regex is None else Grammar.regex(options.regex)
