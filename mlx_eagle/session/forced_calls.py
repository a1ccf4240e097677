"""Which calls of tools are forced: the grammar of those that an answer may make.

A schema that no grammar can follow does not let go of the other tools: of its own tool the name
alone is forced, and in JSON that the arguments are an object. Where every call must keep to its
schema, that tool is refused by name.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_eagle.answers.answer_format import AnswerFormat
from mlx_eagle.answers.sections import Kind
from mlx_eagle.answers.tool_calls import tool_name, writes_json
from mlx_eagle.errors import EagleError
from mlx_eagle.files.quoting import printable
from mlx_eagle.sampling.call_grammar import json_grammar, keyed_grammar
from mlx_eagle.sampling.grammar import JSON_SCHEMA, REMEDIES, Vocabulary
from mlx_eagle.sampling.tool_grammar import Marks
from mlx_eagle.session.options import GenerationOptions

if TYPE_CHECKING:
    from llguidance import LLMatcher

MOST_KNOWN = 64  # lists of tools of which it is known what cannot be forced
LONGEST_NAME = 80  # characters that are quoted


class ForcedCalls(NamedTuple):
    """What is forced.

    Attributes:
        matcher: at the beginning of the grammar.
        loose: names of tools whose arguments are not forced, for no grammar follows their schemas.
    """

    matcher: "LLMatcher"
    loose: frozenset[str]


class CallGrammars:
    """Makes the grammars of calls for one model.

    Args:
        form: how the model writes its answers.
        vocabulary: returns the tokens of the target as grammars see them, where it has such.
    """

    def __init__(self, form: AnswerFormat, vocabulary: Callable[[], Vocabulary]) -> None:
        self._form, self._vocabulary = form, vocabulary
        self._marks = find_marks(form)
        self._loose: dict[bytes, frozenset[str]] = {}  # by a hash of the tools
        self._finding = threading.Lock()

    def find(self, options: GenerationOptions) -> ForcedCalls | None:
        """Return the grammar of the calls that an answer may make; None where none is forced.

        Raises:
            EagleError: if calls must keep to their schemas, and one cannot; it names the tool.
        """
        tools, choice = list(options.tools or ()), options.tool_choice
        if choice not in (None, "auto", "required"):
            tools = [tool for tool in tools if tool_name(tool) == choice]
        if choice is None or not tools:
            return None
        strict = {str(tool_name(tool)) for tool in tools if choice != "auto" or _is_strict(tool)}
        if self._marks.call_start is None or self._marks.call_end is None:
            if not strict:
                return None
            raise EagleError(
                "calls of this model cannot be forced: it has no marks around calls that are "
                "single tokens, or writes calls in a way that its template does not show; leave "
                'out "strict", and let tool_choice be "auto"'
            )
        try:
            self._vocabulary()
        except EagleError:
            if strict:
                raise
            return None
        loose = self._find_loose(tools)
        for tool in tools:
            if (name := str(tool_name(tool))) in loose & strict:
                raise self._refusal(tool, name)
        return ForcedCalls(self._compile(tools, loose), loose)

    def _find_loose(self, tools: Sequence[Any]) -> frozenset[str]:
        """Return the names of the tools whose schemas no grammar can follow."""
        key = hashlib.sha256(repr(tools).encode("utf-8", "surrogatepass")).digest()
        with self._finding:  # two threads may ask
            known = self._loose.pop(key, None)
            if known is None:
                known = self._search(tools)
            self._loose[key] = known
            while len(self._loose) > MOST_KNOWN:
                del self._loose[next(iter(self._loose))]
        return known

    def _search(self, tools: Sequence[Any]) -> frozenset[str]:
        """Return the names of tools without whose schemas the others can be followed together."""
        loose = frozenset(str(tool_name(tool)) for tool in self._failing(tools))
        if loose:
            try:
                self._compile(tools, loose)
            except EagleError:
                return frozenset(str(tool_name(tool)) for tool in tools)
        return loose

    def _failing(self, tools: Sequence[Any]) -> list[Any]:
        """Return the tools that cannot be forced, found by halves: most can be, all together."""
        try:
            self._compile(tools)
        except EagleError:
            middle = len(tools) // 2
            if not middle:
                return list(tools)
            halves = [*self._failing(tools[:middle]), *self._failing(tools[middle:])]
            return halves or list(tools)  # each half can be, and all together are too large
        return []

    def _compile(self, tools: Sequence[Any], loose: frozenset[str] = frozenset()) -> "LLMatcher":
        """Return the grammar of calls of these tools.

        Raises:
            EagleError: if there is none.
        """
        layout, end = self._form.call_layout, self._marks.call_end
        assert end is not None, "calls have an end"
        if layout is None:
            source = json_grammar(tools, end, loose)
        else:
            source = keyed_grammar(tools, end, layout, loose)
        return self._vocabulary().compile(source, "schema of a tool", REMEDIES[JSON_SCHEMA])

    def _refusal(self, tool: Any, name: str) -> EagleError:
        """Return why a tool cannot be forced."""
        shown = printable(name[:LONGEST_NAME])
        remedy = 'or leave out "strict" there, and let tool_choice be "auto"'
        try:
            self._compile([tool])
        except EagleError as error:
            return EagleError(f"calls of the tool {shown} cannot be forced: {error}; {remedy}")
        return EagleError(
            f"calls of the tool {shown} cannot be forced together with the others: their schemas "
            f"are too large; offer fewer tools, {remedy}"
        )


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


def _is_strict(tool: Any) -> bool:
    return bool(tool.get("function", tool).get("strict"))
