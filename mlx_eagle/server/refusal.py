"""What the server refuses, and how each API says it: one kind, two ways of writing it."""

import json
from typing import Any, NamedTuple

from mlx_eagle.errors import EagleError


class Wording(NamedTuple):
    """How the APIs name one kind of refusal.

    Attributes:
        status: of HTTP.
        openai: its "type" in OpenAI's API.
        code: its "code" there; None where it has none.
        anthropic: its "type" in Anthropic's API.
        is_lasting: whether the same request would be refused again, so that clients need not try.
    """

    status: int
    openai: str
    code: str | None
    anthropic: str
    is_lasting: bool = True


BAD = "invalid_request_error"
WORDINGS = {
    "invalid": Wording(400, BAD, "invalid_value", BAD),
    "content": Wording(400, BAD, "unsupported_content", BAD),
    "too_long": Wording(400, BAD, "context_length_exceeded", BAD),
    "key": Wording(401, "authentication_error", "invalid_api_key", "authentication_error"),
    "foreign": Wording(403, "permission_error", "forbidden", "permission_error"),
    "unknown": Wording(404, "not_found_error", "not_found", "not_found_error"),
    "method": Wording(405, BAD, "method_not_allowed", BAD),
    "slow": Wording(408, BAD, "request_timeout", "timeout_error", is_lasting=False),
    "too_large": Wording(413, BAD, "request_too_large", "request_too_large"),
    "media": Wording(415, BAD, "unsupported_media_type", BAD),
    "busy": Wording(429, "rate_limit_error", "queue_full", "overloaded_error", is_lasting=False),
    "stopping": Wording(503, "server_error", "unavailable", "api_error", is_lasting=False),
    "lost": Wording(503, "server_error", "unavailable", "api_error"),
    "memory": Wording(500, "server_error", "oom", "api_error"),
    "call": Wording(500, "server_error", "unreadable_call", "api_error", is_lasting=False),
    "internal": Wording(500, "server_error", "internal_error", "api_error"),
}
LOST = "{}; start the server again"  # why nothing is answered any more
APIS = ("chat", "completions", "messages", "responses")
RESTART = 10  # seconds, after which a server that stops may run again
OVERLOADED = 529  # what Anthropic's API answers where others say 429


class RefusalError(EagleError):
    """A request that is not answered, or not to its end.

    Args:
        kind: a key of `WORDINGS`.
        message: what was found, what was expected, what to do; it quotes no text of a prompt.
        param: where in the body the fault is, e.g. "messages[3].content"; None where that is clear.
        retry_after: seconds after which to try again; None where that would not help.
    """

    def __init__(
        self, kind: str, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind, self.param = kind, param
        if retry_after is None and kind == "stopping":
            retry_after = RESTART
        self.retry_after = None if retry_after is None else min(max(retry_after, 1), 60)

    @property
    def wording(self) -> Wording:
        """How the APIs name it."""
        return WORDINGS[self.kind]

    def headers(self) -> dict[str, str]:
        """Return the headers that tell a client whether and when to try again."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        return {"x-should-retry": "false"} if self.wording.is_lasting else {}


def openai_error(refusal: RefusalError) -> dict[str, Any]:
    """Return the body of an error of OpenAI's API."""
    wording = refusal.wording
    fields = {"message": str(refusal), "type": wording.openai}
    return {"error": fields | {"param": refusal.param, "code": wording.code}}


def anthropic_error(refusal: RefusalError, request_id: str) -> dict[str, Any]:
    """Return the body of an error of Anthropic's API."""
    where = f"{refusal.param}: " if refusal.param else ""
    fields = {"type": refusal.wording.anthropic, "message": f"{where}{refusal}"}
    return {"type": "error", "error": fields, "request_id": request_id}


def status_of(refusal: RefusalError, api: str) -> int:
    """Return the status of HTTP; clients of some APIs try again after others than 429.

    Args:
        refusal: of a request.
        api: "chat", "completions", "responses" or "messages".
    """
    if refusal.kind == "busy":
        return {"responses": 503, "messages": OVERLOADED}.get(api, 429)
    return refusal.wording.status


def error_body(refusal: RefusalError, api: str, request_id: str) -> dict[str, Any]:
    """Return the body of a refusal in the form of an API."""
    is_anthropic = api == "messages"
    return anthropic_error(refusal, request_id) if is_anthropic else openai_error(refusal)


def api_of(path: str) -> str:
    """Return which API a path belongs to, by whose form its errors are written."""
    return known_api(path) or "chat"


def known_api(path: str) -> str:
    """Return the API that answers at a path; "" where none does."""
    parts = path.strip("/").split("/")
    parts = parts[1:] if parts[0] == "v1" else parts
    return parts[0] if parts and parts[0] in APIS else ""


def as_json(value: Any) -> bytes:
    """Return JSON for the wire: UTF-8, without needless spaces; half a character is escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace")
