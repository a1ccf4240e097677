"""Grammars on draft trees, against jsonschema, Python's re, and a search of all strings."""

import json
import random
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cases import narrowed
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.sampling.grammar import Constraint, Grammar, Vocabulary
from mlx_eagle.target.load import load_target
from random_schemas import closing_bias, random_schema

N_REAL = 4096  # tokens of the trained tokenizer
N_PADDED = 4100
END, OTHER_SPECIAL = 2, [0, 1]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The trained target's tokenizer: byte-level BPE with three special tokens."""
    return load_target(DEMO / "target")[1]


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer, N_PADDED)


def allowed(constraint: Constraint) -> np.ndarray:
    """What may follow the answer so far, [V] bool."""
    return np.array(constraint.masks([7], [0]))[0]


def write(constraint: Constraint, seed: int, bias: np.ndarray | float = 0.0) -> list[int]:
    """Follow random logits until the end token; after 40 tokens, add `bias` to them."""
    noise = np.random.default_rng(seed)
    tokens: list[int] = []
    while not tokens or tokens[-1] != END:
        assert len(tokens) < 600, "the answer does not end"
        logits = noise.standard_normal(N_PADDED)
        if len(tokens) >= 40:
            logits += bias
        tokens.append(int(np.where(allowed(constraint), logits, -np.inf).argmax()))
        constraint.advance(tokens[-1:])
    assert is_finished(constraint)
    assert set(tokens[:-1]).isdisjoint([END, *OTHER_SPECIAL])
    return tokens[:-1]


def is_finished(constraint: Constraint) -> bool:
    """Whether nothing but an end token may follow: 0 is one in the vocabulary of two."""
    return set(np.flatnonzero(allowed(constraint)).tolist()) <= {0, END}


def accepts(constraint: Constraint, tokens: Sequence[int]) -> bool:
    """Whether an answer of these tokens may be written and may end there."""
    for token in tokens:
        if not allowed(constraint)[token]:
            return False
        constraint.advance([token])
    return bool(allowed(constraint)[END])


@pytest.mark.parametrize("seed", narrowed(range(100), range(40)))
def test_an_answer_under_a_random_schema_is_valid(
    seed: int, vocabulary: Vocabulary, tokenizer: Any
) -> None:
    schema = random_schema(random.Random(seed))
    bias = np.pad(closing_bias(tokenizer, N_REAL), (0, N_PADDED - N_REAL))
    tokens = write(vocabulary.constraint(Grammar.json_schema(schema)), seed, bias)
    answer = json.loads(tokenizer.decode(tokens))
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(answer)


REGEXES = ["", "a|", "yes|no|maybe", "[0-9]{3}-[0-9]{4}", r"[A-Z][a-z]{1,9}( [a-z]{1,9}){2,4}\."]
REGEXES += [r"(?i)error: [a-f0-9]{8}", r"a/b\/c//d", "one\ntwo\tthree", r"\\+\[x\]\$", "^(foo)*$"]
REGEXES += ["[ж-щ]{5,9}", "[😀-😄漢字é]{1,6}", r"<\|im_start\|>user", r"(?s)x.{5}", ".{0,12}"]


@pytest.mark.parametrize("pattern", REGEXES)
def test_an_answer_under_a_regex_matches_it_from_beginning_to_end(
    pattern: str, vocabulary: Vocabulary, tokenizer: Any
) -> None:
    bias = np.zeros(N_PADDED)
    bias[END] = 100
    for seed in range(4):
        tokens = write(vocabulary.constraint(Grammar.regex(pattern)), seed, bias)
        text = tokenizer.decode(tokens)
        assert re.fullmatch(pattern, text), text


SPELLED = ["def", "default", "define it", "del x", "é", "éé!", "漢"]


