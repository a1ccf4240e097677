"""A conversation while the target answers it: its questions, and what has been said so far."""

from collections.abc import Sequence

from mlx_eagle.answers.answer_format import AnswerFormat
from mlx_eagle.errors import EagleError
from mlx_eagle.session.prompt import Message, Template, encode
from mlx_eagle.training.texts.answer_file import Answer, Answered

# Why an answer is missing, as files and counts have it.
NO_QUESTION, TOOLS = "no question", "tools were called"
CALLED = "the target called a tool, which nobody runs"
REFUSED, NO_ROOM, NO_ANSWER = "refused by the template", "no room", "empty answer"
ONLY_THOUGHTS = "an answer of thoughts alone"


class Dialogue:
    """A conversation while it is answered.

    Args:
        place: of the input, from 0 on.
        conversation: messages in OpenAI's format; answers in it are left out, and every message
            of a user is a question.
        tools: that the answers may call, as JSON schemas. A call ends the conversation.

    Attributes:
        place: of the input, from 0 on.
        turn: answers so far.
        tokens: of the answer that is being written.
    """

    def __init__(
        self, place: int, conversation: Sequence[Message], tools: Sequence[Message] = ()
    ) -> None:
        self.place = place
        self.tokens: list[int] = []
        self._questions = questions(conversation)
        self._tools = tuple(tools)
        self._begun = ""
        self._messages: list[Message] = []
        self._answers: list[Answer] = []
        self._left_out: str | None = None
        if not self._questions:
            self._left_out = NO_QUESTION
        elif any(m.get("role") == "tool" or m.get("tool_calls") for m in conversation):
            # What a tool said belongs to a call in an answer that the target did not write.
            self._left_out, self._messages = TOOLS, list(self._questions[0])

    @property
    def turn(self) -> int:
        """Return how many questions have been answered."""
        return len(self._answers)

    @property
    def is_over(self) -> bool:
        """Say whether nothing is left to ask."""
        return self._left_out is not None or self.turn == len(self._questions)

    def ask(self, form: AnswerFormat, template: Template, max_context: int | None) -> list[int]:
        """Return the tokens of the prompt for the next answer; [] if there can be none."""
        self._messages += self._questions[self.turn]
        self.tokens = []
        try:
            prompt = encode(form.tokenizer, self._messages, with_tools(template, self._tools))
        except EagleError:
            self._left_out = REFUSED
            return []
        if max_context is not None and len(prompt) >= max_context:
            self._left_out = NO_ROOM
            return []
        self._begun = form.begun(prompt, self._messages)
        return prompt

    def end_answer(self, form: AnswerFormat, *, is_cut: bool) -> None:
        """Take in the answer that was written, as a session does: thoughts and calls apart.

        Args:
            form: how the target writes answers.
            is_cut: whether its last token belongs to it, because none ended it.
        """
        said = self.tokens if is_cut else self.tokens[:-1]
        text = str(form.tokenizer.decode(said, clean_up_tokenization_spaces=False)) if said else ""
        if not text.strip():
            self._left_out = NO_ANSWER
            return
        message = form.message(text, self._begun, self._tools, f"{self.place} {self.turn}")
        self._messages.append(message)
        self._answers.append(Answer(self.tokens, is_cut))
        if self.is_over:
            return
        if message.get("tool_calls"):
            self._left_out = CALLED
        elif not message["content"].strip():
            self._left_out = ONLY_THOUGHTS

    def result(self) -> Answered:
        """Return the conversation up to its last answer; one without answers has its question."""
        messages = self._messages
        if self._answers:
            roles = [message.get("role") for message in messages]
            messages = messages[: len(roles) - roles[::-1].index("assistant")]
        return Answered(self.place, messages, self._answers, self._left_out, self._tools)


def with_tools(template: Template, tools: Sequence[Message]) -> Template:
    """Return what a chat template is given where answers may call tools."""
    return template._replace(tools=tools) if tools else template


def questions(conversation: Sequence[Message]) -> list[list[Message]]:
    """Return what is said before each answer: messages, of which the last is a user's.

    Answers are left out, and so is what follows the last question.
    """
    found: list[list[Message]] = []
    before: list[Message] = []
    for message in conversation:
        if message.get("role") == "assistant":
            continue
        before.append(dict(message))
        if message.get("role") == "user":
            found.append(before)
            before = []
    return found
