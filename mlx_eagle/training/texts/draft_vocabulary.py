"""Which tokens a head can propose: the most frequent ones of what it is trained on.

A small draft vocabulary makes the head's output layer cheap; a token outside of it is never drafted
(EAGLE-3, arXiv 2503.01840, takes 32000 of 128256).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from mlx_eagle.errors import EagleError
from mlx_eagle.training.batch import Example

# Share of the answers that a token has to end, to count as a mark of their end.
ENDS = 0.1


class DraftVocabulary(NamedTuple):
    """The tokens that a head can propose.

    Attributes:
        ids: [W] int32, ascending.
        coverage: share of the trained tokens that are among them.
    """

    ids: np.ndarray
    coverage: float


class TokenCounts(NamedTuple):
    """How often each token of the target occurs in some texts.

    Attributes:
        trained: [V] int64, where it is trained.
        all: [V] int64, anywhere.
        ends: [V] int64, as the last trained one of an answer.
    """

    trained: np.ndarray
    all: np.ndarray
    ends: np.ndarray


def count_tokens(examples: Iterable[Example], n_tokens: int) -> TokenCounts:
    """Return how often each token occurs.

    Args:
        examples: the texts to train on.
        n_tokens: V, tokens of the target.

    Raises:
        EagleError: if a text holds a token that the target has not.
    """
    counts = TokenCounts(*(np.zeros(n_tokens, dtype=np.int64) for _ in range(3)))
    for tokens, trained in examples:
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < n_tokens:
            foreign = tokens[(tokens < 0) | (tokens >= n_tokens)][0]
            raise EagleError(
                f"the texts hold token {foreign}, but the target has {n_tokens} tokens; encode "
                "them with the target's own tokenizer"
            )
        is_end = trained & ~np.append(trained[1:], False)
        np.add.at(counts.all, tokens, 1)
        np.add.at(counts.trained, tokens[trained], 1)
        np.add.at(counts.ends, tokens[is_end], 1)
    return counts


def draft_vocabulary(counts: TokenCounts, size: int | None, tokenizer: Any) -> DraftVocabulary:
    """Return the most frequent trained tokens, and those without which no draft ends or thinks.

    Where fewer tokens are trained than are wanted, those of the questions follow, then the first
    ones of the vocabulary, which most tokenizers order by frequency.

    Args:
        counts: of the texts to train on.
        size: W, tokens wanted; None, or as many as the target has, is every token.
        tokenizer: mlx-lm's wrapper.

    Raises:
        EagleError: if more tokens are forced in than are wanted.
    """
    n_tokens = len(counts.trained)
    if size is None or size >= n_tokens:
        return DraftVocabulary(np.arange(n_tokens, dtype=np.int32), 1.0)
    is_forced = np.zeros(n_tokens, dtype=bool)
    is_forced[[i for i in marks(tokenizer) if 0 <= i < n_tokens]] = True
    is_forced |= counts.ends > ENDS * counts.ends.sum()
    if (n_forced := int(is_forced.sum())) > size:
        raise EagleError(
            f"a draft vocabulary of {size} tokens cannot hold the {n_forced} marks of this "
            "tokenizer (ends of answers, thoughts, calls); ask for more tokens"
        )
    likeliest = np.lexsort((-counts.all, -counts.trained, ~is_forced))
    ids = np.sort(likeliest[:size]).astype(np.int32)
    return DraftVocabulary(ids, coverage(counts, ids))


def coverage(counts: TokenCounts, ids: np.ndarray) -> float:
    """Return which share of the trained tokens is among some.

    Args:
        counts: of the texts to train on.
        ids: [W] int32, tokens of the target.
    """
    n_trained = int(counts.trained.sum())
    return float(counts.trained[ids].sum() / n_trained) if n_trained else 0.0


def marks(tokenizer: Any) -> set[int]:
    """Return the tokens that end answers, set thoughts and calls apart, or are special.

    Args:
        tokenizer: mlx-lm's wrapper.
    """
    found = {*tokenizer.eos_token_ids, *tokenizer.all_special_ids}
    for words in (
        tokenizer.think_start_tokens,
        tokenizer.think_end_tokens,
        tokenizer.tool_call_start_tokens,
        tokenizer.tool_call_end_tokens,
    ):
        found.update(words or ())
    return {int(i) for i in found if i is not None}
