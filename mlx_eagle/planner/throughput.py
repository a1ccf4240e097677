"""What rounds that draft give: tokens per second, as expected and as they came."""

from dataclasses import dataclass, field
from typing import ClassVar

from mlx_eagle.planner.policy import Forecast


@dataclass
class Throughput:
    """Means over the last rounds: expected tokens, tokens that came, and expected seconds.

    Attributes:
        means: these three.
        n_recent: rounds that they stand for.
        n_rounds: rounds in all.
    """

    RATE: ClassVar[float] = 0.08  # weight of a round
    JUDGED: ClassVar[int] = 12  # rounds before they are judged by the tokens that came
    SHORT: ClassVar[float] = 0.9  # share of the expected tokens that may come before it counts
    BEFORE_PROBE: ClassVar[int] = 4  # rounds that the means stand for after a pause

    means: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    n_recent: int = 0
    n_rounds: int = 0

    @property
    def rate(self) -> float:
        """Tokens per second: fewer than expected if clearly fewer came."""
        expected, came, seconds = self.means
        is_judged = self.n_rounds >= self.JUDGED
        return (min(expected, came / self.SHORT) if is_judged else expected) / seconds

    def learn(self, forecast: Forecast, n_tokens: int) -> None:
        """Take in what a round was expected to give, and the tokens that it gave."""
        self.n_rounds, self.n_recent = self.n_rounds + 1, self.n_recent + 1
        weight = max(self.RATE, 1 / self.n_recent)
        news = forecast.tokens, n_tokens, forecast.seconds
        self.means = [x + weight * (y - x) for x, y in zip(self.means, news, strict=True)]

    def pause(self) -> None:
        """Let the next round, a probe, weigh more."""
        self.n_recent = self.BEFORE_PROBE
