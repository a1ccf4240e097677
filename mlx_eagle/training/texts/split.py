"""What is trained on and what is held out to measure on; conversations that repeat go once.

Which side a conversation falls on is decided by its first question and the seed alone, so adding
data moves nobody to the other side. What is held out is asked nowhere in what is trained on, not
later in a conversation either, but for what is said in many of them: a head is measured on
questions that it has not seen. Spaces, line ends, capitals and system prompts make no other one.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mlx_eagle.errors import EagleError
from mlx_eagle.training.texts.conversations import Conversation

# A turn asks something of its own if it does not follow upon more first questions than this, and
# has as many words or is itself a first one: "go on" and "in one sentence, please" do not.
FEWEST_WORDS, MOST_FIRST_QUESTIONS = 4, 10
LONGEST_WORD = 12  # characters without a space: more are a sentence of a script that has none


class Split(NamedTuple):
    """Conversations by what they are for, in the order in which they came.

    Attributes:
        train: to train on.
        heldout: to measure on.
        n_repeated: conversations that were left out because they had come before.
        n_asked: conversations that are not trained on because they ask what is held out.
    """

    train: list[Conversation]
    heldout: list[Conversation]
    n_repeated: int
    n_asked: int = 0


def split(conversations: Iterable[Conversation], share: float, seed: int) -> Split:
    """Return conversations without repeats, about `share` of the questions held out.

    At least one question is held out if the share is above 0 and there are two or more, and at
    least one is trained on: in a set so small that this has to be forced, new data may move it.
    Conversations that ask later what is held out are trained on only where all do.

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
    alone = without_questions_of(train, kept)
    if not alone:  # what is asked later is in all of them: first questions alone tell them apart
        alone = train
    return Split(alone, kept, n_repeated, len(train) - len(alone))


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
    conversations: Sequence[Conversation], others: Sequence[Conversation]
) -> list[Conversation]:
    """Return conversations that ask nothing that some others ask, in their order.

    Worked example: where another one asks "What is a ring?" and then "And what is a field then?",
    a conversation is left out that asks "what is a  ring?" or the second question, first or later;
    one is not that only shares the turn "Go on."
    """
    usual = _usual_turns([*conversations, *others])
    first = {_turns(conversation)[0] for conversation in others}
    asked = {turn for conversation in others for turn in _asked(conversation)} - usual
    turns = ((conversation, _turns(conversation)) for conversation in conversations)
    return [c for c, said in turns if said[0] not in first and asked.isdisjoint(said)]


def _asked(conversation: Conversation) -> set[str]:
    """Return the questions of a conversation: the first turn, and later ones of their own."""
    first, *later = _turns(conversation)
    return {first, *filter(_is_long, later)}


def _is_long(turn: str) -> bool:
    """Say whether a turn can be a question of its own, in scripts without spaces too."""
    return len(turn.split()) >= FEWEST_WORDS or (" " not in turn and len(turn) > LONGEST_WORD)


def _usual_turns(conversations: Iterable[Conversation]) -> set[str]:
    """Return the turns that follow upon so many first questions that they ask nothing new."""
    before = defaultdict[str, set[str]](set)
    for conversation in conversations:
        first, *later = _turns(conversation)
        for turn in later:
            before[turn].add(first)
    return {turn for turn, firsts in before.items() if len(firsts) > MOST_FIRST_QUESTIONS}


def _turns(conversation: Conversation) -> list[str]:
    """Return what the user says, turn by turn, as it is compared; a plain text is one turn."""
    said = [m["content"] for m in conversation.messages if m["role"] == "user"]
    said = said or [conversation.text or _content(conversation)]
    return [" ".join(turn.casefold().split()) for turn in said]


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
    first = _turns(conversation)[0]
    return int.from_bytes(_digest(f"{seed} {first}")[:8], "big")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
