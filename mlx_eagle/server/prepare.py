"""A request made ready for the engine, on a thread of its own: rendered, encoded and checked.

What can be refused is refused here, before an answer has begun. The thread has its own copy of the
tokenizer, which the engine's thread uses at the same time.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.server.asked import Asked, Tools
from mlx_eagle.server.faults import LOG
from mlx_eagle.server.refusal import RefusalError
from mlx_eagle.session.forced_calls import ForcedCalls, find_marks
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.prompt import (
    EncodedMessages,
    Prompt,
    Template,
    check_ids,
    encode,
    is_messages,
)
from mlx_eagle.session.recommended import NAMES
from mlx_eagle.session.request import check_drafting
from mlx_eagle.session.selector import make_constraint

PREFILL_STEP = 512  # tokens; a request that is cancelled goes on for as long as so many take
PROBE = {
    "type": "function",
    "function": {
        "name": "probe_of_tools",
        "description": "None.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered.

    Attributes:
        asked: what was asked for.
        prompt: for the engine.
        n_prompt: tokens of it.
        options: of `GenerationOptions`, by name.
        tools: that the answer may call; empty where it may call none.
        loose: names of the tools whose arguments no grammar forces; None: it forces no call.
    """

    asked: Asked
    prompt: Prompt
    n_prompt: int
    options: Mapping[str, Any]
    tools: Tools
    loose: frozenset[str] | None = None


class Preparer:
    """Makes requests ready.

    Args:
        engine: that will answer them.
        recommended: options that hold where a request says nothing.

    Attributes:
        context: tokens that prompt and answer may have together; None where nothing bounds them.
    """

    def __init__(self, engine: Engine, recommended: Mapping[str, Any]) -> None:
        self._engine = engine
        self._recommended = {name: recommended[name] for name in NAMES if name in recommended}
        self._tokenizer = copy.copy(engine.tokenizer)
        self._tokenizer._tokenizer = copy.deepcopy(engine.tokenizer._tokenizer)
        self._thinks = find_marks(engine.answer_format).thought_start is not None
        self._drafter = engine.make_drafter()  # asked what it can draft, and nothing else
        self.takes_tools = self._names_tools()
        self.context: int | None
        self.measure_context()

    def measure_context(self) -> None:
        """Note for how many tokens there is room, at a moment at which no answer takes any."""
        budget = self._engine.budget(0)
        self.context = None if budget is None else budget.tokens

    def prepare(self, asked: Asked) -> Prepared:
        """Return a request ready to be answered.

        Raises:
            RefusalError: if it cannot be.
        """
        tools = self._tools(asked)
        ids = self._encode(asked, tools)
        n_prompt, context = len(ids), self.context
        if context is not None and n_prompt >= context:
            raise too_long(asked.api, n_prompt, context)
        options = self._options(asked, tools, n_prompt, context)
        forced = self._check(options, tools)
        if forced is not None and forced.loose:
            text = "%s: of %d tools names are forced and arguments are not: no grammar follows them"
            LOG.info(text, asked.request_id, len(forced.loose))
        messages = asked.prompt if is_messages(asked.prompt) else None
        prompt = EncodedMessages(messages, ids) if messages else ids
        loose = forced.loose if forced is not None else None
        return Prepared(asked, prompt, n_prompt, options, tools, loose)

    def count(self, asked: Asked) -> int:
        """Return how many tokens a prompt has.

        Raises:
            RefusalError: if it cannot be read.
        """
        return len(self._encode(asked, self._tools(asked)))

    def _tools(self, asked: Asked) -> Tools:
        """Return the tools that the answer may call, once the template can name them."""
        if not asked.tools or asked.choice == "none":
            return ()
        if not self.takes_tools:
            message = "the model's chat template ignores tools; leave them out, or serve another"
            raise RefusalError("invalid", message, "tools")
        return asked.tools

    def _encode(self, asked: Asked, tools: Tools) -> list[int]:
        args = {**self._engine.template.args, **asked.template_args}
        try:
            ids = encode(self._tokenizer, asked.prompt, Template(args, list(tools) or None))
            check_ids(ids, self._engine.target.vocab_size)
        except EagleError as error:
            raise RefusalError("invalid", str(error), _prompt_field(asked)) from None
        except RecursionError:
            message = "arguments of a call are nested too deeply for the chat template"
            raise RefusalError("invalid", message, _prompt_field(asked)) from None
        return ids

    def _options(
        self, asked: Asked, tools: Tools, n_prompt: int, context: int | None
    ) -> dict[str, Any]:
        """Return the options for the engine."""
        options = {**self._recommended, **asked.options}
        if asked.api == "messages" and not self._thinks:
            options.pop("thinking_budget", None)  # clients send it to every model
        if context is not None:
            room = context - n_prompt
            options["max_tokens"] = min(options.get("max_tokens", room), room)
        else:
            options.setdefault("max_tokens", 1 << 30)
        options["prefill_step_size"] = PREFILL_STEP
        options["logprobs"] = asked.n_logprobs is not None
        return options | self._demands(asked, tools)

    def _check(self, options: Mapping[str, Any], tools: Tools) -> ForcedCalls | None:
        """Refuse what the engine would; returns which calls are forced."""
        engine = self._engine
        try:
            checked = GenerationOptions(**options, tools=list(tools) or None)
            check_drafting(engine, self._drafter, checked)
            make_constraint(checked, engine)  # compiled here, it is at hand then
            if engine.target.vocab_size is not None:
                checked.check_bias(engine.target.vocab_size)
            return engine.call_grammars.find(checked)
        except (EagleError, ValueError, TypeError) as error:
            raise RefusalError("invalid", str(error)) from None

    def _demands(self, asked: Asked, tools: Tools) -> dict[str, Any]:
        """Return the options that say what the answer must be."""
        demands: dict[str, Any] = {}
        if asked.schema is not None:
            demands["json_schema"] = asked.schema
        if tools:
            demands |= {"tool_choice": asked.choice, "parallel_tool_calls": asked.parallel}
        thinks = self._thinks and asked.template_args.get("enable_thinking") is not False
        return demands | {"thinks_first": thinks} if demands else {}

    def _names_tools(self) -> bool:
        """Say whether the chat template writes the tools that it is given."""
        if not self._tokenizer.has_chat_template:
            return False
        asked = [{"role": "user", "content": "-"}]
        try:
            args = self._engine.template.args
            ids = encode(self._tokenizer, asked, Template(args, [PROBE]))
        except EagleError:
            return False
        return "probe_of_tools" in self._tokenizer.decode(ids)


def too_long(api: str, n_prompt: int, context: int) -> RefusalError:
    """Return the refusal of a prompt that leaves no room; some clients look for its words."""
    if api == "messages":
        message = f"prompt is too long: {n_prompt} tokens > {context - 1} maximum"
        return RefusalError("too_long", message)
    return RefusalError(
        "too_long",
        f"This model's maximum context length is {context} tokens, but the prompt has {n_prompt}; "
        "shorten it",
        "prompt" if api == "completions" else "messages",
    )


def _prompt_field(asked: Asked) -> str:
    names = {"completions": "prompt", "responses": "input"}
    return names.get(asked.api, "messages")
