"""Grammars that cannot be used or followed: one clear line each."""

import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.grammar import MAX_CHARACTERS, Grammar, Vocabulary

N_REAL = 4096  # tokens of the trained tokenizer
END = 2


@pytest.fixture(scope="module")
def tokenizer(demo: Any) -> Any:
    return demo.tokenizer


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer, N_REAL)


UNSUPPORTED = r"cannot be used .Unimplemented keys: \[\"not\"\].; remove or rewrite"
BAD_SCHEMAS: list[tuple[Any, str]] = [
    ("{", r"is not JSON .Expecting property name.*; give one JSON object"),
    ('{"anyOf": [' * 5000, "is not JSON .*recursion"),
    ('{"x": ' * 400 + "1" + "}" * 400, "recursion limit"),
    ("[1]", "is a list; give one JSON object"),
    ("true", "is a bool; give one JSON object"),
    ({"type": {1, 2}}, "cannot be written as JSON"),
    ({"type": "foo"}, "cannot be used .Invalid type: foo.; remove or rewrite"),
    ({"not": {}}, UNSUPPORTED),
    ({"x-guidance": {"lenient": True}, "not": {}}, UNSUPPORTED),
    ({"type": "string", "pattern": "("}, r"\(unclosed group\)"),
    ({"type": "string", "format": "a\nb\x1b[31mc"}, r"Unknown format: a b\?\[31mc"),
    ({"$ref": "http://localhost/x"}, "Default retriever does not fetch"),
    ({"enum": []}, "anyOf is empty"),
    ({"const": "\ud800"}, "cannot be used"),
    ({"const": float("nan")}, "cannot be used"),
    ({"enum": ["x" * MAX_CHARACTERS]}, f"at most {MAX_CHARACTERS} are read"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "can neither go on"),
]
BAD_REGEXES: list[tuple[Any, str]] = [
    ("(a", r"the regex '\(a' cannot be used \(unclosed group\); write it as for Rust"),
    ("(?=x)y", "look-around"),
    (r"(a)\1", "backreferences are not supported"),
    (r"\bfoo", "lookarounds not supported"),
    ("ab\\", "ends in a backslash"),
    ("(\x1b[31m\n", r"the regex '\(\?\[31m' cannot be used"),
    ("[\udcff", "cannot be used"),
    ("[a&&b]", "can neither go on under its grammar nor end .no token of the target fits"),
    ("a" * (MAX_CHARACTERS + 1), f"has {MAX_CHARACTERS + 1} characters"),
    (re.compile("a"), "is of type Pattern; give it as a string"),
]
BAD = [(Grammar.json_schema, *bad) for bad in BAD_SCHEMAS]
BAD += [(Grammar.regex, *bad) for bad in BAD_REGEXES]


@pytest.mark.parametrize(("make", "text", "message"), BAD, ids=lambda value: ascii(value)[:30])
def test_a_grammar_that_cannot_be_used_is_one_clear_line(
    make: Callable[[Any], Grammar], text: Any, message: str, vocabulary: Vocabulary
) -> None:
    with pytest.raises(EagleError, match=message) as caught:
        vocabulary.constraint(make(text))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_an_answer_that_cannot_be_completed_is_an_error_and_no_answer(tokenizer: Any) -> None:
    """Where the target lacks a token for what must come; a tree that holds the place is none."""
    x = tokenizer.encode("x")[0]
    without_x = SimpleNamespace(_tokenizer=tokenizer._tokenizer, eos_token_ids={END, x})
    constraint = Vocabulary(without_x, N_REAL).constraint(Grammar.regex("axb|b"))
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    masks = np.array(constraint.masks([7, a, b], [0, 0, 0]))
    assert masks[0, [a, b]].all()
    assert np.flatnonzero(masks[1]).tolist() == sorted([END, x])
    with pytest.raises(EagleError, match="neither go on under its grammar nor end .no token"):
        constraint.advance([a, END])
    other = Vocabulary(without_x, N_REAL).constraint(Grammar.regex("axb|b"))
    with pytest.raises(EagleError, match="neither go on under its grammar nor end .no token"):
        other.advance([a])


def test_a_grammar_that_outgrows_the_limits_is_an_error(
    vocabulary: Vocabulary, tokenizer: Any
) -> None:
    constraint = vocabulary.constraint(Grammar.regex("((a{1,100}b?){1,100}c?){1,100}"))
    with pytest.raises(EagleError, match=r"\(.*too many expressions.*make it simpler"):
        constraint.advance(tokenizer.encode("a") * 1000)


def test_a_tokenizer_that_cannot_follow_grammars_is_refused(tokenizer: Any) -> None:
    slow = SimpleNamespace(_tokenizer=[], eos_token_ids={END})
    with pytest.raises(EagleError, match="cannot follow a grammar .Only fast tokenizers"):
        Vocabulary(slow, N_REAL)
    for ends in (set(), {None}, {N_REAL + 3}):
        endless = SimpleNamespace(_tokenizer=tokenizer._tokenizer, eos_token_ids=ends)
        with pytest.raises(EagleError, match="names no end token"):
            Vocabulary(endless, N_REAL)


def test_a_grammar_is_a_value() -> None:
    schema = {"type": "null"}
    assert Grammar.json_schema(schema) == Grammar.json_schema('{"type": "null"}')
    assert Grammar.regex("a") != Grammar.json_schema("a")
    assert len({Grammar.regex("a"), Grammar.regex("a"), Grammar.regex("b")}) == 2


def test_the_module_loads_without_llguidance() -> None:
    code = "import sys, mlx_eagle.sampling.grammar; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
