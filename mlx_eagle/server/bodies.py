"""What all bodies of requests have in common: how they are read, and parts of several of them."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mlx_eagle.server.refusal import RefusalError

MOST_MESSAGES, MOST_TOOLS, MOST_PARTS = 10_000, 512, 10_000
MOST_STOPS, MOST_STOP, MOST_BIASES = 16, 256, 1024
MOST_SCHEMA = 1_000_000  # characters
MOST_TOKENS = 1 << 40
SEEDS = 1 << 32


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds the character NUL")
    return text


Str = Annotated[str, AfterValidator(_text)]
Stop = Annotated[str, Field(max_length=MOST_STOP), AfterValidator(_text)]
Stops = Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Temperature = Annotated[float, Field(ge=0, le=100)]
TopK = Annotated[int, Field(ge=-1, le=1_000_000)]
Schema = dict[str, Any]


def words(*known: str) -> Any:
    """Return what the description says of a field for words; what else is sent is refused later."""
    return Field(json_schema_extra={"enum": list(known)})


class Body(BaseModel):
    """A part of a body: types are meant literally, what is not known is passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


B = TypeVar("B", bound=Body)


def read_body(kind: type[B], data: bytes) -> B:
    """Return a body once it is what it must be.

    Raises:
        RefusalError: naming the first field that is not, without what it held.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = _deepest(error)
        where = _where(first["loc"], kind)
        message = f"{where + ': ' if where else ''}{first['msg']}"
        raise RefusalError("invalid", message, where or None) from None


def stops(value: Any) -> list[str]:
    """Return stop strings, however they were given."""
    return [value] if isinstance(value, str) else list(value or ())


def check_schema(schema: Any, where: str) -> str:
    """Return a JSON schema as text.

    Raises:
        RefusalError: if it is too large.
    """
    text = json.dumps(schema)
    if len(text) > MOST_SCHEMA:
        raise RefusalError("invalid", f"{where} has more than {MOST_SCHEMA} characters", where)
    return text


def given(**options: Any) -> dict[str, Any]:
    """Return the options that a request names."""
    return {name: value for name, value in options.items() if value is not None}


def sampling(body: Any) -> dict[str, Any]:
    """Return the options of sampling that bodies of several APIs share."""
    top_k = getattr(body, "top_k", None)
    seed = getattr(body, "seed", None)
    return given(
        temperature=body.temperature,
        # 0 would leave nothing; clients mean the likeliest token by it.
        top_p=body.top_p or (None if body.top_p is None else 1e-6),
        top_k=None if top_k is None else max(top_k, 0),
        seed=None if seed is None else seed % SEEDS,
    )


def _deepest(error: ValidationError) -> Any:
    """Return the fault that lies deepest: of a choice, that of the alternative that nearly fit."""
    return max(error.errors(include_input=False, include_url=False), key=lambda e: len(e["loc"]))


def _where(loc: tuple[int | str, ...], kind: type[Body]) -> str:
    """Return a place in a body as a client would write it: messages[3].content."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not any(c in part for c in "[(") and not part[:1].isupper() and part not in KINDS:
            path += f".{part}" if path else part
    return path


KINDS = ("str", "int", "float", "bool", "list", "dict")  # what pydantic calls alternatives
