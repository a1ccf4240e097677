"""What a generation cost and what speculation gave; the words are the field's, defined once.

`n_accepted` is what a round accepts of its drafted tokens, also where the answer ends within it.
`acceptance_length` is the mean number of tokens per target forward, the target's own bonus token
included: mean(n_accepted) + 1.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class GenerationStats:
    """Counts, times in seconds and sizes in bytes of one generation.

    `cached_tokens` of the prompt were already in the cache. The first token belongs to the
    prompt: it comes with the prefill, before any round. `draft_seconds` and `verify_seconds` are
    None where they were not told apart (on a GPU a round is one submission). On a CPU the draft's
    seconds include the building of the verification graph, which happens meanwhile;
    `host_seconds` is the part of the rounds in which the device had nothing to do. `advice` is
    a line for the user, once, where a head drafts so badly that it must be run wrongly.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_tokens: int = 0
    generation_seconds: float = 0.0
    drafted: int = 0
    n_accepted_per_round: list[int] = field(default_factory=list)
    drafted_by_depth: list[int] = field(default_factory=list)
    draft_seconds: float | None = 0.0
    verify_seconds: float | None = 0.0
    host_seconds: float = 0.0
    peak_memory_bytes: int = 0
    speculation: str = "on"
    advice: str = ""

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
        return asdict(self) | {
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

    def add_times(self, seconds: Sequence[float | None]) -> None:
        """Add one round's (draft, verify, host) seconds; None where they were not told apart."""
        draft, verify, host = seconds
        self.draft_seconds = _sum(self.draft_seconds, draft)
        self.verify_seconds = _sum(self.verify_seconds, verify)
        self.host_seconds += host or 0.0

    @property
    def _depth(self) -> int:
        return len(self.drafted_by_depth)


def _sum(total: float | None, part: float | None) -> float | None:
    return None if total is None or part is None else total + part


class HeadWatch:
    """Notices, over all conversations with a head, that it is of no use as it is run."""

    PATIENCE = 200  # rounds
    LOW = 1.2  # tokens per round: a head that is run as it was trained gives more

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self._rounds = self._accepted = 0
        self._told = False

    def advise(self, stats: GenerationStats) -> str:
        """Take in one generation; return what to do about the head, at most once."""
        drafted = stats.drafted > 0
        self._rounds += stats.rounds if drafted else 0
        self._accepted += stats.accepted
        if self._told or self._rounds < self.PATIENCE:
            return ""
        length = self._accepted / self._rounds + 1
        if length >= self.LOW:
            return ""
        self._told = True
        return (
            f"the head gave only {length:.2f} tokens per round in {self._rounds} rounds: it may be "
            f"run otherwise than it was trained; try: {self.remedy}"
        )
