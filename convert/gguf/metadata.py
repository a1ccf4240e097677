"""The metadata of a GGUF file, value by value: of its kind, or an error says so."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote, quote_value

MOST = (1 << 31) - 1


class Metadata(NamedTuple):
    """Keys and values of a file, and what the keys of its architecture begin with."""

    values: Mapping[str, Any]
    prefix: str

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive integer of the architecture.

        Raises:
            CheckpointError: if it is missing without a default, or no integer from 1 to 2**31 - 1.
        """
        name = f"{self.prefix}.{key}"
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, list):
            raise CheckpointError(
                f"its {name} differs from layer to layer, which is not known of {self.prefix}"
            )
        if type(value) is not int or not 0 < value <= MOST:
            raise CheckpointError(f"its {name} is {quote_value(value)}, not a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive number of the architecture, as it was before it had 32 bits.

        Raises:
            CheckpointError: if it is missing without a default, or no positive, finite number.
        """
        name = f"{self.prefix}.{key}"
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or value is None or not 1e-15 < value < 1e15:
            raise CheckpointError(f"its {name} is {quote_value(value)}, not a positive number")
        return float(str(np.float32(value)))

    def has(self, key: str) -> bool:
        """Say whether a key of the architecture is there and not 0, false or empty."""
        return bool(self.values.get(f"{self.prefix}.{key}"))

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text by its whole key.

        Raises:
            CheckpointError: if it is missing without a default, or no text.
        """
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise CheckpointError(f"its {name} is {quote_value(value)}, not a text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth by its whole key.

        Raises:
            CheckpointError: if it is something else.
        """
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"its {name} is {quote_value(value)}, not true or false")
        return value

    def items(self, name: str, kind: type, default: list[Any] | None = None) -> list[Any]:
        """Return a list by its whole key, all items of which are of a kind.

        Raises:
            CheckpointError: if it is missing without a default, or something else.
        """
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise CheckpointError(f"its {name} is {quote(value)}, not a list of {kind.__name__}")
        return value
