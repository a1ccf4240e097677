"""Answers that keep to a grammar: which tokens may follow every node of a draft tree.

A grammar is a JSON schema or a regex. The masks are llguidance's; this module walks them over a
tree and hands them to MLX. It neither drafts nor chooses. A mask depends on the tokens before it
alone, so an answer with speculation equals the one without.

Three choices differ from llguidance's defaults. Whitespace inside JSON is optional and bounded:
between two parts one space, or a line break with at most 32 spaces. A model may thus write on one
line or indented, as it learned to, but a weak one cannot write whitespace forever. Text that the
grammar forces may be cut into tokens in any way: llguidance would demand the tokenizer's own way,
and then offers a special token where the text spells one. `x-guidance` in a schema is ignored.
"""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_eagle.errors import EagleError
from mlx_eagle.files.quoting import printable

# The command line starts without waiting for llguidance, which is imported where it is used.
if TYPE_CHECKING:
    from llguidance import LLMatcher

MOST_COMPILED = 8  # grammars that are kept
MAX_CHARACTERS = 1_000_000
MAX_REASON = 200
# Before 1.8, llguidance lets this repeat in one place.
WHITESPACE = r"( |\n {0,32})"

JSON_SCHEMA = "JSON schema"
REGEX = "regex"
REMEDIES = {
    JSON_SCHEMA: "remove or rewrite that part of the schema",
    REGEX: "write it as for Rust's regex crate, which has no look-around and no back-references",
}


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like; checked when a vocabulary compiles it.

    Attributes:
        kind: JSON_SCHEMA or REGEX.
        text: the schema as JSON, or the pattern.
    """

    kind: str
    text: str

    @classmethod
    def json_schema(cls, schema: str | dict[str, Any]) -> "Grammar":
        """Return the grammar of the JSON values that a schema describes.

        Properties come in the schema's order.

        Args:
            schema: a JSON object, as text or as what `json.loads` makes of it.

        Raises:
            EagleError: if a dict holds what JSON cannot express.
        """
        if isinstance(schema, str):
            return cls(JSON_SCHEMA, schema)
        try:
            return cls(JSON_SCHEMA, json.dumps(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise EagleError(
                f"the JSON schema cannot be written as JSON ({_one_line(str(error))}); give a dict "
                "of strings, numbers, lists and dicts"
            ) from error

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Return the grammar of the strings that a pattern matches from beginning to end.

        Args:
            pattern: in the syntax of Rust's regex crate, which Python's mostly is: no look-around,
                no back-references, and `.` is any character but a line break.

        Raises:
            EagleError: if the pattern is not a string.
        """
        if not isinstance(pattern, str):
            raise EagleError(f"the regex is of type {type(pattern).__name__}; give it as a string")
        return cls(REGEX, pattern)

    def source(self) -> str:
        """Return the grammar in llguidance's own language.

        Raises:
            EagleError: if the text is too long, or no schema or pattern at first sight.
        """
        if len(self.text) > MAX_CHARACTERS:
            raise EagleError(
                f"the {self.kind} has {len(self.text)} characters; at most {MAX_CHARACTERS} are "
                "read, so make it smaller"
            )
        body = _lark_schema(self.text) if self.kind == JSON_SCHEMA else _lark_regex(self.text)
        return f'%llguidance {{"no_forcing": true}}\nstart: {body}\n'


