"""What the target's KV cache keeps: every row as it is, every row quantized, or only so many."""

from dataclasses import dataclass
from typing import Any

from mlx_lm.models import cache as stock

from mlx_eagle.cache.attention_sinks import LEAST, SINKS, SinkKVCache
from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.quantized import QuantizedKVCache
from mlx_eagle.errors import EagleError
from mlx_eagle.load_options import KV_BITS, KV_GROUP_SIZES


@dataclass(frozen=True)
class KVOptions:
    """What the layers that keep all of the history keep of it; the names users know in brackets.

    Layers with a window of their own, and recurrent ones, are bounded as they are and stay so.

    Attributes:
        bits: of a number in the cache (kv_bits); None for the target's own precision.
        group_size: numbers that share a scale (kv_group_size).
        max_size: rows that are kept, the first four among them (max_kv_size); None for all.
    """

    bits: int | None = None
    group_size: int = 64
    max_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in KV_BITS:
            raise EagleError(f"kv_bits is {self.bits}; it must be 4 or 8")
        if self.group_size not in KV_GROUP_SIZES:
            raise EagleError(f"kv_group_size is {self.group_size}; it must be 32, 64 or 128")
        if self.max_size is not None and self.max_size < LEAST:
            raise EagleError(f"max_kv_size is {self.max_size}; it must be {LEAST} or more")
        if self.bits is not None and self.max_size is not None:
            raise EagleError(
                "kv_bits and max_kv_size were both given; a cache that forgets rows is not "
                "quantized, so choose one"
            )

    def make_layer(self) -> KVCache:
        """Return an empty cache for one layer that attends to all of the history."""
        if self.bits is not None:
            return QuantizedKVCache(self.bits, self.group_size)
        if self.max_size is not None:
            return SinkKVCache(SINKS, self.max_size - SINKS)
        return KVCache()

    def stock_layer(self, layer: Any) -> Any:
        """Return mlx-lm's empty cache for one layer under these options.

        Args:
            layer: mlx-lm's empty cache for it without them.
        """
        if type(layer) is not stock.KVCache:
            return layer
        if self.bits is not None:
            return stock.QuantizedKVCache(self.group_size, self.bits)
        if self.max_size is not None:
            return stock.RotatingKVCache(self.max_size, keep=SINKS)
        return layer


WHOLE = KVOptions()
