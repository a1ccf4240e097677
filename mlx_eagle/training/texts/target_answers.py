"""The target answers prompts itself, many at once, so that a head learns what it would say.

mlx-lm's batched generation does the work: it fills a place of the batch as soon as an answer ends.
Greedy answers are those of plain decoding, and sampled ones are drawn by (seed, conversation,
turn) and position, so neither depends on what is answered beside them or on where a run was
interrupted. One thing does: a batch rounds otherwise than a single row, so where two tokens are
as likely as the arithmetic can tell, either may be written.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, GenerationBatch
from mlx_lm.models.cache import make_prompt_cache

from mlx_eagle.answers.answer_format import read_format
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.session.prompt import PLAIN_TEMPLATE, Message, Template
from mlx_eagle.training.options import DataOptions
from mlx_eagle.training.texts.answer_file import Answered, AnswerFile, read_answers
from mlx_eagle.training.texts.dialogue import Dialogue
from mlx_eagle.tree import DraftTree

VERSION = 1  # of how answers are made; others are not gone on with
PROMPTS_AT_ONCE = 8  # that mlx-lm reads together, padded to the longest of them

Conversation = Sequence[Message]
Progress = Callable[[int, int, float], None]


class Respondent(NamedTuple):
    """The target that answers, and how.

    Attributes:
        network: as `load_target` returned it.
        tokenizer: mlx-lm's wrapper.
        identity: what tells this target from others, its precision included.
        max_context: tokens that a conversation may have; None for any number.
        options: `answer_tokens`, `answer_temperature` and `answers_at_once` of them.
        seed: of sampled answers.
        template: what the chat template is given besides the messages.
    """

    network: nn.Module
    tokenizer: Any
    identity: str
    max_context: int | None
    options: DataOptions
    seed: int = 0
    template: Template = PLAIN_TEMPLATE


def write_answers(
    respondent: Respondent,
    conversations: Sequence[Conversation],
    path: Path,
    progress: Progress | None = None,
    *,
    tools: Sequence[Sequence[Message]] = (),
) -> list[Answered]:
    """Let the target answer conversations, but those that an earlier run has answered.

    Greedy answers are found again wherever their conversation stands in the input now, and drawn
    ones, which depend on its place, where it stands at the same one.

    Every message of a user is answered, with the target's own earlier answers before it; answers
    in the input are left out. A conversation ends early where a prompt leaves no room in the
    context, the chat template refuses it or the answer is empty, thoughts alone or the call of a
    tool, and one in which tools were called is not answered at all.

    Args:
        respondent: the target, and how it answers.
        conversations: messages in OpenAI's format.
        path: the file that answers are appended to.
        progress: is told after every conversation how many are finished, of how many, and how
            many tokens a second the target writes.
        tools: that the answers of each conversation may call, as JSON schemas; () for none.

    Returns:
        The conversations in order, with their answers.

    Raises:
        EagleError: if mlx-lm cannot batch this target, it has no chat template, its logits are
            no numbers, or the file cannot be written or belongs to another run.
    """
    _check(respondent)
    offered = tools or [()] * len(conversations)
    asked = list(zip(conversations, offered, strict=True))
    digests = [_digest([list(c), list(t)] if t else list(c)) for c, t in asked]
    is_drawn = respondent.options.answer_temperature > 0
    with AnswerFile(path, _origin(respondent), digests, by_place=is_drawn) as file:
        waiting = (
            Dialogue(place, conversation, may_call)
            for place, (conversation, may_call) in enumerate(asked)
            if place not in file.finished
        )
        batch, started = _Batch(respondent), time.perf_counter()
        for answered in batch.answer(waiting):
            file.append(answered)
            if progress is not None:
                rate = batch.n_tokens / (time.perf_counter() - started)
                progress(len(file.finished), len(digests), rate)
    return read_answers(path, digests, by_place=is_drawn)


class _Batch:
    """The conversations that the target answers together.

    Attributes:
        n_tokens: that it has written.
    """

    def __init__(self, respondent: Respondent) -> None:
        self.n_tokens = 0
        self._respondent = respondent
        self._format = read_format(respondent.tokenizer)
        self._at_once = respondent.options.answers_at_once
        self._running: dict[int, Dialogue] = {}
        self._generator = BatchGenerator(
            respondent.network,
            stop_tokens=[[token] for token in respondent.tokenizer.eos_token_ids],
            sampler=_Draws(SeededSampler(temperature=0, seed=0), 0),
            completion_batch_size=self._at_once,
            prefill_batch_size=min(PROMPTS_AT_ONCE, self._at_once),
        )

    def answer(self, waiting: Iterator[Dialogue]) -> Iterator[Answered]:
        """Yield conversations as they end."""
        try:
            while True:
                yield from self._fill(waiting)
                if not self._running:
                    return
                for response in self._generator.next_generated():
                    yield from self._take(response)
        finally:
            self._generator.close()

    def _fill(self, waiting: Iterator[Dialogue]) -> Iterator[Answered]:
        """Begin conversations where there are places; yield those that have nothing to answer."""
        while len(self._running) < self._at_once:
            dialogue = next(waiting, None)
            if dialogue is None:
                return
            yield from self._go_on(dialogue)

    def _take(self, response: GenerationBatch.Response) -> Iterator[Answered]:
        """Take in a token; yield its conversation if that was the last one."""
        if response.token < 0:
            raise EagleError(
                "the target's logits are NaN or infinite, so it cannot answer; load it in a wider "
                "type (dtype: float32)"
            )
        self.n_tokens += 1
        dialogue = self._running[response.uid]
        dialogue.tokens.append(response.token)
        if response.finish_reason is None:
            return
        del self._running[response.uid]
        is_cut = response.finish_reason == "length"
        dialogue.end_answer(self._format, is_cut=is_cut)
        yield from self._go_on(dialogue)

    def _go_on(self, dialogue: Dialogue) -> Iterator[Answered]:
        """Put the next question of a conversation in; yield it if there is none."""
        of, prompt = self._respondent, list[int]()
        if not dialogue.is_over:
            prompt = dialogue.ask(self._format, of.template, of.max_context)
        if not prompt:
            yield dialogue.result()
            return
        n_tokens = of.options.answer_tokens
        if of.max_context is not None:
            n_tokens = min(n_tokens, of.max_context - len(prompt))
        samplers: list[Callable[[mx.array], mx.array]] | None = (
            None  # the greedy one, which mlx-lm then asks for all rows at once
        )
        if of.options.answer_temperature > 0:
            samplers = [_draws(of, dialogue, len(prompt))]
        [uid] = self._generator.insert([prompt], [n_tokens], samplers=samplers)
        self._running[uid] = dialogue


class _Draws:
    """Draws of one answer, or of many that are greedy; mlx-lm asks once for every next token."""

    def __init__(self, sampler: SeededSampler, position: int) -> None:
        self._sampler, self._position = sampler, position
        self._root = DraftTree.chain(mx.array([0]))  # one node: only its depth is read

    def __call__(self, log_probs: mx.array) -> mx.array:
        """Return the tokens [B] drawn from log-probabilities [B, V]."""
        self._position += 1
        return self._sampler(log_probs, self._root, self._position - 1)


def _draws(respondent: Respondent, dialogue: Dialogue, n_prompt: int) -> _Draws:
    """Return the draws of a conversation's next answer: those of a session with this seed."""
    temperature = respondent.options.answer_temperature
    seed = answer_seed(respondent.seed, dialogue.place, dialogue.turn)
    return _Draws(SeededSampler(temperature=temperature, seed=seed), n_prompt - 1)