class Vocabulary:
    """The tokens of a target, prepared for grammars; one serves all answers of an engine.

    Args:
        tokenizer: mlx-lm's tokenizer wrapper.
        n_tokens: V, the width of the logits, padding included.

    Raises:
        EagleError: if llguidance cannot read the tokenizer, or answers have no end token.
    """

    def __init__(self, tokenizer: Any, n_tokens: int) -> None:
        from llguidance import LLExecutor
        from llguidance.hf import from_tokenizer

        fast = tokenizer._tokenizer  # llguidance asks for the class that mlx-lm wraps
        self.n_tokens = n_tokens
        self.ends = frozenset(i for i in tokenizer.eos_token_ids if i is not None and i < n_tokens)
        if not self.ends:
            raise EagleError(
                "the target names no end token, so an answer under a grammar could not end; "
                "set eos_token_id in its config.json"
            )
        try:
            self._tokenizer = from_tokenizer(
                fast, n_vocab=max(n_tokens, len(fast)), eos_token=sorted(self.ends)
            )
        except ValueError as error:
            raise EagleError(
                f"the target's tokenizer cannot follow a grammar ({_one_line(str(error))}); use a "
                "target whose tokenizer.json is byte-level or falls back to bytes"
            ) from error
        self._executor = LLExecutor()
        self._compiled: dict[str, LLMatcher] = {}
        self._compiling = threading.Lock()
        self._is_text = np.zeros(-(-self._tokenizer.vocab_size // 32) * 32, dtype=np.bool_)
        self.end_row = self.pack(sorted(self.ends))
        self._is_text[: min(n_tokens, len(fast))] = True
        self._is_text[[*self.ends, *fast.all_special_ids]] = False
        self.text_row = self.pack(np.flatnonzero(self._is_text))

    def unpack(self, rows: npt.NDArray[np.int32]) -> mx.array:
        """Return [N, V] bool from [N, V / 32] words."""
        return _unpack(rows, self.n_tokens)

    def pack(self, tokens: Any) -> npt.NDArray[np.int32]:
        """Return [V / 32] words with the bits of these tokens."""
        bits = np.zeros(self._is_text.shape, dtype=np.bool_)
        bits[tokens] = True
        return np.packbits(bits, bitorder="little").view(np.int32)

    def constraint(self, grammar: Grammar) -> "Constraint":
        """Compile a grammar for one answer.

        Raises:
            EagleError: if the grammar is malformed, too large, uses what llguidance does not
                support, or allows no answer.
        """
        shown = f" {_one_line(grammar.text)!r}" if grammar.kind == REGEX else ""
        remedy = REMEDIES[grammar.kind]
        return Constraint(self, self.compile(grammar.source(), f"{grammar.kind}{shown}", remedy))

    def compile(self, source: str, what: str, remedy: str) -> "LLMatcher":
        """Return a matcher at the beginning of a grammar; the newest few are not compiled again.

        Args:
            source: the grammar in llguidance's own language.
            what: it is, for errors.
            remedy: what helps where it cannot be used, for errors.

        Raises:
            EagleError: if it cannot be used.
        """
        from llguidance import LLMatcher, LLParserLimits

        with self._compiling:  # two threads may ask
            known = self._compiled.pop(source, None)
            if known is None:
                limits = LLParserLimits(verbose_errors=False)
                known = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
            if known.is_error():
                reason = _reason(known.get_error())
                raise EagleError(f"the {what} cannot be used ({reason}); {remedy}")
            self._compiled[source] = known
            while len(self._compiled) > MOST_COMPILED:
                del self._compiled[next(iter(self._compiled))]
            return known.deep_copy()

    def spell(self, token: int) -> bytes:
        """Return the bytes that a token stands for, which may be a part of a character."""
        return bytes(self._tokenizer.decode_bytes([token]))

    def is_text(self, token: int) -> bool:
        """Say whether a token can be part of an answer: no end, special or padding token."""
        return 0 <= token < self.n_tokens and bool(self._is_text[token])

    def rows(
        self, states: Sequence["LLMatcher"], marks: npt.NDArray[np.int32] | None = None
    ) -> npt.NDArray[np.int32]:
        """Return [N, V / 32] words: bit t % 32 of word t // 32 says that token t may follow.

        The row of a state from which the grammar cannot be completed is zero.

        Args:
            states: N of them.
            marks: [V / 32] words: special tokens that a grammar may name all the same.
        """
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        rows = allocate_token_bitmask(len(states), self._tokenizer.vocab_size)
        numbered = [(state, row) for row, state in enumerate(states)]
        fill_next_token_bitmask_par(self._executor, numbered, rows)
        is_complete = np.array([state.is_accepting() for state in states])
        rows &= self.text_row if marks is None else self.text_row | marks
        rows[is_complete] |= self.end_row
        return rows


class Constraint:
    """Where one answer stands in its grammar; made by `Vocabulary.constraint`.

    Give `advance` all tokens of the answer, those of its last round as well: it is what finds
    that an answer stopped short.

    Raises:
        EagleError: if the grammar allows no answer.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: "LLMatcher") -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._has_ended = False
        self._root_row = self._next_row()

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that a round committed; what follows an end token is ignored.

        Raises:
            EagleError: if the grammar outgrows llguidance's limits, or no token of the target
                continues the answer.
        """
        for token in tokens:
            if self._has_ended:
                break
            self._has_ended = token in self._vocabulary.ends
            if self._has_ended and not self._matcher.is_accepting():
                raise self._stuck()
            if not self._has_ended and not self._matcher.consume_token(token):
                raise self._stuck()
        self._root_row = self._next_row()

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> mx.array:
        """Return which tokens may follow every node of a tree.

        After an end token only end tokens may follow. The row of a node that the grammar does not
        allow after its parent means nothing. No row is empty, and none allows padding.

        Args:
            tokens: N token ids; the root's has been given to `advance` or belongs to the prompt.
            parents: N node indices; parents come before children.

        Returns:
            [N, V] bool.
        """
        vocabulary = self._vocabulary
        states = [None if self._has_ended else self._matcher]
        for token, parent in zip(tokens[1:], parents[1:], strict=True):
            states.append(self._follow(states[parent], token))
        rows = np.tile(vocabulary.text_row | vocabulary.end_row, (len(tokens), 1))
        found = {node: state for node, state in enumerate(states) if node and state is not None}
        if found:
            rows[list(found)] = vocabulary.rows(list(found.values()))
        is_end = np.array([token in vocabulary.ends for token in tokens])
        # A dead end gets an end token too: `advance` tells the user, if the answer goes there.
        rows[is_end | ~rows.any(axis=1)] = vocabulary.end_row
        rows[0] = self._root_row
        return _unpack(rows, vocabulary.n_tokens)

    def _follow(self, state: "LLMatcher | None", token: int) -> "LLMatcher | None":
        """Return the state after one more token of text, or None where there is none.

        A copy per node costs a few microseconds; a matcher that meets a dead end cannot be
        rolled back.
        """
        if state is None or not self._vocabulary.is_text(token):
            return None
        copy = state.deep_copy()
        return copy if copy.try_consume_tokens([token]) == 1 else None

    def _next_row(self) -> npt.NDArray[np.int32]:
        """Return [V / 32] words: the tokens that may follow the answer so far."""
        if self._has_ended:
            return self._vocabulary.end_row
        row: npt.NDArray[np.int32] = self._vocabulary.rows([self._matcher])[0]
        if not row.any():
            raise self._stuck()
        return row

    def _stuck(self) -> EagleError:
        """Return the error for a grammar that lets the answer neither go on nor end."""
        report = self._matcher.get_error()
        if "satisfy the grammar" in report:
            return EagleError(
                "an answer cannot go on under its grammar: penalties, processors or the sampler "
                "left no token that it allows; loosen them"
            )
        is_dead_end = not report or report.startswith("NoExtension")
        reason = "no token of the target fits" if is_dead_end else _reason(report)
        return EagleError(
            f"an answer can neither go on under its grammar nor end ({reason}); check that the "
            "schema or regex can be met, and make it simpler"
        )


def _lark_schema(text: str) -> str:
    """Return a JSON schema as an expression of llguidance's language.

    Raises:
        EagleError: if the text is not a JSON object.
    """
    try:
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise EagleError(
                f"the JSON schema is a {type(schema).__name__}; give one JSON object, such as "
                '{"type": "object"}'
            )
        return "%json " + json.dumps(schema | {"x-guidance": {"whitespace_pattern": WHITESPACE}})
    except (ValueError, RecursionError) as error:
        raise EagleError(
            f"the JSON schema is not JSON ({_one_line(str(error))}); give one JSON object, such as "
            '{"type": "object"}'
        ) from error


def _lark_regex(pattern: str) -> str:
    """Return a regex as an expression of llguidance's language, which ends it at a slash.

    Raises:
        EagleError: if the pattern ends in a backslash, which would escape that slash.
    """
    if not re.fullmatch(r"([^\\]|\\.)*", pattern, re.DOTALL):
        raise EagleError(
            f"the regex {_one_line(pattern)!r} ends in a backslash that escapes nothing; "
            "remove it, or double it to match a backslash"
        )
    escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL)
    return f"/{escaped}/"


def _reason(report: str) -> str:
    """Return what llguidance objects to, in one line.

    It says where in our own wrapping it was, quotes that in numbered lines, and points into a
    regex with several lines before it says what is wrong.
    """
    said = re.split(r"\n +\d+ \| ", report)[0].replace("<non-verbose/>", "")
    said = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", said)
    said = re.sub(r'^invalid regex ".*" \(in regex\): ', "", said, flags=re.DOTALL)
    errors = re.findall(r"^error: (.+)", said, re.MULTILINE)
    return _one_line(errors[-1] if errors else said)


def _one_line(text: str) -> str:
    """Return the beginning of a text, printable and on one line."""
    line = " ".join(text[: 10 * MAX_REASON].split())
    shown = printable(line[:MAX_REASON])
    return shown + ("..." if len(line) > MAX_REASON else "")


def _unpack(rows: npt.NDArray[np.int32], n_tokens: int) -> mx.array:
    """Return [N, V] bool from [N, V / 32] words."""
    words = mx.array(rows.view(np.uint8))[:, :, None]  # [N, V / 8, 1]
    bits = (words >> mx.arange(8, dtype=mx.uint8)) & 1  # [N, V / 8, 8]
    return bits.reshape(len(rows), -1)[:, :n_tokens].astype(mx.bool_)
