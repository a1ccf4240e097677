"""The body of OpenAI's older `completions`: a text that goes on, without a chat template."""

from typing import Annotated, Any

from pydantic import Field

from mlx_eagle.server.asked import Asked
from mlx_eagle.server.bodies import (
    MOST_BIASES,
    Body,
    Count,
    Penalty,
    Share,
    Stops,
    Str,
    Temperature,
    TopK,
    given,
    sampling,
    stops,
)
from mlx_eagle.server.chat_body import StreamOptions, biases
from mlx_eagle.server.refusal import RefusalError

MOST_IDS = 1_000_000
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MOST_IDS)]


class CompletionsBody(Body):
    """The body of `completions`; fields that are not here are passed over."""

    prompt: Str | Ids | Annotated[list[Str | Ids], Field(min_length=1, max_length=64)]
    model: Str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    seed: int | None = None
    stop: Stops = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MOST_BIASES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Str | None = None
    n: int | None = None
    best_of: int | None = None
    user: Str | None = None
    speculate: bool | None = None


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
        options=sampling(body) | _options(body),
        streams=bool(body.stream),
        with_usage=bool(body.stream_options and body.stream_options.include_usage),
        n_logprobs=body.logprobs,
        echoes=bool(body.echo),
        who=body.user or "",
    )


def _options(body: CompletionsBody) -> dict[str, Any]:
    return given(
        max_tokens=body.max_tokens,
        min_p=body.min_p,
        stop=stops(body.stop) or None,
        presence_penalty=body.presence_penalty or None,
        frequency_penalty=body.frequency_penalty or None,
        repetition_penalty=body.repetition_penalty,
        logit_bias=biases(body.logit_bias),
        speculate=body.speculate,
    )


def _one_prompt(prompt: Any) -> str | list[int]:
    """Return the prompt, which may stand in a list of one."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return prompt  # type: ignore[no-any-return]
    if len(prompt) != 1:
        message = f"prompt has {len(prompt)} texts; one is answered per request"
        raise RefusalError("invalid", message, "prompt")
    return prompt[0]  # type: ignore[no-any-return]
