"""The body of OpenAI's older `completions`: a text that goes on, without a chat template."""

from typing import Annotated, Any

from pydantic import Field

from mlx_eagle.server.asked import Asked
from mlx_eagle.server.bodies import Str
from mlx_eagle.server.openai_body import OpenAIBody
from mlx_eagle.server.refusal import RefusalError

MOST_IDS = 1_000_000
Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=MOST_IDS)
]


class CompletionsBody(OpenAIBody):
    """The body of `completions`; fields that are not here are passed over."""

    prompt: Str | Ids | Annotated[list[Str | Ids], Field(min_length=1, max_length=64)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Str | None = None
    best_of: int | None = None


def read_completions(body: CompletionsBody) -> Asked:
    """Return what a body asks for.

    Raises:
        RefusalError: if it asks for what there is not.
    """
    if body.suffix:
        message = "text is not filled in here: suffix must be empty"
        raise RefusalError("invalid", message, "suffix")
    for name in ("n", "best_of"):
        if getattr(body, name) not in (None, 1):
            raise RefusalError("invalid", f"{name} is not 1; one answer is made per request", name)
    prompt = _one_prompt(body.prompt)
    if body.echo and not isinstance(prompt, str):
        raise RefusalError("invalid", "echo needs the prompt as text", "echo")
    return Asked(
        api="completions",
        prompt=prompt,
        options=body.options(),
        streams=bool(body.stream),
        with_usage=body.with_usage,
        n_logprobs=body.logprobs,
        echoes=bool(body.echo),
        who=body.user or "",
    )


def _one_prompt(prompt: Any) -> str | list[int]:
    """Return the prompt, which may stand in a list of one."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return prompt  # type: ignore[no-any-return]
    if len(prompt) != 1:
        message = f"prompt has {len(prompt)} texts; one is answered per request"
        raise RefusalError("invalid", message, "prompt")
    return prompt[0]  # type: ignore[no-any-return]
