"""Finds out, over all conversations with a head, whether it drafts too badly to be of any use."""

from mlx_eagle.decoding.stats import GenerationStats


class HeadWatch:
    """Notices, over all conversations with a head, that it is of no use as it is run."""

    PATIENCE = 50  # rounds in which something was drafted
    LOW = 0.2  # share of them in which the first token is right: a sound head gives far more

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self._rounds = self._right = 0
        self._told = False

    def advise(self, stats: GenerationStats) -> str:
        """Take in one generation; return what to do about the head, at most once."""
        if stats.planned is not None:
            self._rounds += stats.planned.drafted_rounds
            self._right += stats.planned.first_right
        elif stats.drafted_by_depth:
            self._rounds += stats.drafted_by_depth[0]
            self._right += sum(n > 0 for n in stats.n_accepted_per_round)
        if self._told or self._rounds < self.PATIENCE or self._right >= self.LOW * self._rounds:
            return ""
        self._told = True
        return (
            f"the head's first token was right in only {self._right / self._rounds:.0%} of "
            f"{self._rounds} rounds: it may be run otherwise than it was trained; "
            f"try: {self.remedy}"
        )
