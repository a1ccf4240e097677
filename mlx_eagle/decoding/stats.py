"""What a generation cost and what speculation gave; the words are the field's, defined once.

`n_accepted` is what a round accepts of its drafted tokens, also where the answer ends within it.
`acceptance_length` is the mean number of tokens per target forward, the target's own bonus token
included: mean(n_accepted) + 1.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from mlx_eagle.planner.policy import Review
from mlx_eagle.sampling.options import MATCH, TYPICAL
from mlx_eagle.speculation import ON, Speculation


@dataclass
class Planned:
    """What a planner chose, expected and got, in an answer that was left to it.

    Attributes:
        calibration: where its costs come from.
        plain_seconds: what a token is expected to take in plain decoding.
        plain_rounds: rounds for which nothing was drafted at all.
        rounds_by_rows: other rounds by the number of rows that were verified; 1 is a round whose
            drafted tokens were not worth verifying.
        rounds_by_depth: the same rounds by drafted levels.
        tokens, expected_tokens: of the same rounds, the target's own tokens included.
        seconds, expected_seconds: of the same rounds, drafting and verification.
        first_right: those of them in which the likeliest first token was the target's.
    """

    calibration: str
    plain_seconds: float
    plain_rounds: int = 0
    rounds_by_rows: dict[int, int] = field(default_factory=dict)
    rounds_by_depth: dict[int, int] = field(default_factory=dict)
    tokens: int = 0
    expected_tokens: float = 0.0
    seconds: float = 0.0
    expected_seconds: float = 0.0
    first_right: int = 0

    MOSTLY: ClassVar[float] = 0.9  # share of the rounds
    MANY: ClassVar[int] = 16  # rounds

    def add(self, n_tokens: int, seconds: float, review: Review | None) -> None:
        """Count one round and how it went; a round without review was plain."""
        if review is None:
            self.plain_rounds += 1
            return
        forecast = review.forecast
        rows, depth = forecast.n_rows, forecast.depth
        self.rounds_by_rows[rows] = self.rounds_by_rows.get(rows, 0) + 1
        self.rounds_by_depth[depth] = self.rounds_by_depth.get(depth, 0) + 1
        self.tokens += n_tokens
        self.expected_tokens += forecast.tokens
        self.seconds += seconds
        self.expected_seconds += forecast.seconds
        self.first_right += review.first_right

    @property
    def rounds(self) -> int:
        """All rounds."""
        return self.plain_rounds + self.drafted_rounds

    @property
    def drafted_rounds(self) -> int:
        """Rounds in which something was drafted, be it verified or not."""
        return sum(self.rounds_by_rows.values())

    @property
    def is_mostly_plain(self) -> bool:
        """Whether nearly all of many rounds verified nothing that was drafted."""
        plain = self.plain_rounds + self.rounds_by_rows.get(1, 0)
        return self.rounds >= self.MANY and plain >= self.MOSTLY * self.rounds


@dataclass
class GenerationStats:
    """Counts, times in seconds and sizes in bytes of one generation.

    `cached_tokens` of the prompt were already in the cache. The first token belongs to the
    prompt: it comes with the prefill, before any round. `draft_seconds` and `verify_seconds`
    are None where they were not told apart (on a GPU a round is one submission). On a CPU the
    draft's seconds include the building of the verification graph, which happens meanwhile;
    `host_seconds` is the part of the rounds in which the device had nothing to do. `advice` is
    a line for the user, once, where a head drafts so badly that it must be run wrongly, or a disk
    takes no more rows.
    `planned` is None where no planner was asked. `ended_by` says what was full if an answer
    ended before `max_tokens`; `status` says whether anything was drafted, and `speculation` the
    same in words; `stop_string` is the one that ended the answer, "" if none did;
    `dropped_messages` were left out of the prompt because they did not fit. `seed` gives the
    same text again; None where nothing was drawn by one. `by_source` counts drafted and
    accepted tokens by what proposed them: "head", "n-gram"; `first_by_source` counts the rounds in
    which each proposed the likeliest first token that is judged, and those in which it was right.
    `acceptance_rule` is that of `GenerationOptions.acceptance`.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_tokens: int = 0
    generation_seconds: float = 0.0
    drafted: int = 0
    n_accepted_per_round: list[int] = field(default_factory=list)
    drafted_by_depth: list[int] = field(default_factory=list)
    by_source: dict[str, tuple[int, int]] = field(default_factory=dict)
    first_by_source: dict[str, tuple[int, int]] = field(default_factory=dict)
    draft_seconds: float | None = 0.0
    verify_seconds: float | None = 0.0
    host_seconds: float = 0.0
    peak_memory_bytes: int = 0
    status: Speculation = ON
    advice: str = ""
    ended_by: str = ""
    stop_string: str = ""
    dropped_messages: int = 0
    seed: int | None = None
    acceptance_rule: str = MATCH
    planned: Planned | None = None

    @property
    def is_lossy(self) -> bool:
        """Whether the text may differ in distribution from the target's own."""
        return self.acceptance_rule == TYPICAL and self.drafted > 0

    @property
    def speculation(self) -> str:
        """Whether anything was drafted: "on", or "off: reason"."""
        return str(self.status)

    @property
    def rounds(self) -> int:
        """Target forwards after the prefill."""
        return len(self.n_accepted_per_round)

    @property
    def accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return sum(self.n_accepted_per_round)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per target forward; 1 without speculation, 0 before the first round."""
        return self.accepted / self.rounds + 1 if self.rounds else 0.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of the rounds that drafted to depth d + 1 in which that depth was accepted."""
        reached = [sum(n > d for n in self.n_accepted_per_round) for d in range(self._depth)]
        return [a / n if n else 0.0 for a, n in zip(reached, self.drafted_by_depth, strict=True)]

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens read per second; what the cache already held is not counted."""
        n_read = self.prompt_tokens - self.cached_tokens
        return n_read / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generation_tps(self) -> float:
        """Generated tokens per second; the first comes with the prompt and is not counted."""
        n_timed = self.generation_tokens - 1
        return n_timed / self.generation_seconds if self.generation_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and derived figures, ready for JSON."""
        fields = asdict(self)
        del fields["status"]
        return fields | {
            "speculation": self.speculation,
            "is_lossy": self.is_lossy,
            "rounds": self.rounds,
            "accepted": self.accepted,
            "acceptance_length": self.acceptance_length,
            "acceptance_by_depth": self.acceptance_by_depth,
        }

    def add_round(self, depth: int, n_drafted: int, n_accepted: int) -> None:
        """Count one round that drafted `n_drafted` tokens down to `depth` levels."""
        self.drafted += n_drafted
        self.n_accepted_per_round.append(n_accepted)
        self.drafted_by_depth += [0] * (depth - self._depth)
        for level in range(depth):
            self.drafted_by_depth[level] += 1

    def add_sources(self, sources: Sequence[str], path: Sequence[int]) -> None:
        """Count one round's tokens by what proposed them.

        Args:
            sources: of every node without the root.
            path: the accepted nodes, the root, 0, first.
        """
        accepted = Counter(sources[node - 1] for node in path[1:])
        for source, n_drafted in Counter(sources).items():
            drafted, kept = self.by_source.get(source, (0, 0))
            self.by_source[source] = (drafted + n_drafted, kept + accepted[source])

    def add_first(self, source: str, *, is_right: bool) -> None:
        """Count a round by what proposed its first token, and whether that was right."""
        rounds, right = self.first_by_source.get(source, (0, 0))
        self.first_by_source[source] = (rounds + 1, right + is_right)

    def add_times(self, draft: float | None, verify: float | None, host: float) -> None:
        """Add one round's seconds; None where drafting and verifying were not told apart."""
        self.draft_seconds = _sum(self.draft_seconds, draft)
        self.verify_seconds = _sum(self.verify_seconds, verify)
        self.host_seconds += host

    @property
    def _depth(self) -> int:
        return len(self.drafted_by_depth)


def _sum(total: float | None, part: float | None) -> float | None:
    return None if total is None or part is None else total + part
