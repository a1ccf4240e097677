"""One answer: shown piece by piece, and counted for its statistics."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from mlx_eagle.cli.terminal.display import count, printable

if TYPE_CHECKING:
    from mlx_eagle.decoding.stats import GenerationStats
    from mlx_eagle.session.responses import GenerationResponse

SHORT_REASON = 50  # characters of a reason that fits beside other figures


class View(Protocol):
    """What shows an answer; see `views.py`."""

    def add(self, piece: "GenerationResponse") -> None:
        """Show what one token brought."""

    def close(self) -> None:
        """Show what is left and end the last line, however the answer ends."""


class Answer(AbstractContextManager["Answer"]):
    """One answer; as a context it ends what shows it, however the answer ends."""

    def __init__(self, view: View):
        self._view = view
        self.pieces: list[GenerationResponse] = []
        self.logprobs: list[dict[str, Any]] = []  # by token, where they were asked for

    def add(self, piece: "GenerationResponse") -> None:
        """Take in one token."""
        self.pieces.append(piece)
        self._view.add(piece)

    def __exit__(self, *error: object) -> None:
        """End what shows the answer."""
        self._view.close()

    @property
    def stats(self) -> "GenerationStats | None":
        """The statistics, which come with the last token; None if that did not come."""
        return self.pieces[-1].stats if self.pieces else None

    def summary(self) -> str:
        """Return one line: tokens, tokens per second, acceptance length, rounds."""
        if not self.pieces:
            return "no tokens"
        last = self.pieces[-1]
        parts = ["stopped"] if last.finish_reason == "cancelled" else []
        parts += [count(last.generation_tokens, "token"), f"{last.generation_tps:.1f} tokens/s"]
        if last.stats and not last.stats.status.is_on:
            reason = printable(last.stats.speculation)
            short = reason if len(reason) <= SHORT_REASON else "off (/stats or --explain: why)"
            parts.append(f"speculation {short}")
        else:
            parts += self._acceptance()
        if last.finish_reason == "length" and not (last.stats and last.stats.ended_by):
            parts.append("ended by max_tokens")
        return " · ".join(parts)

    def remarks(self) -> list[str]:
        """Return what the user should know about the answer, a line each; mostly nothing."""
        if self.stats is None:
            return []
        lines = []
        if n_dropped := self.stats.dropped_messages:
            oldest = f"{count(n_dropped, 'oldest message')}"
            lines.append(f"left out: the {oldest}, for which the context had no room")
        if self.stats.ended_by:
            lines.append(f"ended here: {self.stats.ended_by}")
        if self.stats.advice:
            lines.append(self.stats.advice)
        return [printable(line) for line in lines]

    def _acceptance(self) -> list[str]:
        """Return acceptance length and rounds, as far as they are known.

        For a stopped answer they are counted: the first token comes with the prompt, and every
        round after it ends in one token that no drafter proposed.
        """
        n_rounds = sum(not piece.from_draft for piece in self.pieces[1:])
        length = (len(self.pieces) - 1) / n_rounds if n_rounds else 0.0
        if self.stats:
            n_rounds, length = self.stats.rounds, self.stats.acceptance_length
        if not n_rounds:
            return []
        return [f"acceptance length {length:.2f}", count(n_rounds, "round")]