def answer_seed(seed: int, conversation: int, turn: int) -> int:
    """Return the seed of one answer, by the places of its conversation and its question."""
    return int(_digest([seed, conversation, turn])[:8], 16)


def _check(respondent: Respondent) -> None:
    """Refuse a target that cannot answer at all."""
    if not respondent.tokenizer.has_chat_template:
        raise EagleError(
            "this target has no chat template, so it cannot answer conversations; put the "
            "chat_template of the model that it was made from into its tokenizer_config.json, or "
            'train on plain text ({"text": ..})'
        )
    layers = make_prompt_cache(respondent.network)
    alone = sorted({type(layer).__name__ for layer in layers if not hasattr(layer, "merge")})
    if alone:
        raise EagleError(
            f"mlx-lm cannot answer several conversations at once with {', '.join(alone)}, in which "
            "this target keeps its state; train on the answers in the data (--answers given)"
        )


def _origin(respondent: Respondent) -> dict[str, Any]:
    """Return what answers depend on, by the names of options where there are some."""
    options, template = respondent.options, respondent.template
    return {
        "version": VERSION,
        "target": respondent.identity,
        "answer_tokens": options.answer_tokens,
        "answer_temperature": options.answer_temperature,
        "seed": respondent.seed if options.answer_temperature > 0 else 0,
        "max_context": respondent.max_context,
        "template": json.dumps([dict(template.args), template.tools], sort_keys=True, default=str),
    }


def _digest(value: list[Any]) -> str:
    """Return 24 hexadecimal digits that stand for a value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
