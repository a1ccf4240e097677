"""The tensors of a GGUF file that become weights: their rows in MLX's order, and their values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from mlx_eagle.convert.gguf.families import Family
from mlx_eagle.convert.gguf.formats import EXACT, PLAIN, Kind
from mlx_eagle.convert.gguf.reader import GGUF, Tensor
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote

INEXACT_BITS = 8  # of what has to be quantized again
Numbers = NDArray[np.float32]


class Weight(NamedTuple):
    """A tensor that becomes a weight.

    Attributes:
        place: its name in MLX.
        tensor: as the file has it.
        n_heads: heads whose rows are interleaved and have to be put back in order; 0 for none.
        raised: llama.cpp has added 1 to it.
    """

    place: str
    tensor: Tensor
    n_heads: int = 0
    raised: bool = False

    @property
    def bits(self) -> int | None:
        """How many bits its values will have; None for values that are not quantized."""
        kind, shape = self.tensor.kind, self.tensor.shape
        if kind in PLAIN or len(shape) < 2 or not self.place.endswith(".weight"):
            return None
        return EXACT[kind].bits if kind in EXACT else INEXACT_BITS

    def rows(self) -> NDArray[Any]:
        """Return what the file stores, [rows, numbers or bytes of a row], in MLX's order."""
        data = self.tensor.data
        rows = (
            data.reshape(1, -1) if len(self.tensor.shape) < 2 else data.reshape(-1, data.shape[-1])
        )
        if not self.n_heads:
            return rows
        by_head = data.reshape(self.n_heads, len(data) // self.n_heads // 2, 2, -1)
        return by_head.swapaxes(1, 2).reshape(rows.shape)

    def values(self, rows: NDArray[Any]) -> Numbers:
        """Return the values [rows, values] of some of its rows.

        Raises:
            CheckpointError: if there are some that are no finite numbers.
        """
        kind = self.tensor.kind
        if kind == Kind.BF16:
            found = (rows.astype(np.uint32) << 16).view(np.float32)
        elif kind in PLAIN:
            found = rows.astype(np.float32)
        else:
            found = dequantize(rows, kind)
        require_finite(self, found)
        return found - np.float32(1) if self.raised else found


def list_weights(
    gguf: GGUF, family: Family, names: Mapping[str, str], config: dict[str, Any]
) -> list[Weight]:
    """Return the tensors that become weights.

    Args:
        gguf: the file.
        family: which it is of.
        names: what tensors are called in MLX.
        config: the configuration made of its metadata.

    Raises:
        CheckpointError: if rows cannot be those of heads.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = []
    for name, place in names.items():
        tensor, part = gguf.tensors[name], name.split(".")[-2]
        n_heads = heads.get(part, 0) if family.has_interleaved_heads else 0
        if n_heads and tensor.shape[0] != n_heads * config["head_dim"]:
            raise CheckpointError(
                f"{quote(name)} has {tensor.shape[0]} rows, not those of {n_heads} heads of "
                f"{config['head_dim']}"
            )
        found.append(Weight(place, tensor, n_heads, family.has_raised_norms and "norm" in part))
    return found


def require_finite(weight: Weight, *numbers: Numbers) -> None:
    """Refuse a tensor with values that are no finite numbers.

    Raises:
        CheckpointError: naming it.
    """
    if not all(np.isfinite(part).all() for part in numbers):
        name = quote(weight.tensor.name)
        raise CheckpointError(f"{name} has values that are no finite numbers: the file is damaged")
