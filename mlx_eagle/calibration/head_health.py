"""Finds out, over all conversations with a head, whether it drafts too badly to be of any use."""

from mlx_eagle.decoding.stats import GenerationStats
from mlx_eagle.planner.policy import HEAD


class HeadWatch:
    """Notices, over all conversations with a head, that it is of no use as it is run."""

    PATIENCE = 50  # rounds in which it drafted
    LOW = 0.2  # share of them in which the first token is right: a sound head gives far more

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self._rounds = self._right = 0
        self._told = False

    def advise(self, stats: GenerationStats) -> str:
        """Take in one generation; return what to do about the head, at most once.

        What was looked up in the text beside the head says nothing of it.
        """
        rounds, right = stats.first_by_source.get(HEAD, (0, 0))
        self._rounds, self._right = self._rounds + rounds, self._right + right
        if self._told or self._rounds < self.PATIENCE or self._right >= self.LOW * self._rounds:
            return ""
        self._told = True
        return (
            f"the head's first token was right in only {self._right / self._rounds:.0%} of "
            f"{self._rounds} rounds: it may be run otherwise than it was trained; "
            f"try: {self.remedy}"
        )
