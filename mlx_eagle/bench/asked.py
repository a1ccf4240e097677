"""What is asked, as token ids: a later turn of a question once the answer before it is known."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from mlx_eagle.bench.prompts import BenchPrompt, Messages
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.session.prompt import encode_chat_or_text

TEMPLATE = 32  # tokens that a chat template may put around a later turn; on the safe side


class Asked:
    """The prompts of a run, and their token ids.

    A later turn goes on with plain decoding's answer to the turn before it, whoever is asked: so
    all contestants read the same prompt.

    Args:
        prompts: every turn is one, after the turn that it follows; see `with_later_turns`.
        encode: returns the token ids of messages.
        say: returns the token ids of an answer as a message.

    Attributes:
        prompts: as given.
    """

    def __init__(
        self,
        prompts: Sequence[BenchPrompt],
        encode: Callable[[Messages], list[int]],
        say: Callable[[list[int]], dict[str, Any]],
    ) -> None:
        self.prompts = prompts
        self._encode, self._say = encode, say
        self._answers: dict[tuple[float, int], list[int]] = {}
        self._first = {i: encode(p.messages) for i, p in enumerate(prompts) if p.follows is None}

    @classmethod
    def of(cls, engine: Engine, prompts: Sequence[BenchPrompt]) -> "Asked":
        """Return prompts as an engine's target reads them.

        Raises:
            EagleError: if the chat template refuses one.
        """

        def say(tokens: list[int]) -> dict[str, Any]:
            ends = set(engine.tokenizer.eos_token_ids)
            said = list(takewhile(lambda token: token not in ends, tokens))
            return engine.answer_format.message(engine.tokenizer.decode(said))

        return cls(prompts, lambda messages: _encode(engine.tokenizer, messages), say)

    def ids(self, temperature: float, prompt_id: int) -> list[int]:
        """Return the token ids of a prompt; of a later turn only after `note`."""
        if prompt_id in self._first:
            return self._first[prompt_id]
        return self._encode(self._messages(temperature, prompt_id))

    def note(self, temperature: float, prompt_id: int, answer: list[int]) -> None:
        """Take in plain decoding's answer to a prompt; the first one stays."""
        self._answers.setdefault((temperature, prompt_id), answer)

    def _messages(self, temperature: float, prompt_id: int) -> Messages:
        """Return a prompt with the conversation before it."""
        prompt = self.prompts[prompt_id]
        if prompt.follows is None:
            return prompt.messages
        answer = self._say(self._answers[temperature, prompt.follows])
        return [*self._messages(temperature, prompt.follows), answer, *prompt.messages]


def fits(engine: Engine, question: BenchPrompt, max_tokens: int) -> bool:
    """Say whether a question with all of its turns and answers fits into the target's context.

    Args:
        engine: with the limits.
        question: with its later turns.
        max_tokens: of every answer.
    """
    budget = engine.limits.budget(0)
    if budget is None:
        return True
    n_tokens = len(_encode(engine.tokenizer, question.messages)) + max_tokens
    for text in question.later:
        n_tokens += len(engine.tokenizer.encode(text)) + TEMPLATE + max_tokens
    return n_tokens <= budget.tokens


def _encode(tokenizer: Any, messages: Messages) -> list[int]:
    """Return the token ids of messages; what the template says of a refusal names the prompt."""
    text = "\n\n".join(message["content"] for message in messages)
    try:
        return encode_chat_or_text(tokenizer, messages, text)
    except EagleError as error:
        raise EagleError(f"the prompt {text[:40]!r} cannot be asked: {error}") from error
