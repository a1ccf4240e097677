"""Answers under grammars, with a real target and head: valid, and plain decoding's."""

import json
import random
import re
from typing import Any

import jsonschema
import mlx.core as mx
import pytest

from cases import broad
from mlx_eagle.engine import Engine
from mlx_eagle.tree import TreeShape
from random_schemas import closing_bias, random_schema

POLICIES = [TreeShape.chain(1), TreeShape.chain(4), TreeShape(3, 3, 7), None]


@pytest.fixture(scope="module")
def closing(turning: Engine) -> Any:
    """A processor that brings long answers to an end, which a toy target would not find."""
    bias = mx.array(closing_bias(turning.tokenizer, 4096))

    def close(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits + bias if tokens.shape[0] > 45 else logits

    return close


@pytest.mark.parametrize("block", [0, *map(broad, range(1, 50))])
def test_answers_under_random_schemas_are_valid_and_those_of_plain_decoding(
    block: int, turning: Engine, closing: Any, prompts: list[str]
) -> None:
    """Random schemas, greedy and sampled, over two ways of drafting, or all with `--exactness`."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for seed in range(1001 + 2 * block, 1003 + 2 * block):
        schema = random_schema(random.Random(seed))
        messages = [{"role": "user", "content": prompts[seed % len(prompts)]}]
        options = {"json_schema": schema, "logits_processors": [closing], "max_tokens": 500}
        options |= {"temperature": 0.9 * (seed % 2), "seed": seed}
        want = turning.generate(messages, speculate=False, **options)
        got = turning.generate(messages, tree=POLICIES[seed % 4], **options)
        assert (got.tokens, got.text) == (want.tokens, want.text), (seed, schema)
        assert got.finish_reason == "stop", (seed, schema, got.text)
        validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
        validator.validate(json.loads(got.text))


@pytest.mark.parametrize(
    ("pattern", "few"),
    [
        (r"[a-f0-9]{8}-[a-f0-9]{4}", POLICIES[2:]),
        (r"(yes|no), [A-Z][a-z]{2,12}\.", POLICIES[:2]),
    ],
)
def test_answers_under_a_regex_match_it(
    pattern: str, few: list[Any], turning: Engine, prompts: list[str], is_quick: bool
) -> None:
    texts = set()
    for seed, tree in enumerate(few if is_quick else POLICIES):
        messages = [{"role": "user", "content": prompts[5]}]
        options = {"regex": pattern, "temperature": 1.2, "seed": seed}
        got = turning.generate(messages, tree=tree, **options)
        assert re.fullmatch(pattern, got.text)
        assert got.tokens == turning.generate(messages, speculate=False, **options).tokens
        texts.add(got.text)
    assert len(texts) > 1
