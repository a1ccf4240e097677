"""Whether anything is drafted, and if not, why: said at load time and after every answer."""

from typing import NamedTuple


class Speculation(NamedTuple):
    """Whether anything is drafted; `reason` says why not."""

    is_on: bool
    reason: str = ""

    @classmethod
    def off(cls, reason: str) -> "Speculation":
        """Return that nothing is drafted, for a reason in words."""
        return cls(False, reason)

    def __str__(self) -> str:
        """Return "on", or "off: reason"."""
        return "on" if self.is_on else f"off: {self.reason}"


ON = Speculation(True)
