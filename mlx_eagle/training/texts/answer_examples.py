"""Answers of the target become texts to train on, token for token as it read and wrote them.

The tokens that were written are kept, since decoding and encoding them again may give others. A
later turn is appended to the text before it where its prompt begins with that text, to the token.
Where it does not (thoughts that the template leaves out of earlier answers, answers that are
encoded otherwise than they were written) it is a text of its own, in which only the new answer is
trained on: each turn is seen exactly as the runtime will see it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mlx_eagle.session.prompt import PLAIN_TEMPLATE, Template, encode
from mlx_eagle.training.batch import Example
from mlx_eagle.training.texts.answer_file import Answered
from mlx_eagle.training.texts.dialogue import with_tools


def answer_examples(
    answered: Answered,
    tokenizer: Any,
    template: Template = PLAIN_TEMPLATE,
    *,
    train_on: str = "answers",
) -> Iterator[Example]:
    """Yield the texts of a conversation that the target answered.

    An answer that was cut at the limit has no token that ends it, and none is trained on.

    Args:
        answered: of `read_answers`.
        tokenizer: mlx-lm's wrapper.
        template: with which it was answered.
        train_on: "answers", or "all" for the questions and what the template writes too.
    """
    template = with_tools(template, answered.tools)
    is_all = train_on == "all"
    tokens, trained = list[int](), list[bool]()
    places = [n for n, m in enumerate(answered.messages) if m.get("role") == "assistant"]
    for place, answer in zip(places, answered.answers, strict=True):
        prompt = encode(tokenizer, answered.messages[:place], template)
        if prompt[: len(tokens)] != tokens:
            yield _example(tokens, trained)
            tokens, trained = [], []
        trained += [is_all] * (len(prompt) - len(tokens)) + [True] * len(answer.tokens)
        tokens = [*prompt, *answer.tokens]
    if tokens:
        yield _example(tokens, trained)


def _example(tokens: list[int], trained: list[bool]) -> Example:
    """Return a text as arrays."""
    return Example(np.array(tokens, dtype=np.int32), np.array(trained, dtype=bool))
