"""What the bodies of OpenAI's `chat/completions` and `completions` have in common."""

from typing import Annotated, Any

from pydantic import Field

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
from mlx_eagle.server.refusal import RefusalError


class StreamOptions(Body):
    """What a stream carries besides."""

    include_usage: bool | None = None


class OpenAIBody(Body):
    """The fields of both bodies."""

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
    n: int | None = None
    user: Str | None = None
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    speculate: bool | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self) -> dict[str, Any]:
        """Return what the body says of an answer, as options of the library.

        Raises:
            RefusalError: if a bias is for no token id.
        """
        return sampling(self) | given(
            max_tokens=self.max_tokens,
            min_p=self.min_p,
            stop=stops(self.stop) or None,
            presence_penalty=self.presence_penalty or None,
            frequency_penalty=self.frequency_penalty or None,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_by_id(self.logit_bias),
            thinking_budget=self.thinking_budget,
            speculate=self.speculate,
        )


def _by_id(biases: dict[str, float] | None) -> dict[int, float] | None:
    """Return biases by token id."""
    if not biases:
        return None
    wrong = [key for key in biases if not (key.isascii() and key.isdecimal() and len(key) < 10)]
    if wrong:
        raise RefusalError("invalid", "logit_bias has a key that is no token id", "logit_bias")
    return {int(key): max(-100.0, min(bias, 100.0)) for key, bias in biases.items()}
