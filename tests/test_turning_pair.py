"""The small pair of the tests is no easier to be right with than a trained one."""

from typing import Any

import pytest

from mlx_eagle.engine import Engine
from mlx_eagle.tree import TreeShape
from turning_pair import make_turning_engine

N_TOKENS = 16


@pytest.fixture(scope="module")
def pair() -> Engine:
    return make_turning_engine()


def ask(pair: Engine, prompt: str) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    ids: list[int] = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return ids


def test_drafts_are_right_now_and_then_at_every_depth(pair: Engine, prompts: list[str]) -> None:
    rounds: list[int] = []
    for prompt in prompts[:5]:
        options: dict[str, Any] = {"max_tokens": N_TOKENS, "tree": TreeShape.chain(3)}
        rounds += pair.generate(ask(pair, prompt), **options).stats.n_accepted_per_round
    shares = [rounds.count(n) / len(rounds) for n in range(4)]
    assert 0.25 < shares[0] < 0.75
    assert all(share > 0.02 for share in shares[1:])


def test_texts_differ_where_one_token_of_the_prompt_does(pair: Engine, prompts: list[str]) -> None:
    """Or a row that a cache holds wrongly could not show."""
    ids = ask(pair, prompts[2])
    options: dict[str, Any] = {"max_tokens": N_TOKENS, "speculate": False}
    want, n_differ = pair.generate(ids, **options).tokens, 0
    changed = range(2, len(ids) - 1, 6)
    for at in changed:
        other = [*ids[:at], 100, *ids[at + 1 :]]
        n_differ += pair.generate(other, **options).tokens != want
    assert n_differ > len(changed) / 2


def test_texts_are_words_that_the_tokenizer_reads_back(pair: Engine, prompts: list[str]) -> None:
    result = pair.generate(ask(pair, prompts[0]), max_tokens=N_TOKENS)
    assert pair.tokenizer.encode(result.text) == result.tokens
    assert len(set(result.tokens)) > N_TOKENS / 2
