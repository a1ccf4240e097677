"""Facts about a head: what a rule reads to decide one, and what it returns.

A fact is a value of `HeadConfig`. It carries its origin, and a doubt where published files are
known to get it wrong.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mlx_eagle.convert.dialects import Dialect
from mlx_eagle.convert.target_facts import TargetFacts
from mlx_eagle.convert.tensor_shapes import HeadSizes
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote_value


class Doubt(NamedTuple):
    """Why a value may be wrong, and what it may be instead; `mlx-eagle doctor` measures these."""

    reason: str
    alternatives: list[Any]


class Fact(NamedTuple):
    """A value for `HeadConfig`, where it comes from, and why it may be wrong, or None."""

    value: Any
    origin: str
    doubt: Doubt | None = None

    def doubted(self, reason: str, alternatives: list[Any]) -> "Fact":
        """Return the fact with a doubt, or as it is if every alternative is the value itself."""
        others = [value for value in alternatives if value != self.value]
        return self._replace(doubt=Doubt(reason, others)) if others else self


class PublishedHead(NamedTuple):
    """Everything that decides the facts about a head of the EAGLE family.

    Attributes:
        config: the published `config.json`.
        layer_config: the part of it that describes the decoder layer; often all of it.
        sizes: what the shapes of the tensors tell.
        dialect: whose head it is.
        target: what the target's configuration says.
    """

    config: dict[str, Any]
    layer_config: dict[str, Any]
    sizes: HeadSizes
    dialect: Dialect
    target: TargetFacts

    @property
    def flags(self) -> dict[str, Any]:
        """Return the configuration with the keys of a nested `eagle_config`; its own keys win."""
        nested = self.config.get("eagle_config")
        return (nested if isinstance(nested, dict) else {}) | self.config

    @property
    def fuses_taps(self) -> bool:
        """Say whether `fc` reads taps; in an EAGLE-1 head it joins embedding and hidden state."""
        joins = self.dialect.algorithm in ("eagle", "mtp")
        return not joins and "fc.weight" in self.sizes.parts

    @property
    def n_taps(self) -> int:
        """Return how many taps `fc` reads side by side."""
        return self.sizes.taps // self.target.hidden_size


def facts_as_json(facts: Mapping[str, Fact], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of facts, `more`, and then the facts' `origins` and `doubts`, for JSON."""
    values = {name: fact.value for name, fact in facts.items()}
    origins = {name: fact.origin for name, fact in facts.items()}
    doubts = {name: fact.doubt._asdict() for name, fact in facts.items() if fact.doubt}
    return {**values, **more, "origins": origins, "doubts": doubts}


def origin_of(config: Mapping[str, Any], key: str) -> str:
    """Return the origin of a value that is read from a key of a configuration, if it is there."""
    return f"config.json: {key}" if config.get(key) is not None else "default"


def read_flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a boolean of a configuration, or the default if it is absent or null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {quote_value(value)}, not true or false")
    return value