def spelled_tokens(tokenizer: Any) -> list[bytes]:
    """The bytes of every token of a byte-level tokenizer, by its public table of characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + i): byte for i, byte in enumerate(others)}
    names = tokenizer._tokenizer.convert_ids_to_tokens(list(range(N_REAL)))
    return [bytes(table[character] for character in name) for name in names]


def expected_row(so_far: bytes, tokens: Sequence[bytes]) -> np.ndarray:
    """The obvious reference: a token may follow if it begins what is left of some string."""
    answers = [answer.encode() for answer in SPELLED]
    row = np.zeros(N_PADDED, dtype=bool)
    for token, text in enumerate(tokens):
        row[token] = any(answer.startswith(so_far + text) for answer in answers)
    row[OTHER_SPECIAL] = False
    row[END] = so_far in answers
    return row


def test_masks_are_what_a_search_of_all_strings_and_tokens_finds(
    vocabulary: Vocabulary, tokenizer: Any
) -> None:
    """On one tree that holds every way to write any of seven strings in tokens of any size."""
    bytes_of = spelled_tokens(tokenizer)
    expected: dict[bytes, np.ndarray] = {}
    texts, tokens, parents = [b""], [7], [0]
    for node, so_far in enumerate(texts):  # the list grows while it is walked
        if so_far not in expected:
            expected[so_far] = expected_row(so_far, bytes_of)
        for token in set(np.flatnonzero(expected[so_far]).tolist()) - {END}:
            texts.append(so_far + bytes_of[token])
            tokens.append(token)
            parents.append(node)
    assert len(tokens) > 100
    constraint = vocabulary.constraint(Grammar.regex("|".join(SPELLED)))
    masks = np.array(constraint.masks(tokens, parents))
    assert (masks == np.stack([expected[text] for text in texts])).all()


GRAMMARS = [
    Grammar.json_schema({"type": "object", "properties": {"é": {"type": "string"}}}),
    Grammar.json_schema({"type": "array", "items": {"enum": ["<|im_end|>", 12, None]}}),
    Grammar.regex(r"(?s).{0,9}"),
    Grammar.regex("[ж-щ]+|end"),
]


def random_tree(
    constraint: Constraint, random: random.Random, n_nodes: int
) -> tuple[list[int], list[int]]:
    """A tree with tokens that the grammar allows, ends, specials, padding and nonsense."""
    tokens, parents = [random.randrange(N_PADDED)], [0]
    for _ in range(n_nodes):
        parent = random.randrange(len(tokens))
        likely = np.flatnonzero(np.array(constraint.masks(tokens, parents))[parent])
        pools: list[Sequence[int]] = [likely, likely, likely, [END], [0, N_REAL], range(N_PADDED)]
        tokens.append(int(random.choice(random.choice(pools))))
        parents.append(parent)
    return tokens, parents


@given(random=st.randoms(use_true_random=False), grammar=st.sampled_from(GRAMMARS))
def test_a_mask_in_a_tree_is_the_mask_after_its_path_alone(
    vocabulary: Vocabulary, random: random.Random, grammar: Grammar
) -> None:
    constraint, committed = vocabulary.constraint(grammar), []
    for _ in range(random.randrange(4)):
        committed.append(int(random.choice(np.flatnonzero(allowed(constraint)))))
        constraint.advance(committed[-1:])
    before = allowed(constraint)
    tokens, parents = random_tree(constraint, random, random.randrange(12))
    masks = np.array(constraint.masks(tokens, parents))
    assert (allowed(constraint) == before).all(), "a tree leaves no trace"
    paths: list[list[int] | None] = [[]]
    for node in range(1, len(tokens)):
        path, row = paths[parents[node]], masks[parents[node]]
        is_allowed = path is not None and row[tokens[node]]
        paths.append([*(path or []), tokens[node]] if is_allowed else None)
    for path, row in zip(paths, masks, strict=True):
        assert row.any()
        assert not row[[*OTHER_SPECIAL, *range(N_REAL, N_PADDED)]].any()
        if path is not None:
            alone = vocabulary.constraint(grammar)
            alone.advance([*committed, *path])
            assert (allowed(alone) == row).all()


def test_a_chain_may_be_as_deep_as_a_tree_can_be(vocabulary: Vocabulary, tokenizer: Any) -> None:
    a = tokenizer.encode("a")[0]
    constraint = vocabulary.constraint(Grammar.regex("a*"))
    masks = constraint.masks([a] * 256, [max(i - 1, 0) for i in range(256)])
    assert masks.shape == (256, N_PADDED)
    assert masks.dtype == mx.bool_
    assert (np.array(masks) == allowed(constraint)).all()


def test_no_token_is_too_odd_for_a_tree(vocabulary: Vocabulary) -> None:
    tokens = [-1, N_REAL, N_PADDED - 1, N_PADDED, -5, 2**40, END, END, 0]
    constraint = vocabulary.constraint(Grammar.regex("a|"))
    masks = np.array(constraint.masks(tokens, [0, 0, 1, 0, 0, 3, 0, 6, 7]))
    assert masks.any(axis=1).all()
    assert np.flatnonzero(masks[6]).tolist() == [END]
    assert np.flatnonzero(masks[7]).tolist() == [END]


def test_where_the_grammar_is_complete_every_end_token_is_allowed(tokenizer: Any) -> None:
    """And alone where nothing else may follow; elsewhere none is."""
    two = SimpleNamespace(_tokenizer=tokenizer._tokenizer, eos_token_ids={END, 0})
    constraint = Vocabulary(two, N_PADDED).constraint(Grammar.regex("ab?"))
    assert not allowed(constraint)[[0, END]].any()
    assert not is_finished(constraint)
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    constraint.advance([a])
    assert np.flatnonzero(allowed(constraint)).tolist() == [0, END, b]
    assert not is_finished(constraint)
    constraint.advance([b])
    assert np.flatnonzero(allowed(constraint)).tolist() == [0, END]
    assert is_finished(constraint)


@pytest.mark.parametrize("pattern", ["", "a"])
def test_after_the_end_only_ends_follow(
    pattern: str, vocabulary: Vocabulary, tokenizer: Any
) -> None:
    constraint = vocabulary.constraint(Grammar.regex(pattern))
    constraint.advance([*tokenizer.encode(pattern), END])
    for _ in range(2):
        masks = np.array(constraint.masks([END, END, 50, END], [0, 0, 0, 1]))
        assert masks[[0, 1, 3]].sum() == 3
        assert masks[[0, 1, 3], END].all()
        assert is_finished(constraint)
        constraint.advance([END, 50])


def test_an_end_token_that_looks_like_text_is_no_text(tokenizer: Any) -> None:
    """Some models end with an ordinary token, which the grammar would take for its text."""
    a = tokenizer.encode("a")[0]
    ordinary = SimpleNamespace(_tokenizer=tokenizer._tokenizer, eos_token_ids={a})
    constraint = Vocabulary(ordinary, N_REAL).constraint(Grammar.regex("(ab)+"))
    assert not allowed(constraint)[a]
    constraint.advance(tokenizer.encode("ab"))
    assert allowed(constraint)[a]


def test_the_logits_may_be_wider_or_narrower_than_the_tokenizer(tokenizer: Any) -> None:
    for width in (4000, N_REAL, 5001):
        constraint = Vocabulary(tokenizer, width).constraint(Grammar.regex("(?s).*"))
        row = allowed(constraint)
        assert row.shape == (width,)
        assert row[END]
        assert not row[[*OTHER_SPECIAL, *range(N_REAL, width)]].any()


INDENTED = json.dumps({"a": [1, 2], "b": "x"}, indent=4)
WIDE = "{\n" + " " * 32 + '"a":[],"b":""}'
GOOD_JSON = ['{"a":[1,2],"b":"x"}', '{"a": [1, 2], "b": "x"}', INDENTED, WIDE]
BAD_JSON = ['{  "a":[],"b":""}', '{\n\n"a":[],"b":""}', '{\t"a":[],"b":""}', ' {"a":[],"b":""}']
BAD_JSON += ['{"a":[],"b":""}\n', WIDE.replace("\n", "\n ")]


@pytest.mark.parametrize("text", GOOD_JSON + BAD_JSON)
def test_whitespace_in_json_is_free_but_bounded(
    text: str, vocabulary: Vocabulary, tokenizer: Any
) -> None:
    """Also if the schema asks llguidance for something else."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": {}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_pattern": r"\s*", "lenient": True},
    }
    constraint = vocabulary.constraint(Grammar.json_schema(json.dumps(schema)))
    assert accepts(constraint, tokenizer.encode(text)) == (text in GOOD_JSON)


