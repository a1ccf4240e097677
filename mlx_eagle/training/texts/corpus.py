"""The texts of a training: read, split, answered by the target where need be, and encoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlx_eagle.errors import EagleError
from mlx_eagle.training.batch import Example
from mlx_eagle.training.recipe import Progress
from mlx_eagle.training.texts.answer_examples import answer_examples
from mlx_eagle.training.texts.answer_file import Tally, tally
from mlx_eagle.training.texts.conversations import Conversation, read_conversations
from mlx_eagle.training.texts.examples import Encoder
from mlx_eagle.training.texts.split import Split, split, without_questions_of, without_repeats
from mlx_eagle.training.texts.target_answers import Respondent, write_answers

NAMED = 3  # conversations that cannot be used and are named


class Corpus(NamedTuple):
    """Texts as tokens.

    Attributes:
        train: to train on.
        heldout: to measure on.
        remarks: what was left out or cut, a line each.
    """

    train: list[Example]
    heldout: list[Example]
    remarks: list[str]


def read_corpus(
    files: Sequence[Path],
    heldout: Sequence[Path],
    respondent: Respondent,
    folder: Path,
    progress: Progress,
) -> Corpus:
    """Return the texts of some files, in part held out.

    Args:
        files: as `read_conversations` takes them.
        heldout: files to measure on; where there are none, a share of the others is held out.
        respondent: the target, which answers what has no answer, or everything; its options say.
        folder: where its answers are kept.
        progress: as in `Watch`; "texts" and "answers" count conversations.

    Raises:
        EagleError: if a file cannot be used, or nothing is left to train on. Single conversations
            that cannot be used are left out, and said.
    """
    data = respondent.options
    parts, remarks = _parts(files, heldout, data.heldout, respondent.seed)
    train, said_of_train = _texts("train", parts.train, respondent, folder, progress)
    heldout_texts, said_of_heldout = _texts("heldout", parts.heldout, respondent, folder, progress)
    remarks += said_of_train + said_of_heldout
    if not any(example.trained.any() for example in train):
        raise EagleError(
            "nothing is left to train on: the data holds no answer; let the target write them "
            "with --answers target, or train on everything with --train-on all"
        )
    return Corpus(train, heldout_texts, remarks)


def _texts(
    name: str,
    conversations: Sequence[Conversation],
    respondent: Respondent,
    folder: Path,
    progress: Progress,
) -> tuple[list[Example], list[str]]:
    """Return the texts of one part of the conversations, and what is said of them."""
    data = respondent.options
    to_answer = [c for c in conversations if _is_answered_anew(c, data.answers)]
    given = [c for c in conversations if not _is_answered_anew(c, data.answers)]
    encoder = Encoder(
        respondent.tokenizer,
        context=respondent.max_context,
        train_on=data.train_on,
        template_args=respondent.template.args,
    )
    examples, unusable = _encoded(encoder, given, progress)
    if name == "train" and unusable and len(unusable) == len(given):
        raise EagleError(unusable[0])
    remarks = _remarks_of_unusable(name, unusable)
    remarks += _remarks_of_examples(name, encoder, respondent.max_context)
    if to_answer:
        texts, counts = _answered(to_answer, respondent, folder / f"answers-{name}.jsonl", progress)
        examples += texts
        remarks += _remarks_of_answers(name, counts)
    return examples, remarks


def _parts(
    files: Sequence[Path], heldout: Sequence[Path], share: float, seed: int
) -> tuple[Split, list[str]]:
    """Return what is trained on and what is held out, and what is said of it."""
    unusable = list[str]()
    parts = split(read_conversations(files, unusable), 0.0 if heldout else share, seed)
    apart = without_repeats(read_conversations(heldout, unusable))[0]
    remarks = _remarks_of_unusable("data", unusable)
    remarks += [f"{parts.n_repeated} conversations repeat others: left out"] * bool(
        parts.n_repeated
    )
    if heldout:
        train = without_questions_of(parts.train, apart)
        parts = Split(train, apart, parts.n_repeated, len(parts.train) - len(train))
    if not parts.train:
        raise EagleError(
            "nothing is left to train on: all conversations of --data ask, first or later, what "
            "--heldout-data asks; give other files"
        )
    if parts.n_asked:
        remarks.append(f"train: {parts.n_asked} conversations ask what is held out: left out")
    return parts, remarks


def _is_answered_anew(conversation: Conversation, answers: str) -> bool:
    """Say whether the target answers a conversation, or what stands in it is taken."""
    if not conversation.messages or answers == "given":
        return False
    return answers == "target" or not conversation.has_answer


def _encoded(
    encoder: Encoder, conversations: Sequence[Conversation], progress: Progress
) -> tuple[list[Example], list[str]]:
    """Return conversations as tokens, and why others cannot be encoded."""
    found, unusable = list[Example](), list[str]()
    for done, conversation in enumerate(conversations, start=1):
        try:
            found += encoder.encode(conversation)
        except EagleError as error:
            if not encoder.has_template:
                raise
            unusable.append(str(error))
        progress("texts", done, len(conversations), 0)
    return found, unusable


def _answered(
    conversations: Sequence[Conversation],
    respondent: Respondent,
    file: Path,
    progress: Progress,
) -> tuple[list[Example], Tally]:
    """Return the texts of conversations that the target answers, and what came of them."""
    messages = [conversation.messages for conversation in conversations]
    tools = [conversation.tools for conversation in conversations]
    answered = write_answers(
        respondent, messages, file, lambda *done: progress("answers", *done), tools=tools
    )
    tokenizer, template = respondent.tokenizer, respondent.template
    train_on = respondent.options.train_on
    texts = [
        text
        for one in answered
        for text in answer_examples(one, tokenizer, template, train_on=train_on)
    ]
    return texts, tally(answered)


def _remarks_of_unusable(name: str, reasons: Sequence[str]) -> list[str]:
    """Return how many conversations cannot be used, and why of the first ones."""
    if not reasons:
        return []
    count = f"{name}: {len(reasons)} conversations cannot be used: left out"
    return [count, *(f"{name}: {reason}" for reason in reasons[:NAMED])]


def _remarks_of_examples(name: str, encoder: Encoder, context: int | None) -> list[str]:
    """Return what became of conversations whose answers were given, a line for each kind."""
    counts = encoder.counts
    said = {
        f"are longer than the target's context of {context} tokens: cut": counts.cut,
        "have earlier answers that the chat template rewrites: the last one is trained on": (
            counts.last_only
        ),
        "have no answer: nothing of them is trained on": counts.unanswered,
        "begin with an answer to nothing: left out of them": counts.opened,
        "have a system prompt, which the chat template does not take: put into the first "
        "question": counts.without_system,
        "were cut before their first answer: nothing of them is trained on": counts.untrained,
    }
    return [f"{name}: {n} conversations {what}" for what, n in said.items() if n]


def _remarks_of_answers(name: str, counts: Tally) -> list[str]:
    """Return what became of conversations that the target answered, a line for each kind."""
    remarks = [f"{name}: the target wrote {counts.answers} answers, {counts.tokens} tokens"]
    if counts.cut:
        remarks.append(
            f"{name}: {counts.cut} answers were ended by the limit, {counts.looping} of them in a "
            "loop"
        )
    for what, reasons in (("left out", counts.left_out), ("cut short", counts.shortened)):
        remarks += [f"{name}: {n} conversations were {what}: {why}" for why, n in reasons.items()]
    return remarks
