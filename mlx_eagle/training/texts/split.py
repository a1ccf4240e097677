"""What is trained on and what is held out to measure on; conversations that repeat go once.

Which side a conversation falls on is decided by its first question and the seed alone, so adding
data moves nobody to the other side, and answers to one question never stand on both: a head is
measured on questions that it has not seen.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from mlx_eagle.errors import EagleError
from mlx_eagle.training.texts.conversations import Conversation


class Split(NamedTuple):
    """Conversations by what they are for, in the order in which they came.

    Attributes:
        train: to train on.
        heldout: to measure on.
        n_repeated: conversations that were left out because they had come before.
    """

    train: list[Conversation]
    heldout: list[Conversation]
    n_repeated: int


def split(conversations: Iterable[Conversation], share: float, seed: int) -> Split:
    """Return conversations without repeats, about `share` of the questions held out.

    At least one question is held out if the share is above 0 and there are two or more, and at
    least one is trained on: in a set so small that this has to be forced, new data may move it.

    Args:
        conversations: in any number.
        share: of the questions, from 0 to 1.
        seed: another one holds out others.

    Raises:
        EagleError: if there is no conversation.
    """
    unique, n_repeated = without_repeats(conversations)
    if not unique:
        raise EagleError("nothing is left to train on: the data holds no conversation")
    numbers = [_number(conversation, seed) for conversation in unique]
    ordered = sorted(set(numbers))
    n_wanted = sum(number < share * 2.0**64 for number in ordered)
    n_heldout = min(max(n_wanted, 1), len(ordered) - 1) if share > 0 else 0
    heldout = set(ordered[:n_heldout])
    train, kept = list[Conversation](), list[Conversation]()
    for conversation, number in zip(unique, numbers, strict=True):
        (kept if number in heldout else train).append(conversation)
    return Split(train, kept, n_repeated)


def without_repeats(conversations: Iterable[Conversation]) -> tuple[list[Conversation], int]:
    """Return conversations, each once, and how many were left out.

    Two are the same if everything they say is, but for spaces and line ends.
    """
    seen = dict[bytes, Conversation]()
    n_all = 0
    for conversation in conversations:
        n_all += 1
        seen.setdefault(_digest(_content(conversation)), conversation)
    return list(seen.values()), n_all - len(seen)


def without_questions_of(
    conversations: Iterable[Conversation], others: Iterable[Conversation]
) -> list[Conversation]:
    """Return conversations whose first question none of some others asks, in their order."""
    asked = {_number(conversation, 0) for conversation in others}
    return [c for c in conversations if _number(c, 0) not in asked]


def _content(conversation: Conversation) -> str:
    """Return everything a conversation says, as a text in which spaces do not count."""
    said = [conversation.text, conversation.messages, conversation.tools]
    return json.dumps(_without_spaces(said), sort_keys=True)


def _without_spaces(value: object) -> object:
    """Return a JSON value whose texts have one space where they had several or line ends."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list | tuple):
        return [_without_spaces(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_spaces(item) for key, item in value.items()}
    return value


def _number(conversation: Conversation, seed: int) -> int:
    """Return a number below 2**64 that depends on the seed and the first question alone."""
    asked = [m["content"] for m in conversation.messages if m["role"] == "user"]
    first = asked[0] if asked else conversation.text or _content(conversation)
    return int.from_bytes(_digest(f"{seed} {_without_spaces(first)}")[:8], "big")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