@pytest.mark.parametrize("text", ["naïve", "Größe: 3 µm", "漢字かな", "🎉👩‍👩‍👧", "Ωμέγα"])
def test_characters_may_be_split_over_tokens(
    text: str, vocabulary: Vocabulary, tokenizer: Any
) -> None:
    tokens = tokenizer.encode(text)
    assert accepts(vocabulary.constraint(Grammar.regex(re.escape(text))), tokens)
    assert accepts(vocabulary.constraint(Grammar.regex(".+")), tokens)
    quoted = tokenizer.encode(json.dumps(text, ensure_ascii=False))
    assert accepts(vocabulary.constraint(Grammar.json_schema({"const": text})), quoted)
    for n in range(1, len(tokens)):
        constraint = vocabulary.constraint(Grammar.regex(".+"))
        constraint.advance(tokens[:n])
        is_whole = not tokenizer.decode(tokens[:n]).endswith("\ufffd")
        assert allowed(constraint)[END] == is_whole


def test_a_tokenizer_may_fall_back_to_bytes() -> None:
    """Llama 2 and Gemma: U+2581 is a space, and <0xF0> a byte of a character without a token."""
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *'{}":ab', "\u2581", "é"]
    ids = {name: token for token, name in enumerate(names)}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[], byte_fallback=True))
    to_space = tokenizers.decoders.Replace("\u2581", " ")
    steps = [to_space, tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    fast.decoder = tokenizers.decoders.Sequence(steps)
    fast.add_special_tokens(["<unk>", "</s>"])
    wrapped = SimpleNamespace(
        _tokenizer=PreTrainedTokenizerFast(tokenizer_object=fast), eos_token_ids={1}
    )
    schema = {"properties": {"a": {"type": "string"}}, "required": ["a"], "type": "object"}
    constraint = Vocabulary(wrapped, len(ids)).constraint(Grammar.json_schema(schema))
    emoji = ["<0xF0>", "<0x9F>", "<0x8E>", "<0x89>"]
    for name in [*'{"a":', "\u2581", '"', "é", *emoji, *'"}']:
        row = allowed(constraint)
        assert row[ids[name]]
        assert not row[[0, 1]].any()
        constraint.advance([ids[name]])


def test_text_that_spells_a_special_token_is_written_in_ordinary_ones(
    vocabulary: Vocabulary, tokenizer: Any
) -> None:
    """Forced text, which llguidance would cut as the tokenizer does, into the special token."""
    grammar = Grammar.json_schema({"const": "<|im_start|>"})
    for seed in range(5):
        tokens = write(vocabulary.constraint(grammar), seed)
        assert tokenizer.decode(tokens) == '"<|im_start|>"'


def test_properties_keep_the_order_of_a_schema_as_pydantic_makes_it(
    vocabulary: Vocabulary, tokenizer: Any
) -> None:
    schema = {
        "$defs": {"Tag": {"enum": ["x", "y"], "title": "Tag", "type": "string"}},
        "title": "Item",
        "description": "An item.",
        "type": "object",
        "properties": {
            "tags": {"items": {"$ref": "#/$defs/Tag"}, "title": "Tags", "type": "array"},
            "next": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["tags"],
    }
    for answer in ('{"tags": ["x", "y"], "next": null}', '{"next": null, "tags": []}'):
        constraint = vocabulary.constraint(Grammar.json_schema(schema))
        assert accepts(constraint, tokenizer.encode(answer)) == answer.startswith('{"tags"')
