"""What is counted of all requests, for Prometheus, and the line that the log has of each.

Neither holds a word of a request or of an answer.
"""

import re
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from mlx_eagle.server.delivery import Outcome, Scope
from mlx_eagle.server.guard import ID

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds
CLIENT = re.compile(r"[A-Za-z0-9_.-]{1,40}")  # the first word of what a client calls itself


class Meters:
    """The counts of one server.

    Args:
        gauges: what is measured when it is asked for, by name: what it is, and what returns it.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mlx_eagle_{name}", text, labels, registry=registry)

        self._requests = counter("requests", "Requests answered or refused.", "api", "status")
        self._prompt = counter("prompt_tokens", "Tokens of prompts, by where from.", "source")
        self._generated = counter("generation_tokens", "Tokens of answers.")
        self._drafts = counter("spec_decode_num_draft_tokens", "Tokens drafted.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Drafted tokens accepted.")
        self._cancelled = counter("cancelled", "Answers that were not finished.", "why")
        self._unread = counter("unread_calls", "Parts that look like calls and are none.")
        name = "mlx_eagle_time_to_first_token_seconds"
        self._first = Histogram(
            name, "From acceptance to the first of an answer.", buckets=BUCKETS, registry=registry
        )
        for name, (text, measure) in gauges.items():
            Gauge(f"mlx_eagle_{name}", text, registry=registry).set_function(measure)

    def count(self, api: str, status: int, outcome: Outcome | None) -> None:
        """Count a request that is over.

        Args:
            api: of the request; "other" for what is no request for an answer.
            status: that it was answered with.
            outcome: what became of its answer, if one was begun.
        """
        self._requests.labels(api, str(status)).inc()
        if outcome is None:
            return
        if outcome.first_seconds is not None:
            self._first.observe(outcome.first_seconds)
        if outcome.end is None:
            self._cancelled.labels(outcome.failure or "client").inc()
            return
        usage, figures = outcome.end.usage, outcome.end.figures
        self._unread.inc(outcome.end.n_unread)
        self._prompt.labels("disk" if outcome.end.tier == "disk" else "cached").inc(usage.cached)
        self._prompt.labels("read").inc(usage.prompt - usage.cached)
        self._generated.inc(usage.completion)
        self._drafts.inc(figures["draft_n"])
        self._accepted.inc(figures["draft_n_accepted"])

    def text(self) -> bytes:
        """Return all counts as Prometheus reads them."""
        return generate_latest(self._registry)


def log_line(scope: Scope, status: int, seconds: float, outcome: Outcome | None) -> str:
    """Return the line of a request that is over."""
    names = dict(scope["headers"])
    client = CLIENT.match(names.get(b"user-agent", b"").decode("latin-1"))
    what = outcome.api if outcome is not None else scope["method"]
    line = f"{scope.get(ID, '-')} {what} {status} {client[0] if client else '-'}"
    if outcome is not None and outcome.end is not None:
        usage, figures = outcome.end.usage, outcome.end.figures
        where = f", {outcome.end.tier}" if outcome.end.tier else ""
        line += (
            f" prompt {usage.prompt} (cached {usage.cached}{where}) answer {usage.completion} "
            f"accepted {figures['draft_n_accepted']}/{figures['draft_n']} {outcome.end.reason}"
        )
    elif outcome is not None:
        line += f" ended: {outcome.failure or 'the client went away'}"
    return f"{line} {seconds:.2f} s"
