"""Facts about a head as they are gathered: each with where it came from, some in doubt."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Doubt(NamedTuple):
    """Why a fact may be wrong, and what it may be instead; `mlx-eagle doctor` measures these."""

    reason: str
    alternatives: list[Any]


@dataclass
class Facts:
    """Values for `HeadConfig` by name, the origin of each, and the doubts there are."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, Doubt] = field(default_factory=dict)

    def put(self, name: str, value: Any, origin: str) -> None:
        """Note a value and where it came from."""
        self.values[name], self.origins[name] = value, origin

    def doubt(self, name: str, reason: str, alternatives: list[Any]) -> None:
        """Note that a value may be wrong; what it is already is no alternative."""
        others = [value for value in alternatives if value != self.values[name]]
        if others:
            self.doubts[name] = Doubt(reason, others)
